//! What a worker counts into.

use crate::field::{Hasher, Key, WORDS, key_of, whole_key};
use crate::sketch::Sketch;
use crate::slots::Slots;
use crate::task::{Event, Task};
use crate::{Metric, WhenBehind};
use flowtable::{FlowDelta, FlowRecord};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wire::{Direction, FlowKey, Nanos, PacketMeta};

/// A worker's side of all tasks.
///
/// What packets brought is told by their flows ([`FlowDelta`]), a few times for each flow instead of once for each packet: when it
/// ends, and at every turn of time. A turn ends a window, or refreshes the one being filled. After it what was sent before still
/// comes in until all flows have told it; so a task then fills two sketches, and hands the older one over once that is done.
pub struct Feed {
    packets: Vec<Lane>,
    deltas: Vec<Lane>,
    begins: Vec<Lane>,
    ends: Vec<Lane>,
    /// When to look whether time turns.
    until: Nanos,
    /// How often it turns at least, where flows tell of packets; and when it does next.
    refresh: Option<Nanos>,
    refresh_at: Nanos,
    /// What flows have told and is not counted yet: many at a time wait for memory together.
    sent: Vec<Sent>,
    /// Flows that have begun and are not counted yet.
    begun: Vec<Key>,
    /// Room for what is made of them.
    hashed: Vec<(u64, Key, u64)>,
    when_behind: WhenBehind,
    /// Nobody collects any more.
    abandoned: Arc<AtomicBool>,
}

/// What one side of a flow has sent.
#[derive(Clone, Copy)]
struct Sent {
    key: Key,
    bytes: u64,
    pkts: u32,
    is_before: bool,
}

/// One task.
struct Lane {
    task: Arc<Task>,
    slots: Arc<Slots>,
    hasher: Hasher,
    /// For elements, so that a key and an element of the same fields have different hashes.
    element_hasher: Hasher,
    slot: usize,
    /// The window that is being filled; `None` before the first packet.
    window: Option<u64>,
    /// Something was counted in the window.
    is_used: bool,
    /// The window that has ended, until all flows have told what they sent in it; whether something was counted in it.
    before: Option<(u64, bool)>,
    /// The window has ended, and the collector still had the other slot.
    is_late: bool,
}

/// How long a replay waits for the collector between two looks.
const PAUSE: Duration = Duration::from_micros(100);
/// How often a window that could not end tries again.
const RETRY: Nanos = Nanos::from_millis(100);
/// What is counted together.
const TOGETHER: usize = 256;

impl Feed {
    pub(crate) fn new(
        tasks: &[Arc<Task>],
        slots: &[Arc<Slots>],
        when_behind: WhenBehind,
        abandoned: Arc<AtomicBool>,
    ) -> Feed {
        let of = |event| -> Vec<Lane> {
            let lanes = tasks.iter().zip(slots).filter(|(task, _)| task.event == event);
            lanes.map(|(task, slots)| Lane::new(task, slots)).collect()
        };
        let deltas = of(Event::FlowDelta);
        Feed {
            packets: of(Event::Packet),
            begins: of(Event::FlowBegin),
            ends: of(Event::FlowEnd),
            until: Nanos::ZERO,
            refresh: deltas.iter().map(|lane| lane.task.config.snapshot_interval).min(),
            refresh_at: Nanos::ZERO,
            deltas,
            sent: Vec::with_capacity(TOGETHER + 1),
            begun: Vec::with_capacity(TOGETHER),
            hashed: Vec::with_capacity(TOGETHER + 1),
            when_behind,
            abandoned,
        }
    }

    /// Whether flows are to tell what they sent ([`flowtable::FlowTable::want_deltas`]).
    pub fn wants_deltas(&self) -> bool {
        !self.deltas.is_empty()
    }

    /// Whether flows are to be swept at once when time turns: nobody loses packets by that.
    pub fn has_time(&self) -> bool {
        self.when_behind == WhenBehind::Wait
    }

    /// Whether time may turn at `clock`. To be asked before what happened at `clock` is counted; then [`must_turn`](Feed::must_turn).
    #[inline]
    pub fn is_due(&self, clock: Nanos) -> bool {
        clock >= self.until
    }

    /// Whether time turns at `clock`: a window ends that can, or what is being filled is to be refreshed. `is_swept`: whether all
    /// flows have told since the last turn; what is only a refresh waits for that.
    pub fn must_turn(&mut self, clock: Nanos, is_swept: bool) -> bool {
        let can = |lane: &Lane| lane.is_over(clock) && (!lane.is_late || lane.slots.is_clean(1 - lane.slot));
        if self.lanes().any(can) || (clock >= self.refresh_at && is_swept) {
            return true;
        }
        self.until = self.next_look(clock);
        false
    }

    /// Time turns: windows that end by `clock` take nothing any more but what was sent before. All flows must have told since the
    /// last turn ([`swept`](Feed::swept)), and are to tell from here on what was sent before and after this one.
    pub fn turn(&mut self, clock: Nanos) {
        self.flush();
        let (when_behind, abandoned) = (self.when_behind, &self.abandoned);
        let with_flows = self.deltas.iter_mut().map(|lane| (lane, true));
        let lanes = [&mut self.packets, &mut self.begins, &mut self.ends].into_iter().flatten();
        for (lane, of_flows) in lanes.map(|lane| (lane, false)).chain(with_flows) {
            lane.turn(clock, of_flows, when_behind, abandoned);
        }
        self.refresh_at = match self.refresh {
            Some(every) => Nanos((clock.0 / every.0 + 1).saturating_mul(every.0)),
            None => Nanos(u64::MAX),
        };
        self.until = self.next_look(clock);
    }

    /// When something may be due next: later than `clock`. What was due and could not be is tried again.
    fn next_look(&self, clock: Nanos) -> Nanos {
        let later = |due: Nanos| if due > clock { due } else { clock + RETRY };
        self.lanes().map(Lane::end).map(later).fold(later(self.refresh_at), Nanos::min)
    }

    /// All flows have told what they sent before the last turn.
    pub fn swept(&mut self) {
        self.flush_sent();
        self.deltas.iter_mut().for_each(Lane::swept);
    }

    /// Counts packets, all of one window.
    #[inline]
    pub fn packets(&mut self, packets: &[PacketMeta]) {
        for lane in &mut self.packets {
            lane.packets(packets);
        }
    }

    /// Counts what a flow has sent, before the last turn or after it.
    pub fn delta(&mut self, delta: &FlowDelta<'_>, is_before: bool) {
        let answer = match delta.originator {
            Direction::LoToHi => Direction::HiToLo,
            Direction::HiToLo => Direction::LoToHi,
        };
        for (side, from) in [delta.originator, answer].into_iter().enumerate() {
            if delta.pkts[side] > 0 {
                let (bytes, pkts) = (delta.bytes[side], delta.pkts[side]);
                self.sent.push(Sent { key: whole_key(delta.key, from), bytes, pkts, is_before });
            }
        }
        if self.sent.len() >= TOGETHER {
            self.flush_sent();
        }
    }

    /// Counts a flow that has begun; its originator sends in this direction.
    #[inline]
    pub fn begun(&mut self, flow: &FlowKey, originator: Direction) {
        if self.begins.is_empty() {
            return;
        }
        self.begun.push(whole_key(flow, originator));
        if self.begun.len() >= TOGETHER {
            self.flush_begun();
        }
    }

    /// Counts what waits for being counted together with more. A few times a second.
    pub fn flush(&mut self) {
        self.flush_sent();
        self.flush_begun();
    }

    fn flush_sent(&mut self) {
        if !self.sent.is_empty() {
            for lane in &mut self.deltas {
                lane.sent(&self.sent, &mut self.hashed);
            }
            self.sent.clear();
        }
    }

    fn flush_begun(&mut self) {
        if !self.begun.is_empty() {
            for lane in &mut self.begins {
                lane.begun(&self.begun, &mut self.hashed);
            }
            self.begun.clear();
        }
    }

    /// Counts a flow, or a part of one, that has ended.
    #[inline]
    pub fn ended(&mut self, record: &FlowRecord) {
        for lane in &mut self.ends {
            let value = match lane.task.config.measure {
                Some(measure) => measure.of_flow(record),
                None => Some(lane.task.flow_weight(record)),
            };
            if let Some(value) = value {
                let (from, to) = ((record.src_ip, record.src_port), (record.dst_ip, record.dst_port));
                lane.is_used = true;
                lane.count(lane.slot, &key_of(from, to, record.proto, record.vlan), value);
            }
        }
    }

    /// Hands over what was counted up to now. There will be no more: all flows have ended.
    pub fn finish(mut self) {
        self.flush();
        self.swept();
        for lane in self.lanes().filter(|lane| lane.is_used) {
            lane.slots.hand_over(lane.slot, lane.window.unwrap_or(0));
        }
    }

    fn lanes(&self) -> impl Iterator<Item = &Lane> {
        [&self.packets, &self.deltas, &self.begins, &self.ends].into_iter().flatten()
    }
}

/// Also of a worker that panicked: nobody is to wait for it.
impl Drop for Feed {
    fn drop(&mut self) {
        self.lanes().for_each(|lane| lane.slots.end());
    }
}

impl Lane {
    fn new(task: &Arc<Task>, slots: &Arc<Slots>) -> Lane {
        Lane {
            task: task.clone(),
            slots: slots.clone(),
            hasher: task.hasher(),
            element_hasher: task.element_hasher(),
            slot: 0,
            window: None,
            is_used: false,
            before: None,
            is_late: false,
        }
    }

    /// The end of the window that is being filled.
    fn end(&self) -> Nanos {
        Nanos(self.window.map_or(0, |window| (window + 1).saturating_mul(self.task.config.window.0)))
    }

    /// Whether that lies behind.
    fn is_over(&self, clock: Nanos) -> bool {
        self.window.is_none_or(|window| self.task.window_of(clock) > window)
    }

    /// Goes over to the window of `clock`. `of_flows`: what was sent before may still come in.
    fn turn(&mut self, clock: Nanos, of_flows: bool, when_behind: WhenBehind, abandoned: &AtomicBool) {
        if !self.is_over(clock) {
            return;
        }
        let window = self.task.window_of(clock);
        if let Some(ended) = self.window
            && (self.is_used || of_flows)
        {
            let other = 1 - self.slot;
            while !self.slots.is_clean(other) {
                if when_behind == WhenBehind::GoOn || abandoned.load(Ordering::Relaxed) {
                    if !std::mem::replace(&mut self.is_late, true) {
                        self.slots.is_late();
                    }
                    return;
                }
                std::thread::sleep(PAUSE);
            }
            self.before = Some((ended, self.is_used));
            (self.slot, self.is_used) = (other, false);
        }
        (self.window, self.is_late) = (Some(window), false);
        if !of_flows {
            self.swept();
        }
    }

    /// Nothing of the window before comes in any more.
    fn swept(&mut self) {
        if let Some((window, true)) = self.before.take() {
            self.slots.hand_over(1 - self.slot, window);
        }
        if let Some(window) = self.window {
            self.slots.fill(self.slot, window);
        }
    }

    fn packets(&mut self, packets: &[PacketMeta]) {
        self.is_used |= !packets.is_empty();
        if let Sketch::Quantiles(sketch) = self.slots.sketch(self.slot) {
            packets.iter().for_each(|packet| sketch.insert(u64::from(packet.ip_bytes), 1));
        }
    }

    /// Counts what was sent. `hashed` is room for it.
    fn sent(&mut self, sent: &[Sent], hashed: &mut Vec<(u64, Key, u64)>) {
        for sent in sent.chunk_by(|a, b| a.is_before == b.is_before) {
            let slot = match &mut self.before {
                Some((_, is_used)) if sent[0].is_before => {
                    *is_used = true;
                    1 - self.slot
                }
                _ => {
                    self.is_used = true;
                    self.slot
                }
            };
            let is_bytes = self.task.config.metric == Metric::Bytes;
            let weight = |sent: &Sent| if is_bytes { sent.bytes } else { u64::from(sent.pkts) };
            self.count_all(slot, sent.iter().map(|sent| (&sent.key, weight(sent))), hashed);
        }
    }

    /// Counts flows that have begun. `hashed` is room for them.
    fn begun(&mut self, keys: &[Key], hashed: &mut Vec<(u64, Key, u64)>) {
        self.is_used = true;
        self.count_all(self.slot, keys.iter().map(|key| (key, 1)), hashed);
    }

    /// Counts so much of each of many keys, or of their elements: what the sketch will look at is fetched before. `hashed` is room
    /// for them.
    fn count_all<'k>(
        &self,
        slot: usize,
        items: impl Iterator<Item = (&'k Key, u64)>,
        hashed: &mut Vec<(u64, Key, u64)>,
    ) {
        let task = &*self.task;
        let keyed = |(whole, n): (&Key, u64)| {
            let key = task.key.cut(whole);
            (self.hasher.hash(&key), key, n)
        };
        let element = |whole: &Key| self.element_hasher.hash(&task.elements.cut(whole));
        hashed.clear();
        match self.slots.sketch(slot) {
            Sketch::HeavyHitters(sketch) => {
                hashed.extend(items.map(keyed));
                sketch.update_all(hashed);
            }
            Sketch::TopK(sketch) => {
                hashed.extend(items.map(keyed).inspect(|(hash, ..)| sketch.prefetch(*hash)));
                hashed.iter().for_each(|(hash, key, n)| sketch.update(*hash, key, *n));
            }
            Sketch::Spreaders(sketch) => {
                hashed.extend(items.map(|(whole, n)| {
                    let (hash, key, _) = keyed((whole, n));
                    (hash, key, element(whole))
                }));
                sketch.insert_all(hashed);
            }
            Sketch::Cardinality(sketch) => {
                let hash = |(whole, n): (&Key, u64)| (element(whole), [0; WORDS], n);
                hashed.extend(items.map(hash).inspect(|(hash, ..)| sketch.prefetch(*hash)));
                hashed.iter().for_each(|(hash, ..)| sketch.insert(*hash));
            }
            Sketch::Entropy(sample, head) => {
                let hash = |(whole, n): (&Key, u64)| (element(whole), [0; WORDS], n);
                let has_head = head.total() > 0;
                hashed.extend(items.map(hash).inspect(|(hash, ..)| {
                    sample.prefetch(*hash);
                    if has_head {
                        head.prefetch(*hash);
                    }
                }));
                hashed.iter().for_each(|(hash, _, n)| Sketch::count_item(sample, head, *hash, *n));
            }
            Sketch::Quantiles(sketch) => items.for_each(|(_, n)| sketch.insert(n, 1)),
        }
    }

    /// Counts `n` of a key, or of an element.
    #[inline]
    fn count(&self, slot: usize, whole: &Key, n: u64) {
        let task = &*self.task;
        let element = || self.element_hasher.hash(&task.elements.cut(whole));
        match self.slots.sketch(slot) {
            Sketch::HeavyHitters(sketch) => {
                let key = task.key.cut(whole);
                sketch.update(self.hasher.hash(&key), &key, n);
            }
            Sketch::TopK(sketch) => {
                let key = task.key.cut(whole);
                sketch.update(self.hasher.hash(&key), &key, n);
            }
            Sketch::Spreaders(sketch) => {
                let key = task.key.cut(whole);
                sketch.insert(self.hasher.hash(&key), &key, element());
            }
            Sketch::Cardinality(sketch) => sketch.insert(element()),
            Sketch::Entropy(sample, head) => {
                Sketch::count_item(sample, head, element(), n);
            }
            Sketch::Quantiles(sketch) => sketch.insert(n, 1),
        }
    }
}
