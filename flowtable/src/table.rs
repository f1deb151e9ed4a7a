use crate::index::Index;
use crate::state::FlowState;
use crate::{EndReason, FlowSink, FlowTableConfig, FlowTableError, prefetch, tcp};
use ahash::RandomState;
use std::hash::{BuildHasher, Hasher};
use wire::{FlowKey, Nanos, PacketMeta, proto};

/// Packets looked up together: enough to hide one memory access behind the others.
const BATCH: usize = 64;
/// Slots whose deadline is examined per batch at most, so that no jump in time stalls a worker.
const SWEEP_SLOTS_MAX: usize = 65_536;
/// A whole round over all slots takes this long in packet time: how late an idle flow may be exported.
const SWEEP_ROUND: Nanos = Nanos::from_secs(1);
/// Neighbours compared for eviction when the table is at its cap.
const EVICT_CANDIDATES: usize = 16;
/// Unit of `FlowTable::deadlines`: 2^24 ns, 16.8 ms; 32 bits of it span 2.3 years.
const TICK_SHIFT: u32 = 24;
/// No slot has this number: there are fewer.
const NO_SLOT: u32 = u32::MAX;
/// Marks a free slot, and a flow that never times out.
const NEVER: u32 = u32::MAX;

/// What a shard has done so far. All but `active` only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTableCounts {
    /// Flows in the table now.
    pub active: u64,
    /// Flows begun.
    pub created: u64,
    /// Records exported, by `EndReason as usize - 1`.
    pub exported: [u64; EndReason::ALL.len()],
}

/// The flows of one worker. Single-threaded; time comes in with the packets.
///
/// A timeout takes effect at its deadline whatever the order of work: a packet that finds its flow past the deadline
/// ends it and begins the next one, and the sweep exports what no packet asks for. So records do not depend on batch
/// borders, sweep speed or the number of shards, as long as no flow is evicted.
pub struct FlowTable {
    timeouts: crate::Timeouts,
    flows_max: u32,
    hasher: RandomState,
    index: Index,
    /// Slab; `free` lists the slots not in use. Never reallocated: its capacity is `flows_max` from the start, and the
    /// kernel hands out the pages as they are first touched.
    states: Vec<FlowState>,
    free: Vec<u32>,
    /// A lower bound on each slot's deadline, in ticks after `epoch`; looked at by the sweep alone, 4 bytes a flow,
    /// so that a packet never writes a timer and a round over a million flows reads 4 MB in sequence.
    deadlines: Vec<u32>,
    /// Clock of the first packet.
    epoch: Option<Nanos>,
    clock: Nanos,
    sweep_at: usize,
    swept_until: Nanos,
    evict_at: usize,
    counts: FlowTableCounts,
}

impl FlowTable {
    /// An empty shard.
    ///
    /// # Errors
    /// A size or timeout that cannot work.
    pub fn new(config: FlowTableConfig) -> Result<FlowTable, FlowTableError> {
        config.validate()?;
        Ok(FlowTable {
            timeouts: config.timeouts,
            flows_max: config.flows_max,
            hasher: RandomState::new(),
            index: Index::new(config.flows_max),
            states: Vec::with_capacity(config.flows_max as usize),
            free: Vec::with_capacity(config.flows_max as usize),
            deadlines: Vec::with_capacity(config.flows_max as usize),
            epoch: None,
            clock: Nanos::ZERO,
            sweep_at: 0,
            swept_until: Nanos::ZERO,
            evict_at: 0,
            counts: FlowTableCounts::default(),
        })
    }

    /// What was done so far.
    pub fn counts(&self) -> FlowTableCounts {
        self.counts
    }

    /// Bytes of memory this shard may come to hold.
    pub fn memory_bytes_max(&self) -> usize {
        self.index.memory_bytes() + self.flows_max as usize * (size_of::<FlowState>() + 2 * size_of::<u32>())
    }

    /// Replaces the timeouts; flows already in the table follow from their next packet or sweep on.
    ///
    /// # Errors
    /// A timeout of zero.
    pub fn set_timeouts(&mut self, timeouts: crate::Timeouts) -> Result<(), FlowTableError> {
        FlowTableConfig { flows_max: self.flows_max, timeouts }.validate()?;
        self.timeouts = timeouts;
        // The bounds were computed from longer or shorter timeouts: have the sweep look at every flow again.
        self.deadlines.iter_mut().zip(&self.states).for_each(|(d, s)| {
            if s.in_use() {
                *d = 0;
            }
        });
        Ok(())
    }

    /// Counts a batch of packets, then lets time pass up to the last one's clock.
    pub fn process(&mut self, packets: &[PacketMeta], sink: &mut impl FlowSink) {
        for batch in packets.chunks(BATCH) {
            let mut hashes = [0u64; BATCH];
            for (hash, p) in hashes.iter_mut().zip(batch) {
                *hash = self.hash(&p.key);
                prefetch::read(self.index.home(*hash));
            }
            let mut likely = [NO_SLOT; BATCH];
            for (likely, hash) in likely.iter_mut().zip(&hashes[..batch.len()]) {
                if let Some(slot) = self.index.likely(*hash)
                    && let Some(state) = self.states.get(slot as usize)
                {
                    prefetch::state(state);
                    *likely = slot;
                }
            }
            for ((p, hash), likely) in batch.iter().zip(hashes).zip(likely) {
                self.packet(p, hash, likely, sink);
            }
            if let Some(last) = batch.last() {
                self.advance(last.clock, sink);
            }
        }
    }

    /// Lets time pass: exports flows whose deadline lies behind `clock`, a bounded number of slots at a call.
    pub fn advance(&mut self, clock: Nanos, sink: &mut impl FlowSink) {
        self.clock = self.clock.max(clock);
        if self.states.is_empty() {
            self.swept_until = self.clock;
            return;
        }
        let elapsed = self.clock - self.swept_until;
        let round = self.states.len();
        let due = if elapsed >= SWEEP_ROUND {
            round
        } else {
            (u128::from(elapsed.0) * round as u128 / u128::from(SWEEP_ROUND.0)) as usize
        };
        if due > 0 {
            self.swept_until = self.clock;
            self.sweep(due.min(SWEEP_SLOTS_MAX), sink);
        }
    }

    /// Exports everything: what had timed out by `clock` with its own reason, the rest as [`EndReason::Shutdown`].
    pub fn finish(&mut self, clock: Nanos, sink: &mut impl FlowSink) {
        self.clock = self.clock.max(clock);
        for slot in 0..self.states.len() {
            if self.states[slot].in_use() {
                let state = &self.states[slot];
                let reason = if state.tcp.closed() || state.deadline(&self.timeouts) <= self.clock {
                    state.timeout_reason()
                } else {
                    EndReason::Shutdown
                };
                self.export(slot, reason, sink);
            }
        }
        // All at once: taking each flow out of the index would cost a cache miss a flow.
        self.index.clear();
    }

    #[inline]
    fn hash(&self, key: &FlowKey) -> u64 {
        let mut hasher = self.hasher.build_hasher();
        for word in key.words() {
            hasher.write_u64(word);
        }
        hasher.finish()
    }

    /// `likely` is where the flow was found when the batch was looked over, or `NO_SLOT`. An earlier packet of the batch may
    /// have ended that flow or begun it, so it is believed only where it holds a flow of this key: a key is in the table
    /// once.
    #[inline]
    fn packet(&mut self, p: &PacketMeta, hash: u64, likely: u32, sink: &mut impl FlowSink) {
        let states = &self.states;
        let found = match states.get(likely as usize) {
            Some(state) if state.key == p.key && state.in_use() => Some(likely),
            _ => self.index.find(hash, |slot| states[slot as usize].key == p.key),
        };
        let slot = match found {
            Some(slot) if !self.over(slot, p) => slot,
            Some(slot) => self.succeed(slot, p, hash, sink),
            None => self.create(p, hash, sink),
        };
        let state = &mut self.states[slot as usize];
        if state.part_is_over(p, &self.timeouts) {
            self.counts.exported[EndReason::Active as usize - 1] += 1;
            sink.record(&state.record(EndReason::Active), &[]);
            state.next_part(p);
        }
        state.update(p);
        if p.has_tcp {
            let was_closed = state.tcp.closed();
            let side = state.side_of(p);
            tcp::track(state, p, side, sink);
            if !was_closed && state.tcp.closed() {
                let deadline = state.deadline(&self.timeouts);
                self.deadlines[slot as usize] = self.tick_of(deadline);
            }
        }
    }

    /// Whether the flow in `slot` ended before `p`: its deadline passed, or `p` opens a connection on a closed one.
    #[inline]
    fn over(&self, slot: u32, p: &PacketMeta) -> bool {
        let state = &self.states[slot as usize];
        state.deadline(&self.timeouts) <= p.clock
            || (p.has_tcp && p.flags.is_syn() && self.timeouts.split_on_reuse && state.tcp.closed())
    }

    #[cold]
    fn succeed(&mut self, slot: u32, p: &PacketMeta, hash: u64, sink: &mut impl FlowSink) -> u32 {
        let reason = self.states[slot as usize].timeout_reason();
        self.end(slot, reason, sink);
        self.create(p, hash, sink)
    }

    fn create(&mut self, p: &PacketMeta, hash: u64, sink: &mut impl FlowSink) -> u32 {
        if self.free.is_empty() && self.states.len() == self.flows_max as usize {
            self.evict(sink);
        }
        let state = FlowState::new(p);
        self.epoch.get_or_insert(p.clock);
        let deadline = self.tick_of(state.deadline(&self.timeouts));
        let slot = match self.free.pop() {
            Some(slot) => {
                self.states[slot as usize] = state;
                self.deadlines[slot as usize] = deadline;
                slot
            }
            None => {
                self.states.push(state);
                self.deadlines.push(deadline);
                (self.states.len() - 1) as u32
            }
        };
        self.index.insert(hash, slot);
        self.counts.created += 1;
        self.counts.active += 1;
        slot
    }

    /// Exports a flow, frees its slot and takes it out of the index.
    fn end(&mut self, slot: u32, reason: EndReason, sink: &mut impl FlowSink) {
        self.index.remove(self.hash(&self.states[slot as usize].key), slot);
        self.export(slot as usize, reason, sink);
    }

    /// Exports a flow and frees its slot. The index still knows it.
    fn export(&mut self, slot: usize, reason: EndReason, sink: &mut impl FlowSink) {
        let state = &mut self.states[slot];
        sink.record(&state.record(reason), &[]);
        state.set_free();
        self.deadlines[slot] = NEVER;
        self.free.push(slot as u32);
        self.counts.active -= 1;
        self.counts.exported[reason as usize - 1] += 1;
    }

    /// Makes room at the cap: among a few neighbours an unanswered SYN first, else whoever was silent the longest.
    #[cold]
    fn evict(&mut self, sink: &mut impl FlowSink) {
        let count = self.states.len();
        let victim = (0..EVICT_CANDIDATES.min(count)).map(|i| (self.evict_at + i) % count).min_by_key(|slot| {
            let state = &self.states[*slot];
            (!state.tcp.half_open() || state.key.proto != proto::TCP, state.last_clock)
        });
        self.evict_at = (self.evict_at + EVICT_CANDIDATES) % count;
        if let Some(slot) = victim {
            self.end(slot as u32, EndReason::Evicted, sink);
        }
    }

    /// Looks at the next `slots` deadlines.
    fn sweep(&mut self, slots: usize, sink: &mut impl FlowSink) {
        let now = self.tick_of(self.clock);
        let mut left = slots;
        while left > 0 {
            let run = left.min(self.deadlines.len() - self.sweep_at);
            let from = self.sweep_at;
            for block in (from..from + run).step_by(64) {
                let until = (block + 64).min(from + run);
                // Whole lines of deadlines ahead of now are the rule: one comparison of vectors tells.
                if self.deadlines[block..until].iter().fold(NEVER, |m, d| m.min(*d)) <= now {
                    self.sweep_block(block, until, now, sink);
                }
            }
            left -= run;
            self.sweep_at = (from + run) % self.deadlines.len();
        }
    }

    fn sweep_block(&mut self, from: usize, until: usize, now: u32, sink: &mut impl FlowSink) {
        for slot in from..until {
            if self.deadlines[slot] > now {
                continue;
            }
            let state = &self.states[slot];
            let deadline = state.deadline(&self.timeouts);
            if deadline <= self.clock {
                let reason = state.timeout_reason();
                self.end(slot as u32, reason, sink);
            } else {
                self.deadlines[slot] = self.tick_of(deadline);
            }
        }
    }

    /// Ticks after the epoch, rounded down, so that a bound is never later than its deadline.
    #[inline]
    fn tick_of(&self, deadline: Nanos) -> u32 {
        if deadline == Nanos::MAX {
            return NEVER;
        }
        let ticks = (deadline - self.epoch.unwrap_or(Nanos::ZERO)).0 >> TICK_SHIFT;
        u32::try_from(ticks).unwrap_or(NEVER - 1).min(NEVER - 1)
    }
}
