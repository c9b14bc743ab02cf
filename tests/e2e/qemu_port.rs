//! A real Linux guest on a port: what a user of QEMU relies on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::guest::Kind;
use ringspan_testkit::scene::{GUEST, Plan, Scene, serve_iperf};
use ringspan_testkit::{needs, over_both, process, wait};
use serde_json::{Value, json};

over_both!(
    a_guest_pings_and_moves_data_both_ways,
    driver_reloads_and_guest_reboots_change_nothing,
    killing_the_daemon_loses_nothing_and_killing_the_lane_little,
    qemus_monitor_answers_while_the_lane_is_down,
    a_guest_that_was_given_four_pairs_may_enable_fewer,
    a_guest_takes_the_ports_mtu_and_moves_large_frames,
);

const REBOOTS: u32 = 3;
const RELOADS: u32 = 20;
/// Between pings: often enough to see a gap of a few packets, seldom enough for a machine that is busy with other tests.
const INTERVAL: Duration = Duration::from_millis(20);

fn a_guest_pings_and_moves_data_both_ways(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan, Program("iperf3"));
    let mut scene = Scene::new("both", &Plan { rings, ..Plan::default() })?;
    serve_iperf(&mut scene.guest)?;
    ensure!(scene.iperf(&[])? > 1e6, "hardly anything moved from the host to the guest");
    ensure!(scene.iperf(&["-R"])? > 1e6, "hardly anything moved from the guest to the host");
    let ping = scene.net.ping(GUEST, INTERVAL)?;
    wait::pause(Duration::from_secs(2))?;
    ping.finish()?.nothing_lost()
}

fn driver_reloads_and_guest_reboots_change_nothing(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan);
    let mut scene = Scene::new("reload", &Plan { rings, ..Plan::default() })?;
    for round in 0..RELOADS {
        // The device is reset either way; unloading the module also frees its interrupts and memory.
        let script = if round % 2 == 0 {
            "d=$(basename $(readlink /sys/class/net/eth0/device)); cd /sys/bus/virtio/drivers/virtio_net; \
             echo $d >unbind && echo $d >bind"
        } else {
            "rmmod virtio_net && modprobe virtio_net"
        };
        scene.guest.sh(&format!("{script} && until [ -e /sys/class/net/eth0 ]; do sleep 0.05; done"))?;
        scene.connect().map_err(|error| error.context(format!("after driver reload {}", round + 1)))?;
    }
    for round in 0..REBOOTS {
        // From inside, and by the monitor, which does not ask the guest.
        if round % 2 == 0 {
            scene.guest.reboot()?
        } else {
            scene.guest.reset()?
        }
        scene.connect().map_err(|error| error.context(format!("after reboot {}", round + 1)))?;
    }
    Ok(())
}

fn killing_the_daemon_loses_nothing_and_killing_the_lane_little(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan);
    let mut scene = Scene::new("kill", &Plan { rings, ..Plan::default() })?;
    let lane = scene.daemon.lane_pid("main")?;

    let ping = scene.net.ping(GUEST, INTERVAL)?;
    wait::pause(Duration::from_secs(1))?;
    scene.daemon.kill()?;
    wait::pause(Duration::from_secs(1))?;
    scene.daemon.start_again()?;
    scene.daemon.wait_port("vm1", "driver-ready", Duration::from_secs(10))?;
    wait::pause(Duration::from_secs(1))?;
    ping.finish()?.nothing_lost().context("while the daemon was killed")?;
    ensure!(scene.daemon.lane_pid("main")? == lane, "the lane was not adopted");

    let ping = scene.net.ping(GUEST, INTERVAL)?;
    wait::pause(Duration::from_secs(1))?;
    process::kill_hard(lane)?;
    let socket = scene.daemon.path("vm1.sock");
    let lane = wait::until(Duration::from_secs(20), "another lane", || Ok(scene.daemon.lane_pid("main").ok()))?;
    wait::until(Duration::from_secs(20), "a listening socket", || Ok(process::listens(lane, &socket).then_some(())))?;
    let listening = Instant::now();
    scene.answers()?;
    let back = listening.elapsed();
    wait::pause(Duration::from_secs(1))?;
    let report = ping.finish()?;
    ensure!(report.duplicates == 0, "answers came twice after the lane was killed: {report:?}");
    // QEMU 7.2 tries to connect once a second, so 2 s leave one more try.
    ensure!(back < Duration::from_secs(2), "the guest answered {back:?} after the socket was there again");
    Ok(())
}

fn qemus_monitor_answers_while_the_lane_is_down(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan);
    let mut scene = Scene::new("monitor", &Plan { rings, ..Plan::default() })?;
    let lane = scene.daemon.lane_pid("main")?;
    // Without the daemon nobody starts another lane.
    scene.daemon.kill()?;
    process::kill_hard(lane)?;
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(4) {
        let status = scene.guest.monitor.execute("query-status", Duration::from_secs(2))?;
        ensure!(status["running"] == true, "the guest does not run: {status}");
        wait::pause(Duration::from_millis(200))?;
    }
    scene.daemon.start_again()?;
    scene.answers()
}

fn a_guest_that_was_given_four_pairs_may_enable_fewer(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan, Program("ethtool"), Program("iperf3"));
    let mut scene = Scene::new("queues", &Plan { queues: 2, guest_queues: 4, cpus: 2, rings, ..Plan::default() })?;
    let channels = scene.guest.sh("ethtool -l eth0")?;
    let combined: Vec<&str> =
        channels.lines().filter_map(|line| line.strip_prefix("Combined:")).map(str::trim).collect();
    ensure!(combined == ["4", "2"], "4 pairs were given and 2 CPUs are there, but: {channels}");
    serve_iperf(&mut scene.guest)?;
    let mut before = 2;
    for pairs in [1, 2, 4, 3, 1] {
        let dropped = drops(&scene)?;
        let ping = scene.net.ping(GUEST, INTERVAL)?;
        wait::pause(Duration::from_millis(300))?;
        let changing = Instant::now();
        scene.guest.sh(&format!("ethtool -L eth0 combined {pairs}"))?;
        let took = changing.elapsed();
        wait::pause(Duration::from_millis(300))?;
        let report = ping.finish()?;
        // Linux sends on a queue until it has been told that the device knows of fewer: what it puts there meanwhile, nobody takes.
        let (lost, longest) = (report.lost(), Duration::from_millis(100) + took);
        let meanwhile =
            pairs < before && lost.windows(2).all(|pair| pair[1] == pair[0] + 1) && report.longest_gap() < longest;
        ensure!(
            (lost.is_empty() || meanwhile) && report.duplicates == 0 && report.received > 0,
            "going from {before} to {pairs} of 4 pairs took {took:?}, and {lost:?} were not answered: {report:?}"
        );
        let drops = drops(&scene)?;
        ensure!(drops == dropped, "going from {before} to {pairs} of 4 pairs dropped frames: {dropped}, then {drops}");
        before = pairs;
        // Several connections, so that the hash spreads them over the queues there are.
        scene.iperf(&["-P", "4"])?;
        scene.iperf(&["-P", "4", "-R"])?;
    }
    Ok(())
}

/// What the port has dropped so far, by direction and reason.
fn drops(scene: &Scene) -> Result<Value> {
    let stats = scene.daemon.call("port.stats", json!({"name": "vm1"}))?;
    let totals = &stats[0]["totals"];
    ensure!(totals["to_guest"]["drops"].is_object(), "no counters of drops in {stats}");
    Ok(json!([totals["from_guest"]["drops"], totals["to_guest"]["drops"]]))
}

fn a_guest_takes_the_ports_mtu_and_moves_large_frames(rings: Kind) -> Result<()> {
    needs!(Root, Guest, Ringspan, Program("ethtool"));
    let mut scene = Scene::new("jumbo", &Plan { mtu: 9000, rings, ..Plan::default() })?;
    let mtu = scene.guest.sh("cat /sys/class/net/eth0/mtu")?;
    ensure!(mtu.trim() == "9000", "the guest's MTU is {mtu}");
    // -M do: never in fragments.
    let large = ["-n", "-q", "-c", "50", "-i", "0.02", "-M", "do", "-s", "8900", GUEST];
    let report = scene.net.run(Duration::from_secs(20), "ping", &large)?;
    ensure!(report.contains(" 0% packet loss"), "{report}");
    Ok(())
}
