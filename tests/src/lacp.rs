//! The other end of LACP: a switch that agrees to everything.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::Result;

use crate::far_end::FarEnd;

/// The type of its frames: slow protocols.
pub const TYPE: [u8; 2] = [0x88, 0x09];

/// A switch outside that agrees with whatever the other side says of itself in LACP (IEEE 802.1AX, 6.4).
#[derive(Debug)]
pub struct Switch {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Switch {
    /// Answers at these links until it is dropped.
    pub fn start(links: [FarEnd; 2]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let mut bytes = vec![0; 2048];
            while !flag.load(Ordering::Relaxed) {
                for (port, link) in links.iter().enumerate() {
                    while let Some(len) = link.receive(&mut bytes).ok().flatten() {
                        if len >= 124 && bytes[14] == 1 {
                            // A link that is down takes nothing.
                            let _ = link.send(&answer(&bytes[..124], port as u8 + 1));
                        }
                    }
                }
                std::thread::sleep(Duration::from_millis(5));
            }
            Ok(())
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A LACPDU: actor at 16, partner at 36, collector at 56.
fn answer(theirs: &[u8], port: u8) -> Vec<u8> {
    let mut ours = theirs.to_vec();
    ours[6..12].copy_from_slice(&[2, 0, 0, 0, 0x99, port]);
    // In sync, collecting and distributing, with short timeouts.
    ours[18..36].copy_from_slice(&[0x80, 0, 2, 0, 0, 0, 0, 0x99, 0, 17, 0, 0x80, 0, port, 0x3f, 0, 0, 0]);
    ours[38..56].copy_from_slice(&theirs[18..36]);
    ours
}
