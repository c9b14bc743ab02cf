//! Open vSwitch, unchanged, decides; the software NIC forwards.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_protocol::NicStatus;
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::guest::loopback::{claims, make};
use ringspan_testkit::guest::{Guest, NetHeader, Options};
use ringspan_testkit::needs;
use ringspan_testkit::netns::Netns;
use ringspan_testkit::ovs::Ovs;

use crate::kit::{by_turns, receive, send};

const LONG: Duration = Duration::from_secs(30);
const LENGTH: usize = 100;

fn status(daemon: &Daemon) -> Result<NicStatus> {
    let nic = daemon.call("nic.show", serde_json::json!({ "name": "nic0" }))?;
    let status = ringspan_testkit::daemon::find(&nic, "status").context("the NIC is not there")?;
    Ok(serde_json::from_value(status.clone())?)
}

/// Frames from VF 0 that a rule took, and that went to the representor.
fn hits_and_misses(daemon: &Daemon) -> Result<(u64, u64)> {
    let counters = status(daemon)?.ports.get(1).context("VF 0")?.counters;
    Ok((counters.hits, counters.representor_sent))
}

/// Sends a frame of this number, and takes it at the other guest.
fn pass(guests: &mut [Guest], number: u64) -> Result<()> {
    let mut frame = [0; LENGTH];
    make(&mut frame, 0, number);
    send(&mut guests[0], &frame, &NetHeader::default())?;
    loop {
        let (_, got) = receive(&mut guests[1]).with_context(|| format!("frame {number}"))?;
        if claims(&got).is_some() {
            ensure!(got == frame, "frame {number}: {got:02x?}");
            return Ok(());
        }
    }
}

#[test]
fn the_first_frame_goes_through_ovs_and_those_that_follow_straight_across() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    let net = Netns::new("snic-ovs")?;
    net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
    let ovs = Ovs::start_in(Some(&net))?;
    let config = format!(
        "[dataplane]\ncores = [0]\nmemory_mib = 256\nhuge_pages = \"off\"\n[ovs]\nrun_dir = \"{}\"\n[[nic]]\nname = \"nic0\"\nvfs = 2\n",
        ovs.run_dir().display()
    );
    let daemon = Daemon::start(&config, Some(&net))?;
    let mut guests = Vec::new();
    for vf in 0..2 {
        daemon.add_port(&format!("vm{vf}"), &format!("soft:nic0/vf{vf}"), &[])?;
        guests.push(Guest::start(Options::new(daemon.path(&format!("vm{vf}.sock"))).over(by_turns(vf)))?);
    }
    ovs.vsctl(&["add-br", "br0", "--", "set", "Bridge", "br0", "datapath_type=netdev", "fail_mode=secure"])?;
    for (port, number) in [("nic0_vf0", "1"), ("nic0_vf1", "2")] {
        let request = format!("ofport_request={number}");
        ovs.vsctl(&["add-port", "br0", port, "--", "set", "Interface", port, &request])?;
    }
    ovs.ofctl("br0", "add-flow", &["in_port=1,actions=output:2"])?;
    ovs.ofctl("br0", "add-flow", &["in_port=2,actions=output:1"])?;

    let (begun, mut number) = (Instant::now(), 0);
    while hits_and_misses(&daemon)?.0 == 0 {
        ensure!(begun.elapsed() < LONG, "no rule after {number} frames: {}", daemon.ok(&["flow", "list", "--why"])?);
        pass(&mut guests, number)?;
        number += 1;
    }
    ensure!(hits_and_misses(&daemon)?.1 > 0, "the first frame did not go through OVS");
    let before = hits_and_misses(&daemon)?;
    for number in number..number + 2_000 {
        pass(&mut guests, number)?;
    }
    let after = hits_and_misses(&daemon)?;
    let slow = after.1 - before.1;
    ensure!(after.0 - before.0 + slow == 2_000 && slow < 20, "{slow} of 2,000 frames went through OVS");

    // OVS decides otherwise: nothing comes any more.
    ovs.ofctl("br0", "mod-flows", &["in_port=1,actions=drop"])?;
    let begun = Instant::now();
    let mut quiet = false;
    while !quiet {
        ensure!(begun.elapsed() < LONG, "frames still come after the flow was changed");
        let mut frame = [0; LENGTH];
        make(&mut frame, 1, 0);
        send(&mut guests[0], &frame, &NetHeader::default())?;
        let (until, mut came) = (Instant::now() + Duration::from_millis(300), false);
        while Instant::now() < until && !came {
            guests[1].rx[0].receive(64, |_| came = true);
            guests[1].rx[0].ring().kick();
        }
        quiet = !came;
    }
    Ok(())
}
