//! `tunnel(tun_id=0x7b,src=...,geneve({...}),flags(-df+csum+key))` (format_odp_tun_attr).

use crate::ovs::flow::masked::Masked;
use crate::ovs::flow::tunnel::{Erspan, Gbp, GeneveOption, Gtpu, Tunnel, Vxlan};

use super::cursor::Cursor;
use super::error::{Fail, Parsed, What};
use super::keys::{self, fields};

/// What is between the parentheses. In any order: the actions that somebody put in by hand stay as they were written.
pub(super) fn tunnel(cursor: &mut Cursor) -> Parsed<Tunnel> {
    let mut tunnel = Tunnel::default();
    let mut flags = None;
    if cursor.peek() == Some(b')') {
        return Ok(tunnel);
    }
    loop {
        let at = cursor.at();
        let name = cursor.word();
        let once = if cursor.take("=") {
            match name {
                "tun_id" => put(&mut tunnel.id, cursor.masked_number()?),
                "src" => put(&mut tunnel.src, cursor.masked_ipv4()?),
                "dst" => put(&mut tunnel.dst, cursor.masked_ipv4()?),
                "ipv6_src" => put(&mut tunnel.ipv6_src, cursor.masked_ipv6()?),
                "ipv6_dst" => put(&mut tunnel.ipv6_dst, cursor.masked_ipv6()?),
                "tos" => put(&mut tunnel.tos, cursor.masked_number()?),
                "ttl" => put(&mut tunnel.ttl, cursor.masked_number()?),
                "tp_src" => put(&mut tunnel.tp_src, cursor.masked_number()?),
                "tp_dst" => put(&mut tunnel.tp_dst, cursor.masked_number()?),
                _ => return Err(Fail { at, what: What::Unknown("field of tunnel(...)") }),
            }
        } else {
            cursor.expect("(")?;
            let once = match name {
                "vxlan" => put(&mut tunnel.vxlan, vxlan(cursor)?),
                "geneve" => put(&mut tunnel.geneve, geneve_options(cursor)?),
                "erspan" => put(&mut tunnel.erspan, erspan(cursor)?),
                "gtpu" => put(&mut tunnel.gtpu, gtpu(cursor)?),
                "flags" => put(&mut flags, cursor.flags()?),
                _ => {
                    tunnel.unknown.push(keys::unknown(cursor, name, at)?);
                    true
                }
            };
            cursor.expect(")")?;
            once
        };
        if !once {
            return Err(Fail { at, what: What::Twice });
        }
        if !cursor.take(",") {
            tunnel.flags = flags.unwrap_or_default();
            return Ok(tunnel);
        }
    }
}

/// Whether it was not there yet.
fn put<T>(place: &mut Option<T>, value: T) -> bool {
    place.replace(value).is_none()
}

fn vxlan(cursor: &mut Cursor) -> Parsed<Vxlan> {
    let mut vxlan = Vxlan::default();
    if cursor.peek() == Some(b')') {
        return Ok(vxlan);
    }
    loop {
        let at = cursor.at();
        let name = cursor.word();
        cursor.expect("(")?;
        if name != "gbp" {
            vxlan.unknown.push(keys::unknown(cursor, name, at)?);
        } else if !put(&mut vxlan.gbp, gbp(cursor)?) {
            return Err(Fail { at, what: What::Twice });
        }
        cursor.expect(")")?;
        if !cursor.take(",") {
            return Ok(vxlan);
        }
    }
}

fn gbp(cursor: &mut Cursor) -> Parsed<Gbp> {
    let mut gbp = Gbp::default();
    fields!(cursor:
        "id=" => gbp.id, Cursor::masked_number;
        "flags=" => gbp.flags, Cursor::masked_number;
    );
    Ok(gbp)
}

/// `{class=0x102,type=0x80,len=4,0xa/0xff}{...}`; also in `tnl_push`.
pub(super) fn geneve_options(cursor: &mut Cursor) -> Parsed<Vec<GeneveOption>> {
    let mut options = Vec::new();
    while cursor.take("{") {
        options.push(geneve_option(cursor)?);
        cursor.expect("}")?;
    }
    Ok(options)
}

fn geneve_option(cursor: &mut Cursor) -> Parsed<GeneveOption> {
    const LONGEST: u8 = 124;
    let (mut class, mut kind, mut len) = (Masked::default(), Masked::default(), Masked::<u8>::default());
    let at = cursor.at();
    fields!(cursor:
        "class=" => class, Cursor::masked_number;
        "type=" => kind, Cursor::masked_number;
        "len=" => len, Cursor::masked_number;
    );
    if len.value > LONGEST || len.value % 4 != 0 {
        return Err(Fail { at, what: What::Wrong("a GENEVE option has 0 to 124 bytes, a multiple of 4") });
    }
    let length = usize::from(len.value);
    if cursor.peek() == Some(b'}') {
        let zeros = || vec![0; length].into();
        return Ok(GeneveOption { class, kind, len, data: zeros(), data_mask: zeros() });
    }
    // Without -m a field of which no bit counts is left out, so this may be all there is.
    if cursor.at() != at {
        cursor.expect(",")?;
    }
    let data = cursor.long_number_of(length)?;
    let data_mask = if cursor.take("/") { cursor.long_number_of(length)? } else { vec![0xff; length].into() };
    Ok(GeneveOption { class, kind, len, data, data_mask })
}

fn erspan(cursor: &mut Cursor) -> Parsed<Erspan> {
    let mut version: Masked<u8> = Masked::default();
    let mut index = None;
    let (mut dir, mut hwid) = (None, None);
    let some = |cursor: &mut Cursor| cursor.masked_number().map(Some);
    let byte = |cursor: &mut Cursor| cursor.masked_number().map(Some);
    let at = cursor.at();
    fields!(cursor:
        "ver=" => version, Cursor::masked_number;
        "idx=" => index, some;
        "dir=" => dir, byte;
        "hwid=" => hwid, byte;
    );
    let version2 = dir.is_some() || hwid.is_some();
    match (version.value, index) {
        (1, Some(index)) if !version2 => Ok(Erspan::V1 { version_mask: version.mask, index }),
        // Without -m the version is left out where it does not count. It never does: OVS forgets the mask (seen with 3.1).
        (0, Some(index)) if version.is_wildcard() && !version2 => Ok(Erspan::V1 { version_mask: 0, index }),
        (2, None) => {
            Ok(Erspan::V2 { version_mask: version.mask, dir: dir.unwrap_or_default(), hwid: hwid.unwrap_or_default() })
        }
        (0, None) if version.is_wildcard() => {
            Ok(Erspan::V2 { version_mask: 0, dir: dir.unwrap_or_default(), hwid: hwid.unwrap_or_default() })
        }
        _ => Err(Fail { at, what: What::Wrong("ERSPAN is ver=1 with idx, or ver=2 with dir and hwid") }),
    }
}

fn gtpu(cursor: &mut Cursor) -> Parsed<Gtpu> {
    let mut gtpu = Gtpu::default();
    fields!(cursor:
        "flags=" => gtpu.flags, Cursor::masked_number;
        "msgtype=" => gtpu.msgtype, Cursor::masked_number;
    );
    Ok(gtpu)
}
