//! Methods about the kernel's vDPA bus.

use std::path::Path;

use ringspan_protocol::DeviceSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Call;
use super::device::{PATIENCE, one_at_a_time};
use crate::control::{Daemon, locked};
use crate::error::Error;
use crate::host::vdpa::{self, Added, Gone, Vdpa, Wish};

/// What of the bus.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct List {
    /// With what the devices' drivers count, queue by queue.
    #[serde(default)]
    pub statistics: bool,
}

/// Which device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remove {
    /// Its name.
    pub name: String,
    /// Also when ringspan did not make it, or its interface is up. What a port or a process has stays all the same.
    #[serde(default)]
    pub disturb: bool,
}

/// The port that names a node.
fn port_with(daemon: &Daemon, node: &str) -> Option<String> {
    let desired = locked(&daemon.desired);
    let names = |device: &DeviceSpec| matches!(device, DeviceSpec::VhostVdpa { path } if path == Path::new(node));
    desired.ports.iter().find(|(_, port)| names(&port.spec.device)).map(|(name, _)| name.to_string())
}

pub(super) fn list(call: &mut Call, List { statistics }: List) -> Result<Vdpa, Error> {
    let daemon = call.daemon;
    vdpa::list(&daemon.host(), &*daemon.state_dir, statistics, |node| port_with(daemon, node))
}

pub(super) fn add(call: &mut Call, wish: Wish) -> Result<Added, Error> {
    let daemon = call.daemon;
    // Not the right to change the host: who attaches a NIC would wait for what the kernel takes for this.
    let _book = one_at_a_time(&daemon.vdpa.book, PATIENCE)?;
    let added = vdpa::add(&daemon.host(), &*daemon.state_dir, &wish)?;
    for done in &added.done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
    Ok(added)
}

pub(super) fn remove(call: &mut Call, Remove { name, disturb }: Remove) -> Result<Gone, Error> {
    let daemon = call.daemon;
    // Not the right to change the host: who attaches a NIC would wait for what the kernel takes for this.
    let _book = one_at_a_time(&daemon.vdpa.book, PATIENCE)?;
    let gone = vdpa::remove(&daemon.host(), &*daemon.state_dir, &name, disturb, |node| port_with(daemon, node))?;
    for done in &gone.done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
    Ok(gone)
}
