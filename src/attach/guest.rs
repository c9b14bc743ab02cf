//! What QEMU and libvirt must be told of an attachment: at the guest's start, and while it runs.
//!
//! QMP: qapi/char.json, qapi/net.json, qapi/qdev.json of QEMU; libvirt: formatdomain, "Network interfaces" and "Host device assignment".

use std::path::Path;

use ringspan_protocol::{MAX_QUEUE_PAIRS, PciAddress, PortName, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::record::{Record, Target};
use super::request::Mode;
use super::world::port;
use crate::error::{Error, ErrorKind};
use crate::qemu_args::{QemuArgs, QemuVersion, Wish};

/// What QEMU and libvirt must be told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct ForGuest {
    /// Arguments of `qemu-system-x86_64` for the guest's memory, once for each guest: vhost-user needs it shared. Empty for `passthrough`.
    pub memory: Vec<String>,
    /// Its arguments for the NIC.
    pub args: Vec<String>,
    /// Elements of a libvirt domain, those for the memory among them.
    pub libvirt: String,
    /// To plug the NIC into a guest that runs: what is executed over QMP, in this order.
    pub plug: Vec<Qmp>,
    /// To unplug it, and then to detach it.
    pub unplug: Vec<Qmp>,
}

/// A step over QMP.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Qmp {
    /// A command; the answer is waited for.
    Execute(Value),
    /// An event that is waited for before anything else is done: its name, and what its data has.
    Wait(Value),
    /// A call of ringspan's control socket.
    Call(Value),
}

impl std::fmt::Display for Qmp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Execute(command) => write!(f, "{command}"),
            Self::Wait(event) => write!(f, "wait for {event}"),
            Self::Call(call) => {
                write!(f, "ringspan call {} '{}'", call["method"].as_str().unwrap_or_default(), call["params"])
            }
        }
    }
}

fn execute(command: &str, arguments: Value) -> Qmp {
    Qmp::Execute(json!({ "execute": command, "arguments": arguments }))
}

/// How the guest is made.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Shape {
    /// QEMU's version, such as `7.2`; 10.0 when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_version: Option<String>,
    /// Size of the guest's memory as QEMU writes it; 512M when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<String>,
    /// Queue pairs of the guest's NIC; the port's when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_queues: Option<u16>,
    /// Whether the guest's memory is shared (`share=on`). False: vhost-user cannot be, and it is refused before anything is touched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_shared: Option<bool>,
    /// The bus of a running guest that the NIC is plugged into: a root port's, where the machine is q35, whose own bus takes nothing while it runs. QEMU's choice
    /// when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bus: Option<String>,
    /// The process of a guest that runs: whether its memory is shared is looked up there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qemu_pid: Option<u32>,
}

impl Shape {
    /// Whether nothing was said.
    pub(crate) fn says_nothing(&self) -> bool {
        *self == Self::default()
    }

    /// Refuses a guest whose memory nobody else can see.
    pub(crate) fn check(&self, proc: &Path, mode: Mode) -> Result<(), Error> {
        let invalid = |message: String| Err(Error::new(ErrorKind::Invalid, message));
        if let Some(text) = self.qemu_version.as_ref().filter(|text| QemuVersion::parse(text).is_none()) {
            return invalid(format!("{text:?} is no version: write 7.2"));
        }
        if self.guest_queues.is_some_and(|queues| !(1..=MAX_QUEUE_PAIRS).contains(&queues)) {
            return invalid(format!("a guest has 1 to {MAX_QUEUE_PAIRS} queue pairs"));
        }
        if let Some(bus) = self.bus.as_ref().filter(|bus| bus.is_empty() || bus.contains([',', ' '])) {
            return invalid(format!("{bus:?} is no bus: write the id of a root port, or pci.0"));
        }
        if let Some(memory) = &self.memory {
            let digits = memory.trim_end_matches(['M', 'G', 'K', 'T', 'm', 'g', 'k', 't']);
            let good = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            if !good || memory.len() - digits.len() > 1 {
                return invalid(format!("{memory:?} is no size of memory: write 512M or 4G"));
            }
        }
        if mode == Mode::Passthrough {
            return Ok(());
        }
        let shared = match (self.memory_shared, self.qemu_pid) {
            (Some(shared), _) => shared,
            (None, Some(pid)) => {
                let file = proc.join(pid.to_string()).join("cmdline");
                let line = std::fs::read(&file).and_then(|line| match line.is_empty() {
                    // As of a process that has ended, and of none that QEMU could be.
                    true => Err(std::io::Error::from_raw_os_error(libc::ESRCH)),
                    false => Ok(line),
                });
                let line = line.map_err(|error| unread(pid, &file, &error))?;
                is_shared(&String::from_utf8_lossy(&line))
            }
            (None, None) => return Ok(()),
        };
        if shared {
            return Ok(());
        }
        let message = "the guest's memory is not shared, and vhost-user needs that: start it with -object memory-backend-memfd,id=mem0,size=SIZE,share=on -machine memory-backend=mem0 (libvirt: <memoryBacking><source type='memfd'/><access mode='shared'/></memoryBacking>), or attach with mode passthrough";
        Err(Error::new(ErrorKind::Unsupported, message))
    }
}

/// Why it is not known whether the memory of the guest of this process is shared.
pub(super) fn unread(pid: u32, file: &Path, error: &std::io::Error) -> Error {
    let is_gone = error.kind() == std::io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH);
    let why = match is_gone {
        true => "there is no such process, or /proc hides it from the daemon (hidepid): give that of the guest's QEMU",
        false => "the daemon must be allowed to read it",
    };
    let io = Error::io(file.display(), error);
    let message = format!(
        "whether the memory of the guest of process {pid} is shared cannot be read: {}: {why}, or say yourself whether it is (--memory-shared; memory_shared in JSON)",
        io.message
    );
    Error { kind: if is_gone { ErrorKind::NotFound } else { io.kind }, message, ..io }
}

/// Whether a QEMU with these arguments, each with a zero behind it, shares its memory with other processes.
fn is_shared(arguments: &str) -> bool {
    let shared = |argument: &str| {
        let compact: String = argument.chars().filter(|c| !c.is_whitespace()).collect();
        argument.contains("memory-backend-")
            && (argument.split(',').any(|part| part == "share=on" || part == "share=yes" || part == "share=true" || part == "share")
                // As libvirt writes it.
                || compact.contains("\"share\":true"))
    };
    arguments.split('\0').any(shared)
}

impl ForGuest {
    /// For this attachment, in a guest of that shape.
    pub(crate) fn new(record: &Record, shape: &Shape, run_dir: &Path) -> Result<Self, Error> {
        match (record.wanted.mode, &record.target) {
            (Mode::Passthrough, Target::Pci { address, .. }) => Ok(handed_over(record, *address, shape)?),
            _ => virtio(record, shape, run_dir),
        }
    }
}

fn detach(record: &Record) -> Qmp {
    Qmp::Call(json!({ "method": "port.detach", "params": { "guest": record.wanted.guest, "nic": record.wanted.nic } }))
}

/// What is done over QMP before a guest's NIC is detached. The device goes when its guest lets go of it, which the event tells; not when the command is
/// answered.
pub(crate) fn still_to_unplug(record: &Record) -> Result<Vec<Qmp>, Error> {
    let name = record.key().port()?;
    let id = device_id(&name);
    let mut steps = vec![
        execute("device_del", json!({ "id": id })),
        Qmp::Wait(json!({ "event": "DEVICE_DELETED", "data": { "device": id } })),
    ];
    if record.wanted.mode == Mode::Vhost {
        // It takes its chardev with it (net/vhost-user.c, `net_vhost_user_cleanup`), and so the connection.
        steps.push(execute("netdev_del", json!({ "id": netdev_id(&name) })));
    }
    Ok(steps)
}

fn unplug(record: &Record) -> Result<Vec<Qmp>, Error> {
    let mut steps = still_to_unplug(record)?;
    steps.push(detach(record));
    Ok(steps)
}

fn virtio(record: &Record, shape: &Shape, run_dir: &Path) -> Result<ForGuest, Error> {
    let spec = port(record, run_dir)?.spec(None)?;
    let version = shape.qemu_version.as_deref().and_then(QemuVersion::parse).unwrap_or(QemuVersion::RECENT);
    let queues = shape.guest_queues.unwrap_or(spec.queues);
    let memory = shape.memory.clone().unwrap_or_else(|| "512M".into());
    let QemuArgs { mut args, libvirt } =
        QemuArgs::new(&spec, &Wish { version, memory: Some(memory), queues, mac: record.mac });
    let (name, id) = (&spec.name, device_id(&spec.name));
    if let Some(device) = args.last_mut() {
        *device += &format!(",id={id}");
        *device += &on_bus(shape);
    }
    let rest = args.split_off(args.iter().position(|arg| arg == "-chardev").unwrap_or(0));
    let (chardev, netdev) = (format!("chr-{name}"), netdev_id(name));
    let mut backend = json!({
        "addr": { "type": "unix", "data": { "path": spec.socket } }, "server": spec.role == Role::Client,
    });
    if spec.role == Role::Client {
        // The command must not wait for ringspan to connect.
        backend["wait"] = json!(false);
    } else if version >= crate::qemu_args::RECONNECT_MS_SINCE {
        backend["reconnect-ms"] = json!(500);
    } else {
        backend["reconnect"] = json!(1);
    }
    let mut device = json!({ "driver": "virtio-net-pci", "id": id, "netdev": netdev, "mac": record.mac });
    if queues > 1 {
        device["mq"] = json!(true);
        device["vectors"] = json!(2 * queues + 2);
    }
    if spec.mtu != 1500 {
        device["host_mtu"] = json!(spec.mtu);
    }
    if let Some(bus) = &shape.bus {
        device["bus"] = json!(bus);
    }
    Ok(ForGuest {
        memory: args,
        args: rest,
        libvirt,
        plug: vec![
            execute("chardev-add", json!({ "id": chardev, "backend": { "type": "socket", "data": backend } })),
            execute("netdev_add", json!({ "type": "vhost-user", "id": netdev, "chardev": chardev, "queues": queues })),
            execute("device_add", device),
        ],
        unplug: unplug(record)?,
    })
}

fn device_id(name: &PortName) -> String {
    format!("nic-{name}")
}

fn netdev_id(name: &PortName) -> String {
    format!("net-{name}")
}

/// A NIC that is there from the start is unplugged at a root port only, too.
fn on_bus(shape: &Shape) -> String {
    shape.bus.as_ref().map(|bus| format!(",bus={bus}")).unwrap_or_default()
}

fn handed_over(record: &Record, address: PciAddress, shape: &Shape) -> Result<ForGuest, Error> {
    let id = device_id(&record.key().port()?);
    let PciAddress { domain, bus, device, function } = address;
    let libvirt = format!(
        "<hostdev mode='subsystem' type='pci' managed='no'>\n  <driver name='vfio'/>\n  <source>\n    <address domain='0x{domain:04x}' bus='0x{bus:02x}' slot='0x{device:02x}' function='0x{function:x}'/>\n  </source>\n  <alias name='ua-{id}'/>\n</hostdev>\n"
    );
    let mut device = json!({ "driver": "vfio-pci", "host": address, "id": id });
    if let Some(bus) = &shape.bus {
        device["bus"] = json!(bus);
    }
    Ok(ForGuest {
        memory: vec![],
        args: vec!["-device".into(), format!("vfio-pci,host={address},id={id}{}", on_bus(shape))],
        libvirt,
        plug: vec![execute("device_add", device)],
        unplug: unplug(record)?,
    })
}
