//! What most end-to-end tests with a real guest begin with: a namespace with a TAP, a daemon with a port on it, a guest
//! whose NIC is that port.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::daemon::{Daemon, tap_device};
use crate::guest::Kind;
use crate::netns::Netns;
use crate::qemu::{Guest, GuestSpec};
use crate::wait;

/// The host's address on the TAP (RFC 5737).
pub const HOST: &str = "192.0.2.1";
/// The guest's address.
pub const GUEST: &str = "192.0.2.2";

/// A guest on a port. The parts end in the order of the fields.
pub struct Scene {
    /// The guest; its NIC is `eth0`.
    pub guest: Guest,
    /// The daemon; the port is `vm1` on the lane `main`.
    pub daemon: Daemon,
    /// The namespace; the TAP is `tap0`, or with an MTU above 1500 a wire's near end is `host0`.
    pub net: Netns,
}

/// What differs between scenes.
#[derive(Debug, Clone)]
pub struct Plan {
    /// MTU of the host's end, the port and the guest.
    pub mtu: u16,
    /// Queues of the port's device.
    pub queues: u16,
    /// Queue pairs of the guest's NIC.
    pub guest_queues: u16,
    /// The guest's virtual CPUs.
    pub cpus: u16,
    /// The format of the guest's rings.
    pub rings: Kind,
}

impl Default for Plan {
    fn default() -> Self {
        Self { mtu: 1500, queues: 1, guest_queues: 1, cpus: 1, rings: Kind::Split }
    }
}

impl Scene {
    /// Makes everything, and returns when the guest answers a ping.
    pub fn new(label: &str, plan: &Plan) -> Result<Self> {
        let net = Netns::new(label)?;
        let address = format!("{HOST}/24");
        // net_tap takes no more than 1504 bytes; net_pcap takes any, but has one queue.
        let device = if plan.mtu > 1500 {
            net.wire("host0", "far0", &address, plan.mtu)?;
            "vdev:net_pcap0,rx_iface_in=far0,tx_iface=far0".to_string()
        } else {
            net.tap("tap0", &address, plan.mtu)?;
            tap_device("tap0")
        };
        let daemon = Daemon::start("[dataplane]\ncores = [0]\nmemory_mib = 256\n", Some(&net))?;
        let (queues, mtu) = (plan.queues.to_string(), plan.mtu.to_string());
        daemon.add_port("vm1", &device, &["--queues", &queues, "--mtu", &mtu])?;
        let guest_queues = plan.guest_queues.to_string();
        let mut nics = daemon.qemu_args("vm1", &["--memory", "384M", "--guest-queues", &guest_queues])?;
        set_rings(&mut nics, plan.rings)?;
        let guest = Guest::boot(&GuestSpec { nics, cpus: plan.cpus, ..GuestSpec::default() });
        let guest = guest.map_err(|error| error.context(daemon.story()))?;
        let mut scene = Self { guest, daemon, net };
        scene.connect()?;
        // A letter for each feature bit that the guest's driver took: a bit that QEMU or the lane did not offer is missing.
        let bits = scene.guest.sh("cat /sys/class/net/eth0/device/features")?;
        let packed = bits.trim().chars().nth(34) == Some('1');
        ensure!(packed == (plan.rings == Kind::Packed), "{:?} rings were wanted, the guest took {bits}", plan.rings);
        Ok(scene)
    }

    /// Gives the guest's NIC its address, which it loses by a reboot or a reload of the driver, and waits for a ping.
    pub fn connect(&mut self) -> Result<()> {
        self.guest.sh(&format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"))?;
        self.answers()
    }

    /// Waits until the guest answers a ping.
    pub fn answers(&self) -> Result<()> {
        let answered = self.net.wait_ping(GUEST, Duration::from_secs(20));
        answered.map(drop).map_err(|error| error.context(self.daemon.story()))
    }

    /// As [`iperf`], for a second.
    pub fn iperf(&self, more: &[&str]) -> Result<f64> {
        iperf(&self.net, &[&["-t", "1"], more].concat())
    }
}

/// Gives the NIC that these arguments of QEMU's name rings of a format.
pub fn set_rings(nics: &mut [String], rings: Kind) -> Result<()> {
    if rings == Kind::Packed {
        let nic = nics.iter_mut().find(|argument| argument.starts_with("virtio-net-pci"));
        nic.context("the arguments name no NIC")?.push_str(",packed=on");
    }
    Ok(())
}

/// Starts an iperf3 server in a guest, and returns when it listens on its port, 5201.
pub fn serve_iperf(guest: &mut Guest) -> Result<()> {
    guest.sh(
        "iperf3 -s -D >/dev/null 2>&1; until grep -q ':1451 .* 0A ' /proc/net/tcp /proc/net/tcp6; do sleep 0.05; done",
    )?;
    Ok(())
}

/// Runs iperf3 in a namespace against the guest, and returns the bits per second that the receiver saw.
pub fn iperf(net: &Netns, more: &[&str]) -> Result<f64> {
    let arguments = [&["-c", GUEST, "-J"], more].concat();
    // The server closes its port for a moment between two tests: "unable to connect", or to receive a control message; and where the
    // guest hardly gets a processor it may give a test up in its midst.
    wait::until(Duration::from_secs(20), "a free iperf3 server", || {
        let text = wait::run(net.command("iperf3").args(&arguments), Duration::from_secs(60))?.text;
        let report: serde_json::Value = serde_json::from_str(&text).with_context(|| text.clone())?;
        match (report["end"]["sum_received"]["bits_per_second"].as_f64(), report["error"].as_str()) {
            (Some(rate), None) if rate > 0.0 => Ok(Some(rate)),
            (_, Some(error))
                if ["unable to", "busy", "closed unexpectedly"].iter().any(|word| error.contains(word)) =>
            {
                Ok(None)
            }
            (_, error) => bail!("iperf3 {}: {}", more.join(" "), error.unwrap_or("nothing was received")),
        }
    })
}
