//! Methods about flows: what the mirror knows of them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Call, Nothing};
use crate::control::engine::Lanes;
use crate::error::{Error, ErrorKind};
use crate::ovs::mirror::{FlowFilter, FlowStats, Flows};

pub(super) fn list(call: &mut Call, params: FlowFilter) -> Result<Flows, Error> {
    Ok(call.daemon.mirror.list(&params, &Lanes::new(call.daemon)))
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
    call.watch = Some(params);
    Ok(Nothing {})
}
