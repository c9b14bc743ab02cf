//! Flows of the kernel's tunnels, and the network that they go through.

use std::io;
use std::net::IpAddr;
use std::time::Duration;

use ringspan_protocol::MacAddress;

use super::super::work::Work;
use super::{Fake, all_steps, line, round};
use crate::ovs::underlay::{Underlay, Way};

/// A flow from this port into a tunnel to this far end.
fn into(ufid: u128, from: &str, far: &str) -> String {
    let set = format!("set(tunnel(tun_id=0x64,dst={far},ttl=64,tp_dst=4789,flags(df|key))),vxlan_sys_4789");
    line(ufid, from, 0x1234, &set)
}

/// One that comes out of a tunnel.
fn out_of(ufid: u128) -> String {
    let tunnel =
        "recirc_id(0),tunnel(tun_id=0x64,src=172.16.0.2,dst=172.16.0.1,tos=0/0,ttl=0/0,tp_src=0/0,flags(-df-csum+key))";
    line(ufid, "vxlan_sys_4789", 0x1234, "nic0_vf1").replace("recirc_id(0)", tunnel)
}

#[test]
fn nothing_is_read_of_the_kernels_network_unless_it_is_asked_for_and_there_are_such_flows() {
    let lines = [into(1, "nic0_vf0", "172.16.0.2"), out_of(2), line(3, "nic0_vf0", 0x4321, "nic0_vf1")];
    let (mut work, fake) = (Work::new(1000, false), Fake::default());
    assert_eq!(round(&mut work, &fake, &lines), ["+3"]);
    assert_eq!(work.asks_underlay(), None);
    let fake = Fake::default();
    let mut work = Work::new(1000, true);
    assert_eq!(round(&mut work, &fake, &lines[2..]), ["+3"]);
    assert_eq!(work.asks_underlay(), None);
    round(&mut work, &fake, &lines);
    let (uplinks, far) = work.asks_underlay().expect("there are flows");
    assert_eq!((uplinks, far.len()), (["nic0".to_owned()].into(), 1));
}

#[test]
fn far_ends_are_those_of_the_flows_that_are_there_and_come_from_a_nic() {
    let (mut work, fake) = (Work::new(1000, true), Fake::default());
    let far = |work: &mut Work| work.asks_underlay().map(|(_, far)| far.len());
    round(&mut work, &fake, &[into(1, "nic0_vf0", "172.16.0.2"), into(2, "br0", "172.16.0.3")]);
    assert_eq!(far(&mut work), Some(1));
    round(&mut work, &fake, &[into(4, "nic0_vf0", "172.16.0.4")]);
    assert_eq!(far(&mut work), Some(1));
    round(&mut work, &fake, &[]);
    assert!(work.tunnels.is_empty());
    assert_eq!(far(&mut work), None);
}

#[test]
fn when_the_kernels_network_cannot_be_read_rules_stay_for_the_grace_time_and_no_longer() {
    let (mut work, fake) = (Work::new(1000, true), Fake::default());
    let (near, far): (IpAddr, IpAddr) = ("172.16.0.1".parse().unwrap(), "172.16.0.2".parse().unwrap());
    let mac = |last| MacAddress([2, 0, 0, 0, 0x0b, last]);
    let way = Way { interface: "nic0".into(), eth_src: mac(1), eth_dst: mac(2), src: near, own: vec![near] };
    let known = || Ok(Underlay::of(&[(far, way.clone())], &[], &[]));
    let failed = || Err(io::Error::from(io::ErrorKind::OutOfMemory));
    assert_eq!(round(&mut work, &fake, &[into(1, "nic0_vf0", "172.16.0.2")]), [""; 0]);
    let log = |work: &mut Work| {
        all_steps(work, &fake);
        fake.log()
    };
    for _ in 0..2 {
        work.underlay_read(known(), Duration::MAX);
        assert_eq!((log(&mut work), work.tunnels.trouble.is_some()), (vec!["+1".to_owned()], false));
        work.underlay_read(failed(), Duration::MAX);
        assert_eq!((log(&mut work), work.tunnels.trouble.is_some()), (vec![], false));
        work.underlay_read(failed(), Duration::ZERO);
        assert_eq!(log(&mut work), ["-1"]);
        assert!(work.tunnels.trouble.as_ref().is_some_and(|trouble| trouble.message.contains("cannot be read")));
    }
    // When no flow wants it, it is no trouble, and what was read is not believed later.
    work.underlay_read(known(), Duration::MAX);
    round(&mut work, &fake, &[]);
    assert_eq!(work.asks_underlay(), None);
    assert_eq!(round(&mut work, &fake, &[into(2, "nic0_vf0", "172.16.0.2")]), [""; 0]);
}
