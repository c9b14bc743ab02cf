//! Methods about the host's bonds.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Call;
use super::device::{changing, owners};
use crate::control::{Daemon, locked};
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::bond::{self, Around, Before, Bond, BridgePort, Delete, Removed, Wish};
use crate::host::work::Change;
use crate::ovs::client::{Database, Place};
use crate::ovs::configure::{Configure, Outcome, WantedPort, configure};
use crate::ovs::view::View;

/// Longest wait for ovs-vswitchd to take a bond, in milliseconds.
const SETTLE_MS: u64 = 10_000;

fn place(daemon: &Daemon) -> Place {
    Place::new(locked(&daemon.config).ovs.run_dir.as_deref())
}

/// Where an interface is in Open vSwitch.
fn port_of(daemon: &Daemon, interface: &str) -> Option<BridgePort> {
    let mut database = Database::connect(&place(daemon)).ok()?;
    let view = View::read(&mut database).ok()?;
    let (bridge, port) = view.port(interface)?;
    Some(BridgePort { bridge: bridge.name.clone(), tag: port.tag })
}

fn attach(daemon: &Daemon, interface: &str, to: Option<&BridgePort>) -> Result<(), Error> {
    let port = WantedPort {
        name: interface.into(),
        bridge: to.map(|port| port.bridge.clone()),
        tag: to.and_then(|port| port.tag),
        absent: to.is_none(),
        ..WantedPort::default()
    };
    let wanted = Configure { ports: vec![port], timeout_ms: SETTLE_MS, ..Configure::default() };
    let configured = configure(&place(daemon), &wanted)?;
    match configured.items.into_iter().find(|item| item.outcome == Outcome::Refused) {
        Some(item) => {
            Err(item.error.unwrap_or_else(|| Error::new(ErrorKind::Failed, format!("{} was refused", item.item))))
        }
        None => Ok(()),
    }
}

/// Runs a change of bonds, with what the daemon knows besides the host.
pub(super) fn with_around<T>(
    daemon: &Daemon,
    change: impl FnOnce(&Around<'_>) -> Result<T, Error>,
) -> Result<T, Error> {
    let owner = |address: ringspan_protocol::PciAddress| owners(daemon).remove(&address.to_string());
    let (port_of, attach) =
        (|name: &str| port_of(daemon, name), |name: &str, to: Option<&BridgePort>| attach(daemon, name, to));
    change(&Around { owner: &owner, port_of: &port_of, attach: &attach })
}

fn log(call: &Call, done: &[String]) {
    for done in done {
        tracing::info!("{done}, as process {} asked", call.peer.pid);
    }
}

pub(super) fn create(call: &mut Call, wish: Wish) -> Result<Bond, Error> {
    let change = |host: &Host| Ok(Change::MakeBond { before: Before::look(host, &wish), wish: wish.clone() });
    let bond =
        changing(call.daemon, change, |host| with_around(call.daemon, |around| bond::create(host, &wish, around)))?;
    log(call, &bond.done);
    Ok(on_bridge(call, bond))
}

pub(super) fn delete(call: &mut Call, Delete { name, disturb }: Delete) -> Result<Removed, Error> {
    let change = |host: &Host| {
        let (pair, index) = (bond::lag_pair(host, &name), bond::index_of(host, &name));
        Ok(Change::DeleteBond { pair, index, name: name.clone(), disturb })
    };
    let removed = changing(call.daemon, change, |host| {
        with_around(call.daemon, |around| bond::delete(host, &name, disturb, around))
    })?;
    log(call, &removed.done);
    Ok(removed)
}

fn on_bridge(call: &Call, bond: Bond) -> Bond {
    Bond { bridge: port_of(call.daemon, &bond.name).map(|port| port.bridge), ..bond }
}

/// Which bond.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Which {
    /// Its name; absent: all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

pub(super) fn status(call: &mut Call, Which { name }: Which) -> Result<Vec<Bond>, Error> {
    let host = call.daemon.host();
    let found = match name {
        Some(name) => vec![bond::get(&host, &name)?],
        None => bond::all(&host),
    };
    Ok(found.into_iter().map(|bond| on_bridge(call, bond)).collect())
}
