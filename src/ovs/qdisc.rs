//! Queueing disciplines on the host's interfaces, by rtnetlink. Those of a representor see only what the NIC did not forward.

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcAttribute, TcFilterFlowerOption, TcHandle, TcMessage, TcOption};

use super::rtnetlink::{Want, ask};

/// A discipline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Qdisc {
    /// The interface that it is on.
    pub interface: String,
    /// Its kind: `tbf`, `ingress`, `fq_codel`.
    pub kind: String,
}

impl Qdisc {
    /// Whether somebody put it there to shape or to police: the kernel's own choices do not.
    pub(crate) fn shapes(&self) -> bool {
        let plain = ["noqueue", "noop", "mq", "multiq", "fq_codel", "fq", "pfifo", "bfifo", "pfifo_fast", "sfq"];
        !plain.contains(&self.kind.as_str()) && !self.is_ingress()
    }

    /// Whether it is the place for filters: OVS has its own there when it offloads by TC.
    pub(crate) fn is_ingress(&self) -> bool {
        matches!(self.kind.as_str(), "ingress" | "clsact")
    }
}

/// All disciplines of this network namespace.
pub(crate) fn list() -> std::io::Result<Vec<Qdisc>> {
    let mut found = Vec::new();
    ask(RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default()), Want::All, |message| {
        if let RouteNetlinkMessage::NewQueueDiscipline(message) = message {
            found.extend(qdisc(&message));
        }
    })?;
    Ok(found)
}

/// How many rules of TC's are in the NIC for what comes in by this interface: those that it took (TCA_CLS_FLAGS_IN_HW of linux/pkt_cls.h), not
/// those that the kernel goes by alone.
pub(crate) fn in_nic(interface: &str) -> std::io::Result<usize> {
    let mut request = TcMessage::default();
    request.header.index = nix::net::if_::if_nametoindex(interface)?.try_into().unwrap_or_default();
    request.header.parent = INGRESS;
    let mut rules = 0;
    ask(RouteNetlinkMessage::GetTrafficFilter(request), Want::All, |message| {
        if let RouteNetlinkMessage::NewTrafficFilter(message) = message {
            rules += usize::from(is_in_nic(&message));
        }
    })?;
    Ok(rules)
}

/// What `tc filter show dev X ingress` asks for: TC_H_CLSACT and TC_H_MIN_INGRESS of linux/pkt_sched.h.
const INGRESS: TcHandle = TcHandle { major: 0xffff, minor: 0xfff2 };
/// TCA_CLS_FLAGS_IN_HW.
const IN_HW: u32 = 1 << 2;

fn is_in_nic(message: &TcMessage) -> bool {
    let options = message.attributes.iter().filter_map(|attribute| match attribute {
        TcAttribute::Options(options) => Some(options),
        _ => None,
    });
    options
        .flatten()
        .any(|option| matches!(option, TcOption::Flower(TcFilterFlowerOption::Flags(flags)) if flags & IN_HW != 0))
}

fn qdisc(message: &TcMessage) -> Option<Qdisc> {
    let kind = message.attributes.iter().find_map(|attribute| match attribute {
        TcAttribute::Kind(kind) => Some(kind.clone()),
        _ => None,
    })?;
    let index = message.header.index.try_into().ok()?;
    let interface = nix::net::if_::if_indextoname(index).ok()?.into_string().ok()?;
    Some(Qdisc { interface, kind })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_has_a_discipline_that_shapes_nothing() {
        let found = list().unwrap();
        let loopback = found.iter().find(|qdisc| qdisc.interface == "lo").unwrap();
        assert!(!loopback.shapes(), "{loopback:?}");
        let tbf = Qdisc { interface: "x".into(), kind: "tbf".into() };
        let ingress = Qdisc { interface: "x".into(), kind: "ingress".into() };
        assert!(tbf.shapes() && !ingress.shapes() && ingress.is_ingress());
    }

    #[test]
    fn a_rule_that_the_nic_took_is_told_from_one_that_it_did_not() {
        assert_eq!(in_nic("lo").unwrap(), 0);
        assert!(in_nic("nosuchinterface").is_err());
        let rule = |flags: u32| {
            let mut message = TcMessage::default();
            let options = vec![TcOption::Flower(TcFilterFlowerOption::Flags(flags))];
            message.attributes = vec![TcAttribute::Kind("flower".into()), TcAttribute::Options(options)];
            is_in_nic(&message)
        };
        // in_hw; not_in_hw; skip_hw.
        assert_eq!((rule(4), rule(8), rule(1)), (true, false, false));
    }
}
