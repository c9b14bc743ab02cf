//! Fields of ICMP and ARP that are set.

use super::*;

#[test]
fn icmp_keeps_its_checksum_and_its_addresses_count_for_ipv6_only() {
    for ipv6 in [false, true] {
        let (kind, proto) = if ipv6 { ("eth_type=0x86dd", "ip_proto=58") } else { ("eth_type=0x800", "ip_proto=1") };
        let address = if ipv6 { "ipv6_dst=fd00::9" } else { "ipv4_dst=10.9.9.9" };
        let frame = icmp(ipv6);
        assert_eq!(icmp_sum(&frame, ipv6), 0xffff);
        for action in [set(address), set("icmp_type=129"), set("icmp_code=7"), Action::DecTtl] {
            let after = one(&rule(&[kind, proto], vec![action.clone(), out()]), &frame);
            assert_eq!(icmp_sum(&after, ipv6), 0xffff, "{action:?}");
            assert!(ipv6 || sum(&after[14..34]) == 0xffff, "{action:?}");
            assert_ne!(after, frame);
            let l4 = if ipv6 { 54 } else { 34 };
            let (kind, code) = match &action {
                Action::Set(field) if field.field() == Field::IcmpType => (129, 3),
                Action::Set(field) if field.field() == Field::IcmpCode => (8, 7),
                _ => (8, 3),
            };
            assert_eq!((after[l4], after[l4 + 1], &after[l4 + 4..]), (kind, code, &frame[l4 + 4..]), "{action:?}");
        }
    }
}

#[test]
fn each_field_of_arp_is_set_where_it_stands_and_leaves_the_others_alone() {
    let mut arp = [[0xff; 6], [2, 0, 0, 0, 0, 0x66]].concat();
    arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
    arp.extend([2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2]);
    arp.resize(60, 0);
    for (text, at, bytes) in [
        ("arp_op=2", 20, &[0, 2][..]),
        ("arp_sha=02:00:00:00:aa:09", 22, &[2, 0, 0, 0, 0xaa, 9]),
        ("arp_spa=10.9.8.7", 28, &[10, 9, 8, 7]),
        ("arp_spa=0.0.0.9/0.0.0.255", 28, &[10, 0, 0, 9]),
        ("arp_tha=02:00:00:00:bb:0a", 32, &[2, 0, 0, 0, 0xbb, 10]),
        ("arp_tpa=10.9.0.0/255.255.0.0", 38, &[10, 9, 0, 2]),
    ] {
        let mut wanted = arp.clone();
        wanted[at..at + bytes.len()].copy_from_slice(bytes);
        assert_eq!(one(&rule(&["eth_type=0x806"], vec![set(text), out()]), &arp), wanted, "{text}");
        // Behind a tag they are four bytes further.
        let tag = Action::PushVlan { tpid: 0x8100, tci: 5 };
        let tagged = one(&rule(&["eth_type=0x806"], vec![tag, set(text), out()]), &arp);
        assert_eq!((&tagged[..12], &tagged[16..]), (&wanted[..12], &wanted[12..]), "{text} behind a tag");
    }
    // Of other hardware there is nothing to set: the slow path gets it.
    let mut other = arp.clone();
    other[15] = 6;
    assert_eq!(apply(&rule(&["eth_type=0x806"], vec![set("arp_op=2"), out()]), &other), None);
}
