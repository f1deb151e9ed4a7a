//! Frames in, decoded packets out: the first stage of every worker, and of the reader that deals to several.

use super::payloads::{Copied, Lent, Payloads};
use super::shared::WorkerGauges;
use capture::ledger::QueueLedger;
use capture::slice::Recorder;
use capture::{BATCH_FRAMES_MAX, BatchHandler, SourceCounts, SourceError};
use flowtable::{FragmentCache, FragmentPlace};
use std::sync::Arc;
use std::time::Duration;
use wire::{Frame, Limits, Nanos, PacketMeta, decode_into};

/// What takes decoded packets on: a worker, or the dealer that has several of them.
pub(crate) trait Stage {
    /// Decoded packets in capture order; their clocks never decrease. Returns how many of them were taken on; the
    /// others were counted as lost.
    fn packets(&mut self, packets: &[PacketMeta], payloads: &impl Payloads) -> usize;
    /// Time has passed without packets.
    fn advance(&mut self, clock: Nanos);
}

/// Bounds of what one packet may cost, and of what is remembered of fragments.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IngestSettings {
    pub(crate) limits: Limits,
    /// Fragmented datagrams in progress.
    pub(crate) fragments_max: u32,
}

impl Default for IngestSettings {
    fn default() -> IngestSettings {
        IngestSettings { limits: Limits::default(), fragments_max: 8192 }
    }
}

/// Decodes batches and keeps the clock.
pub(crate) struct Ingest<S> {
    stage: S,
    limits: Limits,
    /// Slots of a batch; what they hold beyond the packets of the latest one means nothing.
    packets: Box<[PacketMeta; SLOTS]>,
    /// By packet, the number of its frame.
    frame_of: Box<[u16; SLOTS]>,
    /// Knows which flow later fragments belong to.
    fragments: FragmentCache,
    /// Some fragment came since the counts were published.
    fragments_seen: bool,
    gauges: Arc<WorkerGauges>,
    /// Highest packet time so far that is believed: it never goes back, whatever the capture does.
    clock: Nanos,
    /// Some packet time was not believed, which has been said.
    doubted: bool,
    /// The last frame of a batch, if whether its time is believed depends on the next one.
    held: Option<Held>,
    ledger: Arc<QueueLedger>,
    /// Remembers the latest packets, and keeps those that slices ask for.
    recorder: Option<Recorder>,
}

impl<S: Stage> Ingest<S> {
    pub(crate) fn new(
        stage: S,
        settings: IngestSettings,
        ledger: Arc<QueueLedger>,
        gauges: Arc<WorkerGauges>,
    ) -> Ingest<S> {
        Ingest {
            stage,
            limits: settings.limits,
            packets: Box::new([PacketMeta::EMPTY; SLOTS]),
            frame_of: Box::new([0; SLOTS]),
            fragments: FragmentCache::new(settings.fragments_max),
            fragments_seen: false,
            gauges,
            clock: Nanos::ZERO,
            doubted: false,
            held: None,
            ledger,
            recorder: None,
        }
    }

    /// From now on packets are remembered.
    pub(crate) fn record_with(&mut self, recorder: Recorder) {
        self.recorder = Some(recorder);
    }

    /// To be called once on the thread that works: its memory is then near it.
    pub(crate) fn touch(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.touch();
        }
    }

    /// Gives back the stage and the pipeline's clock, after the last packet and what slices still wait for have been handed over.
    pub(crate) fn finish(mut self) -> (S, Nanos) {
        self.release(None);
        self.give_up_fragments(Nanos::MAX);
        self.publish_fragments();
        if let Some(recorder) = self.recorder {
            recorder.finish(RECORDER_PATIENCE);
        }
        (self.stage, self.clock)
    }
}

/// Packets that go on together: those of a batch, and some fragments of earlier ones.
pub(super) const SLOTS: usize = BATCH_FRAMES_MAX + 64;

/// A packet time so much later than all before it is believed unless the next one is back where they were: a card that errs once
/// would otherwise stop every timeout for as long as it was ahead.
const LEAP: Nanos = Nanos::from_secs(3600);

/// Whether the time of a packet is believed.
enum Belief {
    Yes,
    No,
    /// The next packet will tell.
    Later,
}

/// A frame, and what it holds.
struct Held {
    data: Vec<u8>,
    frame: Frame<'static>,
}

/// How long a stop waits for room in the queue of a slice.
const RECORDER_PATIENCE: Duration = Duration::from_secs(2);

/// The end of time is what the flow table marks free slots with: a capture that claims it is taken one back.
const CLOCK_MAX: Nanos = Nanos(u64::MAX - 1);

impl<S: Stage> Ingest<S> {
    /// A packet comes long after all before it; `next` is the time of the one behind it.
    #[cold]
    #[inline(never)]
    fn leap(&mut self, ts: Nanos, next: Option<Nanos>, may_wait: bool) -> Belief {
        // The first packet is believed. What is far too early says nothing.
        if self.clock == Nanos::ZERO {
            self.clock = ts;
            return Belief::Yes;
        }
        let is_back = |next: Nanos| next < ts - LEAP && next.0 >= self.clock.0.saturating_sub(LEAP.0);
        match next {
            None if may_wait => Belief::Later,
            Some(next) if is_back(next) => {
                if !std::mem::replace(&mut self.doubted, true) {
                    tracing::warn!(
                        seconds_ahead = (ts - self.clock).0 / 1_000_000_000,
                        "a packet is dated long after those before and behind it; it is given the time of those (said once)"
                    );
                }
                Belief::No
            }
            _ => {
                self.clock = ts;
                Belief::Yes
            }
        }
    }

    /// Decodes frames and hands their packets on. `next` is the time behind the last of them, where it is known.
    #[inline]
    fn take(&mut self, frames: &[Frame<'_>], next: Option<Nanos>, may_wait: bool) {
        let mut count = 0;
        for (number, frame) in frames.iter().enumerate().take(BATCH_FRAMES_MAX) {
            let (ts, mut is_believed) = (frame.ts.min(CLOCK_MAX), true);
            if ts > self.clock + LEAP {
                match self.leap(ts, frames.get(number + 1).map(|next| next.ts).or(next), may_wait) {
                    Belief::Yes => {}
                    Belief::No => is_believed = false,
                    Belief::Later => {
                        self.held = Some(Held { data: frame.data.to_vec(), frame: Frame { data: &[], ..*frame } });
                        break;
                    }
                }
            } else {
                self.clock = self.clock.max(ts);
            }
            if self.fragments.is_due(self.clock) {
                self.fragments.give_up(self.clock);
                // The packet of this frame goes on behind them.
                count = self.add_released(frames, number, count);
            }
            let packet = &mut self.packets[count];
            match decode_into(frame, &self.limits, packet) {
                Ok(()) => {
                    packet.clock = self.clock;
                    packet.ts = if is_believed { ts } else { self.clock };
                    self.frame_of[count] = number as u16;
                    count += 1;
                    if packet.fragment {
                        self.fragments_seen = true;
                        match self.fragments.assign(packet) {
                            FragmentPlace::On => {}
                            FragmentPlace::Waits => {
                                count -= 1;
                                self.ledger.worker.waiting.add(1);
                            }
                            FragmentPlace::Leads => count = self.add_released(frames, number, count),
                        }
                    }
                }
                Err(reason) => self.ledger.undecoded(reason),
            }
        }
        if count == 0 {
            self.stage.advance(self.clock);
        } else {
            self.hand_on(frames, count);
        }
    }

    fn publish_fragments(&mut self) {
        if std::mem::take(&mut self.fragments_seen) {
            let counts = self.fragments.counts();
            self.gauges.publish_rare(|rare| rare.fragments = counts);
        }
    }

    /// The first `count` packets go on.
    #[inline]
    fn hand_on(&mut self, frames: &[Frame<'_>], count: usize) {
        let packets = &self.packets[..count];
        let taken = self.stage.packets(packets, &Lent { frames, packets, frame_of: &self.frame_of[..] });
        self.ledger.worker.processed.add(taken as u64);
    }

    /// Fragments that have waited join the first `count` packets; frame `number` is the latest. Where they find no room these go on
    /// before. Gives how many packets there are now.
    #[cold]
    fn add_released(&mut self, frames: &[Frame<'_>], number: usize, count: usize) -> usize {
        let released = self.fragments.released(self.clock);
        let to_come = frames.len().min(BATCH_FRAMES_MAX) - number;
        if count + released.len() + to_come > SLOTS {
            self.hand_on(frames, count);
            self.hand_on_released();
            return 0;
        }
        let end = count + released.len();
        self.packets[count..end].copy_from_slice(released);
        // Any will do: a later fragment has no payload that anybody looks at.
        self.frame_of[count..end].fill(number as u16);
        self.ledger.worker.waiting.take(released.len() as u64);
        released.clear();
        self.fragments_seen = true;
        end
    }

    /// Fragments that have waited for their first one go on.
    #[cold]
    fn hand_on_released(&mut self) {
        let released = self.fragments.released(self.clock);
        for packets in released.chunks(BATCH_FRAMES_MAX) {
            let taken = self.stage.packets(packets, &Copied::default());
            self.ledger.worker.processed.add(taken as u64);
        }
        self.ledger.worker.waiting.take(released.len() as u64);
        released.clear();
        self.fragments_seen = true;
    }

    /// Fragments that wait until now have waited for long enough.
    #[cold]
    fn give_up_fragments(&mut self, clock: Nanos) {
        self.fragments.give_up(clock);
        self.hand_on_released();
    }

    /// Hands on the frame that was held back. `next` is the time behind it, where there is any.
    fn release(&mut self, next: Option<Nanos>) {
        if let Some(Held { data, frame }) = self.held.take() {
            self.take(&[Frame { data: &data, ..frame }], next, false);
        }
    }
}

impl<S: Stage> BatchHandler for Ingest<S> {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        if let Some(recorder) = &mut self.recorder {
            recorder.batch(frames);
        }
        debug_assert!(frames.len() <= BATCH_FRAMES_MAX);
        if let Some(first) = frames.first().filter(|_| self.held.is_some()) {
            self.release(Some(first.ts));
        }
        self.take(frames, None, true);
        self.publish_fragments();
    }

    fn idle(&mut self, now: Nanos) {
        // To a live source the time that it is says as much as a packet.
        self.release(Some(now));
        self.clock = self.clock.max(now.min(CLOCK_MAX));
        if self.fragments.is_due(self.clock) {
            self.give_up_fragments(self.clock);
        }
        if let Some(recorder) = &mut self.recorder {
            recorder.idle(self.clock);
        }
        self.publish_fragments();
        self.stage.advance(self.clock);
    }

    fn counted(&mut self, delta: &SourceCounts) {
        self.ledger.source(delta);
    }

    fn failed(&mut self, error: &SourceError) {
        tracing::error!("{error}");
    }
}
