//! Hugepages of 2 MiB: reserved if this machine lets us, given back on drop.

use std::fs;

const COUNT: &str = "/proc/sys/vm/nr_hugepages";

/// A reservation. Where there were enough pages before, it holds nothing.
pub struct HugePages {
    before: Option<u64>,
}

impl HugePages {
    /// Tries to have `pages` of them, and says what came of it. Tests and the demo run without as well.
    pub fn try_reserve(pages: u64) -> Self {
        let before = count();
        if before >= pages {
            println!("    hugepages: {before} of 2 MiB are there");
            return Self { before: None };
        }
        let mounted =
            fs::read_to_string("/proc/mounts").unwrap_or_default().lines().any(|line| line.contains(" hugetlbfs "));
        let set = fs::write(COUNT, pages.to_string());
        match (set, count()) {
            (Ok(()), now) if now >= pages && mounted => {
                println!("    hugepages: reserved {now} of 2 MiB (there were {before})");
                Self { before: Some(before) }
            }
            (result, _) => {
                let _ = fs::write(COUNT, before.to_string());
                let why = match result {
                    Err(error) => error.to_string(),
                    Ok(()) if !mounted => "no hugetlbfs is mounted".into(),
                    Ok(()) => "not enough free memory in one piece".into(),
                };
                println!("    hugepages: none ({why}); going on without, which is slower");
                Self { before: None }
            }
        }
    }
}

impl Drop for HugePages {
    fn drop(&mut self) {
        if let Some(before) = self.before {
            let _ = fs::write(COUNT, before.to_string());
        }
    }
}

fn count() -> u64 {
    fs::read_to_string(COUNT).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}
