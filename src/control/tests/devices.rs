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

/// A card with two VFs that the file asks for. Their links lie there already, as if the kernel had just made them.
#[test]
fn what_was_applied_is_so_again_after_a_restart_and_the_wire_is_known() {
    let mut bench = Bench::stopped("");
    let sysfs = bench.path("sys");
    nic(&sysfs, "0000:01:00.0", "0x10c9", &[("sriov_totalvfs", "2"), ("sriov_numvfs", "0")]);
    let pf = sysfs.join("bus/pci/devices/0000:01:00.0");
    for (number, address) in ["0000:01:10.0", "0000:01:10.2"].into_iter().enumerate() {
        nic(&sysfs, address, "0x10ca", &[]);
        std::os::unix::fs::symlink(format!("../{address}"), pf.join(format!("virtfn{number}"))).unwrap();
        std::os::unix::fs::symlink("../0000:01:00.0", sysfs.join("bus/pci/devices").join(address).join("physfn"))
            .unwrap();
    }
    fs::create_dir_all(pf.join("net/up0")).unwrap();
    fs::write(pf.join("net/up0/type"), "1\n").unwrap();
    std::os::unix::fs::symlink(&pf, pf.join("net/up0/device")).unwrap();
    fs::create_dir_all(sysfs.join("class/net")).unwrap();
    std::os::unix::fs::symlink(pf.join("net/up0"), sysfs.join("class/net/up0")).unwrap();
    let at = sysfs.display();
    bench.write_config(&format!("[host]\nsysfs = \"{at}\"\npci_ids = \"{at}/pci.ids\"\n"));
    let file = bench.path("host.conf");
    let local = bench.path("none.conf");
    fs::write(
        &file,
        format!("networks:\n- up0/br1/wire7\nsriov_nics: [up0]\nlocal_config_file: {}\n", local.display()),
    )
    .unwrap();
    bench.boot();
    let count = || fs::read_to_string(pf.join("sriov_numvfs")).unwrap().trim().to_owned();
    let dry = bench.call("host.apply", json!({ "file": file, "dry_run": true })).unwrap();
    assert_eq!((&dry["items"][0]["outcome"], count().as_str()), (&json!("would-change"), "0"), "{dry}");
    let applied = bench.call("host.apply", json!({ "file": file })).unwrap();
    assert_eq!((&applied["items"][0]["outcome"], count().as_str()), (&json!("changed"), "2"), "{applied}");
    let again = bench.call("host.apply", json!({ "file": file })).unwrap();
    assert_eq!(again["items"][0]["outcome"], "unchanged", "{again}");
    let device = bench.call("device.get", json!({ "device": "01:10.0" })).unwrap();
    assert_eq!(device["wire"], "wire7", "{device}");
    // The machine starts anew: the daemon does by itself what it was told last.
    bench.stop(crate::control::Ending::LeaveLanes);
    fs::write(pf.join("sriov_numvfs"), "0\n").unwrap();
    bench.boot();
    bench.until("the VFs are there again", || (count() == "2").then_some(()));
    bench.until("it is told", || {
        bench
            .events_after(0)
            .iter()
            .any(|event| event["event"] == "host-applied" && event["changed"] == 1)
            .then_some(())
    });
}

#[test]
fn what_an_earlier_daemon_was_killed_amid_is_finished_by_the_next_one() {
    let mut bench = Bench::stopped("");
    let sysfs = bench.path("sys");
    nic(&sysfs, "0000:01:00.0", "0x10c9", &[("sriov_totalvfs", "1"), ("sriov_numvfs", "0")]);
    nic(&sysfs, "0000:01:10.0", "0x10ca", &[]);
    let (pf, vf) = (sysfs.join("bus/pci/devices/0000:01:00.0"), sysfs.join("bus/pci/devices/0000:01:10.0"));
    std::os::unix::fs::symlink("../0000:01:10.0", pf.join("virtfn0")).unwrap();
    std::os::unix::fs::symlink("../0000:01:00.0", vf.join("physfn")).unwrap();
    let bind = sysfs.join("bus/pci/drivers/igbvf/bind");
    fs::create_dir_all(bind.parent().unwrap()).unwrap();
    fs::write(&bind, "").unwrap();
    fs::create_dir_all(sysfs.join("class/net")).unwrap();
    let at = sysfs.display();
    bench.write_config(&format!("[host]\nsysfs = \"{at}\"\npci_ids = \"{at}/pci.ids\"\n"));
    // As it is written down before the first step, and a VF without its driver for a moment.
    let state = bench.path("state/host.json");
    fs::create_dir_all(state.parent().unwrap()).unwrap();
    let change =
        json!({ "change": "enable-vfs", "pf": "0000:01:00.0", "count": 1, "disturb": false, "timeout_ms": 5000 });
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let begun = json!({ "change": change, "boot": boot.trim(), "unbound": { "0000:01:10.0": "igbvf" } });
    fs::write(&state, json!({ "begun": begun }).to_string()).unwrap();
    bench.boot();
    let told =
        bench.until("it is told", || bench.events_after(0).into_iter().find(|event| event["event"] == "host-finished"));
    assert_eq!((&told["what"], &told["error"]), (&json!("changing the number of VFs of 0000:01:00.0"), &json!(null)));
    assert_eq!(fs::read_to_string(pf.join("sriov_numvfs")).unwrap().trim(), "1");
    assert_eq!(fs::read_to_string(&bind).unwrap(), "0000:01:10.0");
    let left = || fs::read_to_string(&state).unwrap().contains("begun");
    assert!(!left());
    // What ends as it should leaves nothing of that kind.
    bench.call("vf.enable", json!({ "pf": "01:00.0", "count": 1 })).unwrap();
    assert!(!left());
}
