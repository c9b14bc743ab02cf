//! A lane with two workers: what one has too much of goes to the other, while packets flow.

use std::time::Duration;

use anyhow::{Result, ensure};
use ringspan_protocol::{LaneEventKind, LaneLoad, Reply, Request};
use ringspan_testkit::guest::loopback::Plan;
use ringspan_testkit::guest::{Guest, Kind, Options, Traffic};
use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::{needs, over_both, paths};

const SOON: Duration = Duration::from_secs(30);

over_both!(a_worker_with_too_much_gives_some_away_and_no_frame_is_lost_doubled_or_late);

/// A lane with two workers that are compared every 20 ms.
fn lane(folder: &std::path::Path) -> Result<Lane> {
    let more = vec!["--rebalance-ms".into(), "20".into()];
    Lane::start(lane::Options { cores: "0,1".into(), more, ..lane::Options::new("even") }, folder)
}

fn load(lane: &mut Lane) -> Result<LaneLoad> {
    match lane.client()?.ask(Request::LaneLoad)? {
        Reply::Load(load) => Ok(load),
        other => anyhow::bail!("lane-load was answered by {other:?}"),
    }
}

fn a_worker_with_too_much_gives_some_away_and_no_frame_is_lost_doubled_or_late(kind: Kind) -> Result<()> {
    needs!(Root, Lane);
    if std::thread::available_parallelism()?.get() < 2 {
        println!("skipped: one core");
        return Ok(());
    }
    let folder = paths::scratch()?;
    let mut lane = lane(folder.path())?;
    // New ports go where there are fewest: every second one to the first worker. The others are taken away again.
    for (name, device) in [
        ("busy0", "vdev:net_null0"),
        ("away0", "vdev:net_null1,no-rx=1"),
        ("busy1", "vdev:net_null2"),
        ("away1", "vdev:net_null3,no-rx=1"),
    ] {
        lane.add_port(name, device, 1)?;
    }
    let socket = lane.add_port("vm", "vdev:net_ring0", 1)?;
    lane.remove("away0")?;
    lane.remove("away1")?;
    let traffic =
        Traffic::start(vec![Guest::start(Options::new(socket).over(kind))?], Plan { burst: 16, ..Plan::new(0, 32) });
    traffic.wait_more(1000, SOON)?;

    // Both always have frames, of the device's making, and nobody to give them to.
    let is_move = |event: &LaneEventKind| matches!(event, LaneEventKind::ShareMoved { .. });
    let mut moved = Err(anyhow::anyhow!("nothing was moved"));
    for name in ["busy0", "busy1", "vm"] {
        moved = moved.or_else(|_| lane.wait_event(name, Duration::from_secs(3), is_move));
    }
    moved?;
    ensure!(load(&mut lane)?.moves > 0);
    traffic.wait_more(5000, SOON)?;
    // It has come to rest, with the two apart, or one of them with the guest.
    let moves = load(&mut lane)?.moves;
    ensure!(moves <= 4, "{moves} moves");
    ensure!(load(&mut lane)?.workers.iter().all(|worker| worker.shares > 0), "{:?}", load(&mut lane)?);

    let passed = traffic.stop()?;
    lane.wait_totals("vm", |from, to| {
        let sums = (from.received, from.sent, to.received, to.sent, from.drops.total() + to.drops.total());
        sums == (passed[0].frames, passed[0].frames, passed[0].frames, passed[0].frames, 0)
    })?;
    Ok(())
}
