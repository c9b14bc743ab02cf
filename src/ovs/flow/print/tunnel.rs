//! Tunnels (format_odp_tun_attr).

use std::fmt::{self, Write};

use crate::ovs::flow::masked::Masked;
use crate::ovs::flow::tunnel::{Erspan, Gbp, GeneveOption, Gtpu, Tunnel, Vxlan};

use super::Style;
use super::fields::{Fields, Hex, LongHex, masked_flags};
use super::keys::{self, Within};

/// What is between the parentheses.
pub(super) fn tunnel(fields: &mut Fields<'_, impl Write>, tunnel: &Tunnel, within: Within) -> fmt::Result {
    let style = if within == Within::Match(Style::Verbose) { Style::Verbose } else { Style::Terse };
    tunnel.id.iter().try_for_each(|id| fields.hex_with_zero("tun_id", id))?;
    tunnel.src.iter().try_for_each(|src| fields.ipv4("src", src))?;
    tunnel.dst.iter().try_for_each(|dst| fields.ipv4("dst", dst))?;
    tunnel.ipv6_src.iter().try_for_each(|src| fields.ipv6("ipv6_src", src))?;
    tunnel.ipv6_dst.iter().try_for_each(|dst| fields.ipv6("ipv6_dst", dst))?;
    tunnel.tos.iter().try_for_each(|tos| fields.hex("tos", tos))?;
    tunnel.ttl.iter().try_for_each(|ttl| fields.decimal("ttl", ttl))?;
    tunnel.tp_src.iter().try_for_each(|port| fields.decimal("tp_src", port))?;
    tunnel.tp_dst.iter().try_for_each(|port| fields.decimal("tp_dst", port))?;
    if let Some(options) = &tunnel.vxlan {
        fields.put("vxlan(")?;
        vxlan(fields.out, options, style)?;
        fields.out.write_char(')')?;
    }
    if let Some(options) = &tunnel.geneve {
        fields.put("geneve(")?;
        geneve_options(fields.out, options, style)?;
        fields.out.write_char(')')?;
    }
    if let Some(options) = &tunnel.erspan {
        fields.put("erspan(")?;
        erspan(&mut Fields::new(fields.out, style), options, within)?;
        fields.out.write_char(')')?;
    }
    if let Some(options) = &tunnel.gtpu {
        fields.put("gtpu(")?;
        gtpu(&mut Fields::new(fields.out, style), options)?;
        fields.out.write_char(')')?;
    }
    for key in &tunnel.unknown {
        fields.put("")?;
        keys::unknown(fields.out, key)?;
    }
    if fields.shows(tunnel.flags.mask) {
        fields.put("flags(")?;
        masked_flags(fields.out, &tunnel.flags)?;
        fields.out.write_char(')')?;
    }
    Ok(())
}

fn vxlan(out: &mut impl Write, vxlan: &Vxlan, style: Style) -> fmt::Result {
    let mut fields = Fields::new(out, style);
    if let Some(group) = &vxlan.gbp {
        fields.put("gbp(")?;
        gbp(&mut Fields::new(fields.out, style), group)?;
        fields.out.write_char(')')?;
    }
    for key in &vxlan.unknown {
        fields.put("")?;
        keys::unknown(fields.out, key)?;
    }
    Ok(())
}

fn gbp(fields: &mut Fields<'_, impl Write>, gbp: &Gbp) -> fmt::Result {
    fields.decimal("id", &gbp.id)?;
    fields.hex("flags", &gbp.flags)
}

/// format_geneve_opts
pub(super) fn geneve_options(out: &mut impl Write, options: &[GeneveOption], style: Style) -> fmt::Result {
    options.iter().try_for_each(|option| {
        out.write_char('{')?;
        geneve_option(&mut Fields::new(out, style), option)?;
        out.write_char('}')
    })
}

fn geneve_option(fields: &mut Fields<'_, impl Write>, option: &GeneveOption) -> fmt::Result {
    fields.hex("class", &option.class)?;
    fields.hex("type", &option.kind)?;
    fields.decimal("len", &option.len)?;
    let counts = option.data_mask.iter().any(|byte| *byte != 0);
    if option.data.is_empty() || !fields.shows(u8::from(counts)) {
        return Ok(());
    }
    match option.data_mask.iter().all(|byte| *byte == 0xff) {
        true => fields.put(LongHex(&option.data)),
        false => fields.put(format_args!("{}/{}", LongHex(&option.data), LongHex(&option.data_mask))),
    }
}

/// The index has its mask always, but where it is set.
fn erspan(fields: &mut Fields<'_, impl Write>, erspan: &Erspan, within: Within) -> fmt::Result {
    match *erspan {
        Erspan::V1 { version_mask, index } => {
            fields.decimal("ver", &Masked { value: 1, mask: version_mask })?;
            match within {
                Within::Match(_) => fields.put(format_args!("idx={}/{}", Hex(index.value), Hex(index.mask))),
                Within::Set => fields.put(format_args!("idx={}", Hex(index.value))),
            }
        }
        Erspan::V2 { version_mask, dir, hwid } => {
            fields.decimal("ver", &Masked { value: 2, mask: version_mask })?;
            fields.decimal("dir", &dir)?;
            fields.hex("hwid", &hwid)
        }
    }
}

fn gtpu(fields: &mut Fields<'_, impl Write>, gtpu: &Gtpu) -> fmt::Result {
    fields.hex("flags", &gtpu.flags)?;
    fields.decimal("msgtype", &gtpu.msgtype)
}
