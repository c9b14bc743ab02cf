//! Measures ringspan beside its peers: the same load, the same core, in turns.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::{Args, Parser, Subcommand};
use ringspan_benches::calm::Patience;
use ringspan_benches::cell::Cell;
use ringspan_benches::driver::stamp::Frames;
use ringspan_benches::load::Load;
use ringspan_benches::machine::Machine;
use ringspan_benches::peer::{LARGEST, Peer, Place};
use ringspan_benches::report::{Report, packets, part, row};
use ringspan_benches::run::Plan;
use ringspan_benches::target::Wanted;
use ringspan_benches::{figures, generator, instructions, migration, page, target, wake};
use ringspan_testkit::{netns, testpmd, wait};

/// Measures ringspan beside its peers.
#[derive(Parser)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: Run,
}

#[derive(Subcommand)]
enum Command {
    /// The main cells, round trips and small figures in less than 3 minutes
    Quick(Run),
    /// Every cell, round trips at three loads, idle costs, instructions and small figures; the default
    Full(Run),
    /// Instructions a packet, counted by callgrind
    Instructions(Run),
    /// iperf3 between host and a Linux guest in QEMU
    Iperf(Run),
    /// Linux guests that are migrated there and back behind each back-end in turns: downtime and loss (less than 15 minutes)
    Migration(Migration),
    /// How soon back-ends that had nothing to do are at work again
    Wake(Run),
    /// What the generator itself can do
    Generator(Run),
    /// The names of all cells
    Cells,
}

#[derive(Args, Clone)]
struct Run {
    /// Only these cells: names as `cells` prints them, with * for any part and ** for the rest
    #[arg(long, value_delimiter = ',')]
    cells: Vec<String>,
    /// Only these back-ends
    #[arg(long, value_delimiter = ',')]
    peers: Vec<Peer>,
    /// Alternations
    #[arg(long)]
    rounds: Option<usize>,
    /// Seconds of each measurement
    #[arg(long)]
    seconds: Option<f64>,
    /// Seconds that may be spent, in all, on waiting until both cores run at once, and on measuring again where they did not
    /// [default: 30 for quick, else 900]
    #[arg(long)]
    patience: Option<f64>,
    /// Frames in a burst of the generator
    #[arg(long, default_value_t = 64)]
    burst: u16,
    /// Frames that testpmd moves at once; its own default is 32, ringspan's worker moves 64
    #[arg(long, default_value_t = 64)]
    testpmd_burst: u16,
    /// The back-ends' core
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// The generator's core
    #[arg(long, default_value_t = 1)]
    guest_core: usize,
    /// Without round trips
    #[arg(long)]
    no_latency: bool,
    /// Without idle costs, instructions and the small figures
    #[arg(long)]
    no_figures: bool,
    /// Without iperf3 of Linux guests
    #[arg(long)]
    no_iperf: bool,
    /// Where the results go as JSON
    /// [default: target/bench/report.json, or instructions.json and wake.json there]
    #[arg(long)]
    json: Option<PathBuf>,
    /// Where the page with plots goes
    /// [default: target/bench/report.html, or instructions.html and wake.html there]
    #[arg(long)]
    html: Option<PathBuf>,
}

#[derive(Args)]
struct Migration {
    /// Only cases whose names, as the table has them, contain one of these texts, or are it where it ends with a full stop
    #[arg(long)]
    only: Vec<String>,
    /// Migrations there and back: of ringspan and of net_vhost, and of what --only names
    #[arg(long, default_value_t = 20)]
    rounds: usize,
    /// Migrations there and back of each of the other cases
    #[arg(long, default_value_t = 2)]
    others: usize,
    /// The ringspan-lane of another version, for each second place that ringspan serves
    #[arg(long)]
    other: Option<PathBuf>,
    /// No round begins after so many minutes
    #[arg(long, default_value_t = 14.0)]
    minutes: f64,
    /// The words that start QEMU, where it is not the machine's own
    #[arg(long, value_delimiter = ' ')]
    qemu: Vec<String>,
    /// Bits a second of TCP in each direction, as iperf3 takes them
    #[arg(long, default_value = "20M")]
    load: String,
    /// The back-ends' core
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Where all figures go as JSON
    #[arg(long, default_value = "target/bench/migration.json")]
    json: PathBuf,
}

impl Migration {
    fn run(&self) -> anyhow::Result<()> {
        let machine = Machine::look();
        println!("{machine}");
        let mut line = Line::default();
        let plan = migration::Plan {
            only: self.only.clone(),
            rounds: self.rounds,
            others: self.others,
            load: self.load.clone(),
            core: self.core,
            qemu: self.qemu.clone(),
            other: self.other.clone(),
            limit: Duration::try_from_secs_f64(60.0 * self.minutes)?,
        };
        let start = Instant::now();
        let found = migration::run(&plan, |text| line.show(text))?;
        line.end();
        print!("{}", migration::table(&found));
        println!("took {:.0} s", start.elapsed().as_secs_f64());
        write(&self.json, &serde_json::to_string_pretty(&serde_json::json!({ "machine": machine, "found": found }))?)?;
        let bad = found.iter().filter(|found| !found.faults.is_empty() || found.corrupted > 0).count();
        anyhow::ensure!(bad == 0, "{bad} of {} cases went wrong", found.len());
        Ok(())
    }
}

/// Cells whose instructions are counted when nothing else is asked for.
const COUNTED: &[&str] = &["tx/*/64", "rx/*/64"];
/// Seconds that callgrind counts, unless told otherwise.
const CALLGRIND: f64 = 3.0;

/// Seconds that `quick` may take, its programs built.
const QUICK: f64 = 180.0;

/// Writes a file of results, and says so.
fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::write(path, text)?;
    println!("written: {}", path.display());
    Ok(())
}

fn main() -> anyhow::Result<()> {
    wait::stop_on_signals()?;
    let cli = Cli::parse();
    netns::alone()?;
    match cli.command {
        Some(Command::Quick(run)) => run.matrix(true),
        Some(Command::Full(run)) => run.matrix(false),
        Some(Command::Instructions(run)) => run.instructions(),
        Some(Command::Iperf(run)) => {
            let plan = run.plan(true)?;
            let found = plan.iperf(plan.rounds, |text| println!("{text}"))?;
            let wanted = Wanted { peers: &plan.peers, round_trips: &[], iperf: true };
            for verdict in target::verdicts(&[], &[], &found, wanted).iter().filter(|v| v.reached.is_some()) {
                let ratio = verdict.found.map_or(String::new(), |found| found.text(2));
                println!("ringspan against {}: {ratio} {}, {}", verdict.against.title(), verdict.cell, verdict.word());
            }
            Ok(())
        }
        Some(Command::Migration(migration)) => migration.run(),
        Some(Command::Wake(run)) => run.wake(),
        Some(Command::Generator(run)) => run.generator(),
        Some(Command::Cells) => {
            Cell::all().iter().for_each(|cell| println!("{}", cell.name()));
            Ok(())
        }
        None => cli.run.matrix(false),
    }
}

impl Run {
    fn plan(&self, quick: bool) -> anyhow::Result<Plan> {
        let cells = match (&self.cells[..], quick) {
            ([], true) => Cell::select(Cell::QUICK)?,
            ([], false) => Cell::all(),
            (patterns, _) => Cell::select(patterns)?,
        };
        let peers = match (&self.peers[..], quick) {
            ([], true) => vec![Peer::Ringspan, Peer::Testpmd, Peer::Ovs],
            ([], false) => Peer::ALL.to_vec(),
            (peers, _) => peers.to_vec(),
        };
        let rounds = self.rounds.unwrap_or(5);
        let measured = self.seconds.unwrap_or(if quick { 0.3 } else { 0.4 });
        let load = Load { burst: self.burst, warm_up: 0.1, measured };
        let (core, huge_pages) = (self.core, testpmd::huge_pages_free());
        let place = Place { core, huge_pages, testpmd_burst: self.testpmd_burst, largest: LARGEST };
        let patience = Patience::new(self.patience.unwrap_or(if quick { 30.0 } else { 900.0 }));
        Ok(Plan { cells, peers, rounds, load, place, guest_core: self.guest_core, patience })
    }

    fn own(&self, plan: &Plan) -> anyhow::Result<Vec<generator::Own>> {
        let load = Load { measured: 0.3, ..plan.load };
        generator::all(64, 1024, load, self.guest_core, self.core, plan.place.huge_pages, 3)
    }

    fn matrix(&self, quick: bool) -> anyhow::Result<()> {
        let machine = Machine::look();
        let plan = self.plan(quick)?;
        let (start, total) = (Instant::now(), plan.cells.len());
        println!("{machine}");
        println!("{total} cells, {} alternations: about {:.0} s for the rates", plan.rounds, plan.budget());
        // What fails is named in the report, which then has the rest.
        let mut faults = vec![];
        let generator = part("the generator", self.own(&plan), &mut faults)?;
        let mut line = Line::default();
        let mut limits = vec![];
        for cell in &plan.cells {
            wait::check_stopped()?;
            line.show(&format!("{}: bare copies", cell.name()));
            limits.push(part(&format!("{}: bare copies", cell.name()), plan.limit(cell), &mut faults)?);
        }
        let (mut seen, all) = (vec![], plan.cells.clone());
        let samples = plan.run(|sample| {
            if !seen.contains(&sample.cell) {
                seen.push(sample.cell.clone());
            }
            let cell = all.iter().find(|cell| cell.name() == sample.cell);
            let text = match (&sample.measured, &sample.fault) {
                (Some(measured), _) => format!("{:.2} Mpps", cell.map_or(0.0, |c| packets(measured, c)) / 1e6),
                (None, fault) => fault.as_deref().unwrap_or("?").lines().next().unwrap_or_default().to_string(),
            };
            line.show(&format!(
                "[{:>3}/{total}] {} round {}: {} {text}",
                seen.len(),
                sample.cell,
                sample.round + 1,
                sample.peer.title()
            ));
        })?;
        let wanted = Wanted {
            peers: &plan.peers,
            round_trips: match (self.no_latency, quick) {
                (true, _) => &[],
                (false, true) => &[false],
                (false, false) => &[false, true],
            },
            iperf: !quick && !self.no_iperf,
        };
        let mut round_trips = vec![];
        let slower = Plan { rounds: if quick { 3 } else { plan.rounds }, ..plan.clone() };
        for packed in wanted.round_trips {
            let trips = slower.round_trips(*packed, |text| line.show(text));
            round_trips.extend(part("round trips", trips, &mut faults)?);
        }
        let (mut idle, mut wakes, mut small, mut bare_wake) = (vec![], vec![], vec![], None);
        if !self.no_figures {
            if !quick {
                idle = part("idle", plan.idle(|text| line.show(text)), &mut faults)?;
            }
            let fewer = Plan { rounds: if quick { 2 } else { plan.rounds }, ..plan.clone() };
            wakes = part("after silence", fewer.wakes(!quick, |text| line.show(text)), &mut faults)?;
            bare_wake = part("a bare thread", wake::bare(self.core, self.guest_core).map(Some), &mut faults)?;
            wait::check_stopped()?;
            line.show("the small figures");
            small = figures::all(self.core, self.guest_core, &plan.patience)?;
            small.extend(wake::figures(&wakes));
        }
        line.end();
        let rows: Vec<_> = plan.cells.iter().zip(limits).map(|(cell, limit)| row(*cell, limit, &samples)).collect();
        let mut iperf = vec![];
        if wanted.iperf {
            iperf = part("iperf3", plan.iperf(plan.rounds.min(5), |text| eprintln!("{text}")), &mut faults)?;
        }
        let mut counted = vec![];
        if !quick && !self.no_figures {
            let cells = Cell::select(COUNTED)?;
            counted = part("instructions", self.count(&plan, &cells, CALLGRIND, &mut line), &mut faults)?;
            line.end();
        }
        wait::check_stopped()?;
        let verdicts = target::verdicts(&rows, &round_trips, &iperf, wanted);
        let report = Report {
            machine,
            load: plan.load,
            rounds: plan.rounds,
            generator,
            rows,
            round_trips,
            idle,
            wakes,
            bare_wake,
            iperf,
            instructions: counted,
            figures: small,
            verdicts,
            faults,
            samples,
        };
        self.finish(&report, "report")?;
        let took = start.elapsed().as_secs_f64();
        // Who asked for other cells or more rounds gets what takes longer.
        let asked = !self.cells.is_empty() || self.rounds.is_some() || self.seconds.is_some();
        let late =
            if quick && !asked && took >= QUICK { format!(", MISS: wanted < {QUICK:.0} s") } else { String::new() };
        println!("took {took:.0} s{late}");
        anyhow::ensure!(report.faults.is_empty(), "{} parts failed: {}", report.faults.len(), report.faults.join("; "));
        Ok(())
    }

    /// Shows the results and writes both files, called `name` unless told otherwise.
    fn finish(&self, report: &Report, name: &str) -> anyhow::Result<()> {
        println!("{}", report.table());
        let path = |given: &Option<PathBuf>, ending: &str| {
            given.clone().unwrap_or_else(|| Path::new("target/bench").join(name).with_extension(ending))
        };
        let (json, html) = (path(&self.json, "json"), path(&self.html, "html"));
        write(&json, &serde_json::to_string_pretty(report)?)?;
        write(&html, &page::html(report))
    }

    /// Instructions a packet in these cells, of all who can do them.
    fn count(
        &self,
        plan: &Plan,
        cells: &[Cell],
        seconds: f64,
        line: &mut Line,
    ) -> anyhow::Result<Vec<instructions::Instructions>> {
        let mut all = vec![];
        for cell in cells {
            for peer in plan.peers.iter().filter(|peer| peer.can(cell)) {
                wait::check_stopped()?;
                line.show(&format!("{}: {} under callgrind", cell.name(), peer.title()));
                all.push(instructions::count(*peer, cell, plan.place, self.guest_core, seconds)?);
            }
        }
        Ok(all)
    }

    fn instructions(&self) -> anyhow::Result<()> {
        let usual = COUNTED.iter().chain(&["tx/split/1518"]).map(ToString::to_string).collect();
        let cells = if self.cells.is_empty() { usual } else { self.cells.clone() };
        let peers = if self.peers.is_empty() { Peer::ALL.to_vec() } else { self.peers.clone() };
        let run = Self { cells, peers, ..self.clone() };
        let plan = run.plan(true)?;
        let (machine, mut line, seconds) = (Machine::look(), Line::default(), self.seconds.unwrap_or(CALLGRIND));
        let counted = self.count(&plan, &plan.cells, seconds, &mut line)?;
        line.end();
        let load = Load { measured: seconds, ..plan.load };
        self.finish(&Report { instructions: counted, ..Report::empty(machine, load, 1) }, "instructions")
    }

    fn wake(&self) -> anyhow::Result<()> {
        let (machine, plan, mut line) = (Machine::look(), self.plan(true)?, Line::default());
        let wakes = plan.wakes(true, |text| line.show(text))?;
        let bare_wake = Some(wake::bare(self.core, self.guest_core)?);
        line.end();
        let figures = wake::figures(&wakes);
        self.finish(&Report { wakes, bare_wake, figures, ..Report::empty(machine, plan.load, plan.rounds) }, "wake")
    }

    fn generator(&self) -> anyhow::Result<()> {
        let frames =
            self.cells.first().map_or(Ok(Frames::Fixed(64)), |text| text.parse()).map_err(anyhow::Error::msg)?;
        let plan = Self { cells: vec![], ..self.clone() }.plan(true)?;
        let load = Load { measured: self.seconds.unwrap_or(0.3), ..plan.load };
        let place = plan.place;
        for own in generator::all(frames.most(), 1024, load, self.guest_core, self.core, place.huge_pages, 3)? {
            let format = if own.packed { "packed" } else { "split" };
            let waiting = 100.0 * own.measured.waiting;
            println!("{format:<8} {:<30} {:>8.1} Mpps, waiting {waiting:.0} %", own.work, own.rate() / 1e6);
        }
        Ok(())
    }
}

/// The line that shows what is going on: one that is written over and over on a terminal, else many.
#[derive(Default)]
struct Line {
    shown: bool,
}

impl Line {
    fn show(&mut self, text: &str) {
        if std::io::stderr().is_terminal() {
            let text: String = text.chars().take(110).collect();
            eprint!("\r\x1b[2K{text}");
            self.shown = true;
        } else {
            eprintln!("{text}");
        }
    }

    fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            eprint!("\r\x1b[2K");
        }
    }
}
