//! Asks the cache for memory that will be touched a few dozen packets later.

use crate::state::FlowState;

/// One cache line, to be read.
#[inline]
pub(crate) fn read(at: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a prefetch is a hint: it reads nothing, faults on no address, and SSE is part of x86_64.
    unsafe {
        std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(at.cast());
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = at;
}

/// All three lines of a flow that is to be updated.
#[inline]
pub(crate) fn state(state: &FlowState) {
    let first = (&raw const *state).cast::<u8>();
    for line in 0..size_of::<FlowState>() / 64 {
        read(first.wrapping_add(line * 64));
    }
}
