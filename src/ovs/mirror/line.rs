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
    /// Whether Open vSwitch itself brought it into a NIC.
    pub by_ovs: ByOvs,
    /// What it does.
    pub actions: &'a str,
}

/// Whether Open vSwitch itself brought a flow into a NIC, and by what (`offloaded:` and `dp:`, format_dpif_flow in its lib/dpctl.c). Of a flow whose threads
/// have it differently, the first one here holds for all of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) enum ByOvs {
    /// It did not.
    #[default]
    No,
    /// The match alone: its actions are done by the datapath.
    Partly,
    /// By TC.
    Tc,
    /// By the userspace datapath's own offload.
    Dpdk,
}

/// What may stand behind the actions; nothing that a flow does.
pub(super) const EXTRA: &str = ", dp-extra-info:";

/// What begins the heading of a thread's flows (dpctl_dump_flows in OVS's lib/dpctl.c, the same from 2.17 to 3.5). The userspace datapath's flows have one
/// always, also when there is one thread; the kernel's have none.
pub(super) const HEADING: &[u8] = b"flow-dump from ";

/// `ufid:U, KEYS, packets:N, bytes:N, used:T[, flags:F][, offloaded:..], dp:D, actions:A[, dp-extra-info:..]`. The keys have no
/// ", " in them, and what stands between them and the actions begins with the counters.
pub(super) fn take_apart(line: &str) -> Option<Line<'_>> {
    let rest = line.strip_prefix("ufid:")?;
    let (ufid, rest) = rest.split_at_checked(UFID)?;
    let rest = rest.strip_prefix(", ")?;
    let (keys, rest) = split(rest, ", packets:")?;
    let (stats, by_ovs, actions) = counters(rest.as_bytes())?;
    let actions = rest.get(actions..)?;
    let actions = split(actions, EXTRA).map_or(actions, |(actions, _)| actions);
    Some(Line { ufid: read_ufid(ufid.as_bytes())?, keys, stats, by_ovs, actions })
}

/// From behind `packets:` to the actions: where these begin.
pub(super) fn counters(text: &[u8]) -> Option<(Stats, ByOvs, usize)> {
    let (packets, rest) = number(text)?;
    let (bytes, rest) = number(rest.strip_prefix(b", bytes:")?)?;
    // Once for each flow of each dump: what is searched for is prepared once.
    static ACTIONS: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new("actions:"));
    let found = ACTIONS.find(rest)?;
    let used = rest[..found].strip_prefix(b", used:").and_then(used_ms);
    let at = text.len() - rest.len() + found + ACTIONS.needle().len();
    Some((Stats { packets, bytes, used, ..Stats::default() }, by_ovs(&rest[..found]), at))
}

/// Of what stands between a flow's bytes and its actions.
fn by_ovs(text: &[u8]) -> ByOvs {
    static OFFLOADED: LazyLock<Finder<'static>> = LazyLock::new(|| Finder::new(", offloaded:"));
    let Some(found) = OFFLOADED.find(text) else { return ByOvs::No };
    match &text[found + OFFLOADED.needle().len()..] {
        [b'p', b'a', b'r', b't', b'i', b'a', b'l', ..] => ByOvs::Partly,
        [b'y', b'e', b's', rest @ ..] if rest.starts_with(b", dp:dpdk") => ByOvs::Dpdk,
        [b'y', b'e', b's', ..] => ByOvs::Tc,
        _ => ByOvs::No,
    }
}

fn split<'a>(text: &'a str, at: &str) -> Option<(&'a str, &'a str)> {
    let found = memchr::memmem::find(text.as_bytes(), at.as_bytes())?;
    Some((&text[..found], &text[found + at.len()..]))
}

fn number(text: &[u8]) -> Option<(u64, &[u8])> {
    let (mut value, mut rest) = (0u64, text);
    while let [digit @ b'0'..=b'9', more @ ..] = rest {
        value = value.checked_mul(10)?.checked_add(u64::from(digit - b'0'))?;
        rest = more;
    }
    (rest.len() < text.len()).then_some((value, rest))
}

/// `1.234s`; nothing for `never`.
fn used_ms(text: &[u8]) -> Option<i64> {
    let (whole, rest) = number(text)?;
    let mut digits = rest.strip_prefix(b".").unwrap_or_default().iter().take_while(|byte| byte.is_ascii_digit());
    let part = (0..3).fold(0, |part, _| part * 10 + u64::from(digits.next().map_or(0, |digit| digit - b'0')));
    i64::try_from(whole.checked_mul(1000)?.checked_add(part)?).ok()
}

/// Letters of a ufid.
pub(super) const UFID: usize = 36;

/// 32 digits in groups of 8, 4, 4, 4 and 12.
pub(super) fn read_ufid(text: &[u8]) -> Option<u128> {
    let text: &[u8; UFID] = text.try_into().ok()?;
    if [8, 13, 18, 23].into_iter().any(|at| text[at] != b'-') {
        return None;
    }
    let joined = |a: usize, b: usize| -> [u8; 8] {
        [text[a], text[a + 1], text[a + 2], text[a + 3], text[b], text[b + 1], text[b + 2], text[b + 3]]
    };
    let groups = [joined(0, 4), joined(9, 14), joined(19, 24), joined(28, 32)];
    groups.into_iter().try_fold(0, |ufid, digits| Some(ufid << 32 | u128::from(hexadecimal(digits)?)))
}

/// Eight digits at once, a digit in each byte: with tens of thousands of flows in each dump a loop over them is half of what a line costs.
fn hexadecimal(digits: [u8; 8]) -> Option<u32> {
    let all = |byte: u8| u64::from_ne_bytes([byte; 8]);
    let text = u64::from_be_bytes(digits);
    // 0x30 to 0x39, and 0x61 to 0x66.
    let letters = (text & all(0x40)) >> 6;
    if text & all(0xf0) != all(0x30) + letters * 0x30 {
        return None;
    }
    let value = (text & all(0x0f)) + letters * 9;
    // None is above 15, and those from 10 on are the letters.
    if value & all(0xf0) != 0 || (value + all(6)) & all(0x10) != letters << 4 {
        return None;
    }
    let pairs = (value | value >> 4) & 0x00ff_00ff_00ff_00ff;
    let fours = (pairs | pairs >> 8) & 0x0000_ffff_0000_ffff;
    Some((fours | fours >> 16) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_to_the_millisecond() {
        for (text, ms) in [("0.001s", 1), ("1.5s", 1500), ("12s", 12_000), ("3.1234s", 3123), ("0.s", 0)] {
            assert_eq!(used_ms(text.as_bytes()), Some(ms), "{text}");
        }
        for text in ["never", "99999999999999999999s", ""] {
            assert_eq!(used_ms(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn what_open_vswitch_brought_into_a_nic_by_itself_is_told_from_what_it_did_not() {
        for (text, by) in [
            (", used:0.1s, offloaded:yes, dp:tc, ", ByOvs::Tc),
            (", used:never, flags:SFP., offloaded:yes, dp:dpdk, ", ByOvs::Dpdk),
            (", used:0.1s, offloaded:partial, dp:ovs, ", ByOvs::Partly),
            (", used:0.1s, dp:tc, ", ByOvs::No),
            (", used:0.1s, dp:ovs, ", ByOvs::No),
        ] {
            assert_eq!(by_ovs(text.as_bytes()), by, "{text}");
        }
    }

    #[test]
    fn a_ufid_has_small_hexadecimal_digits_in_its_groups_and_nothing_else() {
        let text = "01234567-89ab-cdef-fedc-ba9876543210";
        assert_eq!(read_ufid(text.as_bytes()), Some(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210));
        for at in 0..UFID {
            for byte in 0..=u8::MAX {
                let mut changed = *text.as_bytes().first_chunk::<UFID>().unwrap();
                changed[at] = byte;
                let is_dash = [8, 13, 18, 23].contains(&at);
                let fits = if is_dash { byte == b'-' } else { matches!(byte, b'0'..=b'9' | b'a'..=b'f') };
                let digits: String =
                    changed.iter().filter(|byte| **byte != b'-').map(|byte| char::from(*byte)).collect();
                let expected = fits.then(|| u128::from_str_radix(&digits, 16).unwrap());
                assert_eq!(read_ufid(&changed), expected, "{byte:#x} at {at}");
            }
        }
        assert_eq!((read_ufid(&text.as_bytes()[1..]), read_ufid(b"")), (None, None));
    }
}
