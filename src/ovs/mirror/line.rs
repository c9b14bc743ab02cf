//! One line of a dump, taken apart without looking at what it means.

use std::sync::LazyLock;

use memchr::memmem::Finder;

use crate::ovs::flow::Stats;

/// Its parts.
pub(super) struct Line<'a> {
    /// OVS's name of the flow.
    pub ufid: u128,
    /// What it matches.
    pub keys: &'a str,
    /// What it did.
    pub stats: Stats,
    /// What it does.
    pub actions: &'a str,
}

/// What may stand behind the actions; nothing that a flow does.
pub(super) const EXTRA: &str = ", dp-extra-info:";

/// `ufid:U, KEYS, packets:N, bytes:N, used:T[, flags:F][, offloaded:..], dp:D, actions:A[, dp-extra-info:..]`. The keys have no
/// ", " in them, and what stands between them and the actions begins with the counters.
pub(super) fn take_apart(line: &str) -> Option<Line<'_>> {
    let rest = line.strip_prefix("ufid:")?;
    let (ufid, rest) = rest.split_at_checked(36)?;
    let rest = rest.strip_prefix(", ")?;
    let (keys, rest) = split(rest, ", packets:")?;
    let (stats, actions) = counters(rest)?;
    let actions = split(actions, EXTRA).map_or(actions, |(actions, _)| actions);
    Some(Line { ufid: read_ufid(ufid)?, keys, stats, actions })
}

/// From behind `packets:` to the actions.
pub(super) fn counters(text: &str) -> Option<(Stats, &str)> {
    let (packets, rest) = number(text)?;
    let (bytes, rest) = number(rest.strip_prefix(", bytes:")?)?;
    // Once for each flow of each dump: what is searched for is prepared once.
    static ACTIONS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("actions:"));
    let found = ACTIONS.find(rest.as_bytes())?;
    let (middle, actions) = (&rest[..found], &rest[found + ACTIONS.needle().len()..]);
    let used = middle.strip_prefix(", used:").and_then(used_ms);
    Some((Stats { packets, bytes, used, ..Stats::default() }, actions))
}

fn split<'a>(text: &'a str, at: &str) -> Option<(&'a str, &'a str)> {
    let found = memchr::memmem::find(text.as_bytes(), at.as_bytes())?;
    Some((&text[..found], &text[found + at.len()..]))
}

fn number(text: &str) -> Option<(u64, &str)> {
    let end = text.bytes().position(|byte| !byte.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

/// `1.234s`; nothing for `never`.
fn used_ms(text: &str) -> Option<i64> {
    let (whole, rest) = number(text)?;
    let mut digits = rest.strip_prefix('.').unwrap_or_default().bytes().take_while(u8::is_ascii_digit);
    let part = (0..3).fold(0, |part, _| part * 10 + u64::from(digits.next().map_or(0, |digit| digit - b'0')));
    i64::try_from(whole.checked_mul(1000)?.checked_add(part)?).ok()
}

/// 32 digits in groups of 8, 4, 4, 4 and 12.
pub(super) fn read_ufid(text: &str) -> Option<u128> {
    let mut ufid = 0;
    for (at, byte) in text.bytes().enumerate() {
        match (byte, at) {
            (b'-', 8 | 13 | 18 | 23) => {}
            (_, 8 | 13 | 18 | 23) => return None,
            _ => ufid = ufid << 4 | u128::from(digit(byte)?),
        }
    }
    Some(ufid)
}

fn digit(byte: u8) -> Option<u8> {
    match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_millisecond() {
        for (text, ms) in [("0.001s", 1), ("1.5s", 1500), ("12s", 12_000), ("3.1234s", 3123), ("0.s", 0)] {
            assert_eq!(used_ms(text), Some(ms), "{text}");
        }
        assert_eq!((used_ms("never"), used_ms("99999999999999999999s"), used_ms("")), (None, None, None));
    }
}
