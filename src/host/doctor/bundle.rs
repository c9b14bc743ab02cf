//! The diagnostics bundle: the report, and all that the checks read, with secrets blotted out.
//!
//! `files/` has what was read of `/proc`, `/sys` and `/etc`, `programs/` what programs printed, `links/` where links point to.

use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::{Host, Report};

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
/// A line with one of these as a key, or in it, has a secret.
const SECRET: [&str; 9] =
    ["password", "passwd", "secret", "token", "credential", "private_key", "api_key", "apikey", "psk"];

/// Writes it; a file that is there already is left alone.
pub(crate) fn write(path: &Path, host: &Host, report: &Report, more: &[(String, Vec<u8>)]) -> io::Result<()> {
    for file in FILES {
        // What is not there is not in the bundle.
        let _ = host.bytes(file);
    }
    for (program, arguments) in PROGRAMS {
        let _ = host.run(program, arguments);
    }
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let mut archive = tar::Builder::new(GzEncoder::new(file, Compression::default()));
    let json = serde_json::to_vec_pretty(report)?;
    append(&mut archive, "report.json", &json)?;
    if let Ok(log) = host.kernel_log() {
        append(&mut archive, "kernel.log", &blotted(log.lines.join("\n").as_bytes()))?;
    }
    for (name, content) in more {
        append(&mut archive, name, &blotted(content))?;
    }
    for (name, content) in host.seen() {
        append(&mut archive, &name, &blotted(&content))?;
    }
    archive.into_inner()?.finish()?.flush()
}

fn append(archive: &mut tar::Builder<impl Write>, name: &str, content: &[u8]) -> io::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o600);
    header.set_mtime(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()));
    archive.append_data(&mut header, Path::new("ringspan-doctor").join(name.trim_start_matches('/')), content)
}

/// A text without the values of its secrets; what is no text is left as it is.
fn blotted(content: &[u8]) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(content) else { return content.to_vec() };
    if text.contains('\0') && !text.contains('\n') {
        // Arguments of a process.
        return text.split('\0').map(blot).collect::<Vec<_>>().join("\0").into_bytes();
    }
    let mut lines = Vec::new();
    let mut inside: Option<usize> = None;
    for line in text.split('\n') {
        let depth = line.len() - line.trim_start().len();
        // A value of several lines is deeper than its key.
        if inside.is_some_and(|key| depth > key && !line.trim().is_empty()) {
            continue;
        }
        let blotted = blot(line);
        inside = (blotted != line && !line.trim_start().starts_with('#')).then_some(depth);
        lines.push(blotted);
    }
    lines.join("\n").into_bytes()
}

/// A line, or an argument, without what stands behind a secret's name.
fn blot(line: &str) -> String {
    let lower = line.to_lowercase();
    if lower.len() != line.len() {
        return if SECRET.iter().any(|word| lower.contains(word)) { "(left out)".into() } else { line.into() };
    }
    let Some(at) = SECRET.iter().filter_map(|word| lower.find(word)).min() else {
        return without_login(line);
    };
    match line[at..].find([':', '=', ' ']) {
        Some(end) => format!("{} (left out)", &line[..at + end + 1]),
        None => line.into(),
    }
}

/// `scheme://user:password@host` without the middle.
fn without_login(line: &str) -> String {
    let Some(start) = line.find("://") else { return line.into() };
    let rest = &line[start + 3..];
    match rest.split(['/', ' ', '"', '\'']).next().and_then(|authority| authority.rfind('@')) {
        Some(at) => format!("{}://(left out){}", &line[..start], without_login(&rest[at..])),
        None => format!("{}://{}", &line[..start], without_login(rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(content: &str) -> String {
        String::from_utf8(blotted(content.as_bytes())).unwrap()
    }

    #[test]
    fn secrets_are_left_out_whatever_the_file_is() {
        assert_eq!(text("admin_password: hunter2\nrack: r1\n"), "admin_password: (left out)\nrack: r1\n");
        assert_eq!(text("a: 1\nprivate_key: |\n  -----BEGIN\n  abc\nb: 2"), "a: 1\nprivate_key: (left out)\nb: 2");
        assert_eq!(text("quiet rd.iscsi.password=x"), "quiet rd.iscsi.password= (left out)");
        assert_eq!(text("qemu\0-object\0secret,id=s,data=abc\0-m"), "qemu\0-object\0secret,id= (left out)\0-m");
        assert_eq!(text("url = \"mysql://me:pw@db/x\""), "url = \"mysql://(left out)@db/x\"");
        assert_eq!(text("nothing of it: 7"), "nothing of it: 7");
    }
}
