//! Guest memory as the fast path sees it: a sorted table of mapped regions behind raw pointers.
//!
//! - [`GuestMap`] translates guest-physical addresses; it keeps the memory mapped while anybody holds it.
//! - `guard` keeps the process alive when a front-end takes the file away behind a mapping.

mod guard;
mod map;
mod node;

pub use map::{GuestMap, Reader, Region, RegionCache, Span};
pub use node::of_memory;
