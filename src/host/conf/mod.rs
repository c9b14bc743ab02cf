//! The host agent's configuration, and the plan that follows from it: which cards shall have VFs, and how.
//!
//! `file` reads one file and knows the line of each value; `settings` puts the agent's files together with the agent's precedence; `inventory` is what the host has;
//! `plan` compares the two and touches nothing; `apply` carries the plan out, each card as `card` does it.

mod apply;
mod card;
mod file;
mod inventory;
mod network;
mod plan;
mod settings;
#[cfg(test)]
mod tests;

pub(crate) use apply::{Applied, AppliedOutcome, apply};
pub(crate) use card::carry_out;
pub(crate) use inventory::{Inventory, addresses};
pub(crate) use plan::{BY_NEW_ID, Item, Kind, Level, Plan, Problem, Standing, plan};
pub(crate) use settings::{Files, Settings};
