//! What of a flow no engine of ringspan can do, by reasons that keep their codes.
//!
//! An engine matches the input port, MAC addresses, Ethertype, two VLANs, IP addresses, protocol, TOS, TTL, fragments, ports, TCP
//! flags, ICMP, ARP and a tunnel's id, addresses and ports; it outputs, drops, pushes and pops VLANs and tunnels, sets header fields,
//! counts TTLs down and meters. A flow that wants anything else stays with OVS, for one of these reasons. That a flow has none does not yet
//! mean that an engine takes it: ports must be the engine's own, and a NIC may refuse what the software engine does.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;

use super::Flow;
use super::action::Action;
use super::flags::TunnelFlags;
use super::key::{Ipv6, Key, PortRef};
use super::push::TunnelHeader;
use super::tunnel::{GeneveOption, Tunnel};

macro_rules! reasons {
    ($($name:ident, $code:literal, $sentence:literal;)*) => {
        /// Why a flow stays with OVS. A code never changes its meaning; new ones may be added.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $sentence] $name,)*
        }

        impl Reason {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$name),*];

            /// The stable word for programs.
            pub fn code(self) -> &'static str {
                match self {
                    $(Self::$name => $code,)*
                }
            }

            /// The sentence for people.
            pub fn sentence(self) -> &'static str {
                match self {
                    $(Self::$name => $sentence,)*
                }
            }
        }
    };
}

reasons! {
    MatchRecirculated, "match-recirculated", "It matches packets that went round in OVS before (recirc_id is not 0).";
    MatchConntrack, "match-conntrack", "It matches the state of a connection (ct_state, ct_zone, ct_mark, ct_label, ct_tuple).";
    MatchHash, "match-hash", "It matches a hash that OVS computed (dp_hash).";
    MatchMetadata, "match-metadata", "It matches what only the host knows of a packet (skb_priority, skb_mark).";
    MatchPacketType, "match-packet-type", "It matches packets without an Ethernet header.";
    MatchInPortMask, "match-in-port-mask", "It matches some bits of the input port's number.";
    MatchNoEthertype, "match-no-ethertype", "It matches frames without an Ethertype (802.2), or whose VLAN header was cut off.";
    MatchVlanDepth, "match-vlan-depth", "It matches more than two VLAN headers.";
    MatchMpls, "match-mpls", "It matches MPLS labels.";
    MatchNsh, "match-nsh", "It matches a network service header.";
    MatchIpv6Label, "match-ipv6-label", "It matches IPv6's flow label.";
    MatchNd, "match-nd", "It matches the flags of neighbour discovery, or its options as such.";
    MatchTunnelOptions, "match-tunnel-options", "It matches a tunnel's options (VXLAN group policy, ERSPAN, GTP-U, GENEVE options but for one of 4, 8 or 12 bytes or two of 4, all of whose classes and types count).";
    MatchTunnelHeader, "match-tunnel-header", "It matches a tunnel's OAM flag.";
    MatchUnknown, "match-unknown", "It matches something that OVS itself prints as a number.";
    ActionConntrack, "action-conntrack", "It tracks connections or translates addresses (ct, ct_clear).";
    ActionRecirculate, "action-recirculate", "It has OVS look the packet up again (recirc).";
    ActionUserspace, "action-userspace", "It sends packets to ovs-vswitchd: the slow path, a controller, sFlow or IPFIX.";
    ActionHash, "action-hash", "It computes a hash or balances over a bond in OVS (hash, lb_output).";
    ActionSample, "action-sample", "It samples packets (sample, psample).";
    ActionClone, "action-clone", "It does something to a copy, and goes on with the packet as it was (clone).";
    ActionLength, "action-length", "It depends on a packet's length, or cuts packets (check_pkt_len, trunc).";
    ActionMpls, "action-mpls", "It changes MPLS labels.";
    ActionNsh, "action-nsh", "It changes a network service header.";
    ActionEthernet, "action-ethernet", "It adds or removes the Ethernet header (push_eth, pop_eth).";
    ActionSetMetadata, "action-set-metadata", "It sets what only the host knows of a packet (skb_priority, skb_mark, ct_mark and such).";
    ActionSetField, "action-set-field", "It sets a field that is none of the engine's (IPv6's flow label, neighbour discovery).";
    ActionTunnelOptions, "action-tunnel-options", "It sends through a tunnel with options or flags that are none of the engine's.";
    ActionTunnelKind, "action-tunnel-kind", "It sends through a tunnel that is neither VXLAN nor GENEVE.";
    ActionTtlException, "action-ttl-exception", "It does something other than drop with packets whose TTL is used up (dec_ttl).";
    ActionUnknown, "action-unknown", "It does something that OVS itself prints as a number.";
}

impl Display for Reason {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

impl Serialize for Reason {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}

/// One part of a flow that keeps it with OVS.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Obstacle {
    /// Why.
    pub reason: Reason,
    /// The part, as OVS prints it.
    pub part: String,
}

impl Flow {
    /// What keeps this flow with OVS, in the order of its text; nothing when an engine could have it.
    pub fn obstacles(&self) -> Vec<Obstacle> {
        let mut found = Vec::new();
        self.each_obstacle(&mut |reason, part| found.push(Obstacle { reason, part: part.to_string() }));
        found
    }

    /// The first reason alone, without the part's text: for many flows.
    pub fn first_reason(&self) -> Option<Reason> {
        let mut first = None;
        self.each_obstacle(&mut |reason, _| first = first.or(Some(reason)));
        first
    }

    fn each_obstacle(&self, report: &mut Report<'_>) {
        keys(&self.keys, 0, report);
        actions(&self.actions, report);
    }
}

type Report<'a> = dyn FnMut(Reason, &dyn Display) + 'a;

fn keys(keys: &[Key], vlans: usize, report: &mut Report<'_>) {
    for key in keys {
        match key {
            Key::Encap(inner) => {
                if vlans == 2 {
                    report(Reason::MatchVlanDepth, key);
                }
                self::keys(inner, vlans + 1, report);
            }
            _ if key.is_wildcard() => {}
            _ => {
                if let Some(reason) = of_key(key) {
                    report(reason, key);
                }
            }
        }
    }
}

/// A key of which some bit counts.
fn of_key(key: &Key) -> Option<Reason> {
    match key {
        Key::RecircId(id) => (id.value != 0 || !id.is_exact()).then_some(Reason::MatchRecirculated),
        Key::DpHash(_) => Some(Reason::MatchHash),
        Key::SkbPriority(_) | Key::SkbMark(_) => Some(Reason::MatchMetadata),
        Key::CtState(_) | Key::CtZone(_) | Key::CtMark(_) | Key::CtLabel(_) | Key::CtTuple4(_) | Key::CtTuple6(_) => {
            Some(Reason::MatchConntrack)
        }
        Key::Tunnel(tunnel) => of_tunnel(tunnel),
        Key::InPort { port, mask } => {
            (*mask != u32::MAX && matches!(port, PortRef::Number(_))).then_some(Reason::MatchInPortMask)
        }
        Key::PacketType { ns, id } => {
            let ethernet = ns.value & ns.mask == 0 && id.value & id.mask == 0;
            (!ethernet || !ns.is_exact()).then_some(Reason::MatchPacketType)
        }
        Key::NoEthType { .. } => Some(Reason::MatchNoEthertype),
        Key::Vlan(tci) => (!tci.cfi).then_some(Reason::MatchNoEthertype),
        Key::Mpls(_) => Some(Reason::MatchMpls),
        Key::Nsh(_) => Some(Reason::MatchNsh),
        Key::Ipv6(ip) => (!ip.label.is_wildcard()).then_some(Reason::MatchIpv6Label),
        Key::NdExt { .. } => Some(Reason::MatchNd),
        Key::Unknown(_) => Some(Reason::MatchUnknown),
        Key::Eth { .. }
        | Key::EthType(_)
        | Key::Encap(_)
        | Key::Ipv4(_)
        | Key::Tcp(_)
        | Key::TcpFlags(_)
        | Key::Udp(_)
        | Key::Sctp(_)
        | Key::Icmp(_)
        | Key::Nd(_)
        | Key::Icmpv6(_)
        | Key::Arp(_) => None,
    }
}

fn of_tunnel(tunnel: &Tunnel) -> Option<Reason> {
    if !tunnel.unknown.is_empty() {
        return Some(Reason::MatchUnknown);
    }
    if has_options(tunnel) {
        return Some(Reason::MatchTunnelOptions);
    }
    (tunnel.flags.mask.0 & OAM != 0).then_some(Reason::MatchTunnelHeader)
}

/// The flag of [`TunnelFlags`] that says more than the kind of tunnel does.
const OAM: u8 = 0x1;

/// One of 4, 8 or 12 bytes or two of 4, with all of their classes, types and lengths: OVN has one of 4.
fn are_plain(options: &[GeneveOption]) -> bool {
    let is_whole = |option: &GeneveOption| {
        option.class.mask == u16::MAX && option.kind.mask == u8::MAX && option.len.mask & 0x1f == 0x1f
    };
    let fit = match options {
        [one] => matches!(one.data.len(), 4 | 8 | 12),
        [first, second] => first.data.len() == 4 && second.data.len() == 4,
        _ => false,
    };
    fit && options.iter().all(is_whole)
}

fn has_options(tunnel: &Tunnel) -> bool {
    let vxlan = tunnel.vxlan.as_ref().is_some_and(|vxlan| {
        !vxlan.unknown.is_empty() || vxlan.gbp.is_some_and(|gbp| gbp.id.mask != 0 || gbp.flags.mask != 0)
    });
    let counts = tunnel.geneve.iter().flatten().any(|option| {
        option.class.mask != 0
            || option.kind.mask != 0
            || option.len.mask != 0
            || option.data_mask.iter().any(|m| *m != 0)
    });
    let geneve = counts && !tunnel.geneve.as_deref().is_some_and(are_plain);
    vxlan || geneve || tunnel.erspan.is_some() || tunnel.gtpu.is_some()
}

fn actions(actions: &[Action], report: &mut Report<'_>) {
    for (index, action) in actions.iter().enumerate() {
        // The last one may do to the packet what it would do to a copy.
        if let (Action::Clone(inner), true) = (action, index + 1 == actions.len()) {
            self::actions(inner, report);
        } else if let Some(reason) = of_action(action) {
            report(reason, action);
        }
    }
}

fn of_action(action: &Action) -> Option<Reason> {
    match action {
        Action::Output(_)
        | Action::Drop
        | Action::PushVlan(_)
        | Action::PopVlan
        | Action::Meter(_)
        | Action::TunnelPop(_) => None,
        Action::Userspace(_) => Some(Reason::ActionUserspace),
        Action::Set(key) => of_set(key),
        Action::PushMpls(_) | Action::PopMpls { .. } | Action::AddMpls(_) => Some(Reason::ActionMpls),
        Action::Recirc(_) => Some(Reason::ActionRecirculate),
        Action::Hash { .. } | Action::LbOutput(_) => Some(Reason::ActionHash),
        Action::Ct(_) | Action::CtClear => Some(Reason::ActionConntrack),
        Action::Sample { .. } | Action::Psample { .. } => Some(Reason::ActionSample),
        Action::Clone(_) => Some(Reason::ActionClone),
        Action::CheckPktLen { .. } | Action::Trunc(_) => Some(Reason::ActionLength),
        Action::TunnelPush(push) => match push.header {
            TunnelHeader::Vxlan { .. } => None,
            // That there are critical options follows from the options; a header that says otherwise is nobody's.
            TunnelHeader::Geneve { oam, critical, ref options, .. } => {
                let follows = options.iter().flatten().any(|option| option.kind.value & 0x80 != 0);
                (oam || critical != follows).then_some(Reason::ActionTunnelOptions)
            }
            _ => Some(Reason::ActionTunnelKind),
        },
        Action::PushNsh(_) | Action::PopNsh => Some(Reason::ActionNsh),
        Action::PushEth { .. } | Action::PopEth => Some(Reason::ActionEthernet),
        Action::DecTtl(exception) => (!drops(exception)).then_some(Reason::ActionTtlException),
        Action::Unknown { .. } => Some(Reason::ActionUnknown),
    }
}

fn drops(actions: &[Action]) -> bool {
    matches!(actions, [] | [Action::Drop])
}

fn of_set(key: &Key) -> Option<Reason> {
    match key {
        Key::Eth { .. }
        | Key::Vlan(_)
        | Key::Ipv4(_)
        | Key::Tcp(_)
        | Key::Udp(_)
        | Key::Sctp(_)
        | Key::Icmp(_)
        | Key::Icmpv6(_)
        | Key::Arp(_) => None,
        Key::Ipv6(ip) => (ip.label.mask & Ipv6::LABEL_MASK != 0).then_some(Reason::ActionSetField),
        Key::Tunnel(tunnel) => {
            let TunnelFlags(flags) = tunnel.flags.value;
            let more = has_options(tunnel) || !tunnel.unknown.is_empty() || flags & OAM != 0;
            more.then_some(Reason::ActionTunnelOptions)
        }
        Key::Mpls(_) => Some(Reason::ActionMpls),
        Key::Nsh(_) => Some(Reason::ActionNsh),
        Key::RecircId(_)
        | Key::DpHash(_)
        | Key::SkbPriority(_)
        | Key::SkbMark(_)
        | Key::CtState(_)
        | Key::CtZone(_)
        | Key::CtMark(_)
        | Key::CtLabel(_)
        | Key::CtTuple4(_)
        | Key::CtTuple6(_)
        | Key::InPort { .. } => Some(Reason::ActionSetMetadata),
        _ => Some(Reason::ActionSetField),
    }
}
