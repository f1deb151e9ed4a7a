//! The worker's side.

use super::history::{Cursor, History};
use super::queue::{Sender, Sent};
use super::trigger::{Board, PROGRESS_ENDED, PROGRESS_GONE, Share, Trigger, Window, WorkerShare};
use super::{CLOCK_MAX, SliceError, SliceId};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{Frame, Nanos};

/// Bytes of a block of the history: large enough that the packet lost at its end does not matter (a 170th at 1500
/// bytes), small enough that little of a small history goes at a time.
const BLOCK_BYTES: usize = 256 << 10;
/// Packets of the history looked at for each packet of a batch. Above 1, or the present would never be reached.
const PAST_PER_FRAME: usize = 2;
/// Packets of the history looked at in a call at least, so that small batches do not make it slow.
const PAST_FRAMES_MIN: usize = 64;
/// Packets of the history looked at in an idle call.
const PAST_FRAMES_IDLE: usize = 2048;
/// Bytes of the history sent in a call.
const PAST_BYTES_MAX: usize = 1 << 20;

/// Memory of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecorderOptions {
    /// Bytes of the latest packets that are kept for the time before a trigger: 0 for none, or 1 MiB to 64 GiB, rounded
    /// down to 256 KiB. A packet takes 24 bytes more than is kept of it.
    pub history_bytes: usize,
    /// Bytes that are kept of a packet in the history, 64 to 262,120. Of packets from then on slices hold everything,
    /// unless the writer falls behind so far that they have to be taken from the history.
    pub snap_bytes: u32,
    /// Bytes of the queue to the writer, 1 MiB to 1 GiB. Backed by memory when first used.
    pub queue_bytes: usize,
}

/// 64 MiB of history, half a second at 1 Gbit/s; whole packets; a queue of 4 MiB.
impl Default for RecorderOptions {
    fn default() -> RecorderOptions {
        RecorderOptions { history_bytes: 64 << 20, snap_bytes: 65_535, queue_bytes: 4 << 20 }
    }
}

impl RecorderOptions {
    pub(super) fn check(&self) -> Result<(), SliceError> {
        let refuse = |field, value: usize, expected: &str| {
            Err(SliceError::Option { field, value: value.to_string(), expected: expected.to_owned() })
        };
        if self.history_bytes != 0 && !(1 << 20..=64 << 30).contains(&self.history_bytes) {
            return refuse("history_bytes", self.history_bytes, "0 or 1048576 to 68719476736");
        }
        if !(64..=262_120).contains(&self.snap_bytes) {
            return refuse("snap_bytes", self.snap_bytes as usize, "64 to 262120");
        }
        if !(1 << 20..=1 << 30).contains(&self.queue_bytes) {
            return refuse("queue_bytes", self.queue_bytes, "1048576 to 1073741824");
        }
        Ok(())
    }

    pub(super) fn history(&self) -> Result<Option<History>, SliceError> {
        if self.history_bytes == 0 {
            return Ok(None);
        }
        let history = History::new(self.history_bytes, BLOCK_BYTES, self.snap_bytes as usize);
        history.map(Some).map_err(|_| SliceError::Memory { bytes: self.history_bytes })
    }
}

/// Keeps the latest packets of one worker, and sends those that a slice wants to the writer. Owned by the worker's
/// thread. No call waits, locks or allocates, except [`touch`](Recorder::touch) and [`finish`](Recorder::finish).
pub struct Recorder {
    board: Arc<Board>,
    /// Which of the workers this is.
    index: usize,
    history: Option<History>,
    queue: Sender,
    /// Of a capacity that is never exceeded: triggers that are closed leave before new ones come.
    active: Vec<Active>,
    active_max: usize,
    /// Latest trigger that was taken note of.
    seen: SliceId,
    /// Since when there is a trigger that could not be taken note of at once.
    late: Option<Late>,
    /// Highest packet time, or wall clock of an idle source, so far.
    clock: Nanos,
}

/// How it was when a trigger was first seen to be there.
#[derive(Clone, Copy)]
struct Late {
    /// The time, in case nobody knew any before.
    clock: Nanos,
    /// The oldest record of the history.
    oldest: u64,
}

/// One slice, from the point of view of one worker.
struct Active {
    trigger: Arc<Trigger>,
    at: Nanos,
    /// How far in the history; `None` where that is the present.
    past: Option<Cursor>,
}

/// Whether a worker goes on with a slice.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    GoesOn,
    Ended,
}

impl Recorder {
    pub(super) fn new(
        board: Arc<Board>,
        index: usize,
        history: Option<History>,
        queue: Sender,
        active_max: usize,
    ) -> Recorder {
        let active = Vec::with_capacity(active_max);
        Recorder { board, index, history, queue, active, active_max, seen: SliceId(0), late: None, clock: Nanos::ZERO }
    }

    /// Backs the history with memory: to be called once by the thread that will use it, pinned, before packets come.
    /// Otherwise the first batch does it, and takes a few milliseconds for every 10 MiB.
    pub fn touch(&mut self) {
        if let Some(history) = &mut self.history {
            history.touch();
        }
    }

    /// Takes in a batch: all frames, as the source lent them, before they are decoded.
    #[inline]
    pub fn batch(&mut self, frames: &[Frame<'_>]) {
        let Some(first) = frames.first() else { return };
        if self.board.latest() != self.seen {
            self.join(first.ts);
        }
        let clock_before = self.clock;
        for frame in frames {
            self.clock = self.clock.max(frame.ts.min(CLOCK_MAX));
        }
        let seq_before = self.history.as_ref().map_or(0, History::seq);
        if let Some(history) = &mut self.history {
            history.store(frames);
        }
        if !self.active.is_empty() {
            let budget = (frames.len() * PAST_PER_FRAME).max(PAST_FRAMES_MIN);
            self.record(frames, clock_before, seq_before, budget);
        }
        self.board.workers[self.index].set_clock(self.clock);
    }

    /// Time has passed without packets: `now` is the wall clock of a live source.
    pub fn idle(&mut self, now: Nanos) {
        if self.board.latest() != self.seen {
            self.join(now);
        }
        self.clock = self.clock.max(now.min(CLOCK_MAX));
        if !self.active.is_empty() {
            self.record(&[], self.clock, 0, PAST_FRAMES_IDLE);
        }
        self.board.workers[self.index].set_clock(self.clock);
    }

    /// The source has ended: sends what is still wanted of the history. Waits for the writer where the queue is full,
    /// but no longer than `patience`; what is left then counts as overwritten.
    pub fn finish(mut self, patience: Duration) {
        let started = Instant::now();
        loop {
            // A worker that never had a packet knows no time that a trigger could be at.
            let noted = self.board.latest() == self.seen || self.clock == Nanos::ZERO || self.join(self.clock);
            self.record(&[], self.clock, 0, PAST_FRAMES_IDLE);
            let is_done = noted && self.active.iter().all(|active| active.past.is_none());
            if is_done || started.elapsed() >= patience {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Takes note of new triggers, `clock` being a time in case nobody knew any before. False if the list of them was held by
    /// another thread: then with the next batch, and what the history loses until then counts as overwritten.
    #[cold]
    fn join(&mut self, clock: Nanos) -> bool {
        // Room for those that follow: the writer never lets more than `active_max` be open.
        self.active.retain(|active| !active.trigger.is_closed());
        let oldest = self.history.as_ref().map_or(0, History::oldest_seq);
        let first = self.late.unwrap_or(Late { clock: self.clock.max(clock).min(CLOCK_MAX), oldest });
        let (active, history) = (&mut self.active, self.history.as_ref());
        let worker = &self.board.workers[self.index];
        // Read before the list: what is announced in between is found again, and skipped by its number.
        let mut seen = self.board.latest();
        let complete = self.board.try_after(self.seen, |trigger| {
            if active.len() == self.active_max {
                seen = seen.min(SliceId(trigger.id.0 - 1));
                return;
            }
            let at = trigger.resolve(first.clock);
            let past = history.map(|history| history.seek(trigger.window(at).from));
            // Of a window that begins before all that is left.
            if let Some(past) = past
                && past.seq == oldest
            {
                let lost = oldest - first.oldest;
                trigger.shares[self.index].overwritten.add(lost);
                worker.overwritten.add(lost);
            }
            active.push(Active { trigger: Arc::clone(trigger), at, past });
            seen = seen.max(trigger.id);
        });
        self.late = if complete { None } else { Some(first) };
        if complete {
            self.seen = seen;
        }
        complete
    }

    /// Gives each slice what it wants of `frames`, which are in the history already as record `seq_before` and the
    /// following, and a piece of the past of at most `budget` packets.
    #[cold]
    fn record(&mut self, frames: &[Frame<'_>], clock_before: Nanos, seq_before: u64, budget: usize) {
        let (board, queue, history, now) = (&self.board, &mut self.queue, self.history.as_ref(), self.clock);
        let worker = &board.workers[self.index];
        self.active.retain_mut(|active| {
            if active.trigger.is_closed() {
                return false;
            }
            let trigger = Arc::as_ref(&active.trigger);
            let window = trigger.window(active.at);
            let mut sink = Sink { trigger, window, share: &trigger.shares[self.index], worker, queue: &mut *queue };
            let step = match active.past {
                Some(_) => Step::GoesOn,
                None => match sink.present(frames, clock_before, history.is_some()) {
                    Ok(step) => step,
                    Err(stuck) => {
                        active.past = history.map(|history| sink.resume(history, seq_before + stuck as u64));
                        Step::GoesOn
                    }
                },
            };
            let step = match (active.past.as_mut(), history) {
                (Some(cursor), Some(history)) if step == Step::GoesOn => {
                    let (step, arrived) = sink.past(history, cursor, budget);
                    if arrived {
                        active.past = None;
                    }
                    step
                }
                _ => step,
            };
            let arrived_late = active.past.is_none() && now >= window.done;
            if step == Step::Ended || arrived_late {
                sink.share.set_progress(PROGRESS_ENDED);
                return false;
            }
            sink.share.set_progress(active.past.map_or(now, |cursor| cursor.clock));
            true
        });
    }
}

impl Drop for Recorder {
    /// What was not sent is lost, and counted.
    fn drop(&mut self) {
        let worker = &self.board.workers[self.index];
        for active in &self.active {
            let share = &active.trigger.shares[self.index];
            if let (Some(cursor), Some(history)) = (active.past, &self.history) {
                let left = history.seq() - cursor.seq;
                share.overwritten.add(left);
                worker.overwritten.add(left);
            }
            share.set_progress(PROGRESS_GONE);
        }
    }
}

/// Where the packets of one slice go.
struct Sink<'a> {
    trigger: &'a Trigger,
    window: Window,
    share: &'a Share,
    worker: &'a WorkerShare,
    queue: &'a mut Sender,
}

impl Sink<'_> {
    /// Sends what is wanted of a batch. The error is the index of a frame the queue had no room for: with a history it
    /// can be taken from there later, without one it is dropped and this goes on.
    fn present(&mut self, frames: &[Frame<'_>], mut clock: Nanos, has_history: bool) -> Result<Step, usize> {
        for (i, frame) in frames.iter().enumerate() {
            clock = clock.max(frame.ts.min(CLOCK_MAX));
            if self.trigger.wants(&self.window, frame) {
                match self.queue.send(self.trigger.id, frame) {
                    Sent::Yes => {}
                    Sent::Full if has_history => return Err(i),
                    Sent::Full | Sent::TooLong => self.count_dropped(),
                }
            }
            if clock >= self.window.done {
                return Ok(Step::Ended);
            }
        }
        Ok(Step::GoesOn)
    }

    /// Sends what is wanted of the next `budget` packets of the history. Whether the slice has ended, and whether the
    /// present is reached.
    fn past(&mut self, history: &History, cursor: &mut Cursor, budget: usize) -> (Step, bool) {
        match history.rescue(cursor) {
            0 => {}
            missed => self.count_overwritten(missed),
        }
        let mut bytes = 0;
        for _ in 0..budget {
            let mut behind = *cursor;
            let Some(frame) = history.next(&mut behind) else { return (Step::GoesOn, true) };
            if self.trigger.wants(&self.window, &frame) {
                match self.queue.send_patiently(self.trigger.id, &frame) {
                    Sent::Yes => bytes += frame.data.len(),
                    Sent::Full => break,
                    Sent::TooLong => self.count_dropped(),
                }
            }
            *cursor = behind;
            if cursor.clock >= self.window.done {
                return (Step::Ended, false);
            }
            if bytes >= PAST_BYTES_MAX {
                break;
            }
        }
        (Step::GoesOn, false)
    }

    /// Where to take record `seq` from, which was stored within this call: a batch can be larger than the history.
    fn resume(&mut self, history: &History, seq: u64) -> Cursor {
        let cursor = history.locate(seq);
        self.count_overwritten(cursor.seq - seq);
        cursor
    }

    fn count_overwritten(&mut self, packets: u64) {
        self.share.overwritten.add(packets);
        self.worker.overwritten.add(packets);
    }

    #[cold]
    fn count_dropped(&mut self) {
        self.share.dropped_queue_full.add(1);
        self.worker.dropped_queue_full.add(1);
    }
}
