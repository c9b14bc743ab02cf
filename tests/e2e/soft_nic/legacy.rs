//! Legacy mode: what the embedded bridge of an SR-IOV NIC does with frames, and what is said of its VFs while they flow.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ringspan_protocol::{FailureKind, NicMode, NicPort, NicSpec, Request, VfLink, VfSettings};
use ringspan_testkit::guest::{Guest, NetHeader, Options, feature};
use ringspan_testkit::needs;
use ringspan_testkit::packet::Packet;

use crate::kit::{Scene, by_turns, nic, receive, rule, send};
use crate::{VF0, VF1, finished, out};

const VLAN: [u8; 2] = [0x81, 0];
/// The uplink, and what a guest is on that stands for the world outside: the kernel would hide tags.
const UPLINK: &str = "patch:wire/a";
const OUTSIDE: &str = "patch:wire/b";

fn settings(vf: u16) -> VfSettings {
    VfSettings { mac: format!("02:00:00:00:00:{vf:02x}").parse().ok(), ..VfSettings::new(vf) }
}

fn legacy(vfs: u16, uplinks: &[&str], settings: &[VfSettings]) -> NicSpec {
    NicSpec { mode: NicMode::Legacy, vf: settings.to_vec(), ..nic(vfs, uplinks) }
}

fn set(scene: &mut Scene, settings: VfSettings) -> Result<()> {
    let request = Request::NicSetVf { name: "nic0".parse()?, settings };
    scene.lane.client()?.ask(request).map(drop)
}

/// A guest on each VF, and behind them one outside.
fn with_outside(label: &str, spec: &NicSpec, shape: impl Fn(Options) -> Options) -> Result<Scene> {
    let mut scene = Scene::with(label, spec, spec.vfs.into(), &shape)?;
    let socket = scene.lane.add_port("outside", OUTSIDE, 1)?;
    let kind = by_turns(scene.guests.len());
    scene.guests.push(Guest::start(shape(Options::new(socket).over(kind)))?);
    Ok(scene)
}

/// A frame between addresses that end so; 255 is everybody.
fn frame(from: u8, to: u8, seed: u8) -> Vec<u8> {
    addressed(finished(&Packet { seed, ..Packet::new(60) }), from, to)
}

fn addressed(mut frame: Vec<u8>, from: u8, to: u8) -> Vec<u8> {
    frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, to, 2, 0, 0, 0, 0, from]);
    if to == 255 {
        frame[..6].fill(0xff);
    }
    frame
}

fn tagged(frame: &[u8], tci: u16) -> Vec<u8> {
    [&frame[..12], &VLAN, &tci.to_be_bytes(), &frame[12..]].concat()
}

fn plain(guest: &mut Guest, frame: &[u8]) -> Result<()> {
    send(guest, frame, &NetHeader::default())
}

/// What comes next to each of these guests is this frame: nothing was before it.
fn only(scene: &mut Scene, guests: &[usize], frame: &[u8]) -> Result<()> {
    for at in guests {
        let got = receive(&mut scene.guests[*at])?.1;
        ensure!(got == frame, "guest {at}: {got:02x?}, not {frame:02x?}");
    }
    Ok(())
}

#[test]
fn vfs_talk_by_addresses_and_vlans() -> Result<()> {
    needs!(Root, Lane);
    let in_vlan = |vf| VfSettings { vlan: 10, qos: 5, ..settings(vf) };
    const WIRE: usize = 4;
    let spec = legacy(4, &[UPLINK], &[settings(0), settings(1), in_vlan(2), in_vlan(3)]);
    let mut scene = with_outside("legacy-vlan", &spec, |options| options.with(feature::HOST_OFFLOADS))?;
    ensure!(scene.net.ip(&["link", "show", "nic0_vf0"]).is_err(), "there is a representor");
    let mut crosses = |from: usize, sent: &[u8], to: &[usize], got: &[u8]| -> Result<()> {
        plain(&mut scene.guests[from], sent)?;
        only(&mut scene, to, got)
    };
    // From VF to VF, to the wire, and back, with what nobody else is to get in between.
    crosses(0, &frame(0, 1, 1), &[1], &frame(0, 1, 1))?;
    crosses(0, &frame(0, 0x77, 2), &[WIRE], &frame(0, 0x77, 2))?;
    crosses(WIRE, &frame(0x77, 0, 3), &[0], &frame(0x77, 0, 3))?;
    // In the VLAN: bare between its VFs, tagged outside.
    crosses(2, &frame(2, 3, 4), &[3], &frame(2, 3, 4))?;
    crosses(2, &frame(2, 0x77, 5), &[WIRE], &tagged(&frame(2, 0x77, 5), 5 << 13 | 10))?;
    crosses(WIRE, &tagged(&frame(0x77, 2, 6), 10), &[2], &frame(0x77, 2, 6))?;
    // Bare from outside is not in the VLAN, and another VLAN is not this one.
    crosses(WIRE, &frame(0x77, 3, 7), &[], &[])?;
    crosses(WIRE, &tagged(&frame(0x77, 3, 8), 11), &[], &[])?;
    // For everybody in the VLAN, and on the wire; those that are in no VLAN see the tag.
    let all = frame(3, 255, 10);
    crosses(3, &all, &[2], &all)?;
    only(&mut scene, &[0, 1, WIRE], &tagged(&all, 5 << 13 | 10))?;
    let mut crosses = |from: usize, sent: &[u8], to: &[usize], got: &[u8]| -> Result<()> {
        plain(&mut scene.guests[from], sent)?;
        only(&mut scene, to, got)
    };
    crosses(WIRE, &frame(0x77, 255, 11), &[0, 1], &frame(0x77, 255, 11))?;
    let all = frame(0x77, 255, 12);
    crosses(WIRE, &tagged(&all, 10), &[2, 3], &all)?;
    only(&mut scene, &[0, 1], &tagged(&all, 10))?;
    // A checksum that the guest left to its device is done before a tag is put in front, and on the wire.
    let packet = Packet { seed: 9, ..Packet::new(500) };
    send(&mut scene.guests[2], &addressed(packet.frame(), 2, 0x77), &packet.checksum_header())?;
    only(&mut scene, &[WIRE], &tagged(&addressed(finished(&packet), 2, 0x77), 5 << 13 | 10))?;
    // A tag of its own gets a VF out of no VLAN.
    plain(&mut scene.guests[2], &tagged(&frame(2, 0x77, 13), 11))?;
    plain(&mut scene.guests[2], &frame(2, 0x77, 14))?;
    only(&mut scene, &[WIRE], &tagged(&frame(2, 0x77, 14), 5 << 13 | 10))?;
    let (uplink, vf2) = (scene.port(NicPort::Uplink)?, scene.port(NicPort::Vf(2))?);
    ensure!(uplink.drop_rule == 2 && vf2.drop_spoof == 1, "{uplink:?} {vf2:?}");
    scene.adds_up()
}

#[test]
fn large_frames_are_cut_for_the_wire_with_the_tag_on_each_segment() -> Result<()> {
    needs!(Root, Lane);
    let spec = legacy(1, &[UPLINK], &[VfSettings { vlan: 10, ..settings(0) }]);
    let large = |options: ringspan_testkit::guest::Options| {
        ringspan_testkit::guest::Options { tx_room: 65_600, ring_size: 64, ..options }.with(feature::HOST_OFFLOADS)
    };
    let mut scene = with_outside("legacy-large", &spec, large)?;
    let packet = Packet { ecn: false, ..Packet::new(20_000) };
    send(&mut scene.guests[0], &addressed(packet.frame(), 0, 0x77), &packet.segment_header(1000))?;
    let strip = |frame: Vec<u8>| {
        ensure!(frame[12..16] == [0x81, 0, 0, 10], "{frame:02x?}");
        Ok([&frame[..12], &frame[16..]].concat())
    };
    let came = (0..20)
        .map(|_| receive(&mut scene.guests[1]).and_then(|(_, frame)| strip(frame)))
        .collect::<Result<Vec<_>>>()?;
    let as_made = |frame: &Vec<u8>| [&packet.frame()[..12], &frame[12..]].concat();
    packet.check_segments(1000, &came.iter().map(as_made).collect::<Vec<_>>())?;
    scene.adds_up()
}

#[test]
fn what_a_vf_may_do_is_changed_while_frames_flow() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("legacy-set", &legacy(3, &[], &[settings(0), settings(1)]), 3)?;
    let mark = |scene: &mut Scene, seed| -> Result<()> {
        // Comes behind what was to be dropped.
        plain(&mut scene.guests[0], &frame(0, 1, seed))?;
        only(scene, &[1], &frame(0, 1, seed))
    };
    plain(&mut scene.guests[0], &frame(9, 1, 1))?;
    mark(&mut scene, 2)?;
    ensure!(scene.port(VF0)?.drop_spoof == 1);
    set(&mut scene, VfSettings { spoof_check: false, ..settings(0) })?;
    plain(&mut scene.guests[0], &frame(9, 1, 3))?;
    only(&mut scene, &[1], &frame(9, 1, 3))?;
    // One of which no address was said has the one that it sends from.
    plain(&mut scene.guests[2], &frame(0x42, 1, 4))?;
    only(&mut scene, &[1], &frame(0x42, 1, 4))?;
    plain(&mut scene.guests[1], &frame(1, 0x42, 5))?;
    only(&mut scene, &[2], &frame(1, 0x42, 5))?;
    // Not connected any more, and connected again.
    set(&mut scene, VfSettings { link: VfLink::Disable, ..VfSettings::new(2) })?;
    plain(&mut scene.guests[1], &frame(1, 0x42, 6))?;
    ensure!(!scene.status()?.ports[3].up);
    set(&mut scene, VfSettings::new(2))?;
    plain(&mut scene.guests[1], &frame(1, 0x42, 7))?;
    only(&mut scene, &[2], &frame(1, 0x42, 7))?;
    ensure!(scene.port(VF1)?.drop_rule == 1);
    // Trusted: it has what is for nobody.
    set(&mut scene, VfSettings { trust: true, ..VfSettings::new(2) })?;
    plain(&mut scene.guests[1], &frame(1, 0x99, 8))?;
    only(&mut scene, &[2], &frame(1, 0x99, 8))?;
    ensure!(
        scene.status()?.spec.vf
            == [
                VfSettings { spoof_check: false, ..settings(0) },
                settings(1),
                VfSettings { trust: true, ..VfSettings::new(2) }
            ]
    );
    // What cannot be changes nothing.
    let kind = |result: Result<()>| {
        result.err().and_then(|error| error.downcast::<ringspan_protocol::Failure>().ok()).map(|failure| failure.kind)
    };
    ensure!(kind(set(&mut scene, VfSettings { vlan: 4095, ..settings(0) })) == Some(FailureKind::Invalid));
    ensure!(kind(set(&mut scene, settings(3))) == Some(FailureKind::Invalid));
    ensure!(kind(set(&mut scene, VfSettings { mac: settings(1).mac, ..settings(0) })) == Some(FailureKind::Invalid));
    ensure!(kind(scene.install(vec![rule(1, VF0, &[], vec![out(VF1)])])) == Some(FailureKind::Unsupported));
    mark(&mut scene, 9)?;
    scene.adds_up()
}

#[test]
fn a_vf_that_is_limited_sends_no_more_than_it_may() -> Result<()> {
    needs!(Root, Lane);
    const MBIT: u32 = 20;
    let limited = VfSettings { max_mbit: MBIT, ..settings(0) };
    let mut scene = Scene::new("legacy-rate", &legacy(2, &[], &[limited, settings(1)]), 2)?;
    let long = addressed(finished(&Packet::new(1400)), 0, 1);
    let mut offered = 0u64;
    let begun = Instant::now();
    // Twice the burst, and as much as is let through in a while.
    while begun.elapsed() < Duration::from_millis(400) || offered * (long.len() as u64) < 2 << 20 {
        plain(&mut scene.guests[0], &long)?;
        offered += 1;
        scene.guests[1].rx[0].receive(64, |_| {});
        scene.guests[1].rx[0].ring().kick();
    }
    let counters = scene.port(VF0)?;
    let took = begun.elapsed();
    let passed = counters.hits * long.len() as u64;
    let most = (128 << 10) + (u64::from(MBIT) * 125_000 * took.as_micros() as u64) / 1_000_000;
    ensure!(counters.drop_meter > 0 && passed <= most, "{passed} of {most} bytes in {took:?}: {counters:?}");
    ensure!(passed >= 128 << 10, "{passed} bytes passed: less than it may send at once");
    // Without the limit nothing is dropped any more.
    set(&mut scene, settings(0))?;
    scene.adds_up()?;
    let before = scene.port(VF0)?;
    for _ in 0..200 {
        plain(&mut scene.guests[0], &long)?;
        scene.guests[1].rx[0].receive(64, |_| {});
        scene.guests[1].rx[0].ring().kick();
    }
    let until = Instant::now() + Duration::from_secs(30);
    while scene.port(VF0)?.received < before.received + 200 {
        ensure!(Instant::now() < until, "{:?}", scene.port(VF0)?);
        scene.guests[1].rx[0].receive(64, |_| {});
        scene.guests[1].rx[0].ring().kick();
    }
    ensure!(scene.port(VF0)?.drop_meter == before.drop_meter, "{:?}, before {before:?}", scene.port(VF0)?);
    scene.adds_up()
}
