//! A lane's NICs, and what control may ask of them.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use ringspan_protocol::message::MAX_RULES;
use ringspan_protocol::{DeviceSpec, Failure, FailureKind, NicName, NicSpec, NicStatus, Reply, Request};

use super::any_nic::AnyNic;
use super::{Lane, same_part};
use crate::eswitch::nic::devices_of;

/// The NICs by name.
#[derive(Default)]
pub(super) struct Nics {
    by_name: BTreeMap<NicName, AnyNic>,
    last_id: u64,
}

impl Lane {
    /// Answers a request about NICs and rules; others are none of its business.
    pub(super) fn answer_nic(&self, request: Request) -> Result<Reply, Failure> {
        match request {
            Request::NicAdd(spec) => self.add_nic(*spec).map(|status| Reply::Nic(Box::new(status))),
            Request::NicRemove { name, representors } => self.remove_nic(&name, representors).map(|()| Reply::Done),
            Request::NicList => {
                Ok(Reply::Nics(self.nics().by_name.values().map(AnyNic::status).collect::<Result<_, _>>()?))
            }
            Request::NicSetVf { name, settings } => {
                let _changing = self.change();
                self.with_nic(&name, |nic| nic.set_vf(settings).and_then(|()| nic.status()))
                    .map(|status| Reply::Nic(Box::new(status)))
            }
            Request::NicRefresh { nic, ms } => self.with_nic(&nic, |nic| nic.set_refresh(ms)).map(|()| Reply::Done),
            Request::MeterSet { nic, meters } => {
                bounded(meters.len())?;
                self.with_nic(&nic, |nic| nic.set_meters(&meters)).map(|()| Reply::Done)
            }
            Request::MeterRemove { nic, ids } => {
                bounded(ids.len())?;
                self.with_nic(&nic, |nic| nic.remove_meters(&ids)).map(|()| Reply::Done)
            }
            Request::RuleInstall { nic, rules } => {
                bounded(rules.len())?;
                self.with_nic(&nic, |nic| nic.install(rules)).map(Reply::RuleResults)
            }
            Request::RuleValidate { nic, rules } => {
                bounded(rules.len())?;
                self.with_nic(&nic, |nic| Ok(nic.validate(&rules))).map(Reply::RuleResults)
            }
            Request::RuleRemove { nic, ids } => {
                bounded(ids.len())?;
                self.with_nic(&nic, |nic| nic.remove(&ids)).map(Reply::RuleResults)
            }
            Request::RuleCounters { nic, after, limit } => {
                let limit = MAX_RULES.min(limit as usize);
                self.with_nic(&nic, |nic| nic.counters(after, limit)).map(Reply::RuleCounters)
            }
            Request::RuleList { nic, after, limit } => {
                let limit = MAX_RULES.min(limit as usize);
                self.with_nic(&nic, |nic| Ok(nic.list(after, limit))).map(Reply::Rules)
            }
            _ => Err(Failure::new(FailureKind::Invalid, "this is no request about NICs")),
        }
    }

    fn add_nic(&self, spec: NicSpec) -> Result<NicStatus, Failure> {
        let full = || spec.pci.is_none() && self.is_full_with(devices_of(&spec));
        let wants = |has: &DeviceSpec| spec.uplinks.iter().any(|uplink| same_part(has, uplink).is_some());
        let (_changing, ports) = self.change_without(|leaving| wants(&leaving.device) || full());
        let stopping = ports.stopping;
        drop(ports);
        if stopping {
            return Err(Failure::new(FailureKind::Failed, format!("lane {} is stopping", self.info.name)));
        }
        let mut nics = self.nics();
        if let Some(nic) = nics.by_name.get(&spec.name) {
            if *nic.spec() == spec {
                return nic.status();
            }
            let message = format!("NIC {} exists with other properties: remove it first", spec.name);
            return Err(Failure::new(FailureKind::Exists, message));
        }
        nics.last_id += 1;
        let nic = AnyNic::open(spec, nics.last_id, &self.workers, self.info.max_ports)?;
        let status = nic.status()?;
        nics.by_name.insert(nic.spec().name.clone(), nic);
        Ok(status)
    }

    fn remove_nic(&self, name: &NicName, representors: bool) -> Result<(), Failure> {
        // A VF is free when the port that had it has gone.
        let of_it = |device: &DeviceSpec| matches!(device, DeviceSpec::Soft { nic, .. } if nic == name.as_str());
        let (_changing, ports) = self.change_without(|leaving| of_it(&leaving.device));
        drop(ports);
        let mut nics = self.nics();
        let nic = nics.by_name.get(name).ok_or_else(|| self.no_nic(name))?;
        if let Some(vf) = nic.taken() {
            let message = format!("NIC {name}: a port has its VF {vf} (soft:{name}/vf{vf}): remove that port first");
            return Err(Failure::new(FailureKind::Busy, message));
        }
        match nics.by_name.remove(name) {
            Some(nic) if representors => nic.close_with_representors(),
            nic => drop(nic),
        }
        Ok(())
    }

    /// What each NIC's switch did: its number, its worker's place, and ticks.
    pub(super) fn switch_loads(&self) -> Vec<(u64, usize, u64)> {
        let load = |nic: &AnyNic| {
            let (id, core, load) = nic.load()?;
            let worker = self.workers.iter().position(|worker| worker.core() == core)?;
            Some((id, worker, load.ticks()))
        };
        self.nics().by_name.values().filter_map(load).collect()
    }

    /// Ends all NICs, whose VFs no port has any more.
    pub(super) fn close_nics(&self) {
        let all = std::mem::take(&mut self.nics().by_name);
        drop(all);
    }

    fn with_nic<T>(&self, name: &NicName, ask: impl FnOnce(&mut AnyNic) -> Result<T, Failure>) -> Result<T, Failure> {
        ask(self.nics().by_name.get_mut(name).ok_or_else(|| self.no_nic(name))?)
    }

    fn no_nic(&self, name: &NicName) -> Failure {
        let message = format!("lane {} has no NIC {name}: see nic list", self.info.name);
        Failure::new(FailureKind::NotFound, message)
    }

    fn nics(&self) -> MutexGuard<'_, Nics> {
        lock(&self.nics)
    }
}

fn bounded(count: usize) -> Result<(), Failure> {
    if count <= MAX_RULES {
        return Ok(());
    }
    Err(Failure::new(FailureKind::Invalid, format!("{count} rules in a request: send {MAX_RULES} at most")))
}

fn lock(nics: &Mutex<Nics>) -> MutexGuard<'_, Nics> {
    // A NIC is inserted only when it is whole.
    nics.lock().unwrap_or_else(PoisonError::into_inner)
}
