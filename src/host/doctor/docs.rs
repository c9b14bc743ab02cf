//! `docs/doctor.md`, written from the table of checks: a test writes it, and keeps it equal to what the doctor does.

use std::fmt::Write;

use super::bundle::allowed::ALLOWED;
use super::{CHECKS, Group};

const HEAD: &str = r#"# The doctor

`ringspan doctor` finds out what of a host stands in the way of virtual functions, offload and guests. Each finding has a state, what was
read (the evidence), and commands to paste that fit the host's distribution; what no command can do is a comment.

```
$ ringspan doctor --quiet
Debian GNU/Linux 12 (bookworm), kernel 6.1.0-18-amd64

Platform
  FAIL     iommu  the IOMMU is off: intel_iommu=on is not on the command line; VFs cannot be given to DPDK or to guests
                  /sys/kernel/iommu_groups: 0 groups
                  $ sed -i -E 's/^(GRUB_CMDLINE_LINUX=["'"'"'])/\1intel_iommu=on iommu=pt /' /etc/default/grub
                  $ update-grub
                  $ reboot

22 passed, 0 warnings, 1 failed, 1 unknown
```

| state | meaning |
|---|---|
| pass | as it should be |
| unknown | it could not be looked at (as another user than root, say), or nothing can be said yet |
| warn | it works, and something of it will surprise |
| fail | it does not work; the exit code is 1 |

- It needs no daemon. While one runs, the daemon looks (`doctor.run`), since it may look everywhere; `--local` looks from the command itself.
- `--json` is for programs: names of checks and states keep their meaning.
- `--bundle FILE` also writes a `tar.gz` of the report, of what the checks read, and of what the daemon says of itself: what is on a [list](#what-is-in-a-bundle), and nothing else.
  Names, addresses and parts of the kernel log are in it: read it before you hand it on.
- `--config FILE` names the daemon's configuration file, in which `ovs.run_dir` says where Open vSwitch runs, for a look without the daemon.
- `--root DIR` looks at a copy of another host's `proc`, `sys` and `etc`, `--kernel-log FILE` at a saved kernel log.

## The checks, broken

`cargo xtask lab --only doctor` breaks what the checks look at in an emulated host with a real kernel and two igb NICs: each finding must have its cause and evidence, its commands are pasted as they
stand, and the check must pass. That covers `iommu`, `iommu-passthrough`, `iommu-isolation` (by bridges without ACS), `kernel-log`, `module-parameters`, `nic-driver` (unbound, with a `driver_override`
left), `hugepages`, `hugetlbfs`, `guest-memory` (a real QEMU), `dpdk-drivers`, `device-nodes`, `memlock` (a limit on the doctor's own process, systemd's settings read back), `bonds` (with a real LACP
partner), `ovs-offload` (a real Open vSwitch with the kernel's datapath), `agent-binding` (a VF that vfio-pci took by `new_id`), `agent-qdiscs` (on netdevsim's representors),
`vdpa` (`--only "vdpa netlink"`: a port on a virtio NIC's vDPA device, with no module loaded, with one unloaded, and the NIC with its own driver and with none) and `ip-dump` (by a program
that stands in for an old `ip`; by the real one where 250 VFs of netdevsim's make it lose some, and where the kernel ends its dump with EMSGSIZE: today's kernels count the GUIDs of InfiniBand VFs in their
estimate, so a module makes it as small as it was, and 200 VFs do the rest). What a remedy says in a comment, for no command can do it, is done by hand. What waits for a reboot gets one: the host is booted with what the remedies
wrote into `/etc/default/grub`. Some programs have stand-ins there: `apt-get` (no network: the package must be known), `systemctl`, and the boot loader's. The doctor that runs as nobody says *unknown*
where it may not look.

Not broken there: `representors`, `agent-domains`, `firmware`, VF LAG, `sriov-capability` and `ari` (QEMU's igb has what it needs): made-up trees and texts only.

What depends on hardware that the project does not have (ConnectX, VF LAG, MLNX_OFED, `mstconfig`) was tested with made-up trees, and with texts written from public documentation: not yet seen on hardware.

"#;

/// The page.
fn page() -> String {
    let mut page = HEAD.to_owned();
    page += "## The checks\n";
    for group in Group::ALL {
        let _ = write!(page, "\n### {}\n\n| check | what it finds out |\n|---|---|\n", group.title());
        for check in CHECKS.iter().filter(|check| check.group == group) {
            let _ = writeln!(page, "| `{}` | {} |", check.name, check.about.replace('|', "\\|"));
        }
    }
    page += "\n## What is in a bundle\n\nWhat is not listed here is left out, and named in `left-out.txt`. Of files that people write, a value is shown when its key is known and nothing in it looks like a token (16 letters and\ndigits in a row, or a login in an address).\n\n| what | how much | why |\n|---|---|---|\n";
    for rule in ALLOWED {
        let names: Vec<String> = rule.names.iter().map(|name| format!("`{name}`")).collect();
        let _ = writeln!(page, "| {} | {} | {} |", names.join(", "), rule.shown.words(), rule.why);
    }
    page
}

#[test]
fn the_page_is_what_the_checks_are() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/doctor.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(path, page()).unwrap();
    }
    let written = std::fs::read_to_string(path).unwrap_or_default();
    assert!(written == page(), "docs/doctor.md is old: run UPDATE_DOCS=1 cargo test -p ringspan --lib docs");
}
