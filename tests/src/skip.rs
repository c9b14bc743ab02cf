//! Tests that cannot run here.
//!
//! The test runner knows only passed and failed. A test that needs what the machine cannot give writes a line to the file that
//! `$RINGSPAN_SKIPPED` names and returns; `cargo xtask test` takes those out of the passed ones, and fails where nothing may be
//! skipped (`--ci`).

use std::fs::OpenOptions;
use std::io::Write;

/// Records that the test of this name did not run, and why.
pub fn skip(test: &str, reason: &str) {
    eprintln!("SKIPPED {test}: {reason}");
    let Some(path) = std::env::var_os("RINGSPAN_SKIPPED") else { return };
    let file = OpenOptions::new().create(true).append(true).open(path);
    // One write for the whole line: tests append in parallel.
    file.and_then(|mut file| file.write_all(format!("{test}: {reason}\n").as_bytes()))
        .expect("the file of $RINGSPAN_SKIPPED can be written");
}

/// What the end-to-end tests may need.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Root: namespaces, TAPs, DPDK.
    Root,
    /// A QEMU guest can be booted.
    Guest,
    /// The project's own programs are built.
    Ringspan,
    /// The lane's program is built; the daemon is not needed.
    Lane,
    /// Open vSwitch is installed.
    Ovs,
    /// This program is installed.
    Program(&'static str),
    /// This many free hugepages of 2 MiB.
    HugePages(u64),
}

impl Need {
    /// What is missing, in words; nothing when the need is met.
    pub fn missing(self) -> Option<String> {
        match self {
            Self::Root => (!nix::unistd::geteuid().is_root()).then(|| "the rights of root".into()),
            Self::Guest => {
                let missing = crate::qemu::missing();
                (!missing.is_empty()).then(|| missing.join(", "))
            }
            Self::Ringspan => ["ringspan", "ringspan-lane"]
                .iter()
                .find_map(|name| crate::paths::program(name).err())
                .map(|error| error.to_string()),
            Self::Lane => crate::paths::program("ringspan-lane").err().map(|error| error.to_string()),
            Self::Ovs => crate::ovs::Ovs::missing(),
            Self::Program(name) => crate::paths::on_path(name).is_none().then(|| format!("the program {name}")),
            Self::HugePages(count) => {
                let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
                let free = std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
                (free < count).then(|| format!("{count} free hugepages of 2 MiB ({free} there)"))
            }
        }
    }
}

/// Whether all needs are met; if not, the test is recorded as skipped and must return.
pub fn can_run(test: &str, needs: &[Need]) -> bool {
    let missing: Vec<String> = needs.iter().filter_map(|need| need.missing()).collect();
    if !missing.is_empty() {
        skip(test, &format!("missing: {}", missing.join("; ")));
    }
    missing.is_empty()
}

/// Ends the test as skipped unless all needs are met: `needs!(Root, Guest)`.
#[macro_export]
macro_rules! needs {
    ($($need:expr),+ $(,)?) => {{
        #[allow(unused_imports)]
        use $crate::skip::Need::*;
        // The test thread carries the test's name.
        let thread = std::thread::current();
        if !$crate::skip::can_run(thread.name().unwrap_or(module_path!()), &[$($need),+]) {
            return Ok(());
        }
    }};
}
