//! Inspecting allocates nothing, whatever comes: hellos in pieces, QUIC, DNS asked and answered, noise, timeouts.

mod support;

use hints::{InspectLimits, Inspector, Payload, Progress};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use support::{Count, HTTP_REQUEST, Noise, client_hello, dns_answer, dns_query, payload, quic_initial};
use wire::{Nanos, proto};

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

#[test]
fn inspecting_allocates_nothing() {
    let limits = InspectLimits { dns_pending_max: 64, assemblies_max: 16, ..InspectLimits::default() };
    let mut inspector = Inspector::new(limits);
    let mut sink = Count::default();
    let (hello, initial) = (client_hello(), quic_initial());
    let (query, answer) = (dns_query(7), dns_answer(7));
    let mut noise = [0; 64];
    let mut random = Noise(7);
    let before = ALLOCATIONS.with(Cell::get);
    for flow in 0..2000_u64 {
        let time = flow * 50_000_000;
        inspector.advance(Nanos(time), &mut sink);
        let mut see = |payloads: &[Payload<'_>]| {
            let mut progress = Progress::default();
            for payload in payloads {
                if progress.wants() {
                    inspector.inspect(payload, &mut progress, &mut sink);
                }
            }
        };
        let tcp = |bytes, port, id: u64| payload(bytes, proto::TCP, port, true, 10 * flow + id, time);
        let udp =
            |bytes, port, from_client, id: u64| payload(bytes, proto::UDP, port, from_client, 10 * flow + id, time);
        see(&[tcp(&hello[..700], 443, 0), Payload { seq: 1700, ..tcp(&hello[700..], 443, 0) }]);
        // Never completed: assemblies are evicted and expire.
        see(&[tcp(&hello[..700], 443, 1)]);
        see(&[tcp(HTTP_REQUEST, 80, 2)]);
        see(&[udp(&initial, 443, true, 3)]);
        see(&[udp(&query, 53, true, 4), udp(&answer, 53, false, 4)]);
        see(&[udp(&query, 53, true, 5)]);
        random.fill(&mut noise);
        see(&[udp(&noise, 40000, true, 6), tcp(&noise, 40000, 7)]);
    }
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
    let counts = inspector.counts();
    assert!(counts.assemblies_evicted > 0 && counts.dns_evicted > 0, "{counts:?}");
    assert_eq!(counts.quic_not_decrypted, 0);
    assert!(sink.texts >= 2000 * 5 && sink.dns >= 2000);
    // The counter does count.
    drop(std::hint::black_box(Box::new(1)));
    assert!(ALLOCATIONS.with(Cell::get) > before);
}
