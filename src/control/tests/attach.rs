//! Guests' NICs over the socket, on a software NIC in a fake lane; and in a daemon that is killed at every point.

use nix::sys::signal::{Signal, kill as signal};
use nix::unistd::Pid;
use serde_json::{Value, json};

use super::lanes::{freeze, kill_now};
use super::{Bench, kind};
use crate::control::Ending;

fn nic(bench: &Bench, mode: &str) {
    bench.call("nic.add", json!({ "name": "nic0", "vfs": 2, "mode": mode })).unwrap();
}

fn wanted(bench: &Bench, guest: &str, more: Value) -> Value {
    let mut wanted = json!({
        "guest": guest, "wire": "nic0", "mac": "52:54:00:00:00:07", "vlan": 7, "socket": bench.path(&format!("{guest}.sock")),
    });
    wanted.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    wanted
}

/// What is set for the VFs for which something is.
fn settings(bench: &Bench, what: &str) -> Vec<Value> {
    let nic = bench.call("nic.show", json!({ "name": "nic0" })).unwrap();
    nic["spec"]["vf"].as_array().into_iter().flatten().map(|vf| vf[what].clone()).collect()
}

fn vlans(bench: &Bench) -> Vec<Value> {
    settings(bench, "vlan")
}

fn ports(bench: &Bench) -> Vec<String> {
    let ports = bench.call("port.list", json!({})).unwrap();
    ports.as_array().unwrap().iter().map(|port| port["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_guest_is_attached_changed_and_detached_and_each_again_is_a_success() {
    let mut bench = Bench::start("");
    nic(&bench, "legacy");
    let attached = bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
    assert_eq!(
        (&attached["attachment"]["device"], &attached["attachment"]["stage"]),
        (&json!("soft:nic0/vf0"), &json!("attached"))
    );
    assert!(
        attached["qemu"]["args"][5].as_str().unwrap().contains("mac=52:54:00:00:00:07,id=nic-g1-nic0"),
        "{attached:#}"
    );
    assert_eq!((ports(&bench), vlans(&bench)), (vec!["g1-nic0".into()], vec![json!(7)]));
    let again = bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
    assert_eq!((&again["attachment"], &again["done"]), (&attached["attachment"], &json!([])));
    let other = wanted(&bench, "g1", json!({ "mtu": 9000 }));
    assert_eq!(kind(&bench.call("port.attach", other).unwrap_err()), "exists");
    // The port is its attachment's.
    assert_eq!(kind(&bench.call("port.remove", json!({ "name": "g1-nic0" })).unwrap_err()), "conflict");
    bench
        .call("port.set", json!({ "name": "g1-nic0", "vlan": 8, "mac": "52:54:00:00:00:08", "max_rate": 100 }))
        .unwrap();
    assert_eq!(vlans(&bench), [json!(8)]);
    let port = bench.call("port.get", json!({ "name": "g1-nic0" })).unwrap();
    // Its device takes no address: the NIC has it, in the VF's settings.
    assert_eq!((&port["spec"]["mac"], &port["spec"]["max_rate"]), (&Value::Null, &json!(100)));
    assert_eq!(settings(&bench, "mac"), [json!("52:54:00:00:00:08")]);
    assert_eq!(port["status"]["spec"]["max_rate"], 100, "the lane knows it too");
    // The last VF, and one more.
    bench.call("port.attach", wanted(&bench, "g2", json!({}))).unwrap();
    assert_eq!(kind(&bench.call("port.attach", wanted(&bench, "g3", json!({}))).unwrap_err()), "no-room");
    let stats = bench.call("attachment.stats", json!({ "guest": "g1" })).unwrap();
    assert_eq!((&stats[0]["counted"]["tx_packets"], &stats[0]["current"]), (&json!(10), &json!(true)));
    // All of it outlives the daemon.
    bench.stop(Ending::LeaveLanes);
    bench.boot();
    assert_eq!(bench.call("attachment.list", json!({})).unwrap().as_array().unwrap().len(), 2);
    for was_attached in [true, false] {
        let detached = bench.call("port.detach", json!({ "guest": "g1", "nic": 0 })).unwrap();
        assert_eq!(detached["was_attached"], was_attached);
    }
    let synced = bench.call("attachment.sync", json!({ "guests": [], "mend": true })).unwrap();
    assert_eq!((&synced["orphaned"][0]["guest"], &synced["orphaned"][0]["mended"]), (&json!("g2"), &json!(true)));
    assert_eq!((ports(&bench), vlans(&bench)), (vec![], vec![]));
}

#[test]
fn a_guest_that_is_listed_twice_keeps_its_nics() {
    let bench = Bench::start("");
    nic(&bench, "legacy");
    let second =
        wanted(&bench, "g1", json!({ "nic": 1, "mac": "52:54:00:00:00:09", "socket": bench.path("g1b.sock") }));
    bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
    bench.call("port.attach", second.clone()).unwrap();
    for guests in [
        json!([{ "guest": "g1", "nics": [0] }, { "guest": "g1", "nics": [1] }]),
        json!([{ "guest": "g1", "nics": [0], "attach": [second, second] }]),
    ] {
        let error = bench.call("attachment.sync", json!({ "guests": guests, "mend": true })).unwrap_err();
        assert!(kind(&error) == "invalid" && error["message"].as_str().unwrap().contains("twice"), "{error}");
        assert_eq!(ports(&bench), ["g1-nic0", "g1-nic1"]);
    }
    // A NIC may be named in both lists of its guest.
    let once = json!([{ "guest": "g1", "nics": [0, 1], "attach": [second] }]);
    assert_eq!(bench.call("attachment.sync", json!({ "guests": once, "mend": true })).unwrap()["good"], 2);
}

/// Names of the events about guests' NICs so far, each with its guest.
fn told(bench: &Bench) -> Vec<String> {
    let name = |event: Value| Some(format!("{} {}", event["event"].as_str()?, event["guest"].as_str()?));
    bench.events_after(0).into_iter().filter_map(name).collect()
}

#[test]
fn events_tell_of_guests_nics_and_a_sync_attaches_what_is_missing() {
    let bench = Bench::start("");
    nic(&bench, "legacy");
    bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
    bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
    bench.call("nic.set-vf", json!({ "name": "nic0", "vf": 0, "vlan": 99 })).unwrap();
    // Found by the daemon itself, within a minute: here it is not waited for.
    bench.call("attachment.sync", json!({ "guests": [{ "guest": "g1" }], "mend": true })).unwrap();
    let missing = json!({ "guest": "g2", "attach": [wanted(&bench, "g2", json!({}))] });
    let synced = bench.call("attachment.sync", json!({ "guests": [missing], "mend": true })).unwrap();
    assert_eq!(synced["missing"][0]["mended"], true, "{synced:#}");
    assert_eq!(ports(&bench), ["g2-nic0"]);
    bench.call("port.detach", json!({ "guest": "g2" })).unwrap();
    bench.call("port.detach", json!({ "guest": "g2" })).unwrap();
    let other = json!({ "guest": "g3", "attach": [wanted(&bench, "g2", json!({}))] });
    assert_eq!(kind(&bench.call("attachment.sync", json!({ "guests": [other] })).unwrap_err()), "invalid");
    let mut all = told(&bench);
    // The daemon may have seen the drift by itself before.
    all.dedup();
    assert_eq!(all, ["attached g1", "drifted g1", "attached g2", "orphaned g1", "detached g1", "detached g2"]);
}

#[test]
fn a_nic_is_not_detached_while_its_guest_is_connected_unless_that_is_said() {
    let bench = Bench::start("");
    nic(&bench, "legacy");
    let guest = bench.path("g1.guest");
    let detach = |disturb: bool| bench.call("port.detach", json!({ "guest": "g1", "disturb": disturb }));
    for disturb in [false, true] {
        bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
        std::fs::write(&guest, "").unwrap();
        let error = detach(false).unwrap_err();
        let message = error["message"].as_str().unwrap();
        assert!(kind(&error) == "busy" && message.contains("its guest is connected (driver-ready)"), "{error}");
        let list = bench.call("attachment.list", json!({})).unwrap();
        assert_eq!(
            (&list[0]["stage"], ports(&bench), vlans(&bench)),
            (&json!("attached"), vec!["g1-nic0".into()], vec![json!(7)])
        );
        // It is the guest's until that has let go of it.
        assert_eq!(
            kind(
                &bench
                    .call("port.attach", wanted(&bench, "g2", json!({ "wire": null, "device": "soft:nic0/vf0" })))
                    .unwrap_err()
            ),
            "busy"
        );
        if !disturb {
            std::fs::remove_file(&guest).unwrap();
        }
        assert_eq!(detach(disturb).unwrap()["was_attached"], true);
        assert_eq!((ports(&bench), vlans(&bench)), (vec![], vec![]));
        assert_eq!(detach(false).unwrap()["was_attached"], false);
    }
}

/// A guest on the NIC, which is connected.
fn connected(bench: &Bench) {
    nic(bench, "legacy");
    bench.call("port.attach", wanted(bench, "g1", json!({}))).unwrap();
    std::fs::write(bench.path("g1.guest"), "").unwrap();
    bench.until("the guest is connected", || (bench.phase("g1-nic0") == "driver-ready").then_some(()));
}

/// An agent that asks for the NIC of the guest is told why not, and the guest keeps it.
fn is_not_known(bench: &Bench, error: &Value, why: &str) {
    let message = error["message"].as_str().unwrap_or_default();
    assert_eq!(error["data"]["kind"].as_str().or(error["kind"].as_str()), Some("busy"), "{error}");
    for part in ["not known whether its guest is connected", why, "ringspan lane list", "--disturb"] {
        assert!(message.contains(part), "no {part}: {error}");
    }
    let list = bench.call("attachment.list", json!({})).unwrap();
    assert_eq!((&list[0]["stage"], vlans(bench)), (&json!("attached"), vec![json!(7)]));
}

/// The finding about a guest that is missing in the agent's list.
fn orphan(bench: &Bench) -> Value {
    let synced = bench.call("attachment.sync", json!({ "guests": [], "mend": true })).unwrap();
    assert_eq!(synced["orphaned"][0]["mended"], false, "{synced:#}");
    synced["orphaned"][0]["error"].clone()
}

fn detach(bench: &Bench) -> Result<Value, Value> {
    bench.call("port.detach", json!({ "guest": "g1" }))
}

#[test]
fn a_lane_that_is_silent_leaves_the_guest_its_nic() {
    let bench = Bench::start("");
    connected(&bench);
    let pid = bench.lane_pid("main");
    freeze(&bench, pid);
    is_not_known(&bench, &orphan(&bench), "lane main does not answer");
    signal(Pid::from_raw(pid as i32), Signal::SIGCONT).unwrap();
    let error = detach(&bench).unwrap_err();
    assert!(error["message"].as_str().unwrap().contains("its guest is connected (driver-ready)"), "{error}");
    std::fs::remove_file(bench.path("g1.guest")).unwrap();
    assert_eq!(detach(&bench).unwrap()["was_attached"], true);
}

#[test]
fn a_daemon_that_has_not_adopted_a_lane_yet_leaves_its_guest_its_nic() {
    let mut bench = Bench::start("");
    connected(&bench);
    let pid = bench.lane_pid("main");
    bench.stop(Ending::LeaveLanes);
    freeze(&bench, pid);
    bench.boot();
    is_not_known(&bench, &orphan(&bench), "lane main is not running");
    is_not_known(&bench, &detach(&bench).unwrap_err(), "lane main is not running");
    signal(Pid::from_raw(pid as i32), Signal::SIGCONT).unwrap();
    bench.until("the lane is adopted", || (bench.phase("g1-nic0") == "driver-ready").then_some(()));
    assert_eq!(bench.lane_pid("main"), pid);
    assert!(detach(&bench).unwrap_err()["message"].as_str().unwrap().contains("its guest is connected"));
    assert_eq!(orphan(&bench)["kind"], "busy");
}

#[test]
fn what_is_on_a_lane_that_is_down_is_detached_when_that_is_said_and_not_before() {
    let bench = Bench::start("");
    connected(&bench);
    let pid = bench.lane_pid("main");
    std::fs::write(bench.path("FAKE_LANE_DIES"), "").unwrap();
    kill_now(pid);
    bench.until("the lane waits", || {
        (bench.call("lane.list", json!({})).unwrap()[0]["phase"] == "waiting").then_some(())
    });
    is_not_known(&bench, &orphan(&bench), "lane main is not running");
    is_not_known(&bench, &detach(&bench).unwrap_err(), "lane main is not running");
    assert_eq!(ports(&bench), ["g1-nic0"]);
    let detached = bench.call("port.detach", json!({ "guest": "g1", "disturb": true })).unwrap();
    assert_eq!(detached["was_attached"], true);
    assert_eq!((ports(&bench), vlans(&bench)), (vec![], vec![]));
}

#[test]
fn a_detach_that_had_begun_is_finished_by_a_daemon_whose_lane_is_down() {
    let mut bench = Bench::start("");
    nic(&bench, "legacy");
    bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
    let pid = bench.lane_pid("main");
    // Written down, and nothing taken back.
    bench.running.as_ref().unwrap().daemon.attachments.kill_at(1);
    detach(&bench).unwrap_err();
    bench.stop(Ending::LeaveLanes);
    std::fs::write(bench.path("FAKE_LANE_DIES"), "").unwrap();
    kill_now(pid);
    bench.boot();
    bench.until("it is detached", || (bench.call("attachment.list", json!({})).unwrap() == json!([])).then_some(()));
    assert_eq!((ports(&bench), vlans(&bench)), (vec![], vec![]));
}

#[test]
fn a_vf_of_a_legacy_nic_of_the_file_is_attached_and_is_the_files_again() {
    let file =
        "[[nic]]\nname = \"nic0\"\nkind = \"soft\"\nvfs = 2\nmode = \"legacy\"\n\n[[nic.vf]]\nvf = 0\nvlan = 5\n";
    let mut bench = Bench::start(file);
    let attached = bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
    assert_eq!(attached["attachment"]["device"], "soft:nic0/vf0");
    assert_eq!((vlans(&bench), settings(&bench, "mac")), (vec![json!(7)], vec![json!("52:54:00:00:00:07")]));
    // Others change it in the file.
    let refused = bench.call("nic.set-vf", json!({ "name": "nic0", "vf": 1, "vlan": 3 })).unwrap_err();
    assert_eq!(kind(&refused), "conflict");
    bench.call("config.reload", json!({ "wait": true })).unwrap();
    assert_eq!(vlans(&bench), [json!(7)], "a reload leaves it");
    bench.stop(Ending::LeaveLanes);
    bench.boot();
    assert_eq!(vlans(&bench), [json!(7)], "and a start of the daemon");
    let synced = bench.call("attachment.sync", json!({ "guests": [{ "guest": "g1" }] })).unwrap();
    assert_eq!(synced["good"], 1, "{synced:#}");
    bench.call("port.detach", json!({ "guest": "g1" })).unwrap();
    assert_eq!((vlans(&bench), settings(&bench, "mac")), (vec![json!(5)], vec![Value::Null]));
}

#[test]
fn what_is_refused_leaves_nothing() {
    let bench = Bench::start("");
    nic(&bench, "legacy");
    for (more, wrong) in [
        (json!({ "qemu": { "memory_shared": false } }), "unsupported"),
        (json!({ "vlan": 4095 }), "invalid"),
        (json!({ "mode": "passthrough", "socket": null }), "unsupported"),
        (json!({ "device": "soft:nic0/vf9" }), "not-found"),
        (json!({ "lane": "nowhere" }), "not-found"),
        (json!({ "colour": 1 }), "usage"),
        // What the lane refuses last of all.
        (json!({ "socket": "/run/" }), "invalid"),
    ] {
        let error = bench.call("port.attach", wanted(&bench, "g1", more.clone())).unwrap_err();
        assert_eq!(kind(&error), wrong, "{more}: {error}");
        assert_eq!((ports(&bench), vlans(&bench)), (vec![], vec![]), "{more}");
        assert_eq!(bench.call("attachment.list", json!({})).unwrap(), json!([]), "{more}");
    }
}

#[test]
fn a_port_that_was_lost_and_a_vf_that_was_changed_are_found_and_mended() {
    let bench = Bench::start("");
    nic(&bench, "legacy");
    bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap();
    bench.call("nic.set-vf", json!({ "name": "nic0", "vf": 0, "vlan": 99 })).unwrap();
    let sync =
        |mend: bool| bench.call("attachment.sync", json!({ "guests": [{ "guest": "g1" }], "mend": mend })).unwrap();
    let told = sync(false);
    assert!(told["drifted"][0]["what"][0].as_str().unwrap().contains("VLAN 99, not 7"), "{told:#}");
    assert_eq!(sync(true)["drifted"][0]["mended"], true);
    assert_eq!((sync(false)["good"].clone(), vlans(&bench)), (json!(1), vec![json!(7)]));
}

#[test]
fn a_daemon_killed_at_any_point_puts_the_software_nic_right_when_it_starts() {
    let mut bench = Bench::start("");
    nic(&bench, "legacy");
    // All points are walked on a made-up world (`attach::tests`); here some of them, because each is a start of the daemon.
    let points = [("port.attach", [0, 2, 5, 8]), ("port.detach", [0, 1, 3, 6])];
    for (method, point) in points.into_iter().flat_map(|(method, points)| points.map(|point| (method, point))) {
        let request = wanted(&bench, "g1", json!({}));
        let params = if method == "port.detach" {
            bench.call("port.attach", request.clone()).unwrap();
            json!({ "guest": "g1" })
        } else {
            request.clone()
        };
        let daemon = &bench.running.as_ref().unwrap().daemon;
        daemon.attachments.kill_at(point);
        let outcome = bench.call(method, params);
        bench.stop(Ending::LeaveLanes);
        bench.boot();
        let settled = || {
            let list = bench.call("attachment.list", json!({})).unwrap();
            let list = list.as_array().unwrap().clone();
            list.iter().all(|one| one["stage"] == "attached").then_some(list.len())
        };
        let attached = bench.until("what was left half-done is put right", settled);
        assert!(method == "port.detach" || outcome.is_err() || attached == 1, "{method} at {point}");
        assert_eq!(
            (ports(&bench).len(), vlans(&bench).len()),
            (attached, attached),
            "{method} at {point}: {outcome:?}"
        );
        assert!(bench.call("port.attach", request).is_ok(), "{method} at {point}");
        bench.call("port.detach", json!({ "guest": "g1" })).unwrap();
        assert_eq!((ports(&bench), vlans(&bench)), (vec![], vec![]));
    }
}

#[test]
fn a_vf_that_is_being_attached_is_no_other_ports() {
    let bench = Bench::start("");
    nic(&bench, "legacy");
    // Chosen and written down, and its port is not made yet.
    bench.running.as_ref().unwrap().daemon.attachments.kill_at(2);
    bench.call("port.attach", wanted(&bench, "g1", json!({}))).unwrap_err();
    let error = bench.add("vm1", "soft:nic0/vf0").unwrap_err();
    assert!(kind(&error) == "busy" && error["message"].as_str().unwrap().contains("guest g1"), "{error}");
    assert_eq!(ports(&bench), [""; 0]);
    bench.add("vm1", "soft:nic0/vf1").unwrap();
}

#[test]
fn of_a_port_and_a_guest_that_come_at_once_only_one_gets_a_vf() {
    let bench = Bench::start("");
    bench.call("nic.add", json!({ "name": "nic0", "vfs": 1, "mode": "legacy" })).unwrap();
    for _ in 0..10 {
        let both = std::sync::Barrier::new(2);
        let (attached, added) = std::thread::scope(|scope| {
            let attach = scope.spawn(|| {
                both.wait();
                bench.call("port.attach", wanted(&bench, "g1", json!({})))
            });
            both.wait();
            let added = bench.add("vm1", "soft:nic0/vf0");
            (attach.join().unwrap(), added)
        });
        assert!(attached.is_err() || added.is_err(), "both have it");
        // Each may be refused because of the other one.
        assert_eq!(ports(&bench).len(), usize::from(attached.is_ok()) + usize::from(added.is_ok()));
        bench.call("port.detach", json!({ "guest": "g1" })).unwrap();
        bench.call("port.remove", json!({ "name": "vm1", "if_exists": true })).unwrap();
    }
}

#[test]
fn a_drift_is_told_by_the_daemon_itself_and_once() {
    let bench = Bench::start("");
    bench.call("nic.add", json!({ "name": "nic0", "vfs": 3, "mode": "legacy" })).unwrap();
    let vlan = |vf: u32, vlan: u32| {
        bench.call("nic.set-vf", json!({ "name": "nic0", "vf": vf, "vlan": vlan })).unwrap();
    };
    let drifted = |guest: &str| {
        let one = format!("drifted {guest}");
        bench.until(&one, || told(&bench).contains(&one).then_some(()));
    };
    for guest in ["g1", "g2", "g3"] {
        let mac = format!("52:54:00:00:00:0{}", &guest[1..]);
        bench.call("port.attach", wanted(&bench, guest, json!({ "mac": mac }))).unwrap();
    }
    vlan(0, 99);
    drifted("g1");
    // It stays so. Guests are looked at in turns, and another one is told of when it was looked at twice: in between was the first one's turn again.
    vlan(1, 99);
    drifted("g2");
    // It is mended, of which nothing is told either.
    vlan(0, 7);
    vlan(2, 99);
    drifted("g3");
    assert_eq!(told(&bench), ["attached g1", "attached g2", "attached g3", "drifted g1", "drifted g2", "drifted g3"]);
}
