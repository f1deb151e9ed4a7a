//! Later fragments of a datagram carry no ports: which flow they belong to is known from the first one.
//!
//! Nothing is reassembled. A first fragment leaves its ports in a table of fixed size; later ones take them from there. What was
//! decoded of a later fragment that comes before its first one waits for that for a second; if it does not come, the
//! fragment counts in a flow with ports 0.

use crate::hash::KeyHasher;
use memory::{Expiring, Slot};
use std::hash::{Hash, Hasher};
use wire::{Direction, FlowKey, Nanos, PacketMeta};

/// Packet time after its first fragment at which a datagram is over, complete or not (Linux: `ipfrag_time`, 30 s).
const TIMEOUT: Nanos = Nanos::from_secs(30);
/// Packet time that a later fragment waits for its first one: far more than paths of one route differ by.
const PATIENCE: Nanos = Nanos::from_secs(1);
/// Fragments that may wait.
const WAITING_MAX: u32 = 4096;
/// Fragments of one datagram that may wait: more than 64 KiB make on any usual link. They lie in each other's way.
const ALIKE_MAX: usize = 64;

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

/// Which fragment waits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Waiting {
    datagram: u64,
    /// Of all that ever waited.
    number: u64,
}

impl Hash for Waiting {
    /// Without the number: those of one datagram are found together.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.datagram.hash(state);
    }
}

/// Where a fragment goes.
#[must_use = "a fragment that waits goes nowhere else"]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FragmentPlace {
    /// On, now.
    On,
    /// On, now, and behind it those that [`FragmentCache::released`] gives: they had waited for it.
    Leads,
    /// Nowhere: it waits for its first fragment, and [`FragmentCache::released`] will give it.
    Waits,
}

/// What became of fragments so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentCounts {
    /// First fragments.
    pub first: u64,
    /// Later fragments that went to the flow of their first one.
    pub assigned: u64,
    /// Later fragments whose first one was not seen, or came more than a second behind them, or for which too many waited: they
    /// count in flows with ports 0.
    pub unassigned: u64,
    /// Datagrams with fragments that overlap, as only attacks and broken stacks send them.
    pub overlapping: u64,
    /// Datagrams that were forgotten before their time because too many were in progress.
    pub evicted: u64,
}

/// Remembers the ports of fragmented datagrams. Memory is bounded from the start: 64 to 80 bytes a datagram, and what was decoded of
/// 4,096 fragments that wait.
pub struct FragmentCache {
    hasher: KeyHasher,
    /// By a keyed hash of what its fragments share, which stands for that.
    datagrams: Expiring<u64, Datagram>,
    /// Later fragments that came before their first one.
    waiting: Expiring<Waiting, PacketMeta>,
    /// Until when the one of them that came first waits; the end of time if there is none.
    due: Nanos,
    waited: u64,
    /// Those that have waited, until they are asked for.
    released: Vec<PacketMeta>,
    counts: FragmentCounts,
}

impl FragmentCache {
    /// For so many datagrams in progress, 1 to 2^24.
    pub fn new(datagrams_max: u32) -> FragmentCache {
        let waiting_max = datagrams_max.clamp(1, WAITING_MAX) as usize;
        FragmentCache {
            hasher: KeyHasher::new(),
            datagrams: Expiring::new(datagrams_max.clamp(1, 1 << 24) as usize, Datagram::default),
            waiting: Expiring::new(waiting_max, PacketMeta::default),
            due: Nanos::MAX,
            waited: 0,
            released: Vec::with_capacity(waiting_max),
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
    pub fn assign(&mut self, fragment: &mut PacketMeta) -> FragmentPlace {
        self.expire(fragment.clock);
        let hash = self.hash(fragment);
        if fragment.fragment_offset == 0 {
            self.first(hash, fragment);
            return if self.follow(hash) { FragmentPlace::Leads } else { FragmentPlace::On };
        }
        if self.join(hash, fragment) {
            return FragmentPlace::On;
        }
        let waiting = Waiting { datagram: hash, number: self.waited };
        let has_room = self.waiting.alike(&waiting).count() < ALIKE_MAX;
        match has_room.then(|| self.waiting.insert(waiting, fragment.clock.0)).flatten() {
            Some(slot) => {
                *self.waiting.value_mut(slot) = *fragment;
                self.waited += 1;
                self.due = self.due.min(fragment.clock + PATIENCE);
                FragmentPlace::Waits
            }
            None => {
                self.counts.unassigned += 1;
                FragmentPlace::On
            }
        }
    }

    /// Whether some fragment has waited for long enough.
    #[inline]
    pub fn is_due(&self, clock: Nanos) -> bool {
        clock >= self.due
    }

    /// Fragments wait no longer that came a second before `clock` or earlier; they are as they were.
    #[cold]
    pub fn give_up(&mut self, clock: Nanos) {
        while let Some(slot) = self.waiting.oldest() {
            let since = self.waiting.value(slot).clock;
            if clock < since + PATIENCE {
                self.due = since + PATIENCE;
                return;
            }
            self.counts.unassigned += 1;
            self.released.push(*self.waiting.value(slot));
            self.waiting.remove(slot);
        }
        self.due = Nanos::MAX;
    }

    /// What was decoded of fragments that wait no longer, in the order they came, and no others. Their clock has become `clock`.
    pub fn released(&mut self, clock: Nanos) -> &mut Vec<PacketMeta> {
        self.released.iter_mut().for_each(|fragment| fragment.clock = clock);
        &mut self.released
    }

    /// Remembers the ports of a first fragment.
    fn first(&mut self, hash: u64, fragment: &PacketMeta) {
        self.counts.first += 1;
        match self.datagrams.find(&hash) {
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
    }

    /// Gives a later fragment ports and protocol of its first one, if that was seen.
    fn join(&mut self, hash: u64, fragment: &mut PacketMeta) -> bool {
        let Some(slot) = self.datagrams.find(&hash) else { return false };
        let datagram = self.datagrams.value_mut(slot);
        self.counts.assigned += 1;
        self.counts.overlapping += u64::from(datagram.add(fragment));
        fragment.key.proto = datagram.proto;
        set_ports(fragment, datagram.src_port, datagram.dst_port);
        true
    }

    /// Releases what waited for the first fragment that has just come. Says whether anything did.
    fn follow(&mut self, hash: u64) -> bool {
        let before = self.released.len();
        while let Some(slot) = self.waits_for(hash) {
            let mut fragment = *self.waiting.value(slot);
            self.waiting.remove(slot);
            self.join(hash, &mut fragment);
            self.released.push(fragment);
        }
        if self.waiting.oldest().is_none() {
            self.due = Nanos::MAX;
        }
        self.released.len() > before
    }

    /// The fragment of a datagram that has waited longest.
    fn waits_for(&self, hash: u64) -> Option<Slot> {
        let any = Waiting { datagram: hash, number: 0 };
        self.waiting.alike(&any).find(|slot| self.waiting.key(*slot).datagram == hash)
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

    /// All fragments in the order they go on, those that never find their first one at the end.
    fn order(fragments: &[PacketMeta], datagrams_max: u32) -> (Vec<PacketMeta>, FragmentCounts) {
        let mut cache = FragmentCache::new(datagrams_max);
        let mut on = Vec::new();
        for p in fragments {
            if cache.is_due(p.clock) {
                cache.give_up(p.clock);
                on.append(cache.released(p.clock));
            }
            let mut p = *p;
            let place = cache.assign(&mut p);
            on.extend((place != FragmentPlace::Waits).then_some(p));
            let released = cache.released(p.clock);
            assert_eq!(place == FragmentPlace::Leads, !released.is_empty());
            on.append(released);
        }
        cache.give_up(Nanos::MAX);
        on.append(cache.released(Nanos::from_secs(1 << 20)));
        (on, cache.counts())
    }

    /// Those that wait for nothing that comes later.
    fn run(fragments: &mut [PacketMeta], datagrams_max: u32) -> FragmentCounts {
        let (on, counts) = order(fragments, datagrams_max);
        fragments.copy_from_slice(&on);
        counts
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

    /// Backwards, as some senders have it, with another datagram between: none is left without ports, and each goes on once.
    #[test]
    fn later_fragments_wait_for_their_first_one() {
        let came = [(1, 2960), (2, 1480), (1, 1480), (1, 0), (1, 4440), (2, 0)];
        let (on, counts) = order(&came.map(|(id, at)| fragment(id, at, 1480, 7)), 64);
        let went: Vec<_> = on.iter().map(|p| (p.fragment_id, u32::from(p.fragment_offset) * 8)).collect();
        assert_eq!(went, [(1, 0), (1, 2960), (1, 1480), (1, 4440), (2, 0), (2, 1480)]);
        assert!(on.iter().all(|p| (p.key.lo_port, p.key.hi_port) == (53, 5000)));
        assert_eq!((counts.first, counts.assigned, counts.unassigned, counts.overlapping), (2, 4, 0, 0));
    }

    /// What does not find its first one within a second goes on as it is, with its own time and the clock as it is then.
    #[test]
    fn they_do_not_wait_for_ever() {
        let came =
            [fragment(1, 1480, 1480, 0), fragment(2, 1480, 1480, 1), fragment(1, 0, 1480, 1), fragment(2, 0, 48, 3)];
        let (on, counts) = order(&came, 64);
        let went: Vec<_> = on.iter().map(|p| (p.fragment_id, p.fragment_offset, p.ts, p.clock)).collect();
        let at = Nanos::from_secs;
        assert_eq!(went, [(1, 185, at(0), at(1)), (1, 0, at(1), at(1)), (2, 185, at(1), at(3)), (2, 0, at(3), at(3))]);
        assert_eq!((counts.first, counts.assigned, counts.unassigned), (2, 0, 2));
    }

    /// Room for a few: those of a datagram in very many pieces, and a flood, go on at once; all of them are accounted for.
    #[test]
    fn few_wait() {
        let pieces: Vec<_> = (1..=100).rev().map(|n| fragment(1, n * 8, 8, 0)).chain([fragment(1, 0, 16, 0)]).collect();
        let (on, counts) = order(&pieces, 8192);
        assert_eq!((on.len(), counts.assigned, counts.unassigned), (101, 64, 36));
        let flood: Vec<_> = (0..10_000).map(|id| fragment(id, 1480, 48, 0)).collect();
        let (on, counts) = order(&flood, 8192);
        assert_eq!((on.len(), counts.unassigned), (10_000, 10_000));
        assert_eq!(on[0].fragment_id, 4096, "the first that found no room");
        let mut all: Vec<_> = on.iter().map(|p| p.fragment_id).collect();
        all.sort_unstable();
        assert!(all.into_iter().eq(0..10_000));
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
