//! Checksums and segments that are left to a device, or to the guest behind a software link: what a device can do, and the marks
//! on a frame that say what is still to be done (DPDK: *Mbuf Library*, "Meta Information"; *Poll Mode Driver*, "Hardware Offload").

use std::num::NonZeroU16;

use dpdk_sys as sys;
use ringspan_protocol::{OffloadBy, OffloadStatus};

use super::burst::{Burst, Frame, FrameMut, field, set_field};
use super::pool::Pool;
use super::queue::TxQueue;
use crate::BURST;
use crate::offload::{
    DATA_VALID, GSO_ECN, GSO_TCP4, GSO_TCP6, GSO_UDP, Headers, NEEDS_CSUM, Request, Segment, Segmenter, Transport,
};
use crate::ring::NetHeader;

/// Segments of fewer bytes are not left to a device: some have a least size, and take a smaller one for an attack (i40e: 64
/// bytes, and its queue stops).
const LEAST_MSS: u16 = 256;
/// Segments of more bytes are not left to a device: i40e, ice and iavf take 9674 to 9728, of which this leaves room for headers.
const MOST_MSS: u16 = 9216;
/// Buffers that a segment lies in at most: that of the headers, and two of ours, each of which holds a whole frame of the port.
const BUFFERS_OF_A_SEGMENT: u16 = 3;
/// Most bytes of headers up to TCP's own that a mark can describe in each of its three parts.
const MOST_L2: usize = (1 << sys::SHIM_MBUF_L2_LEN_BITS) - 1;
const MOST_L3: usize = (1 << sys::SHIM_MBUF_L3_LEN_BITS) - 1;

/// Drivers that say they do checksums and segments but do them in software, and less well: net_tap cuts by rte_gso, which
/// knows TCP over IPv4 only, although TCP_TSO is for both.
const NOT_BETTER: &[&str] = &["net_tap"];

/// Drivers of virtio devices. Told to look at checksums, they take unfinished frames from the other side and say that all is well but the
/// checksum (RTE_MBUF_F_RX_L4_CKSUM_NONE), which a guest cannot be told. Not told so, they get frames that are finished.
const VIRTIO: &[&str] = &["net_virtio", "net_virtio_user", "net_vhost"];

/// What the transmit side of a device does by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TxAbilities {
    /// Checksums of IPv4 headers. Segments have theirs from whoever cuts them; ethdev wants to be told so where it can be.
    pub ip_checksum: bool,
    /// Checksums of TCP.
    pub tcp_checksum: bool,
    /// Checksums of UDP.
    pub udp_checksum: bool,
    /// Segments of TCP.
    pub tcp_segments: bool,
    /// Most buffers of a frame that goes out as it is; 1 where a frame must lie in one.
    pub buffers: u16,
    /// Most buffers of a frame that the device cuts.
    pub buffers_to_cut: u16,
    /// Whoever is behind the device gets large frames as they are, if he wants to.
    pub hands_on: bool,
    /// There is no wire: frames come to another ring of ours as they are, with their marks.
    pub link: bool,
}

/// Which offloads a port uses: what ethdev is told, and what comes of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Offloads {
    /// RTE_ETH_TX_OFFLOAD_*.
    pub tx_flags: u64,
    /// RTE_ETH_RX_OFFLOAD_*.
    pub rx_flags: u64,
    /// Whether guests are offered any.
    pub wanted: bool,
    pub tx: TxAbilities,
    /// Received frames may have marks.
    pub marks: bool,
}

impl Offloads {
    /// Chooses for a driver that can do this much.
    pub fn choose(driver: &str, info: &sys::rte_eth_dev_info, wanted: bool) -> Self {
        // The other end of a link may have offloads, whatever this one has.
        let link = driver == "net_ring";
        if !wanted {
            return Self { marks: link, ..Self::default() };
        }
        let mut useful_tx = sys::SHIM_TX_OFFLOAD_MULTI_SEGS;
        let mut useful_rx = 0;
        if !NOT_BETTER.contains(&driver) {
            useful_tx |= sys::SHIM_TX_OFFLOAD_IPV4_CKSUM | sys::SHIM_TX_OFFLOAD_TCP_CKSUM;
            useful_tx |= sys::SHIM_TX_OFFLOAD_UDP_CKSUM | sys::SHIM_TX_OFFLOAD_TCP_TSO;
            if !VIRTIO.contains(&driver) {
                useful_rx |= sys::SHIM_RX_OFFLOAD_TCP_CKSUM | sys::SHIM_RX_OFFLOAD_UDP_CKSUM;
            }
        }
        let tx_flags = useful_tx & info.tx_offload_capa;
        let rx_flags = useful_rx & info.rx_offload_capa;
        let has = |flags: u64| tx_flags & flags == flags;
        let many = sys::SHIM_TX_OFFLOAD_MULTI_SEGS;
        let most = |limit: u16| match (has(many), limit) {
            (false, _) => 1,
            (true, 0) => u16::MAX,
            (true, limit) => limit,
        };
        let tx = TxAbilities {
            ip_checksum: has(sys::SHIM_TX_OFFLOAD_IPV4_CKSUM),
            tcp_checksum: has(sys::SHIM_TX_OFFLOAD_TCP_CKSUM),
            udp_checksum: has(sys::SHIM_TX_OFFLOAD_UDP_CKSUM),
            tcp_segments: has(sys::SHIM_TX_OFFLOAD_TCP_TSO | sys::SHIM_TX_OFFLOAD_TCP_CKSUM | many),
            buffers: most(info.tx_desc_lim.nb_mtu_seg_max),
            buffers_to_cut: most(info.tx_desc_lim.nb_seg_max),
            hands_on: VIRTIO.contains(&driver),
            link,
        };
        Self { tx_flags, rx_flags, wanted, tx, marks: link || rx_flags != 0 }
    }

    /// As people see it.
    pub fn status(&self) -> OffloadStatus {
        let by = |device: bool| match (self.wanted, self.tx.link) {
            (false, _) => OffloadBy::Nobody,
            (true, true) => OffloadBy::Receiver,
            (true, false) if device => OffloadBy::Device,
            (true, false) => OffloadBy::Software,
        };
        OffloadStatus {
            tx_checksum: by(self.tx.tcp_checksum && self.tx.udp_checksum),
            tx_tcp_segments: by(self.tx.tcp_segments),
            tx_udp_segments: by(false),
            rx_checksum: match (self.wanted, self.tx.link) {
                (true, true) => OffloadBy::Receiver,
                (true, false) if self.rx_flags != 0 => OffloadBy::Device,
                _ => OffloadBy::Nobody,
            },
        }
    }
}

impl TxAbilities {
    /// Whether this request can be left to whom the frame is sent to. `len` is the frame's length in bytes, in `buffers` of
    /// them.
    pub fn does(&self, request: &Request, len: usize, buffers: usize) -> bool {
        // What a device makes of extension headers is its own affair, and it knows of the IP header's destination alone.
        let is_plain = |headers: &Headers| !headers.extensions && !headers.routed;
        let fits = |headers: &Headers| headers.l2_len <= MOST_L2 && headers.l3_len <= MOST_L3;
        match request {
            Request::Checksum(checksum) => checksum.headers.is_some_and(|headers| {
                let able = match headers.transport {
                    Transport::Tcp => self.tcp_checksum,
                    Transport::Udp => self.udp_checksum,
                };
                let device = able && buffers <= self.buffers.into() && is_plain(&headers);
                fits(&headers) && (self.link || device)
            }),
            Request::Segment(segment) => {
                let able = match segment.headers.transport {
                    Transport::Tcp => self.tcp_segments,
                    // ethdev's UDP_TSO is about fragments of IP, which is something else (RTE_MBUF_F_TX_UDP_SEG).
                    Transport::Udp => false,
                };
                let mss = (LEAST_MSS..=MOST_MSS).contains(&segment.mss)
                    && len > segment.header_len() + usize::from(segment.mss);
                let few = buffers == 1 || buffers <= self.buffers_to_cut.into() && self.buffers >= BUFFERS_OF_A_SEGMENT;
                // With CWR set, only some devices clear it behind the first segment, and none says so.
                let device = able && few && is_plain(&segment.headers) && !segment.ecn;
                let told = !(self.link || self.hands_on) || segment.tells_its_length(len);
                fits(&segment.headers) && mss && told && (self.link || device)
            }
        }
    }
}

/// Flags that say of a frame on a link what is still to be done to it.
const ASKED: u64 = sys::SHIM_MBUF_TX_L4_MASK | sys::SHIM_MBUF_TX_TCP_SEG | sys::SHIM_MBUF_TX_UDP_SEG;

impl FrameMut<'_> {
    /// Leaves `request` to whom the frame is sent to: marks it, and makes its headers what a device wants them to be.
    pub fn mark(&mut self, request: &Request, abilities: &TxAbilities) {
        let (headers, l4_len, mss) = match request {
            Request::Checksum(checksum) => (checksum.headers, 0, 0),
            Request::Segment(Segment { headers, l4_len, mss, .. }) => (Some(*headers), *l4_len, *mss),
        };
        let Some(headers) = headers else { return };
        let mut flags = if headers.ipv6 { sys::SHIM_MBUF_TX_IPV6 } else { sys::SHIM_MBUF_TX_IPV4 };
        flags |= match headers.transport {
            Transport::Tcp => sys::SHIM_MBUF_TX_TCP_CKSUM,
            Transport::Udp => sys::SHIM_MBUF_TX_UDP_CKSUM,
        };
        if mss > 0 {
            flags |= match headers.transport {
                Transport::Tcp => sys::SHIM_MBUF_TX_TCP_SEG,
                Transport::Udp => sys::SHIM_MBUF_TX_UDP_SEG,
            };
            flags |= if abilities.ip_checksum && !headers.ipv6 { sys::SHIM_MBUF_TX_IP_CKSUM } else { 0 };
        }
        if !abilities.link {
            request.prime(self.bytes_mut(), abilities.ip_checksum);
        }
        let lengths = (headers.l2_len as u64) << sys::SHIM_MBUF_L2_LEN_OFS
            | (headers.l3_len as u64) << sys::SHIM_MBUF_L3_LEN_OFS
            | (l4_len as u64) << sys::SHIM_MBUF_L4_LEN_OFS
            | u64::from(mss) << sys::SHIM_MBUF_TSO_SEGSZ_OFS;
        let head = self.head();
        // SAFETY: the fields of a valid frame that is ours.
        unsafe {
            set_field(head, sys::SHIM_MBUF_OL_FLAGS, flags);
            set_field(head, sys::SHIM_MBUF_TX_OFFLOAD, lengths);
        }
    }

    /// Takes the marks away and says what they asked for. Nothing in the frame is put back.
    pub fn unmark(&mut self) -> NetHeader {
        let (header, _) = self.as_frame().marks();
        let head = self.head();
        // SAFETY: the fields of a valid frame that is ours.
        unsafe {
            // Where its memory is from stays known.
            let flags: u64 = field(head, sys::SHIM_MBUF_OL_FLAGS);
            set_field(head, sys::SHIM_MBUF_OL_FLAGS, flags & sys::SHIM_MBUF_EXTERNAL);
            set_field(head, sys::SHIM_MBUF_TX_OFFLOAD, 0u64);
        }
        header
    }

    /// Marks it as `other` is marked.
    pub(super) fn keep_marks(&mut self, other: Frame<'_>) {
        let head = self.head();
        // SAFETY: the fields of valid frames, of which this one is ours.
        unsafe {
            set_field(head, sys::SHIM_MBUF_OL_FLAGS, other.flags() & !sys::SHIM_MBUF_EXTERNAL);
            set_field(head, sys::SHIM_MBUF_TX_OFFLOAD, field::<u64>(other.head(), sys::SHIM_MBUF_TX_OFFLOAD));
        }
    }

    /// The first buffer's part of the frame, to be changed.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        let len = self.as_frame().data().len();
        &mut self.buffer()[..len]
    }
}

impl Frame<'_> {
    #[inline]
    fn flags(&self) -> u64 {
        // SAFETY: a field of a frame that is valid while its burst is borrowed.
        unsafe { field(self.head(), sys::SHIM_MBUF_OL_FLAGS) }
    }

    /// Whether any of it lies in memory that is only lent: a guest's.
    #[inline]
    pub(super) fn is_lent(&self) -> bool {
        self.flags() & sys::SHIM_MBUF_EXTERNAL != 0 || self.segment_count() > 1 && self.any_lent()
    }

    #[cold]
    fn any_lent(&self) -> bool {
        self.buffers().any(|part| part.flags() & sys::SHIM_MBUF_EXTERNAL != 0)
    }

    /// What a received frame's marks say, as a virtio-net header: a checksum that the device found to be good, or what is
    /// still to be done to a frame that came over a link. Also whether that is over IPv6.
    pub fn marks(&self) -> (NetHeader, bool) {
        let flags = self.flags();
        let transport = flags & sys::SHIM_MBUF_TX_L4_MASK;
        if flags & ASKED == 0 {
            let good = flags & sys::SHIM_MBUF_RX_L4_CKSUM_MASK == sys::SHIM_MBUF_RX_L4_CKSUM_GOOD
                // igb and ixgbe call good what they did not look at: fragments, ICMP, ARP.
                && Headers::parse(self.data()).is_some_and(|headers| !headers.fragment);
            return (NetHeader { flags: if good { DATA_VALID } else { 0 }, ..NetHeader::default() }, false);
        }
        // SAFETY: as above; it was written with the flags.
        let lengths: u64 = unsafe { field(self.head(), sys::SHIM_MBUF_TX_OFFLOAD) };
        let part = |from: u32, bits: u32| (lengths >> from & ((1 << bits) - 1)) as u16;
        let start = part(sys::SHIM_MBUF_L2_LEN_OFS, sys::SHIM_MBUF_L2_LEN_BITS)
            + part(sys::SHIM_MBUF_L3_LEN_OFS, sys::SHIM_MBUF_L3_LEN_BITS);
        let ipv6 = flags & sys::SHIM_MBUF_TX_IPV6 != 0;
        let tcp = transport == sys::SHIM_MBUF_TX_TCP_CKSUM;
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let mut header = NetHeader {
            flags: NEEDS_CSUM,
            csum_start: start,
            csum_offset: transport.checksum_offset() as u16,
            ..NetHeader::default()
        };
        if flags & (sys::SHIM_MBUF_TX_TCP_SEG | sys::SHIM_MBUF_TX_UDP_SEG) != 0 {
            header.gso_size = self.segment_size().map_or(0, NonZeroU16::get);
            header.hdr_len = start + part(sys::SHIM_MBUF_L4_LEN_OFS, sys::SHIM_MBUF_L4_LEN_BITS);
            let cwr = tcp && self.data().get(usize::from(start) + 13).is_some_and(|flags| flags & 0x80 != 0);
            header.gso_type = match (tcp, ipv6) {
                (false, _) => GSO_UDP,
                (true, true) => GSO_TCP6,
                (true, false) => GSO_TCP4,
            } | if cwr { GSO_ECN } else { 0 };
        }
        (header, ipv6)
    }

    /// Bytes of payload in each segment that is still to be made of it.
    #[inline]
    pub fn segment_size(&self) -> Option<NonZeroU16> {
        if self.flags() & (sys::SHIM_MBUF_TX_TCP_SEG | sys::SHIM_MBUF_TX_UDP_SEG) == 0 {
            return None;
        }
        // SAFETY: a field of a frame that is valid while its burst is borrowed.
        let lengths: u64 = unsafe { field(self.head(), sys::SHIM_MBUF_TX_OFFLOAD) };
        NonZeroU16::new((lengths >> sys::SHIM_MBUF_TSO_SEGSZ_OFS) as u16)
    }

    /// Copies what lies `from` bytes behind the frame's first byte and further. False when there is less than `to` has room for.
    pub fn copy_out(&self, mut from: usize, mut to: &mut [u8]) -> bool {
        for segment in self.segments() {
            if from >= segment.len() {
                from -= segment.len();
                continue;
            }
            let part = (segment.len() - from).min(to.len());
            to[..part].copy_from_slice(&segment[from..from + part]);
            (from, to) = (0, &mut to[part..]);
            if to.is_empty() {
                return true;
            }
        }
        to.is_empty()
    }
}

impl Burst {
    /// Whether any frame has marks of something that is still to be done to it; with `checked`, or that its checksum is good.
    #[inline]
    pub fn is_marked(&self, checked: bool) -> bool {
        let marks = if checked { ASKED | sys::SHIM_MBUF_RX_L4_CKSUM_GOOD } else { ASKED };
        self.iter().fold(0, |all, frame| all | frame.flags()) & marks != 0
    }
}

impl Burst {
    /// Appends the next segments of `frame` as `cut` makes them, in buffers of `pool`, as many as there is room for. False when there
    /// was no buffer, or none that holds the longest of them.
    pub fn cut(&mut self, frame: Frame<'_>, cut: &mut Segmenter, pool: &Pool) -> bool {
        if cut.next().is_none_or(|next| next.header_len + next.len > usize::from(pool.room())) {
            return false;
        }
        let mut count = cut.left().min(self.room());
        let mut place = self.len();
        while !self.allocate(pool, count) {
            count /= 2;
            if count == 0 {
                return false;
            }
        }
        while place < self.len() {
            let Some(next) = cut.next() else { break };
            let mut segment = self.frame_mut(place);
            segment.set_len(next.header_len + next.len);
            let bytes = segment.bytes_mut();
            let complete = frame.copy_out(next.from, &mut bytes[next.header_len..]);
            debug_assert!(complete, "a frame is as long as it says");
            cut.finish(bytes);
            place += 1;
        }
        self.truncate(place);
        true
    }
}

impl TxQueue {
    /// What the device does by itself.
    #[inline]
    pub fn abilities(&self) -> &TxAbilities {
        &self.abilities
    }

    /// Has the driver look at marked frames before they are sent (`rte_eth_tx_prepare`): those whose bit is set. Returns the bits
    /// of those that it will not take.
    pub fn prepare(&mut self, burst: &mut Burst, which: u64) -> u64 {
        if which == 0 || self.abilities.link {
            return 0;
        }
        let mut refused = 0;
        let (mut frames, mut places) = ([std::ptr::null_mut(); BURST], [0; BURST]);
        let mut count = 0;
        for (place, frame) in burst.filled_places().iter().enumerate() {
            if which >> place & 1 == 1 {
                (frames[count], places[count]) = (*frame, place);
                count += 1;
            }
        }
        let mut done = 0;
        while done < count {
            let rest = &mut frames[done..count];
            // SAFETY: the queue exists and is used here alone (`&mut self`); the frames are valid and ours.
            let good =
                unsafe { sys::shim_tx_prepare(self.port.id(), self.index, rest.as_mut_ptr(), rest.len() as u16) };
            done += usize::from(good);
            if done < count {
                refused |= 1 << places[done];
                done += 1;
            }
        }
        refused
    }
}

#[cfg(test)]
mod tests {
    use ringspan_testkit::packet::Packet;

    use super::super::Handmade;
    use super::*;

    fn info(capabilities: u64, most: u16, most_in_mtu: u16) -> sys::rte_eth_dev_info {
        // SAFETY: a plain C structure, for which all zeroes are valid.
        let mut info: sys::rte_eth_dev_info = unsafe { std::mem::zeroed() };
        info.tx_offload_capa = capabilities;
        (info.tx_desc_lim.nb_seg_max, info.tx_desc_lim.nb_mtu_seg_max) = (most, most_in_mtu);
        info
    }

    fn abilities(driver: &str, most: u16, most_in_mtu: u16) -> TxAbilities {
        Offloads::choose(driver, &info(u64::MAX, most, most_in_mtu), true).tx
    }

    /// What a guest asks for this packet, and the length of its frame.
    fn segments_of(packet: &Packet, mss: usize) -> (Request, usize) {
        let frame = packet.frame();
        (request(packet.segment_header(mss), &frame), frame.len())
    }

    fn request(header: ringspan_testkit::guest::NetHeader, frame: &[u8]) -> Request {
        let mut bytes = [0; NetHeader::LEN];
        bytes[..10].copy_from_slice(&header.bytes());
        let header = NetHeader::parse(bytes);
        Request::parse(&header, frame, frame.len(), crate::offload::Offloads::ALL).unwrap().unwrap()
    }

    #[test]
    fn a_frame_in_more_buffers_than_the_device_takes_is_not_left_to_it() {
        let (large, len) = segments_of(&Packet { ecn: false, ..Packet::new(60000) }, 1448);
        assert!(abilities("net_ixgbe", 40, 40).does(&large, len, 40));
        assert!(!abilities("net_ixgbe", 40, 40).does(&large, len, 41));
        assert!(abilities("net_x", 0, 0).does(&large, len, 65), "0: no limit is known");
        assert!(!abilities("net_x", 255, 2).does(&large, len, 33), "a segment may lie in three buffers");
        assert!(abilities("net_x", 255, 2).does(&large, len, 1));
        let packet = Packet::new(1000);
        let (checksum, len) = (request(packet.checksum_header(), &packet.frame()), packet.frame().len());
        assert!(
            abilities("net_x", 255, 2).does(&checksum, len, 2) && !abilities("net_x", 255, 2).does(&checksum, len, 3)
        );
        let single = Offloads::choose("net_x", &info(!sys::SHIM_TX_OFFLOAD_MULTI_SEGS, 0, 0), true).tx;
        assert!(single.does(&checksum, len, 1) && !single.does(&checksum, len, 2));
    }

    #[test]
    fn a_device_gets_no_source_route_and_no_congestion() {
        let able = abilities("net_ice", 0, 0);
        let packet = Packet { options: 2, ecn: false, ..Packet::new(4000) };
        let frame = packet.frame();
        let does = |frame: &[u8], header| able.does(&request(header, frame), frame.len(), 1);
        assert!(does(&frame, packet.checksum_header()) && does(&frame, packet.segment_header(1000)));
        let mut routed = frame.clone();
        routed[34..42].copy_from_slice(&[1, 131, 7, 4, 198, 51, 100, 8]);
        assert!(!does(&routed, packet.checksum_header()) && !does(&routed, packet.segment_header(1000)));
        // CWR, of which the header says nothing.
        let mut congested = frame;
        congested[packet.l4_start() + 13] |= 0x80;
        assert!(!does(&congested, packet.segment_header(1000)) && does(&congested, packet.checksum_header()));
    }

    #[test]
    fn who_hands_large_frames_on_gets_those_that_tell_their_length() {
        let packet = Packet { ecn: false, ..Packet::new(60000) };
        let mut silent = packet.frame();
        silent[16..18].fill(0);
        let silent = request(packet.segment_header(1448), &silent);
        let (honest, len) = segments_of(&packet, 1448);
        for driver in ["net_virtio", "net_virtio_user", "net_vhost", "net_ring"] {
            assert!(abilities(driver, 0, 0).does(&honest, len, 30), "{driver}");
            assert!(!abilities(driver, 0, 0).does(&silent, len, 30), "{driver}");
        }
        assert!(abilities("net_ice", 0, 0).does(&silent, len, 30), "a device writes the lengths itself");
    }

    /// The virtio-net header's flags of a frame that a device received and calls good.
    fn flags_of_good(frame: &[u8]) -> u8 {
        let good = Handmade::new([frame], sys::SHIM_MBUF_RX_L4_CKSUM_GOOD);
        good.frame(0).marks().0.flags
    }

    #[test]
    fn a_frame_in_lent_memory_is_known_as_such_also_when_its_marks_are_gone() {
        let mut frames = Handmade::new([&[0u8; 64][..]], sys::SHIM_MBUF_EXTERNAL | sys::SHIM_MBUF_TX_TCP_CKSUM);
        assert!(frames.frame(0).is_lent() && frames.is_marked(false));
        frames.frame_mut(0).unmark();
        assert!(frames.frame(0).is_lent() && !frames.is_marked(false));
        assert!(!Handmade::new([&[0u8; 64][..]], 0).frame(0).is_lent());
    }

    #[test]
    fn a_checksum_is_valid_only_where_there_is_one_that_a_device_can_have_seen() {
        let tcp = Packet::new(100).frame();
        let with = |at: usize, bytes: &[u8]| {
            let mut frame = tcp.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        assert_eq!(flags_of_good(&tcp), DATA_VALID);
        assert_eq!(flags_of_good(&Packet { ipv6: true, udp: true, tags: 1, ..Packet::new(9) }.frame()), DATA_VALID);
        // igb and ixgbe say it of these, too.
        assert_eq!(flags_of_good(&with(20, &[0x20, 0])), 0, "the first fragment");
        assert_eq!(flags_of_good(&with(20, &[0, 100])), 0, "the last fragment");
        assert_eq!(flags_of_good(&with(23, &[1])), 0, "ICMP");
        assert_eq!(flags_of_good(&with(12, &[8, 6])), 0, "ARP");
    }
}
