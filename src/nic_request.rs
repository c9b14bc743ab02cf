//! A software NIC as people ask for it, in a `[[nic]]` table or in `nic.add`.

use ringspan_protocol::nic::{BondMode, MAX_UPLINKS, MAX_VFS};
use ringspan_protocol::{DeviceSpec, LaneName, MTU_RANGE, NicMode, NicName, NicSpec, VfSettings};
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
    /// The lane that has it, and all ports on its VFs; `main` when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lane: Option<LaneName>,
}

fn default_mtu() -> u16 {
    1500
}

impl NicRequest {
    /// What a lane is told.
    pub(crate) fn spec(&self) -> Result<NicSpec, Error> {
        let Self { name, kind: NicKind::Soft, vfs, uplinks, bond, mode, vf, mtu, lane: _ } = self.clone();
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
        if let Some(own) =
            uplinks.iter().find(|uplink| matches!(uplink, DeviceSpec::Soft { .. } | DeviceSpec::VhostVdpa { .. }))
        {
            return invalid(format!("{own} cannot be an uplink: give a pci:, vdev: or patch: device"));
        }
        let mut spec = NicSpec { name: name.clone(), vfs, uplinks, bond, mode, vf, mtu };
        if let Err(what) = spec.check_vfs() {
            return invalid(what);
        }
        spec.tidy_vfs();
        Ok(spec)
    }
}
