//! Names of ports and lanes: short, printable, safe in a file name and on a command line.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Longest name in bytes: it becomes part of file names and of a unix socket's path (108 bytes at most).
pub const MAX_NAME: usize = 48;

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// An empty name.
    #[error("the name is empty: use letters, digits, '-', '_' and '.'")]
    Empty,
    /// Longer than [`MAX_NAME`].
    #[error("the name {0:?} has {1} bytes: at most {MAX_NAME} are allowed")]
    TooLong(String, usize),
    /// A character outside `[A-Za-z0-9._-]`, or a first one that is not a letter or digit.
    #[error("the name {0:?} has {1:?}: use letters, digits, '-', '_' and '.', starting with a letter or digit")]
    Character(String, char),
}

fn check(text: &str) -> Result<(), NameError> {
    let first = text.chars().next().ok_or(NameError::Empty)?;
    if text.len() > MAX_NAME {
        return Err(NameError::TooLong(text.chars().take(MAX_NAME).collect(), text.len()));
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
    ($type:ident, $what:literal) => {
        #[doc = concat!("The name of ", $what, ": 1 to 48 of `[A-Za-z0-9._-]`, starting with a letter or digit.")]
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, schemars::JsonSchema)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(
            #[schemars(length(min = 1, max = 48), regex(pattern = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"))] String,
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
                check(text).map(|()| Self(text.into()))
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                check(&text).map(|()| Self(text))
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

name!(PortName, "a port");
name!(LaneName, "a lane");

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
