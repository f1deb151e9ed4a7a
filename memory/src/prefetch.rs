//! Asks the cache for memory that will be touched a few dozen packets later.

/// Bytes of a cache line, on all that this runs on.
const LINE: usize = 64;

/// Asks for the cache lines of a value, as many as its size takes from where it begins. Nothing waits for them, and nothing
/// happens where there is no such instruction.
#[inline]
pub fn prefetch<T>(value: &T) {
    let first = (&raw const *value).cast::<u8>();
    for line in 0..size_of::<T>().div_ceil(LINE) {
        read(first.wrapping_add(line * LINE));
    }
}

/// One cache line, to be read.
#[inline]
fn read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it reads nothing, faults on no address, and SSE is part of x86_64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}
