//! One file of the agent's: YAML, or lines of `key = value`, which the agent reads where YAML fails. Hundreds of its keys are not ours; they are passed over.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};
use serde::{Deserialize, de};
use serde_saphyr::Spanned;

use crate::error::{Error, ErrorKind};

/// Where something stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct At {
    pub file: Arc<Path>,
    /// From 1; 0: nowhere in particular.
    pub line: u64,
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            0 => write!(f, "{}", self.file.display()),
            line => write!(f, "{}:{line}", self.file.display()),
        }
    }
}

/// A value, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed<T> {
    pub value: T,
    pub at: At,
}

/// What of a file is ours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Keys {
    pub networks: Vec<Placed<String>>,
    pub sriov_nics: Vec<Placed<String>>,
    pub ovs_offload_nics: Vec<Placed<String>>,
    pub disable_security_group: Option<Placed<bool>>,
    pub common_config_file: Option<Placed<PathBuf>>,
    pub local_config_file: Option<Placed<PathBuf>>,
    /// Keys that are almost ours: what was meant, and where they stand.
    pub mistyped: Vec<Placed<(String, &'static str)>>,
}

const NETWORKS: &str = "networks";
const SRIOV: &str = "sriov_nics";
const OFFLOAD: &str = "ovs_offload_nics";
const NO_SECURITY: &str = "disable_security_group";
const COMMON: &str = "common_config_file";
const LOCAL: &str = "local_config_file";
const OURS: [&str; 6] = [NETWORKS, SRIOV, OFFLOAD, NO_SECURITY, COMMON, LOCAL];

/// A file as YAML, where values may still be of the wrong kind.
#[derive(Default)]
struct Raw {
    keys: Vec<(Spanned<String>, Option<Spanned<Shape>>)>,
}

/// What a value may be.
#[derive(Debug, Clone)]
enum Shape {
    Null,
    Bool(bool),
    Text(String),
    List(Vec<Spanned<Shape>>),
    Other,
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Raw;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("keys with their values")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Raw, E> {
                Ok(Raw::default())
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Raw, A::Error> {
                let mut raw = Raw::default();
                while let Some(key) = map.next_key::<Spanned<String>>()? {
                    let value = if OURS.contains(&name(&key.value).as_str()) {
                        Some(map.next_value()?)
                    } else {
                        map.next_value::<IgnoredAny>()?;
                        None
                    };
                    raw.keys.push((key, value));
                }
                Ok(raw)
            }
        }
        deserializer.deserialize_any(Whole)
    }
}

impl<'de> Deserialize<'de> for Shape {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Any;
        impl<'de> Visitor<'de> for Any {
            type Value = Shape;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a value")
            }

            fn visit_unit<E: de::Error>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }

            fn visit_none<E: de::Error>(self) -> Result<Shape, E> {
                Ok(Shape::Null)
            }

            fn visit_bool<E: de::Error>(self, value: bool) -> Result<Shape, E> {
                Ok(Shape::Bool(value))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Shape, E> {
                Ok(Shape::Text(value.to_owned()))
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Shape, E> {
                Ok(Shape::Text(value.to_string()))
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Shape, E> {
                Ok(Shape::Text(value.to_string()))
            }

            fn visit_f64<E: de::Error>(self, _: f64) -> Result<Shape, E> {
                Ok(Shape::Other)
            }

            fn visit_seq<A: de::SeqAccess<'de>>(self, mut list: A) -> Result<Shape, A::Error> {
                let mut items = Vec::new();
                while let Some(item) = list.next_element()? {
                    items.push(item);
                }
                Ok(Shape::List(items))
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Shape, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Shape::Other)
            }
        }
        deserializer.deserialize_any(Any)
    }
}

/// The agent takes `sriov-nics` for `sriov_nics`.
fn name(key: &str) -> String {
    key.trim().replace('-', "_")
}

/// Reads the text of a file.
pub(crate) fn read(file: &Path, text: &str) -> Result<Keys, Error> {
    let file: Arc<Path> = file.into();
    let raw = match serde_saphyr::from_str::<Raw>(text) {
        Ok(raw) => raw,
        Err(_) if is_lines(text) => return keys_of_lines(&file, text),
        Err(error) => {
            let error = error.without_snippet();
            let at = At { file, line: error.location().map_or(1, |location| location.line()) };
            let what = format!("this is no YAML: {}", error.to_string().replace('\n', " "));
            return Err(invalid(&at, what, "the agent does not read it either"));
        }
    };
    let mut keys = Keys::default();
    for (key, value) in raw.keys {
        let at = At { file: file.clone(), line: key.referenced.line() };
        let word = name(&key.value);
        match value {
            Some(value) => keys.take(&word, value, &at)?,
            None => keys.mistyped.extend(almost(&word).map(|meant| Placed { value: (key.value, meant), at })),
        }
    }
    Ok(keys)
}

impl Keys {
    fn take(&mut self, key: &str, value: Spanned<Shape>, at: &At) -> Result<(), Error> {
        let placed = |line: u64| At { file: at.file.clone(), line: if line == 0 { at.line } else { line } };
        match (key, value.value) {
            (_, Shape::Null) => {}
            (NETWORKS | SRIOV | OFFLOAD, Shape::List(items)) => {
                let list = match key {
                    NETWORKS => &mut self.networks,
                    SRIOV => &mut self.sriov_nics,
                    _ => &mut self.ovs_offload_nics,
                };
                for item in items {
                    let at = placed(item.referenced.line());
                    match item.value {
                        Shape::Text(text) if !text.trim().is_empty() => {
                            list.push(Placed { value: text.trim().to_owned(), at });
                        }
                        _ => {
                            let what = format!("an entry of {key} is no text");
                            return Err(invalid(&at, what, "write each entry as \"- name\""));
                        }
                    }
                }
            }
            (NETWORKS | SRIOV | OFFLOAD, _) => {
                let what = format!("{key} is no list");
                return Err(invalid(at, what, "write each entry on a line of its own, as \"- name\""));
            }
            (NO_SECURITY, Shape::Bool(value)) => {
                self.disable_security_group = Some(Placed { value, at: at.clone() });
            }
            (NO_SECURITY, Shape::Text(text)) => {
                self.disable_security_group = Some(Placed { value: truth(&text, at)?, at: at.clone() });
            }
            (NO_SECURITY, _) => {
                return Err(invalid(at, format!("{key} is neither true nor false"), "write true or false"));
            }
            (_, Shape::Text(text)) => {
                let path = Placed { value: PathBuf::from(text), at: at.clone() };
                let place = if key == COMMON { &mut self.common_config_file } else { &mut self.local_config_file };
                *place = Some(path);
            }
            _ => return Err(invalid(at, format!("{key} is no path"), "write the path of a file")),
        }
        Ok(())
    }
}

/// What the agent's language takes for a truth value (Go, strconv.ParseBool).
fn truth(text: &str, at: &At) -> Result<bool, Error> {
    match text.trim() {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        other => Err(invalid(at, format!("{other:?} is neither true nor false"), "write true or false")),
    }
}

/// Whether the file has the older form: no line that means something is without `=`.
fn is_lines(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with(['#', '[']));
    let key = |line: &str| line.split_once('=').is_some_and(|(key, _)| !key.trim().is_empty() && !key.contains(':'));
    lines.clone().next().is_some() && lines.all(key)
}

fn keys_of_lines(file: &Arc<Path>, text: &str) -> Result<Keys, Error> {
    let mut keys = Keys::default();
    for (number, line) in text.lines().enumerate() {
        let line = line.split('#').next().unwrap_or_default().trim();
        let Some((key, value)) = line.split_once('=').filter(|_| !line.starts_with('[')) else { continue };
        let at = At { file: file.clone(), line: number as u64 + 1 };
        let bare = |word: &str| word.trim().trim_matches(['"', '\'']).to_owned();
        let list = || {
            let inside = value.trim().trim_start_matches('[').trim_end_matches(']');
            let words = inside.split(',').map(bare).filter(|word| !word.is_empty());
            words.map(|value| Placed { value, at: at.clone() }).collect::<Vec<_>>()
        };
        match name(key).as_str() {
            NETWORKS => keys.networks.extend(list()),
            SRIOV => keys.sriov_nics.extend(list()),
            OFFLOAD => keys.ovs_offload_nics.extend(list()),
            NO_SECURITY => {
                let value = truth(&bare(value), &at)?;
                keys.disable_security_group = Some(Placed { value, at });
            }
            COMMON => keys.common_config_file = Some(Placed { value: bare(value).into(), at }),
            LOCAL => keys.local_config_file = Some(Placed { value: bare(value).into(), at }),
            other => {
                let mistyped = almost(other).map(|meant| Placed { value: (key.trim().to_owned(), meant), at });
                keys.mistyped.extend(mistyped);
            }
        }
    }
    Ok(keys)
}

/// The key of ours that was probably meant.
fn almost(key: &str) -> Option<&'static str> {
    let plain = |text: &str| text.replace('_', "").trim_end_matches('s').to_lowercase();
    [NETWORKS, SRIOV, OFFLOAD, NO_SECURITY].into_iter().find(|ours| plain(ours) == plain(key))
}

pub(super) fn invalid(at: &At, what: impl fmt::Display, remedy: &str) -> Error {
    Error::new(ErrorKind::Invalid, format!("{at}: {what}: {remedy}")).about(at.file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(list: &[Placed<String>]) -> Vec<(&str, u64)> {
        list.iter().map(|one| (one.value.as_str(), one.at.line)).collect()
    }

    #[test]
    fn values_have_their_lines_and_other_keys_are_passed_over() {
        let text = "rack: r1\nnetworks:\n- eth0/br0/10.0.0.1\n- eth1/br1/wire1\n# a comment\nsriov_nics: [eth1]\nservers: {a: [1, 2]}\ndisable-security-group: true\n";
        let keys = read(Path::new("host.conf"), text).unwrap();
        assert_eq!(lines(&keys.networks), [("eth0/br0/10.0.0.1", 3), ("eth1/br1/wire1", 4)]);
        assert_eq!(lines(&keys.sriov_nics), [("eth1", 6)]);
        assert_eq!(keys.disable_security_group.map(|one| (one.value, one.at.line)), Some((true, 8)));
    }

    #[test]
    fn the_older_form_is_read_too() {
        let text = "# host\n[default]\nrack = 'r1'\nnetworks = ['eth0/br0/10.0.0.1', 'eth1/br1/w1']\ndisable_security_group = True\n";
        let keys = read(Path::new("host.conf"), text).unwrap();
        assert_eq!(lines(&keys.networks), [("eth0/br0/10.0.0.1", 4), ("eth1/br1/w1", 4)]);
        assert!(keys.disable_security_group.unwrap().value);
    }

    #[test]
    fn what_cannot_be_read_is_told_with_file_line_and_remedy() {
        for (text, line, words) in [
            ("a: 1\nnetworks: eth0/br0/w\n", 2, "networks is no list: write each entry on a line of its own"),
            ("networks:\n- eth0/br0/w\n- {a: b}\n", 3, "an entry of networks is no text"),
            ("disable_security_group: perhaps\n", 1, "\"perhaps\" is neither true nor false"),
            ("a: 1\na: 2\n", 2, "no YAML"),
            ("just a text\n", 1, "no YAML"),
        ] {
            let error = read(Path::new("/etc/yunion/host.conf"), text).unwrap_err();
            assert!(error.message.starts_with(&format!("/etc/yunion/host.conf:{line}: ")), "{text}: {error}");
            assert!(error.message.contains(words), "{text}: {error}");
        }
        assert!(read(Path::new("x"), "networks:\n- a\n b: [\n").unwrap_err().message.contains("no YAML"));
        assert_eq!(read(Path::new("x"), "").unwrap(), Keys::default());
        assert_eq!(read(Path::new("x"), "sriov_nics:\nnetworks:\n").unwrap(), Keys::default());
    }

    #[test]
    fn a_key_that_is_almost_ours_is_noticed() {
        let keys = read(Path::new("x"), "rack: 1\nsriov_nic: [eth0]\n").unwrap();
        assert_eq!(keys.mistyped.len(), 1);
        assert_eq!((keys.mistyped[0].value.1, keys.mistyped[0].at.line), ("sriov_nics", 2));
    }
}
