//! What idle ports cost a busy one: 28 ports with connected front-ends and running rings, of which one is busy, against one port alone.

use std::path::PathBuf;

use anyhow::ensure;
use nix::sys::signal::Signal;
use ringspan_testkit::guest::{Guest, Options};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{process, wait};

use crate::calm::Patience;
use crate::cell::Cell;
use crate::driver::{self, SplitRing};
use crate::load::Load;
use crate::report::Spread;
use crate::run::{on_core, options, queues};

/// Ports of the crowded lane.
pub const PORTS: usize = 28;
/// Alternations of the two lanes.
const ROUNDS: usize = 5;
/// Each measurement; what the guest's coming sets off in the worker is over after the warm-up.
const LOAD: Load = Load { burst: 64, warm_up: 0.2, measured: 0.4 };

/// A lane whose first port is to be loaded, and idle guests on all others.
struct Scene {
    lane: Lane,
    busy: PathBuf,
    idle: Vec<Guest>,
    _folder: tempfile::TempDir,
}

impl Scene {
    /// Stands still until it is measured.
    fn new(core: usize, ports: usize) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let name = format!("ports{ports}");
        let options = lane::Options { cores: core.to_string(), memory_mib: 512, ..lane::Options::new(name) };
        let mut lane = Lane::start(options, folder.path())?;
        let busy = lane.add_port("busy", "vdev:net_null0,size=64,no-rx=1", 1)?;
        let mut idle = vec![];
        for i in 1..ports {
            let socket = lane.add_port(&format!("idle{i}"), &format!("vdev:net_null{i},size=64,no-rx=1"), 1)?;
            idle.push(Guest::start(Options::new(socket))?);
        }
        let scene = Self { lane, busy, idle, _folder: folder };
        scene.signal(Signal::SIGSTOP)?;
        Ok(scene)
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        process::signal(self.lane.pid(), signal)
    }

    /// Packets per second that a new guest on the first port gets rid of.
    fn measure(&mut self, cell: &Cell, guest_core: usize) -> anyhow::Result<f64> {
        self.signal(Signal::SIGCONT)?;
        let busy = self.busy.clone();
        let rate = on_core(guest_core, || {
            let mut guest = driver::Guest::<SplitRing>::start(&options(cell, busy, false))?;
            let measured = queues(std::slice::from_mut(&mut guest), cell).run(LOAD)?;
            guest.stop()?;
            Ok(measured.sent_pps)
        })?;
        ensure!(self.lane.is_alive(), "the lane with {} idle guests died", self.idle.len());
        self.signal(Signal::SIGSTOP)?;
        Ok(rate)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // Guests that say good-bye would wait for one that stands still.
        let _ = self.signal(Signal::SIGCONT);
    }
}

/// The rate of the busy port among idle ones, in percent of that of a port alone on the same core, alternation by alternation.
pub fn crowded(core: usize, guest_core: usize, patience: &Patience) -> anyhow::Result<Spread> {
    let cell = Cell::select(&["tx/split/64"])?[0];
    let (mut alone, mut crowd) = (Scene::new(core, 1)?, Scene::new(core, PORTS)?);
    let mut ratios = vec![];
    for round in 0..ROUNDS {
        wait::check_stopped()?;
        patience.wait(core, guest_core)?;
        let (one, many) = if round % 2 == 0 {
            let one = alone.measure(&cell, guest_core)?;
            (one, crowd.measure(&cell, guest_core)?)
        } else {
            let many = crowd.measure(&cell, guest_core)?;
            (alone.measure(&cell, guest_core)?, many)
        };
        ensure!(one > 0.0 && many > 0.0, "nothing moved: {one:.0} pps alone, {many:.0} pps among {PORTS} ports");
        ratios.push(100.0 * many / one);
    }
    Spread::of(ratios).ok_or_else(|| anyhow::anyhow!("nothing was measured"))
}
