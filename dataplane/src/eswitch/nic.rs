//! A software NIC as its lane has it: uplink, representors, the thread between them, and the switch on a worker.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringspan_protocol::nic::{MAX_UPLINKS, UplinkStatus};
use ringspan_protocol::{
    Action, Capabilities, DeviceSpec, Failure, FailureKind, MTU_RANGE, MeterSpec, NicMode, NicPort, NicPortCounters,
    NicPortStatus, NicSpec, NicStatus, Policy, Rule, RuleCounters, RuleId, RuleResult, VfSettings, ZeroCopy,
};

use super::actions::{Program, number};
use super::bridge::{Bridge, meter};
use super::interned::Interned;
use super::kept::Rules;
use super::key::Key;
use super::meters::Live;
use super::slow::{SlowCounters, SlowPath, SlowPort};
use super::switch::{Installed, REFRESH, SHORTEST_REFRESH, Side, Switch, SwitchPort};
use super::tap::Tap;
use crate::nic::{Bell, Device, DeviceConfig, Member, SoftNic, soft_pool, way};
use crate::relay::Load;
use crate::worker::{Begun, Worker, millis};

/// Rules that the switch takes or gives up between two bursts.
const CHUNK: usize = 64;
/// Rules whose counters are read between two bursts.
const COUNTED: usize = 512;
/// Bytes of a frame around its MTU: Ethernet header and two VLAN tags.
const AROUND: usize = 14 + 2 * 4;

/// A software NIC of this lane. Dropping it ends it; its representors stay.
pub struct Nic {
    spec: NicSpec,
    id: u64,
    shared: Arc<SoftNic>,
    worker: Arc<Worker>,
    load: Arc<Load>,
    uplink: Option<Device>,
    /// Ends before the devices do.
    slow: Option<SlowPath>,
    slow_counters: Vec<Arc<SlowCounters>>,
    /// As they were asked for.
    rules: Rules,
    /// What is done by them.
    programs: Interned<Program>,
    meters: BTreeMap<u32, MeterSpec>,
}

impl Nic {
    /// Makes the NIC, on one of the workers.
    ///
    /// # Errors
    /// A [`Failure`] in words; what was made is undone, but for representors that were made.
    pub fn open(spec: NicSpec, id: u64, workers: &[Arc<Worker>], max_ports: u16) -> Result<Self, Failure> {
        check(&spec, max_ports)?;
        let failed = |kind, what: String| Failure::new(kind, format!("NIC {}: {what}", spec.name));
        let io_failed = |what: &str, error: io::Error| {
            let failure = failed(FailureKind::Failed, format!("{what}: {error}"));
            Failure { errno: error.raw_os_error(), ..failure }
        };
        let Some(worker) = workers.iter().min_by_key(|worker| worker.shares()).map(Arc::clone) else {
            return Err(failed(FailureKind::NoRoom, "the lane has no worker: give it a core".into()));
        };
        let ports = spec.vfs + 1;
        let max_frame = usize::from(spec.mtu) + AROUND;
        let pool = soft_pool(ports, spec.mtu).map_err(|error| failed(FailureKind::NoRoom, error))?;
        let shared = SoftNic::new(spec.name.as_str(), spec.vfs).map_err(|errno| io_failed("its bell", errno.into()))?;
        let config = uplink_config(&spec);
        let opened = match &spec.uplinks[..] {
            [] => Ok((None, Vec::new())),
            [device] => Device::open(device, &config).map(|(device, queues)| (Some(device), queues)),
            several => Device::open_bond(spec.name.as_str(), spec.bond, several, &config)
                .map(|(device, queues)| (Some(device), queues)),
        };
        let (uplink, mut queues) = opened
            .map_err(Failure::from)
            .map_err(|failure| Failure { message: format!("NIC {}: {}", spec.name, failure.message), ..failure })?;
        let bell = Arc::new(Bell::new().map_err(|errno| io_failed("its bell", errno.into()))?);
        let (mut switch_ports, mut slow_ports, mut slow_counters) = (Vec::new(), Vec::new(), Vec::new());
        let legacy = spec.mode == NicMode::Legacy;
        for port in spec.ports() {
            let side = match port {
                NicPort::Uplink => Side::Uplink(queues.pop()),
                NicPort::Vf(_) => Side::Vf(None),
            };
            let counters = Arc::new(SlowCounters::default());
            slow_counters.push(Arc::clone(&counters));
            if legacy {
                switch_ports.push(SwitchPort::new(side, None));
                continue;
            }
            let name = port.representor(&spec.name);
            let tap = Tap::open(&name, spec.mtu)
                .map_err(|error| io_failed(&format!("its representor {name}: {}", remedy(&error)), error))?;
            let ring = |errno| io_failed("its rings", io::Error::from_raw_os_error(errno));
            let (to_tap, tap_out) = way().map_err(ring)?;
            let (tap_in, from_tap) = way().map_err(ring)?;
            switch_ports.push(SwitchPort::new(side, Some((to_tap, from_tap))));
            slow_ports.push(SlowPort::new(tap, (spec.mtu, max_frame), (tap_out, tap_in), counters));
        }
        let start = || {
            SlowPath::start(spec.name.as_str(), slow_ports, pool.clone(), Arc::clone(&bell), Arc::clone(shared.bell()))
                .map_err(|error| io_failed("the thread of its representors", error))
        };
        let slow = if legacy { None } else { Some(start()?) };
        let bridge = legacy.then(|| Box::new(Bridge::new((0..spec.vfs).map(|vf| spec.vf_settings(vf)))));
        let switch = Switch::new(id, Arc::clone(&shared), switch_ports, (pool, max_frame), bell, bridge);
        let load = Arc::clone(switch.load());
        let attached = worker.call(move |running| running.attach_switch(switch));
        attached.map_err(|error| failed(FailureKind::Failed, error.to_string()))?;
        worker.got_share();
        Ok(Self {
            spec,
            id,
            shared,
            worker,
            load,
            uplink,
            slow,
            slow_counters,
            rules: Rules::default(),
            programs: Interned::default(),
            meters: BTreeMap::new(),
        })
    }

    /// What was asked for.
    pub fn spec(&self) -> &NicSpec {
        &self.spec
    }

    /// Its number in this lane, the core of its worker, and what it made that worker do.
    pub fn load(&self) -> (u64, u16, &Load) {
        (self.id, self.worker.core(), &self.load)
    }

    /// A VF that a port has.
    pub fn taken(&self) -> Option<u16> {
        (0..self.spec.vfs).find(|vf| self.shared.is_taken(*vf))
    }

    /// The NIC as it is now.
    ///
    /// # Errors
    /// The lane is stopping.
    pub fn status(&self) -> Result<NicStatus, Failure> {
        let (rules, masks, counters) =
            self.ask(|switch| (switch.rules.len() as u64, switch.rules.masks() as u32, switch.counters()))?;
        let status = |((port, counters), slow): ((NicPort, NicPortCounters), &Arc<SlowCounters>)| NicPortStatus {
            port,
            representor: match self.spec.mode {
                NicMode::Switchdev => port.representor(&self.spec.name),
                NicMode::Legacy => String::new(),
            },
            missing: slow.missing.load(Ordering::Relaxed),
            removals: slow.removals.load(Ordering::Relaxed),
            up: match port {
                NicPort::Uplink => self.uplink.as_ref().is_some_and(|uplink| !uplink.removed() && uplink.link().up),
                NicPort::Vf(vf) => {
                    self.shared.is_taken(vf) && self.spec.vf_settings(vf).link != ringspan_protocol::VfLink::Disable
                }
            },
            counters: together(counters, slow),
        };
        let ports = self.spec.ports().zip(counters).zip(&self.slow_counters).map(status).collect();
        let uplinks = self.uplinks();
        Ok(NicStatus {
            spec: self.spec.clone(),
            core: self.worker.core(),
            ports,
            uplinks,
            rules,
            masks,
            capabilities: Capabilities::default(),
        })
    }

    fn uplinks(&self) -> Vec<UplinkStatus> {
        let Some(uplink) = &self.uplink else { return Vec::new() };
        match &self.spec.uplinks[..] {
            [device] => {
                let removed = uplink.removed();
                vec![UplinkStatus { device: device.clone(), up: !removed && uplink.link().up, removed, active: true }]
            }
            _ => uplink.members().into_iter().map(Member::status).collect(),
        }
    }

    /// What [`Nic::install`] would say of rules.
    pub fn validate(&self, rules: &[Rule]) -> Vec<RuleResult> {
        let check =
            |rule: &Rule| RuleResult { id: rule.id, error: compile(rule, self.spec.vfs + 1, &self.meters).err() };
        rules.iter().map(check).collect()
    }

    /// Gives a VF other settings.
    ///
    /// # Errors
    /// The NIC is not in legacy mode, has no such VF, or the settings cannot be; the lane is stopping.
    pub fn set_vf(&mut self, settings: VfSettings) -> Result<(), Failure> {
        let mut spec = self.spec.clone();
        spec.set_vf(settings);
        let invalid = |what| Failure::new(FailureKind::Invalid, format!("NIC {}: {what}", spec.name));
        spec.check_vfs().map_err(invalid)?;
        if settings.vf >= spec.vfs {
            return Err(invalid(format!("there is no vf {}: it has {}", settings.vf, spec.vfs)));
        }
        let meter = meter(&settings);
        let old = self.ask(move |switch| switch.bridge.as_mut().and_then(|bridge| bridge.set(settings, meter)))?;
        drop(old);
        self.spec = spec;
        Ok(())
    }

    /// How often a rule in use sends a frame to its representor, in milliseconds.
    ///
    /// # Errors
    /// A time that cannot be. The lane is stopping.
    pub fn set_refresh(&mut self, ms: u32) -> Result<(), Failure> {
        if !(SHORTEST_REFRESH..=REFRESH).contains(&ms) {
            let what =
                format!("NIC {}: a refresh each {ms} ms: {SHORTEST_REFRESH} to {REFRESH} is possible", self.spec.name);
            return Err(Failure::new(FailureKind::Invalid, what));
        }
        self.ask(move |switch| switch.refresh_every = ms)
    }

    /// Makes meters, or gives them other limits. One that is as it was has not forgotten what it let pass.
    ///
    /// # Errors
    /// Limits that cannot be; those before it are made. The lane is stopping.
    pub fn set_meters(&mut self, meters: &[MeterSpec]) -> Result<(), Failure> {
        for spec in meters.iter().filter(|spec| self.meters.get(&spec.id) != Some(spec)).copied().collect::<Vec<_>>() {
            let live = Some(spec).filter(|spec| spec.rate > 0).as_ref().and_then(Live::new).ok_or_else(|| {
                let what =
                    format!("NIC {}: meter {}: {} a second cannot be: 1 at least", self.spec.name, spec.id, spec.rate);
                Failure::new(FailureKind::Invalid, what)
            })?;
            let old = self.ask(move |switch| switch.meters.set(spec.id, live))?;
            drop(old);
            self.meters.insert(spec.id, spec);
        }
        Ok(())
    }

    /// Removes meters.
    ///
    /// # Errors
    /// A rule uses one of them; those before it are gone. The lane is stopping.
    pub fn remove_meters(&mut self, ids: &[u32]) -> Result<(), Failure> {
        for id in ids.iter().copied() {
            if let Some(rule) = self.rules.with_action(&Action::Meter(id)) {
                let what = format!("NIC {}: meter {id} is used by rule {rule}: remove that first", self.spec.name);
                return Err(Failure::new(FailureKind::Busy, what));
            }
            if self.meters.remove(&id).is_some() {
                let old = self.ask(move |switch| switch.meters.remove(id))?;
                drop(old);
            }
        }
        Ok(())
    }

    /// Installs rules, each by itself.
    ///
    /// # Errors
    /// The lane is stopping; what was asked for is not done, or half. The NIC is in legacy mode.
    pub fn install(&mut self, rules: Vec<Rule>) -> Result<Vec<RuleResult>, Failure> {
        if self.spec.mode == NicMode::Legacy {
            let what = format!(
                "NIC {} is in legacy mode, where no rules decide: make it anew with mode = \"switchdev\"",
                self.spec.name
            );
            return Err(Failure::new(FailureKind::Unsupported, what));
        }
        let (mut results, mut ready) = (Vec::with_capacity(rules.len()), Vec::with_capacity(CHUNK));
        // The next ones are compiled while the worker has these.
        let mut taking = None;
        // What is kept of them is made while all of them are there, and not in the gaps that each leaves behind.
        for rule in &rules {
            let compiled = compile(rule, self.spec.vfs + 1, &self.meters);
            results.push(RuleResult { id: rule.id, error: compiled.as_ref().err().cloned() });
            if let Ok(compiled) = compiled {
                ready.push(compiled.ready(&mut self.programs));
                self.rules.insert(rule);
            }
            if ready.len() == CHUNK {
                let begun = self.hand_over(std::mem::take(&mut ready))?;
                if let Some(before) = taking.replace(begun) {
                    self.done_with(before)?;
                }
            }
        }
        let rest = (!ready.is_empty()).then(|| self.hand_over(ready)).transpose()?;
        for begun in taking.into_iter().chain(rest) {
            self.done_with(begun)?;
        }
        Ok(results)
    }

    /// Begins to give rules to the switch. What it gives up is freed by who waits for the answer, and not by its worker.
    fn hand_over(&self, ready: Vec<Compiled<Installed>>) -> Result<Begun<Option<Vec<Installed>>>, Failure> {
        self.begin(|switch| {
            let install = |compiled: Compiled<Installed>| {
                let Compiled { id, priority, value, mask, does: mut installed } = compiled;
                let old = switch.rules.remove(id);
                if let Some(old) = &old {
                    installed.go_on(old);
                    switch.tunnels -= usize::from(old.program.is_of_tunnel());
                }
                switch.tunnels += usize::from(installed.program.is_of_tunnel());
                switch.rules.insert(id, priority, &value, &mask, installed);
                old
            };
            ready.into_iter().filter_map(install).collect::<Vec<_>>()
        })
    }

    /// Waits until the switch has rules, and frees what it gave up for them.
    fn done_with(&mut self, begun: Begun<Option<Vec<Installed>>>) -> Result<(), Failure> {
        let old = self.answer(begun)?;
        let count = old.len();
        drop(old);
        self.programs.released(count);
        Ok(())
    }

    /// Removes rules.
    ///
    /// # Errors
    /// As [`Nic::install`].
    pub fn remove(&mut self, ids: &[RuleId]) -> Result<Vec<RuleResult>, Failure> {
        for chunk in ids.chunks(CHUNK) {
            let going = chunk.to_vec();
            let old = self.ask(move |switch| {
                let old: Vec<_> = going.iter().filter_map(|id| switch.rules.remove(*id)).collect();
                switch.tunnels -= old.iter().filter(|rule| rule.program.is_of_tunnel()).count();
                old
            })?;
            let count = old.len();
            drop(old);
            self.programs.released(count);
            chunk.iter().for_each(|id| self.rules.remove(*id));
        }
        Ok(ids.iter().map(|id| RuleResult { id: *id, error: None }).collect())
    }

    /// The counters of so many rules behind an id.
    ///
    /// # Errors
    /// The lane is stopping.
    pub fn counters(&self, after: Option<RuleId>, limit: usize) -> Result<Vec<RuleCounters>, Failure> {
        let mut counters: Vec<RuleCounters> = Vec::with_capacity(limit.min(self.rules.len()));
        while counters.len() < limit {
            let from = counters.last().map(|last| last.id).or(after);
            let count = COUNTED.min(limit - counters.len());
            let mut more = self.ask(move |switch| {
                let now = millis();
                let read = |(id, rule): (RuleId, &Installed)| RuleCounters {
                    id,
                    packets: rule.packets,
                    bytes: rule.bytes,
                    idle_ms: (rule.last != 0).then(|| now.wrapping_sub(rule.last).into()),
                };
                switch.rules.after(from).take(count).map(read).collect::<Vec<_>>()
            })?;
            let last = more.len() < count;
            counters.append(&mut more);
            if last {
                break;
            }
        }
        Ok(counters)
    }

    /// So many rules behind an id.
    pub fn list(&self, after: Option<RuleId>, limit: usize) -> Vec<Rule> {
        self.rules.after(after).take(limit).collect()
    }

    /// Ends the NIC, and its representors.
    pub fn close_with_representors(self) {
        let spec = self.spec.clone();
        drop(self);
        if spec.mode == NicMode::Legacy {
            return;
        }
        for port in spec.ports() {
            let name = port.representor(&spec.name);
            // Opened anew, because the thread that had it is gone.
            if let Err(error) = Tap::open(&name, spec.mtu).and_then(|tap| tap.end_with_lane()) {
                tracing::warn!("NIC {}: its representor {name} stays: {error}", spec.name);
            }
        }
    }

    /// Asks the switch, between two bursts.
    fn ask<T: Send + 'static>(&self, question: impl FnOnce(&mut Switch) -> T + Send + 'static) -> Result<T, Failure> {
        self.answer(self.begin(question)?)
    }

    fn begin<T: Send + 'static>(
        &self,
        question: impl FnOnce(&mut Switch) -> T + Send + 'static,
    ) -> Result<Begun<Option<T>>, Failure> {
        let id = self.id;
        Ok(self.worker.begin(move |running| running.switch(id).map(question))?)
    }

    fn answer<T>(&self, begun: Begun<Option<T>>) -> Result<T, Failure> {
        let answer = begun.wait()?;
        answer.ok_or_else(|| Failure::new(FailureKind::Failed, format!("NIC {} is being removed", self.spec.name)))
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        let id = self.id;
        if let Ok(switch) = self.worker.call(move |running| running.detach_switch(id)) {
            self.worker.lost_share();
            self.slow = None;
            // With the uplink's queues, and here because closing a device takes long.
            drop(switch);
        }
    }
}

/// A rule as the switch has it, with what it does.
struct Compiled<T> {
    id: RuleId,
    priority: u32,
    value: Key,
    mask: Key,
    does: T,
}

impl Compiled<Program> {
    /// Ready to be installed.
    fn ready(self, programs: &mut Interned<Program>) -> Compiled<Installed> {
        let Self { id, priority, value, mask, does } = self;
        Compiled { id, priority, value, mask, does: Installed::new(programs.get(&does), id.0 as u64) }
    }
}

fn compile(rule: &Rule, ports: u16, meters: &BTreeMap<u32, MeterSpec>) -> Result<Compiled<Program>, Failure> {
    let named = |kind, error: &dyn std::fmt::Display| Failure::new(kind, format!("rule {}: {error}", rule.id));
    rule.check().map_err(|error| named(FailureKind::Invalid, &error))?;
    let program = Program::new(rule, ports).map_err(|error| named(FailureKind::Unsupported, &error))?;
    if let Some(meter) = program.meters().iter().find(|id| !meters.contains_key(id)) {
        return Err(named(FailureKind::NotFound, &format_args!("the NIC has no meter {meter}: make it first")));
    }
    let in_port = number(rule.in_port);
    if in_port >= ports {
        return Err(named(FailureKind::NotFound, &format_args!("the NIC has no port {}", rule.in_port)));
    }
    let (mut value, mask) = Key::of(&rule.matches);
    value.set_port(in_port);
    Ok(Compiled { id: rule.id, priority: rule.priority, value, mask, does: program })
}

/// How many of DPDK's devices a software NIC takes: two uplinks are three, the bond among them.
pub fn devices_of(spec: &NicSpec) -> usize {
    usize::from(spec.vfs) + spec.uplinks.len() + usize::from(spec.uplinks.len() > 1)
}

fn check(spec: &NicSpec, max_ports: u16) -> Result<(), Failure> {
    let failed = |kind, what: String| Err(Failure::new(kind, format!("NIC {}: {what}", spec.name)));
    if !MTU_RANGE.contains(&spec.mtu) {
        let (least, most) = (MTU_RANGE.start(), MTU_RANGE.end());
        return failed(FailureKind::Invalid, format!("its mtu is {}: {least} to {most} is possible", spec.mtu));
    }
    if spec.vfs > ringspan_protocol::nic::MAX_VFS {
        let most = ringspan_protocol::nic::MAX_VFS;
        return failed(FailureKind::Invalid, format!("{} VFs: at most {most} are possible", spec.vfs));
    }
    let devices = devices_of(spec);
    if devices > usize::from(max_ports) {
        let what = format!(
            "{} VFs and {} uplinks are {devices} devices (two uplinks are three), and this build of DPDK allows {max_ports} in a lane: have fewer VFs, or spread them over NICs of several lanes",
            spec.vfs,
            spec.uplinks.len()
        );
        return failed(FailureKind::NoRoom, what);
    }
    let own = |uplink: &&DeviceSpec| matches!(uplink, DeviceSpec::Soft { nic, .. } if nic == spec.name.as_str());
    if let Some(uplink) = spec.uplinks.iter().find(own) {
        let what = format!("its uplink {uplink} is a VF of its own: take a device, or a VF of another NIC");
        return failed(FailureKind::Invalid, what);
    }
    if spec.uplinks.len() > MAX_UPLINKS {
        let what = format!("{} uplinks: at most {MAX_UPLINKS} are possible", spec.uplinks.len());
        return failed(FailureKind::Invalid, what);
    }
    spec.check_vfs().or_else(|what| failed(FailureKind::Invalid, what))
}

/// Takes every frame, finished ones only.
fn uplink_config(spec: &NicSpec) -> DeviceConfig {
    DeviceConfig {
        queues: 1,
        mtu: spec.mtu,
        mac: None,
        promiscuous: Policy::Auto,
        allmulti: Policy::Auto,
        offloads: false,
        zero_copy: ZeroCopy::Off,
        zero_copy_from: None,
    }
}

fn remedy(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => "somebody else has it open",
        Some(libc::EINVAL) => "there is another interface of that name: remove it, or name the NIC otherwise",
        Some(libc::EPERM) => "the lane needs CAP_NET_ADMIN",
        Some(libc::ENOENT) => "the kernel has no /dev/net/tun: load the module tun",
        _ => "the kernel refused",
    }
}

/// What the switch and the thread of the representors counted.
fn together(counters: NicPortCounters, slow: &SlowCounters) -> NicPortCounters {
    let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
    let (missed, too_long) = (read(&slow.missed), read(&slow.too_long));
    NicPortCounters {
        representor_sent: read(&slow.sent),
        representor_received: counters.representor_received + missed + too_long,
        drop_representor: counters.drop_representor + read(&slow.refused),
        drop_no_buffer: counters.drop_no_buffer + missed,
        drop_malformed: counters.drop_malformed + too_long,
        ..counters
    }
}
