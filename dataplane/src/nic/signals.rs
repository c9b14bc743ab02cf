//! Signals of devices. DPDK's net_tap has the kernel send a real-time signal with each frame, and reads only after its handler ran
//! (drivers/net/tap/rte_eth_tap.c: `tap_trigger`). Whoever takes them pays for each frame with a microsecond or two.
//!
//! So they belong to the worker, whose core is there for frames: DPDK's own thread, which takes them otherwise, shares its core with
//! guests, and took a sixth of it under a stream of TCP. Where a lane has several workers they stay with DPDK's thread, because the handler
//! counts without a lock, and of two that count at once one can undo what the other did, and leave a frame lying.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};

/// The only worker, as the kernel numbers threads; [`NOBODY`], or [`SEVERAL`].
static WORKER: AtomicI32 = AtomicI32::new(NOBODY);
const NOBODY: i32 = 0;
const SEVERAL: i32 = -1;

/// Until it is dropped the calling thread is a worker, and what it polls may signal it: see [`take`].
#[derive(Debug)]
pub struct SignalledWorker(i32);

impl SignalledWorker {
    /// Called by a worker's thread, before there are ports.
    #[expect(clippy::new_without_default, reason = "it is of the calling thread")]
    pub fn new() -> Self {
        let thread = this_thread();
        if WORKER.compare_exchange(NOBODY, thread, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            WORKER.store(SEVERAL, Ordering::Relaxed);
        }
        Self(thread)
    }
}

impl Drop for SignalledWorker {
    fn drop(&mut self) {
        let _ = WORKER.compare_exchange(self.0, NOBODY, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Blocks real-time signals in the calling thread and those it starts from now on, and has the process ignore SIGIO, which the kernel
/// sends when too many of them wait and which would end the process.
pub(super) fn divert() {
    mask(libc::SIG_BLOCK);
    // SAFETY: there is no handler.
    unsafe { libc::signal(libc::SIGIO, libc::SIG_IGN) };
}

/// The calling thread polls `fd` from now on: if it is the only worker, and `fd` sends signals, it takes them.
pub(super) fn take(fd: BorrowedFd<'_>) {
    let thread = this_thread();
    if WORKER.load(Ordering::Relaxed) == thread && sends(fd) {
        mask(libc::SIG_UNBLOCK);
        let owner = Owner { kind: F_OWNER_TID, id: thread };
        // SAFETY: F_SETOWN_EX reads a `struct f_owner_ex`. If it fails, the process keeps them.
        unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    }
}

/// The opposite of [`take`]: whoever does not block them takes them.
pub(super) fn give_back(fd: BorrowedFd<'_>) {
    if WORKER.load(Ordering::Relaxed) == this_thread() && sends(fd) {
        // SAFETY: takes a number.
        unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETOWN, std::process::id() as i32) };
    }
}

/// `struct f_owner_ex` (fcntl(2)).
#[repr(C)]
struct Owner {
    kind: i32,
    id: i32,
}

/// include/uapi/asm-generic/fcntl.h; the libc crate does not have them for all C libraries.
const F_SETOWN_EX: i32 = 15;
const F_OWNER_TID: i32 = 0;

fn sends(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: asks for flags; a failure is -1, which has all of them, and the call that follows fails as well.
    unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) & libc::O_ASYNC != 0 }
}

fn this_thread() -> i32 {
    nix::unistd::gettid().as_raw()
}

/// Blocks or unblocks all real-time signals in the calling thread.
fn mask(how: i32) {
    // SAFETY: the set is written by sigemptyset before it is read.
    unsafe {
        let mut signals = MaybeUninit::<libc::sigset_t>::uninit();
        libc::sigemptyset(signals.as_mut_ptr());
        for signal in libc::SIGRTMIN()..=libc::SIGRTMAX() {
            libc::sigaddset(signals.as_mut_ptr(), signal);
        }
        libc::pthread_sigmask(how, signals.as_ptr(), std::ptr::null_mut());
    }
}
