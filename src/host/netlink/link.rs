//! A PF's settings of its VFs, by rtnetlink (linux/if_link.h, IFLA_VFINFO_LIST; net/core/rtnetlink.c).

use netlink_sys::protocols::NETLINK_ROUTE;
use ringspan_protocol::MacAddress;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::NetlinkError;
use super::guid::Guid;
use super::request::Request;
use super::socket::{Channel, Want};
use crate::ovs::kernel::attribute::attributes;

const RTM_GETLINK: u16 = 18;
const RTM_SETLINK: u16 = 19;
/// struct ifinfomsg.
const INFO: usize = 16;

const IFLA_NUM_VF: u16 = 21;
const IFLA_VFINFO_LIST: u16 = 22;
const IFLA_EXT_MASK: u16 = 29;
const RTEXT_FILTER_VF: u32 = 1;
const RTEXT_FILTER_SKIP_STATS: u32 = 8;

const IFLA_VF_INFO: u16 = 1;
const IFLA_VF_MAC: u16 = 1;
const IFLA_VF_VLAN: u16 = 2;
const IFLA_VF_SPOOFCHK: u16 = 4;
const IFLA_VF_LINK_STATE: u16 = 5;
const IFLA_VF_RATE: u16 = 6;
const IFLA_VF_STATS: u16 = 8;
const IFLA_VF_TRUST: u16 = 9;
const IFLA_VF_IB_NODE_GUID: u16 = 10;
const IFLA_VF_IB_PORT_GUID: u16 = 11;

const IFLA_VF_STATS_RX_PACKETS: u16 = 0;
const IFLA_VF_STATS_TX_PACKETS: u16 = 1;
const IFLA_VF_STATS_RX_BYTES: u16 = 2;
const IFLA_VF_STATS_TX_BYTES: u16 = 3;
const IFLA_VF_STATS_RX_DROPPED: u16 = 7;
const IFLA_VF_STATS_TX_DROPPED: u16 = 8;

/// Bytes of an attribute's header, of which attributes are multiples (struct nlattr).
const ATTRIBUTE: usize = 4;
/// Bytes of an address in IFLA_VF_MAC (MAX_ADDR_LEN).
const ADDRESS: usize = 32;
/// What the kernel fills in where a driver has no such setting: all ones.
const ABSENT: u32 = u32::MAX;

/// Whether a VF has a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum VfLinkState {
    /// As the PF has.
    Auto,
    /// Always: VFs of one PF reach each other.
    Enable,
    /// Never.
    Disable,
}

/// What a PF has set for a VF. What the driver has no setting for is absent.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
pub(crate) struct VfSettings {
    /// The VF's number.
    pub vf: u32,
    /// Its MAC address; absent: none was given to it, or the link is InfiniBand.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Its VLAN; 0: none.
    pub vlan: u16,
    /// Priority of that VLAN.
    pub qos: u8,
    /// Least rate from the guest, in Mbit/s; 0: none is kept for it.
    pub min_rate: u32,
    /// Most rate from the guest, in Mbit/s; 0: as much as there is.
    pub max_rate: u32,
    /// Whether frames with other source addresses are dropped.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and receive everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// Whether it has a link. On InfiniBand this is the policy: `auto` follows, `enable` is up, `disable` is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_state: Option<VfLinkState>,
    /// Its node's GUID, on InfiniBand; absent: none was given to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_guid: Option<Guid>,
    /// Its port's GUID, on InfiniBand; absent: none was given to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_guid: Option<Guid>,
}

/// What a PF's driver counted of a VF, as the VF sees it (`ndo_get_vf_stats`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct VfCounters {
    /// Frames that it received.
    pub rx_packets: u64,
    /// Frames that it sent.
    pub tx_packets: u64,
    /// Bytes of those received.
    pub rx_bytes: u64,
    /// Bytes of those sent.
    pub tx_bytes: u64,
    /// Frames for it that did not get there.
    pub rx_dropped: u64,
    /// Frames of it that did not get further.
    pub tx_dropped: u64,
}

/// One setting of a VF.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VfChange {
    /// Its MAC address.
    Mac(MacAddress),
    /// VLAN and priority; 0: none.
    Vlan(u16, u8),
    /// Least and most rate, in Mbit/s.
    Rate(u32, u32),
    /// Spoof check.
    SpoofCheck(bool),
    /// Trust.
    Trust(bool),
    /// Link state.
    LinkState(VfLinkState),
    /// The node's GUID.
    NodeGuid(Guid),
    /// The port's GUID.
    PortGuid(Guid),
}

pub(super) fn about(index: u32) -> Request {
    let mut info = [0; INFO];
    info[4..8].copy_from_slice(&index.to_ne_bytes());
    Request::new(&info)
}

pub(super) fn vfs(index: u32) -> Result<Vec<VfSettings>, NetlinkError> {
    let mut request = about(index);
    request.put_u32(IFLA_EXT_MASK, RTEXT_FILTER_VF | RTEXT_FILTER_SKIP_STATS);
    let mut found = vec![];
    Channel::open(NETLINK_ROUTE)?.ask(RTM_GETLINK, Want::One, &request, |body| {
        found = read(body.get(INFO..).unwrap_or_default(), settings)?;
        Ok(())
    })?;
    Ok(found)
}

/// The kernel tells those of all of this link's VFs, and zeros for a driver that counts none: those are no counters.
pub(super) fn vf_counters(index: u32, vf: u32) -> Result<Option<VfCounters>, NetlinkError> {
    let mut request = about(index);
    request.put_u32(IFLA_EXT_MASK, RTEXT_FILTER_VF);
    let mut found = vec![];
    Channel::open(NETLINK_ROUTE)?.ask(RTM_GETLINK, Want::One, &request, |body| {
        found = read(body.get(INFO..).unwrap_or_default(), counters)?;
        Ok(())
    })?;
    let mine = found.into_iter().find(|(number, _)| *number == vf);
    Ok(mine.map(|(_, counters)| counters).filter(|counters| *counters != VfCounters::default()))
}

/// The VFs in a link's attributes. One that the driver does not tell of is not in the list (`rtnl_fill_vfinfo`). The list's own length has 16 bits
/// and has begun anew where some 220 VFs are in it (`nla_nest_end`; iproute2 says "Truncated VF list" then): the list goes on behind its end for as
/// long as VFs are missing by their number, which is told before, and what follows is a VF.
fn read<T>(link: &[u8], vf: impl Fn(&[u8]) -> Result<Option<T>, NetlinkError>) -> Result<Vec<T>, NetlinkError> {
    let (mut found, mut count, mut rest) = (vec![], 0, link);
    while let Some(attribute) = attributes(rest).next() {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_NUM_VF => {
                count = attribute.value.first_chunk::<4>().map_or(0, |bytes| u32::from_ne_bytes(*bytes)) as usize;
            }
            IFLA_VFINFO_LIST => {
                let mut at = 0;
                for info in attributes(rest.get(ATTRIBUTE..).unwrap_or_default()) {
                    let inside = at < attribute.value.len();
                    if !inside && found.len() >= count {
                        break;
                    }
                    let info = info?;
                    let one = if info.kind == IFLA_VF_INFO { vf(info.value) } else { Ok(None) };
                    match one {
                        Ok(Some(one)) => found.push(one),
                        Ok(None) if inside => {}
                        Err(error) if inside => return Err(error),
                        // Another attribute of the link.
                        _ => break,
                    }
                    at += (ATTRIBUTE + info.value.len()).next_multiple_of(ATTRIBUTE);
                }
                // What follows has nothing for us.
                return Ok(found);
            }
            _ => {}
        }
        rest = rest.get((ATTRIBUTE + attribute.value.len()).next_multiple_of(ATTRIBUTE)..).unwrap_or_default();
    }
    Ok(found)
}

/// One VF: each of its attributes begins with its number.
fn settings(info: &[u8]) -> Result<Option<VfSettings>, NetlinkError> {
    let (mut found, mut settings) = (false, VfSettings::default());
    for attribute in attributes(info) {
        let attribute = attribute?;
        let word = |number: usize| {
            let bytes = attribute.value.get(4 * number..)?.first_chunk::<4>()?;
            Some(u32::from_ne_bytes(*bytes))
        };
        let switch = || word(1).filter(|value| *value != ABSENT).map(|value| value != 0);
        match attribute.kind {
            IFLA_VF_MAC => {
                found = true;
                settings.vf = word(0).unwrap_or_default();
                let mac = attribute.value.get(4..).and_then(|bytes| bytes.first_chunk::<6>());
                settings.mac = mac.filter(|mac| **mac != [0; 6]).map(|mac| MacAddress(*mac));
            }
            IFLA_VF_VLAN => {
                settings.vlan = word(1).unwrap_or_default() as u16;
                settings.qos = word(2).unwrap_or_default() as u8;
            }
            IFLA_VF_RATE => {
                settings.min_rate = word(1).unwrap_or_default();
                settings.max_rate = word(2).unwrap_or_default();
            }
            IFLA_VF_SPOOFCHK => settings.spoof_check = switch(),
            IFLA_VF_TRUST => settings.trust = switch(),
            IFLA_VF_LINK_STATE => {
                settings.link_state = match word(1) {
                    Some(0) => Some(VfLinkState::Auto),
                    Some(1) => Some(VfLinkState::Enable),
                    Some(2) => Some(VfLinkState::Disable),
                    _ => None,
                }
            }
            IFLA_VF_IB_NODE_GUID => settings.node_guid = guid(attribute.value),
            IFLA_VF_IB_PORT_GUID => settings.port_guid = guid(attribute.value),
            _ => {}
        }
    }
    Ok(found.then_some(settings))
}

/// One VF's number, and what was counted of it.
fn counters(info: &[u8]) -> Result<Option<(u32, VfCounters)>, NetlinkError> {
    let (mut vf, mut found) = (None, VfCounters::default());
    for attribute in attributes(info) {
        let attribute = attribute?;
        match attribute.kind {
            IFLA_VF_MAC => vf = attribute.value.first_chunk::<4>().map(|bytes| u32::from_ne_bytes(*bytes)),
            IFLA_VF_STATS => {
                for one in attributes(attribute.value) {
                    let one = one?;
                    let value = one.value.first_chunk::<8>().map_or(0, |bytes| u64::from_ne_bytes(*bytes));
                    match one.kind {
                        IFLA_VF_STATS_RX_PACKETS => found.rx_packets = value,
                        IFLA_VF_STATS_TX_PACKETS => found.tx_packets = value,
                        IFLA_VF_STATS_RX_BYTES => found.rx_bytes = value,
                        IFLA_VF_STATS_TX_BYTES => found.tx_bytes = value,
                        IFLA_VF_STATS_RX_DROPPED => found.rx_dropped = value,
                        IFLA_VF_STATS_TX_DROPPED => found.tx_dropped = value,
                        _ => {}
                    }
                }
            }
            _ => {}
        }
    }
    Ok(vf.map(|vf| (vf, found)))
}

/// The number in a struct ifla_vf_guid, which begins at a multiple of eight behind the VF's number.
fn guid(value: &[u8]) -> Option<Guid> {
    let number = u64::from_ne_bytes(*value.get(8..)?.first_chunk::<8>()?);
    (number != 0).then_some(Guid(number))
}

pub(super) fn set_vf(index: u32, vf: u32, change: VfChange) -> Result<(), NetlinkError> {
    let (kind, value) = value(vf, change);
    let mut request = about(index);
    request.nest(IFLA_VFINFO_LIST, |list| {
        list.nest(IFLA_VF_INFO, |info| {
            info.put(kind, &value);
        });
    });
    Channel::open(NETLINK_ROUTE)?.ask(RTM_SETLINK, Want::One, &request, |_| Ok(()))
}

/// The attribute of a change: struct ifla_vf_mac and its like.
fn value(vf: u32, change: VfChange) -> (u16, Vec<u8>) {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
    match change {
        VfChange::Mac(mac) => {
            let mut value = words(&[vf]);
            value.extend(mac.0);
            value.resize(4 + ADDRESS, 0);
            (IFLA_VF_MAC, value)
        }
        VfChange::Vlan(vlan, qos) => (IFLA_VF_VLAN, words(&[vf, vlan.into(), qos.into()])),
        VfChange::Rate(min, max) => (IFLA_VF_RATE, words(&[vf, min, max])),
        VfChange::SpoofCheck(on) => (IFLA_VF_SPOOFCHK, words(&[vf, on.into()])),
        VfChange::Trust(on) => (IFLA_VF_TRUST, words(&[vf, on.into()])),
        VfChange::LinkState(state) => (IFLA_VF_LINK_STATE, words(&[vf, state as u32])),
        VfChange::NodeGuid(guid) => (IFLA_VF_IB_NODE_GUID, [words(&[vf, 0]), guid.0.to_ne_bytes().into()].concat()),
        VfChange::PortGuid(guid) => (IFLA_VF_IB_PORT_GUID, [words(&[vf, 0]), guid.0.to_ne_bytes().into()].concat()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A VF as the kernel tells it (rtnl_fill_vfinfo), made of the attributes that it is set with.
    fn told(vf: u32, changes: &[VfChange]) -> Vec<u8> {
        let mut request = Request::default();
        request.put_u32(IFLA_NUM_VF, 1).nest(IFLA_VFINFO_LIST, |list| {
            list.nest(IFLA_VF_INFO, |info| {
                for change in changes {
                    let (kind, value) = value(vf, *change);
                    info.put(kind, &value);
                }
            });
        });
        request.message(0, 0, 0)[super::super::request::HEADER..].to_vec()
    }

    #[test]
    fn what_is_set_reads_back() {
        let mac: MacAddress = "52:54:00:00:00:07".parse().unwrap();
        let changes = [
            VfChange::Mac(mac),
            VfChange::Vlan(100, 3),
            VfChange::Rate(10, 2000),
            VfChange::SpoofCheck(true),
            VfChange::Trust(false),
            VfChange::LinkState(VfLinkState::Disable),
            VfChange::NodeGuid(Guid(0x0001_5254_0000_0007)),
            VfChange::PortGuid(Guid(0x0010_5254_0000_0007)),
        ];
        let wanted = VfSettings {
            vf: 7,
            mac: Some(mac),
            vlan: 100,
            qos: 3,
            min_rate: 10,
            max_rate: 2000,
            spoof_check: Some(true),
            trust: Some(false),
            link_state: Some(VfLinkState::Disable),
            node_guid: Some(Guid(0x0001_5254_0000_0007)),
            port_guid: Some(Guid(0x0010_5254_0000_0007)),
        };
        assert_eq!(read(&told(7, &changes), settings).unwrap(), [wanted]);
    }

    #[test]
    fn what_the_driver_does_not_have_is_absent() {
        let mut bytes = told(1, &[VfChange::Mac(MacAddress([0; 6])), VfChange::SpoofCheck(true)]);
        let end = bytes.len();
        bytes[end - 4..].copy_from_slice(&ABSENT.to_ne_bytes());
        let read = read(&bytes, settings).unwrap();
        assert_eq!((read[0].vf, read[0].mac, read[0].spoof_check), (1, None, None));
    }

    #[test]
    fn a_list_that_is_cut_is_an_error_and_no_shorter_list() {
        let bytes = told(1, &[VfChange::Mac(MacAddress([2, 0, 0, 0, 0, 1]))]);
        assert!(read(&bytes[..bytes.len() - 8], settings).is_err());
    }

    #[test]
    fn a_vf_that_the_driver_does_not_tell_of_is_left_out_and_the_others_are_read() {
        let mut link = Request::default();
        link.put_u32(IFLA_NUM_VF, 3).nest(IFLA_VFINFO_LIST, |list| {
            for vf in [0, 2] {
                list.nest(IFLA_VF_INFO, |info| {
                    let (kind, value) = value(vf, VfChange::Mac(MacAddress([2, 0, 0, 0, 0, vf as u8])));
                    info.put(kind, &value);
                });
            }
            // One without an address says nothing of which VF it is of.
            list.nest(IFLA_VF_INFO, |_| {});
        });
        // What the kernel tells of the link behind it, one with the number of a VF among it.
        for (kind, value) in [(IFLA_VF_INFO, &[2, 0, 0, 0, 0, 9][..]), (43, &[8, 0, 2, 0, 0, 0, 0, 0]), (50, &[1; 6])] {
            let mut link = link.clone();
            link.put(kind, value).put(51, &[7; 8]);
            let found = read(&link.message(0, 0, 0)[super::super::request::HEADER..], settings).unwrap();
            assert_eq!(found.iter().map(|one| one.vf).collect::<Vec<_>>(), [0, 2], "before attribute {kind}");
        }
    }

    #[test]
    fn more_vfs_than_the_lists_length_can_count_are_all_read() {
        const COUNT: u32 = 250;
        let mut list = vec![];
        for vf in 0..COUNT {
            let mut one = Request::default();
            one.nest(IFLA_VF_INFO, |info| {
                for change in [VfChange::Mac(MacAddress([2, 0, 0, 0, 0, vf as u8])), VfChange::Vlan(vf as u16, 0)] {
                    let (kind, value) = value(vf, change);
                    info.put(kind, &value);
                }
                // What else the kernel tells of each.
                info.put(99, &[0; 220]);
            });
            list.extend(&one.message(0, 0, 0)[super::super::request::HEADER..]);
        }
        assert!(list.len() > 1 << 16);
        let mut link = Request::default();
        link.put_u32(IFLA_NUM_VF, COUNT);
        let mut link = link.message(0, 0, 0)[super::super::request::HEADER..].to_vec();
        link.extend(((ATTRIBUTE + list.len()) as u16).to_ne_bytes());
        link.extend(IFLA_VFINFO_LIST.to_ne_bytes());
        link.extend(&list);
        let whole = link.len();
        link.extend([8, 0, 50, 0, 1, 2, 3, 4]);
        let found = read(&link, settings).unwrap();
        assert_eq!(found.len(), 250);
        assert_eq!((found[249].vf, found[249].vlan), (249, 249));
        assert!(read(&link[..whole - 300], settings).is_err(), "one VF is cut off");
    }

    #[test]
    fn what_was_counted_of_each_vf_is_told_apart() {
        let mut link = Request::default();
        link.put_u32(IFLA_NUM_VF, 2).nest(IFLA_VFINFO_LIST, |list| {
            for vf in [0_u8, 1] {
                list.nest(IFLA_VF_INFO, |info| {
                    let (kind, value) = value(vf.into(), VfChange::Mac(MacAddress([2, 0, 0, 0, 0, vf])));
                    info.put(kind, &value);
                    info.nest(IFLA_VF_STATS, |stats| {
                        // linux/if_link.h; 6 fills up to a multiple of eight.
                        for (kind, value) in
                            [(0, 10_u64), (1, 20), (2, 30), (3, 40), (4, 50), (5, 60), (7, 70), (8, 80)]
                        {
                            stats.put(kind, &(value + u64::from(vf)).to_ne_bytes()).put(6, &[]);
                        }
                    });
                });
            }
        });
        let found = read(&link.message(0, 0, 0)[super::super::request::HEADER..], counters).unwrap();
        let second =
            VfCounters { rx_packets: 11, tx_packets: 21, rx_bytes: 31, tx_bytes: 41, rx_dropped: 71, tx_dropped: 81 };
        assert_eq!((found.len(), found[1]), (2, (1, second)));
        assert_eq!(vf_counters(1, 0).unwrap(), None, "the loopback has no functions");
    }

    #[test]
    fn the_loopback_has_no_functions_and_a_missing_link_is_said() {
        assert_eq!(vfs(1).unwrap(), []);
        assert_eq!(vfs(0x7fff_fff0).unwrap_err().errno(), Some(libc::ENODEV));
    }
}
