//! The lane's events, kept for whoever asks for them later.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use ringspan_protocol::{LaneEvent, LaneEventKind, PortName};

/// Events that are kept; older ones are forgotten first.
const KEPT: usize = 4096;

/// Events that a port may have at once...
const AT_ONCE: u32 = 256;
/// ... and then one in this time, for as long as it goes on.
const APART: Duration = Duration::from_millis(50);

/// How fast a port's events come. A front-end or guest that goes in circles (connects and leaves, enables and disables) would
/// flood the log and push the events of all other ports out of it; the thread that serves it is held back instead.
#[derive(Debug, Default)]
pub struct Pace {
    /// When an event that was made at its earliest would be due; never long ago.
    due: Option<Instant>,
}

impl Pace {
    /// Notes an event at `now`. Returns how long whoever makes it has to wait before going on.
    pub fn note(&mut self, now: Instant) -> Duration {
        let due = self.due.map_or(now, |due| due.max(now)) + APART;
        let wait = due.saturating_duration_since(now).saturating_sub(APART * AT_ONCE).min(APART);
        self.due = Some(due);
        wait
    }
}

/// Numbered events, from 1 up.
#[derive(Default)]
pub struct EventLog {
    kept: Mutex<VecDeque<LaneEvent>>,
    grown: Condvar,
}

impl EventLog {
    /// Adds an event with the next number and the time of now.
    pub fn push(&self, port: &PortName, kind: LaneEventKind) {
        tracing::info!(%port, event = ?kind, "event");
        let mut kept = self.lock();
        let sequence = kept.back().map_or(1, |last| last.sequence + 1);
        if kept.len() == KEPT {
            kept.pop_front();
        }
        kept.push_back(LaneEvent { sequence, time_ms: now_ms(), port: port.clone(), kind });
        drop(kept);
        self.grown.notify_all();
    }

    /// Events with a higher number than `after`; when there are none, waits for one for as long as `wait`.
    pub fn after(&self, after: u64, wait: Duration) -> Vec<LaneEvent> {
        let nothing_new = |kept: &mut VecDeque<LaneEvent>| kept.back().is_none_or(|last| last.sequence <= after);
        let (kept, _) =
            self.grown.wait_timeout_while(self.lock(), wait, nothing_new).unwrap_or_else(PoisonError::into_inner);
        kept.iter().filter(|event| event.sequence > after).cloned().collect()
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<LaneEvent>> {
        // A push cannot fail half-way, so what a panicking thread left behind is whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Milliseconds since the Unix epoch.
pub fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reader_gets_what_came_after_the_number_it_names_and_sees_a_hole_when_some_is_forgotten() {
        let (log, port) = (EventLog::default(), "vm1".parse().unwrap());
        assert!(log.after(0, Duration::ZERO).is_empty());
        for _ in 0..KEPT + 2 {
            log.push(&port, LaneEventKind::PortListening);
        }
        let last = KEPT as u64 + 2;
        assert_eq!(log.after(last - 1, Duration::ZERO)[0].sequence, last);
        assert_eq!(log.after(0, Duration::ZERO)[0].sequence, 3);
    }

    #[test]
    fn a_port_that_goes_in_circles_is_slowed_down_and_forgiven() {
        let (mut pace, start) = (Pace::default(), Instant::now());
        assert!((0..AT_ONCE).all(|_| pace.note(start).is_zero()));
        // Who waits as told makes 20 events a second.
        let mut now = start;
        for _ in 0..100 {
            now += pace.note(now);
        }
        assert!((APART * 99..=APART * 100).contains(&(now - start)), "{:?}", now - start);
        let later = now + APART * AT_ONCE;
        assert!((0..AT_ONCE).all(|_| pace.note(later).is_zero()));
        assert!(!pace.note(later).is_zero());
    }

    #[test]
    fn a_waiting_reader_is_woken_by_the_next_event() {
        let (log, port) = (EventLog::default(), "vm1".parse().unwrap());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| log.after(0, Duration::from_secs(60)));
            log.push(&port, LaneEventKind::DriverStopped);
            assert_eq!(reader.join().unwrap()[0].kind, LaneEventKind::DriverStopped);
        });
    }
}
