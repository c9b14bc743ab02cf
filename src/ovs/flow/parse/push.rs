//! `tnl_push(tnl_port(4),header(size=50,type=4,eth(...),ipv4(...),udp(...),vxlan(...)),out_port(2))` (format_odp_tnl_push_action).

use crate::ovs::flow::push::{OuterIp, OuterUdp, TunnelHeader, TunnelPush};

use super::cursor::Cursor;
use super::error::{Fail, Parsed, What};
use super::tunnel;

/// What is between the parentheses.
pub(super) fn tunnel_push(cursor: &mut Cursor) -> Parsed<TunnelPush> {
    cursor.expect("tnl_port(")?;
    let tunnel_port = cursor.port()?;
    cursor.expect("),header(size=")?;
    let size = cursor.number()?;
    cursor.expect(",type=")?;
    let kind = cursor.number()?;
    cursor.expect(",eth(dst=")?;
    let eth_dst = cursor.mac()?;
    cursor.expect(",src=")?;
    let eth_src = cursor.mac()?;
    cursor.expect(",dl_type=")?;
    let eth_type = cursor.number()?;
    cursor.expect("),")?;
    let ip = outer_ip(cursor)?;
    let header = header(cursor)?;
    cursor.expect("),out_port(")?;
    let out_port = cursor.port()?;
    cursor.expect(")")?;
    Ok(TunnelPush { tunnel_port, size, kind, eth_dst, eth_src, eth_type, ip, header, out_port })
}

fn outer_ip(cursor: &mut Cursor) -> Parsed<OuterIp> {
    if cursor.take("ipv4(src=") {
        let src = cursor.ipv4()?;
        cursor.expect(",dst=")?;
        let dst = cursor.ipv4()?;
        cursor.expect(",proto=")?;
        let proto = cursor.number()?;
        cursor.expect(",tos=")?;
        let tos = cursor.number()?;
        cursor.expect(",ttl=")?;
        let ttl = cursor.number()?;
        cursor.expect(",frag=")?;
        let frag = cursor.number()?;
        cursor.expect("),")?;
        return Ok(OuterIp::V4 { src, dst, proto, tos, ttl, frag });
    }
    cursor.expect("ipv6(src=")?;
    let src = cursor.ipv6()?;
    cursor.expect(",dst=")?;
    let dst = cursor.ipv6()?;
    cursor.expect(",label=")?;
    let label = cursor.narrow(0xf_ffff)?;
    cursor.expect(",proto=")?;
    let proto = cursor.number()?;
    cursor.expect(",tclass=")?;
    let tclass = cursor.number()?;
    cursor.expect(",hlimit=")?;
    let hlimit = cursor.number()?;
    cursor.expect("),")?;
    Ok(OuterIp::V6 { src, dst, label, proto, tclass, hlimit })
}

fn outer_udp(cursor: &mut Cursor) -> Parsed<Option<OuterUdp>> {
    if !cursor.take("udp(src=") {
        return Ok(None);
    }
    let src = cursor.number()?;
    cursor.expect(",dst=")?;
    let dst = cursor.number()?;
    cursor.expect(",csum=")?;
    let csum = cursor.number()?;
    cursor.expect("),")?;
    Ok(Some(OuterUdp { src, dst, csum }))
}

fn header(cursor: &mut Cursor) -> Parsed<TunnelHeader> {
    let udp = outer_udp(cursor)?;
    let at = cursor.at();
    let name = cursor.word();
    let header = match (name, udp) {
        ("vxlan", Some(udp)) => {
            cursor.expect("(flags=")?;
            let flags = cursor.number()?;
            cursor.expect(",vni=")?;
            TunnelHeader::Vxlan { udp, flags, vni: cursor.narrow(0xff_ffff)? }
        }
        ("geneve", Some(udp)) => geneve(cursor, udp)?,
        ("gtpu", Some(udp)) => {
            cursor.expect("(flags=")?;
            let flags = cursor.number()?;
            cursor.expect(",msgtype=")?;
            let msgtype = cursor.number()?;
            cursor.expect(",teid=")?;
            TunnelHeader::Gtpu { udp, flags, msgtype, teid: cursor.number()? }
        }
        ("gre", None) => gre(cursor)?,
        ("erspan", None) => erspan(cursor)?,
        ("srv6", None) => srv6(cursor)?,
        _ => return Err(Fail { at, what: What::Unknown("tunnel header") }),
    };
    cursor.expect(")")?;
    Ok(header)
}

fn geneve(cursor: &mut Cursor, udp: OuterUdp) -> Parsed<TunnelHeader> {
    cursor.expect("(")?;
    let oam = cursor.take("oam,");
    let critical = cursor.take("crit,");
    cursor.expect("vni=")?;
    let vni = cursor.narrow(0xff_ffff)?;
    let mut options = None;
    if cursor.take(",options(") {
        options = Some(tunnel::geneve_options(cursor)?);
        cursor.expect(")")?;
    }
    Ok(TunnelHeader::Geneve { udp, oam, critical, vni, options })
}

fn gre(cursor: &mut Cursor) -> Parsed<TunnelHeader> {
    cursor.expect("((flags=")?;
    let flags = cursor.number()?;
    cursor.expect(",proto=")?;
    let proto = cursor.number()?;
    cursor.expect(")")?;
    let csum = if cursor.take(",csum=") { Some(cursor.number()?) } else { None };
    let key = if cursor.take(",key=") { Some(cursor.number()?) } else { None };
    let seq = if cursor.take(",seq=") { Some(cursor.number()?) } else { None };
    Ok(TunnelHeader::Gre { flags, proto, csum, key, seq })
}

fn erspan(cursor: &mut Cursor) -> Parsed<TunnelHeader> {
    cursor.expect("(ver=")?;
    if cursor.take("1,sid=") {
        let sid = cursor.number()?;
        cursor.expect(",idx=")?;
        return Ok(TunnelHeader::Erspan1 { sid, index: cursor.number()? });
    }
    cursor.expect("2,sid=")?;
    let sid = cursor.number()?;
    cursor.expect(",dir=")?;
    let dir = cursor.number()?;
    cursor.expect(",hwid=")?;
    Ok(TunnelHeader::Erspan2 { sid, dir, hwid: cursor.number()? })
}

fn srv6(cursor: &mut Cursor) -> Parsed<TunnelHeader> {
    cursor.expect("(segments_left=")?;
    let segments_left = cursor.number()?;
    cursor.expect(",segs(")?;
    let mut segments = vec![cursor.ipv6()?];
    while cursor.take(",") {
        segments.push(cursor.ipv6()?);
    }
    cursor.expect(")")?;
    Ok(TunnelHeader::Srv6 { segments_left, segments })
}
