//! A bond is taken away: out of its bridge, VF LAG ended while no VF is bound, members let go of. All of it or nothing.

use std::time::Duration;

use ringspan_protocol::PciAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::create::{change, own_index, set_up};
use super::state::{self, Bond};
use super::{Around, check_name, lag};
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::netlink::{BondOptions, LinkChange};
use crate::host::representor::index;
use crate::host::steps::Steps;

/// Longest wait for the end of VF LAG, and for representors that are made anew.
const LIMIT: Duration = Duration::from_secs(30);

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Removed {
    /// The bond.
    pub name: String,
    /// What was done; empty: there was none.
    pub done: Vec<String>,
}

/// Takes a bond away.
pub(crate) fn delete(host: &Host, name: &str, disturb: bool, around: &Around<'_>) -> Result<Removed, Error> {
    check_name(name)?;
    let Some(bond) = state::read(host, name) else {
        if host.sysfs.has(&format!("class/net/{name}")) {
            let message = format!("{name} is an interface, and no bond: it is left alone");
            return Err(Error::new(ErrorKind::Invalid, message).about(name));
        }
        return Ok(Removed { name: name.into(), done: vec![] });
    };
    if !disturb && host.kernel.has_address(name) {
        let message = format!(
            "{name} has an IP address, and this host may be reached by it: take that away first (ip address flush dev {name}), or --disturb"
        );
        return Err(Error::new(ErrorKind::Busy, message).about(name));
    }
    let mut steps = Steps::default();
    match carry_out(host, &bond, disturb, around, &mut steps) {
        Ok(()) => Ok(Removed { name: name.into(), done: steps.finish() }),
        Err(error) => Err(steps.fail(error)),
    }
}

/// What stands on the bond, besides Open vSwitch: a bridge of the kernel's, VLANs.
fn check_free(host: &Host, name: &str, on_bridge: bool) -> Result<(), Error> {
    let entries = host.sysfs.names(&format!("class/net/{name}"));
    let mut uppers = entries.iter().filter_map(|entry| entry.strip_prefix("upper_"));
    let Some(upper) = uppers.find(|upper| !(on_bridge && *upper == "ovs-system")) else { return Ok(()) };
    let message = format!(
        "{name}: {upper} stands on it: take that away first (ip link delete {upper}, or ip link set {name} nomaster)"
    );
    Err(Error::new(ErrorKind::Busy, message).about(name))
}

fn carry_out<'a>(
    host: &'a Host,
    bond: &'a Bond,
    disturb: bool,
    around: &'a Around<'a>,
    steps: &mut Steps<'a>,
) -> Result<(), Error> {
    let name = bond.name.as_str();
    let port = match (around.port_of)(name) {
        Ok(port) => port,
        Err(_) if disturb => None,
        Err(error) => {
            let message = format!("{name}: {}; or say --disturb", error.message);
            return Err(Error { message, ..error }.about(name));
        }
    };
    check_free(host, name, port.is_some())?;
    let pair = pair_of(bond);
    if let Some(pair) = pair {
        lag::check_visible(host, name, pair)?;
        lag::check_unused(host, name, pair, around)?;
    }
    if let Some(port) = port {
        (around.attach)(name, None)?;
        steps.did(format!("{name} is off bridge {}", port.bridge), move || (around.attach)(name, Some(&port)));
    }
    let unbound = match pair {
        Some(pair) => lag::unbind_all(host, pair, steps)?,
        None => vec![],
    };
    let Some(own) = index(&host.sysfs, name) else { return Ok(()) };
    change(host, name, "the kernel does not take it away", &LinkChange::Remove(own))?;
    let members: Vec<&str> = bond.members.iter().map(|member| member.interface.as_str()).collect();
    let mut done = format!("{name} is gone");
    if !members.is_empty() {
        done = format!("{done}, its members {} are free, and down", members.join(", "));
    }
    steps.did(done, move || again(host, bond));
    if let Some(pair) = pair {
        lag::await_active(host, name, pair, false, LIMIT)?;
        steps.did(format!("VF LAG of {name} has ended"), || Ok(()));
        lag::await_representors(host, name, pair, LIMIT)?;
        lag::rebind_all(host, unbound, steps)?;
    }
    Ok(())
}

/// The functions whose VF LAG ends with a bond.
fn pair_of(bond: &Bond) -> Option<[PciAddress; 2]> {
    match (&bond.vf_lag, &bond.members[..]) {
        (Some(lag), [first, second]) if lag.state != "disabled" => Some([first.address?, second.address?]),
        _ => None,
    }
}

/// The same, of a bond by its name.
pub(crate) fn lag_pair(host: &Host, name: &str) -> Option<[PciAddress; 2]> {
    pair_of(&state::read(host, name)?)
}

/// The index of a bond.
pub(crate) fn index_of(host: &Host, name: &str) -> Option<u32> {
    index(&host.sysfs, name)
}

/// Waits for the end of VF LAG, of a bond that is gone.
pub(crate) fn has_ended(host: &Host, name: &str, pair: Option<[PciAddress; 2]>) -> Result<(), Error> {
    match pair {
        Some(pair) => lag::await_active(host, name, pair, false, LIMIT),
        None => Ok(()),
    }
}

/// Makes it as it was.
fn again(host: &Host, bond: &Bond) -> Result<(), Error> {
    let name = bond.name.as_str();
    let options = BondOptions {
        mode: state::word(&bond.mode),
        miimon: Some(bond.miimon),
        hash_policy: bond.hash(),
        lacp_rate: bond.lacp_rate,
    };
    let own = own_index(host)?;
    change(host, name, "the kernel does not make it again", &LinkChange::MakeBond(name, own, options))?;
    let gone = || Error::new(ErrorKind::Failed, format!("{name}: it or a member is not there any more"));
    let own = index(&host.sysfs, name).ok_or_else(gone)?;
    for member in &bond.members {
        let index = index(&host.sysfs, &member.interface).ok_or_else(gone)?;
        change(host, name, &format!("{} does not come back", member.interface), &LinkChange::Master(index, own))?;
    }
    if bond.up { set_up(host, name, name, own, true) } else { Ok(()) }
}
