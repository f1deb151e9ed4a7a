//! Later fragments of a datagram carry no ports: which flow they belong to is known from the first one.
//!
//! Nothing is reassembled and no packet is held back. A first fragment leaves its ports in a table of fixed size; later
//! ones take them from there. A later fragment whose first one was not seen before it counts in a flow with ports 0.

use crate::hash::KeyHasher;
use memory::Expiring;
use wire::{Direction, FlowKey, Nanos, PacketMeta};

/// Packet time after its first fragment at which a datagram is over, complete or not (Linux: `ipfrag_time`, 30 s).
const TIMEOUT: Nanos = Nanos::from_secs(30);

/// A datagram of which a first fragment was seen.
#[derive(Clone, Copy, Default)]
struct Datagram {
    src_port: u16,
    dst_port: u16,
    /// The transport's, which later fragments may not say.
    proto: u8,
    /// Payload of the first fragment, bytes, its transport header not counted: what later ones start behind.
    first: u32,
    /// Where the later fragments seen begin and end, in bytes from the start of the datagram.
    range: (u32, u32),
    /// Bytes of the later fragments together: more than the range where some overlap.
    bytes: u32,
    overlaps: bool,
}

/// What became of fragments so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentCounts {
    /// First fragments.
    pub first: u64,
    /// Later fragments that went to the flow of their first one.
    pub assigned: u64,
    /// Later fragments whose first one was not seen, or not before them: they count in flows with ports 0.
    pub unassigned: u64,
    /// Datagrams with fragments that overlap, as only attacks and broken stacks send them.
    pub overlapping: u64,
    /// Datagrams that were forgotten before their time because too many were in progress.
    pub evicted: u64,
}

/// Remembers the ports of fragmented datagrams. Memory is bounded from the start: 64 to 80 bytes a datagram.
pub struct FragmentCache {
    hasher: KeyHasher,
    /// By a keyed hash of what its fragments share, which stands for that.
    datagrams: Expiring<u64, Datagram>,
    counts: FragmentCounts,
}

impl FragmentCache {
    /// For so many datagrams in progress, 1 to 2^24.
    pub fn new(datagrams_max: u32) -> FragmentCache {
        FragmentCache {
            hasher: KeyHasher::new(),
            datagrams: Expiring::new(datagrams_max.clamp(1, 1 << 24) as usize, Datagram::default),
            counts: FragmentCounts::default(),
        }
    }

    /// What was done so far.
    pub fn counts(&self) -> FragmentCounts {
        self.counts
    }

    /// Takes a fragment into account (`fragment.fragment` is set); a later one gets ports and protocol of its first one. Clocks
    /// never decrease.
    #[cold]
    pub fn assign(&mut self, fragment: &mut PacketMeta) {
        self.expire(fragment.clock);
        let hash = self.hash(fragment);
        let known = self.datagrams.find(&hash);
        if fragment.fragment_offset == 0 {
            self.counts.first += 1;
            match known {
                // A packet seen twice, or another datagram under the same number.
                Some(slot) => self.datagrams.remove(slot),
                None if self.datagrams.is_full() => {
                    self.counts.evicted += 1;
                    if let Some(oldest) = self.datagrams.oldest() {
                        self.datagrams.remove(oldest);
                    }
                }
                None => {}
            }
            if let Some(slot) = self.datagrams.insert(hash, fragment.clock.0) {
                let (src_port, dst_port) = ports(fragment);
                let (first, range) = (fragment.payload_len, (u32::MAX, 0));
                *self.datagrams.value_mut(slot) =
                    Datagram { src_port, dst_port, proto: fragment.key.proto, first, range, bytes: 0, overlaps: false };
            }
            return;
        }
        match known {
            Some(slot) => {
                let datagram = self.datagrams.value_mut(slot);
                self.counts.assigned += 1;
                self.counts.overlapping += u64::from(datagram.add(fragment));
                fragment.key.proto = datagram.proto;
                set_ports(fragment, datagram.src_port, datagram.dst_port);
            }
            None => self.counts.unassigned += 1,
        }
    }

    /// Forgets what has taken too long.
    fn expire(&mut self, clock: Nanos) {
        if clock < TIMEOUT {
            return;
        }
        while let Some(slot) = self.datagrams.expired((clock - TIMEOUT).0) {
            self.datagrams.remove(slot);
        }
    }

    fn hash(&self, fragment: &PacketMeta) -> u64 {
        let k = fragment.key;
        // The direction is part of it, since each side numbers its own datagrams. So is the number, and the protocol where that is
        // a matter of the datagram: what is in the key may be that of a header which only the first fragment has.
        let (lo, hi) = match fragment.direction {
            Direction::LoToHi => (k.lo, k.hi),
            Direction::HiToLo => (k.hi, k.lo),
        };
        let (lo_port, hi_port) = ((fragment.fragment_id >> 16) as u16, fragment.fragment_id as u16);
        self.hasher.hash(&FlowKey { lo, hi, lo_port, hi_port, proto: fragment.fragment_proto, ..k })
    }
}

impl Datagram {
    /// Takes a later fragment in; says whether the datagram has just turned out to overlap.
    fn add(&mut self, fragment: &PacketMeta) -> bool {
        let from = u32::from(fragment.fragment_offset) * 8;
        let len = fragment.payload_len;
        self.range = (self.range.0.min(from), self.range.1.max(from.saturating_add(len)));
        self.bytes = self.bytes.saturating_add(len);
        let overlaps = from < self.first || self.bytes > self.range.1 - self.range.0;
        overlaps && !std::mem::replace(&mut self.overlaps, true)
    }
}

/// Puts ports into the key of a packet that has none, which may turn the order of its ends.
fn set_ports(p: &mut PacketMeta, src_port: u16, dst_port: u16) {
    let (src, dst) = match p.direction {
        Direction::LoToHi => (p.key.lo, p.key.hi),
        Direction::HiToLo => (p.key.hi, p.key.lo),
    };
    let (lo, hi, direction) = if (src, src_port) <= (dst, dst_port) {
        ((src, src_port), (dst, dst_port), Direction::LoToHi)
    } else {
        ((dst, dst_port), (src, src_port), Direction::HiToLo)
    };
    (p.key.lo, p.key.lo_port) = lo;
    (p.key.hi, p.key.hi_port) = hi;
    p.direction = direction;
}

/// Ports as the packet has them.
fn ports(p: &PacketMeta) -> (u16, u16) {
    match p.direction {
        Direction::LoToHi => (p.key.lo_port, p.key.hi_port),
        Direction::HiToLo => (p.key.hi_port, p.key.lo_port),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{Addr, proto};

    const UDP_HEADER: u32 = 8;

    /// `bytes` of a datagram from `offset` on, as the decoder tells them; the first has ports.
    fn fragment(id: u32, offset: u32, bytes: u32, seconds: u64) -> PacketMeta {
        let mut p = PacketMeta {
            key: FlowKey {
                lo: Addr::v4([10, 0, 0, 9]),
                hi: Addr::v4([10, 0, 0, 9]),
                proto: proto::UDP,
                ..FlowKey::default()
            },
            ts: Nanos::from_secs(seconds),
            clock: Nanos::from_secs(seconds),
            payload_len: if offset == 0 { bytes - UDP_HEADER } else { bytes },
            fragment: true,
            fragment_id: id,
            fragment_proto: proto::UDP,
            fragment_offset: (offset / 8) as u16,
            ..PacketMeta::default()
        };
        if offset == 0 {
            // Equal addresses: the ports alone order the ends.
            set_ports(&mut p, 5000, 53);
        }
        p
    }

    fn run(fragments: &mut [PacketMeta], datagrams_max: u32) -> FragmentCounts {
        let mut cache = FragmentCache::new(datagrams_max);
        fragments.iter_mut().for_each(|p| cache.assign(p));
        cache.counts()
    }

    #[test]
    fn later_fragments_get_the_ports_of_the_first() {
        let mut fragments =
            [(1, 0), (2, 0), (1, 1480), (2, 1480), (1, 2960), (3, 1480)].map(|(id, o)| fragment(id, o, 1480, 0));
        let counts = run(&mut fragments, 64);
        assert_eq!((counts.first, counts.assigned, counts.unassigned, counts.overlapping), (2, 3, 1, 0));
        for p in &fragments[..5] {
            assert_eq!((p.key.lo_port, p.key.hi_port, p.direction), (53, 5000, Direction::HiToLo));
        }
        assert_eq!((fragments[5].key.lo_port, fragments[5].key.hi_port), (0, 0));
    }

    #[test]
    fn a_number_is_forgotten_after_its_time() {
        let mut fragments = [fragment(1, 0, 1480, 0), fragment(1, 1480, 1480, 29), fragment(1, 2960, 1480, 59)];
        let counts = run(&mut fragments, 64);
        assert_eq!((counts.assigned, counts.unassigned), (1, 1), "30 s after the first fragment");
    }

    #[test]
    fn overlaps_are_counted_once_a_datagram() {
        let mut teardrop = [fragment(1, 0, 48, 0), fragment(1, 24, 8, 0), fragment(1, 32, 8, 0)];
        assert_eq!(run(&mut teardrop, 64).overlapping, 1);
        let mut twice = [fragment(1, 0, 48, 0), fragment(1, 48, 48, 0), fragment(1, 48, 48, 0), fragment(1, 72, 48, 0)];
        assert_eq!(run(&mut twice, 64).overlapping, 1);
        let mut backwards = [fragment(1, 0, 48, 0), fragment(1, 96, 48, 0), fragment(1, 48, 48, 0)];
        assert_eq!(run(&mut backwards, 64).overlapping, 0);
    }

    /// What stands in the way of a set of eight: as many as there is room for find each other, in every process.
    #[test]
    fn as_many_as_there_is_room_for_are_remembered() {
        const MAX: u32 = 8192;
        let offsets = [0, 1480].into_iter();
        let mut all: Vec<_> = offsets.flat_map(|at| (0..MAX).map(move |id| fragment(id, at, 1480, 0))).collect();
        let counts = run(&mut all, MAX);
        assert_eq!((counts.assigned, counts.unassigned, counts.evicted), (u64::from(MAX), 0, 0));
    }

    /// IPv6: what a later fragment says of the next header is not what the datagram carries; IPv4 behind an authentication
    /// header likewise. Two datagrams of different IPv4 protocols under one number are two.
    #[test]
    fn the_protocol_is_that_of_the_first_fragment() {
        let later = |proto, fragment_proto| {
            let mut p = fragment(1, 1480, 1480, 0);
            (p.key.proto, p.fragment_proto) = (proto, fragment_proto);
            p
        };
        for of_datagram in [0, proto::AH] {
            let mut fragments = [fragment(1, 0, 1480, 0), later(60, of_datagram)];
            fragments[0].fragment_proto = of_datagram;
            assert_eq!(run(&mut fragments, 64).assigned, 1);
            assert_eq!((fragments[1].key.proto, fragments[1].key.lo_port), (proto::UDP, 53));
        }
        let mut others = [fragment(1, 0, 1480, 0), later(proto::TCP, proto::TCP)];
        assert_eq!(run(&mut others, 64).unassigned, 1);
    }

    #[test]
    fn a_flood_evicts_and_is_counted() {
        let mut flood: Vec<_> = (0..1000).map(|id| fragment(id, 0, 48, 0)).collect();
        let counts = run(&mut flood, 64);
        assert_eq!((counts.first, counts.evicted), (1000, 1000 - 64));
        // What is over is no loss.
        let mut slow: Vec<_> = (0..1000).map(|id| fragment(id, 0, 48, u64::from(id) * 31)).collect();
        assert_eq!(run(&mut slow, 64).evicted, 0);
    }
}
