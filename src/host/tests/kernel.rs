//! A made-up kernel, which refuses as drivers do.
//!
//! Its words are those of the sources (drivers/net/ethernet/mellanox/mlx5/core/eswitch_offloads.c and en_main.c, drivers/net/ethernet/intel/igb);
//! not seen on hardware.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};

use crate::host::netlink::{
    DevlinkName, DevlinkPort, DriverInfo, EswitchChange, EswitchMode, EswitchState, Kernel, LinkChange, NetlinkError,
    VdpaConfig, VdpaDevice, VdpaManagement, VdpaNew, VfChange, VfCounters, VfSettings,
};

/// What a change of mode does; an error number: it is refused.
type OnMode = Box<dyn FnMut(EswitchMode) -> Result<(), i32> + Send>;

/// What a change of links does; an error number and the kernel's words: it is refused.
type OnLink = Box<dyn FnMut(&LinkChange<'_>) -> Result<(), (i32, &'static str)> + Send>;

/// Lets so many changes pass, and then none, as if the daemon had been killed there: also those that would take something back.
#[derive(Clone, Default)]
pub(super) struct Fuse(Arc<Mutex<(Option<usize>, bool)>>);

impl Fuse {
    pub(super) fn set(&self, left: Option<usize>) {
        self.0.lock().unwrap().0 = left;
    }

    pub(super) fn is_burnt(&self) -> bool {
        let (left, was_burnt) = &mut *self.0.lock().unwrap();
        match left {
            None => false,
            Some(0) => {
                *was_burnt = true;
                true
            }
            Some(left) => {
                *left -= 1;
                false
            }
        }
    }

    /// Whether anything was held back by it.
    pub(super) fn was_burnt(&self) -> bool {
        self.0.lock().unwrap().1
    }
}

/// What a vDPA device that comes or goes does.
type OnVdpa = Box<dyn FnMut(&str, Option<&VdpaNew>) + Send>;

/// What it knows, shared with the test.
#[derive(Default)]
pub(super) struct State {
    /// Settings of VFs by their PF's index.
    pub vfs: BTreeMap<u32, Vec<VfSettings>>,
    /// What it counted of VFs, by their PF's index and their number.
    pub vf_counters: BTreeMap<(u32, u32), VfCounters>,
    /// Interfaces of this network namespace by their names.
    pub indices: BTreeMap<String, u32>,
    /// Queueing disciplines that somebody put there.
    pub qdiscs: Vec<(&'static str, &'static str)>,
    /// Switches by device.
    pub eswitches: BTreeMap<DevlinkName, EswitchState>,
    pub ports: Vec<DevlinkPort>,
    pub steering: BTreeMap<DevlinkName, String>,
    pub tc_offload: BTreeMap<u32, bool>,
    pub drivers: BTreeMap<String, DriverInfo>,
    /// What is refused, how often at most, and with which words.
    pub refusals: Vec<(&'static str, u32, i32, &'static str)>,
    /// What was asked that changes something.
    pub changes: Vec<String>,
    /// What a change of mode does to the host, or why it is refused.
    pub on_mode: Option<OnMode>,
    /// What a change of links does to the host, or why it is refused.
    pub on_link: Option<OnLink>,
    /// Interfaces that have an IP address.
    pub addressed: BTreeSet<String>,
    /// What vDPA devices can be made on; none: there is no vDPA bus.
    pub vdpa_management: Option<Vec<VdpaManagement>>,
    pub vdpa_devices: Vec<VdpaDevice>,
    /// What devices show their drivers; absent: nobody has started them.
    pub vdpa_configs: BTreeMap<String, VdpaConfig>,
    /// What their drivers count, by name and queue.
    pub vdpa_queues: BTreeMap<(String, u32), Vec<(String, u64)>>,
    /// What making a vDPA device (with its settings) or taking one away (without) does to the host.
    pub on_vdpa: Option<OnVdpa>,
    /// How often lists of VFs were asked for.
    pub vf_lists: usize,
    /// What ends the daemon after so many changes.
    pub fuse: Fuse,
}

#[derive(Clone, Default)]
pub(super) struct FakeKernel(pub Arc<Mutex<State>>);

fn refused<T>(errno: i32, said: &str) -> Result<T, NetlinkError> {
    Err(NetlinkError::Refused { errno, said: Some(said.to_owned()).filter(|said| !said.is_empty()) })
}

impl State {
    fn refusal(&mut self, what: &str) -> Result<(), NetlinkError> {
        if !["vfs", "vf_counters", "ports"].contains(&what) && self.fuse.is_burnt() {
            return refused(libc::EOWNERDEAD, "");
        }
        match self.refusals.iter_mut().find(|(name, left, ..)| what.starts_with(name) && *left > 0) {
            Some((_, left, errno, said)) => {
                *left -= 1;
                refused(*errno, said)
            }
            None => Ok(()),
        }
    }
}

impl Kernel for FakeKernel {
    fn index(&self, interface: &str) -> Option<u32> {
        self.0.lock().unwrap().indices.get(interface).copied()
    }

    fn vfs(&self, index: u32) -> Result<Vec<VfSettings>, NetlinkError> {
        let mut state = self.0.lock().unwrap();
        state.vf_lists += 1;
        state.refusal("vfs")?;
        Ok(state.vfs.get(&index).cloned().unwrap_or_default())
    }

    fn vf_counters(&self, index: u32, vf: u32) -> Result<Option<VfCounters>, NetlinkError> {
        let mut state = self.0.lock().unwrap();
        state.refusal("vf_counters")?;
        Ok(state.vf_counters.get(&(index, vf)).copied())
    }

    fn qdiscs(&self) -> Result<Vec<(String, String)>, NetlinkError> {
        let state = self.0.lock().unwrap();
        Ok(state.qdiscs.iter().map(|(interface, kind)| (interface.to_string(), kind.to_string())).collect())
    }

    fn set_vf(&self, index: u32, vf: u32, change: VfChange) -> Result<(), NetlinkError> {
        let mut state = self.0.lock().unwrap();
        let what = format!("set_vf {vf} {change:?}");
        state.refusal(&what)?;
        state.changes.push(what);
        let found = state.vfs.get_mut(&index).and_then(|vfs| vfs.iter_mut().find(|settings| settings.vf == vf));
        let Some(settings) = found else { return refused(libc::EINVAL, "") };
        match change {
            VfChange::Mac(mac) => settings.mac = Some(mac),
            VfChange::Vlan(vlan, qos) => (settings.vlan, settings.qos) = (vlan, qos),
            VfChange::Rate(min, max) => (settings.min_rate, settings.max_rate) = (min, max),
            VfChange::SpoofCheck(on) => settings.spoof_check = Some(on),
            VfChange::Trust(on) => settings.trust = Some(on),
            VfChange::LinkState(link) => settings.link_state = Some(link),
            VfChange::NodeGuid(guid) => settings.node_guid = Some(guid),
            VfChange::PortGuid(guid) => settings.port_guid = Some(guid),
        }
        Ok(())
    }

    fn eswitch(&self, device: &DevlinkName) -> Result<EswitchState, NetlinkError> {
        let found = self.0.lock().unwrap().eswitches.get(device).copied();
        found.map_or_else(|| refused(libc::ENODEV, ""), Ok)
    }

    fn set_eswitch(&self, device: &DevlinkName, change: EswitchChange) -> Result<(), NetlinkError> {
        let mut state = self.0.lock().unwrap();
        let what = format!("eswitch {change:?}");
        state.refusal(&what)?;
        if let (EswitchChange::Mode(mode), Some(act)) = (change, state.on_mode.as_mut())
            && let Err(errno) = act(mode)
        {
            return refused(errno, "Failed setting eswitch mode");
        }
        state.changes.push(what);
        let Some(eswitch) = state.eswitches.get_mut(device) else { return refused(libc::EOPNOTSUPP, "") };
        match change {
            EswitchChange::Mode(mode) => eswitch.mode = mode,
            EswitchChange::Inline(mode) => eswitch.inline_mode = Some(mode),
            EswitchChange::Encap(mode) => eswitch.encap_mode = Some(mode),
        }
        Ok(())
    }

    fn ports(&self) -> Result<Vec<DevlinkPort>, NetlinkError> {
        let mut state = self.0.lock().unwrap();
        state.refusal("ports")?;
        Ok(state.ports.clone())
    }

    fn steering(&self, device: &DevlinkName) -> Result<String, NetlinkError> {
        let found = self.0.lock().unwrap().steering.get(device).cloned();
        found.map_or_else(|| refused(libc::EINVAL, ""), Ok)
    }

    fn set_steering(&self, device: &DevlinkName, mode: &str) -> Result<(), NetlinkError> {
        let mut state = self.0.lock().unwrap();
        state.refusal("steering")?;
        state.changes.push(format!("steering {mode}"));
        match state.steering.get_mut(device) {
            Some(steering) => *steering = mode.into(),
            None => return refused(libc::EINVAL, ""),
        }
        Ok(())
    }

    fn tc_offload(&self, index: u32) -> Result<bool, NetlinkError> {
        Ok(self.0.lock().unwrap().tc_offload.get(&index).copied().unwrap_or_default())
    }

    fn set_tc_offload(&self, index: u32, on: bool) -> Result<(), NetlinkError> {
        let mut state = self.0.lock().unwrap();
        state.refusal("tc")?;
        state.changes.push(format!("tc {on}"));
        state.tc_offload.insert(index, on);
        Ok(())
    }

    fn driver(&self, interface: &str) -> Result<DriverInfo, NetlinkError> {
        let found = self.0.lock().unwrap().drivers.get(interface).cloned();
        found.map_or_else(|| refused(libc::EOPNOTSUPP, ""), Ok)
    }
    fn change_link(&self, change: &LinkChange<'_>) -> Result<(), NetlinkError> {
        let mut state = self.0.lock().unwrap();
        let what = format!("link {change:?}");
        state.refusal(&what)?;
        state.changes.push(what);
        match state.on_link.as_mut().map(|act| act(change)) {
            Some(Err((errno, said))) => refused(errno, said),
            _ => Ok(()),
        }
    }
    fn has_address(&self, interface: &str) -> bool {
        self.0.lock().unwrap().addressed.contains(interface)
    }

    fn vdpa_management(&self) -> Result<Vec<VdpaManagement>, NetlinkError> {
        let found = self.0.lock().unwrap().vdpa_management.clone();
        found.ok_or(NetlinkError::NoFamily { name: "vdpa" })
    }

    fn vdpa_devices(&self) -> Result<Vec<VdpaDevice>, NetlinkError> {
        Ok(self.0.lock().unwrap().vdpa_devices.clone())
    }

    fn vdpa_config(&self, name: &str) -> Result<VdpaConfig, NetlinkError> {
        let found = self.0.lock().unwrap().vdpa_configs.get(name).copied();
        found.map_or_else(|| refused(libc::EAGAIN, "Features negotiation not completed"), Ok)
    }

    fn add_vdpa(&self, new: &VdpaNew) -> Result<(), NetlinkError> {
        let mut state = self.0.lock().unwrap();
        let what = format!("add_vdpa {} {:?} {:?} {:?} {:?}", new.name, new.mac, new.mtu, new.max_vqp, new.features);
        state.refusal(&what)?;
        if state.vdpa_devices.iter().any(|device| device.name == new.name) {
            return refused(libc::EEXIST, "");
        }
        state.changes.push(what);
        let device = VdpaDevice {
            name: new.name.clone(),
            parent: new.parent.clone(),
            id: 1,
            vendor: 0x1af4,
            max_vqs: 3,
            max_vq_size: Some(256),
            min_vq_size: Some(1),
        };
        state.vdpa_devices.push(device);
        if let Some(act) = state.on_vdpa.as_mut() {
            act(&new.name, Some(new));
        }
        Ok(())
    }

    fn remove_vdpa(&self, name: &str) -> Result<(), NetlinkError> {
        let mut state = self.0.lock().unwrap();
        state.refusal("remove_vdpa")?;
        let before = state.vdpa_devices.len();
        state.vdpa_devices.retain(|device| device.name != name);
        if state.vdpa_devices.len() == before {
            return refused(libc::ENODEV, "device not found");
        }
        state.changes.push(format!("remove_vdpa {name}"));
        if let Some(act) = state.on_vdpa.as_mut() {
            act(name, None);
        }
        Ok(())
    }

    fn vdpa_queue(&self, name: &str, index: u32) -> Result<Vec<(String, u64)>, NetlinkError> {
        let state = self.0.lock().unwrap();
        if state.vdpa_queues.is_empty() {
            return refused(libc::EOPNOTSUPP, "");
        }
        let found = state.vdpa_queues.get(&(name.to_owned(), index)).cloned();
        found.map_or_else(|| refused(libc::EINVAL, "virtqueue index is not valid"), Ok)
    }
}
