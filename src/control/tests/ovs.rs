//! The methods about Open vSwitch, with a switch of the test's own.

use anyhow::Result;
use ringspan_testkit::needs;
use ringspan_testkit::ovs::Ovs;
use serde_json::{Value, json};

use super::{Bench, kind};

fn bench(ovs: &Ovs) -> Bench {
    Bench::start(&config(ovs))
}

fn config(ovs: &Ovs) -> String {
    format!("[ovs]\nrun_dir = \"{}\"\nrestart_command = [\"false\"]\n", ovs.run_dir().display())
}

fn outcomes(configured: &Value) -> Vec<(String, String)> {
    let word = |item: &Value, key: &str| item[key].as_str().unwrap_or_default().to_owned();
    configured["items"].as_array().unwrap().iter().map(|item| (word(item, "item"), word(item, "outcome"))).collect()
}

fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
    expected.iter().map(|(item, outcome)| ((*item).into(), (*outcome).into())).collect()
}

#[test]
fn what_is_wanted_of_open_vswitch_is_made_once_and_then_left_alone() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    let bench = bench(&ovs);
    let wanted = json!({
        "tc_policy": "skip_sw",
        "bridges": [{ "name": "br0", "datapath_type": "dummy" }],
        "ports": [
            { "name": "p1", "bridge": "br0", "tag": 10, "iface_id": "vm1", "type": "dummy" },
            { "name": "p2", "bridge": "br0", "type": "dummy" },
        ],
    });
    let items = ["tc-policy", "bridge br0", "port p1", "port p2"];
    let all = |outcome: &'static str| pairs(&items.map(|item| (item, outcome)));
    let first = bench.call("ovs.configure", wanted.clone()).unwrap();
    assert_eq!(outcomes(&first), all("changed"), "{first:#}");
    assert_eq!(first["settled"], true);
    let again = bench.call("ovs.configure", wanted).unwrap();
    assert_eq!(outcomes(&again), all("unchanged"), "{again:#}");
    let seen =
        ovs.vsctl(&["get", "Port", "p1", "tag"])? + &ovs.vsctl(&["get", "Interface", "p1", "external_ids", "type"])?;
    assert_eq!(seen.split_whitespace().collect::<Vec<_>>(), ["10", "{iface-id=vm1}", "dummy"]);
    let changes = json!({ "ports": [
        { "name": "p1", "tag": 0, "iface_id": "vm2" }, { "name": "p2", "absent": true }, { "name": "p3", "absent": true },
    ] });
    let third = bench.call("ovs.configure", changes).unwrap();
    assert_eq!(outcomes(&third), pairs(&[("port p1", "changed"), ("port p2", "changed"), ("port p3", "unchanged")]));
    let shown = bench.call("ovs.show", json!({})).unwrap();
    assert_eq!(shown["pid"], ovs.pid());
    let ports = shown["bridges"][0]["ports"].as_array().unwrap();
    assert_eq!(ports.iter().map(|port| port["name"].as_str().unwrap()).collect::<Vec<_>>(), ["br0", "p1"]);
    assert_eq!((&ports[1]["tag"], &ports[1]["interfaces"][0]["iface_id"]), (&Value::Null, &json!("vm2")));
    Ok(())
}

#[test]
fn an_item_that_is_refused_leaves_the_others_alone() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    ovs.add_bridge("br0")?;
    ovs.add_bridge("br1")?;
    ovs.add_port("br1", "taken", &[])?;
    let bench = bench(&ovs);
    let wanted = json!({
        "bridges": [{ "name": "br0", "datapath_type": "system" }, { "name": "a/b" }, { "name": "taken" }],
        "ports": [
            { "name": "p1", "bridge": "nowhere" }, { "name": "taken", "bridge": "br0" }, { "name": "p2", "tag": 5 },
            { "name": "p3", "bridge": "br0", "tag": 4096 },
            { "name": "good", "bridge": "br0", "type": "dummy" },
            { "name": "no_such_dev", "bridge": "br0" },
        ],
    });
    let configured = bench.call("ovs.configure", wanted).unwrap();
    let kinds: Vec<&str> = configured["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|item| item["error"]["kind"].as_str().unwrap_or("-"))
        .collect();
    let expected = ["conflict", "invalid", "exists", "not-found", "conflict", "usage", "invalid", "-", "failed"];
    assert_eq!(kinds, expected, "{configured:#}");
    let reason = configured["items"][8]["error"]["message"].as_str().unwrap();
    assert!(reason.contains("no_such_dev") && reason.contains("ovs-vswitchd cannot use it"), "{reason}");
    assert_eq!(ovs.vsctl(&["list-ports", "br0"])?.split_whitespace().collect::<Vec<_>>(), ["good", "no_such_dev"]);
    Ok(())
}

#[test]
fn a_restart_is_said_to_be_needed_until_it_happened_and_is_done_only_when_asked() -> Result<()> {
    needs!(Ovs);
    let mut ovs = Ovs::start()?;
    let bench = bench(&ovs);
    let on = json!({ "hw_offload": true });
    let needed = |answer: &Value| answer["restart_needed"].is_string();
    assert!(needed(&bench.call("ovs.configure", on.clone()).unwrap()));
    // The setting is so already; ovs-vswitchd still has not taken it.
    assert!(needed(&bench.call("ovs.configure", on.clone()).unwrap()));
    let check = || bench.call("ovs.verify", json!({})).unwrap()["checks"][0].clone();
    assert_eq!((&check()["check"], &check()["state"]), (&json!("hw-offload"), &json!("failed")));
    // The configured command is `false`.
    let refused = bench.call("ovs.configure", json!({ "restart": true })).unwrap_err();
    assert!(refused["message"].as_str().unwrap().contains("was not restarted"), "{refused}");
    ovs.stop_switch();
    ovs.start_switch()?;
    assert!(!needed(&bench.call("ovs.configure", on).unwrap()));
    assert_eq!(check()["state"], "ok");
    Ok(())
}

#[test]
fn a_restart_that_is_asked_for_ends_when_the_new_process_answers() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    let (run_dir, program) = (ovs.run_dir().display().to_string(), ovs.restart_program()?);
    let bench = Bench::start(&format!("[ovs]\nrun_dir = {run_dir:?}\nrestart_command = [{program:?}]\n"));
    let wanted = json!({ "hw_offload": true, "restart": true });
    let first = bench.call("ovs.configure", wanted.clone()).unwrap();
    assert_eq!((&first["restarted"], &first["restart_needed"]), (&json!(true), &Value::Null), "{first:#}");
    let pid = bench.call("ovs.show", json!({})).unwrap()["pid"].clone();
    assert!(pid.is_u64() && pid != ovs.pid(), "{pid}");
    // Nothing waits for a restart any more, so there is none.
    assert_eq!(bench.call("ovs.configure", wanted).unwrap()["restarted"], false);
    assert_eq!(bench.call("ovs.show", json!({})).unwrap()["pid"], pid);
    Ok(())
}

#[test]
fn verify_tells_no_traffic_from_traffic_that_is_not_offloaded() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    ovs.add_bridge("br0")?;
    ovs.add_port("br0", "p1", &["ofport_request=1"])?;
    ovs.add_port("br0", "p2", &["ofport_request=2"])?;
    ovs.ofctl("br0", "add-flow", &["in_port=1,actions=output:2"])?;
    ovs.vsctl(&["set", "Open_vSwitch", ".", "other_config:hw-offload=true"])?;
    let bench = bench(&ovs);
    let verify = || bench.call("ovs.verify", json!({})).unwrap();
    assert_eq!(verify()["verdict"], "no-traffic");
    bench.until("the datapath's flow saw a packet", || {
        let packet = "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x1234)";
        ovs.receive("p1", packet).unwrap();
        let verified = verify();
        (verified["verdict"] == "not-working").then(|| assert_eq!(verified["datapaths"][0]["flows"], 1))
    });
    Ok(())
}

#[test]
fn open_vswitch_that_does_not_run_is_named_with_its_place() {
    let bench = Bench::start("[ovs]\nrun_dir = \"/nonexistent/ovs\"\n");
    for method in ["ovs.show", "ovs.verify", "ovs.configure"] {
        let error = bench.call(method, json!({})).unwrap_err();
        assert_eq!(kind(&error), "ovs-down");
        let message = error["message"].as_str().unwrap();
        assert!(message.contains("/nonexistent/ovs") && message.contains("ovs.run_dir"), "{message}");
    }
}

#[test]
fn flows_of_a_reason_or_a_port_that_is_not_there_are_not_asked_for_in_vain() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    ovs.add_bridge("br0")?;
    let bench = bench(&ovs);
    for method in ["flow.list", "flow.watch"] {
        let ask = |filter: Value| {
            let params = if method == "flow.list" { filter } else { json!({ "filter": filter }) };
            bench.call(method, params)
        };
        let refused = |filter: Value| {
            let error = ask(filter).unwrap_err();
            (kind(&error).to_owned(), error["message"].as_str().unwrap_or_default().to_owned())
        };
        let (word, message) = refused(json!({ "reason": "nonsense" }));
        assert_eq!(word, "invalid");
        assert!(
            message.contains("nonsense") && message.contains("match-conntrack, ") && message.contains("engine"),
            "{message}"
        );
        let (word, message) = refused(json!({ "port": "nope" }));
        assert_eq!(word, "not-found");
        assert!(message.contains("nope") && message.contains("ringspan ovs show"), "{message}");
        // What the datapath has beside what the database names.
        for port in ["br0", "vxlan_sys_4789", "ovs-netdev", "7"] {
            ask(json!({ "port": port, "reason": "output" })).unwrap();
        }
    }
    // Whether there is such a port nobody knows.
    drop(ovs);
    bench.call("flow.list", json!({ "port": "nope" })).unwrap();
    Ok(())
}

#[test]
fn flows_of_a_port_that_is_wanted_and_not_made_yet_are_waited_for() -> Result<()> {
    needs!(Ovs);
    let ovs = Ovs::start()?;
    let nics = "[[nic]]\nname = \"nic0\"\nvfs = 2\n[[nic]]\nname = \"nic1\"\nvfs = 1\nmode = \"legacy\"\n";
    let mut bench = Bench::stopped(&(config(&ovs) + nics));
    // Its lane does not start, so that nobody has the NICs.
    std::fs::write(bench.path("FAKE_LANE_DIES"), "")?;
    bench.boot();
    let watch = |port: &str| bench.call("flow.watch", json!({ "filter": { "port": port } }));
    for port in ["nic0", "nic0_vf0", "nic0_vf1"] {
        watch(port).unwrap();
        bench.call("flow.list", json!({ "port": port })).unwrap();
    }
    // No such VF, and one without a representor.
    for port in ["nic0_vf2", "nic1_vf0"] {
        assert_eq!(kind(&watch(port).unwrap_err()), "not-found", "{port}");
    }
    Ok(())
}
