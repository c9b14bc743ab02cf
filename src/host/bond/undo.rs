//! What a daemon that was killed amid a change of bonds has left is taken back, or put right.

use ringspan_protocol::PciAddress;
use serde::{Deserialize, Serialize};

use super::create::{change, fresh, set_up};
use super::{Around, Wish, state};
use crate::error::Error;
use crate::host::inventory::find;
use crate::host::netlink::{EswitchMode, LinkChange};
use crate::host::pci::Function;
use crate::host::representor::{Representors, index};
use crate::host::work::Left;
use crate::host::{Host, eswitch};

/// What was there before a bond was made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Before {
    /// The bond.
    pub existed: bool,
    /// Members that were up.
    #[serde(default)]
    pub were_up: Vec<Member>,
    /// Those of the NICs' functions that were in legacy mode.
    pub legacy: Vec<PciAddress>,
}

/// An interface by its name at that time, and by its function, which keeps its address when the interface is made anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Member {
    /// Its name.
    pub interface: String,
    /// Its function.
    pub address: Option<PciAddress>,
}

impl Before {
    /// What is there now.
    pub(crate) fn look(host: &Host, wish: &Wish) -> Self {
        let members = wish.members.iter();
        // Named by its interface, or by its address.
        let were_up = members.clone().filter_map(|name| {
            let address = find(host, name).ok();
            let (interface, _) = fresh(host, name, address).ok()?;
            state::is_up(&host.sysfs, &interface).then_some(Member { interface, address })
        });
        let functions = members.filter_map(|name| find(host, name).ok()).filter(|_| wish.vf_lag);
        let is_legacy = |pf: &PciAddress| {
            eswitch::get(host, &pf.to_string()).is_ok_and(|switch| switch.mode == EswitchMode::Legacy)
        };
        Self {
            existed: state::is_bond(&host.sysfs, &wish.name),
            were_up: were_up.collect(),
            legacy: functions.filter(is_legacy).collect(),
        }
    }
}

/// Takes a bond back that could not be finished, and that had not been there before. An adopted one is left to who adopts it.
pub(crate) fn undo(host: &Host, wish: &Wish, before: &Before, around: &Around<'_>) -> Result<(), Error> {
    if before.existed {
        return Ok(());
    }
    super::delete(host, &wish.name, true, around)?;
    put_back(host, &wish.name, before, around)
}

/// Has members as they were before a bond was begun, which is none. What is part of something by now is left to who made that.
pub(crate) fn put_back(host: &Host, bond: &str, before: &Before, around: &Around<'_>) -> Result<(), Error> {
    let taken = |interface: &str| host.sysfs.link(&format!("class/net/{interface}/master")).is_some();
    for pf in &before.legacy {
        let function = Function::read(&host.sysfs, *pf);
        let uplink = function.and_then(|function| Representors::new(&host.sysfs, &[]).own(&function));
        if uplink.is_some_and(|uplink| taken(&uplink)) {
            continue;
        }
        let legacy = eswitch::Wish { pf: pf.to_string(), mode: Some(EswitchMode::Legacy), ..eswitch::Wish::default() };
        eswitch::set(host, &legacy, around.owner)?;
    }
    for member in &before.were_up {
        if let Ok((name, index)) = fresh(host, &member.interface, member.address)
            && !state::is_up(&host.sysfs, &name)
            && !taken(&name)
        {
            set_up(host, bond, &name, index, true)?;
        }
    }
    Ok(())
}

/// Has an interface be a member again that an earlier daemon took from its bond for a moment. False: nothing was to do, or the bond is gone.
pub(crate) fn come_back(host: &Host, left: &Left) -> Result<bool, Error> {
    let bond = left.bond.as_str();
    let Some(index) = index(&host.sysfs, bond).filter(|_| state::is_bond(&host.sysfs, bond)) else { return Ok(false) };
    let (name, own) = fresh(host, &left.interface, left.address)?;
    if host.sysfs.link(&format!("class/net/{name}/master")).is_some() {
        return Ok(false);
    }
    if state::is_up(&host.sysfs, &name) {
        set_up(host, bond, &name, own, false)?;
    }
    change(host, bond, &format!("{name} does not come back"), &LinkChange::Master(own, index))?;
    set_up(host, bond, &name, own, true)?;
    Ok(true)
}
