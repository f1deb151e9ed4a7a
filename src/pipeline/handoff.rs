//! Live workers that pass each other packets: where the NIC does not bring both directions of a flow to one queue, the
//! worker that owns the flow gets the decoded packet, never the frame (`sharding: symmetric`).

use super::ingest::{SLOTS, Stage};
use super::payloads::{Copied, Payloads};
use super::worker::Worker;
use capture::ledger::QueueLedger;
use capture::{BATCH_FRAMES_MAX, Wake};
use std::sync::Arc;
use std::time::Duration;
use wire::{Nanos, PacketMeta};

/// Packets that may wait between two workers; what does not fit is dropped and counted (`handoff_full`).
const RING_PACKETS: usize = 1 << 14;
/// Bytes of payloads that may wait between two workers; a packet whose payload does not fit goes without it, and its flow
/// may go without a name.
const RING_BYTES: usize = 1 << 20;
/// Bytes of a payload that are handed over: what an Ethernet frame without jumbo frames holds. Of a larger one the rest is as
/// little known as if it had not been captured.
const HANDED_MAX: usize = 2048;
/// Packets taken on at a time, so that no batch of our own waits long.
const TAKE_MAX: usize = 4 * BATCH_FRAMES_MAX;

/// A packet on its way, and how many bytes of its payload lie in the ring beside it.
struct Handed {
    packet: PacketMeta,
    payload: u16,
}

struct Peer {
    packets: rtrb::Producer<Handed>,
    bytes: rtrb::Producer<u8>,
    wake: Arc<Wake>,
}

struct Inlet {
    packets: rtrb::Consumer<Handed>,
    bytes: rtrb::Consumer<u8>,
}

/// One worker among several that share a tap.
pub(crate) struct Shard {
    worker: Worker,
    /// Towards each worker, by number; our own place is empty.
    out: Vec<Option<Peer>>,
    /// From each other worker.
    inlets: Vec<Inlet>,
    own: usize,
    /// Packets for our worker, gathered from a batch and from the inlets. Bounded by `SLOTS` and `TAKE_MAX`.
    gathered: Vec<PacketMeta>,
    payloads: Copied,
    /// Of one payload; reused.
    payload: Vec<u8>,
    /// Gathered packets in order of time: they and their payloads are copied here where they came in another.
    sorted: (Vec<u32>, Vec<PacketMeta>, Copied),
    /// What the others left may be older than our own packets; our clock never goes back.
    clock: Nanos,
    ledger: Arc<QueueLedger>,
}

impl Peer {
    /// `false` if there is no room.
    fn push(&mut self, packet: &PacketMeta, payload: &[u8]) -> bool {
        if self.packets.is_full() {
            return false;
        }
        // The payload first: who sees the packet then finds it.
        let payload = match self.bytes.push_entire_slice(payload) {
            Ok(()) => payload.len() as u16,
            Err(_) => 0,
        };
        self.packets.push(Handed { packet: *packet, payload }).is_ok()
    }
}

impl Shard {
    /// Joins the workers of a tap, each with its ledger and what it sleeps on.
    pub(crate) fn join(workers: Vec<(Worker, Arc<QueueLedger>, Arc<Wake>)>) -> Vec<Shard> {
        let count = workers.len();
        let wakes: Vec<_> = workers.iter().map(|(_, _, wake)| wake.clone()).collect();
        let shard = |(own, (worker, ledger, _))| Shard {
            worker,
            out: (0..count).map(|_| None).collect(),
            inlets: Vec::new(),
            own,
            gathered: Vec::with_capacity(SLOTS + TAKE_MAX),
            payloads: Copied::default(),
            payload: Vec::new(),
            sorted: Default::default(),
            clock: Nanos::ZERO,
            ledger,
        };
        let mut shards: Vec<Shard> = workers.into_iter().enumerate().map(shard).collect();
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let (packets, taken) = rtrb::RingBuffer::new(RING_PACKETS);
                let (bytes, taken_bytes) = rtrb::RingBuffer::new(RING_BYTES);
                shards[from].out[to] = Some(Peer { packets, bytes, wake: wakes[to].clone() });
                shards[to].inlets.push(Inlet { packets: taken, bytes: taken_bytes });
            }
        }
        shards
    }

    /// Takes on what the others have left, as much as is reasonable at a time.
    fn take(&mut self) {
        for inlet in &mut self.inlets {
            let count = inlet.packets.slots().min(TAKE_MAX.saturating_sub(self.gathered.len()));
            // As many are there, with their payloads: only we take them away.
            for handed in (0..count).map_while(|_| inlet.packets.pop().ok()) {
                self.payload.clear();
                if let Ok(bytes) = inlet.bytes.read_chunk(usize::from(handed.payload)) {
                    self.payload.extend(bytes);
                }
                self.gathered.push(handed.packet);
                self.payloads.push(&self.payload);
            }
        }
    }

    /// Keeps our own packets of a batch and leaves the others at their workers. Returns how many found no room.
    fn deal(&mut self, packets: &[PacketMeta], payloads: &impl Payloads) -> usize {
        let (count, mut lost) = (self.out.len() as u64, 0);
        for (at, packet) in packets.iter().enumerate() {
            // As much of our own packets as of the others': what is told must not depend on the queue they came to.
            let payload = if packet.payload_len > 0 { payloads.payload(at) } else { &[] };
            let payload = &payload[..payload.len().min(HANDED_MAX)];
            // The high half of the product is a fair share of the hash's range.
            let owner = ((u128::from(packet.key.stable_hash()) * u128::from(count)) >> 64) as usize;
            match &mut self.out[owner] {
                None => {
                    self.gathered.push(*packet);
                    self.payloads.push(payload);
                }
                Some(peer) => lost += usize::from(!peer.push(packet, payload)),
            }
        }
        for peer in self.out.iter().flatten() {
            peer.wake.notify();
        }
        lost
    }

    /// Runs what was gathered through the flow table, in the order of the queues' clocks: what came late to its queue stays where it
    /// was in that.
    fn run(&mut self) {
        if !self.gathered.is_sorted_by_key(|p| p.clock) {
            self.sort();
        }
        for packet in &mut self.gathered {
            self.clock = self.clock.max(packet.clock);
            packet.clock = self.clock;
        }
        self.worker.packets(&self.gathered, &self.payloads);
        self.gathered.clear();
        self.payloads.clear();
    }

    #[cold]
    fn sort(&mut self) {
        let (order, packets, payloads) = &mut self.sorted;
        order.clear();
        order.extend(0..self.gathered.len() as u32);
        // Stable: packets of one time stay in the order they came in.
        order.sort_by_key(|at| self.gathered[*at as usize].clock);
        packets.clear();
        payloads.clear();
        for at in order.iter().map(|at| *at as usize) {
            packets.push(self.gathered[at]);
            payloads.push(self.payloads.payload(at));
        }
        std::mem::swap(&mut self.gathered, packets);
        std::mem::swap(&mut self.payloads, payloads);
    }

    /// Waits until no other worker can leave anything here, then ends every flow. All workers of a tap must finish.
    pub(crate) fn finish(mut self, clock: Nanos) {
        debug_assert!(self.out[self.own].is_none());
        // Letting go of the rings is what tells the others.
        self.out.clear();
        loop {
            let over = self.inlets.iter().all(|inlet| inlet.packets.is_abandoned());
            self.take();
            match (self.gathered.is_empty(), over) {
                (true, true) => break,
                (true, false) => std::thread::sleep(Duration::from_millis(1)),
                (false, _) => self.run(),
            }
        }
        self.worker.finish(clock.max(self.clock));
    }
}

/// A worker of a live tap.
#[expect(clippy::large_enum_variant, reason = "there is one a thread, which holds it in place to the end")]
pub(crate) enum LiveWorker {
    /// With flows of its own: the card brings both directions here.
    Alone(Worker),
    /// Among others that pass it packets.
    Shard(Shard),
}

impl LiveWorker {
    /// Ends every flow.
    pub(crate) fn finish(self, clock: Nanos) {
        match self {
            LiveWorker::Alone(worker) => worker.finish(clock),
            LiveWorker::Shard(shard) => shard.finish(clock),
        }
    }
}

impl Stage for LiveWorker {
    fn packets(&mut self, packets: &[PacketMeta], payloads: &impl Payloads) -> usize {
        match self {
            LiveWorker::Alone(worker) => worker.packets(packets, payloads),
            LiveWorker::Shard(shard) => shard.packets(packets, payloads),
        }
    }

    fn advance(&mut self, clock: Nanos) {
        match self {
            LiveWorker::Alone(worker) => worker.advance(clock),
            LiveWorker::Shard(shard) => shard.advance(clock),
        }
    }
}

impl Stage for Shard {
    fn packets(&mut self, packets: &[PacketMeta], payloads: &impl Payloads) -> usize {
        self.take();
        let lost = self.deal(packets, payloads);
        self.ledger.worker.handoff_full.add(lost as u64);
        self.run();
        packets.len() - lost
    }

    fn advance(&mut self, clock: Nanos) {
        self.take();
        while !self.gathered.is_empty() {
            self.run();
            self.take();
        }
        self.clock = self.clock.max(clock);
        self.worker.advance(self.clock);
    }
}
