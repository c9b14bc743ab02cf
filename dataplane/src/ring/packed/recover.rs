//! Where a packed ring goes on when it starts: see docs/decisions/0006-packed-position.md.

use super::layout::Layout;
use crate::ring::descriptor::Descriptor;
use crate::ring::record::RingRecord;
use crate::ring::{RingConfig, RingError};

/// The position at which the ring goes on. A record of this ring's life counts, unless the guest has begun another at the same
/// place: that one has no mark of ours. A burst that was being given back when a process was killed is given back to its end.
///
/// # Errors
///
/// [`RingError::Base`]: the front-end named a slot that the ring does not have. [`RingError::Lost`]: nobody knows where the ring stands.
pub fn position(layout: &Layout, config: &RingConfig, record: &RingRecord) -> Result<u16, RingError> {
    if let Some(at) = config.resume {
        return checked(layout, at);
    }
    let named = named(layout, config)?;
    if let Some((from, to)) = record.progress()
        && record.describes(config)
        && layout.is_marked()
    {
        return Ok(finish(layout, from, to));
    }
    // A front-end that was told a place when the ring was stopped is right, whatever lies there: of a chain of several descriptors,
    // or a batch in order, all but one keep the flags of the lap before and look as if they were given back in this one. One
    // that was told nothing names the place where rings begin.
    if named != 0 || !layout.is_given_back(named, layout.flags(named)) {
        return Ok(named);
    }
    let shows = !config.features.in_order && !has_lists(layout);
    if let Some(seen) = boundary(layout).filter(|_| shows) {
        return Ok(seen);
    }
    // What looks so may be left from the lap before, and the place right; but not where this lap's device has written.
    if layout.is_used(named, layout.flags(named)) { Err(RingError::Lost) } else { Ok(named) }
}

/// Whether there are chains of several descriptors, as far as can be seen.
fn has_lists(layout: &Layout) -> bool {
    (0..layout.size()).any(|slot| layout.flags(slot) & Descriptor::NEXT != 0)
}

fn checked(layout: &Layout, base: u16) -> Result<u16, RingError> {
    let size = layout.size();
    if base & 0x7fff < size { Ok(layout.unpack(base)) } else { Err(RingError::Base { base, size }) }
}

/// What the front-end says. Where another device was stopped with chains in flight, what is used is behind what is available:
/// those chains are taken again, or the guest would wait for them for ever. Not every front-end knows the used half.
fn named(layout: &Layout, config: &RingConfig) -> Result<u16, RingError> {
    let available = checked(layout, config.base as u16)?;
    let half = (config.base >> 16) as u16;
    let used = checked(layout, half)?;
    let waiting = layout.is_available(used, layout.flags(used));
    Ok(if waiting && (half != 0 || is_meant(layout, config, used, available)) { used } else { available })
}

/// Whether a used half of zero is meant, which is a place like others, and also what a front-end says that does not know: whether all from
/// there to `available` may be in flight. In order the slots of a batch look so when they were given back.
fn is_meant(layout: &Layout, config: &RingConfig, used: u16, available: u16) -> bool {
    let between = available.wrapping_sub(used) & layout.double_mask();
    let given = |position: u16| layout.is_given_back(position, layout.flags(position));
    !config.features.in_order && between <= layout.size() && (0..between).all(|i| !given(used.wrapping_add(i)))
}

/// Where a ring whose chains all have one descriptor, and were not given back in batches, was left: what was given back in this lap ends there. `None` when the ring
/// does not look like one.
fn boundary(layout: &Layout) -> Option<u16> {
    let size = layout.size();
    // Each descriptor's used bit is its lap's wrap counter if it was given back, else that of the lap before.
    let first = layout.is_given_back(0, layout.flags(0));
    let lap = if first { 0 } else { size };
    let end = (0..size).find(|&slot| !layout.is_given_back(lap | slot, layout.flags(slot))).unwrap_or(size);
    (end..size).all(|slot| !layout.is_given_back(lap | slot, layout.flags(slot))).then_some(lap.wrapping_add(end))
}

/// Ends what may have been interrupted: the burst from `from` to `to`, whose first chain is given back last. Where the guest
/// cannot have seen it and nothing is changed, it is taken again; else everything that is left of it is given back empty.
fn finish(layout: &Layout, from: u16, to: u16) -> u16 {
    let given = |position: u16| layout.is_given_back(position, layout.flags(position));
    let count = to.wrapping_sub(from).min(layout.size());
    let to = from.wrapping_add(count);
    if count == 0 || given(from) {
        return to;
    }
    if (1..count).all(|i| !given(from.wrapping_add(i))) {
        return from;
    }
    // Chains were given back from the last to the first. So those that were not yet are still whole, and lie before all that
    // were; of those the first descriptor alone was changed.
    let mut chains = Vec::with_capacity(count.into());
    let mut at = 0;
    while at < count {
        let first = from.wrapping_add(at);
        let was_given = given(first);
        let mut last = layout.descriptor(first);
        let id = last.next;
        at += 1;
        while at < count && !given(from.wrapping_add(at)) && (was_given || last.flags & Descriptor::NEXT != 0) {
            last = layout.descriptor(from.wrapping_add(at));
            at += 1;
        }
        chains.push((first, if was_given { id } else { last.next }));
    }
    // Empty all of them: a frame of several buffers may have lost its head.
    for (first, id) in chains.into_iter().rev() {
        layout.give_back::<false>(first, id, 0);
    }
    to
}
