//! Frames that come to the NIC in memory of a guest's, which is lent and not given.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use ringspan_protocol::{Action, NicPort, ZeroCopy};
use ringspan_testkit::guest::{Guest, NetHeader, Options};
use ringspan_testkit::needs;
use ringspan_testkit::packet::Packet;

use crate::kit::{Scene, nic, receive, rule};
use crate::{VF0, finished, out};

#[test]
fn what_a_rule_changes_is_not_changed_in_the_memory_of_the_guest_that_sent_it() -> Result<()> {
    needs!(Root, Lane);
    let mut scene = Scene::new("snic-lent", &nic(1, &["patch:lent/a"]), 1)?;
    let mut spec = scene.lane.spec("far", "patch:lent/b", 1);
    (spec.zero_copy, spec.zero_copy_from) = (ZeroCopy::Always, Some(0));
    scene.lane.add(&spec)?;
    let mut far = Guest::start(Options::new(spec.socket))?;
    let set = Action::Set("eth_src=02:00:00:00:00:01".parse()?);
    scene.install(vec![rule(1, NicPort::Uplink, &["eth_type=0x800"], vec![set, Action::DecTtl, out(VF0)])])?;
    let frame = finished(&Packet::new(1000));
    // Each buffer is written once, and sent several times.
    let ring = 1024;
    for number in 0..2 * ring {
        let until = Instant::now() + Duration::from_secs(10);
        while far.tx[0].transmit(1, |_, room| {
            room.put_header(&NetHeader::default());
            if number < ring {
                room.put(0, &frame);
            }
            frame.len()
        }) == 0
        {
            ensure!(Instant::now() < until, "the ring stays full");
            far.tx[0].reclaim();
        }
        far.tx[0].ring().kick();
        let (_, got) = receive(&mut scene.guests[0])?;
        ensure!(got[22] == frame[22] - 1, "frame {number} has a time to live of {}", got[22]);
        ensure!(got[26..] == frame[26..], "frame {number} has other contents");
        far.tx[0].reclaim();
    }
    let (sent, _) = scene.lane.wait_totals("far", |from, _| from.sent == 2 * ring as u64)?;
    ensure!(sent.zero_copied == 2 * ring as u64, "{sent:?}");
    let uplink = scene.port(NicPort::Uplink)?;
    ensure!(uplink.hits == 2 * ring as u64, "{uplink:?}");
    scene.adds_up()
}
