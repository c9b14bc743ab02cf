//! What one side of a port leaves to the other: checksums that are not filled in, and frames that are larger than the wire
//! carries. Pure arithmetic over bytes; knows nothing of rings or of DPDK.
//!
//! A guest says in its virtio-net header what is still to be done to a frame (VIRTIO 1.2 section 5.1.6.2). [`Request`] is
//! that header after it was checked against the frame. Where the device cannot do it, [`Checksum::fill`] and [`Segmenter`] do.
//! In the other direction, [`Offloads::takes`] says whether a guest will have a frame as it is.
//!
//! Header and frame come from a guest and are hostile. They are looked at after they were copied out of guest memory, every
//! length is checked against the copy, and what makes no sense is a [`BadOffload`]: the frame is dropped, never sent wrong.

mod checksum;
mod headers;
mod request;
mod segment;
#[cfg(test)]
mod tests;

pub use checksum::Sum;
pub use headers::{Headers, Transport};
pub use request::{BadOffload, Checksum, Request, Segment};
pub use segment::{Cut, Segmenter};

use crate::ring::NetHeader;

/// VIRTIO_NET_HDR_F_NEEDS_CSUM: the checksum is to be filled in.
pub const NEEDS_CSUM: u8 = 1;
/// VIRTIO_NET_HDR_F_DATA_VALID: the checksum was found to be right.
pub const DATA_VALID: u8 = 2;

/// VIRTIO_NET_HDR_GSO_TCPV4.
pub const GSO_TCP4: u8 = 1;
/// VIRTIO_NET_HDR_GSO_TCPV6.
pub const GSO_TCP6: u8 = 4;
/// VIRTIO_NET_HDR_GSO_UDP_L4: each segment is a datagram of its own.
pub const GSO_UDP: u8 = 5;
/// VIRTIO_NET_HDR_GSO_ECN, beside one of the TCP types: the frame has CWR set, which goes into the first segment only.
pub const GSO_ECN: u8 = 0x80;

/// Longest frame that is to be segmented: an IPv6 packet of the longest payload behind an Ethernet header and two VLAN tags.
pub const LONGEST: usize = u16::MAX as usize + 40 + 14 + 2 * 4;

/// Longest headers, Ethernet to TCP, of a frame that is to be segmented.
pub const LONGEST_HEADERS: usize = 256;

/// The negotiated features that are about checksums and segments, by their bits in virtio's feature word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u64);

impl Offloads {
    /// None of them.
    pub const NONE: Self = Self(0);
    /// VIRTIO_NET_F_CSUM: the guest may leave a checksum to us.
    pub const CSUM: Self = Self(1 << 0);
    /// VIRTIO_NET_F_GUEST_CSUM: the guest takes frames whose checksum is left to it, or is known to be good.
    pub const GUEST_CSUM: Self = Self(1 << 1);
    /// VIRTIO_NET_F_GUEST_TSO4.
    pub const GUEST_TSO4: Self = Self(1 << 7);
    /// VIRTIO_NET_F_GUEST_TSO6.
    pub const GUEST_TSO6: Self = Self(1 << 8);
    /// VIRTIO_NET_F_GUEST_ECN.
    pub const GUEST_ECN: Self = Self(1 << 9);
    /// VIRTIO_NET_F_HOST_TSO4: the guest may send large TCP frames over IPv4.
    pub const HOST_TSO4: Self = Self(1 << 11);
    /// VIRTIO_NET_F_HOST_TSO6.
    pub const HOST_TSO6: Self = Self(1 << 12);
    /// VIRTIO_NET_F_HOST_ECN: large frames may have CWR set.
    pub const HOST_ECN: Self = Self(1 << 13);
    /// VIRTIO_NET_F_GUEST_USO4.
    pub const GUEST_USO4: Self = Self(1 << 54);
    /// VIRTIO_NET_F_GUEST_USO6.
    pub const GUEST_USO6: Self = Self(1 << 55);
    /// VIRTIO_NET_F_HOST_USO: the guest may send large UDP frames, to be cut into datagrams.
    pub const HOST_USO: Self = Self(1 << 56);

    /// What a guest may ask of us.
    pub const FROM_GUEST: Self =
        Self::CSUM.with(Self::HOST_TSO4).with(Self::HOST_TSO6).with(Self::HOST_ECN).with(Self::HOST_USO);
    /// What we may leave to a guest.
    pub const TO_GUEST: Self = Self::GUEST_CSUM
        .with(Self::GUEST_TSO4)
        .with(Self::GUEST_TSO6)
        .with(Self::GUEST_ECN)
        .with(Self::GUEST_USO4)
        .with(Self::GUEST_USO6);
    /// Everything that is known here.
    pub const ALL: Self = Self::FROM_GUEST.with(Self::TO_GUEST);

    /// Of a feature word what is about offloads.
    pub const fn of(features: u64) -> Self {
        Self(features & Self::ALL.0)
    }

    /// As bits of a feature word.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// These and those.
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// Whether all of these are there.
    pub const fn has(self, wanted: Self) -> bool {
        self.0 & wanted.0 == wanted.0
    }

    /// Whether any of these is there.
    pub const fn has_any(self, wanted: Self) -> bool {
        self.0 & wanted.0 != 0
    }

    /// Whether a guest that negotiated these takes a frame with this header.
    pub fn takes(self, header: &NetHeader, ipv6: bool) -> bool {
        if header.flags & NEEDS_CSUM != 0 && !self.has(Self::GUEST_CSUM) {
            return false;
        }
        let ecn = header.gso_type & GSO_ECN == 0 || self.has(Self::GUEST_ECN);
        ecn && match header.gso_type & !GSO_ECN {
            0 => true,
            GSO_TCP4 => self.has(Self::GUEST_TSO4),
            GSO_TCP6 => self.has(Self::GUEST_TSO6),
            GSO_UDP if ipv6 => self.has(Self::GUEST_USO6),
            GSO_UDP => self.has(Self::GUEST_USO4),
            _ => false,
        }
    }
}
