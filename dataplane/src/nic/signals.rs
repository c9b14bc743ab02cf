//! Signals of devices. DPDK's net_tap has the kernel send a real-time signal with each frame, and reads only after its handler ran
//! (drivers/net/tap/rte_eth_tap.c: `tap_trigger`). Whoever takes them pays for each frame with a microsecond or two.
//!
//! So they belong to the worker, whose core is there for frames: a thread of control shares its core with guests, and took a sixth of it
//! under a stream of TCP. One thread at a time takes them, because the handler counts without a lock, and of two that count at once one can
//! undo what the other did, and leave a frame lying: a thread that does nothing else, until the only worker polls something that signals.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Duration;

/// The only worker, as the kernel numbers threads; [`NOBODY`], or [`SEVERAL`].
static WORKER: AtomicI32 = AtomicI32::new(NOBODY);
const NOBODY: i32 = 0;
const SEVERAL: i32 = -1;

/// Who takes signals that no thread in particular is meant by.
static TAKER: Mutex<Taker> = Mutex::new(Taker::Thread);
static CHANGED: Condvar = Condvar::new();

#[derive(Clone, Copy, PartialEq, Eq)]
enum Taker {
    /// The thread that does nothing else.
    Thread,
    /// It was asked not to.
    Leaving,
    /// The worker.
    Worker,
}

/// Until it is dropped the calling thread is a worker, and what it polls may signal it.
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
        if WORKER.compare_exchange(self.0, NOBODY, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            let mut taker = lock();
            if *taker == Taker::Worker {
                mask(libc::SIG_BLOCK);
                *taker = Taker::Thread;
                CHANGED.notify_all();
            }
        }
    }
}

/// Starts the thread that takes signals while no worker does. Called once, by a thread that blocks them. Without it that thread takes them.
pub(super) fn start_taker() {
    if let Err(error) = std::thread::Builder::new().name("signals".into()).spawn(take_until_asked) {
        tracing::warn!("cannot start a thread for the signals of TAPs, they may interrupt others: {error}");
        mask(libc::SIG_UNBLOCK);
    }
}

fn take_until_asked() {
    let mut taker = lock();
    loop {
        mask(libc::SIG_UNBLOCK);
        while *taker == Taker::Thread {
            taker = CHANGED.wait(taker).unwrap_or_else(PoisonError::into_inner);
        }
        mask(libc::SIG_BLOCK);
        *taker = Taker::Worker;
        CHANGED.notify_all();
        while *taker == Taker::Worker {
            taker = CHANGED.wait(taker).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// The calling worker takes signals from now on, and the thread does not.
fn take_over() -> bool {
    let mut taker = lock();
    if *taker != Taker::Worker {
        *taker = Taker::Leaving;
        CHANGED.notify_all();
        let leaving = |taker: &mut Taker| *taker == Taker::Leaving;
        // A moment, once in a worker's life.
        let waited = CHANGED.wait_timeout_while(taker, Duration::from_secs(1), leaving);
        taker = waited.unwrap_or_else(PoisonError::into_inner).0;
        if *taker == Taker::Leaving {
            *taker = Taker::Thread;
        }
    }
    *taker == Taker::Worker
}

fn lock() -> std::sync::MutexGuard<'static, Taker> {
    TAKER.lock().unwrap_or_else(PoisonError::into_inner)
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
    if WORKER.load(Ordering::Relaxed) == thread && sends(fd) && take_over() {
        mask(libc::SIG_UNBLOCK);
        let owner = Owner { kind: F_OWNER_TID, id: thread };
        // SAFETY: F_SETOWN_EX reads a `struct f_owner_ex`. If it fails, the process keeps them.
        unsafe { libc::fcntl(fd.as_raw_fd(), F_SETOWN_EX, &raw const owner) };
    }
}

/// The opposite of [`take`]: they are meant for nobody in particular.
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
