//! Rules in the syntax of DPDK's test program
//! ([testpmd, "Flow rules management"](https://doc.dpdk.org/guides-22.11/testpmd_app_ug/testpmd_funcs.html)).
//!
//! A rule is a comment, `# UFID ..`, the lines that its tunnels' headers and its copies need (`set raw_encap ..`), and one line
//! `flow create 0 priority 7 transfer pattern .. / end actions .. / end`. Port 0 is the uplink, port 1 the first VF's representor, and so on, as DPDK numbers them when a
//! NIC is probed. The comment, which the test program passes over, says what its syntax has no words for: `also FIELD=VALUE`, `do PLACE ACTION`, `apart PLACE` (of those that have
//! words: it sets another part of what the action before it sets), `quiet` (no frames to the representor). The program's line editor cuts lines behind [`LONGEST`] characters: where one
//! would be longer, fields are set in the shorter words of older actions, and masks are lengths of prefixes.

mod print;
mod read;
#[cfg(test)]
mod tests;

pub use print::print;
pub use read::{Unreadable, read};

use super::header::Form;
use crate::NicPort;

/// Most characters of a line that the test program reads (RDLINE_BUF_SIZE in DPDK's cmdline_private.h).
pub const LONGEST: usize = 511;

/// An action of the test program that sets one field, in fewer words than `modify_field`.
struct Short {
    /// The field's name in `modify_field`.
    name: &'static str,
    action: &'static str,
    word: &'static str,
    form: Form,
}

/// Those that there are. Of a time to live or a port the first name stands for both.
const SHORT: &[Short] = &[
    short("mac_dst", "set_mac_dst", "mac_addr", Form::Mac),
    short("mac_src", "set_mac_src", "mac_addr", Form::Mac),
    short("ipv4_dscp", "set_ipv4_dscp", "dscp_value", Form::Number),
    short("ipv6_dscp", "set_ipv6_dscp", "dscp_value", Form::Number),
    short("ipv4_ttl", "set_ttl", "ttl_value", Form::Number),
    short("ipv6_hoplimit", "set_ttl", "ttl_value", Form::Number),
    short("ipv4_src", "set_ipv4_src", "ipv4_addr", Form::Ipv4),
    short("ipv4_dst", "set_ipv4_dst", "ipv4_addr", Form::Ipv4),
    short("ipv6_src", "set_ipv6_src", "ipv6_addr", Form::Ipv6),
    short("ipv6_dst", "set_ipv6_dst", "ipv6_addr", Form::Ipv6),
    short("tcp_port_src", "set_tp_src", "port", Form::Number),
    short("udp_port_src", "set_tp_src", "port", Form::Number),
    short("tcp_port_dst", "set_tp_dst", "port", Form::Number),
    short("udp_port_dst", "set_tp_dst", "port", Form::Number),
];

const fn short(name: &'static str, action: &'static str, word: &'static str, form: Form) -> Short {
    Short { name, action, word, form }
}

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
