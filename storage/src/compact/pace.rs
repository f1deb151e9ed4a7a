//! How fast a job may go, and whether it has to stop.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The store is closing: a job is given up where it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the store is closing")]
pub(crate) struct Stopped;

/// How long whoever has precedence is left alone before it is looked at again.
const YIELD: Duration = Duration::from_millis(20);

/// What a job passes before each thing it does.
pub(crate) struct Gate<'a> {
    pub(crate) pace: &'a Pace,
    /// Whether a log waits to be encoded, which goes first.
    pub(crate) is_busy: &'a (dyn Fn() -> bool + Sync),
}

impl Gate<'_> {
    /// Waits until nothing has precedence, and as long as reading or writing `bytes` may take.
    pub(crate) fn spend(&self, bytes: u64) -> Result<(), Stopped> {
        while self.pace.rate.is_some() && (self.is_busy)() {
            self.pace.pause(YIELD)?;
        }
        self.pace.spend(bytes)
    }
}

/// Shared by the thread that compacts and the one that owns it.
pub(crate) struct Pace {
    /// Bytes a second, at least 1; without it a job goes as fast as it can, and waits for nobody.
    rate: Option<u64>,
    state: Mutex<PaceState>,
    changed: Condvar,
}

struct PaceState {
    stop: bool,
    /// There may be a job.
    is_due: bool,
    /// When what was read and written so far is paid for.
    paid_at: Instant,
}

impl Pace {
    pub(crate) fn new(bytes_per_s: Option<u64>) -> Pace {
        let state = PaceState { stop: false, is_due: true, paid_at: Instant::now() };
        Pace { rate: bytes_per_s.map(|rate| rate.max(1)), state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, PaceState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits as long as reading or writing `bytes` may take; at the next call if they came at once.
    pub(crate) fn spend(&self, bytes: u64) -> Result<(), Stopped> {
        let Some(rate) = self.rate else { return Ok(()) };
        let mut state = self.state();
        let from = state.paid_at.max(Instant::now());
        state.paid_at = from + Duration::from_secs_f64(bytes as f64 / rate as f64);
        let until = state.paid_at;
        self.wait(state, until)
    }

    /// Waits a while.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Stopped> {
        let state = self.state();
        self.wait(state, Instant::now() + time)
    }

    fn wait(&self, mut state: MutexGuard<'_, PaceState>, until: Instant) -> Result<(), Stopped> {
        loop {
            let now = Instant::now();
            if state.stop {
                return Err(Stopped);
            }
            if now >= until {
                return Ok(());
            }
            state = self.changed.wait_timeout(state, until - now).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits until `wake` says that there may be a job.
    pub(crate) fn wait_for_job(&self) -> Result<(), Stopped> {
        let mut state = self.state();
        while !state.stop && !state.is_due {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.is_due = false;
        if state.stop { Err(Stopped) } else { Ok(()) }
    }

    /// Segments have come.
    pub(crate) fn wake(&self) {
        self.state().is_due = true;
        self.changed.notify_all();
    }

    pub(crate) fn is_stopped(&self) -> bool {
        self.state().stop
    }

    /// Ends every wait, now and later.
    pub(crate) fn stop(&self) {
        self.state().stop = true;
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_paid_for_in_time_and_a_stop_ends_the_wait() {
        let pace = Pace::new(Some(1_000_000));
        let since = Instant::now();
        for _ in 0..10 {
            pace.spend(1_000).unwrap();
        }
        assert!(since.elapsed() >= Duration::from_millis(10));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| pace.spend(u64::MAX / 4));
            pace.stop();
            assert_eq!(waiting.join().unwrap(), Err(Stopped));
        });
        assert_eq!(pace.spend(0), Err(Stopped));
        assert_eq!(pace.wait_for_job(), Err(Stopped));
    }
}
