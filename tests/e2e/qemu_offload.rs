//! A real Linux guest leaves checksums and segments to its port.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::guest::Kind;
use ringspan_testkit::qemu::{Guest, GuestSpec};
use ringspan_testkit::scene::{GUEST, Plan, Scene, serve_iperf, set_rings};
use ringspan_testkit::{needs, over_both};

/// The lines of `ethtool -k` that must say on; the guest's kernel knows both names of the last.
const ON: &[&str] =
    &["tx-checksumming", "rx-checksumming", "tx-tcp-segmentation", "tx-tcp6-segmentation", "scatter-gather"];

over_both!(a_linux_guest_uses_them_and_every_checksum_is_right);

fn a_linux_guest_uses_them_and_every_checksum_is_right(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan, Program("ethtool"), Program("iperf3"));
    let mut scene = Scene::new("qoffload", &Plan { rings, ..Plan::default() })?;
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
    let (from, large) = counters(&scene.daemon, "vm1", "from_guest")?;
    ensure!(large > 1600, "frames of {large} bytes on average came from the guest: none was large\n{from}");
    host_saw_none(&scene)?;
    saw_none("the guest", &scene.guest.sh(SNMP)?)?;
    // Without them, the guest does what it did before; and with them again.
    for state in ["off", "on"] {
        scene.guest.sh(&format!("ethtool -K eth0 tx {state} tso {state} 2>&1"))?;
        ensure!(scene.iperf(&["-R"])? > 1e6, "hardly anything moved from the guest with offloads {state}");
    }
    host_saw_none(&scene)
}

#[test]
fn two_guests_on_a_patch_hand_each_other_large_frames() -> Result<()> {
    needs!(Root, Guest, Ringspan, Program("iperf3"));
    let daemon = Daemon::start("[dataplane]\ncores = [0]\nmemory_mib = 256\n", None)?;
    let mut guests = Vec::new();
    for (name, device, rings) in [("vm1", "patch:cable/a", Kind::Split), ("vm2", "patch:cable/b", Kind::Packed)] {
        daemon.add_port(name, device, &[])?;
        let mut nics = daemon.qemu_args(name, &["--memory", "384M"])?;
        set_rings(&mut nics, rings)?;
        guests.push(Guest::start(&GuestSpec { nics, ..GuestSpec::default() })?);
    }
    for (number, guest) in guests.iter_mut().enumerate() {
        guest.wait_ready().with_context(|| daemon.story())?;
        guest.sh(&format!("ip link set eth0 up && ip address add 192.0.2.{}/24 dev eth0", 1 + number))?;
    }
    let [first, second] = &mut guests[..] else { anyhow::bail!("two guests were started") };
    first.sh("until ping -n -q -c 1 -W 1 192.0.2.2; do :; done")?;
    serve_iperf(second)?;
    for more in ["", "-R", "-u -b 20M -l 1400"] {
        let report = first.sh_for(Duration::from_secs(60), &format!("iperf3 -c 192.0.2.2 -J -t 2 {more}"))?;
        let report: serde_json::Value = serde_json::from_str(&report).with_context(|| report.clone())?;
        let rate = report["end"]["sum_received"]["bits_per_second"]
            .as_f64()
            .or(report["end"]["sum"]["bits_per_second"].as_f64());
        ensure!(rate.is_some_and(|rate| rate > 1e6), "iperf3 {more}: {report}");
    }
    carry_a_file(first, second, "192.0.2.2")?;
    carry_a_file(second, first, "192.0.2.1")?;
    for (name, guest) in [("vm1", first), ("vm2", second)] {
        saw_none(name, &guest.sh(SNMP)?)?;
        let (to, large) = counters(&daemon, name, "to_guest")?;
        ensure!(large > 1600, "{name} got frames of {large} bytes on average: none was large\n{to}");
    }
    Ok(())
}

/// Sends a file of random bytes over TCP; it comes as it was. The listener's own input never ends, or it would hang up early.
fn carry_a_file(from: &mut Guest, to: &mut Guest, address: &str) -> Result<()> {
    to.sh("cd /run && rm -f quiet got && mkfifo quiet && \
           (/run/busybox nc -l -p 5999 <>quiet | sha256sum >got) </dev/null >/dev/null 2>&1 &")?;
    let send = format!(
        "cd /run && head -c 8388608 /dev/urandom >sent && sha256sum <sent && until /run/busybox nc {address} 5999 <sent; do :; done"
    );
    let sent = from.sh_for(Duration::from_secs(60), &send)?;
    let got = to.sh("cd /run && until [ -s got ]; do /run/busybox usleep 10000; done; cat got")?;
    ensure!(sent.trim() == got.trim(), "sent {sent}, got {got}");
    Ok(())
}

/// Where a kernel counts wrong checksums.
const SNMP: &str = "cat /proc/net/snmp";

/// A port's counters in a direction, and how long its frames were on average.
fn counters(daemon: &Daemon, port: &str, direction: &str) -> Result<(String, u64)> {
    let stats = daemon.ok(&["port", "stats", port, "--json"])?;
    let stats: serde_json::Value = serde_json::from_str(&stats).with_context(|| stats.clone())?;
    let counts = &stats[0]["totals"][direction];
    let number = |key: &str| counts[key].as_u64().with_context(|| format!("{key} in {stats}"));
    ensure!(counts["drops"]["bad_offload"] == 0, "refused: {counts}");
    Ok((counts.to_string(), number("received_bytes")? / number("received")?.max(1)))
}

fn host_saw_none(scene: &Scene) -> Result<()> {
    saw_none("the host", &scene.net.run(Duration::from_secs(10), "sh", &["-c", SNMP])?)?;
    scene.net.wait_ping(GUEST, Duration::from_secs(5)).map(drop)
}

/// The kernel whose counters these are has seen no packet with a wrong checksum.
fn saw_none(who: &str, snmp: &str) -> Result<()> {
    let mut lines = snmp.lines();
    while let (Some(names), Some(values)) = (lines.next(), lines.next()) {
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            ensure!(name != "InCsumErrors" || value == "0", "{who} saw wrong checksums: {names}\n{values}");
        }
    }
    ensure!(snmp.contains("InCsumErrors"), "{who}: {snmp}");
    Ok(())
}
