//! Why a message of the kernel is not understood.

use thiserror::Error;

/// A part of a flow that is none of linux/openvswitch.h's: the kernel is newer than this program, or the message is cut.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DecodeError {
    /// The length of an attribute.
    #[error("an attribute says it has {length} bytes, where {there} are left")]
    Cut {
        /// What it says.
        length: usize,
        /// What there is.
        there: usize,
    },
    /// The length of what is in one.
    #[error("{what} has {length} bytes, not {wanted}")]
    Length {
        /// Of what.
        what: &'static str,
        /// What it has.
        length: usize,
        /// What it should have.
        wanted: usize,
    },
    /// Something is missing.
    #[error("there is no {what}")]
    Missing {
        /// What.
        what: &'static str,
    },
    /// A nest of one attribute has none, or several.
    #[error("{what} has not exactly one attribute")]
    NotOne {
        /// Which.
        what: &'static str,
    },
    /// An attribute within a nest whose attributes are all known.
    #[error("{nest} has an attribute {kind} that this version does not know")]
    Unknown {
        /// Which nest.
        nest: &'static str,
        /// The attribute's type.
        kind: u16,
    },
    /// Nested too deeply.
    #[error("it is nested too deeply")]
    Deep,
    /// A fragment's kind, which is matched wholly or not at all.
    #[error("frag={value:#x}/{mask:#x} is no match for fragments")]
    Fragment {
        /// Its value.
        value: u8,
        /// Its mask.
        mask: u8,
    },
    /// A hash that this version does not know.
    #[error("hash has an algorithm {algorithm} that this version does not know")]
    Hash {
        /// OVS_HASH_ALG_*.
        algorithm: u32,
    },
    /// Neither version 1 nor 2.
    #[error("erspan has a version {version}")]
    Erspan {
        /// Its version.
        version: u32,
    },
}
