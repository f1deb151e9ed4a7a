//! Advice to the kernel about memory. Sound for any caller.

use std::mem::MaybeUninit;

/// Asks for huge pages where `memory` has room for them (madvise(2), MADV_HUGEPAGE): a ring that is written from end to
/// end otherwise costs a TLB miss per 4 KiB. Only a wish: that a kernel without it refuses changes nothing.
pub(super) fn advise_huge_pages(memory: &mut [MaybeUninit<u8>]) {
    // A multiple of every page size in use, so that the range is whole pages wherever this runs.
    const HUGE_BYTES: usize = 2 << 20;
    let before = memory.as_ptr().addr().next_multiple_of(HUGE_BYTES) - memory.as_ptr().addr();
    let Some(aligned) = memory.get_mut(before..) else { return };
    let bytes = aligned.len() / HUGE_BYTES * HUGE_BYTES;
    if bytes == 0 {
        return;
    }
    // SAFETY: the range lies within `memory`, which is borrowed mutably; MADV_HUGEPAGE changes how it is backed, not
    // what it holds.
    unsafe { libc::madvise(aligned.as_mut_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}
