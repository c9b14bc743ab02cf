//! Addresses: PCI functions, MAC addresses, and the device a port is bridged to.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::PortName;
use crate::nic::BondMode;

/// Why an address was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not a PCI address.
    #[error("{0:?} is not a PCI address: write it as 0000:0a:00.2")]
    Pci(String),
    /// Not a MAC address.
    #[error("{0:?} is not a MAC address: write it as 52:54:00:12:34:56")]
    Mac(String),
    /// A MAC address that no NIC may have.
    #[error("{0} is not a unicast MAC address: the lowest bit of its first byte must be 0, and not all bytes 0")]
    NotUnicast(MacAddress),
    /// A device of no known kind.
    #[error(
        "{0:?} is not a device: write pci:0000:0a:00.2[,devargs], vdev:net_tap0[,devargs], soft:nic0/vf3, patch:NAME/a, bond:mode=1,pci:0000:0a:00.2,pci:0000:0b:00.2, vhost-vdpa:/dev/vhost-vdpa-0 or vdpa:0000:0a:00.2"
    )]
    Device(String),
    /// A bond that cannot be.
    #[error("the bond {0:?}: {1}")]
    Bond(String, &'static str),
    /// Device arguments with a character that would end them.
    #[error("the device arguments {0:?} have a space or control character: DPDK would cut them there")]
    DeviceArguments(String),
}

/// A PCI function. Always printed in full and in lower case, whatever form it was read in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PciAddress {
    /// PCI domain (segment), 0 to 0xffffffff.
    pub domain: u32,
    /// Bus number.
    pub bus: u8,
    /// Device (slot), 0 to 31.
    pub device: u8,
    /// Function, 0 to 7.
    pub function: u8,
}

impl FromStr for PciAddress {
    type Err = AddressError;

    /// Reads `0000:0a:00.2` or the short form `0a:00.2` (domain 0), in either case.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Pci(text.into());
        let hex = |digits: &str, most: usize| {
            let clean = !digits.is_empty() && digits.len() <= most && digits.bytes().all(|b| b.is_ascii_hexdigit());
            if clean { u32::from_str_radix(digits, 16).map_err(|_| bad()) } else { Err(bad()) }
        };
        let (rest, function) = text.rsplit_once('.').ok_or_else(bad)?;
        let (rest, device) = rest.rsplit_once(':').ok_or_else(bad)?;
        let (domain, bus) = rest.rsplit_once(':').unwrap_or(("0", rest));
        let (domain, bus) = (hex(domain, 8)?, hex(bus, 2)?);
        let (device, function) = (hex(device, 2)?, hex(function, 1)?);
        if device > 31 || function > 7 {
            return Err(bad());
        }
        Ok(Self { domain, bus: bus as u8, device: device as u8, function: function as u8 })
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{}", self.domain, self.bus, self.device, self.function)
    }
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct MacAddress(pub [u8; 6]);

impl MacAddress {
    /// The address itself when a NIC may have it, else why not.
    pub fn unicast(self) -> Result<Self, AddressError> {
        if self.0[0] & 1 == 1 || self.0 == [0; 6] { Err(AddressError::NotUnicast(self)) } else { Ok(self) }
    }
}

impl FromStr for MacAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Mac(text.into());
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part =
                parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit())).ok_or_else(bad)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| bad())?;
        }
        if parts.next().is_some() { Err(bad()) } else { Ok(Self(bytes)) }
    }
}

impl fmt::Display for MacAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// What a port is bridged to.
///
/// Written `pci:0000:0a:00.2[,devargs]`, `vdev:net_tap0[,devargs]`, `soft:nic0/vf3`, `patch:NAME/a` (the other end is
/// `patch:NAME/b`), `bond:mode=1,DEVICE,DEVICE`, `vhost-vdpa:/dev/vhost-vdpa-0` or `vdpa:0000:0a:00.2`. The devargs are DPDK's own, unchanged.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceSpec {
    /// A PCI function, a VF for instance, or with `representor=vf3` among its arguments that representor.
    Pci {
        /// Address of the function that DPDK probes.
        address: PciAddress,
        /// DPDK device arguments without the leading comma; may be empty.
        args: String,
    },
    /// A DPDK virtual device.
    Vdev {
        /// DPDK's name of the device, such as `net_null0`; unique within a lane.
        name: String,
        /// DPDK device arguments without the leading comma; may be empty.
        args: String,
    },
    /// A VF of a software NIC.
    Soft {
        /// Name of the NIC.
        nic: String,
        /// Index of the VF.
        vf: u16,
    },
    /// One end of a patch cable: what goes in here comes out at the other end, a port of the same lane.
    Patch {
        /// Name of the cable, of the same form as a port's.
        name: String,
        /// Which end.
        end: PatchEnd,
    },
    /// Two devices as one, by DPDK's bonding driver: a VF of each of two PFs. Each is written as if it stood alone.
    Bond {
        /// How: not by LACP, whose frames VFs do not receive.
        mode: BondMode,
        /// The two devices, `pci:` or `vdev:`.
        devices: Vec<DeviceSpec>,
    },
    /// A vhost-vdpa character device.
    VhostVdpa {
        /// Path of the device node.
        path: PathBuf,
    },
    /// A vDPA device that control makes for the port, and whose node it names to the lane.
    Vdpa {
        /// The management device: a PCI address in its long form, or as the kernel calls it (`vdpasim_net`).
        management: String,
    },
}

/// One of the two ends of a patch cable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PatchEnd {
    /// `patch:NAME/a`.
    A,
    /// `patch:NAME/b`.
    B,
}

impl PatchEnd {
    /// The opposite one.
    pub fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

impl fmt::Display for PatchEnd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::A => "a",
            Self::B => "b",
        })
    }
}

impl DeviceSpec {
    /// The part that identifies the device whatever else its arguments say: two ports with one identity clash.
    ///
    /// For PCI that is the address and the `representor=` argument, for a virtual device its name.
    pub fn identity(&self) -> String {
        match self {
            Self::Pci { address, args } => match representor(args) {
                Some(which) => format!("pci:{address},representor={which}"),
                None => format!("pci:{address}"),
            },
            Self::Vdev { name, .. } => format!("vdev:{name}"),
            Self::Bond { mode, devices } => {
                let devices: Vec<String> = devices.iter().map(Self::identity).collect();
                format!("bond:mode={},{}", number(*mode), devices.join(","))
            }
            // The function itself: who has its rings by vDPA has it, whatever else could open it.
            Self::Vdpa { management } if management.parse::<PciAddress>().is_ok() => format!("pci:{management}"),
            Self::Soft { .. } | Self::Patch { .. } | Self::VhostVdpa { .. } | Self::Vdpa { .. } => self.to_string(),
        }
    }

    /// The PCI function that it stands on.
    pub fn function(&self) -> Option<PciAddress> {
        match self {
            Self::Pci { address, .. } => Some(*address),
            Self::Vdpa { management } => management.parse().ok(),
            _ => None,
        }
    }

    /// The devices that are opened for it: itself, or those of a bond. What two ports may not share is each of them.
    pub fn parts(&self) -> &[Self] {
        match self {
            Self::Bond { devices, .. } => devices,
            one => std::slice::from_ref(one),
        }
    }

    /// How many of DPDK's ports it takes.
    pub fn dpdk_ports(&self) -> usize {
        match self {
            Self::Bond { devices, .. } => devices.len() + 1,
            _ => 1,
        }
    }

    /// The device at the other end of a patch cable.
    pub fn other_end(&self) -> Option<Self> {
        let Self::Patch { name, end } = self else { return None };
        Some(Self::Patch { name: name.clone(), end: end.other() })
    }

    /// The kernel's network interface that a TAP, AF_PACKET, AF_XDP or pcap device stands on (`iface=`). The kernel lets several of
    /// them open it, and each frame then goes to any or to all of them: two ports with one interface clash on whatever lanes.
    pub fn interface(&self) -> Option<&str> {
        let Self::Vdev { name, args } = self else { return None };
        let opens_it =
            ["net_tap", "net_af_packet", "net_af_xdp", "net_pcap"].iter().any(|driver| name.starts_with(driver));
        args.split(',').find_map(|arg| arg.strip_prefix("iface=")).filter(|_| opens_it)
    }
}

/// A mode as the kernel and DPDK number it.
fn number(mode: BondMode) -> u8 {
    match mode {
        BondMode::ActiveBackup => 1,
        BondMode::BalanceXor => 2,
        BondMode::Lacp => 4,
    }
}

/// `mode=1,DEVICE,DEVICE`. A device begins where its kind does, so its arguments may hold commas.
fn bond(text: &str, rest: &str) -> Result<DeviceSpec, AddressError> {
    let bad = |why| AddressError::Bond(text.into(), why);
    let (mode, rest) = rest.split_once(',').ok_or_else(|| bad("write bond:mode=1,DEVICE,DEVICE"))?;
    let mode = match mode.strip_prefix("mode=").ok_or_else(|| bad("write mode=1 or mode=2 first"))? {
        "1" | "active-backup" => BondMode::ActiveBackup,
        "2" | "balance-xor" => BondMode::BalanceXor,
        "4" | "802.3ad" | "lacp" => {
            return Err(bad(
                "LACP frames do not reach virtual functions, so mode 4 never agrees with anybody: give mode=1, or mode=2 with a static group on the switch, or bond the PFs in the kernel (VF LAG)",
            ));
        }
        _ => return Err(bad("modes are 1 (active-backup) and 2 (balance-xor)")),
    };
    let begins = |part: &str| {
        ["pci:", "vdev:", "soft:", "patch:", "bond:", "vhost-vdpa:", "vdpa:"].iter().any(|kind| part.starts_with(kind))
    };
    let mut texts: Vec<String> = Vec::new();
    for part in rest.split(',') {
        match texts.last_mut() {
            Some(last) if !begins(part) => {
                last.push(',');
                last.push_str(part);
            }
            _ => texts.push(part.into()),
        }
    }
    let devices = texts.iter().map(|text| text.parse()).collect::<Result<Vec<DeviceSpec>, _>>()?;
    if devices.iter().any(|device| !matches!(device, DeviceSpec::Pci { .. } | DeviceSpec::Vdev { .. })) {
        return Err(bad("its devices are pci: or vdev: ones"));
    }
    match &devices[..] {
        [first, second] if first.identity() != second.identity() => Ok(DeviceSpec::Bond { mode, devices }),
        [_, _] => Err(bad("its two devices are one and the same")),
        _ => Err(bad("it needs two devices")),
    }
}

/// The value of `representor=` among device arguments; brackets may hold commas.
fn representor(args: &str) -> Option<&str> {
    let at = if args.starts_with("representor=") { 0 } else { args.find(",representor=")? + 1 };
    let value = &args[at + "representor=".len()..];
    let mut depth = 0;
    let end = value.find(|c| {
        depth += i32::from(c == '[') - i32::from(c == ']');
        c == ',' && depth == 0
    });
    Some(&value[..end.unwrap_or(value.len())])
}

impl FromStr for DeviceSpec {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let bad = || AddressError::Device(text.into());
        if text.chars().any(|c| c.is_whitespace() || c.is_control()) {
            return Err(AddressError::DeviceArguments(text.into()));
        }
        let (kind, rest) = text.split_once(':').ok_or_else(bad)?;
        let (head, args) = rest.split_once(',').unwrap_or((rest, ""));
        match kind {
            "pci" => Ok(Self::Pci { address: head.parse()?, args: args.into() }),
            "vdev" if head.starts_with("net_") || head.starts_with("eth_") => {
                Ok(Self::Vdev { name: head.into(), args: args.into() })
            }
            "soft" => {
                let (nic, vf) = rest.split_once("/vf").ok_or_else(bad)?;
                let vf = vf.parse().map_err(|_| bad())?;
                if nic.is_empty() { Err(bad()) } else { Ok(Self::Soft { nic: nic.into(), vf }) }
            }
            "patch" => {
                let (name, end) = rest.rsplit_once('/').ok_or_else(bad)?;
                // A port's name has the form that is wanted, and its error would speak of ports.
                let name = name.parse::<PortName>().map_err(|_| bad())?.to_string();
                match end {
                    "a" => Ok(Self::Patch { name, end: PatchEnd::A }),
                    "b" => Ok(Self::Patch { name, end: PatchEnd::B }),
                    _ => Err(bad()),
                }
            }
            "bond" => bond(text, rest),
            "vhost-vdpa" if rest.starts_with('/') => Ok(Self::VhostVdpa { path: rest.into() }),
            "vdpa" if args.is_empty() && !rest.is_empty() && !rest.contains(',') => {
                let bare = rest.strip_prefix("pci/").unwrap_or(rest);
                let management = match bare.parse::<PciAddress>() {
                    Ok(address) => address.to_string(),
                    // What begins as an address and is none would be looked for under a name that nobody meant.
                    Err(error) if bare != rest || rest.contains(':') => return Err(error),
                    Err(_) => rest.into(),
                };
                Ok(Self::Vdpa { management })
            }
            _ => Err(bad()),
        }
    }
}

impl fmt::Display for DeviceSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (head, args) = match self {
            Self::Pci { address, args } => (format!("pci:{address}"), args.as_str()),
            Self::Vdev { name, args } => (format!("vdev:{name}"), args.as_str()),
            Self::Soft { nic, vf } => (format!("soft:{nic}/vf{vf}"), ""),
            Self::Patch { name, end } => (format!("patch:{name}/{end}"), ""),
            Self::Bond { mode, devices } => {
                let devices: Vec<String> = devices.iter().map(Self::to_string).collect();
                (format!("bond:mode={},{}", number(*mode), devices.join(",")), "")
            }
            Self::VhostVdpa { path } => (format!("vhost-vdpa:{}", path.display()), ""),
            Self::Vdpa { management } => (format!("vdpa:{management}"), ""),
        };
        match args {
            "" => f.pad(&head),
            args => f.pad(&format!("{head},{args}")),
        }
    }
}

macro_rules! as_string {
    ($type:ident, $about:literal, $pattern:literal) => {
        impl TryFrom<String> for $type {
            type Error = AddressError;
            fn try_from(text: String) -> Result<Self, AddressError> {
                text.parse()
            }
        }

        impl From<$type> for String {
            fn from(value: $type) -> String {
                value.to_string()
            }
        }

        impl schemars::JsonSchema for $type {
            fn schema_name() -> std::borrow::Cow<'static, str> {
                stringify!($type).into()
            }
            fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
                schemars::json_schema!({ "type": "string", "description": $about, "pattern": $pattern })
            }
        }
    };
}

as_string!(
    PciAddress,
    "A PCI function: 0000:0a:00.2, or 0a:00.2 in domain 0.",
    r"^([0-9A-Fa-f]{1,8}:)?[0-9A-Fa-f]{1,2}:[0-9A-Fa-f]{1,2}\.[0-7]$"
);
as_string!(MacAddress, "An Ethernet address: 52:54:00:12:34:56.", "^([0-9A-Fa-f]{2}:){5}[0-9A-Fa-f]{2}$");
as_string!(
    DeviceSpec,
    "pci:0000:0a:00.2[,devargs], vdev:net_tap0[,devargs], soft:nic0/vf3, patch:NAME/a (or /b), bond:mode=1,DEVICE,DEVICE, vhost-vdpa:/dev/vhost-vdpa-0 or vdpa:0000:0a:00.2.",
    "^(pci|vdev|soft|patch|bond|vhost-vdpa|vdpa):"
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pci_address_is_compared_as_a_number_and_not_as_text() {
        let full: PciAddress = "0000:0A:00.2".parse().unwrap();
        assert_eq!(full, "0a:00.2".parse().unwrap());
        assert_eq!(full.to_string(), "0000:0a:00.2");
        for bad in ["", "0a:00", "0a:20.0", "0a:00.8", "x:00.0", "0000:0a:00.2.1", "+a:00.0", ":0a:00.0"] {
            assert!(bad.parse::<PciAddress>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_bond_reads_back_and_is_of_two_devices_without_lacp() {
        for (text, parts) in [
            ("bond:mode=1,pci:0000:0a:00.2,pci:0000:0b:00.2", ["pci:0000:0a:00.2", "pci:0000:0b:00.2"]),
            (
                "bond:mode=2,pci:0000:0a:00.0,representor=vf[1,3],dv_flow_en=2,vdev:net_tap1,iface=up1",
                ["pci:0000:0a:00.0,representor=vf[1,3],dv_flow_en=2", "vdev:net_tap1,iface=up1"],
            ),
        ] {
            let device: DeviceSpec = text.parse().unwrap();
            assert_eq!(device.to_string(), text);
            assert_eq!(device.parts().iter().map(DeviceSpec::to_string).collect::<Vec<_>>(), parts);
            assert_eq!(device.dpdk_ports(), 3);
        }
        let one: DeviceSpec = "bond:mode=active-backup,vdev:net_null0,size=64,vdev:net_null1".parse().unwrap();
        assert_eq!(one.identity(), "bond:mode=1,vdev:net_null0,vdev:net_null1");
        for (text, why) in [
            ("bond:mode=4,vdev:net_null0,vdev:net_null1", "LACP frames do not reach"),
            ("bond:mode=0,vdev:net_null0,vdev:net_null1", "modes are 1"),
            ("bond:vdev:net_null0,vdev:net_null1", "mode=1 or mode=2 first"),
            ("bond:mode=1,vdev:net_null0", "two devices"),
            ("bond:mode=1,vdev:net_null0,vdev:net_null0,size=64", "one and the same"),
            ("bond:mode=1,soft:nic0/vf0,vdev:net_null0", "pci: or vdev:"),
            ("bond:mode=1,bond:mode=1,vdev:net_null0,vdev:net_null1", "write mode=1"),
        ] {
            let error = text.parse::<DeviceSpec>().unwrap_err().to_string();
            assert!(
                error.contains(why) || error.contains("is not a device") || error.contains("bond:mode=1,DEVICE"),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_vdpa_device_stands_on_its_function() {
        for text in ["vdpa:0000:0a:00.2", "vdpa:0A:00.2", "vdpa:pci/0000:0a:00.2"] {
            let device: DeviceSpec = text.parse().unwrap();
            assert_eq!(
                (device.to_string().as_str(), device.identity().as_str()),
                ("vdpa:0000:0a:00.2", "pci:0000:0a:00.2")
            );
            assert_eq!(device.function(), "0a:00.2".parse().ok());
        }
        assert_eq!("vdpa:vdpasim_net".parse::<DeviceSpec>().unwrap().function(), None);
        for bad in ["vdpa:", "vdpa:0a:00.9", "vdpa:pci/eth0", "vdpa:0a:00.2,mac=x", "vdpa:a,b", "vdpa:0a:00.2:1"] {
            assert!(bad.parse::<DeviceSpec>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_mac_address_has_six_bytes_and_a_nic_has_a_unicast_one() {
        let mac: MacAddress = "52:54:00:AB:cd:ef".parse().unwrap();
        assert_eq!(mac.to_string(), "52:54:00:ab:cd:ef");
        assert!(mac.unicast().is_ok());
        assert!("ff:ff:ff:ff:ff:ff".parse::<MacAddress>().unwrap().unicast().is_err());
        for bad in ["", "52:54:00:12:34", "52:54:00:12:34:56:78", "5:54:00:12:34:56", "+5:54:00:12:34:56"] {
            assert!(bad.parse::<MacAddress>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_device_reads_back_as_it_was_written() {
        for text in [
            "pci:0000:0a:00.2",
            "pci:0000:0a:00.0,representor=vf3,dv_flow_en=1",
            "vdev:net_null0,size=64,no-rx=1",
            "vdev:net_tap0,iface=up0",
            "soft:nic0/vf3",
            "patch:cable-1/a",
            "patch:cable-1/b",
            "vhost-vdpa:/dev/vhost-vdpa-0",
            "vdpa:0000:0a:00.2",
            "vdpa:vdpasim_net",
            "vdpa:auxiliary/mlx5_core.sf.4",
        ] {
            assert_eq!(text.parse::<DeviceSpec>().unwrap().to_string(), text);
        }
        for bad in
            ["", "null0", "vdev:", "vdev:crypto_null", "pci:zz", "soft:nic0", "vhost-vdpa:x", "vdev:net_null0,a b"]
                .into_iter()
                .chain(["patch:x", "patch:/a", "patch:x/c", "patch:x/ab", "patch:x/y/a", "patch:x/a,y=1"])
        {
            assert!(bad.parse::<DeviceSpec>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn two_representors_of_one_pf_are_two_devices_and_two_spellings_of_one_are_one() {
        let identity = |text: &str| text.parse::<DeviceSpec>().unwrap().identity();
        assert_ne!(identity("pci:0a:00.0,representor=vf3"), identity("pci:0a:00.0,representor=vf4"));
        assert_ne!(identity("pci:0a:00.0,representor=vf3"), identity("pci:0a:00.0"));
        assert_eq!(
            identity("pci:0a:00.0,x=1,representor=pf[0,1]vf3,y=2"),
            identity("pci:0000:0A:00.0,representor=pf[0,1]vf3")
        );
        assert_eq!(identity("vdev:net_null0,size=64"), identity("vdev:net_null0"));
    }

    #[test]
    fn a_cable_has_two_ends_and_each_is_the_other_end_of_the_other() {
        let end = |text: &str| text.parse::<DeviceSpec>().unwrap();
        assert_eq!(end("patch:x/a").other_end(), Some(end("patch:x/b")));
        assert_eq!(end("patch:x/b").other_end(), Some(end("patch:x/a")));
        assert_ne!(end("patch:x/a").identity(), end("patch:x/b").identity());
        assert_eq!(end("vdev:net_ring0").other_end(), None);
    }

    #[test]
    fn the_interface_of_a_device_is_the_kernels_and_no_socket() {
        let interface = |text: &str| text.parse::<DeviceSpec>().unwrap().interface().map(str::to_owned);
        assert_eq!(interface("vdev:net_tap0,mac=fixed,iface=up0").as_deref(), Some("up0"));
        assert_eq!(interface("vdev:net_af_packet7,iface=eth1").as_deref(), Some("eth1"));
        assert_eq!(interface("vdev:net_vhost0,iface=/run/x.sock"), None);
        assert_eq!(interface("vdev:net_tap0"), None);
        assert_eq!(interface("pci:0000:0a:00.2"), None);
    }
}
