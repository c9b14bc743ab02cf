//! One feature of an interface, `hw-tc-offload`, by ethtool's netlink family (Documentation/networking/ethtool-netlink.rst).

use netlink_sys::protocols::NETLINK_GENERIC;

use super::NetlinkError;
use super::request::Request;
use super::socket::{Channel, Want, text};
use crate::ovs::kernel::attribute::{attributes, find};

const FEATURES_GET: u8 = 11;
const FEATURES_SET: u8 = 12;
const VERSION: u8 = 1;
/// struct genlmsghdr.
const GENERIC: usize = 4;

const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;
const HEADER_DEV_INDEX: u16 = 1;
const BITSET_BITS: u16 = 3;
const BITSET_BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

const HW_TC_OFFLOAD: &str = "hw-tc-offload";

fn request(command: u8, index: u32) -> Request {
    let mut request = Request::new(&[command, VERSION, 0, 0]);
    request.nest(FEATURES_HEADER, |header| {
        header.put_u32(HEADER_DEV_INDEX, index);
    });
    request
}

pub(super) fn tc_offload(index: u32) -> Result<bool, NetlinkError> {
    let mut channel = Channel::open(NETLINK_GENERIC)?;
    let family = channel.family("ethtool")?;
    let mut on = false;
    channel.ask(family, Want::One, &request(FEATURES_GET, index), |body| {
        on = is_active(body.get(GENERIC..).unwrap_or_default())?;
        Ok(())
    })?;
    Ok(on)
}

/// The active features are a list of names without values: what is in it is on.
fn is_active(body: &[u8]) -> Result<bool, NetlinkError> {
    let active = find(body, FEATURES_ACTIVE)?.ok_or(NetlinkError::Missing { what: "list of active features" })?;
    let Some(bits) = find(active, BITSET_BITS)? else { return Ok(false) };
    for bit in attributes(bits) {
        if find(bit?.value, BIT_NAME)?.is_some_and(|name| text(name) == HW_TC_OFFLOAD) {
            return Ok(true);
        }
    }
    Ok(false)
}

pub(super) fn set_tc_offload(index: u32, on: bool) -> Result<(), NetlinkError> {
    let mut channel = Channel::open(NETLINK_GENERIC)?;
    let family = channel.family("ethtool")?;
    let mut request = request(FEATURES_SET, index);
    request.nest(FEATURES_WANTED, |wanted| {
        wanted.nest(BITSET_BITS, |bits| {
            bits.nest(BITSET_BITS_BIT, |bit| {
                bit.put_text(BIT_NAME, HW_TC_OFFLOAD);
                if on {
                    bit.put(BIT_VALUE, &[]);
                }
            });
        });
    });
    channel.ask(family, Want::One, &request, |_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_real_loopback_does_not_offload_and_cannot() {
        assert!(!tc_offload(1).unwrap());
        assert!(tc_offload(0x7fff_fff0).is_err());
    }

    #[test]
    fn a_feature_is_on_when_the_active_ones_name_it() {
        let with = |names: &[&str]| {
            let mut bytes = Request::default();
            bytes.nest(FEATURES_ACTIVE, |active| {
                active.nest(BITSET_BITS, |bits| {
                    for name in names {
                        bits.nest(BITSET_BITS_BIT, |bit| {
                            bit.put_text(BIT_NAME, name);
                        });
                    }
                });
            });
            is_active(&bytes.message(0, 0, 0)[super::super::request::HEADER..]).unwrap()
        };
        assert!(with(&["rx-checksum", "hw-tc-offload"]));
        assert!(!with(&["rx-checksum", "hw-tc-offload-x"]) && !with(&[]));
    }
}
