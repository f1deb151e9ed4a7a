//! The bounded table of who opened connections to whom within the window.

use crate::config::{PortScanConfig, ticks};
use crate::lru::{Chain, List, NONE};
use hashbrown::HashMap;
use wire::{Addr, TapId};

/// Who opens: a source address at a tap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct SourceKey {
    pub(crate) tap: TapId,
    pub(crate) src: Addr,
}

/// What it opens: a port of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TargetKey {
    pub(crate) dst: Addr,
    pub(crate) port: u16,
}

/// One source and the sums over its targets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Source {
    pub(crate) key: SourceKey,
    /// Its targets, least recently tried first.
    list: List,
    /// Length of `list`.
    pub(crate) targets: u32,
    /// Of those, the ones that answered; `<= targets`.
    pub(crate) answered: u32,
    /// Openings to those.
    pub(crate) openings: u64,
    /// Whether a target was not remembered since the list was last empty.
    pub(crate) saturated: bool,
    /// Whether it waits to be judged.
    pub(crate) queued: bool,
    /// Tick of its last opening.
    last: u64,
    /// Which of `Sources::classes` it is in.
    class: u8,
}

/// One target of one source.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Target {
    pub(crate) key: TargetKey,
    /// First opening since it entered the table.
    pub(crate) first: u64,
    /// Tick of its last opening.
    pub(crate) last: u64,
    pub(crate) flow_id: u64,
    openings: u32,
    pub(crate) answered: bool,
}

/// Class of a source: 0 without targets, otherwise 1 + log2 of their number.
const CLASSES: usize = 33;

/// Sources and their targets, both in slabs that grow to their cap and no further. Everything is amortised O(1) an event.
///
/// When a cap is reached, a source with the fewest targets (by powers of two) is forgotten, the stalest of those first: a
/// flood from invented addresses, one target each, pushes out itself and not the scanner that is being counted.
#[derive(Debug)]
pub(crate) struct Sources {
    window: u64,
    sources_max: usize,
    targets_per_source_max: u32,
    targets_max: usize,
    source_at: HashMap<SourceKey, u32>,
    target_at: HashMap<(u32, TargetKey), u32>,
    sources: Vec<Source>,
    targets: Vec<Target>,
    free_sources: Vec<u32>,
    free_targets: Vec<u32>,
    source_chain: Chain,
    target_chain: Chain,
    /// By class: least recently active first.
    classes: [List; CLASSES],
    /// Forgotten for lack of room.
    pub(crate) evicted: u64,
    /// Openings whose target found no room.
    pub(crate) untracked: u64,
}

impl Sources {
    pub(crate) fn new(config: &PortScanConfig) -> Sources {
        Sources {
            window: ticks(config.window),
            sources_max: config.sources_max,
            targets_per_source_max: u32::try_from(config.targets_per_source_max).unwrap_or(u32::MAX),
            targets_max: config.targets_total_max,
            source_at: HashMap::new(),
            target_at: HashMap::new(),
            sources: Vec::new(),
            targets: Vec::new(),
            free_sources: Vec::new(),
            free_targets: Vec::new(),
            source_chain: Chain::default(),
            target_chain: Chain::default(),
            classes: [List::EMPTY; CLASSES],
            evicted: 0,
            untracked: 0,
        }
    }

    /// Sources held.
    pub(crate) fn len(&self) -> usize {
        self.source_at.len()
    }

    /// The source in `slot`, if it is still the one meant.
    pub(crate) fn get_mut(&mut self, slot: u32, key: SourceKey) -> Option<&mut Source> {
        self.sources.get_mut(slot as usize).filter(|source| source.key == key && source.class > 0)
    }

    /// Forgets sources without an opening in the window that ends with `tick`.
    pub(crate) fn expire(&mut self, tick: u64) {
        for class in 0..CLASSES {
            while let head = self.classes[class].head
                && head != NONE
                && self.sources[head as usize].last + self.window <= tick
            {
                self.remove_source(head);
            }
        }
    }

    /// Notes a SYN and returns the slot of its source.
    pub(crate) fn syn(&mut self, tick: u64, key: SourceKey, target: TargetKey, flow_id: u64) -> u32 {
        let slot = match self.source_at.get(&key) {
            Some(slot) => *slot,
            None => self.add_source(key, tick),
        };
        self.expire_targets(slot, tick);
        self.sources[slot as usize].last = tick;
        match self.target_at.get(&(slot, target)) {
            Some(at) => self.touch_target(slot, *at, tick),
            None => self.add_target(slot, target, tick, flow_id),
        }
        self.reclass(slot);
        slot
    }

    /// Notes a SYN/ACK from `target`. Returns the source's slot if the SYN is remembered.
    pub(crate) fn answer(&mut self, key: SourceKey, target: TargetKey) -> Option<u32> {
        let slot = *self.source_at.get(&key)?;
        let at = *self.target_at.get(&(slot, target))?;
        let target = &mut self.targets[at as usize];
        if !target.answered {
            target.answered = true;
            self.sources[slot as usize].answered += 1;
        }
        Some(slot)
    }

    /// Forgets the targets of a source that it has not tried within the window that ends with `tick`.
    pub(crate) fn expire_targets(&mut self, slot: u32, tick: u64) {
        while let head = self.sources[slot as usize].list.head
            && head != NONE
            && self.targets[head as usize].last + self.window <= tick
        {
            self.remove_target(slot, head);
        }
        let source = &mut self.sources[slot as usize];
        source.saturated &= source.targets > 0;
    }

    /// The targets of a source, most recently tried first.
    pub(crate) fn targets(&self, slot: u32) -> impl Iterator<Item = &Target> {
        let mut at = self.sources[slot as usize].list.tail;
        std::iter::from_fn(move || {
            let target = self.targets.get(at as usize)?;
            at = self.target_chain.before(at);
            Some(target)
        })
    }

    fn add_source(&mut self, key: SourceKey, tick: u64) -> u32 {
        if self.source_at.len() >= self.sources_max {
            self.evict(NONE);
        }
        let source = Source {
            key,
            list: List::EMPTY,
            targets: 0,
            answered: 0,
            openings: 0,
            saturated: false,
            queued: false,
            last: tick,
            class: 1,
        };
        let slot = match self.free_sources.pop() {
            Some(slot) => {
                self.sources[slot as usize] = source;
                slot
            }
            None => {
                self.sources.push(source);
                (self.sources.len() - 1) as u32
            }
        };
        self.source_chain.push(&mut self.classes[1], slot);
        self.source_at.insert(key, slot);
        debug_assert!(self.source_at.len() <= self.sources_max);
        slot
    }

    fn add_target(&mut self, slot: u32, key: TargetKey, tick: u64, flow_id: u64) {
        let full = self.sources[slot as usize].targets >= self.targets_per_source_max;
        if full || (self.target_at.len() >= self.targets_max && !self.evict(slot)) {
            self.sources[slot as usize].saturated = true;
            self.untracked += 1;
            return;
        }
        let target = Target { key, first: tick, last: tick, flow_id, openings: 1, answered: false };
        let at = match self.free_targets.pop() {
            Some(at) => {
                self.targets[at as usize] = target;
                at
            }
            None => {
                self.targets.push(target);
                (self.targets.len() - 1) as u32
            }
        };
        self.target_at.insert((slot, key), at);
        debug_assert!(self.target_at.len() <= self.targets_max);
        let source = &mut self.sources[slot as usize];
        self.target_chain.push(&mut source.list, at);
        source.targets += 1;
        source.openings += 1;
    }

    fn touch_target(&mut self, slot: u32, at: u32, tick: u64) {
        let (source, target) = (&mut self.sources[slot as usize], &mut self.targets[at as usize]);
        self.target_chain.remove(&mut source.list, at);
        self.target_chain.push(&mut source.list, at);
        target.last = tick;
        target.openings = target.openings.saturating_add(1);
        source.openings += 1;
    }

    fn remove_target(&mut self, slot: u32, at: u32) {
        let (source, target) = (&mut self.sources[slot as usize], &self.targets[at as usize]);
        self.target_chain.remove(&mut source.list, at);
        source.targets -= 1;
        source.answered -= u32::from(target.answered);
        source.openings = source.openings.saturating_sub(u64::from(target.openings));
        self.target_at.remove(&(slot, target.key));
        self.free_targets.push(at);
        debug_assert!(source.answered <= source.targets);
    }

    /// Moves a source that was just active to the fresh end of the class its targets put it in.
    fn reclass(&mut self, slot: u32) {
        let source = &mut self.sources[slot as usize];
        self.source_chain.remove(&mut self.classes[usize::from(source.class)], slot);
        // Class 0 marks a free slot; a source whose targets found no room is in the lowest other one.
        source.class = (u32::BITS - source.targets.leading_zeros()).max(1) as u8;
        self.source_chain.push(&mut self.classes[usize::from(source.class)], slot);
    }

    /// Forgets one source other than `keep`: from the lowest class, the stalest. False if there is none.
    fn evict(&mut self, keep: u32) -> bool {
        let victim = self.classes.iter().find_map(|list| match list.head {
            head if head == keep && head != NONE => Some(self.source_chain.after(head)).filter(|after| *after != NONE),
            NONE => None,
            head => Some(head),
        });
        if let Some(slot) = victim {
            self.remove_source(slot);
            self.evicted += 1;
        }
        victim.is_some()
    }

    fn remove_source(&mut self, slot: u32) {
        while let head = self.sources[slot as usize].list.head
            && head != NONE
        {
            self.remove_target(slot, head);
        }
        let source = &mut self.sources[slot as usize];
        self.source_chain.remove(&mut self.classes[usize::from(source.class)], slot);
        source.class = 0;
        self.source_at.remove(&source.key);
        self.free_sources.push(slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap as StdMap;

    fn source(n: u8) -> SourceKey {
        SourceKey { tap: TapId(0), src: Addr::v4([10, 0, 0, n]) }
    }

    fn target(n: u16) -> TargetKey {
        TargetKey { dst: Addr::v4([192, 168, 0, 1]), port: n }
    }

    proptest! {
        /// Without reaching a cap, the table is a map from target to the last attempt, per source.
        #[test]
        fn counts_are_those_of_a_plain_map(ops in prop::collection::vec((0..4_u64, 0..5_u8, 0..12_u16, any::<bool>()), 0..300)) {
            let config = PortScanConfig { window: std::time::Duration::from_secs(1), ..PortScanConfig::default() };
            let mut sources = Sources::new(&config);
            let mut model = StdMap::<(u8, u16), (u64, bool, u64)>::new();
            let mut tick = 0;
            for (step, s, t, answer) in ops {
                tick += step;
                sources.expire(tick);
                model.retain(|_, (last, ..)| *last + 10 > tick);
                if answer {
                    // An answer to an expired attempt may or may not be remembered: only exercise live ones.
                    if let Some((_, answered, _)) = model.get_mut(&(s, t)) {
                        *answered = true;
                        prop_assert!(sources.answer(source(s), target(t)).is_some());
                    }
                    continue;
                }
                let slot = sources.syn(tick, source(s), target(t), 1);
                let entry = model.entry((s, t)).or_insert((tick, false, 0));
                entry.0 = tick;
                entry.2 += 1;
                let mine = model.iter().filter(|((who, _), _)| *who == s).map(|(_, v)| v).collect::<Vec<_>>();
                let got = *sources.get_mut(slot, source(s)).unwrap();
                prop_assert_eq!(got.targets as usize, mine.len());
                prop_assert_eq!(got.answered as usize, mine.iter().filter(|v| v.1).count());
                prop_assert_eq!(got.openings, mine.iter().map(|v| v.2).sum::<u64>());
                prop_assert_eq!(sources.targets(slot).count(), mine.len());
            }
        }

        /// At tiny caps nothing grows beyond them and the links stay whole.
        #[test]
        fn caps_hold(ops in prop::collection::vec((0..2_u64, 0..20_u8, 0..20_u16), 0..400)) {
            let config = PortScanConfig { sources_max: 5, targets_per_source_max: 4, targets_total_max: 9, ..PortScanConfig::default() };
            let mut sources = Sources::new(&config);
            let mut tick = 0;
            for (step, s, t) in ops {
                tick += step;
                sources.expire(tick);
                let slot = sources.syn(tick, source(s), target(t), 1);
                let got = *sources.get_mut(slot, source(s)).unwrap();
                prop_assert!(got.targets <= 4 && sources.len() <= 5 && sources.target_at.len() <= 9);
                prop_assert!(sources.sources.len() <= 5 && sources.targets.len() <= 9);
                prop_assert!(got.targets > 0 || got.saturated);
            }
        }
    }

    #[test]
    fn a_flood_of_single_targets_does_not_push_out_a_scanner() {
        let config = PortScanConfig { sources_max: 100, ..PortScanConfig::default() };
        let mut sources = Sources::new(&config);
        let scanner = source(1);
        for port in 0..10 {
            sources.syn(0, scanner, target(port), 1);
        }
        for n in 0..50_000_u32 {
            let [a, b, c, d] = n.to_be_bytes();
            sources.syn(1, SourceKey { tap: TapId(0), src: Addr::v4([a | 100, b, c, d]) }, target(80), 1);
        }
        assert_eq!((sources.len(), sources.evicted), (100, 50_000 - 99));
        let slot = sources.syn(2, scanner, target(11), 1);
        assert_eq!(sources.get_mut(slot, scanner).unwrap().targets, 11);
    }
}
