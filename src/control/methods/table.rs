//! The table of methods. To add one: its types and function in a file beside this one, and a row here.

use super::{
    Method, Nothing, attach, attach_stats, bond, daemon, device, doctor, flow, host, job, lane, nic, ovs, port,
    port_change, rule, typed, vdpa,
};
use crate::attach::Attach;
use crate::attach::sync::Synced;
use crate::control::jobs::Job;
use crate::control::peer::Role;
use crate::host::bind::Bound;
use crate::host::bond::{Bond, Delete as DeleteBond, Removed, Wish as BondWish};
use crate::host::conf::{Applied, Plan};
use crate::host::doctor::Report;
use crate::host::eswitch::{self, Eswitch};
use crate::host::firmware::{self, Firmware};
use crate::host::inventory::{Device, Pf};
use crate::host::sriov::Enabled;
use crate::host::udev::Named;
use crate::host::vdpa::{Added as VdpaAdded, Gone as VdpaGone, Vdpa, Wish as VdpaWish};
use crate::host::vf::{Set, Wish};
use crate::lanes::LaneView;
use crate::nic_request::NicRequest;
use crate::ovs::configure::{Configure, Configured};
use crate::ovs::mirror::{FlowFilter, FlowStats, Flows};
use crate::ovs::verify::Verified;
use crate::qemu_args::QemuArgs;

macro_rules! method {
    ($name:literal, $role:ident, $answer:path, $params:ty => $result:ty, $doc:literal, $given:expr => $gives:expr) => {
        Method {
            name: $name,
            role: Role::$role,
            doc: $doc,
            example: ($given, $gives),
            params: |generator| generator.subschema_for::<$params>(),
            result: |generator| generator.subschema_for::<$result>(),
            #[cfg(test)]
            check_example: super::check_example::<$params, $result>,
            answer: |call, params| typed::<$params, $result>(call, params, $name, $answer),
        }
    };
}

/// What examples show of a port.
macro_rules! vm1 {
    () => {
        r#"{"name":"vm1","lane":"main","origin":"run-time","phase":"listening","spec":{"name":"vm1","socket":"/run/ringspan/vm1.sock","role":"server","device":"vdev:net_null0,size=64,no-rx=1","queues":1,"mtu":1500,"promiscuous":"auto","allmulti":"auto","compat":"1","offloads":true,"zero_copy":"auto"}}"#
    };
}

/// What examples show of an attachment.
macro_rules! guest1 {
    () => {
        r#"{"guest":"guest1","nic":0,"mode":"vhost","stage":"attached","device":"soft:nic0/vf3","mac":"52:54:00:12:34:56","vlan":10,"port":"guest1-nic0","representor":"nic0_vf3","bridge":"br0","wanted":{"guest":"guest1","nic":0,"mode":"vhost","wire":"br0","mac":"52:54:00:12:34:56","vlan":10,"min_rate":0,"max_rate":1000,"queues":1,"mtu":1500,"role":"server"}}"#
    };
}

/// What examples show of a NIC.
macro_rules! nic0 {
    () => {
        r#"{"name":"nic0","lane":"main","origin":"run-time","spec":{"name":"nic0","vfs":4,"uplinks":["vdev:net_tap0,iface=up0"],"bond":"active-backup","mode":"switchdev","mtu":1500}}"#
    };
}

/// What examples show of a device.
macro_rules! vf0 {
    () => {
        r#"{"id":"eb154da3-c127-83ce-b362-b1f64bfd8cd5","dev_type":"NIC","sharing_mode":"SRIOV","model":"ConnectX-5 Virtual Function","lspci_name":"Mellanox Technologies MT27800 Family [ConnectX-5 Virtual Function]","address":"0000:0a:00.2","addr":"0a:00.2","vendor_device_id":"15b3:1018","pf":"0000:0a:00.0","pf_interface":"eth0","vf":0,"driver":"mlx5_core","numa_node":0,"iommu_group":41,"interface":"eth0v0","link_type":"ethernet","is_infiniband_nic":false,"switch_id":"0c42a1fffe112233","representor":"eth0_0","ovs_offload_interface":"eth0_0","bridge":"br0","owner":"vm1","capabilities":{"sriov":"no","ari":"yes","acs":"no","msix":"yes","msix_vectors":12},"ovs_offload":{"possible":"yes","reason":"ConnectX-5, mlx5_core, switchdev mode"},"pcie_info":{"transfer_rate_per_lane":"8GT/s","lane_width":16,"throughput":"15.76 GB/s","version":"3.0"},"virtual_num":0,"hot_pluggable":true,"detected_on_host":true,"host_id":"host-1"}"#
    };
}

/// What examples show of a PF.
macro_rules! pf0 {
    () => {
        r#"{"address":"0000:0a:00.0","addr":"0a:00.0","vendor_device_id":"15b3:1017","model":"ConnectX-5","lspci_name":"Mellanox Technologies MT27800 Family [ConnectX-5]","interface":"eth0","link_type":"ethernet","driver":"mlx5_core","driver_version":"6.1.0","firmware_version":"16.35.2000 (MT_0000000008)","numa_node":0,"iommu_group":40,"sriov":{"total":8,"enabled":1},"capabilities":{"sriov":"yes","ari":"yes","acs":"no","msix":"yes","msix_vectors":64},"eswitch_mode":"switchdev","switch_id":"0c42a1fffe112233","bridge":"br0","ovs_offload":{"possible":"yes","reason":"ConnectX-5, mlx5_core, switchdev mode"},"vfs":["0000:0a:00.2"]}"#
    };
}

/// All methods, in the order in which a reader wants to meet them.
pub(crate) static METHODS: &[Method] = &[
    method!("version.get", Read, daemon::version, Nothing => daemon::Version,
        "Versions of the daemon, of this API and of the lane protocol.",
        "{}" => r#"{"version":"0.1.0","api":1,"lane_protocol":1,"pid":4711}"#),
    method!("schema.get", Read, daemon::schema, Nothing => serde_json::Value,
        "JSON Schema of every method's parameters and result, of the events and of errors.",
        "{}" => r#"{"methods":{}}"#),
    method!("port.add", Change, port_change::add, port_change::Add => port::PortEntry,
        "Adds a port and answers when its lane has made it. It survives restarts of the daemon, the lane and the machine. With `may_exist`, \
         a port that is there already and is the same is a success. Refused with `exists` when the name is taken (by the configuration file, too), \
         with `busy` when the socket or the device is. When it is refused, nothing stays.",
        r#"{"name":"vm1","socket":"/run/ringspan/vm1.sock","device":"vdev:net_null0,size=64,no-rx=1"}"# => vm1!()),
    method!("port.remove", Change, port_change::remove, port_change::Remove => Nothing,
        "Removes a port that was added at run time, its socket and its counters. With `if_exists`, a port that is not there is a success. A port of the \
         configuration file is refused with `conflict`.",
        r#"{"name":"vm1"}"# => "{}"),
    method!("port.list", Read, port::list, Nothing => Vec<port::PortEntry>,
        "All ports, as wanted and as they are, sorted by name. Ports that clash with another one are listed too, in phase `aside`.",
        "{}" => concat!("[", vm1!(), "]")),
    method!("port.get", Read, port::get, port::ByName => port::PortEntry,
        "One port, as wanted and as it is.",
        r#"{"name":"vm1"}"# => vm1!()),
    method!("port.set", Change, port_change::set, port_change::Set => port_change::Changed,
        "Changes a running port that was added at run time; what is absent stays.",
        r#"{"name":"vm1","mtu":1500}"# => vm1!()),
    method!("port.stats", Read, port::stats, port::Stats => Vec<port::PortStats>,
        "Counters of one port or of all, sorted by name. They never go back while the port exists, whatever is restarted. While a lane cannot be asked they \
         are the last known, and `current` is false.",
        r#"{"name":"vm1"}"# => r#"[{"name":"vm1","lane":"main","current":true,"counters":{"from_guest":[{"received":3,"received_bytes":180,"sent":2,"sent_bytes":120,"zero_copied":0,"drops":{"guest_ring_full":0,"no_ring":0,"too_long":0,"malformed_chain":0,"nic_full":1,"no_buffers":0,"bad_offload":0,"over_rate":0,"lost":0}}],"to_guest":[{"received":0,"received_bytes":0,"sent":0,"sent_bytes":0,"zero_copied":0,"drops":{"guest_ring_full":0,"no_ring":0,"too_long":0,"malformed_chain":0,"nic_full":0,"no_buffers":0,"bad_offload":0,"over_rate":0,"lost":0}}],"unsent":0},"totals":{"from_guest":{"received":3,"received_bytes":180,"sent":2,"sent_bytes":120,"zero_copied":0,"drops":{"guest_ring_full":0,"no_ring":0,"too_long":0,"malformed_chain":0,"nic_full":1,"no_buffers":0,"bad_offload":0,"over_rate":0,"lost":0}},"to_guest":{"received":0,"received_bytes":0,"sent":0,"sent_bytes":0,"zero_copied":0,"drops":{"guest_ring_full":0,"no_ring":0,"too_long":0,"malformed_chain":0,"nic_full":0,"no_buffers":0,"bad_offload":0,"over_rate":0,"lost":0}}}}]"#),
    method!("port.wait", Read, port::wait, port::Wait => port::PortEntry,
        "Answers when the port has come that far, or with `timeout`. Other requests on the same connection wait meanwhile.",
        r#"{"name":"vm1","phase":"listening","timeout_ms":1000}"# => vm1!()),
    method!("port.qemu-args", Read, port::qemu_args, port::ForQemu => QemuArgs,
        "What QEMU, or libvirt, must be told so that a guest gets the port as its NIC.",
        r#"{"name":"vm1","qemu_version":"7.2"}"# => r#"{"args":["-object","memory-backend-memfd,id=mem-vm1,size=512M,share=on","-machine","memory-backend=mem-vm1","-chardev","socket,id=chr-vm1,path=/run/ringspan/vm1.sock,reconnect=1","-netdev","vhost-user,id=net-vm1,chardev=chr-vm1,queues=1","-device","virtio-net-pci,netdev=net-vm1,mac=02:1f:5c:87:0a:11"],"libvirt":"<interface type='vhostuser'>...</interface>\n"}"#),
    method!("port.attach", Change, attach::attach, Attach => attach::Attached,
        "Gives a guest a VF: chooses it, sets its address and VLAN, binds it to the driver it needs, puts its representor into its bridge, adds the port, and says what QEMU must be told. It is written down before each \
         step, and survives restarts; a daemon that was killed in between takes back what was begun. When a step fails, those before it are taken back. One that is there and is the same is a success. Of two who want the \
         last VF one gets it, the other one `no-room`. With `qemu`, memory that is known not to be shared is refused before anything is touched.",
        r#"{"guest":"guest1","nic":0,"mode":"vhost","wire":"br0","mac":"52:54:00:12:34:56","vlan":10,"min_rate":0,"max_rate":1000,"queues":1,"mtu":1500,"role":"server"}"# => concat!(r#"{"attachment":"#, guest1!(), r#","qemu":{"memory":["-object","memory-backend-memfd,id=mem-guest1-nic0,size=512M,share=on","-machine","memory-backend=mem-guest1-nic0"],"args":["-chardev","socket,id=chr-guest1-nic0,path=/run/ringspan/guest1-nic0.sock,reconnect-ms=500","-netdev","vhost-user,id=net-guest1-nic0,chardev=chr-guest1-nic0,queues=1","-device","virtio-net-pci,netdev=net-guest1-nic0,mac=52:54:00:12:34:56,id=nic-guest1-nic0"],"libvirt":"<interface type='vhostuser'>...</interface>\n","plug":[{"execute":{"execute":"device_add","arguments":{"driver":"virtio-net-pci","id":"nic-guest1-nic0","netdev":"net-guest1-nic0","mac":"52:54:00:12:34:56"}}}],"unplug":[{"execute":{"execute":"device_del","arguments":{"id":"nic-guest1-nic0"}}},{"wait":{"event":"DEVICE_DELETED","data":{"device":"nic-guest1-nic0"}}},{"call":{"method":"port.detach","params":{"guest":"guest1","nic":0}}}]},"done":["nic0_vf3: added to bridge br0","port guest1-nic0 is on soft:nic0/vf3"]}"#)),
    method!("port.detach", Change, attach::detach, attach::Detach => attach::Detached,
        "Takes back all that `port.attach` did: the port and its counters, the representor's place in its bridge, the driver, the settings. What is not there (any more) is a success, the guest too. Refused with `busy` while the \
         guest still has its NIC: its front-end is connected or, with mode `passthrough`, a process has the VF open; who is just letting go is waited for, 5 seconds at most. The message says how far it is, and what is to be executed over QMP: \
         device_del, the wait for DEVICE_DELETED, netdev_del. Also refused with `busy` while nobody knows, because the port's lane cannot be asked or does not have the port yet: try again when the lane is up. \
         `disturb` takes it away all the same, connected or not known, and nothing that was handed over.",
        r#"{"guest":"guest1","nic":0,"disturb":false}"# => r#"{"was_attached":true}"#),
    method!("attachment.list", Read, attach::list, Nothing => Vec<attach::Entry>,
        "All guests' NICs, sorted by guest and NIC.",
        "{}" => concat!("[", guest1!(), "]")),
    method!("attachment.sync", Change, attach::sync, attach::Sync => Synced,
        "Compares what is attached with the agent's guests, and with the host: for an agent that was restarted. With `mend`, what is orphaned is detached, and what drifted is made as it should be; each stands by itself. \
         An orphan whose guest is connected, or may be because its lane cannot be asked at this moment, stays, with `busy` as its error.",
        r#"{"guests":[{"guest":"guest1","nics":[0,1]}],"mend":true}"# => r#"{"orphaned":[{"guest":"guest2","nic":0,"target":"soft:nic0/vf4","what":["guest guest2 is not listed"],"mended":true}],"missing":[{"guest":"guest1","nic":1,"what":["it is not attached"],"mended":false}],"drifted":[{"guest":"guest1","nic":0,"target":"soft:nic0/vf3","what":["nic0_vf3 is in no bridge, not in br0"],"mended":true}],"good":0}"#),
    method!("attachment.stats", Read, attach_stats::stats, attach_stats::Stats => Vec<attach_stats::GuestStats>,
        "What guests' NICs counted, from the guest's view: `tx` is what it sent. They never go back while a NIC is attached, whatever is restarted. Of a VF that was handed over, its representor is read; without one (legacy mode, InfiniBand), what the PF's driver counts of it; where that counts nothing, `current` is false.",
        r#"{"guest":"guest1"}"# => r#"[{"guest":"guest1","nic":0,"current":true,"source":"port","counted":{"tx_packets":3,"tx_bytes":180,"tx_dropped":1,"rx_packets":0,"rx_bytes":0,"rx_dropped":0}}]"#),
    method!("nic.add", Change, nic::add, NicRequest => nic::NicEntry,
        "Adds a software NIC: a switch with VFs (`soft:nic0/vf3` as a port's device), an uplink, and a representor for each of them on the host. It survives restarts. \
         One that is there already and is the same is a success. When it is refused, nothing stays but the representors that were made.",
        r#"{"name":"nic0","vfs":4,"uplinks":["vdev:net_tap0,iface=up0"]}"# => nic0!()),
    method!("nic.remove", Change, nic::remove, nic::Remove => Nothing,
        "Removes a software NIC that was added at run time, and its representors. Refused with `busy` while a port has one of its VFs, with `conflict` when it is \
         in the configuration file. With `if_exists`, a NIC that is not there is a success.",
        r#"{"name":"nic0"}"# => "{}"),
    method!("nic.set-vf", Change, nic::set_vf, nic::SetVf => nic::NicEntry,
        "Changes a VF of a NIC in legacy mode while frames flow; what is absent stays. It survives restarts. Refused with `conflict` when the NIC is in the \
         configuration file.",
        r#"{"name":"nic1","vf":3,"mac":"52:54:00:12:34:56","vlan":10,"max_mbit":1000}"# => r#"{"name":"nic1","lane":"main","origin":"run-time","spec":{"name":"nic1","vfs":4,"uplinks":["vdev:net_tap0,iface=up0"],"bond":"active-backup","mode":"legacy","vf":[{"vf":3,"mac":"52:54:00:12:34:56","vlan":10,"qos":0,"spoof_check":true,"trust":false,"max_mbit":1000,"link":"auto"}],"mtu":1500}}"#),
    method!("nic.list", Read, nic::list, Nothing => Vec<nic::NicEntry>,
        "All software NICs, as wanted and as they are, sorted by name, each with its ports, representors and counters.",
        "{}" => concat!("[", nic0!(), "]")),
    method!("nic.show", Read, nic::show, nic::ByName => nic::NicEntry,
        "One software NIC, as wanted and as it is.",
        r#"{"name":"nic0"}"# => nic0!()),
    method!("device.list", Read, device::list, Nothing => Vec<Device>,
        "The physical and virtual functions of this host's NICs, in every PCI domain, sorted by address. Their ids stay the same. VFs are asked for one PF at a \
         time, and here not at all, so that no number of VFs is too many.",
        "{}" => concat!("[", vf0!(), "]")),
    method!("device.get", Read, device::get, device::ByDevice => Device,
        "One of them, and of a VF what its PF has set for it.",
        r#"{"device":"0000:0a:00.2"}"# => vf0!()),
    method!("pf.list", Read, device::pf_list, Nothing => Vec<Pf>,
        "The physical functions of this host's NICs, sorted by address.",
        "{}" => concat!("[", pf0!(), "]")),
    method!("pf.get", Read, device::pf_get, device::ByPf => Pf,
        "One of them.",
        r#"{"pf":"eth0"}"# => pf0!()),
    method!("vf.enable", Change, device::enable_vfs, device::EnableVfs => Enabled,
        "Makes a PF have so many VFs, and answers when each of them is there. Another number means none first, so it is refused with `busy` while VFs are in use: those that a port or \
         a process has always, others unless `disturb` is true. When the new number is refused, the old one is restored.",
        r#"{"pf":"eth0","count":2,"disturb":false,"timeout_ms":60000}"# => r#"{"pf":"0000:0a:00.0","before":0,"enabled":2,"total":8,"vfs":["0000:0a:00.2","0000:0a:00.3"],"done":["eth0 has 2 virtual functions"]}"#),
    method!("vf.set", Change, device::set_vf, Wish => Set,
        "What a PF has set for one of its VFs; what is absent stays. Each setting is read back. When one is refused, those before it are taken back. What switchdev mode forbids (VLAN, spoof check) \
         is refused with what to do in Open vSwitch instead.",
        r#"{"pf":"eth0","vf":1,"mac":"52:54:00:12:34:56","vlan":100,"max_rate":1000}"# => r#"{"pf":"0000:0a:00.0","settings":{"vf":1,"mac":"52:54:00:12:34:56","vlan":100,"qos":0,"min_rate":0,"max_rate":1000,"spoof_check":true,"trust":false,"link_state":"auto"},"done":["eth0 VF 1: MAC address 52:54:00:12:34:56","eth0 VF 1: VLAN 100, priority 0","eth0 VF 1: rate 0 to 1000 Mbit/s (0: none)"]}"#),
    method!("eswitch.get", Read, device::eswitch, device::ByPf => Eswitch,
        "How a NIC's switch forwards, by devlink, and the representors of its VFs.",
        r#"{"pf":"eth0"}"# => r#"{"device":"pci/0000:0a:00.0","mode":"switchdev","inline_mode":"none","encap_mode":"basic","steering_mode":"smfs","hw_tc_offload":true,"interface":"eth0","switch_id":"0c42a1fffe112233","representors":[{"vf":0,"interface":"eth0_0"}]}"#),
    method!("eswitch.set", Change, device::set_eswitch, eswitch::Wish => Eswitch,
        "Makes a NIC's switch as it is wanted; what is absent stays. In the order that the driver wants: hw-tc-offload and steering mode first; VFs without drivers while the mode changes (mlx5_core), \
         or no VFs (ice), and again as they were afterwards; answers when each VF has its representor. A busy switch is asked again for two seconds. All of it is done, or what was done is undone, and the error says so.",
        r#"{"pf":"eth0","mode":"switchdev","hw_tc_offload":true}"# => r#"{"device":"pci/0000:0a:00.0","mode":"switchdev","inline_mode":"none","encap_mode":"basic","steering_mode":"smfs","hw_tc_offload":true,"interface":"eth0","switch_id":"0c42a1fffe112233","representors":[{"vf":0,"interface":"eth0_0"}],"done":["hw-tc-offload of eth0 is on","mlx5_core has let go of 0000:0a:00.2","eth0 is in switchdev mode, was in legacy mode","1 representors are there","mlx5_core has 0000:0a:00.2 again"]}"#),
    method!("bond.create", Change, bond::create, BondWish => Bond,
        "Makes a bond of the kernel's as it is wanted, or adopts one that is there: what differs is changed, and `done` is empty when nothing does. Modes 1, 2 and 4 (`active-backup`, `balance-xor`, `802.3ad`); others are \
         `unsupported`, with the reason. A member that is up is `busy` unless `disturb` is given. With `vf_lag`, the members being the two PFs of a ConnectX, both go to switchdev mode, all their VFs are without drivers \
         until VF LAG is active and the bond is on its bridge, and get them back. When a step fails, those before it are taken back; the error says what was undone, and what is left.",
        r#"{"name":"bond0","members":["eth0","eth1"],"mode":"802.3ad","hash_policy":"layer3+4","lacp_rate":"fast"}"# => r#"{"name":"bond0","mode":"802.3ad","miimon":100,"hash_policy":"layer3+4","lacp_rate":"fast","up":true,"carrier":true,"mac":"0c:42:a1:00:00:10","lacp":{"partner":"0c:42:a1:00:00:01","aggregator":1,"ports":2,"actor_key":15,"partner_key":15},"members":[{"interface":"eth0","address":"0000:0a:00.0","state":"active","link":"up","link_failures":0,"mac":"0c:42:a1:00:00:10","speed_mbps":25000,"lacp":{"aggregator":1,"partner":"0c:42:a1:00:00:01","actor_state":63,"partner_state":63,"carries":true}},{"interface":"eth1","address":"0000:0a:00.1","state":"active","link":"up","link_failures":0,"mac":"0c:42:a1:00:00:11","speed_mbps":25000,"lacp":{"aggregator":1,"partner":"0c:42:a1:00:00:01","actor_state":63,"partner_state":63,"carries":true}}],"done":["bond0 is made, in mode 802.3ad","eth0 is a member of bond0","eth1 is a member of bond0","bond0 is up"]}"#),
    method!("bond.delete", Change, bond::delete, DeleteBond => Removed,
        "Takes a bond away, and off its bridge of Open vSwitch; its members are free, and down. That there is none is a success. Where it is VF LAG, all VFs of both PFs are without drivers until that has ended. \
         Refused with `busy` when something else stands on it, or a VF is used; also when it has IP addresses, unless `disturb` is given.",
        r#"{"name":"bond0"}"# => r#"{"name":"bond0","done":["bond0 is gone, its members eth0, eth1 are free, and down"]}"#),
    method!("bond.status", Read, bond::status, bond::Which => Vec<Bond>,
        "The bonds of this host, or one: the member that sends, what LACP has agreed for each, links and their failures, and what a ConnectX made of it (VF LAG: state, type, mapping). Failovers are told as events (`bond-failover`, `bond-link`).",
        r#"{"name":"bond1"}"# => r#"[{"name":"bond1","mode":"active-backup","miimon":100,"up":true,"carrier":true,"mac":"0c:42:a1:00:00:10","active":"eth0","members":[{"interface":"eth0","address":"0000:0a:00.0","state":"active","link":"up","link_failures":0,"mac":"0c:42:a1:00:00:10","speed_mbps":25000},{"interface":"eth1","address":"0000:0a:00.1","state":"backup","link":"down","link_failures":1,"mac":"0c:42:a1:00:00:11"}],"vf_lag":{"state":"active","type":"switchdev","port_select":"queue_affinity","flags":["shared_fdb:on"],"mapping":["1:1","2:1"],"members":["0000:0a:00.0","0000:0a:00.1"]},"bridge":"br0"}]"#),
    method!("firmware.get", Change, device::firmware, device::FirmwareOf => Firmware,
        "What a Mellanox NIC's firmware is set to for its VFs: what it came with, what is in force, and what the next start brings, by mstconfig or mlxconfig, whichever is there (30 seconds at most). \
         Needs the role `change` because the daemon runs that program.",
        r#"{"pf":"eth0"}"# => r#"{"pf":"0000:0a:00.0","interface":"eth0","mst_device":"/dev/mst/mt4119_pciconf0","tool":"mstconfig","settings":[{"name":"NUM_OF_VFS","default":"0","current":"0","next":"16"},{"name":"SRIOV_EN","default":"False(0)","current":"False(0)","next":"True(1)"},{"name":"LINK_TYPE_P1","default":"IB(1)","current":"ETH(2)","next":"ETH(2)"}],"reboot_needed":true,"shared_with":["eth1"]}"#),
    method!("firmware.set", Change, device::set_firmware, firmware::Wish => Firmware,
        "Sets what the next start of a Mellanox NIC brings; what is absent stays, and what is so already is not set again. Read back before it answers. `num_of_vfs` is shared by all ports of a board, and \
         refused with `busy` when it is less than another port has now.",
        r#"{"pf":"eth0","sriov_en":true,"num_of_vfs":16}"# => r#"{"pf":"0000:0a:00.0","interface":"eth0","tool":"mstconfig","settings":[{"name":"NUM_OF_VFS","default":"0","current":"0","next":"16"},{"name":"SRIOV_EN","default":"False(0)","current":"False(0)","next":"True(1)"}],"reboot_needed":true,"shared_with":["eth1"],"done":["SRIOV_EN of eth0 will be True(1), would have been False(0)","NUM_OF_VFS of eth0 will be 16, would have been 0"]}"#),
    method!("device.bind", Change, device::bind, device::BindDevice => Bound,
        "Gives a function to another driver, this one alone (`driver_override`). The driver that it had at first is remembered over restarts, and `restore` gives it back. Refused with `busy` while a \
         port or a process has it; a PF with VFs, or whose interface is up, unless `disturb` is true. When the driver does not take it, the old one gets it back.",
        r#"{"device":"0000:0a:00.2","driver":"vfio-pci","restore":false,"disturb":false}"# => r#"{"address":"0000:0a:00.2","before":"mlx5_core","driver":"vfio-pci","original":"mlx5_core","done":["mlx5_core is remembered as its original driver","mlx5_core has let go of 0000:0a:00.2","vfio-pci has 0000:0a:00.2"]}"#),
    method!("vdpa.list", Read, vdpa::list, vdpa::List => Vdpa,
        "The kernel's vDPA bus: what devices can be made on, and the devices, each with its driver, its node, and who has it. Before Linux 6.1 the kernel knows a device's address, MTU, link and features only while a guest's driver \
         uses it, and `unknown` says so. With `statistics`, what a device's driver counts, queue by queue, where it does (mlx5_vdpa does). Without a vDPA bus both lists are empty, and `problem` says what to load.",
        r#"{"statistics":true}"# => r#"{"management":[{"name":"pci/0000:0a:00.2","address":"0000:0a:00.2","driver":"mlx5_core","classes":["net"],"max_vqs":65,"features":17246979063,"devices":["vd0"]}],"devices":[{"name":"vd0","management":"pci/0000:0a:00.2","class":"net","vendor":5555,"max_vqs":9,"max_vq_size":256,"min_vq_size":1,"driver":"vhost_vdpa","node":"/dev/vhost-vdpa-0","mac":"52:54:00:00:00:01","mtu":1500,"link_up":true,"max_vqp":4,"negotiated":17246979063,"made":true,"owner":"vm1","process":4712,"statistics":{"queues":[{"queue":0,"counters":{"completed_desc":812,"received_desc":1068}},{"queue":1,"counters":{"completed_desc":640,"received_desc":640}}]}}]}"#),
    method!("vdpa.add", Change, vdpa::add, VdpaWish => VdpaAdded,
        "Makes a vDPA device on a management device and gives it to `vhost_vdpa`, so that it has a node. What is absent is its driver's choice; what the driver lets nobody choose is refused with `unsupported`. One that is there and is the same is \
         a success; where `virtio_vdpa` has it, it is taken from there, which is remembered. It is written down first; when a step fails, what was done is taken back.",
        r#"{"name":"vd0","management":"0000:0a:00.2","mac":"52:54:00:00:00:01","mtu":9000,"max_vqp":4,"disturb":false}"# => r#"{"name":"vd0","management":"pci/0000:0a:00.2","node":"/dev/vhost-vdpa-0","done":["pci/0000:0a:00.2 has the vDPA device vd0"]}"#),
    method!("vdpa.remove", Change, vdpa::remove, vdpa::Remove => VdpaGone,
        "Takes a vDPA device away that `vdpa.add` made; one that was there before gets its driver back and stays. That there is none is a success. Refused with `busy` while a port or a process has it, and with `conflict` when others made it, \
         unless `disturb` is given.",
        r#"{"name":"vd0","disturb":false}"# => r#"{"done":["vd0 is gone"]}"#),
    method!("lane.list", Read, lane::list, Nothing => Vec<LaneView>,
        "All lanes, sorted by name.",
        "{}" => r#"[{"name":"main","phase":"up","reason":null,"configured":true,"differs":false,"adopted":false,"pid":4712,"deaths":0,"ports":1,"info":{"name":"main","protocol":1,"version":"0.1.0","dpdk":"DPDK 22.11.11","pid":4712,"started_ms":1790000000000,"cores":[0],"rebalance_ms":1000,"busy_poll":false,"memory_mib":256,"huge_pages":true,"max_ports":32},"load":{"workers":[{"core":0,"shares":1,"busy_percent":12}],"moves":0}}]"#),
    method!("lane.restart", Change, lane::restart, lane::Restart => Job,
        "Shuts a lane down and starts it again: to give it the cores and memory of the configuration file, another version, or a new life when it hangs. Its guests \
         wait meanwhile and go on. A job.",
        r#"{"name":"main","wait":true}"# => r#"{"id":1,"method":"lane.restart","item":"main","state":"done","started_ms":1790000000000,"ended_ms":1790000000900,"outcome":["lane main runs again with 1 port"]}"#),
    method!("ovs.show", Read, ovs::show, Nothing => ovs::Shown,
        "Open vSwitch as its database has it: settings, bridges, ports; and whether ovs-vswitchd runs.",
        "{}" => r#"{"run_dir":"/run/openvswitch","pid":812,"version":"3.1.0","schema":"8.3.1","hw_offload":true,"restoring":false,"tc_policy":"none","max_idle_ms":10000,"flow_limit":200000,"settled":true,"bridges":[{"name":"br0","datapath_type":"netdev","ports":[{"name":"nic0_vf3","tag":10,"interfaces":[{"name":"nic0_vf3","type":"system","ofport":4,"iface_id":"vm1-eth0"}]}]}]}"#),
    method!("ovs.configure", Change, ovs::configure, Configure => Configured,
        "Makes Open vSwitch as it is wanted; what is absent stays, and what is so already is left alone. Each item succeeds or fails by itself: look at each `outcome`. \
         ovs-vswitchd is restarted only with `restart`, and only when that is needed.",
        r#"{"hw_offload":true,"bridges":[{"name":"br0"}],"ports":[{"name":"nic0_vf3","bridge":"br0","tag":10,"iface_id":"vm1-eth0","absent":false}],"restart":false,"timeout_ms":10000}"# => r#"{"items":[{"item":"hw-offload","outcome":"changed","done":["other_config:hw-offload is true, was false"]},{"item":"bridge br0","outcome":"unchanged"},{"item":"port nic0_vf3","outcome":"refused","error":{"kind":"failed","message":"port nic0_vf3 is in the database, and ovs-vswitchd cannot use it: could not open network device nic0_vf3 (No such device)","item":"port nic0_vf3"}}],"settled":true,"restart_needed":"hw-offload or tc-policy changed while ovs-vswitchd 812 ran: it takes them when it starts","restarted":false}"#),
    method!("ovs.verify", Read, ovs::verify, Nothing => Verified,
        "Whether flows are offloaded, and what stands in the way. Costs ovs-vswitchd's main thread about 30 us for each flow in its datapaths.",
        "{}" => r#"{"verdict":"not-working","summary":"offload does not work: 12 flows carry packets, and none is offloaded","checks":[{"check":"hw-offload","state":"failed","message":"hw-offload is not set","remedy":"ringspan ovs configure --hw-offload true --restart"}],"datapaths":[{"name":"system@ovs-system","flows":14,"with_packets":12,"of_vfs":12,"offloaded":0,"partial":0,"conntrack":0,"missed":40,"lost":0}]}"#),
    method!("flow.list", Read, flow::list, FlowFilter => Flows,
        "OVS's flows as the mirror has them, each with its state, and why it stays with OVS where it does. Counters are fresh; rates are those of the last second or so. The mirror runs while a lane has a software NIC.",
        r#"{"port":"nic0_vf0","sort":"packets","limit":100}"# => r#"{"total":2,"flows":[{"ufid":"0d7c5e2a-0000-0000-0000-000000000007","match":"recirc_id(0),in_port(nic0_vf0),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02),eth_type(0x0800),ipv4(frag=no)","actions":"nic0_vf1","state":"offloaded","nic":"nic0","ovs":{"packets":3,"bytes":294,"idle_ms":1200},"rule":{"packets":81234,"bytes":7960932,"idle_ms":2},"rate":{"packets":1020.5,"bits":800072.0}},{"ufid":"0d7c5e2a-0000-0000-0000-000000000008","match":"recirc_id(0),in_port(nic0_vf0),packet_type(ns=0,id=0),eth(src=02:00:00:00:00:01,dst=ff:ff:ff:ff:ff:ff),eth_type(0x0806)","actions":"br0","state":"not","reason":"output","why":"It goes out by a port that is not of a NIC of ringspan's, such as the bridge's own (br0)","ovs":{"packets":1,"bytes":42,"idle_ms":900}}]}"#),
    method!("flow.stats", Read, flow::stats, Nothing => FlowStats,
        "Sums over OVS's flows: by state, by reason, by path; and how the mirror keeps up.",
        "{}" => r#"{"flows":2,"by_state":{"not":1,"offloaded":1},"by_reason":{"output":1},"ovs":{"packets":4,"bytes":336},"rules":{"packets":81234,"bytes":7960932},"rate":{"packets":1020.5,"bits":800072.0},"over_limit":0,"unreadable":0,"dumps":17,"dump_us":310,"stale_ms":100,"kernel":{"changes":4021,"dumps":12,"dump_us":950}}"#),
    method!("host.plan", Change, host::plan, host::PlanOf => Plan,
        "What the host agent's host.conf, with its common configuration and host_local.conf in the agent's precedence, wants of this host's cards, what is so, and what would be done. Changes nothing; \
         needs the role `change` because the daemon reads the files. Each card stands by itself: look at each `standing`. A file that cannot be read as a whole is refused with `invalid`, its line and a remedy.",
        r#"{"file":"/etc/yunion/host.conf"}"# => r#"{"files":["/etc/yunion/host.conf"],"items":[{"interface":"eth2","address":"0000:03:00.0","kind":"ovs-offload","bond":"bond0","bridge":"br1","wire":"wire1","from":"/etc/yunion/host.conf:5","standing":"to-do","steps":["write udev's rules for names of eth2's VFs and representors that stay","set hw-tc-offload of eth2 on","set the steering mode of eth2 to smfs, where it has a choice","set VFs of eth2 to 8, and wait for each","unbind VFs of eth2, set its eswitch to switchdev, and wait for 8 representors"],"vfs":8,"switchdev":false}],"problems":[],"give_up":[{"key":"ovs_offload_nics","entry":"bond0","from":"/etc/yunion/host.conf:5","why":"the agent unbinds eth2's VFs and writes its eswitch mode"}]}"#),
    method!("host.apply", Change, host::apply, host::Apply => Applied,
        "Carries out what `host.plan` shows, card by card: each succeeds or fails by itself, and what is so already is left alone, so it can be repeated after a reboot. A card whose VFs are used is \
         refused with `busy`, also where its eswitch would change its mode; the mode is changed where nobody has them, and `unsupported` is what its driver or its link cannot. With `dry_run` nothing is changed.",
        r#"{"file":"/etc/yunion/host.conf","dry_run":false}"# => r#"{"files":["/etc/yunion/host.conf"],"items":[{"interface":"eth1","kind":"sriov","outcome":"changed","steps":["eth1 has 8 virtual functions"]}],"problems":[],"give_up":[]}"#),
    method!("host.udev", Change, device::name_interfaces, device::NameInterfaces => Named,
        "Writes rules for udev, so that a PF's VFs and representors have names that stay: `eth0v3`, `eth0_3`. A block of `82-net-setup-link.rules`; what others wrote there stays. Where another rule names the same \
         interfaces, that is a conflict: it is told with its line, and nothing is written for this PF. They count for interfaces that come after it.",
        r#"{"pf":"eth0","dry_run":false}"# => r##"{"pf":"0000:0a:00.0","file":"/etc/udev/rules.d/82-net-setup-link.rules","rules":["SUBSYSTEM==\"net\", ACTION==\"add\", KERNELS==\"0000:0a:00.2\", NAME=\"eth0v0\""],"conflicts":[],"done":["/etc/udev/rules.d/82-net-setup-link.rules has 1 rules for the interfaces of eth0"]}"##),
    method!("doctor.run", Read, doctor::run, Nothing => Report,
        "What of this host stands in the way of VFs, offload and guests: each check with its evidence, and the commands that mend it. What could not be looked at is `unknown`. \
         Runs programs that only look (`lspci`, `mstconfig`, `ethtool`, `ip`), so it can take seconds; requests that come meanwhile share one answer.",
        "{}" => r#"{"state":"fail","summary":"22 passed, 0 warnings, 1 failed, 1 unknown","host":{"distribution":"Debian GNU/Linux 12 (bookworm)","kernel":"6.1.0-18-amd64","privileged":true},"findings":[{"check":"iommu","group":"platform","state":"fail","message":"the IOMMU is off: intel_iommu=on is not on the command line; VFs cannot be given to DPDK or to guests","evidence":["/sys/kernel/iommu_groups: 0 groups","/proc/cmdline: nothing of it"],"remedy":["sed -i -E 's/^(GRUB_CMDLINE_LINUX=[\"'\"'\"'])/\\1intel_iommu=on iommu=pt /' /etc/default/grub","update-grub","reboot"]}]}"#),
    method!("rule.list", Read, rule::list, rule::RuleFilter => Vec<rule::RuleEntry>,
        "The rules that NICs' engines hold, in the order of their ids, each also as DPDK's testpmd would be told it: port 0 is the uplink, port 1 the first VF's representor. What \
         its syntax has no words for stands in a comment before it, with the rule's id.",
        r#"{"nic":"nic0","limit":1000}"# => r##"[{"nic":"nic0","rule":{"id":"0d7c5e2a-0000-0000-0000-000000000007","priority":0,"in_port":"vf0","match":["eth_dst=02:00:00:00:00:02","eth_type=0x800","vlan_tci=0x0/0x1000"],"actions":[{"output":"vf1"}],"refresh":true},"testpmd":"# 0d7c5e2a-0000-0000-0000-000000000007\nflow create 0 priority 7 transfer pattern represented_port ethdev_port_id is 1 / eth dst is 02:00:00:00:00:02 type is 0x800 / ipv4 / end actions count / represented_port ethdev_port_id 2 / end"}]"##),
    method!("flow.watch", Read, flow::watch, flow::Watch => Nothing,
        "From here on this connection is sent flows at each interval, as notifications with the method `flows`: `time_ms`, `stats` as of `flow.stats` and `list` as of `flow.list`. \
         The connection goes on answering requests; it ends what it is sent by closing.",
        r#"{"filter":{"sort":"rate","limit":20},"interval_ms":1000}"# => "{}"),
    method!("job.list", Read, job::list, Nothing => Vec<Job>,
        "Jobs that run, and the last 64 that ended, by number.",
        "{}" => r#"[{"id":1,"method":"lane.restart","item":"main","state":"running","started_ms":1790000000000}]"#),
    method!("job.get", Read, job::get, job::JobId => Job,
        "One job.",
        r#"{"id":1}"# => r#"{"id":1,"method":"lane.restart","item":"main","state":"running","started_ms":1790000000000}"#),
    method!("job.wait", Read, job::wait, job::JobWait => Job,
        "The job when it has ended, or as it is after `timeout_ms`. Other requests on the same connection wait meanwhile.",
        r#"{"id":1,"timeout_ms":10000}"# => r#"{"id":1,"method":"config.reload","state":"done","started_ms":1790000000000,"ended_ms":1790000000040,"outcome":["port vm2 added"]}"#),
    method!("job.cancel", Change, job::cancel, job::JobId => Job,
        "Asks a job to end; it does at its next step, or not at all when it is past the last one. Answers at once.",
        r#"{"id":1}"# => r#"{"id":1,"method":"lane.restart","item":"main","state":"running","started_ms":1790000000000}"#),
    method!("config.reload", Change, daemon::reload, daemon::Reload => Job,
        "Reads the configuration file again and changes only what differs, as SIGHUP does. A file that is refused changes nothing, and neither does one that would take \
         something away from a port that was added at run time. A job.",
        r#"{"wait":true}"# => r#"{"id":2,"method":"config.reload","state":"done","started_ms":1790000000000,"ended_ms":1790000000040,"outcome":["port vm2 added"]}"#),
    method!("events.subscribe", Read, daemon::subscribe, daemon::Subscribe => daemon::Subscribed,
        "From here on this connection is sent events, as notifications with the method `event`. With `after`, those that came after it are sent first; what is not kept any more is told in a \
         notification with the method `missed`. The connection goes on answering requests.",
        r#"{"after":17}"# => r#"{"last":19}"#),
    method!("daemon.stop", Change, daemon::stop, daemon::Stop => Nothing,
        "Ends the daemon; the connection closes when it has ended. Lanes go on, unless `lanes` is true.",
        r#"{"lanes":false}"# => "{}"),
];
