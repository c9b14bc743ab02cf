//! The checks, in one table: `ringspan doctor`, `doctor.run` and `docs/doctor.md` all come from it.

mod agent;
mod bonds;
mod dpdk;
mod firmware;
mod guests;
mod hugepages;
mod iommu;
mod iproute;
mod kernel;
mod limits;
mod modules;
mod offload;
mod sriov;
mod vdpa;

use super::host::{Host, Unseen};
use super::{Group, State};

pub(crate) use vdpa::is_vdpa;

/// A check.
pub(crate) struct Check {
    /// Its stable name.
    pub name: &'static str,
    /// What kind of thing it looks at.
    pub group: Group,
    /// What it finds out, for the documentation.
    pub about: &'static str,
    /// Finds it out.
    pub look: fn(&Host) -> Vec<Found>,
}

/// What a check found, before it has the check's name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub item: Option<String>,
    pub state: State,
    pub message: String,
    pub evidence: Vec<String>,
    pub remedy: Vec<String>,
}

impl Found {
    fn new(state: State, message: impl Into<String>) -> Self {
        Self { item: None, state, message: message.into(), evidence: Vec::new(), remedy: Vec::new() }
    }

    fn pass(message: impl Into<String>) -> Self {
        Self::new(State::Pass, message)
    }

    fn unknown(message: impl Into<String>) -> Self {
        Self::new(State::Unknown, message)
    }

    fn warn(message: impl Into<String>) -> Self {
        Self::new(State::Warn, message)
    }

    fn fail(message: impl Into<String>) -> Self {
        Self::new(State::Fail, message)
    }

    /// What could not be looked at, and what would make it visible.
    fn unseen(what: &str, why: &Unseen) -> Self {
        let found = Self::unknown(format!("{what}: {why}"));
        if matches!(why, Unseen::Denied) { found.remedy(["sudo ringspan doctor"]) } else { found }
    }

    /// The same, about this device, interface or process.
    fn about(self, item: impl Into<String>) -> Self {
        Self { item: Some(item.into()), ..self }
    }

    fn evidence<T: Into<String>>(mut self, lines: impl IntoIterator<Item = T>) -> Self {
        self.evidence.extend(lines.into_iter().map(Into::into));
        self
    }

    fn remedy<T: Into<String>>(mut self, commands: impl IntoIterator<Item = T>) -> Self {
        self.remedy.extend(commands.into_iter().map(Into::into));
        self
    }
}

/// All checks, in the order in which they are shown.
pub(crate) static CHECKS: &[Check] = &[
    Check {
        name: "iommu",
        group: Group::Platform,
        about: "The IOMMU is on: `intel_iommu=`/`amd_iommu=` on the command line, the ACPI table of the firmware, and IOMMU groups that are not empty.",
        look: iommu::enabled,
    },
    Check {
        name: "iommu-passthrough",
        group: Group::Platform,
        about: "`iommu=pt`: the host's own drivers are not slowed by the IOMMU.",
        look: iommu::passthrough,
    },
    Check {
        name: "iommu-isolation",
        group: Group::Platform,
        about: "A virtual function shares its IOMMU group with nothing else; where it does, a bridge above it lacks ACS.",
        look: iommu::isolation,
    },
    Check {
        name: "kernel-log",
        group: Group::Platform,
        about: "Lines of the kernel log with a known cause: no MMIO space or bus numbers for VFs, `ENABLE_HCA(0x104) timeout`, VF LAG that failed, RMRR, interrupt remapping.",
        look: kernel::log,
    },
    Check {
        name: "module-parameters",
        group: Group::Platform,
        about: "Parameters such as `igb.max_vfs` and `mlx4_core.num_vfs`, on the command line and in modprobe.d, which make VFs behind ringspan's back, or do nothing.",
        look: modules::parameters,
    },
    Check {
        name: "sriov-capability",
        group: Group::Nic,
        about: "Each physical function has the SR-IOV capability, by its config space, by `lspci -v`, or by sysfs; on a Mellanox card it must be enabled in the firmware.",
        look: sriov::capability,
    },
    Check {
        name: "ari",
        group: Group::Nic,
        about: "ARI, by the card and by the bridge above it, where a card has more VFs than 7.",
        look: sriov::ari,
    },
    Check {
        name: "nic-driver",
        group: Group::Nic,
        about: "Each physical function has a driver; whether that of a Mellanox card is MLNX_OFED's or the kernel's own, and whether the loaded one is the installed one.",
        look: modules::drivers,
    },
    Check {
        name: "firmware",
        group: Group::Nic,
        about: "SRIOV_EN, NUM_OF_VFS and LINK_TYPE by mstconfig or mlxconfig: what is in force, and what waits for a reboot.",
        look: firmware::pending,
    },
    Check {
        name: "hugepages",
        group: Group::Memory,
        about: "Hugepages are reserved, some are free, and on the NUMA node of each card with VFs too.",
        look: hugepages::reserved,
    },
    Check {
        name: "hugetlbfs",
        group: Group::Memory,
        about: "hugetlbfs is mounted, and its mount does not bound it below what is reserved.",
        look: hugepages::mounted,
    },
    Check {
        name: "memlock",
        group: Group::Memory,
        about: "RLIMIT_MEMLOCK: VFIO and vhost-vdpa pin guests' memory, and report EFAULT or ENOMEM where the limit is what stops them.",
        look: limits::memlock,
    },
    Check {
        name: "guest-memory",
        group: Group::Memory,
        about: "The memory of each running QEMU is shared (`share=on`), without which vhost-user cannot serve it.",
        look: guests::shared,
    },
    Check {
        name: "dpdk-drivers",
        group: Group::Dataplane,
        about: "The DPDK driver of each card is installed; for Mellanox also the verbs provider and the kernel's RDMA modules.",
        look: dpdk::drivers,
    },
    Check {
        name: "device-nodes",
        group: Group::Dataplane,
        about: "/dev/net/tun, /dev/vfio/vfio (with cards that need vfio-pci) and /dev/vhost-vdpa-* are there.",
        look: limits::nodes,
    },
    Check {
        name: "vdpa",
        group: Group::Dataplane,
        about: "The kernel modules are loaded that ports with `vdpa:` and `vhost-vdpa:` devices need: vdpa, vhost_vdpa, and the one that makes vDPA devices of the card (mlx5_vdpa, vp_vdpa).",
        look: vdpa::modules,
    },
    Check {
        name: "ovs-offload",
        group: Group::Switching,
        about: "What `ringspan ovs verify` says: hw-offload, offloaded flows, interfaces in error, queueing disciplines, connection tracking.",
        look: offload::ovs,
    },
    Check {
        name: "representors",
        group: Group::Switching,
        about: "Each VF of a card in switchdev mode has a representor, and the card has hw-tc-offload on.",
        look: offload::representors,
    },
    Check {
        name: "bonds",
        group: Group::Switching,
        about: "Bonds of cards with VFs: mode 1, 2 or 4, monitoring on, members up, a LACP partner, members of one card, VF LAG active.",
        look: bonds::bonds,
    },
    Check {
        name: "agent-binding",
        group: Group::Agent,
        about: "No VF was bound to vfio-pci through `new_id`, as the host agent does: later VFs of that id are taken, too.",
        look: agent::binding,
    },
    Check {
        name: "agent-qdiscs",
        group: Group::Agent,
        about: "No queueing discipline of the agent's is on a representor: what is offloaded passes it by.",
        look: agent::qdiscs,
    },
    Check {
        name: "agent-domains",
        group: Group::Agent,
        about: "Each card is in PCI domain 0000 below `/sys/devices/pci0000:`: others the agent passes over in silence.",
        look: agent::domains,
    },
    Check {
        name: "ip-dump",
        group: Group::Agent,
        about: "`ip link show` does not fail with \"Buffer too small for object\", as it does with many (InfiniBand) VFs; the dump is reproduced.",
        look: iproute::dump,
    },
];
