//! What a flow matches, as fields of a rule.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;
use ringspan_protocol::rule::{Field, FieldMatch, Match};

use super::{Cause, TunnelIn};
use crate::ovs::flow::Flow;
use crate::ovs::flow::key::{Arp, Fragment, Icmp, Ipv4, Ipv6, Key, L4Ports, Vlan};
use crate::ovs::flow::masked::Masked;
use crate::ovs::flow::tunnel::{GeneveOption, Tunnel};

/// Types of VLAN headers.
const TPIDS: [u16; 2] = [0x8100, 0x88a8];
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
/// `one_vlan`: OVS is known to read one VLAN header of a frame only.
pub(super) fn keys(keys: &[Key], one_vlan: bool, fields: &mut Fields) -> Result<(), Cause> {
    level(keys, 0, one_vlan, fields)
}

/// The keys before, between and behind VLAN headers. OVS cannot leave open whether there is one: a key without it matches frames
/// without (odp_flow_key_to_flow in lib/odp-util.c).
fn level(keys: &[Key], vlans: usize, one_vlan: bool, fields: &mut Fields) -> Result<(), Cause> {
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
    // A frame with a length there (802.2) has no Ethertype in the key, and 0xffff in the mask alone, which behind a VLAN header is not
    // printed at all. So only one that is there, and all of it, says what is matched.
    let kinds = keys.iter().filter_map(|key| match key {
        Key::EthType(kind) => Some(kind),
        _ => None,
    });
    let kind = match kinds.collect::<Vec<_>>()[..] {
        [kind] if kind.is_exact() => *kind,
        _ => return Err(Cause::Field("not one whole Ethertype at each VLAN header and behind it".into())),
    };
    match (vlan, PLACES.get(vlans)) {
        (Some(vlan), Some((tpid, tci))) => fields.extend([field(*tpid, kind)?, tag(*tci, vlan)?]),
        (Some(_), None) => return Err(Cause::Field("a third VLAN header".into())),
        // OVS looked at as many headers as `vlan-limit` says: where that is one, the engine looks at one more, and there its type stands. Where it is two,
        // the frame ends behind the type, and whole ones are another flow's.
        (None, Some((tpid, tci))) if vlans > 0 && one_vlan && TPIDS.contains(&kind.value) => {
            fields.extend([field(*tpid, kind)?, presence(*tci, true)?]);
        }
        (None, Some(_)) if TPIDS.contains(&kind.value) => {
            return Err(Cause::Field("a VLAN header that OVS did not read".into()));
        }
        (None, place) => {
            fields.extend(place.map(|(_, tci)| presence(*tci, false)).transpose()?);
            fields.push(field(Field::EthType, kind)?);
        }
    }
    for key in keys.iter().filter(|key| !key.is_wildcard()) {
        match key {
            Key::EthType(_) | Key::Vlan(_) | Key::Encap(_) => {}
            other => one(other, fields)?,
        }
    }
    match (vlan, inner) {
        (Some(_), Some(inner)) => level(inner, vlans + 1, one_vlan, fields),
        (None, None) => Ok(()),
        _ => Err(Cause::Field("a VLAN header without what is behind it, or the opposite".into())),
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
        Key::Ipv4(ip) => ipv4(ip, fields)?,
        Key::Ipv6(ip) => ipv6(ip, fields)?,
        Key::Tcp(ports) | Key::Udp(ports) | Key::Sctp(ports) => self::ports(ports, fields)?,
        Key::TcpFlags(flags) => {
            let masked = Masked { value: flags.value.0, mask: flags.mask.0 };
            fields.push(field(Field::TcpFlags, masked)?);
        }
        Key::Icmp(icmp) | Key::Icmpv6(icmp) => self::icmp(icmp, fields)?,
        Key::Arp(arp) => self::arp(arp, fields)?,
        Key::Nd(nd) => fields.extend([
            field(Field::NdTarget, nd.target)?,
            field(Field::NdSll, nd.sll)?,
            field(Field::NdTll, nd.tll)?,
        ]),
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

/// What a flow that takes packets out of a tunnel matches, as fields of the tunnel, and the UDP port. The engine looks into whole
/// packets without VLAN tags and with good headers only, which is what a flow without fragments and tags is about. Says whether they are IPv6's, too:
/// the flow need not match an address of theirs.
pub(super) fn around(keys: &[Key]) -> Result<(u16, bool, Match), Cause> {
    let mut fields = Vec::new();
    level(keys, 0, false, &mut fields)?;
    let refused = |field: &FieldMatch| Cause::Field(format!("{field} of the packet around, which a rule cannot say"));
    let (mut udp, mut ipv6) = (None, None);
    let mut outer = Vec::new();
    for one in fields.iter().filter(|field| field.mask() != 0) {
        let name = match one.field() {
            Field::EthSrc => Field::TunnelEthSrc,
            Field::EthDst => Field::TunnelEthDst,
            Field::Ipv4Src => Field::TunnelIpv4Src,
            Field::Ipv4Dst => Field::TunnelIpv4Dst,
            Field::Ipv6Src => Field::TunnelIpv6Src,
            Field::Ipv6Dst => Field::TunnelIpv6Dst,
            Field::IpTos => Field::TunnelTos,
            Field::IpTtl => Field::TunnelTtl,
            Field::SrcPort => Field::TunnelSrcPort,
            Field::DstPort if one.is_exact() => {
                udp = Some(one.value() as u16);
                Field::TunnelDstPort
            }
            Field::VlanTci | Field::IpFrag if one.value() == 0 => continue,
            Field::EthType if one.is_exact() && matches!(one.value(), 0x0800 | 0x86dd) => {
                ipv6 = Some(one.value() == 0x86dd);
                continue;
            }
            Field::IpProto if one.is_exact() && one.value() == 17 => continue,
            _ => return Err(refused(one)),
        };
        outer.push(FieldMatch::new(name, one.value(), one.mask()).map_err(|error| Cause::Field(error.to_string()))?);
    }
    let udp = udp.ok_or_else(|| Cause::Field("a tunnel without a UDP port".into()))?;
    let ipv6 = ipv6.ok_or_else(|| Cause::Field("a tunnel without an Ethertype".into()))?;
    Ok((udp, ipv6, Match::new(outer).map_err(|twice| Cause::Field(twice.to_string()))?))
}

/// What both ask for. Nothing has fields that contradict each other.
fn both(fields: Fields, more: &[FieldMatch]) -> Result<Fields, Cause> {
    let mut all: BTreeMap<Field, (u128, u128)> = BTreeMap::new();
    for one in fields.iter().chain(more) {
        let (value, mask) = all.entry(one.field()).or_default();
        if (*value ^ one.value()) & *mask & one.mask() != 0 {
            let what = format!("{one} is not what takes packets out of the tunnel");
            return Err(Cause::ForeignTunnel(what));
        }
        (*value, *mask) = (*value | one.value(), *mask | one.mask());
    }
    let fields = all.into_iter().map(|(field, (value, mask))| FieldMatch::new(field, value, mask));
    fields.collect::<Result<_, _>>().map_err(|error| Cause::Field(error.to_string()))
}

/// How many bits are matched.
pub(super) fn bits(fields: &Fields) -> u32 {
    fields.iter().map(|field| field.mask().count_ones()).sum()
}

/// Whether a frame came in a tunnel over IPv6.
pub(super) fn is_over_ipv6(tunnel: &Tunnel) -> bool {
    tunnel.ipv6_dst.is_some()
}

/// The tunnel that a frame came in. What OVS's text leaves out may be zero or count for nothing: it is matched as zero, which is never too
/// wide. The kind and the UDP port are those of the port that it came out of.
pub(super) fn tunnel(tunnel: &Tunnel, through: &TunnelIn) -> Result<Fields, Cause> {
    let mut fields = vec![
        exact(Field::TunnelKind, through.kind.number().into())?,
        exact(Field::TunnelDstPort, through.port.into())?,
    ];
    if through.port != through.kind.port() {
        let what =
            format!("a tunnel at UDP port {}, where an engine looks for none: {}", through.port, through.kind.port());
        return Err(Cause::Field(what));
    }
    // Whether options that are not there count cannot be seen in OVS's text: a rule without options is for packets without options.
    match tunnel.geneve.as_deref() {
        None | Some([]) => {}
        // The software NIC's key has the addresses where it would have more.
        Some(options) if is_over_ipv6(tunnel) && !matches!(options, [one] if one.data.len() == 4) => {
            return Err(Cause::TunnelOptions(told(options, true)));
        }
        Some(options) => fields.extend(geneve_options(options)?),
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
    fields.push(field(Field::TunnelTtl, tunnel.ttl.unwrap_or(Masked::exact(0)))?);
    fields.push(field(Field::TunnelSrcPort, tunnel.tp_src.unwrap_or(Masked::exact(0)))?);
    if let Some(port) = tunnel.tp_dst.filter(|port| (port.value ^ through.port) & port.mask != 0) {
        return Err(Cause::Field(format!("a tunnel's UDP port {} at the port of {}", port.value, through.port)));
    }
    // OVS: oam 1, df 2, csum 4, key 8; the engine: csum 1, df 2, oam 4. A VXLAN or GENEVE packet always has a key. OVS says -df of
    // packets that have it set, too (seen with 3.1: its own do), and no OpenFlow match can ask for it (ovs-fields(7): tun_flags knows oam
    // alone): it decides nothing.
    let flags = |bits: u8| (bits & 1) << 2 | (bits & 4) >> 2;
    let (value, mask) = (tunnel.flags.value.0, tunnel.flags.mask.0);
    if mask & 8 != 0 && value & 8 == 0 {
        return Err(Cause::Field("a tunnel's packet without a key".into()));
    }
    fields.push(field(Field::TunnelFlags, Masked { value: flags(value), mask: flags(mask) })?);
    both(fields, through.outer.fields())
}

/// What of the options of GENEVE that a flow matches a rule cannot say.
pub(super) fn options_refused(flow: &Flow) -> Option<String> {
    flow.keys.iter().find_map(|key| match key {
        Key::Tunnel(tunnel) => Some(told(tunnel.geneve.as_deref()?, is_over_ipv6(tunnel))),
        _ => None,
    })
}

/// How long they are, and how long they may be: there is no more room in a software NIC's key. Where they have room, their lengths are not why.
fn told(options: &[GeneveOption], ipv6: bool) -> String {
    let lengths: Vec<usize> = options.iter().map(|option| option.data.len()).collect();
    if lengths == [4] || !ipv6 && matches!(lengths[..], [8 | 12] | [4, 4]) {
        return "class, type or length is not matched whole".into();
    }
    let lengths: Vec<String> = lengths.iter().map(usize::to_string).collect();
    format!("options of {} bytes; the most is one of 12 or two of 4, over IPv6 one of 4", lengths.join(" and "))
}

/// The options that a rule can say ([`Field::TunnelOptionShape`]), with all of their classes, types and lengths.
fn geneve_options(options: &[GeneveOption]) -> Result<Fields, Cause> {
    let lengths: Vec<usize> = options.iter().map(|option| option.data.len()).collect();
    let shape = match lengths[..] {
        [4] => 0,
        [8] => 1,
        [12] => 2,
        [4, 4] => 3,
        _ => return Err(Cause::Field("options of GENEVE that are not one of 4, 8 or 12 bytes, or two of 4".into())),
    };
    // As they stand in the header (RFC 8926, section 3.5).
    let (mut value, mut mask) = (Vec::with_capacity(16), Vec::with_capacity(16));
    for GeneveOption { class, kind, len, data, data_mask } in options {
        if class.mask != u16::MAX || kind.mask != u8::MAX || len.mask & 0x1f != 0x1f || data_mask.len() != data.len() {
            return Err(Cause::Field("an option of GENEVE that counts in part".into()));
        }
        let [high, low] = class.value.to_be_bytes();
        value.extend([high, low, kind.value, (data.len() / 4) as u8]);
        mask.extend([0xff; 4]);
        value.extend(data.iter().zip(data_mask).map(|(byte, mask)| byte & mask));
        mask.extend(data_mask);
    }
    let part = |bytes: &[u8], from: usize, to: usize| {
        (from..to).fold(0, |all, at| all << 8 | u64::from(bytes.get(at).copied().unwrap_or_default()))
    };
    let both = |from, to| Masked { value: part(&value, from, to), mask: part(&mask, from, to) };
    let mut fields = vec![field(Field::TunnelOption, both(0, 3))?, field(Field::TunnelOptionData, both(4, 8))?];
    if shape != 0 {
        fields.extend([exact(Field::TunnelOptionShape, shape)?, field(Field::TunnelOptionMore, both(8, 16))?]);
    }
    Ok(fields)
}
