//! Meters of a NIC: what rules may let pass in a time.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What a meter counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum MeterUnit {
    /// 1000 bits, of frames without their check sequence.
    Kbit,
    /// Frames; a large one that is yet to be cut into segments counts once.
    Packets,
}

/// A meter. Several rules may use it; what is more than it lets pass is dropped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MeterSpec {
    /// Its number within the NIC, as in [`crate::Action::Meter`].
    pub id: u32,
    /// What it counts.
    pub unit: MeterUnit,
    /// So many a second, 1 at least.
    pub rate: u64,
    /// So many at once; 0: what may pass in a second, as OVS has it.
    #[serde(default)]
    pub burst: u64,
}

impl MeterSpec {
    /// Bytes or frames a second, and at once.
    pub fn limits(&self) -> (u64, u64) {
        let burst = if self.burst == 0 { self.rate } else { self.burst };
        match self.unit {
            MeterUnit::Kbit => (self.rate.saturating_mul(125), burst.saturating_mul(125)),
            MeterUnit::Packets => (self.rate, burst),
        }
    }
}
