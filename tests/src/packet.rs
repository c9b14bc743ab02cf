//! TCP and UDP packets in Ethernet frames, as a guest hands them over that leaves checksums and segments to its device, and
//! whether what came of them is right. Sums are made the slow and plain way, by nobody's code but this.

use anyhow::{Result, ensure};

use crate::guest::NetHeader;
use crate::guest::net_header::{GSO_ECN, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, NEEDS_CSUM};

const FIN_AND_PSH: u8 = 0x09;
const ACK: u8 = 0x10;
const CWR: u8 = 0x80;
/// The first sequence number, which soon wraps around.
const SEQUENCE: u32 = 0xffff_f000;
/// The identification of the IPv4 packet.
const IDENTIFICATION: u16 = 0xfff0;

/// The sum of RFC 1071, not complemented.
pub fn sum(bytes: &[u8]) -> u16 {
    let mut sum = 0u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |byte| u32::from(*byte));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// A packet. Everything in it follows from these.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packet {
    /// VLAN tags, 2 at most.
    pub tags: usize,
    /// IPv6, or else IPv4.
    pub ipv6: bool,
    /// UDP, or else TCP.
    pub udp: bool,
    /// 4-byte options of IPv4, or 8-byte destination options headers of IPv6.
    pub options: usize,
    /// 4-byte options of TCP, 10 at most.
    pub tcp_options: usize,
    /// TCP's flag CWR is set.
    pub ecn: bool,
    /// TCP's flags FIN and PSH are set.
    pub ends: bool,
    /// Bytes of payload.
    pub payload: usize,
    /// Makes packets differ.
    pub seed: u8,
}

impl Packet {
    /// TCP over IPv4 without any options.
    pub fn new(payload: usize) -> Self {
        Self { tags: 0, ipv6: false, udp: false, options: 0, tcp_options: 0, ecn: true, ends: true, payload, seed: 1 }
    }

    /// Bytes before the TCP or UDP header.
    pub fn l4_start(&self) -> usize {
        self.l3_start() + if self.ipv6 { 40 + 8 * self.options } else { 20 + 4 * self.options }
    }

    fn l3_start(&self) -> usize {
        14 + 4 * self.tags
    }

    /// Bytes before the payload.
    pub fn header_len(&self) -> usize {
        self.l4_start() + if self.udp { 8 } else { 20 + 4 * self.tcp_options }
    }

    /// Where the checksum of TCP or UDP is.
    pub fn checksum_place(&self) -> usize {
        self.l4_start() + if self.udp { 6 } else { 16 }
    }

    fn protocol(&self) -> u8 {
        if self.udp { 17 } else { 6 }
    }

    fn cwr(&self) -> u8 {
        if self.ecn { CWR } else { 0 }
    }

    fn fin_and_psh(&self) -> u8 {
        if self.ends { FIN_AND_PSH } else { 0 }
    }

    /// The frame as a guest's driver hands it over: the pseudo header's sum where the checksum goes.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = vec![0x02, 0, 0, 0, 0, 0x77, 0x02, 0, 0, 0, 0, 0x66];
        for tag in 0..self.tags {
            frame.extend([0x81, 0, 0, tag as u8 + 1]);
        }
        frame.extend(if self.ipv6 { [0x86, 0xdd] } else { [8, 0] });
        let transport = self.header_len() - self.l4_start() + self.payload;
        let mut pseudo = Vec::new();
        if self.ipv6 {
            let next = if self.options > 0 { 60 } else { self.protocol() };
            frame.extend([0x60, 0, 0, 0]);
            frame.extend(((transport + 8 * self.options) as u16).to_be_bytes());
            frame.extend([next, 64]);
            let mut addresses = [0; 32];
            addresses[..4].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
            addresses[16..20].copy_from_slice(&[0x20, 1, 0x0d, 0xb8]);
            (addresses[15], addresses[31]) = (self.seed, 2);
            frame.extend(addresses);
            for option in 1..=self.options {
                let next = if option < self.options { 60 } else { self.protocol() };
                frame.extend([next, 0, 1, 4, 0, 0, 0, 0]);
            }
            pseudo.extend(addresses);
        } else {
            let start = frame.len();
            let total = 20 + 4 * self.options + transport;
            frame.extend([0x45 + self.options as u8, 0]);
            frame.extend((total as u16).to_be_bytes());
            frame.extend(IDENTIFICATION.to_be_bytes());
            frame.extend([0x40, 0, 64, self.protocol(), 0, 0, 192, 0, 2, self.seed, 198, 51, 100, 7]);
            frame.resize(frame.len() + 4 * self.options, 1);
            let checksum = !sum(&frame[start..]);
            frame[start + 10..start + 12].copy_from_slice(&checksum.to_be_bytes());
            pseudo.extend(&frame[start + 12..start + 20]);
        }
        pseudo.extend([0, self.protocol()]);
        pseudo.extend((transport as u16).to_be_bytes());
        let pseudo = sum(&pseudo).to_be_bytes();
        frame.extend([0x30, 0x39, 0xd4, 0x31]);
        if self.udp {
            frame.extend((transport as u16).to_be_bytes());
            frame.extend(pseudo);
        } else {
            frame.extend(SEQUENCE.to_be_bytes());
            frame.extend([1, 2, 3, 4, (5 + self.tcp_options as u8) << 4, self.cwr() | ACK | self.fin_and_psh(), 1, 0]);
            frame.extend(pseudo);
            frame.extend([0, 0]);
            frame.resize(frame.len() + 4 * self.tcp_options, 1);
        }
        frame.extend((0..self.payload).map(|i| (i as u8).wrapping_mul(31) ^ self.seed ^ (i >> 8) as u8));
        frame
    }

    /// The header that leaves its checksum to the device.
    pub fn checksum_header(&self) -> NetHeader {
        NetHeader::checksum(self.l4_start(), self.checksum_place() - self.l4_start())
    }

    /// The header that leaves segments of `mss` bytes to the device.
    pub fn segment_header(&self, mss: usize) -> NetHeader {
        let ecn = if self.ecn { GSO_ECN } else { 0 };
        let gso_type = match (self.udp, self.ipv6) {
            (true, _) => GSO_UDP_L4,
            (false, true) => GSO_TCPV6 | ecn,
            (false, false) => GSO_TCPV4 | ecn,
        };
        let hdr_len = self.header_len() as u16;
        NetHeader { flags: NEEDS_CSUM, gso_type, hdr_len, gso_size: mss as u16, ..self.checksum_header() }
    }

    /// Checks the lengths and both checksums of a frame that was made of this one.
    pub fn check(&self, frame: &[u8]) -> Result<()> {
        ensure!(frame.len() >= self.header_len(), "a frame of {} bytes", frame.len());
        let (packet, transport) = (&frame[self.l3_start()..], &frame[self.l4_start()..]);
        let mut pseudo = if self.ipv6 {
            let told = usize::from(u16::from_be_bytes([packet[4], packet[5]]));
            ensure!(told == packet.len() - 40, "IPv6 says {told} of {} bytes", packet.len() - 40);
            packet[8..40].to_vec()
        } else {
            let told = usize::from(u16::from_be_bytes([packet[2], packet[3]]));
            ensure!(told == packet.len(), "IPv4 says {told} of {} bytes", packet.len());
            ensure!(sum(&packet[..packet.len() - transport.len()]) == 0xffff, "the IPv4 header's checksum is wrong");
            packet[12..20].to_vec()
        };
        pseudo.extend([0, self.protocol()]);
        pseudo.extend((transport.len() as u16).to_be_bytes());
        pseudo.extend(transport);
        ensure!(sum(&pseudo) == 0xffff, "the checksum of TCP or UDP is wrong");
        if self.udp {
            let told = usize::from(u16::from_be_bytes([transport[4], transport[5]]));
            ensure!(told == transport.len(), "UDP says {told} of {} bytes", transport.len());
            ensure!(transport[6..8] != [0, 0], "a UDP checksum that says there is none");
        }
        Ok(())
    }

    /// Checks that these are all the segments of `mss` bytes that this packet has, in order and each right.
    pub fn check_segments<F: AsRef<[u8]>>(&self, mss: usize, segments: &[F]) -> Result<()> {
        let (whole, start, header_len) = (self.frame(), self.l4_start(), self.header_len());
        let wanted = self.payload.div_ceil(mss);
        ensure!(segments.len() == wanted, "{} segments where {wanted} belong", segments.len());
        let mut payload: Vec<u8> = Vec::new();
        for (number, segment) in segments.iter().enumerate() {
            let (segment, last) = (segment.as_ref(), number + 1 == wanted);
            self.check(segment)?;
            let part = segment.len() - header_len;
            ensure!(part == mss || last && part <= mss, "segment {number} of {part} bytes");
            ensure!(segment[..self.l3_start()] == whole[..self.l3_start()], "segment {number}: Ethernet header");
            if !self.ipv6 {
                let at = self.l3_start() + 4;
                let id = u16::from_be_bytes([segment[at], segment[at + 1]]);
                ensure!(id == IDENTIFICATION.wrapping_add(number as u16), "segment {number}: identification {id}");
            }
            if !self.udp {
                let sequence = u32::from_be_bytes(segment[start + 4..start + 8].try_into()?);
                let belongs = SEQUENCE.wrapping_add(payload.len() as u32);
                ensure!(sequence == belongs, "segment {number}: sequence {sequence:#x}, not {belongs:#x}");
                let belong = ACK | if number == 0 { self.cwr() } else { 0 } | if last { self.fin_and_psh() } else { 0 };
                ensure!(segment[start + 13] == belong, "segment {number}: flags {:#x}", segment[start + 13]);
            }
            payload.extend(&segment[header_len..]);
        }
        ensure!(payload == whole[header_len..], "the payload is not what was sent");
        Ok(())
    }
}
