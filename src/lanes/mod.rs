//! The lanes: DPDK processes that carry the ports. They outlive the daemon; each has a keeper thread here that adopts or
//! starts it, applies what is wanted, and starts it again when it dies.

mod client;
mod keeper;
mod lane;
mod process;
mod reconcile;
mod watch_events;

use std::path::{Path, PathBuf};

use ringspan_protocol::{LaneName, PortName};

pub(crate) use keeper::apply;
pub(crate) use keeper::{RESTART_LIMIT, keep};
pub(crate) use lane::{Lane, LanePhase, LaneView, Order};
pub(crate) use reconcile::Wanted;

/// Where a lane listens.
pub(crate) fn socket_path(run_dir: &Path, lane: &LaneName) -> PathBuf {
    run_dir.join(format!("lane-{lane}.sock"))
}

/// The lanes whose sockets are in the folder, alive or not.
pub(crate) fn found_in(run_dir: &Path) -> Vec<LaneName> {
    let Ok(entries) = std::fs::read_dir(run_dir) else { return Vec::new() };
    let names = entries.flatten().filter_map(|entry| {
        let file = entry.file_name();
        file.to_str()?.strip_prefix("lane-")?.strip_suffix(".sock")?.parse().ok()
    });
    let mut names: Vec<LaneName> = names.collect();
    names.sort();
    names
}

/// Removes the journals of ports that nobody wants: a lane that is dead, or that refused a port half-way, cannot do it, and
/// the next port of that name would begin with another one's counters.
pub(crate) fn forget_journals(run_dir: &Path, is_wanted: impl Fn(&PortName) -> bool) {
    let Ok(entries) = std::fs::read_dir(run_dir.join("journal")) else { return };
    for entry in entries.flatten() {
        let file = entry.file_name();
        let port = file.to_str().and_then(|file| file.strip_suffix(".journal")?.parse::<PortName>().ok());
        if port.is_some_and(|port| !is_wanted(&port)) {
            // Already gone is as good: its lane may have been faster.
            let _ = std::fs::remove_file(entry.path());
        }
    }
}
