//! The kernel's bonds: made, adopted, taken away and told of; and the one bond of a NIC that makes of two ports' VFs one (VF LAG).

mod create;
mod delete;
mod lag;
mod state;
mod undo;
mod watch;

use ringspan_protocol::PciAddress;
use serde::{Deserialize, Serialize};

pub(crate) use create::{BridgePort, Wish, create};
pub(crate) use delete::{Removed, delete, has_ended, index_of, lag_pair};
pub(crate) use lag::VfLag;
pub(crate) use state::{Bond, Member, all, get};
pub(crate) use undo::{Before, come_back, put_back, undo};
pub(crate) use watch::{Seen, Watched};

use crate::error::{Error, ErrorKind};

/// Puts an interface into a bridge, or takes it out of any.
type Attach<'a> = dyn Fn(&str, Option<&BridgePort>) -> Result<(), Error> + 'a;

/// Where an interface is in Open vSwitch.
type PortOf<'a> = dyn Fn(&str) -> Result<Option<BridgePort>, Error> + 'a;

/// What the rest of the daemon has to do with bonds and VFs.
pub(crate) struct Around<'a> {
    /// The port of ringspan's that has a function.
    pub owner: &'a dyn Fn(PciAddress) -> Option<String>,
    /// Where an interface is in Open vSwitch. None also where there is no Open vSwitch; an error where there is one that does not answer.
    pub port_of: &'a PortOf<'a>,
    /// Puts an interface into a bridge, or takes it out of any.
    pub attach: &'a Attach<'a>,
}

/// Which bond is taken away.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Delete {
    /// Its name.
    pub name: String,
    /// Also when it has IP addresses.
    #[serde(default)]
    pub disturb: bool,
}

/// An interface's name as the kernel takes it (net/core/dev.c, `dev_valid_name`), and as nothing that is a path.
fn check_name(name: &str) -> Result<(), Error> {
    let bad = |c: char| c == '/' || c == ':' || c.is_whitespace() || c.is_control();
    // bonding_masters and its like are files among the interfaces; all and default are no interfaces to sysctl.
    let taken = ["", ".", "..", "bonding_masters", "all", "default"].contains(&name);
    if taken || name.len() > 15 || name.contains(bad) || name.starts_with('-') {
        let message = format!("{name:?} is no name for a bond: give 1 to 15 letters or digits, bond0 for instance");
        return Err(Error::new(ErrorKind::Invalid, message));
    }
    Ok(())
}
