//! What a Mellanox NIC's firmware is set to for its virtual functions: what comes with it, what is in force, and what the next start brings.
//!
//! By `mstconfig` (of the distributions) or `mlxconfig` (NVIDIA's), whichever is there: the kernel has no interface to these settings. Not seen on
//! hardware: the tests have a program that keeps a state and speaks as the tools' documentation says.

pub(crate) mod table;

use std::time::Duration;

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Host;
use super::inventory::find;
use super::pci::{Function, short};
use super::program::{self, NotRun, Ran};
use super::representor::Representors;
use crate::error::{Error, ErrorKind};

/// Mellanox in PCI.
const MELLANOX: u16 = 0x15b3;
/// The distributions' tool and NVIDIA's: the same grammar.
const TOOLS: [&str; 2] = ["mstconfig", "mlxconfig"];
/// Longest run of a question, and of a change.
const LIMITS: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(120));
/// What decides over VFs; link types follow.
const WATCHED: [&str; 2] = ["SRIOV_EN", "NUM_OF_VFS"];

/// What a port of the NIC carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum FirmwareLink {
    /// Ethernet.
    Ethernet,
    /// InfiniBand.
    Infiniband,
}

impl FirmwareLink {
    /// The tool's number: 1 is IB, 2 is ETH.
    fn number(self) -> u64 {
        match self {
            Self::Infiniband => 1,
            Self::Ethernet => 2,
        }
    }
}

/// What is wanted after the next start; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// The PF: its interface, its PCI address, or its mst device (`/dev/mst/mt4119_pciconf0`).
    pub pf: String,
    /// Whether it can have virtual functions at all (SRIOV_EN).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sriov_en: Option<bool>,
    /// How many at most, for each port of the board (NUM_OF_VFS).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_of_vfs: Option<u16>,
    /// What this PF's port carries (LINK_TYPE_P1 or _P2).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_type: Option<FirmwareLink>,
}

/// A setting, in the tool's words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Setting {
    /// `SRIOV_EN`, `NUM_OF_VFS`, `LINK_TYPE_P1`.
    pub name: String,
    /// What the NIC came with; absent: the tool does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default: Option<String>,
    /// What is in force; absent: the tool does not say.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    /// What the next start brings.
    pub next: String,
}

/// A NIC's firmware settings.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Firmware {
    /// The PF.
    pub pf: PciAddress,
    /// Its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Its device as NVIDIA's tools call it, where `mst` is there and started.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mst_device: Option<String>,
    /// The program that was asked.
    pub tool: String,
    /// What decides over VFs, in the tool's order.
    pub settings: Vec<Setting>,
    /// Whether something waits for a reboot; absent: the tool does not say what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reboot_needed: Option<bool>,
    /// Other PFs of the same board, which have the same settings but for the link types: interfaces, or addresses where there are none.
    pub shared_with: Vec<String>,
    /// What was changed; empty: it was so already, or nothing was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<String>,
}

/// A PF whose firmware is asked.
struct Target<'a> {
    host: &'a Host,
    name: &'a str,
    function: Function,
    interface: Option<String>,
    mst_device: Option<String>,
}

/// A PF's firmware settings.
pub(crate) fn get(host: &Host, name: &str) -> Result<Firmware, Error> {
    Target::find(host, name)?.read()
}

/// Sets what the next start brings, and reads it back. What is so already is not set again.
pub(crate) fn set(host: &Host, wish: &Wish) -> Result<Firmware, Error> {
    let target = Target::find(host, &wish.pf)?;
    let name = target.name;
    let refuse = |kind, message: String| Err(Error::new(kind, message).about(name));
    let before = target.read()?;
    if wish.num_of_vfs == Some(0) && wish.sriov_en != Some(false) {
        return refuse(ErrorKind::Invalid, format!("{name}: 0 VFs: say --sriov-en false"));
    }
    if let Some(wanted) = wish.num_of_vfs {
        // Both ports of a board have one number: the larger one counts.
        for other in target.board() {
            let now = other.vf_counts.map_or(0, |(_, now)| now);
            if now > wanted {
                let message = format!(
                    "{name}: NUM_OF_VFS is shared with {}, which has {now} virtual functions now: ask for {now} at least, or take them away (ringspan vf enable {} {wanted})",
                    other.address, other.address
                );
                return refuse(ErrorKind::Busy, message);
            }
        }
    }
    let link = format!("LINK_TYPE_P{}", target.function.address.function + 1);
    let wanted = [
        ("SRIOV_EN", wish.sriov_en.map(u64::from)),
        ("NUM_OF_VFS", wish.num_of_vfs.map(u64::from)),
        (link.as_str(), wish.link_type.map(FirmwareLink::number)),
    ];
    let mut changes = vec![];
    for (setting, wanted) in wanted {
        let Some(wanted) = wanted else { continue };
        let Some(now) = before.settings.iter().find(|one| one.name == setting) else {
            let why = if setting.starts_with("LINK") {
                "its ports carry one kind of link only"
            } else {
                "it is too old, or no NIC"
            };
            return refuse(ErrorKind::Unsupported, format!("{name}: its firmware has no {setting}: {why}"));
        };
        if table::number(&now.next) != Some(wanted) {
            changes.push((setting.to_owned(), wanted, now.next.clone()));
        }
    }
    if changes.is_empty() {
        return Ok(before);
    }
    let assignments: Vec<String> = changes.iter().map(|(setting, wanted, _)| format!("{setting}={wanted}")).collect();
    let device = target.function.address.to_string();
    let mut words = vec!["-y", "-d", &device, "set"];
    words.extend(assignments.iter().map(String::as_str));
    let ran = target.run(&before.tool, &words, LIMITS.1)?;
    if !ran.good {
        return Err(target.complaint(&before.tool, &ran));
    }
    let after = target.read()?;
    let mut done = vec![];
    for (setting, wanted, old) in changes {
        let next =
            after.settings.iter().find(|one| one.name == setting).map(|one| one.next.clone()).unwrap_or_default();
        if table::number(&next) != Some(wanted) {
            let message = format!(
                "{name}: {} took {setting}={wanted}, and the next start brings {next}; done: {}",
                before.tool,
                if done.is_empty() { "nothing".into() } else { done.join(", ") }
            );
            return refuse(ErrorKind::Failed, message);
        }
        done.push(format!("{setting} of {name} will be {next}, would have been {old}"));
    }
    Ok(Firmware { done, ..after })
}

impl<'a> Target<'a> {
    fn find(host: &'a Host, name: &'a str) -> Result<Self, Error> {
        let refuse = |kind, message: String| Err(Error::new(kind, message).about(name));
        let ran = program::run(&host.programs, "mst", &["status", "-v"], LIMITS.0);
        let devices = ran.map(|ran| table::devices(&ran.stdout)).unwrap_or_default();
        let address = if name.starts_with("/dev/mst/") {
            let Some(device) = devices.iter().find(|device| device.path == name) else {
                let known: Vec<&str> = devices.iter().map(|device| device.path.as_str()).collect();
                let known = if known.is_empty() { "none: run mst start".into() } else { known.join(", ") };
                return refuse(
                    ErrorKind::NotFound,
                    format!("there is no mst device {name}: mst status -v has {known}"),
                );
            };
            device.pci.parse().map_err(|_| {
                let message = format!("{name}: mst says {:?}, which is no PCI address", device.pci);
                Error::new(ErrorKind::Failed, message).about(name)
            })?
        } else {
            find(host, name)?
        };
        let Some(function) = Function::read(&host.sysfs, address) else {
            return refuse(
                ErrorKind::NotFound,
                format!("{name}: {address} is no function of a NIC: see ringspan pf list"),
            );
        };
        if let Some(pf) = function.pf {
            return refuse(ErrorKind::Invalid, format!("{name} is a virtual function: name its physical one, {pf}"));
        }
        if function.vendor != MELLANOX {
            let message = format!(
                "{name} ({}) is no Mellanox NIC: only their firmware's settings can be read and set here, see the maker's own tool",
                function.vendor_device()
            );
            return refuse(ErrorKind::Unsupported, message);
        }
        let whole = |pci: &str| pci.parse::<PciAddress>().ok();
        let mst_device =
            devices.into_iter().find(|device| whole(&device.pci) == Some(address)).map(|device| device.path);
        let interface = Representors::new(&host.sysfs, &[]).own(&function);
        Ok(Self { host, name, function, interface, mst_device })
    }

    /// Other physical functions of the same board.
    fn board(&self) -> impl Iterator<Item = Function> {
        let address = self.function.address;
        Function::all(&self.host.sysfs).into_iter().filter(move |other| {
            let there = other.address;
            other.pf.is_none()
                && there != address
                && (there.domain, there.bus, there.device) == (address.domain, address.bus, address.device)
        })
    }

    fn read(&self) -> Result<Firmware, Error> {
        let Some(tool) = TOOLS.into_iter().find(|tool| program::is_there(&self.host.programs, tool)) else {
            let message = format!(
                "{}: neither mstconfig nor mlxconfig is installed, and nothing else knows its firmware's settings: install mstflint",
                self.name
            );
            return Err(Error::new(ErrorKind::Unsupported, message).about(self.name));
        };
        let device = self.function.address.to_string();
        let ran = self.run(tool, &["-d", &device, "-e", "query"], LIMITS.0)?;
        if !ran.good {
            return Err(self.complaint(tool, &ran));
        }
        let watched = |name: &str| WATCHED.contains(&name) || name.starts_with("LINK_TYPE_P");
        let lines = table::settings(&ran.stdout).into_iter().filter(|line| watched(&line.name));
        let settings: Vec<Setting> = lines
            .map(|line| Setting { name: line.name, default: line.default, current: line.current, next: line.next })
            .collect();
        if settings.is_empty() {
            let message = format!("{}: {tool} prints nothing of SRIOV_EN: is its version too old?", self.name);
            return Err(Error::new(ErrorKind::Failed, message).about(self.name));
        }
        let told = settings.iter().all(|one| one.current.is_some());
        let waits = settings.iter().any(|one| one.current.as_ref().is_some_and(|now| *now != one.next));
        let others = self
            .board()
            .map(|other| Representors::new(&self.host.sysfs, &[]).own(&other).unwrap_or_else(|| short(other.address)));
        Ok(Firmware {
            pf: self.function.address,
            interface: self.interface.clone(),
            mst_device: self.mst_device.clone(),
            tool: tool.into(),
            settings,
            reboot_needed: told.then_some(waits),
            shared_with: others.collect(),
            done: vec![],
        })
    }

    fn run(&self, tool: &str, words: &[&str], limit: Duration) -> Result<Ran, Error> {
        let name = self.name;
        program::run(&self.host.programs, tool, words, limit).map_err(|why| match why {
            NotRun::Absent => {
                Error::new(ErrorKind::NotFound, format!("{name}: {tool} was just taken away: install mstflint")).about(name)
            }
            NotRun::TooLong => {
                let message = format!(
                    "{name}: {tool} did not end within {} s and was killed: the firmware does not answer, see the kernel's log",
                    limit.as_secs()
                );
                Error::new(ErrorKind::Timeout, message).about(name)
            }
            NotRun::Failed(error) => Error::io(format!("{name}: {tool} cannot be run"), &error).about(name),
        })
    }

    /// What the tool says of its failure: its lines with `-E-`.
    fn complaint(&self, tool: &str, ran: &Ran) -> Error {
        let (name, all) = (self.name, format!("{}\n{}", ran.stdout, ran.stderr));
        let said = all.lines().map(str::trim).filter(|line| line.starts_with("-E-")).collect::<Vec<_>>().join("; ");
        let said = match said.is_empty() {
            true => all.trim().lines().last().unwrap_or("nothing").trim().to_owned(),
            false => said,
        };
        let lower = said.to_lowercase();
        let (kind, remedy) = if lower.contains("permission") || lower.contains("access is denied") {
            (
                ErrorKind::Permission,
                "run the daemon as root, without kernel lockdown (Secure Boot), and a DPU in NIC mode",
            )
        } else if lower.contains("support") || lower.contains("unknown parameter") {
            (ErrorKind::Unsupported, "this NIC or its firmware has no such setting")
        } else {
            (ErrorKind::Failed, "nothing was changed that the next query does not show")
        };
        Error::new(kind, format!("{name}: {tool}: {said}: {remedy}")).about(name)
    }
}
