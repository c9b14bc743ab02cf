//! Several who change things at once, and lanes that die in the middle.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Bench, kind};

#[test]
fn of_many_who_add_the_same_port_one_succeeds() {
    let bench = Bench::start("");
    bench.lane_pid("main");
    let answers: Vec<_> = std::thread::scope(|scope| {
        let adders: Vec<_> = (0..8).map(|_| scope.spawn(|| bench.add("vm1", "vdev:net_null0"))).collect();
        adders.into_iter().map(|adder| adder.join().unwrap()).collect()
    });
    assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), 1);
    assert!(answers.iter().filter_map(|answer| answer.as_ref().err()).all(|error| kind(error) == "exists"));
}

#[test]
fn what_was_answered_is_so_whatever_happens_to_the_lane_meanwhile() {
    let bench = Bench::start("");
    bench.lane_pid("main");
    let (done, answered) = (AtomicBool::new(false), AtomicUsize::new(0));
    let kept: Vec<String> = std::thread::scope(|scope| {
        let workers = (0..3).map(|worker| {
            let (bench, done, answered) = (&bench, &done, &answered);
            scope.spawn(move || {
                let (name, device) = (format!("vm{worker}"), format!("vdev:net_null{worker}"));
                let mut there = false;
                while !done.load(Ordering::Relaxed) {
                    // A change that fails leaves things as they were; one that is answered is done.
                    let changed = match there {
                        false => bench.add(&name, &device).map(drop),
                        true => bench.call("port.remove", json!({ "name": name })).map(drop),
                    };
                    there ^= changed.is_ok();
                    answered.fetch_add(usize::from(changed.is_ok()), Ordering::Relaxed);
                }
                there.then_some(name)
            })
        });
        let workers: Vec<_> = workers.collect();
        for round in 0..6 {
            let pid = bench.lane_pid("main");
            // In the midst of changes: after another number of them each time.
            let enough = answered.load(Ordering::Relaxed) + 5 + 3 * round;
            bench.until("changes", || (answered.load(Ordering::Relaxed) >= enough).then_some(()));
            let _ = kill(Pid::from_raw(pid as i32), Signal::SIGKILL);
            bench.until("the lane's death is noticed", || {
                (bench.call("lane.list", json!({})).unwrap()[0]["pid"] != pid).then_some(())
            });
        }
        done.store(true, Ordering::Relaxed);
        workers.into_iter().filter_map(|worker| worker.join().unwrap()).collect()
    });
    bench.until("the ports are as they were answered", || {
        let ports = bench.call("port.list", json!({})).unwrap();
        let ports = ports.as_array().unwrap();
        let names: Vec<_> = ports.iter().map(|port| port["name"].as_str().unwrap()).collect();
        assert_eq!(names, kept);
        ports.iter().all(|port| port["phase"] == "listening").then_some(())
    });
}
