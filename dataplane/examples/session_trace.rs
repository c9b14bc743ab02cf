//! Shows what a front-end says, as a port would hear it: a vhost-user session without rings behind it.
//!
//! ```sh
//! cargo run -p ringspan-dataplane --example session_trace -- /tmp/trace.sock [client]
//! ```
//!
//! Connect QEMU or DPDK's virtio-user to the socket. Every transition is a line on standard output; packets are
//! neither taken nor given. Ends with standard input.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ringspan_dataplane::memory::{DirtyLog, GuestMap};
use ringspan_dataplane::ring::{RingConfig, RingLog};
use ringspan_dataplane::vhost::{RingSink, Session, SessionConfig, feature_names};
use ringspan_protocol::{Compat, LaneEventKind, Role};

struct Trace {
    start: Instant,
    bases: Mutex<BTreeMap<usize, u16>>,
}

impl Trace {
    fn line(&self, text: String) {
        println!("{:9.3} {text}", self.start.elapsed().as_secs_f64());
    }
}

impl RingSink for Trace {
    fn negotiated(&self, features: u64) {
        self.line(format!("features {features:#x}: {}", feature_names(features).join(" ")));
    }

    fn memory(&self, _map: Arc<GuestMap>) {
        self.line("memory".into());
    }

    fn start(&self, index: usize, config: RingConfig) {
        self.bases.lock().expect("no panic under the lock").insert(index, config.position());
        self.line(format!("ring {index} starts: {config:x?}"));
    }

    fn stop(&self, index: usize) -> Option<u16> {
        let base = self.bases.lock().expect("no panic under the lock").remove(&index);
        self.line(format!("ring {index} stops at {base:?}"));
        base
    }

    fn call(&self, index: usize, call: Option<Arc<OwnedFd>>) {
        self.line(format!("ring {index} interrupts by {call:?}"));
    }

    fn can_log(&self, taken: bool) {
        self.line(format!("the guest {} be migrated", if taken { "can" } else { "cannot" }));
    }

    fn logging(&self, log: Option<&Arc<DirtyLog>>) {
        self.line(format!("log {log:?}"));
    }

    fn log(&self, index: usize, log: Option<RingLog>) {
        self.line(format!("ring {index} logs by {log:x?}"));
    }

    fn told(&self, index: usize) {
        self.line(format!("ring {index}: its place was told"));
    }

    fn announce(&self, mac: [u8; 6]) -> Result<(), String> {
        self.line(format!("announce {mac:02x?}"));
        Ok(())
    }

    fn event(&self, event: LaneEventKind) {
        self.line(format!("event {event:?}"));
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let socket = arguments.next().ok_or("the socket's path is missing")?.into();
    let role = if arguments.next().as_deref() == Some("client") { Role::Client } else { Role::Server };
    let folder = tempfile::tempdir()?;
    let config = SessionConfig {
        name: "trace".into(),
        socket,
        role,
        owner: None,
        mode: None,
        compat: Compat::LATEST,
        offloads: true,
        mtu: 1500,
        private_dir: folder.path().into(),
    };
    tracing_subscriber::fmt().with_max_level(tracing::Level::TRACE).with_writer(std::io::stderr).init();
    let trace = Trace { start: Instant::now(), bases: Mutex::default() };
    let mut session = Session::start(config, Arc::new(trace))?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    session.stop();
    Ok(())
}
