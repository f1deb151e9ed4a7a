//! Large arrays that are touched at random, on huge pages: with small ones nearly every flow costs a walk through the page
//! tables, which is dearer than the flow itself, most of all in a virtual machine.

use std::collections::TryReserveError;
use std::sync::atomic::AtomicU64;

/// An empty vector with room for `capacity` elements, for which the kernel is asked for huge pages (2 MiB on x86_64). It may
/// have none: nothing changes but the speed. The pages themselves come when they are first touched.
///
/// # Errors
/// The system refuses so much memory.
pub fn reserve<T>(capacity: usize) -> Result<Vec<T>, TryReserveError> {
    let mut vec: Vec<T> = Vec::new();
    vec.try_reserve_exact(capacity)?;
    advise(vec.as_ptr().addr(), capacity * size_of::<T>());
    Ok(vec)
}

/// Cells that are zero, on huge pages as far as there are any. New ones come from the kernel as zero, so that making them touches
/// none.
pub fn zeroed(count: usize) -> Box<[AtomicU64]> {
    let cells = Box::<[AtomicU64]>::new_zeroed_slice(count);
    advise(cells.as_ptr().addr(), size_of_val(&*cells));
    // SAFETY: an AtomicU64 has the same in-memory representation as a u64, of which zero is one.
    unsafe { cells.assume_init() }
}

/// The whole huge pages of a range; most often there is none in a small one.
#[cfg(target_os = "linux")]
fn advise(start: usize, bytes: usize) {
    const PAGE: usize = 2 << 20;
    let (from, until) = (start.next_multiple_of(PAGE), (start + bytes) / PAGE * PAGE);
    if from < until {
        // SAFETY: the range lies within one allocation of ours, and MADV_HUGEPAGE changes nothing but how the kernel may
        // back it (madvise(2)); an address it does not like is an error, which is ignored.
        unsafe {
            libc::madvise(std::ptr::without_provenance_mut(from), until - from, libc::MADV_HUGEPAGE);
        }
    }
}

#[cfg(not(target_os = "linux"))]
fn advise(_: usize, _: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn zeroed_cells_are_zero_and_can_be_written() {
        use std::sync::atomic::Ordering::Relaxed;
        for count in [0, 1, 100, 1 << 20] {
            let cells = zeroed(count);
            assert_eq!(cells.len(), count);
            assert!(cells.iter().all(|cell| cell.fetch_add(1, Relaxed) == 0));
        }
    }

    #[test]
    fn more_than_there_can_be_is_refused() {
        assert!(reserve::<u64>(1 << 50).is_err() && reserve::<u64>(usize::MAX).is_err());
    }

    #[test]
    fn reserved_memory_is_ordinary_memory() {
        for capacity in [0, 1, 100, 1 << 20] {
            let mut vec = reserve::<u64>(capacity).expect("so little");
            assert!(vec.capacity() >= capacity);
            vec.extend(0..capacity as u64);
            assert_eq!(vec.iter().sum::<u64>(), (capacity as u64).saturating_sub(1) * capacity as u64 / 2);
        }
    }
}
