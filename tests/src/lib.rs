//! Shared parts of the end-to-end tests.

pub mod binary;
pub mod guest;
pub mod lane;
pub mod testpmd;
