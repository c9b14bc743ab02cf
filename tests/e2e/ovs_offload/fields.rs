//! What OpenFlow matches and changes, done by the NIC: each kind of header by a flow of a real Open vSwitch's, byte for byte. And what it
//! does when a port or the whole bridge goes.

use std::collections::BTreeMap;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::NetHeader;
use ringspan_testkit::packet::sum;
use ringspan_testkit::{needs, wait};
use serde_json::json;

use super::{FLOWS, SOON, Scene};

const TO: [u8; 6] = [2, 0, 0, 0, 0, 2];
const FROM: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// Frames of each case once it is in the NIC.
const FRAMES: usize = 20;
/// The ethertype of what the kernel sends into a representor, so that it comes out at the VF.
const MARKER: [u8; 2] = [0x88, 0xb7];

struct Case {
    name: &'static str,
    /// What is matched, and what is done before the output; nothing: it is dropped.
    flow: (&'static str, Option<&'static str>),
    sent: Vec<u8>,
    comes: Vec<u8>,
}

fn ethernet(dst: [u8; 6], kinds: &[u8], rest: &[u8]) -> Vec<u8> {
    let mut frame = [&dst[..], &FROM, kinds, rest].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// An IPv4 packet, with the checksum of its header; of UDP too, where `udp` is its place in the payload.
fn ipv4([proto, tos, ttl]: [u8; 3], fragment: u16, dst: [u8; 4], payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x45, tos, 0, 20 + payload.len() as u8, 0, 7];
    packet.extend(fragment.to_be_bytes());
    packet.extend([ttl, proto, 0, 0, 10, 0, 0, 1]);
    packet.extend(dst);
    let header = !sum(&packet);
    packet[10..12].copy_from_slice(&header.to_be_bytes());
    packet.extend(payload);
    if let Some(place) = match proto {
        6 => Some(16),
        17 => Some(6),
        _ => None,
    } {
        let mut pseudo = [&packet[12..20], &[0, proto], &(payload.len() as u16).to_be_bytes()[..], payload].concat();
        pseudo[12 + place..14 + place].fill(0);
        packet[20 + place..22 + place].copy_from_slice(&(!sum(&pseudo)).to_be_bytes());
    }
    packet
}

fn udp(dst: u16, mark: &[u8; 4]) -> Vec<u8> {
    let mut packet = vec![0x10, 0];
    packet.extend(dst.to_be_bytes());
    packet.extend([0, 12, 0, 0]);
    packet.extend(mark);
    packet
}

fn tcp(flags: u8) -> Vec<u8> {
    vec![0x10, 0, 0, 80, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0]
}

fn cases() -> Vec<Case> {
    let ip = |packet: &[u8]| ethernet(TO, &[8, 0], packet);
    let same = |name, flow, sent: Vec<u8>| Case { name, flow: (flow, Some("")), comes: sent.clone(), sent };
    let arp = |target: [u8; 4]| {
        let rest = [&[0, 1, 8, 0, 6, 4, 0, 1][..], &FROM, &[10, 0, 0, 1], &[0; 6], &target].concat();
        ethernet([0xff; 6], &[8, 6], &rest)
    };
    let mark = [0x88, 0xb5, 1, 2, 3, 4];
    let ten = [10, 0, 0, 2];
    let port = |bytes: [u16; 2]| bytes.iter().flat_map(|port| port.to_be_bytes()).collect::<Vec<u8>>();
    let ipv6 = {
        let mut packet = vec![0x60, 0, 0, 0, 0, 20, 6, 64, 0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        packet.extend([0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]);
        packet.extend([&port([4000, 443])[..], &tcp(2)[4..]].concat());
        packet
    };
    let other = [2, 0, 0, 0, 0, 0x0b];
    vec![
        // Open vSwitch sets ARP's fields itself, one by one (slow_path(action)).
        same("ARP operation and addresses", "arp,arp_op=1,arp_spa=10.0.0.1,arp_tpa=10.0.0.9", arp([10, 0, 0, 9])),
        same(
            "SCTP ports",
            "sctp,tp_src=4000,tp_dst=5000",
            ip(&ipv4([132, 0, 64], 0, ten, &[&port([4000, 5000])[..], &[0; 12]].concat())),
        ),
        Case {
            name: "TCP with SYN alone",
            flow: ("tcp,tcp_flags=+syn-ack", Some("dec_ttl,")),
            sent: ip(&ipv4([6, 0, 64], 0, ten, &tcp(2))),
            comes: ip(&ipv4([6, 0, 63], 0, ten, &tcp(2))),
        },
        Case {
            name: "TCP with SYN and ACK",
            flow: ("tcp,tcp_flags=+syn+ack", None),
            sent: ip(&ipv4([6, 0, 64], 0, ten, &tcp(0x12))),
            comes: vec![],
        },
        Case {
            name: "UDP to another address, port and class",
            flow: ("udp,tp_dst=53", Some("mod_nw_dst:10.9.9.9,mod_tp_dst:5353,mod_nw_tos:32,")),
            sent: ip(&ipv4([17, 0, 64], 0, ten, &udp(53, b"mark"))),
            comes: ip(&ipv4([17, 32, 64], 0, [10, 9, 9, 9], &udp(5353, b"mark"))),
        },
        same(
            "ICMP type and code",
            "icmp,icmp_type=8,icmp_code=0,nw_dst=10.0.0.0/16",
            ip(&ipv4([1, 0, 64], 0, ten, &[8, 0, 0, 0, 0, 1, 0, 1])),
        ),
        same("TTL and protocol", "ip,nw_proto=47,nw_ttl=9", ip(&ipv4([47, 0, 9], 0, ten, &[0; 8]))),
        same("class", "ip,nw_proto=50,nw_tos=64", ip(&ipv4([50, 64, 64], 0, ten, &[0; 8]))),
        same("later fragments", "ip,nw_proto=89,nw_frag=later", ip(&ipv4([89, 0, 64], 8, ten, &[0; 8]))),
        Case {
            name: "TCP over IPv6",
            flow: ("tcp6,ipv6_dst=2001:db8::2,tp_dst=443", Some("mod_dl_dst:02:00:00:00:00:0b,")),
            sent: ethernet(TO, &[0x86, 0xdd], &ipv6),
            comes: ethernet(other, &[0x86, 0xdd], &ipv6),
        },
        Case {
            name: "a VLAN that is taken off",
            flow: ("dl_vlan=7,dl_vlan_pcp=3", Some("strip_vlan,")),
            sent: ethernet(TO, &[0x81, 0, 0x60, 7], &mark),
            comes: ethernet(TO, &[], &mark),
        },
        Case {
            name: "a VLAN that becomes another",
            flow: ("dl_vlan=8", Some("mod_vlan_vid:9,")),
            sent: ethernet(TO, &[0x81, 0, 0, 8], &mark),
            comes: ethernet(TO, &[0x81, 0, 0, 9], &mark),
        },
        Case {
            name: "a VLAN that is put on",
            flow: ("dl_type=0x88b6", Some("mod_vlan_vid:5,")),
            sent: ethernet(TO, &[0x88, 0xb6], &[9; 46]),
            comes: ethernet(TO, &[0x81, 0, 0, 5, 0x88, 0xb6], &[9; 46]),
        },
        Case {
            name: "two VLANs, of which one is taken off",
            flow: ("dl_vlan=100", Some("strip_vlan,")),
            sent: ethernet(TO, &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 200], &[&mark[..], &[0; 60]].concat()),
            comes: ethernet(TO, &[0x81, 0, 0, 200], &[&mark[..], &[0; 60]].concat()),
        },
    ]
}

/// What has come: each frame without its trailer, and how often with each number.
type Seen = BTreeMap<Vec<u8>, BTreeMap<u16, usize>>;

/// Frames that are sent before it matters how many come.
const WARMING: u16 = u16::MAX;

/// A frame with its number behind all that is looked at, where NIC and switch leave it.
fn numbered(frame: &[u8], number: u16) -> Vec<u8> {
    [frame, &[0x5a], &number.to_be_bytes(), &[0xa5]].concat()
}

/// Without the padding of short frames, which is at their end and all zeros.
fn unpadded(mut frame: Vec<u8>) -> Vec<u8> {
    while frame.last() == Some(&0) {
        frame.pop();
    }
    frame
}

impl Scene {
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        let guest = &mut self.guests[0];
        wait::until(SOON, "room in the ring", || {
            guest.tx[0].reclaim();
            let sent = guest.tx[0].transmit(1, |_, room| {
                room.put_header(&NetHeader::default());
                room.put(0, frame);
                frame.len()
            });
            guest.tx[0].ring().kick();
            Ok((sent == 1).then_some(()))
        })
    }

    /// Takes what has come to the second guest; how many frames that were.
    fn come(&mut self, seen: &mut Seen) -> usize {
        let came = self.guests[1].rx[0].receive(64, |received| {
            let mut bytes = vec![0; received.length()];
            received.copy_to(&mut bytes);
            // What has none is nothing that was sent here: it is told by its own bytes.
            let mut number = WARMING;
            if let [.., 0x5a, high, low, 0xa5] = bytes[..] {
                number = u16::from_be_bytes([high, low]);
                bytes.truncate(bytes.len() - 4);
            }
            *seen.entry(unpadded(bytes)).or_default().entry(number).or_default() += 1;
        });
        self.guests[1].rx[0].ring().kick();
        came
    }

    /// Packets that rules forwarded or dropped.
    fn by_rules(&self) -> Result<u64> {
        let flows = self.list(json!({ "state": "offloaded" }))?;
        Ok(flows.iter().filter_map(|flow| flow["rule"]["packets"].as_u64()).sum())
    }
}

#[test]
fn what_openflow_matches_and_changes_is_done_by_the_nic() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let mut scene = Scene::new("ovs-fields")?;
    scene.ovs.vsctl(&["set", "Open_vSwitch", ".", "other_config:vlan-limit=2"])?;
    let cases = cases();
    let flow = |case: &Case| match case.flow {
        (keys, Some(does)) => format!("in_port=nic0_vf0,{keys},actions={does}output:nic0_vf1"),
        (keys, None) => format!("in_port=nic0_vf0,{keys},actions=drop"),
    };
    let flows: Vec<String> = cases.iter().map(flow).collect();
    scene.flows(&flows.iter().map(String::as_str).collect::<Vec<_>>())?;
    let mut seen = Seen::new();
    // What is in the NIC first is sent by it, and the rest through OVS: both do the same.
    let all_there = wait::until(3 * SOON, "all cases in the NIC", || {
        for case in &cases {
            scene.send(&numbered(&case.sent, WARMING))?;
        }
        while scene.come(&mut seen) > 0 {}
        Ok((scene.list(json!({ "state": "offloaded" }))?.len() >= cases.len()).then_some(()))
    });
    all_there.with_context(|| format!("{:#}", scene.daemon.call("flow.list", json!({})).unwrap_or_default()))?;

    let wanted: BTreeMap<Vec<u8>, &str> = cases
        .iter()
        .filter(|case| !case.comes.is_empty())
        .map(|case| (unpadded(case.comes.clone()), case.name))
        .collect();
    let before = scene.by_rules()?;
    for number in 0..FRAMES as u16 {
        for case in &cases {
            scene.send(&numbered(&case.sent, number))?;
        }
        while scene.come(&mut seen) > 0 {}
    }
    let all = FRAMES * cases.len();
    // A rule sends one in some seconds to OVS, which sends it on.
    wait::until(SOON, "the rules' counters", || {
        Ok((scene.by_rules()?.saturating_sub(before) >= (all * 9 / 10) as u64).then_some(()))
    })?;
    for (frame, name) in &wanted {
        wait::until(SOON, &format!("all frames of: {name}"), || {
            scene.come(&mut seen);
            let missing =
                |seen: &BTreeMap<u16, usize>| (0..FRAMES as u16).filter(|number| !seen.contains_key(number)).count();
            // The one that went through Open vSwitch may have been lost there, on a machine with too much to do.
            Ok(seen.get(frame).is_some_and(|seen| missing(seen) <= 1).then_some(()))
        })
        .with_context(|| format!("{:?} of {frame:02x?} came", seen.get(frame)))?;
        let twice = seen[frame].iter().find(|(number, count)| **number != WARMING && **count > 1);
        ensure!(twice.is_none(), "{name}: number {twice:?} came more than once: {frame:02x?}");
    }
    let strange: Vec<_> = seen.keys().filter(|frame| !wanted.contains_key(*frame)).collect();
    ensure!(strange.is_empty(), "came and should not: {strange:02x?}");
    Ok(())
}

/// Sends until nothing comes any more, but what is sent from the representor itself behind it: the lane runs, and has seen all.
fn silent(scene: &mut Scene, what: &str) -> Result<()> {
    let far = FarEnd::open(&scene.net, "nic0_vf1", MARKER)?;
    let (lost, marker) = (ethernet(TO, &[0x88, 0xb5], b"to nobody"), ethernet(TO, &MARKER, b"marker"));
    let mut number = 0;
    wait::until(SOON, what, || {
        let mut seen = Seen::new();
        number += 1;
        (0..5).try_for_each(|_| scene.send(&numbered(&lost, number)))?;
        wait::until(SOON, "the lane to take what was sent", || {
            scene.guests[0].tx[0].reclaim();
            Ok((scene.guests[0].tx[0].in_flight() == 0).then_some(()))
        })?;
        let sent = || far.send(&numbered(&marker, number)).context("sending a marker");
        wait::until(SOON, "room for a marker", || Ok(sent()?.then_some(())))?;
        wait::until(SOON, "the marker", || {
            scene.come(&mut seen);
            let here = seen.get(&unpadded(marker.clone())).is_some_and(|seen| seen.contains_key(&number));
            Ok(here.then_some(()))
        })?;
        Ok((seen.len() == 1).then_some(()))
    })
}

#[test]
fn when_a_port_or_the_bridge_goes_nothing_is_forwarded_to_it_any_more() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let mut scene = Scene::new("ovs-gone")?;
    scene.cross(50)?;
    scene.offloaded(2)?;
    scene.daemon.ok(&["ovs", "configure", "--remove-port", "nic0_vf1"])?;
    silent(&mut scene, "no frames to a port that is gone")?;
    let words = ["ovs", "configure", "--bridge", "br0", "--datapath-type", "netdev", "--port", "nic0_vf1"];
    scene.daemon.ok(&words)?;
    scene.flows(&FLOWS)?;
    scene.cross(50)?;
    scene.offloaded(2)?;
    scene.ovs.vsctl(&["del-br", "br0"])?;
    silent(&mut scene, "no frames by a bridge that is gone")?;
    ensure!(
        scene.list(json!({ "state": "offloaded" }))?.is_empty(),
        "{:#}",
        scene.daemon.call("flow.list", json!({}))?
    );
    let verified = scene.daemon.ok(&["ovs", "verify"])?;
    ensure!(verified.contains("2 of 2 VF representors on no bridge"), "{verified}");
    // And back.
    scene.daemon.ok(&words)?;
    let first = ["ovs", "configure", "--bridge", "br0", "--datapath-type", "netdev", "--port", "nic0_vf0"];
    scene.daemon.ok(&first)?;
    scene.flows(&FLOWS)?;
    scene.cross(50)?;
    scene.offloaded(2).map(drop).context("after the bridge came back")
}
