//! Methods about Open vSwitch.

use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

use ringspan_protocol::{EngineKind, NicPort};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, Nothing};
use crate::control::engine::Lanes;
use crate::control::locked;
use crate::error::Error;
use crate::ovs::client::{Database, Place};
use crate::ovs::configure::{Configure, Configured};
use crate::ovs::mirror::{Engine, Nic};
use crate::ovs::verify::{Own, Verified};
use crate::ovs::view::View;
use crate::ovs::{configure, owner, restart, verify};

/// Open vSwitch as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Shown {
    /// Where its daemons listen.
    pub run_dir: String,
    /// The process of ovs-vswitchd; absent: it does not run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// What the database says.
    #[serde(flatten)]
    pub view: View,
}

/// Where Open vSwitch's daemons listen.
pub(super) fn place(call: &Call) -> Place {
    Place::new(locked(&call.daemon.config).ovs.run_dir.as_deref())
}

pub(super) fn show(call: &mut Call, _: Nothing) -> Result<Shown, Error> {
    let place = place(call);
    let view = View::read(&mut Database::connect(&place)?)?;
    Ok(Shown {
        run_dir: place.folder().display().to_string(),
        pid: restart::running(&place).map(|process| process.pid),
        view,
    })
}

pub(super) fn configure(call: &mut Call, params: Configure) -> Result<Configured, Error> {
    let place = place(call);
    let mut configured = configure::configure(&place, &params)?;
    if params.restart && configured.restart_needed.is_some() {
        let command = locked(&call.daemon.config).ovs.restart_command.clone();
        let pid = restart::restart(&place, command.as_deref())?;
        tracing::info!(pid, "ovs-vswitchd was restarted, as process {} asked", call.peer.pid);
        configured.restart_needed = None;
        configured.restarted = true;
    }
    Ok(configured)
}

/// What was last found, where, and from when on it was looked for.
static FOUND: Mutex<Option<(Place, Instant, Verified)>> = Mutex::new(None);

/// All flows are dumped for it, by the thread of ovs-vswitchd that does everything else: so once at a time, and who asked before
/// the last one began gets what it found.
pub(super) fn verify(call: &mut Call, _: Nothing) -> Result<Verified, Error> {
    let (asked, place) = (Instant::now(), place(call));
    let mut found = locked(&FOUND);
    if let Some((_, _, verified)) = found.as_ref().filter(|(at, begun, _)| *at == place && *begun >= asked) {
        return Ok(verified.clone());
    }
    let begun = Instant::now();
    let verified = look(call, &place)?;
    *found = Some((place, begun, verified.clone()));
    Ok(verified)
}

fn look(call: &Call, place: &Place) -> Result<Verified, Error> {
    verify::verify(place, Path::new("/sys"), &own(call))
}

/// What ringspan itself has to do with OVS's flows.
pub(super) fn own(call: &Call) -> Own {
    let engine = Lanes::new(call.daemon);
    let nics = engine.nics();
    let vfs = |nic: &Nic| {
        let ports = nic.ports.iter().filter(|(port, _)| matches!(port, NicPort::Vf(_)));
        ports.map(|(_, representor)| representor.clone()).collect::<Vec<_>>()
    };
    let rules = |nic: &Nic| engine.counters(&nic.name).map_or(0, |rules| rules.len() as u64);
    let is_software = |nic: &&Nic| nic.capabilities.engine == EngineKind::Eswitch;
    let is_unseen = |nic: &&Nic| !nic.capabilities.refreshes && nic.capabilities.refuses.is_none();
    let unseen: Vec<&Nic> = nics.iter().filter(is_unseen).collect();
    let ports = unseen.iter().flat_map(|nic| nic.ports.iter().map(|(_, name)| name.as_str()));
    Own {
        tc_ruled: owner::with_rules(ports),
        unseen: unseen.iter().map(|nic| nic.name.to_string()).collect(),
        representors: nics.iter().flat_map(vfs).collect(),
        software: nics.iter().filter(is_software).flat_map(vfs).collect(),
        rules: (!nics.is_empty()).then(|| nics.iter().map(rules).sum()),
    }
}
