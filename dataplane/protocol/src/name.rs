//! Names of ports and lanes: short, printable, safe in a file name and on a command line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes: it becomes part of file names and of a unix socket's path (108 bytes at most).
pub const MAX_NAME: usize = 48;

/// Longest name of a NIC in bytes: `_vf63` behind it makes the name of a network interface (15 bytes at most).
pub const MAX_NIC_NAME: usize = 10;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// An empty name.
    #[error("the name is empty: use letters, digits, '-', '_' and '.'")]
    Empty,
    /// Longer than [`MAX_NAME`], or [`MAX_NIC_NAME`].
    #[error("the name {0:?} has {1} bytes: at most {2} are allowed")]
    TooLong(String, usize, usize),
    /// A character outside `[A-Za-z0-9._-]`, or a first one that is not a letter or digit.
    #[error("the name {0:?} has {1:?}: use letters, digits, '-', '_' and '.', starting with a letter or digit")]
    Character(String, char),
}

fn check(text: &str, most: usize) -> Result<(), NameError> {
    let first = text.chars().next().ok_or(NameError::Empty)?;
    if text.len() > most {
        return Err(NameError::TooLong(text.chars().take(most).collect(), text.len(), most));
    }
    if !first.is_ascii_alphanumeric() {
        return Err(NameError::Character(text.into(), first));
    }
    match text.chars().find(|c| !(c.is_ascii_alphanumeric() || "._-".contains(*c))) {
        Some(bad) => Err(NameError::Character(text.into(), bad)),
        None => Ok(()),
    }
}

macro_rules! name {
    ($type:ident, $what:literal, $most:literal) => {
        #[doc = concat!("The name of ", $what, ": 1 to ", $most, " of `[A-Za-z0-9._-]`, starting with a letter or digit.")]
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(
            #[schemars(length(min = 1, max = $most), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))] String,
        );

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;
            fn from_str(text: &str) -> Result<Self, NameError> {
                check(text, $most).map(|()| Self(text.into()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check(&text, $most).map(|()| Self(text))
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }
    };
}

name!(PortName, "a port", 48);
name!(LaneName, "a lane", 48);
name!(NicName, "a NIC", 10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_what_may_stand_in_a_file_name() {
        for good in ["vm1", "0", "a.b-c_D", &"x".repeat(MAX_NAME)] {
            assert_eq!(good.parse::<PortName>().unwrap().as_str(), good);
        }
        for bad in ["", ".", "../x", "-x", "a b", "a/b", "ü", &"x".repeat(MAX_NAME + 1)] {
            assert!(bad.parse::<PortName>().is_err(), "{bad:?} was accepted");
        }
    }
}
