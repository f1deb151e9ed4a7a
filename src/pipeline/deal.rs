//! One reader, several workers: decoded packets are dealt by a symmetric hash of their flow, so that both directions
//! meet on one worker. Blocks travel to a worker and come back empty; nothing is allocated after warm-up.

use super::ingest::Stage;
use super::payloads::{Copied, Payloads};
use super::worker::Worker;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use wire::{Nanos, PacketMeta};

/// Packets in a block.
const BLOCK_PACKETS: usize = 512;
/// Bytes of payloads beyond which a block goes on its way before it has all its packets: those of large frames.
const BLOCK_BYTES: usize = 1 << 20;
/// Blocks on their way to a worker; the reader waits beyond that.
const RING_BLOCKS: usize = 64;
/// Packets read before every worker hears of the time, whether packets came its way or not.
const CLOCK_EVERY: usize = 4096;

#[derive(Default)]
struct Block {
    packets: Vec<PacketMeta>,
    payloads: Copied,
    /// The reader's clock when the block was sent.
    clock: Nanos,
}

impl Block {
    fn new() -> Block {
        Block { packets: Vec::with_capacity(BLOCK_PACKETS), ..Block::default() }
    }
}

struct Lane {
    filling: Block,
    full: rtrb::Producer<Block>,
    empty: rtrb::Consumer<Block>,
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
    fn packets(&mut self, packets: &[PacketMeta], payloads: &impl Payloads) -> usize {
        let count = self.lanes.len() as u64;
        for (at, packet) in packets.iter().enumerate() {
            // The high half of the product is a fair share of the hash's range.
            let lane = ((u128::from(packet.key.stable_hash()) * u128::from(count)) >> 64) as usize;
            let lane = &mut self.lanes[lane];
            lane.filling.packets.push(*packet);
            lane.filling.payloads.push(if packet.payload_len > 0 { payloads.payload(at) } else { &[] });
            if lane.filling.packets.len() == BLOCK_PACKETS || lane.filling.payloads.bytes() >= BLOCK_BYTES {
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
        Ok(Lane { filling: Block::new(), full, empty, thread })
    }

    fn send(&mut self, clock: Nanos) {
        let next = self.empty.pop().unwrap_or_else(|_| Block::new());
        let mut block = Block { clock, ..std::mem::replace(&mut self.filling, next) };
        while let Err(rtrb::PushError::Full(back)) = self.full.push(block) {
            if self.full.is_abandoned() {
                return;
            }
            block = back;
            std::thread::sleep(Duration::from_micros(50));
        }
    }
}

fn work(mut worker: Worker, mut incoming: rtrb::Consumer<Block>, mut returned: rtrb::Producer<Block>) {
    let mut clock = Nanos::ZERO;
    loop {
        match incoming.pop() {
            Ok(mut block) => {
                clock = block.clock;
                worker.packets(&block.packets, &block.payloads);
                worker.advance(clock);
                block.packets.clear();
                block.payloads.clear();
                // A full return ring means there are blocks enough.
                drop(returned.push(block));
            }
            Err(_) if incoming.is_abandoned() && incoming.is_empty() => break,
            Err(_) => std::thread::sleep(Duration::from_micros(50)),
        }
    }
    worker.finish(clock);
}
