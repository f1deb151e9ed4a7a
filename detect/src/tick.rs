use crate::FeedLimits;
use flowtable::TcpOpening;
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::time::Duration;
use wire::{Addr, Nanos, TapId};

/// Packet time is cut into ticks of this length, counted from 1970. Detectors see ticks, never packets, so that what they
/// decide cannot depend on how packets were dealt to workers.
pub const TICK: Duration = Duration::from_millis(100);

pub(crate) const TICK_NS: u64 = TICK.as_nanos() as u64;

/// The tick that `clock` lies in: packet time divided by [`TICK`].
#[inline]
pub fn tick_of(clock: Nanos) -> u64 {
    clock.0 / TICK_NS
}

/// Finished ticks that a feed keeps for reuse.
const SPARES_MAX: usize = 4;

/// What happened to a TCP connection attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum OpeningKind {
    /// The SYN was seen.
    Syn = 0,
    /// The SYN/ACK was seen.
    Established = 1,
}

/// One event of a tick. Ordered by clock, flow and kind, and then by all other fields, so that equal means identical.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Opening {
    pub(crate) kind: OpeningKind,
    pub(crate) tcp: TcpOpening,
}

impl Opening {
    fn rank(&self) -> (Nanos, u64, OpeningKind, TapId, Addr, Addr, u16) {
        let t = &self.tcp;
        (t.clock, t.flow_id, self.kind, t.tap, t.src_ip, t.dst_ip, t.dst_port)
    }
}

impl Ord for Opening {
    fn cmp(&self, other: &Opening) -> Ordering {
        self.rank().cmp(&other.rank())
    }
}

impl PartialOrd for Opening {
    fn partial_cmp(&self, other: &Opening) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What one tap carried during a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct TapTraffic {
    pub(crate) packets: u64,
    pub(crate) bytes: u64,
}

/// What one worker saw during one tick, and how far it has come. Travels from the worker to the detector thread and, if
/// the caller cares to send it, back to [`TickFeed::recycle`].
#[derive(Debug, Default)]
pub struct Tick {
    worker: u16,
    index: u64,
    passed: u64,
    /// At most `openings_per_tick_max`, in no particular order.
    pub(crate) openings: Vec<Opening>,
    /// By tap; empty where nothing was seen.
    pub(crate) taps: Vec<TapTraffic>,
    pub(crate) openings_dropped: u64,
    /// Traffic of taps that the feed was not made for.
    pub(crate) rejected: u64,
}

impl Tick {
    /// Who saw it.
    pub fn worker(&self) -> u16 {
        self.worker
    }

    /// Which tick: packet time divided by [`TICK`].
    pub fn index(&self) -> u64 {
        self.index
    }

    /// The worker is done with every tick below this one; those between it and `index` were empty.
    pub fn passed(&self) -> u64 {
        self.passed
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.openings.is_empty() && self.taps.is_empty() && self.openings_dropped == 0
    }
}

/// A worker's end of the detectors: sums up the current tick, with a few additions per packet run.
///
/// The worker calls [`advance`](TickFeed::advance) with each new clock before it adds events of that clock, and sends off
/// the [`Tick`] it may get. Memory: at most `openings_per_tick_max` openings of about 72 bytes a tick.
#[derive(Debug)]
pub struct TickFeed {
    /// The tick being summed up; `current.passed` is set when it is handed over.
    current: Tick,
    /// First instant of the next tick, saturating.
    next_at: Nanos,
    taps: usize,
    openings_max: usize,
    /// Holds the openings, largest on top, from the moment there are more than `openings_max`; else empty.
    full: BinaryHeap<Opening>,
    spares: Vec<Tick>,
}

impl TickFeed {
    /// A feed for worker number `worker` over taps 0 to `taps - 1`.
    pub fn new(worker: u16, taps: usize, limits: FeedLimits) -> TickFeed {
        TickFeed {
            current: Tick { worker, ..Tick::default() },
            next_at: Nanos(TICK_NS),
            taps,
            openings_max: limits.openings_per_tick_max.max(1),
            full: BinaryHeap::new(),
            spares: Vec::with_capacity(SPARES_MAX),
        }
    }

    /// Notes a connection attempt or its answer. Its clock must lie in the current tick.
    ///
    /// Beyond the limit the smallest by clock and flow are kept: the same ones, whatever the number of workers, as long
    /// as the detectors have the same limit.
    pub fn opening(&mut self, kind: OpeningKind, opening: &TcpOpening) {
        debug_assert_eq!(opening.clock.0 / TICK_NS, self.current.index, "advance(clock) comes before its events");
        let opening = Opening { kind, tcp: *opening };
        if self.current.openings.len() < self.openings_max && self.full.is_empty() {
            self.current.openings.push(opening);
        } else {
            self.opening_when_full(opening);
        }
    }

    /// Adds what `tap` carried within the current tick: once per packet, run or batch. Cost: two additions.
    pub fn traffic(&mut self, tap: TapId, packets: u64, bytes: u64) {
        if self.current.taps.is_empty() {
            self.current.taps.resize(self.taps, TapTraffic::default());
        }
        match self.current.taps.get_mut(usize::from(tap.0)) {
            Some(sum) => {
                sum.packets += packets;
                sum.bytes += bytes;
            }
            None => self.current.rejected += 1,
        }
    }

    /// Moves on to `clock`. When that leaves the current tick, returns the tick to be sent to [`crate::Detectors`]; however
    /// far the clock jumps, that is one message. A clock that goes back is ignored. Cost otherwise: one comparison.
    pub fn advance(&mut self, clock: Nanos) -> Option<Tick> {
        if clock < self.next_at {
            return None;
        }
        let index = tick_of(clock);
        (index > self.current.index).then(|| self.hand_over(index))
    }

    /// Ends the stream at `clock`: the current tick, with every tick up to and including that of `clock` passed.
    pub fn finish(&mut self, clock: Nanos) -> Tick {
        self.hand_over(self.current.index.max(clock.0 / TICK_NS) + 1)
    }

    /// Takes back a tick whose content was used, to fill it again instead of allocating.
    pub fn recycle(&mut self, mut tick: Tick) {
        if self.spares.len() < SPARES_MAX {
            tick.openings.clear();
            tick.taps.clear();
            self.spares.push(tick);
        }
    }

    fn hand_over(&mut self, passed: u64) -> Tick {
        if !self.full.is_empty() {
            self.current.openings = std::mem::take(&mut self.full).into_vec();
        }
        let spare = self.spares.pop().unwrap_or_default();
        let next = Tick {
            worker: self.current.worker,
            index: passed,
            openings: spare.openings,
            taps: spare.taps,
            ..Tick::default()
        };
        let mut done = std::mem::replace(&mut self.current, next);
        done.passed = passed;
        self.next_at = Nanos(passed.saturating_add(1).saturating_mul(TICK_NS));
        done
    }

    #[cold]
    fn opening_when_full(&mut self, opening: Opening) {
        if self.full.is_empty() {
            self.full = BinaryHeap::from(std::mem::take(&mut self.current.openings));
        }
        self.current.openings_dropped += 1;
        if let Some(mut largest) = self.full.peek_mut()
            && opening < *largest
        {
            *largest = opening;
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    pub(crate) fn opening(clock: Nanos, flow_id: u64) -> TcpOpening {
        let src_ip = Addr::v4([10, 0, 0, 1]);
        TcpOpening { clock, flow_id, src_ip, dst_ip: src_ip, dst_port: 1, tap: TapId(0) }
    }

    #[test]
    fn a_tick_is_handed_over_once_when_the_clock_leaves_it() {
        let mut feed = TickFeed::new(3, 2, FeedLimits::default());
        let first = feed.advance(Nanos::from_millis(1_050)).unwrap();
        assert!(first.is_empty());
        assert_eq!((first.worker(), first.index(), first.passed()), (3, 0, 10));
        feed.traffic(TapId(1), 2, 100);
        feed.traffic(TapId(1), 1, 50);
        feed.traffic(TapId(2), 1, 1);
        assert!(feed.advance(Nanos::from_millis(1_099)).is_none());
        assert!(feed.advance(Nanos::ZERO).is_none(), "going back is ignored");
        feed.opening(OpeningKind::Syn, &opening(Nanos::from_millis(1_099), 1));
        let tick = feed.advance(Nanos::from_secs(1_000_000)).unwrap();
        assert_eq!((tick.index(), tick.passed(), tick.rejected), (10, 10_000_000, 1));
        assert_eq!(tick.taps, [TapTraffic::default(), TapTraffic { packets: 3, bytes: 150 }]);
        assert_eq!(tick.openings.len(), 1);
        let capacity = tick.openings.capacity();
        feed.recycle(tick);
        let last = feed.finish(Nanos::from_secs(1_000_001));
        assert_eq!((last.index(), last.passed()), (10_000_000, 10_000_011));
        assert!(last.is_empty());
        assert_eq!(feed.current.openings.capacity(), capacity, "the recycled buffer is used again");
    }

    #[test]
    fn the_end_of_time_is_passed_without_overflow() {
        let mut feed = TickFeed::new(0, 1, FeedLimits::default());
        assert!(feed.advance(Nanos::MAX).is_some());
        assert!(feed.advance(Nanos::MAX).is_none());
        assert_eq!(feed.finish(Nanos::MAX).passed(), u64::MAX / TICK_NS + 1);
    }

    #[test]
    fn beyond_the_limit_the_smallest_are_kept_and_the_rest_counted() {
        let mut feed = TickFeed::new(0, 1, FeedLimits { openings_per_tick_max: 4 });
        for flow_id in [9, 8, 7, 6, 5, 1, 3, 2] {
            feed.opening(OpeningKind::Syn, &opening(Nanos(5), flow_id));
        }
        feed.opening(OpeningKind::Established, &opening(Nanos(6), 0));
        let mut tick = feed.finish(Nanos(6));
        tick.openings.sort();
        assert_eq!(tick.openings.iter().map(|o| o.tcp.flow_id).collect::<Vec<_>>(), [1, 2, 3, 5]);
        assert_eq!(tick.openings_dropped, 5);
    }
}
