//! Who uses the processor: the lane, and threads of the kernel.

use std::fmt;
use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

/// Time on the processor at one moment.
pub struct Load {
    lane: u64,
    kernel: Vec<(u32, String, u64)>,
    since: Instant,
}

/// What was used since then, in shares of one processor.
pub struct Used {
    /// All threads of the lane.
    pub lane: f64,
    /// The kernel's thread that used most, and how much. Interrupts are in nobody's name.
    pub kernel: (String, f64),
    /// All threads of the kernel for virtio or vDPA.
    pub vhost: f64,
}

impl fmt::Display for Used {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let Self { lane, kernel: (name, kernel), vhost } = self;
        write!(
            f,
            "of one processor the lane used {lane:.3}, the kernel's busiest thread ({name}) {kernel:.3}, its threads for virtio and vDPA {vhost:.3}"
        )
    }
}

impl Load {
    /// As it is now.
    ///
    /// # Errors
    /// A lane that is gone.
    pub fn now(lane: u32) -> Result<Self> {
        let tasks = fs::read_dir(format!("/proc/{lane}/task")).context("no lane")?;
        let lane = tasks.flatten().filter_map(|task| nanoseconds(&task.path().join("schedstat"))).sum();
        let kernel = fs::read_dir("/proc")?.flatten().filter_map(|entry| {
            let id: u32 = entry.file_name().to_str()?.parse().ok()?;
            let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
            let (head, rest) = stat.rsplit_once(')')?;
            // Threads of the kernel are children of kthreadd.
            let parent: u32 = rest.split_whitespace().nth(1)?.parse().ok()?;
            let name = head.split_once('(')?.1.to_owned();
            (parent == 2).then_some((id, name, nanoseconds(&entry.path().join("schedstat"))?))
        });
        Ok(Self { lane, kernel: kernel.collect(), since: Instant::now() })
    }

    /// What was used between the two.
    pub fn until(&self, end: &Self) -> Used {
        let wall = (end.since - self.since).max(Duration::from_millis(1)).as_nanos() as f64;
        let share = |used: u64| used as f64 / wall;
        let each = || {
            end.kernel.iter().map(|(id, name, now)| {
                let before = self.kernel.iter().find(|(other, ..)| other == id).map_or(0, |(_, _, before)| *before);
                (name, now.saturating_sub(before))
            })
        };
        let most = each().max_by_key(|(_, used)| *used);
        let vhost = each().filter(|(name, _)| ["vhost", "vdpa", "virtio"].iter().any(|word| name.contains(word)));
        Used {
            lane: share(end.lane - self.lane),
            kernel: most.map_or_else(Default::default, |(name, used)| (name.clone(), share(used))),
            vhost: share(vhost.map(|(_, used)| used).sum()),
        }
    }
}

/// The first number of schedstat: time on the processor in nanoseconds (Documentation/scheduler/sched-stats.rst).
fn nanoseconds(path: &std::path::Path) -> Option<u64> {
    fs::read_to_string(path).ok()?.split_whitespace().next()?.parse().ok()
}
