//! Rules as they are printed. That any rule reads back, and that the test program takes it, is tested in `tests/e2e/testpmd_rules.rs`.

use super::{LONGEST, print, read};
use crate::NicPort;
use crate::rule::{Action, Match, Rule, RuleId};

fn rule(in_port: NicPort, matches: &[&str], actions: &str) -> Rule {
    let matches = Match::new(matches.iter().map(|text| text.parse().unwrap())).unwrap();
    let actions: Vec<Action> = serde_json::from_str(actions).unwrap();
    let rule = Rule { id: RuleId(7), priority: 0, in_port, matches, actions, refresh: true };
    assert_eq!(rule.check(), Ok(()));
    rule
}

const ID: &str = "00000000-0000-0000-0000-000000000007";
const IP: &[&str] =
    &["eth_dst=02:00:00:00:00:02", "eth_type=0x800", "vlan_tci=0x0/0x1000", "ipv4_dst=10.0.0.0/255.0.0.0"];

#[test]
fn a_rule_is_printed_as_it_would_be_typed() {
    let one = rule(NicPort::Vf(0), IP, r#"[{"set":"ip_ttl=63"},{"output":"uplink"}]"#);
    let text = print(&one).unwrap();
    assert_eq!(
        text,
        format!(
            "# {ID}\nflow create 0 priority 7 transfer pattern represented_port ethdev_port_id is 1 / eth dst is 02:00:00:00:00:02 type is 0x800 / \
             ipv4 dst spec 10.0.0.0 dst mask 255.0.0.0 / end actions count / modify_field op set dst_type ipv4_ttl src_type value src_value 3f width 8 / represented_port ethdev_port_id 0 / end"
        )
    );
    assert_eq!(read(&text), Ok(one));
}

#[test]
fn copies_and_tunnels_have_lines_of_their_own() {
    let two = rule(
        NicPort::Uplink,
        IP,
        r#"[{"output":"vf0"},{"push-vlan":{"tpid":33024,"tci":4101}},{"output":"vf1"},{"tunnel-push":{"kind":"geneve","id":66,
        "eth_src":"02:00:00:00:0b:01","eth_dst":"02:00:00:00:0b:02","src":"172.16.0.1","dst":"172.16.0.2","dst_port":6081}},{"output":"uplink"}]"#,
    );
    let text = print(&two).unwrap();
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[1..3], ["set sample_actions 0 port_id id 1 / end", "set sample_actions 1 port_id id 2 / end"]);
    assert!(lines[3].starts_with(
        "set raw_encap 0 eth dst is 02:00:00:00:0b:02 src is 02:00:00:00:0b:01 type is 0x800 / ipv4 tos is 0x0"
    ));
    assert!(lines[3].ends_with("/ geneve vni is 0x42 / end_set"), "{}", lines[3]);
    assert!(lines[4].ends_with("raw_encap index 0 / represented_port ethdev_port_id 0 / end"), "{}", lines[4]);
    assert_eq!(read(&text), Ok(two));
    // Headers of which none could be a tunnel's.
    for short in ["set raw_encap 0 end_set", "set raw_encap 0 vlan tci is 5 / end_set"] {
        assert!(read(&text.replace(lines[3], short)).is_err(), "{short}");
    }
}

#[test]
fn what_the_syntax_has_no_words_for_is_in_the_comment() {
    let arp = ["eth_type=0x806", "vlan_tci=0x0/0x1000", "arp_op=1", "arp_spa=10.0.0.1"];
    let mut three = rule(NicPort::Vf(1), &arp, r#"[{"set":"arp_op=2"},{"output":"vf0"}]"#);
    three.refresh = false;
    let text = print(&three).unwrap();
    assert!(
        text.starts_with(&format!(
            r#"# {ID} also arp_op=1 do 0 {{"set":"arp_op=2"}} quiet
"#
        )),
        "{text}"
    );
    assert_eq!(read(&text), Ok(three));
}

#[test]
fn a_field_whose_place_depends_on_what_is_not_matched_is_refused() {
    for matches in [
        &["eth_type=0x800"][..],
        &["vlan_tci=0x1005/0x1fff", "eth_type=0x800"],
        &["vlan_tci=0x0/0xfff"],
        &["vlan_tpid=0x8100"],
        &["inner_vlan_tci=0x0/0x1000"],
        &["eth_type=0x5ff", "vlan_tci=0x0/0x1000"],
    ] {
        assert!(print(&rule(NicPort::Vf(0), matches, r#"["drop"]"#)).is_err(), "{matches:?}");
    }
}

#[test]
fn what_is_cut_or_changed_is_no_rule() {
    let text = print(&rule(NicPort::Vf(0), IP, r#"[{"output":"vf1"}]"#)).unwrap();
    for at in 0..text.len() {
        assert!(read(&text[..at]).is_err(), "{}", &text[..at]);
    }
    assert!(read(&text.replace("eth dst", "eth dist")).is_err());
}

#[test]
fn a_rule_that_would_be_longer_than_a_line_is_said_in_fewer_words() {
    let does = r#"[{"set":"eth_src=02:00:00:00:00:03"},{"set":"eth_dst=02:00:00:00:00:04"},{"set":"ipv4_src=10.0.0.3"},
        {"set":"ip_tos=0x8/0xfc"},{"set":"ip_ttl=63"},{"output":"vf1"}]"#;
    let four = rule(NicPort::Vf(0), IP, does);
    let text = print(&four).unwrap();
    let last = text.lines().last().unwrap();
    assert!(last.len() <= LONGEST, "{last}");
    assert!(last.contains("ipv4 dst spec 10.0.0.0 dst prefix 8 / "), "{last}");
    assert!(
        last.ends_with(
            "set_mac_src mac_addr 02:00:00:00:00:03 / set_mac_dst mac_addr 02:00:00:00:00:04 / set_ipv4_src ipv4_addr 10.0.0.3 / \
             set_ipv4_dscp dscp_value 0x2 / set_ttl ttl_value 0x3f / represented_port ethdev_port_id 2 / end"
        ),
        "{last}"
    );
    assert_eq!(read(&text), Ok(four));
}

#[test]
fn two_actions_that_set_the_parts_of_one_field_stay_two() {
    let does = r#"[{"push-vlan":{"tpid":33024,"tci":4101}},{"set":"vlan_tci=0x5/0xfff"},{"set":"vlan_tci=0x4/0xff"},{"set":"vlan_tci=0x2000/0xe000"},
        {"set":"ip_tos=0x8/0xfc"},{"set":"ip_tos=0x1/0x3"},{"set":"ip_tos=0x4"},{"output":"vf1"}]"#;
    let five = rule(NicPort::Vf(0), IP, does);
    let text = print(&five).unwrap();
    // The third has no words, and counts for nothing.
    assert!(text.lines().next().unwrap().ends_with(" apart 2 apart 4 apart 5"), "{text}");
    assert_eq!(read(&text), Ok(five));
}

#[test]
fn a_value_that_has_more_bits_than_what_is_set_is_no_rule() {
    let text = format!(
        "# {ID}\nflow create 0 priority 7 transfer pattern represented_port ethdev_port_id is 1 / \
         eth type is 0x800 has_vlan is 0 / ipv4 proto is 0x11 / udp / end actions count / SET / represented_port ethdev_port_id 0 / end"
    );
    for (set, good, wide) in [
        ("set_tp_src port VALUE", "65535", "70000"),
        ("set_tp_dst port VALUE", "0xffff", "0x10000"),
        ("set_ttl ttl_value VALUE", "0xff", "0x3ff"),
        ("set_ipv4_dscp dscp_value VALUE", "0x3f", "0x40"),
        ("set_ipv4_dscp dscp_value VALUE", "0", "0x40000000000000000000000000000000"),
        ("modify_field op set dst_type ipv4_ttl src_type value src_value VALUE width 8", "3f", "013f"),
        ("modify_field op set dst_type ipv4_dscp src_type value src_value VALUE width 6", "3f", "7f"),
        ("of_set_vlan_vid vlan_vid VALUE", "4095", "4096"),
        ("of_set_vlan_pcp vlan_pcp VALUE", "7", "8"),
        ("of_set_vlan_pcp vlan_pcp VALUE", "7", "0x80000000000000000000000000000000"),
        ("of_push_vlan ethertype 0x8100 / of_set_vlan_vid vlan_vid VALUE / of_set_vlan_pcp vlan_pcp 0", "4095", "4096"),
        ("of_push_vlan ethertype 0x8100 / of_set_vlan_vid vlan_vid 5 / of_set_vlan_pcp vlan_pcp VALUE", "7", "8"),
    ] {
        let with = |value: &str| read(&text.replace("SET", &set.replace("VALUE", value)));
        assert!(with(good).is_ok(), "{set} {good}: {:?}", with(good));
        assert!(with(wide).is_err(), "{set} {wide}: {:?}", with(wide));
    }
}

#[test]
fn a_value_that_has_more_bits_than_what_is_matched_is_no_rule_and_says_what_would_be() {
    let text = format!(
        "# {ID}\nset raw_encap 0 eth / ipv4 ENCAP / udp / geneve / end_set\n\
         flow create 0 priority 7 transfer pattern represented_port ethdev_port_id is 1 / \
         eth type is 0x800 has_vlan is 0 / ipv4 MATCH / udp / end actions count / SET / represented_port ethdev_port_id 0 / end"
    );
    let with = |place: &str, words: &str| {
        let mut text = text.replace(place, words);
        for (place, words) in [("ENCAP", "tos is 0"), ("MATCH", "proto is 17"), ("SET", "count")] {
            text = text.replace(place, words);
        }
        read(&text)
    };
    for (place, words, good, wide, said) in [
        ("MATCH", "ttl is VALUE", "255", "256", "ttl 256: it is a number from 0 to 255 (0xff)"),
        ("MATCH", "tos spec VALUE tos mask 0xff", "0xff", "0x1ff", "tos 0x1ff: it is a number from 0 to 255 (0xff)"),
        ("MATCH", "tos spec 0 tos mask VALUE", "0xff", "0x1ff", "tos 0x1ff: it is a number from 0 to 255 (0xff)"),
        (
            "MATCH",
            "fragment_offset spec 1 fragment_offset last VALUE",
            "0x1fff",
            "0x10000",
            "fragment_offset 0x10000: ",
        ),
        ("MATCH", "dst spec 0.0.0.0 dst prefix VALUE", "32", "33", "dst prefix 33: it is a number from 1 to 32"),
        ("MATCH", "dst spec 0.0.0.0 dst prefix VALUE", "1", "0", "dst prefix 0: it is a number from 1 to 32"),
        ("MATCH", "dst is VALUE", "10.0.0.1", "10.0.0.256", "dst 10.0.0.256: it is an address of IPv4"),
        ("MATCH", "/ ipv6 hop is VALUE", "255", "0x100", "hop 0x100: it is a number from 0 to 255 (0xff)"),
        (
            "MATCH",
            "/ ipv6 flow is VALUE",
            "0xfffff",
            "0x100000",
            "flow 0x100000: it is a number from 0 to 1048575 (0xfffff)",
        ),
        ("MATCH", "/ ipv6 has_frag_ext is VALUE", "1", "2", "has_frag_ext 2: it is a number from 0 to 1"),
        (
            "MATCH",
            "/ vxlan vni is VALUE",
            "0xffffff",
            "0x1000000",
            "vni 0x1000000: it is a number from 0 to 16777215 (0xffffff)",
        ),
        ("ENCAP", "tos is VALUE", "255", "0x100", "tos 0x100: it is a number from 0 to 255 (0xff)"),
        ("SET", "set_ttl ttl_value VALUE", "255", "256", "ttl_value 256: it is a number from 0 to 255 (0xff)"),
        ("SET", "set_ipv4_dscp dscp_value VALUE", "63", "64", "dscp_value 64: it is a number from 0 to 63 (0x3f)"),
        ("SET", "of_set_vlan_pcp vlan_pcp VALUE", "7", "8", "vlan_pcp 8: it is a number from 0 to 7"),
        (
            "SET",
            "of_push_vlan ethertype VALUE / of_set_vlan_vid vlan_vid 1 / of_set_vlan_pcp vlan_pcp 1",
            "0x8100",
            "0x18100",
            "ethertype 0x18100: ",
        ),
        (
            "SET",
            "modify_field op set dst_type ipv4_dscp src_type value src_value VALUE width 6",
            "3f",
            "40",
            "ipv4_dscp 0x40: it is a number from 0 to 63 (0x3f)",
        ),
        (
            "SET",
            "modify_field op set dst_type ipv4_src src_type value src_value VALUE width 32",
            "0a000001",
            "010a000001",
            "ipv4_src 0x010a000001: ",
        ),
        (
            "SET",
            "modify_field op set dst_type ipv6_src src_type value src_value VALUE width 128",
            &"01".repeat(16),
            &"01".repeat(17),
            "ipv6_src 0x0101",
        ),
    ] {
        let [good, wide] = [good, wide].map(|value| with(place, &words.replace("VALUE", value)));
        assert!(good.is_ok(), "{words}: {good:?}");
        let error = wide.expect_err(words).to_string();
        assert!(error.starts_with(&format!("not a rule as it is printed: {said}")), "{words}: {error}");
    }
    // What stands in the comment says it by itself.
    let also = text.replacen(ID, &format!("{ID} also ip_ttl=256"), 1);
    assert!(read(&also).unwrap_err().to_string().contains("ip_ttl: 0x100 has more than the field's 8 bits"));
}

#[test]
fn a_priority_that_there_is_none_of_is_named() {
    let text = print(&rule(NicPort::Vf(0), IP, r#"["drop"]"#)).unwrap();
    let error = read(&text.replace("priority 7", "priority 8")).unwrap_err().to_string();
    assert!(error.ends_with(": priority 8: it is a number from 0 to 7"), "{error}");
}
