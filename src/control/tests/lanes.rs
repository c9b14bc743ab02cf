//! Lanes live longer than the daemon, and are started again when they die.

use std::time::Instant;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Bench, kind};
use crate::control::Ending;

pub(super) fn kill_now(pid: i64) {
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
}

/// Makes a process hang, and waits until all its threads do.
pub(super) fn freeze(bench: &Bench, pid: i64) {
    kill(Pid::from_raw(pid as i32), Signal::SIGSTOP).unwrap();
    bench.until("the process stands still", || {
        let mut threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
        let stopped = |path: std::path::PathBuf| {
            let status = std::fs::read_to_string(path.join("status")).unwrap_or_default();
            status.lines().any(|line| line.starts_with("State:\tT"))
        };
        threads.all(|thread| stopped(thread.unwrap().path())).then_some(())
    });
}

#[test]
fn a_lane_goes_on_without_the_daemon_and_is_adopted_with_its_ports() {
    let mut bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let pid = bench.lane_pid("main");
    bench.stop(Ending::LeaveLanes);
    bench.boot();
    assert_eq!(bench.lane_pid("main"), pid);
    assert_eq!(bench.phase("vm1"), "listening");
    let lanes = bench.call("lane.list", json!({})).unwrap();
    assert_eq!(lanes[0]["adopted"], true);
    // Adopted, it is watched like one of our own.
    kill_now(pid);
    bench.until("another lane has the port", || (bench.phase("vm1") == "listening").then_some(()));
    assert_ne!(bench.lane_pid("main"), pid);
}

#[test]
fn a_lane_that_hangs_in_its_start_is_restarted_when_somebody_asks_for_it() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let pid = bench.lane_pid("main");
    let (program, good) = (bench.path("fake-lane"), bench.path("good-lane"));
    std::fs::rename(&program, &good).unwrap();
    let begun = bench.path("begun");
    let hangs = format!("#!/bin/sh\necho x > '{}'\nexec sleep 300\n", begun.display());
    // Renamed into place, so that it is never executed while it is open for writing.
    std::fs::write(bench.path("fake-lane.new"), hangs).unwrap();
    std::fs::set_permissions(bench.path("fake-lane.new"), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    std::fs::rename(bench.path("fake-lane.new"), &program).unwrap();
    kill_now(pid);
    bench.until("the one that hangs is started", || begun.exists().then_some(()));
    std::fs::rename(&good, &program).unwrap();
    bench.call("lane.restart", json!({ "name": "main", "wait": true })).unwrap();
    bench.until("the port is back", || (bench.phase("vm1") == "listening").then_some(()));
}

#[test]
fn a_dead_lane_is_started_again_at_once_and_has_its_ports_back() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let before = bench.call("port.stats", json!({ "name": "vm1" })).unwrap();
    let pid = bench.lane_pid("main");
    let killed = Instant::now();
    kill_now(pid);
    bench.until("the lane is another", || {
        let lanes = bench.call("lane.list", json!({})).unwrap();
        (lanes[0]["deaths"] == 1 && lanes[0]["phase"] == "up").then_some(())
    });
    bench.until("the port is back", || (bench.phase("vm1") == "listening").then_some(()));
    println!("port back {:?} after the kill", killed.elapsed());
    assert_eq!(bench.call("port.stats", json!({ "name": "vm1" })).unwrap(), before);
    let events = bench.events_after(0);
    let died = events.iter().find(|event| event["event"] == "lane-died").expect("a lane-died event");
    assert_eq!((&died["pid"], &died["lane"]), (&json!(pid), &json!("main")));
}

#[test]
fn a_lane_that_cannot_start_is_named_with_its_last_words_and_tried_again() {
    let bench = Bench::stopped("");
    std::fs::write(bench.path("FAKE_LANE_DIES"), "").unwrap();
    let mut bench = bench;
    bench.boot();
    let error = bench.add("vm1", "vdev:net_null0").unwrap_err();
    assert_eq!(kind(&error), "lane-down");
    assert!(error["message"].as_str().unwrap().contains("no hugepages"), "{error}");
    // Nothing needs it any more; why it did not start stays said.
    let lane = bench.until("the lane is left alone", || {
        let lanes = bench.call("lane.list", json!({})).unwrap();
        (lanes[0]["phase"] == "idle").then(|| lanes[0].clone())
    });
    assert!(lane["reason"].as_str().unwrap().contains("no hugepages"), "{lane}");
    assert_eq!(bench.call("port.list", json!({})).unwrap(), json!([]));
    std::fs::remove_file(bench.path("FAKE_LANE_DIES")).unwrap();
    bench.lane_pid("main");
    bench.add("vm1", "vdev:net_null0").unwrap();
}

#[test]
fn a_device_that_kills_the_lane_does_not_stay_and_kill_it_again() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let error = bench.add("vm2", "vdev:net_null1,die=1").unwrap_err();
    assert_eq!(kind(&error), "lane-down");
    bench.until("the first port is back", || (bench.phase("vm1") == "listening").then_some(()));
    assert_eq!(bench.call("port.list", json!({})).unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn a_lane_of_another_version_is_left_alone_until_it_is_restarted() {
    let mut bench = Bench::stopped("");
    std::fs::write(bench.path("FAKE_LANE_VERSION"), "99").unwrap();
    let socket = bench.path("vm0.sock");
    bench.write_config(&format!("[[port]]\nname = \"vm0\"\nsocket = {socket:?}\ndevice = \"vdev:net_null9\""));
    bench.boot();
    let lane = bench.until("the lane is found", || {
        let lanes = bench.call("lane.list", json!({})).unwrap();
        (lanes[0]["phase"] == "other-version").then(|| lanes[0].clone())
    });
    let error = bench.add("vm1", "vdev:net_null0").unwrap_err();
    assert_eq!(kind(&error), "version");
    assert!(error["message"].as_str().unwrap().contains("ringspan lane restart main"), "{error}");
    std::fs::remove_file(bench.path("FAKE_LANE_VERSION")).unwrap();
    let job = bench.call("lane.restart", json!({ "name": "main", "wait": true })).unwrap();
    assert_eq!(job["state"], "done", "{job}");
    assert_ne!(json!(bench.lane_pid("main")), lane["pid"]);
    bench.add("vm1", "vdev:net_null0").unwrap();
}

#[test]
fn a_lane_with_other_cores_than_the_file_says_goes_on_and_is_put_right_by_a_restart() {
    let mut bench = Bench::start("[dataplane]\ncores = [0]");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let pid = bench.lane_pid("main");
    bench.stop(Ending::LeaveLanes);
    bench.write_config("[dataplane]\ncores = [1]");
    bench.boot();
    assert_eq!(bench.lane_pid("main"), pid);
    let lanes = bench.call("lane.list", json!({})).unwrap();
    assert_eq!(lanes[0]["differs"], true, "{lanes}");
    let job = bench.call("lane.restart", json!({ "name": "main", "wait": true })).unwrap();
    assert_eq!(job["state"], "done", "{job}");
    let lanes = bench.call("lane.list", json!({})).unwrap();
    assert_eq!((&lanes[0]["differs"], &lanes[0]["info"]["cores"]), (&json!(false), &json!([1])));
    assert_eq!(bench.phase("vm1"), "listening");
}

#[test]
fn ports_go_to_the_lane_with_the_fewest_and_a_full_house_is_refused() {
    let bench = Bench::start("[[lane]]\nname = \"second\"\ncores = [1]");
    bench.lane_pid("main");
    bench.lane_pid("second");
    let lanes: Vec<_> =
        (0..8).map(|n| bench.add(&format!("vm{n}"), &format!("vdev:net_null{n}")).unwrap()["lane"].clone()).collect();
    assert_eq!(lanes.iter().filter(|lane| **lane == "main").count(), 4, "{lanes:?}");
    let error = bench.add("vm8", "vdev:net_null8").unwrap_err();
    assert_eq!(kind(&error), "no-room");
    assert!(error["message"].as_str().unwrap().contains("add a [[lane]]"), "{error}");
}

#[test]
fn the_daemon_that_is_told_to_shuts_its_lanes_down() {
    let mut bench = Bench::start("");
    bench.lane_pid("main");
    bench.call("daemon.stop", json!({ "lanes": true })).unwrap();
    let running = bench.running.take().unwrap();
    assert_eq!(running.ended.lock().unwrap().recv_timeout(super::SOON), Ok(Ending::StopLanes));
    running.daemon.stop(Ending::StopLanes);
    running.closer.close();
    let lock = std::fs::File::open(bench.path("lane-main.lock")).unwrap();
    assert!(nix::fcntl::Flock::lock(lock, nix::fcntl::FlockArg::LockExclusiveNonblock).is_ok(), "the lane runs");
    assert!(!bench.path("c.sock").exists());
}

#[test]
fn a_lane_that_hangs_holds_nobody_up_for_long_and_is_replaced_when_asked() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let pid = bench.lane_pid("main");
    freeze(&bench, pid);
    let asked = Instant::now();
    // Many ask at once, and do not wait for one another.
    let ports = std::thread::scope(|scope| {
        let readers: Vec<_> = (0..6).map(|_| scope.spawn(|| bench.call("port.list", json!({})).unwrap())).collect();
        readers.into_iter().map(|reader| reader.join().unwrap()).next_back().unwrap()
    });
    assert!(asked.elapsed().as_secs() < 9, "{:?}", asked.elapsed());
    assert_eq!(ports[0]["phase"], "lane-down");
    assert!(ports[0]["reason"].as_str().unwrap().contains("ringspan lane restart main"), "{ports}");
    let lanes = bench.call("lane.list", json!({})).unwrap();
    assert!(lanes[0]["reason"].as_str().unwrap().contains("does not answer"), "{lanes}");
    let job = bench.call("lane.restart", json!({ "name": "main", "wait": true })).unwrap();
    assert_eq!(job["state"], "done", "{job}");
    assert_ne!(bench.lane_pid("main"), pid);
    assert_eq!(bench.phase("vm1"), "listening");
}

#[test]
fn a_lane_that_hung_before_the_daemon_came_is_named_and_replaced_when_asked() {
    let mut bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let pid = bench.lane_pid("main");
    bench.stop(Ending::LeaveLanes);
    freeze(&bench, pid);
    bench.boot();
    let lane = bench.until("the lane is found to hang", || {
        let lanes = bench.call("lane.list", json!({})).unwrap();
        (lanes[0]["phase"] == "waiting").then(|| lanes[0].clone())
    });
    assert!(lane["reason"].as_str().unwrap().contains("ringspan lane restart main"), "{lane}");
    let job = bench.call("lane.restart", json!({ "name": "main", "wait": true })).unwrap();
    assert_eq!(job["state"], "done", "{job}");
    bench.until("the port is back", || (bench.phase("vm1") == "listening").then_some(()));
    assert_ne!(bench.lane_pid("main"), pid);
}

#[test]
fn a_lane_that_is_in_no_file_and_has_no_port_is_shut_down_and_one_with_ports_is_kept() {
    let mut bench = Bench::start("[[lane]]\nname = \"b\"\ncores = [1]\n[[lane]]\nname = \"c\"\ncores = [2]\n");
    let mut port = bench.port("vm1", "vdev:net_null0");
    port["lane"] = json!("b");
    bench.call("port.add", port).unwrap();
    let (b, c) = (bench.lane_pid("b"), bench.lane_pid("c"));
    bench.stop(Ending::LeaveLanes);
    bench.write_config("");
    bench.boot();
    assert_eq!(bench.lane_pid("b"), b);
    bench.until("the lane without ports is gone", || {
        let state = std::fs::read_to_string(format!("/proc/{c}/stat")).unwrap_or_default();
        (state.is_empty() || state.contains(") Z")).then_some(())
    });
    // Dead, it is started as it last ran, because its port is still wanted.
    kill_now(b);
    bench.until("the port is back", || (bench.phase("vm1") == "listening").then_some(()));
    let lanes = bench.call("lane.list", json!({})).unwrap();
    let names: Vec<_> = lanes.as_array().unwrap().iter().map(|lane| (&lane["name"], &lane["configured"])).collect();
    assert_eq!(names, [(&json!("b"), &json!(false)), (&json!("main"), &json!(true))]);
    assert_eq!(lanes[0]["info"]["cores"], json!([1]));
}

#[test]
fn a_port_of_a_lane_that_is_nowhere_any_more_can_be_removed() {
    let lane = "[[lane]]\nname = \"b\"\ncores = [1]\n";
    let mut bench = Bench::start(lane);
    let mut port = bench.port("vm1", "vdev:net_null0");
    port["lane"] = json!("b");
    bench.call("port.add", port).unwrap();
    bench.stop(Ending::StopLanes);
    // As after a start of the host.
    let _ = std::fs::remove_file(bench.path("lane-b.sock"));
    bench.write_config("");
    bench.boot();
    assert_eq!(bench.phase("vm1"), "lane-down");
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    assert_eq!(bench.call("port.list", json!({})).unwrap(), json!([]));
}

#[test]
fn a_lane_starts_when_the_first_port_needs_it_and_not_before() {
    let mut bench = Bench::start("[[lane]]\nname = \"second\"\ncores = [1]");
    let phase = |bench: &Bench, number: usize| bench.call("lane.list", json!({})).unwrap()[number]["phase"].clone();
    for number in [0, 1] {
        bench.until("the lane is left alone", || (phase(&bench, number) == "idle").then_some(()));
    }
    assert!(!bench.path("lane-main.sock").exists() && !bench.path("lane-second.sock").exists());
    let lanes = bench.call("lane.list", json!({})).unwrap();
    assert_eq!((&lanes[0]["pid"], &lanes[0]["reason"]), (&json!(0), &json!(null)), "{lanes}");
    // What asks about ports and devices does not wait for a lane.
    assert_eq!(bench.call("port.list", json!({})).unwrap(), json!([]));
    bench.call("device.list", json!({})).unwrap();
    let mut port = bench.port("vm1", "vdev:net_null0");
    port["lane"] = json!("second");
    bench.call("port.add", port).unwrap();
    assert_eq!((phase(&bench, 0), phase(&bench, 1)), (json!("idle"), json!("up")));
    assert_eq!(bench.phase("vm1"), "listening");
    // The next daemon finds that one, and leaves the other alone as well.
    let pid = bench.lane_pid("second");
    bench.stop(Ending::LeaveLanes);
    bench.boot();
    assert_eq!(bench.lane_pid("second"), pid);
    bench.until("the lane is left alone", || (phase(&bench, 0) == "idle").then_some(()));
    // Without a port it goes on: guests come again. When it dies then, it is not started for nobody.
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    assert_eq!(phase(&bench, 1), "up");
    kill_now(pid);
    bench.until("the lane is left alone", || (phase(&bench, 1) == "idle").then_some(()));
}

#[test]
fn a_port_that_comes_with_the_file_starts_its_lane() {
    let bench = Bench::start("");
    bench.until("the lane is left alone", || {
        (bench.call("lane.list", json!({})).unwrap()[0]["phase"] == "idle").then_some(())
    });
    let port = format!("[[port]]\nname = \"vm1\"\nsocket = {:?}\ndevice = \"vdev:net_null0\"", bench.path("vm1.sock"));
    bench.write_config(&port);
    let job = bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!(job["state"], "done", "{job}");
    assert_eq!(bench.phase("vm1"), "listening");
}
