//! As many VFs as a distribution's DPDK has room for beside the rest, with a guest on each, all busy at once.

use anyhow::{Context, Result, ensure};
use ringspan_protocol::{Action, NicPort, ReceiveWake};
use ringspan_testkit::guest::NetHeader;
use ringspan_testkit::guest::loopback::{claims, make};
use ringspan_testkit::needs;

use crate::kit::{self, Scene, rule};

const VFS: u16 = 24;
const ROUNDS: u64 = 200;
const LENGTH: usize = 200;

#[test]
fn twenty_four_guests_on_one_nic_each_reach_the_next_and_nobody_else() -> Result<()> {
    needs!(Root, Ringspan);
    let mut scene = Scene::new("soft-many", &kit::nic(VFS, &[]), usize::from(VFS))?;
    // The switch rings their bells: no guest waits for a timer.
    for vf in 0..VFS {
        let device = scene.lane.port(&format!("vm{vf}"))?.device;
        ensure!(device.receive_wake == ReceiveWake::Event, "VF {vf}: {device:?}");
    }
    let next = |vf: u16| (vf + 1) % VFS;
    let rules = (0..VFS).map(|vf| rule(vf.into(), NicPort::Vf(vf), &[], vec![Action::Output(NicPort::Vf(next(vf)))]));
    scene.install(rules.collect())?;
    let mut frame = [0; LENGTH];
    for round in 0..ROUNDS {
        for vf in 0..VFS {
            make(&mut frame, vf, round);
            kit::send(&mut scene.guests[usize::from(vf)], &frame, &NetHeader::default())?;
        }
        for vf in 0..VFS {
            let (_, got) = kit::receive(&mut scene.guests[usize::from(next(vf))])
                .with_context(|| format!("frame {round} of VF {vf}"))?;
            ensure!(claims(&got) == Some((vf, round)), "VF {} got {:?}", next(vf), claims(&got));
            make(&mut frame, vf, round);
            ensure!(got == frame, "frame {round} of VF {vf} was changed");
        }
    }
    for counters in scene.counters()? {
        ensure!(counters.packets == ROUNDS, "{counters:?}");
    }
    scene.adds_up()
}
