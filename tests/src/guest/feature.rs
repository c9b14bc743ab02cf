//! Feature bits that a guest of ours may ask for. Virtio 1.2, sections 5.1.3 and 6.

/// The guest may send frames without their checksum (`VIRTIO_NET_F_CSUM`).
pub const CSUM: u64 = 1 << 0;
/// The guest takes frames without their checksum (`VIRTIO_NET_F_GUEST_CSUM`).
pub const GUEST_CSUM: u64 = 1 << 1;
/// The guest takes TCP over IPv4 that is longer than a frame (`VIRTIO_NET_F_GUEST_TSO4`).
pub const GUEST_TSO4: u64 = 1 << 7;
/// The same over IPv6 (`VIRTIO_NET_F_GUEST_TSO6`).
pub const GUEST_TSO6: u64 = 1 << 8;
/// The same with the flag CWR (`VIRTIO_NET_F_GUEST_ECN`).
pub const GUEST_ECN: u64 = 1 << 9;
/// The guest may send TCP over IPv4 that is longer than a frame (`VIRTIO_NET_F_HOST_TSO4`).
pub const HOST_TSO4: u64 = 1 << 11;
/// The same over IPv6 (`VIRTIO_NET_F_HOST_TSO6`).
pub const HOST_TSO6: u64 = 1 << 12;
/// The same with the flag CWR (`VIRTIO_NET_F_HOST_ECN`).
pub const HOST_ECN: u64 = 1 << 13;
/// The guest can use buffers of any number and hold a frame in several (`VIRTIO_NET_F_MRG_RXBUF`).
pub const MRG_RXBUF: u64 = 1 << 15;
/// A control queue; with vhost-user the front-end serves it (`VIRTIO_NET_F_CTRL_VQ`).
pub const CTRL_VQ: u64 = 1 << 17;
/// The driver announces its address after a migration (`VIRTIO_NET_F_GUEST_ANNOUNCE`).
pub const GUEST_ANNOUNCE: u64 = 1 << 21;
/// Several queue pairs (`VIRTIO_NET_F_MQ`).
pub const MQ: u64 = 1 << 22;
/// The back-end logs pages that it writes to (`VHOST_F_LOG_ALL`).
pub const LOG_ALL: u64 = 1 << 26;
/// A header need not have a descriptor of its own (`VIRTIO_F_ANY_LAYOUT`).
pub const ANY_LAYOUT: u64 = 1 << 27;
/// A descriptor may name a table of descriptors (`VIRTIO_F_INDIRECT_DESC`).
pub const INDIRECT_DESC: u64 = 1 << 28;
/// Notifications are asked for by index (`VIRTIO_F_EVENT_IDX`).
pub const EVENT_IDX: u64 = 1 << 29;
/// vhost-user's own: protocol features are negotiated too.
pub const PROTOCOL_FEATURES: u64 = 1 << 30;
/// Virtio 1.x: 12-byte header, little endian (`VIRTIO_F_VERSION_1`).
pub const VERSION_1: u64 = 1 << 32;
/// Packed rings (`VIRTIO_F_RING_PACKED`).
pub const RING_PACKED: u64 = 1 << 34;

/// Buffers are used in the order in which they were made available (`VIRTIO_F_IN_ORDER`).
pub const IN_ORDER: u64 = 1 << 35;
/// The guest takes UDP datagrams over IPv4 in one piece (`VIRTIO_NET_F_GUEST_USO4`).
pub const GUEST_USO4: u64 = 1 << 54;
/// The same over IPv6 (`VIRTIO_NET_F_GUEST_USO6`).
pub const GUEST_USO6: u64 = 1 << 55;
/// The guest may send UDP datagrams in one piece (`VIRTIO_NET_F_HOST_USO`).
pub const HOST_USO: u64 = 1 << 56;

/// What the guest may leave to the device when it sends.
pub const HOST_OFFLOADS: u64 = CSUM | HOST_TSO4 | HOST_TSO6 | HOST_ECN | HOST_USO;
/// What the device may leave to the guest.
pub const GUEST_OFFLOADS: u64 = GUEST_CSUM | GUEST_TSO4 | GUEST_TSO6 | GUEST_ECN | GUEST_USO4 | GUEST_USO6;

/// What a usual Linux guest asks for, as far as a split ring and frames that are complete are concerned.
pub const USUAL: u64 = VERSION_1 | MRG_RXBUF | ANY_LAYOUT | INDIRECT_DESC | EVENT_IDX | MQ | CTRL_VQ | GUEST_ANNOUNCE;

/// vhost-user protocol feature: several queues.
pub const PROTOCOL_MQ: u64 = 1 << 0;
/// vhost-user protocol feature: the log's memory comes as a file descriptor.
pub const PROTOCOL_LOG_SHMFD: u64 = 1 << 1;
/// vhost-user protocol feature: any message may be acknowledged.
pub const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
/// vhost-user protocol feature: the front-end tells the MTU.
pub const PROTOCOL_NET_MTU: u64 = 1 << 4;
/// vhost-user protocol feature: memory regions come and go one by one.
pub const PROTOCOL_CONFIGURE_MEM_SLOTS: u64 = 1 << 15;

/// Length of the virtio-net header with these features: 12 bytes with `num_buffers`, else 10.
pub const fn header_length(features: u64) -> usize {
    if features & (VERSION_1 | MRG_RXBUF) != 0 { 12 } else { 10 }
}
