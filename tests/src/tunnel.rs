//! Two hosts, each with a software NIC and an Open vSwitch of its own, and a VXLAN or GENEVE tunnel between them: what one guest sends comes to
//! the other, and the NICs make and take off the outer headers.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::guest::crossing::{self, End, Ways};
use crate::guest::loopback::{Lengths, Plan};
use crate::guest::{Guest, NetHeader, Options};
use crate::netns::Netns;
use crate::ovs::Ovs;
use crate::wait;

/// Which datapath of Open vSwitch's the tunnel is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Datapath {
    /// That of ovs-vswitchd. The uplink's representor is on a bridge that has the host's address.
    Userspace,
    /// The kernel's. The uplink's representor has the host's address itself.
    Kernel,
}

impl Datapath {
    /// What stands among the actions of a flow into a tunnel.
    fn out(self) -> &'static str {
        match self {
            Self::Userspace => "tnl_push(",
            Self::Kernel => "set(tunnel(",
        }
    }
}

/// What was seen.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// Frames each way of the last crossing.
    pub frames: u64,
    /// Of them those that rules put into the tunnel, and took out of it: the lesser of both hosts.
    pub by_rules: (u64, u64),
}

const SOON: Duration = Duration::from_secs(120);

/// The parts end in the order of the fields.
struct Host {
    datapath: Datapath,
    guest: Guest,
    daemon: Daemon,
    ovs: Ovs,
    net: Netns,
}

impl Host {
    /// A NIC whose uplink is the interface `up0` of the namespace. Its uplink's representor is on a bridge that has this host's address
    /// in the underlay, its VF's representor on another, which has a tunnel to `peer`.
    fn new(net: Netns, datapath: Datapath, kind: &str, address: IpAddr, peer: IpAddr) -> Result<Self> {
        let ovs = match datapath {
            Datapath::Userspace => Ovs::start_in(Some(&net))?,
            Datapath::Kernel => Ovs::start_with_kernel_in(&net)?,
        };
        // Also where all takes long, flows stay that no packet uses for a while.
        ovs.vsctl(&["set", "Open_vSwitch", ".", "other_config:max-idle=600000"])?;
        let kernel_tunnels = datapath == Datapath::Kernel;
        let config = format!(
            "[ovs]\nrun_dir = \"{}\"\nkernel_tunnels = {kernel_tunnels}\n[dataplane]\nmemory_mib = 256\nhuge_pages = \"off\"\n\
             [[nic]]\nname = \"nic0\"\nvfs = 1\nuplinks = [\"vdev:net_af_packet0,iface=up0\"]\n",
            ovs.run_dir().display()
        );
        let daemon = Daemon::start(&config, Some(&net))?;
        daemon.wait_nic("nic0")?;
        daemon.add_port("vm0", "soft:nic0/vf0", &[])?;
        let guest = Guest::start(Options::new(daemon.path("vm0.sock")))?;
        let bridges = [("underlay", "nic0"), ("overlay", "nic0_vf0")];
        for (bridge, port) in &bridges[usize::from(datapath == Datapath::Kernel)..] {
            let kind = ovs.datapath_type();
            daemon.ok(&["ovs", "configure", "--bridge", bridge, "--datapath-type", kind, "--port", port])?;
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
        let has_address = if datapath == Datapath::Kernel { "nic0" } else { "underlay" };
        if address.is_ipv6() {
            net.sysctl(&format!("net.ipv6.conf.{has_address}.disable_ipv6=0"))?;
            net.ip(&["address", "add", &format!("{address}/64"), "dev", has_address, "nodad"])?;
        } else {
            net.ip(&["address", "add", &format!("{address}/24"), "dev", has_address])?;
        }
        net.ip(&["link", "set", has_address, "up"])?;
        ovs.ofctl("overlay", "del-flows", &[])?;
        ovs.ofctl("overlay", "add-flow", &["in_port=nic0_vf0,actions=output:tunnel0"])?;
        ovs.ofctl("overlay", "add-flow", &["in_port=tunnel0,actions=output:nic0_vf0"])?;
        Ok(Self { datapath, guest, daemon, ovs, net })
    }

    fn list(&self, filter: Value) -> Result<Vec<Value>> {
        let flows = self.daemon.call("flow.list", filter)?;
        Ok(flows["flows"].as_array().context("flows")?.clone())
    }

    /// Flows of the guest's that are in the NIC: out by the tunnel, and in from it.
    fn offloaded(&self) -> Result<Option<Vec<Value>>> {
        let flows = self.list(json!({ "state": "offloaded" }))?;
        let both = of(&flows, self.datapath.out(), "actions").next().is_some()
            && of(&flows, "tunnel(", "match").next().is_some();
        Ok(both.then_some(flows))
    }

    fn story(&self) -> String {
        let dump = self.ovs.appctl(&["dpctl/dump-flows", "-m", "--names"]).unwrap_or_else(|error| format!("{error:#}"));
        let nic = self.daemon.ok(&["nic", "show", "nic0"]).unwrap_or_default();
        format!("{nic}\n{}\n{dump}", self.daemon.ok(&["flow", "list", "--why"]).unwrap_or_default())
    }
}

/// Flows with this word in their match or their actions.
fn of<'a>(flows: &'a [Value], word: &'a str, place: &'a str) -> impl Iterator<Item = &'a Value> {
    flows.iter().filter(move |flow| flow[place].as_str().is_some_and(|text| text.contains(word)))
}

/// Packets that their rules forwarded.
fn by_rules(flows: &[Value], word: &str, place: &str) -> u64 {
    of(flows, word, place).filter_map(|flow| flow["rule"]["packets"].as_u64()).sum()
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

/// The longest frames whose outer headers, 50 bytes over IPv4 and 70 over IPv6, leave room for them on a wire for 1500.
fn longest(peer: IpAddr) -> usize {
    if peer.is_ipv6() { 1444 } else { 1464 }
}

fn cross(hosts: &mut [Host; 2], longest: usize, frames: u64) -> Result<()> {
    let [first, second] = hosts;
    let plan = Plan { lengths: Lengths::Between(60, longest), ..Plan::new(frames, 64).in_any_order() };
    crossing::run(&mut End::Guest(&mut first.guest), &mut End::Guest(&mut second.guest), Ways::Both, plan).map(drop)
}

/// The hosts' addresses in the underlay, over IPv4.
pub const IPV4: [&str; 2] = ["198.51.100.1", "198.51.100.2"];
/// The same over IPv6.
pub const IPV6: [&str; 2] = ["2001:db8::1", "2001:db8::2"];

/// Sends `frames` frames each way between hosts that have these addresses, until 99 % of them are forwarded by the NICs.
///
/// # Errors
/// A frame was lost or changed; the NICs do not have the flows, or do not forward by them.
pub fn run(kind: &str, datapath: Datapath, addresses: [&str; 2], frames: u64) -> Result<Seen> {
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
    let [near, far] = [addresses[0].parse()?, addresses[1].parse()?];
    let first = Host::new(first, datapath, kind, near, far)?;
    let mut hosts = [first, Host::new(second, datapath, kind, far, near)?];
    hosts[0].net.wait_ping(addresses[1], SOON)?;
    greet(&mut hosts)?;
    let settled = wait::until(SOON, "flows through the tunnel in both NICs", || {
        cross(&mut hosts, longest(far), 20)?;
        let [first, second] = [hosts[0].offloaded()?, hosts[1].offloaded()?];
        Ok(first.zip(second))
    });
    let (mut before, mut seen) = (settled.with_context(|| stories(&hosts))?, Vec::new());
    let done = wait::until(SOON, "frames each way of which the NICs forward 99 %", || {
        cross(&mut hosts, longest(far), frames)?;
        let after = (hosts[0].list(json!({ "state": "offloaded" }))?, hosts[1].list(json!({ "state": "offloaded" }))?);
        let rules = |word: &str, place: &str| {
            let by = |after: &[Value], before: &[Value]| {
                by_rules(after, word, place).saturating_sub(by_rules(before, word, place))
            };
            by(&after.0, &before.0).min(by(&after.1, &before.1))
        };
        let (out, back) = (rules(datapath.out(), "actions"), rules("tunnel(", "match"));
        seen.push((out, back));
        before = after;
        Ok((out.min(back) >= frames * 99 / 100).then_some((out, back)))
    });
    let by_rules = done.with_context(|| format!("sent out and taken in by rules: {seen:?}\n{}", stories(&hosts)))?;
    Ok(Seen { frames, by_rules })
}

fn stories(hosts: &[Host; 2]) -> String {
    hosts.iter().map(Host::story).collect::<Vec<_>>().join("\n--\n")
}
