//! The steps of attachments on a real host.

use std::path::{Path, PathBuf};

use ringspan_protocol::{DeviceSpec, MacAddress, NicName, PciAddress, PortName, VfSettings as SoftSettings};

use super::record::{Record, Step, Target};
use super::request::{Attach, Mode};
use super::run::World;
use crate::error::{Error, ErrorKind};
use crate::host::Host;
use crate::host::bind::{self, Memory};
use crate::host::inventory::Inventory;
use crate::host::netlink::{Guid, LinkChange, VfLinkState};
use crate::host::vf::{self, Wish};
use crate::host::{inventory, pci_function};
use crate::ovs::client::{Database, Place};
use crate::ovs::configure::{Configure, Outcome, WantedPort, configure};
use crate::ovs::view::View;
use crate::port_request::PortRequest;

/// Longest wait until ovs-vswitchd has taken a port, in milliseconds.
const SETTLE_MS: u64 = 10_000;

/// What the daemon does with its lanes.
pub(crate) trait Lanes {
    /// Adds a port, or leaves an equal one alone; one of that name that differs in what can be changed while it runs is changed.
    fn add_port(&self, port: &PortRequest) -> Result<Vec<String>, Error>;
    /// Removes a port, if it is there.
    fn remove_port(&self, name: &PortName) -> Result<(), Error>;
    /// How far the front-end of a port has come that is connected; nothing: none is. An error: the port's lane cannot be asked, or does not have the port
    /// yet, so that its front-end may be connected, or about to be again.
    fn front_end(&self, name: &PortName) -> Result<Option<String>, Error>;
    /// What differs of a port.
    fn port_differs(&self, port: &PortRequest) -> Result<Option<String>, Error>;
    /// Gives a VF of a software NIC in legacy mode these settings.
    fn set_soft_vf(&self, nic: &NicName, settings: SoftSettings) -> Result<(), Error>;
    /// Gives it settings back that it had. A lane that does not run, or does not answer, has them when it does.
    fn restore_soft_vf(&self, nic: &NicName, settings: SoftSettings) -> Result<(), Error>;
    /// Its settings; nothing: there is no such NIC.
    fn soft_vf(&self, nic: &NicName, vf: u16) -> Option<SoftSettings>;
    /// The port, or the NIC, that has claimed a VF. Asks for no attachments.
    fn owner(&self, target: &Target) -> Option<String>;
}

/// A host, its Open vSwitch and its lanes.
pub(crate) struct Real<'a> {
    /// The host.
    pub host: &'a Host,
    /// The drivers that functions had.
    pub memory: &'a dyn Memory,
    /// Where Open vSwitch is.
    pub ovs: Place,
    /// The lanes.
    pub lanes: &'a dyn Lanes,
    /// Where sockets are that nobody named.
    pub run_dir: PathBuf,
}

impl World for Real<'_> {
    fn apply(&self, step: Step, record: &mut Record) -> Result<Vec<String>, Error> {
        match step {
            Step::Settings => self.set(record),
            Step::Driver => self.bind(record, record.driver.as_deref()),
            Step::Bridge => self.put_into_bridge(record),
            Step::Port => self.lanes.add_port(&port(record, &self.run_dir)?),
        }
    }

    fn undo(&self, step: Step, record: &Record) -> Result<(), Error> {
        let undone = match step {
            Step::Settings => self.unset(record),
            Step::Driver => self.bind(record, None).map(drop),
            Step::Bridge => self.take_out_of_bridge(record),
            Step::Port => self.lanes.remove_port(&record.key().port()?),
        };
        match undone {
            // Of a VF that is not there any more nothing is left, whatever its PF says now. A port of Open vSwitch's or of ours stays without it.
            Err(error) if forgiven(step, &error) && !self.is_there(record) => Ok(()),
            undone => undone,
        }
    }

    fn drift(&self, step: Step, record: &Record) -> Result<Option<String>, Error> {
        if !self.is_there(record) {
            return Ok(Some(format!("{} is gone", record.target)));
        }
        match step {
            Step::Settings => self.settings_differ(record),
            Step::Driver => Ok(self.driver_differs(record)),
            Step::Bridge => self.bridge_differs(record),
            Step::Port => self.lanes.port_differs(&port(record, &self.run_dir)?),
        }
    }

    fn claimed(&self, record: &Record) -> Option<String> {
        self.lanes.owner(&record.target)
    }

    fn user(&self, record: &Record) -> Result<Option<String>, Error> {
        if record.wanted.mode == Mode::Vhost {
            // The VF itself is open in our own lane.
            let state = self.lanes.front_end(&record.key().port()?)?;
            return Ok(state.map(|state| format!("its guest is connected ({state})")));
        }
        let Target::Pci { address, .. } = &record.target else { return Ok(None) };
        let process = pci_function(self.host, *address).and_then(|function| self.host.vfio_user(&function));
        Ok(process.map(|process| format!("process {process} has {} open", record.target)))
    }
}

/// The GUIDs of a VF's node and port, as the host agent makes them of a guest's address.
fn guids(mac: MacAddress) -> [Guid; 2] {
    let [a, b, c, d, e, f] = mac.0;
    [0x01, 0x10].map(|kind| Guid(u64::from_be_bytes([0x00, kind, a, b, c, d, e, f])))
}

/// Whether an error of taking a step back is nothing where the VF is gone.
fn forgiven(step: Step, error: &Error) -> bool {
    match step {
        Step::Settings | Step::Driver => true,
        // That its representor cannot be used as it was. Who cannot be asked has it still.
        Step::Bridge => error.kind != ErrorKind::OvsDown,
        Step::Port => error.kind == ErrorKind::NotFound,
    }
}

/// The port of an attachment.
pub(crate) fn port(record: &Record, run_dir: &Path) -> Result<PortRequest, Error> {
    let device = match &record.target {
        Target::Pci { address, .. } => DeviceSpec::Pci { address: *address, args: String::new() },
        Target::Soft { nic, vf } => DeviceSpec::Soft { nic: nic.to_string(), vf: *vf },
    };
    // A VF of the software NIC has no address of its own that could be set: the guest has it from QEMU, and a NIC in legacy mode by
    // its settings.
    let mac = matches!(record.target, Target::Pci { .. }).then_some(record.mac);
    request(&record.wanted, mac, device, run_dir)
}

/// The port that is wanted, on this device.
pub(crate) fn request(
    wanted: &Attach,
    mac: Option<MacAddress>,
    device: DeviceSpec,
    run_dir: &Path,
) -> Result<PortRequest, Error> {
    let name = wanted.port()?;
    Ok(PortRequest {
        socket: wanted.socket.clone().unwrap_or_else(|| run_dir.join(format!("{name}.sock"))),
        name,
        role: wanted.role,
        device,
        queues: wanted.queues,
        mtu: wanted.mtu,
        mac,
        promiscuous: Default::default(),
        allmulti: Default::default(),
        socket_owner: wanted.socket_owner.clone(),
        socket_mode: wanted.socket_mode.clone(),
        compat: None,
        offloads: true,
        zero_copy: Default::default(),
        zero_copy_from: None,
        max_rate: wanted.max_rate,
        mode: Default::default(),
        lane: wanted.lane.clone(),
    })
}

impl Real<'_> {
    /// Whether the VF is there.
    fn is_there(&self, record: &Record) -> bool {
        match &record.target {
            Target::Pci { address, .. } => inventory::find(self.host, &address.to_string()).is_ok(),
            Target::Soft { nic, vf } => self.lanes.soft_vf(nic, *vf).is_some(),
        }
    }

    fn wish(&self, record: &Record, pf: PciAddress, number: u16) -> Wish {
        let wanted = &record.wanted;
        if record.infiniband {
            let [node, port] = guids(record.mac);
            return Wish {
                pf: pf.to_string(),
                vf: number,
                node_guid: Some(node),
                port_guid: Some(port),
                link_state: Some(VfLinkState::Auto),
                ..Wish::default()
            };
        }
        // What a wish leaves out stays, and nobody said anything of rates.
        let rates = record.rated
            || (wanted.min_rate, wanted.max_rate) != (0, 0)
            || record.before.settings.as_ref().is_some_and(|before| (before.min_rate, before.max_rate) != (0, 0));
        Wish {
            pf: pf.to_string(),
            vf: number,
            mac: Some(record.mac),
            vlan: record.vlan_by_vf.then_some(wanted.vlan),
            min_rate: rates.then_some(wanted.min_rate),
            max_rate: rates.then_some(wanted.max_rate),
            ..Wish::default()
        }
    }

    fn soft(record: &Record, vf: u16, now: Option<SoftSettings>) -> SoftSettings {
        SoftSettings {
            mac: Some(record.mac),
            vlan: record.wanted.vlan,
            // The rest is as somebody set it, before or since.
            ..now.or(record.before.soft).unwrap_or(SoftSettings::new(vf))
        }
    }

    fn set(&self, record: &Record) -> Result<Vec<String>, Error> {
        match &record.target {
            Target::Pci { pf, vf, .. } => {
                let wish = self.wish(record, *pf, *vf);
                match vf::set(self.host, &wish) {
                    // The relay holds it to its rate then.
                    Err(error)
                        if record.wanted.mode == Mode::Vhost
                            && record.wanted.min_rate == 0
                            && wish.max_rate.is_some()
                            && error.kind != ErrorKind::Permission =>
                    {
                        let plain = Wish { min_rate: Some(0), max_rate: Some(0), ..wish };
                        vf::set(self.host, &plain).map(|set| set.done)
                    }
                    set => set.map(|set| set.done),
                }
            }
            Target::Soft { nic, vf } => {
                let now = self.lanes.soft_vf(nic, *vf);
                let settings = Self::soft(record, *vf, now);
                if now == Some(settings) {
                    return Ok(vec![]);
                }
                self.lanes.set_soft_vf(nic, settings)?;
                Ok(vec![format!("{}: MAC address {}, VLAN {}", record.target, record.mac, record.wanted.vlan)])
            }
        }
    }

    fn unset(&self, record: &Record) -> Result<(), Error> {
        match (&record.target, &record.before) {
            (Target::Pci { pf, vf: number, .. }, before) => match &before.settings {
                Some(settings) => vf::restore(self.host, &pf.to_string(), *number, settings),
                None => Ok(()),
            },
            (Target::Soft { nic, vf }, before) => match before.soft {
                Some(settings) if self.lanes.soft_vf(nic, *vf) != Some(settings) => {
                    self.lanes.restore_soft_vf(nic, settings)
                }
                _ => Ok(()),
            },
        }
    }

    fn settings_differ(&self, record: &Record) -> Result<Option<String>, Error> {
        let differs =
            |what: &str, is: String, should: String| Some(format!("{} has {what} {is}, not {should}", record.target));
        match &record.target {
            Target::Pci { address, pf, vf } => {
                let inventory = Inventory::take(self.host);
                let device = inventory.device_named(&address.to_string())?;
                let Some(now) = inventory.settings(&device) else { return Ok(None) };
                if record.infiniband {
                    let [node, port] = guids(record.mac);
                    // Kernels before 5.5 do not tell of them.
                    let other = |now: Option<Guid>, should| now.filter(|now| *now != should).map(|now| (now, should));
                    let found = other(now.node_guid, node).or_else(|| other(now.port_guid, port));
                    return Ok(found.and_then(|(is, should)| differs("GUID", is.to_string(), should.to_string())));
                }
                if let Some(mac) = now.mac.filter(|mac| *mac != record.mac) {
                    return Ok(differs("MAC address", mac.to_string(), record.mac.to_string()));
                }
                if record.vlan_by_vf && now.vlan != record.wanted.vlan {
                    return Ok(differs("VLAN", now.vlan.to_string(), record.wanted.vlan.to_string()));
                }
                let wish = self.wish(record, *pf, *vf);
                let should = wish.min_rate.zip(wish.max_rate);
                let is = (now.min_rate, now.max_rate);
                // The relay may hold it to its rate instead.
                let by_relay = record.wanted.mode == Mode::Vhost && record.wanted.min_rate == 0 && is == (0, 0);
                let said = |(min, max): (u32, u32)| format!("{min} to {max} Mbit/s");
                let should = should.filter(|should| *should != is && !by_relay);
                Ok(should.and_then(|should| differs("rates of", said(is), said(should))))
            }
            Target::Soft { nic, vf } => {
                let now = self.lanes.soft_vf(nic, *vf);
                let should = Self::soft(record, *vf, now);
                Ok(now.filter(|now| *now != should).and_then(|now| {
                    let (is, should) = (now.mac.map_or("none".into(), |mac| mac.to_string()), record.mac.to_string());
                    if is != should {
                        return differs("MAC address", is, should);
                    }
                    differs("VLAN", now.vlan.to_string(), record.wanted.vlan.to_string())
                }))
            }
        }
    }

    fn bind(&self, record: &Record, driver: Option<&str>) -> Result<Vec<String>, Error> {
        let Target::Pci { address, .. } = &record.target else { return Ok(vec![]) };
        // Its interface may be up, as the kernel's driver leaves it: it was chosen because nobody has it.
        bind::bind(self.host, self.memory, &address.to_string(), driver, true, |_| None).map(|bound| bound.done)
    }

    fn driver_differs(&self, record: &Record) -> Option<String> {
        let Target::Pci { address, .. } = &record.target else { return None };
        let now = pci_function(self.host, *address)?.driver;
        let said = |driver: Option<&str>| driver.unwrap_or("no driver").to_owned();
        (now != record.driver)
            .then(|| format!("{} has {address}, not {}", said(now.as_deref()), said(record.driver.as_deref())))
    }

    fn wanted_port(record: &Record) -> Option<WantedPort> {
        Some(WantedPort {
            name: record.representor.clone()?,
            bridge: record.bridge.clone(),
            tag: Some(record.wanted.vlan),
            iface_id: Some(record.wanted.iface_id.clone().unwrap_or_default()),
            ..WantedPort::default()
        })
    }

    /// Makes a port so in the database. Also returns whether ovs-vswitchd has taken it.
    fn configure(&self, port: WantedPort) -> Result<(Vec<String>, bool), Error> {
        let name = port.name.clone();
        let wanted = Configure { ports: vec![port], timeout_ms: SETTLE_MS, ..Configure::default() };
        let configured = configure(&self.ovs, &wanted)?;
        let mut done = vec![];
        let settled = configured.settled;
        for item in configured.items {
            match (item.outcome, item.error) {
                (Outcome::Refused, Some(error)) => return Err(error),
                _ => done.extend(item.done.into_iter().map(|what| format!("{name}: {what}"))),
            }
        }
        Ok((done, settled))
    }

    fn put_into_bridge(&self, record: &Record) -> Result<Vec<String>, Error> {
        let Some(port) = Self::wanted_port(record) else { return Ok(vec![]) };
        let name = port.name.clone();
        let found = WantedPort::of(&View::read(&mut Database::connect(&self.ovs)?)?, &name);
        let before = found.unwrap_or(WantedPort { absent: true, ..port.clone() });
        let put = self.configure(port).and_then(|(done, settled)| {
            if !settled {
                let message = format!(
                    "{name} is in the database, and ovs-vswitchd has not taken it within {} s: see whether that runs (ringspan ovs show), and attach again",
                    SETTLE_MS / 1000
                );
                return Err(Error::new(ErrorKind::OvsDown, message).about(&name));
            }
            self.put_up(&name).map(|()| done)
        });
        // The database may have it, where ovs-vswitchd cannot use it. A port that was there stays, as it was: a guest may run on it.
        put.map_err(|error| match self.configure(before) {
            Ok(_) => error,
            Err(why) => {
                Error { message: format!("{}; left: its port in the bridge ({})", error.message, why.message), ..error }
            }
        })
    }

    /// Has an interface go up, if there is one of this name. By the kernel's index, not that of /sys, which may be another network namespace's.
    pub(crate) fn put_up(&self, name: &str) -> Result<(), Error> {
        let Some(index) = self.host.kernel.index(name) else { return Ok(()) };
        let up = self.host.kernel.change_link(&LinkChange::Up(index, true));
        up.map_err(|error| error.tell(format!("{name} does not go up")).about(name))
    }

    fn take_out_of_bridge(&self, record: &Record) -> Result<(), Error> {
        let Some(port) = Self::wanted_port(record) else { return Ok(()) };
        let view = View::read(&mut Database::connect(&self.ovs)?)?;
        let there = view.port(&port.name).filter(|(bridge, _)| Some(&bridge.name) == record.bridge.as_ref());
        if there.is_none() {
            // Gone, or by now somebody else's.
            return Ok(());
        }
        let before = record.before.port.clone().unwrap_or(WantedPort { absent: true, ..port });
        self.configure(before).map(drop)
    }

    fn bridge_differs(&self, record: &Record) -> Result<Option<String>, Error> {
        let Some(wanted) = Self::wanted_port(record) else { return Ok(None) };
        let (name, bridge) = (&wanted.name, wanted.bridge.clone().unwrap_or_default());
        let view = View::read(&mut Database::connect(&self.ovs)?)?;
        let Some((found, port)) = view.port(name) else {
            return Ok(Some(format!("{name} is in no bridge, not in {bridge}")));
        };
        if found.name != bridge {
            return Ok(Some(format!("{name} is in bridge {}, not in {bridge}", found.name)));
        }
        let (tag, should) = (port.tag.unwrap_or(0), wanted.tag.unwrap_or(0));
        if tag != should {
            return Ok(Some(format!("{name} has the tag {tag}, not {should}")));
        }
        let id = port.interfaces.first().and_then(|one| one.iface_id.clone()).unwrap_or_default();
        let should = wanted.iface_id.unwrap_or_default();
        Ok((id != should).then(|| format!("{name} has the iface-id {id:?}, not {should:?}")))
    }
}
