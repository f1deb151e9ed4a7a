//! Ends the sleep of a worker from another thread.

use crate::sys;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// What a worker sleeps on beside its queues, so that others can wake it: a worker that leaves packets for it, a query that
/// asks for its flows.
pub struct Wake {
    event: File,
    /// The worker sleeps, or is about to. Whoever takes it back writes 1 to `event`.
    asleep: AtomicBool,
    /// Times `asleep` was taken back, less what was read of `event`. The worker's own.
    unread: AtomicU64,
}

impl Wake {
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Wake> {
        Ok(Wake { event: File::from(sys::event()?), asleep: AtomicBool::new(false), unread: AtomicU64::new(0) })
    }

    /// Wakes the worker if it sleeps: a load otherwise. A call just before the worker falls asleep is missed; the
    /// worker wakes by itself within 100 ms.
    pub fn notify(&self) {
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::Relaxed) {
            // It only fails when the counter is at its end, and then it is readable.
            let _ = (&self.event).write(&1_u64.to_ne_bytes());
        }
    }

    pub(crate) fn fall_asleep(&self) {
        self.asleep.store(true, Ordering::Relaxed);
    }

    /// Costs a system call only where somebody has called: mostly it was a packet.
    pub(crate) fn woken(&self) {
        let taken_back = !self.asleep.swap(false, Ordering::Relaxed);
        let unread = self.unread.load(Ordering::Relaxed) + u64::from(taken_back);
        let mut written = [0; 8];
        // Nothing to read means that who took it back has yet to write: that ends the next sleep, and is read then.
        if unread > 0 && (&self.event).read(&mut written).is_err() {
            written = [0; 8];
        }
        self.unread.store(unread.saturating_sub(u64::from_ne_bytes(written)), Ordering::Relaxed);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_readable(wake: &Wake) -> bool {
        crate::sys::wait_any_readable(&[wake.fd()], 0).unwrap()
    }

    #[test]
    fn a_call_ends_one_sleep_however_late_it_is_written() {
        let wake = Wake::new().unwrap();
        wake.notify();
        assert!(!is_readable(&wake), "nobody sleeps");
        wake.fall_asleep();
        wake.notify();
        wake.notify();
        assert!(is_readable(&wake));
        wake.woken();
        assert!(!is_readable(&wake));
        // Something else ends the sleep between the two steps of a call.
        wake.fall_asleep();
        assert!(wake.asleep.swap(false, Ordering::Relaxed));
        wake.woken();
        (&wake.event).write_all(&1_u64.to_ne_bytes()).unwrap();
        wake.fall_asleep();
        assert!(is_readable(&wake), "the next sleep is cut short");
        wake.woken();
        assert!(!is_readable(&wake));
        assert_eq!(wake.unread.load(Ordering::Relaxed), 0);
    }
}
