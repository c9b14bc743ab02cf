//! What a VF of a NIC in legacy mode may do, as `ip link set PF vf N` has it.

use std::ops::RangeInclusive;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::nic::NicSpec;
use crate::{MacAddress, NicMode};

/// VLANs that a VF may be in; 0 is none.
pub const VLAN_RANGE: RangeInclusive<u16> = 0..=4094;
/// Largest rate limit, in Mbit/s.
pub const MAX_MBIT: u32 = 1_000_000;

/// Whether a VF's link is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum VfLink {
    /// Up. A software NIC's VFs reach each other without an uplink.
    #[default]
    Auto,
    /// Up.
    Enable,
    /// Down: nothing comes from it, and nothing goes to it.
    Disable,
}

/// A VF of a NIC in legacy mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VfSettings {
    /// Which VF, from 0.
    pub vf: u16,
    /// Its address: what is sent there is for it. Absent: that which its guest sent from last, unless another VF has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// VLAN that it is in, 1 to 4094: its frames get the tag, and lose it on the way to it. With 0 it sends and receives tags as they are.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: u16,
    /// Priority in that tag, 0 to 7.
    #[serde(default)]
    #[schemars(range(min = 0, max = 7))]
    pub qos: u8,
    /// Drops what it sends from another address than its `mac`.
    #[serde(default = "yes")]
    pub spoof_check: bool,
    /// Gives it what is for addresses that nobody has, and link-local protocols (01:80:c2:00:00:00 to 0f) both ways.
    #[serde(default)]
    pub trust: bool,
    /// Most that it may send, in Mbit/s; 0: as much as it can. What is more is dropped.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_mbit: u32,
    /// Whether its link is up.
    #[serde(default)]
    pub link: VfLink,
}

fn yes() -> bool {
    true
}

impl VfSettings {
    /// A VF of which nothing was said.
    pub fn new(vf: u16) -> Self {
        Self { vf, mac: None, vlan: 0, qos: 0, spoof_check: true, trust: false, max_mbit: 0, link: VfLink::Auto }
    }

    /// Whether all values can be.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check(&self) -> Result<(), String> {
        let Self { vf, mac, vlan, qos, max_mbit, .. } = self;
        if let Some(Err(error)) = mac.map(MacAddress::unicast) {
            return Err(format!("vf {vf}: mac: {error}"));
        }
        if !VLAN_RANGE.contains(vlan) {
            return Err(format!("vf {vf}: vlan is {vlan}: choose 1 to 4094, or 0 for none"));
        }
        if *qos > 7 || (*qos > 0 && *vlan == 0) {
            return Err(format!("vf {vf}: qos is {qos}: choose 0 to 7, with a vlan"));
        }
        if *max_mbit > MAX_MBIT {
            return Err(format!("vf {vf}: max_mbit is {max_mbit}: at most {MAX_MBIT} is possible"));
        }
        Ok(())
    }
}

/// A change of a VF; what is absent stays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VfChange {
    /// Its address; 00:00:00:00:00:00 takes it away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// VLAN that it is in, 1 to 4094; 0 takes it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 4094))]
    pub vlan: Option<u16>,
    /// Priority in that tag, 0 to 7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 7))]
    pub qos: Option<u8>,
    /// Drops what it sends from another address than its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// Gives it what is for addresses that nobody has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// Most that it may send, in Mbit/s; 0 takes the limit away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1_000_000))]
    pub max_mbit: Option<u32>,
    /// Whether its link is up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<VfLink>,
}

impl VfChange {
    /// The settings after this change. Out of its VLAN, a VF has no priority there either.
    pub fn apply(&self, settings: VfSettings) -> VfSettings {
        let vlan = self.vlan.unwrap_or(settings.vlan);
        let qos = if self.vlan == Some(0) { 0 } else { settings.qos };
        VfSettings {
            vf: settings.vf,
            mac: self.mac.map_or(settings.mac, |mac| Some(mac).filter(|mac| mac.0 != [0; 6])),
            vlan,
            qos: self.qos.unwrap_or(qos),
            spoof_check: self.spoof_check.unwrap_or(settings.spoof_check),
            trust: self.trust.unwrap_or(settings.trust),
            max_mbit: self.max_mbit.unwrap_or(settings.max_mbit),
            link: self.link.unwrap_or(settings.link),
        }
    }
}

impl NicSpec {
    /// The settings of a VF.
    pub fn vf_settings(&self, vf: u16) -> VfSettings {
        self.vf.iter().find(|settings| settings.vf == vf).copied().unwrap_or(VfSettings::new(vf))
    }

    /// Gives a VF other settings.
    pub fn set_vf(&mut self, settings: VfSettings) {
        self.vf.retain(|old| old.vf != settings.vf);
        self.vf.push(settings);
        self.tidy_vfs();
    }

    /// Sorts the settings of VFs, and leaves out those that say nothing: equal NICs are equal then.
    pub fn tidy_vfs(&mut self) {
        self.vf.retain(|settings| *settings != VfSettings::new(settings.vf));
        self.vf.sort_by_key(|settings| settings.vf);
    }

    /// Whether the settings of the VFs can be.
    ///
    /// # Errors
    /// What is wrong, in words.
    pub fn check_vfs(&self) -> Result<(), String> {
        if self.mode != NicMode::Legacy
            && let Some(settings) = self.vf.first()
        {
            let vf = settings.vf;
            return Err(format!(
                "vf {vf} has settings, which count in mode = \"legacy\" only: in switchdev rules decide"
            ));
        }
        for (at, settings) in self.vf.iter().enumerate() {
            settings.check()?;
            let vf = settings.vf;
            if vf >= self.vfs {
                return Err(format!("vf {vf} has settings, and the NIC has {} VFs", self.vfs));
            }
            let others = &self.vf[..at];
            if others.iter().any(|other| other.vf == vf) {
                return Err(format!("vf {vf} has settings twice"));
            }
            let same = |other: &&VfSettings| other.mac == settings.mac && other.vlan == settings.vlan;
            if let Some(other) = others.iter().find(same).filter(|_| settings.mac.is_some()) {
                return Err(format!("vf {vf} has the address of vf {} in the same VLAN", other.vf));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(text: &str) -> NicSpec {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn settings_are_found_changed_and_kept_in_one_form() {
        let mut nic = spec(r#"{"name":"nic0","vfs":4,"mode":"legacy","vf":[{"vf":2,"vlan":7,"qos":3},{"vf":1}]}"#);
        nic.tidy_vfs();
        assert_eq!(nic.vf.len(), 1);
        let change =
            VfChange { mac: Some("52:54:00:00:00:01".parse().unwrap()), max_mbit: Some(10), ..VfChange::default() };
        let changed = change.apply(nic.vf_settings(0));
        assert_eq!((changed.mac, changed.max_mbit, changed.spoof_check), (change.mac, 10, true));
        nic.set_vf(changed);
        assert_eq!(nic.vf.iter().map(|vf| vf.vf).collect::<Vec<_>>(), [0, 2]);
        let none = VfChange { vlan: Some(0), mac: Some(MacAddress([0; 6])), ..VfChange::default() };
        nic.set_vf(none.apply(nic.vf_settings(2)));
        assert_eq!(nic.vf_settings(2), VfSettings::new(2));
        assert_eq!(serde_json::from_str::<NicSpec>(&serde_json::to_string(&nic).unwrap()).unwrap(), nic);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for (vfs, wrong) in [
            (r#"[{"vf":4}]"#, "4 VFs"),
            (r#"[{"vf":1},{"vf":1}]"#, "twice"),
            (r#"[{"vf":1,"vlan":4095}]"#, "4095"),
            (r#"[{"vf":1,"qos":1}]"#, "with a vlan"),
            (r#"[{"vf":1,"mac":"ff:ff:ff:ff:ff:ff"}]"#, "mac"),
            (r#"[{"vf":1,"mac":"02:00:00:00:00:01"},{"vf":2,"mac":"02:00:00:00:00:01"}]"#, "address of vf 1"),
        ] {
            let nic = spec(&format!(r#"{{"name":"nic0","vfs":4,"mode":"legacy","vf":{vfs}}}"#));
            assert!(nic.check_vfs().unwrap_err().contains(wrong), "{vfs}: {:?}", nic.check_vfs());
        }
        assert!(spec(r#"{"name":"nic0","vfs":4,"vf":[{"vf":1,"trust":true}]}"#).check_vfs().is_err());
        let twins = r#"[{"vf":1,"mac":"02:00:00:00:00:01"},{"vf":2,"mac":"02:00:00:00:00:01","vlan":5}]"#;
        assert_eq!(spec(&format!(r#"{{"name":"n","vfs":4,"mode":"legacy","vf":{twins}}}"#)).check_vfs(), Ok(()));
    }
}
