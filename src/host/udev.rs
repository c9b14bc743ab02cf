//! Names of VFs and representors that stay: rules for udev (udev(7)).
//!
//! They are a block between two marks in the file where administrators and NVIDIA's tools have theirs. What others wrote there stays, byte for byte. A
//! rule of somebody else's that would name the same interfaces is a conflict: then nothing is written for that PF, and theirs counts.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Host;
use super::pci::{Function, attribute};
use super::representor::Representors;
use super::sriov;
use crate::error::{Error, ErrorKind};

/// Behind systemd's 80-net-setup-link.rules, so that these names win.
const FILE: &str = "82-net-setup-link.rules";
/// Longest name of an interface (IFNAMSIZ, without the final zero).
const LONGEST: usize = 15;

/// A rule of somebody else's about the same interfaces.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Clash {
    /// The file.
    pub file: String,
    /// Its line, from 1.
    pub line: usize,
    /// The rule.
    pub rule: String,
    /// What of it is about this PF's interfaces.
    pub why: String,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Named {
    /// The PF.
    pub pf: PciAddress,
    /// The file with the rules.
    pub file: PathBuf,
    /// The rules for this PF, a line each; empty where others name its interfaces.
    pub rules: Vec<String>,
    /// Rules of others about the same interfaces.
    pub conflicts: Vec<Clash>,
    /// What was done; empty: it was so already.
    pub done: Vec<String>,
}

fn begin(pf: PciAddress) -> String {
    format!("# ringspan: begin {pf} (written by ringspan host udev; do not edit up to the end)")
}

fn end(pf: PciAddress) -> String {
    format!("# ringspan: end {pf}")
}

/// Writes the rules for a PF's VFs and representors, or with `dry_run` says what they would be.
pub(crate) fn name(host: &Host, pf: &str, dry_run: bool) -> Result<Named, Error> {
    let (function, total, _) = sriov::pf(host, pf)?;
    let address = function.address;
    let Some(interface) = Representors::new(&host.sysfs, &[]).own(&function) else {
        let message =
            format!("{pf} has no interface here, by which the others could be named: give it to the kernel's driver");
        return Err(Error::new(ErrorKind::Unsupported, message).about(pf));
    };
    let Some(folder) = host.udev.first() else {
        return Err(Error::new(ErrorKind::Unsupported, "no folder for udev's rules").about(pf));
    };
    let ours = Ours::of(host, &function, &interface, total);
    let file = folder.join(FILE);
    let mut conflicts = vec![];
    let all = rule_files(&host.udev);
    let unread = |path: &Path, error| Error::io(path.display(), &error).about(pf);
    for path in all.values() {
        // What is no text is in comments and values that are not about us.
        let bytes = read(path).map_err(|error| unread(path, error))?;
        conflicts.extend(clashes(path, &String::from_utf8_lossy(&bytes), &ours));
    }
    let rules = if conflicts.is_empty() { ours.rules() } else { vec![] };
    let mut named = Named { pf: address, rules, conflicts, done: vec![], file: file.clone() };
    // One of the same name in a folder behind it would count no longer: ours goes on from its text (udev(7), "Rules Files").
    let old = match all.get(OsStr::new(FILE)) {
        Some(path) => read(path)
            .and_then(|bytes| {
                String::from_utf8(bytes).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
            })
            .map_err(|error| unread(path, error))?,
        None => String::new(),
    };
    let new = merged(&old, address, &named.rules);
    if new != old {
        let what = format!("{} has {} rules for the interfaces of {pf}", file.display(), named.rules.len());
        if dry_run {
            named.done.push(format!("would write: {what}"));
        } else {
            write(&file, &new)
                .map_err(|error| Error::io(format!("{pf}: {} cannot be written", file.display()), &error).about(pf))?;
            named.done.push(what);
        }
    }
    Ok(named)
}

/// What a PF's interfaces are called.
struct Ours {
    pf: PciAddress,
    interface: String,
    switch: Option<String>,
    /// By number: address where it is known, names of VF and representor.
    vfs: BTreeMap<u16, (Option<PciAddress>, String, String)>,
}

impl Ours {
    fn of(host: &Host, function: &Function, interface: &str, total: u16) -> Self {
        let number = |name: &str| host.sysfs.number::<u32>(&attribute(function.address, name));
        // Where each VF will be (PCI Express Base Specification, "First VF Offset", "VF Stride"); those that are there are known anyway.
        let layout = number("sriov_offset").zip(number("sriov_stride")).filter(|(offset, _)| *offset > 0);
        let address = |vf: u16| {
            function.vfs.get(&vf).copied().or_else(|| {
                let (offset, stride) = layout?;
                let pf = function.address;
                let own = u32::from(pf.bus) << 8 | u32::from(pf.device) << 3 | u32::from(pf.function);
                let id = own + offset + u32::from(vf) * stride;
                format!("{:04x}:{:02x}:{:02x}.{}", pf.domain, id >> 8 & 0xff, id >> 3 & 31, id & 7).parse().ok()
            })
        };
        let base = base(interface, function.address, total);
        let vfs = (0..total).map(|vf| (vf, (address(vf), format!("{base}v{vf}"), format!("{base}_{vf}"))));
        Self {
            pf: function.address,
            interface: interface.into(),
            switch: Representors::new(&host.sysfs, &[]).switch_id(interface),
            vfs: vfs.collect(),
        }
    }

    fn rules(&self) -> Vec<String> {
        let (pf, interface) = (self.pf, &self.interface);
        let head = r#"SUBSYSTEM=="net", ACTION=="add""#;
        // A switch renames the wire's port, too: systemd takes the port's name into the interface's.
        let mut rules = vec![format!(
            r#"{head}, KERNELS=="{pf}", ATTR{{phys_port_name}}=="p[0-9]|p[0-9][0-9]", NAME="{interface}""#
        )];
        for (number, (address, vf, representor)) in &self.vfs {
            if let Some(address) = address {
                rules.push(format!(r#"{head}, KERNELS=="{address}", NAME="{vf}""#));
            }
            let port = format!(r#"ATTR{{phys_port_name}}=="pf[0-9]vf{number}|pf[0-9][0-9]vf{number}|{number}""#);
            rules.push(format!(r#"{head}, KERNELS=="{pf}", {port}, NAME="{representor}""#));
        }
        rules
    }
}

/// What names begin with: the PF's interface, or its address where that is too long for the last VF's number.
fn base(interface: &str, pf: PciAddress, total: u16) -> String {
    let digits = total.saturating_sub(1).to_string().len();
    if interface.len() + 1 + digits <= LONGEST {
        return interface.to_owned();
    }
    let domain = if pf.domain == 0 { String::new() } else { format!("{:x}", pf.domain) };
    format!("n{domain}p{:02x}{:02x}f{}", pf.bus, pf.device, pf.function)
}

/// The files that udev reads, by name: of several with one name that in the first folder counts.
fn rule_files(folders: &[PathBuf]) -> BTreeMap<OsString, PathBuf> {
    let mut files = BTreeMap::new();
    for folder in folders {
        let entries =
            fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| (entry.file_name(), entry.path()));
        for (name, path) in entries.filter(|(_, path)| path.extension().is_some_and(|end| end == "rules")) {
            files.entry(name).or_insert(path);
        }
    }
    files
}

/// What is in a file; nothing where there is none.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        other => other,
    }
}

/// Rules outside of our blocks that give these interfaces a name.
fn clashes(path: &Path, text: &str, ours: &Ours) -> Vec<Clash> {
    let mut found = vec![];
    let (mut inside, mut whole, mut first) = (false, String::new(), 0);
    for (number, line) in text.lines().enumerate() {
        match line.trim_start() {
            mark if mark.starts_with("# ringspan: begin ") => inside = true,
            mark if mark.starts_with("# ringspan: end ") => inside = false,
            comment if comment.starts_with('#') => {}
            _ if inside => {}
            rule => {
                if whole.is_empty() {
                    first = number + 1;
                }
                // A rule goes on in the next line behind a backslash.
                if let Some(part) = rule.strip_suffix('\\') {
                    whole.push_str(part);
                    continue;
                }
                whole.push_str(rule);
                let rule = std::mem::take(&mut whole);
                if let Some(why) = ours.clash(&rule) {
                    found.push(Clash { file: path.display().to_string(), line: first, rule, why });
                }
            }
        }
    }
    found
}

impl Ours {
    /// Why a rule would name an interface of this PF's. `NAME==` asks, `NAME=` and `NAME:=` set.
    fn clash(&self, rule: &str) -> Option<String> {
        let parts = parts(rule);
        let set = parts.iter().find_map(|part| {
            let value = part.strip_prefix("NAME")?.trim_start().trim_start_matches(':').strip_prefix('=')?;
            (!value.starts_with('=')).then(|| value.trim().trim_matches('"'))
        })?;
        let names = |name: &str| self.vfs.values().any(|(_, vf, representor)| name == vf || name == representor);
        if names(set) {
            return Some(format!("it gives the name {set} to something else"));
        }
        let mentions = |text: &str| parts.iter().any(|part| part.contains(text));
        let elsewhere = |key: &str, own: &str| {
            parts
                .iter()
                .any(|part| part.starts_with(key) && part.contains("==") && !part.contains('*') && !part.contains(own))
        };
        if let Some(switch) = self.switch.as_ref().filter(|switch| mentions(switch)) {
            return Some(format!("it is about the switch {switch}"));
        }
        for (address, ..) in self.vfs.values() {
            if let Some(address) = address.map(|address| address.to_string()).filter(|address| mentions(address)) {
                return Some(format!("it is about the VF {address}"));
            }
        }
        let pf = self.pf.to_string();
        let by_port = mentions("phys_port_name") || mentions("phys_switch_id");
        if by_port && mentions(&pf) {
            return Some(format!("it is about the ports of {pf}"));
        }
        // All switches' ports, unless another switch or device is named.
        let other =
            elsewhere("ATTR{phys_switch_id}", self.switch.as_deref().unwrap_or("\"\"")) || elsewhere("KERNELS", &pf);
        (by_port && !other).then(|| "it is about the ports of every switch".into())
    }
}

/// What a rule is made of: `KEY{attribute}OPERATOR"value"`, whose commas udev does not need. Those in values, and quotes behind a backslash, are the
/// value's own.
fn parts(rule: &str) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (vec![], 0, false, false);
    for (at, sign) in rule.char_indices() {
        let end = match sign {
            _ if escaped => {
                escaped = false;
                continue;
            }
            '\\' if quoted => {
                escaped = true;
                continue;
            }
            '"' => {
                quoted = !quoted;
                if quoted {
                    continue;
                }
                at + 1
            }
            ',' if !quoted => at,
            _ => continue,
        };
        parts.extend(rule.get(start..end));
        start = at + 1;
    }
    parts.extend(rule.get(start..));
    parts.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

/// The file with this PF's block in place of the old one, at the end where there was none; without rules the block goes.
fn merged(old: &str, pf: PciAddress, rules: &[String]) -> String {
    let (begin, end) = (begin(pf), end(pf));
    let mark = format!("# ringspan: begin {pf}");
    let mut lines: Vec<&str> = vec![];
    let (mut place, mut inside) = (None, false);
    for line in old.split_inclusive('\n') {
        if line.starts_with(&mark) {
            inside = true;
            place.get_or_insert(lines.len());
        } else if inside && line.trim_end() == end {
            inside = false;
        } else if !inside {
            lines.push(line);
        }
    }
    let block = if rules.is_empty() { String::new() } else { format!("{begin}\n{}\n{end}\n", rules.join("\n")) };
    let (before, after) = lines.split_at(place.unwrap_or(lines.len()));
    let mut text = before.concat();
    if !block.is_empty() && !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text + &block + &after.concat()
}

/// Replaces a file as a whole; udev sees that by itself.
fn write(path: &Path, text: &str) -> io::Result<()> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder)?;
    }
    // Not `.rules`: udev would read it.
    let beside = path.with_extension("rules.ringspan-new");
    let mut file = fs::OpenOptions::new().create(true).write(true).truncate(true).mode(0o644).open(&beside)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&beside, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_several_pfs_and_others_rules_stay_as_they_are() {
        let (a, b): (PciAddress, PciAddress) = ("0000:0a:00.0".parse().unwrap(), "0000:0a:00.1".parse().unwrap());
        let rule = |text: &str| vec![text.to_owned()];
        let others = "# mine\nKERNEL==\"eth7\", NAME=\"wan\"";
        let first = merged(others, a, &rule("A1"));
        let both = merged(&first, b, &rule("B1"));
        let changed = merged(&both, a, &rule("A2"));
        assert!(changed.starts_with(others) && changed.contains("A2\n") && !changed.contains("A1"), "{changed}");
        assert!(changed.find("A2") < changed.find("B1"), "{changed}");
        assert_eq!(merged(&changed, a, &rule("A2")), changed);
        assert_eq!(merged(&merged(&changed, a, &[]), b, &[]), format!("{others}\n"));
    }

    #[test]
    fn a_rule_is_read_with_and_without_commas() {
        let rule = r#"A=="1,2",B{c}!="x\"y" IMPORT{program}="/bin/p $attr{a} b", NAME="$env{NAME}""#;
        let read = ["A==\"1,2\"", r#"B{c}!="x\"y""#, "IMPORT{program}=\"/bin/p $attr{a} b\"", "NAME=\"$env{NAME}\""];
        assert_eq!(parts(rule), read);
        assert_eq!(parts("A==\"not ended, B"), ["A==\"not ended, B"]);
    }

    #[test]
    fn names_fit_into_fifteen_characters() {
        let pf = "0000:af:00.1".parse().unwrap();
        assert_eq!(base("eth0", pf, 250), "eth0");
        assert_eq!(base("enp175s0f1np1", pf, 250), "npaf00f1");
        assert_eq!(base("enp175s0f1np", pf, 10), "enp175s0f1np");
    }
}
