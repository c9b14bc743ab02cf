//! What was found for frames lately, by the hash of all bits that any rule looks at.

use super::classifier::prefetch;

/// Buckets of four, each a cache line: 512 KiB.
const BUCKETS: usize = 8192;

/// The cache. What it says has to be checked: hashes collide.
#[derive(Debug)]
pub struct Cache {
    buckets: Box<[Bucket]>,
    /// Goes up with each change of the rules; what was found before is not there any more.
    epoch: u32,
}

#[derive(Debug, Clone, Copy, Default)]
#[repr(C, align(64))]
struct Bucket([Found; 4]);

#[derive(Debug, Clone, Copy, Default)]
struct Found {
    hash: u64,
    place: u32,
    epoch: u32,
}

impl Default for Cache {
    fn default() -> Self {
        Self { buckets: vec![Bucket::default(); BUCKETS].into(), epoch: 1 }
    }
}

impl Cache {
    /// Starts to load what [`Cache::get`] looks at.
    #[inline]
    pub fn prefetch(&self, hash: u64) {
        prefetch(&raw const self.buckets[hash as usize % BUCKETS]);
    }

    /// What was found for this hash since the last change of the rules.
    #[inline]
    pub fn get(&self, hash: u64) -> Option<u32> {
        let bucket = &self.buckets[hash as usize % BUCKETS].0;
        bucket.iter().find(|found| found.hash == hash && found.epoch == self.epoch).map(|found| found.place)
    }

    /// Remembers what was found.
    pub fn put(&mut self, hash: u64, place: u32) {
        let epoch = self.epoch;
        let bucket = &mut self.buckets[hash as usize % BUCKETS].0;
        // One that is out of date, or any: by bits of the hash that do not choose the bucket.
        let old = bucket.iter().position(|found| found.epoch != epoch || found.hash == hash);
        bucket[old.unwrap_or((hash >> 62) as usize)] = Found { hash, place, epoch };
    }

    /// The rules have changed.
    pub fn clear(&mut self) {
        self.epoch = self.epoch.wrapping_add(1);
        if self.epoch == 0 {
            // 2^32 changes later an old epoch would be the current one.
            *self = Self::default();
        }
    }
}
