//! Streams in pieces: what a ClientHello, an HTTP request or a DNS message over TCP is put together from, and the
//! CRYPTO frames of QUIC. A fixed number of buffers of a fixed size.

use crate::{InspectCounts, InspectLimits};
use memory::{Expiring, Slot};
use std::ops::Range;
use wire::Nanos;

/// Pieces that do not touch each other; clients that scatter CRYPTO frames on purpose send some twenty.
const RANGES_MAX: usize = 32;

/// Which stream is put together.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash, Debug)]
pub(crate) struct StreamKey {
    pub(crate) flow_id: u64,
    pub(crate) from_originator: bool,
}

/// Initial secrets of a QUIC connection, as far as they decrypt the client.
#[derive(Clone, Copy, Default)]
pub(crate) struct QuicKeys {
    pub(crate) key: [u8; 16],
    pub(crate) iv: [u8; 12],
    pub(crate) hp: [u8; 16],
}

/// What is known of one stream.
pub(crate) struct Assembly {
    /// Sequence number of the first byte (TCP).
    base: u32,
    /// Segments or datagrams taken.
    segments: u8,
    /// What is there: `start..end`, ascending, no two touching.
    ranges: [(u16, u16); RANGES_MAX],
    ranges_count: u8,
    pub(crate) quic: QuicKeys,
}

impl Assembly {
    fn new() -> Assembly {
        let quic = QuicKeys::default();
        Assembly { base: 0, segments: 0, ranges: [(0, 0); RANGES_MAX], ranges_count: 0, quic }
    }

    /// Bytes from the start without a gap.
    fn contiguous(&self) -> usize {
        match self.ranges[0] {
            (0, end) if self.ranges_count > 0 => usize::from(end),
            _ => 0,
        }
    }

    /// Whether all of `start..end` is there.
    fn has(&self, start: u16, end: u16) -> bool {
        self.ranges[..usize::from(self.ranges_count)].iter().any(|(s, e)| *s <= start && end <= *e)
    }

    /// Marks `start..end` as there; false where there are too many ranges.
    fn mark(&mut self, start: u16, end: u16) -> bool {
        let ranges = &self.ranges[..usize::from(self.ranges_count)];
        let first = ranges.partition_point(|(_, e)| *e < start);
        let last = ranges.partition_point(|(s, _)| *s <= end);
        if first == last {
            if ranges.len() == RANGES_MAX {
                return false;
            }
            self.ranges.copy_within(first..RANGES_MAX - 1, first + 1);
            self.ranges[first] = (start, end);
            self.ranges_count += 1;
        } else {
            let merged = (start.min(ranges[first].0), end.max(ranges[last - 1].1));
            self.ranges[first] = merged;
            self.ranges.copy_within(last.., first + 1);
            self.ranges_count -= (last - first - 1) as u8;
        }
        true
    }
}

/// What became of a piece.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Added {
    /// There is more than before from the start on.
    Grown,
    /// It lies behind a gap.
    Ahead,
    /// It was there already.
    Same,
    /// The stream outgrew its buffer or its segments.
    Oversized,
}

pub(crate) struct Assemblies {
    table: Expiring<StreamKey, Assembly>,
    bytes: Vec<u8>,
    bytes_each: usize,
    segments_max: u8,
    timeout: Nanos,
}

impl Assemblies {
    pub(crate) fn new(limits: &InspectLimits) -> Assemblies {
        Assemblies {
            table: Expiring::new(limits.assemblies_max, Assembly::new),
            bytes: vec![0; limits.assemblies_max * limits.assembly_bytes_max],
            bytes_each: limits.assembly_bytes_max,
            segments_max: limits.assembly_segments_max,
            timeout: limits.assembly_timeout,
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.table.memory_bytes() + self.bytes.capacity()
    }

    pub(crate) fn find(&self, key: StreamKey) -> Option<Slot> {
        self.table.find(&key)
    }

    /// An empty stream, in place of the oldest where none is free.
    pub(crate) fn begin(&mut self, key: StreamKey, base: u32, now: Nanos, counts: &mut InspectCounts) -> Option<Slot> {
        if let Some(slot) = self.table.find(&key) {
            self.table.remove(slot);
        } else if self.table.is_full() {
            counts.assemblies_evicted += 1;
            self.table.remove(self.table.oldest()?);
        }
        let slot = self.table.insert(key, now.0)?;
        counts.assemblies += 1;
        let assembly = self.table.value_mut(slot);
        (assembly.base, assembly.segments, assembly.ranges_count) = (base, 0, 0);
        Some(slot)
    }

    pub(crate) fn end(&mut self, slot: Slot) {
        self.table.remove(slot);
    }

    pub(crate) fn assembly_mut(&mut self, slot: Slot) -> &mut Assembly {
        self.table.value_mut(slot)
    }

    pub(crate) fn quic_keys(&self, slot: Slot) -> QuicKeys {
        self.table.value(slot).quic
    }

    /// Where in [`bytes_mut`](Assemblies::bytes_mut) that lies which is there from the start without a gap.
    pub(crate) fn contiguous_range(&self, slot: Slot) -> Range<usize> {
        let start = slot.index() * self.bytes_each;
        start..start + self.table.value(slot).contiguous()
    }

    /// All buffers, for a reader that needs one while everything else is written. They have to be put back.
    pub(crate) fn bytes_mut(&mut self) -> &mut Vec<u8> {
        &mut self.bytes
    }

    /// One more segment or datagram belongs to the stream; false where it has had all it may.
    pub(crate) fn count_segment(&mut self, slot: Slot) -> bool {
        let assembly = self.table.value_mut(slot);
        let fits = assembly.segments < self.segments_max;
        assembly.segments += u8::from(fits);
        fits
    }

    /// A TCP segment at its sequence number.
    pub(crate) fn add_segment(&mut self, slot: Slot, seq: u32, bytes: &[u8]) -> Added {
        let base = self.table.value(slot).base;
        // Distances beyond half the sequence space lie before the start (RFC 9293 section 3.4).
        let distance = seq.wrapping_sub(base);
        let (offset, bytes) = match distance as i32 {
            0.. => (distance as usize, bytes),
            before => match bytes.get(before.unsigned_abs() as usize..) {
                Some(rest) => (0, rest),
                None => return Added::Same,
            },
        };
        self.add(slot, offset, bytes)
    }

    /// Bytes at their place in the stream. What is there from the start on is not written again.
    pub(crate) fn add(&mut self, slot: Slot, offset: usize, bytes: &[u8]) -> Added {
        let assembly = self.table.value_mut(slot);
        let contiguous = assembly.contiguous();
        if bytes.len() <= contiguous.saturating_sub(offset) {
            return Added::Same;
        }
        let end = offset.saturating_add(bytes.len());
        if offset >= self.bytes_each {
            return Added::Oversized;
        }
        let fits = end.min(self.bytes_each);
        let known = contiguous.saturating_sub(offset);
        let (from, buffer) = (offset + known, slot.index() * self.bytes_each);
        if end <= self.bytes_each && assembly.has(from as u16, end as u16) {
            return Added::Same;
        }
        if from < fits {
            self.bytes[buffer + from..buffer + fits].copy_from_slice(&bytes[known..fits - offset]);
            if !assembly.mark(from as u16, fits as u16) {
                return Added::Oversized;
            }
        }
        if end > self.bytes_each {
            Added::Oversized
        } else if assembly.contiguous() > contiguous {
            Added::Grown
        } else {
            Added::Ahead
        }
    }

    /// Drops `len` bytes of what is there from the start: the stream now begins behind them.
    pub(crate) fn consume(&mut self, slot: Slot, len: usize) {
        let assembly = self.table.value_mut(slot);
        debug_assert!(len <= assembly.contiguous());
        let end = assembly.ranges[..usize::from(assembly.ranges_count)].last().map_or(0, |(_, end)| usize::from(*end));
        let start = slot.index() * self.bytes_each;
        self.bytes.copy_within(start + len..start + end, start);
        let old = std::mem::replace(&mut assembly.ranges_count, 0);
        for at in 0..usize::from(old) {
            let (s, e) = assembly.ranges[at];
            if usize::from(e) > len {
                assembly.ranges[usize::from(assembly.ranges_count)] = (s.saturating_sub(len as u16), e - len as u16);
                assembly.ranges_count += 1;
            }
        }
        assembly.base = assembly.base.wrapping_add(len as u32);
        // What was consumed was useful: the bound is on what is not.
        assembly.segments = 0;
    }

    /// Nothing is kept of the stream, complete or not.
    pub(crate) fn is_empty(&self, slot: Slot) -> bool {
        self.table.value(slot).ranges_count == 0
    }

    /// Lets go of what is too old.
    #[inline]
    pub(crate) fn expire(&mut self, clock: Nanos, counts: &mut InspectCounts) {
        if clock < self.timeout {
            return;
        }
        while let Some(slot) = self.table.expired((clock - self.timeout).0) {
            self.table.remove(slot);
            counts.assemblies_expired += 1;
        }
    }

    /// Lets go of both streams of a flow.
    pub(crate) fn flow_ended(&mut self, flow_id: u64, counts: &mut InspectCounts) {
        if self.table.oldest().is_none() {
            return;
        }
        for from_originator in [false, true] {
            if let Some(slot) = self.table.find(&StreamKey { flow_id, from_originator }) {
                self.table.remove(slot);
                counts.assemblies_expired += 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    impl Assemblies {
        fn contiguous(&self, slot: Slot) -> &[u8] {
            &self.bytes[self.contiguous_range(slot)]
        }
    }

    fn limits() -> InspectLimits {
        InspectLimits { assemblies_max: 2, assembly_bytes_max: 200, ..InspectLimits::default() }
    }

    const KEY: StreamKey = StreamKey { flow_id: 1, from_originator: true };

    proptest! {
        #[test]
        fn any_order_of_overlapping_pieces_gives_the_stream(
            pieces in prop::collection::vec((0..200usize, 1..60usize), 1..60),
            base in any::<u32>(),
        ) {
            let stream: Vec<u8> = (0..200).map(|i| i as u8 ^ 0x5a).collect();
            let mut counts = InspectCounts::default();
            let mut all = Assemblies::new(&limits());
            let slot = all.begin(KEY, base, Nanos::ZERO, &mut counts).unwrap();
            let mut there = [false; 200];
            for (start, len) in pieces {
                let end = (start + len).min(200);
                let before = all.contiguous(slot).len();
                let added = all.add_segment(slot, base.wrapping_add(start as u32), &stream[start..end]);
                let is_known = there[start..end].iter().all(|there| *there);
                prop_assert_eq!(added == Added::Same, is_known);
                there[start..end].fill(true);
                let contiguous = there.iter().take_while(|t| **t).count();
                prop_assert_eq!(added == Added::Grown, contiguous > before);
                prop_assert_eq!(all.contiguous(slot), &stream[..contiguous]);
            }
            let contiguous = all.contiguous(slot).len();
            let half = contiguous / 2;
            all.consume(slot, half);
            prop_assert_eq!(all.contiguous(slot), &stream[half..contiguous]);
            prop_assert_eq!(all.is_empty(slot), there.iter().skip(half).all(|t| !t));
        }
    }

    #[test]
    fn pieces_before_the_start_and_beyond_the_end() {
        let mut counts = InspectCounts::default();
        let mut all = Assemblies::new(&limits());
        let slot = all.begin(KEY, 5, Nanos::ZERO, &mut counts).unwrap();
        assert_eq!(all.add_segment(slot, u32::MAX, &[0; 4]), Added::Same);
        assert_eq!(all.add_segment(slot, 3, &[8, 9, 1, 2]), Added::Grown);
        assert_eq!(all.contiguous(slot), [1, 2]);
        assert_eq!(all.add_segment(slot, 3, &[8, 9, 1, 2]), Added::Same);
        assert_eq!(all.add_segment(slot, 6, &[7; 200]), Added::Oversized);
        assert_eq!(all.contiguous(slot).len(), 200);
        assert_eq!(all.contiguous(slot)[..3], [1, 2, 7]);
        assert_eq!(all.add_segment(slot, 205, &[7]), Added::Oversized);
    }

    #[test]
    fn too_many_gaps_are_refused() {
        let mut counts = InspectCounts::default();
        let mut all = Assemblies::new(&limits());
        let slot = all.begin(KEY, 0, Nanos::ZERO, &mut counts).unwrap();
        for gap in 0..RANGES_MAX {
            assert_eq!(all.add(slot, 2 * gap + 1, &[1]), Added::Ahead);
            assert_eq!(all.add(slot, 2 * gap + 1, &[1]), Added::Same);
        }
        assert_eq!(all.add(slot, 2 * RANGES_MAX + 1, &[1]), Added::Oversized);
        // A piece that closes gaps is still welcome.
        assert_eq!(all.add(slot, 0, &[1; 60]), Added::Grown);
    }

    #[test]
    fn the_oldest_goes_first_and_old_ones_by_time() {
        let mut counts = InspectCounts::default();
        let mut all = Assemblies::new(&limits());
        let key = |flow_id| StreamKey { flow_id, from_originator: false };
        for flow in 1..=3 {
            all.begin(key(flow), 0, Nanos::from_secs(flow), &mut counts);
        }
        assert_eq!(counts.assemblies_evicted, 1);
        assert_eq!(all.find(key(1)), None);
        all.expire(Nanos::from_secs(12), &mut counts);
        assert!(all.find(key(2)).is_none() && all.find(key(3)).is_some());
        all.flow_ended(3, &mut counts);
        assert_eq!((all.find(key(3)), counts.assemblies_expired), (None, 2));
    }
}
