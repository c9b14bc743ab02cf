//! What is not a flow is refused, with its place, soon, and without a panic.

use std::time::{Duration, Instant};

use ringspan::ovs::flow::{Names, parse};

use super::{doing, entries, matching};

fn refused(line: &str) -> parse::ParseError {
    match parse::flow(line, 7, Names::Allowed) {
        Ok(flow) => panic!("read as {flow:?}"),
        Err(error) => error,
    }
}

#[test]
fn an_error_says_line_column_and_reason() {
    let line = matching("in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:0x)");
    let error = refused(&line);
    assert_eq!((error.line, error.column), (7, line.find("02:00:00:00:00:0x").unwrap() + 1));
    assert_eq!(error.to_string(), "line 7, column 42: expected a MAC address, found \"02:00:00:00:00:0x), pack\"…");
    assert_eq!(refused("").reason, "expected a field such as eth(...), found the end of the line");
}

#[test]
fn what_is_not_known_is_named() {
    for (line, reason) in [
        (matching("in_port(1),frobnicate(5)"), "unknown field: \"frobnicate(5), packets:0\"…"),
        (doing("frobnicate(5),2"), "unknown action: \"frobnicate(5),2\""),
        (doing("set(frobnicate(5))"), "unknown field: \"frobnicate(5))\""),
        (
            matching("eth(src=02:00:00:00:00:01,type=5)"),
            "not a part of eth(...), or not in its place: \",type=5), packets:0, byt\"…",
        ),
        (matching("tcp_flags(+syn+foo)"), "unknown flag: \"foo), packets:0, bytes:0\"…"),
        (matching("ct_state(+trk+[Unknown])"), "unknown flag: \"[Unknown]), packets:0, b\"…"),
        (doing("userspace(pid=0,frob(5))"), "expected \")\" at the action's end, found \",frob(5))\""),
        (
            doing("hash(Unknown hash algorithm(3))"),
            "expected l4(...) or sym_l4(...), found \"Unknown hash algorithm(3\"…",
        ),
    ] {
        assert_eq!(refused(&line).reason, reason, "{line}");
    }
}

#[test]
fn what_was_expected_is_told_from_the_words_around_it() {
    for (line, reason) in [
        ("in_port(1)", "expected \", packets:\", found the end of the line"),
        ("in_port(1) packets:0", "expected \", packets:\", found \" packets:0\""),
        ("in_port(1", "expected \")\" at the end of this field, found the end of the line"),
        ("eth(src=02:00:00:00:00:01", "expected \",\" and more of eth(...), or \")\", found the end of the line"),
    ] {
        assert_eq!(refused(line).reason, reason, "{line}");
    }
    assert_eq!(refused(&doing("sample(frob=1)")).reason, "expected \"sample=\", found \"frob=1)\"");
}

#[test]
fn what_would_be_read_wrongly_is_not_read() {
    for line in [
        // Twice.
        matching("in_port(1),in_port(2)"),
        matching("ipv4(src=1.1.1.1,src=2.2.2.2)"),
        matching("tcp_flags(+syn-syn)"),
        matching("tunnel(tun_id=0x1,tun_id=0x2)"),
        // Too large.
        matching("vlan(vid=4096,pcp=0)"),
        matching("vlan(vid=1,pcp=8)"),
        matching("ipv4(proto=256)"),
        matching("recirc_id(0x100000000)"),
        matching("ct_label(0x100000000000000000000000000000000)"),
        matching("tunnel(tun_id=0x10000000000000000)"),
        matching("mpls(label=1048576,tc=0,ttl=0,bos=0)"),
        doing("4294967296"),
        doing("push_vlan(vid=5,pcp=9)"),
        // Addresses.
        matching("ipv4(src=1.2.3)"),
        matching("ipv4(src=1.2.3.256)"),
        matching("ipv4(src=01.2.3.4)"),
        matching("ipv6(src=fe80:::1)"),
        matching("eth(src=2:0:0:0:0:1)"),
        // OVS's own error texts.
        matching("ipv4(src=1.2.3.4,error: partial mask not supported for frag (0xf),)"),
        matching("key5(bad key length 3, expected 4)(01 02 03)"),
        matching("in_port(1),***5 leftover bytes*** (0102030405)"),
        matching("tunnel(geneve(opt len 5 greater than remaining 4))"),
        doing("sample(error)"),
        doing("userspace(error)"),
        doing("ct(nat(error: proto but no IP.))"),
        doing("bad length 3, expected 4 for: action1(01 02 03)"),
        doing("<error: unknown mdtype>"),
        // Ranges and lengths that cannot be.
        doing("ct(nat(src=1.2.3.5-1.2.3.4))"),
        doing("ct(nat(src=1.2.3.5-fe80::1))"),
        doing("ct(nat(src=1.2.3.5:90-80))"),
        doing("sample(sample=100.1%,actions(1))"),
        doing("sample(sample=1.05%,actions(1))"),
        doing("set(tunnel(geneve({class=0x1,type=0x1,len=4,0x1122334455})))"),
        doing("set(tunnel(geneve({class=0x1,type=0x1,len=5,0x11})))"),
        doing("userspace(pid=0,userdata(012))"),
        matching("key5(01 02/ff)"),
        // Whether it is a timeout `bnat`, or one `b` with nat, cannot be told: OVS before 3.0 prints both so.
        doing("ct(timeout=bnat)"),
        // The rest of the line.
        doing("1,"),
        doing("1 "),
        doing("1, 2"),
        doing(""),
        doing("set()"),
        doing("pop_vlan()"),
        doing("push_vlan"),
        doing("set(eth(src=02:00:00:00:00:01),ipv4(ttl=5))"),
        "in_port(1), packets:0, bytes:0, used:never, flags:, actions:1".into(),
        "in_port(1), packets:0, bytes:0, used:never, flags:FS, actions:1".into(),
        "in_port(1), packets:0, bytes:0, used:5s, actions:1".into(),
        "in_port(1), packets:-1, bytes:0, used:never, actions:1".into(),
        "in_port(1), packets:0, bytes:0, used:never, offloaded:no, actions:1".into(),
        "ufid:1234, in_port(1), packets:0, bytes:0, used:never, actions:1".into(),
        "ufid:+6faf8bd-5c17-4d9a-8bc6-5b4cbf2c9ec1, in_port(1), packets:0, bytes:0, used:never, actions:1".into(),
    ] {
        refused(&line);
    }
    for line in ["flow-dump from somewhere:", "flow-dump from pmd on cpu core: x", "flow-dump"] {
        parse::line(line, 1, Names::Allowed).unwrap_err();
    }
}

/// All that this folder has.
fn corpus() -> Vec<String> {
    let keys = entries(include_str!("keys.txt")).map(matching);
    let actions = entries(include_str!("actions.txt")).map(doing);
    keys.chain(actions).chain(entries(include_str!("lines.txt")).map(str::to_owned)).collect()
}

#[test]
fn text_that_was_cut_is_refused_or_says_something_else() {
    for line in corpus() {
        let Ok(whole) = parse::flow(&line, 1, Names::Allowed) else { continue };
        let actions = line.find(", actions:").unwrap() + ", actions:".len();
        for end in 0..line.len() {
            match parse::flow(&line[..end], 1, Names::Allowed) {
                // `1,2` cut is `1,`, but `p10` cut is `p1`: only an end that is marked can be told.
                Ok(flow) => assert!(end > actions && flow != whole, "{}", &line[..end]),
                Err(error) => assert!(error.column <= end + 1, "{error}: {}", &line[..end]),
            }
        }
    }
}

#[test]
fn text_with_a_byte_changed_never_panics() {
    for line in corpus() {
        for at in 0..line.len() {
            for byte in [b'(', b')', b',', b'/', b'=', b'0', b'x', b'{', b'+', 0, 0x80] {
                let mut bytes = line.clone().into_bytes();
                bytes[at] = byte;
                if let Ok(flow) = parse::bytes(&bytes, 1, Names::Allowed) {
                    flow.to_string();
                }
            }
        }
    }
}

#[test]
fn long_lines_and_deep_ones_are_refused_soon() {
    let megabyte = 1 << 20;
    let begun = Instant::now();
    for line in [
        "x".repeat(megabyte),
        "(".repeat(megabyte),
        doing(&"1,".repeat(megabyte / 2)),
        doing(&"clone(".repeat(megabyte / 6)),
        matching(&"encap(".repeat(megabyte / 6)),
        matching(&format!("ipv4(src={})", "1".repeat(megabyte))),
    ] {
        assert_eq!(refused(&line).reason, "longer than 256 KiB, which no flow is");
    }
    let quarter = 250_000;
    for line in [
        doing(&"clone(".repeat(quarter / 6)),
        doing(&"check_pkt_len(size=1,gt(".repeat(quarter / 24)),
        doing(&"dec_ttl(le_1(".repeat(quarter / 13)),
        doing(&"sample(sample=1.0%,actions(".repeat(quarter / 28)),
        matching(&"encap(".repeat(quarter / 6)),
    ] {
        assert_eq!(refused(&line).reason, "nested deeper than 32 levels");
    }
    let deep = |depth: usize| doing(&format!("{}1{}", "clone(".repeat(depth), ")".repeat(depth)));
    assert!(parse::flow(&deep(32), 1, Names::None).is_ok());
    refused(&deep(33));
    // Long, and right as far as it goes.
    for line in [
        doing(&format!("{}x(", "1,".repeat(quarter / 2))),
        matching(&format!("{}x(", "key5(01),".repeat(quarter / 9))),
        matching(&format!("ct_label(0x{})", "1".repeat(quarter))),
        doing(&format!("psample(group=1,cookie=0x{}", "1".repeat(quarter))),
    ] {
        refused(&line);
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

#[test]
fn what_is_not_text_is_refused() {
    let error = parse::bytes(b"in_port(1),\xff", 3, Names::Allowed).unwrap_err();
    assert_eq!(error.to_string(), "line 3, column 12: not UTF-8");
    refused("in_port(\u{fffd})");
    refused("\u{1f980}");
}
