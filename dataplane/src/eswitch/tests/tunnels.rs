//! Tunnels: what goes in comes out, and what their options are matched by.

use super::super::switch::{Side, Switch, SwitchPort};
use super::*;
use crate::nic::{Bell, Burst, Eal, EalConfig, HugePages, SoftNic, soft_pool, way};

#[test]
fn an_option_of_geneve_is_matched_and_one_that_nobody_asked_for_is_not() {
    for ipv6 in [false, true] {
        let frame = finished(&Packet::new(60));
        let push = |options: &str| {
            let options = options.into();
            let push = TunnelPush { options, checksum: true, ..tunnel(TunnelKind::Geneve, ipv6) };
            let mut outer = one(&rule(&[], vec![Action::TunnelPush(Box::new(push)), out()]), &frame);
            Packet { ipv6, udp: true, ..Packet::new(0) }.check(&outer).unwrap();
            // As OVS sets it for a critical option.
            let flags = usize::from(parse(&outer).1.l4) + 9;
            outer[flags] |= 0x40;
            outer
        };
        let (ovn, bare) = (
            push("0102800100050007"),
            one(&rule(&[], vec![Action::TunnelPush(Box::new(tunnel(TunnelKind::Geneve, ipv6))), out()]), &frame),
        );
        let from = if ipv6 { "tunnel_ipv6_src=fd00::1" } else { "tunnel_ipv4_src=10.0.0.1" };
        let kind = ["tunnel_kind=2", "tunnel_id=0x123456", from];
        let is = |more: &[&str], frame: &[u8]| matches(&[&kind[..], more].concat(), frame);
        assert!(is(&["tunnel_option=0x010280", "tunnel_option_data=0x50007"], &ovn));
        assert!(is(&["tunnel_option=0x010280", "tunnel_option_data=0x7/0xffff", "eth_type=0x800"], &ovn));
        assert!(!is(&["tunnel_option=0x010280", "tunnel_option_data=0x60007"], &ovn));
        assert!(!is(&["tunnel_option=0x010380"], &ovn) && !is(&["tunnel_option=0x010281"], &ovn));
        assert!(!is(&[], &ovn) && is(&[], &bare) && !is(&["tunnel_option=0x010280"], &bare));
        let pop = rule(&["tunnel_kind=2", "tunnel_option=0x010280"], vec![Action::TunnelPop, out()]);
        assert_eq!(one(&pop, &ovn), frame);
        // A longer option, or two, have room beside addresses of IPv4; others are for the slow path.
        for (options, shape, data) in [
            ("010280020005000701020304", "tunnel_option_shape=1", "tunnel_option_more=0x0102030400000000"),
            ("01028003000500070102030405060708", "tunnel_option_shape=2", "tunnel_option_more=0x0102030405060708"),
            ("01028001000500070103070100000009", "tunnel_option_shape=3", "tunnel_option_more=0x0103070100000009"),
        ] {
            let outer = push(options);
            let all = ["tunnel_option=0x010280", "tunnel_option_data=0x50007", shape, data];
            assert!(!is(&all[..2], &outer), "{options}");
            if ipv6 {
                assert_eq!(parse(&outer).1.inner, 0, "{options}");
                continue;
            }
            assert!(is(&all, &outer), "{options}");
            let other = data.replace("=0x01", "=0x81");
            assert!(is(&all[..3], &outer) && !is(&[all[0], all[1], shape, &other], &outer), "{options}");
            assert!(!is(&[all[0], "tunnel_option_data=0x50008", shape, data], &outer), "{options}");
            for wrong in ["1", "2", "3"].map(|number| format!("tunnel_option_shape={number}")) {
                assert_eq!(is(&[all[0], &wrong], &outer), wrong == shape, "{options}");
            }
            let pop = rule(
                &[&["tunnel_kind=2", "tunnel_ipv4_src=10.0.0.1"], &all[..]].concat(),
                vec![Action::TunnelPop, out()],
            );
            assert_eq!(one(&pop, &outer), frame, "{options}");
        }
        for more in [
            "01028002000500070000000001028000",
            "0102800400050007000000000000000000000000",
            "0102800100050007010280020005000700000000",
            "0102800001028000",
        ] {
            let outer = push(more);
            assert_eq!(parse(&outer).1.inner, 0, "{more}");
        }
    }
}

fn tunnel(kind: TunnelKind, ipv6: bool) -> TunnelPush {
    let address = |end: u8| if ipv6 { format!("fd00::{end}") } else { format!("10.0.0.{end}") }.parse().unwrap();
    TunnelPush {
        kind,
        id: 0x123456,
        eth_src: "02:00:00:00:aa:01".parse().unwrap(),
        eth_dst: "02:00:00:00:aa:02".parse().unwrap(),
        src: address(1),
        dst: address(2),
        tos: 0x10,
        ttl: 33,
        dont_fragment: true,
        src_port: None,
        dst_port: kind.port(),
        checksum: false,
        options: String::new(),
    }
}

#[test]
fn what_goes_into_a_tunnel_comes_out_of_it_as_it_was() {
    for (kind, number) in [(TunnelKind::Vxlan, "tunnel_kind=1"), (TunnelKind::Geneve, "tunnel_kind=2")] {
        for (ipv6, checksum) in [(false, false), (false, true), (true, false), (true, true)] {
            let frame = finished(&Packet { tags: 1, ..Packet::new(77) });
            let push = TunnelPush { checksum, ..tunnel(kind, ipv6) };
            let outer = one(&rule(&[], vec![Action::TunnelPush(Box::new(push)), out()]), &frame);
            let (key, places) = parse(&outer);
            assert_eq!(key.get(Field::IpTos), 0x10);
            assert!(key.get(Field::SrcPort) >= 0x8000, "an ephemeral port");
            assert_eq!(key.get(Field::DstPort), u64::from(kind.port()));
            let as_udp = Packet { ipv6, udp: true, ..Packet::new(0) };
            if checksum {
                as_udp.check(&outer).unwrap();
            } else {
                assert_eq!(outer[usize::from(places.l4) + 6..][..2], [0, 0]);
                assert!(ipv6 || sum(&outer[14..34]) == 0xffff);
            }
            let (inner, _) = Key::parse_inner(&outer, outer.len(), &key, &places).unwrap();
            assert_eq!(inner.get(Field::TunnelId), 0x123456);
            assert_eq!((inner.get(Field::TunnelTtl), inner.get(Field::TunnelTos)), (33, 0x10));
            assert_eq!(inner.get(Field::VlanTci), 0x1001);
            if !ipv6 {
                assert_eq!(inner.get(Field::TunnelEthSrc), 0x0200_0000_aa01);
                assert_eq!(inner.get(Field::TunnelEthDst), 0x0200_0000_aa02);
            }
            let source = if ipv6 { "tunnel_ipv6_src=fd00::1" } else { "tunnel_ipv4_src=10.0.0.1" };
            let (mut values, mut masks) = (Key::EMPTY, Key::EMPTY);
            Key::ask(&mut values, &mut masks, &source.parse().unwrap());
            for word in 10..16 {
                assert_eq!(inner.0[word] & masks.0[word], values.0[word]);
            }
            let pop = rule(&[number, source, "eth_type=0x800"], vec![Action::TunnelPop, out()]);
            assert_eq!(one(&pop, &outer), frame, "{kind:?} {ipv6} {checksum}");
        }
    }
}

#[test]
fn a_tunnel_that_is_not_clean_is_none() {
    let frame = finished(&Packet::new(77));
    let outer = one(&rule(&[], vec![Action::TunnelPush(Box::new(tunnel(TunnelKind::Vxlan, false))), out()]), &frame);
    assert_eq!(parse(&outer).1.inner, 50);
    // Flags, what is reserved, another port, and a packet that ends within the inner Ethernet header.
    for (at, byte) in [(42, 0), (43, 1), (49, 1), (36, 0)] {
        let mut bad = outer.clone();
        bad[at] = byte;
        assert_eq!(parse(&bad).1.inner, 0, "byte {at}");
    }
    let mut fragment = outer.clone();
    fragment[20] = 0x20;
    assert_eq!(parse(&fragment).1.inner, 0);
    let mut tagged = outer.clone();
    tagged.splice(12..12, [0x81, 0, 0, 5]);
    assert_eq!(
        (parse(&tagged).1.tags, parse(&tagged).1.inner),
        (1, 0),
        "OVS takes nothing out of a packet that is tagged"
    );
    let options =
        TunnelPush { options: "0102030400000000000000000000000000000000".into(), ..tunnel(TunnelKind::Geneve, false) };
    let outer = one(&rule(&[], vec![Action::TunnelPush(Box::new(options)), out()]), &frame);
    assert_eq!((outer[44], parse(&outer).1.inner), (0x65, 0), "options that nobody here knows");
}

/// There is no room for them in a key.
#[test]
fn mac_addresses_around_a_tunnel_over_ipv6_are_looked_at_beside_the_key() {
    let frame = finished(&Packet::new(77));
    let outer = one(&rule(&[], vec![Action::TunnelPush(Box::new(tunnel(TunnelKind::Vxlan, true))), out()]), &frame);
    let program = |more: &[&str]| {
        let fields = [&["tunnel_kind=1", "tunnel_ipv6_dst=fd00::2"], more].concat();
        let rule = rule(&fields, vec![Action::TunnelPop, out()]);
        // The key has what the rule asks for else, and nothing of this.
        let bare = rule.matches.fields().iter().filter(|field| more.iter().all(|more| *more != field.to_string()));
        assert_eq!(Key::of(&rule.matches), Key::of(&Match::new(bare.cloned()).unwrap()), "{more:?}");
        Program::new(&rule, 3).unwrap()
    };
    let (src, dst) = ("tunnel_eth_src=02:00:00:00:aa:01", "tunnel_eth_dst=02:00:00:00:aa:02");
    for (more, fits) in [
        (vec![], true),
        (vec![dst], true),
        (vec![src, dst], true),
        (vec!["tunnel_eth_dst=02:00:00:00:00:02/ff:00:00:00:00:ff"], true),
        (vec!["tunnel_eth_dst=02:00:00:00:aa:03"], false),
        (vec!["tunnel_eth_src=02:00:00:00:aa:02", dst], false),
    ] {
        assert_eq!(program(&more).fits_around(&outer), fits, "{more:?}");
        // Of a frame that is cut before them nothing is known.
        assert!((0..12).all(|len| program(&more).fits_around(&outer[..len]) == more.is_empty()), "{more:?}");
    }
    // Over IPv4 the key has them.
    let over_ipv4 = rule(&["tunnel_kind=1", "tunnel_ipv4_dst=10.0.0.2", src], vec![Action::TunnelPop, out()]);
    assert!(Program::new(&over_ipv4, 3).unwrap().fits_around(&outer[6..]));
}

#[test]
fn a_tunnel_over_ipv6_that_is_cut_or_not_bare_is_none() {
    for kind in [TunnelKind::Vxlan, TunnelKind::Geneve] {
        let frame = finished(&Packet::new(77));
        let push = TunnelPush { checksum: true, ..tunnel(kind, true) };
        let outer = one(&rule(&[], vec![Action::TunnelPush(Box::new(push)), out()]), &frame);
        assert_eq!(parse(&outer).1.inner, 70);
        for len in 0..outer.len() {
            let (key, places) = parse(&outer[..len]);
            // Its own length says that it is longer.
            assert_eq!(places.inner, 0, "{kind:?} {len}");
            assert!(Key::parse_inner(&outer[..len], len, &key, &places).is_none(), "{kind:?} {len}");
            // One that says that it ends there, in the middle of whatever it has.
            let Some(total) = len.checked_sub(54) else { continue };
            let mut cut = outer[..len].to_vec();
            cut[18..20].copy_from_slice(&(total as u16).to_be_bytes());
            let (key, places) = parse(&cut);
            assert_eq!(places.inner, if len < 84 { 0 } else { 70 }, "{kind:?} {len}");
            assert_eq!(Key::parse_inner(&cut, len, &key, &places).is_some(), len >= 84, "{kind:?} {len}");
        }
        // Hop-by-hop options, routing, destination options; a fragment, the first or the only one.
        for (next, header) in
            [(0, [17, 0, 1, 4, 0, 0, 0, 0]), (43, [17, 0, 4, 0, 0, 0, 0, 0]), (60, [17, 0, 1, 4, 0, 0, 0, 0])]
                .into_iter()
                .chain([(44, [17, 0, 0, 1, 0, 0, 0, 7]), (44, [17, 0, 0, 0, 0, 0, 0, 7])])
        {
            let mut more = outer.clone();
            more[20] = next;
            more.splice(54..54, header);
            let total = u16::from_be_bytes([more[18], more[19]]) + 8;
            more[18..20].copy_from_slice(&total.to_be_bytes());
            let (key, places) = parse(&more);
            assert_eq!((key.get(Field::IpProto), places.inner), (17, 0), "{kind:?} behind {next}");
        }
    }
}

/// What became of the frame of a tunnel over IPv6, of which a rule asks for MAC addresses around it.
struct Came {
    representor: Vec<Vec<u8>>,
    misses: u64,
    /// Frames that went out to the VF, which is not there.
    out: u64,
    rule: (u64, u32),
    is_due: bool,
    /// Frames of the other rules.
    others: Vec<u64>,
}

const TO_VF: Action = Action::Output(NicPort::Vf(0));

/// A rule that takes frames out of a tunnel over IPv6.
fn inside(around: &[&str]) -> Rule {
    rule(&[&["tunnel_kind=1"], around].concat(), vec![Action::TunnelPop, TO_VF])
}

/// Sends it by a switch. `due`: the rule is to show the representor a frame; `others`: rules beside it, with their priorities; its own is 1.
fn by_a_switch(frame: &[u8], due: bool, others: &[(u32, Rule)]) -> Came {
    const EVERY: u32 = 1000;
    let pool = soft_pool(2, 1500).unwrap();
    let ((to_tap, mut representor), (_, from_tap)) = (way().unwrap(), way().unwrap());
    let mut uplink = SwitchPort::new(Side::Uplink(None), Some((to_tap, from_tap)));
    assert!(uplink.kept.allocate(&pool, 1));
    uplink.kept.frame_mut(0).fill(frame);
    let ports = vec![uplink, SwitchPort::new(Side::Vf(None), None)];
    let nic = SoftNic::new("nic", 1).unwrap();
    let mut switch = Switch::new(1, nic, ports, (pool, 1522), Arc::new(Bell::new().unwrap()), None);
    switch.refresh_every = EVERY;
    let its = (1, inside(&["tunnel_ipv6_dst=fd00::2", "tunnel_eth_dst=02:00:00:00:aa:02"]));
    for (id, (priority, rule)) in (1..).zip([its].iter().chain(others)) {
        let (mut value, mask) = Key::of(&rule.matches);
        value.set_port(0);
        let does = Installed::new(Arc::new(Program::new(rule, 2).unwrap()), if due && id == 1 { 1999 } else { 0 });
        switch.tunnels += usize::from(does.program.is_of_tunnel());
        switch.rules.insert(RuleId(id), *priority, &value, &mask, does);
    }
    switch.run();
    let mut burst = Burst::new();
    representor.receive(&mut burst);
    let (counters, rule) = (switch.counters(), switch.rules.get(RuleId(1)).unwrap());
    Came {
        representor: burst.iter().map(|frame| frame.to_vec()).collect(),
        misses: counters[0].misses,
        out: counters[1].drop_full,
        rule: (rule.packets, rule.last),
        is_due: rule.is_due(millis(), EVERY),
        others: switch.rules.after(Some(RuleId(1))).map(|(_, other)| other.packets).collect(),
    }
}

/// EAL is for a process of its own: runs the test in one. Says whether this is it.
fn is_alone() -> bool {
    const MARK: &str = "RINGSPAN_TEST_ALONE";
    if std::env::var_os(MARK).is_some() {
        return true;
    }
    let name = std::thread::current().name().unwrap().to_owned();
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let done = alone.args(["--exact", &name, "--nocapture", "--test-threads=1"]).env(MARK, "1").output().unwrap();
    let text = String::from_utf8_lossy(&done.stdout);
    let is_good = done.status.success() && text.contains("1 passed");
    assert!(is_good, "{text}\n{}", String::from_utf8_lossy(&done.stderr));
    false
}

fn eal() -> Eal {
    let name = format!("test-{}", std::process::id());
    Eal::start(&EalConfig { name, memory_mib: 64, near: None, huge_pages: HugePages::Off }).unwrap()
}

/// A packet of a tunnel over IPv6 to these last two bytes of a MAC address.
fn to_mac(last: [u8; 2]) -> Vec<u8> {
    let push = Action::TunnelPush(Box::new(tunnel(TunnelKind::Vxlan, true)));
    let mut outer = one(&rule(&[], vec![push, out()]), &finished(&Packet::new(77)));
    outer[4..6].copy_from_slice(&last);
    outer
}

#[test]
fn a_frame_with_other_mac_addresses_around_its_tunnel_is_no_frame_of_the_rules() {
    if !is_alone() {
        return;
    }
    let _eal = eal();
    let (right, wrong) = (to_mac([0xaa, 0x02]), to_mac([0xaa, 0x03]));
    let outer = [(0, rule(&["eth_type=0x86dd"], vec![TO_VF]))];

    let came = by_a_switch(&right, false, &outer);
    assert_eq!((came.rule.0, came.others, came.misses, came.out), (1, vec![0], 0, 1));
    assert!(came.rule.1 != 0 && came.representor.is_empty());
    let came = by_a_switch(&right, true, &outer);
    assert!(!came.is_due && came.representor == [right], "the representor gets one of them");

    for due in [false, true] {
        let came = by_a_switch(&wrong, due, &[]);
        assert_eq!((came.rule, came.misses, came.out), ((0, 0), 1, 0), "a miss, due: {due}");
        assert!(came.is_due == due && came.representor == [wrong.clone()], "due: {due}");
        let came = by_a_switch(&wrong, due, &outer);
        assert_eq!((came.rule, came.others, came.misses, came.out), ((0, 0), vec![1], 0, 1), "due: {due}");
        assert!(came.is_due == due && came.representor.is_empty(), "due: {due}");
    }
}

#[test]
fn of_rules_that_differ_in_the_mac_addresses_around_a_tunnel_over_ipv6_each_gets_its_frames() {
    if !is_alone() {
        return;
    }
    let _eal = eal();
    let of = |priority, around: &[&str]| (priority, inside(around));
    let others = [
        of(1, &["tunnel_ipv6_dst=fd00::2", "tunnel_eth_dst=02:00:00:00:aa:03"]),
        of(1, &["tunnel_ipv6_dst=fd00::2", "tunnel_eth_dst=00:00:00:00:ab:00/00:00:00:00:ff:00"]),
        // Under another mask: of those that fit, the one of the higher priority.
        of(1, &["tunnel_ipv6_dst=fd00::/ffff::", "tunnel_eth_dst=02:00:00:00:aa:04"]),
        of(2, &["tunnel_ipv6_dst=fd00::2", "tunnel_eth_dst=02:00:00:00:aa:05"]),
        of(1, &["tunnel_ipv6_dst=fd00::/ffff::", "tunnel_eth_dst=02:00:00:00:aa:05"]),
    ];
    for (last, gets) in
        [([0xaa, 2], 0), ([0xaa, 3], 1), ([0xab, 2], 2), ([0xab, 3], 2), ([0xaa, 4], 3), ([0xaa, 5], 4), ([0xaa, 6], 9)]
    {
        let came = by_a_switch(&to_mac(last), false, &others);
        let counted: Vec<u64> = [came.rule.0].into_iter().chain(came.others).collect();
        assert_eq!(counted, (0..6).map(|at| u64::from(at == gets)).collect::<Vec<_>>(), "{last:x?}");
        assert_eq!((came.misses, came.out), if gets == 9 { (1, 0) } else { (0, 1) }, "{last:x?}");
    }
}
