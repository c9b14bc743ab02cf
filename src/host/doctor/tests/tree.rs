//! A host that is made up: a healthy one, of which a test breaks a part.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tempfile::TempDir;

use super::texts;
use crate::error::{Error, ErrorKind};
use crate::host::doctor::config_space::{self, Sriov};
use crate::host::doctor::host::{Host, Ran, Surroundings, Unseen};
use crate::host::doctor::{Finding, State, examine};
use crate::ovs::verify::Verified;

/// What is not a file.
#[derive(Clone, Default)]
pub(super) struct Fake {
    pub programs: BTreeMap<String, Result<Ran, Unseen>>,
    pub ovs: Option<Verified>,
    /// Why Open vSwitch cannot be reached, where it cannot.
    pub ovs_errno: Option<i32>,
    pub qdiscs: Vec<(String, String)>,
    pub vdpa_ports: Vec<(&'static str, &'static str)>,
    pub unprivileged: bool,
}

impl Surroundings for Fake {
    fn run(&self, program: &str, arguments: &[&str]) -> Result<Ran, Unseen> {
        let words: Vec<&str> = std::iter::once(program).chain(arguments.iter().copied()).collect();
        self.programs.get(&words.join(" ")).cloned().unwrap_or(Err(Unseen::Absent))
    }

    fn verify_ovs(&self) -> Result<Verified, Error> {
        let down = || Error::new(ErrorKind::OvsDown, "ovsdb-server does not run");
        self.ovs.clone().ok_or_else(|| Error { errno: self.ovs_errno, ..down() })
    }

    fn qdiscs(&self) -> Result<Vec<(String, String)>, Unseen> {
        Ok(self.qdiscs.clone())
    }

    fn privileged(&self) -> bool {
        !self.unprivileged
    }

    fn vdpa_ports(&self) -> Vec<(String, String)> {
        self.vdpa_ports.iter().map(|(port, device)| (port.to_string(), device.to_string())).collect()
    }
}

/// A made-up host.
pub(super) struct Tree {
    pub folder: TempDir,
    pub fake: Fake,
}

pub(super) const PF: &str = "0000:03:00.0";

impl Tree {
    /// Nothing at all.
    pub(super) fn empty() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), fake: Fake::default() }
    }

    /// A Debian host with a ConnectX-5 in switchdev mode, two VFs with representors, hugepages, and DPDK.
    pub(super) fn healthy() -> Self {
        let mut tree = Self::empty();
        tree.file("/etc/os-release", "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID=\"12\"\n");
        tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\"\nGRUB_CMDLINE_LINUX=\"\"\n");
        tree.file("/proc/cmdline", "root=/dev/sda1 intel_iommu=on iommu=pt quiet");
        tree.file("/proc/cpuinfo", "vendor_id : GenuineIntel");
        tree.file("/proc/sys/kernel/osrelease", "6.1.0-18-amd64\n");
        tree.file("/proc/mounts", "hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n");
        tree.file(
            "/proc/self/limits",
            "Max locked memory         unlimited            unlimited            bytes     \n",
        );
        tree.file("/proc/self/status", "CapEff:\t000001ffffffffff\n");
        tree.file("/proc/4711/comm", "qemu-system-x86\n");
        tree.file(
            "/proc/4711/cmdline",
            "qemu\0-name\0guest=vm1\0-object\0memory-backend-memfd,id=m,size=1G,share=on\0",
        );
        tree.file(
            "/dev/kmsg",
            "6,0,0,-;Linux version 6.1.0-18-amd64\n6,1,10,-;mlx5_core 0000:03:00.0: firmware version: 16.35\n",
        );
        tree.file("/dev/net/tun", "");
        tree.file("/dev/vfio/vfio", "");
        tree.file("/sys/firmware/acpi/tables/DMAR", "");
        tree.file("/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "1024\n");
        tree.file("/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "512\n");
        tree.file("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "1024\n");
        tree.file("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/free_hugepages", "512\n");
        tree.file("/sys/bus/pci/drivers/vfio-pci/new_id", "");
        for module in ["ib_uverbs", "mlx5_ib", "mlx5_core"] {
            tree.file(&format!("/sys/module/{module}/refcnt"), "1\n");
        }
        tree.file(
            "/lib/modules/6.1.0-18-amd64/modules.dep",
            "kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko.xz: kernel/x.ko\n",
        );
        tree.file("/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_mlx5.so.23", "");
        tree.file("/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_mlx5.so", "");
        tree.file("/usr/lib/x86_64-linux-gnu/libibverbs/libmlx5-rdmav34.so", "");
        let sriov = Sriov { total: 8, enabled: 2, first_offset: 2, stride: 1, ari_hierarchy: true };
        tree.function(PF, (0x15b3, 0x1017), "mlx5_core", 14);
        tree.bytes(&format!("/sys/bus/pci/devices/{PF}/config"), &config_space::made_up(&[0x01, 0x0e, 0x10], sriov));
        tree.file(&format!("/sys/bus/pci/devices/{PF}/sriov_totalvfs"), "8\n");
        tree.file(&format!("/sys/bus/pci/devices/{PF}/sriov_numvfs"), "2\n");
        tree.file(&format!("/sys/bus/pci/devices/{PF}/net/eth0/ifindex"), "2\n");
        tree.net("eth0", "0c42a1", "p0");
        for vf in 0..2 {
            let address = format!("0000:03:00.{}", vf + 2);
            tree.function(&address, (0x15b3, 0x1018), "mlx5_core", 15 + vf);
            tree.link(&format!("/sys/bus/pci/devices/{address}/physfn"), &format!("../{PF}"));
            tree.file(&format!("/sys/bus/pci/devices/{address}/driver_override"), "(null)\n");
            tree.net(&format!("eth0_{vf}"), "0c42a1", &format!("pf0vf{vf}"));
        }
        tree.net("lo", "", "");
        tree.program("ip link show", "1: lo: <LOOPBACK> mtu 65536\n");
        tree.program("ip -V", "ip utility, iproute2-6.1.0, libbpf 1.1.0\n");
        tree.program("ethtool -k eth0", "Features for eth0:\nhw-tc-offload: on\n");
        tree.program(
            &format!("mstconfig -d {PF} -e query"),
            &texts::MSTCONFIG_PENDING.replace('4', "8").replace("*", " "),
        );
        tree
    }

    /// A function on the PCI bus.
    pub(super) fn function(&mut self, address: &str, id: (u16, u16), driver: &str, group: u32) {
        let folder = format!("/sys/bus/pci/devices/{address}");
        self.file(&format!("{folder}/class"), "0x020000\n");
        self.file(&format!("{folder}/vendor"), &format!("0x{:04x}\n", id.0));
        self.file(&format!("{folder}/device"), &format!("0x{:04x}\n", id.1));
        self.file(&format!("{folder}/numa_node"), "0\n");
        self.link(&format!("{folder}/driver"), &format!("../../../bus/pci/drivers/{driver}"));
        self.link(&format!("{folder}/iommu_group"), &format!("../../../kernel/iommu_groups/{group}"));
        self.file(&format!("/sys/kernel/iommu_groups/{group}/devices/{address}"), "");
        self.file(&format!("/sys/kernel/iommu_groups/{group}/type"), "identity\n");
    }

    /// An interface.
    pub(super) fn net(&mut self, name: &str, switch: &str, port: &str) {
        self.file(&format!("/sys/class/net/{name}/phys_switch_id"), switch);
        self.file(&format!("/sys/class/net/{name}/phys_port_name"), port);
    }

    pub(super) fn path(&self, path: &str) -> std::path::PathBuf {
        self.folder.path().join(path.trim_start_matches('/'))
    }

    pub(super) fn bytes(&mut self, path: &str, content: &[u8]) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    pub(super) fn file(&mut self, path: &str, text: &str) {
        self.bytes(path, text.as_bytes());
    }

    pub(super) fn link(&mut self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        // A test may change where it points to.
        let _ = fs::remove_file(&path);
        symlink(target, path).unwrap();
    }

    /// Takes a file or a folder away.
    pub(super) fn remove(&mut self, path: &str) {
        let path = self.path(path);
        match fs::symlink_metadata(&path).unwrap().is_dir() {
            true => fs::remove_dir_all(path).unwrap(),
            false => fs::remove_file(path).unwrap(),
        }
    }

    pub(super) fn program(&mut self, line: &str, stdout: &str) {
        let ran = Ran { good: true, stdout: stdout.into(), stderr: String::new() };
        self.fake.programs.insert(line.into(), Ok(ran));
    }

    pub(super) fn failing(&mut self, line: &str, stderr: &str) {
        let ran = Ran { good: false, stdout: String::new(), stderr: stderr.into() };
        self.fake.programs.insert(line.into(), Ok(ran));
    }

    pub(super) fn host(&self) -> Host {
        Host::new(self.folder.path(), None, Box::new(self.fake.clone()))
    }

    /// What a check finds that is not well.
    pub(super) fn troubles(&self, check: &str) -> Vec<Finding> {
        let findings = examine(&self.host()).findings;
        assert!(findings.iter().any(|finding| finding.check == check), "there is no check {check}");
        findings.iter().for_each(can_be_pasted);
        findings.into_iter().filter(|finding| finding.check == check && finding.state != State::Pass).collect()
    }

    /// The one thing that a check finds.
    #[track_caller]
    pub(super) fn trouble(&self, check: &str, state: State, words: &str) -> Finding {
        let troubles = self.troubles(check);
        let found = troubles.iter().find(|finding| finding.message.contains(words));
        let found = found.unwrap_or_else(|| panic!("{check} should say {words:?}: {troubles:#?}"));
        assert_eq!(found.state, state, "{found:#?}");
        found.clone()
    }

    /// That a check finds nothing.
    #[track_caller]
    pub(super) fn passes(&self, check: &str) {
        let troubles = self.troubles(check);
        assert!(troubles.is_empty(), "{check}: {troubles:#?}");
    }

    /// Runs those commands of a remedy that are for files, on the tree's own files.
    #[track_caller]
    pub(super) fn paste(&self, finding: &Finding, file: &str) {
        let mine = self.path(file);
        let mut done = 0;
        for command in
            finding.remedy.iter().filter(|command| command.starts_with("sed ") || command.starts_with("echo "))
        {
            if !command.contains(file) {
                continue;
            }
            let command = command.replace(file, mine.to_str().unwrap());
            let status = std::process::Command::new("sh").args(["-c", &command]).status().unwrap();
            assert!(status.success(), "{command}");
            done += 1;
        }
        assert!(done > 0, "no command for {file}: {:#?}", finding.remedy);
    }
}

/// A remedy is shell, its commands of ours exist, and what is no command is a comment.
#[track_caller]
pub(super) fn can_be_pasted(finding: &Finding) {
    assert!(finding.state < State::Warn || !finding.remedy.is_empty(), "nothing to do: {finding:#?}");
    for line in &finding.remedy {
        assert!(!line.contains('\n'), "one command a line: {finding:#?}");
        let checked = std::process::Command::new("sh").args(["-nc", line]).output().unwrap();
        assert!(checked.status.success(), "{line}: {}", String::from_utf8_lossy(&checked.stderr));
        crate::cli::advice::parses(line).unwrap();
        let program = line.split_whitespace().next().unwrap_or_default();
        assert!(PROGRAMS.contains(&program), "{program:?} is no program that is known: {finding:#?}");
    }
}

/// What remedies begin with.
const PROGRAMS: [&str; 34] = [
    "#",
    "apt-get",
    "bridge",
    "devlink",
    "dnf",
    "dracut",
    "echo",
    "ethtool",
    "grub2-mkconfig",
    "ip",
    "journalctl",
    "mkdir",
    "mlxconfig",
    "modprobe",
    "mount",
    "mstconfig",
    "ovs-appctl",
    "ovs-vsctl",
    "printf",
    "reboot",
    "ringspan",
    "sed",
    "sudo",
    "systemctl",
    "tc",
    "udevadm",
    "update-grub",
    "update-initramfs",
    "yum",
    "zypper",
    "/etc/init.d/openibd",
    "mstfwreset",
    "sysctl",
    "umount",
];

/// What is in a file of the tree.
pub(super) fn content(path: &Path) -> String {
    fs::read_to_string(path).unwrap()
}
