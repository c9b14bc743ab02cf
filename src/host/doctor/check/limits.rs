//! Limits of processes, and device nodes.

use super::Found;
use crate::host::doctor::host::Host;

/// CAP_IPC_LOCK in a capability set (capabilities(7)): memory is locked without limit.
const IPC_LOCK: u64 = 1 << 14;

const UNLIMITED: [&str; 3] = [
    "mkdir -p /etc/systemd/system/ringspan.service.d && printf '[Service]\\nLimitMEMLOCK=infinity\\n' > /etc/systemd/system/ringspan.service.d/memlock.conf",
    "systemctl daemon-reload && systemctl restart ringspan",
    "# in this shell: ulimit -l unlimited",
];

/// Devices of the kernel's vDPA bus.
fn vdpa(host: &Host) -> Vec<String> {
    host.names("/sys/bus/vdpa/devices").unwrap_or_default()
}

pub(super) fn memlock(host: &Host) -> Vec<Found> {
    let limits = match host.text("/proc/self/limits") {
        Ok(text) => text,
        Err(why) => return vec![Found::unseen("/proc/self/limits", &why)],
    };
    let Some(line) = limits.lines().find(|line| line.starts_with("Max locked memory")) else {
        return vec![Found::unknown("/proc/self/limits does not say")];
    };
    let soft = line.trim_start_matches("Max locked memory").split_whitespace().next().unwrap_or_default();
    let status = host.text("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| u64::from_str_radix(line.strip_prefix("CapEff:")?.trim(), 16).ok());
    let evidence = [format!("/proc/self/limits: {}", line.split_whitespace().collect::<Vec<_>>().join(" "))];
    let found = if soft == "unlimited" {
        Found::pass("RLIMIT_MEMLOCK is unlimited")
    } else if effective.is_some_and(|set| set & IPC_LOCK != 0) && !vdpa(host).is_empty() {
        // drivers/vhost/vdpa.c, vhost_vdpa_pa_map: pages beyond the limit are refused, whatever the capabilities.
        Found::warn(format!(
            "RLIMIT_MEMLOCK is {soft} bytes: vhost-vdpa counts a guest's memory against it (ENOMEM), and CAP_IPC_LOCK does not pass it by there"
        ))
        .remedy(UNLIMITED)
    } else if effective.is_some_and(|set| set & IPC_LOCK != 0) {
        Found::pass(format!("RLIMIT_MEMLOCK is {soft} bytes, and CAP_IPC_LOCK passes it by"))
    } else if !host.privileged() {
        Found::unknown(format!("RLIMIT_MEMLOCK is {soft} bytes for this user; the daemon's is not visible"))
            .remedy(["sudo ringspan doctor"])
    } else {
        let message = format!(
            "RLIMIT_MEMLOCK is {soft} bytes: VFIO and vhost-vdpa cannot pin a guest's memory (EFAULT, ENOMEM) for who is started like this"
        );
        Found::warn(message).remedy(UNLIMITED)
    };
    vec![found.evidence(evidence)]
}

pub(super) fn nodes(host: &Host) -> Vec<Found> {
    let mut found = Vec::new();
    found.push(match host.exists("/dev/net/tun") {
        true => Found::pass("/dev/net/tun is there"),
        false => {
            // With the driver there, only its node was removed, and nobody makes that again: misc device 200 (Documentation/networking/tuntap.rst).
            let driver = host.exists("/sys/class/misc/tun");
            let remedy = match driver {
                true => vec!["mkdir -p /dev/net && mknod -m 0666 /dev/net/tun c 10 200".into()],
                false => host.load_modules(&["tun"]),
            };
            Found::fail("/dev/net/tun is not there: software NICs have no representors, and TAP devices cannot be made")
                .evidence([format!(
                    "/dev/net/tun is not there, /sys/class/misc/tun is {}",
                    if driver { "there" } else { "not there" }
                )])
                .remedy(remedy)
        }
    });
    let with_vfs: Vec<String> =
        host.physical().filter(|nic| nic.has_sriov() == Some(true)).map(|nic| nic.name()).collect();
    if !with_vfs.is_empty() {
        let driver = host.exists("/sys/bus/pci/drivers/vfio-pci");
        found.push(match host.exists("/dev/vfio/vfio") && driver {
            true => Found::pass("/dev/vfio/vfio is there, and vfio-pci is loaded"),
            false => Found::fail("vfio-pci is not loaded: VFs cannot be given to DPDK (but Mellanox's) or to guests")
                .evidence([
                    format!("/dev/vfio/vfio is {}", if host.exists("/dev/vfio/vfio") { "there" } else { "not there" }),
                    format!("/sys/bus/pci/drivers/vfio-pci is {}", if driver { "there" } else { "not there" }),
                ])
                .remedy(host.load_modules(&["vfio-pci"])),
        });
    }
    // Only with a device of the kernel's vDPA bus does a node belong there.
    let devices = vdpa(host);
    if !devices.is_empty() {
        let nodes =
            host.names("/dev").unwrap_or_default().iter().filter(|name| name.starts_with("vhost-vdpa-")).count();
        found.push(match nodes {
            0 => Found::warn(format!("{} vDPA devices, and no /dev/vhost-vdpa-*", devices.len()))
                .evidence([format!("/sys/bus/vdpa/devices: {}", devices.join(" "))])
                .remedy(host.load_modules(&["vhost_vdpa"])),
            nodes => Found::pass(format!("{nodes} of {} vDPA devices have /dev/vhost-vdpa-*", devices.len())),
        });
    }
    found
}
