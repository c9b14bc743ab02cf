//! Methods that change ports. The lane is asked first; what it refuses leaves nothing behind.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringspan_protocol::{Compat, DeviceSpec, MacAddress, Mode, Policy, PortChange, PortName, PortSpec, Reply, Request};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use super::port::{PortEntry, entry, unknown};
use super::{Call, Nothing, attach};
use crate::attach::record::Key;
use crate::control::{Daemon, EventKind, locked};
use crate::desired::{DesiredPort, Origin};
use crate::error::{Error, ErrorKind};
use crate::port_request::{PortRequest, check_mtu, check_rate};

/// Longest wait of `may_exist` for somebody else who is adding the port: as long as a lane may take for a device.
const PENDING_LIMIT: Duration = Duration::from_secs(75);

/// A port to add.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Add {
    /// What it is.
    #[serde(flatten)]
    pub port: PortRequest,
    /// An equal port of that name is a success.
    pub may_exist: bool,
}

// By hand, because serde cannot both flatten a struct and refuse unknown fields.
impl<'de> Deserialize<'de> for Add {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        use serde::de::Error;
        let mut fields = serde_json::Map::<String, Value>::deserialize(deserializer)?;
        let may_exist = match fields.remove("may_exist") {
            None => false,
            Some(Value::Bool(value)) => value,
            Some(other) => return Err(D::Error::custom(format!("may_exist must be true or false, not {other}"))),
        };
        let port = serde_json::from_value(Value::Object(fields)).map_err(D::Error::custom)?;
        Ok(Self { port, may_exist })
    }
}

impl JsonSchema for Add {
    fn schema_name() -> Cow<'static, str> {
        "Add".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = PortRequest::json_schema(generator);
        if let Some(Value::Object(properties)) = schema.get_mut("properties") {
            let about = "An equal port of that name is a success.";
            properties.insert(
                "may_exist".into(),
                serde_json::json!({ "type": "boolean", "default": false, "description": about }),
            );
        }
        schema
    }
}

/// Waits while somebody else adds a port of that name, so that `may_exist` meets a port and not a plan.
fn settled(daemon: &Daemon, name: &PortName) -> bool {
    let until = Instant::now() + PENDING_LIMIT;
    while locked(&daemon.desired).ports.get(name).is_some_and(|port| port.pending) {
        if Instant::now() > until {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

/// Whether a port that is there is what is asked for; what the request leaves open fits.
fn is_what_is_asked(port: &DesiredPort, request: &PortRequest) -> Result<bool, Error> {
    let spec = request.spec(Some(port.spec.compat))?;
    Ok(port.spec == spec && request.lane.as_ref().is_none_or(|lane| *lane == port.lane))
}

fn in_the_file(daemon: &Daemon, name: &PortName, remedy: &str) -> String {
    let config = locked(&daemon.config);
    let line = config.port(name).map_or_else(String::new, |port| format!(":{}", port.line));
    format!("port {name} is in {}{line}: {remedy}", config.file.display())
}

pub(super) fn add(call: &mut Call, params: Add) -> Result<PortEntry, Error> {
    add_to(call.daemon, params)
}

pub(super) fn add_to(daemon: &Daemon, params: Add) -> Result<PortEntry, Error> {
    let Add { port: request, may_exist } = params;
    let spec = request.spec(None)?;
    let name = spec.name.clone();
    let config = locked(&daemon.config).clone();
    if spec.socket == config.control.socket {
        let message = format!("port {name}: {:?} is the control socket: give it another path", spec.socket);
        return Err(Error::new(ErrorKind::Busy, message).about(name));
    }
    if let Some(lane) = &request.lane
        && config.lane(lane).is_none()
    {
        let known = config.lanes.iter().map(|lane| lane.name.as_str()).collect::<Vec<_>>().join(", ");
        let message = format!("port {name}: there is no lane {lane}: name one of {known}");
        return Err(Error::new(ErrorKind::NotFound, message).about(name));
    }
    let room = daemon.room(&config);
    if may_exist && !settled(daemon, &name) {
        return Err(being_added(&name));
    }
    let lane = {
        let mut desired = locked(&daemon.desired);
        if let Some(there) = desired.ports.get(&name) {
            if may_exist && there.pending {
                return Err(being_added(&name));
            }
            if may_exist && is_what_is_asked(there, &request)? {
                drop(desired);
                return entry(daemon, &name);
            }
            let message = match there.origin {
                Origin::Config => in_the_file(daemon, &name, "change it there and run ringspan reload"),
                Origin::RunTime if may_exist => {
                    format!("port {name} exists and is not the same: change it with port set, or remove it first")
                }
                Origin::RunTime => format!("port {name} exists already: remove it first, or use --may-exist"),
            };
            return Err(Error::new(ErrorKind::Exists, message).about(name));
        }
        if let Some(aside) = desired.aside.iter().find(|aside| aside.spec.name == name) {
            let message = format!("port {name} exists and stands aside: {}", aside.reason);
            return Err(Error::new(ErrorKind::Exists, message).about(name));
        }
        let lane = match request.lane.as_ref().or(desired.lane_of_nic(&spec.device)) {
            Some(lane) => lane.clone(),
            None => desired.choose_lane(&spec, &room, &BTreeMap::new())?,
        };
        desired.claim(&spec, &lane)?;
        let port = DesiredPort { spec: spec.clone(), lane: lane.clone(), origin: Origin::RunTime, pending: true };
        desired.ports.insert(name.clone(), port);
        lane
    };
    // Looked at when the device is claimed: an attachment that comes later finds it claimed.
    let added = attach::check_free(daemon, &spec).and_then(|()| daemon.lane(&lane)).and_then(|lane| {
        let spec = daemon.for_lane(&spec)?;
        lane.change(Request::PortAdd(Box::new(spec)), |reply| {
            reply?;
            commit(daemon, &name)
        })
    });
    if let Err(error) = added {
        locked(&daemon.desired).ports.remove(&name);
        daemon.forget_journals();
        sweep_after(daemon, &spec);
        // What the lane took and could not be written down is taken back.
        if let Ok(lane) = daemon.lane(&lane) {
            lane.look_again();
        }
        return Err(error.about(name));
    }
    daemon.events.tell(Some(&lane), Some(&name), EventKind::PortAdded);
    entry(daemon, &name)
}

/// A port that is not wanted any more takes its vDPA device along. A port without one waits for nobody's.
fn sweep_after(daemon: &Daemon, spec: &PortSpec) {
    if matches!(spec.device, DeviceSpec::Vdpa { .. }) {
        daemon.sweep_vdpa();
    }
}

/// The lane has the port: from here on it is wanted.
fn commit(daemon: &Daemon, name: &PortName) -> Result<(), Error> {
    let mut desired = locked(&daemon.desired);
    if let Some(port) = desired.ports.get_mut(name) {
        port.pending = false;
    }
    daemon.state_dir.save(&desired.saved())
}

/// A port to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Remove {
    /// Its name.
    pub name: PortName,
    /// A port that is not there is a success.
    #[serde(default)]
    pub if_exists: bool,
}

pub(super) fn remove(call: &mut Call, params: Remove) -> Result<Nothing, Error> {
    if let Some(key) = attach::key_of(call.daemon, &params.name) {
        let Key { guest, nic } = key;
        let message = format!(
            "port {0} is NIC {nic} of guest {guest}: detach it (ringspan port detach {guest} --nic {nic})",
            params.name
        );
        return Err(Error::new(ErrorKind::Conflict, message).about(&params.name));
    }
    remove_from(call.daemon, params)
}

pub(super) fn remove_from(daemon: &Daemon, params: Remove) -> Result<Nothing, Error> {
    let name = params.name;
    let there = {
        let mut desired = locked(&daemon.desired);
        // A run-time port that stands aside is what can be removed, also when the file has one of its name.
        if let Some(at) = desired.aside.iter().position(|port| port.spec.name == name && port.origin == Origin::RunTime)
        {
            let aside = desired.aside.remove(at);
            if let Err(error) = daemon.state_dir.save(&desired.saved()) {
                desired.aside.insert(at, aside);
                return Err(error.about(name));
            }
            drop(desired);
            daemon.events.tell(aside.lane.as_ref(), Some(&name), EventKind::PortRemoved);
            return Ok(Nothing {});
        }
        desired.ports.get(&name).cloned()
    };
    let Some(port) = there else {
        return if params.if_exists { Ok(Nothing {}) } else { Err(unknown(&name)) };
    };
    refuse_unless_ours(daemon, &port, "take it out there and run ringspan reload")?;
    let forget = |reply: Result<Reply, Error>| {
        match reply {
            Ok(_) => {}
            // A lane that does not have it, does not run, or is nowhere any more, needs nothing: it is not given the port again.
            Err(error) if matches!(error.kind, ErrorKind::NotFound | ErrorKind::LaneDown) => {}
            Err(error) => return Err(error.about(&name)),
        }
        let mut desired = locked(&daemon.desired);
        let Some(removed) = desired.ports.remove(&name) else { return Ok(()) };
        if let Err(error) = daemon.state_dir.save(&desired.saved()) {
            desired.ports.insert(name.clone(), removed);
            return Err(error.about(&name));
        }
        Ok(())
    };
    let lane = match daemon.lane(&port.lane) {
        Ok(lane) => {
            let request = Request::PortRemove { name: name.clone(), forget: true };
            lane.change(request, forget).inspect_err(|_| lane.look_again())?;
            lane.forget_refusal(&name);
            lane.forget_port(&name);
            Some(lane)
        }
        Err(unknown) => {
            forget(Err(unknown))?;
            None
        }
    };
    daemon.forget_journals();
    sweep_after(daemon, &port.spec);
    daemon.events.tell(Some(&port.lane), Some(&name), EventKind::PortRemoved);
    if let Some(lane) = lane {
        daemon.retire(&lane);
    }
    Ok(Nothing {})
}

fn refuse_unless_ours(daemon: &Daemon, port: &DesiredPort, remedy: &str) -> Result<(), Error> {
    let name = &port.spec.name;
    if port.origin == Origin::Config {
        return Err(Error::new(ErrorKind::Conflict, in_the_file(daemon, name, remedy)).about(name));
    }
    if port.pending { Err(being_added(name)) } else { Ok(()) }
}

fn being_added(name: &PortName) -> Error {
    Error::new(ErrorKind::Busy, format!("port {name} is being added at this moment: try again")).about(name)
}

/// What to change of a running port; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Set {
    /// Its name.
    pub name: PortName,
    /// The MTU in bytes, 68 to 9216. The device stops for a moment; the guest sees it at its next reset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// The device's MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The promiscuous policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub promiscuous: Option<Policy>,
    /// The allmulti policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allmulti: Option<Policy>,
    /// The set of virtio features; seen by the guest at its next connection.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<Compat>,
    /// VLAN of a guest's attachment, 1 to 4094; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: Option<u16>,
    /// Least rate that the NIC keeps for what a guest's attachment sends, in Mbit/s; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rate: Option<u32>,
    /// Most rate in each direction, in Mbit/s; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u32>,
    /// Who moves the packets, where the device is a vDPA device. Rings that run change hands, and packets wait for as long.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
}

impl Set {
    /// Nothing of this port.
    pub(super) fn nothing(name: PortName) -> Self {
        Self {
            name,
            mtu: None,
            mac: None,
            promiscuous: None,
            allmulti: None,
            compat: None,
            vlan: None,
            min_rate: None,
            max_rate: None,
            mode: None,
        }
    }
}

/// What was changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Changed {
    /// A port.
    Port(Box<PortEntry>),
    /// A guest's NIC that was handed over whole, and has no port.
    HandedOver(Box<attach::Entry>),
}

pub(super) fn set(call: &mut Call, params: Set) -> Result<Changed, Error> {
    let daemon = call.daemon;
    let port = |entry: PortEntry| Changed::Port(Box::new(entry));
    if let Some(key) = attach::key_of(daemon, &params.name) {
        if let Some(changed) = attach::set_handed_over(daemon, &key, &params)? {
            return Ok(Changed::HandedOver(Box::new(changed)));
        }
        let rest = attach::set(daemon, &key, &params)?;
        // What is the port's alone.
        let nothing_left = rest == Set::nothing(params.name.clone());
        return if nothing_left { entry(daemon, &params.name) } else { set_on(daemon, rest) }.map(port);
    }
    if params.vlan.is_some() || params.min_rate.is_some() {
        let name = &params.name;
        let message = format!(
            "port {name}: vlan and min_rate are those of a guest's attachment, and this port is of none: see ringspan vf set, or ringspan ovs configure --tag"
        );
        return Err(Error::new(ErrorKind::Unsupported, message).about(name));
    }
    set_on(daemon, params).map(port)
}

pub(super) fn set_on(daemon: &Daemon, params: Set) -> Result<PortEntry, Error> {
    let Set { name, mtu, mac, promiscuous, allmulti, compat, vlan: _, min_rate: _, max_rate, mode } = params;
    let bad = |message: String| Error::new(ErrorKind::Invalid, format!("port {name}: {message}")).about(&name);
    if let Some(mtu) = mtu {
        check_mtu(mtu).map_err(bad)?;
    }
    let mac = mac.map(MacAddress::unicast).transpose().map_err(|error| bad(format!("mac: {error}")))?;
    if let Some(rate) = max_rate {
        check_rate(rate).map_err(bad)?;
    }
    let change = PortChange { mtu, mac, promiscuous, allmulti, compat, max_rate, mode };
    if change == PortChange::default() {
        return Err(bad("nothing to change: name mtu, mac, promiscuous, allmulti, compat, max_rate or mode".into()));
    }
    let port = locked(&daemon.desired).ports.get(&name).cloned().ok_or_else(|| unknown(&name))?;
    refuse_unless_ours(daemon, &port, "change it there and run ringspan reload")?;
    let lane = daemon.lane(&port.lane)?;
    lane.change(Request::PortSet { name: name.clone(), change: change.clone() }, |reply| {
        reply.map(|_: Reply| ()).map_err(|error| error.about(&name))?;
        let mut desired = locked(&daemon.desired);
        let Some(port) = desired.ports.get_mut(&name) else { return Err(unknown(&name)) };
        let changed = change.apply(&port.spec);
        let before: PortSpec = std::mem::replace(&mut port.spec, changed);
        if let Err(error) = daemon.state_dir.save(&desired.saved()) {
            if let Some(port) = desired.ports.get_mut(&name) {
                port.spec = before;
            }
            return Err(error.about(&name));
        }
        Ok(())
    })
    .inspect_err(|_| lane.look_again())?;
    daemon.events.tell(Some(&port.lane), Some(&name), EventKind::PortChanged);
    entry(daemon, &name)
}
