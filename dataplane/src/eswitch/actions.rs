//! What a rule does to a frame: its actions, made ready when the rule is installed, and done by the frame.
//!
//! Whether all of them can be done is known before the first one is ([`Program::fits`]): a frame that lacks a header that the rule changes goes
//! to the slow path as it came, and never half changed.

use std::net::IpAddr;

use ringspan_protocol::rule::has_critical;
use ringspan_protocol::{Action, Field, FieldMatch, Match, NicPort, Rule, TunnelKind, TunnelPush};

use super::checksum::{Change, sctp};
use super::key::{ICMP, ICMPV6, Key, Network, Places, SCTP, TCP, UDP, is_over_ipv6};
use crate::offload::Sum;

/// Most bytes that a tunnel puts in front of a frame: DPDK leaves so many free before each.
pub const MOST_HEADERS: usize = 128;

/// A frame that is changed in place.
pub trait Edit {
    /// Its first bytes, of which there are at least as many as it has headers that were found in it.
    fn head(&mut self) -> &mut [u8];
    /// How long it is.
    fn length(&self) -> usize;
    /// Puts bytes in front, whose values do not matter. False when there is no room.
    fn grow(&mut self, bytes: usize) -> bool;
    /// Takes bytes off the front. False when the head has fewer.
    fn shrink(&mut self, bytes: usize) -> bool;
}

/// The number of a port in keys and programs.
pub fn number(port: NicPort) -> u16 {
    match port {
        NicPort::Uplink => 0,
        NicPort::Vf(vf) => vf + 1,
    }
}

/// The actions of a rule, and what else rules have in common that do the same.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Program {
    steps: Box<[Step]>,
    needs: Needs,
    /// Meters that must let a frame pass before anything is done.
    meters: Box<[u32]>,
    /// Where the frame goes when nothing else is done.
    forward: Option<u16>,
    /// The rule sees frames that are inside a tunnel.
    tunnel: bool,
    /// MAC addresses around a tunnel over IPv6 that the rule matches.
    around: Around,
    /// The representor gets a frame of it from time to time.
    refresh: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Step {
    Output(u16),
    PushVlan { tpid: u16, tci: u16 },
    PopVlan,
    Set { field: Field, value: u128, mask: u128 },
    DecTtl,
    TunnelPush(Box<Tunnel>),
    TunnelPop,
}

/// What a frame must have, beyond what the rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Needs {
    ip: bool,
    arp: bool,
    transport: bool,
    /// All bytes, for a checksum over them.
    whole: bool,
    tunnel: bool,
    /// Time to live that is taken away before it is set.
    ttl: u8,
}

/// The first 12 bytes of a frame as a number, and which bits of them count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Around {
    value: u128,
    mask: u128,
}

impl Around {
    /// Those of a rule, where [`Key::of`] has none.
    fn of(matches: &Match) -> Self {
        let part = |field| matches.get(field).map_or((0, 0), |field: &FieldMatch| (field.value(), field.mask()));
        let [dst, src] = [Field::TunnelEthDst, Field::TunnelEthSrc].map(part);
        if !is_over_ipv6(matches) {
            return Self::default();
        }
        Self { value: dst.0 << 48 | src.0, mask: dst.1 << 48 | src.1 }
    }
}

/// The headers that a tunnel puts in front, but for what differs from frame to frame.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Tunnel {
    headers: Box<[u8]>,
    ipv6: bool,
    src_port: Option<u16>,
    checksum: bool,
}

/// Why an engine cannot do what a rule wants.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unsupported {
    /// What a meter drops would have gone out already.
    #[error("meter {0} stands behind an output: the software NIC asks meters before anything is done")]
    MeterBehindOutput(u32),
    /// A tunnel's headers are too long.
    #[error(
        "a tunnel header of {0} bytes, with VLAN tags that are pushed before it, does not fit before a frame: at most {MOST_HEADERS} do"
    )]
    Tunnel(usize),
    /// Fields that frames in tunnels have no place for.
    #[error("the software NIC does not match {0} of a frame in a tunnel")]
    InTunnel(Field),
    /// The NIC has no such port.
    #[error("the NIC has no port {0}")]
    NoPort(NicPort),
}

impl Program {
    /// Makes a rule's actions ready, for a NIC with so many ports. The rule was checked ([`Rule::check`]).
    ///
    /// # Errors
    /// [`Unsupported`].
    pub fn new(rule: &Rule, ports: u16) -> Result<Self, Unsupported> {
        let tunnel = rule.matches.get(Field::TunnelKind).is_some_and(|kind| kind.value() != 0);
        if tunnel
            && let Some(field) =
                [Field::NdTarget, Field::NdSll, Field::NdTll].into_iter().find(|nd| rule.matches.get(*nd).is_some())
        {
            return Err(Unsupported::InTunnel(field));
        }
        let mut needs = Needs::default();
        let mut ttl_set = false;
        let mut steps = Vec::with_capacity(rule.actions.len());
        let mut meters = Vec::new();
        // VLAN tags in front of a frame, more than it came with.
        let mut tags = 0usize;
        for action in &rule.actions {
            steps.push(match action {
                Action::Drop => continue,
                Action::Output(port) if number(*port) < ports => Step::Output(number(*port)),
                Action::Output(port) => return Err(Unsupported::NoPort(*port)),
                Action::PushVlan { tpid, tci } => {
                    tags += 1;
                    Step::PushVlan { tpid: *tpid, tci: *tci }
                }
                Action::PopVlan => {
                    tags = tags.saturating_sub(1);
                    Step::PopVlan
                }
                Action::Set(field) => {
                    needs.set(field);
                    ttl_set |= field.field() == Field::IpTtl;
                    let proto = rule.matches.exact(Field::IpProto);
                    needs.whole |= is_port(field.field()) && proto == Some(SCTP.into());
                    Step::Set { field: field.field(), value: field.value(), mask: field.mask() }
                }
                Action::DecTtl => {
                    needs.ip = true;
                    needs.ttl += u8::from(!ttl_set);
                    Step::DecTtl
                }
                Action::TunnelPush(push) => {
                    let tunnel = Tunnel::new(push);
                    let len = tunnel.headers.len() + 4 * tags;
                    if len > MOST_HEADERS {
                        return Err(Unsupported::Tunnel(len));
                    }
                    needs.whole |= tunnel.checksum;
                    Step::TunnelPush(Box::new(tunnel))
                }
                Action::TunnelPop => {
                    needs.tunnel = true;
                    Step::TunnelPop
                }
                Action::Meter(meter) if steps.iter().any(|step| matches!(step, Step::Output(_))) => {
                    return Err(Unsupported::MeterBehindOutput(*meter));
                }
                Action::Meter(meter) => {
                    meters.push(*meter);
                    continue;
                }
            });
        }
        let forward = match steps[..] {
            [Step::Output(port)] if meters.is_empty() => Some(port),
            _ => None,
        };
        Ok(Self {
            steps: steps.into(),
            needs,
            meters: meters.into(),
            forward,
            tunnel,
            around: Around::of(&rule.matches),
            refresh: rule.refresh,
        })
    }

    /// Whether the rule sees frames that are inside a tunnel.
    pub fn is_of_tunnel(&self) -> bool {
        self.tunnel
    }

    /// Whether the representor gets a frame of it from time to time.
    #[inline]
    pub fn refreshes(&self) -> bool {
        self.refresh
    }

    /// The meters that must let a frame pass.
    pub fn meters(&self) -> &[u32] {
        &self.meters
    }

    /// The one port that a frame goes to as it is.
    #[inline]
    pub fn forward(&self) -> Option<u16> {
        self.forward
    }

    /// Whether the frame is dropped.
    pub fn drops(&self) -> bool {
        self.steps.is_empty()
    }

    /// Whether a frame goes out as it is, wherever it goes.
    pub fn changes_nothing(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Output(_)))
    }

    /// Ports that a frame goes to.
    pub fn outputs(&self) -> usize {
        self.steps.iter().filter(|step| matches!(step, Step::Output(_))).count()
    }

    /// Whether all can be done to this frame. `whole`: it lies in one piece.
    pub fn fits(&self, key: &Key, places: &Places, whole: bool) -> bool {
        let Needs { ip, arp, transport, whole: all, tunnel: _, ttl } = self.needs;
        (!ip || matches!(places.network, Network::Ipv4 | Network::Ipv6))
            && (!arp || places.network == Network::Arp)
            && (!transport || places.l4 != 0)
            && (!all || whole)
            && (ttl == 0 || key.get(Field::IpTtl) > u64::from(ttl))
    }

    /// Whether the MAC addresses of a frame, with the tunnel that the rule's is in, are those that the rule matches beside its key.
    pub fn fits_around(&self, head: &[u8]) -> bool {
        let Around { value, mask } = self.around;
        mask == 0
            || head.first_chunk::<12>().is_some_and(|head| {
                let addresses = head.iter().fold(0, |all, byte| all << 8 | u128::from(*byte));
                addresses & mask == value
            })
    }

    /// Does it. `out` gets the frame as it is at each output, and whether that is the last one. `inner` is where the frame inside a
    /// tunnel begins, whose `key` and `places` these are then. False when there was no room for a header: nothing more is done.
    pub fn run<E: Edit>(
        &self,
        frame: &mut E,
        key: &Key,
        mut places: Places,
        inner: u16,
        mut out: impl FnMut(&mut E, u16, bool),
    ) -> bool {
        let mut left = self.outputs();
        for step in &self.steps {
            let done = match step {
                Step::Output(port) => {
                    left -= 1;
                    out(frame, *port, left == 0);
                    if left == 0 {
                        return true;
                    }
                    true
                }
                Step::PushVlan { tpid, tci } => push_vlan(frame, &mut places, *tpid, *tci),
                Step::PopVlan => pop_vlan(frame, &mut places),
                Step::Set { field, value, mask } => set(frame, &places, *field, *value, *mask).is_some(),
                Step::DecTtl => dec_ttl(frame, &places).is_some(),
                Step::TunnelPush(tunnel) => tunnel.put_before(frame, key).is_some(),
                Step::TunnelPop => frame.shrink(inner.into()),
            };
            if !done {
                return false;
            }
        }
        true
    }
}

fn is_port(field: Field) -> bool {
    matches!(field, Field::SrcPort | Field::DstPort)
}

impl Needs {
    fn set(&mut self, field: &FieldMatch) {
        match field.field() {
            Field::Ipv4Src | Field::Ipv4Dst | Field::Ipv6Src | Field::Ipv6Dst => self.ip = true,
            Field::Ipv6Label | Field::IpTos | Field::IpTtl => self.ip = true,
            Field::SrcPort | Field::DstPort | Field::IcmpType | Field::IcmpCode => self.transport = true,
            Field::ArpOp | Field::ArpSpa | Field::ArpTpa | Field::ArpSha | Field::ArpTha => self.arp = true,
            _ => {}
        }
    }
}

/// Puts a VLAN tag in front. False when there is no room, or no frame.
pub(super) fn push_vlan(frame: &mut impl Edit, places: &mut Places, tpid: u16, tci: u16) -> bool {
    if frame.head().len() < 12 || !frame.grow(4) {
        return false;
    }
    let head = frame.head();
    head.copy_within(4..16, 0);
    head[12..14].copy_from_slice(&tpid.to_be_bytes());
    head[14..16].copy_from_slice(&(tci & !super::key::TAGGED).to_be_bytes());
    places.tags += 1;
    places.moved(4);
    true
}

/// Takes the outer VLAN tag off. False when there is none.
pub(super) fn pop_vlan(frame: &mut impl Edit, places: &mut Places) -> bool {
    if places.tags == 0 || frame.head().len() < 18 {
        return false;
    }
    frame.head().copy_within(0..12, 4);
    places.tags -= 1;
    places.moved(-4);
    frame.shrink(4)
}

impl Places {
    fn moved(&mut self, by: i16) {
        self.l3 = self.l3.wrapping_add_signed(by);
        if self.l4 != 0 {
            self.l4 = self.l4.wrapping_add_signed(by);
        }
    }
}

/// Where a field is: its first byte from its header's, and how many bytes it has; with others in them, which of their bits are its.
fn place(field: Field, places: &Places) -> Option<(usize, usize, u32)> {
    let (l3, l4) = (usize::from(places.l3), usize::from(places.l4));
    let v6 = places.network == Network::Ipv6;
    Some(match field {
        Field::EthDst => (0, 6, 0),
        Field::EthSrc => (6, 6, 0),
        Field::VlanTci => (14, 2, 0),
        Field::Ipv4Src => (l3 + 12, 4, 0),
        Field::Ipv4Dst => (l3 + 16, 4, 0),
        Field::Ipv6Src => (l3 + 8, 16, 0),
        Field::Ipv6Dst => (l3 + 24, 16, 0),
        Field::Ipv6Label => (l3, 4, 0),
        Field::IpTos if v6 => (l3, 2, 4),
        Field::IpTos => (l3, 2, 0),
        Field::IpTtl if v6 => (l3 + 6, 2, 0),
        Field::IpTtl => (l3 + 8, 2, 8),
        Field::SrcPort => (l4, 2, 0),
        Field::DstPort => (l4 + 2, 2, 0),
        Field::IcmpType => (l4, 2, 8),
        Field::IcmpCode => (l4, 2, 0),
        Field::ArpOp => (l3 + 6, 2, 0),
        Field::ArpSha => (l3 + 8, 6, 0),
        Field::ArpSpa => (l3 + 14, 4, 0),
        Field::ArpTha => (l3 + 18, 6, 0),
        Field::ArpTpa => (l3 + 24, 4, 0),
        _ => return None,
    })
}

/// Sets a field, whose header is there. `None`: it was not.
fn set(frame: &mut impl Edit, places: &Places, field: Field, value: u128, mask: u128) -> Option<()> {
    let (at, len, shift) = place(field, places)?;
    // A tag's presence is not a bit of the wire.
    let mask = if field == Field::VlanTci { mask & !u128::from(super::key::TAGGED) } else { mask };
    let old = number_at(frame.head(), at, len)?;
    let new = old & !(mask << shift) | (value & mask) << shift;
    write(frame, places, at, len, new, field)
}

fn dec_ttl(frame: &mut impl Edit, places: &Places) -> Option<()> {
    let (at, len, shift) = place(Field::IpTtl, places)?;
    let old = number_at(frame.head(), at, len)?;
    let left = (old >> shift & 0xff).checked_sub(1)?;
    write(frame, places, at, len, old & !(0xff << shift) | left << shift, Field::IpTtl)
}

fn number_at(head: &[u8], at: usize, len: usize) -> Option<u128> {
    Some(head.get(at..at + len)?.iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte)))
}

/// Writes a field, and makes right what sums it up.
fn write(frame: &mut impl Edit, places: &Places, at: usize, len: usize, value: u128, field: Field) -> Option<()> {
    let bytes = value.to_be_bytes();
    let new = &bytes[16 - len..];
    let of_sctp = is_port(field) && places.proto == SCTP && places.l4 != 0;
    let before = if of_sctp { sctp_sum(frame, places)? } else { [0; 4] };
    let head = frame.head();
    let old = head.get_mut(at..at + len)?;
    let change = Change::from(old, new);
    old.copy_from_slice(new);
    let (network, transport) = match field {
        Field::Ipv4Src | Field::Ipv4Dst => (true, true),
        Field::IpTos | Field::IpTtl => (places.network == Network::Ipv4, false),
        Field::Ipv6Src => (false, true),
        Field::Ipv6Dst => (false, !places.routed),
        Field::SrcPort | Field::DstPort | Field::IcmpType | Field::IcmpCode => (false, true),
        _ => return Some(()),
    };
    if network {
        let at = usize::from(places.l3) + 10;
        change.apply(head.get_mut(at..)?.first_chunk_mut()?);
    }
    if of_sctp {
        // A sum that was wrong stays as wrong, so that the receiver notices what happened on the way (as OVS has it, lib/packets.c).
        let after = sctp_sum(frame, places)?;
        let place = usize::from(places.l4) + 8;
        let sum: &mut [u8; 4] = frame.head().get_mut(place..)?.first_chunk_mut()?;
        sum.iter_mut().zip(before.iter().zip(after)).for_each(|(byte, (before, after))| *byte ^= before ^ after);
    } else if transport && places.l4 != 0 {
        fix_transport(frame, places, change, field)?;
    }
    Some(())
}

fn fix_transport(frame: &mut impl Edit, places: &Places, change: Change, field: Field) -> Option<()> {
    let start = usize::from(places.l4);
    let of_address = !matches!(field, Field::SrcPort | Field::DstPort | Field::IcmpType | Field::IcmpCode);
    let offset = match places.proto {
        TCP => 16,
        UDP => 6,
        ICMPV6 => 2,
        ICMP if !of_address => 2,
        _ => return Some(()),
    };
    let checksum: &mut [u8; 2] = frame.head().get_mut(start + offset..)?.first_chunk_mut()?;
    if places.proto != UDP {
        change.apply(checksum);
    } else if *checksum != [0; 2] {
        change.apply(checksum);
        // Zero says that there is none (RFC 768).
        if *checksum == [0; 2] {
            *checksum = [0xff; 2];
        }
    }
    Some(())
}

/// The checksum that belongs to an SCTP packet. What follows it, if the frame was filled up to its least length, is not summed.
fn sctp_sum(frame: &mut impl Edit, places: &Places) -> Option<[u8; 4]> {
    let end = packet_end(frame.head(), places)?;
    frame.head().get(usize::from(places.l4)..end).map(sctp)
}

/// Where the IP packet ends, by its own length.
fn packet_end(head: &[u8], places: &Places) -> Option<usize> {
    let start = usize::from(places.l3);
    Some(match places.network {
        Network::Ipv4 => start + number_at(head, start + 2, 2)? as usize,
        Network::Ipv6 => start + 40 + number_at(head, start + 4, 2)? as usize,
        Network::Arp | Network::Other => return None,
    })
}

/// Bytes of Ethernet, UDP, and VXLAN's or GENEVE's own header.
const ETHERNET_LEN: usize = 14;
const UDP_LEN: usize = 8;
const TUNNEL_LEN: usize = 8;

impl Tunnel {
    fn new(push: &TunnelPush) -> Self {
        let options = push.option_bytes().unwrap_or_default();
        let mut bytes = Vec::with_capacity(MOST_HEADERS);
        bytes.extend(push.eth_dst.0);
        bytes.extend(push.eth_src.0);
        let ipv6 = push.dst.is_ipv6();
        bytes.extend(if ipv6 { [0x86, 0xdd] } else { [8, 0] });
        match (push.src, push.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let flags = if push.dont_fragment { 0x40 } else { 0 };
                bytes.extend([0x45, push.tos, 0, 0, 0, 0, flags, 0, push.ttl, UDP, 0, 0]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
            }
            (src, dst) => {
                let octets = |address: IpAddr| match address {
                    IpAddr::V4(address) => address.to_ipv6_mapped().octets(),
                    IpAddr::V6(address) => address.octets(),
                };
                bytes.extend((6 << 28 | u32::from(push.tos) << 20).to_be_bytes());
                bytes.extend([0, 0, UDP, push.ttl]);
                bytes.extend(octets(src));
                bytes.extend(octets(dst));
            }
        }
        bytes.extend(push.src_port.unwrap_or(0).to_be_bytes());
        bytes.extend(push.dst_port.to_be_bytes());
        bytes.extend([0; 4]);
        let [_, a, b, c] = push.id.to_be_bytes();
        match push.kind {
            TunnelKind::Vxlan => bytes.extend([8, 0, 0, 0, a, b, c, 0]),
            TunnelKind::Geneve => {
                let control = if has_critical(&options) == Some(true) { 0x40 } else { 0 };
                bytes.extend([(options.len() / 4) as u8, control, 0x65, 0x58, a, b, c, 0]);
            }
        }
        bytes.extend(options);
        Self { headers: bytes.into(), ipv6, src_port: push.src_port, checksum: push.checksum }
    }

    /// Puts the headers before a frame. `None`: there is no room, or the packet would be too long.
    fn put_before(&self, frame: &mut impl Edit, key: &Key) -> Option<()> {
        let len = self.headers.len();
        let packet_len = u16::try_from(frame.length() + len - ETHERNET_LEN).ok()?;
        if !frame.grow(len) {
            return None;
        }
        let l4 = ETHERNET_LEN + if self.ipv6 { 40 } else { 20 };
        let udp_len = (packet_len - (l4 - ETHERNET_LEN) as u16).to_be_bytes();
        let head = frame.head();
        head.get_mut(..len)?.copy_from_slice(&self.headers);
        let ip = &mut head[ETHERNET_LEN..l4];
        if self.ipv6 {
            ip[4..6].copy_from_slice(&udp_len);
        } else {
            ip[2..4].copy_from_slice(&packet_len.to_be_bytes());
            let checksum = Sum::new().over(ip).checksum();
            ip[10..12].copy_from_slice(&checksum);
        }
        let addresses = Sum::new().over(&ip[if self.ipv6 { 8..40 } else { 12..20 }]);
        let udp = &mut head[l4..];
        if self.src_port.is_none() {
            // RFC 7348 section 5: of the ephemeral ports.
            udp[..2].copy_from_slice(&(key.flow() as u16 | 0x8000).to_be_bytes());
        }
        udp[4..6].copy_from_slice(&udp_len);
        if self.checksum {
            let pseudo = addresses.add_number(UDP.into()).add_number(u16::from_be_bytes(udp_len));
            let checksum = match pseudo.over(udp).checksum() {
                [0, 0] => [0xff; 2],
                checksum => checksum,
            };
            udp[6..8].copy_from_slice(&checksum);
        }
        Some(())
    }
}

const _: () = assert!(ETHERNET_LEN + 40 + UDP_LEN + TUNNEL_LEN <= MOST_HEADERS);
