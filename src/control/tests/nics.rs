//! Software NICs: wanted, made before the ports on them, kept.

use serde_json::json;

use super::{Bench, kind};
use crate::control::Ending;

const NIC0_IN_FILE: &str = "[[nic]]\nname = \"nic0\"\nkind = \"soft\"\nvfs = 2\n\n[[port]]\nname = \"vm1\"\nsocket = \"/tmp/ringspan-test-nic-vm1.sock\"\ndevice = \"soft:nic0/vf1\"\n";

#[test]
fn a_nic_is_added_shown_and_removed_and_a_port_on_it_keeps_it() {
    let bench = Bench::start("[[lane]]\nname = \"second\"\ncores = [1]\n");
    let nic = json!({ "name": "nic0", "vfs": 2, "lane": "second" });
    let added = bench.call("nic.add", nic.clone()).unwrap();
    assert_eq!((&added["lane"], &added["status"]["spec"]["vfs"]), (&json!("second"), &json!(2)));
    bench.call("nic.add", nic).unwrap();
    let other = bench.call("nic.add", json!({ "name": "nic0", "vfs": 3 })).unwrap_err();
    assert_eq!(kind(&other), "exists");
    // A port on it goes where it is.
    assert_eq!(bench.add("vm1", "soft:nic0/vf0").unwrap()["lane"], "second");
    let mut elsewhere = bench.port("vm2", "soft:nic0/vf1");
    elsewhere["lane"] = json!("main");
    assert_eq!(kind(&bench.call("port.add", elsewhere).unwrap_err()), "invalid");
    assert_eq!(kind(&bench.call("nic.remove", json!({ "name": "nic0" })).unwrap_err()), "busy");
    bench.call("port.remove", json!({ "name": "vm1" })).unwrap();
    bench.call("nic.remove", json!({ "name": "nic0" })).unwrap();
    assert_eq!(bench.call("nic.list", json!({})).unwrap(), json!([]));
    assert_eq!(kind(&bench.call("nic.remove", json!({ "name": "nic0" })).unwrap_err()), "not-found");
    bench.call("nic.remove", json!({ "name": "nic0", "if_exists": true })).unwrap();
}

#[test]
fn what_the_lane_refuses_of_a_nic_leaves_nothing_behind() {
    let bench = Bench::start("");
    assert_eq!(kind(&bench.call("nic.add", json!({ "name": "nic0", "vfs": 63 })).unwrap_err()), "no-room");
    assert_eq!(bench.call("nic.list", json!({})).unwrap(), json!([]));
    for (nic, wrong) in [
        (json!({ "name": "nic0", "vfs": 65 }), "invalid"),
        (json!({ "name": "nic0", "vfs": 1, "uplinks": ["soft:nic0/vf0"] }), "invalid"),
        (json!({ "name": "nic0", "vfs": 1, "lane": "nowhere" }), "not-found"),
        (json!({ "name": "a-name-too-long", "vfs": 1 }), "usage"),
    ] {
        assert_eq!(kind(&bench.call("nic.add", nic.clone()).unwrap_err()), wrong, "{nic}");
    }
}

#[test]
fn a_nic_survives_a_restart_of_everything_and_comes_before_its_ports() {
    let mut bench = Bench::start("");
    bench.call("nic.add", json!({ "name": "nic0", "vfs": 2 })).unwrap();
    bench.add("vm1", "soft:nic0/vf0").unwrap();
    bench.stop(Ending::StopLanes);
    bench.boot();
    bench.until("the port is made again", || (bench.phase("vm1") == "listening").then_some(()));
    assert_eq!(bench.call("nic.show", json!({ "name": "nic0" })).unwrap()["status"]["spec"]["vfs"], 2);
}

#[test]
fn a_vf_is_changed_in_legacy_mode_and_stays_so() {
    let mut bench = Bench::start("");
    bench.call("nic.add", json!({ "name": "nic0", "vfs": 2, "mode": "legacy" })).unwrap();
    let set = |bench: &Bench, more: serde_json::Value| {
        let mut params = json!({ "name": "nic0", "vf": 1 });
        params.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        bench.call("nic.set-vf", params)
    };
    set(&bench, json!({ "mac": "52:54:00:00:00:01", "vlan": 7 })).unwrap();
    let shown = set(&bench, json!({ "max_mbit": 100 })).unwrap();
    let vf = json!([{ "vf": 1, "mac": "52:54:00:00:00:01", "vlan": 7, "qos": 0, "spoof_check": true, "trust": false, "max_mbit": 100, "link": "auto" }]);
    assert_eq!((&shown["spec"]["vf"], &shown["status"]["spec"]["vf"]), (&vf, &vf));
    for wrong in [json!({ "vlan": 4095 }), json!({ "vf": 2, "trust": true }), json!({ "mac": "ff:ff:ff:ff:ff:ff" })] {
        assert_eq!(kind(&set(&bench, wrong.clone()).unwrap_err()), "invalid", "{wrong}");
    }
    bench.stop(Ending::StopLanes);
    bench.boot();
    bench.until("the NIC is made again", || {
        let nic = bench.call("nic.show", json!({ "name": "nic0" })).unwrap();
        (nic["status"]["spec"]["vf"] == vf).then_some(())
    });
    bench.call("nic.add", json!({ "name": "nic1", "vfs": 2 })).unwrap();
    let switchdev = bench.call("nic.set-vf", json!({ "name": "nic1", "vf": 0, "trust": true })).unwrap_err();
    assert_eq!(kind(&switchdev), "invalid");
}

#[test]
fn the_files_nics_are_made_changed_and_removed_with_it() {
    let bench = Bench::start(NIC0_IN_FILE);
    bench.until("the port is made", || (bench.phase("vm1") == "listening").then_some(()));
    assert_eq!(kind(&bench.call("nic.remove", json!({ "name": "nic0" })).unwrap_err()), "conflict");
    bench.write_config(&NIC0_IN_FILE.replace("vfs = 2", "vfs = 4"));
    let job = bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert!(job["outcome"].to_string().contains("NIC nic0 changed"), "{job}");
    assert_eq!(bench.call("nic.show", json!({ "name": "nic0" })).unwrap()["status"]["spec"]["vfs"], 4);
    assert_eq!(bench.phase("vm1"), "listening");
    bench.write_config("");
    bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!(bench.call("nic.list", json!({})).unwrap(), json!([]));
}
