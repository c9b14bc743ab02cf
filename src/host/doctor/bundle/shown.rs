//! How much of a thing may be shown.
//!
//! A value is shown when its key is known *and* nothing in it looks like a token: so a password under a known key, by mistake, stays at home too.

use serde_json::Value;

/// What stands where something was left out.
pub(crate) const LEFT_OUT: &str = "(left out)";
/// So many letters and digits in a row are no name, number or address, but perhaps a key. An interface's name has 15 at most.
const TOKEN: usize = 16;

/// How much of a thing is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shown {
    /// All of it.
    Whole,
    /// All of a JSON text but words that look like a token.
    Json,
    /// Lines of a log about what the doctor looks at.
    Log,
    /// Known words of the kernel's command line.
    CommandLine,
    /// The kernel's command lines in a boot loader's defaults.
    Grub,
    /// The values of these keys.
    Values(&'static [&'static str]),
    /// Options that make VFs, and modules that are not loaded.
    Modprobe,
    /// Mounts of hugetlbfs.
    Mounts,
    /// Of a process's arguments how a guest's memory and NICs are made.
    Arguments,
}

impl Shown {
    /// What of it goes into the bundle.
    pub(crate) fn of(self, content: &[u8]) -> Vec<u8> {
        if self == Self::Whole {
            return content.to_vec();
        }
        let text = String::from_utf8_lossy(content);
        let shown = match self {
            Self::Whole => text.into_owned(),
            Self::Json => json(&text),
            Self::Log => lines(&text, log),
            Self::CommandLine => command_line(&text),
            Self::Grub => lines(&text, grub),
            Self::Values(keys) => values(&text, keys),
            Self::Modprobe => lines(&text, modprobe),
            Self::Mounts => lines(&text, |line| {
                (line.split_whitespace().nth(2) == Some("hugetlbfs") && is_harmless(line)).then(|| line.to_owned())
            }),
            Self::Arguments => arguments(&text),
        };
        shown.into_bytes()
    }

    /// The same, for the documentation.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Whole => "all".into(),
            Self::Json => "all but what looks like a token".into(),
            Self::Log => "known lines".into(),
            Self::CommandLine | Self::Grub => "known words".into(),
            Self::Values(keys) => {
                let keys: Vec<String> = keys.iter().map(|key| format!("`{key}`")).collect();
                format!("the values of {}", keys.join(", "))
            }
            Self::Modprobe | Self::Mounts => "known lines".into(),
            Self::Arguments => "known arguments".into(),
        }
    }
}

/// Whether nothing in a text looks like a token, or like a login in an address.
fn is_harmless(text: &str) -> bool {
    !text.contains('@') && text.split(|letter: char| !is_of_token(letter)).all(|word| word.chars().count() < TOKEN)
}

fn is_of_token(letter: char) -> bool {
    letter.is_alphanumeric() || letter == '+'
}

/// A line of prose without what looks like a token: words of letters alone are prose.
pub(super) fn line(text: &str) -> String {
    let is_token = |word: &str| {
        word.chars().count() >= TOKEN && (word.chars().any(|c| c.is_ascii_digit()) || word.chars().count() >= 2 * TOKEN)
    };
    let mut shown = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let end = rest.find(|letter| !is_of_token(letter)).unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        shown += if is_token(word) { LEFT_OUT } else { word };
        let next = after.find(is_of_token).unwrap_or(after.len());
        shown += &after[..next];
        rest = &after[next..];
    }
    shown
}

/// Those lines of which something is shown.
fn lines(text: &str, show: impl Fn(&str) -> Option<String>) -> String {
    text.lines().filter_map(show).map(|line| line + "\n").collect()
}

fn json(text: &str) -> String {
    fn walk(value: &mut Value) {
        match value {
            Value::String(text) => *text = line(text),
            Value::Array(all) => all.iter_mut().for_each(walk),
            Value::Object(all) => {
                let old = std::mem::take(all);
                for (key, mut value) in old {
                    walk(&mut value);
                    all.insert(line(&key), value);
                }
            }
            _ => {}
        }
    }
    let Ok(mut value) = serde_json::from_str(text) else { return LEFT_OUT.into() };
    walk(&mut value);
    serde_json::to_string_pretty(&value).unwrap_or_else(|_| LEFT_OUT.into())
}

/// What a line of the kernel log must speak of.
const LOGGED: [&str; 30] = [
    "pci",
    "sr-iov",
    "iommu",
    "dmar",
    "amd-vi",
    "ivrs",
    "vfio",
    "vdpa",
    "vhost",
    "mlx",
    "igb",
    "ixgbe",
    "i40e",
    "iavf",
    "ice ",
    "e1000",
    "virtio",
    "netdevsim",
    "devlink",
    "bond",
    "openvswitch",
    "hugetlb",
    "hugepage",
    "enable_hca",
    "vf lag",
    "rmrr",
    "interrupt remapping",
    "linux version",
    "netlink",
    "ethernet",
];

fn log(text: &str) -> Option<String> {
    let lower = text.to_lowercase();
    if let Some(at) = lower.find("command line: ") {
        let at = at + "command line: ".len();
        // Lower case may be of another length than the text; then nothing is shown.
        return Some(format!("{}{}", line(text.get(..at)?), command_line(text.get(at..)?)));
    }
    LOGGED.iter().any(|word| lower.contains(word)).then(|| line(text))
}

/// Words of the command line that have to do with what the doctor looks at, by their keys.
const BOOT: [&str; 24] = [
    "intel_iommu",
    "amd_iommu",
    "iommu",
    "iommu.passthrough",
    "iommu.strict",
    "intremap",
    "nointremap",
    "pci",
    "pcie_aspm",
    "pcie_acs_override",
    "pcie_ports",
    "hugepages",
    "hugepagesz",
    "default_hugepagesz",
    "transparent_hugepage",
    "isolcpus",
    "nohz_full",
    "rcu_nocbs",
    "numa_balancing",
    "mitigations",
    "nosmt",
    "modprobe.blacklist",
    "module_blacklist",
    "quiet",
];
/// Parameters of modules that make VFs.
const PARAMETERS: [&str; 3] = ["max_vfs", "num_vfs", "probe_vf"];

fn command_line(text: &str) -> String {
    let shown = |word: &str| {
        let key = word.split('=').next().unwrap_or(word);
        let known = BOOT.contains(&key) || key.rsplit_once('.').is_some_and(|(_, last)| PARAMETERS.contains(&last));
        if known && is_harmless(word) { word.to_owned() } else { LEFT_OUT.to_owned() }
    };
    text.split_whitespace().map(shown).collect::<Vec<_>>().join(" ")
}

fn grub(line: &str) -> Option<String> {
    let (key, value) = line.trim().split_once('=')?;
    let known = ["GRUB_CMDLINE_LINUX", "GRUB_CMDLINE_LINUX_DEFAULT"].contains(&key);
    known.then(|| format!("{key}=\"{}\"", command_line(&value.replace(['"', '\''], " "))))
}

/// Lines of `key = value`, `key: value` and `Key value`, and lists below a key. What is not known has no name either.
fn values(text: &str, keys: &[&str]) -> String {
    let is_known = |key: &str| keys.contains(&key.trim().trim_matches(['"', '\'']).replace('-', "_").as_str());
    let mut shown = String::new();
    // Whether what follows a line belongs to a known key.
    let mut inside = false;
    for full in text.lines() {
        let line = full.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let header = line.starts_with('[') && line.ends_with(']') && is_known(line.trim_matches(['[', ']']));
        let known = match (line.find(['=', ':']), line.split_once(' ')) {
            _ if header => true,
            _ if line.starts_with('-') || line.starts_with([']', '[', '"', '\'']) => inside,
            (Some(at), _) => is_known(&line[..at]),
            (None, Some((key, _))) => is_known(key),
            (None, None) => false,
        };
        inside = known && !header;
        shown += if known && is_harmless(line) { full } else { LEFT_OUT };
        shown += "\n";
    }
    shown
}

fn modprobe(line: &str) -> Option<String> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match &words[..] {
        ["blacklist", module] if is_harmless(module) => Some(line.trim().to_owned()),
        ["options", module, options @ ..] if is_harmless(module) => {
            let is_shown = |word: &str| {
                word.split_once('=').is_some_and(|(key, _)| PARAMETERS.contains(&key)) && is_harmless(word)
            };
            let shown: Vec<&str> = options.iter().map(|word| if is_shown(word) { *word } else { LEFT_OUT }).collect();
            Some(format!("options {module} {}", shown.join(" ")))
        }
        _ => None,
    }
}

/// Options of QEMU, and how their values begin, that tell of memory and NICs.
const OPTIONS: [&str; 12] = [
    "-name",
    "-machine",
    "-M",
    "-m",
    "-smp",
    "-object",
    "-device",
    "-netdev",
    "-chardev",
    "-cpu",
    "-mem-path",
    "-numa",
];
const VALUES: [&str; 5] = ["memory-backend", "vhost-user", "virtio-net", "vfio-pci", "{\"qom-type\":\"memory-backend"];

fn arguments(text: &str) -> String {
    let mut shown = Vec::new();
    for (at, word) in text.split('\0').enumerate() {
        let program = at == 0 && word.contains("qemu");
        let known = program || OPTIONS.contains(&word) || VALUES.iter().any(|value| word.starts_with(value));
        shown.push(if word.is_empty() || known && (OPTIONS.contains(&word) || is_harmless(word)) {
            word
        } else {
            LEFT_OUT
        });
    }
    shown.join("\0")
}
