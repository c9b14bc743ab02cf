//! The queues of a device: where a worker receives and sends.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use dpdk_sys as sys;

use super::bond::Backup;
use super::burst::Burst;
use super::offload::TxAbilities;
use super::pool::Pool;
use super::port::Port;
use super::signals;
use super::wake::{Bell, Waker};

/// One receive and one transmit queue of a device.
#[derive(Debug)]
pub struct QueuePair {
    /// Where frames come from.
    pub rx: RxQueue,
    /// Where frames go to.
    pub tx: TxQueue,
}

/// A receive queue. Keeps its device open.
#[derive(Debug)]
pub struct RxQueue {
    pub(super) port: Arc<Port>,
    pub(super) pool: Pool,
    pub(super) index: u16,
    /// Frames may have marks.
    pub(super) marks: bool,
    pub(super) waker: Waker,
    /// What the driver of a bond does not receive by itself.
    pub(super) backup: Option<Box<Backup>>,
}

/// A transmit queue. Keeps its device open.
#[derive(Debug)]
pub struct TxQueue {
    pub(super) port: Arc<Port>,
    pub(super) pool: Pool,
    pub(super) index: u16,
    pub(super) abilities: TxAbilities,
    /// Wake who receives what is sent here; several when it is a bond.
    pub(super) bells: Box<[Arc<Bell>]>,
    /// The driver frees what was sent when it is told to.
    pub(super) cleans: bool,
}

impl RxQueue {
    /// Appends frames that have come in, as many as the burst has room for. Returns how many.
    #[inline]
    pub fn receive(&mut self, burst: &mut Burst) -> usize {
        burst.hold(&self.pool);
        let spare = burst.spare();
        // SAFETY: the queue exists and is polled here alone (`&mut self`); `spare` has room for as many pointers as it is long.
        let n = unsafe { sys::shim_rx_burst(self.port.id(), self.index, spare.as_mut_ptr(), spare.len() as u16) };
        // SAFETY: the driver gave us that many frames, of the queue's pool, which is held.
        unsafe { burst.filled(usize::from(n)) };
        if self.backup.is_some() {
            return self.receive_backup(usize::from(n), burst);
        }
        usize::from(n)
    }

    fn receive_backup(&mut self, received: usize, burst: &mut Burst) -> usize {
        let before = burst.len();
        if let Some(backup) = &mut self.backup {
            // SAFETY: the bond's queue exists, so that of its devices does; both are polled here alone (`&mut self`).
            unsafe { backup.receive(self.index, &self.pool, burst) };
        }
        received + burst.len() - before
    }

    /// Frames that a bond dropped since the last question, because they came in on a device of it that does not send.
    pub fn passed_over(&mut self) -> u64 {
        self.backup.as_mut().map_or(0, |backup| backup.passed_over())
    }

    /// Whether frames may say something of their checksum, or of what is still to be done to them.
    #[inline]
    pub fn marks(&self) -> bool {
        self.marks
    }

    /// The queue's number within its device.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Becomes readable when a frame comes, after [`RxQueue::listen`]; edges count, it is never read. None when the device has
    /// nothing of the kind.
    pub fn wake(&self) -> Option<BorrowedFd<'_>> {
        self.waker.fd()
    }

    /// The calling thread polls it from now on, and takes the signals that the device sends with frames, if it is the lane's only worker.
    pub fn take_signals(&self) {
        self.waker.fd().inspect(|fd| signals::take(*fd));
    }

    /// The calling thread polls it no longer.
    pub fn give_signals_back(&self) {
        self.waker.fd().inspect(|fd| signals::give_back(*fd));
    }

    /// From here on a frame is signalled. One that came before may not be: look once more. False when the driver will not signal.
    pub fn listen(&mut self) -> bool {
        self.waker.listen(self.port.id(), self.index)
    }

    /// Whether a frame is known to be signalled: some drivers promise it and do not.
    pub fn is_signalled(&self) -> bool {
        self.waker.is_reliable()
    }

    /// Something was signalled: looks whether it was this.
    pub fn look_for_signal(&mut self) {
        self.waker.look();
    }

    /// Signals are not needed any more.
    pub fn ignore(&mut self) {
        self.waker.ignore(self.port.id(), self.index);
    }
}

impl TxQueue {
    /// Sends from the front; what the device does not take stays in the burst. Returns how many were taken.
    ///
    /// A frame must be at most as long as the device's MTU allows: drivers count and drop a longer one, or take no frame behind it.
    #[inline]
    pub fn send(&mut self, burst: &mut Burst) -> usize {
        if burst.is_empty() {
            return 0;
        }
        if !burst.is_of(&self.pool) {
            self.port.keep_pools(burst.pools());
        }
        let frames = burst.filled_places();
        // SAFETY: the queue exists and is used here alone (`&mut self`); all of `frames` are valid and ours to give.
        let n = unsafe { sys::shim_tx_burst(self.port.id(), self.index, frames.as_mut_ptr(), frames.len() as u16) };
        burst.forget_front(usize::from(n));
        self.bells.iter().for_each(|bell| bell.ring());
        usize::from(n)
    }

    /// Whether the driver does things by itself when it is called: bonding sends LACP so (IEEE 802.1AX), every 100 ms at least.
    pub fn wants_calls(&self) -> bool {
        self.port.driver() == "net_bonding"
    }

    /// Calls the driver without a frame.
    pub fn call(&mut self) {
        // SAFETY: the queue exists and is used here alone (`&mut self`); no pointer is read.
        unsafe { sys::shim_tx_burst(self.port.id(), self.index, std::ptr::NonNull::dangling().as_ptr(), 0) };
        // What it sent by itself is not left lying where somebody sleeps.
        self.bells.iter().for_each(|bell| bell.ring());
    }

    /// Whether [`TxQueue::clean`] does anything.
    pub fn cleans(&self) -> bool {
        self.cleans
    }

    /// Has the driver free what was sent, where it does not do that while it sends.
    pub fn clean(&mut self) {
        if self.cleans {
            // SAFETY: the queue exists and is used here alone (`&mut self`).
            unsafe { sys::shim_tx_done(self.port.id(), self.index) };
        }
    }

    /// Where frames for this queue are best allocated: their buffers hold any frame the device can send.
    #[inline]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The queue's number within its device.
    pub fn index(&self) -> u16 {
        self.index
    }
}
