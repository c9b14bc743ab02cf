//! Frames that their guest left unfinished, on their way to a device queue: checksums, segments, and those that cannot be sent.

use std::collections::VecDeque;

use ringspan_protocol::Drops;

use crate::BURST;
use crate::nic::{Burst, FrameMut, Pool, TxQueue};
use crate::offload::{Offloads, Request, Segment, Segmenter};
use crate::ring::NetHeader;
use crate::stats::QueueCells;

/// What the ring's frames ask for: their places in the burst, in order, and their headers.
pub(super) type Asks = Vec<(usize, NetHeader)>;

/// What is to be done to a frame before it may go.
enum Task {
    /// It is cut in software.
    Cut(Segment),
    /// Its header makes no sense.
    Refuse,
    /// Its segments would be longer than the port's frames.
    TooLong,
}

/// Frames of which some are to be cut or dropped, in order.
pub(super) struct Unfinished {
    waiting: Burst,
    /// By place of the frame among those that were waiting at first.
    tasks: VecDeque<(usize, Task)>,
    /// Frames that are gone from `waiting`.
    gone: usize,
    /// The first of `waiting` is being cut.
    cut: Option<Segmenter>,
}

impl Unfinished {
    pub(super) fn new() -> Self {
        Self { waiting: Burst::new(), tasks: VecDeque::new(), gone: 0, cut: None }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Frames that are left.
    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Does what `asks` say to the frames in `ready`: leaves it to the device, or fills checksums in. When there is more to do, all of
    /// `ready` waits here. Only when nothing waits.
    pub(super) fn begin(
        &mut self,
        ready: &mut Burst,
        asks: &mut Asks,
        (allowed, max_frame): (Offloads, usize),
        queue: &mut TxQueue,
    ) {
        debug_assert!(self.is_empty());
        let mut marked = 0u64;
        for (place, header) in asks.drain(..) {
            let mut frame = ready.frame_mut(place);
            let (len, buffers) = (frame.as_frame().len(), frame.as_frame().segment_count());
            let task = match Request::parse(&header, frame.as_frame().data(), len, allowed) {
                Ok(None) => continue,
                Ok(Some(Request::Segment(segment))) if segment.longest_segment(len) > max_frame => Task::TooLong,
                Ok(Some(request)) if queue.abilities().does(&request, len, buffers) => {
                    frame.mark(&request, queue.abilities());
                    marked |= 1 << place;
                    continue;
                }
                Ok(Some(Request::Checksum(checksum))) if buffers == 1 => {
                    checksum.fill(frame.bytes_mut());
                    continue;
                }
                Ok(Some(Request::Segment(segment))) => Task::Cut(segment),
                Ok(Some(Request::Checksum(_))) | Err(_) => Task::Refuse,
            };
            self.tasks.push_back((place, task));
        }
        let refused = queue.prepare(ready, marked);
        if refused != 0 {
            let places = (0..BURST).filter(|place| refused >> place & 1 == 1);
            self.tasks.extend(places.filter_map(|place| take_over(ready.frame_mut(place)).map(|task| (place, task))));
            self.tasks.make_contiguous().sort_unstable_by_key(|(place, _)| *place);
        }
        if !self.tasks.is_empty() {
            ready.move_front(BURST, &mut self.waiting);
            self.gone = 0;
        }
    }

    /// Fills `ready`, which is empty, with what comes next, and counts what is dropped. Returns which of its places end a frame of the
    /// guest's, by their bits, and how many were dropped. With none in `ready` there are no buffers to cut into.
    pub(super) fn next(&mut self, ready: &mut Burst, pool: &Pool, counters: &QueueCells) -> (u64, usize) {
        let (mut ends, mut drops) = (0u64, Drops::default());
        while ready.room() > 0 && !self.is_empty() {
            let finished = self.tasks.front().map_or(self.waiting.len(), |(place, _)| place - self.gone);
            if finished > 0 {
                let (before, count) = (ready.len(), finished.min(ready.room()));
                self.waiting.move_front(count, ready);
                self.gone += count;
                (before..before + count).for_each(|place| ends |= 1 << place);
                continue;
            }
            match self.tasks.front() {
                Some((_, Task::Cut(segment))) => {
                    let frame = self.waiting.frame(0);
                    let cut = self.cut.get_or_insert_with(|| Segmenter::new(segment, frame.data(), frame.len()));
                    if !ready.cut(frame, cut, pool) {
                        break;
                    }
                    if cut.left() > 0 {
                        continue;
                    }
                    ends |= 1 << (ready.len() - 1);
                }
                Some((_, Task::TooLong)) => drops.too_long += 1,
                Some((_, Task::Refuse)) | None => drops.bad_offload += 1,
            }
            self.drop_first();
        }
        counters.dropped(&drops);
        (ends, drops.total() as usize)
    }

    /// Drops the first frame, and what is to be done to it.
    pub(super) fn drop_first(&mut self) {
        self.waiting.drop_front(1);
        self.gone += 1;
        self.tasks.pop_front();
        self.cut = None;
    }

    /// Drops all. Returns how many those were.
    pub(super) fn abandon(&mut self) -> usize {
        let dropped = self.len();
        self.waiting.clear();
        self.tasks.clear();
        self.cut = None;
        dropped
    }

    /// Lets go of the pool. Only when nothing waits.
    pub(super) fn release(&mut self) {
        self.waiting = Burst::new();
    }
}

/// The driver refuses what a frame's marks ask for: checksums are filled in here, and segments are to be cut.
#[cold]
fn take_over(mut frame: FrameMut<'_>) -> Option<Task> {
    let header = frame.unmark();
    let (len, buffers) = (frame.as_frame().len(), frame.as_frame().segment_count());
    match Request::parse(&header, frame.as_frame().data(), len, Offloads::ALL) {
        Ok(Some(Request::Checksum(checksum))) if buffers == 1 => {
            checksum.fill(frame.bytes_mut());
            None
        }
        Ok(Some(Request::Segment(segment))) => Some(Task::Cut(segment)),
        _ => Some(Task::Refuse),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use ringspan_testkit::packet::Packet;

    use super::*;
    use crate::nic::{Handmade, TxAbilities};

    /// A device that does everything, and refuses when it is asked to.
    const ABLE: TxAbilities = TxAbilities {
        ip_checksum: true,
        tcp_checksum: true,
        udp_checksum: true,
        tcp_segments: true,
        buffers: 8,
        buffers_to_cut: 8,
        hands_on: false,
        link: false,
    };

    fn marked(frame: &[u8], header: ringspan_testkit::guest::NetHeader) -> Handmade {
        let mut bytes = [0; NetHeader::LEN];
        bytes[..10].copy_from_slice(&header.bytes());
        let request = Request::parse(&NetHeader::parse(bytes), frame, frame.len(), Offloads::ALL).unwrap().unwrap();
        assert!(ABLE.does(&request, frame.len(), 1));
        let mut burst = Handmade::new([frame], 0);
        burst.frame_mut(0).mark(&request, &ABLE);
        burst
    }

    proptest! {
        #[test]
        fn what_the_driver_refuses_is_done_here(ipv6: bool, udp: bool, tags in 0..3usize, payload in 0..3000usize) {
            let packet = Packet { ipv6, udp, tags, ecn: false, ..Packet::new(payload) };
            let mut burst = marked(&packet.frame(), packet.checksum_header());
            prop_assert!(take_over(burst.frame_mut(0)).is_none());
            packet.check(burst.frame(0).data()).unwrap();
            let (left, _) = burst.frame(0).marks();
            prop_assert_eq!(left, NetHeader::default(), "it would be asked again");

            let packet = Packet { udp: false, payload: payload + 2000, ..packet };
            let mut burst = marked(&packet.frame(), packet.segment_header(1000));
            let Some(Task::Cut(segment)) = take_over(burst.frame_mut(0)) else { panic!("not cut") };
            let (frame, mut segments) = (burst.frame(0).data().to_vec(), Vec::new());
            let mut cut = Segmenter::new(&segment, &frame, frame.len());
            while let Some(next) = cut.next() {
                let mut bytes = vec![0; next.header_len + next.len];
                bytes[next.header_len..].copy_from_slice(&frame[next.from..next.from + next.len]);
                cut.finish(&mut bytes);
                segments.push(bytes);
            }
            packet.check_segments(1000, &segments).unwrap();
        }
    }
}
