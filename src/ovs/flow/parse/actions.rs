//! `push_vlan(vid=5,pcp=0),2,drop`: what a flow does (format_odp_action).

use crate::ovs::flow::action::{Action, Actions, HashAlgorithm, NshMetadata, PushMpls, PushNsh, PushVlan};
use crate::ovs::flow::key::{MplsLabel, Vlan};

use super::cursor::Cursor;
use super::error::{Fail, Parsed, What};
use super::{EXTRA, conntrack, keys, push, userspace};

/// The Ethertype that `push_vlan` does not print.
const ETH_TYPE_VLAN: u16 = 0x8100;

/// Actions, comma between them, up to what ends the list.
pub(super) fn list(cursor: &mut Cursor) -> Parsed<Actions> {
    let mut actions = Vec::new();
    loop {
        actions.push(action(cursor)?);
        if cursor.starts_with(EXTRA) || !cursor.take(",") {
            return Ok(actions);
        }
    }
}

fn nested_list(cursor: &mut Cursor) -> Parsed<Actions> {
    cursor.nested(list)
}

fn action(cursor: &mut Cursor) -> Parsed<Action> {
    let at = cursor.at();
    let name = cursor.word();
    if !cursor.take("(") {
        return bare(cursor, name, at);
    }
    let action = match name {
        "set" => Action::Set(Box::new(keys::key(cursor)?)),
        "ct" => Action::Ct(Box::new(conntrack::conntrack(cursor)?)),
        "recirc" => Action::Recirc(cursor.number()?),
        "userspace" => Action::Userspace(Box::new(userspace::userspace(cursor)?)),
        "push_vlan" => Action::PushVlan(push_vlan(cursor)?),
        "meter" => Action::Meter(cursor.number()?),
        "hash" => hash(cursor)?,
        "clone" => Action::Clone(nested_list(cursor)?),
        "sample" => sample(cursor)?,
        "check_pkt_len" => check_pkt_len(cursor)?,
        "dec_ttl" => {
            cursor.expect("le_1(")?;
            let actions = nested_list(cursor)?;
            cursor.expect(")")?;
            Action::DecTtl(actions)
        }
        "trunc" => Action::Trunc(cursor.number()?),
        "tnl_push" => Action::TunnelPush(Box::new(push::tunnel_push(cursor)?)),
        "tnl_pop" => Action::TunnelPop(cursor.port()?),
        "lb_output" => Action::LbOutput(cursor.number()?),
        "push_mpls" => Action::PushMpls(push_mpls(cursor)?),
        "add_mpls" => Action::AddMpls(push_mpls(cursor)?),
        "pop_mpls" => {
            cursor.expect("eth_type=")?;
            Action::PopMpls { eth_type: cursor.number()? }
        }
        "push_nsh" => Action::PushNsh(Box::new(push_nsh(cursor)?)),
        "pop_nsh" => Action::PopNsh,
        "push_eth" => {
            cursor.expect("src=")?;
            let src = cursor.mac()?;
            cursor.expect(",dst=")?;
            Action::PushEth { src, dst: cursor.mac()? }
        }
        "psample" => psample(cursor)?,
        _ => match attribute(name) {
            Some(attribute) => Action::Unknown { attribute, data: cursor.bytes(" ")? },
            None => return Err(Fail { at, what: What::Unknown("action") }),
        },
    };
    if cursor.take(")") { Ok(action) } else { cursor.fail(What::Expected("\")\" at the action's end")) }
}

/// An action without an argument, or a port.
fn bare(cursor: &Cursor, name: &str, at: usize) -> Parsed<Action> {
    Ok(match name {
        "drop" => Action::Drop,
        "pop_vlan" => Action::PopVlan,
        "pop_eth" => Action::PopEth,
        "ct_clear" => Action::CtClear,
        "ct" => Action::Ct(Box::default()),
        "set" | "recirc" | "userspace" | "push_vlan" | "meter" | "hash" | "clone" | "sample" | "check_pkt_len"
        | "dec_ttl" | "trunc" | "tnl_push" | "tnl_pop" | "lb_output" | "push_mpls" | "add_mpls" | "pop_mpls"
        | "push_nsh" | "pop_nsh" | "push_eth" | "psample" => {
            return cursor.fail(What::Expected("\"(\" and the action's argument"));
        }
        _ => match attribute(name) {
            Some(attribute) => Action::Unknown { attribute, data: Vec::new() },
            None => Action::Output(cursor.port_of(name, at)?),
        },
    })
}

/// `action40`: what OVS did not know.
fn attribute(name: &str) -> Option<u16> {
    name.strip_prefix("action")?.parse().ok()
}

fn push_vlan(cursor: &mut Cursor) -> Parsed<PushVlan> {
    let tpid = if cursor.take("tpid=") {
        let tpid = cursor.number()?;
        cursor.expect(",")?;
        tpid
    } else {
        ETH_TYPE_VLAN
    };
    cursor.expect("vid=")?;
    let vid = cursor.narrow(Vlan::VID_MASK)?;
    cursor.expect(",pcp=")?;
    let pcp = cursor.narrow(Vlan::PCP_MASK)?;
    Ok(PushVlan { tpid, vid, pcp, cfi: !cursor.take(",cfi=0") })
}

fn push_mpls(cursor: &mut Cursor) -> Parsed<PushMpls> {
    cursor.expect("label=")?;
    let label = cursor.narrow(MplsLabel::LABEL_MASK)?;
    cursor.expect(",tc=")?;
    let tc = cursor.narrow(MplsLabel::TC_MASK)?;
    cursor.expect(",ttl=")?;
    let ttl = cursor.number()?;
    cursor.expect(",bos=")?;
    let bos = cursor.narrow(MplsLabel::BOS_MASK)?;
    cursor.expect(",eth_type=")?;
    Ok(PushMpls { label, tc, ttl, bos, eth_type: cursor.number()? })
}

fn hash(cursor: &mut Cursor) -> Parsed<Action> {
    let algorithm = match cursor.take("l4(") {
        true => HashAlgorithm::L4,
        false if cursor.take("sym_l4(") => HashAlgorithm::SymL4,
        false => return cursor.fail(What::Expected("l4(...) or sym_l4(...)")),
    };
    let basis = cursor.number()?;
    cursor.expect(")")?;
    Ok(Action::Hash { algorithm, basis })
}

/// `sample(sample=12.5%,actions(...))`
fn sample(cursor: &mut Cursor) -> Parsed<Action> {
    cursor.expect("sample=")?;
    let at = cursor.at();
    let percent: u32 = cursor.number()?;
    cursor.expect(".")?;
    let digit = cursor.take_while(|byte| byte.is_ascii_digit());
    cursor.expect("%")?;
    let (1, Ok(tenths)) = (digit.len(), digit.parse::<u32>()) else {
        return Err(Fail { at, what: What::Expected("a percentage with one decimal") });
    };
    if percent > 100 || percent == 100 && tenths > 0 {
        return Err(Fail { at, what: What::Expected("0.0% to 100.0%") });
    }
    cursor.expect(",actions(")?;
    let actions = nested_list(cursor)?;
    cursor.expect(")")?;
    let thousandths = u64::from(percent * 10 + tenths);
    // The nearest that prints so.
    let probability = (thousandths * u64::from(u32::MAX) + 500) / 1000;
    Ok(Action::Sample { probability: probability as u32, actions })
}

fn check_pkt_len(cursor: &mut Cursor) -> Parsed<Action> {
    cursor.expect("size=")?;
    let size = cursor.number()?;
    cursor.expect(",gt(")?;
    let greater = nested_list(cursor)?;
    cursor.expect("),le(")?;
    let less_or_equal = nested_list(cursor)?;
    cursor.expect(")")?;
    Ok(Action::CheckPktLen { size, greater, less_or_equal })
}

fn push_nsh(cursor: &mut Cursor) -> Parsed<PushNsh> {
    cursor.expect("flags=")?;
    let flags = cursor.number()?;
    cursor.expect(",ttl=")?;
    let ttl = cursor.number()?;
    cursor.expect(",mdtype=")?;
    let at = cursor.at();
    let mdtype: u8 = cursor.number()?;
    cursor.expect(",np=")?;
    let np = cursor.number()?;
    cursor.expect(",spi=")?;
    let spi = cursor.narrow(0xff_ffff)?;
    cursor.expect(",si=")?;
    let si = cursor.number()?;
    let metadata = match mdtype {
        1 => {
            let mut context = [0; 4];
            for (word, name) in context.iter_mut().zip([",c1=", ",c2=", ",c3=", ",c4="]) {
                cursor.expect(name)?;
                *word = cursor.number()?;
            }
            NshMetadata::Md1(context)
        }
        2 => {
            cursor.expect(",md2=")?;
            NshMetadata::Md2(cursor.long_number()?.into())
        }
        _ => return Err(Fail { at, what: What::Expected("metadata of type 1 or 2") }),
    };
    Ok(PushNsh { flags, ttl, np, spi, si, metadata })
}

/// `psample(group=12,cookie=0x1234)`
fn psample(cursor: &mut Cursor) -> Parsed<Action> {
    let mut first = true;
    let group = if cursor.field(&mut first, "group=") { Some(cursor.number()?) } else { None };
    let cookie = if cursor.field(&mut first, "cookie=") { Some(cursor.long_number()?.into()) } else { None };
    Ok(Action::Psample { group, cookie })
}
