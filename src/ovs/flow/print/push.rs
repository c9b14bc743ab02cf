//! `tnl_push(...)` (format_odp_tnl_push_action).

use std::fmt::{self, Write};
use std::net::Ipv6Addr;

use crate::ovs::flow::push::{OuterIp, OuterUdp, TunnelHeader, TunnelPush};

use super::Style;
use super::fields::{Fields, Hex, Ipv6};
use super::tunnel;

pub(super) fn tunnel_push(f: &mut impl Write, push: &TunnelPush) -> fmt::Result {
    let TunnelPush { tunnel_port, size, kind, eth_dst, eth_src, eth_type, ip, header, out_port } = push;
    write!(f, "tnl_push(tnl_port({tunnel_port}),header(size={size},type={kind}")?;
    write!(f, ",eth(dst={eth_dst},src={eth_src},dl_type={eth_type:#06x}),")?;
    outer_ip(f, ip)?;
    self::header(f, header)?;
    write!(f, "),out_port({out_port}))")
}

fn outer_ip(f: &mut impl Write, ip: &OuterIp) -> fmt::Result {
    match ip {
        OuterIp::V4 { src, dst, proto, tos, ttl, frag } => {
            write!(f, "ipv4(src={src},dst={dst},proto={proto},tos={},ttl={ttl},frag={frag:#x}),", Hex(*tos))
        }
        OuterIp::V6 { src, dst, label, proto, tclass, hlimit } => {
            write!(f, "ipv6(src={},dst={},label={label}", Ipv6(*src), Ipv6(*dst))?;
            write!(f, ",proto={proto},tclass={tclass:#x},hlimit={hlimit}),")
        }
    }
}

fn outer_udp(f: &mut impl Write, udp: &OuterUdp) -> fmt::Result {
    write!(f, "udp(src={},dst={},csum={:#x}),", udp.src, udp.dst, udp.csum)
}

fn header(f: &mut impl Write, header: &TunnelHeader) -> fmt::Result {
    match header {
        TunnelHeader::Vxlan { udp, flags, vni } => {
            outer_udp(f, udp)?;
            write!(f, "vxlan(flags={flags:#x},vni={vni:#x})")
        }
        TunnelHeader::Geneve { udp, oam, critical, vni, options } => {
            outer_udp(f, udp)?;
            let (oam, critical) = (if *oam { "oam," } else { "" }, if *critical { "crit," } else { "" });
            write!(f, "geneve({oam}{critical}vni={vni:#x}")?;
            if let Some(options) = options {
                f.write_str(",options(")?;
                tunnel::geneve_options(f, options, Style::Terse)?;
                f.write_char(')')?;
            }
            f.write_char(')')
        }
        TunnelHeader::Gre { flags, proto, csum, key, seq } => {
            write!(f, "gre((flags={flags:#x},proto={proto:#x})")?;
            csum.iter().try_for_each(|csum| write!(f, ",csum={csum:#x}"))?;
            key.iter().try_for_each(|key| write!(f, ",key={key:#x}"))?;
            seq.iter().try_for_each(|seq| write!(f, ",seq={seq:#x}"))?;
            f.write_char(')')
        }
        TunnelHeader::Erspan1 { sid, index } => write!(f, "erspan(ver=1,sid={sid:#x},idx={index:#x})"),
        TunnelHeader::Erspan2 { sid, dir, hwid } => {
            write!(f, "erspan(ver=2,sid={sid:#x},dir={dir},hwid={hwid:#x})")
        }
        TunnelHeader::Gtpu { udp, flags, msgtype, teid } => {
            outer_udp(f, udp)?;
            write!(f, "gtpu(flags={flags:#x},msgtype={msgtype},teid={teid:#x})")
        }
        TunnelHeader::Srv6 { segments_left, segments } => srv6(f, *segments_left, segments),
    }
}

fn srv6(f: &mut impl Write, segments_left: u8, segments: &[Ipv6Addr]) -> fmt::Result {
    write!(f, "srv6(segments_left={segments_left},segs(")?;
    let mut fields = Fields::new(f, Style::Verbose);
    segments.iter().try_for_each(|segment| fields.put(Ipv6(*segment)))?;
    f.write_str("))")
}
