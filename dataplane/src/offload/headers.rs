//! Where the headers of a frame are.

/// What follows the IP header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Transport {
    /// Where its checksum is, in bytes from its first.
    pub const fn checksum_offset(self) -> usize {
        match self {
            Self::Tcp => 16,
            Self::Udp => 6,
        }
    }

    /// Its number in IP headers.
    pub const fn protocol(self) -> u8 {
        match self {
            Self::Tcp => TCP,
            Self::Udp => UDP,
        }
    }
}

const TCP: u8 = 6;
const UDP: u8 = 17;

/// EtherTypes of VLAN tags: 802.1Q and 802.1ad.
const VLAN: [u16; 2] = [0x8100, 0x88a8];
/// VLAN tags that are passed over at most.
const MOST_TAGS: usize = 2;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;

const END_OF_OPTIONS: u8 = 0;
const NO_OPERATION: u8 = 1;
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;

const IPV6_LEN: usize = 40;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// IPv6 extension headers that are passed over at most.
const MOST_EXTENSIONS: usize = 8;

/// The headers of an IP packet in an Ethernet frame, up to and without the TCP or UDP header. Both IP headers have their
/// fixed parts inside the frame, and the transport header begins inside or at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Bytes of Ethernet header and VLAN tags: 14, 18 or 22.
    pub l2_len: usize,
    /// Bytes of IP header, with options or extension headers.
    pub l3_len: usize,
    /// IPv6, or else IPv4.
    pub ipv6: bool,
    /// What follows.
    pub transport: Transport,
    /// There are IPv6 extension headers.
    pub extensions: bool,
    /// There is an IPv6 routing header or an IPv4 source route with hops to go: the destination in the IP header is not the last
    /// one, which is what the checksum is about (RFC 8200 section 8.1; RFC 791 section 3.1).
    pub routed: bool,
    /// A fragment of a packet: what follows is not all, or not the beginning.
    pub fragment: bool,
}

impl Headers {
    /// Finds the headers of `frame`, of which the beginning is enough. `None` when it is no TCP or UDP over IP.
    pub fn parse(frame: &[u8]) -> Option<Self> {
        let mut l2_len = 14;
        let mut ethertype = number(frame, 12)?;
        for _ in 0..MOST_TAGS {
            if VLAN.contains(&ethertype) {
                ethertype = number(frame, l2_len + 2)?;
                l2_len += 4;
            }
        }
        let packet = frame.get(l2_len..)?;
        match ethertype {
            IPV4 => Self::parse_ipv4(packet, l2_len),
            IPV6 => Self::parse_ipv6(packet, l2_len),
            _ => None,
        }
    }

    fn parse_ipv4(packet: &[u8], l2_len: usize) -> Option<Self> {
        let header = packet.first_chunk::<20>()?;
        let l3_len = usize::from(header[0] & 0xf) * 4;
        if header[0] >> 4 != 4 || l3_len < 20 || l3_len > packet.len() {
            return None;
        }
        // All of flags and offset but "do not fragment" and the reserved bit.
        let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
        let transport = transport(header[9])?;
        let routed = has_source_route(&packet[20..l3_len]);
        Some(Self { l2_len, l3_len, ipv6: false, transport, extensions: false, routed, fragment })
    }

    fn parse_ipv6(packet: &[u8], l2_len: usize) -> Option<Self> {
        let header = packet.first_chunk::<IPV6_LEN>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let (mut l3_len, mut next) = (IPV6_LEN, header[6]);
        let (mut routed, mut fragment) = (false, false);
        for _ in 0..=MOST_EXTENSIONS {
            if let Some(transport) = transport(next) {
                let extensions = l3_len > IPV6_LEN;
                return Some(Self { l2_len, l3_len, ipv6: true, transport, extensions, routed, fragment });
            }
            let extension = packet.get(l3_len..)?;
            let (start, length) = (extension.first_chunk::<4>()?, usize::from(extension[1]));
            l3_len += match next {
                HOP_BY_HOP | DESTINATION_OPTIONS => 8 * (length + 1),
                ROUTING => {
                    routed |= start[3] != 0;
                    8 * (length + 1)
                }
                FRAGMENT => {
                    fragment = true;
                    8
                }
                AUTHENTICATION => 4 * (length + 2),
                _ => return None,
            };
            if l3_len > packet.len() {
                return None;
            }
            next = start[0];
        }
        None
    }

    /// Where the transport header begins.
    pub const fn l4_start(&self) -> usize {
        self.l2_len + self.l3_len
    }

    /// The sum of source, destination and protocol as TCP's and UDP's pseudo headers have them, without the length.
    pub(super) fn pseudo_sum(&self, frame: &[u8]) -> super::Sum {
        let addresses = if self.ipv6 { 8..IPV6_LEN } else { 12..20 };
        let packet = &frame[self.l2_len..];
        super::Sum::new().over(&packet[addresses]).add_number(self.transport.protocol().into())
    }
}

/// Whether IPv4 options (RFC 791 section 3.1) have a source route with hops to go. Where they make no sense: it may be so.
fn has_source_route(mut options: &[u8]) -> bool {
    loop {
        match *options {
            [] | [END_OF_OPTIONS, ..] => return false,
            [NO_OPERATION, ref rest @ ..] => options = rest,
            [option, length, ref data @ ..] if (2..=options.len()).contains(&length.into()) => {
                // The pointer counts from the option's first byte, from 1 on.
                if [LOOSE_ROUTE, STRICT_ROUTE].contains(&option) && data.first().is_none_or(|next| *next <= length) {
                    return true;
                }
                options = &options[length.into()..];
            }
            _ => return true,
        }
    }
}

fn transport(protocol: u8) -> Option<Transport> {
    match protocol {
        TCP => Some(Transport::Tcp),
        UDP => Some(Transport::Udp),
        _ => None,
    }
}

/// The number at `at`, in network order.
fn number(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes(*bytes.get(at..)?.first_chunk()?))
}
