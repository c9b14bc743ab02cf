//! What the switch does to a single frame: copies, checks and changes it.

use super::actions::Edit;
use super::key::{Network, Places, UDP};
use crate::nic::{Burst, Frame, FrameMut, Pool};
use crate::offload::Sum;

/// Copies a frame behind those of a burst, into one buffer. False when there is none, or it is too long.
pub(super) fn copy(frame: Frame<'_>, pool: &Pool, to: &mut Burst) -> bool {
    if frame.len() > usize::from(pool.room()) || !to.allocate(pool, 1) {
        return false;
    }
    let place = to.len() - 1;
    let mut new = to.frame_mut(place);
    new.set_len(frame.len());
    frame.copy_out(0, new.bytes_mut())
}

/// Whether the UDP checksum around a tunnel is right, if there is one. One over several buffers is left to others.
pub(super) fn checksum_is_right(frame: Frame<'_>, places: &Places) -> bool {
    let (head, l3, l4) = (frame.data(), usize::from(places.l3), usize::from(places.l4));
    let Some(udp) = head.get(l4..) else { return false };
    let Some([_, _, _, _, a, b, c, d]) = udp.first_chunk::<8>() else { return false };
    if [*c, *d] == [0, 0] {
        return true;
    }
    let len = u16::from_be_bytes([*a, *b]);
    let addresses = if places.network == Network::Ipv6 { l3 + 8..l3 + 40 } else { l3 + 12..l3 + 20 };
    let (Some(addresses), Some(udp)) = (head.get(addresses), udp.get(..usize::from(len))) else { return false };
    let sum = Sum::new().over(addresses).add_number(UDP.into()).add_number(len).over(udp);
    sum.checksum() == [0, 0]
}

impl Edit for FrameMut<'_> {
    fn head(&mut self) -> &mut [u8] {
        self.bytes_mut()
    }

    fn length(&self) -> usize {
        self.as_frame().len()
    }

    fn grow(&mut self, bytes: usize) -> bool {
        self.prepend(bytes)
    }

    fn shrink(&mut self, bytes: usize) -> bool {
        self.strip(bytes)
    }
}
