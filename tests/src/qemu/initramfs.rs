//! The initial RAM disk: busybox, the modules that the guest needs to see its root, and one script. It is written here
//! as a cpio archive of the "newc" kind (kernel: Documentation/driver-api/early-userspace/buffer-format.rst).

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use super::compression;
use super::kernel::Kernel;
use crate::{paths, wait};

/// What is loaded before the root can be mounted, with the NIC's driver, which tests reload from the root later.
const MODULES: [&str; 6] = ["virtio_pci", "9pnet_virtio", "9p", "overlay", "virtio_console", "virtio_net"];

/// On the kernel's command line: the guest has nothing of the host's.
pub const ALONE: &str = "ringspan.alone";

/// Runs first in the guest: the host's root, read-only over 9p, below a writable layer in memory; then the agent.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /sys /dev /t
$b mount -t devtmpfs dev /dev
$b mount -t proc proc /proc
$b mount -t sysfs sys /sys
for m in $($b ls /m); do $b insmod /m/$m || echo "ringspan-guest: cannot load $m" >/dev/console; done
if $b grep -q ringspan.alone /proc/cmdline; then
    $b mkdir -p /run /tmp /root /sbin /usr/bin /usr/sbin; $b cp /bin/busybox /run/; $b --install -s
    exec $b sh /agent
fi
$b mount -t tmpfs tmpfs /t
$b mkdir /t/host /t/upper /t/work /t/root
$b mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=512000,cache=loose host /t/host || echo "ringspan-guest: no 9p root" >/dev/console
$b mount -t overlay -o lowerdir=/t/host,upperdir=/t/upper,workdir=/t/work overlay /t/root || echo "ringspan-guest: no overlay" >/dev/console
for d in run tmp; do $b mkdir -p /t/root/$d; $b mount -t tmpfs tmpfs /t/root/$d; done
$b mkdir /t/root/run/host; $b mount --bind /t/host /t/root/run/host
$b cp /agent /bin/busybox /t/root/run/
$b mkdir -p /t/root/usr/lib/modules /t/root/lib
release=$($b uname -r)
modules=$($b cat /modules)
[ -d /t/host$modules/$release ] && $b ln -sfn $modules/$release /t/root/usr/lib/modules/$release
for d in dev proc sys; do $b mount --move /$d /t/root/$d; done
exec $b switch_root /t/root /run/busybox sh /run/agent
"#;

/// Takes commands from the test one by one, runs each in a shell of its own, and answers with exit code and output.
/// A line to the guest: number, limit in seconds, script in base64. A line back: number, exit code, output in base64.
const AGENT: &str = r#"export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root
b=/run/busybox
$b ip link set lo up
$b mkdir -p /dev/pts /dev/shm; $b mount -t devpts devpts /dev/pts; $b mount -t tmpfs tmpfs /dev/shm
until port=$($b ls /dev/vport*p1 2>/dev/null); do $b usleep 20000; done
exec 3<>$port
echo "ready" >&3
while :; do
    if ! read -r number limit script <&3; then $b usleep 50000; continue; fi
    echo "$script" | $b base64 -d >/run/script
    $b timeout -s KILL $limit /bin/sh /run/script >/run/output 2>&1 </dev/null
    code=$?
    { echo -n "$number $code "; $b base64 /run/output | $b tr -d '\n'; echo; } >&3
done
"#;

/// Writes the archive for this kernel to `path`, with these programs in it, and these modules besides its own.
pub fn write(kernel: &Kernel, modules: &[&str], programs: &[PathBuf], path: &Path) -> Result<()> {
    let busybox = paths::on_path("busybox").context("busybox is missing: install busybox-static")?;
    let mut archive = Archive { out: io::BufWriter::new(fs::File::create(path)?), inode: 0 };
    for folder in ["bin", "m"] {
        archive.entry(folder, 0o040755, b"")?;
    }
    archive.entry("bin/busybox", 0o100755, &fs::read(&busybox)?)?;
    archive.entry("init", 0o100755, INIT.as_bytes())?;
    archive.entry("agent", 0o100644, AGENT.as_bytes())?;
    let folder = kernel.root.join("lib/modules");
    archive.entry("modules", 0o100644, folder.as_os_str().as_encoded_bytes())?;
    for (number, file) in kernel.modules(&[&MODULES[..], modules].concat())?.iter().enumerate() {
        let name = file.file_name().context("a module without a name")?.to_string_lossy();
        let stem = name.split('.').next().unwrap_or(&name);
        archive.entry(&format!("m/{number:02}-{stem}.ko"), 0o100644, &compression::plain(file)?)?;
    }
    for file in with_libraries(programs)? {
        let mut folders: Vec<&Path> = file.ancestors().skip(1).filter(|folder| *folder != Path::new("/")).collect();
        folders.reverse();
        for folder in folders {
            archive.entry(inside(folder)?, 0o040755, b"")?;
        }
        archive.entry(inside(&file)?, 0o100755, &fs::read(&file)?)?;
    }
    archive.finish()
}

/// An absolute path as the archive has it.
fn inside(path: &Path) -> Result<&str> {
    let text = path.to_str().with_context(|| format!("{} is no text", path.display()))?;
    Ok(text.trim_start_matches('/'))
}

/// The programs, and the libraries that ldd names for them.
fn with_libraries(programs: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut files = BTreeSet::new();
    for program in programs {
        let said = wait::run(Command::new("ldd").arg(program), Duration::from_secs(20))?.success("ldd")?;
        // "libc.so.6 => /lib/libc.so.6 (0x...)", "/lib64/ld-linux-x86-64.so.2 (0x...)", and one that the kernel gives, without a path.
        let paths = said.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
        files.extend(paths.map(PathBuf::from));
        files.insert(program.clone());
    }
    Ok(files)
}

struct Archive<W> {
    out: W,
    inode: u32,
}

impl<W: Write> Archive<W> {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.inode += 1;
        let size = u32::try_from(content.len()).context("too large for cpio")?;
        let name_size = name.len() as u32 + 1;
        // magic, ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [self.inode, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
        let mut header = String::from("070701");
        fields.iter().for_each(|field| header += &format!("{field:08x}"));
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(name.as_bytes())?;
        // The name ends with a zero; header and name together, and the content, are padded to 4 bytes.
        let padded = (header.len() + name.len() + 1).next_multiple_of(4);
        self.out.write_all(&[0; 8][..padded - header.len() - name.len()])?;
        self.out.write_all(content)?;
        self.out.write_all(&[0; 4][..content.len().next_multiple_of(4) - content.len()])?;
        Ok(())
    }

    fn finish(mut self) -> Result<()> {
        self.entry("TRAILER!!!", 0, b"")?;
        self.out.flush()?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_of_an_archive_starts_at_a_multiple_of_four() {
        for length in 0..8 {
            let mut bytes = Vec::new();
            let mut archive = Archive { out: &mut bytes, inode: 0 };
            archive.entry(&"n".repeat(length + 1), 0o100644, &vec![7; length]).unwrap();
            archive.finish().unwrap();
            let second = bytes.windows(6).rposition(|part| part == b"070701").unwrap();
            assert_eq!(second % 4, 0, "content of {length} bytes");
            assert_eq!(bytes.len() % 4, 0, "content of {length} bytes");
        }
    }
}
