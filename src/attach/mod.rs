//! Guests' NICs as the host agent asks for them: a virtual function that is chosen, prepared and given to a guest, and all of it taken back.
//!
//! An attachment is a list of steps ([`Step`]). What is wanted and how far it has come is written down before each of them ([`record`]), so that a daemon that
//! was killed in between takes back what was begun, or finishes what was being taken back ([`run`]).

pub(crate) mod choose;
pub(crate) mod counted;
pub(crate) mod guest;
pub(crate) mod plan;
pub(crate) mod record;
pub(crate) mod request;
pub(crate) mod run;
pub(crate) mod sync;
#[cfg(test)]
mod tests;
pub(crate) mod world;

pub(crate) use record::Record;
pub(crate) use request::Attach;
pub(crate) use run::Attachments;
