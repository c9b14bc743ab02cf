//! vDPA over the socket, on a host that has none: what is not there is named, and nothing stays.

use std::fs;

use ringspan_protocol::PortName;
use serde_json::json;

use super::{Bench, kind};
use crate::host::vdpa::{Book, Entry, Wish};

const DEVICE: &str = "vdpa:0000:0a:00.2";

fn bench(more: &str) -> Bench {
    let mut bench = Bench::stopped("");
    let sysfs = bench.path("sys");
    fs::create_dir_all(sysfs.join("class/net")).unwrap();
    bench.write_config(&format!("[host]\nsysfs = \"{}\"\n{more}", sysfs.display()));
    bench.boot();
    bench
}

/// A kernel without the bus does not support it; one that has it knows no such device.
fn is_missing(error: &serde_json::Value) -> bool {
    ["unsupported", "not-found"].contains(&kind(error))
}

#[test]
fn a_host_without_vdpa_says_what_is_missing_and_keeps_nothing() {
    let bench = bench("");
    let list = bench.call("vdpa.list", json!({ "statistics": true })).unwrap();
    assert!(list["problem"].is_null() || list["problem"].as_str().unwrap().contains("modprobe vdpa"), "{list}");
    let refused = bench.call("vdpa.add", json!({ "name": "vd0", "management": "0a:00.2" })).unwrap_err();
    assert!(is_missing(&refused), "{refused}");
    assert_eq!(bench.call("vdpa.remove", json!({ "name": "vd0" })).unwrap(), json!({ "done": [] }));
    let refused = bench.add("vm1", DEVICE).unwrap_err();
    assert!(is_missing(&refused) && refused["data"]["item"] == "vm1", "{refused}");
    assert_eq!(bench.call("port.list", json!({})).unwrap(), json!([]));
    for (method, params) in [
        ("vdpa.add", json!({ "name": "a/b", "management": "0a:00.2" })),
        ("vdpa.add", json!({ "name": "vd0", "management": "0a:00.2", "mtu": 60 })),
        ("vdpa.remove", json!({ "name": "" })),
    ] {
        assert_eq!(kind(&bench.call(method, params.clone()).unwrap_err()), "invalid", "{method} {params}");
    }
    assert_eq!(kind(&bench.call("vdpa.add", json!({ "name": "vd0" })).unwrap_err()), "usage");
}

#[test]
fn a_port_of_the_file_waits_for_its_device_with_the_reason() {
    let port = format!("[[port]]\nname = \"vm1\"\nsocket = \"/tmp/ringspan-none.sock\"\ndevice = \"{DEVICE}\"\n");
    let bench = bench(&port);
    bench.until("the port is refused", || (bench.phase("vm1") == "refused").then_some(()));
    let shown = bench.call("port.get", json!({ "name": "vm1" })).unwrap();
    assert_eq!(shown["spec"]["device"], DEVICE);
    assert!(shown["reason"].as_str().unwrap().contains("vDPA"), "{shown}");
    let report = bench.call("doctor.run", json!({})).unwrap();
    let check = report["findings"].as_array().unwrap().iter().find(|one| one["check"] == "vdpa").unwrap();
    assert!(check["message"].as_str().unwrap() != "no port wants a vDPA device", "{check}");
    // The function is the port's, by whatever name it is meant.
    let second = bench.add("vm2", "pci:0000:0a:00.2").unwrap_err();
    assert_eq!(kind(&second), "busy");
}

/// What is written down of a device of an earlier boot, of a port that is wanted no more.
fn left_of(port: PortName) -> Entry {
    let wish = Wish {
        name: format!("ringspan-{port}"),
        management: "0000:0a:00.2".into(),
        mac: None,
        mtu: None,
        max_vqp: None,
        features: None,
        disturb: false,
    };
    Entry { wish, boot: "earlier".into(), made: true, identity: None, driver: None, port: Some(port) }
}

#[test]
fn a_port_without_vdpa_waits_for_nobodys_vdpa_device() {
    let bench = bench("");
    let daemon = &bench.running.as_ref().unwrap().daemon;
    // Somebody asks the kernel about vDPA, and has no answer yet.
    let asking = daemon.vdpa.book.lock().unwrap();
    let left = [("ringspan-vm9".to_owned(), left_of("vm9".parse().unwrap()))];
    Book::save(&*daemon.state_dir, &left.into()).unwrap();
    let port = |name: &str, device: &str| {
        let socket = bench.path(&format!("{name}.sock"));
        format!("[[port]]\nname = \"{name}\"\nsocket = \"{}\"\ndevice = \"{device}\"\n", socket.display())
    };
    let sysfs = bench.path("sys");
    let host = format!("[host]\nsysfs = \"{}\"\n", sysfs.display());
    bench.write_config(&format!("{host}{}{}", port("vm1", DEVICE), port("vm2", "vdev:net_null2")));
    bench.call("config.reload", json!({ "wait": true })).unwrap();
    bench.add("vm3", "vdev:net_null3").unwrap();
    bench.call("port.set", json!({ "name": "vm3", "mtu": 9000 })).unwrap();
    bench.call("port.remove", json!({ "name": "vm3" })).unwrap();
    bench.call("lane.restart", json!({ "name": "main", "wait": true })).unwrap();
    for (name, phase) in [("vm1", "pending"), ("vm2", "listening")] {
        assert_eq!(bench.phase(name), phase, "{name}");
    }
    assert!(!Book::load(&*daemon.state_dir).unwrap().is_empty(), "somebody changed it meanwhile");
    drop(asking);
    bench.until("the device is found missing", || (bench.phase("vm1") == "refused").then_some(()));
    bench.until("the book is put right", || Book::load(&*daemon.state_dir).unwrap().is_empty().then_some(()));
}
