//! What a flow matches, as fields of a rule.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;
use ringspan_protocol::rule::{Field, FieldMatch, TunnelKind};

use super::{Cause, TunnelIn};
use crate::ovs::flow::key::{Arp, Fragment, Icmp, Ipv4, Ipv6, Key, L4Ports, Vlan};
use crate::ovs::flow::masked::Masked;
use crate::ovs::flow::tunnel::Tunnel;

/// A VLAN tag is there.
const TAGGED: u128 = 0x1000;

type Fields = Vec<FieldMatch>;

/// What a number or an address is in a field.
pub(super) trait Raw {
    /// Its bits.
    fn raw(self) -> u128;
}

macro_rules! raw {
    ($($type:ty)*) => { $(impl Raw for $type { fn raw(self) -> u128 { self.into() } })* };
}
raw!(u8 u16 u32 u64);

impl Raw for MacAddress {
    fn raw(self) -> u128 {
        let [a, b, c, d, e, f] = self.0;
        u64::from_be_bytes([0, 0, a, b, c, d, e, f]).into()
    }
}

impl Raw for Ipv4Addr {
    fn raw(self) -> u128 {
        u32::from(self).into()
    }
}

impl Raw for Ipv6Addr {
    fn raw(self) -> u128 {
        self.into()
    }
}

/// A field's match; a value that the field has no room for is refused.
pub(super) fn field<T: Raw>(field: Field, masked: Masked<T>) -> Result<FieldMatch, Cause> {
    let (value, mask) = (masked.value.raw(), masked.mask.raw());
    // Bits of the mask beyond the field match zeros there, which is what every frame has.
    if value & mask & !field.mask() != 0 {
        return Err(Cause::Field(format!("{field} {value:#x} has more than {} bits", field.bits())));
    }
    let mask = mask & field.mask();
    FieldMatch::new(field, value & mask, mask).map_err(|error| Cause::Field(error.to_string()))
}

fn exact(name: Field, value: u128) -> Result<FieldMatch, Cause> {
    FieldMatch::exact(name, value).map_err(|error| Cause::Field(error.to_string()))
}

/// A frame with a VLAN tag there, or without one.
fn presence(name: Field, is_there: bool) -> Result<FieldMatch, Cause> {
    let value = if is_there { TAGGED } else { 0 };
    FieldMatch::new(name, value, TAGGED).map_err(|error| Cause::Field(error.to_string()))
}

/// All keys of a flow but where it comes in, which is not in the fields, and its tunnel.
pub(super) fn keys(keys: &[Key], fields: &mut Fields) -> Result<(), Cause> {
    level(keys, 0, fields)
}

/// The keys before, between and behind VLAN headers. OVS cannot leave open whether there is one: a key without it matches frames
/// without (odp_flow_key_to_flow in lib/odp-util.c).
fn level(keys: &[Key], vlans: usize, fields: &mut Fields) -> Result<(), Cause> {
    const PLACES: [(Field, Field); 2] =
        [(Field::VlanTpid, Field::VlanTci), (Field::InnerVlanTpid, Field::InnerVlanTci)];
    let vlan = keys.iter().find_map(|key| match key {
        Key::Vlan(vlan) => Some(vlan),
        _ => None,
    });
    let inner = keys.iter().find_map(|key| match key {
        Key::Encap(inner) => Some(inner),
        _ => None,
    });
    if vlan.is_none() && vlans < PLACES.len() {
        fields.push(presence(PLACES[vlans].1, false)?);
    }
    for key in keys.iter().filter(|key| !key.is_wildcard()) {
        match key {
            Key::EthType(kind) if vlan.is_some() => fields.push(field(PLACES[vlans].0, *kind)?),
            Key::Vlan(vlan) => fields.push(tag(PLACES[vlans].1, vlan)?),
            Key::Encap(_) => {}
            other => one(other, fields)?,
        }
    }
    match (vlan, inner) {
        (Some(_), Some(inner)) if vlans < PLACES.len() => level(inner, vlans + 1, fields),
        (None, None) => Ok(()),
        _ => Err(Cause::Field("a VLAN header without what is behind it, or a third one".into())),
    }
}

/// Priority, presence and id in one.
fn tag(name: Field, vlan: &Vlan) -> Result<FieldMatch, Cause> {
    let join = |pcp: u8, vid: u16| u128::from(pcp & Vlan::PCP_MASK) << 13 | u128::from(vid & Vlan::VID_MASK);
    let mask = join(vlan.pcp.mask, vlan.vid.mask) | TAGGED;
    let value = join(vlan.pcp.value, vlan.vid.value) & mask | if vlan.cfi { TAGGED } else { 0 };
    FieldMatch::new(name, value, mask).map_err(|error| Cause::Field(error.to_string()))
}

fn one(key: &Key, fields: &mut Fields) -> Result<(), Cause> {
    match key {
        Key::Eth { src, dst } => fields.extend([field(Field::EthSrc, *src)?, field(Field::EthDst, *dst)?]),
        Key::EthType(kind) => fields.push(field(Field::EthType, *kind)?),
        Key::Ipv4(ip) => ipv4(ip, fields)?,
        Key::Ipv6(ip) => ipv6(ip, fields)?,
        Key::Tcp(ports) | Key::Udp(ports) | Key::Sctp(ports) => self::ports(ports, fields)?,
        Key::TcpFlags(flags) => {
            let masked = Masked { value: flags.value.0, mask: flags.mask.0 };
            fields.push(field(Field::TcpFlags, masked)?);
        }
        Key::Icmp(icmp) | Key::Icmpv6(icmp) => self::icmp(icmp, fields)?,
        Key::Arp(arp) => self::arp(arp, fields)?,
        // Where it came in and what fulfils itself; `first_obstacle` has refused all the rest.
        Key::InPort { .. } | Key::PacketType { .. } | Key::RecircId(_) | Key::Tunnel(_) => {}
        Key::SkbMark(_) | Key::SkbPriority(_) => {}
        Key::CtState(_) | Key::CtZone(_) | Key::CtMark(_) | Key::CtLabel(_) => {}
        other => return Err(Cause::Field(format!("{other:?}"))),
    }
    Ok(())
}

/// The engine's two bits: a fragment, and not the first of them.
fn fragment(fragment: Option<Fragment>) -> Result<Option<FieldMatch>, Cause> {
    let value = fragment.map(|fragment| match fragment {
        Fragment::No => 0,
        Fragment::First => 1,
        Fragment::Later => 3,
    });
    value.map(|value| exact(Field::IpFrag, value)).transpose()
}

fn ipv4(ip: &Ipv4, fields: &mut Fields) -> Result<(), Cause> {
    fields.extend([field(Field::Ipv4Src, ip.src)?, field(Field::Ipv4Dst, ip.dst)?, field(Field::IpProto, ip.proto)?]);
    fields.extend([field(Field::IpTos, ip.tos)?, field(Field::IpTtl, ip.ttl)?]);
    fields.extend(fragment(ip.frag)?);
    Ok(())
}

fn ipv6(ip: &Ipv6, fields: &mut Fields) -> Result<(), Cause> {
    fields.extend([field(Field::Ipv6Src, ip.src)?, field(Field::Ipv6Dst, ip.dst)?, field(Field::IpProto, ip.proto)?]);
    fields.extend([
        field(Field::IpTos, ip.tclass)?,
        field(Field::IpTtl, ip.hlimit)?,
        field(Field::Ipv6Label, ip.label)?,
    ]);
    fields.extend(fragment(ip.frag)?);
    Ok(())
}

fn ports(ports: &L4Ports, fields: &mut Fields) -> Result<(), Cause> {
    fields.extend([field(Field::SrcPort, ports.src)?, field(Field::DstPort, ports.dst)?]);
    Ok(())
}

fn icmp(icmp: &Icmp, fields: &mut Fields) -> Result<(), Cause> {
    fields.extend([field(Field::IcmpType, icmp.kind)?, field(Field::IcmpCode, icmp.code)?]);
    Ok(())
}

fn arp(arp: &Arp, fields: &mut Fields) -> Result<(), Cause> {
    fields.extend([field(Field::ArpSpa, arp.sip)?, field(Field::ArpTpa, arp.tip)?, field(Field::ArpOp, arp.op)?]);
    fields.extend([field(Field::ArpSha, arp.sha)?, field(Field::ArpTha, arp.tha)?]);
    Ok(())
}

/// The tunnel that a frame came in. What OVS leaves out may be zero or count for nothing: it is matched as zero, which is never too
/// wide. The kind and the UDP port are those of the port that it came out of.
pub(super) fn tunnel(tunnel: &Tunnel, through: &TunnelIn) -> Result<Fields, Cause> {
    let mut fields = vec![
        exact(Field::TunnelKind, through.kind.number().into())?,
        exact(Field::TunnelDstPort, through.port.into())?,
    ];
    // Whether options that are not there count cannot be seen in OVS's text, and a rule could not say it.
    if through.kind == TunnelKind::Geneve {
        return Err(Cause::Field("GENEVE's options, which may count".into()));
    }
    let absent = || Cause::Field("a tunnel without addresses".into());
    match (tunnel.ipv6_dst, tunnel.dst) {
        (Some(dst), _) => {
            fields.push(field(Field::TunnelIpv6Dst, dst)?);
            fields.push(field(Field::TunnelIpv6Src, tunnel.ipv6_src.ok_or_else(absent)?)?);
        }
        (None, Some(dst)) => {
            fields.push(field(Field::TunnelIpv4Dst, dst)?);
            fields.push(field(Field::TunnelIpv4Src, tunnel.src.ok_or_else(absent)?)?);
        }
        (None, None) => return Err(absent()),
    }
    fields.push(field(Field::TunnelId, tunnel.id.ok_or_else(|| Cause::Field("a tunnel without an id".into()))?)?);
    fields.push(field(Field::TunnelTos, tunnel.tos.unwrap_or(Masked::exact(0)))?);
    fields.extend(tunnel.ttl.map(|ttl| field(Field::TunnelTtl, ttl)).transpose()?);
    fields.extend(tunnel.tp_src.map(|port| field(Field::TunnelSrcPort, port)).transpose()?);
    if let Some(port) = tunnel.tp_dst.filter(|port| (port.value ^ through.port) & port.mask != 0) {
        return Err(Cause::Field(format!("a tunnel's UDP port {} at the port of {}", port.value, through.port)));
    }
    // OVS: oam 1, df 2, csum 4, key 8; the engine: csum 1, df 2, oam 4. A VXLAN or GENEVE packet always has a key.
    let flags = |bits: u8| (bits & 1) << 2 | bits & 2 | (bits & 4) >> 2;
    let (value, mask) = (tunnel.flags.value.0, tunnel.flags.mask.0);
    if mask & 8 != 0 && value & 8 == 0 {
        return Err(Cause::Field("a tunnel's packet without a key".into()));
    }
    fields.push(field(Field::TunnelFlags, Masked { value: flags(value), mask: flags(mask) })?);
    Ok(fields)
}
