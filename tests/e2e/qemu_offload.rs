//! A real Linux guest leaves checksums and segments to its port.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::needs;
use ringspan_testkit::scene::{GUEST, Plan, Scene, serve_iperf};

/// The lines of `ethtool -k` that must say on; the guest's kernel knows both names of the last.
const ON: &[&str] =
    &["tx-checksumming", "rx-checksumming", "tx-tcp-segmentation", "tx-tcp6-segmentation", "scatter-gather"];

#[test]
fn a_linux_guest_uses_them_and_every_checksum_is_right() -> Result<()> {
    needs!(Root, Guest, Ringspan, Program("ethtool"), Program("iperf3"));
    let mut scene = Scene::new("qoffload", &Plan::default())?;
    let settings = scene.guest.sh("ethtool -k eth0")?;
    for feature in ON {
        let on = settings.lines().any(|line| line.trim().starts_with(&format!("{feature}: on")));
        ensure!(on, "{feature} is not on:\n{settings}");
    }
    serve_iperf(&mut scene.guest)?;
    for more in [&[][..], &["-R"], &["-u", "-b", "20M", "-l", "1400"], &["-u", "-b", "20M", "-R"]] {
        let rate = scene.iperf(more)?;
        ensure!(rate > 1e6, "{more:?}: {rate} bit/s");
    }
    let (from, large) = counters(&scene)?;
    ensure!(large > 1600, "frames of {large} bytes on average came from the guest: none was large\n{from}");
    no_wrong_checksums(&mut scene)?;
    // Without them, the guest does what it did before; and with them again.
    for state in ["off", "on"] {
        scene.guest.sh(&format!("ethtool -K eth0 tx {state} tso {state} 2>&1"))?;
        ensure!(scene.iperf(&["-R"])? > 1e6, "hardly anything moved from the guest with offloads {state}");
    }
    no_wrong_checksums(&mut scene)
}

/// The port's counters from the guest, and how long its frames were on average.
fn counters(scene: &Scene) -> Result<(String, u64)> {
    let stats = scene.daemon.ok(&["port", "stats", "vm1", "--json"])?;
    let stats: serde_json::Value = serde_json::from_str(&stats).with_context(|| stats.clone())?;
    let from = &stats[0]["totals"]["from_guest"];
    let number = |key: &str| from[key].as_u64().with_context(|| format!("{key} in {stats}"));
    ensure!(from["drops"]["bad_offload"] == 0, "refused: {from}");
    Ok((from.to_string(), number("received_bytes")? / number("received")?.max(1)))
}

/// Neither kernel has seen a packet with a bad checksum.
fn no_wrong_checksums(scene: &mut Scene) -> Result<()> {
    let read = "cat /proc/net/snmp";
    let host = scene.net.run(Duration::from_secs(10), "sh", &["-c", read])?;
    let guest = scene.guest.sh(read)?;
    for (who, text) in [("the host", host), ("the guest", guest)] {
        let mut lines = text.lines();
        while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
            for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                ensure!(name != "InCsumErrors" || value == "0", "{who} saw wrong checksums: {names}\n{values}");
            }
        }
        ensure!(text.contains("InCsumErrors"), "{who}: {text}");
    }
    let answered = scene.net.wait_ping(GUEST, Duration::from_secs(5))?;
    ensure!(answered < Duration::from_secs(5), "a ping took {answered:?}");
    Ok(())
}
