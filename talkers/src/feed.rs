//! What a worker counts into.

use crate::WhenBehind;
use crate::field::{Hasher, Key, key_of, whole_key};
use crate::sketch::Sketch;
use crate::slots::Slots;
use crate::task::{Event, Task};
use flowtable::FlowRecord;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use wire::{Direction, FlowKey, Nanos, PacketMeta};

/// A worker's side of all tasks.
pub struct Feed {
    packets: Vec<Lane>,
    begins: Vec<Lane>,
    ends: Vec<Lane>,
    /// Earliest end of a window that is being filled.
    until: Nanos,
    when_behind: WhenBehind,
    /// Nobody collects any more.
    abandoned: Arc<AtomicBool>,
}

/// One task.
struct Lane {
    task: Arc<Task>,
    slots: Arc<Slots>,
    hasher: Hasher,
    /// For elements, so that a key and an element of the same fields have different hashes.
    element_hasher: Hasher,
    slot: usize,
    window: u64,
    /// The window has ended, and the collector still had the other slot.
    is_late: bool,
    /// Something was counted in the window.
    is_used: bool,
}

/// How long a replay waits for the collector between two looks.
const PAUSE: Duration = Duration::from_micros(100);

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
        Feed {
            packets: of(Event::Packet),
            begins: of(Event::FlowBegin),
            ends: of(Event::FlowEnd),
            until: Nanos::ZERO,
            when_behind,
            abandoned,
        }
    }

    /// Time has come to `clock`: windows that end by then are handed over. To be called before what happened at `clock` is
    /// counted.
    #[inline]
    pub fn advance(&mut self, clock: Nanos) {
        if clock >= self.until {
            self.turn(clock);
        }
    }

    #[cold]
    fn turn(&mut self, clock: Nanos) {
        let (when_behind, abandoned) = (self.when_behind, &self.abandoned);
        let mut until = Nanos(u64::MAX);
        for lane in [&mut self.packets, &mut self.begins, &mut self.ends].into_iter().flatten() {
            lane.turn(clock, when_behind, abandoned);
            // A late one tries again at the next call.
            until = if lane.is_late { Nanos::ZERO } else { until.min(lane.end()) };
        }
        self.until = until;
    }

    /// Counts packets, all of one window.
    #[inline]
    pub fn packets(&mut self, packets: &[PacketMeta]) {
        for lane in &mut self.packets {
            lane.packets(packets);
        }
    }

    /// Counts a flow that has begun, with a packet of its originator in this direction.
    #[inline]
    pub fn begun(&mut self, flow: &FlowKey, originator: Direction) {
        for lane in &mut self.begins {
            lane.flow(&whole_key(flow, originator), 1);
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
                lane.flow(&key_of(from, to, record.proto, record.vlan), value);
            }
        }
    }

    /// Hands over what was counted up to now. There will be no more.
    pub fn finish(self) {
        let used = [&self.packets, &self.begins, &self.ends].into_iter().flatten().filter(|lane| lane.is_used);
        used.for_each(|lane| lane.slots.hand_over(lane.slot, lane.window));
    }
}

/// Also of a worker that panicked: nobody is to wait for it.
impl Drop for Feed {
    fn drop(&mut self) {
        [&self.packets, &self.begins, &self.ends].into_iter().flatten().for_each(|lane| lane.slots.end());
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
            window: 0,
            is_late: false,
            is_used: false,
        }
    }

    /// The end of the window that is being filled.
    fn end(&self) -> Nanos {
        Nanos((self.window + 1).saturating_mul(self.task.config.window.0))
    }

    fn turn(&mut self, clock: Nanos, when_behind: WhenBehind, abandoned: &AtomicBool) {
        let window = self.task.window_of(clock);
        if window <= self.window {
            return;
        }
        if self.is_used {
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
            self.slots.hand_over(self.slot, self.window);
            (self.slot, self.is_used) = (other, false);
        }
        (self.window, self.is_late) = (window, false);
        self.slots.fill(self.slot, window);
    }

    fn packets(&mut self, packets: &[PacketMeta]) {
        self.is_used |= !packets.is_empty();
        let (task, sketch) = (&*self.task, self.slots.sketch(self.slot));
        match sketch {
            Sketch::HeavyHitters(sketch) => {
                for packet in packets {
                    let key = task.key.cut(&whole_key(&packet.key, packet.direction));
                    sketch.update(self.hasher.hash(&key), &key, task.packet_weight(packet));
                }
            }
            Sketch::Quantiles(sketch) => {
                packets.iter().for_each(|packet| sketch.insert(u64::from(packet.ip_bytes), 1));
            }
            sketch => {
                for packet in packets {
                    let key = whole_key(&packet.key, packet.direction);
                    self.count(sketch, &key, task.packet_weight(packet));
                }
            }
        }
    }

    /// Counts `n` of a flow.
    #[inline]
    fn flow(&mut self, key: &Key, n: u64) {
        self.is_used = true;
        self.count(self.slots.sketch(self.slot), key, n);
    }

    #[inline]
    fn count(&self, sketch: &Sketch, whole: &Key, n: u64) {
        let task = &*self.task;
        let element = || self.element_hasher.hash(&task.elements.cut(whole));
        match sketch {
            Sketch::HeavyHitters(_) | Sketch::TopK(_) => {
                let key = task.key.cut(whole);
                sketch.count(self.hasher.hash(&key), &key, n);
            }
            Sketch::Spreaders(sketch) => {
                let key = task.key.cut(whole);
                sketch.insert(self.hasher.hash(&key), &key, element());
            }
            Sketch::Cardinality(_) | Sketch::Entropy(..) => sketch.count(element(), whole, n),
            Sketch::Quantiles(sketch) => sketch.insert(n, 1),
        }
    }
}
