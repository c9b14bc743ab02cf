//! The virtio-net header in front of each frame: what the sender leaves to do, and what the receiver may leave out.
//! Virtio 1.2, section 5.1.6.

use super::feature;

/// In [`NetHeader::flags`]: the checksum from `csum_start` on must still be filled in (`VIRTIO_NET_HDR_F_NEEDS_CSUM`).
pub const NEEDS_CSUM: u8 = 1;
/// In [`NetHeader::flags`]: the checksum was found right (`VIRTIO_NET_HDR_F_DATA_VALID`).
pub const DATA_VALID: u8 = 2;

/// In [`NetHeader::gso_type`]: one frame as it is.
pub const GSO_NONE: u8 = 0;
/// In [`NetHeader::gso_type`]: TCP over IPv4, to be cut.
pub const GSO_TCPV4: u8 = 1;
/// In [`NetHeader::gso_type`]: TCP over IPv6, to be cut.
pub const GSO_TCPV6: u8 = 4;
/// In [`NetHeader::gso_type`]: UDP datagrams of `gso_size` each (`VIRTIO_NET_HDR_GSO_UDP_L4`).
pub const GSO_UDP_L4: u8 = 5;
/// Added to [`NetHeader::gso_type`]: the TCP flag CWR is set.
pub const GSO_ECN: u8 = 0x80;

/// `struct virtio_net_hdr`, without `num_buffers`, which is the queue's affair.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetHeader {
    /// [`NEEDS_CSUM`], [`DATA_VALID`].
    pub flags: u8,
    /// [`GSO_NONE`] and the others.
    pub gso_type: u8,
    /// Bytes of all headers of the frame; a hint.
    pub hdr_len: u16,
    /// Most bytes of payload of each frame that this one is cut into.
    pub gso_size: u16,
    /// Where the checksum begins, from the frame's first byte.
    pub csum_start: u16,
    /// Where it is stored, from `csum_start`.
    pub csum_offset: u16,
}

impl NetHeader {
    /// The checksum is to be filled in.
    pub fn checksum(start: usize, offset: usize) -> Self {
        Self { flags: NEEDS_CSUM, csum_start: start as u16, csum_offset: offset as u16, ..Self::default() }
    }

    /// The first ten bytes on the ring.
    pub fn bytes(&self) -> [u8; 10] {
        let mut bytes = [self.flags, self.gso_type, 0, 0, 0, 0, 0, 0, 0, 0];
        for (i, word) in [self.hdr_len, self.gso_size, self.csum_start, self.csum_offset].into_iter().enumerate() {
            bytes[2 + 2 * i..4 + 2 * i].copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }

    /// From the first ten bytes on the ring.
    pub fn parse(bytes: [u8; 10]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            hdr_len: word(2),
            gso_size: word(4),
            csum_start: word(6),
            csum_offset: word(8),
        }
    }

    /// Whether a device may send this to a driver that agreed on these features: 5.1.6.4.1.
    pub fn is_allowed(&self, features: u64) -> bool {
        let has = |feature: u64| features & feature != 0;
        let flags_known = self.flags & !(NEEDS_CSUM | DATA_VALID) == 0;
        // A frame that is still to be cut is one whose checksum is still to be filled in.
        let needs = self.flags & NEEDS_CSUM != 0;
        let kind = match self.gso_type & !GSO_ECN {
            GSO_NONE => self.gso_type == 0,
            GSO_TCPV4 => has(feature::GUEST_TSO4) && needs,
            GSO_TCPV6 => has(feature::GUEST_TSO6) && needs,
            GSO_UDP_L4 => has(feature::GUEST_USO4 | feature::GUEST_USO6) && needs && self.gso_type & GSO_ECN == 0,
            _ => false,
        };
        let ecn = self.gso_type & GSO_ECN == 0 || has(feature::GUEST_ECN);
        flags_known && kind && ecn && (self.flags == 0 || has(feature::GUEST_CSUM))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let header =
            NetHeader { flags: 1, gso_type: 4, hdr_len: 74, gso_size: 1440, csum_start: 54, csum_offset: 0x0110 };
        assert_eq!(header.bytes(), [1, 4, 74, 0, 0xa0, 5, 54, 0, 0x10, 1]);
        assert_eq!(NetHeader::parse(header.bytes()), header);
    }

    #[test]
    fn only_what_was_agreed_on_may_come() {
        let (csum, large) = (NetHeader::checksum(34, 16), NetHeader { gso_type: GSO_TCPV4, ..NetHeader::default() });
        assert!(NetHeader::default().is_allowed(0));
        assert!(!csum.is_allowed(0) && csum.is_allowed(feature::GUEST_CSUM));
        let both = feature::GUEST_CSUM | feature::GUEST_TSO4;
        assert!(!large.is_allowed(both), "without NEEDS_CSUM");
        let large = NetHeader { gso_type: GSO_TCPV4, ..csum };
        assert!(large.is_allowed(both) && !large.is_allowed(feature::GUEST_CSUM));
    }
}
