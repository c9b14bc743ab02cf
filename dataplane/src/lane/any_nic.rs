//! A NIC of a lane, of whatever kind.

use std::sync::Arc;

use ringspan_protocol::meter::MeterSpec;
use ringspan_protocol::{Failure, FailureKind, NicSpec, NicStatus, Rule, RuleCounters, RuleId, RuleResult, VfSettings};

use crate::eswitch::nic::Nic;
use crate::flow::nic::PciNicOfLane;
use crate::relay::Load;
use crate::worker::Worker;

/// A software NIC, or one with a switch of its own.
pub(super) enum AnyNic {
    Soft(Box<Nic>),
    Pci(Box<PciNicOfLane>),
}

impl AnyNic {
    pub(super) fn open(spec: NicSpec, id: u64, workers: &[Arc<Worker>], max_ports: u16) -> Result<Self, Failure> {
        match spec.pci.clone() {
            Some(pci) => PciNicOfLane::open(spec, &pci).map(|nic| Self::Pci(Box::new(nic))),
            None => Nic::open(spec, id, workers, max_ports).map(|nic| Self::Soft(Box::new(nic))),
        }
    }

    pub(super) fn spec(&self) -> &NicSpec {
        match self {
            Self::Soft(nic) => nic.spec(),
            Self::Pci(nic) => nic.spec(),
        }
    }

    pub(super) fn status(&self) -> Result<NicStatus, Failure> {
        match self {
            Self::Soft(nic) => nic.status(),
            Self::Pci(nic) => Ok(nic.status()),
        }
    }

    pub(super) fn set_vf(&mut self, settings: VfSettings) -> Result<(), Failure> {
        match self {
            Self::Soft(nic) => nic.set_vf(settings),
            Self::Pci(nic) => {
                let message =
                    format!("NIC {}: the kernel sets what its VFs may do: ip link set PF vf N", nic.spec().name);
                Err(Failure::new(FailureKind::Unsupported, message))
            }
        }
    }

    /// How often a rule in use sends a frame to its representor, in milliseconds.
    pub(super) fn set_refresh(&mut self, ms: u32) -> Result<(), Failure> {
        match self {
            Self::Soft(nic) => nic.set_refresh(ms),
            Self::Pci(nic) => {
                let message = format!("NIC {}: it cannot send frames of its rules to representors", nic.spec().name);
                Err(Failure::new(FailureKind::Unsupported, message))
            }
        }
    }

    /// Meters of a NIC of its own are not made: there only nothing can be asked for.
    pub(super) fn set_meters(&mut self, meters: &[MeterSpec]) -> Result<(), Failure> {
        match self {
            Self::Soft(nic) => nic.set_meters(meters),
            Self::Pci(_) if meters.is_empty() => Ok(()),
            Self::Pci(nic) => {
                let message = format!("NIC {}: meters of a NIC of kind pci are not made", nic.spec().name);
                Err(Failure::new(FailureKind::Unsupported, message))
            }
        }
    }

    pub(super) fn remove_meters(&mut self, ids: &[u32]) -> Result<(), Failure> {
        match self {
            Self::Soft(nic) => nic.remove_meters(ids),
            Self::Pci(_) => Ok(()),
        }
    }

    pub(super) fn validate(&self, rules: &[Rule]) -> Vec<RuleResult> {
        match self {
            Self::Soft(nic) => nic.validate(rules),
            Self::Pci(nic) => nic.validate(rules),
        }
    }

    pub(super) fn install(&mut self, rules: Vec<Rule>) -> Result<Vec<RuleResult>, Failure> {
        match self {
            Self::Soft(nic) => nic.install(rules),
            Self::Pci(nic) => Ok(nic.install(rules)),
        }
    }

    pub(super) fn remove(&mut self, ids: &[RuleId]) -> Result<Vec<RuleResult>, Failure> {
        match self {
            Self::Soft(nic) => nic.remove(ids),
            Self::Pci(nic) => Ok(nic.remove(ids)),
        }
    }

    pub(super) fn counters(&mut self, after: Option<RuleId>, limit: usize) -> Result<Vec<RuleCounters>, Failure> {
        match self {
            Self::Soft(nic) => nic.counters(after, limit),
            Self::Pci(nic) => Ok(nic.counters(after, limit)),
        }
    }

    pub(super) fn list(&self, after: Option<RuleId>, limit: usize) -> Vec<Rule> {
        match self {
            Self::Soft(nic) => nic.list(after, limit),
            Self::Pci(nic) => nic.list(after, limit),
        }
    }

    /// A VF that a port has; those of a NIC of its own are devices of their own.
    pub(super) fn taken(&self) -> Option<u16> {
        match self {
            Self::Soft(nic) => nic.taken(),
            Self::Pci(_) => None,
        }
    }

    /// Its number, its worker's core, and what it made that worker do.
    pub(super) fn load(&self) -> Option<(u64, u16, &Load)> {
        match self {
            Self::Soft(nic) => Some(nic.load()),
            Self::Pci(_) => None,
        }
    }

    pub(super) fn close_with_representors(self) {
        match self {
            Self::Soft(nic) => nic.close_with_representors(),
            Self::Pci(nic) => drop(nic),
        }
    }
}
