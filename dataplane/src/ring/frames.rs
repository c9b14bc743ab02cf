//! Where frames go to and come from, and what became of them.

use std::ptr::NonNull;

use super::NetHeader;
use crate::SHORT;

/// Takes the frames that a guest sends.
///
/// # Safety
///
/// The pointer that [`FrameSink::frame`] returns is valid for writes of `len` bytes until [`Ring::take`] returns,
/// does not lie in guest memory, and does not overlap what an earlier call of the same burst returned.
///
/// [`Ring::take`]: super::Ring::take
pub unsafe trait FrameSink {
    /// Whether the headers of plain chains are looked at; without, [`FrameSink::frame`] may get one of zeros.
    const HEADERS: bool = true;

    /// Room for a frame of `len` bytes, which comes with `header` as the guest wrote it (any value is possible).
    /// Called in ring order; the bytes are there when `take` returns. `None` when there is no buffer: the frame is
    /// dropped and counted.
    fn frame(&mut self, header: &NetHeader, len: usize) -> Option<NonNull<u8>>;

    /// Rooms for short frames, one after another: as [`FrameSink::frame`] for each that `frames` names, of which `put` gets the third part, the length and
    /// the room. It ends with the frames, or before the first for which there is no room here, which need not mean that there is
    /// none. Returns how many have theirs. A sink of its own making keeps what it counts in registers meanwhile.
    ///
    /// # Safety
    ///
    /// No frame is longer than [`SHORT`].
    #[inline(always)]
    unsafe fn several<P>(
        &mut self,
        frames: impl Iterator<Item = (NetHeader, usize, P)>,
        mut put: impl FnMut(P, usize, NonNull<u8>),
    ) -> usize {
        let mut count = 0;
        for (header, len, piece) in frames {
            debug_assert!(len <= SHORT);
            let Some(to) = self.frame(&header, len) else { break };
            put(piece, len, to);
            count += 1;
        }
        count
    }

    /// Whether frames may be lent: [`FrameSink::lend`] is asked first.
    const LENDS: bool = false;

    /// Frames of fewer bytes are never lent. [`FrameSink::lend`] may be asked all the same, and says no.
    #[inline(always)]
    fn lends_from(&self) -> usize {
        if Self::LENDS { 0 } else { usize::MAX }
    }

    /// Leaves a frame of `len` bytes in guest memory at `start`, for whoever reads it there: nothing is copied, and its chain is not given
    /// back to the guest before [`Ring::settle`] hears that the loan is back. `None`: the frame is copied as any other.
    ///
    /// # Safety
    ///
    /// `start` is valid for reads of `len` bytes as long as the ring's map is held. The guest may write there at any time.
    ///
    /// [`Ring::settle`]: super::Ring::settle
    unsafe fn lend(&mut self, _header: &NetHeader, _start: NonNull<u8>, _len: usize) -> Option<Loan> {
        None
    }

    /// Longest frame in bytes that is not too long, `max_frame` at least: those beyond `max_frame` go to
    /// [`FrameSink::large_frame`].
    fn longest(&self, max_frame: usize) -> usize {
        max_frame
    }

    /// Room for a frame that is longer than `max_frame`: the pieces that are added to `pieces`, which is empty, have `len` bytes
    /// together, and the same is promised of each as of what [`FrameSink::frame`] returns.
    fn large_frame(&mut self, _header: &NetHeader, _len: usize, _pieces: &mut Vec<(NonNull<u8>, usize)>) -> LargeFrame {
        LargeFrame::TooLong
    }
}

/// A frame that a device reads in guest memory, by the number that its lender gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Loan(pub u16);

/// What becomes of a frame that is longer than `max_frame`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LargeFrame {
    /// There is room.
    Room,
    /// It may not be so long: dropped and counted.
    TooLong,
    /// There are too few buffers: dropped and counted.
    NoBuffers,
    /// There is too much in this burst already, which has at least one frame: it stays in the ring, with all behind it.
    Later,
}

/// The frames of one burst on their way to a guest.
///
/// # Safety
///
/// For each index below [`FrameSource::count`], the segments are valid for reads of their length until
/// [`Ring::put`] returns, do not lie in guest memory, and together have [`FrameSource::frame_len`] bytes.
///
/// [`Ring::put`]: super::Ring::put
pub unsafe trait FrameSource {
    /// How many frames there are.
    fn count(&self) -> usize;

    /// Bytes of a frame.
    fn frame_len(&self, index: usize) -> usize;

    /// The pieces of a frame, in order.
    fn segments(&self, index: usize) -> impl Iterator<Item = (*const u8, usize)>;

    /// The first piece of a frame: the whole of it, mostly.
    #[inline(always)]
    fn start(&self, index: usize) -> (*const u8, usize) {
        self.segments(index).next().unwrap_or((std::ptr::null(), 0))
    }

    /// Whether frames have headers of their own: otherwise they are plain, and [`FrameSource::header`] is not asked.
    const HEADERS: bool = false;

    /// What goes before the frame, but for `num_buffers`. The guest has negotiated what it says.
    fn header(&self, _index: usize) -> NetHeader {
        NetHeader::default()
    }
}

/// What became of a burst from the guest: `received == frames + malformed + too_long + no_buffers`, each counted where
/// it happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Taken {
    /// Chains that were taken from the ring.
    pub received: u64,
    /// Bytes in those, without the virtio-net headers.
    pub received_bytes: u64,
    /// Frames that are in the sink's buffers, or lent.
    pub frames: u64,
    /// Those of them that are lent.
    pub lent: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Chains that hold no frame: shorter than the virtio-net header and an Ethernet header, or with a buffer that is
    /// the device's to write.
    pub malformed: u64,
    /// Frames longer than asked for.
    pub too_long: u64,
    /// Frames that the sink had no buffer for.
    pub no_buffers: u64,
}

/// What became of a burst to the guest: `frames + ring_full + too_long` is the number of frames in the source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Put {
    /// Frames that the guest has.
    pub frames: u64,
    /// Bytes of those, without the virtio-net headers.
    pub bytes: u64,
    /// Frames for which the guest had made too few buffers available.
    pub ring_full: u64,
    /// Frames that are longer than the guest's buffer, or with mergeable buffers longer than all of them.
    pub too_long: u64,
}
