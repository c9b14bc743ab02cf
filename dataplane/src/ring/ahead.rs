//! The lines of long frames, asked for while those before them are copied.
//!
//! When a chain is found, its first two lines are asked for. What is behind these would be fetched by the copy itself, with a wait at every frame.

use std::ops::RangeInclusive;

use super::copy;
use crate::{BURST, SHORT};

const LINE: usize = 64;
/// Those are asked for already, by [`copy::prefetch_buffer`].
const FIRST: usize = 2 * LINE;
/// About so many bytes are on their way at once.
const REACH: usize = 3072;
/// Bytes of a frame that are asked for: whatever is longer, the processor's own prefetcher has found by then.
const MOST: usize = 2048;

/// One frame of so many is looked at, to know what burst it is.
const SAMPLE: usize = 7;

/// How far the lines of a burst's frames were asked for.
pub struct Ahead {
    /// Frames, the first of the burst among them. `None`: nothing is asked for.
    asked: Option<usize>,
}

impl Ahead {
    /// For a burst of `count` frames, of which `length` says how many bytes each has. In a mix of long and short frames the looks ahead cost more than the waits:
    /// if more than one sample in a whole burst is short, nothing is asked for.
    #[inline(always)]
    pub fn new(count: usize, length: impl Fn(usize) -> usize) -> Self {
        let short = (0..count).step_by(SAMPLE).filter(|&at| length(at) <= SHORT).count();
        Self { asked: (count > 1 && short <= count / BURST).then_some(1) }
    }

    /// Frame `at` of the burst is copied now, which has `len` bytes: asks for those that follow. `place` says where the guest has a frame and how many
    /// bytes of it are copied there, for each until it says `None`. A short one leaves that to the next long one.
    #[inline(always)]
    pub fn ask<const WRITE: bool>(
        &mut self,
        at: usize,
        len: usize,
        place: impl Fn(usize) -> Option<(*const u8, usize)>,
    ) {
        if let Some(asked) = &mut self.asked
            && len > SHORT
        {
            let until = at + (REACH >> len.ilog2()).max(1);
            *asked = ask_for::<WRITE>((*asked).max(at + 1)..=until, place);
        }
    }
}

/// Asks for the lines of these frames, until there is none; how many it was asked for then.
#[inline(never)]
fn ask_for<const WRITE: bool>(
    frames: RangeInclusive<usize>,
    place: impl Fn(usize) -> Option<(*const u8, usize)>,
) -> usize {
    let mut asked = *frames.start();
    for index in frames {
        let Some((start, len)) = place(index) else { break };
        for line in (FIRST..len.min(MOST)).step_by(LINE) {
            if WRITE {
                copy::prefetch_write(start.wrapping_add(line));
            } else {
                copy::prefetch_far(start.wrapping_add(line));
            }
        }
        asked = index + 1;
    }
    asked
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    /// The frames that are asked for when those of such lengths are copied, one after the other.
    fn asked(lengths: &[usize]) -> Vec<usize> {
        let asked = RefCell::new(vec![]);
        let mut ahead = Ahead::new(lengths.len(), |at| lengths[at]);
        for (at, &len) in lengths.iter().enumerate() {
            ahead.ask::<false>(at, len, |index| {
                let &len = lengths.get(index)?;
                assert!(index > at, "frame {index} is asked for when {at} is copied");
                assert!(
                    (index - at - 1) * len <= REACH,
                    "frame {index} of {len} bytes is asked for when {at} is copied"
                );
                asked.borrow_mut().push(index);
                Some((std::ptr::null(), len))
            });
        }
        asked.into_inner()
    }

    #[test]
    fn each_long_frame_but_the_first_is_asked_for_once_before_it_is_copied() {
        for len in [SHORT + 1, 256, 1518, 9000] {
            for count in [2, 5, BURST] {
                assert_eq!(asked(&vec![len; count]), (1..count).collect::<Vec<_>>(), "{count} frames of {len} bytes");
            }
        }
        let mut mostly = [1518; BURST];
        mostly[7] = 60;
        assert_eq!(asked(&mostly), (1..BURST).collect::<Vec<_>>(), "one short sample is no mix");
    }

    #[test]
    fn nothing_is_asked_for_in_a_burst_of_short_frames_or_of_both_kinds() {
        let mix: Vec<_> = [64, 570, 64, 64, 570, 64, 1518].into_iter().cycle().take(BURST).collect();
        for lengths in [&[64; BURST][..], &mix, &[1518], &[]] {
            assert_eq!(asked(lengths), [0; 0], "{lengths:?}");
        }
    }
}
