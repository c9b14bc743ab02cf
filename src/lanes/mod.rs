//! The lanes: DPDK processes that carry the ports. They outlive the daemon; each has a keeper thread here that adopts or
//! starts it, applies what is wanted, and starts it again when it dies.

mod client;
mod keeper;
mod lane;
mod process;
mod reconcile;
mod watch_events;

use std::path::{Path, PathBuf};

use ringspan_protocol::LaneName;

pub(crate) use keeper::apply;
pub(crate) use keeper::keep;
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
