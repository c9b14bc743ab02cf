//! ovs-vswitchd as a source: all flows that it has, when it is time to ask for them, or when something says that they changed.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::MutexGuard;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::packed::Kinds;
use super::run::{Common, Phase, Settings, Shared, lock};
use super::table::{Misses, Source, Told};
use super::work::News;
use crate::ovs::client::{Database, FlowMonitor, Lines, OvsError, Place, Switch};
use crate::ovs::owner;
use crate::ovs::view::{Bridge, View};

/// How often it is looked whether there is a NIC, while there is none: OVS is not asked at all then.
const NO_NIC: Duration = Duration::from_millis(100);
/// Time between attempts to reach a daemon of OVS's.
const RETRY: Duration = Duration::from_millis(200);
/// Longest wait for the database server, which is not needed, and time between attempts to reach it.
const DATABASE: Duration = Duration::from_secs(1);
const RECONNECT: Duration = Duration::from_secs(10);
/// Longest wait for a bridge.
const MONITOR: Duration = Duration::from_millis(500);
/// How many dumps follow at once when something is said to have changed: the datapath follows the tables a little later.
const AFTER_CHANGE: u32 = 3;
/// Longest time without looking whether the mirror is to end.
const STEP: Duration = Duration::from_millis(200);
/// How long a datapath is asked for its flows when no NIC's port is on it any more: a NIC that is busy or restarted is not there for a moment.
const STAYS: Duration = Duration::from_secs(30);
/// What says that flows may have changed: ports come and go, bridges get other controllers, settings change.
const WATCHED: [(&str, &[&str]); 4] = [
    ("Open_vSwitch", &["bridges", "other_config"]),
    ("Bridge", &["ports", "controller", "mirrors", "fail_mode", "flood_vlans", "datapath_type"]),
    ("Port", &["interfaces", "tag", "trunks", "vlan_mode", "bond_mode"]),
    ("Interface", &["type", "options", "ofport", "link_state", "admin_state"]),
];
/// The kernel's datapath, as ovs-vswitchd names it.
const KERNEL: &str = "system@";

/// Tells of ovs-vswitchd's flows until the mirror ends.
pub(super) fn run(common: &Common, settings: &Settings, news: &SyncSender<News>) {
    let mut peers = Peers::default();
    let mut follow = 0;
    loop {
        {
            let mut shared = lock(&common.shared);
            if shared.ending {
                return;
            }
            if !shared.work.has_nics() {
                drop(shared);
                common.sleep(NO_NIC);
                continue;
            }
            shared.asking = Some(Instant::now());
        }
        let dumped = peers.dump(&settings.place, common);
        lock(&common.shared).asking = None;
        match dumped {
            Ok(dump) => {
                {
                    let mut shared = lock(&common.shared);
                    shared.answered(dump.cost, dump.refused);
                }
                if news.send(News::Dump { source: Source::Text, told: dump.told, misses: dump.misses }).is_err() {
                    return;
                }
            }
            Err(error) => {
                peers = Peers::default();
                lock(&common.shared).unreachable(error, settings.grace);
                common.sleep(RETRY);
                continue;
            }
        }
        follow =
            if wait(common, settings, &mut peers, follow > 0) { AFTER_CHANGE } else { u32::saturating_sub(follow, 1) };
    }
}

/// Waits until it is time for the next dump, or for one because something changed, or changed before. Whether something did.
fn wait(common: &Common, settings: &Settings, peers: &mut Peers, before: bool) -> bool {
    let mut changed = false;
    loop {
        let left = {
            let shared = lock(&common.shared);
            if shared.ending {
                return changed;
            }
            let now = Instant::now();
            let left = if changed || before { shared.pace.wait_for_change(now) } else { shared.pace.wait(now) };
            // The last one was not taken yet.
            if left.is_zero() && shared.taking { Duration::from_millis(1) } else { left }
        };
        if left.is_zero() {
            return changed;
        }
        if changed {
            common.sleep(left.min(STEP));
            continue;
        }
        changed = peers.changed(&settings.place, common, left.min(STEP));
    }
}

/// The connections to OVS.
#[derive(Default)]
struct Peers {
    switch: Option<Switch>,
    database: Option<Database>,
    /// When the database server was last tried.
    tried: Option<Instant>,
    /// What tells of changes in bridges' tables, by bridge.
    monitors: BTreeMap<String, FlowMonitor>,
    /// When it was last looked which bridges there are.
    looked: Option<Instant>,
    /// Whether OVS waits for its tables: that it has no flows says nothing by then.
    restoring: bool,
    /// All interfaces by name, with the types of their datapaths; nothing when that is not known.
    interfaces: Option<BTreeMap<String, String>>,
    /// Types of the datapaths that have a port of a NIC, and when that was last seen.
    types: BTreeMap<String, Instant>,
    /// What the flows that were told have in common.
    kinds: Kinds,
}

/// The flows of all datapaths that matter.
struct Dump {
    /// Those that are not as before.
    told: Vec<Told>,
    misses: Misses,
    /// How long it took.
    cost: Duration,
    /// What the switch said of a datapath that it did not dump.
    refused: Option<OvsError>,
}

/// What takes a dump's lines: those that are as before go by. The table is held for as long as lines come without a pause.
struct Taken<'a> {
    common: &'a Common,
    held: Option<MutexGuard<'a, Shared>>,
    kinds: &'a mut Kinds,
    told: Vec<Told>,
    misses: Misses,
}

impl Lines for Taken<'_> {
    fn line(&mut self, line: &[u8]) {
        let shared = self.held.get_or_insert_with(|| lock(&self.common.shared));
        let table = &mut shared.work.table;
        if !table.is_as_before(line) {
            self.told.extend(table.told(self.kinds, line, &mut self.misses));
        }
    }

    fn pause(&mut self) {
        self.held = None;
    }
}

impl Peers {
    fn dump(&mut self, place: &Place, common: &Common) -> Result<Dump, OvsError> {
        let types = self.types(Instant::now(), |port| lock(&common.shared).work.has_port(port));
        let mut switch = match self.switch.take() {
            Some(switch) => switch,
            None => {
                let switch = Switch::connect(place)?;
                // It may have been started a moment ago.
                self.reach_database(place);
                self.look(place, common);
                switch
            }
        };
        if self.restoring {
            return Err(OvsError::Restoring);
        }
        let names = switch.call("dpctl/dump-dps", &[])?;
        let begun = Instant::now();
        let kernel = {
            let mut shared = lock(&common.shared);
            shared.work.table.begin(Source::Text);
            shared.taking = true;
            shared.dumping = shared.phase;
            shared.phase
        };
        let mut taken =
            Taken { common, held: None, kinds: &mut self.kinds, told: Vec::new(), misses: Misses::default() };
        let mut refused = None;
        for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
            if !matters(name, kernel, types.as_ref()) {
                continue;
            }
            lock(&common.shared).work.table.datapath(name);
            let dumped = switch.dump_lines(name, &mut taken);
            taken.pause();
            match dumped {
                Ok(()) => {}
                // A datapath that went in this moment has no flows; of one that stays it is said in `trouble`.
                Err(error) if error.connection_is_good() => refused = Some(error),
                Err(error) => {
                    lock(&common.shared).taking = false;
                    return Err(error);
                }
            }
        }
        let Taken { told, misses, .. } = taken;
        self.switch = Some(switch);
        Ok(Dump { told, misses, cost: begun.elapsed(), refused })
    }

    /// Whether something told of a change within `limit`. Without a database the mirror only looks at its own times.
    fn changed(&mut self, place: &Place, common: &Common, limit: Duration) -> bool {
        if self.reach_database(place) {
            self.look(place, common);
        }
        let fds = self.database.iter().map(AsFd::as_fd).chain(self.monitors.values().map(AsFd::as_fd));
        let mut fds: Vec<PollFd> = fds.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
        if fds.is_empty() {
            common.sleep(limit);
            return false;
        }
        let limit = if self.database.as_ref().is_some_and(Database::was_told) { Duration::ZERO } else { limit };
        let timeout = PollTimeout::try_from(limit).unwrap_or(PollTimeout::MAX);
        // What a failure of the wait would hide is found at the mirror's own times.
        let _ = poll(&mut fds, timeout);
        let mut changed = false;
        if let Some(database) = &mut self.database {
            match database.changed(Duration::from_micros(1)) {
                Ok(told) => changed = told,
                Err(error) => {
                    tracing::debug!("{error}");
                    (self.database, self.interfaces) = (None, None);
                }
            }
        }
        if changed || self.looked.is_none_or(|looked| looked.elapsed() >= RECONNECT) {
            self.look(place, common);
        }
        self.monitors.retain(|_, monitor| match monitor.changed() {
            Ok(told) => {
                changed |= told;
                !monitor.is_blurred()
            }
            Err(error) => {
                tracing::debug!("{error}");
                false
            }
        });
        let shortest = self.monitors.values().filter_map(FlowMonitor::shortest_idle).min();
        lock(&common.shared).work.shortest_idle = shortest;
        changed
    }

    /// Connects to the database server where that was not tried a little while ago; whether it was tried now.
    fn reach_database(&mut self, place: &Place) -> bool {
        if self.database.is_some() || self.tried.is_some_and(|tried| tried.elapsed() < RECONNECT) {
            return false;
        }
        self.tried = Some(Instant::now());
        match connect(place) {
            Ok(database) => self.database = Some(database),
            Err(error) => tracing::debug!("{error}"),
        }
        true
    }

    /// Types of the datapaths that have a port of a NIC, or had one a little while ago; nothing when that is not known.
    fn types(&mut self, now: Instant, mut has_port: impl FnMut(&str) -> bool) -> Option<BTreeSet<String>> {
        let interfaces = self.interfaces.as_ref()?;
        for (_, kind) in interfaces.iter().filter(|(name, _)| has_port(name)) {
            self.types.insert(kind.clone(), now);
        }
        self.types.retain(|_, seen| now.saturating_duration_since(*seen) < STAYS);
        Some(self.types.keys().cloned().collect())
    }

    /// Which bridges have a port of a NIC: of these the flows are asked for, and word of changes in their tables.
    fn look(&mut self, place: &Place, common: &Common) {
        self.looked = Some(Instant::now());
        let Some(view) = self.database.as_mut().and_then(|database| View::read(database).ok()) else {
            (self.interfaces, self.restoring) = (None, false);
            return;
        };
        self.restoring = view.restoring;
        let owning = owner::open_vswitch(&view, place);
        let ports = lock(&common.shared).work.shared_ports();
        let ruled = owner::with_rules(ports.iter().map(String::as_str));
        let bridges: Vec<&Bridge> = {
            let mut shared = lock(&common.shared);
            shared.work.hw_offload = owning;
            shared.work.tc_ruled = ruled.into_iter().collect();
            shared.work.one_vlan = view.one_vlan;
            let has_port = |bridge: &&Bridge| {
                let mut interfaces = bridge.ports.iter().flat_map(|port| &port.interfaces);
                interfaces.any(|interface| shared.work.has_port(&interface.name))
            };
            view.bridges.iter().filter(has_port).collect()
        };
        let interfaces = view.bridges.iter().flat_map(|bridge| {
            let interfaces = bridge.ports.iter().flat_map(|port| &port.interfaces);
            interfaces.map(|interface| (interface.name.clone(), bridge.datapath_type.clone()))
        });
        self.interfaces = Some(interfaces.collect());
        self.monitors.retain(|name, _| bridges.iter().any(|bridge| bridge.name == *name));
        for bridge in bridges {
            if !self.monitors.contains_key(&bridge.name) {
                match FlowMonitor::connect(place, &bridge.name, MONITOR) {
                    Ok(monitor) => drop(self.monitors.insert(bridge.name.clone(), monitor)),
                    Err(error) => tracing::debug!("{error}"),
                }
            }
        }
    }
}

fn connect(place: &Place) -> Result<Database, OvsError> {
    let mut database = Database::connect_within(place, DATABASE)?;
    database.watch(&WATCHED, DATABASE)?;
    Ok(database)
}

/// Whether the flows of a datapath, `TYPE@NAME`, are to be asked for: not those of the kernel while it is listened to, and not those of one
/// that no NIC's port is on.
fn matters(datapath: &str, kernel: Phase, types: Option<&BTreeSet<String>>) -> bool {
    if datapath.starts_with(KERNEL) {
        return kernel == Phase::Off;
    }
    let kind = datapath.split('@').next().unwrap_or_default();
    types.is_none_or(|types| types.contains(kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nic_that_is_back_has_its_flows_asked_for_again_without_word_from_the_database() {
        let mut peers = Peers::default();
        let now = Instant::now();
        assert_eq!(peers.types(now, |_| false), None);
        let interfaces = [("nic0", "netdev"), ("tap0", "dummy")].map(|(name, kind)| (name.to_owned(), kind.to_owned()));
        peers.interfaces = Some(BTreeMap::from(interfaces));
        assert_eq!(peers.types(now, |_| false), Some(BTreeSet::new()));
        let all = Some(BTreeSet::from(["netdev".to_owned()]));
        assert_eq!(peers.types(now, |port| port == "nic0"), all);
        assert_eq!(peers.types(now + STAYS / 2, |_| false), all, "it is only busy");
        assert_eq!(peers.types(now + STAYS, |_| false), Some(BTreeSet::new()));
        assert_eq!(peers.types(now + STAYS, |port| port == "nic0"), all);
    }

    #[test]
    fn what_the_kernel_tells_and_what_no_nic_is_on_is_not_dumped() {
        let types = BTreeSet::from(["netdev".to_owned()]);
        assert!(matters("netdev@ovs-netdev", Phase::Live, Some(&types)));
        assert!(!matters("dummy@ovs-dummy", Phase::Live, Some(&types)));
        assert!(matters("dummy@ovs-dummy", Phase::Live, None));
        for (phase, wanted) in
            [(Phase::Off, true), (Phase::Starting, false), (Phase::Live, false), (Phase::Idle, false)]
        {
            assert_eq!(matters("system@ovs-system", phase, Some(&types)), wanted, "{phase:?}");
        }
    }
}
