//! Methods that look at ports.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringspan_protocol::{LaneName, PortCounters, PortName, PortPhase, PortSpec, PortStatus, QueueCounters};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::daemon::LONGEST_WAIT_MS;
use super::{Call, Nothing};
use crate::control::events::{KEPT, Next};
use crate::control::{Daemon, locked};
use crate::desired::{Desired, Origin};
use crate::error::{Error, ErrorKind};
use crate::lanes::LanePhase;
use crate::qemu_args::{self, QemuArgs, QemuVersion, Wish};

/// How far a port has come, seen from the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Phase {
    /// Server role: the socket listens and no front-end is there.
    Listening,
    /// Client role: the socket of the front-end is not there yet; retried.
    Connecting,
    /// A front-end is connected; the guest's driver has not started its rings.
    Connected,
    /// Both rings of at least one queue pair are started and enabled: packets flow.
    DriverReady,
    /// The guest broke its ring: stopped until it resets the device or reconnects.
    Broken,
    /// The lane is being started, or being given the port, at this moment.
    Pending,
    /// The lane refuses the port; it is tried again.
    Refused,
    /// The lane does not run.
    LaneDown,
    /// The port clashes with another one, and is not made.
    Aside,
}

impl Phase {
    /// The word it has in JSON.
    pub(super) fn word(self) -> String {
        serde_json::to_value(self).ok().and_then(|word| Some(word.as_str()?.to_owned())).unwrap_or_default()
    }
}

impl From<PortPhase> for Phase {
    fn from(phase: PortPhase) -> Self {
        match phase {
            PortPhase::Listening => Self::Listening,
            PortPhase::Connecting => Self::Connecting,
            PortPhase::Connected => Self::Connected,
            PortPhase::DriverReady => Self::DriverReady,
            PortPhase::Broken => Self::Broken,
        }
    }
}

/// A port, as wanted and as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PortEntry {
    /// Its name.
    pub name: PortName,
    /// The lane that carries it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<LaneName>,
    /// Who wants it.
    pub origin: Origin,
    /// How far it has come.
    pub phase: Phase,
    /// Why it is broken, refused or aside, why a change was refused, or why the last handshake failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What is wanted.
    pub spec: PortSpec,
    /// What its lane says of it; absent while the lane cannot be asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<PortStatus>,
}

/// A port's counters.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct PortStats {
    /// The port.
    pub name: PortName,
    /// The lane that carries it.
    pub lane: LaneName,
    /// Whether they are of now; false when they are the last known of a lane that cannot be asked.
    pub current: bool,
    /// By queue. They never go back while the port exists.
    pub counters: PortCounters,
    /// All queues together.
    pub totals: Totals,
}

/// Counters of all queues together, by direction.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Totals {
    /// From the guest to the device.
    pub from_guest: QueueCounters,
    /// From the device to the guest.
    pub to_guest: QueueCounters,
}

impl Totals {
    fn of(counters: &PortCounters) -> Self {
        let mut totals = Self::default();
        counters.from_guest.iter().for_each(|queue| totals.from_guest.add(queue));
        counters.to_guest.iter().for_each(|queue| totals.to_guest.add(queue));
        totals
    }
}

/// Which port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ByName {
    /// Its name.
    pub name: PortName,
}

pub(super) fn unknown(name: &PortName) -> Error {
    Error::new(ErrorKind::NotFound, format!("there is no port {name}: see ringspan port list")).about(name)
}

/// Entries of these ports, sorted by name.
fn entries(daemon: &Daemon, only: Option<&PortName>) -> Vec<PortEntry> {
    let desired: Desired = locked(&daemon.desired).clone();
    let chosen = |name: &PortName| only.is_none_or(|only| only == name);
    let mut by_lane: BTreeMap<&LaneName, Result<BTreeMap<PortName, PortStatus>, Error>> = BTreeMap::new();
    let mut list = Vec::new();
    for (name, port) in desired.ports.iter().filter(|(name, _)| chosen(name)) {
        let lane = daemon.lane(&port.lane).ok();
        let statuses = by_lane.entry(&port.lane).or_insert_with(|| match &lane {
            Some(lane) => lane.ports(),
            None => Ok(BTreeMap::new()),
        });
        let status = statuses.as_ref().ok().and_then(|ports| ports.get(name)).cloned();
        let refusal = lane.as_ref().and_then(|lane| lane.refusal(name));
        let (phase, reason) = match (&status, refusal) {
            // A change of a running port was refused: the port goes on as it was.
            (Some(status), Some(refusal)) => (status.phase.into(), Some(refusal.message)),
            (Some(status), None) => (status.phase.into(), status.reason.clone()),
            (None, Some(refusal)) => (Phase::Refused, Some(refusal.message)),
            (None, None) => match (lane.map(|lane| lane.phase()), statuses) {
                (Some(LanePhase::Starting | LanePhase::Idle), _) | (Some(LanePhase::Up), Ok(_)) => {
                    (Phase::Pending, None)
                }
                (Some(_), Err(error)) => (Phase::LaneDown, Some(error.message.clone())),
                (Some(_), Ok(_)) => (Phase::LaneDown, None),
                (None, _) => (
                    Phase::LaneDown,
                    Some(format!("lane {} is not in the configuration: add it there, or remove the port", port.lane)),
                ),
            },
        };
        list.push(PortEntry {
            name: name.clone(),
            lane: Some(port.lane.clone()),
            origin: port.origin,
            phase,
            reason,
            spec: port.spec.clone(),
            status,
        });
    }
    for aside in desired.aside.iter().filter(|aside| chosen(&aside.spec.name)) {
        list.push(PortEntry {
            name: aside.spec.name.clone(),
            lane: aside.lane.clone(),
            origin: aside.origin,
            phase: Phase::Aside,
            reason: Some(aside.reason.message.clone()),
            spec: aside.spec.clone(),
            status: None,
        });
    }
    list.sort_by(|a, b| a.name.cmp(&b.name));
    list
}

/// The entry of one port: the one that is made, where another stands aside for it.
pub(super) fn entry(daemon: &Daemon, name: &PortName) -> Result<PortEntry, Error> {
    let mut found = entries(daemon, Some(name));
    found.sort_by_key(|entry| entry.phase == Phase::Aside);
    found.into_iter().next().ok_or_else(|| unknown(name))
}

pub(super) fn list(call: &mut Call, _: Nothing) -> Result<Vec<PortEntry>, Error> {
    Ok(entries(call.daemon, None))
}

pub(super) fn get(call: &mut Call, params: ByName) -> Result<PortEntry, Error> {
    entry(call.daemon, &params.name)
}

/// Whose counters.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stats {
    /// Which port; all when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<PortName>,
    /// With the device's extended statistics.
    #[serde(default)]
    pub extended: bool,
}

pub(super) fn stats(call: &mut Call, params: Stats) -> Result<Vec<PortStats>, Error> {
    let daemon = call.daemon;
    let ports: Vec<(PortName, LaneName)> = {
        let desired = locked(&daemon.desired);
        let chosen = desired.ports.iter().filter(|(name, _)| params.name.as_ref().is_none_or(|only| only == *name));
        chosen.map(|(name, port)| (name.clone(), port.lane.clone())).collect()
    };
    if let (Some(name), true) = (&params.name, ports.is_empty()) {
        return Err(unknown(name));
    }
    let mut by_lane = BTreeMap::new();
    let mut list = Vec::new();
    for (name, lane) in &ports {
        let all = by_lane.entry(lane).or_insert_with(|| match daemon.lane(lane) {
            Ok(lane) => lane.counters(params.name.as_ref(), params.extended),
            Err(_) => BTreeMap::new(),
        });
        let (counters, current) = all.get(name).cloned().unwrap_or_default();
        let totals = Totals::of(&counters);
        list.push(PortStats { name: name.clone(), lane: lane.clone(), current, counters, totals });
    }
    Ok(list)
}

/// What to wait for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum WaitFor {
    /// The port is made: a front-end may connect, or has. In the client role: it is being connected to, or is.
    Listening,
    /// A front-end is connected.
    Connected,
    /// The guest's driver has started at least one ring.
    DriverReady,
    /// No front-end is connected any more.
    Closed,
}

impl WaitFor {
    pub(super) fn is_met(self, phase: Phase) -> bool {
        let made = matches!(phase, Phase::Listening | Phase::Connecting);
        let connected = matches!(phase, Phase::Connected | Phase::DriverReady | Phase::Broken);
        match self {
            Self::Listening => made || connected,
            Self::Connected => connected,
            Self::DriverReady => phase == Phase::DriverReady,
            Self::Closed => made,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Listening => "listening",
            Self::Connected => "connected",
            Self::DriverReady => "driver-ready",
            Self::Closed => "closed",
        }
    }
}

/// Which port, what for, how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wait {
    /// Its name.
    pub name: PortName,
    /// What to wait for.
    pub phase: WaitFor,
    /// Longest wait in milliseconds, at most 600,000.
    #[serde(default = "half_a_minute")]
    pub timeout_ms: u64,
}

fn half_a_minute() -> u64 {
    30_000
}

pub(super) fn wait(call: &mut Call, params: Wait) -> Result<PortEntry, Error> {
    let until = Instant::now() + Duration::from_millis(params.timeout_ms.min(LONGEST_WAIT_MS));
    let events = &call.daemon.events;
    loop {
        let seen = events.last();
        let entry = entry(call.daemon, &params.name)?;
        if params.phase.is_met(entry.phase) {
            return Ok(entry);
        }
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let (name, wanted, is) = (&params.name, params.phase.word(), entry.phase.word());
            let reason = entry.reason.map_or_else(String::new, |reason| format!(" ({reason})"));
            let message = format!("port {name} is not {wanted} after {} ms: it is {is}{reason}", params.timeout_ms);
            return Err(Error::new(ErrorKind::Timeout, message).about(name));
        }
        // An event may be about this port; looked at again without one, in case a lane lost some.
        if events.next(seen, KEPT, left.min(Duration::from_millis(250))) == Next::Closed {
            return Err(Error::new(ErrorKind::Cancelled, "the daemon ends").about(&params.name));
        }
    }
}

/// Which port, for which QEMU and guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ForQemu {
    /// The port's name.
    pub name: PortName,
    /// QEMU's version, such as `7.2`; 10.0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_version: Option<String>,
    /// Size of the guest's memory as QEMU writes it; 512M when absent. Empty: no memory, for a guest's second port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Queue pairs of the guest's NIC, 1 to 32; the port's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_queues: Option<u16>,
}

pub(super) fn qemu_args(call: &mut Call, params: ForQemu) -> Result<QemuArgs, Error> {
    let bad = |message: String| Error::new(ErrorKind::Invalid, message).about(&params.name);
    let version = match &params.qemu_version {
        Some(text) => QemuVersion::parse(text).ok_or_else(|| bad(format!("{text:?} is no version: write 7.2")))?,
        None => QemuVersion::RECENT,
    };
    let memory = params.memory.clone().unwrap_or_else(|| "512M".into());
    let digits = memory.trim_end_matches(['M', 'G', 'K', 'T', 'm', 'g', 'k', 't']);
    if !memory.is_empty()
        && (digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) || memory.len() - digits.len() > 1)
    {
        return Err(bad(format!("{memory:?} is no size of memory: write 512M or 4G")));
    }
    let entry = entry(call.daemon, &params.name)?;
    let queues = params.guest_queues.unwrap_or(entry.spec.queues);
    if !(1..=ringspan_protocol::MAX_QUEUE_PAIRS).contains(&queues) {
        return Err(bad(format!("guest_queues is {queues}: a guest has 1 to 32 pairs")));
    }
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    let device = entry.status.as_ref().map(|status| status.device.mac);
    let mac = qemu_args::guest_mac(&entry.spec, device, machine.trim());
    let memory = Some(memory).filter(|memory| !memory.is_empty());
    Ok(QemuArgs::new(&entry.spec, &Wish { version, memory, queues, mac }))
}
