//! Copying against zero copy by frame length: where the least length of a frame that is not copied should be.
//!
//! One lane, one guest that writes each frame anew, a device that throws frames away or reads them first, and for each length both
//! ways by turns. What is printed is frames a second with the lane's core saturated, the median of the rounds, and the ratio.

use std::time::{Duration, Instant};

use anyhow::Result;
use clap::Parser;
use ringspan_benches::load::pin;
use ringspan_protocol::{PortSpec, ZeroCopy};
use ringspan_testkit::guest::{Guest, Options};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::paths;

/// Measures copying against zero copy by frame length.
#[derive(Parser)]
struct Arguments {
    /// Frame lengths in bytes.
    #[arg(long, value_delimiter = ',', default_value = "128,256,512,768,1024,1518,2048,4096,9000")]
    lengths: Vec<usize>,
    /// Rounds of each way.
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Length of a round in milliseconds.
    #[arg(long, default_value_t = 300)]
    round_ms: u64,
    /// Cores of the lane and of the guest.
    #[arg(long, value_delimiter = ',', default_value = "0,1", num_args = 2)]
    cores: Vec<usize>,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    println!("{:>6}  {:>28}  {:>28}", "", "device reads no frame", "device reads each frame");
    println!(
        "{:>6}  {:>9} {:>9} {:>8}  {:>9} {:>9} {:>8}",
        "bytes", "copy Mpps", "zero Mpps", "ratio", "copy Mpps", "zero Mpps", "ratio"
    );
    for &length in &arguments.lengths {
        let mut line = format!("{length:>6}");
        for reads in [false, true] {
            let [copy, zero] = measure(&arguments, length, reads)?;
            line += &format!("  {:>9.3} {:>9.3} {:>8.2}", copy / 1e6, zero / 1e6, zero / copy);
        }
        println!("{line}");
    }
    Ok(())
}

/// Frames a second: copied, and not.
fn measure(arguments: &Arguments, length: usize, reads: bool) -> Result<[f64; 2]> {
    let folder = paths::scratch()?;
    let cores = arguments.cores[0].to_string();
    let options =
        lane::Options { cores, memory_mib: 256, huge_pages: "auto".into(), ..lane::Options::new("zerobench") };
    // A lane may use the cores that its parent may.
    pin(&arguments.cores)?;
    let mut lane = Lane::start(options, folder.path())?;
    pin(&arguments.cores[1..2])?;
    let mut guests = Vec::new();
    for (number, zero_copy) in [ZeroCopy::Off, ZeroCopy::Auto].into_iter().enumerate() {
        // net_vhost copies what it sends to somebody's buffers. net_null would read, too, but not without making frames.
        let socket = folder.path().join(format!("reader{number}"));
        let device = match reads {
            true => format!("vdev:net_vhost{number},iface={}", socket.display()),
            false => format!("vdev:net_null{number},no-rx=1"),
        };
        let spec = lane.spec(&format!("vm{number}"), &device, 1);
        let spec = PortSpec { mtu: 9000, zero_copy, zero_copy_from: Some(64), ..spec };
        lane.add(&spec)?;
        let options = |socket| Options { tx_room: length, rx_room: length.max(1514), ..Options::new(socket) };
        let reader = if reads { Some(Guest::start(options(&socket))?) } else { None };
        guests.push((Guest::start(options(&spec.socket))?, reader));
    }
    let payload = vec![0x5a; length];
    let mut rates = [Vec::new(), Vec::new()];
    for _ in 0..arguments.rounds {
        for ((guest, reader), rates) in guests.iter_mut().zip(&mut rates) {
            let (start, mut frames) = (Instant::now(), 0_u64);
            while start.elapsed() < Duration::from_millis(arguments.round_ms) {
                frames += guest.tx[0].transmit(64, |_, room| {
                    room.put(0, &payload);
                    length
                }) as u64;
                if let Some(reader) = reader {
                    reader.rx[0].receive(256, |_| ());
                }
            }
            rates.push(frames as f64 / start.elapsed().as_secs_f64());
        }
    }
    Ok(rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates[rates.len() / 2]
    }))
}
