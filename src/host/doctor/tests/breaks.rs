//! One part of a healthy host is broken; its check says so, and says no more once it is mended.

use super::texts;
use super::tree::{PF, Tree, content};
use crate::host::doctor::State;
use crate::host::doctor::config_space::{self, Sriov};
use crate::host::doctor::host::Unseen;

fn without_iommu(tree: &mut Tree) {
    tree.remove("/sys/kernel/iommu_groups");
    tree.file("/sys/kernel/iommu_groups/.keep", "");
    tree.remove("/sys/kernel/iommu_groups/.keep");
}

fn with_iommu(tree: &mut Tree) {
    tree.file("/sys/kernel/iommu_groups/0/type", "identity\n");
}

#[test]
fn an_iommu_that_nobody_asked_for() {
    let mut tree = Tree::healthy();
    without_iommu(&mut tree);
    tree.file("/proc/cmdline", "root=/dev/sda1 quiet");
    let found = tree.trouble("iommu", State::Fail, "intel_iommu=on is not on the command line");
    assert!(found.evidence.iter().any(|line| line.contains("DMAR is there")), "{found:#?}");
    // The remedy is pasted: its words stand where update-grub takes them from.
    tree.paste(&found, "/etc/default/grub");
    let grub = content(&tree.path("/etc/default/grub"));
    assert!(grub.contains("GRUB_CMDLINE_LINUX=\"intel_iommu=on iommu=pt \""), "{grub}");
    assert!(grub.contains("GRUB_CMDLINE_LINUX_DEFAULT=\"quiet\""), "{grub}");
    assert_eq!(found.remedy[1..], ["update-grub", "reboot"]);
    tree.file("/proc/cmdline", "root=/dev/sda1 intel_iommu=on iommu=pt quiet");
    with_iommu(&mut tree);
    tree.passes("iommu");
}

#[test]
fn the_word_for_an_iommu_is_that_of_the_firmwares_table() {
    let mut tree = Tree::healthy();
    without_iommu(&mut tree);
    tree.file("/proc/cmdline", "root=/dev/sda1 quiet");
    // As QEMU has it: an AMD processor and an Intel IOMMU.
    tree.file("/proc/cpuinfo", "vendor_id : AuthenticAMD");
    tree.trouble("iommu", State::Fail, "intel_iommu=on is not on the command line");
    tree.remove("/sys/firmware/acpi/tables/DMAR");
    tree.file("/sys/firmware/acpi/tables/IVRS", "");
    tree.trouble("iommu", State::Fail, "amd_iommu=on is not on the command line");
}

#[test]
fn groups_that_vfio_made_without_an_iommu_are_not_one() {
    let mut tree = Tree::healthy();
    without_iommu(&mut tree);
    tree.file("/proc/cmdline", "root=/dev/sda1 quiet");
    tree.file("/sys/kernel/iommu_groups/0/name", "vfio-noiommu\n");
    tree.trouble("iommu", State::Fail, "intel_iommu=on is not on the command line");
}

#[test]
fn an_iommu_that_the_command_line_turns_off() {
    let mut tree = Tree::healthy();
    without_iommu(&mut tree);
    tree.file("/proc/cmdline", "root=/dev/sda1 intel_iommu=off quiet");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"intel_iommu=off quiet\"\n");
    let found = tree.trouble("iommu", State::Fail, "turns it off (intel_iommu=off)");
    tree.paste(&found, "/etc/default/grub");
    let grub = content(&tree.path("/etc/default/grub"));
    assert!(grub.contains("intel_iommu=on iommu=pt") && !grub.contains("=off") && grub.contains("quiet"), "{grub}");
}

#[test]
fn an_iommu_that_the_firmware_hides() {
    let mut tree = Tree::healthy();
    without_iommu(&mut tree);
    tree.remove("/sys/firmware/acpi/tables/DMAR");
    let found = tree.trouble("iommu", State::Fail, "the firmware tells of none");
    assert!(found.remedy[0].contains("enable VT-d"), "{found:#?}");
    assert_eq!(found.remedy[1..], ["reboot"], "the command line is right already");
}

#[test]
fn an_iommu_built_in_needs_no_word_on_the_command_line() {
    let mut tree = Tree::healthy();
    tree.file("/proc/cmdline", "root=/dev/sda1 quiet");
    tree.passes("iommu");
    tree.passes("iommu-passthrough");
}

#[test]
fn the_hosts_own_dma_is_translated() {
    let mut tree = Tree::healthy();
    tree.file("/proc/cmdline", "root=/dev/sda1 intel_iommu=on quiet");
    tree.file("/sys/kernel/iommu_groups/14/type", "DMA\n");
    let found = tree.trouble("iommu-passthrough", State::Warn, "iommu=pt is not on the command line");
    assert!(found.remedy[0].contains("iommu=pt"), "{found:#?}");
}

#[test]
fn remedies_are_those_of_the_distribution() {
    let mut tree = Tree::healthy();
    without_iommu(&mut tree);
    tree.file("/proc/cmdline", "root=/dev/sda1 quiet");
    let remedy = |tree: &Tree| tree.trouble("iommu", State::Fail, "intel_iommu=on").remedy;
    for (release, command) in [
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"22.04\"", "update-grub"),
        ("ID=\"centos\"\nID_LIKE=\"rhel fedora\"\nVERSION_ID=\"7\"", "grub2-mkconfig -o /boot/grub2/grub.cfg"),
        (
            "ID=\"rocky\"\nID_LIKE=\"rhel centos fedora\"\nVERSION_ID=\"9.3\"",
            "grub2-mkconfig -o /boot/grub2/grub.cfg --update-bls-cmdline",
        ),
        ("ID=\"openEuler\"\nVERSION_ID=\"22.03\"", "grub2-mkconfig -o /boot/grub2/grub.cfg"),
        ("ID=sles\nVERSION_ID=15", "grub2-mkconfig -o /boot/grub2/grub.cfg"),
    ] {
        tree.file("/etc/os-release", release);
        assert_eq!(remedy(&tree)[1], command, "{release}");
    }
    tree.file("/etc/os-release", "ID=kylin\nVERSION_ID=V10");
    tree.file("/sys/firmware/efi/runtime", "");
    tree.file("/boot/efi/EFI/kylin/grub.cfg", "");
    assert_eq!(remedy(&tree)[1], "grub2-mkconfig -o /boot/efi/EFI/kylin/grub.cfg");
    tree.file("/etc/os-release", "ID=nixos");
    assert!(remedy(&tree)[0].starts_with("# add to the kernel's command line"));
}

#[test]
fn a_vf_that_shares_its_group() {
    let mut tree = Tree::healthy();
    tree.file("/sys/kernel/iommu_groups/15/devices/0000:02:00.0", "");
    let found = tree.trouble("iommu-isolation", State::Warn, "1 of 2 VFs share their IOMMU group");
    assert!(found.evidence[0].contains("0000:03:00.2 with 0000:02:00.0"), "{found:#?}");
}

#[test]
fn known_lines_of_the_kernel_log() {
    for (text, state, cause, remedy) in [
        (texts::LOG_MMIO, State::Fail, "no address space (MMIO)", "pci=realloc"),
        (texts::LOG_ENABLE_HCA, State::Fail, "does not answer a new VF", "enable ACS, PCIe ARI support and IOMMU"),
        (texts::LOG_VF_LAG, State::Fail, "VF LAG was not activated", "unbind all VFs"),
    ] {
        let mut tree = Tree::healthy();
        tree.file("/dev/kmsg", text);
        let found = tree.trouble("kernel-log", state, cause);
        assert!(found.remedy.join("\n").contains(remedy), "{found:#?}");
        assert_eq!(found.evidence[0], text.lines().next().unwrap());
        tree.file("/dev/kmsg", "[    0.1] Linux version 6.1\n");
        tree.passes("kernel-log");
    }
}

#[test]
fn a_remedy_that_was_taken_already_is_not_given_again() {
    let mut tree = Tree::healthy();
    tree.file("/dev/kmsg", texts::LOG_MMIO);
    assert_eq!(tree.trouble("kernel-log", State::Fail, "MMIO").item.as_deref(), Some("eth0 (0000:03:00.0)"));
    tree.file("/proc/cmdline", "intel_iommu=on iommu=pt pci=nocrs,realloc");
    let found = tree.trouble("kernel-log", State::Fail, "MMIO");
    assert!(found.remedy[0].contains("Above 4G Decoding"), "{found:#?}");
}

#[test]
fn a_log_that_lost_its_beginning_is_not_taken_for_good() {
    let mut tree = Tree::healthy();
    tree.file("/dev/kmsg", "6,9000,1,-;usb 1-1: new device\n");
    tree.trouble("kernel-log", State::Unknown, "lost its beginning");
    // The journal has it all.
    tree.program("journalctl -k -b -o short-monotonic --no-pager -q", texts::LOG_MMIO);
    tree.trouble("kernel-log", State::Fail, "MMIO");
}

#[test]
fn parameters_that_make_vfs() {
    let mut tree = Tree::healthy();
    tree.file("/proc/cmdline", "intel_iommu=on iommu=pt igb.max_vfs=7");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"igb.max_vfs=7\"\n");
    tree.file("/sys/module/igb/parameters/max_vfs", "7\n");
    let found = tree.trouble("module-parameters", State::Warn, "makes VFs when the driver loads");
    tree.paste(&found, "/etc/default/grub");
    assert_eq!(content(&tree.path("/etc/default/grub")), "GRUB_CMDLINE_LINUX=\"\"\n");
    tree.remove("/sys/module/igb/parameters/max_vfs");
    tree.trouble("module-parameters", State::Warn, "has no such parameter");
    tree.file("/proc/cmdline", "intel_iommu=on iommu=pt igb.max_vfs=8");
    tree.trouble("module-parameters", State::Fail, "takes 7 at most");
    tree.file("/proc/cmdline", "intel_iommu=on iommu=pt");
    tree.passes("module-parameters");
}

#[test]
fn parameters_in_modprobe_d() {
    let mut tree = Tree::healthy();
    tree.file("/etc/modprobe.d/ixgbe.conf", "options ixgbe max_vfs=8 allow_unsupported_sfp=1\n");
    let found = tree.trouble("module-parameters", State::Warn, "ixgbe.max_vfs=8");
    assert!(found.remedy.contains(&"update-initramfs -u".to_owned()), "{found:#?}");
    tree.paste(&found, "/etc/modprobe.d/ixgbe.conf");
    assert_eq!(content(&tree.path("/etc/modprobe.d/ixgbe.conf")), "options ixgbe allow_unsupported_sfp=1\n");
    tree.passes("module-parameters");
}

fn config(tree: &mut Tree, ids: &[u16], sriov: Sriov) {
    tree.bytes(&format!("/sys/bus/pci/devices/{PF}/config"), &config_space::made_up(ids, sriov));
}

#[test]
fn a_mellanox_card_whose_firmware_has_sriov_off() {
    let mut tree = Tree::healthy();
    config(&mut tree, &[0x01, 0x0e], Sriov::default());
    tree.remove(&format!("/sys/bus/pci/devices/{PF}/sriov_totalvfs"));
    let found = tree.trouble("sriov-capability", State::Fail, "SRIOV_EN off");
    assert!(found.remedy.iter().any(|line| line.contains("mstconfig -y -d 0000:03:00.0 set SRIOV_EN=1")), "{found:#?}");
}

#[test]
fn a_config_space_that_is_cut_is_unknown_and_lspci_may_know() {
    let mut tree = Tree::healthy();
    tree.remove(&format!("/sys/bus/pci/devices/{PF}/sriov_totalvfs"));
    tree.bytes(&format!("/sys/bus/pci/devices/{PF}/config"), &[0; 64]);
    let found = tree.trouble("sriov-capability", State::Unknown, "not visible to this user");
    assert_eq!(found.remedy, ["sudo ringspan doctor"]);
    tree.program("lspci -D -v", texts::LSPCI_CONNECTX5);
    tree.passes("sriov-capability");
    tree.program("lspci -D -v", &texts::LSPCI_CONNECTX5.replace("(SR-IOV)", "(x)"));
    tree.trouble("sriov-capability", State::Fail, "no SR-IOV capability");
}

#[test]
fn a_bridge_that_does_not_pass_ari_on() {
    let mut tree = Tree::healthy();
    config(&mut tree, &[0x0e, 0x10], Sriov { total: 8, enabled: 2, first_offset: 2, stride: 1, ari_hierarchy: false });
    tree.trouble("ari", State::Warn, "the bridge above it does not pass ARI on");
    config(&mut tree, &[0x10], Sriov { total: 8, ..Sriov::default() });
    tree.trouble("ari", State::Warn, "it has no ARI");
    tree.bytes(&format!("/sys/bus/pci/devices/{PF}/config"), &[0; 64]);
    tree.trouble("ari", State::Unknown, "not visible");
    tree.file(&format!("/sys/bus/pci/devices/{PF}/sriov_totalvfs"), "7\n");
    config(&mut tree, &[0x10], Sriov { total: 7, ..Sriov::default() });
    tree.passes("ari");
}

#[test]
fn a_card_without_a_driver() {
    let mut tree = Tree::healthy();
    tree.remove(&format!("/sys/bus/pci/devices/{PF}/driver"));
    let probe = format!("echo {PF} > /sys/bus/pci/drivers_probe");
    let found = tree.trouble("nic-driver", State::Warn, "it has no driver");
    assert_eq!(found.remedy, ["modprobe mlx5_core", &probe]);
    // Who unbound it left the name of another driver.
    let left = format!("/sys/bus/pci/devices/{PF}/driver_override");
    tree.file(&left, "vfio-pci\n");
    let found = tree.trouble("nic-driver", State::Warn, "it has no driver");
    assert_eq!(found.remedy, [&format!("echo > {left}"), "modprobe mlx5_core", &probe]);
    assert!(found.evidence.iter().any(|line| line.contains("vfio-pci")), "{found:#?}");
}

#[test]
fn ofed_installed_and_the_kernels_own_driver_loaded() {
    let mut tree = Tree::healthy();
    let list = "/lib/modules/6.1.0-18-amd64/modules.dep";
    tree.file(list, "updates/dkms/mlx5_core.ko: updates/dkms/mlx_compat.ko\n");
    let found = tree.trouble("nic-driver", State::Warn, "the kernel's own mlx5_core is loaded");
    assert_eq!(found.remedy, ["update-initramfs -u", "/etc/init.d/openibd restart"]);
    tree.file("/sys/module/mlx_compat/refcnt", "1\n");
    tree.passes("nic-driver");
    tree.file(list, "kernel/drivers/net/ethernet/mellanox/mlx5/core/mlx5_core.ko:\n");
    tree.trouble("nic-driver", State::Warn, "the next boot takes the kernel's own");
}

#[test]
fn firmware_that_waits_for_a_reboot() {
    let mut tree = Tree::healthy();
    let query = format!("mstconfig -d {PF} -e query");
    tree.program(&query, texts::MSTCONFIG_PENDING);
    let found = tree.trouble("firmware", State::Warn, "NUM_OF_VFS 4 -> 8");
    assert_eq!(found.remedy[0], "reboot");
    tree.program(&query, &texts::MSTCONFIG_PENDING.replace('4', "8").replace("True(1)", "False(0)"));
    tree.trouble("firmware", State::Fail, "SR-IOV is off in its firmware");
    tree.failing(&query, "-E- Failed to open the device\n");
    tree.trouble("firmware", State::Unknown, "Failed to open the device");
    tree.fake.unprivileged = true;
    tree.trouble("firmware", State::Unknown, "not visible to this user");
    tree.fake.programs.remove(&query);
    tree.trouble("firmware", State::Unknown, "neither mstconfig nor mlxconfig");
    tree.program(&format!("mlxconfig -d {PF} -e query"), texts::MSTCONFIG_PENDING);
    tree.trouble("firmware", State::Warn, "NUM_OF_VFS 4 -> 8");
}

#[test]
fn hugepages_that_are_not_there_used_up_or_on_another_node() {
    let mut tree = Tree::healthy();
    let folder = "/sys/kernel/mm/hugepages/hugepages-2048kB";
    tree.file(&format!("{folder}/nr_hugepages"), "0\n");
    let found = tree.trouble("hugepages", State::Fail, "no hugepage is reserved");
    assert_eq!(found.remedy[0], "echo 1024 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    tree.file("/proc/meminfo", "MemTotal: 4096000 kB\nMemAvailable:    2048000 kB\n");
    let found = tree.trouble("hugepages", State::Fail, "no hugepage is reserved");
    assert!(found.remedy[0].starts_with("echo 500 >"), "half of the available memory stays: {found:#?}");
    tree.remove("/proc/meminfo");
    tree.file(&format!("{folder}/nr_hugepages"), "1024\n");
    tree.file(&format!("{folder}/free_hugepages"), "10\n");
    let found = tree.trouble("hugepages", State::Warn, "20 of 2048 MiB of hugepages are free");
    assert_eq!(found.remedy[0], "echo 1536 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages");
    tree.file(&format!("{folder}/free_hugepages"), "1024\n");
    tree.file("/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages", "0\n");
    let found = tree.trouble("hugepages", State::Warn, "NUMA node 0 has no hugepages");
    tree.paste(&found, "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages");
    tree.passes("hugepages");
}

#[test]
fn hugetlbfs_that_is_not_mounted_or_bounded() {
    let mut tree = Tree::healthy();
    tree.file("/proc/mounts", "proc /proc proc rw 0 0\n");
    tree.trouble("hugetlbfs", State::Warn, "is not mounted");
    tree.file("/proc/mounts", "hugetlbfs /mnt/huge hugetlbfs rw,pagesize=2M,size=1G 0 0\n");
    let found = tree.trouble("hugetlbfs", State::Warn, "bounded to 1024 MiB");
    let command = "umount /mnt/huge && mount -t hugetlbfs -o rw,pagesize=2M,size=2048M hugetlbfs /mnt/huge";
    assert_eq!(found.remedy[0], command);
    tree.file("/proc/mounts", "hugetlbfs /mnt/huge hugetlbfs rw,pagesize=2M,size=2048M 0 0\n");
    tree.passes("hugetlbfs");
}

#[test]
fn memory_that_cannot_be_pinned() {
    let mut tree = Tree::healthy();
    tree.file("/proc/self/limits", "Max locked memory         8388608              8388608              bytes     \n");
    tree.passes("memlock");
    tree.file("/proc/self/status", "CapEff:\t0000000000000000\n");
    tree.trouble("memlock", State::Warn, "RLIMIT_MEMLOCK is 8388608 bytes");
    tree.fake.unprivileged = true;
    tree.trouble("memlock", State::Unknown, "the daemon's is not visible");
}

#[test]
fn a_guest_whose_memory_is_its_own() {
    let mut tree = Tree::healthy();
    tree.file("/proc/4712/comm", "qemu-kvm\n");
    tree.file("/proc/4712/cmdline", "qemu-kvm\0-name\0guest=vm2,debug-threads=on\0-m\x001024\0");
    let found = tree.trouble("guest-memory", State::Warn, "its memory is not shared");
    assert_eq!(found.item.as_deref(), Some("vm2 (process 4712)"));
    tree.file("/proc/4712/cmdline", "qemu-kvm\0-object\0{\"qom-type\":\"memory-backend-memfd\",\"share\":true}\0");
    tree.passes("guest-memory");
}

#[test]
fn dpdk_without_the_cards_driver_or_its_verbs() {
    let mut tree = Tree::healthy();
    tree.remove("/sys/module/mlx5_ib");
    let found = tree.trouble("dpdk-drivers", State::Fail, "kernel modules mlx5_ib");
    assert_eq!(found.remedy[0], "modprobe -a mlx5_ib");
    tree.file("/sys/module/mlx5_ib/refcnt", "1\n");
    tree.remove("/usr/lib/x86_64-linux-gnu/libibverbs");
    tree.trouble("dpdk-drivers", State::Fail, "verbs provider");
    tree.remove("/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_mlx5.so");
    tree.remove("/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0/librte_net_mlx5.so.23");
    let found = tree.trouble("dpdk-drivers", State::Fail, "driver mlx5 is not installed");
    assert_eq!(found.remedy, ["apt-get install -y librte-net-mlx5-*"]);
    tree.remove("/usr/lib/x86_64-linux-gnu/dpdk");
    tree.trouble("dpdk-drivers", State::Fail, "no lane starts");
}

#[test]
fn device_nodes_that_are_not_there() {
    let mut tree = Tree::healthy();
    tree.remove("/dev/net/tun");
    let found = tree.trouble("device-nodes", State::Fail, "/dev/net/tun is not there");
    assert_eq!(found.remedy[0], "modprobe -a tun");
    tree.file("/sys/class/misc/tun/dev", "10:200\n");
    let found = tree.trouble("device-nodes", State::Fail, "/dev/net/tun is not there");
    assert_eq!(found.remedy, ["mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200"]);
    tree.remove("/sys/bus/pci/drivers/vfio-pci");
    assert_eq!(tree.trouble("device-nodes", State::Fail, "vfio-pci is not loaded").remedy[0], "modprobe -a vfio-pci");
    tree.file("/sys/bus/vdpa/devices/vdpa0", "");
    tree.trouble("device-nodes", State::Warn, "no /dev/vhost-vdpa-*");
}

#[test]
fn ports_on_vdpa_devices_whose_modules_are_not_loaded() {
    let mut tree = Tree::healthy();
    let card = format!("/sys/bus/pci/devices/{PF}");
    tree.fake.vdpa_ports = vec![("vm1", "vdpa:0000:03:00.0"), ("vm2", "vhost-vdpa:/dev/vhost-vdpa-9")];
    tree.file("/sys/module/mlx5_vdpa/refcnt", "0\n");
    let found = tree.trouble("vdpa", State::Fail, "vdpa and vhost_vdpa not loaded");
    assert_eq!(found.remedy[0], "modprobe -a vdpa vhost_vdpa");
    assert!(found.evidence.iter().any(|line| line == "port vm1: vdpa:0000:03:00.0"), "{found:?}");
    tree.file("/sys/bus/vdpa/uevent", "");
    assert_eq!(tree.trouble("vdpa", State::Fail, "vhost_vdpa not loaded").remedy[0], "modprobe -a vhost_vdpa");
    tree.file("/sys/bus/vdpa/drivers/vhost_vdpa/bind", "");
    tree.remove("/sys/module/mlx5_vdpa");
    tree.remove(&format!("{card}/driver"));
    tree.trouble("vdpa", State::Fail, "has no driver");
    for (name, says, remedy) in [
        ("mlx5_core", "mlx5_vdpa is not loaded", "modprobe -a mlx5_vdpa"),
        ("virtio-pci", "its own driver has", "modprobe -a vp_vdpa"),
    ] {
        tree.link(&format!("{card}/driver"), &format!("../../../bus/pci/drivers/{name}"));
        assert_eq!(tree.trouble("vdpa", State::Fail, says).remedy[0], remedy);
    }
    tree.fake.vdpa_ports = vec![("vm1", "vdpa:vdpasim_net"), ("vm3", "vdpa:0000:7f:00.0")];
    assert_eq!(tree.trouble("vdpa", State::Fail, "there is no vdpasim_net").remedy[0], "modprobe -a vdpa_sim_net");
    tree.trouble("vdpa", State::Fail, "there is no 0000:7f:00.0");
}

#[test]
fn what_ovs_verify_says_is_passed_on() {
    let mut tree = Tree::healthy();
    let verified = r#"{"verdict":"not-working","summary":"x","checks":[{"check":"hw-offload","state":"failed","message":"hw-offload is not set","remedy":"ringspan ovs configure --hw-offload true --restart"},{"check":"offloaded","state":"unknown","message":"no traffic yet","remedy":"send traffic between ports"}],"datapaths":[]}"#;
    tree.fake.ovs = Some(serde_json::from_str(verified).unwrap());
    let found = tree.trouble("ovs-offload", State::Fail, "hw-offload is not set");
    assert_eq!(found.remedy, ["ringspan ovs configure --hw-offload true --restart"]);
    let idle = tree.trouble("ovs-offload", State::Unknown, "no traffic yet");
    assert_eq!(idle.remedy, ["# send traffic between ports"], "advice is no command");
    for (remedy, lines) in [
        ("restart it: ringspan ovs configure --restart", &["# restart it", "ringspan ovs configure --restart"][..]),
        (
            "make it, or remove the port: ringspan ovs configure --bridge br0 --remove-port NAME",
            &["# make it, or remove the port: ringspan ovs configure --bridge br0 --remove-port NAME"],
        ),
    ] {
        let text = verified.replace("ringspan ovs configure --hw-offload true --restart", remedy);
        tree.fake.ovs = Some(serde_json::from_str(&text).unwrap());
        assert_eq!(tree.trouble("ovs-offload", State::Fail, "hw-offload is not set").remedy, lines);
    }
    tree.fake.ovs = None;
    tree.passes("ovs-offload");
    tree.file("/etc/openvswitch/conf.db", "");
    assert_eq!(tree.trouble("ovs-offload", State::Warn, "does not run").remedy, ["systemctl start openvswitch-switch"]);
    // Another user is not told of missing rights where nothing is.
    (tree.fake.unprivileged, tree.fake.ovs_errno) = (true, Some(libc::ENOENT));
    tree.trouble("ovs-offload", State::Warn, "does not run");
    tree.fake.ovs_errno = Some(libc::EACCES);
    tree.trouble("ovs-offload", State::Unknown, "not visible to this user");
}

#[test]
fn representors_that_are_missing_and_an_offload_that_is_off() {
    let mut tree = Tree::healthy();
    tree.remove("/sys/class/net/eth0_1");
    let found = tree.trouble("representors", State::Fail, "without a representor");
    assert!(found.message.ends_with(": 1"), "{found:#?}");
    // One of the other function of the same switch is not this one's.
    tree.net("eth1_1", "0c42a1", "pf1vf1");
    tree.trouble("representors", State::Fail, "without a representor");
    tree.net("eth0_1", "0c42a1", "c1pf0vf1");
    tree.passes("representors");
    tree.program("ethtool -k eth0", "hw-tc-offload: off\n");
    let found = tree.trouble("representors", State::Fail, "hw-tc-offload is off");
    assert_eq!(found.remedy, ["ethtool -K eth0 hw-tc-offload on"]);
}

fn bond(tree: &mut Tree, mode: &str, miimon: &str, partner: &str) {
    let folder = "/sys/class/net/bond0/bonding";
    tree.file(&format!("{folder}/mode"), mode);
    tree.file(&format!("{folder}/miimon"), miimon);
    tree.file(&format!("{folder}/arp_interval"), "0\n");
    tree.file(&format!("{folder}/slaves"), "eth0 eth1\n");
    tree.file(&format!("{folder}/ad_partner_mac"), partner);
    tree.file("/sys/class/net/eth0/bonding_slave/mii_status", "up\n");
    tree.file("/sys/class/net/eth1/bonding_slave/mii_status", "up\n");
}

#[test]
fn bonds_that_do_not_bond() {
    let mut tree = Tree::healthy();
    bond(&mut tree, "802.3ad 4\n", "100\n", "0c:42:a1:00:00:01\n");
    tree.passes("bonds");
    bond(&mut tree, "balance-rr 0\n", "0\n", "\n");
    tree.trouble("bonds", State::Fail, "mode balance-rr");
    let found = tree.trouble("bonds", State::Warn, "links are not watched");
    tree.paste(&found, "/sys/class/net/bond0/bonding/miimon");
    assert_eq!(content(&tree.path("/sys/class/net/bond0/bonding/miimon")), "100\n");
    bond(&mut tree, "802.3ad 4\n", "100\n", "00:00:00:00:00:00\n");
    tree.trouble("bonds", State::Fail, "nobody answers LACP");
    bond(&mut tree, "active-backup 1\n", "100\n", "\n");
    tree.file("/sys/class/net/eth1/bonding_slave/mii_status", "down\n");
    tree.trouble("bonds", State::Warn, "its member eth1 is down");
}

#[test]
fn vf_lag_that_is_not_active() {
    let mut tree = Tree::healthy();
    bond(&mut tree, "active-backup 1\n", "100\n", "\n");
    tree.function("0000:03:00.1", (0x15b3, 0x1017), "mlx5_core", 30);
    tree.file("/sys/bus/pci/devices/0000:03:00.1/sriov_totalvfs", "8\n");
    tree.file("/sys/bus/pci/devices/0000:03:00.1/sriov_numvfs", "2\n");
    tree.file("/sys/bus/pci/devices/0000:03:00.1/net/eth1/ifindex", "3\n");
    tree.trouble("bonds", State::Unknown, "lag/state: not there");
    let place = format!("/sys/kernel/debug/mlx5/{PF}/lag/state");
    tree.file(&place, "disabled\n");
    tree.trouble("bonds", State::Fail, "VF LAG is not active");
    tree.file(&place, "active\n");
    tree.remove("/sys/class/net/bond0/bonding/slaves");
    tree.file("/sys/class/net/bond0/bonding/slaves", "eth0 eth1\n");
    tree.passes("bonds");
}

#[test]
fn a_vf_that_the_agent_took() {
    let mut tree = Tree::healthy();
    tree.link("/sys/bus/pci/devices/0000:03:00.2/driver", "../../../bus/pci/drivers/vfio-pci");
    let found = tree.trouble("agent-binding", State::Warn, "took this VF by its id");
    assert_eq!(found.remedy[0], "echo '15b3 1018' > /sys/bus/pci/drivers/vfio-pci/remove_id");
    assert_eq!(found.remedy[1], "echo vfio-pci > /sys/bus/pci/devices/0000:03:00.2/driver_override");
    tree.file("/sys/bus/pci/devices/0000:03:00.2/driver_override", "vfio-pci\n");
    tree.passes("agent-binding");
}

#[test]
fn what_the_agent_shapes_on_a_representor() {
    let mut tree = Tree::healthy();
    let qdisc = |interface: &str, kind: &str| (interface.to_owned(), kind.to_owned());
    tree.fake.qdiscs = vec![qdisc("lo", "tbf"), qdisc("eth0_0", "tbf"), qdisc("eth0_1", "noqueue")];
    let found = tree.trouble("agent-qdiscs", State::Warn, "tbf on a representor");
    assert_eq!(found.item.as_deref(), Some("eth0_0"));
    assert_eq!(found.remedy[0], "tc qdisc del dev eth0_0 root");
    tree.fake.qdiscs.remove(1);
    tree.passes("agent-qdiscs");
}

#[test]
fn a_card_that_the_agent_does_not_see() {
    let mut tree = Tree::healthy();
    let address = "10000:01:00.0";
    // A folder of devices, as the kernel has it, so that the bus has a link.
    tree.function("x", (0x15b3, 0x101d), "mlx5_core", 40);
    let target = tree.path("/sys/devices/pci10000:00");
    std::fs::create_dir_all(&target).unwrap();
    std::fs::rename(tree.path("/sys/bus/pci/devices/x"), target.join(address)).unwrap();
    tree.link(&format!("/sys/bus/pci/devices/{address}"), &format!("../../../devices/pci10000:00/{address}"));
    tree.trouble("agent-domains", State::Warn, "the host agent does not see it");
}

#[test]
fn an_ip_that_cannot_list_interfaces() {
    let mut tree = Tree::healthy();
    tree.failing("ip link show", texts::IP_TOO_SMALL);
    let found = tree.trouble("ip-dump", State::Fail, "ip cannot list interfaces");
    assert!(
        found.evidence.iter().any(|line| line == "package iproute2: ip utility, iproute2-6.1.0, libbpf 1.1.0"),
        "{found:#?}"
    );
    assert!(found.evidence.iter().any(|line| line.ends_with("sriov_numvfs: 2")), "{found:#?}");
    assert!(found.remedy.iter().any(|line| line.contains("novf")), "{found:#?}");
    tree.file("/etc/os-release", "ID=centos\nVERSION_ID=7");
    assert!(tree.trouble("ip-dump", State::Fail, "ip cannot list").evidence[1].starts_with("package iproute:"));
    tree.failing("ip link show", texts::IP_TRUNCATED);
    let found = tree.trouble("ip-dump", State::Warn, "ip shows some of eth3's VFs only");
    assert!(found.remedy.iter().any(|line| line.contains("ringspan vf enable eth3 128")), "{found:#?}");
    tree.program("ip link show", "1: lo\n");
    tree.passes("ip-dump");
}

#[test]
fn what_is_denied_is_unknown() {
    let mut tree = Tree::healthy();
    tree.fake.programs.insert("ip link show".into(), Err(Unseen::Denied));
    let found = tree.trouble("ip-dump", State::Unknown, "not visible to this user");
    assert_eq!(found.remedy, ["sudo ringspan doctor"]);
}
