//! `userspace(pid=0,slow_path(action))` (format_odp_userspace_action).

use crate::ovs::flow::action::{Cookie, Direction, Userspace};
use crate::ovs::flow::key::Vlan;

use super::cursor::Cursor;
use super::error::{Parsed, What};

/// What is between the parentheses.
pub(super) fn userspace(cursor: &mut Cursor) -> Parsed<Userspace> {
    cursor.expect("pid=")?;
    let pid = cursor.number()?;
    let cookie = cookie(cursor)?;
    let actions = cursor.take(",actions");
    let tunnel_out_port = if cursor.take(",tunnel_out_port=") { Some(cursor.port()?) } else { None };
    Ok(Userspace { pid, cookie, actions, tunnel_out_port })
}

fn cookie(cursor: &mut Cursor) -> Parsed<Option<Cookie>> {
    let cookie = if cursor.take(",sFlow(") {
        sflow(cursor)?
    } else if cursor.take(",slow_path(") {
        Cookie::SlowPath(cursor.named_flags(',')?)
    } else if cursor.take(",flow_sample(") {
        flow_sample(cursor)?
    } else if cursor.take(",ipfix(output_port=") {
        Cookie::Ipfix { output_port: cursor.port()? }
    } else if cursor.take(",controller(") {
        controller(cursor)?
    } else if cursor.take(",userdata(") {
        Cookie::Data(cursor.bytes("")?)
    } else {
        return Ok(None);
    };
    cursor.expect(")")?;
    Ok(Some(cookie))
}

fn sflow(cursor: &mut Cursor) -> Parsed<Cookie> {
    cursor.expect("vid=")?;
    let vid = cursor.narrow(Vlan::VID_MASK)?;
    cursor.expect(",pcp=")?;
    let pcp = cursor.narrow(Vlan::PCP_MASK)?;
    cursor.expect(",output=")?;
    Ok(Cookie::Sflow { vid, pcp, output: cursor.number()? })
}

fn flow_sample(cursor: &mut Cursor) -> Parsed<Cookie> {
    cursor.expect("probability=")?;
    let probability = cursor.number()?;
    cursor.expect(",collector_set_id=")?;
    let collector_set_id = cursor.number()?;
    cursor.expect(",obs_domain_id=")?;
    let obs_domain_id = cursor.number()?;
    cursor.expect(",obs_point_id=")?;
    let obs_point_id = cursor.number()?;
    cursor.expect(",output_port=")?;
    let output_port = cursor.port()?;
    let direction = match cursor.take(",ingress") {
        true => Some(Direction::Ingress),
        false => cursor.take(",egress").then_some(Direction::Egress),
    };
    Ok(Cookie::FlowSample { probability, collector_set_id, obs_domain_id, obs_point_id, output_port, direction })
}

fn controller(cursor: &mut Cursor) -> Parsed<Cookie> {
    cursor.expect("reason=")?;
    let reason = cursor.number()?;
    cursor.expect(",dont_send=")?;
    let dont_send = zero_or_one(cursor)?;
    cursor.expect(",continuation=")?;
    let continuation = zero_or_one(cursor)?;
    cursor.expect(",recirc_id=")?;
    let recirc_id = cursor.number()?;
    cursor.expect(",rule_cookie=")?;
    let rule_cookie = cursor.number()?;
    cursor.expect(",controller_id=")?;
    let controller_id = cursor.number()?;
    cursor.expect(",max_len=")?;
    let max_len = cursor.number()?;
    Ok(Cookie::Controller { reason, dont_send, continuation, recirc_id, rule_cookie, controller_id, max_len })
}

fn zero_or_one(cursor: &mut Cursor) -> Parsed<bool> {
    match cursor.peek() {
        Some(b'0' | b'1') => Ok(cursor.number::<u8>()? == 1),
        _ => cursor.fail(What::Expected("0 or 1")),
    }
}
