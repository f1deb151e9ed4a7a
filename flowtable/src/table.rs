use crate::deltas::Deltas;
use crate::extras::{Extras, TEXTS_MAX};
use crate::hash::KeyHasher;
use crate::index::Index;
use crate::pressure::{Patience, marks};
use crate::sink::{FlowInView, HintOwner, HintSlot};
use crate::state::{Birth, FlowState, NO_EXTRA, bits};
use crate::{EndReason, FlowRecord, FlowSink, FlowTableConfig, FlowTableError, segments};
use hints::App;
use std::collections::TryReserveError;
use wire::{Nanos, PacketMeta, proto};

/// Packets between two looks at what has timed out.
const BATCH: usize = 256;
/// Packets between asking for a line of the index and the packet's turn.
const INDEX_AHEAD: usize = 24;
/// Packets between asking for a flow and the packet's turn.
const STATE_AHEAD: usize = 12;
/// Packets between asking for what a flow has in the side arena and the packet's turn.
const EXTRA_AHEAD: usize = 5;
/// Bytes of a flow in the table: its state, what is known of its beginning, its bound, its share of the index, and what it has told.
const FLOW_BYTES: usize = size_of::<FlowState>() + size_of::<Birth>() + size_of::<u32>() + 8 + size_of::<[u64; 3]>();
/// No slot has this number: there are fewer.
pub(crate) const NO_SLOT: u32 = u32::MAX;

/// What a shard has done so far. All but `active` and `emergency` only grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlowTableCounts {
    /// Flows in the table now.
    pub active: u64,
    /// Flows begun.
    pub created: u64,
    /// Records exported, by `EndReason as usize - 1`.
    pub exported: [u64; EndReason::ALL.len()],
    /// Whether the table is in emergency mode now.
    pub emergency: bool,
    /// Times it went into emergency mode.
    pub emergencies: u64,
    /// Evicted flows that both sides had sent in: with these, something was cut that mattered.
    pub evicted_answered: u64,
    /// Ended TCP connections that were seen in both directions.
    pub tcp_both_sides: u64,
    /// Ended TCP connections with acknowledged data of which one direction was never seen: many of them mean that the two
    /// directions of the link do not meet in one worker.
    pub tcp_one_side: u64,
    /// Texts and round trips that found no room in the side memory.
    pub side_refused: u64,
}

/// The flows of one worker. Single-threaded; time comes in with the packets.
///
/// A timeout takes effect at its deadline whatever the order of work: a packet that finds its flow past the deadline
/// ends it and begins the next one, and the sweep exports what no packet asks for. So records do not depend on batch
/// borders, sweep speed or the number of shards, as long as the table has room.
pub struct FlowTable {
    timeouts: crate::Timeouts,
    pub(crate) flows_max: u32,
    pub(crate) patience: Patience,
    hasher: KeyHasher,
    index: Index,
    /// Slab. Never reallocated: its capacity is `flows_max` from the start, and the kernel hands out the pages as they are
    /// first touched.
    pub(crate) states: Vec<FlowState>,
    /// As long as `states`.
    births: Vec<Birth>,
    /// First of the free slots, which are linked through `FlowState::extra`; `NO_SLOT` if there is none.
    free: u32,
    extras: Extras,
    pub(crate) expiry: crate::expiry::Expiry,
    pub(crate) clock: Nanos,
    counts: FlowTableCounts,
    pub(crate) deltas: Deltas,
}

impl FlowTable {
    /// An empty shard.
    ///
    /// # Errors
    /// A size or timeout that cannot work, or more memory than the system gives.
    pub fn new(config: FlowTableConfig) -> Result<FlowTable, FlowTableError> {
        config.validate()?;
        let flows = config.flows_max as usize;
        let refused = |_: TryReserveError| out_of_memory(config.flows_max, config.side_bytes_max);
        Ok(FlowTable {
            timeouts: config.timeouts,
            flows_max: config.flows_max,
            patience: Patience::normal(config.timeouts),
            hasher: KeyHasher::new(),
            index: Index::new(config.flows_max).map_err(refused)?,
            states: memory::reserve(flows).map_err(refused)?,
            births: memory::reserve(flows).map_err(refused)?,
            free: NO_SLOT,
            extras: Extras::new(config.side_bytes_max).map_err(refused)?,
            expiry: crate::expiry::Expiry::new(config.flows_max).map_err(refused)?,
            clock: Nanos::ZERO,
            counts: FlowTableCounts::default(),
            deltas: Deltas::default(),
        })
    }

    /// What there is to say where the system gives no memory.
    pub(crate) fn out_of_memory(&self) -> FlowTableError {
        out_of_memory(self.flows_max, self.extras.memory_bytes())
    }

    /// What was done so far.
    pub fn counts(&self) -> FlowTableCounts {
        FlowTableCounts { emergency: self.patience.emergency, side_refused: self.extras.refused(), ..self.counts }
    }

    /// Bytes of memory this shard may come to hold.
    pub fn memory_bytes_max(&self) -> usize {
        let flow = size_of::<FlowState>() + size_of::<Birth>() + size_of::<u32>();
        self.index.memory_bytes()
            + self.flows_max as usize * flow
            + self.extras.memory_bytes()
            + self.deltas.memory_bytes()
    }

    /// Replaces the timeouts; flows already in the table follow from their next packet or sweep on.
    ///
    /// # Errors
    /// A timeout of zero.
    pub fn set_timeouts(&mut self, timeouts: crate::Timeouts) -> Result<(), FlowTableError> {
        FlowTableConfig { flows_max: self.flows_max, timeouts, ..FlowTableConfig::default() }.validate()?;
        self.timeouts = timeouts;
        self.change_patience(self.patience.emergency);
        Ok(())
    }

    fn change_patience(&mut self, emergency: bool) {
        self.patience = match emergency {
            true => Patience::emergency(self.timeouts),
            false => Patience::normal(self.timeouts),
        };
        self.expiry.look_at_all();
    }

    /// Counts a batch of packets, then lets time pass up to the last one's clock.
    ///
    /// Packets pass through in step: while one is counted, the flow of a later one is fetched, and the line of the index of
    /// one behind that. Done one after the other for a whole batch, the fetches would wait for each other, and then nothing
    /// would be fetched while packets are counted.
    pub fn process(&mut self, packets: &[PacketMeta], sink: &mut impl FlowSink) {
        for (number, batch) in packets.chunks(BATCH).enumerate() {
            let mut hashes = [0u64; BATCH];
            let mut likely = [NO_SLOT; BATCH];
            for step in 0..batch.len() + INDEX_AHEAD {
                if let Some(p) = batch.get(step) {
                    let hash = self.hasher.hash(&p.key);
                    hashes[step % BATCH] = hash;
                    self.index.prefetch(hash);
                }
                let look_up = step.wrapping_sub(INDEX_AHEAD - STATE_AHEAD);
                if look_up < batch.len() {
                    likely[look_up] = self.look_up(hashes[look_up]);
                }
                let extra = step.wrapping_sub(INDEX_AHEAD - EXTRA_AHEAD);
                if extra < batch.len() {
                    self.prefetch_extra(likely[extra]);
                }
                let at = step.wrapping_sub(INDEX_AHEAD);
                if let Some(p) = batch.get(at) {
                    self.packet(number * BATCH + at, p, hashes[at], likely[at], sink);
                }
            }
            if let Some(last) = batch.last() {
                self.advance(last.clock, sink);
            }
        }
    }

    /// Where the flow with this hash seems to be; it is fetched.
    #[inline]
    fn look_up(&self, hash: u64) -> u32 {
        match self.index.likely(hash) {
            Some(slot) if let Some(state) = self.states.get(slot as usize) => {
                memory::prefetch(state);
                slot
            }
            _ => NO_SLOT,
        }
    }

    /// What the flow in a slot has in the side arena, if it has anything, and what is asked for while it is young.
    #[inline]
    fn prefetch_extra(&self, slot: u32) {
        let Some(state) = self.states.get(slot as usize) else { return };
        if state.extra != NO_EXTRA {
            self.extras.prefetch(state.extra);
        }
        if state.hint.wants() {
            memory::prefetch(&self.births[slot as usize]);
        }
    }

    /// Fetches the flow in a slot.
    #[inline]
    pub(crate) fn prefetch_flow(&self, slot: usize) {
        memory::prefetch(&self.states[slot]);
    }

    /// Fetches what the end of the flow in a slot needs beside it.
    #[inline]
    pub(crate) fn prefetch_rest(&self, slot: usize) {
        let state = &self.states[slot];
        self.index.prefetch(self.hasher.hash(&state.key));
        memory::prefetch(&self.births[slot]);
        if state.extra != NO_EXTRA {
            self.extras.prefetch(state.extra);
        }
        self.deltas.prefetch(state, slot);
    }

    /// Exports everything: what had timed out by `clock` with its own reason, the rest as [`EndReason::Shutdown`].
    pub fn finish(&mut self, clock: Nanos, sink: &mut impl FlowSink) {
        self.clock = self.clock.max(clock);
        for slot in 0..self.states.len() {
            let state = &self.states[slot];
            if state.in_use() {
                let reason = if state.tcp.closed() || state.deadline(&self.patience) <= self.clock {
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

    /// `likely` is where the flow was found when the batch was looked over, or `NO_SLOT`. An earlier packet of the batch may
    /// have ended that flow or begun it, so it is believed only where it holds a flow of this key: a key is in the table
    /// once.
    #[inline]
    fn packet(&mut self, at: usize, p: &PacketMeta, hash: u64, likely: u32, sink: &mut impl FlowSink) {
        let found = match self.states.get(likely as usize) {
            Some(state) if state.key == p.key && state.in_use() => likely,
            _ => self.find(hash, p),
        };
        let slot = match self.states.get(found as usize) {
            Some(state) if !self.is_over(state, p) => found,
            _ => self.begin(found, p, hash, sink),
        };
        let state = &self.states[slot as usize];
        if state.is_before_turn(self.deltas.turn) {
            self.tell(slot as usize, sink);
        }
        if self.states[slot as usize].part_is_over(p, self.patience.active()) {
            self.end_part(slot as usize, p, sink);
        }
        let (state, birth) = (&mut self.states[slot as usize], &mut self.births[slot as usize]);
        let side = state.side_of(p);
        if side == 1 && !state.answered() {
            self.expiry.answered(slot);
        }
        state.update(p, side, birth);
        let is_wanted = p.payload_len > 0 && state.hint.wants();
        let missing = if is_wanted && p.has_tcp { segments::missing_before(state, p, side) } else { 0 };
        if p.has_tcp {
            let was_closed = state.tcp.closed();
            segments::track(state, birth, &mut self.extras, p, side, sink);
            if state.tcp.closed() != was_closed {
                self.expiry.set(slot, state.deadline(&self.patience));
            }
        } else {
            state.sides[side].add_goodput(p.payload_len);
        }
        if is_wanted {
            let flow = FlowInView { flow_id: birth.flow_id, from_originator: side == 0, missing };
            let (progress, extra, app) = (&mut state.hint, &mut state.extra, &mut state.sides[1].mark);
            sink.payload(at, p, flow, HintSlot { progress, flow: HintOwner { extra, app, extras: &mut self.extras } });
        }
    }

    /// Exports a part of a flow; the next one begins with `p`.
    fn end_part(&mut self, slot: usize, p: &PacketMeta, sink: &mut impl FlowSink) {
        if self.deltas.wanted {
            self.tell_rest(slot, sink);
        }
        let (state, birth) = (&mut self.states[slot], &mut self.births[slot]);
        self.counts.exported[EndReason::Active as usize - 1] += 1;
        deliver(state, birth, &self.extras, EndReason::Active, sink);
        self.extras.next_part(state.extra);
        state.next_part(p, birth);
    }

    /// The slot of the packet's flow when it is not where it was looked for first, or `NO_SLOT`.
    #[cold]
    fn find(&self, hash: u64, p: &PacketMeta) -> u32 {
        let states = &self.states;
        self.index.find(hash, |slot| states[slot as usize].key == p.key).unwrap_or(NO_SLOT)
    }

    /// Whether a flow ended before `p`: its deadline passed, or `p` opens another connection.
    #[inline]
    fn is_over(&self, state: &FlowState, p: &PacketMeta) -> bool {
        let opens = p.has_tcp && p.flags.is_syn() && self.patience.split_on_reuse();
        (opens && segments::is_reused(state, &self.extras, p))
            || (p.clock - state.last_clock >= self.patience.least && state.deadline(&self.patience) <= p.clock)
    }

    /// Makes a flow for `p`, after ending the one in slot `over`, if there is one.
    #[inline(never)]
    fn begin(&mut self, over: u32, p: &PacketMeta, hash: u64, sink: &mut impl FlowSink) -> u32 {
        if let Some(state) = self.states.get(over as usize) {
            let is_late = state.deadline(&self.patience) <= p.clock;
            let reason = if is_late { state.timeout_reason() } else { EndReason::Closed };
            self.end(over, reason, sink);
        } else if self.counts.active == u64::from(self.flows_max) {
            self.evict(sink);
        }
        let mut state = FlowState::new(p);
        state.bits |= self.deltas.turn;
        let birth = Birth::new(p, state.bits & bits::FROM_HI != 0);
        self.expiry.epoch(p.clock);
        let slot = match self.states.get_mut(self.free as usize) {
            Some(free) => {
                let slot = self.free;
                self.free = free.extra;
                *free = state;
                self.births[slot as usize] = birth;
                slot
            }
            None => {
                self.states.push(state);
                self.births.push(birth);
                if self.deltas.wanted {
                    self.deltas.told.push([0; 3]);
                }
                (self.states.len() - 1) as u32
            }
        };
        self.expiry.set_fresh(slot, state.deadline(&self.patience));
        self.index.insert(hash, slot);
        self.counts.created += 1;
        self.counts.active += 1;
        sink.begun(p, state.originator());
        if !self.patience.emergency && self.counts.active >= marks(self.flows_max).0 {
            self.counts.emergencies += 1;
            self.change_patience(true);
        }
        slot
    }

    /// Exports a flow, frees its slot and takes it out of the index.
    pub(crate) fn end(&mut self, slot: u32, reason: EndReason, sink: &mut impl FlowSink) {
        self.index.remove(self.hasher.hash(&self.states[slot as usize].key), slot);
        self.export(slot as usize, reason, sink);
        if self.patience.emergency && self.counts.active < marks(self.flows_max).1 {
            self.change_patience(false);
        }
    }

    /// Exports a flow and frees its slot. The index still knows it.
    fn export(&mut self, slot: usize, reason: EndReason, sink: &mut impl FlowSink) {
        if self.deltas.wanted {
            self.tell_rest(slot, sink);
        }
        let state = &mut self.states[slot];
        deliver(state, &self.births[slot], &self.extras, reason, sink);
        self.counts.count_sides(state);
        if state.extra != NO_EXTRA {
            self.extras.release(state.extra);
        }
        state.set_free(self.free);
        self.free = slot as u32;
        self.expiry.clear(slot as u32);
        self.counts.active -= 1;
        self.counts.exported[reason as usize - 1] += 1;
    }

    /// What there is to a flow in the slot.
    #[inline]
    pub(crate) fn parts_of(&self, slot: usize) -> (&FlowState, &Birth, &Extras) {
        (&self.states[slot], &self.births[slot], &self.extras)
    }

    /// Makes room at the cap: what nobody answered goes first.
    #[cold]
    fn evict(&mut self, sink: &mut impl FlowSink) {
        if let Some(victim) = self.expiry.victim(self.clock) {
            self.counts.evicted_answered += u64::from(self.states[victim as usize].answered());
            self.end(victim, EndReason::Evicted, sink);
        }
    }
}

fn out_of_memory(flows_max: u32, side_bytes: usize) -> FlowTableError {
    let bytes = flows_max as usize * FLOW_BYTES + side_bytes;
    FlowTableError::Memory { flows_max, gigabytes: bytes.div_ceil(1_000_000_000) }
}

impl FlowTableCounts {
    /// A flow has ended: from how many sides was it seen?
    fn count_sides(&mut self, state: &FlowState) {
        if state.key.proto != proto::TCP {
            return;
        }
        if state.answered() {
            self.tcp_both_sides += 1;
        } else if state.acknowledges() {
            self.tcp_one_side += 1;
        }
    }
}

/// Hands a record over, with what the side arena knows.
#[inline]
fn deliver(state: &FlowState, birth: &Birth, extras: &Extras, reason: EndReason, sink: &mut impl FlowSink) {
    deliver_to(state, birth, extras, reason, |record, text| sink.record(record, text));
}

/// The same to whoever asks.
#[inline]
pub(crate) fn deliver_to<T>(
    state: &FlowState,
    birth: &Birth,
    extras: &Extras,
    reason: EndReason,
    take: impl FnOnce(&FlowRecord, &[u8]) -> T,
) -> T {
    let mut record = state.record(birth, reason);
    record.app = App::ALL.get(usize::from(state.sides[1].mark)).copied().unwrap_or_default();
    if state.extra == NO_EXTRA {
        take(&record, &[])
    } else {
        let mut text = [0; TEXTS_MAX];
        let ([srv, cli], lens, text) = extras.read(state.extra, &mut text);
        (record.rtt_srv_life, record.rtt_cli_life, record.text) = (srv, cli, lens);
        take(&record, text)
    }
}
