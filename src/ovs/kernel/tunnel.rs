//! OVS_TUNNEL_KEY_ATTR_* of linux/openvswitch.h, with their masks.

use super::DecodeError;
use super::attribute::{Attribute, Fields, Mask, attributes};
use super::key::unknown;
use crate::ovs::flow::Masked;
use crate::ovs::flow::flags::{Flags, TunnelFlags};
use crate::ovs::flow::tunnel::{Erspan, Gbp, GeneveOption, Tunnel, Vxlan};

const ID: u16 = 0;
const IPV4_SRC: u16 = 1;
const IPV4_DST: u16 = 2;
const TOS: u16 = 3;
const TTL: u16 = 4;
const DONT_FRAGMENT: u16 = 5;
const CSUM: u16 = 6;
const OAM: u16 = 7;
const GENEVE_OPTS: u16 = 8;
const TP_SRC: u16 = 9;
const TP_DST: u16 = 10;
const VXLAN_OPTS: u16 = 11;
const IPV6_SRC: u16 = 12;
const IPV6_DST: u16 = 13;
const PAD: u16 = 14;
const ERSPAN_OPTS: u16 = 15;

const VXLAN_GBP: u16 = 1;

const FLAG_OAM: u8 = 0x01;
const FLAG_DF: u8 = 0x02;
const FLAG_CSUM: u8 = 0x04;
const FLAG_KEY: u8 = 0x08;

/// Outer headers: as a match, or as what a packet is sent with, where every bit counts.
pub fn tunnel(bytes: &[u8], mask: Mask<'_>) -> Result<Tunnel, DecodeError> {
    let mut tunnel = Tunnel::default();
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        let mask = mask.of(attribute.kind)?;
        let fields = |what, size| Fields::new(what, attribute.value, mask, size);
        match attribute.kind {
            ID => tunnel.id = Some(fields("tun_id", 8)?.be64(0)),
            IPV4_SRC => tunnel.src = Some(fields("a tunnel's src", 4)?.ipv4(0)),
            IPV4_DST => tunnel.dst = Some(fields("a tunnel's dst", 4)?.ipv4(0)),
            IPV6_SRC => tunnel.ipv6_src = Some(fields("a tunnel's ipv6_src", 16)?.ipv6(0)),
            IPV6_DST => tunnel.ipv6_dst = Some(fields("a tunnel's ipv6_dst", 16)?.ipv6(0)),
            TOS => tunnel.tos = Some(fields("a tunnel's tos", 1)?.u8(0)),
            TTL => tunnel.ttl = Some(fields("a tunnel's ttl", 1)?.u8(0)),
            TP_SRC => tunnel.tp_src = Some(fields("a tunnel's tp_src", 2)?.be16(0)),
            TP_DST => tunnel.tp_dst = Some(fields("a tunnel's tp_dst", 2)?.be16(0)),
            VXLAN_OPTS => tunnel.vxlan = Some(vxlan(attribute.value, mask)?),
            GENEVE_OPTS => tunnel.geneve = Some(geneve(attribute.value, mask)?),
            ERSPAN_OPTS => tunnel.erspan = Some(erspan(&attribute, mask)?),
            DONT_FRAGMENT | CSUM | OAM | PAD => {}
            kind => tunnel.unknown.push(unknown(kind, attribute.value, mask)),
        }
    }
    // The kernel leaves out what is zero of the value and, by itself, of the mask (__ip_tun_to_nlattr in net/openvswitch/flow_netlink.c).
    let is_any = |kind| Ok::<_, DecodeError>(matches!(mask.of(kind)?, Mask::Nothing));
    tunnel.any_tos = tunnel.tos.is_none() && is_any(TOS)?;
    tunnel.any_tp_src = tunnel.tp_src.is_none() && is_any(TP_SRC)?;
    // With an id, that there is one counts; of the other flags a mask may be there without a value.
    let id = if tunnel.id.is_some() { FLAG_KEY } else { 0 };
    tunnel.flags.value = TunnelFlags(flags(bytes)? | id);
    tunnel.flags.mask = TunnelFlags(match mask {
        Mask::All => TunnelFlags::ALL as u8,
        Mask::Nothing => 0,
        Mask::Bits(nest) => flags(nest)? | id,
    });
    Ok(tunnel)
}

/// Those that are attributes without a value.
fn flags(bytes: &[u8]) -> Result<u8, DecodeError> {
    attributes(bytes).try_fold(0, |flags, attribute| {
        Ok(flags
            | match attribute?.kind {
                DONT_FRAGMENT => FLAG_DF,
                CSUM => FLAG_CSUM,
                OAM => FLAG_OAM,
                _ => 0,
            })
    })
}

fn vxlan(bytes: &[u8], mask: Mask<'_>) -> Result<Vxlan, DecodeError> {
    let mut vxlan = Vxlan::default();
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        let mask = mask.of(attribute.kind)?;
        if attribute.kind != VXLAN_GBP {
            vxlan.unknown.push(unknown(attribute.kind, attribute.value, mask));
            continue;
        }
        let gbp = Fields::new("vxlan's gbp", attribute.value, mask, 4)?.u32(0);
        vxlan.gbp = Some(Gbp {
            id: Masked { value: gbp.value as u16, mask: gbp.mask as u16 },
            flags: Masked { value: (gbp.value >> 16) as u8, mask: (gbp.mask >> 16) as u8 },
        });
    }
    Ok(vxlan)
}

/// The options as they are in the packet (RFC 8926 section 3.5). A mask has the same layout, and is as long.
fn geneve(bytes: &[u8], mask: Mask<'_>) -> Result<Vec<GeneveOption>, DecodeError> {
    const HEADER: usize = 4;
    const LENGTH: u8 = 0x1f;
    let cut = |there| DecodeError::Length { what: "a GENEVE option", length: there, wanted: HEADER };
    if let Mask::Bits(bits) = mask
        && bits.len() != bytes.len()
    {
        return Err(DecodeError::Length {
            what: "the mask of GENEVE options",
            length: bits.len(),
            wanted: bytes.len(),
        });
    }
    let mut options = vec![];
    let mut at = 0;
    while at < bytes.len() {
        let rest = &bytes[at..];
        let data_len = usize::from(rest.get(3).ok_or_else(|| cut(rest.len()))? & LENGTH) * 4;
        let data = rest.get(HEADER..HEADER + data_len).ok_or_else(|| cut(rest.len()))?;
        let own = match mask {
            Mask::Bits(bits) => Mask::Bits(&bits[at..at + HEADER + data_len]),
            all_or_nothing => all_or_nothing,
        };
        let f = Fields::new("a GENEVE option", &rest[..HEADER], head(own, HEADER), HEADER)?;
        let len_mask = match f.u8(3).mask & LENGTH {
            LENGTH => u8::MAX,
            part => part,
        };
        let data_mask = match own {
            Mask::All => vec![0xff; data_len],
            Mask::Nothing => vec![0; data_len],
            Mask::Bits(bits) => bits[HEADER..].to_vec(),
        };
        options.push(GeneveOption {
            class: f.be16(0),
            kind: f.u8(2),
            len: Masked { value: data_len as u8, mask: len_mask },
            data: data.into(),
            data_mask: data_mask.into(),
        });
        at += HEADER + data_len;
    }
    Ok(options)
}

fn head(mask: Mask<'_>, length: usize) -> Mask<'_> {
    match mask {
        Mask::Bits(bits) => Mask::Bits(&bits[..length.min(bits.len())]),
        all_or_nothing => all_or_nothing,
    }
}

/// struct erspan_metadata of linux/erspan.h: the version, and 4 bytes whose meaning it says.
fn erspan(attribute: &Attribute<'_>, mask: Mask<'_>) -> Result<Erspan, DecodeError> {
    let f = Fields::new("erspan", attribute.value, mask, 8)
        .or_else(|_| Fields::new("erspan", attribute.value, mask, 12))?;
    let version = f.u32(0);
    match version.value {
        1 => Ok(Erspan::V1 { version_mask: version.mask as u8, index: f.be32(4) }),
        // Behind the time stamp and the group: bit fields, with the direction and, in two parts, the hardware among them.
        2 => {
            let (high, low) = (f.u8(10), f.u8(11));
            let dir = Masked { value: low.value >> 3 & 1, mask: low.mask >> 3 & 1 };
            let id = |high: u8, low: u8| (high & 0x3) << 4 | low >> 4;
            Ok(Erspan::V2 {
                version_mask: version.mask as u8,
                dir,
                hwid: Masked { value: id(high.value, low.value), mask: id(high.mask, low.mask) },
            })
        }
        version => Err(DecodeError::Erspan { version }),
    }
}
