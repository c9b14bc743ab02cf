//! The virtio-net header that goes before each frame in guest memory (VIRTIO 1.2 section 5.1.6).

use super::copy;

/// `struct virtio_net_hdr`, in the host's byte order.
///
/// On the ring it is little-endian with VERSION_1, and in the guest's own order without; ringspan runs on little-endian
/// hosts, where both are the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetHeader {
    /// VIRTIO_NET_HDR_F_*: bit 0, a checksum is to be filled in; bit 1, the checksum is known to be valid.
    pub flags: u8,
    /// VIRTIO_NET_HDR_GSO_*: 0 is a plain packet.
    pub gso_type: u8,
    /// Bytes of Ethernet, IP and TCP headers; a hint.
    pub hdr_len: u16,
    /// Bytes of payload in each segment, the maximum segment size.
    pub gso_size: u16,
    /// Where the sum starts, in bytes from the frame's first.
    pub csum_start: u16,
    /// Where the sum is stored, in bytes from `csum_start`.
    pub csum_offset: u16,
    /// Buffers (descriptor chains) that the frame takes, with mergeable receive buffers; absent from the legacy header.
    pub num_buffers: u16,
}

impl NetHeader {
    /// Bytes on the ring, with VERSION_1 or mergeable receive buffers.
    pub const LEN: usize = 12;
    /// Bytes on the ring without either: `num_buffers` is missing.
    pub const LEGACY_LEN: usize = 10;

    /// From the bytes on the ring; the last two are zero for the legacy header.
    #[inline(always)]
    pub const fn parse(bytes: [u8; Self::LEN]) -> Self {
        let [flags, gso_type, h0, h1, s0, s1, c0, c1, o0, o1, n0, n1] = bytes;
        Self {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([h0, h1]),
            gso_size: u16::from_le_bytes([s0, s1]),
            csum_start: u16::from_le_bytes([c0, c1]),
            csum_offset: u16::from_le_bytes([o0, o1]),
            num_buffers: u16::from_le_bytes([n0, n1]),
        }
    }

    /// Reads a header of `HEADER` bytes from guest memory, each byte once.
    ///
    /// # Safety
    ///
    /// `at` is valid for reads of `HEADER` bytes, which is 10 or 12.
    #[inline(always)]
    pub(super) unsafe fn read<const HEADER: usize>(at: *const u8) -> Self {
        let mut bytes = [0; Self::LEN];
        // SAFETY: the caller's.
        unsafe {
            bytes[..8].copy_from_slice(&copy::read::<[u8; 8]>(at));
            if HEADER == Self::LEN {
                bytes[8..].copy_from_slice(&copy::read::<[u8; 4]>(at.add(8)));
            } else {
                bytes[8..10].copy_from_slice(&copy::read::<[u8; 2]>(at.add(8)));
            }
        }
        Self::parse(bytes)
    }

    /// Writes the header of a plain frame in one buffer to guest memory: zeros, and `num_buffers` is 1 even where
    /// mergeable buffers were not negotiated (VIRTIO 1.2 section 5.1.6.4.1).
    ///
    /// # Safety
    ///
    /// `at` is valid for writes of `HEADER` bytes, which is 10 or 12.
    #[inline(always)]
    pub(super) unsafe fn write_plain<const HEADER: usize>(at: *mut u8) {
        // SAFETY: the caller's.
        unsafe { Self::default().write_single::<HEADER>(at) };
    }

    /// Writes this header for a frame in one buffer.
    ///
    /// # Safety
    ///
    /// As [`NetHeader::write_plain`].
    #[inline(always)]
    pub(super) unsafe fn write_single<const HEADER: usize>(self, at: *mut u8) {
        let bytes = Self { num_buffers: 1, ..self }.emit();
        // SAFETY: the caller's.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, HEADER) };
    }

    /// The bytes on the ring; the legacy header is the first ten.
    #[inline(always)]
    pub const fn emit(&self) -> [u8; Self::LEN] {
        let [h0, h1] = self.hdr_len.to_le_bytes();
        let [s0, s1] = self.gso_size.to_le_bytes();
        let [c0, c1] = self.csum_start.to_le_bytes();
        let [o0, o1] = self.csum_offset.to_le_bytes();
        let [n0, n1] = self.num_buffers.to_le_bytes();
        [self.flags, self.gso_type, h0, h1, s0, s1, c0, c1, o0, o1, n0, n1]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn parse_and_emit_mirror_each_other(bytes: [u8; NetHeader::LEN]) {
            prop_assert_eq!(NetHeader::parse(bytes).emit(), bytes);
        }
    }

    #[test]
    fn fields_are_where_the_kernel_puts_them() {
        let header = NetHeader::parse([1, 4, 0x36, 0, 0xb4, 5, 34, 0, 16, 0, 2, 0]);
        let expected = NetHeader {
            flags: 1,
            gso_type: 4,
            hdr_len: 54,
            gso_size: 1460,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 2,
        };
        assert_eq!(header, expected);
    }
}
