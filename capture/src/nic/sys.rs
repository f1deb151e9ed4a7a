//! System calls of this module: netlink(7) sockets, the ethtool ioctl, packet memberships, epoll. Everything here is
//! sound for any caller.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Longest wait for an answer, seconds. The kernel answers within the call that asks; only a lost answer takes longer.
const ANSWER_SECONDS_MAX: libc::time_t = 10;

/// `struct sockaddr_nl` (linux/netlink.h), whose padding `libc` keeps private.
#[repr(C)]
struct NetlinkAddress {
    family: u16,
    pad: u16,
    port: u32,
    groups: u32,
}

/// A netlink socket of the calling thread's network namespace, to which it stays bound whatever the thread does later.
pub(super) struct NetlinkSocket(OwnedFd);

/// What one receive call found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Received {
    /// Length of the datagram, which may be more than the buffer took.
    pub(super) bytes: usize,
    /// Sent by the kernel; other processes can write to netlink sockets, too.
    pub(super) from_kernel: bool,
}

impl NetlinkSocket {
    /// Opens and binds a socket of a family such as `NETLINK_ROUTE`.
    pub(super) fn open(family: c_int, blocking: bool) -> io::Result<NetlinkSocket> {
        let nonblock = if blocking { 0 } else { libc::SOCK_NONBLOCK };
        let socket = NetlinkSocket(socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC | nonblock, family)?);
        let limit = libc::timeval { tv_sec: ANSWER_SECONDS_MAX, tv_usec: 0 };
        set_option(socket.as_fd(), libc::SOL_SOCKET, libc::SO_RCVTIMEO, &limit)?;
        let address = NetlinkAddress { family: libc::AF_NETLINK as u16, pad: 0, port: 0, groups: 0 };
        let bytes = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is `bytes` readable bytes that outlive the call, the address family's own structure.
        let result = unsafe { libc::bind(socket.0.as_raw_fd(), (&raw const address).cast(), bytes) };
        check(result)?;
        Ok(socket)
    }

    /// Sets an integer option of level SOL_NETLINK.
    pub(super) fn set(&self, option: c_int, value: c_int) -> io::Result<()> {
        set_option(self.as_fd(), libc::SOL_NETLINK, option, &value)
    }

    /// Asks for room for `bytes` of datagrams; without CAP_NET_ADMIN the system's limit (`net.core.rmem_max`) holds.
    pub(super) fn set_receive_buffer(&self, bytes: c_int) -> io::Result<()> {
        set_option(self.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, &bytes)
            .or_else(|_| set_option(self.as_fd(), libc::SOL_SOCKET, libc::SO_RCVBUF, &bytes))
    }

    /// Sends a message to the kernel.
    pub(super) fn send(&self, message: &[u8]) -> io::Result<()> {
        // SAFETY: `message` is as many readable bytes as the length says, for the length of the call.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), message.as_ptr().cast(), message.len(), 0) };
        match usize::try_from(sent) {
            Ok(n) if n == message.len() => Ok(()),
            Ok(_) => Err(io::ErrorKind::WriteZero.into()),
            Err(_) => Err(io::Error::last_os_error()),
        }
    }

    /// Receives a datagram, or with `peek` looks at it and leaves it there.
    pub(super) fn receive(&self, into: &mut [u8], peek: bool) -> io::Result<Received> {
        let mut from = NetlinkAddress { family: 0, pad: 0, port: u32::MAX, groups: 0 };
        let mut from_bytes = size_of_val(&from) as libc::socklen_t;
        // With MSG_TRUNC the whole length is returned, not what fitted.
        let flags = libc::MSG_TRUNC | if peek { libc::MSG_PEEK } else { 0 };
        let fd = self.0.as_raw_fd();
        let address = (&raw mut from).cast();
        // SAFETY: `into` and `from` are writable for the lengths that are passed with them, and the kernel writes no more
        // than that; `from` is made of integers, for which any bytes are a value.
        let got =
            unsafe { libc::recvfrom(fd, into.as_mut_ptr().cast(), into.len(), flags, address, &raw mut from_bytes) };
        let bytes = usize::try_from(got).map_err(|_| io::Error::last_os_error())?;
        Ok(Received { bytes, from_kernel: from.port == 0 })
    }
}

impl AsFd for NetlinkSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Writable memory that ends at an unreadable page. The ethtool ioctl copies as many counters as the driver has *at that
/// moment*, whatever room the caller announced (net/ethtool/ioctl.c, ethtool_get_strings): a driver that gained some
/// makes the call fail with EFAULT here, instead of writing over the heap.
pub(super) struct GuardedBuffer {
    start: NonNull<u8>,
    /// Usable bytes, a multiple of the page size.
    bytes: usize,
    page: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached through `&self` and `&mut self` only.
unsafe impl Send for GuardedBuffer {}

impl GuardedBuffer {
    /// At least `bytes` zeros.
    pub(super) fn new(bytes: usize) -> io::Result<GuardedBuffer> {
        let page = page_bytes();
        let bytes = bytes.max(1).checked_next_multiple_of(page).ok_or(io::ErrorKind::OutOfMemory)?;
        let whole = bytes.checked_add(page).ok_or(io::ErrorKind::OutOfMemory)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping where the kernel likes it touches no memory that exists.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), whole, libc::PROT_NONE, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        let buffer = GuardedBuffer { start, bytes, page };
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the range is the mapping made just now without its last page.
        let result = unsafe { libc::mprotect(buffer.start.as_ptr().cast(), bytes, access) };
        check(result)?;
        Ok(buffer)
    }

    pub(super) fn bytes(&self) -> &[u8] {
        // SAFETY: `start` is `bytes` readable bytes, initialised (zero) by the kernel, and nobody writes to them while
        // `self` is borrowed.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.bytes) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`; `self` is borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.bytes) }
    }
}

impl Drop for GuardedBuffer {
    fn drop(&mut self) {
        // SAFETY: the range is the whole mapping of `new`, to which no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.bytes + self.page) };
    }
}

/// Commands of linux/ethtool.h that write a list of unknown length behind a header.
#[derive(Clone, Copy, Debug)]
#[repr(u32)]
pub(super) enum EthtoolList {
    /// `struct ethtool_gstrings`: 12 bytes, then 32 bytes a name.
    Strings = 0x1b,
    /// `struct ethtool_stats`: 8 bytes, then 8 bytes a counter.
    Statistics = 0x1d,
}

const ETHTOOL_GDRVINFO: u32 = 0x03;
const ETHTOOL_GSSET_INFO: u32 = 0x37;
/// String set of the counters, `enum ethtool_stringset`.
const ETH_SS_STATS: u32 = 1;

/// Bytes of `struct ethtool_drvinfo`.
const DRVINFO_BYTES: usize = 196;

/// Name of the driver; NUL-padded, as the kernel has it.
pub(super) fn ethtool_driver(socket: BorrowedFd<'_>, index: u32) -> io::Result<[u8; 32]> {
    let mut info = GuardedBuffer::new(DRVINFO_BYTES)?;
    put_u32(info.bytes_mut(), 0, ETHTOOL_GDRVINFO);
    ethtool(socket, index, &mut info)?;
    let mut name = [0; 32];
    name.copy_from_slice(&info.bytes()[4..36]);
    Ok(name)
}

/// How many counters the driver has now.
pub(super) fn ethtool_statistics_count(socket: BorrowedFd<'_>, index: u32) -> io::Result<u32> {
    // struct ethtool_sset_info: cmd, reserved, 64 bits of sets asked for, then one count for each set that exists.
    let mut info = GuardedBuffer::new(20)?;
    put_u32(info.bytes_mut(), 0, ETHTOOL_GSSET_INFO);
    info.bytes_mut()[8..16].copy_from_slice(&(1_u64 << ETH_SS_STATS).to_ne_bytes());
    ethtool(socket, index, &mut info)?;
    let sets = get_u32(info.bytes(), 8) | get_u32(info.bytes(), 12);
    Ok(if sets == 0 { 0 } else { get_u32(info.bytes(), 16) })
}

/// Runs a list command over the interface's counters, with room for `count`. Returns how many the kernel wrote.
///
/// # Errors
/// EFAULT where the driver has more than the buffer holds.
pub(super) fn ethtool_list(
    socket: BorrowedFd<'_>,
    index: u32,
    list: EthtoolList,
    count: u32,
    buffer: &mut GuardedBuffer,
) -> io::Result<u32> {
    let count_at = match list {
        EthtoolList::Strings => 8,
        EthtoolList::Statistics => 4,
    };
    put_u32(buffer.bytes_mut(), 0, list as u32);
    put_u32(buffer.bytes_mut(), 4, ETH_SS_STATS);
    put_u32(buffer.bytes_mut(), count_at, count);
    ethtool(socket, index, buffer)?;
    Ok(get_u32(buffer.bytes(), count_at))
}

/// The ioctl takes a name, which may have changed: the index stays.
fn ethtool(socket: BorrowedFd<'_>, index: u32, buffer: &mut GuardedBuffer) -> io::Result<()> {
    let index = c_int::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let ifr_ifru = libc::__c_anonymous_ifr_ifru { ifru_ifindex: index };
    let mut request = libc::ifreq { ifr_name: [0; libc::IFNAMSIZ], ifr_ifru };
    // SAFETY: SIOCGIFNAME reads and writes one `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFNAME as _, &raw mut request) };
    check(result)?;
    request.ifr_ifru.ifru_data = buffer.start.as_ptr().cast();
    // SAFETY: SIOCETHTOOL reads one `ifreq`, and reads and writes what `ifru_data` points at: with the commands of this
    // module a header and a list, ascending from the start of `buffer`, which is borrowed exclusively. A list that is
    // too long runs into the buffer's last page, where the kernel stops with EFAULT.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
    check(result).map(drop)
}

/// A packet socket that receives nothing (protocol 0) and holds an interface in promiscuous mode until it is closed.
pub(super) fn promiscuous_socket(index: u32) -> io::Result<OwnedFd> {
    let index = c_int::try_from(index).map_err(|_| io::Error::from_raw_os_error(libc::ENODEV))?;
    let fd = socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0)?;
    let membership = libc::packet_mreq {
        mr_ifindex: index,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_option(fd.as_fd(), libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &membership)?;
    Ok(fd)
}

/// A descriptor that is readable while any of `sockets` is.
pub(super) fn readable_when_any(sockets: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::epoll_create1(libc::EPOLL_CLOEXEC) };
    check(fd)?;
    // SAFETY: `fd` was opened just now, is valid as `check` has seen, and nobody else knows it.
    let epoll = unsafe { OwnedFd::from_raw_fd(fd) };
    for socket in sockets {
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        let (fd, add) = (socket.as_raw_fd(), libc::EPOLL_CTL_ADD);
        // SAFETY: `event` is one initialised `epoll_event`, which the kernel only reads.
        let result = unsafe { libc::epoll_ctl(epoll.as_raw_fd(), add, fd, &raw mut event) };
        check(result)?;
    }
    Ok(epoll)
}

fn socket(domain: c_int, kind: c_int, protocol: c_int) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(domain, kind, protocol) };
    check(fd)?;
    // SAFETY: `fd` was opened just now, is valid as `check` has seen, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn set_option<T: Copy>(socket: BorrowedFd<'_>, level: c_int, option: c_int, value: &T) -> io::Result<()> {
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is `bytes` readable bytes for the length of the call, and the kernel reads no more of them; the
    // callers in this file pass integers and structures of integers.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), bytes) };
    check(result).map(drop)
}

fn page_bytes() -> usize {
    // SAFETY: no pointers are passed.
    let bytes = unsafe { libc::sysconf(libc::_SC_PAGESIZE) };
    usize::try_from(bytes).unwrap_or(4096)
}

fn put_u32(bytes: &mut [u8], at: usize, value: u32) {
    bytes[at..at + 4].copy_from_slice(&value.to_ne_bytes());
}

fn get_u32(bytes: &[u8], at: usize) -> u32 {
    let mut value = [0; 4];
    value.copy_from_slice(&bytes[at..at + 4]);
    u32::from_ne_bytes(value)
}

fn check(result: c_int) -> io::Result<c_int> {
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarded_buffer_holds_what_was_asked_for() {
        for bytes in [0, 1, 4095, 4096, 4097, 1 << 20] {
            let mut buffer = GuardedBuffer::new(bytes).unwrap();
            assert!(buffer.bytes().len() >= bytes.max(20));
            assert!(buffer.bytes().iter().all(|b| *b == 0));
            let last = buffer.bytes().len() - 1;
            buffer.bytes_mut()[last] = 7;
            assert_eq!(buffer.bytes()[last], 7);
        }
        assert!(GuardedBuffer::new(usize::MAX).is_err());
    }

    #[test]
    fn the_kernel_stops_at_the_guard() {
        let mut buffer = GuardedBuffer::new(1).unwrap();
        let file = std::fs::File::open("/dev/zero").unwrap();
        let beyond = buffer.bytes().len() + 1;
        let start: *mut libc::c_void = buffer.bytes_mut().as_mut_ptr().cast();
        // SAFETY: the buffer is writable up to its guard page, where the kernel stops.
        let got = unsafe { libc::read(file.as_raw_fd(), start, beyond) };
        assert!(got < beyond as isize, "read {got} of {beyond} bytes");
    }
}
