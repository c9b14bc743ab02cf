//! The `rte_flow` engine by itself, on one device: for a look at what a driver takes, and for the end-to-end test of it.
//!
//! `rte_flow DEVICE` reads one command a line from standard input, and answers each with one line: `can`, `install RULE` (JSON, as `rule.list` prints it), `validate RULE`,
//! `remove ID`, `rules`, `counters`.

use std::collections::BTreeMap;
use std::io::BufRead;

use ringspan_dataplane::flow::engine::Engine;
use ringspan_dataplane::nic::{Device, DeviceConfig, Eal, EalConfig, FlowPort, HugePages};
use ringspan_protocol::{NicPort, Policy, ZeroCopy};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let device = std::env::args().nth(1).ok_or("name a device: rte_flow vdev:net_tap0,iface=flow0")?;
    Eal::start(&EalConfig {
        name: format!("rte-flow-{}", std::process::id()),
        memory_mib: 64,
        near: None,
        huge_pages: HugePages::Off,
    })?;
    let config = DeviceConfig {
        queues: 1,
        mtu: 1500,
        mac: None,
        promiscuous: Policy::Auto,
        allmulti: Policy::Auto,
        offloads: false,
        zero_copy: ZeroCopy::Off,
        zero_copy_from: None,
    };
    let (device, queues) = Device::open(&device.parse()?, &config)?;
    let at = FlowPort::of(&device);
    let ports = BTreeMap::from([(NicPort::Uplink, at.uplink())]);
    let mut engine = Engine::new(at, ports);
    for line in std::io::stdin().lock().lines() {
        let line = line?;
        let (command, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let answer = match command {
            "can" => serde_json::to_string(engine.capabilities())?,
            "install" => serde_json::to_string(&engine.install(vec![serde_json::from_str(rest)?]))?,
            "validate" => serde_json::to_string(&engine.validate(&[serde_json::from_str(rest)?]))?,
            "remove" => serde_json::to_string(&engine.remove(&[rest.parse()?]))?,
            "rules" => serde_json::to_string(&engine.list(None, 100))?,
            "counters" => serde_json::to_string(&engine.counters(None, 100))?,
            other => format!("no command {other}"),
        };
        println!("{answer}");
    }
    drop(engine);
    device.close(queues);
    Ok(())
}
