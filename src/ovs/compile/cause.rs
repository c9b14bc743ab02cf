//! Why a flow is not offloaded.

use crate::ovs::flow::obstacle;

/// A reason, with what it is about. Codes keep their meaning; new ones may be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Cause {
    /// It matches or does what no engine can.
    Flow(obstacle::Reason),
    /// It matches options of GENEVE that no rule can say: too long, or in part.
    TunnelOptions(String),
    /// It comes in by a port that is no NIC's.
    ForeignPort(String),
    /// It goes out by a port that is no NIC's.
    ForeignOutput(String),
    /// It goes from one NIC to another.
    OtherNic(String),
    /// It came out of a tunnel that does not come in by a NIC's uplink.
    ForeignTunnel(String),
    /// It takes packets out of a tunnel.
    TunnelPop,
    /// It sends into a tunnel of the kernel's, whose packets do not go by a NIC's uplink.
    SetTunnel(String),
    /// It has a meter of OVS's that the NIC cannot have.
    Meter(String),
    /// Nothing passed by the NIC for Open vSwitch's idle time.
    Idle,
    /// It does something with a frame between or behind its outputs that a rule cannot say.
    Order(&'static str),
    /// It has a match or a value that a rule cannot say.
    Field(String),
    /// It contradicts itself in the engine's eyes.
    Rule(String),
    /// It does not say by which port packets come in.
    NoInPort,
    /// It has no ufid.
    NoUfid,
    /// It was told twice in one dump, and not alike.
    Torn,
    /// Its text could not be read.
    Unreadable(String),
    /// The engine refused it.
    Engine(String),
}

/// The codes of causes that are not a flow's own, and what they mean.
const CODES: &[(&str, &str)] = &[
    ("in-port", "It comes in by a port that is not of a NIC of ringspan's."),
    ("output", "It goes out by a port that is not of a NIC of ringspan's, such as the bridge's own."),
    ("other-nic", "It goes from one NIC to another: each has a switch of its own."),
    (
        "tunnel-port",
        "It came out of a tunnel whose packets do not come in by a NIC's uplink, untagged, or not for an address of the host's there.",
    ),
    ("tunnel-pop", "It takes packets out of a tunnel: the flows of what is inside are offloaded instead."),
    (
        "set-tunnel",
        "It sends into a tunnel of the kernel's, whose packets do not go out by a NIC's uplink, or not yet.",
    ),
    ("meter", "It has a meter of OVS's that the NIC does not have."),
    (
        "idle",
        "Nothing of it passed by the NIC for Open vSwitch's idle time: its rule comes back with the next packet that Open vSwitch sees.",
    ),
    ("order", "It does things in an order that a rule cannot say."),
    ("field", "It has a match or a value that a rule cannot say."),
    ("rule", "It touches headers that a frame it matches need not have."),
    ("no-in-port", "It does not say by which port packets come in."),
    ("no-ufid", "It has no ufid, by which it would be known again."),
    ("torn", "Two flows have its ufid, or two threads of OVS have it with other actions."),
    ("unreadable", "Its text could not be read."),
    ("engine", "The NIC refused the rule."),
];

/// All codes, and what they mean: those of what is in a flow, then the others.
pub(crate) fn codes() -> impl Iterator<Item = (&'static str, &'static str)> {
    let of_flows = obstacle::Reason::ALL.iter().map(|reason| (reason.code(), reason.sentence()));
    of_flows.chain(CODES.iter().copied())
}

impl Cause {
    /// The stable word for programs.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::Flow(reason) => reason.code(),
            Self::TunnelOptions(_) => obstacle::Reason::MatchTunnelOptions.code(),
            Self::ForeignPort(_) => "in-port",
            Self::ForeignOutput(_) => "output",
            Self::OtherNic(_) => "other-nic",
            Self::ForeignTunnel(_) => "tunnel-port",
            Self::TunnelPop => "tunnel-pop",
            Self::SetTunnel(_) => "set-tunnel",
            Self::Meter(_) => "meter",
            Self::Idle => "idle",
            Self::Order(_) => "order",
            Self::Field(_) => "field",
            Self::Rule(_) => "rule",
            Self::NoInPort => "no-in-port",
            Self::NoUfid => "no-ufid",
            Self::Torn => "torn",
            Self::Unreadable(_) => "unreadable",
            Self::Engine(_) => "engine",
        }
    }

    /// The sentence for people.
    pub(crate) fn sentence(&self) -> String {
        let general = match self {
            Self::Flow(reason) => reason.sentence(),
            Self::TunnelOptions(_) => obstacle::Reason::MatchTunnelOptions.sentence(),
            _ => CODES.iter().find(|(code, _)| *code == self.code()).map_or("", |(_, sentence)| sentence),
        };
        match self.about() {
            Some(about) => format!("{} ({about})", general.trim_end_matches('.')),
            None => general.to_owned(),
        }
    }

    fn about(&self) -> Option<String> {
        match self {
            Self::ForeignPort(what) | Self::ForeignOutput(what) | Self::OtherNic(what) | Self::ForeignTunnel(what) => {
                Some(what.clone())
            }
            Self::SetTunnel(what)
            | Self::TunnelOptions(what)
            | Self::Field(what)
            | Self::Meter(what)
            | Self::Rule(what)
            | Self::Unreadable(what)
            | Self::Engine(what) => Some(what.clone()),
            Self::Order(what) => Some((*what).to_owned()),
            _ => None,
        }
    }
}
