//! A bond as it is: by sysfs (Documentation/networking/bonding.rst), and by /proc/net/bonding what sysfs does not tell of LACP.

use std::fs;

use ringspan_protocol::{MacAddress, PciAddress};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::lag::{self, VfLag};
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::netlink::{HashPolicy, LacpRate};
use crate::host::sysfs::Sysfs;

/// Synchronised, collecting and distributing: the member carries traffic (IEEE 802.1AX, 6.4.2.3, LACP_State).
const CARRIES: u8 = 0x08 | 0x10 | 0x20;

/// A bond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Bond {
    /// Its name.
    pub name: String,
    /// How it uses its members: `active-backup`, `balance-xor`, `802.3ad`, or another mode of the kernel's.
    pub mode: String,
    /// How often links are looked at, in milliseconds; 0: never.
    pub miimon: u32,
    /// What it hashes; absent in modes without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hash_policy: Option<String>,
    /// How often the partner is asked to speak; 802.3ad only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp_rate: Option<LacpRate>,
    /// Whether it is up.
    pub up: bool,
    /// Whether it has a link: a member has.
    pub carrier: bool,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// The member that sends; active-backup only. Absent: none has a link.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub active: Option<String>,
    /// What LACP has agreed; 802.3ad only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp: Option<Lacp>,
    /// Its members, in the kernel's order.
    pub members: Vec<Member>,
    /// What the NIC made of it; absent where the members are not of one ConnectX.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vf_lag: Option<VfLag>,
    /// The bridge of Open vSwitch that it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<String>,
    /// What was changed; empty: it was so already, or nothing was asked for.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub done: Vec<String>,
}

/// What LACP has agreed for a bond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Lacp {
    /// The partner's address; absent: nobody answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<MacAddress>,
    /// The aggregator in use.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregator: Option<u16>,
    /// How many members are in it.
    pub ports: u16,
    /// This end's key, which says what may be joined.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub actor_key: Option<u16>,
    /// The partner's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner_key: Option<u16>,
}

/// A member of a bond.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Member {
    /// Its interface.
    pub interface: String,
    /// Its PCI function, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<PciAddress>,
    /// Whether the bond uses it: `active`, or `backup`.
    pub state: String,
    /// Its link as the bond sees it: `up`, `down`, or on the way: `going down`, `going back`.
    pub link: String,
    /// How often its link failed.
    pub link_failures: u64,
    /// Its own MAC address, which it has again when it leaves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Speed in Mbit/s, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub speed_mbps: Option<u32>,
    /// What LACP has agreed; 802.3ad only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lacp: Option<MemberLacp>,
}

/// What LACP has agreed for a member.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct MemberLacp {
    /// Its aggregator; the bond uses one of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub aggregator: Option<u16>,
    /// The partner's address on this link; absent: nobody answers, or the daemon may not see it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub partner: Option<MacAddress>,
    /// This end's state as LACP sends it, bit by bit.
    pub actor_state: u8,
    /// The partner's.
    pub partner_state: u8,
    /// Whether both ends let traffic through it.
    pub carries: bool,
}

/// What to read of an interface.
fn at(name: &str, attribute: &str) -> String {
    format!("class/net/{name}/{attribute}")
}

/// A word of the API by the kernel's own: `slow 0`.
pub(super) fn word<T: DeserializeOwned>(text: &str) -> Option<T> {
    let first = text.split_whitespace().next()?;
    serde_json::from_value(first.into()).ok()
}

/// Whether there is a bond of this name.
pub(super) fn is_bond(sysfs: &Sysfs, name: &str) -> bool {
    sysfs.has(&at(name, "bonding"))
}

/// The names of a bond's members.
pub(super) fn members(sysfs: &Sysfs, name: &str) -> Vec<String> {
    let text = sysfs.text(&at(name, "bonding/slaves")).unwrap_or_default();
    text.split_whitespace().map(str::to_owned).collect()
}

/// The names of all bonds.
pub(super) fn names(sysfs: &Sysfs) -> Vec<String> {
    let mut names = sysfs.names("class/net");
    names.retain(|name| is_bond(sysfs, name));
    names
}

/// The first word of one of a bond's attributes: `active-backup 1`.
pub(super) fn setting(sysfs: &Sysfs, name: &str, attribute: &str) -> Option<String> {
    let text = sysfs.text(&at(name, &format!("bonding/{attribute}")))?;
    text.split_whitespace().next().map(str::to_owned)
}

fn mac(text: Option<String>) -> Option<MacAddress> {
    text?.parse().ok().filter(|mac: &MacAddress| mac.0 != [0; 6])
}

/// Whether an interface is up: IFF_UP.
pub(super) fn is_up(sysfs: &Sysfs, name: &str) -> bool {
    sysfs.hex(&at(name, "flags")).is_some_and(|flags| flags & 1 != 0)
}

/// Its PCI function.
pub(super) fn function(sysfs: &Sysfs, interface: &str) -> Option<PciAddress> {
    sysfs.link(&at(interface, "device"))?.parse().ok()
}

/// A bond; none: there is no such interface, or it is none.
pub(super) fn read(host: &Host, name: &str) -> Option<Bond> {
    let sysfs = &host.sysfs;
    if !is_bond(sysfs, name) {
        return None;
    }
    let text = |attribute: &str| setting(sysfs, name, attribute);
    let number = |attribute: &str| text(attribute).and_then(|text| text.parse().ok());
    let mode = text("mode").unwrap_or_default();
    let lacp = mode == "802.3ad";
    let told = if lacp { fs::read_to_string(host.proc.join("net/bonding").join(name)).ok() } else { None };
    let members: Vec<Member> =
        members(sysfs, name).into_iter().map(|interface| member(sysfs, interface, lacp, told.as_deref())).collect();
    Some(Bond {
        name: name.into(),
        miimon: sysfs.number(&at(name, "bonding/miimon")).unwrap_or_default(),
        hash_policy: text("xmit_hash_policy")
            .filter(|_| matches!(mode.as_str(), "balance-xor" | "802.3ad" | "balance-tlb")),
        lacp_rate: text("lacp_rate").filter(|_| lacp).and_then(|rate| word(&rate)),
        up: is_up(sysfs, name),
        carrier: sysfs.text(&at(name, "carrier")).is_some_and(|carrier| carrier == "1"),
        mac: mac(sysfs.text(&at(name, "address"))),
        active: text("active_slave").filter(|_| mode == "active-backup"),
        lacp: lacp.then(|| Lacp {
            partner: mac(text("ad_partner_mac")),
            aggregator: number("ad_aggregator"),
            ports: number("ad_num_ports").unwrap_or_default(),
            actor_key: number("ad_actor_key"),
            partner_key: number("ad_partner_key"),
        }),
        vf_lag: lag::look(sysfs, &members),
        mode,
        members,
        bridge: None,
        done: vec![],
    })
}

fn member(sysfs: &Sysfs, interface: String, lacp: bool, told: Option<&str>) -> Member {
    let text = |attribute: &str| sysfs.text(&at(&interface, &format!("bonding_slave/{attribute}")));
    let state = |attribute: &str| text(attribute).and_then(|text| text.parse::<u8>().ok()).unwrap_or_default();
    let (actor_state, partner_state) = (state("ad_actor_oper_port_state"), state("ad_partner_oper_port_state"));
    Member {
        address: function(sysfs, &interface),
        state: text("state").unwrap_or_default(),
        link: text("mii_status").unwrap_or_default(),
        link_failures: text("link_failure_count").and_then(|text| text.parse().ok()).unwrap_or_default(),
        mac: mac(text("perm_hwaddr")),
        // An interface that is down refuses, and one without a speed says -1.
        speed_mbps: sysfs.number::<i64>(&at(&interface, "speed")).and_then(|speed| u32::try_from(speed).ok()),
        lacp: lacp.then(|| MemberLacp {
            aggregator: text("ad_aggregator_id").and_then(|text| text.parse().ok()),
            partner: told.and_then(|told| partner(told, &interface)),
            actor_state,
            partner_state,
            carries: actor_state & partner_state & CARRIES == CARRIES,
        }),
        interface,
    }
}

/// The partner's address on a member's link (drivers/net/bonding/bond_procfs.c, `bond_info_show_slave`).
fn partner(told: &str, interface: &str) -> Option<MacAddress> {
    let own = told.split("Slave Interface: ").find(|part| part.lines().next().map(str::trim) == Some(interface))?;
    let (_, behind) = own.split_once("details partner lacp pdu:")?;
    let line = behind.lines().find_map(|line| line.trim().strip_prefix("system mac address: "))?;
    mac(Some(line.trim().into()))
}

/// All bonds of this host, by name.
pub(crate) fn all(host: &Host) -> Vec<Bond> {
    names(&host.sysfs).iter().filter_map(|name| read(host, name)).collect()
}

/// One bond.
pub(crate) fn get(host: &Host, name: &str) -> Result<Bond, Error> {
    super::check_name(name)?;
    read(host, name).ok_or_else(|| {
        let known = names(&host.sysfs).join(", ");
        let known = if known.is_empty() { "there is none".into() } else { format!("there are {known}") };
        let what =
            if host.sysfs.has(&at(name, "")) { "is an interface, and no bond" } else { "is no bond of this host" };
        Error::new(ErrorKind::NotFound, format!("{name} {what}: {known}")).about(name)
    })
}

impl Bond {
    /// What it hashes, where that is a policy of the API's.
    pub(super) fn hash(&self) -> Option<HashPolicy> {
        self.hash_policy.as_deref().and_then(word)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_members_partner_is_read_from_what_the_kernel_tells_root() {
        let told = "Bonding Mode: IEEE 802.3ad Dynamic link aggregation\n\n802.3ad info\nPartner Mac Address: 0c:42:a1:00:00:01\n\n\
            Slave Interface: eth0\nMII Status: up\ndetails actor lacp pdu:\n    system mac address: 02:00:00:00:00:01\n\
            details partner lacp pdu:\n    system priority: 65535\n    system mac address: 0c:42:a1:00:00:01\n\n\
            Slave Interface: eth01\nMII Status: up\ndetails partner lacp pdu:\n    system mac address: 00:00:00:00:00:00\n";
        assert_eq!(partner(told, "eth0"), Some("0c:42:a1:00:00:01".parse().unwrap()));
        assert_eq!(partner(told, "eth01"), None);
        assert_eq!(partner(told, "eth2"), None);
    }

    #[test]
    fn the_kernels_words_are_the_apis() {
        assert_eq!(word("slow 0"), Some(LacpRate::Slow));
        assert_eq!(word("layer3+4 1"), Some(HashPolicy::Layer34));
        assert_eq!(word::<HashPolicy>("vlan+srcmac 5"), None);
    }
}
