//! Tunnels between two hosts with a software NIC each, on Open vSwitch's userspace datapath.

use anyhow::Result;
use ringspan_testkit::needs;
use ringspan_testkit::tunnel::{self, Datapath};

#[test]
fn frames_cross_a_vxlan_tunnel_between_two_nics() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    tunnel::run("vxlan", Datapath::Userspace, tunnel::IPV4, 10_000).map(drop)
}

#[test]
fn frames_cross_a_geneve_tunnel_between_two_nics() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    tunnel::run("geneve", Datapath::Userspace, tunnel::IPV4, 10_000).map(drop)
}

#[test]
fn frames_cross_a_vxlan_tunnel_over_ipv6_between_two_nics() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    tunnel::run("vxlan", Datapath::Userspace, tunnel::IPV6, 10_000).map(drop)
}

#[test]
fn frames_cross_a_geneve_tunnel_over_ipv6_between_two_nics() -> Result<()> {
    needs!(Root, Ringspan, Ovs);
    tunnel::run("geneve", Datapath::Userspace, tunnel::IPV6, 10_000).map(drop)
}
