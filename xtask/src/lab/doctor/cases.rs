//! What a line of shell breaks, and what the doctor says of it.

/// Something that is broken. `{first}` and `{second}` are the NICs' addresses, `{eth}` is the first one's interface, `{vf}` its VF, `{vdpa}` the
/// virtio NIC of [`ON_VDPA`].
pub struct Case {
    pub check: &'static str,
    /// Breaks it.
    pub breaks: &'static str,
    pub state: &'static str,
    /// What the finding says.
    pub says: &'static str,
    /// What the remedy says in a comment, done by hand; empty: its commands do it all.
    pub by_hand: &'static str,
    /// Takes away what the check does not need.
    pub undo: &'static str,
}

/// On a representor, which netdevsim has: the agent limits a VF so, and what the card forwards passes it by.
pub const ON_REPRESENTORS: &[Case] = &[
    Case {
        check: "agent-qdiscs",
        breaks: "modprobe sch_tbf; interface=$(basename $(dirname $(grep -l '^pf0vf3$' /sys/class/net/*/phys_port_name))); \
            tc qdisc add dev $interface root tbf rate 10mbit burst 10kb latency 50ms",
        state: "warn",
        says: "tbf on a representor",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "agent-qdiscs",
        breaks: "modprobe sch_ingress; interface=$(basename $(dirname $(grep -l '^pf0vf2$' /sys/class/net/*/phys_port_name))); \
            tc qdisc add dev $interface ingress",
        state: "warn",
        says: "ingress on a representor",
        by_hand: "",
        undo: "",
    },
];

/// By the real `ip` with 200 VFs, while the kernel's estimate is as small as it was before 6.14; `{estimate}` is the module that makes it so.
pub const ON_A_SMALL_ESTIMATE: Case = Case {
    check: "ip-dump",
    breaks: "insmod {estimate}",
    state: "fail",
    says: "ip cannot list interfaces",
    // The new kernel, which the remedy's command has installed, has the estimate right.
    by_hand: "rmmod small_estimate",
    undo: "ip link show",
};

/// With a port on a vDPA device of a virtio NIC (`{vdpa}`), whose kernel has none of the modules for it loaded. In this order.
pub const ON_VDPA: &[Case] = &[
    Case {
        check: "vdpa",
        breaks: "printf '[[port]]\\nname = \"vm1\"\\nsocket = \"/run/vm1.sock\"\\ndevice = \"vdpa:{vdpa}\"\\n' > /etc/ringspan.toml",
        state: "fail",
        says: "vdpa and vhost_vdpa not loaded: ports with vDPA devices are refused",
        by_hand: "",
        undo: "[ -d /sys/bus/vdpa/drivers/vhost_vdpa ]",
    },
    Case {
        check: "vdpa",
        breaks: "rmmod vhost_vdpa",
        state: "fail",
        says: "vhost_vdpa not loaded: ports with vDPA devices are refused",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "vdpa",
        breaks: ":",
        state: "fail",
        says: "{vdpa} is a virtio card that its own driver has, not vp-vdpa",
        by_hand: "",
        undo: "vdpa mgmtdev show | grep {vdpa}",
    },
    Case {
        check: "vdpa",
        breaks: "echo {vdpa} > /sys/bus/pci/drivers/vp-vdpa/unbind",
        state: "fail",
        says: "{vdpa} has no driver: no vDPA device can be made on it",
        by_hand: "ringspan device bind {vdpa} vp-vdpa",
        undo: "ringspan device bind {vdpa} --restore; rmmod vp_vdpa vhost_vdpa vdpa; rm /etc/ringspan.toml",
    },
];

/// In this order: a case may use what an earlier one of its check left.
pub const CASES: &[Case] = &[
    Case {
        check: "hugepages",
        breaks: "echo 0 > /proc/sys/vm/nr_hugepages",
        state: "fail",
        says: "no hugepage is reserved",
        by_hand: "",
        undo: "echo 0 > /proc/sys/vm/nr_hugepages; rm /etc/tmpfiles.d/ringspan-hugepages.conf",
    },
    Case {
        check: "hugetlbfs",
        breaks: "if mountpoint -q /dev/hugepages; then umount /dev/hugepages; fi",
        state: "warn",
        says: "hugetlbfs is not mounted",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "hugetlbfs",
        breaks: "echo 32 > /proc/sys/vm/nr_hugepages; mkdir /tmp/bounded; mount -t hugetlbfs -o size=4M none /tmp/bounded",
        state: "warn",
        says: "its mount is bounded to 4 MiB",
        by_hand: "",
        undo: "umount /tmp/bounded /dev/hugepages; echo 0 > /proc/sys/vm/nr_hugepages",
    },
    Case {
        check: "nic-driver",
        breaks: "echo vfio-pci > /sys/bus/pci/devices/{second}/driver_override; echo {second} > /sys/bus/pci/devices/{second}/driver/unbind",
        state: "warn",
        says: "it has no driver",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "device-nodes",
        breaks: "modprobe -r vfio-pci",
        state: "fail",
        says: "vfio-pci is not loaded",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "device-nodes",
        breaks: "if grep -q ^tun /proc/modules; then modprobe -r tun; fi; rm -f /dev/net/tun",
        state: "fail",
        says: "/dev/net/tun is not there",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "device-nodes",
        breaks: "rm /dev/net/tun",
        state: "fail",
        says: "/dev/net/tun is not there",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "dpdk-drivers",
        breaks: "mount -t tmpfs none /usr/lib/x86_64-linux-gnu/dpdk; echo /usr/lib/x86_64-linux-gnu/dpdk > $COVERED",
        state: "fail",
        says: "DPDK's drivers are not installed",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "dpdk-drivers",
        breaks: "d=$(echo /usr/lib/x86_64-linux-gnu/dpdk/pmds-*); mkdir /tmp/drivers; \
            for f in $d/*; do case $f in *e1000*) ;; *) ln -s $f /tmp/drivers/ ;; esac; done; mount --bind /tmp/drivers $d; echo $d > $COVERED",
        state: "fail",
        says: "DPDK's driver e1000 is not installed",
        by_hand: "",
        undo: "",
    },
    // By a program that stands in for ip; the real one, and a kernel that fails so, are on netdevsim's VFs (`ON_A_SMALL_ESTIMATE`).
    Case {
        check: "ip-dump",
        breaks: "printf '%s\\n' '#!/bin/sh' 'case $1 in -V) echo ip utility, iproute2-5.10.0 ;; \
            *) echo Error: Buffer too small for object. >&2; echo Dump terminated >&2; exit 1 ;; esac' > /tmp/old-ip; chmod 755 /tmp/old-ip; \
            real=$(readlink -f $(command -v ip)); mount --bind /tmp/old-ip $real; echo $real > $COVERED",
        state: "fail",
        says: "ip cannot list interfaces",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "module-parameters",
        breaks: "echo 'options igb max_vfs=8 debug=0' > /etc/modprobe.d/ringspan-lab.conf",
        state: "fail",
        says: "the driver takes 7 at most",
        by_hand: "",
        undo: "grep -q '^options igb debug=0$' /etc/modprobe.d/ringspan-lab.conf; rm /etc/modprobe.d/ringspan-lab.conf",
    },
    Case {
        check: "agent-binding",
        breaks: "ringspan vf enable {eth} 1 >/dev/null; vf=$(basename $(readlink /sys/bus/pci/devices/{first}/virtfn0)); \
            if [ -e /sys/bus/pci/devices/$vf/driver ]; then echo $vf > /sys/bus/pci/devices/$vf/driver/unbind; fi; \
            echo '8086 10ca' > /sys/bus/pci/drivers/vfio-pci/new_id; [ $(basename $(readlink /sys/bus/pci/devices/$vf/driver)) = vfio-pci ]",
        state: "warn",
        says: "vfio-pci took this VF by its id",
        by_hand: "",
        undo: "echo {vf} > /sys/bus/pci/drivers/vfio-pci/unbind; echo > /sys/bus/pci/devices/{vf}/driver_override; ringspan vf enable {eth} 0",
    },
    Case {
        check: "bonds",
        breaks: "modprobe bonding max_bonds=0; ip link add bl0 type veth peer name bl1; ip link set bl1 up; \
            ip link add bondlab type bond mode active-backup miimon 100; ip link set bl0 master bondlab; ip link set bondlab up; ip link set bl0 down",
        state: "warn",
        says: "its member bl0 is down",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "bonds",
        breaks: "echo 0 > /sys/class/net/bondlab/bonding/miimon",
        state: "warn",
        says: "its members' links are not watched",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "bonds",
        breaks: "echo -bl0 > /sys/class/net/bondlab/bonding/slaves",
        state: "warn",
        says: "it has no member",
        by_hand: "ip link set bl0 down; ip link set bl0 master bondlab",
        undo: "ip link del bondlab",
    },
    Case {
        check: "bonds",
        breaks: "ip link add bondlab type bond mode 802.3ad miimon 100 lacp_rate fast; ip link set bl0 down; ip link set bl0 master bondlab; ip link set bondlab up",
        state: "fail",
        says: "nobody answers LACP",
        by_hand: "ip link add bondpeer type bond mode 802.3ad miimon 100 lacp_rate fast; ip link set bl1 down; ip link set bl1 master bondpeer; ip link set bondpeer up",
        undo: "ip link del bondlab; ip link del bondpeer; ip link del bl0",
    },
    Case {
        check: "bonds",
        breaks: "ip link add bondlab type bond mode balance-rr miimon 100; ip link set {eth} down; ip link set {eth} master bondlab; ip link set bondlab up",
        state: "fail",
        says: "mode balance-rr",
        by_hand: "ip link del bondlab; ip link add bondlab type bond mode active-backup miimon 100; ip link set {eth} down; ip link set {eth} master bondlab; ip link set bondlab up",
        undo: "ip link del bondlab; ip link set {eth} down",
    },
    Case {
        check: "ovs-offload",
        breaks: ":",
        state: "warn",
        says: "Open vSwitch is installed, and does not run",
        by_hand: "",
        undo: "",
    },
    Case {
        check: "ovs-offload",
        breaks: "ringspan ovs configure --hw-offload true || :",
        state: "fail",
        says: "hw-offload or tc-policy changed since ovs-vswitchd",
        by_hand: "",
        undo: "/usr/share/openvswitch/scripts/ovs-ctl stop || :",
    },
];
