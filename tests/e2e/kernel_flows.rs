//! The kernel's own OVS datapath, in a guest: what ringspan reads from the kernel is what OVS's tools print.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use ringspan_testkit::qemu::{Guest, GuestSpec};
use ringspan_testkit::{needs, paths};

/// A datapath of its own, with two ports; no switch that would take flows away.
const DATAPATH: &str = "modprobe openvswitch && modprobe veth && ovs-dpctl add-dp dp0 && ip link add v1 type veth peer name w1 \
     && ip link add v2 type veth peer name w2 && ovs-dpctl add-if dp0 v1 && ovs-dpctl add-if dp0 v2";

/// One of each kind of match and action that the kernel takes, as matches and actions of `ovs-dpctl add-flow`.
const FLOWS: &[(&str, &str)] = &[
    (
        "in_port(1),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(src=10.0.0.1,dst=10.0.0.0/255.255.255.0,proto=6,ttl=64,frag=no),tcp(src=80,dst=0x1000/0xf000),tcp_flags(+syn-ack)",
        "2",
    ),
    (
        "in_port(1),eth(src=02:00:00:00:00:02),eth_type(0x0800),ipv4(proto=17,tos=0x10/0xfc,frag=first),udp(dst=53)",
        "set(ipv4(ttl=9)),set(eth(dst=02:00:00:00:00:09)),2",
    ),
    (
        "in_port(1),eth(src=02:00:00:00:00:03),eth_type(0x0800),ipv4(proto=1,frag=no),icmp(type=8,code=0)",
        "push_vlan(vid=7,pcp=3),1,2",
    ),
    ("in_port(1),eth(src=02:00:00:00:00:04),eth_type(0x0800),ipv4(proto=132,frag=no),sctp(dst=5)", ""),
    (
        "in_port(1),eth(src=02:00:00:00:00:05),eth_type(0x86dd),ipv6(src=2001:db8::1,dst=2001:db8::/ffff:ffff::,label=0x12345,proto=58,hlimit=255,frag=no),icmpv6(type=135,code=0),nd(target=2001:db8::5,sll=02:00:00:00:00:01)",
        "2",
    ),
    (
        "in_port(1),eth(src=02:00:00:00:00:06),eth_type(0x0806),arp(sip=10.0.0.1,tip=10.0.0.2,op=1,sha=02:00:00:00:00:01)",
        "1",
    ),
    (
        "in_port(2),eth(src=02:00:00:00:00:07),eth_type(0x8100),vlan(vid=7,pcp=3),encap(eth_type(0x0800),ipv4(frag=no))",
        "pop_vlan,1",
    ),
    (
        "in_port(2),eth(src=02:00:00:00:00:08),eth_type(0x88a8),vlan(vid=8,pcp=0),encap(eth_type(0x8100),vlan(vid=9,pcp=1),encap(eth_type(0x0800),ipv4(frag=no)))",
        "pop_vlan,pop_vlan,1",
    ),
    (
        "recirc_id(0x5),skb_mark(0x7/0xff),in_port(2),ct_state(+est+trk-new),ct_zone(0x9),ct_mark(0x1/0x3),ct_label(0x1234/0xffff),eth(src=02:00:00:00:00:09),eth_type(0x0800),ipv4(frag=no)",
        "ct(commit,zone=9,mark=0x1/0x3,label=0x5/0xff,nat(src=10.0.0.5-10.0.0.9:1000-2000)),recirc(6)",
    ),
    (
        "tunnel(tun_id=0x7,src=192.0.2.1,dst=192.0.2.2,tos=0x0,ttl=64,flags(-df+csum+key)),in_port(2),eth(src=02:00:00:00:00:0a),eth_type(0x0800),ipv4(frag=no)",
        "set(tunnel(tun_id=0x8,dst=192.0.2.3,ttl=64,tp_dst=4789,flags(df|key))),1",
    ),
    (
        "in_port(2),eth(src=02:00:00:00:00:0b),eth_type(0x8847),mpls(label=100,tc=3,ttl=64,bos=1)",
        "add_mpls(label=5,tc=1,ttl=9,bos=0,eth_type=0x8847),1",
    ),
    (
        "in_port(2),eth(src=02:00:00:00:00:0c),eth_type(0x0800),ipv4(frag=no)",
        "sample(sample=25.0%,actions(1)),clone(push_vlan(vid=1,pcp=0),1),trunc(100),2",
    ),
    (
        "in_port(2),eth(src=02:00:00:00:00:0d),eth_type(0x0800),ipv4(frag=no)",
        "check_pkt_len(size=1500,gt(1),le(2)),userspace(pid=5,userdata(0102)),ct_clear,2",
    ),
];

#[test]
fn flows_of_the_kernel_are_printed_as_ovs_prints_them_and_changes_are_told() -> Result<()> {
    needs!(Root, Guest, Ringspan, Program("ovs-dpctl"));
    let mut guest = Guest::boot(&GuestSpec::default())?;
    let ringspan = guest.path_of(&paths::program("ringspan")?);
    guest.sh(DATAPATH)?;
    // It listens before it asks what there is: once the first flow is told, so will be all that follow.
    let first = "in_port(1),eth(src=02:00:00:00:00:ff),eth_type(0x0800),ipv4(frag=no)";
    guest.sh(&format!(
        "ovs-dpctl add-flow dp0 '{first}' 2
         {ringspan} flow dump --datapath dp0 --follow >/run/told 2>&1 &
         until grep -q 02:00:00:00:00:ff /run/told; do sleep 0.1; done"
    ))?;
    for (number, (matches, actions)) in FLOWS.iter().enumerate() {
        guest.sh(&format!("ovs-dpctl add-flow dp0 '{},{matches}' '{actions}'", name(number)))?;
    }
    // The first one has no name, and OVS prints it in another way.
    guest.sh(&format!("ovs-dpctl del-flow dp0 '{first}'"))?;
    let sorted = |text: String| {
        let mut lines: Vec<String> = text.lines().map(String::from).collect();
        lines.sort();
        lines
    };
    let theirs = sorted(guest.sh("ovs-dpctl --no-names -m dump-flows dp0")?);
    let ours = sorted(guest.sh(&format!("{ringspan} flow dump --datapath dp0"))?);
    ensure!(ours == theirs && ours.len() == FLOWS.len(), "the kernel's flows are\n{theirs:#?}\nand not\n{ours:#?}");

    let second = FLOWS[1].0;
    guest.sh(&format!(
        "ovs-dpctl mod-flow dp0 '{},{second}' 1 && ovs-dpctl del-flow dp0 '{},{second}'",
        name(1),
        name(1)
    ))?;
    guest.sh(&format!("until grep -q '^- {}' /run/told; do sleep 0.1; done", name(1)))?;
    let told = guest.sh("sed 1d /run/told")?;
    let mut told = told.lines();
    for line in &theirs {
        ensure!(
            told.next().is_some_and(|told| told.strip_prefix("+ ") == Some(line)),
            "it was not told that there is\n{line}"
        );
    }
    ensure!(told.next() == Some("- a flow without a name"), "the end of the first flow was not told");
    let changed = told.next().context("that the flow is another one was not told")?;
    ensure!(changed.starts_with(&format!("+ {},", name(1))) && changed.ends_with("actions:1"), "told was {changed}");
    ensure!(told.next() == Some(&format!("- {}", name(1))) && told.next().is_none(), "more was told");
    let absent = guest.run(&format!("{ringspan} flow dump --datapath dp1"), Duration::from_secs(20))?;
    ensure!(absent.text.contains("no datapath `dp1`; there is dp0"), "without a datapath: {}", absent.text);
    Ok(())
}

/// Open vSwitch with its kernel datapath, and a daemon with a software NIC, whose uplink is a TAP.
///
/// It starts when the guest is ten seconds old. Before that, OVS 3.1 counts no processor: lib/ovs-thread.c, count_cpu_cores(),
/// looks only when ten seconds passed since it last did, and the clock began at zero. Without a processor no thread of it takes
/// packets from the kernel, then or later.
const SWITCH: &str = "set -e
    until [ $(cut -d. -f1 /proc/uptime) -ge 10 ]; do sleep 0.2; done
    modprobe openvswitch; modprobe tun; mkdir -p /run/openvswitch /run/ringspan
    ovsdb-tool create /run/conf.db /usr/share/openvswitch/vswitch.ovsschema
    ovsdb-server --remote=punix:/run/openvswitch/db.sock --detach --pidfile=/run/openvswitch/ovsdb-server.pid --no-chdir /run/conf.db
    ovs-vsctl --no-wait init
    ovs-vswitchd --detach --pidfile=/run/openvswitch/ovs-vswitchd.pid --no-chdir --log-file=/run/ovs.log unix:/run/openvswitch/db.sock
    printf '%s\\n' '[control]' 'socket = \"/run/ringspan/control.sock\"' 'state_dir = \"/run/ringspan/state\"' 'run_dir = \"/run/ringspan/run\"' \
        '[dataplane]' 'cores = [0]' 'memory_mib = 128' 'huge_pages = \"off\"' '[ovs]' 'run_dir = \"/run/openvswitch\"' \
        '[[nic]]' 'name = \"nic0\"' 'vfs = 2' 'uplinks = [\"vdev:net_tap0,iface=up0,mac=02:00:00:00:0a:01\"]' >/run/ringspan/config.toml";

/// Without an answer each packet is one more of the same flow.
const SEND: &str = "ip link set up0 up; ip addr replace 10.0.0.1/24 dev up0; \
    ip neigh replace 10.0.0.2 lladdr 02:00:00:00:00:02 dev up0; ping -q -c 20 -i 0.05 -W 1 10.0.0.2 >/dev/null; true";

#[test]
fn flows_of_the_kernels_datapath_are_in_the_nic_as_soon_as_the_kernel_tells() -> Result<()> {
    needs!(Root, Guest, Ringspan, Ovs);
    let mut guest = Guest::boot(&GuestSpec { memory_mib: 1024, cpus: 2, ..GuestSpec::default() })?;
    let ringspan = guest.path_of(&paths::program("ringspan")?);
    guest.sh(SWITCH)?;
    guest.sh(&format!(
        "export OVS_RUNDIR=/run/openvswitch; {ringspan} serve --config /run/ringspan/config.toml >/run/ringspan/log 2>&1 &
         export RINGSPAN_CONTROL=/run/ringspan/control.sock
         for try in $(seq 600); do {ringspan} nic show nic0 2>/dev/null | grep -q nic0_vf1 && break; sleep 0.1; done; ip link show nic0_vf1 || cat /run/ringspan/log"
    ))?;
    guest.sh("set -e; ovs-vsctl add-br br0 -- set Bridge br0 fail_mode=secure
         for port in nic0 nic0_vf0 nic0_vf1; do ovs-vsctl add-port br0 $port; done
         ovs-ofctl add-flow br0 in_port=nic0,actions=output:nic0_vf0")?;
    let cli = format!("RINGSPAN_CONTROL=/run/ringspan/control.sock {ringspan}");
    let look = |guest: &mut Guest, output: &str| -> Result<serde_json::Value> {
        let mut seen = serde_json::Value::Null;
        for _ in 0..30 {
            guest.sh(SEND)?;
            let flows = guest.sh(&format!("{cli} flow list --state offloaded --json"))?;
            let flows: serde_json::Value = serde_json::from_str(&flows).context(flows)?;
            let found = flows["flows"].as_array().into_iter().flatten().find(|flow| {
                flow["actions"] == output && flow["rule"]["packets"].as_u64().is_some_and(|packets| packets > 20)
            });
            if let Some(flow) = found {
                return Ok(flow.clone());
            }
            seen = flows;
        }
        let story = guest.sh(&format!(
            "{cli} flow list --why; {cli} flow stats; {cli} nic show nic0; ip -s link; ovs-vsctl show; ovs-ofctl dump-ports br0; ovs-ofctl dump-flows br0; \
             ovs-appctl dpctl/dump-flows -m --names; ovs-appctl dpctl/show -s; cat /run/ovs.log /run/ringspan/log"
        ))?;
        anyhow::bail!("no flow to {output} is offloaded and hit: {seen:#}\n{story}")
    };
    let flow = look(&mut guest, "nic0_vf0")?;
    ensure!(
        flow["nic"] == "nic0" && flow["match"].as_str().is_some_and(|keys| keys.contains("in_port(nic0)")),
        "{flow}"
    );
    let stats = guest.sh(&format!("{cli} flow stats"))?;
    ensure!(stats.contains("the kernel's datapath tells of changes at once"), "{stats}");
    // What OVS decides next is told by the kernel, not found by a dump.
    guest.sh("ovs-ofctl mod-flows br0 in_port=nic0,actions=output:nic0_vf1")?;
    look(&mut guest, "nic0_vf1")?;
    guest.sh("ovs-ofctl mod-flows br0 in_port=nic0,actions=drop; ovs-vsctl del-port br0 nic0")?;
    let gone = guest.sh(&format!(
        "for try in $(seq 100); do {cli} flow list --state offloaded | grep -q nic0_vf1 || break; sleep 0.1; done
         {cli} flow list --state offloaded; kill $(cat /run/openvswitch/ovs-vswitchd.pid)"
    ))?;
    ensure!(!gone.contains("nic0_vf1"), "rules outlive their port: {gone}");
    Ok(())
}

/// OVS's name of a flow.
fn name(number: usize) -> String {
    format!("ufid:{number:08x}-0000-4000-8000-00000000abcd")
}
