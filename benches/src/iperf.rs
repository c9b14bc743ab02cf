//! iperf3 between the host and a Linux guest in QEMU, through each back-end, with the same features for all.
//!
//! Each back-end has a network namespace with a TAP in it, which is its device, and a guest behind it. All checksum and segmentation
//! offloads are off: net_vhost before a TAP has no way to do them, so nobody is measured with what another cannot have.

use anyhow::{Context, ensure};
use nix::sys::signal::Signal;
use ringspan_testkit::netns::Netns;
use ringspan_testkit::qemu::{Guest, GuestSpec};
use ringspan_testkit::scene::{GUEST, HOST, iperf, serve_iperf};
use ringspan_testkit::{process, wait};
use serde::Serialize;
use std::time::Duration;

use crate::cell::{Device, Setup};
use crate::peer::{Backend, Peer};
use crate::report::{Spread, unless_stopped};
use crate::run::Plan;

/// Bits per second through one back-end.
#[derive(Debug, Clone, Serialize)]
pub struct Iperf {
    /// Which.
    pub peer: Peer,
    /// From the host to the guest, and back.
    pub bits: [Spread; 2],
    /// ringspan's divided by these, round by round.
    pub ratios: [Option<Spread>; 2],
    /// What the guest's driver negotiated: a digit for each feature bit.
    pub features: String,
    /// `ethtool -k` of the guest's NIC.
    pub ethtool: String,
    /// All alternations.
    pub samples: Vec<[f64; 2]>,
}

/// Properties of QEMU's NIC that take all offloads away.
pub(crate) const PLAIN: &str = "csum=off,guest_csum=off,gso=off,guest_tso4=off,guest_tso6=off,guest_ecn=off,guest_ufo=off,\
    host_tso4=off,host_tso6=off,host_ecn=off,host_ufo=off";

/// A guest behind a back-end. The parts end in this order.
struct Scene {
    peer: Peer,
    guest: Guest,
    backend: Backend,
    net: Netns,
    features: String,
    ethtool: String,
}

impl Scene {
    fn new(peer: Peer, plan: &Plan) -> anyhow::Result<Self> {
        let net = Netns::new("bench")?;
        net.tap("tap0", &format!("{HOST}/24"), 1500)?;
        let runner = ["ip", "netns", "exec", net.name()].map(String::from);
        let setup = Setup { device: Device::Tap, pairs: 1, offload: false };
        let backend = Backend::start_under(peer, setup, plan.place, &runner)?;
        let socket = backend.sockets[0].display();
        let nics = [
            "-object".into(),
            "memory-backend-memfd,id=guestmem,size=384M,share=on".into(),
            "-machine".into(),
            "memory-backend=guestmem".into(),
            "-chardev".into(),
            format!("socket,id=nic,path={socket}"),
            "-netdev".into(),
            "vhost-user,id=net,chardev=nic".into(),
            "-device".into(),
            format!("virtio-net-pci,netdev=net,mac=52:54:00:12:34:56,{PLAIN}"),
        ];
        let mut guest = Guest::boot(&GuestSpec { nics: nics.to_vec(), ..GuestSpec::default() })?;
        guest.sh(&format!("ip link set eth0 up && ip address add {GUEST}/24 dev eth0"))?;
        net.wait_ping(GUEST, Duration::from_secs(20))?;
        serve_iperf(&mut guest)?;
        let features = guest.sh("cat /sys/class/net/eth0/device/features")?.trim().to_string();
        let ethtool = guest.sh("ethtool -k eth0")?;
        let scene = Self { peer, guest, backend, net, features, ethtool };
        scene.pause(true)?;
        Ok(scene)
    }

    /// Stops guest and back-end where they are, or lets them go on.
    fn pause(&self, pause: bool) -> anyhow::Result<()> {
        let qemu = self.guest.pid().context("QEMU has no process id")?;
        process::signal(qemu, if pause { Signal::SIGSTOP } else { Signal::SIGCONT })?;
        if pause { self.backend.pause() } else { self.backend.resume() }
    }

    fn measure(&self) -> anyhow::Result<[f64; 2]> {
        self.pause(false)?;
        self.net.wait_ping(GUEST, Duration::from_secs(20))?;
        let bits = [iperf(&self.net, &["-t", "2"])?, iperf(&self.net, &["-t", "2", "-R"])?];
        self.pause(true)?;
        Ok(bits)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        // What stands still cannot be told to end.
        let _ = self.pause(false);
    }
}

impl Plan {
    /// iperf3 both ways through each of the back-ends that has guests of its own to show.
    pub fn iperf(&self, rounds: usize, mut progress: impl FnMut(&str)) -> anyhow::Result<Vec<Iperf>> {
        let mut scenes = vec![];
        for peer in self.peers.iter().copied().filter(|peer| *peer != Peer::Plain) {
            wait::check_stopped()?;
            progress(&format!("iperf3: booting a guest behind {}", peer.title()));
            match unless_stopped(Scene::new(peer, self))? {
                Ok(scene) => scenes.push(scene),
                Err(error) => progress(&format!("iperf3: {}: {error:#}", peer.title())),
            }
        }
        let mut found: Vec<Vec<[f64; 2]>> = vec![vec![]; scenes.len()];
        for round in 0..rounds {
            for turn in 0..scenes.len() {
                wait::check_stopped()?;
                let index = if round % 2 == 1 { scenes.len() - 1 - turn } else { turn };
                let bits = scenes[index].measure()?;
                let [to, from] = bits.map(|bits| bits / 1e6);
                let name = scenes[index].peer.title();
                progress(&format!(
                    "iperf3, round {}: {name} {to:.0} Mbit/s to the guest, {from:.0} from it",
                    round + 1
                ));
                found[index].push(bits);
            }
        }
        if let Some(first) = scenes.first() {
            let same = scenes.iter().all(|scene| scene.features == first.features);
            ensure!(
                same,
                "guests negotiated different features: {:?}",
                scenes.iter().map(|s| &s.features).collect::<Vec<_>>()
            );
        }
        let ours = scenes.iter().position(|scene| scene.peer == Peer::Ringspan);
        let summary = |(index, scene): (usize, &Scene)| {
            let of = |way: usize| Spread::of(found[index].iter().map(|bits| bits[way]));
            let ratio = |way: usize| {
                let ours = ours.filter(|ours| *ours != index)?;
                Spread::of(found[ours].iter().zip(&found[index]).map(|(ours, theirs)| ours[way] / theirs[way]))
            };
            Some(Iperf {
                peer: scene.peer,
                bits: [of(0)?, of(1)?],
                ratios: [ratio(0), ratio(1)],
                features: scene.features.clone(),
                ethtool: scene.ethtool.clone(),
                samples: found[index].clone(),
            })
        };
        Ok(scenes.iter().enumerate().filter_map(summary).collect())
    }
}
