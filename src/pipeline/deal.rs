//! One reader, several workers: decoded packets are dealt by a symmetric hash of their flow, so that both directions
//! meet on one worker. Blocks travel to a worker and come back empty; nothing is allocated after warm-up.

use super::ingest::Stage;
use super::worker::Worker;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use wire::{Nanos, PacketMeta};

/// Packets in a block.
const BLOCK_PACKETS: usize = 512;
/// Blocks on their way to a worker; the reader waits beyond that.
const RING_BLOCKS: usize = 64;
/// Packets read before every worker hears of the time, whether packets came its way or not.
const CLOCK_EVERY: usize = 4096;

struct Block {
    packets: Vec<PacketMeta>,
    /// The reader's clock when the block was sent.
    clock: Nanos,
}

struct Lane {
    filling: Vec<PacketMeta>,
    full: rtrb::Producer<Block>,
    empty: rtrb::Consumer<Vec<PacketMeta>>,
    thread: JoinHandle<()>,
}

pub(crate) struct Dealer {
    lanes: Vec<Lane>,
    since_clock: usize,
}

impl Dealer {
    /// Starts one thread for each worker.
    ///
    /// # Errors
    /// The operating system gave no thread.
    pub(crate) fn start(workers: Vec<Worker>) -> std::io::Result<Dealer> {
        let lanes = workers.into_iter().enumerate().map(|(k, worker)| Lane::start(k, worker));
        Ok(Dealer { lanes: lanes.collect::<Result<_, _>>()?, since_clock: 0 })
    }

    /// Sends what is left, ends the workers and waits for them.
    pub(crate) fn finish(mut self, clock: Nanos) {
        for lane in &mut self.lanes {
            lane.send(clock);
        }
        for lane in self.lanes {
            // Letting go of the ring is what tells the worker that there is no more.
            drop(lane.full);
            if lane.thread.join().is_err() {
                tracing::error!("a worker panicked; its flows are lost");
            }
        }
    }

    fn tell_clock(&mut self, clock: Nanos) {
        self.since_clock = 0;
        for lane in &mut self.lanes {
            lane.send(clock);
        }
    }
}

impl Stage for Dealer {
    fn packets(&mut self, packets: &[PacketMeta]) -> usize {
        let count = self.lanes.len() as u64;
        for packet in packets {
            // The high half of the product is a fair share of the hash's range.
            let lane = ((u128::from(packet.key.stable_hash()) * u128::from(count)) >> 64) as usize;
            let lane = &mut self.lanes[lane];
            lane.filling.push(*packet);
            if lane.filling.len() == BLOCK_PACKETS {
                lane.send(packet.clock);
            }
        }
        self.since_clock += packets.len();
        if let Some(last) = packets.last().filter(|_| self.since_clock >= CLOCK_EVERY) {
            self.tell_clock(last.clock);
        }
        packets.len()
    }

    fn advance(&mut self, clock: Nanos) {
        self.tell_clock(clock);
    }
}

impl Lane {
    fn start(k: usize, worker: Worker) -> std::io::Result<Lane> {
        let (full, incoming) = rtrb::RingBuffer::new(RING_BLOCKS);
        let (returned, empty) = rtrb::RingBuffer::new(RING_BLOCKS + 1);
        let thread = Builder::new().name(format!("worker-{k}")).spawn(move || work(worker, incoming, returned))?;
        Ok(Lane { filling: Vec::with_capacity(BLOCK_PACKETS), full, empty, thread })
    }

    fn send(&mut self, clock: Nanos) {
        let next = self.empty.pop().unwrap_or_else(|_| Vec::with_capacity(BLOCK_PACKETS));
        let mut block = Block { packets: std::mem::replace(&mut self.filling, next), clock };
        while let Err(rtrb::PushError::Full(back)) = self.full.push(block) {
            if self.full.is_abandoned() {
                return;
            }
            block = back;
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn work(mut worker: Worker, mut incoming: rtrb::Consumer<Block>, mut returned: rtrb::Producer<Vec<PacketMeta>>) {
    let mut clock = Nanos::ZERO;
    loop {
        match incoming.pop() {
            Ok(mut block) => {
                clock = block.clock;
                worker.packets(&block.packets);
                worker.advance(clock);
                block.packets.clear();
                // A full return ring means there are blocks enough.
                drop(returned.push(block.packets));
            }
            Err(_) if incoming.is_abandoned() && incoming.is_empty() => break,
            Err(_) => std::thread::sleep(Duration::from_micros(50)),
        }
    }
    worker.finish(clock);
}
