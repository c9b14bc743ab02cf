//! Measures ringspan beside its peers: the same load, the same core, in turns.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand};
use ringspan_benches::load::{self, Direction, Load, Measured};
use ringspan_benches::peer::{self, Peer};
use ringspan_benches::report::{Report, Sample, row};
use ringspan_benches::{figures, handback};
use ringspan_testkit::guest::{Guest, Options, feature};
use ringspan_testkit::testpmd;

/// Measures ringspan beside its peers.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// 64-byte frames, guest to null and null to guest, split ring, against testpmd's net_vhost; and the small figures.
    Quick(Quick),
}

#[derive(Args)]
struct Quick {
    /// Alternations between the two.
    #[arg(long, default_value_t = 9)]
    rounds: usize,
    /// Bytes of a frame, without the check sequence.
    #[arg(long, default_value_t = 64)]
    frame: usize,
    /// Frames in a burst of the generator.
    #[arg(long, default_value_t = 64)]
    burst: usize,
    /// Descriptors in each ring.
    #[arg(long, default_value_t = 1024)]
    ring_size: u16,
    /// Seconds of each measurement.
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The back-end's core.
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// The generator's core.
    #[arg(long, default_value_t = 1)]
    guest_core: usize,
    /// Only these back-ends.
    #[arg(long, value_parser = ["ringspan", "testpmd"])]
    only: Option<String>,
    /// Without the small figures.
    #[arg(long)]
    no_figures: bool,
    /// Where the results go as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

fn main() -> anyhow::Result<()> {
    match Cli::parse().command {
        Command::Quick(quick) => quick.run(),
    }
}

impl Quick {
    fn run(self) -> anyhow::Result<()> {
        let load = Load { frame: self.frame, burst: self.burst, warm_up: 0.3, measured: self.seconds };
        let huge_pages = testpmd::huge_pages_free();
        let peers: &[Peer] = match self.only.as_deref() {
            Some("ringspan") => &[Peer::Ringspan],
            Some("testpmd") => &[Peer::Testpmd],
            _ => &[Peer::Ringspan, Peer::Testpmd],
        };
        let load_average = load_average();
        let folder = tempfile::tempdir()?;
        let (mut rows, mut samples) = (vec![], vec![]);
        for direction in Direction::ALL {
            let ceiling = handback::run(direction, load, self.ring_size, self.guest_core, self.core, huge_pages)?;
            for round in 0..self.rounds {
                // A B, B A, A B: what drifts with time does not favour one of them.
                let mut turn = peers.to_vec();
                if round % 2 == 1 {
                    turn.reverse();
                }
                for peer in turn {
                    let measured = self.measure(peer, direction, load, huge_pages, folder.path())?;
                    eprintln!(
                        "{}, round {}: {} {:.2} Mpps",
                        direction.title(),
                        round + 1,
                        peer.title(),
                        measured.pps / 1e6
                    );
                    samples.push(Sample { peer, direction, round, measured });
                }
            }
            rows.push(row(direction, ceiling.pps, &samples));
        }
        let figures = if self.no_figures { vec![] } else { figures::all(self.core) };
        let (processor, ring_size) = (processor(), self.ring_size);
        let report = Report { processor, load_average, huge_pages, ring_size, load, rows, samples, figures };
        println!("{}", report.table());
        if let Some(path) = &self.json {
            std::fs::write(path, serde_json::to_string_pretty(&report)?)?;
            println!("written to {}", path.display());
        }
        Ok(())
    }

    /// One back-end, started anew, with a guest on the other core.
    fn measure(
        &self,
        peer: Peer,
        direction: Direction,
        load: Load,
        huge_pages: bool,
        folder: &Path,
    ) -> anyhow::Result<Measured> {
        let folder = tempfile::tempdir_in(folder)?;
        let options = |socket| Options {
            ring_size: self.ring_size,
            // What a Linux guest has. Indirect tables are not used for frames in one piece, by Linux and by us.
            features: feature::VERSION_1 | feature::MRG_RXBUF | feature::ANY_LAYOUT | feature::EVENT_IDX,
            polled: true,
            huge_pages,
            ..Options::new(socket)
        };
        let (_running, socket) = peer::start(peer, direction, self.frame, self.core, huge_pages, folder.path())?;
        std::thread::scope(|scope| {
            let generator = scope.spawn(|| {
                load::pin(self.guest_core)?;
                let mut guest = Guest::start(options(socket))?;
                Ok(load::run(&mut guest, direction, load))
            });
            generator.join().map_err(|_| anyhow::anyhow!("the generator panicked"))?
        })
    }
}

fn processor() -> String {
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("model name"));
    line.map_or_else(String::new, |line| line.trim_start_matches(['\t', ' ', ':']).to_string())
}

fn load_average() -> f64 {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().and_then(|number| number.parse().ok()).unwrap_or(0.0)
}
