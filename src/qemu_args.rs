//! What QEMU, or libvirt, must be told so that a guest gets a port as its NIC.

use std::path::Path;

use ringspan_protocol::{DeviceSpec, MacAddress, PortName, PortSpec, Role};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The first QEMU whose socket chardev has `reconnect-ms`; earlier ones have `reconnect`, in seconds.
pub(crate) const RECONNECT_MS_SINCE: QemuVersion = QemuVersion { major: 9, minor: 2 };

/// A version of QEMU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QemuVersion {
    major: u32,
    minor: u32,
}

impl QemuVersion {
    /// What is assumed when nobody says: a QEMU that is still maintained.
    pub(crate) const RECENT: Self = Self { major: 10, minor: 0 };

    /// Reads `7.2`, or the first line of `qemu-system-x86_64 --version`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let text = text.strip_prefix("QEMU emulator version ").unwrap_or(text);
        let mut parts = text.split(|c: char| !c.is_ascii_digit());
        let major = parts.next()?.parse().ok()?;
        let minor = parts.next()?.parse().ok()?;
        Some(Self { major, minor })
    }
}

/// What a guest should get.
#[derive(Debug, Clone)]
pub(crate) struct Wish {
    /// Which QEMU.
    pub version: QemuVersion,
    /// Size of the guest's memory as QEMU writes it; nothing where another port's arguments make the memory.
    pub memory: Option<String>,
    /// Queue pairs of the guest's NIC.
    pub queues: u16,
    /// The guest's MAC address.
    pub mac: MacAddress,
}

/// The arguments, in both forms.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub(crate) struct QemuArgs {
    /// Arguments of `qemu-system-x86_64`, in order.
    pub args: Vec<String>,
    /// Elements of a libvirt domain.
    pub libvirt: String,
}

impl QemuArgs {
    /// For one guest with this port.
    pub(crate) fn new(port: &PortSpec, wish: &Wish) -> Self {
        Self { args: arguments(port, wish), libvirt: libvirt(port, wish) }
    }
}

/// QEMU reads a comma as the end of a value, two as one comma.
fn value(path: &Path) -> String {
    path.display().to_string().replace(',', ",,")
}

fn arguments(port: &PortSpec, wish: &Wish) -> Vec<String> {
    let Wish { version, memory, queues, mac } = wish;
    let name = &port.name;
    let mut args = Vec::new();
    let mut push = |option: &str, value: String| args.extend([option.to_owned(), value]);
    if let Some(size) = memory {
        // The guest's memory must be shared with the lane, which reads and writes the rings in it.
        push("-object", format!("memory-backend-memfd,id=mem-{name},size={size},share=on"));
        push("-machine", format!("memory-backend=mem-{name}"));
    }
    let side = match port.role {
        Role::Client => ",server=on",
        Role::Server if *version >= RECONNECT_MS_SINCE => ",reconnect-ms=500",
        Role::Server => ",reconnect=1",
    };
    push("-chardev", format!("socket,id=chr-{name},path={}{side}", value(&port.socket)));
    push("-netdev", format!("vhost-user,id=net-{name},chardev=chr-{name},queues={queues}"));
    let mut device = format!("virtio-net-pci,netdev=net-{name},mac={mac}");
    if *queues > 1 {
        // A vector for each of 2N rings, one for the control queue, one for changes of the configuration.
        device += &format!(",mq=on,vectors={}", 2 * queues + 2);
    }
    if port.mtu != 1500 {
        device += &format!(",host_mtu={}", port.mtu);
    }
    push("-device", device);
    args
}

fn libvirt(port: &PortSpec, wish: &Wish) -> String {
    let mut xml = String::new();
    if wish.memory.is_some() {
        xml += "<memoryBacking>\n  <source type='memfd'/>\n  <access mode='shared'/>\n</memoryBacking>\n";
    }
    let path = escaped(&port.socket.display().to_string());
    xml += "<interface type='vhostuser'>\n";
    xml += &format!("  <mac address='{}'/>\n", wish.mac);
    match port.role {
        Role::Server => {
            xml += &format!("  <source type='unix' path='{path}' mode='client'>\n");
            xml += "    <reconnect enabled='yes' timeout='1'/>\n  </source>\n";
        }
        Role::Client => xml += &format!("  <source type='unix' path='{path}' mode='server'/>\n"),
    }
    xml += "  <model type='virtio'/>\n";
    xml += &format!("  <driver queues='{}'/>\n", wish.queues);
    if port.mtu != 1500 {
        xml += &format!("  <mtu size='{}'/>\n", port.mtu);
    }
    xml + "</interface>\n"
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('\'', "&apos;").replace('<', "&lt;")
}

/// The MAC address a guest gets: the port's own; else the device's, where that is a NIC that delivers by it; else
/// one made from the machine's and the port's names, the same every time.
pub(crate) fn guest_mac(port: &PortSpec, device: Option<MacAddress>, machine: &str) -> MacAddress {
    let of_nic = |device: &DeviceSpec| {
        matches!(device, DeviceSpec::Pci { .. } | DeviceSpec::VhostVdpa { .. } | DeviceSpec::Vdpa { .. })
    };
    let behind_a_nic = port.device.parts().iter().all(of_nic);
    port.mac.or(device.filter(|_| behind_a_nic)).unwrap_or_else(|| made_mac(&port.name, machine))
}

/// An address made from the machine's and the port's names, the same every time.
pub(crate) fn made_mac(port: &PortName, machine: &str) -> MacAddress {
    // FNV-1a: what is wanted is only that two ports hardly ever get the same.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in machine.bytes().chain([0]).chain(port.as_str().bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    let [a, b, c, d, e, ..] = hash.to_be_bytes();
    // 0x02: locally administered, unicast.
    MacAddress([0x02, a, b, c, d, e])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn port(more: &str) -> PortSpec {
        let text = format!(
            r#"{{"name":"vm1","socket":"/run/ringspan/vm1.sock","device":"vdev:net_null0","compat":"1"{more}}}"#
        );
        serde_json::from_str(&text).unwrap()
    }

    fn wish(version: &str, queues: u16) -> Wish {
        let version = QemuVersion::parse(version).unwrap();
        Wish { version, memory: Some("512M".into()), queues, mac: "52:54:00:00:00:01".parse().unwrap() }
    }

    #[test]
    fn qemu_7_2_reconnects_in_seconds() {
        let args = QemuArgs::new(&port(""), &wish("QEMU emulator version 7.2.22 (Debian 1:7.2)", 1)).args.join(" ");
        assert_eq!(
            args,
            "-object memory-backend-memfd,id=mem-vm1,size=512M,share=on -machine memory-backend=mem-vm1 \
             -chardev socket,id=chr-vm1,path=/run/ringspan/vm1.sock,reconnect=1 \
             -netdev vhost-user,id=net-vm1,chardev=chr-vm1,queues=1 \
             -device virtio-net-pci,netdev=net-vm1,mac=52:54:00:00:00:01"
        );
    }

    #[test]
    fn qemu_10_reconnects_in_milliseconds_and_a_big_port_has_queues_and_mtu() {
        let args = QemuArgs::new(&port(r#","mtu":9000"#), &wish("10.0", 4)).args.join(" ");
        assert_eq!(
            args,
            "-object memory-backend-memfd,id=mem-vm1,size=512M,share=on -machine memory-backend=mem-vm1 \
             -chardev socket,id=chr-vm1,path=/run/ringspan/vm1.sock,reconnect-ms=500 \
             -netdev vhost-user,id=net-vm1,chardev=chr-vm1,queues=4 \
             -device virtio-net-pci,netdev=net-vm1,mac=52:54:00:00:00:01,mq=on,vectors=10,host_mtu=9000"
        );
    }

    #[test]
    fn the_front_end_listens_when_ringspan_is_the_client_and_a_comma_is_doubled() {
        let port = PortSpec { socket: "/run/a,b.sock".into(), ..port(r#","role":"client""#) };
        let made = QemuArgs::new(&port, &Wish { memory: None, ..wish("10.0", 1) });
        assert_eq!(made.args[1], "socket,id=chr-vm1,path=/run/a,,b.sock,server=on");
        assert!(made.libvirt.contains("path='/run/a,b.sock' mode='server'/>"), "{}", made.libvirt);
        assert!(!made.libvirt.contains("memoryBacking"));
    }

    #[test]
    fn libvirt_gets_the_same_port() {
        let made = QemuArgs::new(&port(r#","mtu":9000"#), &wish("10.0", 2));
        for part in ["mode='client'", "<reconnect enabled='yes'", "queues='2'", "<mtu size='9000'/>", "memfd"] {
            assert!(made.libvirt.contains(part), "{part} is missing in\n{}", made.libvirt);
        }
    }

    #[test]
    fn a_guests_mac_is_stable_and_follows_a_nic_that_delivers_by_it() {
        let tap_mac = "52:54:00:99:99:99".parse().ok();
        let derived = guest_mac(&port(""), tap_mac, "machine");
        assert_eq!(
            derived,
            guest_mac(&port(""), None, "machine"),
            "a TAP's own address is the host's, not the guest's"
        );
        assert_ne!(derived, guest_mac(&port(""), None, "other machine"));
        assert!(derived.unicast().is_ok());
        let vf = PortSpec { device: "pci:0a:00.2".parse().unwrap(), ..port("") };
        assert_eq!(Some(guest_mac(&vf, tap_mac, "machine")), tap_mac);
        let own = port(r#","mac":"52:54:00:00:00:07""#);
        assert_eq!(Some(guest_mac(&own, tap_mac, "machine")), own.mac);
    }
}
