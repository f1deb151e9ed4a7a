//! Live workers that pass each other packets: where the NIC does not bring both directions of a flow to one queue, the
//! worker that owns the flow gets the decoded packet, never the frame (`sharding: symmetric`).

use super::ingest::Stage;
use super::worker::Worker;
use capture::ledger::QueueLedger;
use capture::{BATCH_FRAMES_MAX, Wake};
use std::sync::Arc;
use std::time::Duration;
use wire::{Nanos, PacketMeta};

/// Packets that may wait between two workers; what does not fit is dropped and counted (`handoff_full`).
const RING_PACKETS: usize = 1 << 14;
/// Packets taken on at a time, so that no batch of our own waits long.
const TAKE_MAX: usize = 4 * BATCH_FRAMES_MAX;

/// One worker among several that share a tap.
pub(crate) struct Shard {
    worker: Worker,
    /// Towards each worker, by number; our own place is empty.
    out: Vec<Option<(rtrb::Producer<PacketMeta>, Arc<Wake>)>>,
    /// From each other worker.
    inlets: Vec<rtrb::Consumer<PacketMeta>>,
    own: usize,
    /// Packets for our worker, gathered from a batch and from the inlets. Bounded by a batch and `TAKE_MAX`.
    gathered: Vec<PacketMeta>,
    /// What the others left may be older than our own packets; our clock never goes back.
    clock: Nanos,
    ledger: Arc<QueueLedger>,
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
            gathered: Vec::with_capacity(BATCH_FRAMES_MAX + TAKE_MAX),
            clock: Nanos::ZERO,
            ledger,
        };
        let mut shards: Vec<Shard> = workers.into_iter().enumerate().map(shard).collect();
        for from in 0..count {
            for to in (0..count).filter(|to| *to != from) {
                let (producer, consumer) = rtrb::RingBuffer::new(RING_PACKETS);
                shards[from].out[to] = Some((producer, wakes[to].clone()));
                shards[to].inlets.push(consumer);
            }
        }
        shards
    }

    /// Takes on what the others have left, as much as is reasonable at a time.
    fn take(&mut self) {
        for inlet in &mut self.inlets {
            let count = inlet.slots().min(TAKE_MAX.saturating_sub(self.gathered.len()));
            // As many are there: only we take them away.
            self.gathered.extend((0..count).map_while(|_| inlet.pop().ok()));
        }
    }

    /// Keeps our own packets of a batch and leaves the others at their workers. Returns how many found no room.
    fn deal(&mut self, packets: &[PacketMeta]) -> usize {
        let (count, mut lost) = (self.out.len() as u64, 0);
        for packet in packets {
            // The high half of the product is a fair share of the hash's range.
            let owner = ((u128::from(packet.key.stable_hash()) * u128::from(count)) >> 64) as usize;
            match &mut self.out[owner] {
                None => self.gathered.push(*packet),
                Some((ring, _)) => lost += usize::from(ring.push(*packet).is_err()),
            }
        }
        for (_, wake) in self.out.iter().flatten() {
            wake.notify();
        }
        lost
    }

    /// Runs what was gathered through the flow table, in order of time as far as it is known here.
    fn run(&mut self) {
        if !self.gathered.is_sorted_by_key(|p| p.ts) {
            self.gathered.sort_by_key(|p| p.ts);
        }
        for packet in &mut self.gathered {
            self.clock = self.clock.max(packet.clock);
            packet.clock = self.clock;
        }
        self.worker.packets(&self.gathered);
        self.gathered.clear();
    }

    /// Waits until no other worker can leave anything here, then ends every flow. All workers of a tap must finish.
    pub(crate) fn finish(mut self, clock: Nanos) {
        debug_assert!(self.out[self.own].is_none());
        // Letting go of the rings is what tells the others.
        self.out.clear();
        loop {
            let over = self.inlets.iter().all(rtrb::Consumer::is_abandoned);
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
    fn packets(&mut self, packets: &[PacketMeta]) -> usize {
        match self {
            LiveWorker::Alone(worker) => worker.packets(packets),
            LiveWorker::Shard(shard) => shard.packets(packets),
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
    fn packets(&mut self, packets: &[PacketMeta]) -> usize {
        self.take();
        let lost = self.deal(packets);
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
