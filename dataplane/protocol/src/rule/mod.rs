//! Rules: what the switch of a NIC does with which frames, as control tells an engine.
//!
//! A rule is one flow of Open vSwitch's datapath, in the engine's words. It knows nothing of DPDK and nothing of OVS. Fields and actions are in
//! [`field`] and [`action`]; [`Rule::check`] says what no engine could do.

pub mod action;
pub mod check;
pub mod field;

use std::fmt;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use action::{Action, TunnelKind, TunnelPush, has_critical};
pub use check::RuleError;
pub use field::{Field, FieldError, FieldMatch};

use crate::{Failure, NicPort};

/// Names a rule within its NIC: the flow's ufid. Written as a UUID.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RuleId(pub u128);

/// Not the id of a rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a rule's id: write it as 6f2a8c1e-0000-0000-0000-000000000001")]
pub struct NotARuleId(String);

impl FromStr for RuleId {
    type Err = NotARuleId;

    fn from_str(text: &str) -> Result<Self, NotARuleId> {
        let bad = || NotARuleId(text.into());
        let mut id = 0;
        let mut parts = text.split('-');
        for digits in [8, 4, 4, 4, 12] {
            let part = parts.next().filter(|part| part.len() == digits).ok_or_else(bad)?;
            if !part.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(bad());
            }
            id = id << (4 * digits) | u128::from(u64::from_str_radix(part, 16).map_err(|_| bad())?);
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(id)) }
    }
}

impl fmt::Display for RuleId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        let (a, b, c, d) = ((id >> 96) as u32, (id >> 80) as u16, (id >> 64) as u16, (id >> 48) as u16);
        write!(f, "{a:08x}-{b:04x}-{c:04x}-{d:04x}-{:012x}", id as u64 & 0xffff_ffff_ffff)
    }
}

impl TryFrom<String> for RuleId {
    type Error = NotARuleId;
    fn try_from(text: String) -> Result<Self, NotARuleId> {
        text.parse()
    }
}

impl From<RuleId> for String {
    fn from(id: RuleId) -> String {
        id.to_string()
    }
}

impl JsonSchema for RuleId {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "RuleId".into()
    }
    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({ "type": "string", "description": "A rule's id, a flow's ufid.", "format": "uuid" })
    }
}

/// The fields a frame must have. Sorted, each once, none with an empty mask; written as a list.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize, JsonSchema)]
#[serde(try_from = "Vec<FieldMatch>", into = "Vec<FieldMatch>")]
#[schemars(with = "Vec<FieldMatch>")]
pub struct Match(Vec<FieldMatch>);

/// A field stands twice in a match.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0} is matched twice: give it one value and one mask")]
pub struct Twice(pub Field);

impl Match {
    /// A match of these fields. Those with an empty mask are left out: they match everything.
    ///
    /// # Errors
    /// [`Twice`].
    pub fn new(fields: impl IntoIterator<Item = FieldMatch>) -> Result<Self, Twice> {
        let mut fields: Vec<_> = fields.into_iter().filter(|field| field.mask() != 0).collect();
        fields.sort_by_key(FieldMatch::field);
        match fields.windows(2).find(|pair| pair[0].field() == pair[1].field()) {
            Some(pair) => Err(Twice(pair[0].field())),
            None => Ok(Self(fields)),
        }
    }

    /// The fields in order.
    pub fn fields(&self) -> &[FieldMatch] {
        &self.0
    }

    /// What is asked of a field.
    pub fn get(&self, field: Field) -> Option<&FieldMatch> {
        self.0.binary_search_by_key(&field, FieldMatch::field).ok().map(|at| &self.0[at])
    }

    /// The value of a field of which all bits count.
    pub fn exact(&self, field: Field) -> Option<u128> {
        self.get(field).filter(|found| found.is_exact()).map(FieldMatch::value)
    }
}

impl TryFrom<Vec<FieldMatch>> for Match {
    type Error = Twice;
    fn try_from(fields: Vec<FieldMatch>) -> Result<Self, Twice> {
        Self::new(fields)
    }
}

impl From<Match> for Vec<FieldMatch> {
    fn from(fields: Match) -> Self {
        fields.0
    }
}

/// A rule. Among those that match a frame the one with the highest priority counts; among equal ones that whose match has more bits,
/// then that with the lower id. One about what is inside a tunnel counts where there is none about the packet around, or where its
/// priority is higher.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// Its id. A rule of the same id takes the old one's place, and goes on counting where it stood.
    pub id: RuleId,
    /// Greater goes first.
    #[serde(default)]
    pub priority: u32,
    /// Where the frame came from.
    pub in_port: NicPort,
    /// What it must look like; everything matches when empty.
    #[serde(default, rename = "match")]
    pub matches: Match,
    /// What is done with it.
    pub actions: Vec<Action>,
    /// Sends one frame of those it matches to the representor every few seconds, so that who installed it sees that it is used.
    #[serde(default = "yes")]
    pub refresh: bool,
}

fn yes() -> bool {
    true
}

/// What became of one rule of a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleResult {
    /// Which.
    pub id: RuleId,
    /// Why it was refused; absent when it was done. The rule is then as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

/// What a rule counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleCounters {
    /// Which.
    pub id: RuleId,
    /// Frames it was applied to, those that it sent to the representor not included.
    pub packets: u64,
    /// Bytes of those as they came in, without the frame check sequence.
    pub bytes: u64,
    /// Milliseconds since the last frame; absent when there was none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_ms: Option<u64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rule_reads_back_as_it_was_written() {
        let text = r#"{"id":"6f2a8c1e-0001-0002-0003-000000000004","priority":0,"in_port":"vf0","match":["eth_dst=52:54:00:00:00:02","eth_type=0x800","ipv4_dst=10.0.0.0/255.0.0.0"],"actions":[{"push-vlan":{"tpid":33024,"tci":5}},{"set":"ip_tos=0x10/0xfc"},"dec-ttl",{"output":"uplink"}],"refresh":true}"#;
        let rule: Rule = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&rule).unwrap(), text);
        assert_eq!(rule.check(), Ok(()));
        assert_eq!(rule.id.0 >> 96, 0x6f2a_8c1e);
    }

    #[test]
    fn an_id_is_a_uuid_and_nothing_else() {
        for id in [0, 1, u128::MAX, 0x0123_4567_89ab_cdef_0123_4567_89ab_cdef] {
            assert_eq!(RuleId(id).to_string().parse(), Ok(RuleId(id)));
        }
        for bad in [
            "",
            "1",
            "6f2a8c1e-0001-0002-0003-00000000000",
            "6f2a8c1e-0001-0002-0003-000000000004-",
            "+f2a8c1e-0001-0002-0003-000000000004",
        ] {
            assert!(bad.parse::<RuleId>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_field_is_matched_once_and_an_empty_mask_is_no_match() {
        let any = FieldMatch::new(Field::EthDst, 0, 0).unwrap();
        let some = FieldMatch::exact(Field::EthType, 0x800).unwrap();
        assert_eq!(Match::new([any, some]).unwrap().fields(), [some]);
        assert_eq!(Match::new([some, some]), Err(Twice(Field::EthType)));
    }
}
