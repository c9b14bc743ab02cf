//! Receive side scaling by a NIC that has it: flows that come in are spread over a port's queue pairs, each stays on one, and in its order.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ringspan_protocol::{PortPhase, PortSpec, Spread};
use ringspan_testkit::guest::{Guest, Kind};
use ringspan_testkit::packet::Packet;

use super::checks::{options, take};
use super::inside::Host;

const PAIRS: u16 = 2;
/// Flows by their source address, the last byte of which is their number; half of them are UDP.
const FLOWS: u8 = 64;
/// Frames of each.
const EACH: u32 = 20;
const SOON: Duration = Duration::from_secs(20);

/// Frame `number` of a flow.
fn frame(flow: u8, number: u32) -> Vec<u8> {
    let packet = Packet { seed: flow, udp: flow.is_multiple_of(2), ecn: false, ..Packet::new(64) };
    let mut frame = packet.frame();
    let payload = packet.header_len();
    frame[payload..payload + 4].copy_from_slice(&number.to_be_bytes());
    frame
}

/// What a frame of ours says that it is.
fn claims(frame: &[u8]) -> Option<(u8, u32)> {
    let ours = frame.len() > 60 && frame[12..14] == [8, 0] && frame[26..29] == [192, 0, 2];
    ours.then(|| {
        let payload = if frame[23] == 17 { 42 } else { 54 };
        (frame[29], u32::from_be_bytes([frame[payload], frame[payload + 1], frame[payload + 2], frame[payload + 3]]))
    })
}

/// The check, of a port `vm` that is there before and after.
pub fn over_two_pairs(host: &mut Host) -> Result<()> {
    host.lane.remove("vm")?;
    let spec = PortSpec { queues: PAIRS, ..host.spec("vm", &host.nic) };
    let device = host.lane.add(&spec)?.device;
    ensure!((device.queues, device.spread) == (PAIRS, Spread::Rss), "{device:?}");
    host.lane.wait_port("vm", Duration::from_secs(30), |port| port.device.link_up)?;
    for kind in [Kind::Split, Kind::Packed] {
        let before = host.lane.totals("vm")?.1.sent;
        let mut guest = Guest::start(options(host, kind).pairs(PAIRS))?;
        let mut pair_of = BTreeMap::new();
        for number in 0..EACH {
            for flow in 1..=FLOWS {
                ensure!(host.far.send(&frame(flow, number))?, "the far end is full");
            }
            let (start, mut arrived) = (Instant::now(), 0);
            while arrived < usize::from(FLOWS) {
                arrived += receive(&mut guest, number, &mut pair_of)?;
                ensure!(start.elapsed() < SOON, "{arrived} of {FLOWS} frames of round {number} arrived");
            }
        }
        let on = |pair: usize| pair_of.values().filter(|on| **on == pair).count();
        let (first, second) = (on(0), on(1));
        host.say(&format!(
            "    {kind:?}: of {FLOWS} flows of {EACH} frames {first} on the first pair, {second} on the second"
        ));
        ensure!(first > 0 && second > 0, "not spread: {pair_of:?}");
        let all = u64::from(FLOWS) * u64::from(EACH);
        let (_, to) = host.lane.wait_totals("vm", |_, to| to.sent >= before + all)?;
        ensure!(to.drops.total() == 0, "{to:?}");
        drop(guest);
        host.lane.wait_port("vm", SOON, |port| port.phase == PortPhase::Listening)?;
    }
    host.lane.remove("vm")?;
    take(host)
}

/// Takes what has come of this round, and notes on which pair. Returns how many frames that were.
fn receive(guest: &mut Guest, round: u32, pair_of: &mut BTreeMap<u8, usize>) -> Result<usize> {
    let (mut bytes, mut count) = (vec![0; 1 << 14], 0);
    for (pair, rx) in guest.rx.iter_mut().enumerate() {
        let mut fault = Ok(());
        rx.receive(64, |received| {
            received.copy_to(&mut bytes);
            let got = &bytes[..received.length()];
            let Some((flow, number)) = claims(got) else { return };
            count += 1;
            let on = *pair_of.entry(flow).or_insert(pair);
            let is_right = got == frame(flow, number) && number == round && on == pair;
            if !is_right && fault.is_ok() {
                fault = Err(anyhow::anyhow!(
                    "frame {number} of flow {flow} in round {round} on pair {pair}, those before on {on}"
                ));
            }
        });
        fault?;
    }
    Ok(count)
}
