//! What Open vSwitch sees of a frame: its own reading (`ovs-ofctl parse-pcap`, which is `flow_extract` of its lib/flow.c).

use std::net::{Ipv4Addr, Ipv6Addr};
use std::process::Command;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use ringspan::ovs::flow::key::Fragment;
use ringspan_protocol::MacAddress;
use ringspan_testkit::{paths, wait};

/// A frame's fields as OVS has them; those of headers that it has not are zero.
#[derive(Debug, Clone)]
pub struct Seen {
    pub src: MacAddress,
    pub dst: MacAddress,
    /// Type, VLAN and priority of each tag.
    pub tags: Vec<(u16, u16, u8)>,
    pub eth_type: u16,
    pub ipv4: [Ipv4Addr; 2],
    pub ipv6: [Ipv6Addr; 2],
    pub label: u32,
    pub proto: u8,
    pub tos: u8,
    pub ttl: u8,
    pub frag: Fragment,
    /// Ports, or ICMP's type and code.
    pub l4: [u16; 2],
    pub tcp_flags: u16,
    pub arp: [Ipv4Addr; 2],
    pub arp_macs: [MacAddress; 2],
    pub arp_op: u16,
    pub target: Ipv6Addr,
    pub nd_macs: [MacAddress; 2],
}

/// What OVS says of these frames.
pub fn all(frames: &[Vec<u8>]) -> Result<Vec<Seen>> {
    let folder = paths::scratch()?;
    let file = folder.path().join("frames.pcap");
    std::fs::write(&file, ringspan_benches::flows::pcap_of(frames.iter().map(Vec::as_slice)))?;
    let program = paths::on_path("ovs-ofctl").context("ovs-ofctl is missing: install openvswitch-common")?;
    let finished = wait::run(Command::new(program).arg("parse-pcap").arg(&file), Duration::from_secs(120))?;
    let text = finished.success("ovs-ofctl parse-pcap")?;
    let lines: Vec<&str> = text.lines().collect();
    ensure!(lines.len() == frames.len(), "{} lines about {} frames", lines.len(), frames.len());
    let one =
        |(line, frame): (&&str, &Vec<u8>)| Seen::read(line, frame).with_context(|| format!("{line}: {frame:02x?}"));
    lines.iter().zip(frames).map(one).collect()
}

impl Seen {
    /// What is seen where `other_config:vlan-limit` is 1, its default: of what is behind the first VLAN header, the type of another one only.
    pub fn with_one_vlan(&self) -> Self {
        let [first, (tpid, ..), ..] = self.tags[..] else { return self.clone() };
        Self { tags: vec![first], eth_type: tpid, src: self.src, dst: self.dst, ..Self::nothing() }
    }

    fn nothing() -> Self {
        let mac = MacAddress([0; 6]);
        Self {
            src: mac,
            dst: mac,
            tags: Vec::new(),
            eth_type: 0,
            ipv4: [Ipv4Addr::UNSPECIFIED; 2],
            ipv6: [Ipv6Addr::UNSPECIFIED; 2],
            label: 0,
            proto: 0,
            tos: 0,
            ttl: 0,
            frag: Fragment::No,
            l4: [0; 2],
            tcp_flags: 0,
            arp: [Ipv4Addr::UNSPECIFIED; 2],
            arp_macs: [mac; 2],
            arp_op: 0,
            target: Ipv6Addr::UNSPECIFIED,
            nd_macs: [mac; 2],
        }
    }

    /// A line of `flow_format` in OVS's lib/flow.c. The types of tags are not in it: they stand in the frame.
    fn read(line: &str, frame: &[u8]) -> Result<Self> {
        let mut seen = Self::nothing();
        for word in line.split(',') {
            let Some((name, value)) = word.split_once('=') else {
                seen.kind(word);
                continue;
            };
            match name {
                "in_port" | "vlan_tci" | "vlan_tci1" => {}
                "dl_src" => seen.src = read(value)?,
                "dl_dst" => seen.dst = read(value)?,
                "dl_type" => seen.eth_type = number(value)?,
                "dl_vlan" | "dl_vlan1" => {
                    let at = 12 + 4 * seen.tags.len();
                    let tpid = frame.get(at..at + 2).context("a tag's type")?;
                    seen.tags.push((u16::from_be_bytes([tpid[0], tpid[1]]), number(value)?, 0));
                }
                "dl_vlan_pcp" | "dl_vlan_pcp1" => seen.tags.last_mut().context("a tag")?.2 = number(value)? as u8,
                "nw_src" => seen.ipv4[0] = read(value)?,
                "nw_dst" => seen.ipv4[1] = read(value)?,
                "ipv6_src" => seen.ipv6[0] = read(value)?,
                "ipv6_dst" => seen.ipv6[1] = read(value)?,
                "ipv6_label" => seen.label = u32::from_str_radix(value.trim_start_matches("0x"), 16)?,
                "nw_proto" => seen.proto = read(value)?,
                "nw_tos" => seen.tos |= read::<u8>(value)?,
                "nw_ecn" => seen.tos |= read::<u8>(value)?,
                "nw_ttl" => seen.ttl = read(value)?,
                "nw_frag" => {
                    seen.frag = match value {
                        "no" => Fragment::No,
                        "first" => Fragment::First,
                        "later" => Fragment::Later,
                        other => bail!("a fragment {other}"),
                    }
                }
                "tp_src" | "icmp_type" => seen.l4[0] = number(value)?,
                "tp_dst" | "icmp_code" => seen.l4[1] = number(value)?,
                "tcp_flags" => seen.tcp_flags = flags(value)?,
                "arp_spa" => seen.arp[0] = read(value)?,
                "arp_tpa" => seen.arp[1] = read(value)?,
                "arp_sha" => seen.arp_macs[0] = read(value)?,
                "arp_tha" => seen.arp_macs[1] = read(value)?,
                "arp_op" => seen.arp_op = number(value)?,
                "nd_target" => seen.target = read(value)?,
                "nd_sll" => seen.nd_macs[0] = read(value)?,
                "nd_tll" => seen.nd_macs[1] = read(value)?,
                other => ensure!(
                    ["mpls", "nsh", "igmp", "nd_"].iter().any(|known| other.starts_with(known)),
                    "{other} is not known here"
                ),
            }
        }
        Ok(seen)
    }

    /// The word with which OVS says type and protocol in one.
    fn kind(&mut self, word: &str) {
        let (kind, proto) = match word {
            "ip" => (0x0800, 0),
            "icmp" => (0x0800, 1),
            "igmp" => (0x0800, 2),
            "tcp" => (0x0800, 6),
            "udp" => (0x0800, 17),
            "sctp" => (0x0800, 132),
            "ipv6" => (0x86dd, 0),
            "tcp6" => (0x86dd, 6),
            "udp6" => (0x86dd, 17),
            "icmp6" => (0x86dd, 58),
            "sctp6" => (0x86dd, 132),
            "arp" => (0x0806, 0),
            "rarp" => (0x8035, 0),
            "mpls" => (0x8847, 0),
            "mplsm" => (0x8848, 0),
            "nsh" => (0x894f, 0),
            _ => return,
        };
        (self.eth_type, self.proto) = (kind, proto);
    }
}

fn read<T: FromStr>(text: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    Ok(text.parse()?)
}

fn number(text: &str) -> Result<u16> {
    Ok(match text.strip_prefix("0x") {
        Some(digits) => u16::from_str_radix(digits, 16)?,
        None => text.parse()?,
    })
}

/// `syn|ack`, `0x12` or `0`; what has no name is a number among them.
fn flags(text: &str) -> Result<u16> {
    const NAMES: [&str; 12] = ["fin", "syn", "rst", "psh", "ack", "urg", "ece", "cwr", "ns", "[200]", "[400]", "[800]"];
    let mut all = 0;
    for word in text.split('|') {
        all |= match NAMES.iter().position(|name| *name == word) {
            Some(bit) => 1 << bit,
            None => number(word)?,
        };
    }
    Ok(all)
}
