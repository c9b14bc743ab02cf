//! Hugepages of 2 MiB: reserved, and their file system mounted, if this machine lets us; given back on drop.

use std::fs;
use std::process::Command;
use std::time::Duration;

use ringspan_testkit::wait;

const COUNT: &str = "/proc/sys/vm/nr_hugepages";
/// Where Debian mounts them with systemd; a machine without it may not have it.
const MOUNT: &str = "/dev/hugepages";

/// A reservation: what was changed for it.
#[derive(Default)]
pub struct HugePages {
    before: Option<u64>,
    mounted: bool,
}

impl HugePages {
    /// Tries to have `pages` free ones, and says what came of it. Tests and the demo run without as well.
    pub fn try_reserve(pages: u64) -> Self {
        let mut this = Self::default();
        match this.reserve(pages) {
            Ok(text) => println!("    hugepages: {text}"),
            Err(why) => {
                println!("    hugepages: none ({why}); going on without, which is slower");
                return Self::default();
            }
        }
        this
    }

    fn reserve(&mut self, pages: u64) -> Result<String, String> {
        let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
        if !mounts.lines().any(|line| line.split(' ').nth(2) == Some("hugetlbfs")) {
            fs::create_dir_all(MOUNT).map_err(|error| format!("{MOUNT}: {error}"))?;
            let mount = run(Command::new("mount").args(["-t", "hugetlbfs", "hugetlbfs", MOUNT]));
            mount.map_err(|error| format!("hugetlbfs cannot be mounted: {error:#}"))?;
            self.mounted = true;
        }
        let before = count();
        if before >= pages {
            return Ok(format!("{before} of 2 MiB are there"));
        }
        fs::write(COUNT, pages.to_string()).map_err(|error| format!("{COUNT}: {error}"))?;
        self.before = Some(before);
        match count() {
            now if now >= pages => Ok(format!("reserved {now} of 2 MiB (there were {before})")),
            now => Err(format!("only {now} of {pages} could be had: not enough free memory in one piece")),
        }
    }

    /// Leaves them reserved and mounted.
    pub fn keep(mut self) {
        (self.before, self.mounted) = (None, false);
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            let _ = fs::write(COUNT, before.to_string());
        }
        if self.mounted {
            let _ = run(Command::new("umount").arg(MOUNT));
        }
    }
}

fn run(command: &mut Command) -> anyhow::Result<String> {
    wait::run(command, Duration::from_secs(10))?.success("it")
}

fn count() -> u64 {
    fs::read_to_string(COUNT).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
