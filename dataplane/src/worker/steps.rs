//! What a worker does from one look at its calls to the next: a round over its relays, and rest when there was nothing to do.

use std::sync::atomic::AtomicBool;

use super::clock;
use super::idle::{Idle, Rest, Signalled};
use super::rounds::{Members, Rounds};

/// Rounds and rests, one after another.
pub struct Steps {
    idle: Idle,
    rounds: Rounds,
}

impl Steps {
    /// Without members.
    pub fn new(idle: Idle) -> Self {
        Self { idle, rounds: Rounds::new() }
    }

    /// A call may have changed the members, of which there are so many now: all are looked at, and asked to signal before the next
    /// sleep.
    pub fn changed(&mut self, members: usize) {
        self.idle.changed();
        self.rounds.restart(members, clock::ticks());
    }

    /// One round over so many members. After one without a packet it spins on, asks to be signalled, or sleeps: which of them, or `None` after packets.
    #[inline]
    pub fn step<T: Members + Signalled + ?Sized>(
        &mut self,
        members: &mut T,
        count: usize,
        waiting: &AtomicBool,
    ) -> Option<Rest> {
        let (moved, _) = self.rounds.round(members, clock::ticks);
        if moved > 0 {
            self.idle.busy(members);
            return None;
        }
        let rest = self.idle.empty(members, waiting);
        match rest {
            Rest::Spun => {}
            Rest::Asked => self.rounds.restart(count, clock::ticks()),
            Rest::Slept => self.rounds.resume(clock::ticks()),
        }
        Some(rest)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::idle::Wake;
    use crate::worker::rounds::Turn;
    use std::time::{Duration, Instant};

    /// Has a packet each `every`.
    struct Fake {
        every: Duration,
        due: Instant,
        packets: u32,
        busy: u64,
        /// It was asked to signal, and not told since that it need not.
        asked: bool,
        looked_for_signals: u32,
    }

    impl Fake {
        fn new(every: Duration) -> Self {
            Self { every, due: Instant::now() + every, packets: 0, busy: 0, asked: false, looked_for_signals: 0 }
        }
    }

    impl Turn for Fake {
        fn run(&mut self) -> usize {
            if Instant::now() < self.due {
                return 0;
            }
            self.due += self.every;
            self.packets += 1;
            1
        }

        fn took(&mut self, ticks: u64) {
            self.busy += ticks;
        }
    }

    impl Signalled for Fake {
        fn listen(&mut self) -> bool {
            self.asked = true;
            false
        }

        fn can_wake(&self) -> bool {
            false
        }

        fn look_for_signals(&mut self) {
            self.looked_for_signals += 1;
        }

        fn ignore_signals(&mut self) {
            self.asked = false;
        }

        fn ignore_frames(&mut self) {
            self.asked = false;
        }
    }

    const NEVER: Duration = Duration::from_secs(3600);

    fn steps(members: usize) -> (Steps, Wake) {
        let (idle, wake) = Idle::new(false).unwrap();
        let mut steps = Steps::new(idle);
        steps.changed(members);
        (steps, wake)
    }

    /// Goes on until it rests in this way.
    fn until(steps: &mut Steps, members: &mut [Fake], wanted: Rest) {
        let waiting = AtomicBool::new(false);
        while {
            let count = members.len();
            steps.step(members, count, &waiting)
        } != Some(wanted)
        {}
    }

    #[test]
    fn sleep_is_not_work() {
        let (mut steps, _wake) = steps(2);
        let mut members = [Fake::new(Duration::from_millis(10)), Fake::new(NEVER)];
        let waiting = AtomicBool::new(false);
        let mut booked = vec![];
        while booked.len() < 20 {
            let (packets, busy) = (members[0].packets, members[0].busy);
            {
                let count = members.len();
                steps.step(&mut members[..], count, &waiting)
            };
            if members[0].packets > packets {
                booked.push(members[0].busy - busy);
            }
        }
        // The middle one, because the machine may take the processor away at any time; the shortest sleep is 50 us.
        booked.sort_unstable();
        let middle = booked[booked.len() / 2];
        assert!(middle < clock::ticks_in(Duration::from_micros(50)), "{middle} ticks are booked for a packet");
    }

    #[test]
    fn what_is_attached_after_the_others_were_asked_is_asked_before_the_sleep() {
        let (mut steps, _wake) = steps(1);
        let mut members = vec![Fake::new(NEVER)];
        until(&mut steps, &mut members, Rest::Asked);
        members.push(Fake::new(NEVER));
        steps.changed(2);
        let waiting = AtomicBool::new(false);
        loop {
            let asked = members[1].asked;
            if {
                let count = members.len();
                steps.step(&mut members[..], count, &waiting)
            } == Some(Rest::Slept)
            {
                assert!(asked, "it sleeps, and nobody told the new one");
                break;
            }
        }
    }

    #[test]
    fn after_a_signal_it_spins_a_while_because_some_devices_signal_before_there_is_a_frame() {
        let (mut steps, wake) = steps(1);
        let mut members = [Fake::new(NEVER)];
        until(&mut steps, &mut members, Rest::Asked);
        wake.wake();
        until(&mut steps, &mut members, Rest::Slept);
        let woken = Instant::now();
        assert_eq!(members[0].looked_for_signals, 1);
        until(&mut steps, &mut members, Rest::Asked);
        assert!(woken.elapsed() >= Duration::from_micros(90), "only {:?}", woken.elapsed());
    }
}
