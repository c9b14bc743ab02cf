//! The plan: what the agent's files ask of each card, what is so, and what would be done. Touches nothing.

use std::collections::BTreeMap;
use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::file::{At, Placed};
use super::inventory::{Card, Interface, Inventory, Lag};
use super::network::{Network, Uplink};
use super::settings::Settings;

/// Mellanox in PCI.
const MELLANOX: u16 = 0x15b3;

/// What would be done.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Plan {
    /// The files that were read, in the order of the agent's precedence.
    pub files: Vec<String>,
    /// Cards, in the order of the files.
    pub items: Vec<Item>,
    /// What is wrong with the files, or odd about them.
    pub problems: Vec<Problem>,
    /// What the agent must give up before ringspan owns these cards.
    pub give_up: Vec<GiveUp>,
}

/// A card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Item {
    /// The interface.
    pub interface: String,
    /// The card's PCI address, where there is a card.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
    /// What its VFs are for.
    pub kind: Kind,
    /// The bond whose member it is, where the file names the bond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bond: Option<String>,
    /// The bridge that its representors belong to.
    pub bridge: String,
    /// The wire, or the addresses, of its network.
    pub wire: String,
    /// Where it is asked for: file and line.
    pub from: String,
    /// How it stands.
    pub standing: Standing,
    /// What would be done, in order; empty: all is so already.
    pub steps: Vec<String>,
    /// Why it is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<Problem>,
    /// A bond's members, where this is one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub members: Vec<String>,
    /// VFs that it shall have.
    pub vfs: u32,
    /// Whether it is in switchdev mode now.
    pub switchdev: bool,
}

/// What a card's VFs are for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Kind {
    /// `sriov_nics`: given to guests whole, the card's own switch between them.
    Sriov,
    /// `ovs_offload_nics`: switchdev mode, with representors in Open vSwitch.
    OvsOffload,
    /// `ovs_offload_nics`, a bond of both ports of one ConnectX: the NIC makes one switch of them.
    VfLag,
}

impl Kind {
    fn key(self) -> &'static str {
        match self {
            Self::Sriov => "sriov_nics",
            Self::OvsOffload | Self::VfLag => "ovs_offload_nics",
        }
    }
}

/// How an item stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Standing {
    /// As it should be.
    AsWanted,
    /// Steps are to be done.
    ToDo,
    /// It cannot be done, or must not.
    Refused,
}

/// What is wrong, or odd.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Problem {
    /// How bad it is.
    pub level: Level,
    /// The file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// The line in it, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// What it is.
    pub message: String,
    /// What to do.
    pub remedy: String,
}

/// How bad a problem is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Level {
    /// It will surprise.
    Warning,
    /// It does not work.
    Error,
}

/// A key that the agent must give up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct GiveUp {
    /// The key: `sriov_nics` or `ovs_offload_nics`.
    pub key: String,
    /// The entry.
    pub entry: String,
    /// Where it stands: file and line.
    pub from: String,
    /// What happens otherwise.
    pub why: String,
}

impl Problem {
    pub(super) fn new(level: Level, at: Option<&At>, message: impl Into<String>, remedy: impl Into<String>) -> Self {
        Self {
            level,
            file: at.map(|at| at.file.display().to_string()),
            line: at.map(|at| at.line).filter(|line| *line > 0),
            message: message.into(),
            remedy: remedy.into(),
        }
    }
}

/// What tells the agent's rebinds from those that were asked for.
pub(crate) const BY_NEW_ID: &str = "to vfio-pci by new_id";

/// Compares what the files ask with what the host has.
pub(crate) fn plan(settings: &Settings, host: &Inventory) -> Plan {
    let mut planner = Planner {
        settings,
        host,
        networks: Vec::new(),
        plan: Plan {
            files: settings.read.iter().map(|path| path.display().to_string()).collect(),
            problems: settings.problems.clone(),
            ..Plan::default()
        },
    };
    planner.networks();
    for entry in &settings.sriov_nics {
        planner.entry(Kind::Sriov, entry);
    }
    for entry in &settings.ovs_offload_nics {
        planner.entry(Kind::OvsOffload, entry);
    }
    planner.twice();
    planner.plan
}

struct Planner<'a> {
    settings: &'a Settings,
    host: &'a Inventory,
    networks: Vec<Network>,
    plan: Plan,
}

impl Planner<'_> {
    fn problem(&mut self, level: Level, at: &At, message: impl Into<String>, remedy: impl Into<String>) {
        self.plan.problems.push(Problem::new(level, Some(at), message, remedy));
    }

    fn networks(&mut self) {
        for entry in &self.settings.networks {
            let network = match Network::parse(&entry.value) {
                Ok(network) => network,
                Err((message, remedy)) => {
                    self.problem(Level::Error, &entry.at, message, remedy);
                    continue;
                }
            };
            if self.networks.iter().any(|one| one.interface == network.interface) {
                let message = format!("{} is in networks twice", network.interface);
                self.problem(Level::Error, &entry.at, message, "take one of the two entries out");
                continue;
            }
            if !self.host.interfaces.contains_key(&network.interface) {
                let message = format!("there is no interface {}", network.interface);
                self.problem(Level::Error, &entry.at, message, "name an interface of this host: ip link show");
            }
            self.addresses(&network, &entry.at);
            self.networks.push(network);
        }
    }

    /// With an address the agent waits a minute for it on interface or bridge, and fails; with a wire it fails when there is one.
    fn addresses(&mut self, network: &Network, at: &At) {
        let both = [&network.interface, &network.bridge].map(|name| self.host.addresses_of(name));
        let [Some(on_interface), Some(on_bridge)] = both else { return };
        // Link-local addresses are everywhere.
        let is_local = |address: &IpAddr| matches!(address, IpAddr::V6(six) if six.is_unicast_link_local());
        let there: Vec<IpAddr> = on_interface.iter().chain(on_bridge).copied().filter(|one| !is_local(one)).collect();
        match &network.uplink {
            Uplink::Addresses(wanted) => {
                for address in wanted.iter().filter(|address| !there.contains(address)) {
                    let message = format!("neither {} nor {} has {address}", network.interface, network.bridge);
                    let remedy = "the agent waits a minute for it, then fails: set the address, or correct the entry";
                    self.problem(Level::Error, at, message, remedy);
                }
            }
            Uplink::Wire(wire) => {
                if let Some(address) = there.first() {
                    let message = format!(
                        "{} or {} has {address}, and the entry names a wire",
                        network.interface, network.bridge
                    );
                    let remedy = format!("write {address} in place of {wire}, or take the address away");
                    self.problem(Level::Error, at, message, remedy);
                }
            }
        }
    }

    /// An entry of `sriov_nics` or `ovs_offload_nics`: an interface, or a bond of several.
    fn entry(&mut self, kind: Kind, entry: &Placed<String>) {
        let name = &entry.value;
        let Some(interface) = self.host.interfaces.get(name) else {
            let message = format!("there is no interface {name}");
            let remedy = format!(
                "name an interface of this host in {}: ip link show; a bond is there when the network's configuration, or ringspan bond create, has made it",
                kind.key()
            );
            self.refuse(kind, entry, name, None, None, Problem::new(Level::Error, Some(&entry.at), message, remedy));
            return;
        };
        let listed = self.networks.iter().find(|network| network.interface == *name).cloned();
        let Some(members) = &interface.members else {
            let network = listed.or_else(|| self.first_network(entry));
            self.card(kind, entry, name, None, interface, network.as_ref());
            return;
        };
        let Some(network) = listed else {
            let message = format!("the bond {name} is not in networks: the agent drops it without a word");
            let remedy = format!("add it to networks, such as - {name}/br1/wire1");
            self.refuse(kind, entry, name, None, None, Problem::new(Level::Error, Some(&entry.at), message, remedy));
            return;
        };
        if members.is_empty() {
            let message = format!("the bond {name} has no member");
            let problem = Problem::new(Level::Error, Some(&entry.at), message, format!("ip link set PF master {name}"));
            self.refuse(kind, entry, name, None, Some(&network), problem);
        }
        for member in members {
            let nothing = Interface::default();
            let interface = self.host.interfaces.get(member).unwrap_or(&nothing);
            self.card(kind, entry, member, Some(name), interface, Some(&network));
        }
        if kind == Kind::OvsOffload && !members.is_empty() {
            self.lag(entry, interface, members, &network);
        }
    }

    /// A bond whose members' VFs are offloaded: without VF LAG each VF goes with its own port.
    fn lag(&mut self, entry: &Placed<String>, bond: &Interface, members: &[String], network: &Network) {
        let name = &entry.value;
        let cards = members.iter().map(|member| self.host.interfaces.get(member)?.card.as_ref());
        let Some(cards) = cards.collect::<Option<Vec<&Card>>>() else { return };
        let of_one = |one: &Card, other: &Card| {
            let place = |card: &Card| card.address.rsplit_once('.').map(|(place, _)| place.to_owned());
            place(one) == place(other) && one.address != other.address
        };
        let able = matches!(cards[..], [one, other] if of_one(one, other) && cards.iter().all(|card| card.driver == "mlx5_core"));
        if !able {
            let message = format!(
                "{name} is no bond of both ports of one ConnectX, so there is no VF LAG: a VF of it is cut off while its own port has no link"
            );
            let remedy =
                "bond both ports of one NIC, or give guests two VFs in a bond (device bond:mode=1,pci:...,pci:...)";
            return self.problem(Level::Warning, &entry.at, message, remedy);
        }
        if !["", "active-backup", "balance-xor", "802.3ad"].contains(&bond.mode.as_str()) {
            let message = format!("the bond {name} is in mode {}, in which a ConnectX has no VF LAG", bond.mode);
            let remedy = "make it active-backup, balance-xor or 802.3ad: ringspan bond create";
            let problem = Problem::new(Level::Error, Some(&entry.at), message, remedy);
            return self.refuse(Kind::VfLag, entry, name, None, Some(network), problem);
        }
        let steps = match bond.lag {
            Lag::Active => vec![],
            Lag::Inactive => vec![format!(
                "have {} leave and join {name} again with VFs unbound, and wait for VF LAG",
                members.join(" and ")
            )],
            Lag::Hidden => {
                let message = format!("whether {name} has VF LAG cannot be seen, so it is not begun");
                let remedy = "mount -t debugfs none /sys/kernel/debug; a kernel before 5.19 does not tell";
                return self.problem(Level::Warning, &entry.at, message, remedy);
            }
        };
        let (bridge, wire) = placed(Some(network));
        self.plan.items.push(Item {
            interface: name.clone(),
            address: None,
            kind: Kind::VfLag,
            bond: None,
            bridge,
            wire,
            from: entry.at.to_string(),
            standing: if steps.is_empty() { Standing::AsWanted } else { Standing::ToDo },
            steps,
            refused: None,
            members: members.to_vec(),
            vfs: 0,
            switchdev: true,
        });
    }

    /// What the agent takes for an interface that is not in `networks`.
    fn first_network(&mut self, entry: &Placed<String>) -> Option<Network> {
        let first = self.networks.first().cloned()?;
        let name = &entry.value;
        let message = format!(
            "{name} is not in networks: the agent puts it on bridge {} and wire {}, those of the first entry",
            first.bridge, first.uplink
        );
        self.problem(Level::Warning, &entry.at, message, format!("add it to networks, such as - {name}/br1/wire1"));
        Some(first)
    }

    fn card(
        &mut self,
        kind: Kind,
        entry: &Placed<String>,
        name: &str,
        bond: Option<&str>,
        interface: &Interface,
        network: Option<&Network>,
    ) {
        self.plan.give_up.push(GiveUp {
            key: kind.key().into(),
            entry: entry.value.clone(),
            from: entry.at.to_string(),
            why: match kind {
                Kind::Sriov => {
                    format!("the agent sets {name}'s VFs to their maximum, and binds them to vfio-pci by new_id")
                }
                Kind::OvsOffload | Kind::VfLag => format!("the agent unbinds {name}'s VFs and writes its eswitch mode"),
            },
        });
        if let Some(problem) = self.obstacle(kind, entry, name, interface) {
            self.refuse(kind, entry, name, bond, network, problem);
            return;
        }
        let Some(card) = &interface.card else { return };
        if card.taken_by_agent > 0 {
            let message = format!("the agent has bound {} VFs of {name} {BY_NEW_ID}", card.taken_by_agent);
            let remedy = "take the card from the agent's keys and restart the agent; ringspan doctor has the commands";
            self.problem(Level::Warning, &entry.at, message, remedy);
        }
        if card.hidden_from_agent {
            let message = format!("{name} is in a PCI domain that the agent passes over: only ringspan offers its VFs");
            self.problem(Level::Warning, &entry.at, message, "ringspan device list shows them");
        }
        let total = card.total_vfs.unwrap_or(0);
        let steps = steps(kind, name, card, total);
        let (bridge, wire) = placed(network);
        self.plan.items.push(Item {
            interface: name.into(),
            address: Some(card.address.clone()),
            kind,
            bond: bond.map(str::to_owned),
            bridge,
            wire,
            from: entry.at.to_string(),
            standing: if steps.is_empty() { Standing::AsWanted } else { Standing::ToDo },
            steps,
            refused: None,
            members: Vec::new(),
            vfs: total,
            switchdev: card.switchdev,
        });
    }

    /// Why a card cannot be what is asked.
    fn obstacle(&self, kind: Kind, entry: &Placed<String>, name: &str, interface: &Interface) -> Option<Problem> {
        let problem =
            |message: String, remedy: String| Some(Problem::new(Level::Error, Some(&entry.at), message, remedy));
        let Some(card) = &interface.card else {
            return problem(
                format!("{name} is no physical function of a card on the PCI bus"),
                "name a PF's interface, or a bond of PFs: ringspan pf list".into(),
            );
        };
        match card.total_vfs {
            None => {
                return problem(
                    format!("{name} ({}) has no SR-IOV", card.address),
                    "ringspan doctor says what to enable in the firmware".into(),
                );
            }
            Some(0) => {
                return problem(
                    format!("the firmware of {name} ({}) allows no VF", card.address),
                    format!("mstconfig -y -d {} set SRIOV_EN=1 NUM_OF_VFS=8, then reboot", card.address),
                );
            }
            Some(_) => {}
        }
        if kind == Kind::Sriov {
            return None;
        }
        if interface.infiniband {
            return problem(
                format!("{name} is an InfiniBand card: Open vSwitch switches Ethernet only"),
                "move it to sriov_nics".into(),
            );
        }
        if card.vendor == MELLANOX && card.driver == "mlx4_core" {
            return problem(
                format!("{name} is a ConnectX-3: it has no switchdev mode"),
                "move it to sriov_nics".into(),
            );
        }
        if card.vendor == MELLANOX && card.device <= CONNECTX6 && !self.settings.disable_security_group {
            let said =
                self.settings.said.as_ref().map_or_else(|| "which nobody sets".into(), |at| format!("set in {at}"));
            return problem(
                format!(
                    "{name} is a ConnectX-6 or older, which tracks few connections, and security groups are on (disable_security_group is false, {said}): no guest's flows would be offloaded"
                ),
                "set disable_security_group: true, or move the card to sriov_nics".into(),
            );
        }
        None
    }

    fn refuse(
        &mut self,
        kind: Kind,
        entry: &Placed<String>,
        name: &str,
        bond: Option<&str>,
        network: Option<&Network>,
        problem: Problem,
    ) {
        let (bridge, wire) = placed(network);
        self.plan.items.push(Item {
            interface: name.into(),
            address: self.host.interfaces.get(name).and_then(|one| Some(one.card.as_ref()?.address.clone())),
            kind,
            bond: bond.map(str::to_owned),
            bridge,
            wire,
            from: entry.at.to_string(),
            standing: Standing::Refused,
            steps: Vec::new(),
            refused: Some(problem),
            members: Vec::new(),
            vfs: 0,
            switchdev: false,
        });
    }

    /// A card that is asked for twice: of the same kind it is one, of both kinds it can be neither.
    fn twice(&mut self) {
        let mut seen: BTreeMap<String, (Kind, String)> = BTreeMap::new();
        let mut items = Vec::new();
        for mut item in std::mem::take(&mut self.plan.items) {
            match seen.get(&item.interface) {
                Some((kind, _)) if *kind == item.kind => continue,
                Some((_, from)) => {
                    let message =
                        format!("{} is in sriov_nics and in ovs_offload_nics ({from}, {})", item.interface, item.from);
                    item.standing = Standing::Refused;
                    item.steps.clear();
                    item.refused = Some(Problem::new(Level::Error, None, message, "take it out of one of the two"));
                }
                None => {
                    seen.insert(item.interface.clone(), (item.kind, item.from.clone()));
                }
            }
            items.push(item);
        }
        // The first of two that clash is refused, too.
        let clash: Vec<String> = items
            .iter()
            .filter(|item| item.refused.as_ref().is_some_and(|one| one.file.is_none()))
            .map(|item| item.interface.clone())
            .collect();
        for item in items.iter_mut().filter(|item| clash.contains(&item.interface) && item.refused.is_none()) {
            let message = format!("{} is in sriov_nics and in ovs_offload_nics", item.interface);
            item.standing = Standing::Refused;
            item.steps.clear();
            item.refused = Some(Problem::new(Level::Error, None, message, "take it out of one of the two"));
        }
        self.plan.items = items;
    }
}

/// The last device id of the ConnectX-6 generation; 6 Dx begins at 0x101d.
const CONNECTX6: u16 = 0x101c;

fn placed(network: Option<&Network>) -> (String, String) {
    network.map_or_else(Default::default, |network| (network.bridge.clone(), network.uplink.to_string()))
}

/// What is to be done, in the order that the card's driver needs.
fn steps(kind: Kind, name: &str, card: &Card, total: u32) -> Vec<String> {
    let mut steps = Vec::new();
    let count = |steps: &mut Vec<String>| {
        if card.vfs != total {
            if card.vfs != 0 {
                steps.push(format!("set VFs of {name} from {} to 0", card.vfs));
            }
            steps.push(format!("set VFs of {name} to {total}, and wait for each"));
        }
    };
    // Names count for interfaces that come after them.
    let names = format!("write udev's rules for names of {name}'s VFs and representors that stay");
    match kind {
        Kind::Sriov => {
            if card.switchdev {
                steps.push(format!("unbind VFs of {name}, and set its eswitch to legacy"));
            }
            count(&mut steps);
        }
        Kind::OvsOffload if card.switchdev && card.vfs == total => {}
        // ice makes VFs in switchdev mode, mlx5 wants them before.
        Kind::OvsOffload if card.driver == "ice" => {
            steps.push(names);
            if card.vfs != 0 && !card.switchdev {
                steps.push(format!("set VFs of {name} from {} to 0", card.vfs));
            }
            steps.push(format!("set hw-tc-offload of {name} on"));
            if !card.switchdev {
                steps.push(format!("set the eswitch of {name} to switchdev"));
            }
            steps.push(format!("set VFs of {name} to {total}, and wait for each"));
        }
        Kind::OvsOffload | Kind::VfLag => {
            steps.push(names);
            if card.switchdev {
                steps.push(format!("unbind VFs of {name}, and set its eswitch to legacy"));
            }
            steps.push(format!("set hw-tc-offload of {name} on"));
            steps.push(format!("set the steering mode of {name} to smfs, where it has a choice"));
            count(&mut steps);
            steps
                .push(format!("unbind VFs of {name}, set its eswitch to switchdev, and wait for {total} representors"));
        }
    }
    steps
}
