//! What changed between two looks at the bonds: failovers, and members whose links come and go.

use std::collections::BTreeMap;

use super::state;
use crate::host::sysfs::Sysfs;

/// What of a bond is told of when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
struct One {
    /// The member that sends, or the aggregator.
    active: Option<String>,
    /// Members, and whether each has a link.
    links: BTreeMap<String, bool>,
}

/// The bonds as they were last seen.
#[derive(Debug, Default)]
pub(crate) struct Watched(BTreeMap<String, One>);

/// What was seen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Seen {
    /// Another member sends, or, by LACP, another aggregator does. None: no member does.
    Failover { bond: String, from: Option<String>, to: Option<String> },
    /// A member's link went, or came back.
    Link { bond: String, member: String, up: bool },
}

impl Watched {
    /// The bonds as they are.
    pub(crate) fn look(sysfs: &Sysfs) -> Self {
        // Most hosts have none, and interfaces come and go on busy ones: one small file says so. Where it is missing the module is not loaded.
        let names = sysfs.text("class/net/bonding_masters").unwrap_or_default();
        Self(names.split_whitespace().map(|name| (name.to_owned(), one(sysfs, name))).collect())
    }

    /// What became different. A bond that is new, and members that join or leave, are nobody's failure.
    pub(crate) fn since(&self, before: &Self) -> Vec<Seen> {
        let mut seen = vec![];
        for (bond, now) in &self.0 {
            let Some(was) = before.0.get(bond) else { continue };
            for (member, up) in &now.links {
                if was.links.get(member).is_some_and(|before| before != up) {
                    seen.push(Seen::Link { bond: bond.clone(), member: member.clone(), up: *up });
                }
            }
            if was.active != now.active {
                seen.push(Seen::Failover { bond: bond.clone(), from: was.active.clone(), to: now.active.clone() });
            }
        }
        seen
    }
}

fn one(sysfs: &Sysfs, bond: &str) -> One {
    let mode = state::setting(sysfs, bond, "mode").unwrap_or_default();
    let active = match mode.as_str() {
        "802.3ad" => state::setting(sysfs, bond, "ad_aggregator").map(|number| format!("aggregator {number}")),
        _ => state::setting(sysfs, bond, "active_slave"),
    };
    let link = |member: String| {
        let up =
            sysfs.text(&format!("class/net/{member}/bonding_slave/mii_status")).is_some_and(|status| status == "up");
        (member, up)
    };
    One { active, links: state::members(sysfs, bond).into_iter().map(link).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_and_the_link_that_it_came_from_are_told_and_joining_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let put = |name: &str, text: &str| {
            let path = folder.path().join("class/net").join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, format!("{text}\n")).unwrap();
        };
        let sysfs = Sysfs::at(folder.path());
        assert!(Watched::look(&sysfs).since(&Watched::default()).is_empty());
        put("bonding_masters", "bond0");
        put("bond0/bonding/mode", "active-backup 1");
        put("bond0/bonding/slaves", "a");
        put("bond0/bonding/active_slave", "a");
        put("a/bonding_slave/mii_status", "up");
        let alone = Watched::look(&sysfs);
        assert!(alone.since(&Watched::default()).is_empty());
        put("bond0/bonding/slaves", "a b");
        put("b/bonding_slave/mii_status", "up");
        let both = Watched::look(&sysfs);
        assert!(both.since(&alone).is_empty());
        put("a/bonding_slave/mii_status", "down");
        put("bond0/bonding/active_slave", "b");
        let after = Watched::look(&sysfs);
        let (bond, a, b) = (String::from("bond0"), String::from("a"), String::from("b"));
        let link = Seen::Link { bond: bond.clone(), member: a.clone(), up: false };
        assert_eq!(after.since(&both), [link, Seen::Failover { bond, from: Some(a), to: Some(b) }]);
    }
}
