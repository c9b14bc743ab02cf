//! Rules in the syntax of DPDK's test program
//! ([testpmd, "Flow rules management"](https://doc.dpdk.org/guides-22.11/testpmd_app_ug/testpmd_funcs.html)).
//!
//! A rule is a comment, `# UFID ..`, the lines that its tunnels' headers and its copies need (`set raw_encap ..`), and one line
//! `flow create 0 priority 7 transfer pattern .. / end actions .. / end`. Port 0 is the uplink, port 1 the first VF's representor, and so on, as DPDK numbers them when a
//! NIC is probed. The comment, which the test program passes over, says what its syntax has no words for: `also FIELD=VALUE`, `do PLACE ACTION`, `quiet` (no frames to the
//! representor). The program's line editor cuts lines behind [`LONGEST`] characters.

mod print;
mod read;
#[cfg(test)]
mod tests;

pub use print::print;
pub use read::{Unreadable, read};

use crate::NicPort;

/// Most characters of a line that the test program reads (RDLINE_BUF_SIZE in DPDK's cmdline_private.h). Few rules are longer: those about a tunnel with many masks.
pub const LONGEST: usize = 511;

/// DPDK's number of a port, as it is printed.
pub fn number(port: NicPort) -> u16 {
    match port {
        NicPort::Uplink => 0,
        NicPort::Vf(vf) => vf + 1,
    }
}

fn port(number: u16) -> NicPort {
    number.checked_sub(1).map_or(NicPort::Uplink, NicPort::Vf)
}
