//! 10,000 flows under 8 masks, as rules, as flows of OVS's datapath, and as frames of 64 bytes.

use ringspan_protocol::{Action, Field, FieldMatch, Match, NicPort, Rule, RuleId};

/// Rules.
pub const RULES: u32 = 10_000;
/// What the rules of each mask look at, beside the port and the type: bits of both IPv4 addresses and of both ports, and the MAC addresses.
pub const MASKS: [(u32, u32, u16, bool); 8] = [
    (32, 32, 0xffff, true),
    (32, 32, 0xffff, false),
    (32, 32, 0, true),
    (32, 24, 0xffff, true),
    (24, 32, 0xffff, false),
    (24, 24, 0, true),
    (16, 32, 0xffff, false),
    (32, 16, 0, false),
];

/// A UDP frame of 64 bytes, its check sequence included, of a flow of its own.
pub fn frame(flow: u32) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..14].copy_from_slice(&[2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0]);
    frame[14..24].copy_from_slice(&[0x45, 0, 0, 46, 0, 0, 0x40, 0, 64, 17]);
    // Each mask has networks of its own, so that no two rules overlap, as OVS's flows do not.
    let (mask, flow) = (flow % 8, flow / 8);
    frame[26..30].copy_from_slice(&(0x0a00_0000 + (mask << 20) + (flow << 8)).to_be_bytes());
    frame[30..34].copy_from_slice(&(0xac10_0000 + (mask << 16) + flow).to_be_bytes());
    if mask == 4 || mask == 6 {
        frame[26..30].copy_from_slice(&(0x0a00_0000 + (mask << 20)).to_be_bytes());
    }
    if mask == 3 || mask == 5 || mask == 7 {
        frame[30..34].copy_from_slice(&(0xac10_0000 + (mask << 16)).to_be_bytes());
    }
    frame[34..38].copy_from_slice(&[0x30, 0x39, 0x0d, 0x80]);
    frame[38..40].copy_from_slice(&26u16.to_be_bytes());
    let sum: u32 = frame[14..34].chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    let sum = !(((sum & 0xffff) + (sum >> 16)) as u16);
    frame[24..26].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn number(frame: &[u8], at: usize, len: usize) -> u128 {
    frame[at..at + len].iter().fold(0, |sum, byte| sum << 8 | u128::from(*byte))
}

/// What the rule of a flow asks for, beside its port.
pub fn fields(flow: u32) -> Vec<FieldMatch> {
    let (frame, (src, dst, port, macs)) = (frame(flow), MASKS[flow as usize % 8]);
    let prefix = |bits: u32| u128::from(u32::MAX << (32 - bits));
    let ask = |field: Field, is: u128, bits: u128| FieldMatch::new(field, is & bits, bits).expect("a value that fits");
    let mut fields = vec![
        ask(Field::EthType, 0x800, 0xffff),
        ask(Field::IpFrag, 0, 3),
        ask(Field::Ipv4Src, number(&frame, 26, 4), prefix(src)),
        ask(Field::Ipv4Dst, number(&frame, 30, 4), prefix(dst)),
    ];
    if port != 0 {
        fields.push(ask(Field::IpProto, 17, 0xff));
        fields.push(ask(Field::SrcPort, number(&frame, 34, 2), port.into()));
        fields.push(ask(Field::DstPort, number(&frame, 36, 2), port.into()));
    }
    if macs {
        fields.push(ask(Field::EthDst, number(&frame, 0, 6), Field::EthDst.mask()));
        fields.push(ask(Field::EthSrc, number(&frame, 6, 6), Field::EthSrc.mask()));
    }
    fields
}

/// The rule of a flow, which sends it back where it came from.
///
/// # Panics
/// Never: no field is asked for twice.
pub fn rule(flow: u32) -> Rule {
    Rule {
        id: RuleId(u128::from(flow) + 1),
        priority: 0,
        in_port: NicPort::Uplink,
        matches: Match::new(fields(flow)).expect("each field once"),
        actions: vec![Action::Output(NicPort::Uplink)],
        refresh: true,
    }
}

/// The same as a line for `dpctl/add-flows`, for this port of the datapath.
pub fn odp(flow: u32, port: u32) -> String {
    let (frame, (src, dst, ports, macs)) = (frame(flow), MASKS[flow as usize % 8]);
    let address = |at: usize| {
        let [a, b, c, d] = [frame[at], frame[at + 1], frame[at + 2], frame[at + 3]];
        format!("{a}.{b}.{c}.{d}")
    };
    let prefix = |bits: u32| std::net::Ipv4Addr::from(u32::MAX << (32 - bits));
    // Without the key `eth` it would be a flow of packets that have no Ethernet header.
    let eth = if macs { "eth(src=02:00:00:00:00:01,dst=02:00:00:00:00:02)," } else { "eth()," };
    let (proto, udp) = if ports == 0 { ("", "") } else { (",proto=17", ",udp(src=12345,dst=3456)") };
    format!(
        "recirc_id(0),in_port({port}),packet_type(ns=0,id=0),{eth}eth_type(0x0800),ipv4(src={}/{},dst={}/{}{proto},frag=no){udp} {port}",
        address(26),
        prefix(src),
        address(30),
        prefix(dst),
    )
}

/// A file of libpcap's with frames of so many flows, each once, in an order that no prefetcher guesses.
pub fn pcap(flows: u32) -> Vec<u8> {
    // Flows that are in use are spread over all rules and masks.
    let frames: Vec<_> = (0..flows).map(|at| frame(at.wrapping_mul(7919) % RULES)).collect();
    pcap_of(frames.iter().map(<[u8; 60]>::as_slice))
}

/// A file of libpcap's with these frames.
pub fn pcap_of<'a>(frames: impl IntoIterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut file = Vec::new();
    // Magic number, version 2.4, no zone, no accuracy, longest frame, Ethernet.
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 1] {
        file.extend(word.to_ne_bytes());
    }
    for frame in frames {
        for word in [0, 0, frame.len() as u32, frame.len() as u32] {
            file.extend(word.to_ne_bytes());
        }
        file.extend(frame);
    }
    file
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn each_flow_has_a_rule_that_makes_sense_and_frames_differ() {
        let frames: BTreeSet<_> = (0..RULES).map(frame).collect();
        assert_eq!(frames.len(), RULES as usize);
        assert!((0..RULES).all(|flow| rule(flow).check().is_ok()));
        let lines: BTreeSet<_> = (0..RULES).map(|flow| odp(flow, 1)).collect();
        assert_eq!(lines.len(), RULES as usize);
        assert_eq!(pcap(2).len(), 24 + 2 * (16 + 60));
    }
}
