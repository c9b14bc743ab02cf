//! Prints flows as `dpctl/dump-flows` does, byte for byte. The files mirror those of `parse`.

mod actions;
mod conntrack;
mod fields;
mod keys;
mod push;
mod tunnel;
mod userspace;

use std::fmt::{self, Display, Formatter, Write};

use super::flags::TcpFlags;
use super::parse::LETTERS;
use super::{Action, Flow, Key, Line, Offloaded, Stats};

/// How much of a flow is printed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Without `-m`: no ufid, nothing of which no bit counts.
    Terse,
    /// With `-m`.
    Verbose,
}

impl Flow {
    /// The flow as OVS prints it. `--names` is a matter of the flow: its ports have names or numbers.
    pub fn display(&self, style: Style) -> impl Display {
        struct Displayed<'a>(&'a Flow, Style);

        impl Display for Displayed<'_> {
            fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
                flow(f, self.0, self.1)
            }
        }

        Displayed(self, style)
    }
}

impl Flow {
    /// What it matches, as `-m` prints it, and what it does.
    pub fn parts(&self, keys: &mut impl Write, actions: &mut impl Write) -> fmt::Result {
        keys::list(keys, &self.keys, Style::Verbose)?;
        actions::list(actions, &self.actions)
    }
}

impl Display for Flow {
    /// With `-m` where there is an ufid, else without.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        flow(f, self, if self.ufid.is_some() { Style::Verbose } else { Style::Terse })
    }
}

impl Display for Line {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Flow(flow) => flow.fmt(f),
            Self::Thread(None) => f.write_str("flow-dump from the main thread:"),
            Self::Thread(Some(core)) => write!(f, "flow-dump from pmd on cpu core: {core}"),
        }
    }
}

impl Display for Key {
    /// As `-m` prints it.
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        keys::key(f, self, keys::Within::Match(Style::Verbose))
    }
}

impl Display for Action {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        actions::action(f, self)
    }
}

fn flow(f: &mut impl Write, flow: &Flow, style: Style) -> fmt::Result {
    let verbose = style == Style::Verbose;
    if let Some(ufid) = flow.ufid.filter(|_| verbose) {
        write!(f, "ufid:{ufid}, ")?;
    }
    keys::list(f, &flow.keys, style)?;
    stats(f, &flow.stats)?;
    if verbose {
        f.write_str(match flow.offloaded {
            Some(Offloaded::Yes) => ", offloaded:yes",
            Some(Offloaded::Partial) => ", offloaded:partial",
            None => "",
        })?;
        if let Some(layer) = &flow.layer {
            write!(f, ", dp:{layer}")?;
        }
    }
    f.write_str(", actions:")?;
    actions::list(f, &flow.actions)?;
    match &flow.extra {
        Some(extra) if verbose => write!(f, ", dp-extra-info:{extra}"),
        _ => Ok(()),
    }
}

fn stats(f: &mut impl Write, stats: &Stats) -> fmt::Result {
    write!(f, ", packets:{}, bytes:{}, used:", stats.packets, stats.bytes)?;
    match stats.used {
        Some(used) => {
            let sign = if used < 0 { "-" } else { "" };
            write!(f, "{sign}{}.{:03}s", used.unsigned_abs() / 1000, used.unsigned_abs() % 1000)?;
        }
        None => f.write_str("never")?,
    }
    if stats.flags.0 == 0 { Ok(()) } else { tcp_letters(f, stats.flags) }
}

fn tcp_letters(f: &mut impl Write, flags: TcpFlags) -> fmt::Result {
    f.write_str(", flags:")?;
    LETTERS.iter().filter(|(bit, _)| flags.0 & bit != 0).try_for_each(|(_, letter)| f.write_str(letter))
}
