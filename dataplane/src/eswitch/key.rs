//! What a frame looks like to a rule: its header fields, laid out flat in words so that a rule is a mask and a value over them.
//!
//! The fields mean what Open vSwitch's do (`lib/flow.c`, `miniflow_extract`): a header that does not fit its frame counts as not there, and its
//! fields as 0. Frames come from guests and are hostile: each header is looked at only within the bytes that are there.

use ringspan_protocol::{Field, FieldMatch, Match, TunnelKind};

/// Words of a key.
pub const WORDS: usize = 16;

const VLAN: [u16; 2] = [0x8100, 0x88a8];
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const ARP: [u16; 2] = [0x0806, 0x8035];
/// The type of a frame that has a length in its place (OVS: `FLOW_DL_TYPE_NONE`).
const NO_TYPE: u16 = 0x05ff;
/// Presence of a tag in a tag control field, where the wire has a bit that nobody uses.
pub const TAGGED: u16 = 0x1000;
/// Fragments, as [`Field::IpFrag`] has them.
const FRAGMENT: u8 = 1;
const LATER: u8 = 2;
/// IPv6 packets with a fragment header that says that there is nothing more of them (RFC 6946). OVS's datapaths disagree on what they
/// are: to the userspace one they are whole unless a reserved bit is set, to the kernel's they are first fragments. So are those whose extension headers
/// do not fit: no flow is about that.
const ATOMIC: u8 = 2;

/// ICMP, as IP headers number it.
pub const ICMP: u8 = 1;
/// TCP, as IP headers number it.
pub const TCP: u8 = 6;
/// UDP, as IP headers number it.
pub const UDP: u8 = 17;
/// ICMPv6, as IP headers number it.
pub const ICMPV6: u8 = 58;
/// SCTP, as IP headers number it.
pub const SCTP: u8 = 132;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT_HEADER: u8 = 44;
const AUTHENTICATION: u8 = 51;
const DESTINATION_OPTIONS: u8 = 60;
/// IPv6 extension headers that are passed over at most.
const MOST_EXTENSIONS: usize = 8;

/// Neighbour solicitation and advertisement, as ICMPv6 numbers them, and their options (RFC 4861).
const ND: [u8; 2] = [135, 136];
const ND_SOURCE: u8 = 1;
const ND_TARGET: u8 = 2;

/// Bits of the first word that every rule looks at: the port, the tunnel's kind, whether it is over IPv6, and which options it has.
pub const ALWAYS: u64 = 0xffff << 48 | TUNNEL_IPV6 | TUNNEL_OPTION | 3 << 43 | 3 << 40;
const TUNNEL_IPV6: u64 = 1 << 47;
const TUNNEL_OPTION: u64 = 1 << 42;

/// Bytes of the headers of UDP and of VXLAN or GENEVE, and of an option with 4 bytes.
const TUNNEL_HEADERS: u16 = 16;
const OPTION: u16 = 8;
/// Most bytes of options that a key has room for, over IPv4.
const OPTIONS: u16 = 16;

/// A frame's fields, or a rule's values or masks. Two cache lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C, align(64))]
pub struct Key(pub [u64; WORDS]);

/// Which headers a frame has, and where, in bytes from its first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Places {
    /// VLAN tags, 0 to 2.
    pub tags: u8,
    /// What is at `l3`.
    pub network: Network,
    /// Where the header behind the VLAN tags is.
    pub l3: u16,
    /// Where the transport header is; 0 without a whole one.
    pub l4: u16,
    /// What it is.
    pub proto: u8,
    /// There is an IPv6 routing header: the checksum is about another destination (RFC 8200 section 8.1).
    pub routed: bool,
    /// Where the frame inside a VXLAN or GENEVE packet begins; 0 when it is none, and with VLAN tags around it: OVS takes nothing out
    /// of a tunnel before it has taken those off.
    pub inner: u16,
}

/// What is behind Ethernet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Network {
    /// Nothing that is known here, or not all of it.
    #[default]
    Other,
    /// IPv4, its whole header.
    Ipv4,
    /// IPv6, its whole header and extensions.
    Ipv6,
    /// ARP or RARP for IPv4 over Ethernet.
    Arp,
}

/// Where a field's bits are.
struct Slot {
    word: usize,
    shift: u32,
}

/// The place of a field that fits a word; of a longer one that of its lower half, behind which its upper half is in the word before.
fn slot(field: Field) -> Slot {
    let (word, shift) = match field {
        Field::TunnelKind => (0, 40),
        Field::EthType => (0, 16),
        Field::IpProto | Field::ArpOp => (0, 8),
        Field::IpFrag => (0, 0),
        Field::EthDst => (1, 16),
        Field::VlanTci => (1, 0),
        Field::EthSrc => (2, 16),
        Field::InnerVlanTci => (2, 0),
        Field::Ipv4Src | Field::ArpSpa => (3, 32),
        Field::Ipv4Dst | Field::ArpTpa => (3, 0),
        Field::Ipv6Src | Field::ArpSha => (5, 0),
        Field::Ipv6Dst | Field::ArpTha => (7, 0),
        Field::SrcPort | Field::IcmpType => (8, 48),
        Field::DstPort | Field::IcmpCode => (8, 32),
        Field::TcpFlags => (8, 16),
        Field::IpTtl => (8, 8),
        Field::IpTos => (8, 0),
        Field::VlanTpid => (9, 48),
        Field::InnerVlanTpid => (9, 32),
        Field::Ipv6Label => (9, 0),
        Field::TunnelId => (10, 32),
        Field::TunnelFlags => (10, 16),
        Field::TunnelTos => (10, 8),
        Field::TunnelTtl => (10, 0),
        Field::TunnelIpv4Src | Field::TunnelIpv6Src => (12, 0),
        Field::TunnelIpv4Dst | Field::TunnelIpv6Dst => (14, 0),
        // Where addresses of IPv6 have their upper half: over IPv6 the key has no room for these ([`Key::of`]).
        Field::TunnelEthSrc => (11, 0),
        Field::TunnelEthDst => (13, 0),
        // Of frames that are in no tunnel, where those have their tunnel.
        Field::NdTarget => (12, 0),
        Field::NdSll => (13, 0),
        Field::NdTll => (14, 0),
        // Only its type; the class is where word 10 has room.
        Field::TunnelOption => (0, 32),
        Field::TunnelOptionData => (15, 32),
        Field::TunnelOptionShape => (0, 43),
        // Its upper half. The lower one is in the upper half of word 14, which only addresses of IPv6 have else.
        Field::TunnelOptionMore => (12, 32),
        Field::TunnelSrcPort => (15, 16),
        Field::TunnelDstPort => (15, 0),
    };
    Slot { word, shift }
}

/// Whether a rule is about a tunnel over IPv6.
pub(super) fn is_over_ipv6(matches: &Match) -> bool {
    [Field::TunnelIpv6Src, Field::TunnelIpv6Dst].into_iter().any(|field| matches.get(field).is_some())
}

fn is_around(field: Field) -> bool {
    matches!(field, Field::TunnelEthSrc | Field::TunnelEthDst)
}

impl Key {
    /// Nothing in it.
    pub const EMPTY: Self = Self([0; WORDS]);

    /// What a rule asks of a frame from any port: values and masks. But for the MAC addresses around a tunnel over IPv6, for which there is no room: the rule's
    /// [`Program`](super::actions::Program) looks at them.
    pub fn of(matches: &Match) -> (Self, Self) {
        let (mut values, mut masks) = (Self::EMPTY, Self::EMPTY);
        masks.0[0] |= ALWAYS;
        let fields = matches.fields().iter().filter(|field| !(is_around(field.field()) && is_over_ipv6(matches)));
        fields.for_each(|field| Self::ask(&mut values, &mut masks, field));
        (values, masks)
    }

    /// Adds what a rule asks of a field, to its values and masks.
    pub fn ask(values: &mut Self, masks: &mut Self, field: &FieldMatch) {
        let Slot { word, shift } = slot(field.field());
        if field.field() == Field::TunnelOption {
            values.put_option(field.value() as u32);
            masks.put_option(field.mask() as u32);
            return;
        }
        if field.field() == Field::TunnelOptionMore {
            values.put_more(field.value() as u64);
            masks.put_more(field.mask() as u64);
            return;
        }
        let put = |key: &mut Self, bits: u128| {
            key.0[word] |= (bits as u64) << shift;
            if field.field().bits() > 64 {
                key.0[word - 1] |= (bits >> 64) as u64;
            }
        };
        put(values, field.value());
        put(masks, field.mask());
        if matches!(field.field(), Field::TunnelIpv6Src | Field::TunnelIpv6Dst) {
            values.0[0] |= TUNNEL_IPV6;
        }
    }

    /// Comes from this port.
    pub fn set_port(&mut self, port: u16) {
        self.0[0] |= u64::from(port) << 48;
    }

    /// The value of a field of 64 bits at most.
    pub fn get(&self, field: Field) -> u64 {
        let Slot { word, shift } = slot(field);
        self.0[word] >> shift & field.mask() as u64
    }

    /// The class and the type of a tunnel's option.
    fn put_option(&mut self, option: u32) {
        let [_, high, low, kind] = option.to_be_bytes().map(u64::from);
        self.0[0] |= kind << 32 | TUNNEL_OPTION;
        self.0[10] |= high << 56 | low << 24;
    }

    /// What stands behind the first 4 bytes of the first option.
    fn put_more(&mut self, more: u64) {
        self.0[12] |= more & !0xffff_ffff;
        self.0[14] |= more << 32;
    }

    fn put(&mut self, field: Field, value: u64) {
        let Slot { word, shift } = slot(field);
        self.0[word] |= value << shift;
    }

    /// A number that is the same for all frames of a flow, and for each fragment of a packet.
    pub fn flow(&self) -> u32 {
        let ports = if self.0[0] & u64::from(FRAGMENT) == 0 { self.0[8] >> 32 } else { 0 };
        let words = [self.0[3], self.0[4], self.0[5], self.0[6], self.0[7], ports, self.0[1] >> 16, self.0[2] >> 16];
        let mut sum = self.0[0] >> 8 & 0xff;
        for word in words {
            sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
        (sum >> 32) as u32 ^ sum as u32
    }

    /// Reads a frame that came from `port`. `head` is its beginning, with all headers that count, and `len` how long it is.
    #[inline]
    pub fn parse(head: &[u8], len: usize, port: u16) -> (Self, Places) {
        let mut key = Self::EMPTY;
        key.set_port(port);
        let mut places = Places::default();
        key.read(head, len, &mut places);
        (key, places)
    }

    /// Reads the frame inside the tunnel that [`Key::parse`] found, whose place is told by `outer`.
    pub fn parse_inner(head: &[u8], len: usize, outer: &Self, at: &Places) -> Option<(Self, Places)> {
        let start = usize::from(at.inner);
        let inner = head.get(start..).filter(|_| start != 0)?;
        let mut key = Self::EMPTY;
        key.0[0] = outer.0[0] & 0xffff << 48;
        let mut places = Places::default();
        key.read(inner, len - start, &mut places);
        // Of a frame in a tunnel nobody can ask for these.
        key.0[10..].fill(0);
        key.tunnel(head, outer, at)?;
        places.inner = 0;
        Some((key, places))
    }

    /// The fields of the tunnel that the frame came in.
    fn tunnel(&mut self, head: &[u8], outer: &Self, at: &Places) -> Option<()> {
        let udp = head.get(usize::from(at.l4)..)?.first_chunk::<16>()?;
        let kind = tunnel_kind(u16::from_be_bytes([udp[2], udp[3]]))?;
        self.put(Field::TunnelKind, kind.number().into());
        self.put(Field::TunnelId, u32::from_be_bytes([0, udp[12], udp[13], udp[14]]).into());
        let checksum = u64::from(udp[6] != 0 || udp[7] != 0);
        let control = if kind == TunnelKind::Geneve { u64::from(udp[9] >> 7) << 2 } else { 0 };
        let network = head.get(usize::from(at.l3)..)?;
        let unfragmented = u64::from(at.network == Network::Ipv4 && network.get(6)? & 0x40 != 0) << 1;
        self.put(Field::TunnelFlags, checksum | unfragmented | control);
        self.put(Field::TunnelTos, outer.get(Field::IpTos));
        self.put(Field::TunnelTtl, outer.get(Field::IpTtl));
        if at.network == Network::Ipv6 {
            self.0[0] |= TUNNEL_IPV6;
            self.0[11..15].copy_from_slice(&outer.0[4..8]);
        } else {
            (self.0[12], self.0[14]) = (outer.0[3] >> 32, outer.0[3] & 0xffff_ffff);
            self.put(Field::TunnelEthSrc, outer.get(Field::EthSrc));
            self.put(Field::TunnelEthDst, outer.get(Field::EthDst));
        }
        self.put(Field::TunnelSrcPort, outer.get(Field::SrcPort));
        self.put(Field::TunnelDstPort, outer.get(Field::DstPort));
        if at.inner - at.l4 > TUNNEL_HEADERS {
            let options = head.get(usize::from(at.l4 + TUNNEL_HEADERS)..usize::from(at.inner))?;
            let [high, low, kind, words, data @ ..] = *options.first_chunk::<8>()?;
            self.put_option(u32::from_be_bytes([0, high, low, kind]));
            self.put(Field::TunnelOptionData, u32::from_be_bytes(data).into());
            if let more @ [_, ..] = &options[8..] {
                self.put(Field::TunnelOptionShape, if words == 1 { 3 } else { u64::from(words) - 1 });
                self.put_more(
                    more.iter().enumerate().fold(0, |all, (at, byte)| all | u64::from(*byte) << (56 - 8 * at)),
                );
            }
        }
        Some(())
    }

    #[inline]
    fn read(&mut self, head: &[u8], len: usize, places: &mut Places) {
        let Some(ethernet) = head.first_chunk::<14>() else { return };
        let [d0, d1, d2, d3, d4, d5, s0, s1, s2, s3, s4, s5, t0, t1] = *ethernet;
        let mac = |bytes: [u8; 6]| {
            let [a, b, c, d, e, g] = bytes;
            u64::from_be_bytes([a, b, c, d, e, g, 0, 0])
        };
        self.0[1] = mac([d0, d1, d2, d3, d4, d5]);
        self.0[2] = mac([s0, s1, s2, s3, s4, s5]);
        let (mut ethertype, mut at) = (u16::from_be_bytes([t0, t1]), 14);
        while VLAN.contains(&ethertype) && places.tags < 2 {
            let Some(tag) = head.get(at..).and_then(|rest| rest.first_chunk::<4>()) else { break };
            let tci = u16::from_be_bytes([tag[0], tag[1]]) | TAGGED;
            self.0[1 + usize::from(places.tags)] |= u64::from(tci);
            self.0[9] |= u64::from(ethertype) << (48 - 16 * places.tags);
            places.tags += 1;
            ethertype = u16::from_be_bytes([tag[2], tag[3]]);
            at += 4;
        }
        if ethertype < 0x600 {
            ethertype = NO_TYPE;
        }
        self.0[0] |= u64::from(ethertype) << 16;
        places.l3 = at as u16;
        let (packet, len) = (&head[at..], len - at);
        match ethertype {
            IPV4 => self.read_ipv4(packet, len, places),
            IPV6 => self.read_ipv6(packet, len, places),
            kind if ARP.contains(&kind) => self.read_arp(packet, places),
            _ => {}
        }
    }

    #[inline]
    fn read_ipv4(&mut self, packet: &[u8], len: usize, places: &mut Places) {
        let Some(header) = packet.first_chunk::<20>() else { return };
        let header_len = usize::from(header[0] & 0xf) * 4;
        let total = usize::from(u16::from_be_bytes([header[2], header[3]]));
        // The version is not looked at, as in OVS: what its flow is about must not look like a packet without a header here.
        if header_len < 20 || header_len > packet.len() || total < header_len || total > len {
            return;
        }
        places.network = Network::Ipv4;
        let fragment = u16::from_be_bytes([header[6], header[7]]);
        let later = if fragment & 0x1fff != 0 { FRAGMENT | LATER } else { 0 };
        let frag = later | if fragment & 0x2000 != 0 { FRAGMENT } else { 0 };
        let [a, b, c, d, e, f, g, h] = *header[12..].first_chunk().unwrap_or(&[0; 8]);
        self.0[0] |= u64::from(header[9]) << 8 | u64::from(frag);
        self.0[3] = u64::from_be_bytes([a, b, c, d, e, f, g, h]);
        self.0[8] |= u64::from(header[8]) << 8 | u64::from(header[1]);
        if later == 0 {
            let whole = fragment & 0x2000 == 0;
            self.read_transport(packet, (header_len, total), header[9], whole, places);
        }
    }

    fn read_ipv6(&mut self, packet: &[u8], len: usize, places: &mut Places) {
        let Some(header) = packet.first_chunk::<40>() else { return };
        let total = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
        if total > len {
            return;
        }
        let first = u32::from_be_bytes([header[0], header[1], header[2], header[3]]);
        for (word, bytes) in self.0[4..8].iter_mut().zip(header[8..].as_chunks::<8>().0) {
            *word = u64::from_be_bytes(*bytes);
        }
        let Some(Extensions { next, at, frag, routed }) = extensions(packet, header[6], total) else {
            // Of these the userspace datapath has the addresses, and the kernel's nothing: no flow's rule is to be about them.
            self.0[0] |= u64::from(ATOMIC);
            return;
        };
        places.network = Network::Ipv6;
        places.routed = routed;
        self.0[0] |= u64::from(next) << 8 | u64::from(frag);
        self.0[8] |= u64::from(header[7]) << 8 | u64::from(first >> 20 & 0xff);
        self.0[9] |= u64::from(first & 0xf_ffff);
        if frag != FRAGMENT | LATER {
            self.read_transport(packet, (at, total), next, frag == 0, places);
        }
    }

    /// The transport header at `at`, of a packet that ends at `end`.
    #[inline]
    fn read_transport(
        &mut self,
        packet: &[u8],
        (at, end): (usize, usize),
        proto: u8,
        whole: bool,
        places: &mut Places,
    ) {
        let Some(header) = packet.get(at..end.min(packet.len())) else { return };
        let (least, ports) = match proto {
            TCP => (20, true),
            UDP => (8, true),
            SCTP => (12, true),
            ICMP if places.network == Network::Ipv4 => (8, false),
            ICMPV6 if places.network == Network::Ipv6 => (4, false),
            _ => return,
        };
        // A TCP header that says that it is longer than what is there, or shorter than it can be, is none.
        let tcp = if proto == TCP { header.get(12).map_or(0, |byte| usize::from(byte >> 4) * 4) } else { least };
        if header.len() < least.max(tcp) || tcp < least {
            return;
        }
        (places.l4, places.proto) = (places.l3 + at as u16, proto);
        let [a, b, c, d] = [header[0], header[1], header[2], header[3]];
        if ports {
            self.0[8] |= u64::from(u32::from_be_bytes([a, b, c, d])) << 32;
        } else {
            self.0[8] |= u64::from(a) << 48 | u64::from(b) << 32;
        }
        if proto == ICMPV6 && ND.contains(&a) && b == 0 {
            self.read_nd(header);
        }
        if proto == TCP {
            self.0[8] |= u64::from(u16::from_be_bytes([header[12] & 0xf, header[13]])) << 16;
        }
        // Behind extension headers OVS looks for a tunnel's header in the wrong place (lib/netdev-native-tnl.c): that is left to it.
        let bare = places.network != Network::Ipv6 || at == 40;
        if proto == UDP && whole && bare && places.tags == 0 {
            let start = inner_start(header, [c, d], if places.network == Network::Ipv4 { OPTIONS } else { OPTION });
            places.inner = start.map_or(0, |start| places.l4 + start);
        }
    }

    /// A neighbour solicitation or advertisement. Of options that stand there twice nothing counts, the address neither (OVS,
    /// `parse_icmpv6`).
    #[cold]
    fn read_nd(&mut self, icmp: &[u8]) {
        let Some((target, mut options)) = icmp.get(8..).and_then(|rest| rest.split_first_chunk::<16>()) else { return };
        let mut addresses = [0u64; 2];
        while let Some([kind, words, mac @ ..]) = options.first_chunk::<8>() {
            let len = usize::from(*words) * 8;
            if len == 0 || len > options.len() {
                break;
            }
            if let (ND_SOURCE | ND_TARGET, 8) = (*kind, len) {
                let address = &mut addresses[usize::from(*kind - ND_SOURCE)];
                if *address != 0 {
                    return;
                }
                *address = mac.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            }
            options = &options[len..];
        }
        let [high, low] = [target.first_chunk::<8>(), target.last_chunk::<8>()]
            .map(|half| half.map_or(0, |half| u64::from_be_bytes(*half)));
        self.0[11..15].copy_from_slice(&[high, low, addresses[0], addresses[1]]);
    }

    fn read_arp(&mut self, packet: &[u8], places: &mut Places) {
        let Some(arp) = packet.first_chunk::<28>() else { return };
        // Ethernet, IPv4, and addresses as long as those are.
        if arp[..6] != [0, 1, 8, 0, 6, 4] {
            return;
        }
        places.network = Network::Arp;
        let operation = u16::from_be_bytes([arp[6], arp[7]]);
        self.0[0] |= if operation <= 255 { u64::from(operation) << 8 } else { 0 };
        let number =
            |from: usize, len: usize| arp[from..from + len].iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
        self.0[5] = number(8, 6);
        self.0[7] = number(18, 6);
        self.0[3] = number(14, 4) << 32 | number(24, 4);
    }
}

/// What IPv6 extension headers say.
struct Extensions {
    /// The protocol behind them.
    next: u8,
    /// Where it begins.
    at: usize,
    /// As [`Field::IpFrag`] has it.
    frag: u8,
    /// There is a routing header.
    routed: bool,
}

/// Passes over the extension headers of an IPv6 packet of `total` bytes, the first of which is a `next`. Nothing where one does not fit, or there
/// are too many.
fn extensions(packet: &[u8], mut next: u8, total: usize) -> Option<Extensions> {
    let (mut at, mut frag, mut routed) = (40, 0, false);
    let mut count = 0;
    while matches!(next, HOP_BY_HOP | ROUTING | FRAGMENT_HEADER | AUTHENTICATION | DESTINATION_OPTIONS) {
        count += 1;
        let start = packet.get(at..)?.first_chunk::<8>()?;
        let length = match next {
            FRAGMENT_HEADER => 8,
            AUTHENTICATION => 4 * (usize::from(start[1]) + 2),
            _ => 8 * (usize::from(start[1]) + 1),
        };
        if at + length > packet.len().min(total) || count > MOST_EXTENSIONS {
            return None;
        }
        routed |= next == ROUTING;
        let offset = u16::from_be_bytes([start[2], start[3]]);
        if next == FRAGMENT_HEADER {
            // One that says it twice is nothing that a rule should be about either.
            frag = if frag == 0 && offset & !6 != 0 { FRAGMENT } else { ATOMIC };
            if offset & !7 != 0 {
                // As OVS has it: what protocol it is, is told by the first fragment only.
                frag |= LATER;
                break;
            }
        }
        (next, at) = (start[0], at + length);
    }
    Some(Extensions { next, at, frag, routed })
}

/// What tunnel comes to this UDP port.
fn tunnel_kind(port: u16) -> Option<TunnelKind> {
    [TunnelKind::Vxlan, TunnelKind::Geneve].into_iter().find(|kind| kind.port() == port)
}

/// Where the frame in a UDP packet to a tunnel's port begins, from the UDP header on. One with GENEVE options is none, but for one option of 4, 8 or
/// 12 bytes, or two of 4, with `most` bytes all in all: OVN has one of 4.
#[inline]
fn inner_start(udp: &[u8], port: [u8; 2], most: u16) -> Option<u16> {
    let kind = tunnel_kind(u16::from_be_bytes(port))?;
    let tunnel = udp.get(8..)?.first_chunk::<8>()?;
    let start = match kind {
        // RFC 7348 section 5: the flag I, and nothing that is reserved.
        TunnelKind::Vxlan if tunnel[..4] == [8, 0, 0, 0] && tunnel[7] == 0 => TUNNEL_HEADERS,
        // RFC 8926 section 3.4: version 0, Ethernet inside, and nothing that is reserved; without options, none of them critical.
        TunnelKind::Geneve if tunnel[1] & 0x3f == 0 && tunnel[2..4] == [0x65, 0x58] && tunnel[7] == 0 => {
            match tunnel[0] {
                0 if tunnel[1] & 0x40 == 0 => TUNNEL_HEADERS,
                // Section 3.5: class, type, and the length in words.
                words @ 2..=4 if *udp.get(19)? == words - 1 => TUNNEL_HEADERS + 4 * u16::from(words),
                4 if udp[19] == 1 && *udp.get(27)? == 1 => TUNNEL_HEADERS + 2 * OPTION,
                _ => return None,
            }
        }
        _ => return None,
    };
    (start <= TUNNEL_HEADERS + most && udp.len() >= usize::from(start) + 14).then_some(start)
}
