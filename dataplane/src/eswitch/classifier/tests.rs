//! The classifier beside a look at all rules.

use proptest::prelude::*;

use super::table::PORT;
use super::*;

/// What the classifier must give, by looking at every rule.
fn reference(rules: &[(RuleId, u32, Key, Key)], key: &Key) -> Option<RuleId> {
    let bits = |mask: &Key| mask.0.iter().map(|word| word.count_ones()).sum::<u32>();
    let matches = |value: &Key, mask: &Key| (0..WORDS).all(|word| key.0[word] & mask.0[word] == value.0[word]);
    let fits = rules.iter().filter(|(_, _, value, mask)| matches(value, mask));
    fits.max_by_key(|(id, priority, _, mask)| (*priority, bits(mask), Reverse(*id))).map(|(id, ..)| *id)
}

fn found(classifier: &mut Classifier<RuleId>, keys: &[Key]) -> Vec<Option<RuleId>> {
    let mut places = [0; BURST];
    classifier.look_up(keys, &mut places);
    places[..keys.len()].iter().map(|place| classifier.entry(*place).map(|entry| entry.body)).collect()
}

/// Few values and masks, so that rules overlap, and are equal.
fn word() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0u64), Just(1), Just(3), Just(0xff00), Just(u64::MAX)]
}

fn key() -> impl Strategy<Value = Key> {
    (word(), word(), word()).prop_map(|(a, b, c)| {
        let mut key = Key::EMPTY;
        (key.0[0], key.0[3], key.0[15]) = (a, b, c);
        key
    })
}

#[derive(Debug, Clone)]
enum Change {
    Insert(u128, u32, Box<(Key, Key)>),
    Remove(u128),
    LookUp(Vec<Key>),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        5 => (0..40u128, 0..3u32, key(), key()).prop_map(|(id, priority, value, mask)| {
            let mut masked = value;
            (0..WORDS).for_each(|word| masked.0[word] &= mask.0[word]);
            Change::Insert(id, priority, Box::new((masked, mask)))
        }),
        2 => (0..40u128).prop_map(Change::Remove),
        3 => prop::collection::vec(key(), 0..=BURST).prop_map(Change::LookUp),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_frame_gets_the_rule_that_a_look_at_all_rules_finds(changes in prop::collection::vec(change(), 1..120)) {
        let mut classifier = Classifier::default();
        let mut rules: Vec<(RuleId, u32, Key, Key)> = Vec::new();
        for change in changes {
            match change {
                Change::Insert(id, priority, pair) => {
                    let (value, mask) = *pair;
                    let known = rules.iter().any(|rule| rule.0 == RuleId(id));
                    rules.retain(|rule| rule.0 != RuleId(id));
                    rules.push((RuleId(id), priority, value, mask));
                    let old = classifier.insert(RuleId(id), priority, &value, &mask, RuleId(id));
                    prop_assert_eq!(old.is_some(), known);
                }
                Change::Remove(id) => {
                    let known = rules.iter().any(|rule| rule.0 == RuleId(id));
                    rules.retain(|rule| rule.0 != RuleId(id));
                    prop_assert_eq!(classifier.remove(RuleId(id)).is_some(), known);
                }
                Change::LookUp(keys) => {
                    let wanted: Vec<_> = keys.iter().map(|key| reference(&rules, key)).collect();
                    prop_assert_eq!(found(&mut classifier, &keys), wanted);
                    // As if the others were not there.
                    for (odd, above) in [0, 1].into_iter().flat_map(|odd| [None, Some(0), Some(1)].map(|above| (odd, above))) {
                        let is_asked = |rule: &&(RuleId, u32, Key, Key)| rule.0.0 & 1 == odd && Some(rule.1) > above;
                        let some: Vec<_> = rules.iter().filter(is_asked).copied().collect();
                        for key in &keys {
                            let place = classifier.look_up_fitting(key, above, |id| id.0 & 1 == odd);
                            prop_assert_eq!(classifier.entry(place).map(|entry| entry.body), reference(&some, key));
                        }
                    }
                }
            }
            prop_assert_eq!(classifier.len(), rules.len());
            let listed: Vec<_> = classifier.after(None).map(|(id, _)| id).collect();
            let mut ids: Vec<_> = rules.iter().map(|rule| rule.0).collect();
            ids.sort_unstable();
            prop_assert_eq!(listed, ids);
        }
    }
}

#[test]
fn many_rules_come_and_go_and_tables_of_no_rule_cost_nothing() {
    let mut classifier = Classifier::default();
    let mask = Key([u64::MAX; WORDS]);
    let value = |number: u64| Key([number; WORDS]);
    for round in 0..3 {
        for number in 0..20_000 {
            let id = RuleId(number.into());
            assert_eq!(classifier.insert(id, round, &value(number), &mask, id).is_some(), round > 0 && number < 10_000);
        }
        for number in 10_000..20_000u64 {
            assert!(classifier.remove(RuleId(number.into())).is_some());
        }
        let keys: Vec<_> = (9_990..10_010).map(value).collect();
        let wanted: Vec<_> = (9_990..10_010u128).map(|number| (number < 10_000).then_some(RuleId(number))).collect();
        assert_eq!(found(&mut classifier, &keys), wanted);
    }
    assert_eq!((classifier.len(), classifier.masks()), (10_000, 1));
    assert!((0..10_000u128).all(|number| classifier.remove(RuleId(number)).is_some()));
    assert_eq!((classifier.len(), classifier.masks()), (0, 0));
}

#[test]
fn a_table_is_asked_for_the_ports_of_its_rules_only() {
    let of_port = |port: u16| {
        let mut key = Key::EMPTY;
        key.set_port(port);
        key
    };
    let mut mask = Key::EMPTY;
    mask.0[0] |= PORT;
    let mut rules = Classifier::default();
    for (id, port) in [(1, 1), (2, 2), (3, 2 + 64)] {
        rules.insert(RuleId(id), 0, &of_port(port), &mask, RuleId(id));
    }
    assert_eq!(rules.tables[0].ports, 1 << 1 | 1 << 2);
    rules.remove(RuleId(1));
    rules.remove(RuleId(2));
    assert_eq!(rules.tables[0].ports, 1 << 2, "another port that shares the bit is still there");
    rules.insert(RuleId(4), 0, &Key::EMPTY, &Key::EMPTY, RuleId(4));
    assert_eq!(rules.tables.iter().find(|table| table.words.is_empty()).map(|table| table.ports), Some(u64::MAX));
    let keys = [of_port(1), of_port(2), of_port(2 + 64)];
    assert_eq!(found(&mut rules, &keys), [Some(RuleId(4)), Some(RuleId(4)), Some(RuleId(3))]);
}
