//! DPDK's virtio driver beside a vDPA device: it is a vhost-user front-end of ours, by a socket of its own, and has the device's rings while it is lent the device.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ringspan_protocol::{Compat, DeviceSpec, Failure, FailureKind, MTU_RANGE, MacAddress, PortSpec, Role};

use super::device_config;
use crate::nic::{Device, DeviceConfig, OwnMemory, QueuePair};
use crate::vdpa::{Driver, Facts};
use crate::vhost::{Session, SessionConfig};

/// Descriptors of its rings, where the device has so many: what the driver takes unless it is told otherwise.
const RING: u16 = 256;
/// How long its rings may take to start once the driver says that it runs.
const STARTED: Duration = Duration::from_secs(10);

/// A driver and its session. The device that it is opened as is to be closed before.
pub(super) struct Borrower {
    driver: Arc<Driver>,
    _session: Session,
    device: DeviceSpec,
    pairs: u16,
    /// The address of the vDPA device, which the driver cannot ask.
    mac: Option<MacAddress>,
    /// The same where the device says so, and has no other.
    has: Option<MacAddress>,
    /// The port's device, of which the driver knows nothing.
    named: String,
    /// The driver fails beside other memory.
    _own: OwnMemory,
}

impl Borrower {
    /// Listens for a driver that is offered what the device has.
    ///
    /// # Errors
    /// No socket, or no thread; [`FailureKind::Busy`] while the lane has guest memory that the driver fails beside.
    pub fn start(port: u64, folder: &Path, spec: &PortSpec, facts: &Facts) -> Result<Self, Failure> {
        let has = facts.net.mac;
        has_address(spec, has)?;
        let named = spec.device.to_string();
        let own = OwnMemory::only()
            .map_err(|why| Failure::new(FailureKind::Busy, format!("device {named} cannot be relayed: {why}")))?;
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!(".vdpa{port}-{number}");
        let socket = folder.join(&name);
        let driver = Driver::new(facts);
        let config = SessionConfig {
            name,
            socket: socket.clone(),
            role: Role::Server,
            owner: None,
            mode: None,
            compat: Compat::LATEST,
            offloads: spec.offloads,
            mtu: *MTU_RANGE.end(),
            private_dir: folder.into(),
        };
        let session = Session::start(config, Arc::clone(&driver) as _)?;
        let pairs = spec.queues.min(facts.pairs());
        let mac = has.or(spec.mac);
        let size = 1 << facts.largest_ring.min(RING).ilog2();
        let address = mac.map(|mac| format!(",mac={mac}")).unwrap_or_default();
        let args = format!("path={},queues={pairs},queue_size={size}{address}", socket.display());
        let device = DeviceSpec::Vdev { name: format!("net_virtio_user_vdpa{port}_{number}"), args };
        Ok(Self { driver, _session: session, device, pairs, mac, has, named, _own: own })
    }

    /// What it says, and the vDPA device while it has it.
    pub fn driver(&self) -> &Arc<Driver> {
        &self.driver
    }

    /// Opens the driver, and waits until its rings are there.
    ///
    /// # Errors
    /// What DPDK says.
    pub fn open(&self, spec: &PortSpec) -> Result<(Device, Vec<QueuePair>), Failure> {
        let config = self.config(spec)?;
        let mac = config.mac.filter(|mac| self.mac != Some(*mac));
        let opened = Device::open(&self.device, &DeviceConfig { mac, ..config })
            .map_err(|error| self.of_device(error.into()))?;
        self.driver.ready(self.pairs, STARTED).map_err(|why| {
            let what = format!("device {} cannot be relayed: {why} (the lane's log has what DPDK said)", self.named);
            Failure::new(FailureKind::Failed, what)
        })?;
        Ok(opened)
    }
    /// How the driver is configured for the port: with as many pairs as the device can be given.
    ///
    /// # Errors
    /// The port's address is another than the device's: the driver would take it, and tell nobody.
    pub fn config(&self, spec: &PortSpec) -> Result<DeviceConfig, Failure> {
        has_address(spec, self.has)?;
        Ok(DeviceConfig { queues: self.pairs, ..device_config(spec) })
    }

    /// What DPDK says of the driver, whose name nobody knows, said of the port's device.
    pub fn of_device(&self, failure: Failure) -> Failure {
        let message = failure.message.replace(&self.device.to_string(), &self.named);
        Failure { message, ..failure }
    }
}

/// Whether the port's address is that of a device that has one.
fn has_address(spec: &PortSpec, has: Option<MacAddress>) -> Result<(), Failure> {
    match (spec.mac, has) {
        (Some(wanted), Some(has)) if wanted != has => {
            let what = format!(
                "device {}: its address is {has}, the port's {wanted}: give it that one when it is made, or leave the port's out",
                spec.device
            );
            Err(Failure::new(FailureKind::Unsupported, what))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vdpa::Handover;
    use crate::vdpa::tests::fake::Fake;

    fn spec(folder: &Path) -> PortSpec {
        let text = r#"{"name":"p","socket":"/s","device":"vhost-vdpa:/dev/vhost-vdpa-7","compat":"1","queues":4}"#;
        let spec: PortSpec = serde_json::from_str(text).unwrap();
        PortSpec { socket: folder.join("s"), ..spec }
    }

    fn borrower(folder: &Path, spec: &PortSpec) -> Result<Borrower, Failure> {
        let device = Handover::new(Box::new(Fake::new())).unwrap();
        Borrower::start(7, folder, spec, device.facts())
    }

    #[test]
    fn the_driver_of_a_device_with_one_pair_keeps_to_it_however_many_the_port_may_have() {
        let folder = tempfile::tempdir().unwrap();
        let spec = spec(folder.path());
        let borrower = borrower(folder.path(), &spec).unwrap();
        let changed = PortSpec { mtu: 1400, ..spec };
        let config = borrower.config(&changed).unwrap();
        assert_eq!((config.queues, config.mtu), (1, 1400));
    }

    #[test]
    fn an_address_that_is_not_the_devices_is_refused_where_the_driver_would_keep_it_to_itself() {
        let folder = tempfile::tempdir().unwrap();
        let (own, other) = (MacAddress([0x52, 0x54, 0, 0, 0, 1]), MacAddress([0x52, 0x54, 0, 0, 0, 2]));
        let spec = |mac| PortSpec { mac, ..spec(folder.path()) };
        let open = borrower(folder.path(), &spec(Some(own))).unwrap();
        assert_eq!(open.config(&spec(Some(own))).unwrap().mac, Some(own));
        assert_eq!(open.config(&spec(None)).unwrap().mac, None);
        let wanted = spec(Some(other));
        for failure in [open.config(&wanted).unwrap_err(), borrower(folder.path(), &wanted).err().unwrap()] {
            assert_eq!(failure.kind, FailureKind::Unsupported);
            assert!(failure.message.contains("address is 52:54:00:00:00:01"), "{failure}");
            assert!(failure.message.contains("give it that one when it is made"), "{failure}");
        }
    }

    #[test]
    fn what_dpdk_says_of_the_driver_is_said_of_the_device() {
        let folder = tempfile::tempdir().unwrap();
        let borrower = borrower(folder.path(), &spec(folder.path())).unwrap();
        let said = Failure::new(FailureKind::Unsupported, format!("device {}: no such MTU", borrower.device));
        let failure = borrower.of_device(said);
        assert_eq!(failure.message, "device vhost-vdpa:/dev/vhost-vdpa-7: no such MTU");
        assert_eq!(failure.kind, FailureKind::Unsupported);
    }
}
