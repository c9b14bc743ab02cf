//! Which distribution this is, by `os-release`(5): commands differ.

use super::host::Host;

/// Distributions whose commands are alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Family {
    /// update-grub, update-initramfs, apt.
    Debian,
    /// grub2-mkconfig, dracut, dnf or yum: RHEL, openEuler, Anolis, Kylin and their like.
    RedHat,
    /// grub2-mkconfig, dracut, zypper.
    Suse,
    /// Anything else.
    Other,
}

/// A distribution.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Distribution {
    pub family: Family,
    /// The version before the first dot; 0: none.
    pub major: u32,
    /// As a person calls it.
    pub pretty: String,
}

const RED_HATS: &[&str] = &[
    "rhel",
    "centos",
    "fedora",
    "rocky",
    "almalinux",
    "ol",
    "openeuler",
    "anolis",
    "kylin",
    "bclinux",
    "tencentos",
    "alinux",
    "opencloudos",
];

impl Distribution {
    pub(super) fn read(host: &Host) -> Self {
        let text = host.text("/etc/os-release").or_else(|_| host.text("/usr/lib/os-release")).unwrap_or_default();
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
            Some(line.trim().trim_matches(['"', '\'']).to_owned())
        };
        let id = value("ID").unwrap_or_default().to_lowercase();
        let like = value("ID_LIKE").unwrap_or_default().to_lowercase();
        let is = |name: &str| id == name || like.split_whitespace().any(|word| word == name);
        let family = if is("debian") || is("ubuntu") {
            Family::Debian
        } else if RED_HATS.iter().any(|name| is(name)) {
            Family::RedHat
        } else if is("suse") || is("opensuse") || id == "sles" {
            Family::Suse
        } else if host.exists("/usr/bin/apt-get") {
            Family::Debian
        } else if host.exists("/usr/bin/dnf") || host.exists("/usr/bin/yum") {
            Family::RedHat
        } else {
            Family::Other
        };
        let version = value("VERSION_ID").unwrap_or_default();
        let pretty = value("PRETTY_NAME").filter(|name| !name.is_empty()).unwrap_or_else(|| "unknown".into());
        Self { family, major: version.split('.').next().and_then(|word| word.parse().ok()).unwrap_or(0), pretty }
    }
}
