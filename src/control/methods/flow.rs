//! Methods about flows: what the mirror knows of them.

use ringspan_protocol::{NicMode, NicPort, NicSpec};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::ovs::place;
use super::{Call, Nothing};
use crate::attach::record::Record;
use crate::control::engine::Lanes;
use crate::control::locked;
use crate::error::{Error, ErrorKind};
use crate::ovs::client::Database;
use crate::ovs::compile;
use crate::ovs::mirror::{Engine, FlowFilter, FlowStats, Flows};
use crate::ovs::view::View;

pub(super) fn list(call: &mut Call, params: FlowFilter) -> Result<Flows, Error> {
    can_fit(call, &params)?;
    Ok(call.daemon.mirror.list(&params, &Lanes::new(call.daemon)))
}

/// Whether there can be such flows at all: of a word that was mistyped an empty list would say that there are none.
fn can_fit(call: &Call, filter: &FlowFilter) -> Result<(), Error> {
    if let Some(reason) = filter.reason.as_deref().filter(|reason| compile::codes().all(|(code, _)| code != *reason)) {
        let codes: Vec<_> = compile::codes().map(|(code, _)| code).collect();
        let message = format!("there is no reason {reason}: give one of {}", codes.join(", "));
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    match filter.port.as_deref() {
        Some(port) if !may_be(call, port) => {
            let message = format!(
                "neither a NIC of ringspan's nor Open vSwitch has a port {port}: see ringspan nic show NIC, and ringspan ovs show"
            );
            Err(Error::new(ErrorKind::NotFound, message))
        }
        _ => Ok(()),
    }
}

/// Whether a port with this name may be: where Open vSwitch does not say which it has, any.
fn may_be(call: &Call, port: &str) -> bool {
    // The datapath's own port, those of its tunnels (vxlan_sys_4789), and ports without a name are in no database.
    let is_datapaths = port.starts_with("ovs-") || port.contains("_sys") || port.bytes().all(|b| b.is_ascii_digit());
    let is_nics = || Lanes::new(call.daemon).nics().iter().any(|nic| nic.ports.iter().any(|(_, name)| name == port));
    if is_datapaths || call.daemon.mirror.names(port) || will_be(call, port) || is_nics() {
        return true;
    }
    let view = Database::connect(&place(call)).and_then(|mut database| View::read(&mut database));
    view.map_or(true, |view| view.interfaces().any(|(_, _, interface)| interface.name == port))
}

/// Whether a NIC that is wanted, or an attachment, will have it, also while no lane has made it: whoever watches may begin before that.
fn will_be(call: &Call, port: &str) -> bool {
    let is_of = |spec: &NicSpec| {
        // The kernel names those of a NIC of kind "pci": its lane knows them, and the configuration does not.
        let has_representors = spec.mode == NicMode::Switchdev && spec.pci.is_none();
        let mut ports = (0..spec.vfs).map(NicPort::Vf).chain([NicPort::Uplink]);
        has_representors && ports.any(|one| one.representor(&spec.name) == port)
    };
    let attached = |record: &Record| record.representor.as_deref() == Some(port);
    locked(&call.daemon.desired).nics.values().any(|nic| is_of(&nic.spec))
        || call.daemon.attachments.all().iter().any(attached)
}

pub(super) fn stats(call: &mut Call, _: Nothing) -> Result<FlowStats, Error> {
    Ok(call.daemon.mirror.stats(&Lanes::new(call.daemon)))
}

/// Which flows to watch, and how often they are sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Watch {
    /// Which flows, in which order, and how many of them.
    pub filter: FlowFilter,
    /// Time between two notifications, in milliseconds: 100 to 3,600,000. 1000 when absent.
    #[serde(default = "second")]
    pub interval_ms: u64,
}

fn second() -> u64 {
    1000
}

pub(super) fn watch(call: &mut Call, params: Watch) -> Result<Nothing, Error> {
    if !(100..=3_600_000).contains(&params.interval_ms) {
        let message = format!("interval_ms is {}: give 100 to 3600000", params.interval_ms);
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    if call.follows {
        let message = "this connection follows events or watches flows already: open another";
        return Err(Error::new(ErrorKind::Exists, message));
    }
    can_fit(call, &params.filter)?;
    call.watch = Some(params);
    Ok(Nothing {})
}
