//! What a flow matches (odp_flow_format, format_odp_key_attr__).

use std::fmt::{self, Write};

use crate::ovs::flow::key::{
    Arp, CtTuple, Fragment, Icmp, Ipv4, Ipv6, Key, L4Ports, MplsLabel, Nd, Nsh, UnknownKey, Vlan,
};
use crate::ovs::flow::masked::{Bits, Masked};

use super::fields::{Bytes, Fields, Hex, LongHex, masked_flags};
use super::{Style, tunnel};

/// Where a key stands.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Within {
    /// In a flow's match.
    Match(Style),
    /// In the action `set`, which prints what it writes.
    Set,
}

impl Within {
    fn style(self) -> Style {
        match self {
            Self::Match(style) => style,
            Self::Set => Style::Terse,
        }
    }
}

/// All keys of a flow, or of an `encap`.
pub(super) fn list(f: &mut impl Write, keys: &[Key], style: Style) -> fmt::Result {
    if keys.is_empty() && style == Style::Verbose {
        return f.write_str("<empty>");
    }
    let mut first = true;
    let mut packet_type = false;
    for key in keys {
        if style == Style::Terse && leaves_out(key, packet_type) {
            continue;
        }
        packet_type |= matches!(key, Key::PacketType { .. });
        if !std::mem::take(&mut first) {
            f.write_char(',')?;
        }
        self::key(f, key, Within::Match(style))?;
    }
    Ok(())
}

/// Whether a key is not printed without `-m`.
fn leaves_out(key: &Key, packet_type: bool) -> bool {
    match key {
        // It says that the packet has an Ethernet header, where the packet's type does not say so.
        Key::Eth { src, dst } => packet_type && src.is_wildcard() && dst.is_wildcard(),
        Key::Mpls(labels) => labels
            .iter()
            .all(|label| label.label.is_wildcard() && [label.tc, label.ttl, label.bos].iter().all(Masked::is_wildcard)),
        _ => key.is_wildcard(),
    }
}

/// One key with its name and parentheses.
pub(super) fn key(f: &mut impl Write, key: &Key, within: Within) -> fmt::Result {
    let style = within.style();
    match key {
        Key::RecircId(field) => number(f, "recirc_id", field),
        Key::DpHash(field) => number(f, "dp_hash", field),
        Key::SkbPriority(field) => number(f, "skb_priority", field),
        Key::SkbMark(field) => number(f, "skb_mark", field),
        Key::CtState(field) => {
            if style == Style::Terse {
                return parentheses(f, "ct_state", |f| masked_flags(f, field));
            }
            number(f, "ct_state", &Masked { value: field.value.0, mask: field.mask.0 })
        }
        Key::CtZone(field) => number(f, "ct_zone", field),
        Key::CtMark(field) => number(f, "ct_mark", field),
        Key::CtLabel(field) => parentheses(f, "ct_label", |f| label(f, field)),
        Key::CtTuple4(tuple) => fields(f, "ct_tuple4", style, |fields| {
            fields.ipv4("src", &tuple.src)?;
            fields.ipv4("dst", &tuple.dst)?;
            rest_of_tuple(fields, tuple, ["tp_src", "tp_dst"])
        }),
        Key::CtTuple6(tuple) => fields(f, "ct_tuple6", style, |fields| {
            fields.ipv6("src", &tuple.src)?;
            fields.ipv6("dst", &tuple.dst)?;
            rest_of_tuple(fields, tuple, ["src_port", "dst_port"])
        }),
        Key::Tunnel(tunnel) => fields(f, "tunnel", style, |fields| tunnel::tunnel(fields, tunnel, within)),
        Key::InPort { port, mask: u32::MAX } => write!(f, "in_port({port})"),
        Key::InPort { port, mask } => write!(f, "in_port({port}/{})", Hex(*mask)),
        Key::PacketType { ns, id } => fields(f, "packet_type", style, |fields| {
            fields.decimal("ns", ns)?;
            fields.hex("id", id)
        }),
        Key::Eth { src, dst } => fields(f, "eth", style, |fields| {
            fields.mac("src", src)?;
            fields.mac("dst", dst)
        }),
        Key::EthType(Masked { value, mask: u16::MAX }) => write!(f, "eth_type({value:#06x})"),
        Key::EthType(Masked { value, mask }) => write!(f, "eth_type({value:#06x}/{mask:#06x})"),
        Key::NoEthType { mask } => write!(f, "eth_type(0/{mask:#06x})"),
        Key::Vlan(tci) => fields(f, "vlan", style, |fields| vlan(fields, tci)),
        Key::Encap(keys) => parentheses(f, "encap", |f| if keys.is_empty() { Ok(()) } else { list(f, keys, style) }),
        Key::Ipv4(ip) => fields(f, "ipv4", style, |fields| ipv4(fields, ip)),
        Key::Ipv6(ip) => fields(f, "ipv6", style, |fields| ipv6(fields, ip)),
        Key::Tcp(l4) => fields(f, "tcp", style, |fields| ports(fields, l4)),
        Key::Udp(l4) => fields(f, "udp", style, |fields| ports(fields, l4)),
        Key::Sctp(l4) => fields(f, "sctp", style, |fields| ports(fields, l4)),
        Key::TcpFlags(field) => parentheses(f, "tcp_flags", |f| masked_flags(f, field)),
        Key::Icmp(header) => fields(f, "icmp", style, |fields| icmp(fields, header)),
        Key::Icmpv6(header) => fields(f, "icmpv6", style, |fields| icmp(fields, header)),
        Key::Arp(header) => fields(f, "arp", style, |fields| arp(fields, header)),
        Key::Nd(header) => fields(f, "nd", style, |fields| nd(fields, header)),
        Key::NdExt { reserved, options_type } => fields(f, "nd_ext", style, |fields| {
            fields.put(format_args!("nd_reserved={reserved:#x}"))?;
            fields.decimal("nd_options_type", options_type)
        }),
        Key::Mpls(labels) => fields(f, "mpls", style, |fields| mpls(fields, labels)),
        Key::Nsh(header) => fields(f, "nsh", Style::Terse, |fields| nsh(fields, header)),
        Key::Unknown(key) => unknown(f, key),
    }
}

fn parentheses<W: Write>(f: &mut W, name: &str, inner: impl FnOnce(&mut W) -> fmt::Result) -> fmt::Result {
    write!(f, "{name}(")?;
    inner(f)?;
    f.write_char(')')
}

fn fields<W: Write>(
    f: &mut W,
    name: &str,
    style: Style,
    inner: impl FnOnce(&mut Fields<'_, W>) -> fmt::Result,
) -> fmt::Result {
    parentheses(f, name, |f| inner(&mut Fields::new(f, style)))
}

/// `recirc_id(0x5/0xff)`
fn number<N: Bits + Into<u128>>(f: &mut impl Write, name: &str, field: &Masked<N>) -> fmt::Result {
    match field.is_exact() {
        true => write!(f, "{name}({})", Hex(field.value)),
        false => write!(f, "{name}({}/{})", Hex(field.value), Hex(field.mask)),
    }
}

/// format_u128
pub(super) fn label(f: &mut impl Write, field: &Masked<u128>) -> fmt::Result {
    write!(f, "{}", LongHex(&field.value.to_be_bytes()))?;
    if field.is_exact() { Ok(()) } else { write!(f, "/{}", LongHex(&field.mask.to_be_bytes())) }
}

fn rest_of_tuple<A>(fields: &mut Fields<'_, impl Write>, tuple: &CtTuple<A>, names: [&str; 2]) -> fmt::Result {
    fields.decimal("proto", &tuple.proto)?;
    fields.decimal(names[0], &tuple.src_port)?;
    fields.decimal(names[1], &tuple.dst_port)
}

/// format_vlan_tci
fn vlan(fields: &mut Fields<'_, impl Write>, tci: &Vlan) -> fmt::Result {
    let Masked { value, mask } = tci.vid;
    match mask {
        Vlan::VID_MASK => fields.put(format_args!("vid={value}"))?,
        _ if fields.shows(mask | value) => fields.put(format_args!("vid={value}/{mask:#x}"))?,
        _ => {}
    }
    let Masked { value, mask } = tci.pcp;
    match mask {
        Vlan::PCP_MASK => fields.put(format_args!("pcp={value}"))?,
        _ if fields.shows(mask | value) => fields.put(format_args!("pcp={value}/{mask:#x}"))?,
        _ => {}
    }
    if tci.cfi { Ok(()) } else { fields.put("cfi=0") }
}

fn ipv4(fields: &mut Fields<'_, impl Write>, ip: &Ipv4) -> fmt::Result {
    fields.ipv4("src", &ip.src)?;
    fields.ipv4("dst", &ip.dst)?;
    fields.decimal("proto", &ip.proto)?;
    fields.hex("tos", &ip.tos)?;
    fields.decimal("ttl", &ip.ttl)?;
    fragment(fields, ip.frag)
}

fn ipv6(fields: &mut Fields<'_, impl Write>, ip: &Ipv6) -> fmt::Result {
    fields.ipv6("src", &ip.src)?;
    fields.ipv6("dst", &ip.dst)?;
    let Masked { value, mask } = ip.label;
    if mask & Ipv6::LABEL_MASK == Ipv6::LABEL_MASK {
        fields.put(format_args!("label={}", Hex(value)))?;
    } else if fields.shows(mask) {
        fields.put(format_args!("label={}/{}", Hex(value), Hex(mask)))?;
    }
    fields.decimal("proto", &ip.proto)?;
    fields.hex("tclass", &ip.tclass)?;
    fields.decimal("hlimit", &ip.hlimit)?;
    fragment(fields, ip.frag)
}

fn fragment(fields: &mut Fields<'_, impl Write>, fragment: Option<Fragment>) -> fmt::Result {
    match fragment {
        Some(Fragment::No) => fields.put("frag=no"),
        Some(Fragment::First) => fields.put("frag=first"),
        Some(Fragment::Later) => fields.put("frag=later"),
        None => Ok(()),
    }
}

fn ports(fields: &mut Fields<'_, impl Write>, ports: &L4Ports) -> fmt::Result {
    fields.decimal("src", &ports.src)?;
    fields.decimal("dst", &ports.dst)
}

fn icmp(fields: &mut Fields<'_, impl Write>, icmp: &Icmp) -> fmt::Result {
    fields.decimal("type", &icmp.kind)?;
    fields.decimal("code", &icmp.code)
}

fn arp(fields: &mut Fields<'_, impl Write>, arp: &Arp) -> fmt::Result {
    fields.ipv4("sip", &arp.sip)?;
    fields.ipv4("tip", &arp.tip)?;
    fields.decimal("op", &arp.op)?;
    fields.mac("sha", &arp.sha)?;
    fields.mac("tha", &arp.tha)
}

fn nd(fields: &mut Fields<'_, impl Write>, nd: &Nd) -> fmt::Result {
    fields.ipv6("target", &nd.target)?;
    fields.mac("sll", &nd.sll)?;
    fields.mac("tll", &nd.tll)
}

/// format_mpls: the masks of all fields, or none.
fn mpls(fields: &mut Fields<'_, impl Write>, labels: &[MplsLabel]) -> fmt::Result {
    let exact = labels.iter().all(|entry| {
        entry.label.mask == MplsLabel::LABEL_MASK
            && entry.tc.mask == MplsLabel::TC_MASK
            && entry.ttl.is_exact()
            && entry.bos.mask == MplsLabel::BOS_MASK
    });
    labels.iter().try_for_each(|MplsLabel { label, tc, ttl, bos }| match exact {
        true => fields.put(format_args!("label={},tc={},ttl={},bos={}", label.value, tc.value, ttl.value, bos.value)),
        false => fields.put(format_args!(
            "label={}/{:#x},tc={}/{:x},ttl={}/{:#x},bos={}/{:x}",
            label.value, label.mask, tc.value, tc.mask, ttl.value, ttl.mask, bos.value, bos.mask
        )),
    })
}

/// format_nsh_key_mask
fn nsh(fields: &mut Fields<'_, impl Write>, nsh: &Nsh) -> fmt::Result {
    nsh_byte(fields, "flags", &nsh.flags)?;
    nsh_byte(fields, "ttl", &nsh.ttl)?;
    nsh_byte(fields, "mdtype", &nsh.mdtype)?;
    nsh_byte(fields, "np", &nsh.np)?;
    nsh_word(fields, "spi", &nsh.spi)?;
    nsh_byte(fields, "si", &nsh.si)?;
    nsh.context.iter().zip(["c1", "c2", "c3", "c4"]).try_for_each(|(word, name)| nsh_word(fields, name, word))
}

fn nsh_byte(fields: &mut Fields<'_, impl Write>, name: &str, field: &Masked<u8>) -> fmt::Result {
    match field.mask {
        0 => Ok(()),
        u8::MAX => fields.put(format_args!("{name}={}", field.value)),
        mask => fields.put(format_args!("{name}={:#04x}/{mask:#04x}", field.value)),
    }
}

fn nsh_word(fields: &mut Fields<'_, impl Write>, name: &str, field: &Masked<u32>) -> fmt::Result {
    match field.mask {
        0 => Ok(()),
        u32::MAX => fields.put(format_args!("{name}={:#x}", field.value)),
        mask => fields.put(format_args!("{name}={:#x}/{mask:#010x}", field.value)),
    }
}

/// `key40(01 02/ff ff)`
pub(super) fn unknown(f: &mut impl Write, key: &UnknownKey) -> fmt::Result {
    write!(f, "key{}({}", key.attribute, Bytes(&key.value))?;
    if let Some(mask) = &key.mask {
        write!(f, "/{}", Bytes(mask))?;
    }
    f.write_char(')')
}
