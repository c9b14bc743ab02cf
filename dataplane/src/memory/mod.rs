//! Guest memory as the fast path sees it: a sorted table of mapped regions behind raw pointers.
//!
//! - [`GuestMap`] translates guest-physical addresses; it keeps the memory mapped while anybody holds it.
//! - [`DirtyLog`] is where writes are noted while the guest is migrated.
//! - `guard` keeps the process alive when a front-end takes the file away behind a mapping.

mod guard;
mod log;
mod map;
mod node;

pub use log::{DirtyLog, Marker};
pub use map::{GuestMap, Reader, Region, RegionCache, Span};
pub use node::of_memory;
