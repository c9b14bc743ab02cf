//! OVS_ACTION_ATTR_* of linux/openvswitch.h.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;

use super::DecodeError;
use super::attribute::{Attribute, Fields, Mask, attributes, find};
use super::key::{self, CFI, label};
use crate::ovs::flow::action::{
    Action, Actions, Conntrack, Cookie, HashAlgorithm, Nat, NatRange, NshMetadata, PushMpls, PushNsh, PushVlan,
    Userspace,
};
use crate::ovs::flow::key::Vlan;
use crate::ovs::flow::{Masked, PortRef};

const OUTPUT: u16 = 1;
const USERSPACE: u16 = 2;
const SET: u16 = 3;
const PUSH_VLAN: u16 = 4;
const POP_VLAN: u16 = 5;
const SAMPLE: u16 = 6;
const RECIRC: u16 = 7;
const HASH: u16 = 8;
const PUSH_MPLS: u16 = 9;
const POP_MPLS: u16 = 10;
const SET_MASKED: u16 = 11;
const CT: u16 = 12;
const TRUNC: u16 = 13;
const PUSH_ETH: u16 = 14;
const POP_ETH: u16 = 15;
const CT_CLEAR: u16 = 16;
const PUSH_NSH: u16 = 17;
const POP_NSH: u16 = 18;
const METER: u16 = 19;
const CLONE: u16 = 20;
const CHECK_PKT_LEN: u16 = 21;
const ADD_MPLS: u16 = 22;
const DEC_TTL: u16 = 23;
const DROP: u16 = 24;
const PSAMPLE: u16 = 25;

/// Deepest nesting of actions: OVS's own limit of 32 in the kernel is 16.
const DEEPEST: usize = 32;

/// What a flow does. Nothing at all is a drop.
///
/// # Errors
/// A length that is none of the kernel's, an attribute within an action that is not known, or lists nested too deeply.
pub fn actions(bytes: &[u8]) -> Result<Actions, DecodeError> {
    match list(bytes, 0)? {
        nothing if nothing.is_empty() => Ok(vec![Action::Drop]),
        actions => Ok(actions),
    }
}

fn list(bytes: &[u8], depth: usize) -> Result<Actions, DecodeError> {
    if depth > DEEPEST {
        return Err(DecodeError::Deep);
    }
    attributes(bytes).map(|attribute| action(&attribute?, depth)).collect()
}

fn action(attribute: &Attribute<'_>, depth: usize) -> Result<Action, DecodeError> {
    let nest = attribute.value;
    Ok(match attribute.kind {
        OUTPUT => Action::Output(PortRef::Number(attribute.u32("output")?)),
        USERSPACE => Action::Userspace(Box::new(userspace(nest)?)),
        SET => Action::Set(Box::new(key::key(&only(nest, "set")?, Mask::All)?)),
        SET_MASKED => Action::Set(Box::new(masked(&only(nest, "set")?)?)),
        PUSH_VLAN => {
            let f = attribute.exact("push_vlan", 4)?;
            let tci = f.be16(2).value;
            let (vid, pcp) = (tci & Vlan::VID_MASK, (tci >> 13) as u8);
            Action::PushVlan(PushVlan { tpid: f.be16(0).value, vid, pcp, cfi: tci & CFI != 0 })
        }
        POP_VLAN => Action::PopVlan,
        SAMPLE => sample(nest, depth)?,
        RECIRC => Action::Recirc(attribute.u32("recirc")?),
        HASH => hash(attribute.exact("hash", 8)?)?,
        PUSH_MPLS => Action::PushMpls(push_mpls(attribute.exact("push_mpls", 6)?)),
        ADD_MPLS => Action::AddMpls(push_mpls(attribute.exact("add_mpls", 6)?)),
        POP_MPLS => Action::PopMpls { eth_type: attribute.be16("pop_mpls")? },
        CT => Action::Ct(Box::new(conntrack(nest)?)),
        CT_CLEAR => Action::CtClear,
        TRUNC => Action::Trunc(attribute.u32("trunc")?),
        PUSH_ETH => {
            let f = attribute.exact("push_eth", 12)?;
            let MacAddress(src) = f.mac(0).value;
            Action::PushEth { src: MacAddress(src), dst: f.mac(6).value }
        }
        POP_ETH => Action::PopEth,
        PUSH_NSH => Action::PushNsh(Box::new(push_nsh(nest)?)),
        POP_NSH => Action::PopNsh,
        METER => Action::Meter(attribute.u32("meter")?),
        CLONE => Action::Clone(list(nest, depth + 1)?),
        CHECK_PKT_LEN => check_pkt_len(nest, depth)?,
        DEC_TTL => dec_ttl(nest, depth)?,
        DROP => Action::Drop,
        PSAMPLE => psample(nest)?,
        kind => Action::Unknown { attribute: kind, data: nest.to_vec() },
    })
}

/// The one attribute of a nest.
fn only<'a>(nest: &'a [u8], what: &'static str) -> Result<Attribute<'a>, DecodeError> {
    let mut all = attributes(nest);
    match (all.next().transpose()?, all.next()) {
        (Some(one), None) => Ok(one),
        _ => Err(DecodeError::NotOne { what }),
    }
}

/// A value and behind it, as long, its mask. Of a network service header each part is so, in a nest.
fn masked(attribute: &Attribute<'_>) -> Result<crate::ovs::flow::Key, DecodeError> {
    let Attribute { kind, value } = *attribute;
    if kind != key::NSH {
        let (value, mask) = value.split_at(value.len() / 2);
        if value.len() != mask.len() {
            return Err(DecodeError::Length { what: "the mask of a set", length: mask.len(), wanted: value.len() });
        }
        return key::key(&Attribute { kind, value }, Mask::Bits(mask));
    }
    let (mut values, mut masks) = (vec![], vec![]);
    for part in attributes(value) {
        let Attribute { kind, value } = part?;
        let (value, mask) = value.split_at(value.len() / 2);
        for (nest, half) in [(&mut values, value), (&mut masks, mask)] {
            nest.extend(((half.len() + 4) as u16).to_ne_bytes());
            nest.extend(kind.to_ne_bytes());
            nest.extend(half);
            nest.resize(nest.len().next_multiple_of(4), 0);
        }
    }
    key::key(&Attribute { kind, value: &values }, Mask::Bits(&masks))
}

fn push_mpls(f: Fields<'_>) -> PushMpls {
    let entry = label(f.be32(0));
    let (label, tc, ttl, bos) = (entry.label.value, entry.tc.value, entry.ttl.value, entry.bos.value);
    PushMpls { label, tc, ttl, bos, eth_type: f.be16(4).value }
}

fn hash(f: Fields<'_>) -> Result<Action, DecodeError> {
    let algorithm = match f.u32(0).value {
        0 => HashAlgorithm::L4,
        1 => HashAlgorithm::SymL4,
        kind => return Err(DecodeError::Hash { algorithm: kind }),
    };
    Ok(Action::Hash { algorithm, basis: f.u32(4).value })
}

/// OVS_USERSPACE_ATTR_*. What goes along is OVS's own affair, and differs between its versions.
fn userspace(nest: &[u8]) -> Result<Userspace, DecodeError> {
    let mut userspace = Userspace { pid: 0, cookie: None, actions: false, tunnel_out_port: None };
    for attribute in attributes(nest) {
        let attribute = attribute?;
        match attribute.kind {
            1 => userspace.pid = attribute.u32("userspace's pid")?,
            2 => userspace.cookie = Some(Cookie::Data(attribute.value.to_vec())),
            3 => userspace.tunnel_out_port = Some(PortRef::Number(attribute.u32("userspace's tunnel_out_port")?)),
            4 => userspace.actions = true,
            kind => return Err(DecodeError::Unknown { nest: "userspace", kind }),
        }
    }
    Ok(userspace)
}

/// OVS_SAMPLE_ATTR_*.
fn sample(nest: &[u8], depth: usize) -> Result<Action, DecodeError> {
    let (mut probability, mut actions) = (0, vec![]);
    for attribute in attributes(nest) {
        let attribute = attribute?;
        match attribute.kind {
            1 => probability = attribute.u32("sample's probability")?,
            2 => actions = list(attribute.value, depth + 1)?,
            // OVS_SAMPLE_ATTR_ARG is the kernel's own.
            kind => return Err(DecodeError::Unknown { nest: "sample", kind }),
        }
    }
    Ok(Action::Sample { probability, actions })
}

/// OVS_CHECK_PKT_LEN_ATTR_*.
fn check_pkt_len(nest: &[u8], depth: usize) -> Result<Action, DecodeError> {
    let (mut size, mut greater, mut less_or_equal) = (0, vec![], vec![]);
    for attribute in attributes(nest) {
        let attribute = attribute?;
        match attribute.kind {
            1 => size = attribute.u16("check_pkt_len's size")?,
            2 => greater = list(attribute.value, depth + 1)?,
            3 => less_or_equal = list(attribute.value, depth + 1)?,
            kind => return Err(DecodeError::Unknown { nest: "check_pkt_len", kind }),
        }
    }
    Ok(Action::CheckPktLen { size, greater, less_or_equal })
}

/// OVS_DEC_TTL_ATTR_*.
fn dec_ttl(nest: &[u8], depth: usize) -> Result<Action, DecodeError> {
    let mut actions = vec![];
    for attribute in attributes(nest) {
        match attribute? {
            Attribute { kind: 1, value } => actions = list(value, depth + 1)?,
            Attribute { kind, .. } => return Err(DecodeError::Unknown { nest: "dec_ttl", kind }),
        }
    }
    Ok(Action::DecTtl(actions))
}

/// OVS_PSAMPLE_ATTR_*.
fn psample(nest: &[u8]) -> Result<Action, DecodeError> {
    let (mut group, mut cookie) = (None, None);
    for attribute in attributes(nest) {
        let attribute = attribute?;
        match attribute.kind {
            1 => group = Some(attribute.u32("psample's group")?),
            2 => cookie = Some(attribute.value.into()),
            kind => return Err(DecodeError::Unknown { nest: "psample", kind }),
        }
    }
    Ok(Action::Psample { group, cookie })
}

/// OVS_CT_ATTR_*. Which events connection tracking tells of is not printed, and means nothing to packets.
fn conntrack(nest: &[u8]) -> Result<Conntrack, DecodeError> {
    let mut ct = Conntrack::default();
    for attribute in attributes(nest) {
        let attribute = attribute?;
        match attribute.kind {
            1 => ct.commit = true,
            2 => ct.zone = attribute.u16("ct's zone")?,
            3 => {
                let f = attribute.exact("ct's mark", 8)?;
                ct.mark = Some(Masked { value: f.u32(0).value, mask: f.u32(4).value });
            }
            4 => {
                let f = attribute.exact("ct's label", 32)?;
                ct.label = Some(Masked { value: f.u128(0).value, mask: f.u128(16).value });
            }
            5 => ct.helper = Some(text(attribute.value)),
            6 => ct.nat = Some(nat(attribute.value)?),
            7 => ct.force_commit = true,
            8 => {}
            9 => ct.timeout = Some(text(attribute.value)),
            kind => return Err(DecodeError::Unknown { nest: "ct", kind }),
        }
    }
    Ok(ct)
}

/// A string of C.
pub(super) fn text(bytes: &[u8]) -> Box<str> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into()
}

/// OVS_NAT_ATTR_*.
fn nat(nest: &[u8]) -> Result<Nat, DecodeError> {
    let mut range = NatRange::default();
    for attribute in attributes(nest) {
        let attribute = attribute?;
        match attribute.kind {
            1 | 2 => {}
            3 => range.address_min = Some(address(attribute.value)?),
            4 => range.address_max = Some(address(attribute.value)?),
            5 => range.port_min = Some(attribute.u16("nat's first port")?),
            6 => range.port_max = Some(attribute.u16("nat's last port")?),
            7 => range.persistent = true,
            8 => range.hash = true,
            9 => range.random = true,
            kind => return Err(DecodeError::Unknown { nest: "nat", kind }),
        }
    }
    // One address or port is told as a range from it to itself.
    range.address_max = range.address_max.filter(|_| range.address_max != range.address_min);
    range.port_max = range.port_max.filter(|_| range.port_max != range.port_min);
    Ok(match (find(nest, 1)?, find(nest, 2)?) {
        (Some(_), _) => Nat::Src(range),
        (None, Some(_)) => Nat::Dst(range),
        (None, None) => Nat::Existing,
    })
}

fn address(bytes: &[u8]) -> Result<IpAddr, DecodeError> {
    let four = <[u8; 4]>::try_from(bytes).map(|bytes| IpAddr::V4(Ipv4Addr::from(bytes)));
    let sixteen = <[u8; 16]>::try_from(bytes).map(|bytes| IpAddr::V6(Ipv6Addr::from(bytes)));
    four.or(sixteen).map_err(|_| DecodeError::Length { what: "nat's address", length: bytes.len(), wanted: 4 })
}

/// OVS_NSH_KEY_ATTR_*.
fn push_nsh(nest: &[u8]) -> Result<PushNsh, DecodeError> {
    let mut nsh = PushNsh { flags: 0, ttl: 0, np: 0, spi: 0, si: 0, metadata: NshMetadata::Md1([0; 4]) };
    for attribute in attributes(nest) {
        let attribute = attribute?;
        match attribute.kind {
            1 => {
                let f = attribute.exact("push_nsh's base", 8)?;
                let path = f.be32(4).value;
                (nsh.flags, nsh.ttl, nsh.np) = (f.u8(0).value, f.u8(1).value, f.u8(3).value);
                (nsh.spi, nsh.si) = (path >> 8, path as u8);
            }
            2 => {
                let f = attribute.exact("push_nsh's metadata", 16)?;
                nsh.metadata = NshMetadata::Md1([0, 4, 8, 12].map(|at| f.be32(at).value));
            }
            3 => nsh.metadata = NshMetadata::Md2(attribute.value.into()),
            kind => return Err(DecodeError::Unknown { nest: "push_nsh", kind }),
        }
    }
    Ok(nsh)
}
