//! Numbered datagrams whose every byte is checked: what migrated guests and their hosts send each other.
//!
//! The program `numbers` runs in the guest; the host's side is [`Talk`]. A datagram says how far its sender is, and what the sender has
//! received, so that the host knows of both directions without another connection.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// UDP port of both ends.
pub const PORT: u16 = 5140;
/// Between two datagrams in one direction.
pub const PAUSE: Duration = Duration::from_millis(2);
/// Words of 64 bits before the filling: the number, and a [`Tally`].
const WORDS: usize = 6;
/// No datagram is longer.
const LONGEST: usize = 1400;

/// What came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// The number behind the highest that came.
    pub next: u64,
    /// Datagrams that came.
    pub came: u64,
    /// Of these, how many were not what was sent.
    pub wrong: u64,
    /// Of these, how many had come before.
    pub doubled: u64,
    /// Of these, how many had a lower number than one before: several queues may do that, as the sender moves from one to another.
    pub late: u64,
}

/// What came, and which numbers did.
#[derive(Debug, Default)]
struct Log {
    tally: Tally,
    /// A bit for each number.
    numbers: Vec<u64>,
}

impl Tally {
    /// Numbers below the highest that did not come.
    pub fn lost(&self) -> u64 {
        self.next.saturating_sub(self.came - self.wrong - self.doubled)
    }

    /// How many more those are than `before`. Stragglers of before that came meanwhile may have made them fewer: then there are none.
    pub fn lost_since(&self, before: &Self) -> u64 {
        self.lost().saturating_sub(before.lost())
    }
}

impl Log {
    /// Takes a datagram; what the newest says of the other direction.
    fn take(&mut self, datagram: &[u8]) -> Option<Tally> {
        let tally = &mut self.tally;
        tally.came += 1;
        let Some((number, said)) = parse(datagram) else {
            tally.wrong += 1;
            return None;
        };
        let (word, bit) = (number as usize / 64, 1 << (number % 64));
        if word >= self.numbers.len() {
            self.numbers.resize(word + 1, 0);
        }
        tally.doubled += u64::from(self.numbers[word] & bit != 0);
        self.numbers[word] |= bit;
        if number < tally.next {
            tally.late += 1;
            return None;
        }
        tally.next = number + 1;
        Some(said)
    }
}

/// Datagram `number`, which says `tally`.
fn datagram(number: u64, tally: &Tally) -> Vec<u8> {
    let words = [number, tally.next, tally.came, tally.wrong, tally.doubled, tally.late];
    let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    bytes.extend(filling(number));
    bytes
}

/// As much of what follows from the number as follows from the number.
fn filling(number: u64) -> impl Iterator<Item = u8> {
    let length = (number.wrapping_mul(977) % (LONGEST - 8 * WORDS) as u64) as usize;
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    std::iter::repeat_with(move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    })
    .take(length)
}

/// The number of a datagram that is what was sent, and what it says.
fn parse(bytes: &[u8]) -> Option<(u64, Tally)> {
    let (head, rest) = bytes.split_at_checked(8 * WORDS)?;
    let word = |at: usize| Some(u64::from_le_bytes(head.get(8 * at..8 * at + 8)?.try_into().ok()?));
    let number = word(0)?;
    let tally = Tally { next: word(1)?, came: word(2)?, wrong: word(3)?, doubled: word(4)?, late: word(5)? };
    // A number of a datagram that was changed may be any: no log is to grow by it.
    let plausible = number < 1 << 32;
    (plausible && rest.iter().copied().eq(filling(number))).then_some((number, tally))
}

/// Sends and receives for ever: the guest's side.
///
/// # Errors
/// What the sockets say, but that nobody is there.
pub fn answer(socket: &UdpSocket, peer: &str) -> std::io::Result<()> {
    socket.set_read_timeout(Some(Duration::from_micros(PAUSE.as_micros() as u64)))?;
    let (mut log, mut number, mut bytes) = (Log::default(), 0, [0; 2 * LONGEST]);
    let mut due = Instant::now();
    loop {
        if let Ok(length) = socket.recv(&mut bytes) {
            log.take(&bytes[..length]);
        }
        // One for each pause; what was due while the guest stood still is not made up for.
        if due.elapsed() >= PAUSE {
            due = Instant::now();
            if socket.send_to(&datagram(number, &log.tally), peer).is_ok() {
                number += 1;
            }
        }
    }
}

/// How it goes between the guest and the host, seen from the host.
#[derive(Debug, Clone, Copy, Default)]
pub struct Seen {
    /// From the guest.
    pub from_guest: Tally,
    /// To the guest, as it said last.
    pub to_guest: Tally,
    /// The longest time in which nothing came, since it was asked for last.
    pub silence: Duration,
}

#[derive(Debug)]
struct State {
    seen: Seen,
    log: Log,
    last: Instant,
    sent: u64,
}

/// The host's side, on a thread of its own.
#[derive(Debug)]
pub struct Talk {
    state: Arc<Mutex<State>>,
    stop: Arc<AtomicBool>,
    silent: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Talk {
    /// Talks to `peer`, such as `192.0.2.2:5140`.
    ///
    /// # Errors
    /// That the socket cannot be had twice.
    pub fn start(socket: UdpSocket, peer: String) -> std::io::Result<Self> {
        let (stop, silent) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let state =
            Arc::new(Mutex::new(State { seen: Seen::default(), log: Log::default(), last: Instant::now(), sent: 0 }));
        let (ours, quiet, kept) = (Arc::clone(&stop), Arc::clone(&silent), Arc::clone(&state));
        let receiver = socket.try_clone()?;
        receiver.set_read_timeout(Some(Duration::from_millis(20)))?;
        let thread = std::thread::spawn(move || {
            std::thread::scope(|scope| {
                scope.spawn(|| {
                    let mut bytes = [0; 2 * LONGEST];
                    while !ours.load(Ordering::Relaxed) {
                        let Ok(length) = receiver.recv(&mut bytes) else { continue };
                        let mut state = lock(&kept);
                        let said = state.log.take(&bytes[..length]);
                        state.seen.from_guest = state.log.tally;
                        state.seen.to_guest = said.unwrap_or(state.seen.to_guest);
                        let silence = state.last.elapsed();
                        state.seen.silence = state.seen.silence.max(silence);
                        state.last = Instant::now();
                    }
                });
                while !ours.load(Ordering::Relaxed) {
                    std::thread::sleep(PAUSE);
                    if quiet.load(Ordering::Relaxed) {
                        continue;
                    }
                    let number = lock(&kept).sent;
                    if socket.send_to(&datagram(number, &Tally::default()), &peer).is_ok() {
                        lock(&kept).sent += 1;
                    }
                }
            });
        });
        Ok(Self { state, stop, silent, thread: Some(thread) })
    }

    /// How it went; the longest silence is counted anew from here.
    pub fn look(&self) -> Seen {
        let mut state = lock(&self.state);
        let seen = state.seen;
        (state.seen.silence, state.last) = (Duration::ZERO, Instant::now());
        seen
    }

    /// How it goes, and nothing is counted anew.
    pub fn peek(&self) -> Seen {
        lock(&self.state).seen
    }

    /// Sends nothing, while the guest stands still.
    pub fn pause(&self, pause: bool) {
        self.silent.store(pause, Ordering::Relaxed);
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        // It has nothing to panic about.
        let _ = self.thread.take().map(JoinHandle::join);
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_lost_doubled_late_or_changed_is_told_apart() {
        let mut log = Log::default();
        let said = Tally { next: 7, came: 6, ..Tally::default() };
        for number in [0, 1, 4, 4, 2, 5] {
            log.take(&datagram(number, &said));
        }
        assert_eq!(log.tally, Tally { next: 6, came: 6, wrong: 0, doubled: 1, late: 2 });
        assert_eq!(log.tally.lost(), 1, "number 3");
        let mut changed = datagram(6, &said);
        *changed.last_mut().unwrap() ^= 1;
        assert_eq!(log.take(&changed), None);
        assert_eq!(log.tally.wrong, 1);
        assert_eq!(log.take(&datagram(7, &said)), Some(said));
        assert!(parse(&[0; 12]).is_none());
    }

    #[test]
    fn stragglers_of_before_make_no_interval_lose_less_than_nothing() {
        let mut log = Log::default();
        let said = Tally::default();
        let mut take = |numbers: &[u64]| {
            numbers.iter().for_each(|number| _ = log.take(&datagram(*number, &said)));
            log.tally
        };
        let before = take(&[0, 1, 4]);
        let after = take(&[2, 3, 5]);
        assert_eq!((before.lost(), after.lost(), after.lost_since(&before)), (2, 0, 0));
        let later = take(&[8]);
        assert_eq!(later.lost_since(&after), 2, "6 and 7");
    }
}
