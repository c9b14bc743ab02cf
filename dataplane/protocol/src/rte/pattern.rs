//! What a rule matches, as items; and back.

use super::Refusal;
use super::header::{HEADERS, Header, Item, ItemKind};
use crate::rule::{Field, FieldMatch, Match, TunnelKind};

/// Types of VLAN tags.
const TPIDS: [u128; 2] = [0x8100, 0x88a8];
/// Presence in a tag control field; on the wire the bit means something else, and is not matched.
const TAGGED: u128 = 0x1000;
/// Offset and "more fragments" of IPv4 (RFC 791, section 3.1).
const FRAGMENT: u128 = 0x3fff;
const OFFSET: u128 = 0x1fff;
const MORE: u128 = 0x2000;
const DONT_FRAGMENT: u128 = 0x4000;
const UDP: u128 = 17;

/// Items from the outside, and what they do not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    /// The items, without that of the port.
    pub items: Vec<Item>,
    /// What no item has a place for.
    pub unmatched: Vec<FieldMatch>,
}

/// What is known of a VLAN tag.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tag {
    Open,
    Absent,
    Present,
}

/// The items of a match.
///
/// # Errors
/// [`Refusal::Field`].
pub fn pattern(matches: &Match) -> Result<Pattern, Refusal> {
    let mut rest: Vec<FieldMatch> = matches.fields().to_vec();
    let mut items = Vec::new();
    let kind = [TunnelKind::Vxlan, TunnelKind::Geneve]
        .into_iter()
        .find(|kind| matches.exact(Field::TunnelKind) == Some(kind.number().into()));
    if let Some(kind) = kind {
        around(matches, kind, &mut items, &mut rest)?;
    }
    frame(matches, &mut items, &mut rest)?;
    Ok(Pattern { items, unmatched: rest })
}

/// Moves a field into the item that has it.
fn take(rest: &mut Vec<FieldMatch>, item: &mut Item, is_tunnel: bool) {
    rest.retain(|one| {
        let place = |header: &&Header| {
            header.kind == item.kind && (if is_tunnel { header.tunnel } else { header.field }) == Some(one.field())
        };
        match HEADERS.iter().find(place) {
            Some(header) => item.put(header, one.value(), one.mask()),
            None => return true,
        }
        false
    });
}

fn said(rest: &mut Vec<FieldMatch>, fields: &[Field]) {
    rest.retain(|one| !fields.contains(&one.field()));
}

/// The headers of a tunnel: whole packets without VLAN tags, as the engine of a software NIC looks into.
fn around(matches: &Match, kind: TunnelKind, items: &mut Vec<Item>, rest: &mut Vec<FieldMatch>) -> Result<(), Refusal> {
    let has = |fields: &[Field]| fields.iter().any(|field| matches.get(*field).is_some());
    let ip = match (
        has(&[Field::TunnelIpv4Src, Field::TunnelIpv4Dst]),
        has(&[Field::TunnelIpv6Src, Field::TunnelIpv6Dst]),
    ) {
        (true, false) => ItemKind::Ipv4,
        (false, true) => ItemKind::Ipv6,
        _ => return Err(Refusal::Field(Field::TunnelKind, "one address of the tunnel has to be matched")),
    };
    let mut eth = Item::any(ItemKind::Eth);
    eth.put_named("type", if ip == ItemKind::Ipv4 { 0x0800 } else { 0x86dd }, 0xffff);
    let mut ip = Item::any(ip);
    ip.put_named("proto", UDP, 0xff);
    let mut udp = Item::any(ItemKind::Udp);
    let mut tunnel = Item::any(if kind == TunnelKind::Vxlan { ItemKind::Vxlan } else { ItemKind::Geneve });
    if ip.kind == ItemKind::Ipv4 {
        ip.put_named("fragment_offset", 0, FRAGMENT);
    } else {
        ip.next = Some(false);
    }
    if let Some(flags) = matches.get(Field::TunnelFlags).copied() {
        let left = tunnel_flags(&flags, &mut ip, &mut udp, &mut tunnel);
        said(rest, &[Field::TunnelFlags]);
        rest.extend(FieldMatch::new(Field::TunnelFlags, flags.value() & left, left).ok().filter(|_| left != 0));
    }
    said(rest, &[Field::TunnelKind]);
    for item in [&mut eth, &mut ip, &mut udp, &mut tunnel] {
        take(rest, item, true);
    }
    items.extend([eth, ip, udp, tunnel]);
    Ok(())
}

/// The tunnel's flags, each in its header; returns those that have no place.
fn tunnel_flags(flags: &FieldMatch, ip: &mut Item, udp: &mut Item, tunnel: &mut Item) -> u128 {
    let (value, mut left) = (flags.value(), flags.mask());
    // That there is no checksum is a value; that there is one is all others.
    if left & 1 != 0 && value & 1 == 0 {
        put_unnamed(udp, 0, 0xffff);
        left &= !1;
    }
    if left & 2 != 0 && ip.kind == ItemKind::Ipv4 {
        ip.put_named("fragment_offset", if value & 2 != 0 { DONT_FRAGMENT } else { 0 }, DONT_FRAGMENT);
        left &= !2;
    } else if left & 2 != 0 && value & 2 == 0 {
        // IPv6 has no such flag: it is never set.
        left &= !2;
    }
    if left & 4 != 0 && tunnel.kind == ItemKind::Geneve {
        put_unnamed(tunnel, value >> 2 & 1, 1);
        left &= !4;
    } else if left & 4 != 0 && value & 4 == 0 {
        left &= !4;
    }
    left
}

/// The one field of a header that the test program has no word for.
fn put_unnamed(item: &mut Item, value: u128, mask: u128) {
    if let Some(header) = HEADERS.iter().find(|header| header.kind == item.kind && header.word.is_none()) {
        item.put(header, value, mask);
    }
}

/// The frame itself, inside of a tunnel or not.
fn frame(matches: &Match, items: &mut Vec<Item>, rest: &mut Vec<FieldMatch>) -> Result<(), Refusal> {
    let kind = links(matches, items, rest)?;
    let has = |fields: &[Field]| fields.iter().any(|field| matches.get(*field).is_some());
    let ip = match kind {
        Some(0x0800) => ItemKind::Ipv4,
        Some(0x86dd) => ItemKind::Ipv6,
        Some(0x0806) => {
            let mut arp = Item::any(ItemKind::Arp);
            take(rest, &mut arp, false);
            if arp.mask.iter().any(|byte| *byte != 0) {
                items.push(arp);
            }
            return Ok(());
        }
        _ => return Ok(()),
    };
    let mut ip = Item::any(ip);
    take(rest, &mut ip, false);
    if let Some(value) = matches.exact(Field::IpFrag) {
        match (ip.kind, value) {
            (ItemKind::Ipv4, 0) => ip.put_named("fragment_offset", 0, FRAGMENT),
            (ItemKind::Ipv4, 1) => ip.put_named("fragment_offset", MORE, FRAGMENT),
            // From 1 to the greatest.
            (ItemKind::Ipv4, 3) => {
                ip.put_named("fragment_offset", 1, OFFSET);
                let mut last = Item::any(ip.kind);
                last.put_named("fragment_offset", OFFSET, OFFSET);
                // All other fields have one value: the least is the greatest.
                let both = |(last, spec): (u8, &u8)| last | spec;
                ip.last = Some(last.spec.into_iter().zip(&ip.spec).map(both).collect());
            }
            (ItemKind::Ipv6, 0) => ip.next = Some(false),
            _ => {}
        }
        if ip.kind == ItemKind::Ipv4 && value != 2 || value == 0 {
            said(rest, &[Field::IpFrag]);
        }
    }
    items.push(ip);
    let transport = match (matches.exact(Field::IpProto), kind) {
        (Some(6), _) => ItemKind::Tcp,
        (Some(17), _) => ItemKind::Udp,
        (Some(132), _) => ItemKind::Sctp,
        (Some(1), Some(0x0800)) => ItemKind::Icmp,
        (Some(58), Some(0x86dd)) => ItemKind::Icmp6,
        _ => return Ok(()),
    };
    if has(&[Field::SrcPort, Field::DstPort, Field::TcpFlags, Field::IcmpType, Field::IcmpCode]) {
        let mut item = Item::any(transport);
        take(rest, &mut item, false);
        if let Some(flags) = matches.get(Field::TcpFlags).filter(|_| transport == ItemKind::Tcp) {
            item.put_named("flags", flags.value() & 0xff, flags.mask() & 0xff);
            said(rest, &[Field::TcpFlags]);
            // Four more bits that are reserved have no place of their own in rte_flow's TCP header.
            let (value, mask) = (flags.value() & 0xf00, flags.mask() & 0xf00);
            rest.extend(FieldMatch::new(Field::TcpFlags, value, mask).ok().filter(|_| mask != 0));
        }
        items.push(item);
    }
    Ok(())
}

/// Ethernet and VLAN tags. Returns the type of what is behind them.
fn links(matches: &Match, items: &mut Vec<Item>, rest: &mut Vec<FieldMatch>) -> Result<Option<u128>, Refusal> {
    let mut eth = Item::any(ItemKind::Eth);
    take(rest, &mut eth, false);
    let exact = |field| match matches.get(field) {
        Some(found) if found.is_exact() => Ok(Some(found.value())),
        Some(_) => Err(Refusal::Field(field, "a part of a type is no type")),
        None => Ok(None),
    };
    let kind = exact(Field::EthType)?;
    if kind.is_some_and(|kind| kind < 0x600) {
        return Err(Refusal::Field(Field::EthType, "a frame with a length has no type"));
    }
    let tags = [(Field::VlanTpid, Field::VlanTci), (Field::InnerVlanTpid, Field::InnerVlanTci)];
    let [outer, inner] = [tag(matches, tags[0].1)?, tag(matches, tags[1].1)?];
    if inner != Tag::Open && outer != Tag::Present && (inner, outer) != (Tag::Absent, Tag::Absent) {
        return Err(Refusal::Field(Field::InnerVlanTci, "it is matched without the tag before it"));
    }
    if kind.is_some() && (outer == Tag::Open || outer == Tag::Present && inner == Tag::Open) {
        return Err(Refusal::Field(Field::EthType, "whether VLAN tags are before it has to be matched"));
    }
    if (outer, inner) == (Tag::Absent, Tag::Absent) {
        return Err(Refusal::Field(Field::InnerVlanTci, "there is none without the first"));
    }
    items.push(eth);
    for ((tpid, tci), state) in tags.into_iter().zip([outer, inner]) {
        let (tpid_value, this) = (exact(tpid)?, items.len() - 1);
        match state {
            Tag::Open if tpid_value.is_some() => {
                return Err(Refusal::Field(tpid, "it is matched without the tag"));
            }
            Tag::Open => break,
            Tag::Absent => {
                if tpid_value.is_some() {
                    return Err(Refusal::Field(tpid, "a tag that is not there has none"));
                }
                match kind {
                    Some(kind) => put_type(&mut items[this], kind),
                    None => items[this].next = Some(false),
                }
                break;
            }
            Tag::Present => {
                match tpid_value {
                    Some(tpid) => put_type(&mut items[this], tpid),
                    None => items[this].next = Some(true),
                }
                let mut vlan = Item::any(ItemKind::Vlan);
                let (value, mask) = matches.get(tci).map_or((0, 0), |tci| (tci.value(), tci.mask()));
                vlan.put_named("tci", value, mask & !TAGGED);
                items.push(vlan);
            }
        }
    }
    if let (Tag::Present, Some(kind), Some(last)) = (inner, kind, items.last_mut()) {
        put_type(last, kind);
    }
    said(rest, &[Field::VlanTpid, Field::VlanTci, Field::InnerVlanTpid, Field::InnerVlanTci, Field::EthType]);
    Ok(kind)
}

fn put_type(item: &mut Item, kind: u128) {
    let word = if item.kind == ItemKind::Vlan { "inner_type" } else { "type" };
    item.put_named(word, kind, 0xffff);
}

fn tag(matches: &Match, field: Field) -> Result<Tag, Refusal> {
    match matches.get(field) {
        None => Ok(Tag::Open),
        Some(tag) if tag.mask() & TAGGED == 0 => {
            Err(Refusal::Field(field, "it is matched without whether there is a tag"))
        }
        Some(tag) if tag.value() & TAGGED != 0 => Ok(Tag::Present),
        Some(tag) if tag.mask() == TAGGED => Ok(Tag::Absent),
        Some(_) => Err(Refusal::Field(field, "a tag that is not there is zero: match vlan_tci=0x0/0x1000")),
    }
}

/// The fields that items match: the opposite of [`pattern`].
pub(super) fn fields(items: &[Item]) -> Vec<FieldMatch> {
    let mut fields = Vec::new();
    let tunnel = items.iter().position(|item| matches!(item.kind, ItemKind::Vxlan | ItemKind::Geneve));
    let (around, frame) = items.split_at(tunnel.map_or(0, |at| at + 1));
    for item in around {
        straight(item, true, &mut fields);
        let (value, mask) = item.named("fragment_offset");
        if mask & DONT_FRAGMENT != 0 {
            let flag = if value & DONT_FRAGMENT != 0 { 2 } else { 0 };
            fields.extend(FieldMatch::new(Field::TunnelFlags, flag, 2));
        }
    }
    if let Some(at) = tunnel {
        let kind = if items[at].kind == ItemKind::Vxlan { TunnelKind::Vxlan } else { TunnelKind::Geneve };
        fields.extend(FieldMatch::exact(Field::TunnelKind, kind.number().into()));
    }
    for item in frame {
        straight(item, false, &mut fields);
    }
    tags(frame, &mut fields);
    for item in frame {
        let fragment = match (item.kind, item.named("fragment_offset"), item.next) {
            (ItemKind::Ipv4, (0, FRAGMENT), _) | (ItemKind::Ipv6, _, Some(false)) => Some(0),
            (ItemKind::Ipv4, (MORE, FRAGMENT), _) => Some(1),
            (ItemKind::Ipv4, (1, OFFSET), _) => Some(3),
            _ => None,
        };
        fields.extend(fragment.and_then(|value| FieldMatch::exact(Field::IpFrag, value).ok()));
        let (value, mask) = item.named("flags");
        fields.extend(FieldMatch::new(Field::TcpFlags, value, mask).ok().filter(|_| mask != 0));
    }
    fields
}

fn straight(item: &Item, is_tunnel: bool, fields: &mut Vec<FieldMatch>) {
    for header in HEADERS.iter().filter(|header| header.kind == item.kind) {
        let field = if is_tunnel { header.tunnel } else { header.field };
        let (value, mask) = (header.get(&item.spec), header.get(&item.mask));
        let bits = field.map_or(0, |field: Field| field.mask());
        let found = field.filter(|_| mask & bits != 0).map(|field| FieldMatch::new(field, value & bits, mask & bits));
        fields.extend(found.and_then(Result::ok));
    }
}

fn tags(frame: &[Item], fields: &mut Vec<FieldMatch>) {
    let places = [(Field::VlanTpid, Field::VlanTci), (Field::InnerVlanTpid, Field::InnerVlanTci)];
    let links = frame.iter().take_while(|item| matches!(item.kind, ItemKind::Eth | ItemKind::Vlan)).count();
    for at in 0..links {
        let word = if frame[at].kind == ItemKind::Eth { "type" } else { "inner_type" };
        let (kind, mask) = frame[at].named(word);
        let is_last = at + 1 == links;
        if mask != 0 && is_last && !TPIDS.contains(&kind) {
            fields.extend(FieldMatch::exact(Field::EthType, kind));
        }
        let Some((tpid, tci)) = places.get(at) else { continue };
        if is_last {
            let is_absent = frame[at].next == Some(false) || mask != 0 && !TPIDS.contains(&kind);
            fields.extend(FieldMatch::new(*tci, 0, TAGGED).ok().filter(|_| is_absent));
        } else {
            if mask != 0 {
                fields.extend(FieldMatch::exact(*tpid, kind));
            }
            let (value, mask) = frame[at + 1].named("tci");
            fields.extend(FieldMatch::new(*tci, value | TAGGED, mask | TAGGED));
        }
    }
}
