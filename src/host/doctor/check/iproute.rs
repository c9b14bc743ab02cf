//! `ip link show`, which the host agent runs, fails as a whole when the kernel cannot put all VFs into one message.

use super::Found;
use crate::host::doctor::distribution::Family;
use crate::host::doctor::host::Host;

/// iproute2's words for EMSGSIZE at the end of a dump (lib/libnetlink.c).
const TOO_SMALL: &str = "Buffer too small for object";

/// Its words where the list's length, of 16 bits, has begun anew (ip/ipaddress.c).
const TRUNCATED: &str = "Truncated VF list: ";

pub(super) fn dump(host: &Host) -> Vec<Found> {
    let ran = match host.run("ip", &["link", "show"]) {
        Ok(ran) => ran,
        Err(why) => return vec![Found::unseen("ip link show", &why)],
    };
    if let Some(name) = ran.stderr.lines().find_map(|line| line.trim().strip_prefix(TRUNCATED)) {
        let message = format!(
            "ip shows some of {name}'s VFs only, and says of those what may be another's: the kernel's list of them is longer than its length can say"
        );
        let found = Found::warn(&message).about(name).evidence([format!("ip link show: {}", ran.stderr.trim())]);
        return vec![found.remedy([
            "# ringspan reads all of them: ringspan device list".to_owned(),
            format!("# or have fewer VFs: ringspan vf enable {name} 128"),
        ])];
    }
    if ran.good && !ran.stderr.contains(TOO_SMALL) {
        return vec![Found::pass("ip link show works")];
    }
    if !ran.stderr.contains(TOO_SMALL) {
        return vec![Found::warn("ip link show fails").evidence([ran.stderr.trim()])];
    }
    let version = host.run("ip", &["-V"]).map(|ran| ran.stdout.trim().to_owned()).unwrap_or_default();
    let most = host.physical().max_by_key(|nic| nic.vfs).filter(|nic| nic.vfs > 0);
    let (package, kernel) = match host.distribution().family {
        Family::Debian => ("iproute2", "apt-get install -y --only-upgrade linux-image-$(dpkg --print-architecture)"),
        Family::RedHat if host.exists("/usr/bin/dnf") => ("iproute", "dnf upgrade -y kernel"),
        Family::RedHat => ("iproute", "yum update -y kernel"),
        _ => ("iproute2", "# upgrade the kernel"),
    };
    let mut evidence = vec![
        format!("ip link show: {}", ran.stderr.trim()),
        format!("package {package}: {version}"),
        format!("kernel {}", host.kernel()),
    ];
    if let Some(nic) = most {
        evidence.push(format!("{}/sriov_numvfs: {}", nic.folder(), nic.vfs));
    }
    let message = "ip cannot list interfaces, and neither can the host agent: the kernel's estimate of the message's size is too small for all VFs of a card (VF GUIDs are not counted), or they are more than 64 KiB hold";
    let found = Found::fail(message).evidence(evidence).remedy([
        kernel.to_owned(),
        format!("# meanwhile ask without VFs: ip link show novf ({package} 6.2 or later), or for one interface: ip link show dev NAME"),
    ]);
    vec![match most {
        Some(nic) => {
            let name = nic.interfaces.first().cloned().unwrap_or_else(|| nic.address.clone());
            found.remedy([format!("# or have fewer VFs: ringspan vf enable {name} 128")])
        }
        None => found,
    }]
}
