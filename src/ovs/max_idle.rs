//! `other_config:max-idle` of Open vSwitch, raised while a NIC forwards packets without showing OVS any: after that time it would remove the
//! flows that are used most.
//!
//! The user's value is kept beside it in the database, in the same transaction, so that whoever finds it there after a crash can restore it.

use std::time::Duration;

use serde_json::{Value, json};

use super::client::{Database, OvsError};

/// What it is raised to where it is less: long enough that few rules a second have to be taken out to show OVS that they are used, and less than
/// the 300 s after which it forgets a MAC address.
pub(crate) const RAISED: Duration = Duration::from_secs(120);
/// OVS's default in milliseconds, ovs-vswitchd.conf.db(5).
pub(super) const DEFAULT_MS: u64 = 10_000;
/// Key in `external_ids` of the user's value in milliseconds, or [`UNSET`], and behind a space what it was raised to.
pub(super) const WAS: &str = "ringspan-max-idle-was";
/// The user had set none.
const UNSET: &str = "unset";

/// What OVS goes by, and what the user wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TakenOver {
    /// The user's value.
    pub users: Duration,
    /// What it is now: the same, or more.
    pub raised: Duration,
}

impl TakenOver {
    fn new(users: &str, least: Duration) -> Self {
        let users = Duration::from_millis(users.parse().unwrap_or(DEFAULT_MS));
        Self { users, raised: users.max(least) }
    }
}

/// Raises it to `wanted`, unless it is more, or gives it back; what is so already is left alone. What the user has set meanwhile is the
/// user's value from then on.
pub(super) fn take_over(database: &mut Database, wanted: Option<Duration>) -> Result<Option<TakenOver>, OvsError> {
    let columns = ["other_config", "external_ids"];
    let select = json!({ "op": "select", "table": "Open_vSwitch", "where": [], "columns": columns });
    let mut results = database.transact(vec![select])?;
    let row = results.swap_remove(0)["rows"][0].take();
    let has = entry(&row["other_config"], "max-idle");
    let note = entry(&row["external_ids"], WAS);
    // Of what was raised, if it is still so.
    let was = note.as_ref().and_then(|note| note.split_once(' ')).filter(|(_, raised)| has.as_deref() == Some(*raised));
    let users = was.map_or(has.as_deref().unwrap_or(UNSET), |(users, _)| users);
    let taken = wanted.map(|least| TakenOver::new(users, least));
    let (value, kept) = match taken {
        Some(TakenOver { raised, .. }) => {
            let raised = raised.as_millis().to_string();
            (raised.clone(), Some(format!("{users} {raised}")))
        }
        None => (users.to_owned(), None),
    };
    if kept == note {
        return Ok(taken);
    }
    // Nobody else changes it between what was read and what is written (RFC 7047, section 5.2.6).
    let unchanged = json!({ "op": "wait", "timeout": 0, "table": "Open_vSwitch", "where": [], "columns": columns, "until": "==",
        "rows": [{ "other_config": row["other_config"], "external_ids": row["external_ids"] }] });
    let value = Some(value).filter(|value| value != UNSET);
    let operations = vec![unchanged, set("other_config", "max-idle", value), set("external_ids", WAS, kept)];
    database.transact(operations)?;
    match taken {
        Some(TakenOver { users, raised }) => tracing::info!(
            "other_config:max-idle of Open vSwitch was {users:?} and is {raised:?}: a NIC forwards what it does not see"
        ),
        None => tracing::info!("other_config:max-idle of Open vSwitch is the user's again"),
    }
    Ok(taken)
}

fn entry(map: &Value, key: &str) -> Option<String> {
    let pairs = map[1].as_array()?;
    pairs.iter().find(|pair| pair[0] == key)?[1].as_str().map(String::from)
}

/// An insert leaves a key alone that is there, so it goes first.
fn set(column: &str, key: &str, value: Option<String>) -> Value {
    let mut mutations = vec![json!([column, "delete", ["set", [key]]])];
    mutations.extend(value.map(|value| json!([column, "insert", ["map", [[key, value]]]])));
    json!({ "op": "mutate", "table": "Open_vSwitch", "where": [], "mutations": mutations })
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use ringspan_testkit::needs;
    use ringspan_testkit::ovs::Ovs;

    use super::*;
    use crate::ovs::client::Place;

    #[test]
    fn it_is_raised_and_what_the_user_had_is_restored() -> Result<()> {
        needs!(Ovs);
        let ovs = Ovs::start()?;
        let mut database = Database::connect(&Place::new(Some(ovs.run_dir())))?;
        let idle = || -> Result<String> {
            let text = ovs.vsctl(&["--if-exists", "get", "Open_vSwitch", ".", "other_config:max-idle"])?;
            Ok(text.trim().trim_matches('"').into())
        };
        let user = |value: &str| ovs.vsctl(&["set", "Open_vSwitch", ".", &format!("other_config:max-idle={value}")]);
        let ms = Duration::from_millis;
        let taken = |users: u64, raised: u64| Some(TakenOver { users: ms(users), raised: ms(raised) });
        let wanted = Some(ms(60_000));
        assert_eq!(take_over(&mut database, None)?, None);
        assert_eq!(idle()?, "", "nothing is touched before it is needed");
        for _ in 0..2 {
            assert_eq!(take_over(&mut database, wanted)?, taken(DEFAULT_MS, 60_000));
            assert_eq!(idle()?, "60000");
        }
        assert_eq!(take_over(&mut database, None)?, None);
        assert_eq!(idle()?, "");
        user("3000")?;
        assert_eq!(take_over(&mut database, wanted)?, taken(3000, 60_000));
        // A daemon that died leaves it so; the next one, which may raise it to something else, finds what it was.
        let mut database = Database::connect(&Place::new(Some(ovs.run_dir())))?;
        assert_eq!(take_over(&mut database, Some(ms(70_000)))?, taken(3000, 70_000));
        // The user's wish counts, also meanwhile.
        user("5000")?;
        assert_eq!(take_over(&mut database, wanted)?, taken(5000, 60_000));
        assert_eq!(idle()?, "60000");
        assert_eq!(take_over(&mut database, None)?, None);
        assert_eq!(idle()?, "5000");
        take_over(&mut database, wanted)?;
        user("7000")?;
        assert_eq!(take_over(&mut database, None)?, None);
        assert_eq!(idle()?, "7000");
        user("100000")?;
        assert_eq!(take_over(&mut database, wanted)?, taken(100_000, 100_000));
        assert_eq!(take_over(&mut database, None)?, None);
        assert_eq!(idle()?, "100000");
        Ok(())
    }
}
