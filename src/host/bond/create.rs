//! A bond is made as it is wanted, or one that is there is adopted: all of it or nothing.
//!
//! The order is the kernel's: a mode before members and while the bond is down, members while they are down (bond_main.c, `bond_enslave`).

use std::time::Duration;

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::state::{self, Bond};
use super::{Around, check_name, lag};
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::inventory::{Inventory, find};
use crate::host::netlink::{BondMode, BondOptions, HashPolicy, LacpRate, LinkChange, NetlinkError};
use crate::host::pci::Function;
use crate::host::representor::index;
use crate::host::steps::Steps;
use crate::host::work::Left;

/// How often links are looked at where nobody says.
const MIIMON_MS: u32 = 100;
/// The kernel waits for an interface that it has just made no longer than udev renames it.
const APPEAR: Duration = Duration::from_secs(5);

/// How a bond should be; what is absent stays, or is the default in a new one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// Its name.
    pub name: String,
    /// Its members: interfaces, or PCI addresses.
    pub members: Vec<String>,
    /// `active-backup`, `balance-xor` or `802.3ad`; or as a number 1, 2 or 4. Others are refused, with the reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// How often links are looked at, in milliseconds, 1 to 10,000. 100 in a new bond.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub miimon: Option<u32>,
    /// What is hashed to choose a member; not in active-backup.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_policy: Option<HashPolicy>,
    /// How often the partner is asked to speak; 802.3ad only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp_rate: Option<LacpRate>,
    /// The members are the two PFs of a ConnectX: both go to switchdev mode, VFs are without drivers meanwhile, and VF LAG is waited for.
    #[serde(default)]
    pub vf_lag: bool,
    /// The bridge of Open vSwitch that it is put on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// Also when a member is up, or the bond has to go down for a change.
    #[serde(default)]
    pub disturb: bool,
    /// Longest wait for VF LAG, in milliseconds, 10 minutes at most.
    #[serde(default = "timeout_ms")]
    pub timeout_ms: u64,
}

fn timeout_ms() -> u64 {
    30_000
}

/// Where an interface is in Open vSwitch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct BridgePort {
    /// The bridge.
    pub bridge: String,
    /// Its VLAN.
    pub tag: Option<u16>,
}

/// A member that is wanted.
#[derive(Debug, Clone)]
struct Wanted {
    interface: String,
    index: u32,
    address: Option<PciAddress>,
    was_up: bool,
}

fn refuse<T>(bond: &str, kind: ErrorKind, message: impl std::fmt::Display) -> Result<T, Error> {
    Err(Error::new(kind, format!("{bond}: {message}")).about(bond))
}

/// A mode by its name or number, or why it is none of ours.
fn mode(bond: &str, text: &str) -> Result<BondMode, Error> {
    let why = match text {
        "active-backup" | "1" => return Ok(BondMode::ActiveBackup),
        "balance-xor" | "2" => return Ok(BondMode::BalanceXor),
        "802.3ad" | "4" | "lacp" => return Ok(BondMode::Lacp),
        "balance-rr" | "0" => "it puts a connection's frames out of order, and NICs' LAG (mlx5's too) has no such mode",
        "broadcast" | "3" => "it sends every frame by every member, and NICs' LAG has no such mode",
        "balance-tlb" | "5" => {
            "it sends by each member's own address, which a switch with VFs behind it does not bear, and NICs' LAG has no such mode"
        }
        "balance-alb" | "6" => {
            "it answers ARP in the name of guests, which breaks Open vSwitch's learning, and NICs' LAG has no such mode"
        }
        _ => {
            return refuse(
                bond,
                ErrorKind::Invalid,
                format_args!("{text:?} is no mode: give active-backup, balance-xor or 802.3ad"),
            );
        }
    };
    refuse(
        bond,
        ErrorKind::Unsupported,
        format_args!("mode {text} is refused: {why}: give active-backup, balance-xor or 802.3ad"),
    )
}

/// The name of a mode.
fn called(mode: BondMode) -> &'static str {
    match mode {
        BondMode::ActiveBackup => "active-backup",
        BondMode::BalanceXor => "balance-xor",
        BondMode::Lacp => "802.3ad",
    }
}

impl Wish {
    /// VF LAG of a bond that is there.
    pub(crate) fn lag_of(name: &str, members: &[String]) -> Self {
        Self {
            name: name.into(),
            members: members.to_vec(),
            mode: None,
            miimon: None,
            hash_policy: None,
            lacp_rate: None,
            vf_lag: true,
            bridge: None,
            disturb: true,
            timeout_ms: timeout_ms(),
        }
    }

    /// What can be said without looking at the host.
    fn check(&self) -> Result<Option<BondMode>, Error> {
        check_name(&self.name)?;
        let mode = self.mode.as_deref().map(|text| mode(&self.name, text)).transpose()?;
        let invalid = |message: &str| refuse(&self.name, ErrorKind::Invalid, message);
        if self.members.is_empty() {
            return invalid("it needs a member at least: name interfaces or PCI addresses");
        }
        if self.miimon.is_some_and(|miimon| !(1..=10_000).contains(&miimon)) {
            return invalid("miimon: give 1 to 10000 ms; with 0 a dead link would go on being used");
        }
        Ok(mode)
    }

    /// What fits the mode that it will have.
    fn fits(&self, mode: BondMode) -> Result<(), Error> {
        if self.hash_policy.is_some() && mode == BondMode::ActiveBackup {
            return refuse(
                &self.name,
                ErrorKind::Invalid,
                "active-backup sends by one member, so there is nothing to hash: leave hash_policy out",
            );
        }
        if self.lacp_rate.is_some() && mode != BondMode::Lacp {
            return refuse(
                &self.name,
                ErrorKind::Invalid,
                format_args!("{} speaks no LACP: leave lacp_rate out, or give mode 802.3ad", called(mode)),
            );
        }
        Ok(())
    }
}

fn explain(bond: &str, what: &str, error: &NetlinkError) -> Error {
    let told = error.tell(format!("{bond}: {what}")).about(bond);
    let remedy = match error.errno() {
        Some(libc::EPERM | libc::EACCES) => "run the daemon as root; a NIC's port that is up cannot become a member",
        Some(libc::EOPNOTSUPP) => {
            "the kernel has no such link or option: is the module bonding there (modprobe bonding)?"
        }
        Some(libc::EBUSY) => "a member that is used otherwise, or VFs that are bound while VF LAG changes",
        _ => return told,
    };
    Error { message: format!("{}: {remedy}", told.message), ..told }
}

/// Changes a link, with the error about a bond.
pub(super) fn change(host: &Host, bond: &str, what: &str, change: &LinkChange<'_>) -> Result<(), Error> {
    host.kernel.change_link(change).map_err(|error| explain(bond, what, &error))
}

/// Makes an interface up or down.
pub(super) fn set_up(host: &Host, bond: &str, interface: &str, index: u32, up: bool) -> Result<(), Error> {
    let state = if up { "up" } else { "down" };
    change(host, bond, &format!("{interface} does not go {state}"), &LinkChange::Up(index, up))
}

/// The members that are wanted, each of them an interface that may be one.
fn resolve(host: &Host, wish: &Wish) -> Result<Vec<Wanted>, Error> {
    let bond = wish.name.as_str();
    let mut found: Vec<Wanted> = vec![];
    for name in &wish.members {
        let interface = match name.parse::<PciAddress>() {
            Ok(_) => {
                let address = find(host, name)?;
                let pf = Inventory::take(host).device_named(&address.to_string())?;
                let Some(interface) = pf.interface else {
                    return refuse(
                        bond,
                        ErrorKind::Unsupported,
                        format_args!("{name} has no interface: give it to the kernel's driver (ringspan device bind)"),
                    );
                };
                interface
            }
            Err(_) => name.clone(),
        };
        let bad_name = interface.is_empty() || interface.contains('/');
        let Some(index) = index(&host.sysfs, &interface).filter(|_| !bad_name) else {
            return refuse(bond, ErrorKind::NotFound, format_args!("there is no interface {interface:?}: see ip link"));
        };
        if state::is_bond(&host.sysfs, &interface) || interface == "lo" {
            return refuse(
                bond,
                ErrorKind::Invalid,
                format_args!("{interface} cannot be a member: name NICs' interfaces"),
            );
        }
        if found.iter().any(|one| one.index == index) {
            return refuse(bond, ErrorKind::Invalid, format_args!("{interface} is named twice"));
        }
        if let Some(master) = host.sysfs.link(&format!("class/net/{interface}/master")).filter(|master| master != bond)
        {
            return refuse(
                bond,
                ErrorKind::Busy,
                format_args!("{interface} is part of {master}: take it out of that first"),
            );
        }
        let address = state::function(&host.sysfs, &interface);
        let was_up = state::is_up(&host.sysfs, &interface);
        found.push(Wanted { interface, index, address, was_up });
    }
    Ok(found)
}

/// What is wanted besides of what is there: nothing of it can be taken back by half.
struct Plan {
    mode: BondMode,
    existing: Option<Bond>,
    /// Those that are in it, and have to leave and join again: the NIC looks at a bond when members join.
    rejoining: Vec<Wanted>,
    /// Those that are not in it yet.
    joining: Vec<Wanted>,
    /// Options that differ; in a new bond all.
    options: BondOptions,
    /// The PFs, where VF LAG is to begin.
    lag: Option<[PciAddress; 2]>,
    /// Where it is to be put.
    bridge: Option<BridgePort>,
}

impl Plan {
    fn make(host: &Host, wish: &Wish, around: &Around<'_>) -> Result<Self, Error> {
        let bond = wish.name.as_str();
        let wanted_mode = wish.check()?;
        let members = resolve(host, wish)?;
        let existing = state::read(host, bond);
        if existing.is_none() && host.sysfs.has(&format!("class/net/{bond}")) {
            return refuse(
                bond,
                ErrorKind::Exists,
                "there is an interface of that name which is no bond: choose another name",
            );
        }
        let mode = match (&existing, wanted_mode) {
            (None, mode) => mode.unwrap_or(BondMode::ActiveBackup),
            (Some(has), wanted) => {
                let has_mode = mode(bond, &has.mode);
                match wanted {
                    None => has_mode?,
                    Some(wanted) if has_mode.as_ref().is_ok_and(|mode| *mode == wanted) || has.members.is_empty() => {
                        wanted
                    }
                    Some(wanted) => {
                        let message = format!(
                            "it is there in mode {}, and a bond with members cannot change to {}: delete it first (ringspan bond delete {bond})",
                            has.mode,
                            called(wanted)
                        );
                        return refuse(bond, ErrorKind::Exists, message);
                    }
                }
            }
        };
        wish.fits(mode)?;
        let has =
            |interface: &str| existing.iter().flat_map(|bond| &bond.members).any(|one| one.interface == interface);
        let extra = existing
            .iter()
            .flat_map(|bond| &bond.members)
            .find(|one| !members.iter().any(|wanted| wanted.interface == one.interface));
        if let Some(extra) = extra {
            let name = &extra.interface;
            return refuse(
                bond,
                ErrorKind::Exists,
                format_args!(
                    "it has the member {name} besides: name it too, or take it out (ip link set {name} nomaster)"
                ),
            );
        }
        let joining: Vec<Wanted> = members.iter().filter(|one| !has(&one.interface)).cloned().collect();
        if let Some(up) = joining.iter().find(|one| one.was_up && !wish.disturb) {
            let name = &up.interface;
            return refuse(
                bond,
                ErrorKind::Busy,
                format_args!(
                    "{name} is up, and has to go down to become a member, which ends its traffic: ip link set {name} down, or --disturb"
                ),
            );
        }
        let options = match &existing {
            None => BondOptions {
                mode: Some(mode),
                miimon: Some(wish.miimon.unwrap_or(MIIMON_MS)),
                hash_policy: wish.hash_policy,
                lacp_rate: wish.lacp_rate,
            },
            Some(has) => BondOptions {
                mode: Some(mode).filter(|mode| called(*mode) != has.mode),
                // An adopted bond whose links nobody looks at never fails over. One that asks by ARP would lose that by it (bond_options.c).
                miimon: wish
                    .miimon
                    .or((has.miimon == 0 && !asks_by_arp(host, bond)).then_some(MIIMON_MS))
                    .filter(|miimon| *miimon != has.miimon),
                hash_policy: wish.hash_policy.filter(|policy| has.hash() != Some(*policy)),
                lacp_rate: wish.lacp_rate.filter(|rate| has.lacp_rate != Some(*rate)),
            },
        };
        let down = options.mode.is_some() || options.lacp_rate.is_some();
        if down && !wish.disturb && existing.as_ref().is_some_and(|bond| bond.up) {
            return refuse(
                bond,
                ErrorKind::Busy,
                "its mode or LACP rate changes only while it is down, which ends its traffic for a moment: --disturb",
            );
        }
        let lag = if wish.vf_lag {
            let named: Vec<_> = members.iter().map(|one| (one.interface.clone(), one.address)).collect();
            let pair = lag::pair(host, bond, &named)?;
            lag::check_visible(host, bond, pair)?;
            let needed = !joining.is_empty() || !lag::is_active(host, pair);
            needed.then_some(pair)
        } else {
            None
        };
        let rejoining: Vec<Wanted> = match lag {
            Some(_) => members.iter().filter(|one| has(&one.interface)).cloned().collect(),
            None => vec![],
        };
        if let Some(one) = rejoining.first().filter(|_| !wish.disturb) {
            let name = &one.interface;
            return refuse(
                bond,
                ErrorKind::Busy,
                format_args!(
                    "VF LAG is not active, and begins when members join: {name} has to leave for a moment, which ends its traffic: --disturb"
                ),
            );
        }
        if let Some(pair) = lag {
            lag::check_unused(host, bond, pair, around)?;
        }
        let on = if wish.bridge.is_some() { (around.port_of)(bond)? } else { None };
        let bridge = match (&wish.bridge, on) {
            (Some(wanted), Some(has)) if has.bridge != *wanted => {
                return refuse(
                    bond,
                    ErrorKind::Conflict,
                    format_args!(
                        "it is on bridge {}: remove that port first (ringspan ovs configure --remove-port {bond})",
                        has.bridge
                    ),
                );
            }
            (Some(_), Some(_)) | (None, _) => None,
            (Some(wanted), None) => Some(BridgePort { bridge: wanted.clone(), tag: None }),
        };
        Ok(Self { mode, existing, rejoining, joining, options, lag, bridge })
    }
}

/// Whether a bond tells by ARP which of its links live.
fn asks_by_arp(host: &Host, bond: &str) -> bool {
    state::setting(&host.sysfs, bond, "arp_interval").is_some_and(|interval| interval != "0")
}

/// Makes a bond as it is wanted.
pub(crate) fn create(host: &Host, wish: &Wish, around: &Around<'_>) -> Result<Bond, Error> {
    let plan = Plan::make(host, wish, around)?;
    let mut steps = Steps::default();
    match carry_out(host, wish, &plan, around, &mut steps) {
        Ok(()) => Ok(Bond { done: steps.finish(), ..state::get(host, &wish.name)? }),
        Err(error) => Err(steps.fail(error)),
    }
}

fn carry_out<'a>(
    host: &'a Host,
    wish: &'a Wish,
    plan: &'a Plan,
    around: &'a Around<'a>,
    steps: &mut Steps<'a>,
) -> Result<(), Error> {
    let bond = wish.name.as_str();
    let limit = Duration::from_millis(wish.timeout_ms.min(600_000));
    let mut unbound = vec![];
    for member in &plan.rejoining {
        let index = index_of(host, bond)?;
        release(host, bond, index, member, steps)?;
    }
    if let Some(pair) = plan.lag {
        lag::to_switchdev(host, pair, around, steps)?;
        unbound = lag::unbind_all(host, pair, steps)?;
    }
    let index = match &plan.existing {
        None => make(host, bond, plan, steps)?,
        Some(has) => adopt(host, has, plan, steps)?,
    };
    for member in plan.rejoining.iter().chain(&plan.joining) {
        join(host, bond, index, member, steps)?;
    }
    if !state::is_up(&host.sysfs, bond) {
        set_up(host, bond, bond, index, true)?;
        steps.did(format!("{bond} is up"), move || set_up(host, bond, bond, index, false));
    }
    if let Some(pair) = plan.lag {
        lag::await_active(host, bond, pair, true, limit)?;
        steps.did(format!("VF LAG of {bond} is active"), || Ok(()));
    }
    if let Some(port) = &plan.bridge {
        (around.attach)(bond, Some(port))?;
        steps.did(format!("{bond} is on bridge {}", port.bridge), move || (around.attach)(bond, None));
    }
    if let Some(pair) = plan.lag {
        lag::await_representors(host, bond, pair, limit)?;
        lag::rebind_all(host, unbound, steps)?;
    }
    Ok(())
}

/// The index of an interface that must be there now.
fn index_of(host: &Host, bond: &str) -> Result<u32, Error> {
    crate::host::steps::wait(APPEAR, || index(&host.sysfs, bond)).ok_or_else(|| {
        let message = format!(
            "{bond} was made, and is no interface in {}: is that the sysfs of this network namespace?",
            host.sysfs.path("class/net").display()
        );
        Error::new(ErrorKind::Failed, message).about(bond)
    })
}

/// Indices that the kernel gives to the next interfaces, at most.
const NEXT: u32 = 64;
/// Among so many beyond those one is chosen.
const CHOICE: u32 = 4096;

/// An index that no interface has, nor one that comes soon, written down: by it a bond is told from one that somebody else makes under the same name.
pub(super) fn own_index(host: &Host) -> Result<u32, Error> {
    let names = host.sysfs.names("class/net");
    let last = names.iter().filter_map(|name| index(&host.sysfs, name)).max().unwrap_or_default();
    let random = std::fs::read_to_string(host.proc.join("sys/kernel/random/uuid")).unwrap_or_default();
    let random = random.get(..8).and_then(|text| u32::from_str_radix(text, 16).ok()).unwrap_or_default();
    let own = last.saturating_add(NEXT + random % CHOICE).min(i32::MAX as u32);
    host.journal.making(own)?;
    Ok(own)
}

fn make<'a>(host: &'a Host, bond: &'a str, plan: &'a Plan, steps: &mut Steps<'a>) -> Result<u32, Error> {
    let own = own_index(host)?;
    change(host, bond, "the kernel does not make it", &LinkChange::MakeBond(bond, own, plan.options))?;
    steps.did(format!("{bond} is made, in mode {}", called(plan.mode)), move || {
        let Some(index) = index(&host.sysfs, bond) else { return Ok(()) };
        change(host, bond, "it does not go", &LinkChange::Remove(index))
    });
    index_of(host, bond)
}

/// The options of a bond that is there, one by one, so that each can be taken back.
fn adopt<'a>(host: &'a Host, has: &'a Bond, plan: &'a Plan, steps: &mut Steps<'a>) -> Result<u32, Error> {
    let bond = has.name.as_str();
    let index = index_of(host, bond)?;
    let BondOptions { mode: new_mode, miimon, hash_policy, lacp_rate } = plan.options;
    let none = BondOptions::default();
    if has.up && (new_mode.is_some() || lacp_rate.is_some()) {
        set_up(host, bond, bond, index, false)?;
        steps.did(format!("{bond} was down for a moment"), move || set_up(host, bond, bond, index, true));
    }
    let old_mode = mode(bond, &has.mode).ok();
    let settings = [
        (new_mode.map(|mode| BondOptions { mode: Some(mode), ..none }), BondOptions { mode: old_mode, ..none }, "mode"),
        (miimon.map(|_| BondOptions { miimon, ..none }), BondOptions { miimon: Some(has.miimon), ..none }, "miimon"),
        (
            hash_policy.map(|_| BondOptions { hash_policy, ..none }),
            BondOptions { hash_policy: has.hash(), ..none },
            "hash policy",
        ),
        (
            lacp_rate.map(|_| BondOptions { lacp_rate, ..none }),
            BondOptions { lacp_rate: has.lacp_rate, ..none },
            "LACP rate",
        ),
    ];
    for (wanted, old, what) in settings {
        let Some(wanted) = wanted else { continue };
        let set = move |options| {
            change(host, bond, &format!("its {what} does not change"), &LinkChange::SetBond(index, options))
        };
        set(wanted)?;
        let done = format!("{what} of {bond} is {}", told(wanted));
        // A mode or a policy that is none of ours cannot be written again.
        if old == none {
            steps.note(done);
        } else {
            steps.did(done, move || set(old));
        }
    }
    Ok(index)
}

/// An option as the kernel calls it.
fn told(options: BondOptions) -> String {
    let word = |value: Result<serde_json::Value, _>| {
        value.ok().and_then(|value| value.as_str().map(str::to_owned)).unwrap_or_default()
    };
    match options {
        BondOptions { mode: Some(mode), .. } => called(mode).into(),
        BondOptions { miimon: Some(miimon), .. } => format!("{miimon} ms"),
        BondOptions { hash_policy: Some(policy), .. } => word(serde_json::to_value(policy)),
        BondOptions { lacp_rate: Some(rate), .. } => word(serde_json::to_value(rate)),
        _ => String::new(),
    }
}

fn release<'a>(
    host: &'a Host,
    bond: &'a str,
    index: u32,
    member: &'a Wanted,
    steps: &mut Steps<'a>,
) -> Result<(), Error> {
    let (name, own) = (member.interface.as_str(), member.index);
    host.journal.leaving(Left { bond: bond.into(), interface: name.into(), address: member.address })?;
    change(host, bond, &format!("{name} does not leave"), &LinkChange::Master(own, 0))?;
    steps.did(format!("{name} has left {bond} for a moment"), move || {
        let (_, own) = fresh(host, &member.interface, member.address)?;
        change(host, bond, &format!("{name} does not come back"), &LinkChange::Master(own, index))
    });
    Ok(())
}

/// The interface of a member now: a change of the NIC's mode may have made it anew. By its name while that leads to its function, which may have several (one
/// for each port: mlx4, cxgb4); by the function where it does not, or where the name is a representor's by now.
pub(super) fn fresh(host: &Host, interface: &str, address: Option<PciAddress>) -> Result<(String, u32), Error> {
    let port = host.sysfs.text(&format!("class/net/{interface}/phys_port_name"));
    let is_representor = port.is_some_and(|port| port.contains("vf"));
    let is_it = !is_representor && address.is_some() && state::function(&host.sysfs, interface) == address;
    let named = address.filter(|address| !is_it && Function::read(&host.sysfs, *address).is_some());
    let now = named.and_then(|address| Inventory::take(host).device_named(&address.to_string()).ok()?.interface);
    let interface = now.unwrap_or_else(|| interface.to_owned());
    match index(&host.sysfs, &interface) {
        Some(index) => Ok((interface, index)),
        None => Err(Error::new(ErrorKind::NotFound, format!("{interface} is not there any more")).about(interface)),
    }
}

fn join<'a>(host: &'a Host, bond: &'a str, index: u32, member: &Wanted, steps: &mut Steps<'a>) -> Result<(), Error> {
    let (name, own) = fresh(host, &member.interface, member.address)?;
    if state::is_up(&host.sysfs, &name) {
        set_up(host, bond, &name, own, false)?;
        let again = name.clone();
        steps.did(format!("{name} is down"), move || set_up(host, bond, &again, own, true));
    }
    change(host, bond, &format!("{name} does not become a member"), &LinkChange::Master(own, index))?;
    steps.did(format!("{name} is a member of {bond}"), move || {
        change(host, bond, &format!("{name} does not leave"), &LinkChange::Master(own, 0))
    });
    Ok(())
}
