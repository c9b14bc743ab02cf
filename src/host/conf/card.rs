//! One card made what the plan says, in the order that its driver needs.

use std::time::Duration;

use super::plan::{Item, Kind};
use crate::error::{Error, ErrorKind};
use crate::host::bond::Around;
use crate::host::eswitch::{self, Wish};
use crate::host::netlink::EswitchMode;
use crate::host::sriov::{self, Count};
use crate::host::steps::wait;
use crate::host::{Host, udev};

/// Longest wait for all VFs, and for all representors.
const LIMIT: Duration = Duration::from_secs(60);

/// Carries an item of the plan out. What was done goes into `done` as it is done: what comes after a step that failed is not begun, what came before it
/// stays, and can be gone on from.
pub(crate) fn carry_out(host: &Host, item: &Item, around: &Around<'_>, done: &mut Vec<String>) -> Result<(), Error> {
    let card = Card { host, name: &item.interface, around };
    let Ok(wanted) = u16::try_from(item.vfs) else {
        let message = format!("{}: {} VFs are more than PCI has", item.interface, item.vfs);
        return Err(Error::new(ErrorKind::Invalid, message));
    };
    match item.kind {
        Kind::Sriov => {
            if item.switchdev {
                card.switch(done, Wish { mode: Some(EswitchMode::Legacy), ..card.wish() })?;
            }
            card.enable(done, wanted)
        }
        Kind::OvsOffload => card.offload(done, wanted),
        // The caller's, who knows where bonds are in Open vSwitch.
        Kind::VfLag => Ok(()),
    }
}

struct Card<'a> {
    host: &'a Host,
    name: &'a str,
    around: &'a Around<'a>,
}

impl Card<'_> {
    fn wish(&self) -> Wish {
        Wish { pf: self.name.to_owned(), ..Wish::default() }
    }

    fn switch(&self, done: &mut Vec<String>, wish: Wish) -> Result<(), Error> {
        done.extend(eswitch::set(self.host, &wish, self.around.owner)?.done);
        Ok(())
    }

    /// Never takes what is in use.
    fn enable(&self, done: &mut Vec<String>, count: u16) -> Result<(), Error> {
        let enabled = sriov::enable(self.host, self.name, Count::Number(count), false, LIMIT, self.around)?;
        done.extend(enabled.done);
        Ok(())
    }

    fn offload(&self, done: &mut Vec<String>, wanted: u16) -> Result<(), Error> {
        let (function, _, now) = sriov::pf(self.host, self.name)?;
        let switchdev = eswitch::get(self.host, self.name)?.mode == EswitchMode::Switchdev;
        // Names count for interfaces that come after the rules.
        self.names(done)?;
        let offload = Wish { hw_tc_offload: Some(true), ..self.wish() };
        let to = |mode| Wish { mode: Some(mode), ..self.wish() };
        if function.driver.as_deref() == Some("ice") {
            // VFs are made in switchdev mode (Documentation/networking/device_drivers/ethernet/intel/ice.rst).
            if !switchdev {
                self.enable(done, 0)?;
            }
            self.switch(done, Wish { mode: Some(EswitchMode::Switchdev), ..offload })?;
            self.enable(done, wanted)?;
            return self.representors(wanted);
        }
        if switchdev && now == wanted {
            return self.switch(done, offload);
        }
        if switchdev {
            self.switch(done, to(EswitchMode::Legacy))?;
        }
        self.switch(done, Wish { steering_mode: Some("smfs".into()), ..offload })?;
        self.enable(done, wanted)?;
        self.switch(done, to(EswitchMode::Switchdev))
    }

    /// A conflict is said, and is no reason to go without offload: others name the interfaces then.
    fn names(&self, done: &mut Vec<String>) -> Result<(), Error> {
        let named = udev::name(self.host, self.name, false)?;
        done.extend(named.done);
        for one in named.conflicts {
            done.push(format!("the interfaces of {} are named by {}:{} ({})", self.name, one.file, one.line, one.why));
        }
        Ok(())
    }

    fn representors(&self, wanted: u16) -> Result<(), Error> {
        let count = || {
            eswitch::get(self.host, self.name)
                .map_or(0, |switch| switch.representors.iter().filter(|one| one.interface.is_some()).count())
        };
        match wait(LIMIT, || (count() >= usize::from(wanted)).then_some(())) {
            Some(()) => Ok(()),
            None => {
                let message = format!(
                    "{}: {} of {wanted} representors are there after {} s",
                    self.name,
                    count(),
                    LIMIT.as_secs()
                );
                Err(Error::new(ErrorKind::Timeout, message))
            }
        }
    }
}
