//! Cards made what the agent's files say, on made-up hosts.

use ringspan_protocol::PciAddress;
use serde_json::json;

use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::conf::{Item, carry_out};

use super::eswitch::nic_of;
use super::owned_by;
use super::tree::{CX5, Kind};

fn item(kind: &str, switchdev: bool) -> Item {
    let item = json!({ "interface": "eth0", "kind": kind, "bridge": "br1", "wire": "w1", "from": "host.conf:1",
        "standing": "to-do", "steps": [], "vfs": 2, "switchdev": switchdev });
    serde_json::from_value(item).unwrap()
}

fn carried(host: &Host, item: &Item, owner: impl Fn(PciAddress) -> Option<String>) -> (Vec<String>, Result<(), Error>) {
    let mut done = vec![];
    let result = carry_out(host, item, &owned_by(&owner), &mut done);
    (done, result)
}

/// Where in the list a step is that contains this.
fn at(done: &[String], text: &str) -> usize {
    done.iter().position(|one| one.contains(text)).unwrap_or_else(|| panic!("no {text:?} in {done:#?}"))
}

#[test]
fn a_connectx_gets_names_then_functions_then_its_mode_and_goes_back() {
    let (tree, kernel, host) = nic_of(Kind { total: 2, ..CX5 }, "0");
    let (done, result) = carried(&host, &item("ovs-offload", false), |_| None);
    result.unwrap();
    let order = [
        "82-net-setup-link.rules",
        "hw-tc-offload of eth0 is on",
        "smfs",
        "eth0 has 2 virtual functions",
        "is in switchdev mode",
    ];
    assert!(order.map(|text| at(&done, text)).is_sorted(), "{done:#?}");
    assert!(tree.path("udev/82-net-setup-link.rules").exists());
    // Once more there is nothing to do.
    let (done, result) = carried(&host, &item("ovs-offload", true), |_| None);
    assert!(done.is_empty() && result.is_ok(), "{done:?} {result:?}");
    let (done, result) = carried(&host, &item("sriov", true), |_| None);
    result.unwrap();
    at(&done, "is in legacy mode");
    let changes = kernel.0.lock().unwrap().changes.clone();
    assert_eq!(changes.iter().filter(|change| change.contains("Mode(")).count(), 2, "{changes:?}");
}

#[test]
fn an_ice_gets_its_mode_before_its_functions() {
    let (_, _, host) = nic_of(Kind { pf_driver: "ice", total: 2, ..CX5 }, "0");
    let (done, result) = carried(&host, &item("ovs-offload", false), |_| None);
    result.unwrap();
    assert!(at(&done, "is in switchdev mode") < at(&done, "eth0 has 2 virtual functions"), "{done:#?}");
}

#[test]
fn a_guests_function_stops_it_and_what_was_done_before_is_told() {
    let (tree, _, host) = nic_of(Kind { total: 2, ..CX5 }, "2");
    let owned = |address: PciAddress| (address.to_string() == "0000:0a:00.3").then(|| "vm1".to_owned());
    let (done, result) = carried(&host, &item("ovs-offload", false), owned);
    let error = result.unwrap_err();
    assert!(error.kind == ErrorKind::Busy && error.message.contains("the port vm1 has VF 1"), "{error}");
    at(&done, "hw-tc-offload of eth0 is on");
    assert_eq!(tree.driver_of("0000:0a:00.3").as_deref(), Some("mlx5_core"));
}
