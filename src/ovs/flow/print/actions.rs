//! What a flow does (format_odp_actions, format_odp_action).

use std::fmt::{self, Write};

use crate::ovs::flow::action::{Action, HashAlgorithm, NshMetadata, PushMpls, PushNsh, PushVlan};

use super::fields::{Bytes, Fields, LongHex};
use super::keys::{self, Within};
use super::{Style, conntrack, push, userspace};

/// The Ethertype that `push_vlan` does not print.
const ETH_TYPE_VLAN: u16 = 0x8100;

/// Actions, comma between them; `drop` where there are none.
pub(super) fn list(f: &mut impl Write, actions: &[Action]) -> fmt::Result {
    if actions.is_empty() {
        return f.write_str("drop");
    }
    actions.iter().enumerate().try_for_each(|(index, action)| {
        if index > 0 {
            f.write_char(',')?;
        }
        self::action(f, action)
    })
}

/// Actions in parentheses.
fn nested(f: &mut impl Write, name: &str, actions: &[Action]) -> fmt::Result {
    write!(f, "{name}(")?;
    list(f, actions)?;
    f.write_char(')')
}

pub(super) fn action(f: &mut impl Write, action: &Action) -> fmt::Result {
    match action {
        Action::Output(port) => write!(f, "{port}"),
        Action::Drop => f.write_str("drop"),
        Action::Userspace(argument) => userspace::userspace(f, argument),
        Action::Set(key) => {
            f.write_str("set(")?;
            keys::key(f, key, Within::Set)?;
            f.write_char(')')
        }
        Action::PushVlan(vlan) => push_vlan(f, vlan),
        Action::PopVlan => f.write_str("pop_vlan"),
        Action::PushMpls(label) => push_mpls(f, "push_mpls", label),
        Action::PopMpls { eth_type } => write!(f, "pop_mpls(eth_type={eth_type:#x})"),
        Action::AddMpls(label) => push_mpls(f, "add_mpls", label),
        Action::Recirc(id) => write!(f, "recirc({})", super::fields::Hex(*id)),
        Action::Hash { algorithm: HashAlgorithm::L4, basis } => write!(f, "hash(l4({basis}))"),
        Action::Hash { algorithm: HashAlgorithm::SymL4, basis } => write!(f, "hash(sym_l4({basis}))"),
        Action::Ct(argument) => conntrack::conntrack(f, argument),
        Action::CtClear => f.write_str("ct_clear"),
        Action::Sample { probability, actions } => {
            let percentage = 100.0 * f64::from(*probability) / f64::from(u32::MAX);
            write!(f, "sample(sample={percentage:.1}%,")?;
            nested(f, "actions", actions)?;
            f.write_char(')')
        }
        Action::Clone(actions) => nested(f, "clone", actions),
        Action::CheckPktLen { size, greater, less_or_equal } => {
            write!(f, "check_pkt_len(size={size},")?;
            nested(f, "gt", greater)?;
            nested(f, ",le", less_or_equal)?;
            f.write_char(')')
        }
        Action::Meter(meter) => write!(f, "meter({meter})"),
        Action::Trunc(length) => write!(f, "trunc({length})"),
        Action::TunnelPush(headers) => push::tunnel_push(f, headers),
        Action::TunnelPop(port) => write!(f, "tnl_pop({port})"),
        Action::PushNsh(header) => push_nsh(f, header),
        Action::PopNsh => f.write_str("pop_nsh()"),
        Action::PushEth { src, dst } => write!(f, "push_eth(src={src},dst={dst})"),
        Action::PopEth => f.write_str("pop_eth"),
        Action::DecTtl(actions) => {
            nested(f, "dec_ttl(le_1", actions)?;
            f.write_char(')')
        }
        Action::LbOutput(bond) => write!(f, "lb_output({bond})"),
        Action::Psample { group, cookie } => {
            f.write_str("psample(")?;
            let mut fields = Fields::new(f, Style::Verbose);
            group.iter().try_for_each(|group| fields.put(format_args!("group={group}")))?;
            cookie.iter().try_for_each(|cookie| fields.put(format_args!("cookie={}", LongHex(cookie))))?;
            f.write_char(')')
        }
        Action::Unknown { attribute, data } if data.is_empty() => write!(f, "action{attribute}"),
        Action::Unknown { attribute, data } => write!(f, "action{attribute}({})", Bytes(data)),
    }
}

fn push_vlan(f: &mut impl Write, vlan: &PushVlan) -> fmt::Result {
    f.write_str("push_vlan(")?;
    if vlan.tpid != ETH_TYPE_VLAN {
        write!(f, "tpid={:#06x},", vlan.tpid)?;
    }
    let cfi = if vlan.cfi { "" } else { ",cfi=0" };
    write!(f, "vid={},pcp={}{cfi})", vlan.vid, vlan.pcp)
}

fn push_mpls(f: &mut impl Write, name: &str, mpls: &PushMpls) -> fmt::Result {
    let PushMpls { label, tc, ttl, bos, eth_type } = mpls;
    write!(f, "{name}(label={label},tc={tc},ttl={ttl},bos={bos},eth_type={eth_type:#x})")
}

fn push_nsh(f: &mut impl Write, nsh: &PushNsh) -> fmt::Result {
    let PushNsh { flags, ttl, np, spi, si, metadata } = nsh;
    let mdtype = match metadata {
        NshMetadata::Md1(_) => 1,
        NshMetadata::Md2(_) => 2,
    };
    write!(f, "push_nsh(flags={flags},ttl={ttl},mdtype={mdtype},np={np},spi={spi:#x},si={si}")?;
    match metadata {
        NshMetadata::Md1([c1, c2, c3, c4]) => write!(f, ",c1={c1:#x},c2={c2:#x},c3={c3:#x},c4={c4:#x})"),
        NshMetadata::Md2(data) => write!(f, ",md2={})", LongHex(data)),
    }
}
