//! OVS_KEY_ATTR_* of linux/openvswitch.h, with their masks.

use super::DecodeError;
use super::attribute::{Attribute, Fields, Mask, attributes, find};
use super::tunnel::tunnel;
use crate::ovs::flow::flags::{CtState, TcpFlags};
use crate::ovs::flow::key::{Arp, CtTuple, Fragment, Icmp, Ipv4, Ipv6, L4Ports, MplsLabel, Nd, Nsh, UnknownKey, Vlan};
use crate::ovs::flow::{Key, Masked, PortRef};

const ENCAP: u16 = 1;
const PRIORITY: u16 = 2;
const IN_PORT: u16 = 3;
const ETHERNET: u16 = 4;
const VLAN: u16 = 5;
const ETHERTYPE: u16 = 6;
const IPV4: u16 = 7;
const IPV6: u16 = 8;
const TCP: u16 = 9;
const UDP: u16 = 10;
const ICMP: u16 = 11;
const ICMPV6: u16 = 12;
const ARP: u16 = 13;
const ND: u16 = 14;
const SKB_MARK: u16 = 15;
const TUNNEL: u16 = 16;
const SCTP: u16 = 17;
const TCP_FLAGS: u16 = 18;
const DP_HASH: u16 = 19;
const RECIRC_ID: u16 = 20;
const MPLS: u16 = 21;
const CT_STATE: u16 = 22;
const CT_ZONE: u16 = 23;
const CT_MARK: u16 = 24;
const CT_LABELS: u16 = 25;
const CT_ORIG_TUPLE_IPV4: u16 = 26;
const CT_ORIG_TUPLE_IPV6: u16 = 27;
pub(super) const NSH: u16 = 28;

const NSH_BASE: u16 = 1;
const NSH_MD1: u16 = 2;

/// Deepest nesting of VLANs: the kernel has two.
const DEEPEST: usize = 2;

/// What a flow matches: the attributes of OVS_FLOW_ATTR_KEY and OVS_FLOW_ATTR_MASK. Without a mask every bit counts.
///
/// # Errors
/// A length that is none of the kernel's, or VLANs nested deeper than it does.
pub fn keys(bytes: &[u8], mask: Option<&[u8]>) -> Result<Vec<Key>, DecodeError> {
    nested(bytes, mask.map_or(Mask::All, Mask::Bits), 0)
}

fn nested(bytes: &[u8], mask: Mask<'_>, depth: usize) -> Result<Vec<Key>, DecodeError> {
    let mut keys = vec![];
    let mut has_type = false;
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        has_type |= attribute.kind == ETHERTYPE;
        keys.push(match attribute.kind {
            ENCAP if depth == DEEPEST => return Err(DecodeError::Deep),
            ENCAP => Key::Encap(nested(attribute.value, mask.of(ENCAP)?, depth + 1)?),
            _ => key(&attribute, mask.of(attribute.kind)?)?,
        });
    }
    // A frame of 802.2 has no Ethertype, and that can count all the same.
    if !has_type
        && let Mask::Bits(nest) = mask
        && let Some(value) = find(nest, ETHERTYPE)?
    {
        let mask = Attribute { kind: ETHERTYPE, value }.be16("the mask of the Ethertype")?;
        keys.push(Key::NoEthType { mask });
    }
    Ok(keys)
}

/// One key that is no `encap`.
pub(super) fn key(attribute: &Attribute<'_>, mask: Mask<'_>) -> Result<Key, DecodeError> {
    let fields = |what, size| Fields::new(what, attribute.value, mask, size);
    Ok(match attribute.kind {
        PRIORITY => Key::SkbPriority(fields("priority", 4)?.u32(0)),
        SKB_MARK => Key::SkbMark(fields("skb_mark", 4)?.u32(0)),
        DP_HASH => Key::DpHash(fields("dp_hash", 4)?.u32(0)),
        RECIRC_ID => Key::RecircId(fields("recirc_id", 4)?.u32(0)),
        IN_PORT => {
            let Masked { value, mask } = fields("in_port", 4)?.u32(0);
            Key::InPort { port: PortRef::Number(value), mask }
        }
        CT_STATE => {
            let Masked { value, mask } = fields("ct_state", 4)?.u32(0);
            Key::CtState(Masked { value: CtState(value), mask: CtState(mask) })
        }
        CT_ZONE => Key::CtZone(fields("ct_zone", 2)?.u16(0)),
        CT_MARK => Key::CtMark(fields("ct_mark", 4)?.u32(0)),
        CT_LABELS => Key::CtLabel(fields("ct_label", 16)?.u128(0)),
        CT_ORIG_TUPLE_IPV4 => {
            let f = fields("ct_tuple4", 13)?;
            let (src, dst) = (f.ipv4(0), f.ipv4(4));
            Key::CtTuple4(CtTuple { src, dst, src_port: f.be16(8), dst_port: f.be16(10), proto: f.u8(12) }.into())
        }
        CT_ORIG_TUPLE_IPV6 => {
            let f = fields("ct_tuple6", 37)?;
            let (src, dst) = (f.ipv6(0), f.ipv6(16));
            Key::CtTuple6(CtTuple { src, dst, src_port: f.be16(32), dst_port: f.be16(34), proto: f.u8(36) }.into())
        }
        TUNNEL => Key::Tunnel(Box::new(tunnel(attribute.value, mask)?)),
        ETHERNET => {
            let f = fields("eth", 12)?;
            Key::Eth { src: f.mac(0), dst: f.mac(6) }
        }
        VLAN => Key::Vlan(vlan(fields("vlan", 2)?.be16(0))),
        ETHERTYPE => Key::EthType(fields("eth_type", 2)?.be16(0)),
        MPLS => Key::Mpls(labels(attribute.value, mask)?),
        NSH => Key::Nsh(Box::new(nsh(attribute.value, mask)?)),
        IPV4 => {
            let f = fields("ipv4", 12)?;
            let (proto, tos, ttl) = (f.u8(8), f.u8(9), f.u8(10));
            Key::Ipv4(Ipv4 { src: f.ipv4(0), dst: f.ipv4(4), proto, tos, ttl, frag: fragment(f.u8(11))? })
        }
        IPV6 => {
            let f = fields("ipv6", 40)?;
            let mut label = f.be32(32);
            if f.is_exact() {
                label.mask = Ipv6::LABEL_MASK;
            }
            let (proto, tclass, hlimit, frag) = (f.u8(36), f.u8(37), f.u8(38), fragment(f.u8(39))?);
            Key::Ipv6(Ipv6 { src: f.ipv6(0), dst: f.ipv6(16), label, proto, tclass, hlimit, frag }.into())
        }
        TCP => Key::Tcp(ports(fields("tcp", 4)?)),
        UDP => Key::Udp(ports(fields("udp", 4)?)),
        SCTP => Key::Sctp(ports(fields("sctp", 4)?)),
        TCP_FLAGS => {
            let Masked { value, mask } = fields("tcp_flags", 2)?.be16(0);
            Key::TcpFlags(Masked { value: TcpFlags(value & 0xfff), mask: TcpFlags(mask & 0xfff) })
        }
        ICMP => Key::Icmp(icmp(fields("icmp", 2)?)),
        ICMPV6 => Key::Icmpv6(icmp(fields("icmpv6", 2)?)),
        ARP => {
            let f = fields("arp", 22)?;
            let (sip, tip, op) = (f.ipv4(0), f.ipv4(4), f.be16(8));
            Key::Arp(Box::new(Arp { sip, tip, op, sha: f.mac(10), tha: f.mac(16) }))
        }
        ND => {
            let f = fields("nd", 28)?;
            Key::Nd(Box::new(Nd { target: f.ipv6(0), sll: f.mac(16), tll: f.mac(22) }))
        }
        kind => Key::Unknown(Box::new(unknown(kind, attribute.value, mask))),
    })
}

/// An attribute that is not known here.
pub(super) fn unknown(attribute: u16, value: &[u8], mask: Mask<'_>) -> UnknownKey {
    UnknownKey { attribute, value: value.to_vec(), mask: mask.bytes(value.len()) }
}

/// A VLAN's TCI in its parts.
fn vlan(tci: Masked<u16>) -> Vlan {
    let vid = Masked { value: tci.value & Vlan::VID_MASK, mask: tci.mask & Vlan::VID_MASK };
    let pcp = Masked { value: (tci.value >> 13) as u8, mask: (tci.mask >> 13) as u8 };
    Vlan { vid, pcp, cfi: tci.value & CFI != 0 }
}

/// Where OVS says that there is a VLAN header.
pub(super) const CFI: u16 = 0x1000;

/// OVS matches all of it or nothing.
fn fragment(frag: Masked<u8>) -> Result<Option<Fragment>, DecodeError> {
    match (frag.mask, frag.value) {
        (0, _) => Ok(None),
        (u8::MAX, 0) => Ok(Some(Fragment::No)),
        (u8::MAX, 1) => Ok(Some(Fragment::First)),
        (u8::MAX, 2) => Ok(Some(Fragment::Later)),
        (mask, value) => Err(DecodeError::Fragment { value, mask }),
    }
}

fn ports(f: Fields<'_>) -> L4Ports {
    L4Ports { src: f.be16(0), dst: f.be16(2) }
}

fn icmp(f: Fields<'_>) -> Icmp {
    Icmp { kind: f.u8(0), code: f.u8(1) }
}

/// A label stack, of which the mask may have fewer.
fn labels(bytes: &[u8], mask: Mask<'_>) -> Result<Vec<MplsLabel>, DecodeError> {
    if bytes.is_empty() || !bytes.len().is_multiple_of(4) {
        return Err(DecodeError::Length { what: "mpls", length: bytes.len(), wanted: 4 });
    }
    let entry = |(at, bytes): (usize, &[u8])| {
        let mask = match mask {
            Mask::Bits(bits) => bits.get(4 * at..4 * at + 4).map_or(Mask::Nothing, Mask::Bits),
            all_or_nothing => all_or_nothing,
        };
        Ok(label(Fields::new("mpls", bytes, mask, 4)?.be32(0)))
    };
    bytes.chunks(4).enumerate().map(entry).collect()
}

/// One entry (RFC 3032).
pub(super) fn label(entry: Masked<u32>) -> MplsLabel {
    let part = |shift: u32, bits: u32| Masked { value: entry.value >> shift & bits, mask: entry.mask >> shift & bits };
    let small = |part: Masked<u32>| Masked { value: part.value as u8, mask: part.mask as u8 };
    MplsLabel {
        label: part(12, MplsLabel::LABEL_MASK),
        tc: small(part(9, 7)),
        bos: small(part(8, 1)),
        ttl: small(part(0, 0xff)),
    }
}

/// A network service header (RFC 8300): its base and the metadata of kind 1. A match on other metadata there is none.
fn nsh(bytes: &[u8], mask: Mask<'_>) -> Result<Nsh, DecodeError> {
    let mut nsh = Nsh::default();
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        let mask = mask.of(attribute.kind)?;
        match attribute.kind {
            NSH_BASE => {
                let f = Fields::new("nsh's base", attribute.value, mask, 8)?;
                let path = f.be32(4);
                (nsh.flags, nsh.ttl, nsh.mdtype, nsh.np) = (f.u8(0), f.u8(1), f.u8(2), f.u8(3));
                nsh.spi = Masked { value: path.value >> 8, mask: path.mask >> 8 };
                if nsh.spi.mask == 0xff_ffff {
                    nsh.spi.mask = u32::MAX;
                }
                nsh.si = Masked { value: path.value as u8, mask: path.mask as u8 };
            }
            NSH_MD1 => {
                let f = Fields::new("nsh's metadata", attribute.value, mask, 16)?;
                nsh.context = [f.be32(0), f.be32(4), f.be32(8), f.be32(12)];
            }
            kind => return Err(DecodeError::Unknown { nest: "nsh", kind }),
        }
    }
    Ok(nsh)
}
