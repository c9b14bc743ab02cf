//! Passes a lane's events on, with the lane's name and numbers of the daemon's own.

use std::sync::Arc;
use std::time::Duration;

use ringspan_protocol::{LaneName, Reply, Request};

use super::client::{CallError, LaneClient, QUICK};
use super::lane::{Lane, lock};
use crate::control::{Daemon, EventKind};

/// How long the lane is asked to wait for its next event.
const WAIT: Duration = Duration::from_secs(5);

/// Runs as long as this life of the lane.
pub(super) fn watch_events(lane: &Arc<Lane>, daemon: &Arc<Daemon>, life: u64, started_ms: u64) {
    let mut after = daemon.events.lane_mark(&lane.name, started_ms);
    while lane.is_in_life(life) {
        match follow(lane, daemon, started_ms, &mut after) {
            Ok(()) => return,
            Err(error) => tracing::debug!(lane = %lane.name, "events: {error}"),
        }
        // The keeper sees an end of the process for itself; this is for a lane that only dropped the connection.
        lane.nudge();
        lane.wait_for(Duration::from_millis(500), |state| !state.is_life(life));
    }
}

fn follow(lane: &Lane, daemon: &Daemon, started_ms: u64, after: &mut u64) -> Result<(), CallError> {
    let mut client = LaneClient::connect(&lane.socket())
        .map_err(|error| CallError::Lost(crate::error::Error::from(error).message))?
        .client;
    let handle = client.handle().map_err(|error| CallError::Lost(error.to_string()))?;
    lock(&lane.state).events = Some(handle);
    loop {
        let request = Request::Events { after: *after, wait_ms: WAIT.as_millis() as u32 };
        let Reply::Events(events) = client.call(request, WAIT + QUICK)? else {
            return Err(CallError::Lost("the lane answered Events with something else".into()));
        };
        for event in events {
            if event.sequence <= *after {
                continue;
            }
            if event.sequence > *after + 1 {
                tell_missed(daemon, &lane.name, event.sequence - *after - 1);
            }
            *after = event.sequence;
            daemon.events.pass_on(&lane.name, started_ms, event);
        }
    }
}

fn tell_missed(daemon: &Daemon, lane: &LaneName, count: u64) {
    daemon.events.tell(Some(lane), None, EventKind::LaneEventsMissed { count });
}
