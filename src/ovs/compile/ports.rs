//! Which of the datapath's ports are ports of NICs.

use std::collections::{HashMap, HashSet};

use ringspan_protocol::rule::{Match, TunnelKind};
use ringspan_protocol::{NicName, NicPort};

use crate::ovs::flow::key::PortRef;
use crate::ovs::mirror::Limits;

/// What the datapath's ports are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ports {
    /// Ports of NICs by their representors' names.
    names: HashMap<Box<str>, (NicName, NicPort)>,
    /// What takes packets out of tunnels, by the datapath's name of their port.
    tunnels: HashMap<Box<str>, Vec<TunnelIn>>,
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
    /// What it matches of the packets, as fields of the tunnel.
    pub outer: Match,
}

impl TunnelIn {
    /// OVS names a tunnel's port in the datapath by kind and UDP port (netdev_vport_get_dpif_port in lib/netdev-vport.c).
    pub(super) fn new(nic: NicName, name: &PortRef, port: u16, outer: Match) -> Option<Self> {
        let PortRef::Name(name) = name else { return None };
        let (kind, digits) = match name.strip_prefix("vxlan_sys_") {
            Some(digits) => (TunnelKind::Vxlan, digits),
            None => (TunnelKind::Geneve, name.strip_prefix("genev_sys_")?),
        };
        (digits.parse() == Ok(port)).then_some(Self { nic, kind, port, outer })
    }
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

    pub(super) fn tunnels(&self, port: &PortRef) -> &[TunnelIn] {
        name(port).and_then(|name| self.tunnels.get(name)).map_or(&[], Vec::as_slice)
    }
}

/// Flows are told with names; a number alone says nothing.
fn name(port: &PortRef) -> Option<&str> {
    match port {
        PortRef::Name(name) => Some(name),
        PortRef::Number(_) => None,
    }
}
