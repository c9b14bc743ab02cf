//! Kernel modules: their parameters, and whose they are.

use super::Found;
use crate::host::doctor::host::Host;
use crate::host::doctor::nic::{MELLANOX, Nic};

/// Parameters that make VFs when the driver loads: module, parameter, most that it takes.
/// (Documentation/networking/device_drivers/ethernet/intel/{igb,ixgbe}.rst; drivers/net/ethernet/mellanox/mlx4/main.c)
const PARAMETERS: &[(&str, &str, u64)] = &[
    ("igb", "max_vfs", 7),
    ("ixgbe", "max_vfs", 63),
    ("i40e", "max_vfs", 128),
    ("be2net", "num_vfs", 255),
    ("mlx4_core", "num_vfs", 126),
    ("mlx4_core", "probe_vf", 126),
];

/// A parameter that somebody set.
struct Set {
    place: String,
    module: &'static str,
    parameter: &'static str,
    most: u64,
    value: String,
    /// How it stands there.
    word: String,
}

pub(super) fn parameters(host: &Host) -> Vec<Found> {
    let mut set = Vec::new();
    for word in host.command_line().unwrap_or_default() {
        let Some((key, value)) = word.split_once('=') else { continue };
        let Some((module, parameter)) = key.split_once('.') else { continue };
        set.extend(known("/proc/cmdline", module, parameter, value, &word));
    }
    for folder in ["/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d"] {
        for name in host.names(folder).unwrap_or_default().into_iter().filter(|name| name.ends_with(".conf")) {
            let place = format!("{folder}/{name}");
            for line in host.text(&place).unwrap_or_default().lines() {
                let mut words = line.split_whitespace();
                let (Some("options"), Some(module)) = (words.next(), words.next()) else { continue };
                for word in words {
                    let Some((parameter, value)) = word.split_once('=') else { continue };
                    set.extend(known(&place, module, parameter, value, word));
                }
            }
        }
    }
    if set.is_empty() {
        return vec![Found::pass("no module parameter makes VFs")];
    }
    set.iter().map(|one| judge(host, one)).collect()
}

fn known(place: &str, module: &str, parameter: &str, value: &str, word: &str) -> Option<Set> {
    let (module, parameter, most) = *PARAMETERS.iter().find(|(m, p, _)| *m == module && *p == parameter)?;
    Some(Set { place: place.into(), module, parameter, most, value: value.into(), word: word.into() })
}

fn judge(host: &Host, set: &Set) -> Found {
    let Set { place, module, parameter, most, value, word } = set;
    let name = format!("{module}.{parameter}={value}");
    let loaded = host.exists(&format!("/sys/module/{module}"));
    let taken = host.exists(&format!("/sys/module/{module}/parameters/{parameter}"));
    let too_many = value.split([',', ';']).filter_map(|one| one.parse::<u64>().ok()).any(|one| one > *most);
    let found = if too_many {
        Found::fail(format!("{name}: the driver takes {most} at most, and falls back to it"))
    } else if loaded && !taken {
        Found::warn(format!("{name} does nothing: this version of {module} has no such parameter"))
    } else {
        Found::warn(format!(
            "{name} makes VFs when the driver loads, whatever is wanted later: sriov_numvfs then answers EBUSY until it was 0"
        ))
    };
    let mut remedy = if place == "/proc/cmdline" {
        host.kernel_arguments(&[], &[word])
    } else {
        let pattern = word.replace('.', r"\.");
        vec![format!("sed -i -E '/^options +{module} /s/ {pattern}( |$)/\\1/' {place}"), host.make_initramfs()]
    };
    if place != "/proc/cmdline" {
        remedy.push(format!(
            "# before the next boot: modprobe -r {module} && modprobe {module} does it, and takes its interfaces down"
        ));
    }
    remedy.push("# then: ringspan vf enable PF COUNT".into());
    found.about(name).evidence([format!("{place}: {word}")]).remedy(remedy)
}

pub(super) fn drivers(host: &Host) -> Vec<Found> {
    let nics: Vec<&Nic> = host.physical().collect();
    if nics.is_empty() {
        return vec![Found::unknown("there is no network card on the PCI bus")];
    }
    let mut found: Vec<Found> =
        nics.iter().filter(|nic| nic.driver.is_none()).map(|nic| without_driver(host, nic)).collect();
    let with: Vec<String> =
        nics.iter().filter_map(|nic| Some(format!("{}: {}", nic.name(), nic.driver.as_deref()?))).collect();
    if !with.is_empty() {
        let message = match with.len() {
            1 => "1 card has a driver".to_owned(),
            all => format!("{all} cards have drivers"),
        };
        found.push(Found::pass(message).evidence(with));
    }
    found.extend(mellanox(host, &nics));
    found
}

fn without_driver(host: &Host, nic: &Nic) -> Found {
    let found = Found::warn("it has no driver: the kernel can neither make VFs of it nor show its interfaces");
    let found = found.about(nic.name()).evidence([format!("{}/driver is not there", nic.folder())]);
    let mut remedy = Vec::new();
    // What was left in it by who unbound the card keeps the card's own driver away (Documentation/ABI/testing/sysfs-bus-pci).
    let place = format!("{}/driver_override", nic.folder());
    let left = host.text(&place).ok().filter(|name| !name.is_empty() && name != "(null)");
    let found = match &left {
        Some(name) => {
            remedy.push(format!("echo > {place}"));
            found.evidence([format!("{place}: {name}, which alone may drive it now")])
        }
        None => found,
    };
    let module = host.text(&format!("{}/modalias", nic.folder())).unwrap_or_default();
    remedy.push(if nic.vendor == MELLANOX { "modprobe mlx5_core".into() } else { format!("modprobe '{module}'") });
    // A driver that is loaded already does not look again by itself.
    remedy.push(format!("echo {} > /sys/bus/pci/drivers_probe", nic.address));
    found.remedy(remedy)
}

/// Where MLNX_OFED's kernel modules are installed: `updates/` (DKMS), `extra/` and `weak-updates/` (RPM).
fn is_ofed(path: &str) -> bool {
    ["updates/", "extra/", "weak-updates/"].iter().any(|folder| path.starts_with(folder))
}

fn mellanox(host: &Host, nics: &[&Nic]) -> Option<Found> {
    nics.iter().find(|nic| nic.vendor == MELLANOX && nic.driver.as_deref() == Some("mlx5_core"))?;
    let list = format!("/lib/modules/{}/modules.dep", host.kernel());
    let dependencies = host.text(&list).unwrap_or_default();
    let path = dependencies
        .lines()
        .filter_map(|line| line.split(':').next())
        .find(|path| path.rsplit('/').next().is_some_and(|name| name.starts_with("mlx5_core.ko")));
    // Only MLNX_OFED has the module mlx_compat, and mlx5_core needs it.
    let loaded = host.exists("/sys/module/mlx_compat");
    let version = host.text("/sys/module/mlx5_core/version").ok();
    let evidence: Vec<String> = [
        version.as_ref().map(|version| format!("/sys/module/mlx5_core/version: {version}")),
        path.map(|path| format!("{list}: {path}")),
        Some(format!("/sys/module/mlx_compat is {}", if loaded { "there" } else { "not there" })),
    ]
    .into_iter()
    .flatten()
    .collect();
    let name = version.map(|version| format!(" {version}")).unwrap_or_default();
    let found = match (loaded, path.map(is_ofed)) {
        (true, Some(false)) => Found::warn("MLNX_OFED's mlx5_core is loaded, and the next boot takes the kernel's own: it is not installed for this kernel")
            .remedy([format!("# install MLNX_OFED for kernel {}: mlnxofedinstall --add-kernel-support", host.kernel())]),
        (false, Some(true)) => Found::warn("MLNX_OFED is installed, and the kernel's own mlx5_core is loaded")
            .remedy([host.make_initramfs(), "/etc/init.d/openibd restart".into()]),
        (true, _) => Found::pass(format!("mlx5_core is MLNX_OFED's{name}")),
        (false, _) => Found::pass("mlx5_core is the kernel's own (inbox), which has no compat/devlink/mode: the host agent's own offload probe fails with it, ringspan uses devlink"),
    };
    Some(found.about("mlx5_core").evidence(evidence))
}
