//! What a PF has set for one of its VFs.

use ringspan_protocol::{MacAddress, PciAddress};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Host;
use super::inventory::Inventory;
use super::netlink::{EswitchMode, Guid, NetlinkError, VfChange, VfLinkState, VfSettings};
use super::representor::index;
use super::sriov;
use super::steps::Steps;
use crate::error::{Error, ErrorKind};
use crate::host::inventory::LinkType;

/// What is wanted; what is absent stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Wish {
    /// The PF: its interface or its PCI address.
    pub pf: String,
    /// The VF's number.
    pub vf: u16,
    /// Its MAC address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddress>,
    /// Its VLAN, 0 to 4094; 0: none. Legacy mode only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// Priority of that VLAN, 0 to 7.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qos: Option<u8>,
    /// Whether frames with other source addresses are dropped. Legacy mode only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spoof_check: Option<bool>,
    /// Whether it may change its address and receive everything.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<bool>,
    /// Least rate from the guest, in Mbit/s; 0: none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub min_rate: Option<u32>,
    /// Most rate from the guest, in Mbit/s; 0: no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_rate: Option<u32>,
    /// Whether it has a link. On InfiniBand this is the policy: `auto` follows, `enable` is up, `disable` is down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link_state: Option<VfLinkState>,
    /// Its node's GUID. InfiniBand only; the guest sees it when the VF is given to a driver the next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_guid: Option<Guid>,
    /// Its port's GUID. InfiniBand only; the guest sees it when the VF is given to a driver the next time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port_guid: Option<Guid>,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct Set {
    /// The PF.
    pub pf: PciAddress,
    /// What the PF says that it has set for the VF now.
    pub settings: VfSettings,
    /// What was changed; empty: it was so already.
    pub done: Vec<String>,
}

impl Wish {
    /// Values that can never be right.
    fn check(&self) -> Result<(), Error> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message).about(&self.pf));
        if let Some(Err(error)) = self.mac.map(MacAddress::unicast) {
            return invalid(error.to_string());
        }
        if let Some(vlan) = self.vlan.filter(|vlan| *vlan > 4094) {
            return invalid(format!("VLAN {vlan}: give 1 to 4094, or 0 for none"));
        }
        if let Some(qos) = self.qos.filter(|qos| *qos > 7) {
            return invalid(format!("priority {qos}: give 0 to 7"));
        }
        Ok(())
    }

    /// The changes that lead from what is set to what is wanted.
    fn changes(&self, now: &VfSettings) -> Vec<VfChange> {
        let differs = |wanted: Option<bool>, now: Option<bool>| wanted.filter(|wanted| Some(*wanted) != now);
        let (vlan, qos) = (self.vlan.unwrap_or(now.vlan), self.qos.unwrap_or(now.qos));
        // Without a VLAN there is no priority: some drivers refuse one.
        let qos = if vlan == 0 { 0 } else { qos };
        let (min, max) = (self.min_rate.unwrap_or(now.min_rate), self.max_rate.unwrap_or(now.max_rate));
        [
            // Always: what the kernel reports may be the VF's own choice (or a random one), which a guest may change as long as nobody gave it one.
            self.mac.map(VfChange::Mac),
            ((vlan, qos) != (now.vlan, now.qos)).then_some(VfChange::Vlan(vlan, qos)),
            ((min, max) != (now.min_rate, now.max_rate)).then_some(VfChange::Rate(min, max)),
            differs(self.spoof_check, now.spoof_check).map(VfChange::SpoofCheck),
            differs(self.trust, now.trust).map(VfChange::Trust),
            self.link_state.filter(|state| Some(*state) != now.link_state).map(VfChange::LinkState),
            self.node_guid.filter(|guid| Some(*guid) != now.node_guid).map(VfChange::NodeGuid),
            self.port_guid.filter(|guid| Some(*guid) != now.port_guid).map(VfChange::PortGuid),
        ]
        .into_iter()
        .flatten()
        .collect()
    }
}

/// The change that takes another one back; nothing where it is not known what was before.
fn inverse(change: VfChange, before: &VfSettings) -> Option<VfChange> {
    Some(match change {
        // All zeroes: none was given to it.
        VfChange::Mac(_) => VfChange::Mac(before.mac.unwrap_or(MacAddress([0; 6]))),
        VfChange::Vlan(..) => VfChange::Vlan(before.vlan, before.qos),
        VfChange::Rate(..) => VfChange::Rate(before.min_rate, before.max_rate),
        VfChange::SpoofCheck(_) => VfChange::SpoofCheck(before.spoof_check?),
        VfChange::Trust(_) => VfChange::Trust(before.trust?),
        VfChange::LinkState(_) => VfChange::LinkState(before.link_state?),
        VfChange::NodeGuid(_) => VfChange::NodeGuid(before.node_guid?),
        VfChange::PortGuid(_) => VfChange::PortGuid(before.port_guid?),
    })
}

/// Makes a VF's settings as they are wanted, each of them or none, and reads them back.
pub(crate) fn set(host: &Host, wish: &Wish) -> Result<Set, Error> {
    wish.check()?;
    let name = wish.pf.as_str();
    let refuse = |kind, message: String| Err(Error::new(kind, message).about(name));
    let (function, _, enabled) = sriov::pf(host, name)?;
    if wish.vf >= enabled {
        let remedy = if enabled == 0 {
            "make some (ringspan vf enable PF COUNT)".into()
        } else {
            format!("they are numbered 0 to {}", enabled - 1)
        };
        let vf = wish.vf;
        return refuse(ErrorKind::NotFound, format!("{name} has no VF {vf}, it has {enabled}: {remedy}"));
    }
    let inventory = Inventory::take(host);
    let pf = inventory.pf_named(name)?;
    let Some(interface) = pf.interface.as_deref() else {
        let driver = pf.driver.as_deref().unwrap_or("no driver");
        let message = format!(
            "{name} has no interface ({driver} has it), and its VFs are set by that: give it to the kernel's driver (ringspan device bind PF --restore)"
        );
        return refuse(ErrorKind::Unsupported, message);
    };
    allowed(&inventory, wish, &pf.address, pf.link_type, pf.eswitch_mode)?;
    let Some(index) = index(&host.sysfs, interface) else {
        return refuse(ErrorKind::Failed, format!("{name}: {interface} has no index: is it just going?"));
    };
    let vf = u32::from(wish.vf);
    let before = read(host, name, index, vf)?;
    let (min, max) = (wish.min_rate.unwrap_or(before.min_rate), wish.max_rate.unwrap_or(before.max_rate));
    if max != 0 && min > max {
        return refuse(
            ErrorKind::Invalid,
            format!("{name} VF {vf}: a least rate of {min} Mbit/s is above the most, {max}"),
        );
    }
    let mut steps = Steps::default();
    for change in wish.changes(&before) {
        if let Err(error) = host.kernel.set_vf(index, vf, change) {
            return Err(steps.fail(explain(name, vf, change, &error).about(name)));
        }
        let what = format!("{name} VF {vf}: {}", said(change));
        match inverse(change, &before) {
            Some(back) => steps.did(what, move || {
                host.kernel.set_vf(index, vf, back).map_err(|error| explain(name, vf, back, &error).about(name))
            }),
            None => steps.note(what),
        }
    }
    let after = match read(host, name, index, vf) {
        Ok(after) => after,
        Err(error) => return Err(steps.fail(error)),
    };
    let there = |change: &VfChange| match change {
        VfChange::Mac(mac) => Some(*mac) == after.mac,
        // Kernels before 5.5 do not tell of them (ndo_get_vf_guid).
        VfChange::NodeGuid(_) => after.node_guid.is_none(),
        VfChange::PortGuid(_) => after.port_guid.is_none(),
        _ => false,
    };
    if let Some(change) = wish.changes(&after).iter().find(|change| !there(change)) {
        let message =
            format!("{name} VF {vf}: the driver took {} and does not have it: it has no such setting", said(*change));
        return Err(steps.fail(Error::new(ErrorKind::Unsupported, message).about(name)));
    }
    Ok(Set { pf: function.address, settings: after, done: steps.finish() })
}

/// What is set for a VF, where that can be told: what [`undo`] goes back to.
pub(crate) fn look(host: &Host, wish: &Wish) -> Option<VfSettings> {
    let interface = Inventory::take(host).pf_named(&wish.pf).ok()?.interface?;
    read(host, &wish.pf, index(&host.sysfs, &interface)?, wish.vf.into()).ok()
}

/// Takes back what of a wish a daemon that was killed may have done, last first.
pub(crate) fn undo(host: &Host, wish: &Wish, before: &VfSettings) -> Result<(), Error> {
    let (name, vf) = (wish.pf.as_str(), u32::from(wish.vf));
    let interface = Inventory::take(host).pf_named(name)?.interface;
    let Some(index) = interface.and_then(|interface| index(&host.sysfs, &interface)) else { return Ok(()) };
    let now = read(host, name, index, vf)?;
    let mut refused = None;
    for back in wish.changes(before).into_iter().rev().filter_map(|change| inverse(change, before)) {
        let is_so = match back {
            VfChange::Mac(mac) => now.mac.unwrap_or(MacAddress([0; 6])) == mac,
            VfChange::Vlan(vlan, qos) => (now.vlan, now.qos) == (vlan, qos),
            VfChange::Rate(min, max) => (now.min_rate, now.max_rate) == (min, max),
            VfChange::SpoofCheck(on) => now.spoof_check == Some(on),
            VfChange::Trust(on) => now.trust == Some(on),
            VfChange::LinkState(link) => now.link_state == Some(link),
            VfChange::NodeGuid(guid) => now.node_guid == Some(guid),
            VfChange::PortGuid(guid) => now.port_guid == Some(guid),
        };
        if !is_so && let Err(error) = host.kernel.set_vf(index, vf, back) {
            refused.get_or_insert(explain(name, vf, back, &error).about(name));
        }
    }
    refused.map_or(Ok(()), Err)
}

/// Makes a VF's settings as they were, as far as the driver takes them. What is not known, or was not set for it, stays.
pub(crate) fn restore(host: &Host, pf: &str, vf: u16, before: &VfSettings) -> Result<(), Error> {
    let inventory = Inventory::take(host);
    let interface = inventory.pf_named(pf)?.interface;
    let Some(index) = interface.and_then(|interface| index(&host.sysfs, &interface)) else { return Ok(()) };
    let now = read(host, pf, index, u32::from(vf))?;
    let changes = [
        (now.mac != before.mac).then(|| VfChange::Mac(before.mac.unwrap_or(MacAddress([0; 6])))),
        ((now.vlan, now.qos) != (before.vlan, before.qos)).then_some(VfChange::Vlan(before.vlan, before.qos)),
        ((now.min_rate, now.max_rate) != (before.min_rate, before.max_rate))
            .then_some(VfChange::Rate(before.min_rate, before.max_rate)),
        before.node_guid.filter(|guid| Some(*guid) != now.node_guid).map(VfChange::NodeGuid),
        before.port_guid.filter(|guid| Some(*guid) != now.port_guid).map(VfChange::PortGuid),
        // On InfiniBand it was set with the GUIDs.
        before
            .link_state
            .filter(|state| now.port_guid.is_some() && Some(*state) != now.link_state)
            .map(VfChange::LinkState),
    ];
    let mut refused = None;
    for change in changes.into_iter().flatten() {
        let Err(error) = host.kernel.set_vf(index, u32::from(vf), change) else { continue };
        let error = explain(pf, u32::from(vf), change, &error).about(pf);
        match change {
            // Many drivers take one only with a link. Who gets the VF next is given rates of their own.
            VfChange::Rate(..) => tracing::warn!("{error}"),
            _ => refused = refused.or(Some(error)),
        }
    }
    refused.map_or(Ok(()), Err)
}

/// What a mode or a kind of link forbids, with what to do instead.
fn allowed(
    inventory: &Inventory<'_>,
    wish: &Wish,
    pf: &PciAddress,
    link_type: LinkType,
    mode: Option<EswitchMode>,
) -> Result<(), Error> {
    let (name, vf) = (wish.pf.as_str(), wish.vf);
    let refuse = |message: String| Err(Error::new(ErrorKind::Unsupported, message).about(name));
    let vlan = wish.vlan.is_some_and(|vlan| vlan != 0) || wish.qos.is_some_and(|qos| qos != 0);
    if mode == Some(EswitchMode::Switchdev) && (vlan || wish.spoof_check.is_some()) {
        let representor = inventory.devices().into_iter().find(|one| one.pf.as_ref() == Some(pf) && one.vf == Some(vf));
        let representor = representor.and_then(|one| one.representor).unwrap_or_else(|| "REPRESENTOR".into());
        if vlan {
            let tag = wish.vlan.unwrap_or_default();
            return refuse(format!(
                "{name} VF {vf}: in switchdev mode Open vSwitch tags: ringspan ovs configure --bridge BRIDGE --port {representor} --tag {tag}"
            ));
        }
        return refuse(format!(
            "{name} VF {vf}: in switchdev mode Open vSwitch checks source addresses: by flows on {representor} (in_port and dl_src), not by the PF"
        ));
    }
    if link_type == LinkType::Ethernet && (wish.node_guid.is_some() || wish.port_guid.is_some()) {
        return refuse(format!(
            "{name} VF {vf}: the link is Ethernet, which has no GUIDs: give it a MAC address (--mac)"
        ));
    }
    if link_type == LinkType::Infiniband
        && let Some(mac) = wish.mac
    {
        return refuse(format!(
            "{name} VF {vf}: the link is InfiniBand, which has no MAC addresses: give it GUIDs (--node-guid 00:01:{mac} --port-guid 00:10:{mac}, as the agent does)"
        ));
    }
    if link_type == LinkType::Infiniband && (wish.mac.is_some() || vlan || wish.spoof_check.is_some()) {
        return refuse(format!(
            "{name} VF {vf}: the link is InfiniBand, which has no MAC addresses, VLANs or spoof check"
        ));
    }
    Ok(())
}

fn read(host: &Host, name: &str, index: u32, vf: u32) -> Result<VfSettings, Error> {
    let settings = host
        .kernel
        .vfs(index)
        .map_err(|error| error.tell(format!("{name}: the settings of its VFs cannot be read")).about(name))?;
    settings.into_iter().find(|settings| settings.vf == vf).ok_or_else(|| {
        let message = format!("{name}: its driver says nothing of VF {vf}: it has no settings for VFs");
        Error::new(ErrorKind::Unsupported, message).about(name)
    })
}

fn said(change: VfChange) -> String {
    let on = |on| if on { "on" } else { "off" };
    match change {
        VfChange::Mac(mac) => format!("MAC address {mac}"),
        VfChange::Vlan(0, _) => "no VLAN".into(),
        VfChange::Vlan(vlan, qos) => format!("VLAN {vlan}, priority {qos}"),
        VfChange::Rate(min, max) => format!("rate {min} to {max} Mbit/s (0: none)"),
        VfChange::SpoofCheck(check) => format!("spoof check {}", on(check)),
        VfChange::Trust(trust) => format!("trust {}", on(trust)),
        VfChange::LinkState(VfLinkState::Auto) => "link as the PF's".into(),
        VfChange::LinkState(VfLinkState::Enable) => "link always up".into(),
        VfChange::LinkState(VfLinkState::Disable) => "link always down".into(),
        VfChange::NodeGuid(guid) => format!("node GUID {guid}"),
        VfChange::PortGuid(guid) => format!("port GUID {guid}"),
    }
}

fn explain(name: &str, vf: u32, change: VfChange, error: &NetlinkError) -> Error {
    let refused = error.tell(format!("{name} VF {vf}: {} is refused", said(change)));
    let remedy = match (change, error.errno()) {
        (_, Some(libc::EOPNOTSUPP)) => "its driver has no such setting",
        (_, Some(libc::EPERM | libc::EACCES)) => "run the daemon as root",
        (VfChange::Rate(..), Some(libc::EINVAL)) => {
            "the PF's link must be up, the rate no more than the link's, and many drivers keep no least rate"
        }
        _ => return refused,
    };
    Error { message: format!("{}: {remedy}", refused.message), ..refused }
}
