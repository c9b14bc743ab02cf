//! Rules as they were asked for, kept small.
//!
//! A rule in its own form takes 48 bytes for each field. Rules of one kind differ in the values of their fields alone, so those are kept for each rule, as many
//! bytes as the field has, and all else once.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use ringspan_protocol::{Action, Field, FieldMatch, Match, NicPort, Rule, RuleId};

use super::interned::Interned;

/// Rules by id.
#[derive(Debug, Default)]
pub struct Rules {
    by_id: BTreeMap<RuleId, Kept>,
    kinds: Interned<Kind>,
    actions: Interned<Vec<Action>>,
}

/// A rule without its id.
#[derive(Debug)]
struct Kept {
    kind: Arc<Kind>,
    actions: Arc<Vec<Action>>,
    /// The values of its fields, highest byte first.
    values: Box<[u8]>,
}

/// What rules have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind {
    priority: u32,
    in_port: NicPort,
    refresh: bool,
    /// Its fields, with their masks.
    fields: Box<[(Field, u128)]>,
}

impl Rules {
    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_id.len()
    }

    /// Keeps a rule, in the place of one of its id.
    pub fn insert(&mut self, rule: &Rule) {
        let Rule { id, priority, in_port, matches, actions, refresh } = rule;
        let fields = matches.fields();
        let mut values = Vec::with_capacity(fields.iter().map(|field| bytes(field.field())).sum());
        for field in fields {
            values.extend_from_slice(&field.value().to_be_bytes()[16 - bytes(field.field())..]);
        }
        let fields = fields.iter().map(|field| (field.field(), field.mask())).collect();
        let kept = Kept {
            kind: self.kinds.get(&Kind { priority: *priority, in_port: *in_port, refresh: *refresh, fields }),
            actions: self.actions.get(actions),
            values: values.into(),
        };
        let old = self.by_id.insert(*id, kept);
        self.let_go(old);
    }

    /// Forgets a rule, if it is there.
    pub fn remove(&mut self, id: RuleId) {
        let old = self.by_id.remove(&id);
        self.let_go(old);
    }

    fn let_go(&mut self, old: Option<Kept>) {
        if old.is_some() {
            drop(old);
            self.kinds.released(1);
            self.actions.released(1);
        }
    }

    /// The rules behind an id, in order.
    pub fn after(&self, id: Option<RuleId>) -> impl Iterator<Item = Rule> {
        let from = id.map_or(Bound::Unbounded, Bound::Excluded);
        self.by_id.range((from, Bound::Unbounded)).map(|(id, kept)| kept.rule(*id))
    }

    /// A rule that does this, if there is one.
    pub fn with_action(&self, action: &Action) -> Option<RuleId> {
        self.by_id.iter().find(|(_, kept)| kept.actions.contains(action)).map(|(id, _)| *id)
    }
}

impl Kept {
    fn rule(&self, id: RuleId) -> Rule {
        let Kind { priority, in_port, refresh, fields } = &*self.kind;
        let mut rest = &*self.values;
        let fields = fields.iter().filter_map(|(field, mask)| {
            let (value, behind) = rest.split_at_checked(bytes(*field))?;
            rest = behind;
            let value = value.iter().fold(0, |value, byte| value << 8 | u128::from(*byte));
            FieldMatch::new(*field, value, *mask).ok()
        });
        // They were those of a match.
        let matches = Match::new(fields).unwrap_or_default();
        let actions = Vec::clone(&self.actions);
        Rule { id, priority: *priority, in_port: *in_port, matches, actions, refresh: *refresh }
    }
}

/// Bytes of a field's value.
fn bytes(field: Field) -> usize {
    field.bits().div_ceil(8) as usize
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn field() -> impl Strategy<Value = FieldMatch> {
        let of = |(field, value, mask): (Field, u128, u128)| {
            let mask = mask & field.mask();
            FieldMatch::new(field, value & mask, mask).unwrap()
        };
        let mask = prop_oneof![2 => Just(u128::MAX), 1 => any::<u128>()];
        (prop::sample::select(Field::ALL), any::<u128>(), mask).prop_map(of)
    }

    fn rule() -> impl Strategy<Value = Rule> {
        let action = prop_oneof![
            (0..3u16).prop_map(|vf| Action::Output(NicPort::Vf(vf))),
            field().prop_map(Action::Set),
            (0..3u32).prop_map(Action::Meter),
        ];
        let fields = prop::collection::vec(field(), 0..12);
        (any::<u8>(), 0..2u32, fields, prop::collection::vec(action, 0..4), any::<bool>()).prop_map(
            |(id, priority, fields, actions, refresh)| {
                let mut once = BTreeMap::new();
                once.extend(fields.into_iter().map(|field| (field.field(), field)));
                let matches = Match::new(once.into_values()).unwrap();
                let id = RuleId(id.into());
                Rule { id, priority, in_port: NicPort::Uplink, matches, actions, refresh }
            },
        )
    }

    proptest! {
        #[test]
        fn a_rule_is_given_back_as_it_was_asked_for(rules in prop::collection::vec(rule(), 0..40)) {
            let (mut kept, mut wanted) = (Rules::default(), BTreeMap::new());
            for (at, rule) in rules.iter().enumerate() {
                wanted.insert(rule.id, rule.clone());
                kept.insert(rule);
                if at % 5 == 4 {
                    wanted.remove(&rules[at / 2].id);
                    kept.remove(rules[at / 2].id);
                }
            }
            prop_assert_eq!(kept.len(), wanted.len());
            let all: Vec<Rule> = wanted.values().cloned().collect();
            prop_assert_eq!(kept.after(None).collect::<Vec<_>>(), all.clone());
            if let Some(middle) = all.get(all.len() / 2) {
                prop_assert_eq!(kept.after(Some(middle.id)).count(), all.len() - all.len() / 2 - 1);
            }
            let metered = all.iter().find(|rule| rule.actions.contains(&Action::Meter(1))).map(|rule| rule.id);
            prop_assert_eq!(kept.with_action(&Action::Meter(1)), metered);
        }
    }
}
