//! The file and the ports added at run time, side by side.

use std::path::Path;

use ringspan_protocol::Compat;

use super::*;
use crate::config::{self, HostCores};

fn file(text: &str) -> Config {
    config::parse(Path::new("r.toml"), text, &HostCores { online: vec![0, 1] }).unwrap()
}

fn port(name: &str, device: &str, more: &str) -> String {
    format!("[[port]]\nname = \"{name}\"\nsocket = \"/run/{name}\"\ndevice = \"{device}\"\n{more}\n")
}

fn added(ports: &[(&str, &str, &str)]) -> Saved {
    let ports = ports.iter().map(|(name, device, lane)| {
        let text = format!(r#"{{"name":"{name}","socket":"/run/{name}","device":"{device}","compat":"1"}}"#);
        (name.parse().unwrap(), SavedPort { lane: lane.parse().unwrap(), spec: serde_json::from_str(&text).unwrap() })
    });
    Saved { ports: ports.collect(), ..Saved::default() }
}

fn room(config: &Config) -> Room {
    config.lanes.iter().map(|lane| (lane.name.clone(), 2)).collect()
}

fn build(config: &Config, saved: &Saved) -> Desired {
    Desired::build(config, saved, &room(config))
}

fn patch(name: &str, end: &str, more: &str) -> String {
    port(name, &format!("patch:x/{end}"), more)
}

#[test]
fn both_ends_of_a_patch_go_to_one_lane_and_have_the_same_queues() {
    // Where there are fewest ports would be the other lane.
    let config = file(&format!("{SECOND}{}{}", patch("vm1", "a", "lane = \"b\""), patch("vm2", "b", "")));
    let desired = build(&config, &Saved::default());
    assert_eq!(desired.ports[&"vm2".parse().unwrap()].lane.as_str(), "b", "{:?}", desired.aside);

    for (lane, queues, says) in [("main", 1, "lies in one lane"), ("b", 2, "has 1 queues")] {
        let desired = build(&file(&format!("{SECOND}{}", patch("vm1", "a", "lane = \"b\""))), &Saved::default());
        let text = format!(r#"{{"name":"vm2","socket":"/run/y","device":"patch:x/b","queues":{queues},"compat":"1"}}"#);
        let error = desired.claim(&serde_json::from_str(&text).unwrap(), &lane.parse().unwrap()).unwrap_err();
        assert!(error.message.contains("vm1") && error.message.contains(says), "{error}");
    }
    let twice = file(&format!("{SECOND}{}", patch("vm1", "a", "lane = \"b\"")));
    let desired = build(&twice, &added(&[("vm2", "patch:x/a", "main")]));
    assert!(desired.aside[0].reason.message.contains("the port vm1 has the device patch:x/a"), "{:?}", desired.aside);
}

const SECOND: &str = "[[lane]]\nname = \"b\"\ncores = [1]\n";

#[test]
fn the_files_port_is_made_and_an_equal_one_of_run_time_is_taken_over() {
    let config = file(&port("vm1", "vdev:net_null0", ""));
    let desired = build(&config, &added(&[("vm1", "vdev:net_null0", "main")]));
    assert_eq!((desired.ports[&"vm1".parse().unwrap()].origin, desired.aside.len()), (Origin::Config, 0));
    assert!(desired.saved().ports.is_empty());
}

#[test]
fn a_run_time_port_that_clashes_stands_aside_with_the_remedy_and_is_not_forgotten() {
    let config = file(&port("vm1", "vdev:net_null0", ""));
    for (name, device, says) in [
        ("vm1", "vdev:net_null7", "ringspan port remove vm1"),
        ("vm2", "vdev:net_null0,size=9", "the port vm1 has the device vdev:net_null0"),
    ] {
        let saved = added(&[(name, device, "main")]);
        let desired = build(&config, &saved);
        let aside = &desired.aside[0];
        assert_eq!((desired.ports.len(), aside.origin), (1, Origin::RunTime));
        assert!(aside.reason.message.contains(says), "{}", aside.reason);
        assert_eq!(desired.saved().ports, saved.ports);
        // Out of the file, it is made again.
        assert!(build(&file(""), &desired.saved()).ports.contains_key(&name.parse().unwrap()));
    }
}

#[test]
fn a_port_keeps_the_lane_and_the_features_it_was_given_first() {
    let config = file(&format!("{SECOND}{}", port("vm1", "vdev:net_null0", "")));
    let pin = Pin { lane: "b".parse().unwrap(), compat: Compat::V1 };
    let saved = Saved { config_ports: [("vm1".parse().unwrap(), pin.clone())].into(), ..Saved::default() };
    let desired = build(&config, &saved);
    assert_eq!(desired.ports[&"vm1".parse().unwrap()].lane, pin.lane);
    assert_eq!(desired.saved(), saved);
    // A lane that is not there any more is no reason to lose the port.
    let desired = build(&file(&port("vm1", "vdev:net_null0", "")), &saved);
    assert_eq!(desired.ports[&"vm1".parse().unwrap()].lane.as_str(), "main");
}

#[test]
fn ports_go_where_there_is_room_and_no_device_of_that_name() {
    let ports: String =
        (0..3).map(|n| port(&format!("vm{n}"), &format!("vdev:net_null{n}"), "")).collect::<Vec<_>>().join("");
    let config = file(&format!("{SECOND}{ports}{}", port("vm9", "vdev:net_null0", "")));
    let desired = build(&config, &Saved::default());
    let lane = |name: &str| desired.ports[&name.parse().unwrap()].lane.to_string();
    assert_eq!([lane("vm0"), lane("vm1"), lane("vm2")], ["main", "b", "main"]);
    assert_eq!(lane("vm9"), "b", "main has a net_null0 already");
}

#[test]
fn a_port_too_many_stands_aside_and_says_what_would_help() {
    let ports: String =
        (0..3).map(|n| port(&format!("vm{n}"), &format!("vdev:net_null{n}"), "")).collect::<Vec<_>>().join("");
    let desired = build(&file(&ports), &Saved::default());
    assert_eq!((desired.ports.len(), desired.aside[0].reason.kind), (2, ErrorKind::NoRoom));
    assert!(desired.aside[0].reason.message.contains("add a [[lane]]"));
}
