//! `recirc_id(0),in_port(1),eth(...),eth_type(0x0800),ipv4(...)`: what a flow matches (format_odp_key_attr__).
//!
//! A field that is missing is one of which no bit counts: without `-m` OVS leaves those out.

use std::mem::discriminant;

use crate::ovs::flow::key::{
    Arp, CtTuple, Fragment, Icmp, Ipv4, Ipv6, Key, L4Ports, MplsLabel, Nd, Nsh, UnknownKey, Vlan,
};
use crate::ovs::flow::masked::{Bits, Masked};

use super::cursor::Cursor;
use super::error::{Fail, Parsed, What};
use super::tunnel;

/// Keys, comma between them, up to what ends the list.
pub(super) fn list(cursor: &mut Cursor) -> Parsed<Vec<Key>> {
    // Without -m nothing is left of keys that match everything.
    if cursor.take("<empty>") || cursor.starts_with(", ") {
        return Ok(Vec::new());
    }
    let mut keys = Vec::with_capacity(16);
    loop {
        let at = cursor.at();
        let key = key(cursor)?;
        // There are some thirty kinds; of the unknown ones there may be several.
        let twice = |other: &Key| discriminant(other) == discriminant(&key);
        if !matches!(key, Key::Unknown(_)) && keys.iter().any(twice) {
            return Err(Fail { at, what: What::Twice });
        }
        keys.push(key);
        // The comma of `, packets:` has a space behind it.
        if cursor.starts_with(", ") || !cursor.take(",") {
            return Ok(keys);
        }
    }
}

/// One key with its name and parentheses.
pub(super) fn key(cursor: &mut Cursor) -> Parsed<Key> {
    let at = cursor.at();
    let name = cursor.word();
    if cursor.peek() != Some(b'(') {
        return Err(Fail { at, what: What::Expected("a field such as eth(...)") });
    }
    cursor.expect("(")?;
    let key = value(cursor, name, at)?;
    if cursor.take(")") {
        return Ok(key);
    }
    cursor.fail(list_name(&key).map_or(What::Expected("\")\" at the end of this field"), What::NotIn))
}

fn value(cursor: &mut Cursor, name: &str, at: usize) -> Parsed<Key> {
    Ok(match name {
        "recirc_id" => Key::RecircId(cursor.masked_number()?),
        "dp_hash" => Key::DpHash(cursor.masked_number()?),
        "skb_priority" => Key::SkbPriority(cursor.masked_number()?),
        "skb_mark" => Key::SkbMark(cursor.masked_number()?),
        "ct_state" => Key::CtState(cursor.numeric_flags()?),
        "ct_zone" => Key::CtZone(cursor.masked_number()?),
        "ct_mark" => Key::CtMark(cursor.masked_number()?),
        "ct_label" => Key::CtLabel(cursor.masked_number()?),
        "ct_tuple4" => Key::CtTuple4(Box::new(tuple(cursor, Cursor::masked_ipv4, ["tp_src=", "tp_dst="])?)),
        "ct_tuple6" => Key::CtTuple6(Box::new(tuple(cursor, Cursor::masked_ipv6, ["src_port=", "dst_port="])?)),
        "tunnel" => Key::Tunnel(Box::new(tunnel::tunnel(cursor)?)),
        "in_port" => in_port(cursor)?,
        "packet_type" => packet_type(cursor)?,
        "eth" => eth(cursor)?,
        "eth_type" => eth_type(cursor)?,
        "vlan" => Key::Vlan(vlan(cursor)?),
        "encap" if cursor.peek() == Some(b')') => Key::Encap(Vec::new()),
        "encap" => Key::Encap(cursor.nested(list)?),
        "ipv4" => Key::Ipv4(ipv4(cursor)?),
        "ipv6" => Key::Ipv6(Box::new(ipv6(cursor)?)),
        "tcp" => Key::Tcp(ports(cursor)?),
        "udp" => Key::Udp(ports(cursor)?),
        "sctp" => Key::Sctp(ports(cursor)?),
        "tcp_flags" => Key::TcpFlags(cursor.flags()?),
        "icmp" => Key::Icmp(icmp(cursor)?),
        "icmpv6" => Key::Icmpv6(icmp(cursor)?),
        "arp" => Key::Arp(Box::new(arp(cursor)?)),
        "nd" => Key::Nd(Box::new(nd(cursor)?)),
        "nd_ext" => nd_ext(cursor)?,
        "mpls" => Key::Mpls(mpls(cursor)?),
        "nsh" => Key::Nsh(Box::new(nsh(cursor)?)),
        _ => Key::Unknown(Box::new(unknown(cursor, name, at)?)),
    })
}

/// How OVS calls what this key is written as.
fn list_name(key: &Key) -> Option<&'static str> {
    Some(match key {
        Key::Tunnel(_) => "tunnel(...)",
        Key::Eth { .. } => "eth(...)",
        Key::Vlan(_) => "vlan(...)",
        Key::Ipv4(_) => "ipv4(...)",
        Key::Ipv6(_) => "ipv6(...)",
        Key::Arp(_) => "arp(...)",
        Key::Nd(_) => "nd(...)",
        Key::Nsh(_) => "nsh(...)",
        Key::Mpls(_) => "mpls(...)",
        Key::Encap(_) => "encap(...)",
        _ => return None,
    })
}

/// Reads a field where it stands here, and leaves it as it is where not.
macro_rules! fields {
    ($cursor:ident: $($name:expr => $place:expr, $read:expr;)*) => {{
        let mut first = true;
        $(if $cursor.field(&mut first, $name) {
            $place = $read($cursor)?;
        })*
    }};
}
pub(super) use fields;

fn tuple<'a, A: Bits>(
    cursor: &mut Cursor<'a>,
    address: impl FnOnce(&mut Cursor<'a>) -> Parsed<Masked<A>> + Copy,
    ports: [&str; 2],
) -> Parsed<CtTuple<A>> {
    let mut tuple = CtTuple {
        src: Masked::default(),
        dst: Masked::default(),
        proto: Masked::default(),
        src_port: Masked::default(),
        dst_port: Masked::default(),
    };
    fields!(cursor:
        "src=" => tuple.src, address;
        "dst=" => tuple.dst, address;
        "proto=" => tuple.proto, Cursor::masked_number;
        ports[0] => tuple.src_port, Cursor::masked_number;
        ports[1] => tuple.dst_port, Cursor::masked_number;
    );
    Ok(tuple)
}

fn in_port(cursor: &mut Cursor) -> Parsed<Key> {
    let at = cursor.at();
    // A number may have a mask behind it; a name has none.
    let number = cursor.take_while(|byte| byte.is_ascii_digit());
    if !number.is_empty() && cursor.take("/") {
        let port = cursor.port_of(number, at)?;
        return Ok(Key::InPort { port, mask: cursor.number()? });
    }
    let rest = cursor.word();
    let port =
        if rest.is_empty() { cursor.port_of(number, at)? } else { cursor.port_of(&[number, rest].concat(), at)? };
    Ok(Key::InPort { port, mask: u32::MAX })
}

fn packet_type(cursor: &mut Cursor) -> Parsed<Key> {
    let (mut ns, mut id) = (Masked::default(), Masked::default());
    fields!(cursor:
        "ns=" => ns, Cursor::masked_number;
        "id=" => id, Cursor::masked_number;
    );
    Ok(Key::PacketType { ns, id })
}

fn eth(cursor: &mut Cursor) -> Parsed<Key> {
    let (mut src, mut dst) = (Masked::default(), Masked::default());
    fields!(cursor:
        "src=" => src, Cursor::masked_mac;
        "dst=" => dst, Cursor::masked_mac;
    );
    Ok(Key::Eth { src, dst })
}

/// `0x0800`, with a mask `0x0000/0x0000`; but `0/0xffff`, with a lone 0, is a frame without an Ethertype.
fn eth_type(cursor: &mut Cursor) -> Parsed<Key> {
    if cursor.take("0/") {
        return Ok(Key::NoEthType { mask: cursor.number()? });
    }
    Ok(Key::EthType(cursor.masked_number()?))
}

fn vlan(cursor: &mut Cursor) -> Parsed<Vlan> {
    let mut vlan = Vlan { vid: Masked::default(), pcp: Masked::default(), cfi: true };
    fields!(cursor:
        "vid=" => vlan.vid, |cursor: &mut Cursor| cursor.masked_narrow(Vlan::VID_MASK);
        "pcp=" => vlan.pcp, |cursor: &mut Cursor| cursor.masked_narrow(Vlan::PCP_MASK);
        "cfi=0" => vlan.cfi, |_: &mut Cursor| Ok(false);
    );
    Ok(vlan)
}

fn ipv4(cursor: &mut Cursor) -> Parsed<Ipv4> {
    let mut ip = Ipv4::default();
    fields!(cursor:
        "src=" => ip.src, Cursor::masked_ipv4;
        "dst=" => ip.dst, Cursor::masked_ipv4;
        "proto=" => ip.proto, Cursor::masked_number;
        "tos=" => ip.tos, Cursor::masked_number;
        "ttl=" => ip.ttl, Cursor::masked_number;
        "frag=" => ip.frag, fragment;
    );
    Ok(ip)
}

fn ipv6(cursor: &mut Cursor) -> Parsed<Ipv6> {
    let mut ip = Ipv6::default();
    fields!(cursor:
        "src=" => ip.src, Cursor::masked_ipv6;
        "dst=" => ip.dst, Cursor::masked_ipv6;
        "label=" => ip.label, |cursor: &mut Cursor| cursor.masked_narrow(Ipv6::LABEL_MASK);
        "proto=" => ip.proto, Cursor::masked_number;
        "tclass=" => ip.tclass, Cursor::masked_number;
        "hlimit=" => ip.hlimit, Cursor::masked_number;
        "frag=" => ip.frag, fragment;
    );
    Ok(ip)
}

fn fragment(cursor: &mut Cursor) -> Parsed<Option<Fragment>> {
    let words = [("no", Fragment::No), ("first", Fragment::First), ("later", Fragment::Later)];
    let found = words.into_iter().find(|(word, _)| cursor.take(word));
    found.map_or_else(|| cursor.fail(What::Expected("no, first or later")), |(_, fragment)| Ok(Some(fragment)))
}

fn ports(cursor: &mut Cursor) -> Parsed<L4Ports> {
    let mut ports = L4Ports::default();
    fields!(cursor:
        "src=" => ports.src, Cursor::masked_number;
        "dst=" => ports.dst, Cursor::masked_number;
    );
    Ok(ports)
}

fn icmp(cursor: &mut Cursor) -> Parsed<Icmp> {
    let mut icmp = Icmp::default();
    fields!(cursor:
        "type=" => icmp.kind, Cursor::masked_number;
        "code=" => icmp.code, Cursor::masked_number;
    );
    Ok(icmp)
}

fn arp(cursor: &mut Cursor) -> Parsed<Arp> {
    let mut arp = Arp::default();
    fields!(cursor:
        "sip=" => arp.sip, Cursor::masked_ipv4;
        "tip=" => arp.tip, Cursor::masked_ipv4;
        "op=" => arp.op, Cursor::masked_number;
        "sha=" => arp.sha, Cursor::masked_mac;
        "tha=" => arp.tha, Cursor::masked_mac;
    );
    Ok(arp)
}

fn nd(cursor: &mut Cursor) -> Parsed<Nd> {
    let mut nd = Nd::default();
    fields!(cursor:
        "target=" => nd.target, Cursor::masked_ipv6;
        "sll=" => nd.sll, Cursor::masked_mac;
        "tll=" => nd.tll, Cursor::masked_mac;
    );
    Ok(nd)
}

fn nd_ext(cursor: &mut Cursor) -> Parsed<Key> {
    cursor.expect("nd_reserved=")?;
    let reserved = cursor.number()?;
    let mut options_type = Masked::default();
    if cursor.take(",nd_options_type=") {
        options_type = cursor.masked_number()?;
    }
    Ok(Key::NdExt { reserved, options_type })
}

fn mpls(cursor: &mut Cursor) -> Parsed<Vec<MplsLabel>> {
    let mut labels = Vec::new();
    let mut first = true;
    while cursor.field(&mut first, "label=") {
        let label = cursor.masked_narrow(MplsLabel::LABEL_MASK)?;
        cursor.expect(",tc=")?;
        let tc = cursor.masked_narrow(MplsLabel::TC_MASK)?;
        cursor.expect(",ttl=")?;
        let ttl = cursor.masked_number()?;
        cursor.expect(",bos=")?;
        labels.push(MplsLabel { label, tc, ttl, bos: cursor.masked_narrow(MplsLabel::BOS_MASK)? });
    }
    if labels.is_empty() { cursor.fail(What::Text("label=")) } else { Ok(labels) }
}

/// Also for `set(nsh(...))`.
fn nsh(cursor: &mut Cursor) -> Parsed<Nsh> {
    let mut nsh = Nsh::default();
    fields!(cursor:
        "flags=" => nsh.flags, Cursor::masked_number;
        "ttl=" => nsh.ttl, Cursor::masked_number;
        "mdtype=" => nsh.mdtype, Cursor::masked_number;
        "np=" => nsh.np, Cursor::masked_number;
        "spi=" => nsh.spi, Cursor::masked_number;
        "si=" => nsh.si, Cursor::masked_number;
        "c1=" => nsh.context[0], Cursor::masked_number;
        "c2=" => nsh.context[1], Cursor::masked_number;
        "c3=" => nsh.context[2], Cursor::masked_number;
        "c4=" => nsh.context[3], Cursor::masked_number;
    );
    Ok(nsh)
}

/// `key40(01 02/ff ff)`: what OVS did not know.
pub(super) fn unknown(cursor: &mut Cursor, name: &str, at: usize) -> Parsed<UnknownKey> {
    let attribute = name.strip_prefix("key").and_then(|number| number.parse().ok());
    let attribute = attribute.ok_or(Fail { at, what: What::Unknown("field") })?;
    let value = cursor.bytes(" ")?;
    let mask = if cursor.take("/") { Some(cursor.bytes(" ")?) } else { None };
    if mask.as_ref().is_some_and(|mask| mask.len() != value.len()) {
        return Err(Fail { at, what: What::Wrong("value and mask differ in length") });
    }
    Ok(UnknownKey { attribute, value, mask })
}
