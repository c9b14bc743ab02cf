//! The mirror's thread: looks when it is time, and gives up what OVS cannot be asked about for too long.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::pace::Pace;
use super::work::Work;
use crate::error::Error;
use crate::ovs::client::{Database, OvsError, Place, Switch};

/// How often it is looked whether there is a NIC, while there is none: OVS is not asked at all then.
const NO_NIC: Duration = Duration::from_millis(500);
/// Time between attempts to reach a daemon of OVS's.
const RETRY: Duration = Duration::from_millis(250);
/// Longest wait for the database server, which is not needed, and time between attempts to reach it.
const DATABASE: Duration = Duration::from_secs(1);
const DATABASE_RETRY: Duration = Duration::from_secs(10);
/// Longest time without looking whether the mirror is to end.
const STEP: Duration = Duration::from_millis(200);
/// What says that flows may have changed: ports come and go, bridges get other controllers, settings change.
const WATCHED: [(&str, &[&str]); 4] = [
    ("Open_vSwitch", &["bridges", "other_config"]),
    ("Bridge", &["ports", "controller", "mirrors", "fail_mode", "flood_vlans"]),
    ("Port", &["interfaces", "tag", "trunks", "vlan_mode", "bond_mode"]),
    ("Interface", &["type", "options", "ofport", "link_state", "admin_state"]),
];

/// How the mirror is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where OVS is.
    pub place: Place,
    /// Most flows that are kept.
    pub max_flows: usize,
    /// How long rules stay when OVS cannot be reached.
    pub grace: Duration,
}

/// What everybody may look at.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) work: Work,
    pub(super) pace: Pace,
    /// Dumps made.
    pub(super) dumps: u64,
    /// Why OVS cannot be asked, and since when.
    pub(super) gone: Option<(Error, Instant)>,
    ending: bool,
}

/// The mirror.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(super) shared: Arc<Mutex<Shared>>,
    pub(super) settings: Settings,
}

pub(super) fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The connections to OVS.
#[derive(Default)]
struct Peers {
    switch: Option<Switch>,
    database: Option<Database>,
    /// When the database server was last tried in vain.
    tried: Option<Instant>,
}

/// The flows of all datapaths.
struct Dump {
    texts: Vec<String>,
    /// How long it took.
    cost: Duration,
    /// What the switch said of a datapath that it did not dump.
    refused: Option<OvsError>,
}

impl Mirror {
    /// A mirror that does nothing yet.
    pub(crate) fn new(settings: Settings) -> Self {
        let shared = Shared {
            work: Work::default(),
            pace: Pace::new(Instant::now()),
            dumps: 0,
            // Until it is reached for the first time it counts as gone, so that what an earlier daemon installed does not stay for ever.
            gone: Some((Error::new(crate::error::ErrorKind::OvsDown, "not asked yet"), Instant::now())),
            ending: false,
        };
        Self { shared: Arc::new(Mutex::new(shared)), settings }
    }

    /// Sets it going. Rules stay when it ends.
    pub(crate) fn start(&self, engine: impl Engine + 'static) -> Option<JoinHandle<()>> {
        let (shared, settings) = (Arc::clone(&self.shared), self.settings.clone());
        crate::control::spawn("ovs-mirror".into(), move || run(&shared, &settings, &engine))
    }

    /// Ends it soon.
    pub(crate) fn end(&self) {
        lock(&self.shared).ending = true;
    }
}

fn run(shared: &Mutex<Shared>, settings: &Settings, engine: &dyn Engine) {
    let mut peers = Peers::default();
    while !lock(shared).ending {
        if engine.nics().is_empty() && !lock(shared).work.has_nics() {
            std::thread::sleep(NO_NIC.min(STEP));
            continue;
        }
        match peers.dump(&settings.place) {
            Ok(Dump { texts, cost, refused }) => {
                let mut shared = lock(shared);
                if let Some((error, since)) = shared.gone.take() {
                    tracing::info!("Open vSwitch answers; for {:?} it did not: {error}", since.elapsed());
                }
                shared.dumps += 1;
                shared.pace.dumped(Instant::now(), cost);
                shared.work.round(&texts, settings.max_flows, engine);
                if let Some(error) = refused {
                    shared.work.trouble.get_or_insert(error.into());
                }
            }
            Err(error) => {
                peers = Peers::default();
                gone(&mut lock(shared), error, settings, engine);
                std::thread::sleep(RETRY.min(STEP));
                continue;
            }
        }
        wait(shared, settings, &mut peers);
    }
}

/// OVS cannot be asked. Its kernel datapath may go on, so rules stay for a while.
fn gone(shared: &mut Shared, error: OvsError, settings: &Settings, engine: &dyn Engine) {
    let since = match shared.gone.take() {
        Some((_, since)) => since,
        None => {
            tracing::warn!("Open vSwitch cannot be asked for its flows; rules go in {:?}: {error}", settings.grace);
            // What is known is as old as the last dump: a switch that hangs takes its time to be seen.
            shared.pace.last
        }
    };
    if since.elapsed() >= settings.grace {
        shared.work.clear(engine);
    }
    shared.gone = Some((error.into(), since));
}

/// Waits until it is time for the next dump, or for one because something changed.
fn wait(shared: &Mutex<Shared>, settings: &Settings, peers: &mut Peers) {
    let mut changed = false;
    loop {
        let left = {
            let shared = lock(shared);
            if shared.ending {
                return;
            }
            let now = Instant::now();
            if changed { shared.pace.wait_for_change(now) } else { shared.pace.wait(now) }
        };
        if left.is_zero() {
            return;
        }
        if changed {
            std::thread::sleep(left.min(STEP));
            continue;
        }
        changed = peers.changed(&settings.place, left.min(STEP));
    }
}

impl Peers {
    /// The flows of all datapaths, and how long that took.
    fn dump(&mut self, place: &Place) -> Result<Dump, OvsError> {
        let switch = match &mut self.switch {
            Some(switch) => switch,
            None => self.switch.insert(Switch::connect(place)?),
        };
        let names = switch.call("dpctl/dump-dps", &[])?;
        let begun = Instant::now();
        let (mut texts, mut refused) = (Vec::new(), None);
        for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
            match switch.dump_flows(name, &[]) {
                Ok(text) => texts.push(text),
                // A datapath that went in this moment has no flows; of one that stays it is said in `trouble`.
                Err(error) if error.connection_is_good() => refused = Some(error),
                Err(error) => return Err(error),
            }
        }
        Ok(Dump { texts, cost: begun.elapsed(), refused })
    }

    /// Whether the database told of a change within `limit`. Without it the mirror only looks at its own times.
    fn changed(&mut self, place: &Place, limit: Duration) -> bool {
        let database = match &mut self.database {
            Some(database) => database,
            None if self.tried.is_some_and(|tried| tried.elapsed() < DATABASE_RETRY) => {
                std::thread::sleep(limit);
                return false;
            }
            None => match Database::connect_within(place, DATABASE)
                .and_then(|mut database| database.watch(&WATCHED, DATABASE).map(|()| database))
            {
                Ok(database) => self.database.insert(database),
                Err(error) => {
                    tracing::debug!("{error}");
                    self.tried = Some(Instant::now());
                    return false;
                }
            },
        };
        match database.changed(limit) {
            Ok(changed) => changed,
            Err(error) => {
                tracing::debug!("{error}");
                self.database = None;
                false
            }
        }
    }
}
