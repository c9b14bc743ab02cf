//! The mirror: what OVS has in its datapath is brought into the switches of NICs, and taken out again.
//!
//! Two sources tell of flows: ovs-vswitchd is asked for all it has when it is time ([`poll`], [`pace`]), the kernel's datapath tells of each
//! change ([`kernel`]). What they tell is compared with what was there ([`table`]); what differs is compiled ([`super::compile`], [`work`]) and told to the engines
//! ([`step`], [`engine`]), a little at a time. **Removals come first**: a frame whose rule is gone goes to OVS, which is
//! right whatever OVS decides; a rule that is there too long is not. A flow that changed keeps its rule until the new one takes its place
//! in one step. When OVS is gone for longer than the grace period, all rules go.

mod copies;
mod counted;
mod engine;
mod idle;
mod kernel;
mod line;
mod meters;
mod pace;
mod packed;
mod poll;
mod replay;
mod report;
mod run;
mod sample;
mod step;
mod table;
#[cfg(test)]
mod tests;
mod tunnels;
mod work;

pub(crate) use engine::{Engine, Nic};
pub(crate) use meters::Limits;
pub use replay::Replay;
pub(crate) use report::{FlowFilter, FlowState, FlowStats, FlowView, Flows};
pub(crate) use run::{Mirror, Settings};
