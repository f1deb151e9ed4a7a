//! After warm-up a batch costs no allocation, whatever happens in it: new flows, ends, parts, evictions.

use flowtable::{FlowRecord, FlowSink, FlowTable, FlowTableConfig, Timeouts};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use wire::{Addr, Direction, FlowKey, Nanos, PacketMeta, TcpFlags, proto};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged; counting touches no memory it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's obligations are those of `System`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` in `alloc` above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

struct Count(u64);

impl FlowSink for Count {
    fn record(&mut self, _: &FlowRecord, _text: &[u8]) {
        self.0 += 1;
    }
}

/// 256 packets of as many TCP connections, each opened, used and closed over four batches.
fn batch(round: u32) -> Vec<PacketMeta> {
    let flags = [TcpFlags::SYN, TcpFlags::ACK, TcpFlags::ACK | TcpFlags::FIN, TcpFlags::RST];
    (0..256u32)
        .map(|i| PacketMeta {
            key: FlowKey {
                lo: Addr::v4((round / 4 * 256 + i).to_be_bytes()),
                hi: Addr::v4([192, 0, 2, 1]),
                lo_port: 1024,
                hi_port: 443,
                proto: proto::TCP,
                ..FlowKey::default()
            },
            ts: Nanos(u64::from(round) * 500_000_000),
            clock: Nanos(u64::from(round) * 500_000_000),
            ip_bytes: 40,
            flags: TcpFlags(flags[round as usize % 4]),
            direction: Direction::LoToHi,
            has_tcp: true,
            window: 1,
            ..PacketMeta::default()
        })
        .collect()
}

#[test]
fn a_steady_batch_allocates_nothing() {
    let mut table = FlowTable::new(FlowTableConfig {
        flows_max: 1024,
        timeouts: Timeouts::default(),
        ..FlowTableConfig::default()
    })
    .unwrap();
    let mut sink = Count(0);
    let batches: Vec<_> = (0..400).map(batch).collect();
    for batch in &batches[..40] {
        table.process(batch, &mut sink);
    }
    let before = ALLOCATIONS.with(Cell::get);
    for batch in &batches[40..] {
        table.process(batch, &mut sink);
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    assert!(sink.0 > 10_000, "flows ended, were evicted and begun meanwhile: {}", sink.0);
    // The counter does count.
    drop(std::hint::black_box(Box::new(1)));
    assert!(ALLOCATIONS.with(Cell::get) > before);
}
