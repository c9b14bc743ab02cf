//! Guest memory as the fast path sees it: a sorted table of mapped regions behind raw pointers.

mod map;

pub use map::{GuestMap, RegionCache, Span};
