//! Ports: wanted, made, kept, and never fought over silently.

use serde_json::json;

use super::{Bench, kind};
use crate::control::Ending;

const VM1_IN_FILE: &str =
    "[[port]]\nname = \"vm1\"\nsocket = \"/tmp/ringspan-test-vm1.sock\"\ndevice = \"vdev:net_null0\"\n";

#[test]
fn a_port_is_added_listed_changed_and_removed() {
    let bench = Bench::start("");
    let added = bench.add("vm1", "vdev:net_null0,size=64").unwrap();
    let seen = (&added["phase"], &added["lane"], &added["origin"]);
    assert_eq!(seen, (&json!("listening"), &json!("main"), &json!("run-time")));
    let changed = bench.call("port.set", json!({ "name": "vm1", "mtu": 9000 })).unwrap();
    assert_eq!((&changed["spec"]["mtu"], &changed["status"]["spec"]["mtu"]), (&json!(9000), &json!(9000)));
    let stats = bench.call("port.stats", json!({})).unwrap();
    assert_eq!((&stats[0]["current"], &stats[0]["totals"]["from_guest"]["received"]), (&json!(true), &json!(10)));
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    assert_eq!(bench.call("port.list", json!({})).unwrap(), json!([]));
    assert_eq!(kind(&bench.call("port.remove", json!({ "name": "vm1" })).unwrap_err()), "not-found");
    bench.call("port.remove", json!({ "name": "vm1", "if_exists": true })).unwrap();
}

#[test]
fn what_was_added_and_changed_survives_a_restart_of_everything() {
    let mut bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    bench.add("vm2", "vdev:net_null1").unwrap();
    bench.call("port.set", json!({ "name": "vm1", "mtu": 9000 })).unwrap();
    bench.call("port.remove", json!({ "name": "vm2" })).unwrap();
    bench.stop(Ending::StopLanes);
    bench.boot();
    bench.until("the port is made again", || (bench.phase("vm1") == "listening").then_some(()));
    let ports = bench.call("port.list", json!({})).unwrap();
    assert_eq!((ports.as_array().unwrap().len(), &ports[0]["status"]["spec"]["mtu"]), (1, &json!(9000)));
}

#[test]
fn what_the_lane_refuses_leaves_nothing_behind() {
    let bench = Bench::start("");
    let error = bench.add("vm1", "vdev:net_null0,refuse=1").unwrap_err();
    assert_eq!((kind(&error), &error["data"]["errno"], &error["data"]["item"]), ("no-room", &json!(12), &json!("vm1")));
    assert_eq!(bench.call("port.list", json!({})).unwrap(), json!([]));
    // Name, socket and device are free again.
    bench.add("vm1", "vdev:net_null0").unwrap();
    let error = bench.call("port.set", json!({ "name": "vm1", "mtu": 666 })).unwrap_err();
    assert_eq!(kind(&error), "unsupported");
    assert_eq!(bench.call("port.get", json!({ "name": "vm1" })).unwrap()["spec"]["mtu"], 1500);
}

#[test]
fn an_equal_port_may_exist_and_another_may_not() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    let mut again = bench.port("vm1", "vdev:net_null0");
    assert_eq!(kind(&bench.call("port.add", again.clone()).unwrap_err()), "exists");
    again["may_exist"] = json!(true);
    assert_eq!(bench.call("port.add", again.clone()).unwrap()["name"], "vm1");
    again["mtu"] = json!(9000);
    let error = bench.call("port.add", again).unwrap_err();
    assert_eq!(kind(&error), "exists");
    assert!(error["message"].as_str().unwrap().contains("port set"), "{error}");
    let mut same_socket = bench.port("vm2", "vdev:net_null1");
    same_socket["socket"] = json!(bench.path("vm1.sock"));
    assert_eq!(kind(&bench.call("port.add", same_socket).unwrap_err()), "busy");
    assert_eq!(kind(&bench.add("vm2", "vdev:net_null0").unwrap_err()), "busy");
    let mut nowhere = bench.port("vm2", "vdev:net_null1");
    nowhere["lane"] = json!("nowhere");
    assert_eq!(kind(&bench.call("port.add", nowhere).unwrap_err()), "not-found");
}

#[test]
fn a_port_of_the_file_is_changed_in_the_file() {
    let bench = Bench::start(VM1_IN_FILE);
    bench.until("the port is made", || (bench.phase("vm1") == "listening").then_some(()));
    let error = bench.add("vm1", "vdev:net_null5").unwrap_err();
    assert_eq!(kind(&error), "exists");
    assert!(error["message"].as_str().unwrap().contains("ringspan.toml:5: change it there"), "{error}");
    for (method, params) in
        [("port.remove", json!({ "name": "vm1" })), ("port.set", json!({ "name": "vm1", "mtu": 9000 }))]
    {
        let error = bench.call(method, params).unwrap_err();
        assert_eq!(kind(&error), "conflict");
        assert!(error["message"].as_str().unwrap().contains("ringspan reload"), "{error}");
    }
}

#[test]
fn a_run_time_port_that_the_file_names_otherwise_stands_aside_and_can_be_removed() {
    let mut bench = Bench::start("");
    bench.add("vm1", "vdev:net_null7").unwrap();
    let before = bench.events_after(0).len() as u64;
    bench.stop(Ending::LeaveLanes);
    bench.write_config(VM1_IN_FILE);
    bench.boot();
    let ports = bench.until("the file's port is made", || {
        let ports = bench.call("port.list", json!({})).unwrap();
        ports.as_array().unwrap().iter().any(|port| port["phase"] == "listening").then_some(ports)
    });
    let origins: Vec<_> = ports.as_array().unwrap().iter().map(|port| (&port["origin"], &port["phase"])).collect();
    assert!(origins.contains(&(&json!("run-time"), &json!("aside"))), "{ports}");
    assert!(origins.contains(&(&json!("config"), &json!("listening"))), "{ports}");
    assert_eq!(bench.call("port.get", json!({ "name": "vm1" })).unwrap()["spec"]["device"], "vdev:net_null0");
    let events = bench.events_after(before);
    assert!(events.iter().any(|event| event["event"] == "config-conflict" && event["port"] == "vm1"), "{events:?}");
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    assert_eq!(bench.call("port.list", json!({})).unwrap().as_array().unwrap().len(), 1);
}

#[test]
fn waiting_ends_when_the_port_has_come_that_far_or_the_time_is_over() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    bench.call("port.wait", json!({ "name": "vm1", "phase": "listening" })).unwrap();
    bench.call("port.wait", json!({ "name": "vm1", "phase": "closed" })).unwrap();
    let error =
        bench.call("port.wait", json!({ "name": "vm1", "phase": "driver-ready", "timeout_ms": 50 })).unwrap_err();
    assert_eq!(kind(&error), "timeout");
    bench.add("vm2", "vdev:net_null1,ready=1").unwrap();
    for phase in ["listening", "connected", "driver-ready"] {
        bench.call("port.wait", json!({ "name": "vm2", "phase": phase })).unwrap();
    }
    assert_eq!(kind(&bench.call("port.wait", json!({ "name": "no", "phase": "closed" })).unwrap_err()), "not-found");
}

#[test]
fn a_garbled_state_keeps_the_daemon_from_starting_and_is_left_as_it_is() {
    let mut bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    bench.stop(Ending::StopLanes);
    let state = bench.path("state/state.json");
    let good = std::fs::read(&state).unwrap();
    std::fs::write(&state, &good[..good.len() / 2]).unwrap();
    let error = bench.try_boot().unwrap_err();
    assert!(error.contains("state.json") && error.contains("move it away"), "{error}");
    assert_eq!(std::fs::read(&state).unwrap(), good[..good.len() / 2]);
    std::fs::write(&state, &good).unwrap();
    bench.boot();
    bench.until("the port is made again", || (bench.phase("vm1") == "listening").then_some(()));
}

#[test]
fn a_reload_changes_only_what_differs() {
    let bench = Bench::start(VM1_IN_FILE);
    let pid = bench.lane_pid("main");
    bench.add("vm9", "vdev:net_null9").unwrap();
    let reload = || bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!(reload()["outcome"], serde_json::Value::Null, "nothing differs");
    let vm2 = VM1_IN_FILE.replace("vm1", "vm2").replace("net_null0", "net_null2") + "lane = \"main\"\n";
    bench.write_config(&format!(
        "{VM1_IN_FILE}mtu = 9000\n{vm2}[[lane]]\nname = \"b\"\ncores = [1]\n[log]\nlevel = \"debug\""
    ));
    let job = reload();
    assert_eq!(job["outcome"], json!(["log.level is now debug", "lane b added", "port vm1 changed", "port vm2 added"]));
    let ports = bench.call("port.list", json!({})).unwrap();
    let seen: Vec<_> =
        ports.as_array().unwrap().iter().map(|port| (port["name"].as_str().unwrap(), &port["phase"])).collect();
    let made = json!("listening");
    assert_eq!(seen, [("vm1", &made), ("vm2", &made), ("vm9", &made)]);
    assert_eq!(ports[0]["status"]["spec"]["mtu"], 9000);
    assert_eq!(bench.lane_pid("main"), pid, "the lane was left alone");
    bench.lane_pid("b");
    bench.write_config("");
    assert_eq!(
        reload()["outcome"],
        json!([
            "log.level is now info",
            "lane b removed: it is shut down when it has no port",
            "port vm1 removed",
            "port vm2 removed"
        ])
    );
    bench.until("the lane b is gone", || {
        (bench.call("lane.list", json!({})).unwrap().as_array().unwrap().len() == 1).then_some(())
    });
    assert_eq!(bench.phase("vm9"), "listening");
}

#[test]
fn a_reload_that_is_refused_changes_nothing() {
    let bench = Bench::start(VM1_IN_FILE);
    bench.until("the port is made", || (bench.phase("vm1") == "listening").then_some(()));
    bench.add("vm2", "vdev:net_null2").unwrap();
    let before = bench.call("port.list", json!({})).unwrap();
    let clash = VM1_IN_FILE.replace("vm1", "vm3").replace("net_null0", "net_null2");
    for (text, says) in [
        ("nonsense".to_owned(), "ringspan.toml:5: "),
        (format!("{VM1_IN_FILE}colour = 1"), "ringspan.toml:9: port: unknown field `colour`"),
        (clash, "the run-time port vm2 would have to give way"),
        (VM1_IN_FILE.replace("vm1", "vm2"), "the run-time port vm2 would have to give way"),
    ] {
        bench.write_config(&text);
        let job = bench.call("config.reload", json!({ "wait": true })).unwrap();
        assert_eq!(job["state"], "failed", "{text}");
        assert!(job["error"]["message"].as_str().unwrap().contains(says), "{job}");
        assert_eq!(bench.call("port.list", json!({})).unwrap(), before);
    }
    let refused = bench.events_after(0).into_iter().filter(|event| event["event"] == "config-refused").count();
    assert_eq!(refused, 4);
}

#[test]
fn a_lane_that_left_the_file_goes_on_until_its_last_port_is_removed() {
    let bench = Bench::start("[[lane]]\nname = \"b\"\ncores = [1]\n");
    let mut port = bench.port("vm1", "vdev:net_null0");
    port["lane"] = json!("b");
    bench.call("port.add", port).unwrap();
    let pid = bench.lane_pid("b");
    bench.write_config("");
    bench.call("config.reload", json!({ "wait": true })).unwrap();
    let lanes = bench.call("lane.list", json!({})).unwrap();
    assert_eq!(
        (&lanes[0]["name"], &lanes[0]["configured"], &lanes[0]["pid"]),
        (&json!("b"), &json!(false), &json!(pid))
    );
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    bench.until("the lane is gone", || {
        (bench.call("lane.list", json!({})).unwrap().as_array().unwrap().len() == 1).then_some(())
    });
}

#[test]
fn a_port_of_the_file_that_is_refused_is_listed_with_the_reason_and_tried_again() {
    let bench = Bench::start(&VM1_IN_FILE.replace("net_null0", "net_null0,refuse=1"));
    bench.until("the refusal is seen", || (bench.phase("vm1") == "refused").then_some(()));
    let port = bench.call("port.get", json!({ "name": "vm1" })).unwrap();
    assert_eq!(port["reason"], "told to refuse");
    bench.write_config(VM1_IN_FILE);
    bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!(bench.phase("vm1"), "listening");
}

#[test]
fn a_change_of_the_file_that_is_refused_leaves_the_port_as_it_was() {
    let bench = Bench::start(VM1_IN_FILE);
    bench.until("the port is made", || (bench.phase("vm1") == "listening").then_some(()));
    bench.write_config(&format!("{VM1_IN_FILE}mtu = 666\n"));
    let job = bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!(job["outcome"], json!(["port vm1 changed", "port vm1 was refused: the device has no MTU of 666"]));
    let port = bench.call("port.get", json!({ "name": "vm1" })).unwrap();
    assert_eq!((&port["phase"], &port["reason"]), (&json!("listening"), &json!("the device has no MTU of 666")));
    assert_eq!((&port["spec"]["mtu"], &port["status"]["spec"]["mtu"]), (&json!(666), &json!(1500)));
}

#[test]
fn what_cannot_be_written_down_is_not_done() {
    let bench = Bench::start("");
    bench.add("vm1", "vdev:net_null0").unwrap();
    // Nothing can be written where a folder is, not even by root.
    let in_the_way = bench.path("state/state.json.new");
    std::fs::create_dir(&in_the_way).unwrap();
    for answer in [
        bench.add("vm2", "vdev:net_null1"),
        bench.call("port.set", json!({ "name": "vm1", "mtu": 9000 })),
        bench.call("port.remove", json!({ "name": "vm1" })),
    ] {
        let error = answer.unwrap_err();
        assert!(error["message"].as_str().unwrap().contains("state.json cannot be written"), "{error}");
    }
    let port = bench.until("the lane has what it had", || {
        let port = bench.call("port.get", json!({ "name": "vm1" })).unwrap();
        (port["status"]["spec"] == port["spec"]).then_some(port)
    });
    assert_eq!(port["spec"]["mtu"], 1500);
    std::fs::remove_dir(&in_the_way).unwrap();
    bench.add("vm2", "vdev:net_null1").unwrap();
}
