//! What others do to representors, and with them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ringspan_testkit::guest::NetHeader;
use ringspan_testkit::needs;
use ringspan_testkit::packet::Packet;

use crate::kit::{Scene, arrives, nic, receive, send};
use crate::{IPV4, VF0, finished};

#[test]
fn a_representor_that_was_removed_comes_back_and_costs_nothing_meanwhile() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("snic-anew", &nic(1, &[]), 1)?;
    scene.net.ip(&["link", "del", "nic0_vf0"])?;
    let until = Instant::now() + Duration::from_secs(10);
    while scene.net.ip(&["link", "show", "up", "nic0_vf0"]).map_or(true, |shown| shown.is_empty()) {
        ensure!(Instant::now() < until, "nobody made the representor anew");
        std::thread::sleep(Duration::from_millis(20));
    }
    let slow = scene.far("nic0_vf0", IPV4)?;
    let frame = finished(&Packet::new(100));
    send(&mut scene.guests[0], &frame, &NetHeader::default())?;
    ensure!(arrives(&slow)? == frame);
    slow.send(&frame)?;
    ensure!(receive(&mut scene.guests[0])?.1 == frame);
    scene.adds_up()
}

#[test]
fn a_frame_from_a_representor_that_is_longer_than_the_mtu_is_dropped_and_not_cut() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("snic-long", &nic(1, &[]), 1)?;
    scene.net.ip(&["link", "set", "nic0_vf0", "mtu", "3000"])?;
    let slow = scene.far("nic0_vf0", IPV4)?;
    let right = finished(&Packet::new(100));
    // Longer than the NIC's MTU, and longer than any buffer.
    for payload in [1600, 2500] {
        slow.send(&finished(&Packet::new(payload)))?;
        slow.send(&right)?;
        ensure!(receive(&mut scene.guests[0])?.1 == right, "a frame of {payload} bytes came to the guest");
    }
    let port = scene.port(VF0)?;
    ensure!(port.drop_malformed == 2, "{port:?}");
    scene.adds_up()
}
