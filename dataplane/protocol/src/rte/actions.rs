//! What a rule does, as actions of rte_flow.

use super::encap;
use crate::NicPort;
use crate::rule::{Action, Field, FieldError, FieldMatch, Rule, TunnelKind};

/// One action of rte_flow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Counts what the rule matches (COUNT).
    Count,
    /// A copy of the frame as it is by then goes to this port (SAMPLE with a ratio of 1).
    Copy(NicPort),
    /// The frame goes to this port, and no further (REPRESENTED_PORT).
    To(NicPort),
    /// Drops it (DROP).
    Drop,
    /// OF_PUSH_VLAN: a tag of this type.
    PushVlan(u16),
    /// OF_SET_VLAN_VID.
    VlanVid(u16),
    /// OF_SET_VLAN_PCP.
    VlanPcp(u8),
    /// OF_POP_VLAN.
    PopVlan,
    /// MODIFY_FIELD: all bits of this field.
    Set(Modify),
    /// DEC_TTL.
    DecTtl,
    /// VXLAN_DECAP.
    VxlanDecap,
    /// RAW_DECAP of the headers of GENEVE over IPv4, or IPv6.
    GeneveDecap {
        /// Over IPv6.
        v6: bool,
    },
    /// RAW_ENCAP: these headers in front.
    Encap(Vec<u8>),
}

/// A field that MODIFY_FIELD sets, with DPDK's number of it (`enum rte_flow_field_id`) and the test program's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Modify {
    /// Its name.
    pub name: &'static str,
    /// The number, which is the same in all releases from 22.11 on.
    pub number: u32,
    /// Its bits.
    pub width: u32,
    /// What it gets: in network order, in as many bytes as the bits need.
    pub value: Vec<u8>,
}

/// A field of a rule or a part of it that MODIFY_FIELD has a number for: the protocol it is of, name, number, bits, bits behind it.
pub(super) struct Settable {
    field: Field,
    of: Option<(Field, u128)>,
    name: &'static str,
    number: u32,
    pub(super) width: u32,
    shift: u32,
}

const fn settable(
    field: Field,
    of: Option<(Field, u128)>,
    name: &'static str,
    number: u32,
    width: u32,
    shift: u32,
) -> Settable {
    Settable { field, of, name, number, width, shift }
}

const IPV4: Option<(Field, u128)> = Some((Field::EthType, 0x0800));
const IPV6: Option<(Field, u128)> = Some((Field::EthType, 0x86dd));
const TCP: Option<(Field, u128)> = Some((Field::IpProto, 6));
const UDP: Option<(Field, u128)> = Some((Field::IpProto, 17));

const SETTABLE: &[Settable] = &[
    settable(Field::EthDst, None, "mac_dst", 1, 48, 0),
    settable(Field::EthSrc, None, "mac_src", 2, 48, 0),
    settable(Field::IpTos, IPV4, "ipv4_dscp", 6, 6, 2),
    settable(Field::IpTtl, IPV4, "ipv4_ttl", 7, 8, 0),
    settable(Field::Ipv4Src, IPV4, "ipv4_src", 8, 32, 0),
    settable(Field::Ipv4Dst, IPV4, "ipv4_dst", 9, 32, 0),
    settable(Field::IpTos, IPV6, "ipv6_dscp", 10, 6, 2),
    settable(Field::IpTtl, IPV6, "ipv6_hoplimit", 11, 8, 0),
    settable(Field::Ipv6Src, IPV6, "ipv6_src", 12, 128, 0),
    settable(Field::Ipv6Dst, IPV6, "ipv6_dst", 13, 128, 0),
    settable(Field::SrcPort, TCP, "tcp_port_src", 14, 16, 0),
    settable(Field::DstPort, TCP, "tcp_port_dst", 15, 16, 0),
    settable(Field::SrcPort, UDP, "udp_port_src", 19, 16, 0),
    settable(Field::DstPort, UDP, "udp_port_dst", 20, 16, 0),
    settable(Field::IpTos, IPV4, "ipv4_ecn", 29, 2, 0),
    settable(Field::IpTos, IPV6, "ipv6_ecn", 30, 2, 0),
];

impl Settable {
    /// By the test program's name.
    pub(super) fn named(name: &str) -> Option<&'static Self> {
        SETTABLE.iter().find(|settable| settable.name == name)
    }

    /// As a field of a rule that gets this value of no more bits than its own.
    pub(super) fn to(&self, value: u128) -> Result<FieldMatch, FieldError> {
        FieldMatch::new(self.field, value << self.shift, self.mask())
    }

    fn mask(&self) -> u128 {
        (u128::MAX >> (128 - self.width)) << self.shift
    }
}

/// The actions of a rule, and those that rte_flow has none for.
pub fn actions(rule: &Rule) -> (Vec<Step>, Vec<(usize, Action)>) {
    let (mut steps, mut undone) = (vec![Step::Count], Vec::new());
    let last = rule.actions.iter().rposition(|action| matches!(action, Action::Output(_)));
    for (at, action) in rule.actions.iter().enumerate() {
        let done = match action {
            Action::Output(port) if Some(at) == last => one(Step::To(*port)),
            Action::Output(port) => one(Step::Copy(*port)),
            Action::Drop => one(Step::Drop),
            Action::PushVlan { tpid, tci } => {
                let vlan = [Step::PushVlan(*tpid), Step::VlanVid(tci & 0xfff), Step::VlanPcp((tci >> 13) as u8)];
                Some(vlan.into())
            }
            Action::PopVlan => one(Step::PopVlan),
            Action::Set(field) => set(rule, field),
            Action::DecTtl => one(Step::DecTtl),
            Action::TunnelPush(push) => encap::headers(push).map(|headers| vec![Step::Encap(headers)]),
            Action::TunnelPop => decap(rule).map(|step| vec![step]),
            _ => None,
        };
        match done {
            Some(done) => steps.extend(done),
            None => undone.push((at, action.clone())),
        }
    }
    (steps, undone)
}

fn one(step: Step) -> Option<Vec<Step>> {
    Some(vec![step])
}

fn decap(rule: &Rule) -> Option<Step> {
    let kind = rule.matches.exact(Field::TunnelKind)?;
    let v6 = [Field::TunnelIpv6Src, Field::TunnelIpv6Dst].iter().any(|field| rule.matches.get(*field).is_some());
    if kind == TunnelKind::Vxlan.number().into() { Some(Step::VxlanDecap) } else { Some(Step::GeneveDecap { v6 }) }
}

/// All bits of a field, or all of the two parts of a type of service; what is set in part would depend on how a driver counts bits.
fn set(rule: &Rule, field: &FieldMatch) -> Option<Vec<Step>> {
    if field.field() == Field::VlanTci {
        let (vid, pcp) = (field.mask() & 0xfff, field.mask() >> 13);
        if !matches!(vid, 0 | 0xfff) || !matches!(pcp, 0 | 7) || field.mask() & 0x1000 != 0 {
            return None;
        }
        let vid = (vid != 0).then_some(Step::VlanVid(field.value() as u16 & 0xfff));
        let pcp = (pcp != 0).then_some(Step::VlanPcp((field.value() >> 13) as u8));
        return Some(vid.into_iter().chain(pcp).collect());
    }
    let fits = |of: &(Field, u128)| rule.matches.exact(of.0) == Some(of.1);
    let (mut left, mut steps) = (field.mask(), Vec::new());
    for place in SETTABLE.iter().filter(|place| place.field == field.field()) {
        if place.of.as_ref().is_some_and(|of| !fits(of)) || left & place.mask() != place.mask() {
            continue;
        }
        left &= !place.mask();
        let value = (field.value() & place.mask()) >> place.shift;
        let bytes = place.width.div_ceil(8) as usize;
        let value = value.to_be_bytes()[16 - bytes..].to_vec();
        steps.push(Step::Set(Modify { name: place.name, number: place.number, width: place.width, value }));
    }
    (left == 0).then_some(steps)
}
