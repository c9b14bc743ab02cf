//! The meters of a NIC, as its switch has them.

use std::collections::BTreeMap;

use ringspan_protocol::{MeterSpec, MeterUnit};

use crate::nic::Meter;

/// Meters by number.
#[derive(Debug, Default)]
pub struct Meters(BTreeMap<u32, Live>);

/// A meter that counts.
#[derive(Debug)]
pub struct Live {
    meter: Meter,
    unit: MeterUnit,
}

impl Live {
    /// A meter that has let nothing pass yet. `None`: DPDK refuses the values.
    pub fn new(spec: &MeterSpec) -> Option<Self> {
        let (rate, burst) = spec.limits();
        Some(Self { meter: Meter::new(rate, burst)?, unit: spec.unit })
    }
}

impl Meters {
    /// Puts a meter in the place of the one with its number, if there is one, which is returned.
    pub fn set(&mut self, id: u32, meter: Live) -> Option<Live> {
        self.0.insert(id, meter)
    }

    /// Takes a meter away.
    pub fn remove(&mut self, id: u32) -> Option<Live> {
        self.0.remove(&id)
    }

    /// Whether all of these let a frame of so many bytes pass. One that is not there lets nothing pass.
    pub fn pass(&mut self, ids: &[u32], len: usize) -> bool {
        ids.iter().all(|id| match self.0.get_mut(id) {
            Some(Live { meter, unit: MeterUnit::Kbit }) => meter.passes(len as u32),
            Some(Live { meter, unit: MeterUnit::Packets }) => meter.passes(1),
            None => false,
        })
    }
}
