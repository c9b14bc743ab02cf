//! Whose turn it is: which relays a worker looks at in a round.
//!
//! A look at a relay without work costs a few reads of memory that others write, and a call into a driver. With many ports and few
//! that are busy, those looks would cost more than the work. So a relay that found nothing for [`QUIET`] is looked at once in
//! [`LOOK`], spread over the rounds, and in each round again as soon as it has work. While all are quiet, each is looked at in
//! each round: there is nothing else to do.

use std::time::Duration;

use super::clock::ticks_in;

/// How long a relay finds nothing before it is looked at less often.
const QUIET: Duration = Duration::from_micros(100);
/// How often a quiet one is looked at while others are busy: what its first packet may wait.
const LOOK: Duration = Duration::from_micros(20);

/// What has turns.
pub trait Turn {
    /// Does what there is to do. Returns how many packets were moved or dropped.
    fn run(&mut self) -> usize;

    /// It did something, and that took so many ticks.
    fn took(&mut self, ticks: u64);
}

/// Those who have turns, by their places.
pub trait Members {
    /// The turn of the one at a place.
    fn run(&mut self, place: usize) -> usize;

    /// The one at a place did something, and that took so many ticks.
    fn took(&mut self, place: usize, ticks: u64);
}

impl<T: Turn> Members for [T] {
    #[inline]
    fn run(&mut self, place: usize) -> usize {
        self[place].run()
    }

    #[inline]
    fn took(&mut self, place: usize, ticks: u64) {
        self[place].took(ticks);
    }
}

/// The order of turns. Members are known by their place in a list, which must not change without [`Rounds::restart`].
pub struct Rounds {
    active: Vec<Member>,
    quiet: Vec<Member>,
    /// The next of the quiet, ...
    next: usize,
    /// ... and when it is looked at.
    due: u64,
    /// The clock when it was last looked at.
    now: u64,
    quiet_after: u64,
    look_every: u64,
}

#[derive(Clone, Copy)]
struct Member {
    place: usize,
    /// When it last did something.
    worked: u64,
}

impl Rounds {
    /// Without members.
    pub fn new() -> Self {
        let (quiet_after, look_every) = (ticks_in(QUIET), ticks_in(LOOK));
        Self { active: vec![], quiet: vec![], next: 0, due: 0, now: 0, quiet_after, look_every }
    }

    /// Another list: all are looked at.
    pub fn restart(&mut self, members: usize, now: u64) {
        self.quiet.clear();
        self.active.clear();
        self.active.extend((0..members).map(|place| Member { place, worked: now }));
        self.now = now;
    }

    /// Goes on at `now`: what has passed since the last round was no work.
    pub fn resume(&mut self, now: u64) {
        self.now = now;
    }

    /// One round. Returns how many packets were moved or dropped, and at the end of which tick.
    #[inline]
    pub fn round(&mut self, members: &mut (impl Members + ?Sized), clock: impl Fn() -> u64) -> (usize, u64) {
        let mut moved = 0;
        let mut at = 0;
        while let Some(member) = self.active.get_mut(at) {
            let found = run(members, member.place, &mut self.now, &clock);
            if found > 0 {
                member.worked = self.now;
                moved += found;
            } else if self.now.wrapping_sub(member.worked) > self.quiet_after {
                let member = self.active.swap_remove(at);
                self.quiet.push(member);
                continue;
            }
            at += 1;
        }
        if moved == 0 {
            self.now = clock();
        }
        if !self.quiet.is_empty() {
            moved += self.look(members, &clock);
        }
        (moved, self.now)
    }

    /// Looks at those of the quiet whose turn has come.
    fn look(&mut self, members: &mut (impl Members + ?Sized), clock: &impl Fn() -> u64) -> usize {
        let step = (self.look_every / self.quiet.len() as u64).max(1);
        // All, when there is nothing else, or when the last look is so long ago.
        let late = self.now.saturating_sub(self.due);
        let mut turns = self.quiet.len();
        if self.active.is_empty() || late >= self.look_every {
            self.due = self.now + step;
        } else {
            turns = turns.min((late / step) as usize);
            self.due += turns as u64 * step;
        }
        let mut moved = 0;
        for _ in 0..turns {
            if self.next >= self.quiet.len() {
                self.next = 0;
            }
            let found = run(members, self.quiet[self.next].place, &mut self.now, clock);
            if found > 0 {
                moved += found;
                let mut member = self.quiet.swap_remove(self.next);
                member.worked = self.now;
                self.active.push(member);
            } else {
                self.next += 1;
            }
        }
        moved
    }
}

/// One turn. The clock is read only when something was done.
#[inline]
fn run(members: &mut (impl Members + ?Sized), place: usize, now: &mut u64, clock: &impl Fn() -> u64) -> usize {
    let found = members.run(place);
    if found > 0 {
        let begun = std::mem::replace(now, clock());
        members.took(place, now.wrapping_sub(begun));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Fake<'a> {
        waiting: &'a Cell<usize>,
        looks: usize,
        busy: u64,
    }

    impl Turn for Fake<'_> {
        fn run(&mut self) -> usize {
            self.looks += 1;
            self.waiting.take()
        }

        fn took(&mut self, ticks: u64) {
            self.busy += ticks;
        }
    }

    /// One busy member and 27 that are not, for `rounds` rounds of `length` ticks each.
    fn one_busy(rounds: usize, length: u64, mut each: impl FnMut(usize, u64, &mut [Fake<'_>], &[Cell<usize>])) {
        let now = Cell::new(1_000_000);
        let waiting: Vec<_> = (0..28).map(|_| Cell::new(0)).collect();
        let mut members: Vec<_> = waiting.iter().map(|waiting| Fake { waiting, looks: 0, busy: 0 }).collect();
        let mut order = Rounds { quiet_after: 100_000, look_every: 20_000, ..Rounds::new() };
        order.restart(members.len(), now.get());
        for round in 0..rounds {
            waiting[7].set(64);
            order.round(&mut members[..], || {
                now.set(now.get() + length);
                now.get()
            });
            each(round, now.get(), &mut members, &waiting);
        }
    }

    #[test]
    fn quiet_members_are_looked_at_once_in_their_time_and_not_in_each_round() {
        let mut before = (0, 0);
        for length in [100, 1_000, 5_000] {
            one_busy(10_000, length, |round, now, members, _| {
                let looks = members[0].looks;
                match round {
                    2000 => before = (looks, now),
                    9_999 => {
                        let (looks, times) = (looks - before.0, (now - before.1) / 20_000);
                        assert!(looks.abs_diff(times as usize) <= times as usize / 10, "{looks} looks for {times} due");
                        assert_eq!(members[7].looks, 10_000);
                        assert_eq!(members[7].busy, 10_000 * length);
                    }
                    _ => {}
                }
            });
        }
    }

    #[test]
    fn a_quiet_member_that_gets_work_is_served_within_the_time_of_a_look_and_then_at_once() {
        let (mut given, mut served) = (0, 0);
        one_busy(1_000, 1_500, |round, now, _, waiting| {
            match round {
                500 => {
                    waiting[20].set(1);
                    given = now;
                }
                501.. if served == 0 && waiting[20].get() == 0 => {
                    served = now;
                    assert!(served - given <= 20_000 + 2 * 1_500, "it waited {} ticks", served - given);
                    waiting[20].set(1);
                }
                _ if served > 0 && now - served == 1_500 => panic!("the next one waited for more than a round"),
                _ => {}
            }
            if served > 0 && now > served {
                assert_eq!(waiting[20].get(), 0);
            }
        });
        assert!(served > 0, "it was never served");
    }

    #[test]
    fn where_all_are_quiet_all_are_looked_at() {
        let now = Cell::new(0);
        let waiting: Vec<_> = (0..4).map(|_| Cell::new(0)).collect();
        let mut members: Vec<_> = waiting.iter().map(|waiting| Fake { waiting, looks: 0, busy: 0 }).collect();
        let mut order = Rounds { quiet_after: 100, look_every: 20, ..Rounds::new() };
        order.restart(4, 0);
        for _ in 0..1000 {
            order.round(&mut members[..], || {
                now.set(now.get() + 1);
                now.get()
            });
        }
        // One more in the round in which it became quiet.
        assert!(members.iter().all(|member| (1000..=1001).contains(&member.looks)));
        assert!(members.iter().all(|member| member.busy == 0));
    }
}
