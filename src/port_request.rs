//! A port as people ask for it, in a `[[port]]` table or in `port.add`: names instead of numbers, and defaults.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::unistd::{Gid, Group, Uid, User};
use ringspan_protocol::{
    Compat, DeviceSpec, LaneName, MAX_QUEUE_PAIRS, MAX_RATE, MTU_RANGE, MacAddress, Mode, Policy, PortName, PortSpec,
    Role, ZeroCopy,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// Longest path of a unix socket in bytes: `sun_path` has 108, the last one is 0.
pub(crate) const MAX_SOCKET_PATH: usize = 107;

fn one() -> u16 {
    1
}

fn yes() -> bool {
    true
}

fn is_zero(number: &u32) -> bool {
    *number == 0
}

fn default_mtu() -> u16 {
    1500
}

/// A port as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct PortRequest {
    /// The port's name.
    pub name: PortName,
    /// Absolute path of the vhost-user socket, 107 bytes at most.
    pub socket: PathBuf,
    /// Which side listens: `server`: ringspan does; `client`: the front-end does.
    #[serde(default)]
    pub role: Role,
    /// What the port is bridged to.
    pub device: DeviceSpec,
    /// Queues of the device in each direction, 1 to 32.
    #[serde(default = "one")]
    #[schemars(range(min = 1, max = 32))]
    pub queues: u16,
    /// Largest frame without its Ethernet header, in bytes.
    #[serde(default = "default_mtu")]
    #[schemars(range(min = 68, max = 9216))]
    pub mtu: u16,
    /// The device's MAC address; the device's own when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Receive every unicast frame.
    #[serde(default)]
    pub promiscuous: Policy,
    /// Receive every multicast frame.
    #[serde(default)]
    pub allmulti: Policy,
    /// Owner of the listening socket as `user:group`, by name or number; `user` alone takes that user's own group.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_owner: Option<String>,
    /// Permission bits of the listening socket, octal, as text: `"0660"`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket_mode: Option<String>,
    /// The set of virtio features the port offers; the latest when absent, and from then on the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub compat: Option<Compat>,
    /// Offer the guest checksum and segmentation offloads. What the device cannot do of them is done in software.
    #[serde(default = "yes")]
    pub offloads: bool,
    /// Whether the device reads large frames where the guest wrote them.
    #[serde(default)]
    pub zero_copy: ZeroCopy,
    /// Least length in bytes of a frame that is not copied then; by the kind of device when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zero_copy_from: Option<u16>,
    /// Most in each direction, in Mbit/s; 0: no limit. What the guest sends beyond it waits in its rings, what it should receive is dropped.
    #[serde(default, skip_serializing_if = "is_zero")]
    #[schemars(range(max = 1_000_000))]
    pub max_rate: u32,
    /// Who moves the packets, where the device is a vDPA device: it (`vdpa`), a worker (`relay`), or it where it can (`auto`).
    #[serde(default)]
    pub mode: Mode,
    /// The lane that carries it; the one with the fewest ports when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<LaneName>,
}

impl PortRequest {
    /// Checks every value and resolves names: what a lane is told. `pinned` is the feature set the port had before.
    pub(crate) fn spec(&self, pinned: Option<Compat>) -> Result<PortSpec, Error> {
        let bad =
            |what: String| Error::new(ErrorKind::Invalid, format!("port {}: {what}", self.name)).about(&self.name);
        check_socket(&self.socket).map_err(bad)?;
        if !(1..=MAX_QUEUE_PAIRS).contains(&self.queues) {
            return Err(bad(format!("queues is {}: a port has 1 to {MAX_QUEUE_PAIRS}", self.queues)));
        }
        check_mtu(self.mtu).map_err(bad)?;
        check_rate(self.max_rate).map_err(bad)?;
        if self.mode == Mode::Vdpa && !matches!(self.device, DeviceSpec::VhostVdpa { .. } | DeviceSpec::Vdpa { .. }) {
            return Err(bad(format!(
                "mode is vdpa and the device {}: name a vhost-vdpa:/dev/vhost-vdpa-N, or a vdpa:0000:0a:00.2",
                self.device
            )));
        }
        let mac = self.mac.map(MacAddress::unicast).transpose().map_err(|error| bad(format!("mac: {error}")))?;
        let owner = self.socket_owner.as_deref().map(parse_owner).transpose().map_err(bad)?;
        let mode = self.socket_mode.as_deref().map(parse_mode).transpose().map_err(bad)?;
        if self.role == Role::Client && (owner.is_some() || mode.is_some()) {
            return Err(bad("socket_owner and socket_mode are for role server: the front-end owns the socket".into()));
        }
        Ok(PortSpec {
            name: self.name.clone(),
            socket: self.socket.clone(),
            role: self.role,
            device: self.device.clone(),
            queues: self.queues,
            mtu: self.mtu,
            mac,
            promiscuous: self.promiscuous,
            allmulti: self.allmulti,
            socket_owner: owner,
            socket_mode: mode,
            compat: self.compat.or(pinned).unwrap_or(Compat::LATEST),
            offloads: self.offloads,
            zero_copy: self.zero_copy,
            zero_copy_from: self.zero_copy_from,
            max_rate: self.max_rate,
            mode: self.mode,
        })
    }
}

/// Refuses an MTU that no port can have.
pub(crate) fn check_mtu(mtu: u16) -> Result<(), String> {
    let (least, most) = MTU_RANGE.into_inner();
    if MTU_RANGE.contains(&mtu) { Ok(()) } else { Err(format!("mtu is {mtu}: it must be {least} to {most}")) }
}

/// Refuses a rate that no port can have.
pub(crate) fn check_rate(mbit: u32) -> Result<(), String> {
    if mbit <= MAX_RATE { Ok(()) } else { Err(format!("max_rate is {mbit}: it is at most {MAX_RATE} Mbit/s")) }
}

/// Refuses a path at which no unix socket can be.
pub(crate) fn check_socket(path: &Path) -> Result<(), String> {
    let bytes = path.as_os_str().as_bytes();
    if !path.is_absolute() {
        return Err(format!("socket {path:?} is not absolute: begin it with /"));
    }
    if bytes.len() > MAX_SOCKET_PATH {
        return Err(format!("socket {path:?} has {} bytes: at most {MAX_SOCKET_PATH} are allowed", bytes.len()));
    }
    if bytes.iter().any(u8::is_ascii_control) {
        return Err(format!("socket {path:?} has a control character"));
    }
    if bytes.ends_with(b"/") || path.file_name().is_none() {
        return Err(format!("socket {path:?} names no file"));
    }
    Ok(())
}

/// Reads `user:group` or `user`, names or numbers.
pub(crate) fn parse_owner(text: &str) -> Result<(u32, u32), String> {
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let unknown = |what: &str, name: &str| {
        format!("socket_owner {text:?}: there is no {what} {name:?} here; write user:group, by name or number")
    };
    let known = User::from_name(user).ok().flatten();
    let uid = match (user.parse::<u32>(), &known) {
        (Ok(number), _) => Uid::from_raw(number),
        (Err(_), Some(found)) => found.uid,
        (Err(_), None) => return Err(unknown("user", user)),
    };
    let gid = match group {
        Some(group) => parse_group(group).ok_or_else(|| unknown("group", group))?,
        None => User::from_uid(uid).ok().flatten().map(|found| found.gid).ok_or_else(|| unknown("user", user))?,
    };
    Ok((uid.as_raw(), gid.as_raw()))
}

/// A group by name or number.
pub(crate) fn parse_group(text: &str) -> Option<Gid> {
    match text.parse::<u32>() {
        Ok(number) => Some(Gid::from_raw(number)),
        Err(_) => Group::from_name(text).ok().flatten().map(|group| group.gid),
    }
}

/// Reads permission bits: `0660`, `660` or `0o660`.
pub(crate) fn parse_mode(text: &str) -> Result<u32, String> {
    let digits = text.strip_prefix("0o").unwrap_or(text);
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if mode <= 0o777 && digits.bytes().all(|b| b.is_ascii_digit()) => Ok(mode),
        _ => Err(format!("mode {text:?} is no octal permission: write \"0660\"")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: &str) -> Result<PortSpec, String> {
        let request: PortRequest = serde_json::from_str(text).map_err(|error| error.to_string())?;
        request.spec(None).map_err(|error| error.message)
    }

    #[test]
    fn what_is_left_out_has_a_default() {
        let spec = request(r#"{"name":"vm1","socket":"/run/x.sock","device":"vdev:net_null0"}"#).unwrap();
        assert_eq!((spec.queues, spec.mtu, spec.role, spec.compat), (1, 1500, Role::Server, Compat::LATEST));
        assert!(spec.offloads);
    }

    #[test]
    fn a_value_that_cannot_be_is_named_with_the_remedy() {
        let long = format!("/run/{}", "x".repeat(103));
        for (change, says) in [
            (r#""socket":"x.sock""#, "begin it with /"),
            (&*format!(r#""socket":"{long}""#), "at most 107"),
            (r#""socket":"/run/""#, "names no file"),
            (r#""socket":"/run/x","queues":0"#, "1 to 32"),
            (r#""socket":"/run/x","queues":33"#, "1 to 32"),
            (r#""socket":"/run/x","mtu":67"#, "68 to 9216"),
            (r#""socket":"/run/x","mac":"01:00:00:00:00:01""#, "unicast"),
            (r#""socket":"/run/x","socket_mode":"0999""#, "0660"),
            (r#""socket":"/run/x","socket_owner":"no-such-user:root""#, "no-such-user"),
            (r#""socket":"/run/x","role":"client","socket_mode":"0660""#, "role server"),
            (r#""socket":"/run/x","colour":1"#, "unknown field `colour`"),
        ] {
            let text = format!(r#"{{"name":"vm1","device":"vdev:net_null0",{change}}}"#);
            let error = request(&text).expect_err(&text);
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn an_owner_is_resolved_to_numbers() {
        assert_eq!(parse_owner("root:root"), Ok((0, 0)));
        assert_eq!(parse_owner("root"), Ok((0, 0)));
        assert_eq!(parse_owner("12345:54321"), Ok((12345, 54321)));
        assert!(parse_owner("12345").is_err(), "a number without a user has no group of its own");
        assert_eq!(parse_mode("0660"), Ok(0o660));
        assert_eq!(parse_mode("+660").ok(), None);
    }
}
