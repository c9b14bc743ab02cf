//! Benchmarks of ringspan and its peers.
//!
//! `cargo xtask bench` runs the program `ringspan-bench`: the guest of the test kit as the load ([`load`]), against ringspan
//! and against others on the same core, in turns ([`peer`]), with a ceiling that shows what the load itself can do
//! ([`handback`]).

pub mod figures;
pub mod handback;
pub mod load;
pub mod peer;
pub mod report;
