//! Frames that are cut stay among those before and behind them, however many there are.

use anyhow::{Result, ensure};
use ringspan_protocol::{Action, NicMode, NicSpec, VfSettings};
use ringspan_testkit::guest::{Guest, NetHeader, Options, feature};
use ringspan_testkit::needs;
use ringspan_testkit::packet::Packet;

use crate::kit::{Scene, arrives, nic, nothing, receive, rule};
use crate::{IPV4, VF0, VF1, finished, out};

fn large(options: Options) -> Options {
    Options { tx_room: 65_600, ring_size: 64, rx_room: 65_600, ..options }
        .with(feature::HOST_OFFLOADS | feature::GUEST_OFFLOADS)
}

/// Frames that the guest puts on its ring before it says so.
fn send_together(guest: &mut Guest, frames: &[(NetHeader, Vec<u8>)]) {
    let sent = guest.tx[0].transmit(frames.len(), |place, room| {
        let (header, frame) = &frames[place];
        room.put_header(header);
        room.put(0, frame);
        frame.len()
    });
    assert_eq!(sent, frames.len());
    guest.tx[0].ring().kick();
}

#[test]
fn a_large_frame_that_is_cut_stays_between_the_small_ones_around_it() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::with("snic-order", &nic(2, &[]), 2, large)?;
    scene.install(vec![rule(1, VF0, &["eth_type=0x800"], vec![Action::DecTtl, out(VF1)])])?;
    let (packet, mss, segments) = (Packet { ecn: false, ..Packet::new(20_000) }, 1000, 20);
    let whole = (packet.segment_header(mss), packet.frame());
    let small = |len| (NetHeader::default(), finished(&Packet::new(len)));
    for _ in 0..3 {
        send_together(&mut scene.guests[0], &[small(1), small(2), whole.clone(), small(3), whole.clone(), small(4)]);
        let header = packet.header_len();
        let mut wanted = vec![header + 1, header + 2];
        wanted.extend([header + mss; 20]);
        wanted.push(header + 3);
        wanted.extend([header + mss; 20]);
        wanted.push(header + 4);
        let mut got = Vec::new();
        while got.len() < 2 * segments + 4 {
            got.push(receive(&mut scene.guests[1])?.1.len());
        }
        ensure!(got == wanted, "lengths in the order in which they came: {got:?}");
        scene.guests[0].tx[0].reclaim();
    }
    scene.adds_up()
}

#[test]
fn a_copy_for_many_stays_behind_the_frames_that_came_before_it() -> Result<()> {
    needs!(Root, Lane);
    let mac = |vf: u16| format!("02:00:00:00:00:{vf:02x}").parse().ok();
    let vf = (0..3).map(|vf| VfSettings { mac: mac(vf), ..VfSettings::new(vf) }).collect();
    for (label, spec) in
        [("snic-copies", nic(3, &[])), ("snic-legacy", NicSpec { mode: NicMode::Legacy, vf, ..nic(3, &[]) })]
    {
        let mut scene = Scene::with(label, &spec, 3, |options| options)?;
        if spec.mode == NicMode::Switchdev {
            scene.install(vec![
                rule(1, VF0, &["eth_dst=02:00:00:00:00:01"], vec![out(VF1)]),
                rule(2, VF0, &["eth_dst=ff:ff:ff:ff:ff:ff"], vec![out(VF1), out(crate::NicPort::Vf(2))]),
            ])?;
        }
        let frames: Vec<_> = (0..16)
            .map(|at| {
                let mut frame = finished(&Packet::new(100 + at));
                frame[..12].copy_from_slice(&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 0]);
                if at % 4 == 3 {
                    frame[..6].fill(0xff);
                }
                (NetHeader::default(), frame)
            })
            .collect();
        send_together(&mut scene.guests[0], &frames);
        for (at, (_, frame)) in frames.iter().enumerate() {
            let got = receive(&mut scene.guests[1])?.1;
            ensure!(got == *frame, "{label}: frame {at} is one of {} bytes, not {}", got.len(), frame.len());
        }
        scene.adds_up()?;
    }
    Ok(())
}

#[test]
fn a_large_frame_whose_time_to_live_is_over_goes_to_the_slow_path_in_right_segments() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::with("snic-unfit", &nic(2, &[]), 2, large)?;
    let slow = scene.far("nic0_vf0", IPV4)?;
    scene.install(vec![rule(1, VF0, &["eth_type=0x800"], vec![Action::DecTtl, out(VF1)])])?;
    let (packet, mss, segments) = (Packet { ecn: false, ..Packet::new(20_000) }, 1000, 20);
    let mut frame = packet.frame();
    frame[22] = 1;
    send_together(&mut scene.guests[0], &[(packet.segment_header(mss), frame)]);
    for number in 0..segments {
        let segment = arrives(&slow)?;
        packet.check(&segment).map_err(|error| error.context(format!("segment {number}")))?;
        ensure!(segment[22] == 1 && segment.len() == packet.header_len() + mss);
    }
    nothing(&slow)?;
    ensure!(scene.counters()?[0].packets == 0, "a frame that the rule was not applied to is counted");
    scene.adds_up()
}

#[test]
fn a_guest_whose_frames_make_thousands_of_segments_leaves_others_their_turn() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::with("snic-many", &nic(3, &[]), 3, large)?;
    let cut = rule(1, VF0, &["eth_type=0x800"], vec![Action::DecTtl, out(VF1)]);
    let back = rule(2, crate::NicPort::Vf(2), &[], vec![out(VF1)]);
    scene.install(vec![cut, back])?;
    let (packet, mss) = (Packet { ecn: false, ..Packet::new(64_000) }, 256);
    let frames = vec![(packet.segment_header(mss), packet.frame()); 60];
    send_together(&mut scene.guests[0], &frames);
    send_together(&mut scene.guests[2], &[(NetHeader::default(), finished(&Packet::new(7)))]);
    // Most do not fit into the ring of who gets them. All are counted, and what came meanwhile is among them.
    let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        scene.guests[1].rx[0].receive(64, |_| {});
        scene.guests[1].rx[0].ring().kick();
        let port = scene.port(VF0)?;
        if (port.hits, port.segments) == (60, 60 * 249) {
            break;
        }
        ensure!(std::time::Instant::now() < until, "{port:?}");
    }
    scene.adds_up()
}
