//! The way of a change from the kernel to an engine, for messages that were recorded: what the benchmark measures.

use std::time::Duration;

use ringspan_protocol::rule::{Rule, RuleCounters, RuleId, RuleResult};
use ringspan_protocol::{Capabilities, MeterSpec, NicName, NicPort};

use super::engine::{Engine, Nic};
use super::kernel::{Ports as Numbers, as_told};
use super::packed::Kinds;
use super::work::{Change, News, Work};
use crate::error::Error;
use crate::ovs::kernel::{self, KernelError};

/// The mirror, with an engine that takes everything.
#[derive(Debug)]
pub struct Replay {
    work: Work,
    ports: Numbers,
    kinds: Kinds,
    engine: Taker,
    families: [u16; 2],
    index: u32,
}

#[derive(Debug)]
struct Taker(Nic);

impl Replay {
    /// A NIC whose VFs' representors are ports 1, 2 ... of the datapath with this index. `family` is the number that the kernel had for flows.
    pub fn new(nic: NicName, vfs: u16, family: u16, index: u32) -> Self {
        let ports = (0..vfs).map(|vf| (u32::from(vf) + 1, NicPort::Vf(vf).representor(&nic).into())).collect();
        let of_nic = std::iter::once(NicPort::Uplink).chain((0..vfs).map(NicPort::Vf));
        let of_nic = of_nic.map(|port| (port, port.representor(&nic))).collect();
        let engine =
            Taker(Nic { name: nic, ports: of_nic, capabilities: Capabilities::default(), life: 1, empty: false });
        let mut work = Work::new(usize::MAX, false);
        work.complete = true;
        work.look(&engine.nics());
        Self { work, ports, kinds: Kinds::default(), engine, families: [family, 0], index }
    }

    /// Takes these datagrams as if they had come at once, until the engine knows all of it.
    ///
    /// # Errors
    /// One is not understood.
    pub fn feed<'a>(&mut self, datagrams: impl IntoIterator<Item = &'a [u8]>) -> Result<(), KernelError> {
        let mut news = Vec::new();
        for datagram in datagrams {
            for change in kernel::changes_of(datagram, self.families, self.index)? {
                match change {
                    kernel::Change::Put(told) => {
                        news.extend(as_told(told, &self.ports, &mut self.kinds).map(Change::Put))
                    }
                    kernel::Change::Deleted(ufid) => news.push(Change::Deleted(ufid.0)),
                    kernel::Change::DeletedUnnamed | kernel::Change::Ports => {}
                }
            }
        }
        self.work.take(News::Kernel(news));
        while let Some(step) = self.work.next() {
            self.work.done(step.run(&self.engine));
        }
        Ok(())
    }

    /// Flows that are known, and how many of them the engine has.
    pub fn flows(&self) -> (usize, usize) {
        let flows = &self.work.table.flows;
        (flows.len(), flows.values().filter(|entry| entry.state.nic().is_some()).count())
    }
}

impl Engine for Taker {
    fn nics(&self) -> Vec<Nic> {
        vec![self.0.clone()]
    }

    fn set_meters(&self, _: &NicName, _: &[MeterSpec]) -> Result<(), Error> {
        Ok(())
    }

    fn set_refresh(&self, _: &NicName, _: Duration) -> Result<(), Error> {
        Ok(())
    }

    fn install(&self, _: &NicName, rules: &[Rule]) -> Result<Vec<RuleResult>, Error> {
        Ok(rules.iter().map(|rule| RuleResult { id: rule.id, error: None }).collect())
    }

    fn remove(&self, _: &NicName, _: &[RuleId]) -> Result<(), Error> {
        Ok(())
    }

    fn rules(&self, _: &NicName) -> Result<Vec<Rule>, Error> {
        Ok(Vec::new())
    }

    fn counters(&self, _: &NicName) -> Result<Vec<RuleCounters>, Error> {
        Ok(Vec::new())
    }
}
