//! What a driver says of itself: the one question that has no netlink message, so that it is an ioctl (ETHTOOL_GDRVINFO).
//!
//! # Invariants
//! The structure that the kernel fills is a buffer of its exact size, which outlives the call.

use std::io;
use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};

use super::NetlinkError;
use super::socket::text;

const ETHTOOL_GDRVINFO: u32 = 3;
/// struct ethtool_drvinfo: the command, five texts of 32 bytes, 12 reserved ones, five numbers.
const SIZE: usize = 4 + 5 * 32 + 12 + 5 * 4;

/// What a driver says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct DriverInfo {
    /// Its version, which is the kernel's for drivers that came with it.
    pub version: Option<String>,
    /// The firmware's.
    pub firmware: Option<String>,
}

pub(super) fn driver(interface: &str) -> Result<DriverInfo, NetlinkError> {
    let failed = |source| NetlinkError::Socket { doing: "asking the driver", source };
    let open = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
    let socket = open.map_err(|errno| failed(errno.into()))?;
    let mut info = [0u32; SIZE / 4];
    info[0] = ETHTOOL_GDRVINFO;
    // SAFETY: all zeroes is a value of this plain C structure.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(NetlinkError::Refused { errno: libc::ENODEV, said: None });
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from as libc::c_char;
    }
    request.ifr_ifru.ifru_data = info.as_mut_ptr().cast();
    // SAFETY: the name ends with a zero; the kernel writes struct ethtool_drvinfo, SIZE bytes, into `info`, which has as many.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &mut request) };
    if result < 0 {
        let errno = io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
        return Err(NetlinkError::Refused { errno, said: None });
    }
    let bytes: Vec<u8> = info.iter().flat_map(|word| word.to_ne_bytes()).collect();
    // Behind the command and the driver's name: version, then firmware.
    let part =
        |number: usize| Some(text(&bytes[4 + 32 * number..][..32])).filter(|text| !text.is_empty() && text != "N/A");
    Ok(DriverInfo { version: part(1), firmware: part(2) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_that_is_missing_or_has_too_long_a_name_is_refused() {
        assert_eq!(driver("no-such-if").unwrap_err().errno(), Some(libc::ENODEV));
        assert!(driver("a-name-longer-than-any-interface-has").is_err());
    }
}
