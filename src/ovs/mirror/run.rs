//! The mirror's threads: two sources, one that tells the engines, one that counts, one that looks after idle flows, one after meters. What they share is held for short times only, and never while
//! somebody is asked.

use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::engine::Engine;
use super::pace::Pace;
use super::sample::{self, Sampling};
use super::table::Source;
use super::work::{News, Work};
use super::{idle, kernel, meters, poll};
use crate::control::spawn;
use crate::error::{Error, ErrorKind};
use crate::ovs::client::{OvsError, Place};
use crate::ovs::underlay::Underlay;

/// Time between looks at the NICs, at what failed, and at what OVS does not answer.
const TICK: Duration = Duration::from_millis(100);
/// News that wait: each is a dump or some thousand changes. Who has more to tell waits, and the kernel then says that changes were lost.
const NEWS: usize = 16;
/// How long ovs-vswitchd may take for its first dump before it counts as hanging, and for another one beside some times what the last one took.
const FIRST: Duration = Duration::from_secs(20);
const LATER: Duration = Duration::from_secs(1);
const TIMES: u32 = 4;

/// How the mirror is to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Settings {
    /// Where OVS is.
    pub place: Place,
    /// Most flows that are kept.
    pub max_flows: usize,
    /// How long rules stay when OVS cannot be reached.
    pub grace: Duration,
    /// Whether tunnels of the kernel's datapath are followed into its network.
    pub kernel_tunnels: bool,
    /// What `max-idle` of OVS is raised to while a NIC cannot show it that flows are used.
    pub raised: Duration,
}

/// How the kernel's datapath is followed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// It is about to be, or it is not known yet whether it can be.
    Starting,
    /// Its changes are told.
    Live,
    /// No NIC's port is on it.
    Idle,
    /// It cannot be: its flows, if there are any, come with the dumps of ovs-vswitchd.
    Off,
}

/// What everybody may look at.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) work: Work,
    pub(super) pace: Pace,
    /// Dumps of ovs-vswitchd.
    pub(super) dumps: u64,
    /// Dumps of the kernel, and what the last one took.
    pub(super) kernel_dumps: u64,
    pub(super) kernel_took: Duration,
    /// Changes that the kernel told.
    pub(super) kernel_changes: u64,
    /// How the kernel's datapath is followed.
    pub(super) phase: Phase,
    /// All of it is to be dumped again.
    pub(super) dump_kernel: bool,
    /// Why OVS cannot be asked, and since when.
    pub(super) gone: Option<(Error, Instant)>,
    /// It was asked at least once, whatever came of that: while there is no NIC it is not.
    pub(super) asked: bool,
    /// Why it did not dump a datapath.
    pub(super) refused: Option<Error>,
    /// Since when an answer is waited for.
    pub(super) asking: Option<Instant>,
    /// A dump was begun, and not taken yet.
    pub(super) taking: bool,
    /// It was gone for longer than the grace period: nothing is believed until it answers.
    cleared: bool,
    /// It told all it has at least once, or was gone for longer than the grace period.
    heard: bool,
    /// How the kernel was followed when the dump of ovs-vswitchd that is on its way began, and the last one that was taken: what matters
    /// is whether the kernel's flows are in it.
    pub(super) dumping: Phase,
    told: Option<Phase>,
    /// The begin of a dump of the kernel was taken, and its end was not.
    kernel_begun: bool,
    pub(super) ending: bool,
}

/// What the threads share.
#[derive(Debug)]
pub(super) struct Common {
    pub(super) shared: Mutex<Shared>,
    pub(super) sampling: Sampling,
    /// Told when the mirror ends.
    ended: Condvar,
}

/// The mirror.
#[derive(Debug)]
pub(crate) struct Mirror {
    pub(super) common: Arc<Common>,
    pub(super) settings: Settings,
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Common {
    /// Sleeps, unless the mirror ends.
    pub(super) fn sleep(&self, limit: Duration) {
        let shared = lock(&self.shared);
        let slept = self.ended.wait_timeout_while(shared, limit, |shared| !shared.ending);
        drop(slept.unwrap_or_else(PoisonError::into_inner));
    }
}

impl Shared {
    fn new(settings: &Settings) -> Self {
        Self {
            work: Work::new(settings.max_flows, settings.kernel_tunnels),
            pace: Pace::new(Instant::now()),
            dumps: 0,
            kernel_dumps: 0,
            kernel_took: Duration::ZERO,
            kernel_changes: 0,
            phase: Phase::Starting,
            dump_kernel: false,
            // Until it is reached for the first time it counts as gone, so that what an earlier daemon installed does not stay for ever.
            gone: Some((Error::new(ErrorKind::OvsDown, "not asked yet"), Instant::now())),
            asked: false,
            refused: None,
            asking: None,
            taking: false,
            cleared: false,
            heard: false,
            dumping: Phase::Starting,
            told: None,
            kernel_begun: false,
            ending: false,
        }
    }

    /// OVS told all it has.
    pub(super) fn answered(&mut self, cost: Duration, refused: Option<OvsError>) {
        if let Some((error, since)) = self.gone.take() {
            tracing::info!("Open vSwitch answers; for {:?} it did not: {error}", since.elapsed());
        }
        // What the kernel told meanwhile was not believed.
        self.dump_kernel |= std::mem::take(&mut self.cleared);
        (self.asked, self.heard) = (true, true);
        self.dumps += 1;
        self.pace.dumped(Instant::now(), cost);
        self.refused = refused.map(Error::from);
    }

    /// OVS cannot be asked. Its kernel datapath may go on, so rules stay for a while.
    pub(super) fn unreachable(&mut self, error: impl Into<Error>, grace: Duration) {
        let error = error.into();
        self.asked = true;
        let since = match self.gone.take() {
            Some((_, since)) => since,
            None => {
                tracing::warn!("Open vSwitch cannot be asked for its flows; rules go in {grace:?}: {error}");
                // What is known is as old as the last dump: a switch that hangs takes its time to be seen.
                self.pace.last
            }
        };
        self.gone = Some((error, since));
    }

    /// What there is to see from time to time.
    fn tick(&mut self, grace: Duration) {
        let limit = if self.heard { grace.max(self.pace.cost * TIMES + LATER) } else { grace.max(FIRST) };
        let hanging = self.asking.filter(|asking| asking.elapsed() >= limit);
        if let Some(asking) = hanging.filter(|_| self.gone.is_none() || !self.heard) {
            let message =
                format!("ovs-vswitchd does not answer since {:?}: it may hang, see its log", asking.elapsed());
            self.unreachable(Error::new(ErrorKind::Timeout, message), grace);
            self.heard = true;
        }
        // At first an answer that is on its way is waited for.
        let is_patient = !self.heard && self.asking.is_some_and(|asking| asking.elapsed() < limit);
        let is_over = self.gone.as_ref().is_some_and(|(_, since)| since.elapsed() >= grace);
        if is_over && !self.cleared && !is_patient {
            tracing::warn!("Open vSwitch is gone for {grace:?}: its rules go");
            (self.cleared, self.heard) = (true, true);
            (self.told, self.kernel_begun) = (None, false);
            self.work.clear();
        }
    }

    fn take(&mut self, news: News) {
        match &news {
            News::Dump { source: Source::Text, .. } => {
                self.taking = false;
                self.told = Some(self.dumping).filter(|_| !self.cleared);
            }
            News::Dump { source: Source::Kernel, .. } => {
                // What was told before its begin, and not believed, is missing: all is dumped again.
                if !std::mem::take(&mut self.kernel_begun) {
                    return;
                }
                self.phase = Phase::Live;
            }
            News::Kernel(changes) => self.kernel_changes += changes.len() as u64,
            News::KernelBegins => self.kernel_begun = !self.cleared,
            News::KernelLost => {
                self.kernel_begun = false;
                // Its last dump was taken after its end.
                if self.phase == Phase::Live {
                    self.phase = Phase::Off;
                }
            }
        }
        if !self.cleared {
            self.work.take(news);
        }
    }

    /// Whether all sources told all they have, so that a rule without a flow is nobody's.
    fn is_complete(&self) -> bool {
        let told = match self.phase {
            Phase::Starting => false,
            Phase::Live | Phase::Idle => self.told.is_some(),
            // Those of the kernel come with the dumps of ovs-vswitchd, if the dump began when that was known.
            Phase::Off => self.told == Some(Phase::Off),
        };
        told || self.cleared
    }
}

impl Mirror {
    /// A mirror that does nothing yet.
    pub(crate) fn new(settings: Settings) -> Self {
        let common =
            Common { shared: Mutex::new(Shared::new(&settings)), sampling: Sampling::default(), ended: Condvar::new() };
        Self { common: Arc::new(common), settings }
    }

    /// Sets it going. Rules stay when it ends.
    pub(crate) fn start(&self, engine: impl Engine + 'static) -> Option<JoinHandle<()>> {
        let (common, settings, engine) = (Arc::clone(&self.common), self.settings.clone(), Arc::new(engine));
        let (tell, news) = sync_channel(NEWS);
        let threads = [
            {
                let (common, settings, tell) = (Arc::clone(&common), settings.clone(), tell.clone());
                spawn("ovs-dumps".into(), move || poll::run(&common, &settings, &tell))
            },
            {
                let (common, place) = (Arc::clone(&common), settings.place.clone());
                spawn("ovs-kernel".into(), move || kernel::run(&common, &place, &tell))
            },
            {
                let (common, settings) = (Arc::clone(&common), settings.clone());
                spawn("ovs-meters".into(), move || meters::run(&common, &settings))
            },
            {
                let (common, settings, engine) = (Arc::clone(&common), settings.clone(), Arc::clone(&engine));
                spawn("ovs-idle".into(), move || idle::run(&common, &settings, &*engine))
            },
            {
                let (common, engine) = (Arc::clone(&common), Arc::clone(&engine));
                spawn("ovs-counters".into(), move || sample::run(&common, &*engine))
            },
        ];
        spawn("ovs-mirror".into(), move || {
            run(&common, &settings, &*engine, &news);
            // Whoever has something to tell learns that nobody listens.
            drop(news);
            for thread in threads.into_iter().flatten() {
                let _ = thread.join();
            }
        })
    }

    /// Ends it soon.
    pub(crate) fn end(&self) {
        lock(&self.common.shared).ending = true;
        self.common.ended.notify_all();
    }
}

fn run(common: &Common, settings: &Settings, engine: &dyn Engine, news: &Receiver<News>) {
    let mut looked: Option<Instant> = None;
    loop {
        let is_busy = lock(&common.shared).work.is_busy();
        let told = if is_busy {
            news.try_recv().map_err(|error| error == TryRecvError::Disconnected)
        } else {
            let left = looked.map_or(Duration::ZERO, |looked| TICK.saturating_sub(looked.elapsed()));
            news.recv_timeout(left).map_err(|error| error == RecvTimeoutError::Disconnected)
        };
        if told.as_ref().is_err_and(|is_over| *is_over) {
            return;
        }
        if looked.is_none_or(|looked| looked.elapsed() >= TICK) {
            let nics = engine.nics();
            let mut shared = lock(&common.shared);
            if nics.is_empty() && !shared.work.has_nics() {
                // Nothing is asked, so nothing is missed.
                if let Some((_, since)) = &mut shared.gone {
                    *since = Instant::now();
                }
            }
            shared.work.look(&nics);
            shared.tick(settings.grace);
            looked = Some(Instant::now());
        }
        let step = {
            let mut shared = lock(&common.shared);
            if shared.ending {
                return;
            }
            for news in told.into_iter().chain(news.try_iter().take(NEWS)) {
                shared.take(news);
            }
            shared.work.complete = shared.is_complete();
            shared.work.next()
        };
        if let Some(step) = step {
            let outcome = step.run(engine);
            lock(&common.shared).work.done(outcome);
        }
        let asks = lock(&common.shared).work.asks_underlay();
        if let Some((uplinks, far)) = asks {
            let read = Underlay::read(&uplinks, &far);
            lock(&common.shared).work.underlay_read(read, settings.grace);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::Misses;
    use super::*;

    fn dump(source: Source) -> News {
        News::Dump { source, told: Vec::new(), misses: Misses::default() }
    }

    fn new() -> Shared {
        Shared::new(&Settings {
            place: Place::new(None),
            max_flows: 10,
            grace: Duration::ZERO,
            kernel_tunnels: false,
            raised: Duration::ZERO,
        })
    }

    #[test]
    fn what_nobody_told_of_yet_is_not_missing() {
        let mut shared = new();
        shared.phase = Phase::Off;
        shared.answered(Duration::ZERO, None);
        assert!(!shared.is_complete(), "the dump was not taken yet");
        // It began when it was not known that the kernel's flows have to be asked for.
        shared.take(dump(Source::Text));
        assert!(!shared.is_complete());
        shared.dumping = Phase::Off;
        shared.take(dump(Source::Text));
        assert!(shared.is_complete());
        shared.phase = Phase::Starting;
        assert!(!shared.is_complete());
        shared.take(News::KernelBegins);
        shared.take(dump(Source::Kernel));
        assert!(shared.phase == Phase::Live && shared.is_complete());
    }

    #[test]
    fn a_dump_of_the_kernel_whose_begin_was_not_believed_is_not_either() {
        let mut shared = new();
        shared.tick(Duration::ZERO);
        assert!(shared.cleared && shared.is_complete());
        shared.take(News::KernelBegins);
        shared.answered(Duration::ZERO, None);
        shared.take(dump(Source::Kernel));
        assert!(shared.phase == Phase::Starting && shared.dump_kernel);
        shared.take(News::KernelBegins);
        shared.take(dump(Source::Kernel));
        assert_eq!(shared.phase, Phase::Live);
        // One that is taken when the kernel is not listened to any more.
        shared.take(News::KernelLost);
        assert_eq!(shared.phase, Phase::Off);
    }
}
