//! Netlink attributes, and the structures in them, read without trust in their lengths.
//!
//! An attribute that is not known is kept, never skipped: a flow with a match that nobody looked at would be too wide.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;

use super::DecodeError;
use crate::ovs::flow::Masked;
use crate::ovs::flow::masked::Bits;

/// NLA_HDRLEN of linux/netlink.h.
const HEADER: usize = 4;
/// NLA_F_NESTED and NLA_F_NET_BYTEORDER: not part of the type.
const FLAGS: u16 = 0xc000;

/// One attribute.
#[derive(Debug, Clone, Copy)]
pub struct Attribute<'a> {
    /// Its type.
    pub kind: u16,
    /// What it says.
    pub value: &'a [u8],
}

/// Reads the attributes in `bytes`, in their order.
///
/// # Errors
/// A length that is less than that of the header, or more than there is: what follows cannot be found.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Result<Attribute<'_>, DecodeError>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let length = rest.first_chunk::<2>().map_or(0, |length| usize::from(u16::from_ne_bytes(*length)));
        let Some((kind, value)) = rest.get(2..length).and_then(|rest| rest.split_first_chunk::<2>()) else {
            let error = DecodeError::Cut { length, there: rest.len() };
            rest = &[];
            return Some(Err(error));
        };
        rest = rest.get(length.next_multiple_of(HEADER)..).unwrap_or_default();
        Some(Ok(Attribute { kind: u16::from_ne_bytes(*kind) & !FLAGS, value }))
    })
}

/// The first attribute of a type.
pub fn find(bytes: &[u8], kind: u16) -> Result<Option<&[u8]>, DecodeError> {
    for attribute in attributes(bytes) {
        let attribute = attribute?;
        if attribute.kind == kind {
            return Ok(Some(attribute.value));
        }
    }
    Ok(None)
}

impl<'a> Attribute<'a> {
    /// Exactly so many bytes.
    pub fn array<const N: usize>(&self, what: &'static str) -> Result<[u8; N], DecodeError> {
        self.value.try_into().map_err(|_| DecodeError::Length { what, length: self.value.len(), wanted: N })
    }

    /// A number in the machine's order.
    pub fn u16(&self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_ne_bytes)
    }

    /// A number in the machine's order.
    pub fn u32(&self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_ne_bytes)
    }

    /// A number in the network's order.
    pub fn be16(&self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_be_bytes)
    }

    /// A structure of which every bit counts.
    pub fn exact(&self, what: &'static str, size: usize) -> Result<Fields<'a>, DecodeError> {
        Fields::new(what, self.value, Mask::All, size)
    }
}

/// Which bits of a value count.
#[derive(Debug, Clone, Copy)]
pub enum Mask<'a> {
    /// All of them.
    All,
    /// None.
    Nothing,
    /// Those of these bytes.
    Bits(&'a [u8]),
}

impl<'a> Mask<'a> {
    /// The mask of an attribute within the mask of the nest that it is in. Where that one has none, it matches everything.
    pub fn of(self, kind: u16) -> Result<Self, DecodeError> {
        Ok(match self {
            Self::Bits(nest) => find(nest, kind)?.map_or(Self::Nothing, Self::Bits),
            all_or_nothing => all_or_nothing,
        })
    }

    /// As bytes for a value that is not understood; `None`: all.
    pub fn bytes(self, length: usize) -> Option<Vec<u8>> {
        match self {
            Self::All => None,
            Self::Nothing => Some(vec![0; length]),
            Self::Bits(bits) => Some(bits.to_vec()),
        }
    }
}

/// A structure and which of its bits count.
#[derive(Debug, Clone, Copy)]
pub struct Fields<'a> {
    value: &'a [u8],
    mask: Mask<'a>,
}

impl<'a> Fields<'a> {
    /// A structure of `size` bytes. The kernel's may have up to 3 bytes of padding at their end.
    pub fn new(what: &'static str, value: &'a [u8], mask: Mask<'a>, size: usize) -> Result<Self, DecodeError> {
        let fits = |bytes: &[u8]| bytes.len() >= size && bytes.len() - size < 4;
        if !fits(value) {
            return Err(DecodeError::Length { what, length: value.len(), wanted: size });
        }
        match mask {
            Mask::Bits(bits) if !fits(bits) => Err(DecodeError::Length { what, length: bits.len(), wanted: size }),
            _ => Ok(Self { value, mask }),
        }
    }

    /// The field at this offset, which lies within the size.
    fn field<const N: usize, T: Bits>(&self, at: usize, read: impl Fn([u8; N]) -> T) -> Masked<T> {
        let at = |bytes: &[u8]| bytes.get(at..).and_then(|bytes| bytes.first_chunk::<N>()).copied().unwrap_or([0; N]);
        let mask = match self.mask {
            Mask::All => T::ONES,
            Mask::Nothing => T::ZERO,
            Mask::Bits(bits) => read(at(bits)),
        };
        Masked { value: read(at(self.value)), mask }
    }

    /// A byte.
    pub fn u8(&self, at: usize) -> Masked<u8> {
        self.field(at, u8::from_ne_bytes)
    }

    /// A number in the machine's order.
    pub fn u16(&self, at: usize) -> Masked<u16> {
        self.field(at, u16::from_ne_bytes)
    }

    /// A number in the machine's order.
    pub fn u32(&self, at: usize) -> Masked<u32> {
        self.field(at, u32::from_ne_bytes)
    }

    /// A number in the machine's order.
    pub fn u128(&self, at: usize) -> Masked<u128> {
        self.field(at, u128::from_ne_bytes)
    }

    /// A number in the network's order.
    pub fn be16(&self, at: usize) -> Masked<u16> {
        self.field(at, u16::from_be_bytes)
    }

    /// A number in the network's order.
    pub fn be32(&self, at: usize) -> Masked<u32> {
        self.field(at, u32::from_be_bytes)
    }

    /// A number in the network's order.
    pub fn be64(&self, at: usize) -> Masked<u64> {
        self.field(at, u64::from_be_bytes)
    }

    /// A MAC address.
    pub fn mac(&self, at: usize) -> Masked<MacAddress> {
        self.field(at, MacAddress)
    }

    /// An IPv4 address.
    pub fn ipv4(&self, at: usize) -> Masked<Ipv4Addr> {
        self.field(at, Ipv4Addr::from)
    }

    /// An IPv6 address.
    pub fn ipv6(&self, at: usize) -> Masked<Ipv6Addr> {
        self.field(at, Ipv6Addr::from)
    }

    /// Whether every bit counts.
    pub fn is_exact(&self) -> bool {
        matches!(self.mask, Mask::All)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_end_where_their_length_says_and_are_padded() {
        let bytes = [5, 0, 1, 0x80, 9, 0, 0, 0, 4, 0, 2, 0];
        let found: Vec<_> = attributes(&bytes).map(|a| a.map(|a| (a.kind, a.value.to_vec()))).collect();
        assert_eq!(found, [Ok((1, vec![9])), Ok((2, vec![]))]);
    }

    #[test]
    fn a_length_that_cannot_be_ends_the_list_with_an_error() {
        for bytes in [&[3, 0, 1, 0][..], &[0, 0, 0, 0], &[8, 0, 1, 0, 1, 2, 3], &[1]] {
            let found: Vec<_> = attributes(bytes).collect();
            assert!(matches!(found[..], [Err(DecodeError::Cut { .. })]), "{bytes:?}: {found:?}");
        }
    }

    #[test]
    fn a_missing_mask_means_all_without_a_nest_and_nothing_within_one() {
        assert!(matches!(Mask::All.of(1).unwrap(), Mask::All));
        let nest = [6, 0, 2, 0, 0xff, 0xff, 0, 0];
        assert!(matches!(Mask::Bits(&nest).of(1).unwrap(), Mask::Nothing));
        assert!(matches!(Mask::Bits(&nest).of(2).unwrap(), Mask::Bits([0xff, 0xff])));
    }
}
