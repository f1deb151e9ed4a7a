//! How fast, and how long to wait after a failure.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::time::{Duration, Instant};

/// Holds a number of bytes a second, on average: a piece goes as a whole, and the next one waits until it was due.
#[derive(Debug)]
pub(crate) struct Pacer {
    bytes_per_second: Option<u64>,
    next: Instant,
}

impl Pacer {
    pub(crate) fn new(bytes_per_second: Option<u64>, now: Instant) -> Pacer {
        Pacer { bytes_per_second, next: now }
    }

    /// How long from `now` until so many bytes may go; they count as gone then.
    pub(crate) fn wait(&mut self, now: Instant, bytes: u64) -> Duration {
        let Some(rate) = self.bytes_per_second else { return Duration::ZERO };
        let at = self.next.max(now);
        self.next = at + Duration::from_secs_f64(bytes as f64 / rate as f64);
        at.duration_since(now)
    }
}

/// Pauses after failures: each twice as long as the one before, and shortened at random by up to a half, so that many
/// sensors do not come back at once.
#[derive(Debug)]
pub(crate) struct Backoff {
    min: Duration,
    max: Duration,
    next: Duration,
    random: RandomState,
    drawn: u64,
}

impl Backoff {
    pub(crate) fn new(min: Duration, max: Duration) -> Backoff {
        Backoff { min, max, next: min, random: RandomState::new(), drawn: 0 }
    }

    pub(crate) fn succeeded(&mut self) {
        self.next = self.min;
    }

    /// The pause after one more failure.
    pub(crate) fn failed(&mut self) -> Duration {
        let whole = self.next;
        self.next = (self.next * 2).min(self.max);
        self.drawn += 1;
        let share = self.random.hash_one(self.drawn) as f64 / u64::MAX as f64;
        whole.mul_f64(1.0 - share / 2.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_longest_and_begin_anew() {
        let (min, max) = (Duration::from_secs(1), Duration::from_secs(60));
        let mut backoff = Backoff::new(min, max);
        for whole in [1, 2, 4, 8, 16, 32, 60, 60, 60] {
            let (pause, whole) = (backoff.failed(), Duration::from_secs(whole));
            assert!(pause >= whole / 2 && pause <= whole, "{pause:?} of {whole:?}");
        }
        backoff.succeeded();
        assert!(backoff.failed() <= min);
    }

    #[test]
    fn jitter_differs() {
        let pauses = |mut backoff: Backoff| (0..8).map(|_| backoff.failed()).collect::<Vec<_>>();
        let new = || Backoff::new(Duration::from_secs(1), Duration::from_secs(60));
        assert_ne!(pauses(new()), pauses(new()));
    }

    #[test]
    fn the_average_is_held() {
        let begun = Instant::now();
        let mut pacer = Pacer::new(Some(1_000), begun);
        let mut now = begun;
        for _ in 0..10 {
            now += pacer.wait(now, 500);
        }
        assert_eq!((now - begun).as_millis(), 4_500, "ten pieces, of which the last needs not be waited for");
        now += Duration::from_secs(100);
        assert_eq!(pacer.wait(now, 500), Duration::ZERO);
        assert_eq!(pacer.wait(now, 500).as_millis(), 500, "time that passed unused is not saved up");
        assert_eq!(Pacer::new(None, begun).wait(begun, u64::MAX), Duration::ZERO);
    }
}
