//! Which of the datapath's ports are ports of NICs.

use std::collections::HashMap;

use ringspan_protocol::rule::TunnelKind;
use ringspan_protocol::{NicName, NicPort};

use crate::ovs::flow::key::PortRef;

/// What the datapath's ports are.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Ports {
    /// Ports of NICs by their representors' names.
    names: HashMap<Box<str>, (NicName, NicPort)>,
    /// Tunnels by the datapath's name of their port.
    tunnels: HashMap<Box<str>, TunnelIn>,
}

/// A tunnel whose packets come in by a NIC's uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TunnelIn {
    /// The NIC.
    pub nic: NicName,
    /// What kind.
    pub kind: TunnelKind,
    /// The UDP port that it is known by.
    pub port: u16,
}

impl TunnelIn {
    /// OVS names a tunnel's port in the datapath by kind and UDP port (netdev_vport_get_dpif_port in lib/netdev-vport.c).
    pub(super) fn new(nic: NicName, name: &PortRef, port: u16) -> Option<Self> {
        let PortRef::Name(name) = name else { return None };
        let (kind, digits) = match name.strip_prefix("vxlan_sys_") {
            Some(digits) => (TunnelKind::Vxlan, digits),
            None => (TunnelKind::Geneve, name.strip_prefix("genev_sys_")?),
        };
        (digits.parse() == Ok(port)).then_some(Self { nic, kind, port })
    }
}

impl Ports {
    /// The ports of a NIC, by its representors.
    pub(crate) fn add_nic(&mut self, nic: &NicName, ports: impl IntoIterator<Item = NicPort>) {
        for port in ports {
            self.names.insert(port.representor(nic).into(), (nic.clone(), port));
        }
    }

    /// A tunnel's port, as [`super::tunnel_in`] found it. Whether that is new.
    pub(crate) fn set_tunnel(&mut self, port: &PortRef, tunnel: TunnelIn) -> bool {
        let Some(name) = name(port).map(Box::from) else { return false };
        let new = self.tunnels.get(&name) != Some(&tunnel);
        self.tunnels.insert(name, tunnel);
        new
    }

    /// Forgets all tunnels.
    pub(crate) fn without_tunnels(&self) -> Self {
        Self { tunnels: HashMap::new(), ..self.clone() }
    }

    /// Whether there is a NIC at all.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(super) fn find(&self, port: &PortRef) -> Option<(&NicName, NicPort)> {
        self.names.get(name(port)?).map(|(nic, port)| (nic, *port))
    }

    pub(super) fn tunnel(&self, port: &PortRef) -> Option<&TunnelIn> {
        self.tunnels.get(name(port)?)
    }
}

/// Flows are told with names; a number alone says nothing.
fn name(port: &PortRef) -> Option<&str> {
    match port {
        PortRef::Name(name) => Some(name),
        PortRef::Number(_) => None,
    }
}
