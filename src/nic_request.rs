//! A NIC as people ask for it, in a `[[nic]]` table or in `nic.add`.

use ringspan_protocol::nic::{BondMode, MAX_UPLINKS, MAX_VFS};
use ringspan_protocol::{
    DeviceSpec, LaneName, MTU_RANGE, NicMode, NicName, NicOffload, NicSpec, PciAddress, PciNic, VfSettings,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind};

/// What kind of NIC it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub(crate) enum NicKind {
    /// A switch in software, in a lane.
    #[default]
    Soft,
    /// The switch of a NIC, by its physical function.
    Pci,
}

/// A NIC as it is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NicRequest {
    /// Its name, 10 characters at most: that of the uplink's representor; the VFs' have `_vf3` behind it.
    pub name: NicName,
    /// What kind of NIC it is.
    #[serde(default)]
    pub kind: NicKind,
    /// How many VFs it has: `soft:NAME/vf0` and so on as ports' devices.
    #[schemars(range(min = 0, max = 64))]
    pub vfs: u16,
    /// The device that it sends to and receives from outside; none when empty. Two are bonded.
    #[serde(default)]
    pub uplinks: Vec<DeviceSpec>,
    /// How two uplinks are bonded.
    #[serde(default)]
    pub bond: BondMode,
    /// How its switch decides.
    #[serde(default)]
    pub mode: NicMode,
    /// What VFs may do, in legacy mode.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub vf: Vec<VfSettings>,
    /// Largest frame without its Ethernet header, in bytes, of the uplink and the representors.
    #[serde(default = "default_mtu")]
    #[schemars(range(min = 68, max = 9216))]
    pub mtu: u16,
    /// The physical function of kind `pci`, such as 0000:0a:00.0.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pf: Option<String>,
    /// Who brings flows into the switch of kind `pci`: `tc` (Open vSwitch by itself, the default), `ringspan`, or `off`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offload: Option<NicOffload>,
    /// The function's kernel bond has a second function, whose VFs, as many again, are driven with it; of kind `pci`.
    #[serde(default, skip_serializing_if = "is_false")]
    pub bonded: bool,
    /// mlx5's way to program its switch: 1 (the default) by software steering, 2 by hardware steering; of kind `pci`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2))]
    pub dv_flow_en: Option<u8>,
    /// More of DPDK's device arguments for the function; of kind `pci`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub args: Option<String>,
    /// The lane that has it, and all ports on its VFs; `main` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<LaneName>,
}

fn is_false(value: &bool) -> bool {
    !value
}

fn default_mtu() -> u16 {
    1500
}

impl NicRequest {
    /// What a lane is told.
    pub(crate) fn spec(&self) -> Result<NicSpec, Error> {
        let pci = self.pci()?;
        let Self { name, vfs, uplinks, bond, mode, vf, mtu, .. } = self.clone();
        let invalid =
            |message: String| Err(Error::new(ErrorKind::Invalid, format!("NIC {name}: {message}")).about(&name));
        if vfs > MAX_VFS {
            return invalid(format!("vfs is {vfs}: at most {MAX_VFS} are possible"));
        }
        if uplinks.len() > MAX_UPLINKS {
            return invalid(format!("{} uplinks: at most {MAX_UPLINKS} are possible", uplinks.len()));
        }
        if !MTU_RANGE.contains(&mtu) {
            return invalid(format!("mtu is {mtu}: choose {} to {}", MTU_RANGE.start(), MTU_RANGE.end()));
        }
        let bad = |uplink: &&DeviceSpec| {
            matches!(
                uplink,
                DeviceSpec::Soft { .. }
                    | DeviceSpec::VhostVdpa { .. }
                    | DeviceSpec::Vdpa { .. }
                    | DeviceSpec::Bond { .. }
            )
        };
        if let Some(own) = uplinks.iter().find(bad) {
            return invalid(format!(
                "{own} cannot be an uplink: give a pci:, vdev: or patch: device (two of them are bonded)"
            ));
        }
        let mut spec = NicSpec { name: name.clone(), vfs, uplinks, bond, mode, vf, mtu, pci };
        if let Err(what) = spec.check_vfs() {
            return invalid(what);
        }
        spec.tidy_vfs();
        Ok(spec)
    }

    /// What is said of a NIC of its own; nothing of one in software.
    fn pci(&self) -> Result<Option<Box<PciNic>>, Error> {
        let name = &self.name;
        let invalid = |message: &str| Err(Error::new(ErrorKind::Invalid, format!("NIC {name}: {message}")).about(name));
        let Self { pf, offload, bonded, dv_flow_en, args, .. } = self;
        if self.kind == NicKind::Soft {
            let is_said = pf.is_some() || offload.is_some() || *bonded || dv_flow_en.is_some() || args.is_some();
            return if is_said {
                invalid("pf, offload, bonded, dv_flow_en and args are of a NIC of kind pci: add kind = \"pci\"")
            } else {
                Ok(None)
            };
        }
        if !self.uplinks.is_empty() || !self.vf.is_empty() || self.mode != NicMode::Switchdev {
            return invalid("uplinks, vf and legacy mode are of a software NIC: the kernel sets those of kind pci");
        }
        if *bonded && self.vfs > MAX_VFS / 2 {
            return invalid(&format!(
                "vfs is {} on each of two functions: at most {} are possible",
                self.vfs,
                MAX_VFS / 2
            ));
        }
        let Some(text) = pf else {
            return invalid("pf is missing: give the physical function's address, as 0000:0a:00.0");
        };
        let device = match text.parse::<PciAddress>() {
            Ok(address) => Some(DeviceSpec::Pci { address, args: String::new() }),
            Err(_) => text.parse().ok().filter(|device| match device {
                DeviceSpec::Pci { args, .. } => args.is_empty(),
                DeviceSpec::Vdev { .. } => true,
                _ => false,
            }),
        };
        let Some(pf) = device else {
            return invalid(&format!("pf {text:?} is not the address of a physical function: write 0000:0a:00.0"));
        };
        let dv_flow_en = dv_flow_en.unwrap_or(1);
        if !matches!(dv_flow_en, 1 | 2) {
            return invalid(&format!("dv_flow_en is {dv_flow_en}: write 1, or 2 for hardware steering"));
        }
        let args = args.clone().unwrap_or_default();
        let ours = ["representor", "dv_flow_en", "dv_esw_en"];
        if let Some(own) = args.split(',').filter_map(|arg| arg.split('=').next()).find(|key| ours.contains(key)) {
            return invalid(&format!("args has {own}, which is made of vfs, bonded and dv_flow_en: take it out"));
        }
        Ok(Some(Box::new(PciNic { pf, bonded: *bonded, dv_flow_en, args, offload: offload.unwrap_or_default() })))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> Result<NicSpec, String> {
        toml::from_str::<NicRequest>(text).map_err(|error| error.to_string())?.spec().map_err(|error| error.message)
    }

    #[test]
    fn a_nic_of_its_own_is_its_physical_function_and_who_has_its_switch() {
        let text = "name = \"nic0\"\nkind = \"pci\"\nvfs = 4\npf = \"0000:0a:00.0\"\n";
        let pci = spec(text).unwrap().pci.unwrap();
        assert_eq!((pci.pf.to_string().as_str(), pci.offload, pci.dv_flow_en), ("pci:0000:0a:00.0", NicOffload::Tc, 1));
        let pci = spec(&format!("{text}offload = \"ringspan\"\ndv_flow_en = 2\nbonded = true")).unwrap().pci.unwrap();
        assert_eq!((pci.offload, pci.dv_flow_en, pci.bonded), (NicOffload::Ringspan, 2, true));
        for (more, said) in [
            ("offload = \"both\"", "unknown variant"),
            ("dv_flow_en = 0", "dv_flow_en is 0"),
            ("args = \"a=1,representor=vf0\"", "args has representor"),
            ("uplinks = [\"vdev:net_tap0\"]", "uplinks"),
            ("mode = \"legacy\"", "legacy"),
        ] {
            let error = spec(&format!("{text}{more}")).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
        for (text, said) in [
            ("name = \"nic0\"\nkind = \"pci\"\nvfs = 4", "pf is missing"),
            ("name = \"nic0\"\nkind = \"pci\"\nvfs = 4\npf = \"eth0\"", "not the address"),
            ("name = \"nic0\"\nvfs = 4\npf = \"0000:0a:00.0\"", "add kind"),
        ] {
            let error = spec(text).unwrap_err();
            assert!(error.contains(said), "{error}");
        }
    }
}
