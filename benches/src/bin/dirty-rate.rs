//! How fast a lane dirties the pages of a guest that receives while it is migrated, and what logging them costs.
//!
//! One guest sends small frames over a cable (`patch:`) to another one, spread over their queue pairs, at a rate. The other one's front-end
//! takes the marks every now and then, as QEMU does in each pass over the memory: what it finds is what a pass has to send again. The last
//! line of each kind of ring is as fast as it goes, with logging and without by turns.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use ringspan_benches::load::pin;
use ringspan_benches::report::Spread;
use ringspan_testkit::guest::{Guest, Kind, Log, Options, feature};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::paths;

/// Measures how fast pages get dirty, and what logging costs.
#[derive(Parser)]
struct Arguments {
    /// Frames a second over all queue pairs, in millions
    #[arg(long, default_value_t = 1.0)]
    rate: f64,
    /// Queue pairs
    #[arg(long, default_value_t = 4)]
    pairs: u16,
    /// Descriptors in each ring
    #[arg(long, default_value_t = 1024)]
    ring: u16,
    /// Milliseconds between two looks at the log
    #[arg(long, default_value_t = 100)]
    pass_ms: u64,
    /// Looks
    #[arg(long, default_value_t = 20)]
    passes: usize,
    /// Cores of the lane and of the guests
    #[arg(long, value_delimiter = ',', default_value = "0,1", num_args = 2)]
    cores: Vec<usize>,
}

const BURST: usize = 32;
const LENGTH: usize = 60;

struct Scene {
    sender: Guest,
    receiver: Guest,
    _lane: Lane,
    _folder: tempfile::TempDir,
}

impl Scene {
    fn new(arguments: &Arguments, kind: Kind) -> Result<Self> {
        let folder = paths::scratch()?;
        let options = lane::Options { cores: arguments.cores[0].to_string(), ..lane::Options::new("dirty") };
        // A lane may use the cores that its parent may.
        pin(&arguments.cores)?;
        let mut lane = Lane::start(options, folder.path())?;
        pin(&arguments.cores[1..2])?;
        let mut guest = |name: &str, device: &str| -> Result<Guest> {
            let socket = lane.add_port(name, device, arguments.pairs)?;
            let options =
                Options { ring_size: arguments.ring, ..Options::new(socket) }.pairs(arguments.pairs).over(kind);
            let protocol_features = options.protocol_features | feature::PROTOCOL_LOG_SHMFD;
            Guest::start(Options { protocol_features, ..options })
        };
        let (sender, receiver) = (guest("sender", "patch:cable/a")?, guest("receiver", "patch:cable/b")?);
        Ok(Self { sender, receiver, _lane: lane, _folder: folder })
    }

    /// Sends and receives for a time, `rate` frames a second or as many as can be; how many were sent, and came.
    fn run(&mut self, time: Duration, rate: Option<f64>) -> [u64; 2] {
        let (start, mut sent, mut came) = (Instant::now(), 0, 0);
        let mut pair = 0;
        while start.elapsed() < time {
            let due = rate.map_or(u64::MAX, |rate| (start.elapsed().as_secs_f64() * rate) as u64);
            if sent + BURST as u64 <= due {
                sent += self.sender.tx[pair].transmit(BURST, |_, room| {
                    room.put(0, &[0x5a; LENGTH]);
                    LENGTH
                }) as u64;
                pair = (pair + 1) % self.sender.tx.len();
            }
            came += self.receive();
        }
        [sent, came]
    }

    fn receive(&mut self) -> u64 {
        self.receiver.rx.iter_mut().map(|rx| rx.receive(256, |_| ()) as u64).sum()
    }
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.pairs > 0 && arguments.passes > 0, "at least one queue pair and one pass are needed");
    for kind in [Kind::Split, Kind::Packed] {
        let mut scene = Scene::new(&arguments, kind)?;
        at_a_rate(&arguments, kind, &mut scene)?;
        as_fast_as_it_goes(&arguments, kind, &mut scene)?;
    }
    Ok(())
}

fn at_a_rate(arguments: &Arguments, kind: Kind, scene: &mut Scene) -> Result<()> {
    let log = Log::start(&mut scene.receiver)?;
    let pass = Duration::from_millis(arguments.pass_ms);
    scene.run(pass, Some(arguments.rate * 1e6));
    log.take(drop);
    let (mut pages, mut looks, mut frames, start) = (vec![], vec![], [0, 0], Instant::now());
    for _ in 0..arguments.passes {
        let moved = scene.run(pass, Some(arguments.rate * 1e6));
        frames = [frames[0] + moved[0], frames[1] + moved[1]];
        let (mut dirty, look) = (0_u32, Instant::now());
        log.take(|_| dirty += 1);
        looks.push(look.elapsed().as_secs_f64() * 1e6);
        pages.push(f64::from(dirty));
    }
    let seconds = start.elapsed().as_secs_f64();
    Log::stop(&mut scene.receiver)?;
    let memory: u64 = scene.receiver.memory().regions().iter().map(|region| region.size).sum();
    let (dirty, looks) = (Spread::of(pages.iter().copied()).context("no pass")?, Spread::of(looks).context("no pass")?);
    println!(
        "{kind:?}, {} pairs of {}: {:.2} Mpps sent, {:.2} received; {} pages dirty after {} ms ({:.1} MiB of {:.1}), {:.0} pages/s, \
         looked through in {} us",
        arguments.pairs,
        arguments.ring,
        frames[0] as f64 / seconds / 1e6,
        frames[1] as f64 / seconds / 1e6,
        dirty.text(0),
        arguments.pass_ms,
        dirty.median * 4096.0 / f64::from(1 << 20),
        memory as f64 / f64::from(1 << 20),
        pages.iter().sum::<f64>() / seconds,
        looks.text(0),
    );
    // What the last pass has to send: whatever the guest does, no more gets dirty than what circulates.
    let bits = dirty.median * 8.0 * 4096.0;
    println!(
        "{kind:?}: the last pass takes {:.1} ms at 10 Gbit/s and {:.0} ms at 1 Gbit/s; QEMU allows 300 ms",
        bits / 1e7,
        bits / 1e6
    );
    Ok(())
}

fn as_fast_as_it_goes(arguments: &Arguments, kind: Kind, scene: &mut Scene) -> Result<()> {
    let pass = Duration::from_millis(arguments.pass_ms);
    let (mut rates, mut ratios) = ([vec![], vec![]], vec![]);
    for _ in 0..arguments.passes {
        let mut both = [0.0; 2];
        for (on, rate) in both.iter_mut().enumerate() {
            let log = if on == 1 { Some(Log::start(&mut scene.receiver)?) } else { None };
            let start = Instant::now();
            let [_, came] = scene.run(pass, None);
            *rate = came as f64 / start.elapsed().as_secs_f64() / 1e6;
            if log.is_some() {
                Log::stop(&mut scene.receiver)?;
            }
            rates[on].push(*rate);
        }
        ratios.push(both[1] / both[0]);
    }
    let of = |values: &[f64]| Spread::of(values.iter().copied()).map_or_else(String::new, |spread| spread.text(2));
    let [off, on] = rates.map(|rates| of(&rates));
    println!("{kind:?}, as fast as it goes: {off} Mpps without logging, {on} with it, ratio {}", of(&ratios));
    Ok(())
}
