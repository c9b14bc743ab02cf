//! The kernel's datapath as a source: one dump, and then each change as it is told.
//!
//! The kernel does not tell of counters, nor of a datapath that was flushed: so all is dumped again from time to time, which costs ovs-vswitchd
//! nothing. While a dump is read, changes are passed on: what is told of one by one is newer than the dump.
//!
//! With `hw-offload` Open vSwitch gives most flows to TC and not to the datapath: while it does, its own dumps, which have both, are what a software NIC goes by.

use std::collections::HashMap;
use std::sync::mpsc::SyncSender;
use std::time::{Duration, Instant};

use super::packed::Kinds;
use super::run::{Common, Phase, lock};
use super::table::{Misses, Source, Told};
use super::work::{Change, News};
use crate::ovs::client::Place;
use crate::ovs::flow::{Action, Flow, Key, PortRef};
use crate::ovs::kernel::{self, Datapath, KernelError, OVS_SYSTEM, Unreadable, Watch};

/// Time between attempts to reach the kernel's datapath, and between looks whether it has a NIC's port.
const RETRY: Duration = Duration::from_millis(500);
/// Longest time without looking whether the mirror is to end.
const STEP: Duration = Duration::from_millis(100);
/// Shortest time between dumps for counters, and how many times its own length that is at least.
const AGAIN: Duration = Duration::from_secs(2);
const SHARE: u32 = 50;
/// Shortest time between dumps because something was lost, how many times its own length that is at least, and how many may fail, one after
/// the other, before ovs-vswitchd is asked instead; and for how long.
const AT_ONCE: Duration = Duration::from_millis(20);
const LOST_SHARE: u32 = 4;
const FAILURES: u32 = 6;
const GIVEN_UP: Duration = Duration::from_secs(30);
/// Flows of a dump between two looks at what changed meanwhile.
const BETWEEN: usize = 128;

/// Names of ports by their numbers.
pub(super) type Ports = HashMap<u32, Box<str>>;

/// Why it ends.
enum End {
    /// The mirror ends.
    Ending,
    /// The kernel cannot be asked.
    Error(KernelError),
    /// No port of a NIC is on the datapath any more.
    NoPort,
    /// Open vSwitch gives its flows to TC, of which the datapath does not tell.
    WithTc,
}

impl From<KernelError> for End {
    fn from(error: KernelError) -> Self {
        Self::Error(error)
    }
}

/// Tells of the kernel's flows until the mirror ends.
pub(super) fn run(common: &Common, place: &Place, news: &SyncSender<News>) {
    let mut said = false;
    while !lock(&common.shared).ending {
        let (has_nics, with_tc) = {
            let shared = lock(&common.shared);
            (shared.work.has_nics(), shared.work.is_with_tc())
        };
        if !has_nics {
            std::thread::sleep(STEP);
            continue;
        }
        let opened = if with_tc { None } else { Some(Kernel::open(place)) };
        let (end, begun, failed) = match opened {
            None => (End::WithTc, false, 0),
            Some(Ok(mut kernel)) => {
                let end = kernel.run(common, news);
                (end, kernel.begun, kernel.dumps.failed)
            }
            Some(Err(error)) => (End::Error(error), false, 0),
        };
        let phase = match end {
            End::Ending => return,
            End::NoPort => Phase::Idle,
            End::WithTc => Phase::Off,
            End::Error(error) => {
                if !std::mem::replace(&mut said, true) {
                    tracing::debug!("the kernel's flows come by way of ovs-vswitchd, if there are any: {error}");
                }
                Phase::Off
            }
        };
        let was = std::mem::replace(&mut lock(&common.shared).phase, phase);
        if was == Phase::Live {
            tracing::info!("the kernel's flows are not followed any more");
            said = false;
        }
        // Whatever was told by then is in the table as the kernel's, even when no dump became whole: without this nobody would take it out.
        if begun && news.send(News::KernelLost).is_err() {
            return;
        }
        common.sleep(if failed >= FAILURES { GIVEN_UP } else { RETRY });
    }
}

/// The datapath that is listened to.
struct Kernel {
    datapath: Datapath,
    watch: Watch,
    ports: Ports,
    /// What the flows that were told have in common.
    kinds: Kinds,
    dumps: Dumps,
    /// Something was told, or is about to be.
    begun: bool,
}

/// When all is dumped.
#[derive(Debug, Default)]
struct Dumps {
    /// When the last one ended, whole or not.
    ended: Option<Instant>,
    /// How long it took.
    took: Duration,
    /// How many failed since the last one that was whole.
    failed: u32,
    /// Ports or flows may be other ones than those that are known.
    stale: bool,
}

impl Dumps {
    fn is_due(&self, now: Instant) -> bool {
        self.ended.is_none_or(|ended| now.saturating_duration_since(ended) >= self.pause())
    }

    /// Time from the end of the last one to the next.
    fn pause(&self) -> Duration {
        let again = AGAIN.max(self.took * SHARE);
        if !self.stale {
            return again;
        }
        // One that fails is likely to fail again while as much changes: each time it is left longer alone.
        (AT_ONCE.max(self.took * LOST_SHARE) * (1 << self.failed.min(FAILURES))).min(again)
    }

    fn ended(&mut self, since: Instant, is_whole: bool) {
        let now = Instant::now();
        (self.took, self.ended) = (now - since, Some(now));
        self.failed = if is_whole { 0 } else { self.failed + 1 };
    }
}

impl Kernel {
    fn open(place: &Place) -> Result<Self, KernelError> {
        if !is_our_namespace(place) {
            return Err(KernelError::NoDatapath {
                name: OVS_SYSTEM.into(),
                there: "OVS in another network namespace".into(),
            });
        }
        let datapath = Datapath::open(OVS_SYSTEM)?;
        // Before the dump, so that nothing that changes falls between the two.
        let watch = datapath.watch()?;
        Ok(Self {
            datapath,
            watch,
            ports: HashMap::new(),
            kinds: Kinds::default(),
            dumps: Dumps::default(),
            begun: false,
        })
    }

    fn run(&mut self, common: &Common, news: &SyncSender<News>) -> End {
        loop {
            match self.round(common, news) {
                Ok(None) => {}
                Ok(Some(end)) => return end,
                // What was lost is dumped anew.
                Err(KernelError::Overrun | KernelError::Changed | KernelError::Decode(_))
                    if self.begun && self.dumps.failed < FAILURES =>
                {
                    self.dumps.stale = true;
                }
                Err(error) => return End::Error(error),
            }
        }
    }

    fn round(&mut self, common: &Common, news: &SyncSender<News>) -> Result<Option<End>, KernelError> {
        let wanted = {
            let mut shared = lock(&common.shared);
            if shared.ending {
                return Ok(Some(End::Ending));
            }
            if shared.work.is_with_tc() {
                return Ok(Some(End::WithTc));
            }
            std::mem::take(&mut shared.dump_kernel)
        };
        if wanted || self.dumps.is_due(Instant::now()) {
            let since = Instant::now();
            let dumped = self.named_dump(common, news);
            self.dumps.ended(since, dumped.is_ok());
            if let Some(end) = dumped? {
                return Ok(Some(end));
            }
            let mut shared = lock(&common.shared);
            shared.kernel_dumps += 1;
            shared.kernel_took = self.dumps.took;
        }
        let limit = if self.dumps.stale { AT_ONCE } else { STEP };
        Ok(self.pass_on(limit, news)?.then_some(End::Ending))
    }

    /// Asks for the ports, and dumps all flows.
    fn named_dump(&mut self, common: &Common, news: &SyncSender<News>) -> Result<Option<End>, KernelError> {
        self.ports = self.datapath.ports()?.into_iter().collect();
        {
            let mut shared = lock(&common.shared);
            if !self.ports.values().any(|name| shared.work.has_port(name)) {
                return Ok(Some(End::NoPort));
            }
            // Where ovs-vswitchd is asked for these flows, that goes on until all of them were told from here.
            if !self.begun && shared.phase != Phase::Off {
                shared.phase = Phase::Starting;
            }
        }
        self.begun = true;
        self.dumps.stale = false;
        Ok(self.dump(news)?.then_some(End::Ending))
    }

    /// Dumps all flows. Whether nobody takes them any more.
    fn dump(&mut self, news: &SyncSender<News>) -> Result<bool, KernelError> {
        if news.send(News::KernelBegins).is_err() {
            return Ok(true);
        }
        let (mut flows, mut misses, mut ended) = (Vec::new(), Misses::default(), false);
        let Self { datapath, watch, ports, kinds, .. } = self;
        // What is dumped after a port changed would have other names than what was dumped before.
        let mut anew = |_: &mut Ports| Err(KernelError::Changed);
        let mut count = 0;
        datapath.dump_each(|told| {
            match as_told(told, ports, kinds) {
                Some(told) => flows.push(told),
                None => misses.unreadable("a flow of the kernel's without an ufid"),
            }
            count += 1;
            if count % BETWEEN == 0 {
                ended |= pass_on(watch, (ports, kinds), &mut anew, Duration::ZERO, news)?;
            }
            Ok(())
        })?;
        let news_of_all = News::Dump { source: Source::Kernel, told: flows, misses };
        Ok(ended || news.send(news_of_all).is_err())
    }

    fn pass_on(&mut self, limit: Duration, news: &SyncSender<News>) -> Result<bool, KernelError> {
        let Self { datapath, watch, ports, kinds, dumps, .. } = self;
        // What comes is named as the kernel would forward it now; what is there already is named anew by the next dump.
        let mut named = |ports: &mut Ports| {
            dumps.stale = true;
            *ports = datapath.ports()?.into_iter().collect();
            Ok(())
        };
        pass_on(watch, (ports, kinds), &mut named, limit, news)
    }
}

/// Passes on what changed, and waits for it. Whether nobody takes it any more.
fn pass_on(
    watch: &mut Watch,
    (ports, kinds): (&mut Ports, &mut Kinds),
    renamed: &mut dyn FnMut(&mut Ports) -> Result<(), KernelError>,
    limit: Duration,
    news: &SyncSender<News>,
) -> Result<bool, KernelError> {
    let mut told = Vec::new();
    let waited = watch.wait(limit, &mut told);
    let mut changes = Vec::with_capacity(told.len());
    for change in told {
        match change {
            kernel::Change::Put(flow) => changes.extend(as_told(flow, ports, kinds).map(Change::Put)),
            kernel::Change::Deleted(ufid) => changes.push(Change::Deleted(ufid.0)),
            kernel::Change::Ports => renamed(ports)?,
            // It was not kept.
            kernel::Change::DeletedUnnamed => {}
        }
    }
    let ended = !changes.is_empty() && news.send(News::Kernel(changes)).is_err();
    waited?;
    Ok(ended)
}

/// As the table has flows: with the names of ports. A number without a name is a port that is not known, and the flow stays with OVS.
pub(super) fn as_told(told: kernel::Told, ports: &Ports, kinds: &mut Kinds) -> Option<Told> {
    let mut flow = match told {
        kernel::Told::Flow(flow) => flow,
        kernel::Told::Unreadable(Unreadable { ufid, reason }) => {
            let keys = format!("not understood: {reason}");
            return Some(Told::new(kinds, ufid?.0, &keys, "", &Default::default()));
        }
    };
    let ufid = flow.ufid?;
    name_ports(&mut flow, ports);
    // The kernel tells values with their masks applied: what a packet's source port is to a tunnel's flow is in neither. Were it not in the text,
    // it would be read as zero, which no packet has.
    for key in &mut flow.keys {
        if let Key::Tunnel(tunnel) = key {
            tunnel.spell_out();
        }
    }
    let (mut keys, mut actions) = (String::with_capacity(480), String::with_capacity(64));
    // A string takes all.
    let _ = flow.parts(&mut keys, &mut actions);
    Some(Told::new(kinds, ufid.0, &keys, &actions, &flow.stats))
}

fn name_ports(flow: &mut Flow, ports: &Ports) {
    for key in &mut flow.keys {
        if let Key::InPort { port, mask: u32::MAX } = key {
            name(port, ports);
        }
    }
    name_outputs(&mut flow.actions, ports);
}

fn name_outputs(actions: &mut [Action], ports: &Ports) {
    for action in actions {
        match action {
            Action::Output(port) => name(port, ports),
            Action::Sample { actions, .. } | Action::Clone(actions) | Action::DecTtl(actions) => {
                name_outputs(actions, ports)
            }
            Action::CheckPktLen { greater, less_or_equal, .. } => {
                name_outputs(greater, ports);
                name_outputs(less_or_equal, ports);
            }
            _ => {}
        }
    }
}

fn name(port: &mut PortRef, ports: &Ports) {
    let PortRef::Number(number) = port else { return };
    if let Some(name) = ports.get(number) {
        *port = PortRef::Name(name.clone());
    }
}

/// Whether ovs-vswitchd's network namespace is this process's: generic netlink sees no other. Where that cannot be told, it is.
fn is_our_namespace(place: &Place) -> bool {
    let of = |process: &str| std::fs::read_link(format!("/proc/{process}/ns/net")).ok();
    let theirs = place.switch_pid().ok().and_then(|pid| of(&pid.to_string()));
    theirs.is_none_or(|theirs| of("self").is_none_or(|ours| ours == theirs))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ovs::flow::{Names, parse};

    #[test]
    fn dumps_that_fail_follow_each_other_ever_more_slowly() {
        let now = Instant::now();
        let mut dumps = Dumps::default();
        assert!(dumps.is_due(now), "the first one");
        dumps = Dumps { ended: Some(now), took: Duration::from_millis(1), failed: 0, stale: false };
        assert!(!dumps.is_due(now + AGAIN / 2) && dumps.is_due(now + AGAIN));
        dumps.stale = true;
        assert!(!dumps.is_due(now) && dumps.is_due(now + AT_ONCE));
        dumps.failed = 1;
        assert!(!dumps.is_due(now + AT_ONCE) && dumps.is_due(now + 2 * AT_ONCE));
        // A long one is left alone for some times its own length, even if only what was told between dumps is lost.
        dumps = Dumps { took: Duration::from_millis(100), failed: 0, ..dumps };
        assert!(!dumps.is_due(now + 3 * dumps.took) && dumps.is_due(now + LOST_SHARE * dumps.took));
        dumps.ended(Instant::now(), false);
        assert_eq!(dumps.failed, 1);
        dumps.ended(Instant::now(), true);
        assert_eq!(dumps.failed, 0);
    }

    #[test]
    fn ports_get_their_names_wherever_they_stand_and_unknown_ones_stay_numbers() {
        let text = "ufid:00000000-0000-0000-0000-000000000007, recirc_id(0),in_port(1),eth_type(0x0800), packets:0, bytes:0, used:never, \
                    actions:clone(2),check_pkt_len(size=100,gt(2),le(9)),2";
        let flow = parse::flow(text, 1, Names::None).unwrap();
        let ports = HashMap::from([(1, "nic0_vf0".into()), (2, "nic0".into())]);
        let told = as_told(kernel::Told::Flow(Box::new(flow)), &ports, &mut Kinds::default()).unwrap();
        let expected = Told::new(
            &mut Kinds::default(),
            7,
            "recirc_id(0),in_port(nic0_vf0),eth_type(0x0800)",
            "clone(nic0),check_pkt_len(size=100,gt(nic0),le(9)),nic0",
            &Default::default(),
        );
        assert_eq!(told, expected);
    }

    #[test]
    fn a_tunnels_source_port_that_the_kernel_leaves_out_of_key_and_mask_is_any() {
        let text = "ufid:00000000-0000-0000-0000-000000000007, recirc_id(0),tunnel(tun_id=0x4d,src=1.1.1.2,dst=1.1.1.1,ttl=0/0,flags(-df-csum+key)),\
                    in_port(1),eth_type(0x88b5), packets:0, bytes:0, used:never, actions:2";
        let mut flow = parse::flow(text, 1, Names::None).unwrap();
        let tunnel = flow.keys.iter_mut().find_map(|key| match key {
            Key::Tunnel(tunnel) => Some(tunnel),
            _ => None,
        });
        let tunnel = tunnel.unwrap();
        (tunnel.any_tos, tunnel.any_tp_src) = (true, true);
        let told = as_told(kernel::Told::Flow(Box::new(flow)), &HashMap::new(), &mut Kinds::default()).unwrap();
        let expected = Told::new(
            &mut Kinds::default(),
            7,
            "recirc_id(0),tunnel(tun_id=0x4d,src=1.1.1.2,dst=1.1.1.1,tos=0/0,ttl=0/0,tp_src=0/0,flags(-df-csum+key)),in_port(1),eth_type(0x88b5)",
            "2",
            &Default::default(),
        );
        assert_eq!(told, expected);
    }
}
