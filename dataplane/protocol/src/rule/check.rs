//! What no engine could do: rules that contradict themselves, or touch headers that a frame they match need not have.

use super::action::{Action, TunnelPush};
use super::field::{Field, FieldMatch};
use super::{Match, Rule};

/// Most actions of a rule.
pub const MAX_ACTIONS: usize = 64;
/// Most bytes of GENEVE options (RFC 8926, section 3.4: 63 words of 4 bytes).
const MAX_OPTIONS: usize = 252;
/// Presence of a VLAN tag in a tag control field.
const TAGGED: u128 = 0x1000;

/// Why a rule cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuleError {
    /// A field is matched, and the protocol it belongs to is not.
    #[error("{0} is matched without {1}: a frame need not have it")]
    Unfounded(Field, &'static str),
    /// A field is set, and the protocol it belongs to is not matched.
    #[error("{0} is set without a match of {1}: a frame need not have it")]
    UnfoundedSet(Field, &'static str),
    /// A field that cannot be set.
    #[error("{0} cannot be set")]
    NotSettable(Field),
    /// There is nothing to be done.
    #[error("there is no action: write drop")]
    NoAction,
    /// More than [`MAX_ACTIONS`].
    #[error("there are {0} actions: at most {MAX_ACTIONS} are allowed")]
    TooMany(usize),
    /// A drop among other actions.
    #[error("drop is only possible alone")]
    DropAmongOthers,
    /// No output, and no drop.
    #[error("the actions end without an output: write drop alone to drop")]
    NoOutput,
    /// There need not be a VLAN tag.
    #[error("pop-vlan without a VLAN tag: match vlan_tci=0x1000/0x1000 or more of it")]
    NoVlan,
    /// More than two VLAN tags.
    #[error("push-vlan makes a third VLAN tag: a switch sees two")]
    ThirdVlan,
    /// Not a type of VLAN tags.
    #[error("{0:#x} is no type of VLAN tags: write 0x8100 or 0x88a8")]
    Tpid(u16),
    /// A tunnel is matched, and the frame stays in it.
    #[error("a tunnel is matched: tunnel-pop must be the first action")]
    StaysInTunnel,
    /// There need not be a tunnel.
    #[error("tunnel-pop is possible as the first action of a rule that matches tunnel_kind")]
    NoTunnel,
    /// Something behind a tunnel's header was put in front.
    #[error("only outputs may follow tunnel-push")]
    AfterPush,
    /// Of the kind of a tunnel only some bits are matched.
    #[error("tunnel_kind is matched in part: match all of it, 0, 1 or 2")]
    TunnelInPart,
    /// A tunnel over IPv4 and over IPv6 at once.
    #[error("addresses of a tunnel over IPv4 and of one over IPv6 are matched: no packet has both")]
    TwoFamilies,
    /// Of a tunnel's option only some bits are matched.
    #[error("{0} is matched in part: match all of it")]
    OptionInPart(Field),
    /// The tunnel's headers are wrong.
    #[error("tunnel-push: {0}")]
    Push(&'static str),
}

/// The protocols a frame is known to have.
#[derive(Clone, Copy)]
struct Known {
    eth_type: Option<u128>,
    proto: Option<u128>,
    /// VLAN tags, of which there may be more.
    tags: u32,
    tunnel: Option<u128>,
    /// The tunnel is over IPv4.
    tunnel_ipv4: bool,
    /// It is over IPv6.
    tunnel_ipv6: bool,
    /// There is an option in the tunnel's header.
    option: bool,
    /// Of ICMPv6.
    icmp_type: Option<u128>,
}

impl Rule {
    /// Whether the rule makes sense, whatever the engine.
    ///
    /// # Errors
    /// [`RuleError`] for the first thing that does not.
    pub fn check(&self) -> Result<(), RuleError> {
        let mut known = Known::of(&self.matches);
        for field in self.matches.fields() {
            if field.field() == Field::TunnelKind && !field.is_exact() {
                return Err(RuleError::TunnelInPart);
            }
            if matches!(field.field(), Field::TunnelOption | Field::TunnelOptionShape) && !field.is_exact() {
                return Err(RuleError::OptionInPart(field.field()));
            }
            known.has(field.field()).map_err(|needs| RuleError::Unfounded(field.field(), needs))?;
        }
        if known.tunnel_ipv4 && known.tunnel_ipv6 {
            return Err(RuleError::TwoFamilies);
        }
        known.check_actions(&self.actions)
    }
}

impl Known {
    fn of(matches: &Match) -> Self {
        let tagged = |field| matches.get(field).is_some_and(|tag: &FieldMatch| tag.value() & TAGGED != 0);
        let (outer, inner) = (tagged(Field::VlanTci), tagged(Field::InnerVlanTci));
        Self {
            eth_type: matches.exact(Field::EthType),
            proto: matches.exact(Field::IpProto),
            tags: u32::from(outer) + u32::from(outer && inner),
            tunnel: matches.exact(Field::TunnelKind).filter(|kind| *kind != 0),
            tunnel_ipv4: matches.get(Field::TunnelIpv4Dst).is_some() || matches.get(Field::TunnelIpv4Src).is_some(),
            tunnel_ipv6: matches.get(Field::TunnelIpv6Dst).is_some() || matches.get(Field::TunnelIpv6Src).is_some(),
            option: matches.get(Field::TunnelOption).is_some(),
            icmp_type: matches.exact(Field::IcmpType),
        }
    }

    /// Whether a frame is known to have the field; else what has to be matched for that.
    fn has(&self, field: Field) -> Result<(), &'static str> {
        let ipv4 = self.eth_type == Some(0x0800);
        let ipv6 = self.eth_type == Some(0x86dd);
        let arp = matches!(self.eth_type, Some(0x0806 | 0x8035));
        let ip = ipv4 || ipv6;
        let (there, needs) = match field {
            Field::EthSrc | Field::EthDst | Field::EthType | Field::VlanTpid | Field::VlanTci => (true, ""),
            Field::InnerVlanTpid | Field::InnerVlanTci | Field::TunnelKind => (true, ""),
            Field::Ipv4Src | Field::Ipv4Dst => (ipv4, "eth_type=0x800"),
            Field::Ipv6Src | Field::Ipv6Dst | Field::Ipv6Label => (ipv6, "eth_type=0x86dd"),
            Field::IpProto | Field::IpTos | Field::IpTtl | Field::IpFrag => (ip, "eth_type=0x800 or 0x86dd"),
            Field::SrcPort | Field::DstPort => {
                (ip && matches!(self.proto, Some(6 | 17 | 132)), "ip_proto=6, 17 or 132")
            }
            Field::TcpFlags => (ip && self.proto == Some(6), "ip_proto=6"),
            Field::IcmpType | Field::IcmpCode => {
                (ipv4 && self.proto == Some(1) || ipv6 && self.proto == Some(58), "ip_proto=1 (IPv4) or 58 (IPv6)")
            }
            Field::ArpOp | Field::ArpSpa | Field::ArpTpa | Field::ArpSha | Field::ArpTha => (arp, "eth_type=0x806"),
            Field::NdTarget | Field::NdSll | Field::NdTll => (
                ipv6 && self.proto == Some(58) && matches!(self.icmp_type, Some(135 | 136)),
                "ip_proto=58 and icmp_type=135 or 136",
            ),
            Field::TunnelOption => (self.tunnel == Some(2), "tunnel_kind=2"),
            Field::TunnelOptionData => (self.tunnel == Some(2) && self.option, "tunnel_kind=2 and tunnel_option"),
            Field::TunnelOptionShape | Field::TunnelOptionMore => (
                self.tunnel == Some(2) && self.option && self.tunnel_ipv4,
                "tunnel_kind=2, tunnel_option and tunnel_ipv4_dst",
            ),
            Field::TunnelId
            | Field::TunnelIpv4Src
            | Field::TunnelIpv4Dst
            | Field::TunnelIpv6Src
            | Field::TunnelIpv6Dst
            | Field::TunnelTos
            | Field::TunnelTtl
            | Field::TunnelSrcPort
            | Field::TunnelDstPort
            | Field::TunnelFlags => (self.tunnel.is_some(), "tunnel_kind=1 or 2"),
            Field::TunnelEthSrc | Field::TunnelEthDst => (
                self.tunnel.is_some() && (self.tunnel_ipv4 || self.tunnel_ipv6),
                "tunnel_kind=1 or 2 and tunnel_ipv4_dst or tunnel_ipv6_dst",
            ),
        };
        if there { Ok(()) } else { Err(needs) }
    }

    fn check_actions(&mut self, actions: &[Action]) -> Result<(), RuleError> {
        match actions {
            [] => return Err(RuleError::NoAction),
            [Action::Drop] => return Ok(()),
            more if more.len() > MAX_ACTIONS => return Err(RuleError::TooMany(more.len())),
            _ => {}
        }
        if self.tunnel.is_some() && actions[0] != Action::TunnelPop {
            return Err(RuleError::StaysInTunnel);
        }
        let (mut pushed, mut output) = (false, false);
        for (at, action) in actions.iter().enumerate() {
            if pushed && !matches!(action, Action::Output(_)) {
                return Err(RuleError::AfterPush);
            }
            match action {
                Action::Output(_) => output = true,
                Action::Drop => return Err(RuleError::DropAmongOthers),
                Action::PushVlan { tpid, .. } => self.push_vlan(*tpid)?,
                Action::PopVlan => self.tags = self.tags.checked_sub(1).ok_or(RuleError::NoVlan)?,
                Action::Set(field) => self.check_set(field.field())?,
                Action::DecTtl => {
                    self.has(Field::IpTtl).map_err(|needs| RuleError::UnfoundedSet(Field::IpTtl, needs))?;
                }
                Action::TunnelPush(push) => {
                    check_push(push)?;
                    pushed = true;
                }
                Action::TunnelPop if at == 0 && self.tunnel.is_some() => {}
                Action::TunnelPop => return Err(RuleError::NoTunnel),
                Action::Meter(_) => {}
            }
        }
        if output { Ok(()) } else { Err(RuleError::NoOutput) }
    }

    fn push_vlan(&mut self, tpid: u16) -> Result<(), RuleError> {
        if !matches!(tpid, 0x8100 | 0x88a8) {
            return Err(RuleError::Tpid(tpid));
        }
        if self.tags == 2 {
            return Err(RuleError::ThirdVlan);
        }
        self.tags += 1;
        Ok(())
    }

    fn check_set(&self, field: Field) -> Result<(), RuleError> {
        let needs = match field {
            Field::EthType
            | Field::VlanTpid
            | Field::InnerVlanTpid
            | Field::InnerVlanTci
            | Field::IpProto
            | Field::IpFrag
            | Field::NdTarget
            | Field::NdSll
            | Field::NdTll
            | Field::TcpFlags => return Err(RuleError::NotSettable(field)),
            field if field.is_tunnel() => return Err(RuleError::NotSettable(field)),
            Field::VlanTci if self.tags == 0 => Err("vlan_tci=0x1000/0x1000 or more of it"),
            field => self.has(field),
        };
        needs.map_err(|needs| RuleError::UnfoundedSet(field, needs))
    }
}

fn check_push(push: &TunnelPush) -> Result<(), RuleError> {
    let options = push.option_bytes().ok_or(RuleError::Push("its options are not hexadecimal"))?;
    let wrong = if push.id > 0xff_ffff {
        "its id has more than 24 bits"
    } else if push.src.is_ipv4() != push.dst.is_ipv4() {
        "its addresses are of different families"
    } else if !options.len().is_multiple_of(4) || options.len() > MAX_OPTIONS {
        "its options are no multiple of 4 bytes, or more than 252"
    } else if super::has_critical(&options).is_none() {
        "its options do not fill their bytes"
    } else if !options.is_empty() && push.kind != super::TunnelKind::Geneve {
        "options belong to GENEVE"
    } else {
        return Ok(());
    };
    Err(RuleError::Push(wrong))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rule::RuleId;
    use crate::{NicPort, TunnelKind};

    fn rule(matches: &[&str], actions: Vec<Action>) -> Rule {
        let matches = Match::new(matches.iter().map(|text| text.parse().unwrap())).unwrap();
        Rule { id: RuleId(1), priority: 0, in_port: NicPort::Vf(0), matches, actions, refresh: true }
    }

    fn out() -> Action {
        Action::Output(NicPort::Uplink)
    }

    fn set(text: &str) -> Action {
        Action::Set(text.parse().unwrap())
    }

    fn push() -> TunnelPush {
        TunnelPush {
            kind: TunnelKind::Vxlan,
            id: 42,
            eth_src: "52:54:00:00:00:01".parse().unwrap(),
            eth_dst: "52:54:00:00:00:02".parse().unwrap(),
            src: "10.0.0.1".parse().unwrap(),
            dst: "10.0.0.2".parse().unwrap(),
            tos: 0,
            ttl: 64,
            dont_fragment: true,
            src_port: None,
            dst_port: 4789,
            checksum: false,
            options: String::new(),
        }
    }

    #[test]
    fn a_field_needs_its_protocol() {
        for (matches, good) in [
            (&["ipv4_dst=10.0.0.1"][..], false),
            (&["eth_type=0x800/0xff00", "ipv4_dst=10.0.0.1"], false),
            (&["eth_type=0x800", "ipv4_dst=10.0.0.1"], true),
            (&["eth_type=0x800", "tp_dst=80"], false),
            (&["eth_type=0x86dd", "ip_proto=17", "tp_dst=80"], true),
            (&["eth_type=0x86dd", "ip_proto=1", "icmp_type=8"], false),
            (&["eth_type=0x806", "arp_op=1"], true),
            (&["tunnel_id=0x5"], false),
            (&["eth_type=0x86dd", "ip_proto=58", "nd_target=fe80::1"], false),
            (&["eth_type=0x86dd", "ip_proto=58", "icmp_type=135", "nd_target=fe80::1"], true),
        ] {
            assert_eq!(rule(matches, vec![out()]).check().is_ok(), good, "{matches:?}");
        }
    }

    #[test]
    fn a_tunnel_is_matched_as_a_whole() {
        for (kind, wrong) in [
            ("tunnel_kind=0", None),
            ("tunnel_kind=1/1", Some(RuleError::TunnelInPart)),
            ("tunnel_kind=0/2", Some(RuleError::TunnelInPart)),
        ] {
            assert_eq!(rule(&[kind], vec![out()]).check().err(), wrong, "{kind}");
        }
    }

    #[test]
    fn a_tunnel_is_over_ipv4_or_over_ipv6() {
        for (fields, good) in [
            (&["tunnel_ipv4_dst=10.0.0.1", "tunnel_ipv4_src=10.0.0.2"][..], true),
            (&["tunnel_ipv6_dst=fd00::1", "tunnel_ipv6_src=fd00::2"], true),
            (&["tunnel_ipv4_dst=10.0.0.1", "tunnel_ipv6_dst=fd00::1"], false),
            (&["tunnel_ipv4_src=10.0.0.1", "tunnel_ipv6_dst=fd00::/ffff::"], false),
        ] {
            let found = rule(&[&["tunnel_kind=1"], fields].concat(), vec![Action::TunnelPop, out()]).check();
            assert_eq!(found.err(), (!good).then_some(RuleError::TwoFamilies), "{fields:?}");
        }
    }

    #[test]
    fn actions_make_sense_together() {
        let ip = ["eth_type=0x800"];
        let tagged = ["vlan_tci=0x1005/0x1fff", "eth_type=0x800"];
        let tunnel = ["tunnel_kind=1", "eth_type=0x800"];
        let tag = |tpid| Action::PushVlan { tpid, tci: 5 };
        let pushed = |push| Action::TunnelPush(Box::new(push));
        for (matches, actions, wrong) in [
            (&ip[..], vec![], Some(RuleError::NoAction)),
            (&ip, vec![Action::Drop], None),
            (&ip, vec![Action::Drop, out()], Some(RuleError::DropAmongOthers)),
            (&ip, vec![Action::DecTtl], Some(RuleError::NoOutput)),
            (&ip, vec![Action::PopVlan, out()], Some(RuleError::NoVlan)),
            (&tagged, vec![Action::PopVlan, out()], None),
            (&tagged, vec![Action::PopVlan, Action::PopVlan, out()], Some(RuleError::NoVlan)),
            (&ip, vec![tag(0x9100), out()], Some(RuleError::Tpid(0x9100))),
            (&tagged, vec![tag(0x88a8), tag(0x8100), out()], Some(RuleError::ThirdVlan)),
            (&ip, vec![tag(0x8100), set("vlan_tci=0x2000/0xe000"), out()], None),
            (&ip, vec![set("ip_ttl=3"), Action::DecTtl, out(), set("eth_dst=52:54:00:00:00:09"), out()], None),
            (&ip, vec![set("ip_proto=6"), out()], Some(RuleError::NotSettable(Field::IpProto))),
            (&[], vec![Action::DecTtl, out()], Some(RuleError::UnfoundedSet(Field::IpTtl, "eth_type=0x800 or 0x86dd"))),
            (&tunnel, vec![out()], Some(RuleError::StaysInTunnel)),
            (&tunnel, vec![Action::TunnelPop, set("ipv4_dst=1.2.3.4"), out()], None),
            (&ip, vec![Action::TunnelPop, out()], Some(RuleError::NoTunnel)),
            (&ip, vec![pushed(push()), out(), out()], None),
            (&ip, vec![pushed(push()), set("ip_ttl=3"), out()], Some(RuleError::AfterPush)),
            (&ip, vec![out(); MAX_ACTIONS + 1], Some(RuleError::TooMany(MAX_ACTIONS + 1))),
        ] {
            assert_eq!(rule(matches, actions.clone()).check().err(), wrong, "{matches:?} {actions:?}");
        }
        for bad in [
            TunnelPush { id: 1 << 24, ..push() },
            TunnelPush { dst: "fe80::1".parse().unwrap(), ..push() },
            TunnelPush { options: "0102".into(), kind: TunnelKind::Geneve, ..push() },
            TunnelPush { options: "01020300".into(), ..push() },
            TunnelPush { options: "01020301".into(), kind: TunnelKind::Geneve, ..push() },
            TunnelPush { options: "0x".into(), ..push() },
        ] {
            assert!(matches!(rule(&ip, vec![pushed(bad), out()]).check(), Err(RuleError::Push(_))));
        }
    }
}
