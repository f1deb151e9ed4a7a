//! Ends the sleep of a worker from another thread.

use crate::sys;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// What a worker sleeps on beside its queues, so that another worker which leaves packets for it can wake it.
pub struct Wake {
    event: File,
    /// The worker sleeps, or is about to. Whoever takes it back writes to `event`.
    asleep: AtomicBool,
}

impl Wake {
    /// # Errors
    /// The process has no file descriptor left.
    pub fn new() -> io::Result<Wake> {
        Ok(Wake { event: File::from(sys::event()?), asleep: AtomicBool::new(false) })
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

    pub(crate) fn woken(&self) {
        self.asleep.store(false, Ordering::Relaxed);
        // Nothing to read is fine: something else ended the sleep.
        let _ = (&self.event).read(&mut [0; 8]);
    }

    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
