//! rte_flow behind types that cannot be misused: a port that takes rules, and the rules it has.
//!
//! # Safety invariants
//! A rule's handle is a pointer of the driver's. It is used only together with the port that it was made at, which each [`Installed`] keeps open, and
//! never after [`Installed::remove`], which takes it by value. DPDK asks that rules of one port are changed by one thread at a time
//! ([Flow API, "Caveats"](https://doc.dpdk.org/guides-22.11/prog_guide/rte_flow.html)): [`FlowPort`] has a lock for that.

use std::ffi::CStr;
use std::fmt;
use std::os::raw::c_char;
use std::ptr::NonNull;
use std::sync::{Arc, Mutex, PoisonError};

use dpdk_sys as sys;
use ringspan_protocol::rte::{Item, ItemKind};

use super::device::Device;
use super::port::Port;

/// Bytes in front of a frame in GENEVE, as far as RAW_DECAP needs to know them: their number.
const GENEVE_V4: [u8; 50] = [0; 50];
const GENEVE_V6: [u8; 70] = [0; 70];

/// Why a driver refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", self.text())]
pub struct FlowError {
    /// Positive, as in errno(3).
    pub errno: i32,
    /// What the driver says; may be empty.
    pub message: String,
}

impl FlowError {
    fn text(&self) -> String {
        let errno = std::io::Error::from_raw_os_error(self.errno);
        if self.message.is_empty() { errno.to_string() } else { format!("{}: {errno}", self.message) }
    }
}

/// Which frames a rule is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Domain {
    /// Between the ports of the NIC's switch; rules name the port where a frame comes in.
    Transfer,
    /// What comes in at the device itself.
    Ingress,
}

/// One thing that a rule does, with DPDK's numbers for ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FlowStep {
    /// COUNT.
    Count,
    /// AGE, so that the driver knows when there was a frame last; in seconds.
    Age(u32),
    /// A copy to this port.
    Copy(u16),
    /// To this port.
    To(u16),
    /// Drop.
    Drop,
    /// On with the rules of this group.
    Jump(u32),
    /// Anything that names no port.
    Other(ringspan_protocol::rte::Step),
}

/// A rule for a driver.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FlowRule<'a> {
    /// Of what.
    pub domain: Domain,
    /// 0 first.
    pub group: u32,
    /// 0 goes first.
    pub priority: u32,
    /// DPDK's number of the port it comes in by; of [`Domain::Transfer`].
    pub from: u16,
    /// What it looks like.
    pub items: &'a [Item],
    /// What is done.
    pub steps: &'a [FlowStep],
}

/// A port that takes rules.
#[derive(Clone)]
pub struct FlowPort {
    port: Arc<Port>,
    /// DPDK's number of the port that manages rules of the switch; in the same device.
    proxy: u16,
    changing: Arc<Mutex<()>>,
}

impl fmt::Debug for FlowPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "FlowPort {} (proxy {})", self.port.id(), self.proxy)
    }
}

/// A rule that a driver has. It stays with the driver when this is dropped: the driver gives it up when its device is closed.
pub struct Installed {
    at: FlowPort,
    /// The port's number at which it was made.
    port: u16,
    flow: NonNull<sys::rte_flow>,
    /// Whether the driver knows when it last had a frame.
    ages: bool,
}

// SAFETY: a driver's handle is no thread's own; it is used under the lock of its port.
unsafe impl Send for Installed {}

/// What a rule counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counted {
    /// Frames.
    pub packets: u64,
    /// Bytes.
    pub bytes: u64,
    /// Seconds since the last one, when the driver knows.
    pub idle_seconds: Option<u32>,
}

impl FlowPort {
    /// The port of an open device.
    pub fn of(device: &Device) -> Self {
        let port = Arc::clone(device.port());
        let mut proxy = port.id();
        // SAFETY: the port is ours; the number is written.
        if unsafe { sys::shim_flow_proxy(port.id(), &mut proxy) } != 0 {
            proxy = port.id();
        }
        Self { port, proxy, changing: Arc::default() }
    }

    /// DPDK's number of the device's own port: the wire, as rules name it.
    pub fn uplink(&self) -> u16 {
        self.port.id()
    }

    /// DPDK's number of the port that rules of the switch are given to.
    pub fn proxy(&self) -> u16 {
        self.proxy
    }

    /// Asks whether a rule could be installed.
    ///
    /// # Errors
    /// [`FlowError`].
    pub fn validate(&self, rule: &FlowRule<'_>) -> Result<(), FlowError> {
        self.tell(rule, std::ptr::null_mut())
    }

    /// Installs a rule.
    ///
    /// # Errors
    /// [`FlowError`]; nothing was installed.
    pub fn create(&self, rule: &FlowRule<'_>) -> Result<Installed, FlowError> {
        let mut flow = std::ptr::null_mut();
        self.tell(rule, &mut flow)?;
        let flow = NonNull::new(flow).ok_or(FlowError { errno: libc::EINVAL, message: String::new() })?;
        let ages = rule.steps.iter().any(|step| matches!(step, FlowStep::Age(_)));
        Ok(Installed { at: self.clone(), port: self.number(rule.domain), flow, ages })
    }

    fn number(&self, domain: Domain) -> u16 {
        match domain {
            Domain::Transfer => self.proxy,
            Domain::Ingress => self.port.id(),
        }
    }

    fn tell(&self, rule: &FlowRule<'_>, flow: *mut *mut sys::rte_flow) -> Result<(), FlowError> {
        let transfer = rule.domain == Domain::Transfer;
        let mut items = Vec::with_capacity(rule.items.len() + 1);
        if transfer {
            let kind = sys::SHIM_ITEM_REPRESENTED_PORT;
            items.push(sys::shim_flow_item { kind, port: rule.from, next: 2, ..EMPTY });
        }
        items.extend(rule.items.iter().map(item));
        let steps: Vec<_> = rule.steps.iter().map(step).collect();
        let told = sys::shim_flow_rule {
            group: rule.group,
            priority: rule.priority,
            transfer: transfer.into(),
            item_count: items.len() as u32,
            items: items.as_ptr(),
            step_count: steps.len() as u32,
            steps: steps.as_ptr(),
        };
        let port = self.number(rule.domain);
        let _one_at_a_time = self.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the port is open, or belongs to the open device; the arrays have as many entries as is told, and what they point to lives in
        // `rule`; `flow` is null or written; the message has the room that is asked for.
        answered(|message| unsafe { sys::shim_flow(port, &told, flow, message) })
    }
}

impl Installed {
    /// What it counted.
    ///
    /// # Errors
    /// [`FlowError`].
    pub fn query(&self) -> Result<Counted, FlowError> {
        let mut counters = sys::shim_flow_counters::default();
        let ages = self.ages.into();
        let _one_at_a_time = self.at.changing.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: the flow was made at this port and not removed; the counters are written.
        answered(|message| unsafe {
            sys::shim_flow_query(self.port, self.flow.as_ptr(), ages, &mut counters, message)
        })?;
        let idle_seconds = Some(counters.idle_seconds).filter(|seconds| *seconds != u32::MAX);
        Ok(Counted { packets: counters.packets, bytes: counters.bytes, idle_seconds })
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`FlowError`], with the rule, which is still there as far as is known; ENOENT when the driver does not know it any more.
    pub fn remove(self) -> Result<(), (Self, FlowError)> {
        let told = {
            let _one_at_a_time = self.at.changing.lock().unwrap_or_else(PoisonError::into_inner);
            // SAFETY: as in `query`; when it succeeds, the handle is not used again.
            answered(|message| unsafe { sys::shim_flow_destroy(self.port, self.flow.as_ptr(), message) })
        };
        match told {
            Ok(()) => Ok(()),
            Err(error) => Err((self, error)),
        }
    }
}

fn answered(ask: impl FnOnce(*mut c_char) -> i32) -> Result<(), FlowError> {
    let mut message = [0 as c_char; sys::SHIM_FLOW_MESSAGE as usize];
    // Drivers also log why; the answer has it.
    let (status, said) = super::log::listen(|| ask(message.as_mut_ptr()));
    if status == 0 {
        return Ok(());
    }
    // SAFETY: the shim terminates what it writes, and the array began as zeroes.
    let told = unsafe { CStr::from_ptr(message.as_ptr()) }.to_string_lossy().into_owned();
    let message = if told.is_empty() { said } else { told };
    Err(FlowError { errno: status.saturating_abs(), message })
}

const EMPTY: sys::shim_flow_item = sys::shim_flow_item {
    kind: 0,
    port: 0,
    range: 0,
    next: 2,
    spec: [0; sys::SHIM_FLOW_HEADER as usize],
    last: [0; sys::SHIM_FLOW_HEADER as usize],
    mask: [0; sys::SHIM_FLOW_HEADER as usize],
};

fn item(item: &Item) -> sys::shim_flow_item {
    let kind = match item.kind {
        ItemKind::Eth => sys::SHIM_ITEM_ETH,
        ItemKind::Vlan => sys::SHIM_ITEM_VLAN,
        ItemKind::Ipv4 => sys::SHIM_ITEM_IPV4,
        ItemKind::Ipv6 => sys::SHIM_ITEM_IPV6,
        ItemKind::Tcp => sys::SHIM_ITEM_TCP,
        ItemKind::Udp => sys::SHIM_ITEM_UDP,
        ItemKind::Sctp => sys::SHIM_ITEM_SCTP,
        ItemKind::Icmp => sys::SHIM_ITEM_ICMP,
        ItemKind::Icmp6 => sys::SHIM_ITEM_ICMP6,
        ItemKind::Arp => sys::SHIM_ITEM_ARP,
        ItemKind::Vxlan => sys::SHIM_ITEM_VXLAN,
        ItemKind::Geneve => sys::SHIM_ITEM_GENEVE,
    };
    let bytes = |from: &[u8]| {
        let mut all = [0; sys::SHIM_FLOW_HEADER as usize];
        all.iter_mut().zip(from).for_each(|(to, from)| *to = *from);
        all
    };
    sys::shim_flow_item {
        kind,
        port: 0,
        range: item.last.is_some().into(),
        next: item.next.map_or(2, u8::from),
        spec: bytes(&item.spec),
        last: bytes(item.last.as_deref().unwrap_or_default()),
        mask: bytes(&item.mask),
    }
}

/// What it points to lives in the step.
fn step(step: &FlowStep) -> sys::shim_flow_step {
    use ringspan_protocol::rte::Step;
    let plain = |kind: u32, number: u32| sys::shim_flow_step {
        kind,
        number,
        width: 0,
        value: [0; 16],
        data: std::ptr::null(),
        size: 0,
    };
    let headers = |kind, data: &[u8]| sys::shim_flow_step { data: data.as_ptr(), size: data.len(), ..plain(kind, 0) };
    match step {
        FlowStep::Count | FlowStep::Other(Step::Count) => plain(sys::SHIM_STEP_COUNT, 0),
        FlowStep::Age(seconds) => plain(sys::SHIM_STEP_AGE, *seconds),
        FlowStep::Copy(port) => plain(sys::SHIM_STEP_COPY, (*port).into()),
        FlowStep::To(port) => plain(sys::SHIM_STEP_PORT, (*port).into()),
        FlowStep::Jump(group) => plain(sys::SHIM_STEP_JUMP, *group),
        // Ports of a rule have been looked up before: one that is not there gets nothing.
        FlowStep::Drop | FlowStep::Other(Step::Drop | Step::Copy(_) | Step::To(_)) => plain(sys::SHIM_STEP_DROP, 0),
        FlowStep::Other(Step::PushVlan(tpid)) => plain(sys::SHIM_STEP_PUSH_VLAN, (*tpid).into()),
        FlowStep::Other(Step::VlanVid(vid)) => plain(sys::SHIM_STEP_VLAN_VID, (*vid).into()),
        FlowStep::Other(Step::VlanPcp(pcp)) => plain(sys::SHIM_STEP_VLAN_PCP, (*pcp).into()),
        FlowStep::Other(Step::PopVlan) => plain(sys::SHIM_STEP_POP_VLAN, 0),
        FlowStep::Other(Step::DecTtl) => plain(sys::SHIM_STEP_DEC_TTL, 0),
        FlowStep::Other(Step::VxlanDecap) => plain(sys::SHIM_STEP_VXLAN_DECAP, 0),
        FlowStep::Other(Step::GeneveDecap { v6: false }) => headers(sys::SHIM_STEP_RAW_DECAP, &GENEVE_V4),
        FlowStep::Other(Step::GeneveDecap { v6: true }) => headers(sys::SHIM_STEP_RAW_DECAP, &GENEVE_V6),
        FlowStep::Other(Step::Encap(data)) => headers(sys::SHIM_STEP_RAW_ENCAP, data),
        FlowStep::Other(Step::Set(modify)) => {
            let mut value = [0; 16];
            value.iter_mut().zip(&modify.value).for_each(|(to, from)| *to = *from);
            sys::shim_flow_step { width: modify.width, value, ..plain(sys::SHIM_STEP_MODIFY, modify.number) }
        }
    }
}
