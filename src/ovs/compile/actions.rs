//! What a flow does, as actions of a rule.

use std::net::IpAddr;

use ringspan_protocol::rule::{Action as Do, Field, FieldMatch, TunnelKind, TunnelPush as Push};
use ringspan_protocol::{NicName, NicPort};

use super::matches::field;
use super::{Cause, Ports, tunnel_device};
use crate::ovs::flow::action::Action;
use crate::ovs::flow::key::{Key, PortRef, Vlan};
use crate::ovs::flow::masked::Masked;
use crate::ovs::flow::obstacle::Reason;
use crate::ovs::flow::push::{OuterIp, OuterUdp, TunnelHeader, TunnelPush};
use crate::ovs::flow::tunnel::{GeneveOption, Tunnel};

/// Presence of a tag.
const TAGGED: u16 = 0x1000;

pub(super) fn actions(actions: &[Action], nic: &NicName, ports: &Ports, in_tunnel: bool) -> Result<Vec<Do>, Cause> {
    let mut done = Vec::new();
    if in_tunnel {
        done.push(Do::TunnelPop);
    }
    append(actions, nic, ports, &mut done)?;
    // What is done with a frame behind its last output is seen by nobody.
    let last = done.iter().rposition(|action| matches!(action, Do::Output(_)));
    match last {
        Some(last) => done.truncate(last + 1),
        None => done = vec![Do::Drop],
    }
    Ok(done)
}

fn append(actions: &[Action], nic: &NicName, ports: &Ports, done: &mut Vec<Do>) -> Result<(), Cause> {
    let mut tunnel = None;
    for (at, action) in actions.iter().enumerate() {
        match action {
            Action::Output(port) => match tunnel.filter(|_| is_tunnel(port)) {
                None => done.push(Do::Output(output(port, nic, ports)?)),
                // Behind it the frame would be the one in the tunnel, to the kernel it is the one that was there before.
                Some(_) if at + 1 != actions.len() => return Err(Cause::Order("something behind a tunnel")),
                Some(tunnel) => {
                    done.push(Do::TunnelPush(Box::new(kernel_push(tunnel, port, nic, ports)?)));
                    done.push(Do::Output(NicPort::Uplink));
                }
            },
            Action::Drop => return Ok(()),
            Action::Set(key) => match set_tunnel(action) {
                // Which NIC's packets these are is only known by the kernel's network.
                Some(_) if ports.underlay().is_none() => {
                    return Err(Cause::SetTunnel("ovs.kernel_tunnels is false".into()));
                }
                Some(set) => tunnel = Some(set),
                None => set(key, done)?,
            },
            Action::PushVlan(push) => done.push(Do::PushVlan {
                tpid: push.tpid,
                tci: u16::from(push.pcp & Vlan::PCP_MASK) << 13 | TAGGED | push.vid & Vlan::VID_MASK,
            }),
            Action::PopVlan => done.push(Do::PopVlan),
            Action::DecTtl(_) => done.push(Do::DecTtl),
            Action::TunnelPush(push) => done.push(Do::TunnelPush(Box::new(tunnel_push(push)?))),
            Action::TunnelPop(_) => return Err(Cause::TunnelPop),
            Action::Meter(id) => {
                ports.meter(nic, *id).map_err(|why| Cause::Meter(format!("meter({id}): {why}")))?;
                done.push(Do::Meter(*id));
            }
            Action::Clone(inner) if at + 1 == actions.len() => append(inner, nic, ports, done)?,
            _ => return Err(Cause::Order("an action that is not known here")),
        }
    }
    Ok(())
}

fn output(port: &PortRef, nic: &NicName, ports: &Ports) -> Result<ringspan_protocol::NicPort, Cause> {
    let (other, found) = ports.find(port).ok_or_else(|| Cause::ForeignOutput(port.to_string()))?;
    if other == nic { Ok(found) } else { Err(Cause::OtherNic(port.to_string())) }
}

fn set(key: &Key, done: &mut Vec<Do>) -> Result<(), Cause> {
    let mut fields: Vec<FieldMatch> = Vec::new();
    match key {
        Key::Eth { src, dst } => fields.extend([field(Field::EthSrc, *src)?, field(Field::EthDst, *dst)?]),
        Key::Ipv4(ip) => {
            fields.extend([field(Field::Ipv4Src, ip.src)?, field(Field::Ipv4Dst, ip.dst)?]);
            fields.extend([field(Field::IpTos, ip.tos)?, field(Field::IpTtl, ip.ttl)?]);
            settable(ip.proto.is_wildcard() && ip.frag.is_none())?;
        }
        Key::Ipv6(ip) => {
            fields.extend([field(Field::Ipv6Src, ip.src)?, field(Field::Ipv6Dst, ip.dst)?]);
            fields.extend([field(Field::IpTos, ip.tclass)?, field(Field::IpTtl, ip.hlimit)?]);
            settable(ip.proto.is_wildcard() && ip.frag.is_none())?;
        }
        Key::Tcp(ports) | Key::Udp(ports) | Key::Sctp(ports) => {
            fields.extend([field(Field::SrcPort, ports.src)?, field(Field::DstPort, ports.dst)?]);
        }
        Key::Icmp(icmp) | Key::Icmpv6(icmp) => {
            fields.extend([field(Field::IcmpType, icmp.kind)?, field(Field::IcmpCode, icmp.code)?]);
        }
        Key::Arp(arp) => {
            fields.extend([
                field(Field::ArpSpa, arp.sip)?,
                field(Field::ArpTpa, arp.tip)?,
                field(Field::ArpOp, arp.op)?,
            ]);
            fields.extend([field(Field::ArpSha, arp.sha)?, field(Field::ArpTha, arp.tha)?]);
        }
        Key::Vlan(vlan) => {
            let join = |pcp: u8, vid: u16| u16::from(pcp) << 13 | vid;
            let value = join(vlan.pcp.value, vlan.vid.value) | TAGGED;
            fields.push(field(Field::VlanTci, Masked { value, mask: join(vlan.pcp.mask, vlan.vid.mask) })?);
        }
        other => return Err(Cause::Field(format!("set {other:?}"))),
    }
    done.extend(fields.into_iter().filter(|field| field.mask() != 0).map(Do::Set));
    Ok(())
}

fn is_tunnel(port: &PortRef) -> bool {
    matches!(port, PortRef::Name(name) if tunnel_device(name).is_some())
}

/// The tunnel that an action sets.
fn set_tunnel(action: &Action) -> Option<&Tunnel> {
    match action {
        Action::Set(key) => match &**key {
            Key::Tunnel(tunnel) => Some(tunnel),
            _ => None,
        },
        _ => None,
    }
}

/// Where the tunnels end that actions set, as [`append`] follows them.
pub(super) fn far_ends(actions: &[Action], found: &mut Vec<IpAddr>) {
    for (at, action) in actions.iter().enumerate() {
        match action {
            Action::Clone(inner) if at + 1 == actions.len() => far_ends(inner, found),
            _ => found.extend(set_tunnel(action).and_then(far_end)),
        }
    }
}

/// Where a tunnel ends.
fn far_end(tunnel: &Tunnel) -> Option<IpAddr> {
    let v6 = tunnel.ipv6_dst.map(|dst| IpAddr::from(dst.value));
    v6.or(tunnel.dst.map(|dst| dst.value.into()))
}

/// The headers that the kernel would put in front of a packet for the tunnel at this port.
fn kernel_push(tunnel: &Tunnel, port: &PortRef, nic: &NicName, ports: &Ports) -> Result<Push, Cause> {
    let PortRef::Name(name) = port else { return Err(Cause::ForeignOutput(port.to_string())) };
    let (kind, udp) = tunnel_device(name).ok_or_else(|| Cause::ForeignOutput(name.to_string()))?;
    // Also those that a match can say: they would be missing.
    if tunnel.has_any_option() {
        return Err(Cause::Flow(Reason::ActionTunnelOptions));
    }
    let dst = far_end(tunnel).ok_or_else(|| Cause::SetTunnel("it has no far end".into()))?;
    let (other, way) = ports.way(dst).map_err(Cause::SetTunnel)?;
    if other != nic {
        return Err(Cause::OtherNic(way.interface.clone()));
    }
    let said = tunnel.ipv6_src.map(|src| IpAddr::from(src.value)).or(tunnel.src.map(|src| src.value.into()));
    let src = said.unwrap_or(way.src);
    if !way.own.contains(&src) {
        return Err(Cause::SetTunnel(format!("{src} is no address of {}", way.interface)));
    }
    if tunnel.tp_dst.is_some_and(|port| port.value != udp) {
        return Err(Cause::SetTunnel(format!("another UDP port than that of {name}")));
    }
    // Flags of OVS's: df 2, csum 4, key 8.
    let flags = tunnel.flags.value.0;
    let ttl = tunnel.ttl.map_or(0, |ttl| ttl.value);
    if ttl == 0 {
        return Err(Cause::SetTunnel("its TTL is 0".into()));
    }
    let id = tunnel.id.map(|id| id.value).filter(|_| flags & 8 != 0);
    let id = id.and_then(|id| u32::try_from(id).ok()).ok_or_else(|| Cause::SetTunnel("it has no id".into()))?;
    Ok(Push {
        kind,
        id,
        eth_src: way.eth_src,
        eth_dst: way.eth_dst,
        src,
        dst,
        tos: tunnel.tos.map_or(0, |tos| tos.value),
        ttl,
        dont_fragment: dst.is_ipv4() && flags & 2 != 0,
        src_port: tunnel.tp_src.map(|port| port.value).filter(|port| *port != 0),
        dst_port: udp,
        checksum: flags & 4 != 0,
        options: String::new(),
    })
}

fn settable(is: bool) -> Result<(), Cause> {
    if is { Ok(()) } else { Err(Cause::Field("it sets the IP protocol".into())) }
}

fn tunnel_push(push: &TunnelPush) -> Result<Push, Cause> {
    let (kind, udp, id) = match &push.header {
        // The flag says that there is an id (RFC 7348, section 5); others are extensions.
        TunnelHeader::Vxlan { udp, flags: 0x0800_0000, vni } => (TunnelKind::Vxlan, udp, *vni),
        TunnelHeader::Geneve { udp, oam: false, vni, .. } => (TunnelKind::Geneve, udp, *vni),
        _ => return Err(Cause::Field("a tunnel's header with extensions".into())),
    };
    let OuterUdp { src, dst, csum } = *udp;
    let (from, to, tos, ttl, dont_fragment): (IpAddr, IpAddr, u8, u8, bool) = match push.ip {
        OuterIp::V4 { src, dst, tos, ttl, frag, .. } => (src.into(), dst.into(), tos, ttl, frag & 0x4000 != 0),
        OuterIp::V6 { src, dst, tclass, hlimit, label: 0, .. } => (src.into(), dst.into(), tclass, hlimit, false),
        OuterIp::V6 { .. } => return Err(Cause::Field("a tunnel with a flow label".into())),
    };
    let options = match &push.header {
        TunnelHeader::Geneve { options, .. } => options.iter().flatten().map(option).collect(),
        _ => String::new(),
    };
    Ok(Push {
        kind,
        id,
        eth_src: push.eth_src,
        eth_dst: push.eth_dst,
        src: from,
        dst: to,
        tos,
        ttl,
        dont_fragment,
        src_port: (src != 0).then_some(src),
        dst_port: dst,
        checksum: csum != 0,
        options,
    })
}

/// An option as it stands in the header (RFC 8926, section 3.5), in hexadecimal.
fn option(option: &GeneveOption) -> String {
    let GeneveOption { class, kind, len, data, .. } = option;
    let data: String = data.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{:04x}{:02x}{:02x}{data}", class.value, kind.value, len.value / 4)
}
