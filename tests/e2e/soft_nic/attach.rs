//! Guests attached to a software NIC, with Open vSwitch and a lane that are real.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use ringspan_testkit::daemon::{Daemon, find};
use ringspan_testkit::guest::loopback::{claims, make};
use ringspan_testkit::guest::{Guest, NetHeader, Options};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::ovs::Ovs;
use ringspan_testkit::{needs, process, wait};
use serde_json::{Value, json};

use crate::kit::{by_turns, send};

const LENGTH: usize = 1000;
const LONG: Duration = Duration::from_secs(30);

/// Sends until the other guest has got one: representors come up, and flows change, in their own time.
fn reaches(guests: &mut [Guest], number: u64) -> Result<()> {
    let (begun, mut frame) = (Instant::now(), [0; LENGTH]);
    make(&mut frame, 0, number);
    while begun.elapsed() < LONG {
        send(&mut guests[0], &frame, &NetHeader::default())?;
        let (until, mut came) = (Instant::now() + Duration::from_millis(200), false);
        while Instant::now() < until && !came {
            guests[1].rx[0].receive(64, |received| {
                let mut bytes = vec![0; received.length()];
                received.copy_to(&mut bytes);
                came |= claims(&bytes).is_some() && bytes == frame;
            });
            guests[1].rx[0].ring().kick();
        }
        if came {
            return Ok(());
        }
    }
    bail!("frame {number} does not come through")
}

/// How many frames a guest has sent, as it is metered.
fn sent_by(daemon: &Daemon, guest: &str) -> Result<u64> {
    let stats = daemon.call("attachment.stats", json!({ "guest": guest }))?;
    let found = find(&stats, "tx_packets").and_then(Value::as_u64);
    found.with_context(|| format!("no counters of {guest}: {stats}"))
}

#[test]
fn guests_are_attached_mended_held_to_a_rate_and_detached() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let net = Netns::new("snic-attach")?;
    net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
    let ovs = Ovs::start_in(Some(&net))?;
    let config = format!(
        "[dataplane]\ncores = [0]\nmemory_mib = 256\nhuge_pages = \"off\"\n[ovs]\nrun_dir = \"{}\"\n",
        ovs.run_dir().display()
    );
    let mut daemon = Daemon::start(&config, Some(&net))?;
    daemon.call("nic.add", json!({ "name": "nic0", "vfs": 2 }))?;
    ovs.vsctl(&["add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev"])?;
    ovs.vsctl(&["add-port", "br0", "nic0"])?;
    let mut guests = Vec::new();
    for (number, guest) in ["g1", "g2"].into_iter().enumerate() {
        let args = daemon.ok(&["port", "attach", guest, "--wire", "br0", "--vlan", "10", "--qemu-version", "7.2"])?;
        ensure!(args.contains(&format!("run/{guest}-nic0.sock,reconnect=1")), "{args}");
        let options = Options::new(daemon.path(&format!("run/{guest}-nic0.sock")));
        guests.push(Guest::start(options.over(by_turns(number)))?);
    }
    let third = daemon.cli(&["port", "attach", "g3", "--wire", "br0"])?;
    ensure!(third.code == 1 && third.text.contains("no VF on wire \"br0\" of NIC nic0 is free"), "{}", third.text);
    ensure!(ovs.vsctl(&["get", "Port", "nic0_vf0", "tag"])?.trim() == "10", "no tag");
    reaches(&mut guests, 1)?;

    // Somebody takes a representor out of its bridge; the daemon dies; the agent asks, and it is mended.
    ovs.vsctl(&["del-port", "br0", "nic0_vf1"])?;
    let metered = sent_by(&daemon, "g1")?;
    daemon.kill()?;
    daemon.start_again()?;
    let now = sent_by(&daemon, "g1")?;
    ensure!(now >= metered && metered > 0, "{now} frames, and {metered} before the daemon died");
    let told = daemon.cli(&["attachment", "sync", "g1", "g2"])?;
    ensure!(told.code == 1 && told.text.contains("nic0_vf1 is in no bridge, not in br0"), "{}", told.text);
    daemon.ok(&["attachment", "sync", "g1=0", "g2=0", "--mend"])?;
    daemon.ok(&["attachment", "sync", "g1", "g2"])?;
    reaches(&mut guests, 2)?;

    // 8 Mbit/s are a million bytes a second: what the guest sends beyond them waits.
    daemon.ok(&["port", "set", "g1-nic0", "--max-rate", "8"])?;
    let before = sent_by(&daemon, "g1")?;
    let (begun, mut frame) = (Instant::now(), [0; LENGTH]);
    for number in 0..500 {
        make(&mut frame, 0, number);
        send(&mut guests[0], &frame, &NetHeader::default())?;
        // So that the other guest's ring is no limit.
        guests[1].rx[0].receive(64, |_| {});
        guests[1].rx[0].ring().kick();
    }
    while sent_by(&daemon, "g1")? < before + 500 {
        ensure!(begun.elapsed() < LONG, "{}", daemon.ok(&["attachment", "stats"])?);
        std::thread::sleep(Duration::from_millis(2));
    }
    // Half a million bytes, of which 50 ms may be ahead, and a burst too much.
    ensure!(begun.elapsed() >= Duration::from_millis(350), "500 kB at 8 Mbit/s took {:?}", begun.elapsed());
    // The lane dies with all that it has, and the guests come again: what was metered stays metered.
    let metered = sent_by(&daemon, "g1")?;
    let lanes = daemon.call("lane.list", json!({}))?;
    let pid = find(&lanes, "pid").and_then(Value::as_u64).context("no lane")?;
    process::kill_hard(pid.try_into()?)?;
    drop(guests);
    wait::until(LONG, "the ports in a new lane", || {
        let now = sent_by(&daemon, "g1")?;
        ensure!(now >= metered, "{now} frames, and {metered} before the lane died");
        let ports = daemon.call("port.list", json!({}))?;
        let listens = |port: &Value| port["phase"] == "listening";
        let again = daemon.call("lane.list", json!({}))?;
        let other = find(&again, "pid").and_then(Value::as_u64).is_some_and(|now| now != pid);
        Ok((other && ports.as_array().is_some_and(|ports| ports.len() == 2 && ports.iter().all(listens))).then_some(()))
    })?;
    let mut guests = ["g1", "g2"]
        .map(|guest| Guest::start(Options::new(daemon.path(&format!("run/{guest}-nic0.sock")))))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    reaches(&mut guests, 3)?;
    ensure!(sent_by(&daemon, "g1")? > metered, "{} frames after {metered}", sent_by(&daemon, "g1")?);
    drop(guests);
    for guest in ["g1", "g2", "g1"] {
        daemon.ok(&["port", "detach", guest])?;
    }
    ensure!(daemon.ok(&["port", "list", "--json"])?.trim() == "[]", "a port is left");
    ensure!(ovs.vsctl(&["list-ports", "br0"])?.trim() == "nic0", "{}", ovs.vsctl(&["list-ports", "br0"])?);
    Ok(())
}
