//! Shared parts of the end-to-end tests.

pub mod guest;
pub mod testpmd;
