//! `userspace(...)` (format_odp_userspace_action).

use std::fmt::{self, Write};

use crate::ovs::flow::action::{Cookie, Direction, Userspace};

use super::fields::{Hex, flags};

pub(super) fn userspace(f: &mut impl Write, userspace: &Userspace) -> fmt::Result {
    write!(f, "userspace(pid={}", userspace.pid)?;
    if let Some(cookie) = &userspace.cookie {
        self::cookie(f, cookie)?;
    }
    if userspace.actions {
        f.write_str(",actions")?;
    }
    if let Some(port) = &userspace.tunnel_out_port {
        write!(f, ",tunnel_out_port={port}")?;
    }
    f.write_char(')')
}

fn cookie(f: &mut impl Write, cookie: &Cookie) -> fmt::Result {
    match cookie {
        Cookie::Sflow { vid, pcp, output } => write!(f, ",sFlow(vid={vid},pcp={pcp},output={output}")?,
        Cookie::SlowPath(reason) => {
            f.write_str(",slow_path(")?;
            flags(f, *reason, ',')?;
        }
        Cookie::FlowSample { probability, collector_set_id, obs_domain_id, obs_point_id, output_port, direction } => {
            let direction = match direction {
                Some(Direction::Ingress) => ",ingress",
                Some(Direction::Egress) => ",egress",
                None => "",
            };
            write!(f, ",flow_sample(probability={probability},collector_set_id={collector_set_id}")?;
            write!(f, ",obs_domain_id={obs_domain_id},obs_point_id={obs_point_id}")?;
            write!(f, ",output_port={output_port}{direction}")?;
        }
        Cookie::Ipfix { output_port } => write!(f, ",ipfix(output_port={output_port}")?,
        Cookie::Controller { reason, dont_send, continuation, recirc_id, rule_cookie, controller_id, max_len } => {
            let (dont_send, continuation) = (u8::from(*dont_send), u8::from(*continuation));
            write!(f, ",controller(reason={reason},dont_send={dont_send},continuation={continuation}")?;
            write!(f, ",recirc_id={recirc_id},rule_cookie={}", Hex(*rule_cookie))?;
            write!(f, ",controller_id={controller_id},max_len={max_len}")?;
        }
        Cookie::Data(data) => {
            f.write_str(",userdata(")?;
            data.iter().try_for_each(|byte| write!(f, "{byte:02x}"))?;
        }
    }
    f.write_char(')')
}
