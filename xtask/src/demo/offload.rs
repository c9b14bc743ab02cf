//! The second act: two guests on VFs of the software NIC, Open vSwitch between them, and the moment when its flows go to the NIC.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::qemu::{Guest, GuestSpec};
use ringspan_testkit::{scene, wait};
use serde_json::{Value, json};

use super::Results;
use crate::step;

/// What the guests' VFs are called where Open vSwitch sees them, and the guests' addresses.
const GUESTS: [(&str, &str, &str); 2] = [("vm3", "nic0_vf0", "192.0.2.3"), ("vm4", "nic0_vf1", "192.0.2.4")];
/// Longest wait for what takes a fraction of a second.
const SOON: Duration = Duration::from_secs(30);

/// A NIC with a guest on each of its VFs, and a bridge that learns MAC addresses between them.
pub(super) fn set_up(daemon: &Daemon, limit: Duration) -> Result<[Guest; 2]> {
    step::say(
        "a switchdev NIC in software, its representors on a bridge of Open vSwitch, and a guest on each of two VFs",
    );
    daemon.ok(&["nic", "add", "nic0", "--vfs", "2"])?;
    for (_, representor, _) in GUESTS {
        daemon.ok(&["ovs", "configure", "--bridge", "br0", "--datapath-type", "netdev", "--port", representor])?;
    }
    let mut guests = Vec::new();
    for (vf, (port, ..)) in GUESTS.into_iter().enumerate() {
        daemon.add_port(port, &format!("soft:nic0/vf{vf}"), &[])?;
        let nics = daemon.qemu_args(port, &["--memory", "384M"])?;
        guests.push(Guest::start(&GuestSpec { nics, limit, ..GuestSpec::default() })?);
    }
    for (guest, (.., address)) in guests.iter_mut().zip(GUESTS) {
        guest.wait_ready()?;
        // Without IPv6's own chatter the list of flows is short.
        guest.sh(&format!(
            "sysctl -qw net.ipv6.conf.eth0.disable_ipv6=1; ip link set eth0 up && ip address add {address}/24 dev eth0"
        ))?;
    }
    println!("    {}", daemon.ok(&["nic", "list"])?.trim_end().replace('\n', "\n    "));
    guests.try_into().ok().context("two guests were started")
}

/// Pings from one guest to the other while the flows go to the NIC, then moves data; at the end hardly a packet went through OVS.
pub(super) fn show(daemon: &Daemon, guests: &mut [Guest; 2], results: &mut Results) -> Result<()> {
    let [first, second] = guests;
    let peer = GUESTS[1].2;
    step::say("the first packets go through Open vSwitch; then its flows are in the NIC");
    first.sh(&format!("ping -n -i 0.1 -c 50 {peer} > /tmp/ping 2>&1 &"))?;
    let begun = Instant::now();
    let mut last = String::new();
    let moment = wait::until(SOON, "the flows between the guests in the NIC", || {
        let flows = between(daemon)?;
        let now = flows.iter().map(line).collect::<Vec<_>>().join("\n    ");
        if now != last && !flows.is_empty() {
            println!("    +{:>4} ms\n    {now}", begun.elapsed().as_millis());
            last = now;
        }
        let inside = flows.len() == 2 && flows.iter().all(|flow| flow["state"] == "offloaded");
        Ok(inside.then(|| begun.elapsed()))
    })?;
    results.push(("from the first ping to both flows in the NIC", format!("{} ms", moment.as_millis())));

    scene::serve_iperf(second)?;
    let report = first.sh_for(Duration::from_secs(60), &format!("iperf3 -J -t 4 -c {peer}"))?;
    let report: Value = serde_json::from_str(&report).context("the report of iperf3")?;
    let rate = report["end"]["sum_received"]["bits_per_second"].as_f64().context("iperf3 received nothing")?;
    println!("    guest to guest: {:.0} Mbit/s", rate / 1e6);
    results.push(("iperf3, guest to guest through the NIC", format!("{:.0} Mbit/s", rate / 1e6)));

    println!("\n    ringspan flow list --why");
    daemon.ok(&["flow", "list", "--why"])?.lines().for_each(|line| println!("    {line}"));
    let flows = between(daemon)?;
    let sum = |path: &str| flows.iter().filter_map(|flow| flow[path]["packets"].as_u64()).sum::<u64>();
    let (slow, fast) = (sum("ovs"), sum("rule"));
    results.push(("packets through the NIC's rules, and through OVS", format!("{fast} and {slow}")));
    ensure!(fast > 50 * slow, "{slow} packets went through OVS, and only {fast} were forwarded by the NIC's rules");
    Ok(())
}

/// The two flows that carry IPv4 between the guests.
fn between(daemon: &Daemon) -> Result<Vec<Value>> {
    let flows = daemon.call("flow.list", json!({}))?;
    let flows = flows["flows"].as_array().context("flow.list has no flows")?;
    let ours = |flow: &&Value| {
        let (keys, actions) =
            (flow["match"].as_str().unwrap_or_default(), flow["actions"].as_str().unwrap_or_default());
        let to =
            |from: usize, to: usize| keys.contains(&format!("in_port({})", GUESTS[from].1)) && actions == GUESTS[to].1;
        keys.contains("eth_type(0x0800)") && (to(0, 1) || to(1, 0))
    };
    Ok(flows.iter().filter(ours).cloned().collect())
}

fn line(flow: &Value) -> String {
    let text = |key: &str| flow[key].as_str().unwrap_or("?").to_owned();
    let from = text("match");
    let from = from.split("in_port(").nth(1).and_then(|rest| rest.split(')').next()).unwrap_or("?").to_owned();
    format!("         {from} -> {}: {}, {} packets through OVS", text("actions"), text("state"), flow["ovs"]["packets"])
}
