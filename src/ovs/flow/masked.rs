//! A value of which only some bits count.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;
use serde::Serialize;

/// A value and which of its bits count.
///
/// Bits outside of the mask are kept as they came: OVS prints them with `-m`. They mean nothing, but two values that differ
/// in them are not equal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Masked<T> {
    /// The bits.
    pub value: T,
    /// Those that count.
    pub mask: T,
}

impl<T: Bits> Default for Masked<T> {
    /// No bit counts.
    fn default() -> Self {
        Self { value: T::ZERO, mask: T::ZERO }
    }
}

impl<T: Bits> Masked<T> {
    /// All bits count.
    pub fn exact(value: T) -> Self {
        Self { value, mask: T::ONES }
    }

    /// Whether all bits count. For a field narrower than its type compare the mask with the field's width instead.
    pub fn is_exact(&self) -> bool {
        self.mask == T::ONES
    }

    /// Whether no bit counts.
    pub fn is_wildcard(&self) -> bool {
        self.mask == T::ZERO
    }
}

/// What may be masked.
pub trait Bits: Copy + PartialEq {
    /// No bit.
    const ZERO: Self;
    /// Every bit.
    const ONES: Self;
}

macro_rules! number_bits {
    ($($number:ty)*) => {
        $(impl Bits for $number {
            const ZERO: Self = 0;
            const ONES: Self = <$number>::MAX;
        })*
    };
}

number_bits!(u8 u16 u32 u64 u128);

impl Bits for MacAddress {
    const ZERO: Self = Self([0; 6]);
    const ONES: Self = Self([0xff; 6]);
}

impl Bits for Ipv4Addr {
    const ZERO: Self = Self::UNSPECIFIED;
    const ONES: Self = Self::BROADCAST;
}

impl Bits for Ipv6Addr {
    const ZERO: Self = Self::UNSPECIFIED;
    const ONES: Self = Self::from_bits(u128::MAX);
}
