//! A NIC of its own as its lane has it: the physical function, the ports of its switch, and the engine.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::path::Path;

use ringspan_protocol::nic::{NicOffload, PciNic};
use ringspan_protocol::{
    Capabilities, DeviceSpec, EngineKind, Failure, FailureKind, NicPort, NicPortCounters, NicPortStatus, NicSpec,
    NicStatus, Policy, Rule, RuleCounters, RuleId, RuleResult, ZeroCopy,
};

use super::devargs;
use super::engine::Engine;
use crate::nic::{Device, DeviceConfig, FlowPort, QueuePair};

/// Where the kernel shows network interfaces, ...
const NET: &str = "/sys/class/net";
/// ... and functions.
const PCI: &str = "/sys/bus/pci/devices";

/// A NIC with a switch of its own. Dropping it removes its rules.
pub struct PciNicOfLane {
    spec: NicSpec,
    /// Nothing when ringspan leaves the switch to others. Before the device, which is closed after its rules are gone.
    engine: Option<Engine>,
    _device: Option<(Device, Vec<QueuePair>)>,
    /// So that no second lane, of whatever daemon, brings rules into its switch.
    _held: Option<File>,
    /// As they were when it was opened.
    names: BTreeMap<NicPort, String>,
}

impl PciNicOfLane {
    /// Opens the function and asks its driver what it can do; with another `offload` than `ringspan` nothing is opened.
    ///
    /// # Errors
    /// A [`Failure`] in words.
    pub fn open(spec: NicSpec, pci: &PciNic) -> Result<Self, Failure> {
        let names = names(Path::new(NET), pci, &spec);
        if pci.offload != NicOffload::Ringspan {
            if let Some(why) = lacks_function(Path::new(PCI), pci) {
                tracing::warn!("NIC {}: {why}", spec.name);
            }
            return Ok(Self { spec, engine: None, _device: None, _held: None, names });
        }
        let held = hold(Path::new(PCI), pci, &spec)?;
        let device = devargs::device(pci, spec.vfs);
        let opened = Device::open_isolated(&device, &config(&spec)).map_err(Failure::from);
        let (device, queues) = opened
            .map_err(|failure| Failure { message: format!("NIC {}: {}", spec.name, failure.message), ..failure })?;
        let at = FlowPort::of(&device);
        let mut ports = BTreeMap::from([(NicPort::Uplink, at.uplink())]);
        for (id, name) in device.siblings() {
            ports.extend(devargs::representor(&name, spec.vfs).map(|port| (port, id)));
        }
        if let Some(vf) =
            (0..spec.vfs).find(|vf| matches!(pci.pf, DeviceSpec::Pci { .. }) && !ports.contains_key(&NicPort::Vf(*vf)))
        {
            let message = format!(
                "NIC {}: its driver made no representor of VF {vf}: are there {} VFs, and is the function in switchdev mode?",
                spec.name, spec.vfs
            );
            return Err(Failure::new(FailureKind::NotFound, message));
        }
        let engine = Engine::new(at, ports);
        if let Some(refuses) = &engine.capabilities().refuses {
            tracing::warn!("NIC {}: {refuses}", spec.name);
        }
        Ok(Self { spec, engine: Some(engine), _device: Some((device, queues)), _held: held, names })
    }

    /// What was asked for.
    pub fn spec(&self) -> &NicSpec {
        &self.spec
    }

    /// What it is now.
    pub fn status(&self) -> NicStatus {
        // They come and go: a bond of two functions makes them anew, udev and people rename them.
        let names = self.spec.pci.as_ref().map(|pci| names(Path::new(NET), pci, &self.spec)).unwrap_or_default();
        // Of a function's representors the kernel has the names; what a virtual device would have is for who stands in for them.
        let is_function = self.spec.pci.as_ref().is_some_and(|pci| matches!(pci.pf, DeviceSpec::Pci { .. }));
        let made_up = |port: NicPort| if is_function { String::new() } else { port.representor(&self.spec.name) };
        let port = |port: NicPort| NicPortStatus {
            port,
            representor: names.get(&port).or_else(|| self.names.get(&port)).cloned().unwrap_or_else(|| made_up(port)),
            missing: !names.contains_key(&port),
            removals: 0,
            up: match (&self._device, port) {
                (Some((device, _)), NicPort::Uplink) => !device.removed() && device.link().up,
                _ => names.contains_key(&port),
            },
            counters: NicPortCounters::default(),
        };
        NicStatus {
            spec: self.spec.clone(),
            core: 0,
            ports: self.spec.ports().map(port).collect(),
            uplinks: Vec::new(),
            rules: self.engine.as_ref().map_or(0, |engine| engine.len() as u64),
            masks: 0,
            capabilities: self.capabilities(),
        }
    }

    fn capabilities(&self) -> Capabilities {
        let offload = self.spec.pci.as_ref().map(|pci| pci.offload).unwrap_or_default();
        let why = match offload {
            NicOffload::Tc => "offload is tc: Open vSwitch brings its flows into this NIC by itself",
            _ => "offload is off",
        };
        let lacks = || self.spec.pci.as_ref().and_then(|pci| lacks_function(Path::new(PCI), pci));
        let none = || Capabilities {
            engine: EngineKind::RteFlow,
            refreshes: false,
            counts: false,
            ages: false,
            meters: false,
            refuses: Some(lacks().unwrap_or_else(|| why.into())),
        };
        self.engine.as_ref().map_or_else(none, |engine| engine.capabilities().clone())
    }

    fn refused(&self, id: RuleId) -> RuleResult {
        let message = format!("rule {id}: {}", self.capabilities().refuses.unwrap_or_default());
        RuleResult { id, error: Some(Failure::new(FailureKind::Unsupported, message)) }
    }

    /// What [`PciNicOfLane::install`] would say.
    pub fn validate(&self, rules: &[Rule]) -> Vec<RuleResult> {
        match &self.engine {
            Some(engine) => engine.validate(rules),
            None => rules.iter().map(|rule| self.refused(rule.id)).collect(),
        }
    }

    /// Installs rules, each by itself.
    pub fn install(&mut self, rules: Vec<Rule>) -> Vec<RuleResult> {
        match &mut self.engine {
            Some(engine) => engine.install(rules),
            None => rules.iter().map(|rule| self.refused(rule.id)).collect(),
        }
    }

    /// Removes rules.
    pub fn remove(&mut self, ids: &[RuleId]) -> Vec<RuleResult> {
        match &mut self.engine {
            Some(engine) => engine.remove(ids),
            None => ids.iter().map(|id| RuleResult { id: *id, error: None }).collect(),
        }
    }

    /// The counters of so many rules behind an id.
    pub fn counters(&mut self, after: Option<RuleId>, limit: usize) -> Vec<RuleCounters> {
        self.engine.as_mut().map_or_else(Vec::new, |engine| engine.counters(after, limit))
    }

    /// So many rules behind an id.
    pub fn list(&self, after: Option<RuleId>, limit: usize) -> Vec<Rule> {
        self.engine.as_ref().map_or_else(Vec::new, |engine| engine.list(after, limit))
    }
}

/// Why there is nothing to bring flows into: the host has no such function.
fn lacks_function(functions: &Path, pci: &PciNic) -> Option<String> {
    let DeviceSpec::Pci { address, .. } = &pci.pf else { return None };
    let is_there = functions.join(address.to_string()).exists();
    (!is_there).then(|| {
        format!(
            "there is no PCI function {address} on this host: see ringspan device list, and name the NIC's own (pf)"
        )
    })
}

/// Locks the function for this process: DPDK would let a second one open it, whose rules would be beside ours. A function that is not there is found
/// missing by who opens it.
fn hold(functions: &Path, pci: &PciNic, spec: &NicSpec) -> Result<Option<File>, Failure> {
    let DeviceSpec::Pci { address, .. } = &pci.pf else { return Ok(None) };
    let Ok(file) = File::open(functions.join(address.to_string()).join("uevent")) else { return Ok(None) };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => {
            let message = format!(
                "NIC {}: another ringspan-lane brings rules into the switch of {address}, and two owners would take each other's packets: take the NIC out there \
                 (ringspan nic remove), or offload = \"off\" here",
                spec.name
            );
            Err(Failure::new(FailureKind::Busy, message))
        }
        Err(TryLockError::Error(error)) => {
            tracing::warn!("NIC {}: whether another lane has {address} is not known: {error}", spec.name);
            Ok(None)
        }
    }
}

/// One queue that nothing is received by.
fn config(spec: &NicSpec) -> DeviceConfig {
    DeviceConfig {
        queues: 1,
        mtu: spec.mtu,
        mac: None,
        promiscuous: Policy::Off,
        allmulti: Policy::Off,
        offloads: false,
        zero_copy: ZeroCopy::Off,
        zero_copy_from: None,
    }
}

/// The network interfaces of the NIC's ports: those of one switch (`phys_switch_id`), of which `phys_port_name` says `p0` for the wire and `pf0vf3` for a VF
/// (Documentation/networking/switchdev.rst).
fn names(net: &Path, pci: &PciNic, spec: &NicSpec) -> BTreeMap<NicPort, String> {
    let read = |name: &str, file: &str| {
        let text = fs::read_to_string(net.join(name).join(file)).ok()?;
        Some(text.trim().to_owned()).filter(|text| !text.is_empty())
    };
    let DeviceSpec::Pci { address, .. } = &pci.pf else {
        // A virtual device in the place of a NIC: the interface that it makes.
        return pci.pf.interface().map(|name| (NicPort::Uplink, name.to_owned())).into_iter().collect();
    };
    let all: Vec<String> = fs::read_dir(net)
        .map(|all| all.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        .unwrap_or_default();
    let is_of = |name: &String| {
        let device = fs::canonicalize(net.join(name).join("device")).ok();
        device.is_some_and(|path| path.ends_with(address.to_string()))
    };
    let Some(switch) = all.iter().filter(|name| is_of(name)).find_map(|name| read(name, "phys_switch_id")) else {
        return BTreeMap::new();
    };
    let function = address.to_string().chars().last().and_then(|digit| digit.to_digit(8)).unwrap_or(0);
    let mut names = BTreeMap::new();
    for name in all.iter().filter(|name| read(name, "phys_switch_id").as_ref() == Some(&switch)) {
        let Some(port) = read(name, "phys_port_name") else { continue };
        let found = match port.strip_prefix("pf").and_then(|rest| rest.split_once("vf")) {
            Some((pf, vf)) => match (pf.parse::<u32>(), vf.parse::<u16>()) {
                (Ok(pf), Ok(vf)) if pf == function && vf < spec.vfs => Some(NicPort::Vf(vf)),
                (Ok(_), Ok(vf)) if pci.bonded && vf < spec.vfs => Some(NicPort::Vf(spec.vfs + vf)),
                _ => None,
            },
            None => (port == format!("p{function}")).then_some(NicPort::Uplink),
        };
        names.extend(found.map(|port| (port, name.clone())));
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_function_has_one_owner_at_a_time() {
        let functions = tempfile::tempdir().unwrap();
        fs::create_dir(functions.path().join("0000:0a:00.0")).unwrap();
        fs::write(functions.path().join("0000:0a:00.0/uevent"), "").unwrap();
        let spec: NicSpec = serde_json::from_str(r#"{"name":"nic0","vfs":2}"#).unwrap();
        let of = |pf: &str| PciNic {
            pf: pf.parse().unwrap(),
            bonded: false,
            dv_flow_en: 1,
            args: String::new(),
            offload: NicOffload::Ringspan,
        };
        let take = |pf: &str| hold(functions.path(), &of(pf), &spec);
        let first = take("pci:0000:0a:00.0").unwrap();
        assert!(first.is_some());
        let second = take("pci:0000:0a:00.0").unwrap_err();
        assert_eq!(second.kind, FailureKind::Busy);
        assert!(second.message.contains("another ringspan-lane"), "{}", second.message);
        drop(first);
        assert!(take("pci:0000:0a:00.0").unwrap().is_some());
        assert!(take("pci:0000:0b:00.0").unwrap().is_none() && take("vdev:net_tap0").unwrap().is_none());
    }

    #[test]
    fn a_function_that_is_not_there_is_said_to_be_missing_and_no_names_are_made_up_for_it() {
        let spec: NicSpec = serde_json::from_str(r#"{"name":"nic0","vfs":2}"#).unwrap();
        for (offload, word) in [(NicOffload::Tc, "offload is tc"), (NicOffload::Off, "offload is off")] {
            let of = |pf: &str| {
                let pf = pf.parse().unwrap();
                let pci = PciNic { pf, bonded: false, dv_flow_en: 1, args: String::new(), offload };
                PciNicOfLane::open(NicSpec { pci: Some(Box::new(pci.clone())), ..spec.clone() }, &pci).unwrap().status()
            };
            let gone = of("pci:fffe:ff:1f.7");
            let why = gone.capabilities.refuses.unwrap();
            assert!(why.contains("no PCI function fffe:ff:1f.7"), "{why}");
            assert!(gone.ports.iter().all(|port| port.missing && port.representor.is_empty()), "{:?}", gone.ports);
            // A virtual device has no representors but those that somebody else makes.
            let virtual_one = of("vdev:net_tap0");
            assert!(virtual_one.capabilities.refuses.unwrap().contains(word));
            assert_eq!(virtual_one.ports[1].representor, "nic0_vf0");
        }
    }

    #[test]
    fn representors_are_found_by_the_switch_they_belong_to() {
        let net = tempfile::tempdir().unwrap();
        let of = |name: &str, switch: &str, port: &str, pci: &str| {
            let folder = net.path().join(name);
            let device = net.path().join("devices").join(pci);
            fs::create_dir_all(&folder).unwrap();
            fs::create_dir_all(&device).unwrap();
            fs::write(folder.join("phys_switch_id"), format!("{switch}\n")).unwrap();
            fs::write(folder.join("phys_port_name"), format!("{port}\n")).unwrap();
            std::os::unix::fs::symlink(device, folder.join("device")).unwrap();
        };
        of("enp10s0f0np0", "aabb", "p0", "0000:0a:00.0");
        of("enp10s0f0npf0vf0", "aabb", "pf0vf0", "0000:0a:00.0");
        of("eth7", "aabb", "pf0vf1", "0000:0a:00.0");
        of("eth8", "aabb", "pf1vf0", "0000:0a:00.1");
        of("other", "ccdd", "pf0vf0", "0000:0b:00.0");
        let pf = "pci:0000:0a:00.0".parse().unwrap();
        let mut pci = PciNic { pf, bonded: false, dv_flow_en: 1, args: String::new(), offload: NicOffload::Ringspan };
        let spec: NicSpec = serde_json::from_str(r#"{"name":"nic0","vfs":2}"#).unwrap();
        let found = |pci: &PciNic| -> Vec<String> {
            names(net.path(), pci, &spec).iter().map(|(port, name)| format!("{port} {name}")).collect()
        };
        assert_eq!(found(&pci), ["uplink enp10s0f0np0", "vf0 enp10s0f0npf0vf0", "vf1 eth7"]);
        pci.bonded = true;
        assert_eq!(found(&pci).last().unwrap(), "vf2 eth8");
    }
}
