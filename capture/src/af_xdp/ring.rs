//! The descriptor rings that kernel and program share (`net/xdp/xsk_queue.h`): one writer, one reader, no lock.
//!
//! ```text
//!  consumer index            producer index          both run freely through 2^32; entry = index mod entries
//!        v                         v
//!  . . . [ready][ready][ready][ready] . . . .        producer - consumer <= entries
//! ```
//! The program produces into the fill ring (free frames, addresses) and consumes the rx ring (packets, descriptors); the
//! kernel has the other half of each. Nothing is sent, so the tx and completion rings have no code here.
//!
//! The barriers are named as in `xsk_queue.h`: (B) the producer's store of its index makes the entries visible and pairs
//! with (C), the consumer's load of it; (D) the consumer's store of its index ends its reads of the entries and pairs
//! with (A), the producer's load of it.

use super::sys::{KernelRing, Region};
use std::marker::PhantomData;
use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

/// An entry: integers, of which any bits are a value.
pub(super) trait Entry: Copy + Send + 'static {}
impl Entry for u64 {}
impl Entry for libc::xdp_desc {}

/// Where in its memory a ring has its parts: bytes from the start (XDP_MMAP_OFFSETS).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) producer: usize,
    pub(super) consumer: usize,
    pub(super) flags: usize,
    pub(super) entries_at: usize,
    /// A power of two.
    pub(super) entries: u32,
}

/// An index from the kernel that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's index of the {ring} ring says that {claimed} of {entries} entries are in use, {known} were")]
pub(crate) struct RingFault {
    /// `rx` or `fill`.
    pub(crate) ring: &'static str,
    /// Entries in use, after that index.
    pub(crate) claimed: u32,
    /// Entries in use, when the index was last looked at.
    pub(crate) known: u32,
    /// Entries there are.
    pub(crate) entries: u32,
}

/// What both halves know of a ring.
struct Shared<T> {
    memory: Arc<Region>,
    layout: Layout,
    name: &'static str,
    entry: PhantomData<T>,
}

impl<T: Entry> Shared<T> {
    /// `None` where the layout does not fit the memory.
    fn new(name: &'static str, memory: Arc<Region>, layout: Layout) -> Option<Shared<T>> {
        let fits = |at: usize, bytes: usize, align: usize| {
            at.checked_add(bytes).is_some_and(|end| end <= memory.bytes())
                && (memory.base().addr().get() + at).is_multiple_of(align)
        };
        let entry_bytes = size_of::<T>().checked_mul(layout.entries as usize)?;
        let good = layout.entries.is_power_of_two()
            && [layout.producer, layout.consumer, layout.flags].into_iter().all(|at| fits(at, 4, 4))
            && fits(layout.entries_at, entry_bytes, align_of::<T>());
        good.then_some(Shared { memory, layout, name, entry: PhantomData })
    }

    fn word(&self, at: usize) -> &AtomicU32 {
        let word = self.memory.base().as_ptr().wrapping_add(at).cast();
        // SAFETY: `new` has seen that the word lies within the memory, which lives as long as `self`, and is aligned to
        // 4; kernel and program access the three words atomically only.
        unsafe { AtomicU32::from_ptr(word) }
    }

    fn producer(&self) -> &AtomicU32 {
        self.word(self.layout.producer)
    }

    fn consumer(&self) -> &AtomicU32 {
        self.word(self.layout.consumer)
    }

    /// Within the memory for any index, since the number of entries is a power of two.
    fn entry(&self, index: Wrapping<u32>) -> *mut T {
        let entries = self.memory.base().as_ptr().wrapping_add(self.layout.entries_at).cast::<T>();
        entries.wrapping_add((index.0 & (self.layout.entries - 1)) as usize)
    }

    #[cold]
    fn fault(&self, claimed: u32, known: u32) -> RingFault {
        RingFault { ring: self.name, claimed, known, entries: self.layout.entries }
    }
}

/// The reading half.
pub(super) struct Consumer<T> {
    shared: Shared<T>,
    /// The next entry to read: our index, which only we store.
    next: Wrapping<u32>,
    /// The producer's index when it was last loaded: `produced - next <= entries`.
    produced: Wrapping<u32>,
}

impl<T: Entry> Consumer<T> {
    /// Goes on where the indices in memory say. `None` where the layout does not fit the memory.
    ///
    /// # Safety
    /// Nobody else reads from this ring, and whoever writes to it follows the protocol above.
    pub(super) unsafe fn new(name: &'static str, memory: Arc<Region>, layout: Layout) -> Option<Consumer<T>> {
        let shared = Shared::new(name, memory, layout)?;
        let next = Wrapping(shared.consumer().load(Ordering::Relaxed));
        Some(Consumer { shared, next, produced: next })
    }

    /// Entries that are known to be ready.
    fn known(&self) -> u32 {
        (self.produced - self.next).0
    }

    /// How many entries are ready now, by the producer's own index.
    pub(super) fn ready(&mut self) -> Result<u32, RingFault> {
        // Acquire: (C), pairs with the kernel's smp_store_release() of its index in __xskq_prod_submit (B).
        let produced = Wrapping(self.shared.producer().load(Ordering::Acquire));
        let claimed = (produced - self.next).0;
        if claimed > self.shared.layout.entries || claimed < self.known() {
            return Err(self.shared.fault(claimed, self.known()));
        }
        self.produced = produced;
        Ok(claimed)
    }

    /// How many entries can be read, at most `max`. Looks at the producer's index, a cache line that the kernel writes,
    /// only where fewer than that are known of.
    pub(super) fn peek(&mut self, max: u32) -> Result<u32, RingFault> {
        if self.known() >= max {
            return Ok(max);
        }
        Ok(self.ready()?.min(max))
    }

    /// A copy of the `n`th entry from here.
    ///
    /// # Panics
    /// If `peek` or `ready` did not say that there are so many.
    #[inline]
    pub(super) fn get(&self, n: u32) -> T {
        assert!(n < self.known(), "entry {n} of {}", self.known());
        // SAFETY: the entry lies within the memory and is aligned (`Shared::new`); it is ready, so the producer does not
        // touch it until `release` (D); any bits are a value (`Entry`). Volatile, so that what is checked is what is used.
        unsafe { self.shared.entry(self.next + Wrapping(n)).read_volatile() }
    }

    /// Gives the next `n` entries back to the producer.
    ///
    /// # Panics
    /// If there are fewer.
    pub(super) fn release(&mut self, n: u32) {
        assert!(n <= self.known(), "{n} of {} entries", self.known());
        self.next += n;
        // Release: (D), our reads of the entries come before the kernel's next writes; pairs with its load of our index
        // in xskq_prod_is_full (A).
        self.shared.consumer().store(self.next.0, Ordering::Release);
    }
}

impl Consumer<libc::xdp_desc> {
    /// Our half of an rx ring. `None` where the kernel's offsets are beyond its memory.
    pub(super) fn of_rx(ring: KernelRing) -> Option<Consumer<libc::xdp_desc>> {
        // SAFETY: a `KernelRing` is the only mapping of its ring, and is used up here; the kernel follows the protocol.
        unsafe { Consumer::new("rx", Arc::new(ring.memory), ring.layout) }
    }
}

/// The writing half.
pub(super) struct Producer<T> {
    shared: Shared<T>,
    /// The next entry to write: our index, which only we store.
    next: Wrapping<u32>,
    /// The consumer's index when it was last loaded: `next - consumed <= entries`.
    consumed: Wrapping<u32>,
}

impl<T: Entry> Producer<T> {
    /// Goes on where the indices in memory say. `None` where the layout does not fit the memory.
    ///
    /// # Safety
    /// Nobody else writes to this ring, and whoever reads from it follows the protocol above.
    pub(super) unsafe fn new(name: &'static str, memory: Arc<Region>, layout: Layout) -> Option<Producer<T>> {
        let shared = Shared::new(name, memory, layout)?;
        let next = Wrapping(shared.producer().load(Ordering::Relaxed));
        let mut producer = Producer { shared, next, consumed: next };
        // What is in the ring is unknown, so at first nothing is free: the first `room` looks.
        producer.consumed = next - Wrapping(layout.entries);
        Some(producer)
    }

    /// Entries that are in use as far as is known.
    fn in_use(&self) -> u32 {
        (self.next - self.consumed).0
    }

    /// Room for entries, at most `want`. Looks at the consumer's index only where less room is known of.
    fn room(&mut self, want: u32) -> Result<u32, RingFault> {
        let entries = self.shared.layout.entries;
        if entries - self.in_use() >= want {
            return Ok(want);
        }
        // Acquire: (A), pairs with the kernel's smp_store_release() of its index in __xskq_cons_release (D).
        let consumed = Wrapping(self.shared.consumer().load(Ordering::Acquire));
        let claimed = (self.next - consumed).0;
        // The consumer only moves on: what is in use becomes less.
        if claimed > self.in_use() {
            return Err(self.shared.fault(claimed, self.in_use()));
        }
        self.consumed = consumed;
        Ok((entries - claimed).min(want))
    }

    /// Writes as many of `values` as there is room for, from the first; returns how many.
    pub(super) fn push(&mut self, values: &[T]) -> Result<usize, RingFault> {
        let want = u32::try_from(values.len()).unwrap_or(u32::MAX);
        let room = self.room(want)?;
        self.write(&values[..room as usize]);
        Ok(room as usize)
    }

    /// Writes all of `values` or none of them; false where there is no room.
    #[cfg(test)]
    pub(super) fn push_all(&mut self, values: &[T]) -> Result<bool, RingFault> {
        let Ok(want) = u32::try_from(values.len()) else { return Ok(false) };
        if self.room(want)? < want {
            return Ok(false);
        }
        self.write(values);
        Ok(true)
    }

    /// For at most as many as `room` has returned.
    fn write(&mut self, values: &[T]) {
        for value in values {
            debug_assert!(self.in_use() < self.shared.layout.entries);
            // SAFETY: the entry lies within the memory and is aligned (`Shared::new`); it is free, as `room` has seen,
            // so the consumer does not touch it before the store below (B).
            unsafe { self.shared.entry(self.next).write(*value) };
            self.next += 1;
        }
        // Release: (B), the entries come before the index; pairs with the kernel's smp_load_acquire() in
        // __xskq_cons_peek (C).
        self.shared.producer().store(self.next.0, Ordering::Release);
    }

    /// Whether the kernel has stopped looking at the ring, and wants a system call (XDP_RING_NEED_WAKEUP).
    ///
    /// A flag that the kernel sets while we write may be missed here. Nothing is lost by that, since the flag is looked
    /// at after each batch and before each wait, and poll(2) wakes the driver, too.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.shared.word(self.shared.layout.flags).load(Ordering::Relaxed) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

impl Producer<u64> {
    /// Our half of a fill ring. `None` where the kernel's offsets are beyond its memory.
    pub(super) fn of_fill(ring: KernelRing) -> Option<Producer<u64>> {
        // SAFETY: a `KernelRing` is the only mapping of its ring, and is used up here; the kernel follows the protocol.
        unsafe { Producer::new("fill", Arc::new(ring.memory), ring.layout) }
    }
}

/// Rings on plain memory, and the kernel's halves of them.
#[cfg(test)]
pub(super) mod plain {
    use super::*;

    /// Memory for a ring of `entries` whose indices both start at `start`.
    pub(crate) fn memory<T: Entry>(entries: u32, start: u32) -> (Arc<Region>, Layout) {
        let layout = Layout { producer: 0, consumer: 64, flags: 68, entries_at: 128, entries };
        let memory = Arc::new(Region::heap(128 + entries as usize * size_of::<T>()));
        let shared = Shared::<T>::new("test", memory.clone(), layout).unwrap();
        shared.producer().store(start, Ordering::Relaxed);
        shared.consumer().store(start, Ordering::Relaxed);
        (memory, layout)
    }

    /// Both halves of a ring.
    pub(crate) fn ring<T: Entry>(entries: u32, start: u32) -> (Producer<T>, Consumer<T>) {
        let (memory, layout) = memory::<T>(entries, start);
        // SAFETY: the only producer of memory made just now.
        let producer = unsafe { Producer::new("test", memory.clone(), layout) };
        // SAFETY: the only consumer of it.
        let consumer = unsafe { Consumer::new("test", memory, layout) };
        (producer.unwrap(), consumer.unwrap())
    }

    impl<T: Entry> Consumer<T> {
        /// What the driver does when it runs out of frames.
        pub(crate) fn set_need_wakeup(&self, on: bool) {
            self.shared.word(self.shared.layout.flags).store(u32::from(on), Ordering::Relaxed);
        }

        /// Stores any index, as a mistaken kernel may.
        pub(crate) fn lie(&self, consumer: u32) {
            self.shared.consumer().store(consumer, Ordering::Release);
        }
    }

    impl<T: Entry> Producer<T> {
        /// Entries that could be written now.
        pub(crate) fn free(&mut self) -> u32 {
            self.room(u32::MAX).unwrap()
        }

        /// Stores any index, as a mistaken kernel may.
        pub(crate) fn lie(&self, producer: u32) {
            self.shared.producer().store(producer, Ordering::Release);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::plain::{memory, ring};
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    /// Indices around which a ring must not notice anything.
    const STARTS: [u32; 5] = [0, 1, u32::MAX - 3, u32::MAX, 1 << 31];

    #[test]
    fn entries_come_out_in_order_across_2_to_the_32() {
        for start in STARTS {
            let (mut producer, mut consumer) = ring::<u64>(8, start);
            let mut next = 0_u64;
            for round in 0..50 {
                let n = 1 + round % 8;
                let values: Vec<u64> = (next..next + n).collect();
                assert_eq!(producer.push(&values).unwrap(), n as usize);
                assert_eq!(consumer.ready().unwrap(), n as u32);
                for (i, value) in values.iter().enumerate() {
                    assert_eq!(consumer.get(i as u32), *value);
                }
                consumer.release(n as u32);
                next += n;
            }
            assert_eq!(consumer.ready().unwrap(), 0);
        }
    }

    #[test]
    fn a_reservation_is_partial_or_all_or_nothing_as_asked_for() {
        for start in STARTS {
            let (mut producer, mut consumer) = ring::<u64>(4, start);
            assert!(producer.push_all(&[1, 2, 3]).unwrap());
            assert!(!producer.push_all(&[4, 5]).unwrap(), "one is free");
            assert_eq!(consumer.ready().unwrap(), 3, "and stays so");
            assert_eq!(producer.push(&[4, 5]).unwrap(), 1);
            assert_eq!(producer.push(&[5]).unwrap(), 0);
            assert_eq!(consumer.peek(2).unwrap(), 2);
            consumer.release(2);
            assert_eq!(producer.push(&[5, 6, 7]).unwrap(), 2);
            assert_eq!(consumer.peek(9).unwrap(), 4);
            assert_eq!([0, 1, 2, 3].map(|n| consumer.get(n)), [3, 4, 5, 6]);
            assert!(!producer.push_all(&[0; 5]).unwrap(), "more than the ring has");
        }
    }

    #[test]
    fn the_producers_index_is_looked_at_only_when_needed() {
        let (mut producer, mut consumer) = ring::<u64>(8, 0);
        producer.push(&[1, 2]).unwrap();
        assert_eq!(consumer.peek(2).unwrap(), 2);
        producer.push(&[3, 4]).unwrap();
        assert_eq!(consumer.peek(2).unwrap(), 2);
        assert_eq!(consumer.known(), 2, "two were known of");
        assert_eq!(consumer.peek(3).unwrap(), 3);
        assert_eq!(consumer.known(), 4);
    }

    #[test]
    fn the_wakeup_flag_is_read() {
        let (producer, consumer) = ring::<u64>(4, 0);
        assert!(!producer.needs_wakeup());
        consumer.set_need_wakeup(true);
        assert!(producer.needs_wakeup());
        consumer.set_need_wakeup(false);
        assert!(!producer.needs_wakeup());
    }

    #[test]
    fn an_index_beyond_the_ring_or_backwards_is_an_error() {
        for start in STARTS {
            let (producer, mut consumer) = ring::<u64>(8, start);
            producer.lie(start.wrapping_add(9));
            let fault = consumer.ready().unwrap_err();
            assert_eq!(fault, RingFault { ring: "test", claimed: 9, known: 0, entries: 8 });
            producer.lie(start.wrapping_add(5));
            assert_eq!(consumer.ready().unwrap(), 5);
            producer.lie(start.wrapping_add(4));
            assert_eq!(consumer.ready().unwrap_err().claimed, 4);
            producer.lie(start.wrapping_sub(1));
            assert_eq!(consumer.peek(8).unwrap_err().claimed, u32::MAX);
            assert!(fault.to_string().contains("9 of 8 entries"), "{fault}");

            let (mut producer, consumer) = ring::<u64>(8, start);
            assert_eq!(producer.push(&[0; 5]).unwrap(), 5);
            consumer.lie(start.wrapping_add(6));
            assert!(producer.push(&[0; 5]).is_err(), "consumed more than was there");
            consumer.lie(start.wrapping_sub(1));
            assert!(producer.push(&[0; 5]).is_err(), "went backwards");
        }
    }

    #[test]
    #[should_panic(expected = "entry 1 of 1")]
    fn an_entry_that_is_not_ready_cannot_be_read() {
        let (mut producer, mut consumer) = ring::<u64>(8, 0);
        producer.push(&[1]).unwrap();
        consumer.ready().unwrap();
        consumer.get(1);
    }

    #[test]
    fn a_layout_beyond_the_memory_or_unaligned_is_refused() {
        let (region, good) = memory::<u64>(8, 0);
        let bad = [
            Layout { entries: 16, ..good },
            Layout { entries: 6, ..good },
            Layout { entries: 0, ..good },
            Layout { entries_at: 132, ..good },
            Layout { producer: 2, ..good },
            Layout { flags: 128 + 64, ..good },
            Layout { consumer: usize::MAX - 3, ..good },
        ];
        for layout in bad {
            assert!(Shared::<u64>::new("test", region.clone(), layout).is_none(), "{layout:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 8 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]
        /// Against a queue that anyone can see is right.
        #[test]
        fn a_ring_is_a_bounded_queue(start in any::<u32>(), steps in prop::collection::vec((any::<bool>(), 0_u32..12), 0..200)) {
            let (mut producer, mut consumer) = ring::<u64>(8, start);
            let (mut model, mut next) = (VecDeque::new(), 0_u64);
            for (push, n) in steps {
                if push {
                    let values: Vec<u64> = (next..next + u64::from(n)).collect();
                    let pushed = producer.push(&values).unwrap();
                    prop_assert_eq!(pushed, values.len().min(8 - model.len()));
                    model.extend(&values[..pushed]);
                    next += pushed as u64;
                } else {
                    let ready = consumer.peek(n).unwrap();
                    prop_assert_eq!(ready as usize, model.len().min(n as usize));
                    for i in 0..ready {
                        prop_assert_eq!(Some(consumer.get(i)), model.pop_front());
                    }
                    consumer.release(ready);
                }
            }
        }
    }

    /// One way, so that nothing but the consumer's index says when an entry may be written again.
    #[test]
    fn two_threads_never_touch_an_entry_at_once() {
        let count = if cfg!(miri) { 60 } else { 200_000_u64 };
        let (mut producer, mut consumer) = ring::<u64>(4, u32::MAX - 20);
        std::thread::scope(|scope| {
            scope.spawn(move || {
                let mut next = 0;
                while next < count {
                    let pushed = producer.push(&[next, next + 1, next + 2]).unwrap() as u64;
                    next += pushed;
                    if pushed == 0 {
                        std::thread::yield_now();
                    }
                }
            });
            let mut next = 0;
            while next < count {
                let ready = consumer.peek(3).unwrap();
                for n in 0..ready {
                    assert_eq!(consumer.get(n), next);
                    next += 1;
                }
                consumer.release(ready);
                if ready == 0 {
                    std::thread::yield_now();
                }
            }
        });
    }

    /// Frames go round between two threads: what the one writes before it hands a frame over, the other reads. Under
    /// Miri, which runs the threads in many orders with a weak memory model, a missing Acquire or Release is a data race.
    #[test]
    fn two_threads_hand_each_other_entries_and_the_memory_behind_them() {
        let rounds = if cfg!(miri) { 60 } else { 200_000_u64 };
        let (mut fill, mut free) = ring::<u64>(4, u32::MAX - 20);
        let (mut filled, mut rx) = ring::<libc::xdp_desc>(4, u32::MAX - 10);
        let frames: Arc<Region> = Arc::new(Region::heap(4 * 8));
        let frame = |region: &Region, n: u64| region.base().as_ptr().wrapping_add(n as usize * 8).cast::<u64>();
        assert!(fill.push_all(&[0, 1, 2, 3]).unwrap());
        let kernels = frames.clone();
        let mut kernel = Some(std::thread::spawn(move || {
            let mut sent = 0;
            while sent < rounds {
                let ready = free.peek(2).unwrap();
                for n in 0..ready {
                    let address = free.get(n);
                    // SAFETY: frames 0 to 3 lie within the region, and this one is ours: it was in the fill ring.
                    unsafe { frame(&kernels, address).write(sent) };
                    let descriptor = libc::xdp_desc { addr: address, len: 8, options: sent as u32 };
                    assert!(filled.push_all(&[descriptor]).unwrap(), "no more descriptors than frames");
                    sent += 1;
                }
                free.release(ready);
                if ready == 0 {
                    std::thread::yield_now();
                }
            }
        }));
        let mut received = 0;
        while received < rounds {
            let ready = rx.peek(3).unwrap();
            let descriptors: Vec<_> = (0..ready).map(|n| rx.get(n)).collect();
            // Before the frames go back: with a frame the kernel counts on an entry.
            rx.release(ready);
            for descriptor in &descriptors {
                // SAFETY: the frame lies within the region, and is ours: it came out of the rx ring.
                let content = unsafe { frame(&frames, descriptor.addr).read() };
                assert_eq!((content, descriptor.options), (received, received as u32));
                // The kernel publishes its index of the fill ring after the packets: there may be no room for a moment.
                while fill.push(&[descriptor.addr]).unwrap() == 0 {
                    std::thread::yield_now();
                }
                received += 1;
            }
            if ready == 0 {
                // What the other thread did before its end is visible after join, not after is_finished.
                if kernel.as_ref().is_some_and(|thread| thread.is_finished()) {
                    kernel.take().unwrap().join().unwrap();
                    assert!(rx.ready().unwrap() > 0, "the kernel ended after {received} packets");
                }
                std::thread::yield_now();
            }
        }
        kernel.into_iter().for_each(|thread| thread.join().unwrap());
    }
}
