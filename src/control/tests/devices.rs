//! The inventory over the socket: of a made-up sysfs, by the daemon as it runs on a host with no port.

use std::fs;
use std::path::Path;

use serde_json::json;

use super::{Bench, kind};

fn nic(sysfs: &Path, address: &str, device: &str, more: &[(&str, &str)]) {
    let folder = sysfs.join("bus/pci/devices").join(address);
    fs::create_dir_all(&folder).unwrap();
    let usual = [("class", "0x020000"), ("vendor", "0x8086"), ("device", device)];
    for (name, text) in usual.iter().chain(more) {
        fs::write(folder.join(name), format!("{text}\n")).unwrap();
    }
}

#[test]
fn devices_are_listed_shown_and_refused_over_the_socket() {
    let mut bench = Bench::stopped("");
    let sysfs = bench.path("sys");
    fs::create_dir_all(sysfs.join("class/net")).unwrap();
    let at = sysfs.display();
    bench.write_config(&format!("[host]\nid = \"host-1\"\nsysfs = \"{at}\"\npci_ids = \"{at}/pci.ids\"\n"));
    bench.boot();
    assert_eq!(bench.call("device.list", json!({})).unwrap(), json!([]));
    nic(&sysfs, "0000:01:00.0", "0x10c9", &[("sriov_totalvfs", "7"), ("sriov_numvfs", "1")]);
    nic(&sysfs, "0000:01:10.0", "0x10ca", &[]);
    let (pf, vf) = (sysfs.join("bus/pci/devices/0000:01:00.0"), sysfs.join("bus/pci/devices/0000:01:10.0"));
    std::os::unix::fs::symlink("../0000:01:10.0", pf.join("virtfn0")).unwrap();
    std::os::unix::fs::symlink("../0000:01:00.0", vf.join("physfn")).unwrap();
    fs::write(sysfs.join("pci.ids"), "8086  Intel Corporation\n\t10ca  82576 Virtual Function\n").unwrap();
    let devices = bench.call("device.list", json!({})).unwrap();
    assert_eq!((&devices[1]["addr"], &devices[1]["vf"]), (&json!("01:10.0"), &json!(0)));
    assert_eq!((&devices[1]["model"], &devices[1]["host_id"]), (&json!("82576 Virtual Function"), &json!("host-1")));
    let id = &devices[1]["id"];
    assert_eq!(bench.call("device.get", json!({ "device": id })).unwrap(), devices[1]);
    assert_eq!(bench.call("pf.get", json!({ "pf": "01:00.0" })).unwrap()["sriov"], json!({ "total": 7, "enabled": 1 }));
    assert_eq!(bench.call("pf.list", json!({})).unwrap().as_array().unwrap().len(), 1);
    for (method, params, wrong) in [
        ("device.get", json!({ "device": "eth7" }), "not-found"),
        ("pf.get", json!({ "pf": "01:10.0" }), "invalid"),
        ("pf.get", json!({}), "usage"),
    ] {
        assert_eq!(kind(&bench.call(method, params).unwrap_err()), wrong, "{method}");
    }
    // A port that names the function owns it, whether its lane can make it or not.
    let _ = bench.add("vm1", "pci:0000:01:10.0");
    if bench.call("port.get", json!({ "name": "vm1" })).is_ok() {
        assert_eq!(bench.call("device.get", json!({ "device": "01:10.0" })).unwrap()["owner"], "vm1");
    }
}
