//! Messages built by hand, whole and broken. The end-to-end tests compare with a real kernel.

use std::net::Ipv4Addr;

use proptest::prelude::*;

use super::flow::told;
use super::*;
use crate::ovs::flow::flags::{TcpFlags, TunnelFlags};
use crate::ovs::flow::key::Fragment;
use crate::ovs::flow::{Action, Key, Masked, PortRef};

/// An attribute with its padding.
fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = [&((value.len() + 4) as u16).to_ne_bytes()[..], &kind.to_ne_bytes(), value].concat();
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// A flow of these keys, masks and actions, each already attributes.
fn message(keys: &[u8], masks: Option<&[u8]>, actions: &[u8]) -> Vec<u8> {
    let ufid: Vec<u8> = [1_u32, 2, 3, 4].iter().flat_map(|word| word.to_ne_bytes()).collect();
    let stats: Vec<u8> = [7_u64, 420].iter().flat_map(|number| number.to_ne_bytes()).collect();
    let mut body = attribute(9, &ufid);
    body.extend(attribute(1, keys));
    if let Some(masks) = masks {
        body.extend(attribute(7, masks));
    }
    body.extend(attribute(2, actions));
    body.extend(attribute(3, &stats));
    body.extend(attribute(4, &[0x12]));
    body
}

fn flow(body: &[u8]) -> crate::ovs::flow::Flow {
    match told(body).unwrap() {
        Told::Flow(flow) => *flow,
        Told::Unreadable(unreadable) => panic!("{}", unreadable.reason),
    }
}

fn reason(body: &[u8]) -> DecodeError {
    match told(body).unwrap() {
        Told::Unreadable(unreadable) => unreadable.reason,
        Told::Flow(flow) => panic!("it was understood: {flow:?}"),
    }
}

#[test]
fn a_flow_has_its_name_counters_keys_masks_and_actions() {
    let ipv4 = [10, 0, 0, 1, 10, 0, 0, 2, 6, 0, 64, 0];
    let ipv4_mask = [255, 255, 255, 0, 0, 0, 0, 0, 255, 0, 0, 255];
    let keys = [attribute(3, &5_u32.to_ne_bytes()), attribute(6, &[8, 0]), attribute(7, &ipv4)].concat();
    let masks = [attribute(3, &[0xff; 4]), attribute(6, &[0xff; 2]), attribute(7, &ipv4_mask)].concat();
    let actions = [attribute(4, &[0x81, 0, 0x10, 7]), attribute(1, &2_u32.to_ne_bytes())].concat();
    let flow = flow(&message(&keys, Some(&masks), &actions));
    assert_eq!(flow.ufid.unwrap().to_string(), "00000001-0000-0002-0000-000300000004");
    assert_eq!((flow.stats.packets, flow.stats.bytes, flow.stats.flags), (7, 420, TcpFlags(0x12)));
    let [Key::InPort { port: PortRef::Number(5), mask: u32::MAX }, Key::EthType(kind), Key::Ipv4(ip)] = &flow.keys[..]
    else {
        panic!("{:?}", flow.keys)
    };
    assert_eq!(*kind, Masked::exact(0x0800));
    assert_eq!(ip.src, Masked { value: Ipv4Addr::new(10, 0, 0, 1), mask: Ipv4Addr::new(255, 255, 255, 0) });
    assert!(ip.dst.is_wildcard() && ip.ttl.is_wildcard());
    assert_eq!((ip.proto, ip.frag), (Masked::exact(6), Some(Fragment::No)));
    let [Action::PushVlan(vlan), Action::Output(PortRef::Number(2))] = &flow.actions[..] else {
        panic!("{:?}", flow.actions)
    };
    assert_eq!((vlan.tpid, vlan.vid, vlan.pcp, vlan.cfi), (0x8100, 7, 0, true));
}

#[test]
fn without_a_mask_all_counts_and_what_a_mask_leaves_out_counts_nothing() {
    let keys = attribute(15, &9_u32.to_ne_bytes());
    assert_eq!(flow(&message(&keys, None, &[])).keys, [Key::SkbMark(Masked::exact(9))]);
    let other = attribute(2, &[0xff; 4]);
    let wild = flow(&message(&keys, Some(&other), &[])).keys;
    assert_eq!(wild, [Key::SkbMark(Masked { value: 9, mask: 0 })]);
}

#[test]
fn no_action_is_a_drop() {
    assert_eq!(flow(&message(&[], None, &[])).actions, [Action::Drop]);
}

#[test]
fn a_match_on_frames_without_ethertype_is_kept() {
    let keys = attribute(4, &[0; 12]);
    let masks = [attribute(4, &[0; 12]), attribute(6, &[0xff; 2])].concat();
    let keys = flow(&message(&keys, Some(&masks), &[])).keys;
    assert!(matches!(keys[..], [Key::Eth { .. }, Key::NoEthType { mask: 0xffff }]), "{keys:?}");
}

#[test]
fn a_tunnels_flags_have_a_mask_though_they_are_not_set() {
    let tunnel = [attribute(0, &77_u64.to_be_bytes()), attribute(5, &[])].concat();
    let mask = [attribute(0, &[0xff; 8]), attribute(5, &[]), attribute(6, &[])].concat();
    let keys = flow(&message(&attribute(16, &tunnel), Some(&attribute(16, &mask)), &[])).keys;
    let [Key::Tunnel(tunnel)] = &keys[..] else { panic!("{keys:?}") };
    assert_eq!(tunnel.id, Some(Masked::exact(77)));
    assert_eq!(tunnel.flags, Masked { value: TunnelFlags(0x0a), mask: TunnelFlags(0x0e) });
}

#[test]
fn a_tunnels_field_that_is_neither_in_the_key_nor_in_the_mask_counts_for_nothing() {
    let key = attribute(0, &77_u64.to_be_bytes());
    let tunnel = |mask: &[u8]| {
        let keys = flow(&message(&attribute(16, &key), Some(&attribute(16, mask)), &[])).keys;
        let [Key::Tunnel(tunnel)] = &keys[..] else { panic!("{keys:?}") };
        (tunnel.any_tos, tunnel.any_tp_src)
    };
    let id = attribute(0, &[0xff; 8]);
    assert_eq!(tunnel(&id), (true, true));
    // Zero of both counts.
    assert_eq!(tunnel(&[id, attribute(3, &[0xff]), attribute(9, &[0xff; 2])].concat()), (false, false));
    let all = flow(&message(&attribute(16, &key), None, &[])).keys;
    assert!(matches!(&all[..], [Key::Tunnel(tunnel)] if !tunnel.any_tos && !tunnel.any_tp_src), "{all:?}");
}

#[test]
fn what_is_not_known_is_kept_or_refused_and_never_passed_over() {
    let unknown = attribute(99, &[1, 2, 3]);
    let keys = flow(&message(&unknown, None, &[])).keys;
    assert!(matches!(&keys[..], [Key::Unknown(key)] if key.attribute == 99 && key.value == [1, 2, 3]), "{keys:?}");
    let actions = flow(&message(&[], None, &unknown)).actions;
    assert_eq!(actions, [Action::Unknown { attribute: 99, data: vec![1, 2, 3] }]);
    let ct = attribute(12, &unknown);
    assert_eq!(reason(&message(&[], None, &ct)), DecodeError::Unknown { nest: "ct", kind: 99 });
    assert_eq!(
        reason(&message(&attribute(7, &[0; 11]), None, &[])),
        DecodeError::Length { what: "ipv4", length: 11, wanted: 12 }
    );
}

#[test]
fn lists_without_end_are_refused() {
    let mut deep = attribute(1, &2_u32.to_ne_bytes());
    for _ in 0..100 {
        deep = attribute(20, &deep);
    }
    assert_eq!(reason(&message(&[], None, &deep)), DecodeError::Deep);
    let mut deep = vec![];
    for _ in 0..100 {
        deep = attribute(1, &deep);
    }
    assert_eq!(reason(&message(&deep, None, &[])), DecodeError::Deep);
}

#[test]
fn a_change_is_that_of_its_datapath_only() {
    let header = 5_u32.to_ne_bytes();
    let payload = [&header[..], &message(&[], None, &[])].concat();
    let of = |command, family, index| change(&Message { family, command, payload: &payload }, [30, 32], index).unwrap();
    assert!(matches!(of(CMD_NEW, 30, 5), Some(Change::Put(Told::Flow(_)))));
    assert_eq!(of(CMD_DEL, 30, 5), Some(Change::Deleted(Ufid(1 << 96 | 2 << 64 | 3 << 32 | 4))));
    assert_eq!(of(CMD_NEW, 31, 5), None);
    assert_eq!(of(CMD_NEW, 30, 6), None);
    assert_eq!((of(CMD_NEW, 32, 5), of(CMD_DEL, 32, 6)), (Some(Change::Ports), None));
}

/// Attributes of any type and content, nested here and there.
fn any_attributes() -> impl Strategy<Value = Vec<u8>> {
    let leaf = (0_u16..32, prop::collection::vec(any::<u8>(), 0..44)).prop_map(|(kind, value)| attribute(kind, &value));
    leaf.prop_recursive(4, 24, 4, |inner| {
        (0_u16..32, prop::collection::vec(inner, 0..4)).prop_map(|(kind, parts)| attribute(kind, &parts.concat()))
    })
}

proptest! {
    #[test]
    fn no_message_is_more_than_not_understood(
        keys in any_attributes(), masks in prop::option::of(any_attributes()), actions in any_attributes(), cut in 0_usize..400,
    ) {
        let body = message(&keys, masks.as_deref(), &actions);
        let _ = told(&body);
        let _ = told(&body[..cut.min(body.len())]);
    }
}
