//! The fields between a key's parentheses: `name=value/mask`, comma between them (format_u8u and its like).

use std::fmt::{self, Display, Formatter, Write};
use std::net::{Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;

use crate::ovs::flow::flags::Flags;
use crate::ovs::flow::masked::{Bits, Masked};

use super::Style;

/// Writes fields, and the commas between them.
pub(super) struct Fields<'w, W> {
    pub out: &'w mut W,
    style: Style,
    first: bool,
}

impl<'w, W: Write> Fields<'w, W> {
    pub fn new(out: &'w mut W, style: Style) -> Self {
        Self { out, style, first: true }
    }

    /// Text that stands between the commas.
    pub fn put(&mut self, text: impl Display) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.out.write_char(',')?;
        }
        write!(self.out, "{text}")
    }

    /// Whether a field with this mask is printed.
    pub fn shows<T: Bits>(&self, mask: T) -> bool {
        self.style == Style::Verbose || mask != T::ZERO
    }

    fn masked<T: Bits, D: Display>(
        &mut self,
        name: &str,
        field: &Masked<T>,
        value: impl Display,
        mask: impl FnOnce(T) -> D,
    ) -> fmt::Result {
        if !self.shows(field.mask) {
            return Ok(());
        }
        match field.is_exact() {
            true => self.put(format_args!("{name}={value}")),
            false => self.put(format_args!("{name}={value}/{}", mask(field.mask))),
        }
    }

    /// `%u`, its mask `%#x`
    pub fn decimal<N: Bits + Into<u128> + Display>(&mut self, name: &str, field: &Masked<N>) -> fmt::Result {
        self.masked(name, field, field.value, Hex)
    }

    /// `%#x`, its mask too
    pub fn hex<N: Bits + Into<u128>>(&mut self, name: &str, field: &Masked<N>) -> fmt::Result {
        self.masked(name, field, Hex(field.value), Hex)
    }

    /// `0x%x`, its mask `%#x`
    pub fn hex_with_zero(&mut self, name: &str, field: &Masked<u64>) -> fmt::Result {
        self.masked(name, field, format_args!("{:#x}", field.value), Hex)
    }

    pub fn mac(&mut self, name: &str, field: &Masked<MacAddress>) -> fmt::Result {
        self.masked(name, field, field.value, |mask| mask)
    }

    pub fn ipv4(&mut self, name: &str, field: &Masked<Ipv4Addr>) -> fmt::Result {
        self.masked(name, field, field.value, |mask| mask)
    }

    pub fn ipv6(&mut self, name: &str, field: &Masked<Ipv6Addr>) -> fmt::Result {
        self.masked(name, field, Ipv6(field.value), Ipv6)
    }
}

/// `%#x`: C puts no 0x in front of a zero.
pub(super) struct Hex<N>(pub N);

impl<N: Copy + Into<u128>> Display for Hex<N> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.into() {
            0 => f.write_str("0"),
            value => match u64::try_from(value) {
                Ok(value) => write!(f, "{value:#x}"),
                Err(_) => write!(f, "{value:#x}"),
            },
        }
    }
}

/// An IPv6 address as glibc's inet_ntop writes it: as Rust does, but for IPv4 addresses in `::/96`.
pub(super) struct Ipv6(pub Ipv6Addr);

impl Display for Ipv6 {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0.segments() {
            [0, 0, 0, 0, 0, 0, high, low] if high != 0 => {
                write!(f, "::{}", Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)))
            }
            _ => write!(f, "{}", self.0),
        }
    }
}

/// A number of any length, as ds_put_hex writes it: without leading zeros, and without 0x where nothing is left.
pub(super) struct LongHex<'a>(pub &'a [u8]);

impl Display for LongHex<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut digits = self.0.iter().skip_while(|byte| **byte == 0);
        match digits.next() {
            None => f.write_str("0"),
            Some(first) => {
                write!(f, "{first:#x}")?;
                digits.try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    }
}

/// Bytes with spaces between them.
pub(super) struct Bytes<'a>(pub &'a [u8]);

impl Display for Bytes<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        self.0.iter().enumerate().try_for_each(|(index, byte)| {
            let space = if index == 0 { "" } else { " " };
            write!(f, "{space}{byte:02x}")
        })
    }
}

/// format_flags: `syn|ack`, or `0`.
pub(super) fn flags<F: Flags>(out: &mut impl Write, flags: F, separator: char) -> fmt::Result {
    let bits: u32 = flags.into();
    if bits == 0 {
        return out.write_char('0');
    }
    let mut first = true;
    let mut rest = bits;
    for (bit, name) in F::NAMES.iter().filter(|(bit, _)| bits & bit != 0) {
        if !std::mem::take(&mut first) {
            out.write_char(separator)?;
        }
        out.write_str(name)?;
        rest &= !bit;
    }
    match (rest, first) {
        (0, _) => Ok(()),
        (_, true) => write!(out, "{rest:#x}"),
        (_, false) => write!(out, "{separator}{rest:#x}"),
    }
}

/// format_flags_masked: `+syn-ack`, `0/0`, and as format_flags does where all flags count.
pub(super) fn masked_flags<F: Flags>(out: &mut impl Write, field: &Masked<F>) -> fmt::Result {
    let (value, mask): (u32, u32) = (field.value.into(), field.mask.into());
    if mask & F::ALL == F::ALL {
        return flags(out, field.value, '|');
    }
    if mask == 0 {
        return out.write_str("0/0");
    }
    for bit in (0..u32::BITS).map(|bit| 1 << bit).filter(|bit| mask & bit != 0) {
        let sign = if value & bit != 0 { '+' } else { '-' };
        let name = F::NAMES.iter().find(|(named, _)| *named == bit).map_or("[Unknown]", |(_, name)| *name);
        write!(out, "{sign}{name}")?;
    }
    Ok(())
}
