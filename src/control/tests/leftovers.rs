//! Nothing is left behind, nothing is shared that must not be, and nobody is told what is not so.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;

use super::{Bench, kind};

#[test]
fn counters_of_a_port_go_with_it_also_when_its_lane_refused_it_or_is_dead() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    bench.add("vm2", "vdev:net_null1").unwrap();
    let pid = bench.lane_pid("main");
    std::fs::create_dir(bench.path("journal")).unwrap();
    let leave = || {
        ["vm1", "vm2", "vm3"].map(|port| std::fs::write(bench.path(&format!("journal/{port}.journal")), "").unwrap())
    };
    let there = || ["vm1", "vm2", "vm3"].map(|port| bench.path(&format!("journal/{port}.journal")).exists());
    leave();
    bench.add("vm3", "vdev:net_null2,refuse=1").unwrap_err();
    assert_eq!(there(), [true, true, false], "after a refusal");

    // A lane that does not come back while its port is removed.
    leave();
    std::fs::write(bench.path("FAKE_LANE_DIES"), "").unwrap();
    kill(Pid::from_raw(pid as i32), Signal::SIGKILL).unwrap();
    bench.until("the lane waits", || {
        (bench.call("lane.list", json!({})).unwrap()[0]["phase"] == "waiting").then_some(())
    });
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    assert_eq!(there(), [false, true, false], "after a removal without a lane");

    leave();
    std::fs::remove_file(bench.path("FAKE_LANE_DIES")).unwrap();
    bench.until("what is wanted nowhere is gone", || (there() == [false, true, false]).then_some(()));
}

#[test]
fn a_second_daemon_does_not_take_the_lanes_of_the_first() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let mut other = Bench::stopped("");
    let at = bench.path("").display().to_string();
    let config = std::fs::read_to_string(other.path("ringspan.toml")).unwrap();
    std::fs::write(other.path("ringspan.toml"), config.replacen('\n', &format!("\nrun_dir = \"{at}\"\n"), 1)).unwrap();
    let error = other.try_boot().unwrap_err();
    assert!(error.contains("another ringspan daemon") && error.contains("control.run_dir"), "{error}");
    assert_eq!(bench.phase("vm1"), "listening");
}

#[test]
fn of_many_who_add_the_same_port_that_may_exist_all_succeed() {
    let bench = Bench::start("");
    bench.lane_pid("main");
    let mut port = bench.port("vm1", "vdev:net_null0");
    port["may_exist"] = json!(true);
    std::thread::scope(|scope| {
        let adders: Vec<_> = (0..8).map(|_| scope.spawn(|| bench.call("port.add", port.clone()))).collect();
        for adder in adders {
            assert_eq!(adder.join().unwrap().unwrap()["phase"], "listening");
        }
    });
}

#[test]
fn a_wait_that_is_over_says_how_the_port_is_in_the_words_of_the_api() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0,ready=1").unwrap();
    let error = bench.call("port.wait", json!({ "name": "vm1", "phase": "closed", "timeout_ms": 1 })).unwrap_err();
    assert_eq!(error["message"], "port vm1 is not closed after 1 ms: it is driver-ready");
}

#[test]
fn two_ports_do_not_share_an_interface_of_the_kernel_whatever_their_lanes() {
    let bench = Bench::start("[[lane]]\nname = \"second\"\ncores = [1]");
    bench.add("vm1", "vdev:net_tap0,iface=up0").unwrap();
    for (device, lane) in [("vdev:net_tap0,iface=up0", "second"), ("vdev:net_tap1,iface=up0", "main")] {
        let mut port = bench.port("vm2", device);
        port["lane"] = json!(lane);
        let error = bench.call("port.add", port).unwrap_err();
        assert_eq!(kind(&error), "busy");
        assert!(error["message"].as_str().unwrap().contains("the port vm1 has the"), "{error}");
    }
    bench.add("vm2", "vdev:net_tap1,iface=up1").unwrap();
}

#[test]
fn a_reload_says_that_the_file_takes_a_run_time_port_over() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let socket = bench.path("vm1.sock").display().to_string();
    bench.write_config(&format!("[[port]]\nname = \"vm1\"\nsocket = \"{socket}\"\ndevice = \"vdev:net_null0\""));
    let job = bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!(job["outcome"], json!(["port vm1 is the file's from now on: it goes when it is taken out there"]));
    bench.write_config("");
    let job = bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!(job["outcome"], json!(["port vm1 removed"]));
}

#[test]
fn a_lane_that_the_file_wants_otherwise_since_a_reload_says_so_until_it_is_restarted() {
    let bench = Bench::start("[dataplane]\ncores = [0]");
    bench.lane_pid("main");
    bench.write_config("[dataplane]\ncores = [1]");
    bench.call("config.reload", json!({ "wait": true })).unwrap();
    let lane = || bench.call("lane.list", json!({})).unwrap()[0].clone();
    let reason = lane()["reason"].as_str().unwrap().to_owned();
    assert!(
        reason.contains("cores [0]") && reason.contains("cores [1]") && reason.contains("lane restart main"),
        "{reason}"
    );
    bench.write_config("[dataplane]\ncores = [0]");
    bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!((&lane()["reason"], &lane()["differs"]), (&json!(null), &json!(false)));
}

#[test]
fn what_is_read_of_a_port_can_be_asked_for_again() {
    let bench = Bench::start("");
    let mut port = bench.port("vm1", "vdev:net_null0,size=64");
    for (key, value) in [("socket_owner", "root:root"), ("socket_mode", "0660"), ("mac", "52:54:00:00:00:07")] {
        port[key] = json!(value);
    }
    let mut spec = bench.call("port.add", port).unwrap()["spec"].clone();
    assert_eq!((&spec["socket_owner"], &spec["socket_mode"]), (&json!("0:0"), &json!("0660")));
    spec["may_exist"] = json!(true);
    bench.call("port.add", spec).unwrap();
}
