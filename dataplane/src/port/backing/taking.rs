//! Whether a vDPA device can be a port's, and what the port is like then.

use std::path::Path;

use ringspan_protocol::{DeviceStatus, Failure, FailureKind, MacAddress, PolicyStatus, PortSpec};

use super::super::relaying::Make;
use crate::vdpa::{Handover, Refusal};

/// Opens the node of a vDPA device for a port.
///
/// # Errors
/// Why nobody can have the device.
pub(super) fn take_over(maker: &dyn Make, path: &Path, spec: &PortSpec) -> Result<Handover, Failure> {
    Handover::new(maker.node(path, spec)?)
        .map_err(|what| Failure::new(FailureKind::Unsupported, format!("device {}: it says {what}", spec.device)))
}

/// What may be offered while the device may get the rings, all ones where that is not known.
pub(super) fn offer(handover: &Handover) -> u64 {
    let facts = handover.facts();
    if facts.lie.is_some() { u64::MAX } else { facts.offer(u64::MAX) }
}

/// Why no device can have the port's rings, whatever it is.
pub(super) fn never(spec: &PortSpec) -> Option<String> {
    let rate = spec.max_rate;
    (rate > 0).then(|| format!("max_rate is {rate} Mbit/s, and nobody holds a vDPA device to it"))
}

/// Whether the device can have this port's rings. The text is why not.
pub(super) fn fits(handover: &Handover, spec: &PortSpec) -> Result<(), String> {
    if let Some(what) = &handover.facts().lie {
        return Err(format!("the device says {what}"));
    }
    let net = handover.facts().net;
    let pairs = handover.facts().pairs();
    if spec.queues > pairs {
        return Err(format!("queues is {}, and the device can be given {pairs}", spec.queues));
    }
    if let Some(why) = never(spec) {
        return Err(why);
    }
    if let Some(mtu) = net.mtu.filter(|mtu| *mtu < spec.mtu) {
        return Err(format!("the device's MTU is {mtu}, the port's {}", spec.mtu));
    }
    if let (Some(wanted), Some(has)) = (spec.mac, net.mac)
        && wanted != has
    {
        return Err(format!("the device's address is {has}, the port's {wanted}: give it that one when it is made"));
    }
    Ok(())
}

/// Whether the device will refuse the same features and the same size of a ring again.
pub(super) fn lasts(refusal: &Refusal) -> bool {
    use Refusal::{Features, Needs, NoPosition, NotAgreed, RingSize};
    matches!(refusal, Features(_) | Needs(_) | NoPosition | NotAgreed(_) | RingSize { .. })
}

pub(super) fn refused(reason: &str) -> Failure {
    Failure::new(FailureKind::Unsupported, format!("{reason}; mode auto would let a worker relay"))
}

/// A vDPA device as it is; `None` when it is gone.
pub(super) fn of_vdpa(spec: &PortSpec, handover: Option<&Handover>) -> DeviceStatus {
    let (link_up, speed_mbps) = handover.map_or((false, None), Handover::link);
    let net = handover.map(|handover| handover.facts().net).unwrap_or_default();
    let own = || PolicyStatus::Refused("in vDPA mode the device's filters are its own".into());
    DeviceStatus {
        driver: "vhost-vdpa".into(),
        link_up,
        speed_mbps,
        mac: net.mac.unwrap_or(MacAddress([0; 6])),
        mtu: net.mtu.unwrap_or(spec.mtu),
        queues: handover.map_or(1, |handover| handover.facts().pairs()),
        receive_wake: Default::default(),
        spread: Default::default(),
        promiscuous: own(),
        allmulti: own(),
        offloads: Default::default(),
        members: Vec::new(),
    }
}
