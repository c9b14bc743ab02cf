//! `ct(commit,zone=5,mark=0x1/0xff,nat(src=10.0.0.1-10.0.0.9:1024-65535))` (format_odp_conntrack_action).

use std::net::IpAddr;

use crate::ovs::flow::action::{Conntrack, Nat, NatRange};

use super::cursor::Cursor;
use super::error::{Fail, Parsed, What};

/// What is between the parentheses.
pub(super) fn conntrack(cursor: &mut Cursor) -> Parsed<Conntrack> {
    let mut ct = Conntrack::default();
    let mut first = true;
    ct.commit = cursor.field(&mut first, "commit");
    ct.force_commit = cursor.field(&mut first, "force_commit");
    if cursor.field(&mut first, "zone=") {
        ct.zone = cursor.number()?;
    }
    if cursor.field(&mut first, "mark=") {
        ct.mark = Some(cursor.masked_number()?);
    }
    if cursor.field(&mut first, "label=") {
        ct.label = Some(cursor.masked_number()?);
    }
    if cursor.field(&mut first, "helper=") {
        ct.helper = Some(name(cursor)?);
    }
    if cursor.field(&mut first, "timeout=") {
        let at = cursor.at();
        let timeout = name(cursor)?;
        // OVS before 3.0 forgot the comma behind it: `timeout=shortnat(src)`.
        match timeout.strip_suffix("nat") {
            Some(timeout) if cursor.peek() == Some(b'(') && !timeout.is_empty() => {
                ct.timeout = Some(timeout.into());
                ct.nat = Some(nat(cursor)?);
                return Ok(ct);
            }
            Some(_) => return Err(Fail { at, what: What::Wrong("a timeout that may be one with nat behind it") }),
            None => ct.timeout = Some(timeout),
        }
    }
    if cursor.field(&mut first, "nat") {
        ct.nat = Some(nat(cursor)?);
    }
    Ok(ct)
}

fn name(cursor: &mut Cursor) -> Parsed<Box<str>> {
    let name = cursor.word();
    if name.is_empty() { cursor.fail(What::Expected("a name")) } else { Ok(name.into()) }
}

/// What is behind `nat`.
fn nat(cursor: &mut Cursor) -> Parsed<Nat> {
    if !cursor.take("(") {
        return Ok(Nat::Existing);
    }
    let nat = match cursor.take("src") {
        true => Nat::Src(range(cursor)?),
        false if cursor.take("dst") => Nat::Dst(range(cursor)?),
        false => return cursor.fail(What::Expected("src or dst")),
    };
    cursor.expect(")")?;
    Ok(nat)
}

fn range(cursor: &mut Cursor) -> Parsed<NatRange> {
    let mut range = NatRange::default();
    if cursor.take("=") {
        let at = cursor.at();
        let min = address(cursor)?;
        range.address_min = Some(min);
        if cursor.take("-") {
            let max = address(cursor)?;
            if max.is_ipv4() != min.is_ipv4() || max <= min {
                return Err(Fail { at, what: What::Wrong("the last address is not behind the first") });
            }
            range.address_max = Some(max);
        }
        if cursor.take(":") {
            let at = cursor.at();
            let min: u16 = cursor.number()?;
            range.port_min = Some(min);
            if cursor.take("-") {
                range.port_max = Some(cursor.number()?);
            }
            if min == 0 || range.port_max.is_some_and(|max| max <= min) {
                return Err(Fail { at, what: What::Wrong("the last port is not behind the first, or the first is 0") });
            }
        }
    }
    range.persistent = cursor.take(",persistent");
    range.hash = cursor.take(",hash");
    range.random = cursor.take(",random");
    Ok(range)
}

/// An IPv6 address has brackets where a port follows.
fn address(cursor: &mut Cursor) -> Parsed<IpAddr> {
    if cursor.take("[") {
        let address = cursor.ipv6()?;
        cursor.expect("]")?;
        return Ok(address.into());
    }
    let at = cursor.at();
    let text = cursor.take_while(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
    // `10.0.0.1:80`: the colon is the port's.
    match text.split_once(':') {
        Some((v4, _)) if v4.contains('.') => {
            cursor.back_to(at);
            cursor.ipv4().map(IpAddr::V4)
        }
        _ => text.parse().map_err(|_| Fail { at, what: What::Expected("an IP address") }),
    }
}
