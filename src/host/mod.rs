//! The host: what it has, what is wrong with it, and what it should be.

pub(crate) mod doctor;
