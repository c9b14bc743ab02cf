//! A flow about frames like one that was seen, with any masks, and which frames it matches: a reading of OVS's flow of its own
//! (`odp_flow_key_from_flow` and `odp_flow_key_to_flow` in its lib/odp-util.c).

use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use ringspan::ovs::flow::flags::TcpFlags;
use ringspan::ovs::flow::key::{Arp, Icmp, Ipv4, Ipv6, Key, L4Ports, Nd, PortRef, Vlan};
use ringspan::ovs::flow::{Action, Flow, Masked, Stats, Ufid};
use ringspan_protocol::MacAddress;

use crate::seen::Seen;

/// Masks of all fields.
#[derive(Debug, Clone)]
pub struct Asked {
    pub macs: [MacAddress; 2],
    pub tags: [(u16, u8); 2],
    pub ipv4: [u32; 2],
    pub ipv6: [u128; 2],
    pub label: u32,
    pub proto: u8,
    pub tos: u8,
    pub ttl: u8,
    pub frag: bool,
    pub l4: Option<[u16; 2]>,
    pub tcp_flags: u16,
    pub arp: [u32; 2],
    pub arp_macs: [MacAddress; 2],
    pub arp_op: u16,
    pub target: u128,
    pub nd_macs: [MacAddress; 2],
}

fn mask(bits: u32) -> impl Strategy<Value = u128> {
    let all = u128::MAX >> (128 - bits);
    prop_oneof![4 => Just(0), 4 => Just(all), 1 => (0..bits).prop_map(move |at| all << at & all), 1 => any::<u128>().prop_map(move |any| any & all)]
}

fn pair(bits: u32) -> impl Strategy<Value = [u128; 2]> {
    [mask(bits), mask(bits)]
}

fn mac(bits: u128) -> MacAddress {
    let [.., a, b, c, d, e, f] = (bits as u64).to_be_bytes();
    MacAddress([a, b, c, d, e, f])
}

pub fn asked() -> impl Strategy<Value = Asked> {
    let ethernet = (pair(48), [(mask(12), mask(3)), (mask(12), mask(3))]);
    let ip =
        (pair(32), pair(128), mask(20), prop_oneof![3 => Just(0xff), 1 => mask(8)], mask(8), mask(8), any::<bool>());
    let l4 = (prop::option::weighted(0.8, pair(16)), mask(12));
    let rest = (pair(32), pair(48), mask(16), mask(128), pair(48));
    (ethernet, ip, l4, rest).prop_map(
        |((macs, tags), ip, (l4, tcp_flags), (arp, arp_macs, arp_op, target, nd_macs))| {
            let (ipv4, ipv6, label, proto, tos, ttl, frag) = ip;
            Asked {
                macs: macs.map(mac),
                tags: tags.map(|(vid, pcp)| (vid as u16, pcp as u8)),
                ipv4: ipv4.map(|bits| bits as u32),
                ipv6,
                label: label as u32,
                proto: proto as u8,
                tos: tos as u8,
                ttl: ttl as u8,
                frag,
                l4: l4.map(|l4| l4.map(|bits| bits as u16)),
                tcp_flags: tcp_flags as u16,
                arp: arp.map(|bits| bits as u32),
                arp_macs: arp_macs.map(mac),
                arp_op: arp_op as u16,
                target,
                nd_macs: nd_macs.map(mac),
            }
        },
    )
}

fn masked<T>(value: T, mask: T) -> Masked<T> {
    Masked { value, mask }
}

impl Asked {
    /// The flow of the datapath. What is behind a header's kind is asked for only together with that, as OVS does it.
    pub fn flow(&self, like: &Seen) -> Flow {
        let exact = |value: u16| Masked::exact(value);
        let mut keys = vec![
            Key::RecircId(Masked::exact(0)),
            Key::InPort { port: PortRef::Name("nic0_vf0".into()), mask: u32::MAX },
            Key::PacketType { ns: exact(0), id: exact(0) },
            Key::Eth { src: masked(like.src, self.macs[0]), dst: masked(like.dst, self.macs[1]) },
        ];
        let mut inner = self.network(like);
        for ((tpid, vid, pcp), (vids, pcps)) in like.tags.iter().zip(self.tags).rev() {
            let vlan = Vlan { vid: masked(*vid, vids), pcp: masked(*pcp, pcps), cfi: true };
            inner = vec![Key::EthType(exact(*tpid)), Key::Vlan(vlan), Key::Encap(inner)];
        }
        keys.extend(inner);
        Flow {
            ufid: Some(Ufid(1)),
            keys,
            stats: Stats::default(),
            offloaded: None,
            layer: None,
            actions: vec![Action::Output(PortRef::Name("nic0_vf1".into()))],
            extra: None,
        }
    }

    fn network(&self, like: &Seen) -> Vec<Key> {
        let mut keys = match like.eth_type {
            0x05ff => vec![Key::NoEthType { mask: u16::MAX }],
            kind => vec![Key::EthType(Masked::exact(kind))],
        };
        let frag = self.frag.then_some(like.frag);
        let proto = masked(like.proto, self.proto);
        match like.eth_type {
            0x0800 => {
                let address = |at: usize| masked(like.ipv4[at], Ipv4Addr::from(self.ipv4[at]));
                let (tos, ttl) = (masked(like.tos, self.tos), masked(like.ttl, self.ttl));
                keys.push(Key::Ipv4(Ipv4 { src: address(0), dst: address(1), proto, tos, ttl, frag }));
                keys.extend(self.transport(like, [1, 2]));
            }
            0x86dd => {
                let address = |at: usize| masked(like.ipv6[at], Ipv6Addr::from(self.ipv6[at]));
                let (tclass, hlimit) = (masked(like.tos, self.tos), masked(like.ttl, self.ttl));
                let label = masked(like.label, self.label);
                let ip = Ipv6 { src: address(0), dst: address(1), label, proto, tclass, hlimit, frag };
                keys.push(Key::Ipv6(Box::new(ip)));
                keys.extend(self.transport(like, [58, 58]));
            }
            0x0806 | 0x8035 => {
                let address = |at: usize| masked(like.arp[at], Ipv4Addr::from(self.arp[at]));
                let mac = |at: usize| masked(like.arp_macs[at], self.arp_macs[at]);
                let op = masked(like.arp_op, self.arp_op);
                let arp = Arp { sip: address(0), tip: address(1), op, sha: mac(0), tha: mac(1) };
                keys.push(Key::Arp(Box::new(arp)));
            }
            _ => {}
        }
        keys
    }

    fn transport(&self, like: &Seen, [icmp, _]: [u8; 2]) -> Vec<Key> {
        let Some(l4) = self.l4.filter(|_| self.proto == 0xff && like.frag != ringspan::ovs::flow::key::Fragment::Later)
        else {
            return Vec::new();
        };
        let ports = L4Ports { src: masked(like.l4[0], l4[0]), dst: masked(like.l4[1], l4[1]) };
        match like.proto {
            6 => vec![Key::Tcp(ports), Key::TcpFlags(masked(TcpFlags(like.tcp_flags), TcpFlags(self.tcp_flags)))],
            17 => vec![Key::Udp(ports)],
            132 => vec![Key::Sctp(ports)],
            proto if proto == icmp => {
                let part = |at: usize| masked(like.l4[at] as u8, l4[at] as u8);
                let header = Icmp { kind: part(0), code: part(1) };
                if proto == 1 {
                    return vec![Key::Icmp(header)];
                }
                let is_neighbour =
                    matches!(like.l4, [135 | 136, 0]) && header.kind.is_exact() && header.code.is_exact();
                let mac = |at: usize| masked(like.nd_macs[at], self.nd_macs[at]);
                let target = masked(like.target, Ipv6Addr::from(self.target));
                let nd = Key::Nd(Box::new(Nd { target, sll: mac(0), tll: mac(1) }));
                std::iter::once(Key::Icmpv6(header)).chain(is_neighbour.then_some(nd)).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// What can be compared under a mask.
trait Same: Copy {
    fn bits(self) -> u128;
}

macro_rules! same {
    ($($type:ty)*) => { $(impl Same for $type { fn bits(self) -> u128 { self.into() } })* };
}
same!(u8 u16 u32 Ipv6Addr);

impl Same for Ipv4Addr {
    fn bits(self) -> u128 {
        u32::from(self).into()
    }
}

impl Same for MacAddress {
    fn bits(self) -> u128 {
        self.0.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte))
    }
}

impl Same for TcpFlags {
    fn bits(self) -> u128 {
        self.0.into()
    }
}

fn same<T: Same>(is: T, asked: Masked<T>) -> bool {
    (is.bits() ^ asked.value.bits()) & asked.mask.bits() == 0
}

/// Whether a flow with these keys matches the frame.
///
/// # Panics
/// A key that [`Asked::flow`] does not make.
pub fn matches(keys: &[Key], seen: &Seen) -> bool {
    level(keys, seen, 0)
}

fn level(keys: &[Key], seen: &Seen, depth: usize) -> bool {
    let has_vlan = keys.iter().any(|key| matches!(key, Key::Vlan(_)));
    let tag = seen.tags.get(depth).filter(|_| depth < 2);
    has_vlan == tag.is_some()
        && keys.iter().all(|key| match key {
            Key::RecircId(id) => same(0, *id),
            Key::InPort { .. } => true,
            Key::PacketType { ns, id } => same(0, *ns) && same(0, *id),
            Key::Eth { src, dst } => same(seen.src, *src) && same(seen.dst, *dst),
            Key::EthType(kind) => same(tag.map_or(seen.eth_type, |(tpid, ..)| *tpid), *kind),
            Key::NoEthType { .. } => seen.eth_type == 0x05ff,
            Key::Vlan(vlan) => tag.is_some_and(|(_, vid, pcp)| same(*vid, vlan.vid) && same(*pcp, vlan.pcp)),
            Key::Encap(inner) => level(inner, seen, depth + 1),
            Key::Ipv4(ip) => {
                same(seen.ipv4[0], ip.src)
                    && same(seen.ipv4[1], ip.dst)
                    && same(seen.proto, ip.proto)
                    && same(seen.tos, ip.tos)
                    && same(seen.ttl, ip.ttl)
                    && ip.frag.is_none_or(|frag| frag == seen.frag)
            }
            Key::Ipv6(ip) => {
                same(seen.ipv6[0], ip.src)
                    && same(seen.ipv6[1], ip.dst)
                    && same(seen.label, ip.label)
                    && same(seen.proto, ip.proto)
                    && same(seen.tos, ip.tclass)
                    && same(seen.ttl, ip.hlimit)
                    && ip.frag.is_none_or(|frag| frag == seen.frag)
            }
            Key::Tcp(ports) | Key::Udp(ports) | Key::Sctp(ports) => {
                same(seen.l4[0], ports.src) && same(seen.l4[1], ports.dst)
            }
            Key::TcpFlags(flags) => same(TcpFlags(seen.tcp_flags), *flags),
            Key::Icmp(icmp) | Key::Icmpv6(icmp) => {
                same(seen.l4[0] as u8, icmp.kind) && same(seen.l4[1] as u8, icmp.code)
            }
            Key::Arp(arp) => {
                same(seen.arp[0], arp.sip)
                    && same(seen.arp[1], arp.tip)
                    && same(seen.arp_op, arp.op)
                    && same(seen.arp_macs[0], arp.sha)
                    && same(seen.arp_macs[1], arp.tha)
            }
            Key::Nd(nd) => {
                same(seen.target, nd.target) && same(seen.nd_macs[0], nd.sll) && same(seen.nd_macs[1], nd.tll)
            }
            other => panic!("{other:?} is not made here"),
        })
}
