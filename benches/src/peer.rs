//! Back-ends that can be measured, each started anew for every measurement, on one core.

use std::path::{Path, PathBuf};

use ringspan_testkit::lane::{self, Lane};
use ringspan_testkit::testpmd::{self, Testpmd};
use serde::{Deserialize, Serialize};

use crate::load::Direction;

/// Which back-end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// `ringspan-lane`, driven without the daemon.
    Ringspan,
    /// `dpdk-testpmd` with net_vhost, forwarding between that and the device.
    Testpmd,
}

impl Peer {
    /// For a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Ringspan => "ringspan",
            Self::Testpmd => "testpmd net_vhost",
        }
    }
}

/// A running back-end; it ends when this is dropped.
#[derive(Debug)]
pub enum Running {
    /// A lane with one port.
    Ringspan(Box<Lane>),
    /// A testpmd that forwards.
    Testpmd(Testpmd),
}

/// The device behind the port: it swallows everything, and makes frames only where frames are wanted.
fn null_device(direction: Direction, frame: usize) -> String {
    let quiet = if direction != Direction::NullToGuest { ",no-rx=1" } else { "" };
    format!("net_null0,size={frame}{quiet}")
}

/// Starts a back-end with its vhost-user socket listening in `folder`.
pub fn start(
    peer: Peer,
    direction: Direction,
    frame: usize,
    core: usize,
    huge_pages: bool,
    folder: &Path,
) -> anyhow::Result<(Running, PathBuf)> {
    let device = null_device(direction, frame);
    match peer {
        Peer::Ringspan => {
            let options = lane::Options {
                cores: core.to_string(),
                memory_mib: 256,
                huge_pages: if huge_pages { "require" } else { "off" }.into(),
                ..lane::Options::new("bench")
            };
            let mut lane = Lane::start(options, folder)?;
            let socket = lane.add_port("guest", &format!("vdev:{device}"), 1)?;
            Ok((Running::Ringspan(Box::new(lane)), socket))
        }
        Peer::Testpmd => {
            let socket = folder.join("testpmd.sock");
            let mut options = testpmd::Options::new(format!("bench-{}", std::process::id()))
                .device(format!("net_vhost0,iface={},queues=1", socket.display()))
                .device(device)
                .arguments(["--forward-mode=io", "--total-num-mbufs=16384"]);
            options.core = core;
            options.huge_pages = huge_pages;
            let mut testpmd = Testpmd::start(&options)?;
            testpmd.command("start")?;
            Ok((Running::Testpmd(testpmd), socket))
        }
    }
}
