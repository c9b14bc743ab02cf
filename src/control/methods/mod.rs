//! The methods of the control API, in one table: dispatch, roles, `schema.get`, the reference in `docs/control-api.md` and
//! the command line all come from it.

pub(crate) mod attach;
pub(crate) mod attach_keep;
pub(crate) mod attach_stats;
mod bond;
mod daemon;
pub(crate) mod device;
mod doctor;
pub(super) mod flow;
pub(crate) mod host;
mod job;
mod lane;
pub(crate) mod nic;
pub(crate) mod ovs;
pub(crate) mod port;
mod port_change;
pub(crate) mod rule;
mod table;
mod vdpa;

use std::sync::Arc;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;

use super::peer::{Peer, Role};
use super::{Daemon, Ending};
use crate::error::{Error, ErrorKind};

pub(crate) use table::METHODS;

/// A request on its way.
pub(crate) struct Call<'a> {
    /// Who answers.
    pub(super) daemon: &'a Arc<Daemon>,
    /// Who asks.
    pub(super) peer: &'a Peer,
    /// What they may do.
    pub(super) role: Role,
    /// Whether this connection follows the events already.
    pub(super) follows: bool,
    /// Set by `events.subscribe`: the connection follows from after this event.
    pub(super) follow: Option<u64>,
    /// Set by `flow.watch`: the connection is sent these flows.
    pub(super) watch: Option<flow::Watch>,
    /// Set by `daemon.stop`: done when the answer is sent.
    pub(super) ending: Option<Ending>,
}

/// A method.
pub(crate) struct Method {
    /// `noun.verb`.
    pub(crate) name: &'static str,
    /// Who may use it.
    pub(crate) role: Role,
    /// What it does; Markdown.
    pub(crate) doc: &'static str,
    /// Parameters and result of an example, as JSON.
    pub(crate) example: (&'static str, &'static str),
    /// Schema of the parameters.
    pub(crate) params: fn(&mut SchemaGenerator) -> Schema,
    /// Schema of the result.
    pub(crate) result: fn(&mut SchemaGenerator) -> Schema,
    /// Whether the example fits the types.
    #[cfg(test)]
    pub(crate) check_example: fn(&Method) -> Result<(), String>,
    answer: fn(&mut Call, Value) -> Result<Value, Error>,
}

/// No parameters, or nothing to say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// Answers a request.
pub(super) fn dispatch(call: &mut Call, name: &str, params: Value) -> Result<Value, Error> {
    let Some(method) = METHODS.iter().find(|method| method.name == name) else {
        call.peer.allow(call.role, Role::Read, "this")?;
        let message = format!("there is no method {:?}: see schema.get", name.chars().take(80).collect::<String>());
        return Err(Error::new(ErrorKind::UnknownMethod, message));
    };
    call.peer.allow(call.role, method.role, name)?;
    (method.answer)(call, params)
}

fn typed<P: DeserializeOwned, R: Serialize>(
    call: &mut Call,
    params: Value,
    method: &str,
    answer: fn(&mut Call, P) -> Result<R, Error>,
) -> Result<Value, Error> {
    let params = serde_json::from_value(params)
        .map_err(|error| Error::new(ErrorKind::Usage, format!("{method}: {error}: see schema.get")))?;
    let result = answer(call, params)?;
    serde_json::to_value(result).map_err(|error| Error::new(ErrorKind::Failed, format!("{method}: {error}")))
}

#[cfg(test)]
fn check_example<P: DeserializeOwned + Serialize, R: DeserializeOwned + Serialize>(
    method: &Method,
) -> Result<(), String> {
    let (params, result) = method.example;
    serde_json::from_str::<P>(params).map_err(|error| format!("{}: example params: {error}", method.name))?;
    let value =
        serde_json::from_str::<R>(result).map_err(|error| format!("{}: example result: {error}", method.name))?;
    let written: Value = serde_json::from_str(result).map_err(|error| error.to_string())?;
    let read = serde_json::to_value(value).map_err(|error| error.to_string())?;
    if read == written { Ok(()) } else { Err(format!("{}: the example result should be {read}", method.name)) }
}
