//! What can go wrong, in words for an operator.

use std::ffi::CStr;

use ringspan_protocol::{DeviceSpec, Failure, FailureKind, MacAddress};

use crate::vdpa::OpenError;

/// Why DPDK could not be started, or a thread not be registered.
#[derive(Debug, thiserror::Error)]
pub enum EalError {
    /// EAL starts once per process.
    #[error("DPDK is started already in this process: it can be started only once")]
    AlreadyStarted,
    /// A name that would not fit into EAL's arguments.
    #[error("{0:?} is not a name for DPDK's files: use letters, digits, '-', '_' and '.', 64 at most")]
    Name(String),
    /// Hugepages were required and are not there.
    #[error(
        "huge_pages = \"require\" and memory_mib = {wanted_mib}, but only {free_mib} MiB of hugepages are free: \
         reserve more (echo {pages} > /proc/sys/vm/nr_hugepages), lower memory_mib, or use huge_pages = \"auto\""
    )]
    NoHugePages {
        /// Memory that was asked for.
        wanted_mib: u32,
        /// Memory in free hugepages.
        free_mib: u64,
        /// Number of default-size pages that would do.
        pages: u64,
    },
    /// Less memory than DPDK itself needs, or more than the machine has.
    #[error("memory_mib = {wanted_mib}: {reason}")]
    Memory {
        /// Memory that was asked for.
        wanted_mib: u32,
        /// Why not, and what to do.
        reason: String,
    },
    /// EAL refused.
    #[error("DPDK did not start ({error}){said}; arguments were: {arguments}", said = quoted(.said))]
    Init {
        /// rte_errno in words.
        error: String,
        /// What DPDK logged as errors meanwhile.
        said: String,
        /// EAL's arguments.
        arguments: String,
    },
    /// More threads than DPDK can know.
    #[error("DPDK cannot register this thread ({error}): it knows {limit} threads at most")]
    Thread {
        /// rte_errno in words.
        error: String,
        /// RTE_MAX_LCORE.
        limit: u32,
    },
    /// The calling thread's CPU affinity could not be read or set.
    #[error("CPU affinity of the calling thread: {0}")]
    Affinity(#[source] nix::Error),
    /// The log stream could not be made.
    #[error("log stream for DPDK: {0}")]
    Log(String),
}

/// Why a device could not be opened or changed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Nothing can be opened before EAL is started.
    #[error("device {device}: DPDK is not started in this process")]
    NotStarted {
        /// The device as it was asked for.
        device: String,
    },
    /// A kind of device that cannot be opened here.
    #[error("device {device}: devices of the kind {kind} are not opened like this")]
    Kind {
        /// The device as it was asked for.
        device: String,
        /// `bond` or `vdpa`.
        kind: &'static str,
    },
    /// A vhost-vdpa node that cannot be used.
    #[error("device {device}: {error}")]
    Vdpa {
        /// The device as it was asked for.
        device: String,
        /// Why not, and what to do.
        error: OpenError,
    },
    /// No such device.
    #[error("device {device} is not there{remedy}{said}", said = quoted(.said))]
    NotFound {
        /// The device as it was asked for.
        device: String,
        /// What to do, with its separator; may be empty.
        remedy: String,
        /// What DPDK logged as errors meanwhile.
        said: String,
    },
    /// Another port of this lane has it.
    #[error("device {device} is used by another port of this lane: a device belongs to one port")]
    InUse {
        /// The device as it was asked for.
        device: String,
    },
    /// The process has as many ports as this build of DPDK allows.
    #[error(
        "device {device}: this build of DPDK allows {limit} devices in a lane, and all are taken: add a lane, or remove a port"
    )]
    PortLimit {
        /// The device as it was asked for.
        device: String,
        /// RTE_MAX_ETHPORTS.
        limit: u16,
    },
    /// The kernel driver that owns a PCI function is not one that DPDK works with.
    #[error("device {device} is bound to {bound}, and DPDK needs {needed}: {remedy}")]
    KernelDriver {
        /// The device as it was asked for.
        device: String,
        /// Kernel driver, or "no kernel driver".
        bound: String,
        /// Kernel driver that is needed.
        needed: String,
        /// Command that changes it.
        remedy: String,
    },
    /// The device arguments were refused, or the driver could not start with them.
    #[error("device {device}: {driver} did not accept it ({error}){said}", driver = driver_or_dpdk(.driver), said = quoted(.said))]
    Probe {
        /// The device as it was asked for.
        device: String,
        /// The driver, where known.
        driver: String,
        /// errno in words.
        error: String,
        /// errno, 0 when the driver gave none.
        errno: i32,
        /// What DPDK logged as errors meanwhile.
        said: String,
    },
    /// Too many queues, or none.
    #[error(
        "device {device} ({driver}) has {most} queues at most in each direction, {asked} were asked for: lower `queues`"
    )]
    Queues {
        /// The device as it was asked for.
        device: String,
        /// The driver.
        driver: String,
        /// What was asked for.
        asked: u16,
        /// What it can.
        most: u16,
    },
    /// No such VF.
    #[error("device {device}: {reason}")]
    SoftNic {
        /// The device as it was asked for.
        device: String,
        /// Why not, and what to do.
        reason: String,
    },
    /// The two ends of a patch differ.
    #[error(
        "device {device}: the other end of the patch has {other} queues, and {asked} were asked for: give both the same `queues`"
    )]
    PatchQueues {
        /// The device as it was asked for.
        device: String,
        /// What was asked for.
        asked: u16,
        /// What the other end has.
        other: u16,
    },
    /// An MTU the driver cannot do.
    #[error("device {device} ({driver}) takes an MTU of {least} to {most}, {asked} was asked for: change `mtu`")]
    Mtu {
        /// The device as it was asked for.
        device: String,
        /// The driver.
        driver: String,
        /// What was asked for.
        asked: u16,
        /// Smallest it can.
        least: u16,
        /// Largest it can.
        most: u16,
    },
    /// The lane's memory does not hold what the device needs.
    #[error(
        "device {device}: {what} needs {need_kib} KiB and the lane has {free_kib} KiB of its {memory_mib} MiB left in one piece: \
         raise memory_mib, or put the port into another lane"
    )]
    NoMemory {
        /// The device as it was asked for.
        device: String,
        /// What was to be allocated.
        what: &'static str,
        /// How much.
        need_kib: u64,
        /// The largest free piece.
        free_kib: u64,
        /// The lane's memory.
        memory_mib: u32,
    },
    /// The device refused its MAC address.
    #[error(
        "device {device} ({driver}) refused the MAC address {mac} ({error}): leave `mac` out, or set it on the host"
    )]
    Mac {
        /// The device as it was asked for.
        device: String,
        /// The driver.
        driver: String,
        /// The address.
        mac: MacAddress,
        /// errno in words.
        error: String,
        /// errno.
        errno: i32,
    },
    /// A receive filter that must be open stays closed.
    #[error(
        "device {device} ({driver}) refused {filter} mode ({error}): make the VF trusted, or use {filter} = \"auto\""
    )]
    Filter {
        /// The device as it was asked for.
        device: String,
        /// The driver.
        driver: String,
        /// `promiscuous` or `allmulti`.
        filter: &'static str,
        /// errno in words.
        error: String,
        /// errno.
        errno: i32,
    },
    /// Not all queue handles of the device were given back.
    #[error("device {device}: its {expected} queue pairs must all be given back before it is changed")]
    QueuesAway {
        /// The device as it was asked for.
        device: String,
        /// Queue pairs the device has.
        expected: u16,
    },
    /// A step that the driver refused for a reason of its own.
    #[error("device {device} ({driver}): {step} failed ({error}){said}", said = quoted(.said))]
    Driver {
        /// The device as it was asked for.
        device: String,
        /// The driver.
        driver: String,
        /// What was tried.
        step: &'static str,
        /// errno in words.
        error: String,
        /// errno.
        errno: i32,
        /// What DPDK logged as errors meanwhile.
        said: String,
    },
}

impl From<DeviceError> for Failure {
    fn from(error: DeviceError) -> Self {
        use DeviceError::*;
        let (kind, errno) = match &error {
            NotStarted { .. } | QueuesAway { .. } => (FailureKind::Failed, None),
            Kind { .. } | Queues { .. } | Mtu { .. } => (FailureKind::Unsupported, None),
            PatchQueues { .. } => (FailureKind::Invalid, None),
            SoftNic { .. } => (FailureKind::NotFound, None),
            NotFound { .. } => (FailureKind::NotFound, None),
            InUse { .. } => (FailureKind::Busy, None),
            PortLimit { .. } | NoMemory { .. } => (FailureKind::NoRoom, None),
            KernelDriver { .. } => (FailureKind::Unsupported, None),
            Vdpa { error, .. } => (error.kind(), error.errno()),
            Mac { errno, .. } | Filter { errno, .. } => (refusal(*errno, FailureKind::Unsupported), Some(*errno)),
            Probe { errno, .. } => (refusal(*errno, FailureKind::Invalid), Some(*errno)),
            Driver { errno, .. } => (refusal(*errno, FailureKind::Failed), Some(*errno)),
        };
        let failure = Failure::new(kind, error.to_string());
        match errno.filter(|errno| *errno != 0) {
            Some(errno) => failure.with_errno(errno),
            None => failure,
        }
    }
}

/// The kind that an errno stands for, else the given one.
fn refusal(errno: i32, otherwise: FailureKind) -> FailureKind {
    match errno {
        libc::EPERM | libc::EACCES => FailureKind::Permission,
        libc::EBUSY => FailureKind::Busy,
        libc::ENOMEM | libc::ENOSPC => FailureKind::NoRoom,
        libc::ENODEV => FailureKind::NotFound,
        libc::ENOTSUP => FailureKind::Unsupported,
        _ => otherwise,
    }
}

fn quoted(said: &str) -> String {
    if said.is_empty() { String::new() } else { format!("; DPDK said: {said}") }
}

fn driver_or_dpdk(driver: &str) -> &str {
    if driver.is_empty() { "DPDK" } else { driver }
}

/// An errno in DPDK's words. The sign does not matter.
pub(super) fn describe(errno: i32) -> String {
    // SAFETY: returns a pointer to a string that is static or the calling thread's own, and always terminated.
    let text = unsafe { CStr::from_ptr(dpdk_sys::rte_strerror(errno.abs())) };
    text.to_string_lossy().into_owned()
}

/// What a driver's errno means, and the errno, 0 when it means nothing: virtual drivers answer a bare -1 to whatever is wrong, and
/// now and then it is EPERM.
pub(super) fn reason(spec: &DeviceSpec, errno: i32, remedy: &str) -> (String, i32) {
    match spec {
        DeviceSpec::Vdev { .. } if errno.abs() == libc::EPERM => (format!("it gave no reason; {remedy}"), 0),
        _ => (describe(errno), errno.abs()),
    }
}

/// The calling thread's rte_errno.
pub(super) fn rte_errno() -> i32 {
    // SAFETY: reads a thread-local integer.
    unsafe { dpdk_sys::shim_errno() }
}
