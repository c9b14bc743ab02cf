//! Links that are made, joined and taken away, by rtnetlink (linux/if_link.h, IFLA_BOND_*; drivers/net/bonding/bond_netlink.c).

use netlink_sys::protocols::NETLINK_ROUTE;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NetlinkError;
use super::link::about;
use super::request::Request;
use super::socket::{Channel, Want};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_SETLINK: u16 = 19;
/// struct ifinfomsg: where its flags and the mask of them are, and IFF_UP.
const INFO: usize = 16;
const FLAGS: usize = 8;
const CHANGE: usize = 12;
const IFF_UP: u32 = 1;

const IFLA_IFNAME: u16 = 3;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_BOND_MODE: u16 = 1;
const IFLA_BOND_MIIMON: u16 = 3;
const IFLA_BOND_XMIT_HASH_POLICY: u16 = 14;
const IFLA_BOND_AD_LACP_RATE: u16 = 21;

/// How a bond uses its members.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum BondMode {
    /// One sends, the others wait: mode 1.
    #[serde(rename = "active-backup")]
    ActiveBackup = 1,
    /// Each sends what a hash gives it: mode 2.
    #[serde(rename = "balance-xor")]
    BalanceXor = 2,
    /// As the switch agrees by LACP: mode 4.
    #[serde(rename = "802.3ad")]
    Lacp = 4,
}

/// What a bond hashes to choose a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) enum HashPolicy {
    /// MAC addresses.
    #[serde(rename = "layer2")]
    Layer2 = 0,
    /// IP addresses and ports.
    #[serde(rename = "layer3+4")]
    Layer34 = 1,
    /// MAC and IP addresses.
    #[serde(rename = "layer2+3")]
    Layer23 = 2,
    /// MAC and IP addresses, of what is inside of a tunnel.
    #[serde(rename = "encap2+3")]
    Encap23 = 3,
    /// IP addresses and ports, of what is inside of a tunnel.
    #[serde(rename = "encap3+4")]
    Encap34 = 4,
}

/// How often the partner is asked to speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum LacpRate {
    /// Each 30 s.
    Slow = 0,
    /// Each second.
    Fast = 1,
}

/// A bond's options; what is absent stays, or is the kernel's default.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct BondOptions {
    /// Only while it is down and has no members.
    pub mode: Option<BondMode>,
    /// How often links are looked at, in milliseconds; 0: never.
    pub miimon: Option<u32>,
    /// Not in active-backup.
    pub hash_policy: Option<HashPolicy>,
    /// In 802.3ad only, and only while it is down.
    pub lacp_rate: Option<LacpRate>,
}

/// A change of links.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LinkChange<'a> {
    /// A bond is made with this index, which no interface has. It is down.
    MakeBond(&'a str, u32, BondOptions),
    /// A bond's options.
    SetBond(u32, BondOptions),
    /// A link is taken away: a bond, whose members it lets go of.
    Remove(u32),
    /// A link, which is down, becomes a member of a bond; 0: of none.
    Master(u32, u32),
    /// A link is up, or down.
    Up(u32, bool),
}

/// What names the kind of a link, and its options.
fn link_info(request: &mut Request, options: BondOptions) {
    request.nest(IFLA_LINKINFO, |info| {
        info.put(IFLA_INFO_KIND, b"bond");
        info.nest(IFLA_INFO_DATA, |data| {
            // The mode first: the kernel takes them in the order of its own, and checks the others by it.
            if let Some(mode) = options.mode {
                data.put(IFLA_BOND_MODE, &[mode as u8]);
            }
            if let Some(miimon) = options.miimon {
                data.put_u32(IFLA_BOND_MIIMON, miimon);
            }
            if let Some(policy) = options.hash_policy {
                data.put(IFLA_BOND_XMIT_HASH_POLICY, &[policy as u8]);
            }
            if let Some(rate) = options.lacp_rate {
                data.put(IFLA_BOND_AD_LACP_RATE, &[rate as u8]);
            }
        });
    });
}

pub(super) fn change(change: &LinkChange<'_>) -> Result<(), NetlinkError> {
    let (kind, want, request) = match *change {
        LinkChange::MakeBond(name, index, options) => {
            let mut request = about(index);
            request.put_text(IFLA_IFNAME, name);
            link_info(&mut request, options);
            (RTM_NEWLINK, Want::New, request)
        }
        LinkChange::SetBond(index, options) => {
            let mut request = about(index);
            link_info(&mut request, options);
            (RTM_NEWLINK, Want::One, request)
        }
        LinkChange::Remove(index) => (RTM_DELLINK, Want::One, about(index)),
        LinkChange::Master(index, bond) => {
            let mut request = about(index);
            request.put_u32(IFLA_MASTER, bond);
            (RTM_SETLINK, Want::One, request)
        }
        LinkChange::Up(index, up) => {
            let mut info = [0; INFO];
            info[4..8].copy_from_slice(&index.to_ne_bytes());
            info[FLAGS..CHANGE].copy_from_slice(&(if up { IFF_UP } else { 0 }).to_ne_bytes());
            info[CHANGE..].copy_from_slice(&IFF_UP.to_ne_bytes());
            (RTM_SETLINK, Want::One, Request::new(&info))
        }
    };
    Channel::open(NETLINK_ROUTE)?.ask(kind, want, &request, |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_that_is_missing_is_refused_in_the_kernels_words() {
        let missing = 0x7fff_fff0;
        for asked in [LinkChange::Up(missing, true), LinkChange::Master(missing, 0), LinkChange::Remove(missing)] {
            let errno = change(&asked).unwrap_err().errno();
            // Who may not change links hears of that first.
            assert!(matches!(errno, Some(libc::ENODEV | libc::EPERM)), "{asked:?}: {errno:?}");
        }
    }
}
