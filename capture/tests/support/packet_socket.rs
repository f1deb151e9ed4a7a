//! Sends frames out of an interface as they are.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// Sends frames through a packet socket. Returns how many did not fit the far end's queue, which ENOBUFS tells.
pub(crate) fn send(interface: &str, frames: &[Vec<u8>]) -> usize {
    let name = CString::new(interface).unwrap();
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: a descriptor that was opened just now and is nobody else's.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: index as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [2, 0, 0, 0, 0, 1, 0, 0],
    };
    let mut refused = 0;
    for frame in frames {
        let (to, to_bytes) = ((&raw const address).cast(), size_of_val(&address) as u32);
        // SAFETY: the frame and the address are as long as the lengths passed with them.
        let sent = unsafe { libc::sendto(fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0, to, to_bytes) };
        if sent != frame.len() as isize {
            let e = io::Error::last_os_error();
            assert_eq!(e.raw_os_error(), Some(libc::ENOBUFS), "{e}");
            refused += 1;
        }
    }
    refused
}
