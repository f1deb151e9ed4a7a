//! After warm-up a batch allocates nothing.

#![allow(unsafe_code, reason = "a global allocator that counts")]

use capture::{BatchHandler, FileOptions, FileSource, Polled, Source};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicU64, Ordering};
use wire::{Frame, Nanos, TapId};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

// SAFETY: every call is passed on to the system allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promises about `layout` are the ones asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: `pointer` came from `alloc` above, that is, from the system allocator, with this layout.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[derive(Default)]
struct Count(u64);

impl BatchHandler for Count {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        self.0 += frames.len() as u64;
    }
    fn idle(&mut self, _: Nanos) {}
}

fn pcap(packets: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    for v in [0xa1b2_c3d4, 0x0004_0002, 0, 0, 65_535, 1] {
        bytes.extend(u32::to_le_bytes(v));
    }
    for i in 0..packets {
        let len = 60 + i % 1000;
        for v in [i, 0, len, len] {
            bytes.extend(u32::to_le_bytes(v));
        }
        bytes.resize(bytes.len() + len as usize, 0);
    }
    bytes
}

fn pcapng(packets: u32) -> Vec<u8> {
    let mut bytes = Vec::new();
    let words = [0x0a0d_0d0a, 28, 0x1a2b_3c4d, 1, u32::MAX, u32::MAX, 28, 1, 20, 1, 0, 20];
    bytes.extend(words.into_iter().flat_map(u32::to_le_bytes));
    for i in 0..packets {
        let len = (60 + i % 1000).next_multiple_of(4);
        for v in [6, len + 32, 0, 0, i, len, len] {
            bytes.extend(u32::to_le_bytes(v));
        }
        bytes.resize(bytes.len() + len as usize, 0);
        bytes.extend((len + 32).to_le_bytes());
    }
    bytes
}

#[test]
fn steady_batches_allocate_nothing() {
    for file in [pcap(20_000), pcapng(20_000)] {
        let reader = std::io::Cursor::new(file);
        let mut source = FileSource::from_reader("test", reader, TapId(0), &FileOptions::default());
        let mut count = Count::default();
        while count.0 < 2_000 {
            source.poll(&mut count).unwrap();
        }
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        while source.poll(&mut count).unwrap() != Polled::End {}
        assert_eq!(ALLOCATIONS.load(Ordering::Relaxed) - before, 0);
        assert_eq!(count.0, 20_000);
    }
}
