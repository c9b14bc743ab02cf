//! The diagnostics bundle: the report, and all that the checks read, with secrets blotted out.
//!
//! `files/` has what was read of `/proc`, `/sys` and `/etc`, `programs/` what programs printed, `links/` where links point to.

use std::borrow::Cow;
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
const LEFT_OUT: &str = "(left out)";
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

/// What of a process's arguments is worth seeing: options, and how a guest's memory and NICs are made. The rest may hold keys of its
/// disks.
const ARGUMENTS: [&str; 4] = ["memory-backend", "share=", "vhost-user", "vfio-pci"];

/// A text without the values of its secrets; what is no text, but bytes of a device, is left as it is.
fn blotted(content: &[u8]) -> Vec<u8> {
    let binary = content.contains(&0);
    let text = String::from_utf8_lossy(content);
    if binary && !text.contains('\n') && matches!(text, Cow::Borrowed(_)) {
        let shown = |word: &str| word.starts_with('-') || ARGUMENTS.iter().any(|known| word.contains(known));
        let words = text.split('\0').enumerate();
        let words = words
            .map(|(at, word)| if at == 0 || word.is_empty() || shown(word) { blot(word) } else { LEFT_OUT.into() });
        return words.collect::<Vec<_>>().join("\0").into_bytes();
    }
    if binary {
        return content.to_vec();
    }
    let mut lines = Vec::new();
    let (mut inside, mut block): (Option<usize>, Option<&str>) = (None, None);
    for line in text.split('\n') {
        let words = line.trim();
        // A key in PEM, or a string over several lines, goes whole.
        if let Some(end) = block {
            block = (!words.contains(end)).then_some(end);
            continue;
        }
        let depth = line.len() - line.trim_start().len();
        // A value of several lines is deeper than its key, or a list beside it.
        if inside.is_some_and(|key| depth > key || depth == key && words.starts_with('-')) {
            continue;
        }
        if words.is_empty() {
            lines.push(line.into());
            continue;
        }
        let blotted = blot(line);
        inside = (blotted != without_login(line) && !words.starts_with('#')).then_some(depth);
        if words.starts_with("-----BEGIN") {
            block = Some("-----END");
        } else if inside.is_some() && words.matches("\"\"\"").count() == 1 {
            block = Some("\"\"\"");
        }
        lines.push(if block == Some("-----END") { LEFT_OUT.into() } else { blotted });
    }
    lines.join("\n").into_bytes()
}

/// A line, or an argument, without what stands behind a secret's name.
fn blot(line: &str) -> String {
    let lower = line.to_lowercase();
    if lower.len() != line.len() {
        return if SECRET.iter().any(|word| lower.contains(word)) { LEFT_OUT.into() } else { without_login(line) };
    }
    let Some(at) = SECRET.iter().filter_map(|word| lower.find(word)).min() else {
        return without_login(line);
    };
    match line[at..].find([':', '=', ' ']) {
        Some(end) => format!("{} (left out)", without_login(&line[..at + end + 1])),
        None => without_login(line),
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
        assert_eq!(
            text("qemu\0-object\0secret,id=s,data=abc\0-m\0-drive\0file=rbd:p/i:id=x:key=AQB==:mon_host=h"),
            "qemu\0-object\0(left out)\0-m\0-drive\0(left out)"
        );
        assert_eq!(text("-object\0memory-backend-memfd,id=m,share=on"), "-object\0memory-backend-memfd,id=m,share=on");
        assert_eq!(text("url = \"mysql://me:pw@db/x\""), "url = \"mysql://(left out)@db/x\"");
        assert_eq!(text("nothing of it: 7"), "nothing of it: 7");
        assert_eq!(text("sql: mysql://u:pw@h/db?token=1"), "sql: mysql://(left out)@h/db?token= (left out)");
        assert_eq!(text("tokens:\n- abc\n\n- def\nb: 2"), "tokens: (left out)\n\nb: 2");
        assert_eq!(text("a\n-----BEGIN X-----\nabc\n\ndef\n-----END X-----\nb"), "a\n(left out)\nb");
        assert_eq!(text("private_key = \"\"\"\nabc\n\"\"\"\nb = 2"), "private_key  (left out)\nb = 2");
    }

    #[test]
    fn a_file_that_is_not_all_utf8_has_its_secrets_left_out_too_and_bytes_of_devices_are_kept() {
        let text = blotted(b"# \xc3\x28\npassword: hunter2\n");
        assert!(!String::from_utf8_lossy(&text).contains("hunter2"));
        assert_eq!(blotted(&[0x86, 0x80, 0, 0, b'\n']), [0x86, 0x80, 0, 0, b'\n']);
    }
}
