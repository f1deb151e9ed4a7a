//! The latest packets of one worker, in memory of a fixed size.

use super::{CLOCK_MAX, sys};
use std::collections::TryReserveError;
use wire::{Frame, LinkType, Nanos, TapId};

/// Bytes before the data of a record, little-endian: captured length u32, wire length u32, time u64, LINKTYPE_ u16,
/// tap u16, 4 bytes that keep what follows aligned.
pub(super) const HEAD_BYTES: usize = 24;

/// A ring of blocks, each a run of records. The oldest block makes way for a new one as a whole, so that storing a
/// packet reads nothing of the packets it replaces: a ring of single records has to look up the length of each, in
/// memory that has long left the cache.
pub(super) struct History {
    /// `blocks.len() * block_bytes` bytes once touched, reserved but empty before.
    memory: Vec<u8>,
    block_bytes: usize,
    /// Block `n` is at `n % blocks.len()`.
    blocks: Vec<Block>,
    /// Number of the block that is being filled, counted since the start.
    block: u64,
    /// Where it starts in `memory`.
    base: usize,
    /// Bytes of it that are filled.
    used: usize,
    /// Records stored since the start.
    seq: u64,
    /// Highest time stored.
    clock: Nanos,
    snap_bytes: usize,
}

#[derive(Clone, Copy, Default)]
struct Block {
    /// Number of its first record.
    first_seq: u64,
    /// Highest time stored before it.
    clock: Nanos,
    /// Bytes filled; of the current block `History::used` counts.
    used: usize,
}

/// A place between two records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Cursor {
    /// Number of the record behind it.
    pub(super) seq: u64,
    /// Highest time of the records before it.
    pub(super) clock: Nanos,
    block: u64,
    offset: usize,
}

impl History {
    /// `bytes` in blocks of `block_bytes`, of which there are two at least. Longer packets than `snap_bytes`, or than a
    /// block, are cut. The memory is reserved, not yet touched.
    pub(super) fn new(bytes: usize, block_bytes: usize, snap_bytes: usize) -> Result<History, TryReserveError> {
        let blocks = (bytes / block_bytes).max(2);
        let mut memory = Vec::new();
        memory.try_reserve_exact(blocks * block_bytes)?;
        Ok(History {
            memory,
            block_bytes,
            blocks: vec![Block::default(); blocks],
            block: 0,
            base: 0,
            used: 0,
            seq: 0,
            clock: Nanos::ZERO,
            snap_bytes: snap_bytes.min(block_bytes - HEAD_BYTES),
        })
    }

    /// Has every page backed by memory, on the NUMA node of the thread that calls.
    #[cold]
    pub(super) fn touch(&mut self) {
        if self.memory.is_empty() {
            sys::advise_huge_pages(self.memory.spare_capacity_mut());
            self.memory.resize(self.blocks.len() * self.block_bytes, 0);
        }
    }

    /// Stores a batch. One copy a packet; the oldest go.
    #[inline]
    pub(super) fn store(&mut self, frames: &[Frame<'_>]) {
        if self.memory.is_empty() {
            self.touch();
        }
        let mut left = frames;
        loop {
            left = self.fill_block(left);
            if left.is_empty() {
                return;
            }
            self.next_block();
        }
    }

    /// Stores what fits into the current block; what does not. A first packet fits an empty block.
    #[inline]
    fn fill_block<'a, 'b>(&mut self, frames: &'b [Frame<'a>]) -> &'b [Frame<'a>] {
        // In locals: the compiler cannot know that the block does not hold the fields of `self`, and would store and
        // load them for every packet.
        let (mut used, mut clock, snap_bytes) = (self.used, self.clock, self.snap_bytes);
        let block = &mut self.memory[self.base..self.base + self.block_bytes];
        let mut stored = 0;
        for frame in frames {
            let data = &frame.data[..frame.data.len().min(snap_bytes)];
            // A multiple of 8, so that heads are aligned and the parts of one share a cache line more often.
            let end = used + (HEAD_BYTES + data.len()).next_multiple_of(8);
            let Some((head, body)) = block.get_mut(used..end).and_then(<[u8]>::split_first_chunk_mut) else { break };
            encode(head, frame, data.len());
            body[..data.len()].copy_from_slice(data);
            used = end;
            clock = clock.max(frame.ts.min(CLOCK_MAX));
            stored += 1;
        }
        (self.used, self.clock) = (used, clock);
        self.seq += stored as u64;
        &frames[stored..]
    }

    #[cold]
    fn next_block(&mut self) {
        let slots = self.blocks.len() as u64;
        self.blocks[(self.block % slots) as usize].used = self.used;
        self.block += 1;
        let slot = (self.block % slots) as usize;
        self.blocks[slot] = Block { first_seq: self.seq, clock: self.clock, used: 0 };
        self.base = slot * self.block_bytes;
        self.used = 0;
    }

    /// Records stored since the start.
    pub(super) fn seq(&self) -> u64 {
        self.seq
    }

    /// Number of the oldest record there is.
    pub(super) fn oldest_seq(&self) -> u64 {
        self.meta(self.oldest()).first_seq
    }

    /// The place from which on every record of `from` or later is found, and as few others as the index allows.
    pub(super) fn seek(&self, from: Nanos) -> Cursor {
        // Clocks at the ends of blocks never fall from one block to the next.
        let number = self.first_block(|number| match number == self.block {
            true => self.clock >= from,
            false => self.meta(number + 1).clock >= from,
        });
        number.map_or_else(|| self.head(), |number| self.start_of(number))
    }

    /// The place before record `seq`, or before the oldest there is.
    pub(super) fn locate(&self, seq: u64) -> Cursor {
        let after = self.first_block(|number| self.meta(number).first_seq > seq).unwrap_or(self.block + 1);
        let mut cursor = self.start_of(after.saturating_sub(1).max(self.oldest()));
        while cursor.seq < seq && self.next(&mut cursor).is_some() {}
        cursor
    }

    /// Moves a cursor whose records were overwritten to the oldest that were not. How many it missed.
    pub(super) fn rescue(&self, cursor: &mut Cursor) -> u64 {
        if cursor.block >= self.oldest() {
            return 0;
        }
        let missed_from = cursor.seq;
        *cursor = self.start_of(self.oldest());
        cursor.seq - missed_from
    }

    /// The record behind a cursor that needs no [`rescue`](Self::rescue), and the cursor moved past it. `None` at the
    /// end.
    pub(super) fn next(&self, cursor: &mut Cursor) -> Option<Frame<'_>> {
        debug_assert!(cursor.block >= self.oldest(), "a cursor into overwritten records");
        if cursor.offset == self.used_of(cursor.block) {
            if cursor.block == self.block {
                return None;
            }
            *cursor = self.start_of(cursor.block + 1);
        }
        let slot = (cursor.block % self.blocks.len() as u64) as usize;
        let record = &self.memory[slot * self.block_bytes..][..self.block_bytes][cursor.offset..];
        let (head, body) = record.split_first_chunk()?;
        let frame = decode(head, body);
        // A block ends where its last record does, padding included; `next_multiple_of` mirrors `store`.
        cursor.offset += (HEAD_BYTES + frame.data.len()).next_multiple_of(8);
        cursor.seq += 1;
        cursor.clock = cursor.clock.max(frame.ts.min(CLOCK_MAX));
        (cursor.offset <= self.block_bytes).then_some(frame)
    }

    fn head(&self) -> Cursor {
        Cursor { seq: self.seq, clock: self.clock, block: self.block, offset: self.used }
    }

    fn oldest(&self) -> u64 {
        (self.block + 1).saturating_sub(self.blocks.len() as u64)
    }

    fn meta(&self, number: u64) -> &Block {
        &self.blocks[(number % self.blocks.len() as u64) as usize]
    }

    fn used_of(&self, number: u64) -> usize {
        if number == self.block { self.used } else { self.meta(number).used }
    }

    fn start_of(&self, number: u64) -> Cursor {
        let meta = self.meta(number);
        Cursor { seq: meta.first_seq, clock: meta.clock, block: number, offset: 0 }
    }

    /// The first of the blocks there are for which `holds`, where it holds for all that follow; by bisection.
    fn first_block(&self, holds: impl Fn(u64) -> bool) -> Option<u64> {
        let (mut low, mut high) = (self.oldest(), self.block + 1);
        while low < high {
            let middle = low + (high - low) / 2;
            if holds(middle) { high = middle } else { low = middle + 1 }
        }
        (low <= self.block).then_some(low)
    }
}

/// Three words, stored as such: bytes that are gathered first and then copied in larger pieces stall the processor, as
/// a store of a few cannot be forwarded to a load of many (10 ns a packet, more than copying its data).
#[inline]
fn encode(head: &mut [u8; HEAD_BYTES], frame: &Frame<'_>, kept: usize) {
    let lengths = kept as u64 | u64::from(frame.wire_len) << 32;
    let place = u64::from(frame.link.linktype()) | u64::from(frame.tap.0) << 16;
    let (words, _) = head.as_chunks_mut::<8>();
    for (word, value) in words.iter_mut().zip([lengths, frame.ts.0, place]) {
        *word = value.to_le_bytes();
    }
}

/// What `encode` wrote, `body` being what follows it.
fn decode<'a>(head: &[u8; HEAD_BYTES], body: &'a [u8]) -> Frame<'a> {
    let (words, _) = head.as_chunks::<8>();
    let word = |n: usize| words.get(n).map_or(0, |word| u64::from_le_bytes(*word));
    let (lengths, ts, place) = (word(0), word(1), word(2));
    Frame {
        data: &body[..(lengths as u32 as usize).min(body.len())],
        wire_len: (lengths >> 32) as u32,
        ts: Nanos(ts),
        link: LinkType::from_linktype(place as u16),
        tap: TapId((place >> 16) as u16),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// A record as the model keeps it.
    #[derive(Clone, Debug, PartialEq)]
    struct Kept {
        ts: u64,
        wire_len: u32,
        data: Vec<u8>,
    }

    /// The plain version: blocks of records in a queue, the front one dropped when there are too many.
    struct Model {
        blocks: VecDeque<(usize, Vec<(u64, Kept)>)>,
        seq: u64,
    }

    impl Model {
        fn store(&mut self, kept: Kept, block_bytes: usize, blocks: usize) {
            let need = (HEAD_BYTES + kept.data.len()).div_ceil(8) * 8;
            if self.blocks.back().is_none_or(|(used, _)| used + need > block_bytes) {
                self.blocks.push_back((0, Vec::new()));
            }
            if self.blocks.len() > blocks {
                self.blocks.pop_front();
            }
            if let Some((used, records)) = self.blocks.back_mut() {
                *used += need;
                records.push((self.seq, kept));
            }
            self.seq += 1;
        }

        fn records(&self) -> Vec<(u64, Kept)> {
            self.blocks.iter().flat_map(|(_, records)| records.clone()).collect()
        }
    }

    fn read(history: &History, mut cursor: Cursor) -> Vec<(u64, Kept)> {
        let mut all = Vec::new();
        loop {
            let seq = cursor.seq;
            let Some(frame) = history.next(&mut cursor) else { return all };
            assert_eq!((frame.link, frame.tap), (LinkType::RawIp, TapId(7)));
            all.push((seq, Kept { ts: frame.ts.0, wire_len: frame.wire_len, data: frame.data.to_vec() }));
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        /// Sizes from nothing to longer than a block, times that mostly rise, any number of blocks and snap lengths.
        #[test]
        fn agrees_with_a_queue_of_blocks(
            packets in prop::collection::vec((0_usize..400, 0_u64..50, prop::bool::weighted(0.1)), 0..300),
            block_words in 4_usize..40,
            blocks in 2_usize..6,
            snap_bytes in 1_usize..400,
            from in any::<prop::sample::Index>(),
            seq in 0_u64..300,
        ) {
            let block_bytes = block_words * 8;
            let mut history = History::new(blocks * block_bytes, block_bytes, snap_bytes).unwrap();
            let mut model = Model { blocks: VecDeque::new(), seq: 0 };
            let (mut ts, mut early) = (0, None);
            for (i, (len, step, back)) in packets.iter().enumerate() {
                ts = if *back { ts / 2 } else { ts + step };
                let data: Vec<u8> = (0..*len).map(|b| (b * 7 + i) as u8).collect();
                let frame = Frame { data: &data, wire_len: *len as u32 + 5, ts: Nanos(ts), link: LinkType::RawIp, tap: TapId(7) };
                history.store(&[frame]);
                let kept = data[..(*len).min(snap_bytes).min(block_bytes - HEAD_BYTES)].to_vec();
                model.store(Kept { ts, wire_len: frame.wire_len, data: kept }, block_bytes, blocks);
                if i == packets.len() / 3 {
                    early = Some((history.head(), model.seq));
                }
            }
            let expected = model.records();
            prop_assert_eq!(read(&history, history.seek(Nanos::ZERO)), expected.clone());

            // Nothing that is wanted is left out by the index, whatever packet it begins with.
            let from = if expected.is_empty() { 0 } else { expected[from.index(expected.len())].1.ts };
            let found = read(&history, history.seek(Nanos(from)));
            prop_assert!(expected.ends_with(&found));
            let left_out = &expected[..expected.len() - found.len()];
            prop_assert!(left_out.iter().all(|(_, kept)| kept.ts < from));

            let found = read(&history, history.locate(seq));
            prop_assert_eq!(found, expected.iter().filter(|(n, _)| *n >= seq).cloned().collect::<Vec<_>>());

            // A cursor that was overtaken knows by how much.
            if let Some((mut cursor, at)) = early {
                let missed = history.rescue(&mut cursor);
                let oldest = expected.first().map_or(0, |(n, _)| *n);
                prop_assert_eq!(missed, oldest.saturating_sub(at));
                let rest = read(&history, cursor);
                prop_assert_eq!(rest, expected.iter().filter(|(n, _)| *n >= at).cloned().collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn impossible_times_neither_overflow_nor_hide_others() {
        let mut history = History::new(1024, 256, 100).unwrap();
        let frame = |ts| Frame { data: &[1; 20], wire_len: 20, ts, link: LinkType::Ethernet, tap: TapId(0) };
        history.store(&[frame(Nanos(5)), frame(Nanos::MAX), frame(Nanos(6)), frame(Nanos(7))]);
        let mut cursor = history.seek(Nanos(6));
        let mut times = Vec::new();
        while let Some(frame) = history.next(&mut cursor) {
            times.push(frame.ts.0);
        }
        assert_eq!(times, [5, u64::MAX, 6, 7]);
        assert_eq!(cursor.clock, CLOCK_MAX);
    }

    #[test]
    fn more_memory_than_there_is_is_refused() {
        assert!(History::new(usize::MAX / 2 + 1, 1 << 18, 1500).is_err());
    }
}
