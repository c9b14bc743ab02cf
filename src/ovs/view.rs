//! What the database says, as far as it matters here: settings, bridges, ports, interfaces.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::client::database::Row;
use super::client::{Database, OvsError};
use super::max_idle;

/// Open vSwitch as its database has it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct View {
    /// Version of ovs-vswitchd, as it last wrote it there.
    pub version: String,
    /// Version of the database's schema.
    pub schema: String,
    /// Whether flows are to be offloaded (`other_config:hw-offload`).
    pub hw_offload: bool,
    /// Whether it waits for the tables of its bridges (`other_config:flow-restore-wait`), as ovs-ctl lets it when it restarts it: until then
    /// it takes no frame that has no flow.
    #[serde(default)]
    pub restoring: bool,
    /// Whether it reads one VLAN header of a frame only, as it does unless `other_config:vlan-limit` says otherwise.
    #[serde(skip)]
    pub one_vlan: bool,
    /// Where TC puts them (`other_config:tc-policy`): none, skip_sw or skip_hw.
    pub tc_policy: String,
    /// Time in milliseconds after which a flow without packets goes (`other_config:max-idle`).
    pub max_idle_ms: u64,
    /// What it was before ringspan took it over, in milliseconds or `unset`, and what it was raised to; absent while it is the user's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_idle_was: Option<String>,
    /// Most flows in the datapath (`other_config:flow-limit`).
    pub flow_limit: u64,
    /// Whether ovs-vswitchd has taken the last change.
    pub settled: bool,
    /// The process that ran when a setting was changed that only a restart brings into force: its number, and when it started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub changed_under: Option<String>,
    /// The process that ran when ringspan set `hw-offload` to false: in that one it stays in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offloaded_under: Option<String>,
    /// The bridges, by name.
    pub bridges: Vec<Bridge>,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Bridge {
    /// Its name.
    pub name: String,
    /// Its datapath: `system` is the kernel's, `netdev` the userspace one.
    pub datapath_type: String,
    /// Its ports, by name.
    pub ports: Vec<Port>,
}

/// A port of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Port {
    /// Its row.
    #[serde(skip)]
    pub uuid: String,
    /// Its name.
    pub name: String,
    /// Its VLAN; absent: it is a trunk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<u16>,
    /// Its interfaces: one, unless it is a bond.
    pub interfaces: Vec<Interface>,
}

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Interface {
    /// Its name, which is the network interface's unless the type says otherwise.
    pub name: String,
    /// Its type; `system` is a network interface of the host.
    #[serde(rename = "type")]
    pub kind: String,
    /// Its OpenFlow number; absent or -1: it does not work.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ofport: Option<i64>,
    /// What OVN and controllers know it by (`external_ids:iface-id`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iface_id: Option<String>,
    /// Why it does not work, in ovs-vswitchd's words.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

/// Key in `external_ids` of what [`View::changed_under`] says.
pub(super) const CHANGED_UNDER: &str = "ringspan-changed-under-pid";
/// Key in `external_ids` of what [`View::offloaded_under`] says.
pub(super) const OFFLOADED_UNDER: &str = "ringspan-offloaded-under-pid";
/// OVS's default, ovs-vswitchd.conf.db(5).
const FLOW_LIMIT: u64 = 200_000;

impl View {
    /// Reads it, all at one time.
    pub(crate) fn read(database: &mut Database) -> Result<Self, OvsError> {
        let tables = database.select(&[
            (
                "Open_vSwitch",
                &["ovs_version", "db_version", "other_config", "external_ids", "next_cfg", "cur_cfg", "bridges"],
            ),
            ("Bridge", &["name", "datapath_type", "ports"]),
            ("Port", &["name", "tag", "interfaces"]),
            ("Interface", &["name", "type", "ofport", "external_ids", "error"]),
        ])?;
        let [root, bridges, ports, interfaces] = &tables[..] else { return Ok(Self::default()) };
        let Some(root) = root.first() else { return Ok(Self::default()) };
        let (ports, interfaces) = (by_uuid(ports), by_uuid(interfaces));
        let config = |key: &str| root.entry("other_config", key);
        let number = |key: &str, default: u64| config(key).and_then(|text| text.parse().ok()).unwrap_or(default);
        let mut bridges: Vec<Bridge> = bridges.iter().map(|row| bridge(row, &ports, &interfaces)).collect();
        bridges.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(Self {
            version: root.text("ovs_version").into(),
            schema: root.text("db_version").into(),
            hw_offload: config("hw-offload").is_some_and(|text| text.eq_ignore_ascii_case("true")),
            restoring: config("flow-restore-wait").is_some_and(|text| text.eq_ignore_ascii_case("true")),
            one_vlan: number("vlan-limit", 1) == 1,
            tc_policy: config("tc-policy").unwrap_or("none").into(),
            max_idle_ms: number("max-idle", max_idle::DEFAULT_MS),
            max_idle_was: root.entry("external_ids", max_idle::WAS).map(String::from),
            flow_limit: number("flow-limit", FLOW_LIMIT),
            settled: root.number("next_cfg") == root.number("cur_cfg"),
            changed_under: root.entry("external_ids", CHANGED_UNDER).map(String::from),
            offloaded_under: root.entry("external_ids", OFFLOADED_UNDER).map(String::from),
            bridges,
        })
    }

    /// The bridge of that name.
    pub(crate) fn bridge(&self, name: &str) -> Option<&Bridge> {
        self.bridges.iter().find(|bridge| bridge.name == name)
    }

    /// The port of that name, and the bridge that it is on.
    pub(crate) fn port(&self, name: &str) -> Option<(&Bridge, &Port)> {
        self.bridges.iter().find_map(|bridge| Some((bridge, bridge.ports.iter().find(|port| port.name == name)?)))
    }

    /// All interfaces, with the port and the bridge that each is on.
    pub(crate) fn interfaces(&self) -> impl Iterator<Item = (&Bridge, &Port, &Interface)> {
        let ports = self.bridges.iter().flat_map(|bridge| bridge.ports.iter().map(move |port| (bridge, port)));
        ports.flat_map(|(bridge, port)| port.interfaces.iter().map(move |interface| (bridge, port, interface)))
    }
}

fn by_uuid(rows: &[Row]) -> BTreeMap<&str, &Row> {
    rows.iter().map(|row| (row.uuid(), row)).collect()
}

fn bridge(row: &Row, ports: &BTreeMap<&str, &Row>, interfaces: &BTreeMap<&str, &Row>) -> Bridge {
    let named =
        |row: &Row| row.references("ports").into_iter().filter_map(|uuid| ports.get(uuid)).copied().cloned().collect();
    let rows: Vec<Row> = named(row);
    let mut ports: Vec<Port> = rows.iter().map(|row| port(row, interfaces)).collect();
    ports.sort_by(|one, other| one.name.cmp(&other.name));
    Bridge { name: row.text("name").into(), datapath_type: or_system(row.text("datapath_type")), ports }
}

fn port(row: &Row, interfaces: &BTreeMap<&str, &Row>) -> Port {
    let rows = row.references("interfaces").into_iter().filter_map(|uuid| interfaces.get(uuid));
    let interface = |row: &&Row| Interface {
        name: row.text("name").into(),
        kind: or_system(row.text("type")),
        ofport: row.number("ofport"),
        iface_id: row.entry("external_ids", "iface-id").map(Into::into),
        error: Some(row.text("error")).filter(|text| !text.is_empty()).map(Into::into),
    };
    let tag = row.number("tag").and_then(|tag| tag.try_into().ok());
    Port { uuid: row.uuid().into(), name: row.text("name").into(), tag, interfaces: rows.map(interface).collect() }
}

/// An empty type is the kernel's.
fn or_system(kind: &str) -> String {
    if kind.is_empty() { "system".into() } else { kind.into() }
}
