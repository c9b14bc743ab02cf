//! Making Open vSwitch as it is wanted: each item by itself, and nothing is done twice.

use std::time::{Duration, Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::client::{Database, OvsError, Place, Process, Switch};
use super::view::{self, View};
use crate::error::{Error, ErrorKind};

/// Longest wait by default until ovs-vswitchd has taken a change, in milliseconds.
const SETTLE_MS: u64 = 10_000;

/// How Open vSwitch should be. What is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Configure {
    /// Whether OVS offloads flows (`other_config:hw-offload`). A change comes into force when ovs-vswitchd is restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hw_offload: Option<bool>,
    /// Where TC puts them (`other_config:tc-policy`). A change comes into force when ovs-vswitchd is restarted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tc_policy: Option<TcPolicy>,
    /// Bridges that should be there.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub bridges: Vec<WantedBridge>,
    /// Ports that should be there, or not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<WantedPort>,
    /// Restart ovs-vswitchd if that is needed. Its traffic stops meanwhile.
    #[serde(default)]
    pub restart: bool,
    /// Longest wait until ovs-vswitchd has taken the changes, in milliseconds, at most 60,000.
    #[serde(default = "settle")]
    pub timeout_ms: u64,
}

fn settle() -> u64 {
    SETTLE_MS
}

/// Where TC puts a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TcPolicy {
    /// In software and in the NIC.
    None,
    /// In the NIC alone.
    SkipSw,
    /// In software alone.
    SkipHw,
}

impl TcPolicy {
    fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::SkipSw => "skip_sw",
            Self::SkipHw => "skip_hw",
        }
    }
}

/// A bridge that should be there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedBridge {
    /// Its name.
    pub name: String,
    /// Its datapath: `system` or `netdev`. Absent: whatever it is, and `system` for a new one. That of a bridge that is there is not changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub datapath_type: Option<String>,
}

/// A port that should be there, or not.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct WantedPort {
    /// Its name: the representor's.
    pub name: String,
    /// The bridge that it is on. May be absent for one that is there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Its VLAN, 1 to 4095; 0: none. Absent: whatever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<u16>,
    /// What OVN knows it by (`external_ids:iface-id`); empty: nothing. Absent: whatever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iface_id: Option<String>,
    /// Type of its interface, for a new one; a network interface of the host when absent.
    #[serde(default, rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// It should not be there.
    #[serde(default)]
    pub absent: bool,
}

impl WantedPort {
    /// A port as it is now, in one bridge or another.
    pub(crate) fn of(view: &View, name: &str) -> Option<Self> {
        let (bridge, port) = view.port(name)?;
        Some(Self {
            name: name.into(),
            bridge: Some(bridge.name.clone()),
            tag: Some(port.tag.unwrap_or(0)),
            iface_id: Some(port.interfaces.first().and_then(|one| one.iface_id.clone()).unwrap_or_default()),
            ..Self::default()
        })
    }
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Configured {
    /// Every item, in the order of the request.
    pub items: Vec<Item>,
    /// Whether ovs-vswitchd has taken it all.
    pub settled: bool,
    /// Why ovs-vswitchd must be restarted; absent when it need not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub restart_needed: Option<String>,
    /// Whether it was.
    pub restarted: bool,
}

/// What came of one item.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Item {
    /// What: `hw-offload`, `tc-policy`, `bridge br0`, `port nic0_vf3`.
    pub item: String,
    /// What came of it.
    pub outcome: Outcome,
    /// What was done, sentence by sentence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<String>,
    /// Why not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// What came of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Outcome {
    /// It was so already.
    Unchanged,
    /// It was not, and is now.
    Changed,
    /// It is not; the error says why.
    Refused,
}

/// What an item takes: operations for the database, and what they do in words. Nothing when it is so already.
struct Change {
    operations: Vec<Value>,
    done: Vec<String>,
}

/// A bridge-wide setting that only a restart brings into force.
const AT_RESTART: [&str; 2] = ["hw-offload", "tc-policy"];

/// Makes it so, as far as it can be: an item that fails leaves the others alone. The restart is the caller's.
pub(crate) fn configure(place: &Place, wanted: &Configure) -> Result<Configured, Error> {
    let mut database = Database::connect(place)?;
    let mut run = Run { database: &mut database, under: life(place), target: None, items: Vec::new(), broken: None };
    if let Some(on) = wanted.hw_offload {
        let under = run.under.clone();
        run.item("hw-offload".into(), |view| {
            let mut change = setting("hw-offload", &view.hw_offload.to_string(), &on.to_string())?;
            // The process that has taken it goes on: who asks later is to know.
            if let (Some(change), Some(life), true) = (&mut change, under, view.hw_offload) {
                change.operations.push(set_entry("external_ids", view::OFFLOADED_UNDER, &life));
            }
            Ok(change)
        });
    }
    if let Some(policy) = wanted.tc_policy {
        run.item("tc-policy".into(), |view| setting("tc-policy", &view.tc_policy, policy.word()));
    }
    for bridge in &wanted.bridges {
        run.item(format!("bridge {}", bridge.name), |view| add_bridge(view, bridge));
    }
    for port in &wanted.ports {
        run.item(format!("port {}", port.name), |view| make_port(view, port));
    }
    let Run { target, mut items, broken, .. } = run;
    let rest = match broken {
        Some(error) => Err(error),
        None => wait_until_taken(&mut database, target, Duration::from_millis(wanted.timeout_ms.min(60_000)))
            .and_then(|settled| Ok((settled, View::read(&mut database)?))),
    };
    let (settled, view) = match rest {
        Ok(rest) => rest,
        // What was done is told, whatever came behind it.
        Err(_) if items.iter().any(|item| item.outcome == Outcome::Changed) => {
            return Ok(Configured { items, settled: false, restart_needed: None, restarted: false });
        }
        Err(error) => return Err(error),
    };
    if settled {
        explain(&view, wanted, &mut items);
    }
    let running = super::restart::running(place);
    let under = running.filter(|process| view.changed_under == Some(process.life()));
    let restart_needed = under.map(|Process { pid, .. }| {
        format!("{} changed while ovs-vswitchd {pid} ran: it takes them when it starts", AT_RESTART.join(" or "))
    });
    Ok(Configured { items, settled, restart_needed, restarted: false })
}

/// The switch that will not have seen what only a restart brings into force.
fn life(place: &Place) -> Option<String> {
    Switch::connect(place).ok().map(|switch| switch.process.life())
}

struct Run<'a> {
    database: &'a mut Database,
    under: Option<String>,
    /// Why the connection is of no more use.
    broken: Option<Error>,
    /// The number that `cur_cfg` must reach.
    target: Option<i64>,
    items: Vec<Item>,
}

impl Run<'_> {
    /// Does one item. Behind an end of the connection all are refused, so that what was done before is told.
    fn item(&mut self, item: String, change: impl FnOnce(&View) -> Result<Option<Change>, Error>) {
        let result = match self.broken.clone() {
            Some(error) => Err(error),
            None => self.change(&item, change),
        };
        self.items.push(match result {
            Ok((outcome, done)) => Item { item, outcome, done, error: None },
            Err(error) => Item { outcome: Outcome::Refused, done: Vec::new(), error: Some(error.about(&item)), item },
        });
    }

    fn change(
        &mut self,
        item: &str,
        change: impl FnOnce(&View) -> Result<Option<Change>, Error>,
    ) -> Result<(Outcome, Vec<String>), Error> {
        let view = View::read(self.database).map_err(|error| self.is_broken(error.into()))?;
        let Some(change) = change(&view)? else { return Ok((Outcome::Unchanged, Vec::new())) };
        match self.transact(item, change.operations) {
            Ok(()) => Ok((Outcome::Changed, change.done)),
            Err(error) if error.connection_is_good() => Err(error.into()),
            Err(error) => Err(self.is_broken(error.into())),
        }
    }

    fn is_broken(&mut self, error: Error) -> Error {
        self.broken.insert(error).clone()
    }

    /// The operations, and with them the number that ovs-vswitchd answers when it has taken them, as ovs-vsctl does it.
    fn transact(&mut self, item: &str, mut operations: Vec<Value>) -> Result<(), OvsError> {
        if let Some(life) = self.under.as_ref().filter(|_| AT_RESTART.contains(&item)) {
            operations.push(set_entry("external_ids", view::CHANGED_UNDER, life));
        }
        let changes = operations.clone();
        operations.push(
            json!({ "op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": [["next_cfg", "+=", 1]] }),
        );
        operations.push(json!({ "op": "select", "table": "Open_vSwitch", "where": [], "columns": ["next_cfg"] }));
        let results = self.database.transact(operations)?;
        self.target = results.last().and_then(|result| result["rows"][0]["next_cfg"].as_i64());
        // The row may have gone since it was read.
        let missed = |(change, result): &(&Value, &Value)| change["op"] != "insert" && result["count"] == 0;
        if let Some((change, _)) = changes.iter().zip(&results).find(missed) {
            let reason = format!("the row in {} that it is about has gone meanwhile: try again", change["table"]);
            return Err(OvsError::Refused { peer: "ovsdb-server", method: "transact".into(), reason });
        }
        Ok(())
    }
}

fn setting(key: &str, has: &str, wanted: &str) -> Result<Option<Change>, Error> {
    if has == wanted {
        return Ok(None);
    }
    let done = vec![format!("other_config:{key} is {wanted}, was {has}")];
    Ok(Some(Change { operations: vec![set_entry("other_config", key, wanted)], done }))
}

/// Sets one entry of a map of the root row.
fn set_entry(column: &str, key: &str, value: &str) -> Value {
    json!({ "op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": entry(column, key, value) })
}

/// An insert leaves a key alone that is there, so it goes first. An empty value: it only goes.
fn entry(column: &str, key: &str, value: &str) -> Value {
    let gone = json!([column, "delete", ["set", [key]]]);
    if value.is_empty() { json!([gone]) } else { json!([gone, [column, "insert", ["map", [[key, value]]]]]) }
}

fn add_bridge(view: &View, wanted: &WantedBridge) -> Result<Option<Change>, Error> {
    let name = &wanted.name;
    check_name("bridge", name, LETTERS)?;
    let kind = wanted.datapath_type.as_deref();
    if let Some(bridge) = view.bridge(name) {
        return match kind {
            Some(kind) if kind != bridge.datapath_type => {
                let has = &bridge.datapath_type;
                let message = format!(
                    "bridge {name} has the datapath_type {has}, not {kind}: remove it first, its ports lose their traffic"
                );
                Err(Error::new(ErrorKind::Conflict, message))
            }
            _ => Ok(None),
        };
    }
    if let Some((bridge, _)) = view.port(name) {
        let message = format!("{name} is a port of bridge {}: choose another name", bridge.name);
        return Err(Error::new(ErrorKind::Exists, message));
    }
    let kind = kind.unwrap_or("system");
    let operations = vec![
        json!({ "op": "insert", "table": "Interface", "uuid-name": "interface", "row": { "name": name, "type": "internal" } }),
        json!({ "op": "insert", "table": "Port", "uuid-name": "port",
            "row": { "name": name, "interfaces": ["named-uuid", "interface"] } }),
        json!({ "op": "insert", "table": "Bridge", "uuid-name": "bridge",
            "row": { "name": name, "datapath_type": kind, "ports": ["named-uuid", "port"] } }),
        json!({ "op": "mutate", "table": "Open_vSwitch", "where": [],
            "mutations": [["bridges", "insert", ["named-uuid", "bridge"]]] }),
    ];
    Ok(Some(Change { operations, done: vec![format!("added, with datapath_type {kind}")] }))
}

fn make_port(view: &View, wanted: &WantedPort) -> Result<Option<Change>, Error> {
    let name = &wanted.name;
    check_name("port", name, 255)?;
    if let Some(tag) = wanted.tag.filter(|tag| *tag > 4095) {
        let message = format!("port {name}: {tag} is no VLAN: give 1 to 4095, or 0 for none");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    let found = view.port(name);
    match (found, wanted.absent) {
        (None, true) => Ok(None),
        (Some((bridge, port)), true) => Ok(Some(remove_port(&bridge.name, port))),
        (Some((bridge, port)), false) => change_port(bridge, port, wanted),
        (None, false) => add_port(view, wanted).map(Some),
    }
}

fn remove_port(bridge: &str, port: &view::Port) -> Change {
    // A port that no bridge has goes, and its interfaces with it: they are no root rows.
    let operations = vec![json!({ "op": "mutate", "table": "Bridge", "where": [["name", "==", bridge]],
        "mutations": [["ports", "delete", ["uuid", port.uuid]]] })];
    Change { operations, done: vec![format!("removed from bridge {bridge}")] }
}

fn change_port(bridge: &view::Bridge, port: &view::Port, wanted: &WantedPort) -> Result<Option<Change>, Error> {
    let name = &wanted.name;
    if let Some(other) = wanted.bridge.as_ref().filter(|other| **other != bridge.name) {
        let message = format!("port {name} is on bridge {}, not {other}: remove it there first", bridge.name);
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let mut change = Change { operations: Vec::new(), done: Vec::new() };
    let has = port.tag.unwrap_or(0);
    if let Some(tag) = wanted.tag.filter(|tag| *tag != has) {
        let where_ = json!([["name", "==", name]]);
        change
            .operations
            .push(json!({ "op": "update", "table": "Port", "where": where_, "row": { "tag": tag_value(tag) } }));
        change.done.push(format!("tag is {tag}, was {has}"));
    }
    let interface = port.interfaces.first();
    let has = interface.and_then(|interface| interface.iface_id.as_deref()).unwrap_or_default();
    if let Some(id) = wanted.iface_id.as_deref().filter(|id| *id != has) {
        let where_ = json!([["name", "==", interface.map_or(name, |interface| &interface.name)]]);
        let mutations = entry("external_ids", "iface-id", id);
        change
            .operations
            .push(json!({ "op": "mutate", "table": "Interface", "where": where_, "mutations": mutations }));
        change.done.push(format!("iface-id is {id:?}, was {has:?}"));
    }
    Ok((!change.operations.is_empty()).then_some(change))
}

fn add_port(view: &View, wanted: &WantedPort) -> Result<Change, Error> {
    let name = &wanted.name;
    let Some(bridge) = wanted.bridge.as_deref() else {
        let message = format!("port {name} is on no bridge: name the bridge that it should be on");
        return Err(Error::new(ErrorKind::Usage, message));
    };
    if view.bridge(bridge).is_none() {
        let known: Vec<&str> = view.bridges.iter().map(|bridge| bridge.name.as_str()).collect();
        let known = if known.is_empty() { "there is none".into() } else { format!("there are {}", known.join(", ")) };
        return Err(Error::new(ErrorKind::NotFound, format!("there is no bridge {bridge}: {known}")));
    }
    let kind = wanted.kind.as_deref().unwrap_or("");
    if matches!(kind, "" | "system" | "internal" | "tap") {
        check_name("port", name, LETTERS)?;
    }
    let mut interface = Map::new();
    interface.insert("name".into(), json!(name));
    interface.insert("type".into(), json!(kind));
    if let Some(id) = wanted.iface_id.as_deref().filter(|id| !id.is_empty()) {
        interface.insert("external_ids".into(), json!(["map", [["iface-id", id]]]));
    }
    let tag = tag_value(wanted.tag.unwrap_or(0));
    let operations = vec![
        json!({ "op": "insert", "table": "Interface", "uuid-name": "interface", "row": interface }),
        json!({ "op": "insert", "table": "Port", "uuid-name": "port",
            "row": { "name": name, "interfaces": ["named-uuid", "interface"], "tag": tag } }),
        json!({ "op": "mutate", "table": "Bridge", "where": [["name", "==", bridge]],
            "mutations": [["ports", "insert", ["named-uuid", "port"]]] }),
    ];
    Ok(Change { operations, done: vec![format!("added to bridge {bridge}")] })
}

fn tag_value(tag: u16) -> Value {
    if tag == 0 { json!(["set", []]) } else { json!(tag) }
}

/// Most letters in the name of a network interface (IFNAMSIZ).
const LETTERS: usize = 15;

/// Names of bridges are names of network interfaces, as are those of ports that the host has; others may be longer.
fn check_name(what: &str, name: &str, most: usize) -> Result<(), Error> {
    let good = (1..=most).contains(&name.len()) && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'/');
    if good && name != "." && name != ".." {
        return Ok(());
    }
    let message = format!("{what} {name:?}: a name has 1 to {most} letters, without spaces and slashes");
    Err(Error::new(ErrorKind::Invalid, message))
}

/// Whether ovs-vswitchd has taken everything up to this number in time.
fn wait_until_taken(database: &mut Database, target: Option<i64>, limit: Duration) -> Result<bool, Error> {
    let until = Instant::now() + limit;
    loop {
        let rows = database.select(&[("Open_vSwitch", &["cur_cfg", "next_cfg"])])?;
        let Some(row) = rows.first().and_then(|rows| rows.first()) else { return Ok(false) };
        if row.number("cur_cfg") >= target.or(row.number("next_cfg")) {
            return Ok(true);
        }
        if Instant::now() >= until {
            return Ok(false);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A port that the database has and the switch cannot open is no success.
fn explain(view: &View, wanted: &Configure, items: &mut [Item]) {
    for port in wanted.ports.iter().filter(|port| !port.absent) {
        let Some((_, found)) = view.port(&port.name) else { continue };
        let Some(reason) = found.interfaces.iter().find_map(|interface| interface.error.clone()) else { continue };
        let name = format!("port {}", port.name);
        if let Some(item) = items.iter_mut().find(|item| item.item == name && item.outcome != Outcome::Refused) {
            let message = format!("{name} is in the database, and ovs-vswitchd cannot use it: {reason}");
            item.outcome = Outcome::Refused;
            item.error = Some(Error::new(ErrorKind::Failed, message).about(&name));
        }
    }
}
