//! Why a line is not a flow, and where it stops to be one.

/// What a parser returns.
pub(super) type Parsed<T> = Result<T, Fail>;

/// Something does not fit at this place of the line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fail {
    /// Bytes from the line's beginning.
    pub at: usize,
    pub what: What,
}

/// What does not fit.
#[derive(Debug, Clone, Copy)]
pub(super) enum What {
    /// Something else should be here: what kind of thing.
    Expected(&'static str),
    /// This very text should be here.
    Text(&'static str),
    /// A word that is none of those that may be here: what kind of word.
    Unknown(&'static str),
    /// What ends this list is not here: the list's name.
    NotIn(&'static str),
    /// It was there before.
    Twice,
    /// A number of more than these bits.
    TooLarge(usize),
    /// Actions within actions, or keys within keys, deeper than this.
    TooDeep(u32),
    /// Anything else.
    Wrong(&'static str),
}

/// A line that is not a flow of an OVS datapath.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {reason}")]
pub struct ParseError {
    /// Line, from 1.
    pub line: usize,
    /// Column in bytes, from 1.
    pub column: usize,
    /// What was expected there, and what there is.
    pub reason: String,
}

impl ParseError {
    pub(super) fn new(line: usize, text: &str, Fail { at, what }: Fail) -> Self {
        let found = || excerpt(text, at);
        let reason = match what {
            What::Expected(what) => format!("expected {what}, found {}", found()),
            What::Text(text) => format!("expected {text:?}, found {}", found()),
            What::Unknown(kind) => format!("unknown {kind}: {}", found()),
            What::NotIn(list) if at >= text.len() => {
                format!("expected \",\" and more of {list}, or \")\", found {}", found())
            }
            What::NotIn(list) => format!("not a part of {list}, or not in its place: {}", found()),
            What::Twice => format!("given twice: {}", found()),
            What::TooLarge(bits) => format!("a number of more than {bits} bits: {}", found()),
            What::TooDeep(deepest) => format!("nested deeper than {deepest} levels"),
            What::Wrong(what) => what.into(),
        };
        Self { line, column: at + 1, reason }
    }
}

/// The beginning of what is at this place.
fn excerpt(text: &str, at: usize) -> String {
    const LONGEST: usize = 24;
    match text.get(at..) {
        None | Some("") => "the end of the line".into(),
        Some(rest) => {
            let end = rest.char_indices().nth(LONGEST).map_or(rest.len(), |(end, _)| end);
            format!("{:?}{}", &rest[..end], if end < rest.len() { "…" } else { "" })
        }
    }
}
