//! From a flow of OVS's datapath to a rule of a NIC's switch, or to the reason why there is none.
//!
//! A rule may match less than its flow: what it misses goes to OVS as before. It never matches more, and never does anything else than
//! the flow. What cannot be said exactly is therefore refused, with a [`Cause`].

mod actions;
mod cause;
mod matches;
mod ports;
#[cfg(test)]
mod tests;

use std::net::IpAddr;

use ringspan_protocol::rule::{Match, Rule, RuleId};
use ringspan_protocol::{NicName, NicPort};

pub(crate) use cause::{Cause, codes};
pub(crate) use ports::{Ports, TunnelIn, tunnel_device};

use super::flow::action::Action;
use super::flow::key::{Key, PortRef};
use super::flow::{Flow, obstacle};

/// Compiles a flow.
///
/// # Errors
/// The first reason why it stays with OVS.
pub(crate) fn compile(flow: &Flow, ports: &Ports) -> Result<(NicName, Rule), Cause> {
    let ufid = flow.ufid.ok_or(Cause::NoUfid)?;
    if let Some(reason) = first_obstacle(flow) {
        let options = matches::options_refused(flow).filter(|_| reason == obstacle::Reason::MatchTunnelOptions);
        return Err(options.map_or(Cause::Flow(reason), Cause::TunnelOptions));
    }
    let port = in_port(&flow.keys).ok_or(Cause::NoInPort)?;
    let tunnel = flow.keys.iter().find_map(|key| match key {
        Key::Tunnel(tunnel) => Some(&**tunnel),
        _ => None,
    });
    let (nic, in_port, mut fields) = match tunnel {
        None => {
            let (nic, in_port) = ports.find(port).ok_or_else(|| Cause::ForeignPort(port.to_string()))?;
            (nic.clone(), in_port, Vec::new())
        }
        // What comes out of a tunnel comes in by the uplink whose flow takes it out: the rule is about what both match.
        Some(tunnel) => {
            let mut widest = Err(Cause::ForeignTunnel(port.to_string()));
            // A port is that of tunnels over IPv4 and over IPv6.
            let ipv6 = matches::is_over_ipv6(tunnel);
            for through in ports.tunnels(port).into_iter().filter(|through| through.ipv6 == ipv6) {
                widest = match (widest, matches::tunnel(tunnel, &through)) {
                    (Ok((bits, known)), Ok(fields)) if matches::bits(&fields) >= bits => Ok((bits, known)),
                    (_, Ok(fields)) => Ok((matches::bits(&fields), (through.nic, NicPort::Uplink, fields))),
                    (Err(_), Err(cause)) => Err(cause),
                    (known, Err(_)) => known,
                };
            }
            widest?.1
        }
    };
    matches::keys(&flow.keys, ports.one_vlan(), &mut fields)?;
    let matches = Match::new(fields).map_err(|twice| Cause::Field(twice.to_string()))?;
    let actions = actions::actions(&flow.actions, &nic, ports, tunnel.is_some())?;
    let rule = Rule { id: RuleId(ufid.0), priority: 0, in_port, matches, actions, refresh: true };
    rule.check().map_err(|error| Cause::Rule(error.to_string()))?;
    Ok((nic, rule))
}

/// The far ends of the kernel's tunnels that a flow sends packets to, if they come from a NIC.
pub(crate) fn far_ends(flow: &Flow, ports: &Ports) -> Vec<IpAddr> {
    let is_ours = |port: &PortRef| ports.find(port).is_some() || !ports.tunnels(port).is_empty();
    let mut found = Vec::new();
    if in_port(&flow.keys).is_some_and(is_ours) {
        actions::far_ends(&flow.actions, &mut found);
    }
    found
}

/// The rule of a flow on a NIC of so many VFs, whose representors are the datapath's ports: for tests of rules against frames. OVS reads one VLAN header, or two.
///
/// # Errors
/// Why there is none, in words.
pub fn rule_of(flow: &Flow, nic: &NicName, vfs: u16, one_vlan: bool) -> Result<Rule, String> {
    let of_nic = std::iter::once(NicPort::Uplink).chain((0..vfs).map(NicPort::Vf));
    let names: Vec<(NicPort, String)> = of_nic.map(|port| (port, port.representor(nic))).collect();
    let mut ports = Ports::default();
    ports.add_nic(nic, &names);
    ports.set_one_vlan(one_vlan);
    compile(flow, &ports).map(|(_, rule)| rule).map_err(|cause| cause.sentence())
}

/// What no engine can do. Of what the host knows of a packet and what a connection's state is, nothing is set on one that just came
/// from a NIC: a match on that fulfils itself.
fn first_obstacle(flow: &Flow) -> Option<obstacle::Reason> {
    let fulfilled = |key: &Key| match key {
        Key::SkbMark(field) | Key::SkbPriority(field) | Key::CtMark(field) => field.value & field.mask == 0,
        Key::CtState(field) => field.value.0 & field.mask.0 == 0,
        Key::CtZone(field) => field.value & field.mask == 0,
        Key::CtLabel(field) => field.value & field.mask == 0,
        _ => false,
    };
    let reason = flow.first_reason()?;
    if !flow.keys.iter().any(fulfilled) {
        return Some(reason);
    }
    let rest = Flow { keys: flow.keys.iter().filter(|key| !fulfilled(key)).cloned().collect(), ..flow.clone() };
    rest.first_reason()
}

fn in_port(keys: &[Key]) -> Option<&PortRef> {
    keys.iter().find_map(|key| match key {
        Key::InPort { port, mask } if *mask == u32::MAX || matches!(port, PortRef::Name(_)) => Some(port),
        _ => None,
    })
}

/// The tunnel that a flow takes packets out of, with what is needed to have rules for what is inside: nothing unless it does
/// just that, for packets from a NIC's uplink, and a rule can say which.
pub(crate) fn tunnel_in(flow: &Flow, ports: &Ports) -> Option<(PortRef, TunnelIn)> {
    let [Action::TunnelPop(port)] = &flow.actions[..] else { return None };
    if first_obstacle(flow).is_some() {
        return None;
    }
    let (nic, NicPort::Uplink) = ports.find(in_port(&flow.keys)?)? else { return None };
    let (udp, ipv6, outer) = matches::around(&flow.keys).ok()?;
    Some((port.clone(), TunnelIn::new(nic.clone(), port, udp, (ipv6, outer))?))
}
