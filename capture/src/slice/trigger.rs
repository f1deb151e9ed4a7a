//! What was asked for, and the board on which workers find it.

use super::{CLOCK_MAX, EndReason, LATE, SliceId};
use crate::ledger::Counter;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;
use wire::{Frame, Nanos, TapId};

/// Decides whether a packet belongs to a slice. Runs on the worker, once for each packet in the time of the slice and
/// from its taps.
pub type Predicate = Arc<dyn Fn(&Frame<'_>) -> bool + Send + Sync>;

/// A slice that is asked for.
#[derive(Clone)]
pub struct TriggerRequest {
    /// Short name for the file. Anything but letters, digits and hyphens becomes a hyphen; at most 64 bytes are kept.
    pub label: String,
    /// Why, in words, for the file's comment. At most 1000 bytes are kept.
    pub reason: String,
    /// The filter as text, for the file's comment; empty for all packets. At most 16,384 bytes.
    pub filter_text: String,
    /// The filter; `None` for all packets.
    pub predicate: Option<Predicate>,
    /// Which taps to record; `None` for all.
    pub taps: Option<Vec<TapId>>,
    /// Packet time of what is to be recorded, such as that of an alert, if that is in the past; `None` for now.
    pub at: Option<Nanos>,
    /// How far back, as far as the history of each worker reaches. At most `SliceOptions::before_max`.
    pub before: Duration,
    /// How long from the trigger on. More than nothing, at most `SliceOptions::duration_max`.
    pub duration: Duration,
    /// Captured bytes after which the slice ends, at most `SliceOptions::total_bytes_max`.
    pub bytes_max: u64,
}

/// A request that was granted, shared by its workers and the writer.
pub(super) struct Trigger {
    pub(super) id: SliceId,
    predicate: Option<Predicate>,
    taps: Option<Vec<TapId>>,
    /// Packet time of the trigger; 0 until a worker knows of any time at all.
    at: AtomicU64,
    before: Nanos,
    duration: Nanos,
    pub(super) bytes_max: u64,
    /// Packet time at which it was asked to stop; `Nanos::MAX` before.
    stop_at: AtomicU64,
    /// 1 + the reason it was asked to stop for; 0 before.
    stopped: AtomicU8,
    /// Set by the writer when no packet can be added any more. `Relaxed`: workers may notice late.
    closed: AtomicU8,
    /// One for each worker.
    pub(super) shares: Box<[Share]>,
}

/// What one worker tells of one slice. Written by that worker alone.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct Share {
    /// Every packet up to this time was sent; stored with `Release` after them, loaded with `Acquire` by the writer.
    progress: AtomicU64,
    pub(super) dropped_queue_full: Counter,
    pub(super) overwritten: Counter,
}

/// The worker met the end of the slice.
pub(super) const PROGRESS_ENDED: Nanos = Nanos::MAX;
/// The worker is gone: its source has ended.
pub(super) const PROGRESS_GONE: Nanos = Nanos(u64::MAX - 1);
const _: () = assert!(CLOCK_MAX.0 < PROGRESS_GONE.0);

impl Share {
    pub(super) fn progress(&self) -> Nanos {
        Nanos(self.progress.load(Ordering::Acquire))
    }

    pub(super) fn set_progress(&self, progress: Nanos) {
        self.progress.store(progress.0, Ordering::Release);
    }
}

impl Trigger {
    pub(super) fn new(id: SliceId, request: &TriggerRequest, now: Nanos, workers: usize) -> Trigger {
        let at = match (request.at, now) {
            // The future is not waited for.
            (Some(at), Nanos(1..)) => at.min(now),
            (Some(at), _) => at.min(CLOCK_MAX),
            (None, now) => now,
        };
        Trigger {
            id,
            predicate: request.predicate.clone(),
            taps: request.taps.clone(),
            at: AtomicU64::new(at.0),
            before: nanos(request.before),
            duration: nanos(request.duration),
            bytes_max: request.bytes_max,
            stop_at: AtomicU64::new(Nanos::MAX.0),
            stopped: AtomicU8::new(0),
            closed: AtomicU8::new(0),
            shares: (0..workers).map(|_| Share::default()).collect(),
        }
    }

    /// Packet time of the trigger; `None` while nobody knows the time.
    pub(super) fn at(&self) -> Option<Nanos> {
        match self.at.load(Ordering::Relaxed) {
            0 => None,
            at => Some(Nanos(at)),
        }
    }

    /// The first worker that knows the time says when it was triggered, if nobody knew before.
    pub(super) fn resolve(&self, clock: Nanos) -> Nanos {
        let clock = clock.0.max(1);
        match self.at.compare_exchange(0, clock, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Nanos(clock),
            Err(at) => Nanos(at),
        }
    }

    /// The part of time that is recorded, and the clock at which a worker is done with it.
    #[inline]
    pub(super) fn window(&self, at: Nanos) -> Window {
        let (end, stop_at) = (at + self.duration, Nanos(self.stop_at.load(Ordering::Relaxed)));
        let (until, done) = if stop_at < end { (stop_at, stop_at) } else { (end, end + LATE) };
        Window { from: at - self.before, until, done: done.min(CLOCK_MAX) }
    }

    /// How long it will take from packet time `now` on, if packet time goes as the wall clock does.
    pub(super) fn time_left(&self, now: Nanos) -> Duration {
        let left = self.at().unwrap_or(now) + self.duration - now;
        Duration::from_nanos(left.min(self.duration).0)
    }

    /// Whether the slice wants this packet.
    #[inline]
    pub(super) fn wants(&self, window: &Window, frame: &Frame<'_>) -> bool {
        window.from <= frame.ts
            && frame.ts < window.until
            && self.taps.as_ref().is_none_or(|taps| taps.contains(&frame.tap))
            && self.predicate.as_ref().is_none_or(|predicate| predicate(frame))
    }

    /// Asks to end with what has happened until `now`. The first reason counts.
    pub(super) fn stop(&self, reason: EndReason, now: Nanos) {
        let code = reason as u8 + 1;
        if self.stopped.compare_exchange(0, code, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.stop_at.store(now.0 + 1, Ordering::Relaxed);
        }
    }

    /// Why it was asked to stop.
    pub(super) fn stop_reason(&self) -> Option<EndReason> {
        let code = self.stopped.load(Ordering::Relaxed);
        EndReason::ALL.get(usize::from(code).wrapping_sub(1)).copied()
    }

    /// No packet can be added any more.
    pub(super) fn close(&self) {
        self.closed.store(1, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Ordering::Relaxed) != 0
    }

    /// Packets missing for want of room in a queue.
    pub(super) fn dropped_queue_full(&self) -> u64 {
        self.shares.iter().map(|share| share.dropped_queue_full.get()).sum()
    }

    /// Packets of the history that nobody looked at.
    pub(super) fn overwritten(&self) -> u64 {
        self.shares.iter().map(|share| share.overwritten.get()).sum()
    }
}

/// See [`Trigger::window`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Window {
    /// Earliest time wanted.
    pub(super) from: Nanos,
    /// Earliest time not wanted any more.
    pub(super) until: Nanos,
    /// Clock at which a worker is done.
    pub(super) done: Nanos,
}

/// Where triggers are announced and workers tell the time.
pub(super) struct Board {
    /// Number of the latest trigger. Stored with `Release` after it was put on the list.
    latest: AtomicU64,
    /// Those that are being recorded, by rising number.
    triggers: Mutex<Vec<Arc<Trigger>>>,
    pub(super) workers: Box<[WorkerShare]>,
}

/// What one worker tells, written by that worker alone.
#[derive(Default)]
#[repr(align(128))]
pub(super) struct WorkerShare {
    clock: AtomicU64,
    pub(super) dropped_queue_full: Counter,
    pub(super) overwritten: Counter,
}

impl WorkerShare {
    #[inline]
    pub(super) fn set_clock(&self, clock: Nanos) {
        self.clock.store(clock.0, Ordering::Relaxed);
    }
}

impl Board {
    pub(super) fn new(workers: usize) -> Board {
        Board {
            latest: AtomicU64::new(0),
            triggers: Mutex::new(Vec::new()),
            workers: (0..workers).map(|_| WorkerShare::default()).collect(),
        }
    }

    /// Highest packet time of any worker, 0 before the first packet.
    pub(super) fn clock(&self) -> Nanos {
        Nanos(self.workers.iter().map(|worker| worker.clock.load(Ordering::Relaxed)).max().unwrap_or(0))
    }

    /// Number of the latest trigger; one load, for every batch.
    #[inline]
    pub(super) fn latest(&self) -> SliceId {
        SliceId(self.latest.load(Ordering::Acquire))
    }

    pub(super) fn announce(&self, trigger: Arc<Trigger>) {
        let id = trigger.id;
        self.list().push(trigger);
        self.latest.store(id.0, Ordering::Release);
    }

    pub(super) fn remove(&self, id: SliceId) {
        self.list().retain(|trigger| trigger.id != id);
    }

    /// Calls `found` with each trigger after number `seen`.
    pub(super) fn after(&self, seen: SliceId, found: impl FnMut(&Arc<Trigger>)) {
        self.list().iter().filter(|trigger| trigger.id > seen).for_each(found);
    }

    /// As [`after`](Self::after) for those who must not wait for long. False where they would have had to.
    pub(super) fn try_after(&self, seen: SliceId, found: impl FnMut(&Arc<Trigger>)) -> bool {
        /// Some microseconds: others hold the list for less, unless they are interrupted.
        const ATTEMPTS: usize = 200;
        let mut attempts = 0;
        let list = loop {
            match self.triggers.try_lock() {
                Ok(list) => break list,
                Err(TryLockError::Poisoned(poisoned)) => break poisoned.into_inner(),
                Err(TryLockError::WouldBlock) if attempts < ATTEMPTS => {
                    attempts += 1;
                    std::hint::spin_loop();
                }
                Err(TryLockError::WouldBlock) => return false,
            }
        };
        list.iter().filter(|trigger| trigger.id > seen).for_each(found);
        true
    }

    fn list(&self) -> MutexGuard<'_, Vec<Arc<Trigger>>> {
        // The list is whole between any two statements, whoever panicked.
        self.triggers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn nanos(duration: Duration) -> Nanos {
    Nanos(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(now: Nanos) -> Trigger {
        let request = TriggerRequest {
            label: String::new(),
            reason: String::new(),
            filter_text: String::new(),
            predicate: None,
            taps: None,
            at: None,
            before: Duration::from_secs(2),
            duration: Duration::from_secs(3),
            bytes_max: 1,
        };
        Trigger::new(SliceId(1), &request, now, 1)
    }

    #[test]
    fn the_window_is_around_the_trigger_and_shrinks_when_stopped() {
        let ten = Nanos::from_secs(10);
        let trigger = trigger(ten);
        assert_eq!(trigger.at(), Some(ten));
        let window = trigger.window(ten);
        assert_eq!((window.from, window.until), (Nanos::from_secs(8), Nanos::from_secs(13)));
        assert_eq!(window.done, Nanos::from_millis(13_200));
        trigger.stop(EndReason::Stopped, Nanos::from_secs(11));
        trigger.stop(EndReason::Shutdown, Nanos::from_secs(12));
        assert_eq!(trigger.stop_reason(), Some(EndReason::Stopped));
        let window = trigger.window(ten);
        assert_eq!((window.until, window.done), (Nanos(11_000_000_001), Nanos(11_000_000_001)));
    }

    #[test]
    fn the_first_who_knows_the_time_sets_it() {
        let trigger = trigger(Nanos::ZERO);
        assert_eq!(trigger.at(), None);
        assert_eq!(trigger.resolve(Nanos(5)), Nanos(5));
        assert_eq!(trigger.resolve(Nanos(9)), Nanos(5));
        assert_eq!(trigger.at(), Some(Nanos(5)));
    }

    #[test]
    fn the_end_of_time_is_an_end_all_the_same() {
        let trigger = trigger(Nanos::MAX);
        let window = trigger.window(CLOCK_MAX);
        assert!(window.done <= CLOCK_MAX, "a clock that stops there still ends the slice");
    }
}
