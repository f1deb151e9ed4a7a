//! System calls that std has no safe name for. Everything here is sound for any caller.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Waits until `fd` can be read without blocking (or is at its end, or has an error to report). False after
/// `timeout_ms`, or when a signal arrived.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout_ms: i32) -> io::Result<bool> {
    wait_any_readable(&[fd], timeout_ms)
}

/// As [`wait_readable`] for several at once: true when any of `fds` is ready.
pub(crate) fn wait_any_readable(fds: &[BorrowedFd<'_>], timeout_ms: i32) -> io::Result<bool> {
    let mut polls: Vec<libc::pollfd> =
        fds.iter().map(|fd| libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLIN, revents: 0 }).collect();
    // SAFETY: `polls` holds as many initialised pollfds as its length says and outlives the call.
    let ready = unsafe { libc::poll(polls.as_mut_ptr(), polls.len() as libc::nfds_t, timeout_ms) };
    if ready >= 0 {
        return Ok(ready > 0);
    }
    match io::Error::last_os_error() {
        e if e.kind() == io::ErrorKind::Interrupted => Ok(false),
        e => Err(e),
    }
}

/// A counter that polls as readable while it is not 0 (eventfd(2)); neither reading nor writing waits.
pub(crate) fn event() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was opened just now, is valid as was seen, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Confines the calling thread to one core.
pub(crate) fn pin_thread(core: usize) -> io::Result<()> {
    let mut mask = [0_u64; CPU_WORDS];
    let word = mask.get_mut(core / 64).ok_or(io::ErrorKind::InvalidInput)?;
    *word = 1 << (core % 64);
    // SAFETY: the mask is `size_of_val(&mask)` initialised bytes, which the kernel only reads; thread 0 is the caller.
    let result = unsafe { libc::sched_setaffinity(0, size_of_val(&mask), mask.as_ptr().cast()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// 64-bit words of an affinity mask: as many cores as `cpu_set_t` has.
const CPU_WORDS: usize = size_of::<libc::cpu_set_t>() / 8;
/// Cores that can be named.
pub(crate) const CORES_MAX: usize = CPU_WORDS * 64;
