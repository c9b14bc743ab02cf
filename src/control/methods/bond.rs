//! Methods about the host's bonds.

use std::cell::RefCell;

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

/// Open vSwitch's bridges while one change is made: read once, when they are first asked for, and anew when the change has put something there.
struct Bridges {
    place: Place,
    read: RefCell<Option<Result<View, Error>>>,
}

impl Bridges {
    fn new(daemon: &Daemon) -> Self {
        Self { place: place(daemon), read: RefCell::default() }
    }

    /// Where an interface is. None also where there is no Open vSwitch.
    fn port_of(&self, interface: &str) -> Result<Option<BridgePort>, Error> {
        match self.read.borrow_mut().get_or_insert_with(|| look(&self.place)) {
            Ok(view) => Ok(on(view, interface)),
            Err(error) => Err(error.clone()),
        }
    }
}

/// The bridges; none where there is no Open vSwitch.
fn look(place: &Place) -> Result<View, Error> {
    match Database::connect(place).and_then(|mut database| View::read(&mut database)) {
        Ok(view) => Ok(view),
        Err(_) if !place.is_there() => Ok(View::default()),
        Err(error) => {
            let error = Error::from(error);
            Err(Error { message: format!("whether a bridge has it is not known: {}", error.message), ..error })
        }
    }
}

/// Where an interface is, by itself or in a bond of Open vSwitch's.
fn on(view: &View, interface: &str) -> Option<BridgePort> {
    let (bridge, port, _) = view.interfaces().find(|(.., one)| one.name == interface)?;
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
    let bridges = Bridges::new(daemon);
    let port_of = |name: &str| bridges.port_of(name);
    let attach = |name: &str, to: Option<&BridgePort>| {
        let attached = attach(daemon, name, to);
        bridges.read.take();
        attached
    };
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
    Ok(on_bridge(&Bridges::new(call.daemon), bond))
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

fn on_bridge(bridges: &Bridges, bond: Bond) -> Bond {
    Bond { bridge: bridges.port_of(&bond.name).ok().flatten().map(|port| port.bridge), ..bond }
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
    let bridges = Bridges::new(call.daemon);
    Ok(found.into_iter().map(|bond| on_bridge(&bridges, bond)).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ovs::view::{Bridge, Interface, Port};

    #[test]
    fn no_open_vswitch_is_told_from_one_that_does_not_answer() {
        let folder = tempfile::tempdir().unwrap();
        let place = Place::new(Some(folder.path()));
        assert_eq!(look(&place).unwrap(), View::default());
        // Its switch runs while its database is started anew.
        std::fs::write(folder.path().join("ovs-vswitchd.pid"), std::process::id().to_string()).unwrap();
        assert_eq!(look(&place).unwrap_err().kind, ErrorKind::OvsDown);
        std::fs::write(folder.path().join("ovs-vswitchd.pid"), "4194999").unwrap();
        assert_eq!(look(&place).unwrap(), View::default());
        drop(std::os::unix::net::UnixListener::bind(place.database()).unwrap());
        let bridges = Bridges { place, read: RefCell::default() };
        let error = bridges.port_of("eth0").unwrap_err();
        assert!(error.message.contains("whether a bridge has it is not known"), "{error}");
        // It is asked once, whatever it has answered.
        drop(folder);
        assert_eq!(bridges.port_of("eth1").unwrap_err(), error);
    }

    #[test]
    fn an_interface_in_a_bond_of_open_vswitch_is_on_its_bridge() {
        let interfaces = ["eth0_0", "eth0_1"].map(|name| Interface { name: name.into(), ..Interface::default() });
        let port = Port { name: "pair".into(), tag: Some(7), interfaces: interfaces.into(), ..Port::default() };
        let bridge = Bridge { name: "br0".into(), ports: vec![port], ..Bridge::default() };
        let view = View { bridges: vec![bridge], ..View::default() };
        assert_eq!(on(&view, "eth0_1"), Some(BridgePort { bridge: "br0".into(), tag: Some(7) }));
        assert_eq!(on(&view, "pair"), None);
    }
}
