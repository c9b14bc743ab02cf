//! GUIDs of InfiniBand (InfiniBand Architecture Specification, 4.1: EUI-64).

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// The name of a node or of a port: eight bytes, `00:01:52:54:00:12:34:56`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Guid(pub u64);

impl fmt::Display for Guid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes: Vec<String> = self.0.to_be_bytes().iter().map(|byte| format!("{byte:02x}")).collect();
        f.write_str(&bytes.join(":"))
    }
}

impl FromStr for Guid {
    type Err = String;

    /// Eight bytes with colons, or 16 digits with or without 0x.
    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no GUID: write eight bytes, such as 00:01:52:54:00:12:34:56, and not only zeroes");
        let parts: Vec<&str> = text.split(':').collect();
        let digits = match parts[..] {
            [whole] => whole.strip_prefix("0x").unwrap_or(whole).to_owned(),
            _ if parts.len() == 8 && parts.iter().all(|part| part.len() == 2) => parts.concat(),
            _ => return Err(wrong()),
        };
        let plain = digits.len() == 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let number = u64::from_str_radix(&digits, 16).ok().filter(|number| plain && *number != 0);
        number.map(Self).ok_or_else(wrong)
    }
}

impl Serialize for Guid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Guid {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(de::Error::custom)
    }
}

impl JsonSchema for Guid {
    fn schema_name() -> Cow<'static, str> {
        "Guid".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "A GUID of InfiniBand: `00:01:52:54:00:12:34:56`." })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nothing_else() {
        for text in ["00:01:52:54:00:12:34:56", "0x0001525400123456", "0001525400123456"] {
            assert_eq!(text.parse::<Guid>().unwrap().to_string(), "00:01:52:54:00:12:34:56");
        }
        for text in
            ["", "00:01:52:54:00:12:34", "0:1:52:54:00:12:34:56", "+001525400123456", "00:00:00:00:00:00:00:00", "1"]
        {
            assert!(text.parse::<Guid>().is_err(), "{text:?}");
        }
    }
}
