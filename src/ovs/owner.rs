//! Whether somebody else brings flows into the switches of NICs: of two owners of one switch each takes the other's packets.
//!
//! Open vSwitch does so from the moment when `other_config:hw-offload` is true until its process ends: that it is set to false it takes at
//! its next start only (lib/netdev-offload.c, `netdev_set_flow_api_enabled`). What the database says is therefore not all. TC's rules
//! may also be somebody's own.

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::client::{Bounds, Place, Switch};
use super::qdisc;
use super::view::View;

/// How Open vSwitch comes to bring flows into NICs by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owning {
    /// It is told to.
    Set,
    /// It was told to, is told not to any more, and goes on until it is restarted.
    UntilRestart,
}

impl fmt::Display for Owning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "other_config:hw-offload is true",
            Self::UntilRestart => {
                "other_config:hw-offload was true since ovs-vswitchd started, and is in force until it is restarted"
            }
        })
    }
}

/// Lives of ovs-vswitchd in which it was seen to be told to.
static SEEN: Mutex<Option<HashSet<String>>> = Mutex::new(None);

/// Whether Open vSwitch, of which the database says this, brings flows into NICs.
pub(crate) fn open_vswitch(view: &View, place: &Place) -> Option<Owning> {
    let switch = Switch::connect(place).ok();
    let life = switch.as_ref().map(|switch| switch.process.life());
    if view.hw_offload {
        seen(|seen| seen.extend(life));
        return Some(Owning::Set);
    }
    // Without a process nothing is in force.
    let (mut switch, life) = switch.zip(life)?;
    let known = view.offloaded_under.as_ref() == Some(&life) || seen(|seen| seen.contains(&life));
    let owns = known || is_in_force(&mut switch);
    if owns {
        seen(|seen| seen.insert(life));
    }
    owns.then_some(Owning::UntilRestart)
}

/// A switch that hangs is found by who asks for its flows; nobody is to wait for it here.
const ANSWER: Bounds =
    Bounds { time: Duration::from_millis(300), bytes: 64 << 20, remedy: "it has more flows than are asked for here" };

fn seen<T>(does: impl FnOnce(&mut HashSet<String>) -> T) -> T {
    does(SEEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Asks the process: the userspace datapath has figures of its offload only where it is in force (seen with 2.17, 3.1); the kernel's has none,
/// but shows the flows that are with TC.
fn is_in_force(switch: &mut Switch) -> bool {
    let Ok(names) = switch.call_within("dpctl/dump-dps", &[], ANSWER) else { return false };
    names.lines().map(str::trim).filter(|name| !name.is_empty()).any(|name| {
        if name.starts_with("system@") {
            let flows = switch.call_within("dpctl/dump-flows", &["-m", "--names", name, "type=offloaded"], ANSWER);
            flows.is_ok_and(|flows| flows.lines().any(|line| line.contains("actions:")))
        } else {
            switch.call_within("dpctl/offload-stats-show", &[name], ANSWER).is_ok()
        }
    })
}

/// The interfaces among these for which a NIC has rules of TC's, whoever put them there. Where the kernel does not say there are none.
pub(crate) fn with_rules<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let has = |name: &&str| qdisc::in_nic(name).is_ok_and(|rules| rules > 0);
    names.into_iter().filter(has).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use ringspan_testkit::needs;
    use ringspan_testkit::ovs::Ovs;
    use ringspan_testkit::wait;

    use super::*;
    use crate::ovs::client::Database;

    #[test]
    fn offload_that_is_switched_off_is_in_force_until_a_restart() -> Result<()> {
        needs!(Ovs);
        let mut ovs = Ovs::start()?;
        ovs.add_bridge("br0")?;
        let place = Place::new(Some(ovs.run_dir()));
        let look =
            || -> Result<Option<Owning>> { Ok(open_vswitch(&View::read(&mut Database::connect(&place)?)?, &place)) };
        let forget = || seen(HashSet::clear);
        let set = |value: &str| ovs.vsctl(&["set", "Open_vSwitch", ".", &format!("other_config:hw-offload={value}")]);
        assert_eq!(look()?, None);
        set("true")?;
        assert_eq!(look()?, Some(Owning::Set));
        set("false")?;
        assert_eq!(look()?, Some(Owning::UntilRestart));
        // One who did not see it asks.
        forget();
        assert_eq!(look()?, Some(Owning::UntilRestart));
        ovs.stop_switch();
        assert_eq!(look()?, None, "nothing is in force without a process");
        ovs.start_switch()?;
        wait::until(Duration::from_secs(20), "the new process", || Ok(look()?.is_none().then_some(())))?;
        Ok(())
    }
}
