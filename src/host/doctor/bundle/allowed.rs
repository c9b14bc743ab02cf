//! What may go into a bundle: a list, and nothing else. `docs/doctor.md` has it as a table.

use super::shown::Shown;

/// Things of one kind that may go into a bundle.
pub(crate) struct Allowed {
    /// Their names in it; `*` stands for anything.
    pub names: &'static [&'static str],
    /// How much of them.
    pub shown: Shown,
    /// Why they are worth it, and why they have no secrets: told in the bundle and in the documentation.
    pub why: &'static str,
}

/// Keys of `/etc/ringspan.toml`. Not there: `restart_command` and `args`, into which anything may be written.
const RINGSPAN: &[&str] = &[
    "control",
    "dataplane",
    "ovs",
    "host",
    "port",
    "nic",
    "log",
    "socket",
    "socket_mode",
    "state_dir",
    "run_dir",
    "group",
    "readers",
    "lane_program",
    "cores",
    "memory_mib",
    "huge_pages",
    "rebalance_ms",
    "busy_poll",
    "max_flows",
    "grace_ms",
    "kernel_tunnels",
    "sysfs",
    "pci_ids",
    "name",
    "lane",
    "role",
    "device",
    "queues",
    "mtu",
    "mac",
    "promiscuous",
    "allmulti",
    "compat",
    "offloads",
    "zero_copy",
    "zero_copy_from",
    "kind",
    "vfs",
    "uplinks",
    "bond",
    "mode",
    "pf",
    "offload",
    "bonded",
    "dv_flow_en",
    "format",
    "level",
];
/// Keys of the host agent's files that say something of its NICs.
const AGENT: &[&str] = &[
    "networks",
    "sriov_nics",
    "ovs_offload_nics",
    "disable_security_group",
    "common_config_file",
    "local_config_file",
    "hugepages_option",
];
/// Lines of `ovs-vsctl show`. Not there: `options`, which for IPsec have a pre-shared key.
const OVS: &[&str] =
    &["Bridge", "Port", "Interface", "type", "tag", "trunks", "fail_mode", "datapath_type", "ovs_version", "error"];

/// The list. What stands first counts.
pub(crate) static ALLOWED: &[Allowed] = &[
    Allowed {
        names: &["report.json", "daemon/*.json"],
        shown: Shown::Json,
        why: "the findings, and what the daemon says of its version, ports, lanes, NICs, jobs, Open vSwitch and flows: state, no configuration. Words that look like a token are left out",
    },
    Allowed {
        names: &["kernel.log", "programs/journalctl *"],
        shown: Shown::Log,
        why: "lines of the kernel log about PCI, IOMMU, VFIO, NICs, bonds, hugepages and Open vSwitch; of its command line the same words as below",
    },
    Allowed {
        names: &["files/proc/cmdline"],
        shown: Shown::CommandLine,
        why: "words about IOMMU, PCI, VFIO, hugepages, processors and VFs; what else boots the host (iSCSI, for one) has passwords",
    },
    Allowed {
        names: &["files/etc/default/grub"],
        shown: Shown::Grub,
        why: "the command line of the next boot: the same words",
    },
    Allowed {
        names: &["files/etc/ringspan.toml"],
        shown: Shown::Values(RINGSPAN),
        why: "the values of the keys that ringspan knows, but commands and device arguments of the operator's own",
    },
    Allowed {
        names: &["files/etc/yunion/*"],
        shown: Shown::Values(AGENT),
        why: "the values of the keys about NICs; the files have the agent's password",
    },
    Allowed {
        names: &["files/etc/modprobe.d/*", "files/run/modprobe.d/*", "files/usr/lib/modprobe.d/*"],
        shown: Shown::Modprobe,
        why: "options that make VFs, and modules that are kept from loading",
    },
    Allowed {
        names: &["files/proc/mounts"],
        shown: Shown::Mounts,
        why: "mounts of hugetlbfs; those of network file systems may name users",
    },
    Allowed {
        names: &["files/proc/*/cmdline"],
        shown: Shown::Arguments,
        why: "of guests' QEMU processes what tells of their memory and NICs; the rest has keys of their disks",
    },
    Allowed {
        names: &["programs/ovs-vsctl show"],
        shown: Shown::Values(OVS),
        why: "bridges, ports and errors; not the options of tunnels",
    },
    Allowed {
        names: &[
            "files/proc/meminfo",
            "files/proc/modules",
            "files/proc/version",
            "files/proc/cpuinfo",
            "files/proc/sys/kernel/osrelease",
            "files/proc/self/limits",
            "files/proc/self/status",
            "files/proc/*/comm",
            "files/sys/*",
            "links/sys/*",
            "files/etc/os-release",
            "files/usr/lib/os-release",
            "files/lib/modules/*/modules.dep",
        ],
        shown: Shown::Whole,
        why: "what the kernel and the distribution say of the machine: nobody's configuration",
    },
    Allowed {
        names: &[
            "programs/lspci *",
            "programs/ip *",
            "programs/devlink *",
            "programs/ethtool *",
            "programs/mstconfig *",
            "programs/mlxconfig *",
            "programs/dpkg-query *",
        ],
        shown: Shown::Whole,
        why: "devices, interfaces, firmware settings and versions of packages: none of these programs prints keys",
    },
];

impl Allowed {
    /// The rule for what has this name; absent: it does not go into a bundle.
    pub(crate) fn of(name: &str) -> Option<&'static Self> {
        // A name that climbs out of its folder is nobody's.
        if name.split('/').any(|part| part == "..") {
            return None;
        }
        ALLOWED.iter().find(|rule| rule.names.iter().any(|pattern| matches(pattern, name)))
    }
}

/// Whether a name is as a pattern with at most one `*` says.
fn matches(pattern: &str, name: &str) -> bool {
    match pattern.split_once('*') {
        Some((begin, end)) => name.len() >= begin.len() + end.len() && name.starts_with(begin) && name.ends_with(end),
        None => pattern == name,
    }
}
