//! Flows of the kernel's tunnels, and the network that they go through.

use super::super::work::Work;
use super::{Fake, line, round};

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
