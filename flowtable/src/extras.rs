//! What only some flows have: texts (names, fingerprints), round-trip times beyond the handshake, and gaps in what was seen of
//! their streams. Entries of an arena beside the slab, so that a flow without them costs nothing. Fixed memory; what finds no
//! room is not kept, and counted.

use crate::record::RttLife;
use crate::state::NO_EXTRA;
use hints::{Hint, TEXT_MAX, TextLens};
use std::collections::TryReserveError;

/// Most bytes of text that a flow can have.
pub(crate) const TEXTS_MAX: usize = 4 * TEXT_MAX;
/// Bytes of text in a block.
const BLOCK_TEXT: usize = 60;
/// End of a list.
const NONE: u32 = NO_EXTRA;

/// Upper bounds of all buckets but the last, µs: each four times the one before, so that the middle of a bucket, taken
/// geometrically, is within a factor of two of all in it.
const BUCKETS_US: [u32; 9] = [16, 64, 256, 1024, 4096, 16_384, 65_536, 262_144, 1_048_576];

/// Round trips of one half of the path.
#[derive(Clone, Copy, Default)]
struct Life {
    min_us: u32,
    max_us: u32,
    mean_us: f32,
    /// Samples, at most 65,535: from there on the mean follows the latest ones.
    count: u16,
    /// Samples by bucket; all are halved before one would overflow, which keeps the proportions.
    buckets: [u8; BUCKETS_US.len() + 1],
}

const _: () = assert!(size_of::<Life>() == 24);

impl Life {
    fn add(&mut self, us: u32) {
        self.min_us = if self.count == 0 { us } else { self.min_us.min(us) };
        self.max_us = self.max_us.max(us);
        self.count = self.count.saturating_add(1);
        self.mean_us += (us as f32 - self.mean_us) / f32::from(self.count);
        let bucket = BUCKETS_US.iter().take_while(|bound| us >= **bound).count();
        if self.buckets[bucket] == u8::MAX {
            self.buckets.iter_mut().for_each(|n| *n /= 2);
        }
        self.buckets[bucket] += 1;
    }

    fn summary(&self) -> Option<RttLife> {
        if self.count == 0 {
            return None;
        }
        let (min_us, max_us) = (self.min_us, self.max_us);
        let mean_us = (self.mean_us.round() as u32).clamp(min_us, max_us);
        Some(RttLife { min_us, mean_us, max_us, median_us: self.median_us().clamp(min_us, max_us) })
    }

    /// The geometric middle of the bucket that holds the median.
    fn median_us(&self) -> u32 {
        let total: u32 = self.buckets.iter().map(|n| u32::from(*n)).sum();
        let mut left = total.div_ceil(2);
        for (bucket, n) in self.buckets.iter().enumerate() {
            match left.checked_sub(u32::from(*n)) {
                Some(rest) if rest > 0 => left = rest,
                _ => return BUCKETS_US.get(bucket).map_or(2 * BUCKETS_US[BUCKETS_US.len() - 1], |bound| bound / 2),
            }
        }
        0
    }
}

/// What one flow has: a cache line.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Extra {
    /// By who sent the data: 0 the originator, whose data measures the way to the responder.
    life: [Life; 2],
    text: TextLens,
    /// First block of text; of a free entry the next free one.
    blocks: u32,
    /// Entry with its gaps.
    gaps: u32,
}

/// Gaps that are known of each side. With more, the lowest is forgotten: what has been missing longest was likely never there to be
/// seen.
const GAPS_MAX: usize = 15;

/// What was not seen of a TCP stream of either side, below what was seen of it, as `first..end` in sequence numbers, ascending.
#[derive(Clone, Copy)]
struct Gaps {
    ranges: [[(u32, u32); GAPS_MAX]; 2],
    counts: [u8; 2],
    /// Of a free entry, the next free one.
    next: u32,
}

impl Gaps {
    const NONE: Gaps = Gaps { ranges: [[(0, 0); GAPS_MAX]; 2], counts: [0; 2], next: NONE };

    /// Puts a gap before that at `at`; gives where it is now.
    fn insert(&mut self, side: usize, at: usize, range: (u32, u32)) -> usize {
        let (ranges, count) = (&mut self.ranges[side], &mut self.counts[side]);
        let mut at = at;
        if usize::from(*count) < GAPS_MAX {
            *count += 1;
        } else if at == 0 {
            return at;
        } else {
            ranges.copy_within(1.., 0);
            at -= 1;
        }
        ranges.copy_within(at..GAPS_MAX - 1, at + 1);
        ranges[at] = range;
        at
    }

    /// What lies in gaps of `len` bytes from `seq` on; from now on it does not.
    fn fill(&mut self, side: usize, seq: u32, len: u32) -> u32 {
        let (mut filled, mut at) = (0, 0);
        while at < usize::from(self.counts[side]) {
            let (first, end) = self.ranges[side][at];
            // Distances from `seq`: gaps lie within half the sequence space of it (RFC 9293 section 3.4).
            let (low, high) = (i64::from(first.wrapping_sub(seq) as i32), i64::from(end.wrapping_sub(seq) as i32));
            let (from, until) = (low.max(0), high.min(i64::from(len)));
            if from < until {
                filled += (until - from) as u32;
                match (low < from, until < high) {
                    (true, true) => {
                        self.ranges[side][at].0 = seq.wrapping_add(until as u32);
                        at = self.insert(side, at, (first, seq.wrapping_add(from as u32))) + 1;
                    }
                    (true, false) => self.ranges[side][at].1 = seq.wrapping_add(from as u32),
                    (false, true) => self.ranges[side][at].0 = seq.wrapping_add(until as u32),
                    (false, false) => {
                        self.ranges[side].copy_within(at + 1.., at);
                        self.counts[side] -= 1;
                        continue;
                    }
                }
            }
            at += 1;
        }
        filled
    }
}

#[derive(Clone, Copy)]
struct Block {
    text: [u8; BLOCK_TEXT],
    next: u32,
}

const _: () = assert!(size_of::<Extra>() == 64 && size_of::<Gaps>() == 248 && size_of::<Block>() == 64);

/// A slab with a list of free slots through the slots themselves. Never reallocated.
struct Slab<T> {
    slots: Vec<T>,
    max: usize,
    free: u32,
}

impl<T: Copy> Slab<T> {
    fn new(max: usize) -> Result<Slab<T>, TryReserveError> {
        Ok(Slab { slots: memory::reserve(max)?, max, free: NONE })
    }

    /// A slot that holds `value`, or `None` where there is none. `next` reads the list in a free slot.
    fn take(&mut self, value: T, next: impl Fn(&T) -> u32) -> Option<u32> {
        if let Some(slot) = self.slots.get_mut(self.free as usize) {
            let at = self.free;
            self.free = next(slot);
            *slot = value;
            Some(at)
        } else if self.slots.len() < self.max {
            self.slots.push(value);
            Some((self.slots.len() - 1) as u32)
        } else {
            None
        }
    }
}

pub(crate) struct Extras {
    extras: Slab<Extra>,
    blocks: Slab<Block>,
    gaps: Slab<Gaps>,
    /// Round trips, hints and gaps that found no room.
    refused: u64,
}

impl Extras {
    pub(crate) fn new(bytes_max: usize) -> Result<Extras, TryReserveError> {
        let sixteenths = |n: usize, size: usize| (bytes_max / 16 * n / size).min(NONE as usize);
        let (extras, blocks) =
            (Slab::new(sixteenths(7, size_of::<Extra>()))?, Slab::new(sixteenths(7, size_of::<Block>()))?);
        Ok(Extras { extras, blocks, gaps: Slab::new(sixteenths(2, size_of::<Gaps>()))?, refused: 0 })
    }

    /// Round trips, hints and gaps that found no room so far.
    pub(crate) fn refused(&self) -> u64 {
        self.refused
    }

    /// Bytes this may come to hold.
    pub(crate) fn memory_bytes(&self) -> usize {
        self.extras.max * size_of::<Extra>() + self.blocks.max * size_of::<Block>() + self.gaps.max * size_of::<Gaps>()
    }

    fn entry(&mut self, handle: &mut u32) -> Option<&mut Extra> {
        if *handle == NONE {
            let fresh = Extra { life: [Life::default(); 2], text: TextLens::default(), blocks: NONE, gaps: NONE };
            match self.extras.take(fresh, |free| free.blocks) {
                Some(at) => *handle = at,
                None => {
                    self.refused += 1;
                    return None;
                }
            }
        }
        self.extras.slots.get_mut(*handle as usize)
    }

    /// Asks the cache for an entry.
    #[inline]
    pub(crate) fn prefetch(&self, handle: u32) {
        if let Some(extra) = self.extras.slots.get(handle as usize) {
            memory::prefetch(extra);
        }
    }

    /// Counts a round trip of data sent by `sender` (0 the originator).
    #[inline(never)]
    pub(crate) fn round_trip(&mut self, handle: &mut u32, sender: usize, us: u32) {
        if let Some(extra) = self.entry(handle) {
            extra.life[sender].add(us);
        }
    }

    /// Bytes `first` to before `end` of a side's stream were not seen; what follows them was.
    #[cold]
    pub(crate) fn open_gap(&mut self, handle: &mut u32, side: usize, first: u32, end: u32) {
        let Some(Extra { gaps, .. }) = self.entry(handle) else { return };
        let mut at = *gaps;
        if at == NONE {
            let Some(fresh) = self.gaps.take(Gaps::NONE, |free| free.next) else {
                self.refused += 1;
                return;
            };
            at = fresh;
            self.extras.slots[*handle as usize].gaps = at;
        }
        let gaps = &mut self.gaps.slots[at as usize];
        // Sequence numbers come again after 4 GiB.
        while gaps.counts[side] > 0 && (end.wrapping_sub(gaps.ranges[side][0].0) as i32) < 0 {
            gaps.ranges[side].copy_within(1.., 0);
            gaps.counts[side] -= 1;
        }
        gaps.insert(side, usize::from(gaps.counts[side]), (first, end));
    }

    /// How many of `len` bytes from `seq` on of a side's stream had not been seen, though bytes behind them had.
    #[cold]
    pub(crate) fn fill_gaps(&mut self, handle: u32, side: usize, seq: u32, len: u32) -> u32 {
        let Some(extra) = self.extras.slots.get_mut(handle as usize) else { return 0 };
        let Some(gaps) = self.gaps.slots.get_mut(extra.gaps as usize) else { return 0 };
        let filled = gaps.fill(side, seq, len);
        if gaps.counts == [0; 2] {
            self.forget_gaps(handle);
        }
        filled
    }

    /// Bytes of a side's stream that are in gaps.
    pub(crate) fn missing(&self, handle: u32, side: usize) -> u64 {
        let gaps = self.extras.slots.get(handle as usize).and_then(|extra| self.gaps.slots.get(extra.gaps as usize));
        let ranges = gaps.map_or(&[][..], |gaps| &gaps.ranges[side][..usize::from(gaps.counts[side])]);
        ranges.iter().map(|(first, end)| u64::from(end.wrapping_sub(*first))).sum()
    }

    /// What was not seen before does not count any more.
    pub(crate) fn forget_gaps(&mut self, handle: u32) {
        let Some(extra) = self.extras.slots.get_mut(handle as usize) else { return };
        let at = std::mem::replace(&mut extra.gaps, NONE);
        if let Some(gaps) = self.gaps.slots.get_mut(at as usize) {
            gaps.next = std::mem::replace(&mut self.gaps.free, at);
        }
    }

    /// Keeps the texts of a hint; one that is empty leaves what the flow had. What finds no room is left out as a whole.
    #[cold]
    pub(crate) fn add_texts(&mut self, handle: &mut u32, hint: &Hint<'_>) {
        let mut texts = [hint.name, hint.alpn, hint.agent, hint.ja4].map(cut);
        if texts.iter().all(|text| text.is_empty()) {
            return;
        }
        let mut before = [0; TEXTS_MAX];
        let (_, lens, mut rest) = self.read(*handle, &mut before);
        for (text, len) in texts.iter_mut().zip([lens.name, lens.alpn, lens.agent, lens.ja4]) {
            let (old, later) = rest.split_at(usize::from(len));
            rest = later;
            if text.is_empty() {
                *text = old;
            }
        }
        let Some(extra) = self.entry(handle) else { return };
        let old = std::mem::replace(&mut extra.blocks, NONE);
        extra.text = TextLens::default();
        self.free_blocks(old);
        match self.store(&texts) {
            Some(first) => {
                let [name, alpn, agent, ja4] = texts.map(|t| t.len() as u8);
                let extra = &mut self.extras.slots[*handle as usize];
                extra.blocks = first;
                extra.text = TextLens { name, alpn, agent, ja4 };
            }
            None => self.refused += 1,
        }
    }

    /// Texts one after the other in a chain of blocks.
    fn store(&mut self, texts: &[&[u8]; 4]) -> Option<u32> {
        let mut bytes = texts.iter().copied().flatten().copied();
        let (mut first, mut last) = (NONE, NONE);
        let mut left: usize = texts.iter().map(|t| t.len()).sum();
        while left > 0 {
            let mut block = Block { text: [0; BLOCK_TEXT], next: NONE };
            let len = left.min(BLOCK_TEXT);
            block.text.iter_mut().zip(bytes.by_ref().take(len)).for_each(|(to, from)| *to = from);
            left -= len;
            let Some(at) = self.blocks.take(block, |free| free.next) else {
                self.free_blocks(first);
                return None;
            };
            match self.blocks.slots.get_mut(last as usize) {
                Some(last) => last.next = at,
                None => first = at,
            }
            last = at;
        }
        Some(first)
    }

    fn free_blocks(&mut self, mut at: u32) {
        while let Some(block) = self.blocks.slots.get_mut(at as usize) {
            let next = std::mem::replace(&mut block.next, self.blocks.free);
            self.blocks.free = at;
            at = next;
        }
    }

    /// Round trips of the part so far, by who sent the data, and the texts, written to `out`.
    pub(crate) fn read<'a>(
        &self,
        handle: u32,
        out: &'a mut [u8; TEXTS_MAX],
    ) -> ([Option<RttLife>; 2], TextLens, &'a [u8]) {
        let Some(extra) = self.extras.slots.get(handle as usize) else {
            return ([None; 2], TextLens::default(), &[]);
        };
        let total = extra.text.total();
        let (mut at, mut written) = (extra.blocks, 0);
        while written < total
            && let Some(block) = self.blocks.slots.get(at as usize)
        {
            let len = BLOCK_TEXT.min(total - written);
            out[written..written + len].copy_from_slice(&block.text[..len]);
            written += len;
            at = block.next;
        }
        (extra.life.map(|life| life.summary()), extra.text, &out[..written])
    }

    /// The next part of the flow begins: round trips are counted anew, texts stay.
    pub(crate) fn next_part(&mut self, handle: u32) {
        if let Some(extra) = self.extras.slots.get_mut(handle as usize) {
            extra.life = [Life::default(); 2];
        }
    }

    /// The flow has ended.
    pub(crate) fn release(&mut self, handle: u32) {
        self.forget_gaps(handle);
        let free = self.extras.free;
        if let Some(extra) = self.extras.slots.get_mut(handle as usize) {
            let blocks = std::mem::replace(&mut extra.blocks, free);
            self.extras.free = handle;
            self.free_blocks(blocks);
        }
    }
}

/// At most [`TEXT_MAX`] bytes of a text, cut at a character.
fn cut(text: &str) -> &[u8] {
    &text.as_bytes()[..text.floor_char_boundary(TEXT_MAX)]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(extras: &Extras, handle: u32) -> (TextLens, String) {
        let mut out = [0; TEXTS_MAX];
        let (_, lens, bytes) = extras.read(handle, &mut out);
        (lens, String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn texts_come_back_as_they_were_and_leave_no_block_behind() {
        let mut extras = Extras::new(64 * 2 * 40).expect("memory");
        let long = "x".repeat(TEXT_MAX + 9);
        let mut handles = [NONE; 3];
        for round in 0..100 {
            for (i, handle) in handles.iter_mut().enumerate() {
                let name = format!("host{round}-{i}.example");
                extras.add_texts(handle, &Hint { name: &name, agent: &long, ja4: "t13d", ..Hint::default() });
                let (lens, all) = texts(&extras, *handle);
                assert_eq!(all, format!("{name}{}t13d", "x".repeat(TEXT_MAX)));
                assert_eq!((lens.alpn, lens.agent, lens.ja4), (0, 255, 4));
            }
            extras.release(std::mem::replace(&mut handles[round % 3], NONE));
        }
        assert_eq!(extras.refused(), 0);
        assert!(extras.blocks.slots.len() <= 3 * 6, "{} blocks for three flows", extras.blocks.slots.len());
    }

    #[test]
    fn what_finds_no_room_is_counted_and_costs_nobody_else_anything() {
        let mut extras = Extras::new(64 * 2 * 2).expect("memory");
        let (mut a, mut b, mut c) = (NONE, NONE, NONE);
        extras.add_texts(&mut a, &Hint { name: "a.example", ..Hint::default() });
        let long = "y".repeat(200);
        extras.add_texts(&mut b, &Hint { name: &long, ..Hint::default() });
        assert_eq!((texts(&extras, a).1.as_str(), texts(&extras, b).1.as_str()), ("a.example", ""));
        extras.round_trip(&mut c, 0, 5);
        assert_eq!((extras.refused(), c), (2, NONE));
        extras.release(a);
        extras.round_trip(&mut c, 0, 5);
        assert_eq!((extras.refused(), c), (2, a));
    }

    #[test]
    fn round_trips_are_summed_up_within_their_bounds() {
        let mut extras = Extras::new(1 << 12).expect("memory");
        let mut handle = NONE;
        for us in 1..=1000u32 {
            extras.round_trip(&mut handle, 0, us * 10);
        }
        let ([srv, cli], ..) = extras.read(handle, &mut [0; TEXTS_MAX]);
        let srv = srv.unwrap();
        assert_eq!((srv.min_us, srv.max_us, cli), (10, 10_000, None));
        assert!(srv.mean_us.abs_diff(5005) <= 2, "{}", srv.mean_us);
        assert!((2500..=10_000).contains(&srv.median_us), "{}", srv.median_us);
        extras.next_part(handle);
        assert_eq!(extras.read(handle, &mut [0; TEXTS_MAX]).0, [None; 2]);
    }

    #[test]
    fn a_later_hint_adds_to_an_earlier_one() {
        let (mut extras, mut handle) = (Extras::new(1 << 12).expect("memory"), NONE);
        extras.add_texts(&mut handle, &Hint { name: "a.example", agent: "curl", ..Hint::default() });
        extras.add_texts(&mut handle, &Hint { name: "b.example", alpn: "h2", ..Hint::default() });
        let (lens, all) = texts(&extras, handle);
        assert_eq!((all.as_str(), lens.name, lens.alpn, lens.agent), ("b.exampleh2curl", 9, 2, 4));
    }

    #[test]
    fn text_is_cut_at_a_character() {
        let text = format!("{}é", "a".repeat(254));
        assert_eq!(cut(&text).len(), 254);
    }
}
