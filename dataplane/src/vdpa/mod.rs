//! Hardware vDPA: the guest's rings, its memory and its descriptors are handed to a device of the kernel's vDPA bus, which then moves the packets by
//! itself (docs/vdpa.md, docs/decisions/0027-vdpa.md).
//!
//! The device is reached through [`Kernel`], a few words that the kernel's `/dev/vhost-vdpa-N` understands, so that tests can stand in for it.
//! [`Mappings`] is the guest's memory as the device knows it, [`Handover`] the rings.

mod control;
mod driver;
mod error;
mod handover;
mod kernel;
mod mappings;
mod net;
#[cfg(test)]
pub(crate) mod tests;

use control::Control;
pub use driver::Driver;
pub use error::{OpenError, Refusal};
pub use handover::{Facts, Handover, served_by_front_end};
pub use kernel::{Kernel, Node, Place, check};
pub use mappings::Mappings;
pub use net::NetConfig;
