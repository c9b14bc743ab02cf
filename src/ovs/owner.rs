//! Whether somebody else brings flows into the switches of NICs: of two owners of one switch each takes the other's packets.
//!
//! Open vSwitch does so from the moment when `other_config:hw-offload` is true until its process ends: that it is set to false it takes at
//! its next start only (lib/netdev-offload.c, `netdev_set_flow_api_enabled`). What the database says is therefore not all. TC's rules
//! may also be somebody's own.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use super::client::{Bounds, OvsError, Place, Switch};
use super::qdisc;
use super::view::View;

/// How Open vSwitch comes to bring flows into NICs by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Owning {
    /// It is told to.
    Set,
    /// It was told to, is told not to any more, and goes on until it is restarted.
    UntilRestart,
    /// It was not seen whether it was, and the process does not say: it may be.
    Unknown,
}

impl fmt::Display for Owning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Set => "other_config:hw-offload is true",
            Self::UntilRestart => {
                "other_config:hw-offload was true since ovs-vswitchd started, and is in force until it is restarted"
            }
            Self::Unknown => {
                "other_config:hw-offload is not true, but may have been since ovs-vswitchd started: it does not answer what is in force"
            }
        })
    }
}

/// Lives of ovs-vswitchd, and what was last known of each: whether it does.
static SEEN: Mutex<Option<HashMap<String, bool>>> = Mutex::new(None);

/// Whether Open vSwitch, of which the database says this, brings flows into NICs. Of a process that does not say now, what was last known of it holds.
pub(crate) fn open_vswitch(view: &View, place: &Place) -> Option<Owning> {
    let switch = Switch::connect(place).ok();
    let life = switch.as_ref().map(|switch| switch.process.life());
    if view.hw_offload {
        seen(|seen| seen.extend(life.map(|life| (life, true))));
        return Some(Owning::Set);
    }
    // Without a process nothing is in force.
    let (mut switch, life) = switch.zip(life)?;
    let last = seen(|seen| seen.get(&life).copied());
    let owns = if view.offloaded_under.as_ref() == Some(&life) || last == Some(true) {
        Some(true)
    } else {
        is_in_force(&mut switch, ANSWER).or(last)
    };
    let Some(owns) = owns else { return Some(Owning::Unknown) };
    seen(|seen| seen.insert(life, owns));
    owns.then_some(Owning::UntilRestart)
}

/// A switch that hangs is found by who asks for its flows; nobody is to wait for it here.
const ANSWER: Bounds =
    Bounds { time: Duration::from_millis(300), bytes: 64 << 20, remedy: "it has more flows than are asked for here" };

fn seen<T>(does: impl FnOnce(&mut HashMap<String, bool>) -> T) -> T {
    does(SEEN.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
}

/// Asks the process: the userspace datapath has figures of its offload only where it is in force (seen with 2.17, 3.1); the kernel's has none,
/// but shows the flows that are with TC.
///
/// Nothing: it does not say, because it is busy, or hangs, or has more flows than are read here.
fn is_in_force(switch: &mut Switch, bounds: Bounds) -> Option<bool> {
    // A refusal is an answer.
    let mut ask = |command: &str, words: &[&str]| match switch.call_within(command, words, bounds) {
        Ok(text) => Some(Ok(text)),
        Err(error @ OvsError::Refused { .. }) => Some(Err(error)),
        Err(_) => None,
    };
    let Ok(names) = ask("dpctl/dump-dps", &[])? else { return Some(false) };
    for name in names.lines().map(str::trim).filter(|name| !name.is_empty()) {
        let is = if name.starts_with("system@") {
            let flows = ask("dpctl/dump-flows", &["-m", "--names", name, "type=offloaded"])?;
            flows.is_ok_and(|flows| flows.lines().any(|line| line.contains("actions:")))
        } else {
            ask("dpctl/offload-stats-show", &[name])?.is_ok()
        };
        if is {
            return Some(true);
        }
    }
    Some(false)
}

/// The interfaces among these for which a NIC has rules of TC's, whoever put them there. Where the kernel does not say there are none.
pub(crate) fn with_rules<'a>(names: impl IntoIterator<Item = &'a str>) -> Vec<String> {
    let has = |name: &&str| qdisc::in_nic(name).is_ok_and(|rules| rules > 0);
    names.into_iter().filter(has).map(String::from).collect()
}

#[cfg(test)]
mod tests {
    use anyhow::Result;
    use nix::sys::signal::Signal;
    use ringspan_testkit::needs;
    use ringspan_testkit::ovs::Ovs;
    use ringspan_testkit::{process, wait};

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
        let forget = || -> Result<()> {
            let life = Switch::connect(&place)?.process.life();
            seen(|seen| seen.remove(&life));
            Ok(())
        };
        let set = |value: &str| ovs.vsctl(&["set", "Open_vSwitch", ".", &format!("other_config:hw-offload={value}")]);
        // A busy one may not say at once.
        let becomes = |owning| wait::until(Duration::from_secs(20), "it", || Ok((look()? == owning).then_some(())));
        becomes(None)?;
        set("true")?;
        assert_eq!(look()?, Some(Owning::Set));
        set("false")?;
        assert_eq!(look()?, Some(Owning::UntilRestart));
        // One who did not see it asks.
        forget()?;
        becomes(Some(Owning::UntilRestart))?;
        ovs.stop_switch();
        assert_eq!(look()?, None, "nothing is in force without a process");
        ovs.start_switch()?;
        wait::until(Duration::from_secs(20), "the new process", || Ok(look()?.is_none().then_some(())))?;
        Ok(())
    }

    #[test]
    fn a_process_that_does_not_answer_is_taken_for_what_it_last_was() -> Result<()> {
        needs!(Ovs);
        let ovs = Ovs::start()?;
        ovs.add_bridge("br0")?;
        let place = Place::new(Some(ovs.run_dir()));
        let view = View::read(&mut Database::connect(&place)?)?;
        let life = Switch::connect(&place)?.process.life();
        wait::until(Duration::from_secs(20), "an answer", || Ok(open_vswitch(&view, &place).is_none().then_some(())))?;
        process::signal(ovs.pid(), Signal::SIGSTOP)?;
        let remembered = open_vswitch(&view, &place);
        seen(|seen| seen.remove(&life));
        let unknown = open_vswitch(&view, &place);
        process::signal(ovs.pid(), Signal::SIGCONT)?;
        assert_eq!((remembered, unknown), (None, Some(Owning::Unknown)));
        wait::until(Duration::from_secs(20), "an answer again", || {
            Ok(open_vswitch(&view, &place).is_none().then_some(()))
        })
    }
}
