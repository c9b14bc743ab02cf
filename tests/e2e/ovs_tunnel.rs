//! Two hosts, each with a software NIC and an Open vSwitch of its own, and a VXLAN or GENEVE tunnel between them: what one guest sends comes to
//! the other, and the NICs make and take off the outer headers.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};
use ringspan_testkit::daemon::Daemon;
use ringspan_testkit::guest::crossing::{self, End, Ways};
use ringspan_testkit::guest::loopback::{Lengths, Plan};
use ringspan_testkit::guest::{Guest, NetHeader, Options};
use ringspan_testkit::netns::Netns;
use ringspan_testkit::ovs::Ovs;
use ringspan_testkit::{needs, wait};
use serde_json::{Value, json};

const SOON: Duration = Duration::from_secs(30);

/// The parts end in the order of the fields.
struct Host {
    guest: Guest,
    daemon: Daemon,
    ovs: Ovs,
    net: Netns,
}

impl Host {
    /// A NIC whose uplink is the interface `up0` of the namespace. Its uplink's representor is on a bridge that has this host's address
    /// in the underlay, its VF's representor on another, which has a tunnel to `peer`.
    fn new(net: Netns, kind: &str, address: Ipv4Addr, peer: Ipv4Addr) -> Result<Self> {
        let ovs = Ovs::start_in(Some(&net))?;
        let config = format!(
            "[ovs]\nrun_dir = \"{}\"\n[dataplane]\nmemory_mib = 256\nhuge_pages = \"off\"\n\
             [[nic]]\nname = \"nic0\"\nvfs = 1\nuplinks = [\"vdev:net_af_packet0,iface=up0\"]\n",
            ovs.run_dir().display()
        );
        let daemon = Daemon::start(&config, Some(&net))?;
        daemon.add_port("vm0", "soft:nic0/vf0", &[])?;
        let guest = Guest::start(Options::new(daemon.path("vm0.sock")))?;
        for (bridge, port) in [("underlay", "nic0"), ("overlay", "nic0_vf0")] {
            let words = ["ovs", "configure", "--bridge", bridge, "--datapath-type", "netdev", "--port", port];
            daemon.ok(&words)?;
        }
        let (kind, peer) = (format!("type={kind}"), format!("options:remote_ip={peer}"));
        ovs.vsctl(&[
            "add-port",
            "overlay",
            "tunnel0",
            "--",
            "set",
            "Interface",
            "tunnel0",
            &kind,
            &peer,
            "options:key=77",
        ])?;
        net.ip(&["address", "add", &format!("{address}/24"), "dev", "underlay"])?;
        net.ip(&["link", "set", "underlay", "up"])?;
        ovs.ofctl("overlay", "del-flows", &[])?;
        ovs.ofctl("overlay", "add-flow", &["in_port=nic0_vf0,actions=output:tunnel0"])?;
        ovs.ofctl("overlay", "add-flow", &["in_port=tunnel0,actions=output:nic0_vf0"])?;
        Ok(Self { guest, daemon, ovs, net })
    }

    fn list(&self, filter: Value) -> Result<Vec<Value>> {
        let flows = self.daemon.call("flow.list", filter)?;
        Ok(flows["flows"].as_array().context("flows")?.clone())
    }

    /// Flows of the guest's that are in the NIC: out by the tunnel, and in from it.
    fn offloaded(&self) -> Result<Option<Vec<Value>>> {
        let flows = self.list(json!({ "state": "offloaded" }))?;
        let has = |word: &str| flows.iter().any(|flow| flow.to_string().contains(word));
        Ok((has("tnl_push(") && has("tunnel(")).then_some(flows))
    }

    fn story(&self) -> String {
        let dump = self.ovs.appctl(&["dpctl/dump-flows", "-m", "--names"]).unwrap_or_else(|error| format!("{error:#}"));
        let nic = self.daemon.ok(&["nic", "show", "nic0"]).unwrap_or_default();
        format!("{nic}\n{}\n{dump}", self.daemon.ok(&["flow", "list", "--why"]).unwrap_or_default())
    }
}

/// Packets that rules of flows with this word in them forwarded.
fn by_rules(flows: &[Value], word: &str) -> u64 {
    let of = flows.iter().filter(|flow| flow.to_string().contains(word));
    of.filter_map(|flow| flow["rule"]["packets"].as_u64()).sum()
}

/// Sends frames of another type each way until one has come there: a switch that does not know the tunnel's far end yet asks for its MAC
/// address, and drops the frame that wanted to go there.
fn greet(hosts: &mut [Host; 2]) -> Result<()> {
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x88, 0xb6]);
    let mut came = [false; 2];
    wait::until(SOON, "a frame each way through the tunnel", || {
        for (host, came) in hosts.iter_mut().zip(&mut came) {
            let guest = &mut host.guest;
            guest.tx[0].reclaim();
            guest.tx[0].transmit(1, |_, room| {
                room.put_header(&NetHeader::default());
                room.put(0, &frame);
                frame.len()
            });
            guest.tx[0].ring().kick();
            guest.rx[0].receive(64, |_| *came = true);
            guest.rx[0].ring().kick();
        }
        Ok((came == [true; 2]).then_some(()))
    })
}

fn cross(hosts: &mut [Host; 2], frames: u64) -> Result<()> {
    let [first, second] = hosts;
    // The outer headers take 50 bytes, and the wire carries 1500.
    let plan = Plan { lengths: Lengths::Between(60, 1464), ..Plan::new(frames, 64).in_any_order() };
    crossing::run(&mut End::Guest(&mut first.guest), &mut End::Guest(&mut second.guest), Ways::Both, plan).map(drop)
}

fn a_tunnel(kind: &str) -> Result<()> {
    let nets = [Netns::new(&format!("{kind}-a"))?, Netns::new(&format!("{kind}-b"))?];
    for net in &nets {
        net.sysctl("net.ipv6.conf.default.disable_ipv6=1")?;
        net.sysctl("net.ipv6.conf.all.disable_ipv6=1")?;
    }
    let [first, second] = nets;
    first.ip(&[
        "link",
        "add",
        "up0",
        "mtu",
        "1600",
        "type",
        "veth",
        "peer",
        "name",
        "up0",
        "mtu",
        "1600",
        "netns",
        second.name(),
    ])?;
    for net in [&first, &second] {
        net.ip(&["link", "set", "up0", "up"])?;
    }
    let addresses = [Ipv4Addr::new(198, 51, 100, 1), Ipv4Addr::new(198, 51, 100, 2)];
    let first = Host::new(first, kind, addresses[0], addresses[1])?;
    let mut hosts = [first, Host::new(second, kind, addresses[1], addresses[0])?];
    hosts[0].net.wait_ping(&addresses[1].to_string(), SOON)?;
    greet(&mut hosts)?;
    let settled = wait::until(SOON, "flows through the tunnel in both NICs", || {
        cross(&mut hosts, 20)?;
        let [first, second] = [hosts[0].offloaded()?, hosts[1].offloaded()?];
        Ok(first.zip(second))
    });
    let (mut before, mut seen) = (settled.with_context(|| stories(&hosts))?, Vec::new());
    let done = wait::until(SOON, "10,000 frames each way of which the NICs forward 99 %", || {
        cross(&mut hosts, 10_000)?;
        let after = (hosts[0].list(json!({ "state": "offloaded" }))?, hosts[1].list(json!({ "state": "offloaded" }))?);
        let rules = |word: &str| {
            let by = |after: &[Value], before: &[Value]| by_rules(after, word).saturating_sub(by_rules(before, word));
            by(&after.0, &before.0).min(by(&after.1, &before.1))
        };
        let (out, back) = (rules("tnl_push("), rules("tunnel("));
        seen.push((out, back));
        before = after;
        Ok((out.min(back) >= 9_900).then_some(()))
    });
    done.with_context(|| format!("sent out and taken in by rules: {seen:?}\n{}", stories(&hosts)))
}

fn stories(hosts: &[Host; 2]) -> String {
    hosts.iter().map(Host::story).collect::<Vec<_>>().join("\n--\n")
}

#[test]
fn frames_cross_a_vxlan_tunnel_between_two_nics() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    a_tunnel("vxlan")
}

#[test]
fn frames_cross_a_geneve_tunnel_between_two_nics() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    a_tunnel("geneve")
}
