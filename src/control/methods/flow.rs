//! Methods about flows: what the mirror knows of them.

use super::{Call, Nothing};
use crate::control::engine::Lanes;
use crate::error::Error;
use crate::ovs::mirror::{FlowFilter, FlowStats, Flows};

pub(super) fn list(call: &mut Call, params: FlowFilter) -> Result<Flows, Error> {
    Ok(call.daemon.mirror.list(&params, &Lanes::new(call.daemon)))
}

pub(super) fn stats(call: &mut Call, _: Nothing) -> Result<FlowStats, Error> {
    Ok(call.daemon.mirror.stats(&Lanes::new(call.daemon)))
}
