//! The headers of a tunnel as bytes.

use std::net::IpAddr;

use crate::rule::{TunnelKind, TunnelPush, has_critical};

const ETHERNET: usize = 14;
const UDP: usize = 8;

/// Ethernet, IP, UDP, and VXLAN or GENEVE. The device fills in the lengths, IPv4's checksum and, where none is given, a UDP source port.
/// Nothing where a device cannot: a checksum of UDP.
pub(super) fn headers(push: &TunnelPush) -> Option<Vec<u8>> {
    if push.checksum {
        return None;
    }
    let options = push.option_bytes()?;
    let mut bytes = Vec::with_capacity(ETHERNET + 40 + UDP + 8 + options.len());
    bytes.extend(push.eth_dst.0);
    bytes.extend(push.eth_src.0);
    match (push.src, push.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let flags = if push.dont_fragment { 0x40 } else { 0 };
            bytes.extend([0x08, 0x00, 0x45, push.tos, 0, 0, 0, 0, flags, 0, push.ttl, 17, 0, 0]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            bytes.extend([0x86, 0xdd, 0x60 | push.tos >> 4, push.tos << 4, 0, 0, 0, 0, 17, push.ttl]);
            bytes.extend(src.octets());
            bytes.extend(dst.octets());
        }
        _ => return None,
    }
    bytes.extend(push.src_port.unwrap_or(0).to_be_bytes());
    bytes.extend(push.dst_port.to_be_bytes());
    bytes.extend([0; 4]);
    let [_, a, b, c] = push.id.to_be_bytes();
    match push.kind {
        TunnelKind::Vxlan => bytes.extend([0x08, 0, 0, 0]),
        // Ethernet inside (RFC 8926, section 3.4).
        TunnelKind::Geneve => {
            let control = if has_critical(&options)? { 0x40 } else { 0 };
            bytes.extend([(options.len() / 4) as u8, control, 0x65, 0x58]);
        }
    }
    bytes.extend([a, b, c, 0]);
    bytes.extend(options);
    Some(bytes)
}

/// What the headers were made of; the opposite of [`headers`].
pub(super) fn push(bytes: &[u8]) -> Option<TunnelPush> {
    let mac = |at: usize| Some(crate::MacAddress(bytes.get(at..at + 6)?.try_into().ok()?));
    let number = |at: usize| Some(u16::from_be_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
    let v6 = number(12)? == 0x86dd;
    let ip = bytes.get(ETHERNET..)?;
    let (src, dst, tos, ttl, dont_fragment, size): (IpAddr, IpAddr, u8, u8, bool, usize) = if v6 {
        let address = |at: usize| Some(<[u8; 16]>::try_from(ip.get(at..at + 16)?).ok()?.into());
        (address(8)?, address(24)?, ip[0] << 4 | ip[1] >> 4, ip[7], false, 40)
    } else {
        let address = |at: usize| Some(<[u8; 4]>::try_from(ip.get(at..at + 4)?).ok()?.into());
        (address(12)?, address(16)?, ip[1], ip[8], ip[6] & 0x40 != 0, 20)
    };
    let udp = ETHERNET + size;
    let tunnel = bytes.get(udp + UDP..)?;
    let id = u32::from_be_bytes([0, *tunnel.get(4)?, *tunnel.get(5)?, *tunnel.get(6)?]);
    let kind = if tunnel[2..4] == [0x65, 0x58] { TunnelKind::Geneve } else { TunnelKind::Vxlan };
    let options: String = tunnel.get(8..)?.iter().map(|byte| format!("{byte:02x}")).collect();
    let src_port = Some(number(udp)?).filter(|port| *port != 0);
    Some(TunnelPush {
        kind,
        id,
        eth_src: mac(6)?,
        eth_dst: mac(0)?,
        src,
        dst,
        tos,
        ttl,
        dont_fragment,
        src_port,
        dst_port: number(udp + 2)?,
        checksum: false,
        options,
    })
}
