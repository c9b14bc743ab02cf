//! The thread that tells of bonds' failovers.

use std::sync::Arc;
use std::time::Duration;

use super::{Daemon, EventKind, spawn};
use crate::host::bond::{Seen, Watched};
use crate::host::netlink::LinkWatch;

/// How often it is looked whether the daemon ends.
const LOOK: Duration = Duration::from_millis(500);
/// Between two looks at the bonds, however many links change: a host that makes a thousand VFs is not asked a thousand times.
const PAUSE: Duration = Duration::from_millis(10);

/// Begins to tell, as long as there is a daemon. Nobody waits for the end of it.
pub(super) fn watch(daemon: &Arc<Daemon>) {
    let watch = match LinkWatch::open() {
        Ok(watch) => watch,
        Err(error) => return tracing::warn!("failovers of bonds are not told of: {error}"),
    };
    let sysfs = daemon.host().sysfs;
    let mut seen = Watched::look(&sysfs);
    let daemon = Arc::downgrade(daemon);
    let _detached = spawn("bonds".into(), move || {
        loop {
            let changed = watch.changed(LOOK);
            let Some(daemon) = daemon.upgrade().filter(|daemon| !daemon.events.is_closed()) else { return };
            match changed {
                Ok(false) => continue,
                Ok(true) => {}
                Err(error) => return tracing::warn!("failovers of bonds are not told of any more: {error}"),
            }
            let now = Watched::look(&sysfs);
            for change in now.since(&seen) {
                tell(&daemon, change);
            }
            seen = now;
            drop(daemon);
            std::thread::sleep(PAUSE);
        }
    });
}

fn tell(daemon: &Daemon, change: Seen) {
    let none = || "none".to_owned();
    let kind = match change {
        Seen::Failover { bond, from, to } => {
            tracing::info!(
                "{bond} sends by {}, before by {}",
                to.clone().unwrap_or_else(none),
                from.clone().unwrap_or_else(none)
            );
            EventKind::BondFailover { bond, from, to }
        }
        Seen::Link { bond, member, up } => {
            tracing::info!("{bond}: the link of {member} is {}", if up { "up" } else { "down" });
            EventKind::BondLink { bond, member, up }
        }
    };
    daemon.events.tell(None, None, kind);
}
