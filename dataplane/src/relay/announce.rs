//! The frame that says where a guest is, sent for one that has been migrated here and cannot do so itself.
//!
//! A guest with GUEST_ANNOUNCE does it by itself when its front-end asks it to (QEMU serves the control queue). For another, the front-end
//! sends SEND_RARP, and what goes out is what QEMU itself sends where it serves the NIC (its net/announce.c): switches on the way learn from
//! it where the address is.

use ringspan_protocol::Drops;

use super::Relay;
use crate::nic::{Blanks, Burst};

/// Shortest Ethernet frame, without its checksum.
const LEN: usize = 60;

/// A broadcast of reverse ARP (RFC 903) from `mac`, which asks for the address of `mac`.
pub(super) fn rarp(mac: [u8; 6]) -> [u8; LEN] {
    let mut frame = [0; LEN];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&mac);
    // Ethertype, Ethernet, IPv4, lengths of both addresses, reverse request.
    frame[12..22].copy_from_slice(&[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
    frame[22..28].copy_from_slice(&mac);
    frame[32..38].copy_from_slice(&mac);
    frame
}

impl Relay {
    /// Sends it by the device's first queue, if that is here. It is counted as a frame of the guest's first pair, and is dropped when
    /// the guest may send nothing now.
    pub fn announce(&mut self, mac: [u8; 6]) {
        let Some(queue) = self.queues.iter_mut().find(|queue| queue.index == 0) else { return };
        let counters = self.common.journal.from_guest(0);
        let (mut blanks, mut burst) = (Blanks::new(), Burst::new());
        blanks.refill(&self.pool);
        counters.received(1, LEN as u64);
        if !self.common.from_guest.allows() {
            return counters.dropped(&Drops { over_rate: 1, ..Drops::default() });
        }
        self.common.from_guest.charge(LEN as u64);
        let Some(room) = blanks.frame(LEN) else {
            return counters.dropped(&Drops { no_buffers: 1, ..Drops::default() });
        };
        // SAFETY: the buffer has room for LEN bytes, and nobody else has it.
        unsafe { std::ptr::copy_nonoverlapping(rarp(mac).as_ptr(), room.as_ptr(), LEN) };
        blanks.take(&mut burst);
        if queue.nic.tx.send(&mut burst) == 1 {
            counters.sent(1, LEN as u64);
        } else {
            counters.dropped(&Drops { nic_full: 1, ..Drops::default() });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_frame_is_what_qemu_sends() {
        let frame = rarp([0x52, 0x54, 0, 1, 2, 3]);
        let expected =
            "ffffffffffff 525400010203 8035 0001 0800 06 04 0003 525400010203 00000000 525400010203 00000000";
        let mut hex: String = frame.iter().map(|byte| format!("{byte:02x}")).collect();
        hex.truncate(84);
        assert_eq!(hex, expected.replace(' ', ""));
        assert!(frame[42..].iter().all(|&byte| byte == 0));
    }
}
