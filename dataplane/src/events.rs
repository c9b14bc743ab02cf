//! The lane's events, kept for whoever asks for them later.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringspan_protocol::{LaneEvent, LaneEventKind, PortName};

/// Events that are kept; older ones are forgotten first.
const KEPT: usize = 4096;

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
    fn a_waiting_reader_is_woken_by_the_next_event() {
        let (log, port) = (EventLog::default(), "vm1".parse().unwrap());
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| log.after(0, Duration::from_secs(60)));
            log.push(&port, LaneEventKind::DriverStopped);
            assert_eq!(reader.join().unwrap()[0].kind, LaneEventKind::DriverStopped);
        });
    }
}
