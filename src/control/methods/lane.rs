//! Methods about lanes.

use std::sync::Arc;

use ringspan_protocol::LaneName;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, Nothing};
use crate::control::{Daemon, Job, locked};
use crate::error::{Error, ErrorKind};
use crate::lanes::{LanePhase, LaneView, Order, RESTART_LIMIT};

pub(super) fn list(call: &mut Call, _: Nothing) -> Result<Vec<LaneView>, Error> {
    let daemon = call.daemon;
    let views = daemon.all_lanes().into_iter().map(|lane| {
        let ports = locked(&daemon.desired).count_on(&lane.name);
        LaneView { load: lane.load(), ..lane.view(ports) }
    });
    Ok(views.filter(|view| view.configured || view.phase != LanePhase::Stopped || view.ports > 0).collect())
}

/// Which lane.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Restart {
    /// Its name.
    pub name: LaneName,
    /// Answer when the job has ended, instead of at once.
    #[serde(default)]
    pub wait: bool,
}

pub(super) fn restart(call: &mut Call, params: Restart) -> Result<Job, Error> {
    let daemon = Arc::clone(call.daemon);
    let lane = daemon.lane(&params.name)?;
    let name = params.name.clone();
    if lane.phase() == LanePhase::Stopped {
        let message = format!("lane {name} was shut down, and is not in the configuration file: add it there");
        return Err(Error::new(ErrorKind::NotFound, message).about(name));
    }
    let job = call.daemon.jobs.start("lane.restart", Some(name.to_string()), move |cancel| {
        cancel.check()?;
        let life = lane.lives();
        lane.order(Order::Restart);
        lane.wait_for_life(life, RESTART_LIMIT)?;
        let ports = applied(&daemon, &name);
        let word = if ports == 1 { "port" } else { "ports" };
        Ok(vec![format!("lane {name} runs again with {ports} {word}")])
    })?;
    super::job::waited(call, job, params.wait)
}

/// How many ports the lane has, once it has been given all of them.
fn applied(daemon: &Daemon, name: &LaneName) -> usize {
    let Ok(lane) = daemon.lane(name) else { return 0 };
    lane.settle();
    lane.ports().map_or(0, |ports| ports.len())
}
