//! Which of the datapath's ports are ports of NICs.

use std::collections::{HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ringspan_protocol::rule::{Field, FieldMatch, Match, TunnelKind};
use ringspan_protocol::{NicName, NicPort};

use crate::ovs::flow::key::PortRef;
use crate::ovs::mirror::Limits;
use crate::ovs::underlay::{End, Underlay, Way};

/// What the datapath's ports are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ports {
    /// Ports of NICs by their representors' names.
    names: HashMap<Box<str>, (NicName, NicPort)>,
    /// What takes packets out of tunnels, by the datapath's name of their port.
    tunnels: HashMap<Box<str>, Vec<TunnelIn>>,
    /// The network that the kernel's tunnels go through; nothing when it is not to be looked at.
    underlay: Option<Arc<Underlay>>,
    /// Limits of OVS's meters, by the datapath's numbers, or why they are not known.
    meters: Limits,
    /// NICs whose engine has no meters.
    unmetered: HashSet<NicName>,
    /// OVS is known to read one VLAN header of a frame only.
    one_vlan: bool,
}

/// A flow that takes packets out of a tunnel, which come in by a NIC's uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TunnelIn {
    /// The NIC.
    pub nic: NicName,
    /// What kind.
    pub kind: TunnelKind,
    /// The UDP port that it is known by.
    pub port: u16,
    /// The packets are IPv6's.
    pub ipv6: bool,
    /// What it matches of the packets, as fields of the tunnel.
    pub outer: Match,
}

impl TunnelIn {
    /// Nothing where the port's name does not say that kind and UDP port.
    pub(super) fn new(nic: NicName, name: &PortRef, port: u16, (ipv6, outer): (bool, Match)) -> Option<Self> {
        let PortRef::Name(name) = name else { return None };
        let (kind, udp) = tunnel_device(name)?;
        (udp == port).then_some(Self { nic, kind, port, ipv6, outer })
    }

    /// What the kernel itself takes out of a tunnel: what is for the host's address at an uplink.
    fn of_kernel(nic: NicName, (kind, port): (TunnelKind, u16), end: &End) -> Option<Self> {
        let [a, b, c, d, e, f] = end.mac.0;
        let mac = u64::from_be_bytes([0, 0, a, b, c, d, e, f]);
        let mac = FieldMatch::exact(Field::TunnelEthDst, mac.into()).ok()?;
        let address = match end.address {
            IpAddr::V4(address) => FieldMatch::exact(Field::TunnelIpv4Dst, u32::from(address).into()),
            IpAddr::V6(address) => FieldMatch::exact(Field::TunnelIpv6Dst, address.into()),
        };
        let outer = Match::new([mac, address.ok()?]).ok()?;
        Some(Self { nic, kind, port, ipv6: end.address.is_ipv6(), outer })
    }
}

/// The tunnel and the UDP port of a datapath's port of this name: OVS calls it so (netdev_vport_get_dpif_port in lib/netdev-vport.c), and
/// the kernel's device has the same name.
pub(crate) fn tunnel_device(name: &str) -> Option<(TunnelKind, u16)> {
    let (kind, digits) = match name.strip_prefix("vxlan_sys_") {
        Some(digits) => (TunnelKind::Vxlan, digits),
        None => (TunnelKind::Geneve, name.strip_prefix("genev_sys_")?),
    };
    Some((kind, digits.parse().ok()?))
}

impl Ports {
    /// The ports of a NIC, each with the name of its representor.
    pub(crate) fn add_nic<'a>(&mut self, nic: &NicName, ports: impl IntoIterator<Item = &'a (NicPort, String)>) {
        for (port, representor) in ports {
            self.names.insert(representor.as_str().into(), (nic.clone(), *port));
        }
    }

    /// One more flow that takes packets out of the tunnel at this port, as [`super::tunnel_in`] found it.
    pub(crate) fn add_tunnel(&mut self, port: &PortRef, tunnel: TunnelIn) {
        if let Some(name) = name(port) {
            self.tunnels.entry(name.into()).or_default().push(tunnel);
        }
    }

    /// The engine of this NIC has no meters.
    pub(crate) fn is_unmetered(&mut self, nic: &NicName) {
        self.unmetered.insert(nic.clone());
    }

    /// Whether OVS is known to read one VLAN header of a frame only (`other_config:vlan-limit`).
    pub(crate) fn set_one_vlan(&mut self, one: bool) {
        self.one_vlan = one;
    }

    /// Whether it is.
    pub(super) fn one_vlan(&self) -> bool {
        self.one_vlan
    }

    /// These are the limits of meters now. Whether they were others.
    pub(crate) fn set_meters(&mut self, limits: Limits) -> bool {
        let differ = self.meters != limits;
        self.meters = limits;
        differ
    }

    /// The limits of meters, as they were set.
    pub(crate) fn meters(&self) -> &Limits {
        &self.meters
    }

    /// Whether a NIC's engine can have this meter.
    pub(super) fn meter(&self, nic: &NicName, id: u32) -> Result<(), String> {
        if self.unmetered.contains(nic) {
            return Err(format!("the engine of {nic} has no meters"));
        }
        match self.meters.get(&id) {
            Some(limits) => limits.as_ref().map(drop).map_err(Clone::clone),
            None => Err("its limits are not known yet".into()),
        }
    }

    /// This is the network now that the kernel's tunnels go through. Nothing: flows of such tunnels stay with OVS.
    pub(crate) fn set_underlay(&mut self, underlay: Option<Arc<Underlay>>) {
        self.underlay = underlay;
    }

    /// The network that the kernel's tunnels go through, as it was set.
    pub(crate) fn underlay(&self) -> Option<&Arc<Underlay>> {
        self.underlay.as_ref()
    }

    /// How the kernel's packets go to a tunnel's far end, with the NIC whose uplink they go by; or why no NIC sees them.
    pub(super) fn way(&self, to: IpAddr) -> Result<(&NicName, &Way), String> {
        let underlay = self.underlay.as_ref().ok_or("ovs.kernel_tunnels is false")?;
        let way = underlay.way(to)?;
        match self.names.get(way.interface.as_str()) {
            Some((nic, NicPort::Uplink)) => Ok((nic, way)),
            _ => Err(format!("{} is no uplink's representor", way.interface)),
        }
    }

    /// Names of the representors of uplinks.
    pub(crate) fn uplinks(&self) -> impl Iterator<Item = &str> {
        self.names.iter().filter(|(_, (_, port))| *port == NicPort::Uplink).map(|(name, _)| &**name)
    }

    /// Forgets all tunnels.
    pub(crate) fn without_tunnels(&self) -> Self {
        Self { tunnels: HashMap::new(), ..self.clone() }
    }

    /// Whether there is a NIC at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    /// Whether a port of this name is a NIC's.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.names.contains_key(name)
    }

    pub(super) fn find(&self, port: &PortRef) -> Option<(&NicName, NicPort)> {
        self.names.get(name(port)?).map(|(nic, port)| (nic, *port))
    }

    /// What takes packets out of the tunnel at this port: flows of OVS's userspace datapath, or the kernel.
    pub(super) fn tunnels(&self, port: &PortRef) -> Vec<TunnelIn> {
        let Some(name) = name(port) else { return Vec::new() };
        let mut all = self.tunnels.get(name).cloned().unwrap_or_default();
        let Some(underlay) = &self.underlay else { return all };
        if let Some(device) = tunnel_device(name).filter(|_| underlay.devices().any(|device| device == name)) {
            for end in underlay.ends() {
                if let Some((nic, NicPort::Uplink)) = self.names.get(end.interface.as_str()) {
                    all.extend(TunnelIn::of_kernel(nic.clone(), device, end));
                }
            }
        }
        all
    }
}

/// Flows are told with names; a number alone says nothing.
fn name(port: &PortRef) -> Option<&str> {
    match port {
        PortRef::Name(name) => Some(name),
        PortRef::Number(_) => None,
    }
}
