//! A place in a line, and the small things that stand there: numbers, addresses, flags, names.

use std::net::{Ipv4Addr, Ipv6Addr};

use ringspan_protocol::MacAddress;

use crate::ovs::flow::flags::Flags;
use crate::ovs::flow::key::PortRef;
use crate::ovs::flow::masked::{Bits, Masked};

use super::error::{Fail, Parsed, What};

/// OVS itself reads no deeper (MAX_ODP_NESTED in its lib/odp-util.c).
const DEEPEST: u32 = 32;

/// Reads a line from left to right; nothing is read more than twice.
pub(super) struct Cursor<'a> {
    text: &'a str,
    at: usize,
    depth: u32,
    names: bool,
}

impl<'a> Cursor<'a> {
    /// `names`: whether a port may have one.
    pub fn new(text: &'a str, names: bool) -> Self {
        Self { text, at: 0, depth: 0, names }
    }

    pub fn at(&self) -> usize {
        self.at
    }

    fn rest(&self) -> &'a [u8] {
        &self.text.as_bytes()[self.at..]
    }

    /// Goes back to a place that was read before.
    pub fn back_to(&mut self, at: usize) {
        self.at = at;
    }

    #[inline]
    pub fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    pub fn is_at_end(&self) -> bool {
        self.at == self.text.len()
    }

    #[inline]
    pub fn starts_with(&self, what: &str) -> bool {
        self.rest().starts_with(what.as_bytes())
    }

    pub fn fail<T>(&self, what: What) -> Parsed<T> {
        Err(Fail { at: self.at, what })
    }

    /// Takes this where it stands here.
    #[inline]
    pub fn take(&mut self, what: &str) -> bool {
        let there = self.starts_with(what);
        if there {
            self.at += what.len();
        }
        there
    }

    /// Takes this, or fails.
    #[inline]
    pub fn expect(&mut self, what: &'static str) -> Parsed<()> {
        if self.take(what) { Ok(()) } else { self.fail(What::Text(what)) }
    }

    /// Takes this field of a list: its name, and the comma in front where it is not the first.
    #[inline]
    pub fn field(&mut self, first: &mut bool, name: &str) -> bool {
        let begin = self.at;
        if (*first || self.take(",")) && self.take(name) {
            *first = false;
            return true;
        }
        self.at = begin;
        false
    }

    /// Takes everything that is left.
    pub fn take_rest(&mut self) -> &'a str {
        let rest = &self.text[self.at..];
        self.at = self.text.len();
        rest
    }

    /// Takes letters up to the next of `(),`, `=` or white space.
    #[inline]
    pub fn word(&mut self) -> &'a str {
        self.take_while(|byte| !matches!(byte, b'(' | b')' | b',' | b'=') && !byte.is_ascii_whitespace())
    }

    #[inline]
    pub fn take_while(&mut self, mut belongs: impl FnMut(u8) -> bool) -> &'a str {
        let begin = self.at;
        let length = self.rest().iter().position(|byte| !belongs(*byte)).unwrap_or(self.text.len() - begin);
        self.at += length;
        // All that ends a word is ASCII, so this is no place within a character.
        self.text.get(begin..self.at).unwrap_or_default()
    }

    /// One level deeper, for as long as `inner` reads.
    pub fn nested<T>(&mut self, inner: impl FnOnce(&mut Self) -> Parsed<T>) -> Parsed<T> {
        if self.depth == DEEPEST {
            return self.fail(What::TooDeep(DEEPEST));
        }
        self.depth += 1;
        let result = inner(self);
        self.depth -= 1;
        result
    }

    /// A number, decimal or with 0x.
    pub fn number<N: TryFrom<u128>>(&mut self) -> Parsed<N> {
        let begin = self.at;
        let hexadecimal = self.take("0x") || self.take("0X");
        let first = self.at;
        let value = if hexadecimal { self.digits::<16>() } else { self.digits::<10>() };
        if self.at == first {
            self.at = begin;
            return self.fail(What::Expected("a number"));
        }
        let value = value.and_then(|value| value.try_into().ok());
        value.ok_or(Fail { at: begin, what: What::TooLarge(size_of::<N>() * 8) })
    }

    /// What the digits that stand here make, if it is no more than 128 bits.
    #[inline(always)]
    fn digits<const BASE: u32>(&mut self) -> Option<u128> {
        // So many fit into 64 bits, where arithmetic is cheap.
        const SHORT: usize = 16;
        let (mut count, mut value) = (0, 0);
        for &byte in self.rest().iter().take(SHORT) {
            let Some(digit) = (byte as char).to_digit(BASE) else { break };
            value = value * u64::from(BASE) + u64::from(digit);
            count += 1;
        }
        self.at += count;
        if count < SHORT { Some(value.into()) } else { self.more_digits(value, BASE) }
    }

    /// The same for digits behind those that made `value`.
    #[cold]
    fn more_digits(&mut self, value: u64, base: u32) -> Option<u128> {
        let more = self.take_while(|byte| (byte as char).is_digit(base));
        let mut digits = more.chars().filter_map(|digit| digit.to_digit(base));
        digits.try_fold(value.into(), |value: u128, digit| value.checked_mul(base.into())?.checked_add(digit.into()))
    }

    /// A number of no more than these bits.
    pub fn narrow<N: TryFrom<u128> + Into<u128> + Copy>(&mut self, largest: N) -> Parsed<N> {
        let at = self.at;
        let value: N = self.number()?;
        if value.into() > largest.into() {
            let bits = (128 - largest.into().leading_zeros()) as usize;
            return Err(Fail { at, what: What::TooLarge(bits) });
        }
        Ok(value)
    }

    /// A value, and behind a slash its mask; without one the mask is `full`.
    pub fn masked<T>(&mut self, full: T, mut read: impl FnMut(&mut Self) -> Parsed<T>) -> Parsed<Masked<T>> {
        let value = read(self)?;
        let mask = if self.take("/") { read(self)? } else { full };
        Ok(Masked { value, mask })
    }

    pub fn masked_number<N: TryFrom<u128> + Bits>(&mut self) -> Parsed<Masked<N>> {
        self.masked(N::ONES, Self::number)
    }

    /// A masked number narrower than its type.
    pub fn masked_narrow<N: TryFrom<u128> + Into<u128> + Copy>(&mut self, full: N) -> Parsed<Masked<N>> {
        self.masked(full, |cursor| cursor.narrow(full))
    }

    pub fn mac(&mut self) -> Parsed<MacAddress> {
        let mut bytes = [0; 6];
        let rest = self.rest();
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digit = |place: usize| rest.get(index * 3 + place).and_then(|&byte| (byte as char).to_digit(16));
            match (digit(0), digit(1), index == 5 || rest.get(index * 3 + 2) == Some(&b':')) {
                (Some(high), Some(low), true) => *byte = (high << 4 | low) as u8,
                _ => return self.fail(What::Expected("a MAC address")),
            }
        }
        self.at += 17;
        Ok(MacAddress(bytes))
    }

    pub fn masked_mac(&mut self) -> Parsed<Masked<MacAddress>> {
        self.masked(Bits::ONES, Self::mac)
    }

    pub fn ipv4(&mut self) -> Parsed<Ipv4Addr> {
        let begin = self.at;
        let mut bytes = [0; 4];
        for (index, byte) in bytes.iter_mut().enumerate() {
            let dot = index == 0 || self.take(".");
            let (first, zero) = (self.at, self.peek() == Some(b'0'));
            let value = self.digits::<10>().and_then(|value| u8::try_from(value).ok());
            let length = self.at - first;
            let padded = zero && length > 1;
            match value {
                Some(value) if dot && length > 0 && !padded => *byte = value,
                _ => return Err(Fail { at: begin, what: What::Expected("an IPv4 address") }),
            }
        }
        Ok(bytes.into())
    }

    pub fn masked_ipv4(&mut self) -> Parsed<Masked<Ipv4Addr>> {
        self.masked(Bits::ONES, Self::ipv4)
    }

    pub fn ipv6(&mut self) -> Parsed<Ipv6Addr> {
        let at = self.at;
        let text = self.take_while(|byte| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.'));
        // Rust's own parser reads all there is, but takes twice as long.
        plain_ipv6(text.as_bytes())
            .or_else(|| text.parse().ok())
            .ok_or(Fail { at, what: What::Expected("an IPv6 address") })
    }

    pub fn masked_ipv6(&mut self) -> Parsed<Masked<Ipv6Addr>> {
        self.masked(Bits::ONES, Self::ipv6)
    }

    /// A port's number, or its name.
    pub fn port(&mut self) -> Parsed<PortRef> {
        let at = self.at;
        let name = self.word();
        self.port_of(name, at)
    }

    /// The port of this word, which began at `at`.
    pub fn port_of(&self, name: &str, at: usize) -> Parsed<PortRef> {
        if name.is_empty() {
            return Err(Fail { at, what: What::Expected("a port") });
        }
        if name.bytes().all(|byte| byte.is_ascii_digit()) {
            let number = name.parse().map_err(|_| Fail { at, what: What::TooLarge(32) })?;
            return Ok(PortRef::Number(number));
        }
        // No device has these in its name (dev_valid_name of the kernel); OVS's own error texts have.
        if name.contains(|letter: char| matches!(letter, '/' | '<' | '>' | '*' | '{' | '}') || letter.is_control()) {
            return Err(Fail { at, what: What::Expected("a port") });
        }
        if !self.names {
            return Err(Fail { at, what: What::Unknown("action or port") });
        }
        Ok(PortRef::Name(name.into()))
    }

    /// Flags: `+syn-ack`, `syn|ack`, `0`, or `0/0`.
    pub fn flags<F: Flags>(&mut self) -> Parsed<Masked<F>> {
        if matches!(self.peek(), Some(b'+' | b'-')) {
            return self.signed_flags();
        }
        let value = self.named_flags('|')?;
        let mask = if value == F::ZERO && self.take("/0") { 0 } else { F::ALL };
        Ok(Masked { value, mask: self.flags_of(mask)? })
    }

    /// Flags, or as `-m` prints them: `0x21/0x25`.
    pub fn numeric_flags<F: Flags>(&mut self) -> Parsed<Masked<F>> {
        if !matches!(self.peek(), Some(b'0'..=b'9')) {
            return self.flags();
        }
        let Masked { value, mask } = self.masked(F::ALL, |cursor| cursor.narrow(F::ALL))?;
        Ok(Masked { value: self.flags_of(value)?, mask: self.flags_of(mask)? })
    }

    /// Each flag that counts, with its sign.
    fn signed_flags<F: Flags>(&mut self) -> Parsed<Masked<F>> {
        let (mut value, mut mask) = (0, 0);
        while let Some(sign @ (b'+' | b'-')) = self.peek() {
            self.at += 1;
            let at = self.at;
            let bit = bit::<F>(self.take_while(|byte| !matches!(byte, b'+' | b'-' | b')')));
            match bit {
                Some(bit) if mask & bit == 0 => {
                    mask |= bit;
                    value |= if sign == b'+' { bit } else { 0 };
                }
                Some(_) => return Err(Fail { at, what: What::Twice }),
                None => return Err(Fail { at, what: What::Unknown("flag") }),
            }
        }
        Ok(Masked { value: self.flags_of(value)?, mask: self.flags_of(mask)? })
    }

    /// The flags that are set, all others being clear; `0` for none.
    pub fn named_flags<F: Flags>(&mut self, separator: char) -> Parsed<F> {
        let mut value = 0;
        loop {
            let at = self.at;
            let bits = match self.peek() {
                Some(b'0'..=b'9') => self.narrow(F::ALL)?,
                _ => bit::<F>(self.take_while(|byte| byte != separator as u8 && byte != b')'))
                    .ok_or(Fail { at, what: What::Unknown("flag") })?,
            };
            if value & bits != 0 {
                return Err(Fail { at, what: What::Twice });
            }
            value |= bits;
            if self.peek() != Some(separator as u8) {
                return self.flags_of(value);
            }
            self.at += 1;
        }
    }

    fn flags_of<F: Flags>(&self, bits: u32) -> Parsed<F> {
        F::from_bits(bits).map_or_else(|| self.fail(What::Unknown("flag")), Ok)
    }

    /// A number of any length as bytes, without leading zeros: what ds_put_hex prints.
    pub fn long_number(&mut self) -> Parsed<Vec<u8>> {
        let digits = self.long_digits()?;
        let mut bytes = vec![0; digits.len().div_ceil(2)];
        put_right(digits, &mut bytes);
        Ok(bytes)
    }

    /// Such a number as so many bytes, the first of them zeros.
    pub fn long_number_of(&mut self, length: usize) -> Parsed<Box<[u8]>> {
        let at = self.at;
        let digits = self.long_digits()?;
        if digits.len().div_ceil(2) > length {
            return Err(Fail { at, what: What::Wrong("more data than the option's length says") });
        }
        let mut bytes = vec![0; length];
        put_right(digits, &mut bytes);
        Ok(bytes.into())
    }

    /// Its hexadecimal digits, without leading zeros.
    fn long_digits(&mut self) -> Parsed<&'a [u8]> {
        if !self.take("0x") {
            return if self.take("0") { Ok(&[]) } else { self.fail(What::Expected("a number with 0x")) };
        }
        let digits = self.take_while(|byte| byte.is_ascii_hexdigit());
        if digits.is_empty() {
            return self.fail(What::Expected("hexadecimal digits"));
        }
        Ok(digits.trim_start_matches('0').as_bytes())
    }

    /// Bytes of two digits each, with `separator` between them, or none.
    pub fn bytes(&mut self, separator: &str) -> Parsed<Vec<u8>> {
        let mut bytes = Vec::new();
        while self.peek().is_some_and(|byte| byte.is_ascii_hexdigit()) {
            let at = self.at;
            let pair = self.text.get(at..at + 2).and_then(|pair| u8::from_str_radix(pair, 16).ok());
            bytes.push(pair.ok_or(Fail { at, what: What::Expected("two hexadecimal digits") })?);
            self.at += 2;
            if !separator.is_empty() && !self.take(separator) {
                break;
            }
        }
        Ok(bytes)
    }
}

/// The flag of this name.
fn bit<F: Flags>(name: &str) -> Option<u32> {
    F::NAMES.iter().find(|(_, known)| *known == name).map(|(bit, _)| *bit)
}

/// Writes the number of these hexadecimal digits into the last of these bytes.
fn put_right(digits: &[u8], bytes: &mut [u8]) {
    for (byte, pair) in bytes.iter_mut().rev().zip(digits.rchunks(2)) {
        *byte = pair
            .iter()
            .filter_map(|digit| (*digit as char).to_digit(16))
            .fold(0, |byte, digit| byte << 4 | digit as u8);
    }
}

/// An IPv6 address of hexadecimal groups alone, as nearly all are.
fn plain_ipv6(mut text: &[u8]) -> Option<Ipv6Addr> {
    let (mut groups, mut count, mut gap) = ([0; 8], 0, None);
    while !text.is_empty() {
        if gap.is_none()
            && let Some(rest) = text.strip_prefix(b"::")
        {
            gap = Some(count);
            text = rest;
            continue;
        }
        if count > 0 && gap != Some(count) {
            text = text.strip_prefix(b":")?;
        }
        let digits = text.iter().map_while(|byte| (*byte as char).to_digit(16)).take(4);
        let (length, group) = digits.fold((0, 0), |(length, group), digit| (length + 1, group << 4 | digit as u16));
        if length == 0 {
            return None;
        }
        *groups.get_mut(count)? = group;
        (count, text) = (count + 1, &text[length..]);
    }
    let missing = groups.len() - count;
    match gap {
        Some(gap) if missing > 0 => groups[gap..].rotate_right(missing),
        None if missing == 0 => {}
        _ => return None,
    }
    Some(groups.into())
}
