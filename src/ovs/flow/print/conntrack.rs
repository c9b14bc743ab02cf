//! `ct(...)` (format_odp_conntrack_action, format_odp_ct_nat).

use std::fmt::{self, Display, Write};
use std::net::IpAddr;

use crate::ovs::flow::action::{Conntrack, Nat, NatRange};

use super::Style;
use super::fields::{Fields, Hex, Ipv6};
use super::keys;

pub(super) fn conntrack(f: &mut impl Write, ct: &Conntrack) -> fmt::Result {
    f.write_str("ct")?;
    if *ct == Conntrack::default() {
        return Ok(());
    }
    f.write_char('(')?;
    let mut fields = Fields::new(f, Style::Verbose);
    if ct.commit {
        fields.put("commit")?;
    }
    if ct.force_commit {
        fields.put("force_commit")?;
    }
    if ct.zone != 0 {
        fields.put(format_args!("zone={}", ct.zone))?;
    }
    if let Some(mark) = ct.mark {
        fields.put(format_args!("mark={}/{}", Hex(mark.value), Hex(mark.mask)))?;
    }
    if let Some(label) = &ct.label {
        fields.put("label=")?;
        keys::label(fields.out, label)?;
    }
    if let Some(helper) = &ct.helper {
        fields.put(format_args!("helper={helper}"))?;
    }
    if let Some(timeout) = &ct.timeout {
        fields.put(format_args!("timeout={timeout}"))?;
    }
    match &ct.nat {
        None => {}
        Some(Nat::Existing) => fields.put("nat")?,
        Some(Nat::Src(to)) => {
            fields.put("nat(src")?;
            range(fields.out, to)?;
        }
        Some(Nat::Dst(to)) => {
            fields.put("nat(dst")?;
            range(fields.out, to)?;
        }
    }
    f.write_char(')')
}

fn range(f: &mut impl Write, to: &NatRange) -> fmt::Result {
    let brackets = to.port_min.is_some();
    if let Some(min) = to.address_min {
        write!(f, "={}", Address(min, brackets))?;
    }
    if let Some(max) = to.address_max {
        write!(f, "-{}", Address(max, brackets))?;
    }
    if let Some(min) = to.port_min {
        write!(f, ":{min}")?;
    }
    if let Some(max) = to.port_max {
        write!(f, "-{max}")?;
    }
    let words = [(to.persistent, ",persistent"), (to.hash, ",hash"), (to.random, ",random")];
    words.iter().filter(|(there, _)| *there).try_for_each(|(_, word)| f.write_str(word))?;
    f.write_char(')')
}

/// An address; an IPv6 one in brackets where a port follows.
struct Address(IpAddr, bool);

impl Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self(IpAddr::V4(address), _) => write!(f, "{address}"),
            Self(IpAddr::V6(address), false) => write!(f, "{}", Ipv6(address)),
            Self(IpAddr::V6(address), true) => write!(f, "[{}]", Ipv6(address)),
        }
    }
}
