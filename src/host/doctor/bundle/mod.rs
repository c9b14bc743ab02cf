//! The diagnostics bundle: the report, and of what the checks read all that is on the list of what may go into it ([`allowed`]), as far as it may.
//!
//! `files/` has what was read of `/proc`, `/sys` and `/etc`, `programs/` what programs printed, `links/` where links point to, `left-out.txt` the names of
//! what was read and is not on the list, `what-is-here.txt` the list.

pub(super) mod allowed;
mod shown;
#[cfg(test)]
mod tests;

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Host, Report};
use allowed::{ALLOWED, Allowed};

/// What is more worth seeing than the checks need: files, and programs that only look.
const FILES: &[&str] = &[
    "/proc/cmdline",
    "/proc/meminfo",
    "/proc/modules",
    "/proc/mounts",
    "/proc/version",
    "/etc/os-release",
    "/etc/default/grub",
    "/etc/ringspan.toml",
    "/etc/yunion/host.conf",
    "/etc/yunion/host_local.conf",
];
const PROGRAMS: &[(&str, &[&str])] = &[
    ("lspci", &["-D", "-nn", "-vvv"]),
    ("ip", &["-d", "link", "show"]),
    ("devlink", &["dev", "eswitch", "show"]),
    ("devlink", &["port", "show"]),
    ("devlink", &["dev", "info"]),
    ("ovs-vsctl", &["show"]),
    ("dpkg-query", &["-W", "dpdk*", "openvswitch*", "librte*", "iproute2", "mstflint"]),
];

/// Writes it; a file that is there already is left alone.
pub(crate) fn write(path: &Path, host: &Host, report: &Report, more: &[(String, Vec<u8>)]) -> io::Result<()> {
    for file in FILES {
        // What is not there is not in the bundle.
        let _ = host.bytes(file);
    }
    for (program, arguments) in PROGRAMS {
        let _ = host.run(program, arguments);
    }
    let mut all = vec![("report.json".to_owned(), serde_json::to_vec_pretty(report)?)];
    if let Ok(log) = host.kernel_log() {
        all.push(("kernel.log".into(), log.lines.join("\n").into_bytes()));
    }
    all.extend(more.iter().cloned());
    all.extend(host.seen());
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let mut left_out = String::new();
    for (name, content) in &all {
        match Allowed::of(name) {
            Some(rule) => append(&mut archive, name, &rule.shown.of(content))?,
            None => left_out += &format!("{}\n", shown::line(name)),
        }
    }
    append(&mut archive, "left-out.txt", left_out.as_bytes())?;
    let list = ALLOWED.iter().map(|rule| format!("{}\n  {}: {}\n", rule.names.join(" "), rule.shown.words(), rule.why));
    append(&mut archive, "what-is-here.txt", list.collect::<String>().as_bytes())?;
    archive.into_inner()?.finish()?.flush()
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()));
    archive.append_data(&mut header, Path::new("ringspan-doctor").join(name.trim_start_matches('/')), content)
}
