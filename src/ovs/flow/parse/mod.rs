//! Reads flows from the text of `dpctl/dump-flows`.
//!
//! What OVS prints is read, and nothing else: fields in its order, in its spelling. A word that is not known, a field that is there
//! twice or a number that is too large is an error with its place, never a guess. The files mirror those of `print`.

mod actions;
mod conntrack;
mod cursor;
mod error;
mod keys;
mod push;
mod tunnel;
mod userspace;

pub use error::ParseError;

use super::flags::{Flags, TcpFlags};
use super::{Flow, Offloaded, Stats, Ufid};
use cursor::Cursor;
use error::{Fail, Parsed, What};

/// Longest line that is read, in bytes. The kernel takes actions of 32 KiB, of which OVS prints about five times as much.
pub const LONGEST_LINE: usize = 256 << 10;

/// Whether ports may have names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Names {
    /// `dump-flows --names`: a word among the actions that is not known as one is the name of a port. A port that is called like an action
    /// (`drop`, `pop_vlan`) cannot be told from it, in OVS's text as here.
    Allowed,
    /// Without: such a word is an error.
    None,
}

/// A line of a dump.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A flow.
    Flow(Flow),
    /// The flows that follow are those of this thread of the userspace datapath: a core's, or with none the main thread's.
    Thread(Option<u32>),
}

/// Reads one line, which may end in a newline, as a flow. `number` is its number, for the error.
pub fn flow(text: &str, number: usize, names: Names) -> Result<Flow, ParseError> {
    let text = text.trim_end_matches(['\n', '\r']);
    if text.len() > LONGEST_LINE {
        let what = What::Wrong("longer than 256 KiB, which no flow is");
        return Err(ParseError::new(number, text, Fail { at: LONGEST_LINE, what }));
    }
    read(&mut Cursor::new(text, names == Names::Allowed)).map_err(|fail| ParseError::new(number, text, fail))
}

/// Reads one line of a dump: a flow, or the heading of those that follow.
pub fn line(text: &str, number: usize, names: Names) -> Result<Line, ParseError> {
    let heading = text.trim_end().strip_prefix("flow-dump from ").map(|from| match from {
        "the main thread:" => Some(Line::Thread(None)),
        _ => {
            let core = from.strip_prefix("pmd on cpu core: ")?.parse().ok()?;
            Some(Line::Thread(Some(core)))
        }
    });
    match heading {
        Some(Some(heading)) => Ok(heading),
        Some(None) => {
            let what = What::Expected("\"the main thread:\" or \"pmd on cpu core: N\"");
            Err(ParseError::new(number, text, Fail { at: "flow-dump from ".len(), what }))
        }
        None => flow(text, number, names).map(Line::Flow),
    }
}

/// Reads one line of which it is not known whether it is text.
pub fn bytes(line: &[u8], number: usize, names: Names) -> Result<Line, ParseError> {
    let text = std::str::from_utf8(line).map_err(|error| {
        let at = error.valid_up_to();
        ParseError::new(number, "", Fail { at, what: What::Wrong("not UTF-8") })
    })?;
    self::line(text, number, names)
}

/// The lines of a dump, each read on its own; empty ones are left out.
pub fn dump(text: &str, names: Names) -> impl Iterator<Item = Result<Line, ParseError>> {
    let lines = text.lines().enumerate().filter(|(_, text)| !text.trim().is_empty());
    lines.map(move |(index, text)| line(text, index + 1, names))
}

fn read(cursor: &mut Cursor) -> Parsed<Flow> {
    let ufid = if cursor.take("ufid:") { Some(ufid(cursor)?) } else { None };
    if ufid.is_some() {
        cursor.expect(", ")?;
    }
    let keys = keys::list(cursor)?;
    cursor.expect(", packets:")?;
    let packets = cursor.number()?;
    cursor.expect(", bytes:")?;
    let bytes = cursor.number()?;
    cursor.expect(", used:")?;
    let used = used(cursor)?;
    let flags = if cursor.take(", flags:") { tcp_letters(cursor)? } else { TcpFlags::default() };
    let offloaded = match cursor.take(", offloaded:") {
        true if cursor.take("yes") => Some(Offloaded::Yes),
        true if cursor.take("partial") => Some(Offloaded::Partial),
        true => return cursor.fail(What::Expected("yes or partial")),
        false => None,
    };
    let layer = if cursor.take(", dp:") { Some(layer(cursor)?) } else { None };
    cursor.expect(", actions:")?;
    let actions = actions::list(cursor)?;
    let extra = cursor.take(EXTRA).then(|| cursor.take_rest().into());
    if !cursor.is_at_end() {
        return cursor.fail(What::Expected("a comma or the end of the line"));
    }
    Ok(Flow { ufid, keys, stats: Stats { packets, bytes, used, flags }, offloaded, layer, actions, extra })
}

/// What ends the actions of a line.
const EXTRA: &str = ", dp-extra-info:";

/// `6fc87ad1-9d66-4b5e-8f8b-...`
fn ufid(cursor: &mut Cursor) -> Parsed<Ufid> {
    let at = cursor.at();
    let text = cursor.take_while(|byte| byte.is_ascii_hexdigit() || byte == b'-');
    parts(text.as_bytes()).ok_or(Fail { at, what: What::Expected("an ufid of 8-4-4-4-12 hexadecimal digits") })
}

/// The number that the parts between the dashes make.
fn parts(text: &[u8]) -> Option<Ufid> {
    let text: &[u8; 36] = text.try_into().ok()?;
    if [8, 13, 18, 23].iter().any(|&dash| text[dash] != b'-') {
        return None;
    }
    // No dash is a digit.
    let part = |digits: &[u8]| {
        let mut digits = digits.iter().map(|byte| (*byte as char).to_digit(16));
        digits.try_fold(0, |part: u64, digit| Some(part << 4 | u64::from(digit?)))
    };
    let high = part(&text[..8])? << 32 | part(&text[9..13])? << 16 | part(&text[14..18])?;
    let low = part(&text[19..23])? << 48 | part(&text[24..])?;
    Some(Ufid(u128::from(high) << 64 | u128::from(low)))
}

/// `0.123s` or `never`, in ms.
fn used(cursor: &mut Cursor) -> Parsed<Option<i64>> {
    if cursor.take("never") {
        return Ok(None);
    }
    let at = cursor.at();
    let negative = cursor.take("-");
    let seconds: u32 = cursor.number().or_else(|fail| {
        // Nothing but a number of seconds that OVS cannot mean either: years.
        if matches!(fail.what, What::TooLarge(_)) { Err(fail) } else { cursor.fail(What::Expected("a time, or never")) }
    })?;
    cursor.expect(".")?;
    let digits = cursor.take_while(|byte| byte.is_ascii_digit());
    let (3, Ok(rest)) = (digits.len(), digits.parse::<i64>()) else {
        return Err(Fail { at, what: What::Expected("a time with three decimals") });
    };
    cursor.expect("s")?;
    let used = i64::from(seconds) * 1000 + rest;
    Ok(Some(if negative { -used } else { used }))
}

/// `SFPRU.ECN[200]`: packet_format_tcp_flags in OVS's lib/packets.c.
fn tcp_letters(cursor: &mut Cursor) -> Parsed<TcpFlags> {
    let at = cursor.at();
    let flags = LETTERS.iter().filter(|(_, letter)| cursor.take(letter)).fold(0, |flags, (bit, _)| flags | bit);
    TcpFlags::from_bits(flags.into())
        .filter(|flags| flags.0 != 0 && matches!(cursor.peek(), Some(b',')))
        .ok_or(Fail { at, what: What::Unknown("TCP flags") })
}

/// The letters of TCP's flags, in the order in which OVS prints them.
pub(super) const LETTERS: [(u16, &str); 12] = [
    (0x002, "S"),
    (0x001, "F"),
    (0x008, "P"),
    (0x004, "R"),
    (0x020, "U"),
    (0x010, "."),
    (0x040, "E"),
    (0x080, "C"),
    (0x100, "N"),
    (0x200, "[200]"),
    (0x400, "[400]"),
    (0x800, "[800]"),
];

fn layer(cursor: &mut Cursor) -> Parsed<Box<str>> {
    let layer = cursor.take_while(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'));
    if layer.is_empty() { cursor.fail(What::Expected("the datapath's name")) } else { Ok(layer.into()) }
}
