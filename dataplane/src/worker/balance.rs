//! Which share should be on another worker.
//!
//! A share is moved when its worker has clearly more to do than another, for several intervals in a row, and when the busier of
//! the two would clearly have less to do afterwards. Then there is a rest: what was moved has to show in what is measured first.
//! With loads that do not change this comes to an end: each move makes the busier of two workers less busy, and none can be
//! followed by its opposite, because that would make it busier.

/// Workers whose busy parts differ by less than this are even.
const DIFFERENCE: f64 = 0.25;
/// What the busier worker must have less, by a move.
const GAIN: f64 = 0.1;
/// Intervals in a row in which the same worker is the busier one before something is moved.
const PATIENCE: u32 = 3;
/// Intervals after a move in which nothing is moved.
const REST: u32 = 5;

/// What a share made its worker do in an interval.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Part {
    /// Which worker has it.
    pub worker: usize,
    /// The part of the worker's time that it took, 0 to 1.
    pub busy: f64,
    /// It stays where it is: the switch of a software NIC.
    pub fixed: bool,
}

/// A share is to be moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Move {
    /// Which of the parts.
    pub part: usize,
    /// The worker that is to have it.
    pub to: usize,
}

/// Decides, interval by interval.
#[derive(Debug, Default)]
pub struct Balance {
    /// The busiest worker, and for how many intervals it is.
    busiest: Option<(usize, u32)>,
    /// Intervals to wait.
    rest: u32,
}

impl Balance {
    /// What to do after an interval in which the shares of so many workers did this.
    pub fn decide(&mut self, workers: usize, parts: &[Part]) -> Option<Move> {
        let mut busy = vec![0.0; workers];
        for part in parts {
            busy[part.worker] += part.busy;
        }
        self.rest = self.rest.saturating_sub(1);
        let by_load = |a: &usize, b: &usize| busy[*a].total_cmp(&busy[*b]);
        let (most, least) = ((0..workers).max_by(by_load)?, (0..workers).min_by(by_load)?);
        let difference = busy[most] - busy[least];
        if difference < DIFFERENCE {
            self.busiest = None;
            return None;
        }
        let intervals = match self.busiest {
            Some((worker, intervals)) if worker == most => intervals + 1,
            _ => 1,
        };
        self.busiest = Some((most, intervals));
        if intervals < PATIENCE || self.rest > 0 {
            return None;
        }
        // How much less the busier of the two has to do after the move.
        let gain = |part: &Part| part.busy.min(difference - part.busy);
        let candidates = parts.iter().enumerate().filter(|(_, part)| part.worker == most && !part.fixed);
        let (part, best) = candidates.max_by(|(_, a), (_, b)| gain(a).total_cmp(&gain(b)))?;
        if gain(best) < GAIN {
            return None;
        }
        (self.busiest, self.rest) = (None, REST);
        Some(Move { part, to: least })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What shares that want this much of a core get, when the workers are as busy as they can be.
    fn measure(workers: usize, wanted: &[f64], homes: &[usize]) -> Vec<Part> {
        let sum = |worker| wanted.iter().zip(homes).filter(|(_, home)| **home == worker).map(|(part, _)| part).sum();
        let sums: Vec<f64> = (0..workers).map(sum).collect();
        let part =
            |(wanted, home): (&f64, &usize)| Part { worker: *home, busy: wanted / sums[*home].max(1.0), fixed: false };
        wanted.iter().zip(homes).map(part).collect()
    }

    /// Moves in `intervals`, each with its interval.
    fn play(
        workers: usize,
        homes: &mut [usize],
        intervals: usize,
        wanted: impl Fn(usize) -> Vec<f64>,
    ) -> Vec<(usize, Move)> {
        let mut balance = Balance::default();
        let mut moves = Vec::new();
        for interval in 0..intervals {
            if let Some(step) = balance.decide(workers, &measure(workers, &wanted(interval), homes)) {
                homes[step.part] = step.to;
                moves.push((interval, step));
            }
        }
        moves
    }

    #[test]
    fn two_busy_shares_on_one_worker_part_after_some_intervals_and_stay_so() {
        let mut homes = [0, 0];
        let moves = play(2, &mut homes, 50, |_| vec![0.6, 0.6]);
        assert_eq!((moves.len(), moves[0].0, homes[0] + homes[1]), (1, 2, 1), "{moves:?}");
    }

    #[test]
    fn one_share_that_fills_its_worker_stays_where_it_is() {
        assert_eq!(play(2, &mut [0], 50, |_| vec![1.0]), []);
        // And one that is alone with little beside it gets rid of what is worth it.
        assert_eq!(play(2, &mut [0, 0], 50, |_| vec![0.95, 0.02]), []);
    }

    #[test]
    fn a_short_burst_and_a_load_that_jumps_to_and_fro_move_nothing() {
        let burst = |interval: usize| if interval % 10 < 2 { vec![0.5, 0.4] } else { vec![0.1, 0.1] };
        assert_eq!(play(2, &mut [0, 0], 200, burst), []);
        // The same loads, changing places in each interval.
        let jumps = |interval: usize| {
            if interval.is_multiple_of(2) { vec![0.4, 0.4, 0.0, 0.0] } else { vec![0.0, 0.0, 0.4, 0.4] }
        };
        assert_eq!(play(2, &mut [0, 0, 1, 1], 200, jumps), []);
    }

    #[test]
    fn what_is_fixed_counts_and_stays() {
        let part = |busy, fixed| Part { worker: 0, busy, fixed };
        let decide = |parts: &[Part]| {
            (0..PATIENCE).find_map({
                let mut balance = Balance::default();
                move |_| balance.decide(2, parts)
            })
        };
        assert_eq!(decide(&[part(0.5, true), part(0.5, true)]), None);
        assert_eq!(decide(&[part(0.5, true), part(0.3, false)]), Some(Move { part: 1, to: 1 }));
    }

    #[test]
    fn moves_are_apart() {
        let moves = play(4, &mut [0; 8], 100, |_| vec![0.2; 8]);
        assert!(moves.windows(2).all(|two| two[1].0 - two[0].0 >= REST as usize), "{moves:?}");
        assert!((3..=6).contains(&moves.len()), "{moves:?}");
    }

    proptest! {
        #[test]
        fn with_loads_that_do_not_change_it_comes_to_rest_and_is_no_worse(
            workers in 1usize..6,
            shares in prop::collection::vec((0.0f64..1.5, 0usize..6), 0..24),
        ) {
            let wanted: Vec<f64> = shares.iter().map(|share| share.0).collect();
            let mut homes: Vec<usize> = shares.iter().map(|share| share.1 % workers).collect();
            let most = |homes: &[usize]| {
                let sum = |worker| wanted.iter().zip(homes).filter(|(_, home)| **home == worker).map(|(w, _)| w).sum();
                (0..workers).map(sum).fold(0.0f64, f64::max)
            };
            let before = most(&homes);
            let limit = 8 * (REST as usize) * (shares.len() + 1);
            let moves = play(workers, &mut homes, limit, |_| wanted.clone());
            prop_assert!(most(&homes) <= before.max(1.0) + 1e-9, "{} from {before}", most(&homes));
            let late = moves.iter().filter(|step| step.0 > limit / 2).count();
            prop_assert_eq!(late, 0, "{:?}", moves);
        }

        #[test]
        fn with_loads_that_vary_a_little_nothing_goes_back_and_forth(
            wanted in prop::collection::vec(0.0f64..0.5, 2..12),
            noise in prop::collection::vec(0.9f64..1.1, 64),
        ) {
            let mut homes: Vec<usize> = wanted.iter().enumerate().map(|(share, _)| share % 3).collect();
            let noisy = |interval: usize| {
                wanted.iter().enumerate().map(|(share, wanted)| wanted * noise[(interval * 7 + share) % 64]).collect()
            };
            let moves = play(3, &mut homes, 600, noisy);
            prop_assert!(moves.len() <= wanted.len() + 3, "{} moves of {} shares", moves.len(), wanted.len());
        }
    }
}
