//! Virtio feature bits: what a port offers, what was agreed on, and their names.
//!
//! Bit numbers and names are those of the virtio specification 1.2 (5.1.3 network device, 6 reserved bits) and of
//! vhost-user for bit 30.
//!
//! QEMU's virtio-net asks the back-end only for the bits of its list for vhost-user (`user_feature_bits` in its
//! net/vhost-user.c, hw/net/vhost_net.c before 10.1), clears those that are not offered, and serves the rest itself:
//! the control queue, filters and the status field are its own whatever is offered here. DPDK's virtio-user and older
//! QEMU do ask for some of those, so that they are offered as DPDK's vhost library does. `MTU` makes `host_mtu=` work,
//! `GUEST_ANNOUNCE` lets the guest announce itself after a migration, `MQ` allows more than one pair.

use ringspan_protocol::Compat;

use crate::offload::Offloads;
use crate::ring::RingFeatures;

/// vhost-user's own bit in the feature word: protocol features can be negotiated.
pub const F_PROTOCOL_FEATURES: u64 = 1 << 30;

pub const F_MTU: u64 = 1 << 3;
const F_MRG_RXBUF: u64 = 1 << 15;
pub const F_STATUS: u64 = 1 << 16;
pub const F_CTRL_VQ: u64 = 1 << 17;
pub const F_CTRL_RX: u64 = 1 << 18;
pub const F_CTRL_VLAN: u64 = 1 << 19;
pub const F_GUEST_ANNOUNCE: u64 = 1 << 21;
pub const F_MQ: u64 = 1 << 22;
pub const F_CTRL_MAC_ADDR: u64 = 1 << 23;
/// vhost's own bit in the feature word: what is written to guest memory is logged. Agreed on anew whenever a migration begins or ends.
pub const F_LOG_ALL: u64 = 1 << 26;
pub const F_ANY_LAYOUT: u64 = 1 << 27;
const F_INDIRECT_DESC: u64 = 1 << 28;
const F_EVENT_IDX: u64 = 1 << 29;
pub const F_VERSION_1: u64 = 1 << 32;
pub const F_RING_PACKED: u64 = 1 << 34;
const F_IN_ORDER: u64 = 1 << 35;

/// Names by bit number.
const NAMES: &[(u8, &str)] = &[
    (0, "CSUM"),
    (1, "GUEST_CSUM"),
    (2, "CTRL_GUEST_OFFLOADS"),
    (3, "MTU"),
    (5, "MAC"),
    (6, "GSO"),
    (7, "GUEST_TSO4"),
    (8, "GUEST_TSO6"),
    (9, "GUEST_ECN"),
    (10, "GUEST_UFO"),
    (11, "HOST_TSO4"),
    (12, "HOST_TSO6"),
    (13, "HOST_ECN"),
    (14, "HOST_UFO"),
    (15, "MRG_RXBUF"),
    (16, "STATUS"),
    (17, "CTRL_VQ"),
    (18, "CTRL_RX"),
    (19, "CTRL_VLAN"),
    (20, "CTRL_RX_EXTRA"),
    (21, "GUEST_ANNOUNCE"),
    (22, "MQ"),
    (23, "CTRL_MAC_ADDR"),
    (24, "NOTIFY_ON_EMPTY"),
    (26, "LOG_ALL"),
    (27, "ANY_LAYOUT"),
    (28, "INDIRECT_DESC"),
    (29, "EVENT_IDX"),
    (30, "PROTOCOL_FEATURES"),
    (32, "VERSION_1"),
    (33, "ACCESS_PLATFORM"),
    (34, "RING_PACKED"),
    (35, "IN_ORDER"),
    (36, "ORDER_PLATFORM"),
    (37, "SR_IOV"),
    (38, "NOTIFICATION_DATA"),
    (39, "NOTIF_CONFIG_DATA"),
    (40, "RING_RESET"),
    (41, "ADMIN_VQ"),
    (50, "DEVICE_STATS"),
    (52, "VQ_NOTF_COAL"),
    (53, "NOTF_COAL"),
    (54, "GUEST_USO4"),
    (55, "GUEST_USO6"),
    (56, "HOST_USO"),
    (57, "HASH_REPORT"),
    (59, "GUEST_HDRLEN"),
    (60, "RSS"),
    (61, "RSC_EXT"),
    (62, "STANDBY"),
    (63, "SPEED_DUPLEX"),
];

/// The feature word that a port of this compatibility level offers, vhost-user's own bit 30 included. `offloads` says whether it offers checksums and
/// segments; what the device cannot do of them is done in software, so that the word does not depend on the device.
///
/// A level never changes once it was released: a guest that is restarted or migrated sees the same device.
pub fn offered(compat: Compat, offloads: bool) -> u64 {
    let offloads = if offloads { Offloads::ALL.bits() } else { 0 };
    match compat {
        Compat::V1 => {
            F_VERSION_1
                | F_RING_PACKED
                | F_IN_ORDER
                | F_MRG_RXBUF
                | F_INDIRECT_DESC
                | F_EVENT_IDX
                | F_ANY_LAYOUT
                | F_MQ
                | F_MTU
                | F_GUEST_ANNOUNCE
                | F_STATUS
                | F_CTRL_VQ
                | F_CTRL_RX
                | F_CTRL_VLAN
                | F_CTRL_MAC_ADDR
                | F_PROTOCOL_FEATURES
                | F_LOG_ALL
                | offloads
        }
    }
}

/// What of a negotiated feature word shapes a ring.
pub fn ring_features(features: u64) -> RingFeatures {
    RingFeatures {
        event_idx: features & F_EVENT_IDX != 0,
        indirect: features & F_INDIRECT_DESC != 0,
        mergeable: features & F_MRG_RXBUF != 0,
        packed: features & F_RING_PACKED != 0,
        in_order: features & F_IN_ORDER != 0,
        version_1: features & F_VERSION_1 != 0,
        offloads: Offloads::of(features),
    }
}

/// Names of the bits that are set, lowest first; a bit without a name is `BIT_n`.
pub fn feature_names(features: u64) -> Vec<String> {
    (0..64u8)
        .filter(|bit| features >> bit & 1 == 1)
        .map(|bit| match NAMES.binary_search_by_key(&bit, |(number, _)| *number) {
            Ok(at) => NAMES[at].1.to_owned(),
            Err(_) => format!("BIT_{bit}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_level_is_pinned() {
        assert_eq!(offered(Compat::V1, false), 0xd_7cef_8008, "a released level must never change");
        assert_eq!(offered(Compat::V1, true), 0x1c0_000d_7cef_bb8b, "a released level must never change");
    }

    #[test]
    fn names_are_sorted_and_found() {
        assert!(NAMES.is_sorted_by_key(|(bit, _)| *bit));
        assert_eq!(feature_names(F_MTU | F_VERSION_1 | 1 << 42), ["MTU", "VERSION_1", "BIT_42"]);
        assert_eq!(feature_names(u64::MAX).len(), 64);
    }

    #[test]
    fn rings_are_shaped_by_six_bits_and_the_offloads() {
        assert_eq!(ring_features(0), RingFeatures::default());
        let all = ring_features(offered(Compat::V1, true));
        assert!(all.event_idx && all.indirect && all.mergeable && all.version_1 && all.packed && all.in_order);
    }
}
