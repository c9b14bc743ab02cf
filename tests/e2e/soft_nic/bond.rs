//! Two uplinks as one. The links are TAPs, whose other ends are the test's; with LACP it plays the switch outside, too.

use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use ringspan_protocol::nic::BondMode;
use ringspan_protocol::{NicPort, NicSpec};
use ringspan_testkit::daemon::tap_device;
use ringspan_testkit::far_end::FarEnd;
use ringspan_testkit::guest::NetHeader;
use ringspan_testkit::lacp::{self, Switch};
use ringspan_testkit::needs;
use ringspan_testkit::packet::Packet;

use crate::kit::{Scene, nic, receive, rule, send};
use crate::{IPV4, VF0, VF1, finished, out};

const SOON: Duration = Duration::from_secs(30);
const TAPS: [&str; 2] = ["up0", "up1"];

/// A NIC with two uplinks, and a guest on each of its two VFs, whose addresses end in 1 and 2.
struct Bonded {
    switch: Option<Switch>,
    wires: [FarEnd; 2],
    scene: Scene,
    /// Rounds of [`Bonded::flows`].
    rounds: usize,
}

impl Bonded {
    fn new(label: &str, bond: BondMode) -> Result<Self> {
        let (first, second) = (tap_device(TAPS[0]), tap_device(TAPS[1]));
        let mut scene = Scene::new(label, &NicSpec { bond, ..nic(2, &[&first, &second]) }, 2)?;
        let open =
            |scene: &Scene, kind| -> Result<[FarEnd; 2]> { Ok([scene.far(TAPS[0], kind)?, scene.far(TAPS[1], kind)?]) };
        let switch = match bond {
            BondMode::Lacp => Some(Switch::start(open(&scene, lacp::TYPE)?)),
            _ => None,
        };
        let wires = open(&scene, IPV4)?;
        scene.install(vec![
            rule(1, VF0, &[], vec![out(NicPort::Uplink)]),
            rule(2, NicPort::Uplink, &["eth_dst=02:00:00:00:00:01"], vec![out(VF0)]),
            rule(3, NicPort::Uplink, &["eth_dst=02:00:00:00:00:02"], vec![out(VF1)]),
            rule(4, NicPort::Uplink, &["eth_dst=ff:ff:ff:ff:ff:ff"], vec![out(VF0), out(VF1)]),
        ])?;
        let mut bonded = Self { switch, wires, scene, rounds: 0 };
        bonded.sends_on(if bond == BondMode::ActiveBackup { &[true, false] } else { &[true, true] })?;
        Ok(bonded)
    }

    /// Waits until the bond sends on these links and no others.
    fn sends_on(&mut self, wanted: &[bool]) -> Result<()> {
        let until = Instant::now() + SOON;
        loop {
            let uplinks = self.scene.status()?.uplinks;
            if uplinks.iter().map(|uplink| uplink.active).eq(wanted.iter().copied()) && self.carries(wanted)? {
                return Ok(());
            }
            ensure!(Instant::now() < until, "{uplinks:?}, wanted {wanted:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Whether flows come out of each of these links: with LACP that takes an agreement.
    fn carries(&mut self, wanted: &[bool]) -> Result<bool> {
        let seen = self.flows()?;
        Ok(seen.map(|count| count > 0).iter().eq(wanted))
    }

    /// Sends a frame of each of 256 flows. Returns how many came out of each link, when no more come.
    fn flows(&mut self) -> Result<[usize; 2]> {
        let mut bytes = vec![0; 2048];
        for wire in &self.wires {
            // One that is down says so once.
            while let Ok(Some(_)) = wire.receive(&mut bytes) {}
        }
        // No two rounds have frames of one length: one that is late is not counted in the next.
        self.rounds += 1;
        let packet = Packet::new(200 + self.rounds % 1000);
        let len = packet.frame().len();
        let sent = self.scene.port(NicPort::Uplink)?;
        for seed in 0..=255 {
            send(&mut self.scene.guests[0], &finished(&Packet { seed, ..packet }), &NetHeader::default())?;
        }
        let until = Instant::now() + SOON;
        let passed = loop {
            let now = self.scene.port(NicPort::Uplink)?;
            if now.sent + now.drop_full >= sent.sent + sent.drop_full + 256 {
                break now.sent - sent.sent;
            }
            ensure!(Instant::now() < until, "{now:?}");
            std::thread::sleep(Duration::from_millis(2));
        };
        let mut seen = [0; 2];
        let mut quiet = Instant::now();
        while (seen[0] + seen[1] < passed as usize) && quiet.elapsed() < Duration::from_millis(200) {
            for (wire, seen) in self.wires.iter().zip(&mut seen) {
                while let Ok(Some(got)) = wire.receive(&mut bytes) {
                    *seen += usize::from(got == len);
                    quiet = Instant::now();
                }
            }
        }
        Ok(seen)
    }

    fn comes_in(&mut self, wire: usize) -> Result<()> {
        for (vf, guest) in self.scene.guests.iter_mut().enumerate() {
            let mut frame = finished(&Packet { seed: wire as u8, ..Packet::new(100) });
            frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, vf as u8 + 1]);
            ensure!(self.wires[wire].send(&frame)?);
            ensure!(receive(guest)?.1 == frame, "VF {vf} from {}", TAPS[wire]);
        }
        Ok(())
    }
}

impl Bonded {
    /// What the switch outside floods to the link that does not send is dropped; but not what is said on that link.
    fn drops_on_backup(&mut self) -> Result<()> {
        let before = self.scene.port(NicPort::Uplink)?;
        let mut frame = finished(&Packet::new(70));
        frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
        // For a second after a link became active it is not dropped.
        let until = Instant::now() + SOON;
        while self.scene.port(NicPort::Uplink)?.drop_backup == before.drop_backup {
            ensure!(Instant::now() < until, "{:?}", self.scene.port(NicPort::Uplink)?);
            ensure!(self.wires[1].send(&frame)?);
            std::thread::sleep(Duration::from_millis(20));
        }
        self.scene.adds_up()?;
        while self.scene.guests[0].rx[0].receive(64, |_| {}) > 0 {
            self.scene.guests[0].rx[0].ring().kick();
        }
        let before = self.scene.port(NicPort::Uplink)?;
        let mut said = frame;
        said[..6].copy_from_slice(&[1, 0x80, 0xc2, 0, 0, 0x0e]);
        ensure!(self.wires[1].send(&said)?);
        let until = Instant::now() + SOON;
        while self.scene.port(NicPort::Uplink)?.misses == before.misses {
            ensure!(Instant::now() < until, "{:?}", self.scene.port(NicPort::Uplink)?);
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

#[test]
fn two_uplinks_are_one_in_each_mode() -> Result<()> {
    needs!(Root, Lane);
    for (label, bond) in
        [("bond-ab", BondMode::ActiveBackup), ("bond-xor", BondMode::BalanceXor), ("bond-lacp", BondMode::Lacp)]
    {
        let mut bonded = Bonded::new(label, bond)?;
        let seen = bonded.flows()?;
        match bond {
            BondMode::ActiveBackup => ensure!(seen == [256, 0], "{seen:?}"),
            _ => ensure!(seen[0] + seen[1] == 256 && seen[0] > 32 && seen[1] > 32, "{bond:?}: {seen:?}"),
        }
        for wire in if bond == BondMode::ActiveBackup { [0; 3] } else { [0, 1, 0] } {
            bonded.comes_in(wire)?;
        }
        if bond == BondMode::ActiveBackup {
            bonded.drops_on_backup()?;
            let dropped = bonded.scene.port(NicPort::Uplink)?.drop_backup;
            // A group's frame came by the other link as well: once is enough.
            let mut frame = finished(&Packet::new(60));
            frame[..6].fill(0xff);
            for wire in [1, 0] {
                ensure!(bonded.wires[wire].send(&frame)?);
            }
            for guest in &mut bonded.scene.guests {
                ensure!(receive(guest)?.1 == frame);
                let mut more = 0;
                guest.rx[0].receive(1, |_| more += 1);
                ensure!(more == 0, "the frame came twice");
            }
            let until = Instant::now() + SOON;
            while bonded.scene.port(NicPort::Uplink)?.drop_backup != dropped + 1 {
                ensure!(Instant::now() < until, "{:?}", bonded.scene.port(NicPort::Uplink)?);
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        bonded.scene.adds_up()?;
        let Bonded { switch, scene, .. } = bonded;
        drop(switch);
        let Scene { guests, mut lane, .. } = scene;
        drop(guests);
        // All of it goes, and can be made again.
        ["vm0", "vm1"].iter().try_for_each(|port| lane.remove(port))?;
        let gone = ringspan_protocol::Request::NicRemove { name: "nic0".parse()?, representors: true };
        lane.client()?.ask(gone)?;
        let (first, second) = (tap_device(TAPS[0]), tap_device(TAPS[1]));
        let again = NicSpec { bond, ..nic(1, &[&first, &second]) };
        lane.client()?.ask(ringspan_protocol::Request::NicAdd(Box::new(again)))?;
    }
    Ok(())
}

#[test]
fn when_a_link_goes_down_the_other_one_takes_over() -> Result<()> {
    needs!(Root, Lane);
    for (label, bond) in
        [("fail-ab", BondMode::ActiveBackup), ("fail-xor", BondMode::BalanceXor), ("fail-lacp", BondMode::Lacp)]
    {
        let mut bonded = Bonded::new(label, bond)?;
        let both = if bond == BondMode::ActiveBackup { [false, true] } else { [true, true] };
        // Again and again: after once it was seen up again, perhaps because net_tap reads a link's flags and writes them back.
        let until = Instant::now() + SOON;
        loop {
            bonded.scene.net.ip(&["link", "set", TAPS[0], "down"])?;
            std::thread::sleep(Duration::from_millis(50));
            if !bonded.scene.status()?.uplinks[0].up {
                break;
            }
            ensure!(Instant::now() < until, "the link is said to be up");
        }
        bonded.sends_on(&[false, true])?;
        let seen = bonded.flows()?;
        ensure!(seen == [0, 256], "{bond:?}: {seen:?}");
        bonded.comes_in(1)?;
        bonded.scene.net.ip(&["link", "set", TAPS[0], "up"])?;
        bonded.sends_on(&both)?;
        if bond != BondMode::ActiveBackup {
            bonded.comes_in(0)?;
        }
        bonded.comes_in(1)?;
        // Under traffic, a frame each millisecond. The machine may be busy with others: what counts is the best of a few.
        let mut best = Duration::MAX;
        for round in 0..8 {
            let (down, up) = if round % 2 == 0 { (1, 0) } else { (0, 1) };
            best = best.min(bonded.silence(down)?);
            if best < Duration::from_millis(100) {
                break;
            }
            bonded.scene.net.ip(&["link", "set", TAPS[down], "up"])?;
            let wanted = if bond == BondMode::ActiveBackup { [up == 0, up == 1] } else { [true, true] };
            bonded.sends_on(&wanted)?;
        }
        ensure!(best < Duration::from_millis(100), "{bond:?}: nothing came out for {best:?}");
    }
    Ok(())
}

impl Bonded {
    /// Takes a link down while a frame of each of 16 flows leaves each millisecond. Returns how long it took until all of them came out
    /// of the other one.
    fn silence(&mut self, down: usize) -> Result<Duration> {
        let frames: Vec<_> = (0..16).map(|seed| finished(&Packet { seed, ..Packet::new(40) })).collect();
        let mut bytes = vec![0; 2048];
        self.scene.net.ip(&["link", "set", TAPS[down], "down"])?;
        let begun = Instant::now();
        let mut missing: Vec<u8> = (0..16).collect();
        while !missing.is_empty() {
            if begun.elapsed() > SOON {
                bail!("flows {missing:?} do not come out of {}", TAPS[1 - down]);
            }
            for frame in &frames {
                send(&mut self.scene.guests[0], frame, &NetHeader::default())?;
            }
            std::thread::sleep(Duration::from_millis(1));
            while let Ok(Some(len)) = self.wires[1 - down].receive(&mut bytes) {
                // The last byte of the source address.
                missing.retain(|flow| len < 30 || bytes[29] != *flow);
            }
        }
        Ok(begun.elapsed())
    }
}

#[test]
fn a_bond_that_cannot_be_is_refused_and_leaves_nothing() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("bond-refuse", &nic(1, &[]), 0)?;
    let mut add = |uplinks: &[&str]| {
        let spec = NicSpec { name: "nic1".parse()?, ..nic(1, uplinks) };
        scene.lane.client()?.ask(ringspan_protocol::Request::NicAdd(Box::new(spec)))
    };
    let null = "vdev:net_null0";
    ensure!(add(&[null, null]).is_err(), "one device twice");
    ensure!(add(&[null, "vdev:net_nosuchthing0"]).is_err());
    ensure!(add(&[null, "vdev:net_null1", "vdev:net_null2"]).is_err());
    add(&[null, "vdev:net_null1"])?;
    Ok(())
}
