//! System calls on pipes and child processes. Everything here is sound for any caller.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Makes reads and writes of `fd` say `WouldBlock` instead of waiting.
pub(super) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: F_GETFL takes no argument and `fd` is open for as long as it is borrowed.
    let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
    if flags < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: F_SETFL takes a number.
    let result = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, flags | libc::O_NONBLOCK) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Whether child `pid` has ended. It stays a zombie, so that its number names nobody else until it is waited for.
pub(super) fn has_exited(pid: u32) -> bool {
    let mut info = std::mem::MaybeUninit::<libc::siginfo_t>::zeroed();
    let options = libc::WEXITED | libc::WNOHANG | libc::WNOWAIT;
    // SAFETY: waitid writes at most one `siginfo_t`, which `info` has room for.
    let result = unsafe { libc::waitid(libc::P_PID, pid, info.as_mut_ptr(), options) };
    // SAFETY: all zeros is a valid `siginfo_t`, and so is what the kernel writes.
    let info = unsafe { info.assume_init() };
    // A child that runs leaves the signal number 0; an error means that there is no such child.
    result != 0 || info.si_signo != 0
}

/// Ends every process of the group that child `pid` leads. To be called before the child is waited for: until then the
/// number can be no other group's.
pub(super) fn kill_group(pid: u32) {
    // 0 and 1 would be the caller's own group and everybody.
    let Some(group) = libc::pid_t::try_from(pid).ok().filter(|pid| *pid > 1) else { return };
    // SAFETY: kill takes numbers. A group that is already gone is an error of no consequence.
    unsafe { libc::kill(-group, libc::SIGKILL) };
}
