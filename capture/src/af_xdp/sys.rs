//! System calls on AF_XDP sockets (`uapi/linux/if_xdp.h`, `Documentation/networking/af_xdp.rst`) and on memory.
//! Everything here is sound for any caller.

use super::options::BusyPoll;
use super::ring::Layout;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

/// Not in `libc`; `asm-generic/socket.h`.
const SO_PREFER_BUSY_POLL: libc::c_int = 69;
const SO_BUSY_POLL_BUDGET: libc::c_int = 70;

/// Memory that others (the kernel, the other half of a ring) may write to: it offers its bounds, never a reference.
pub(super) struct Region {
    /// `bytes` readable and writable bytes, until drop.
    base: NonNull<u8>,
    bytes: usize,
    origin: Origin,
}

enum Origin {
    Mapped,
    #[cfg(test)]
    Heap(std::alloc::Layout),
}

// SAFETY: a region is an address and a length; whoever reads or writes through the address answers for that.
unsafe impl Send for Region {}
// SAFETY: as above; no method changes it.
unsafe impl Sync for Region {}

impl Region {
    pub(super) fn base(&self) -> NonNull<u8> {
        self.base
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    fn map(bytes: usize, flags: libc::c_int, fd: libc::c_int, offset: libc::off_t) -> io::Result<Region> {
        let (at, protection) = (std::ptr::null_mut(), libc::PROT_READ | libc::PROT_WRITE);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe { libc::mmap(at, bytes, protection, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(Region { base, bytes, origin: Origin::Mapped })
    }

    /// Zeroed memory of this process alone; `huge_log2` asks for huge pages of that size (21, 30), of which `bytes` is
    /// then a multiple.
    pub(super) fn anonymous(bytes: usize, huge_log2: Option<u32>) -> io::Result<Region> {
        let huge = huge_log2.map_or(0, |log2| libc::MAP_HUGETLB | (log2 as libc::c_int) << libc::MAP_HUGE_SHIFT);
        Region::map(bytes, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | huge, -1, 0)
    }

    /// As `anonymous` in pages of the usual size, starting at a multiple of `align`, a power of two of at least a page.
    pub(super) fn aligned(bytes: usize, align: usize) -> io::Result<Region> {
        let all = bytes.checked_add(align).ok_or(io::ErrorKind::OutOfMemory)?;
        let mut region = Region::anonymous(all, None)?;
        let skip = region.base.addr().get().next_multiple_of(align) - region.base.addr().get();
        let start = region.base.as_ptr().wrapping_add(skip);
        let end = start.wrapping_add(bytes);
        region.base = NonNull::new(start).ok_or(io::ErrorKind::AddrNotAvailable)?;
        region.bytes = bytes;
        for (at, len) in [(start.wrapping_sub(skip), skip), (end, align - skip)] {
            if len > 0 {
                // SAFETY: pages of the mapping made above, outside of what `region` is from here on; nobody knows them.
                check(unsafe { libc::munmap(at.cast(), len) })?;
            }
        }
        Ok(region)
    }

    /// Asks for transparent huge pages.
    pub(super) fn advise_huge(&self) -> io::Result<()> {
        self.advise(libc::MADV_HUGEPAGE)
    }

    /// Gives every page its memory now, rather than at the first packet (Linux 5.14; EINVAL before).
    pub(super) fn populate(&self) -> io::Result<()> {
        self.advise(libc::MADV_POPULATE_WRITE)
    }

    fn advise(&self, advice: libc::c_int) -> io::Result<()> {
        // SAFETY: the range is mapped as long as `self` lives, and neither advice in use changes its contents.
        check(unsafe { libc::madvise(self.base.as_ptr().cast(), self.bytes, advice) }).map(drop)
    }

    /// Asks for memory of a NUMA node, where it has some left (MPOL_PREFERRED), for the pages to come.
    pub(super) fn prefer_node(&self, node: u32) -> io::Result<()> {
        let mut mask = [0_u64; 16];
        *mask.get_mut(node as usize / 64).ok_or(io::ErrorKind::InvalidInput)? = 1 << (node % 64);
        // The kernel takes one bit less than it is told of.
        let bits = size_of_val(&mask) * 8 + 1;
        let (base, bytes) = (self.base.as_ptr(), self.bytes);
        let no_flags = 0_usize;
        // SAFETY: the range is mapped; of the mask the kernel reads `bits - 1` bits, rounded up to whole words: all of it.
        let result =
            unsafe { libc::syscall(libc::SYS_mbind, base, bytes, libc::MPOL_PREFERRED, mask.as_ptr(), bits, no_flags) };
        if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }

    /// What the other side does. Tests write only to frames that are not lent, as they check themselves.
    #[cfg(test)]
    pub(super) fn write_as_kernel(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.bytes);
        let place = self.base.as_ptr().wrapping_add(at);
        // SAFETY: within the region, as checked above; `bytes` is no part of it, since a region hands out no references
        // but to frames that are lent, which the caller does not write to.
        unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
    }

    /// Zeroed memory that Miri can see through.
    #[cfg(test)]
    pub(super) fn heap(bytes: usize) -> Region {
        let layout = std::alloc::Layout::from_size_align(bytes, 4096).unwrap();
        // SAFETY: no caller asks for an empty region.
        let base = unsafe { std::alloc::alloc_zeroed(layout) };
        Region { base: NonNull::new(base).unwrap(), bytes, origin: Origin::Heap(layout) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        match self.origin {
            Origin::Mapped => {
                // SAFETY: exactly this region's pages; whoever reads or writes them keeps the region alive.
                let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
                debug_assert_eq!(result, 0);
            }
            #[cfg(test)]
            // SAFETY: what `heap` has allocated with this layout.
            Origin::Heap(layout) => unsafe { std::alloc::dealloc(self.base.as_ptr(), layout) },
        }
    }
}

/// Most bytes of locked memory this process may have, in words.
pub(super) fn memlock_limit() -> String {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is a writable `rlimit`.
    let result = unsafe { libc::getrlimit(libc::RLIMIT_MEMLOCK, &raw mut limit) };
    match (result, limit.rlim_cur) {
        (0, libc::RLIM_INFINITY) => "unlimited".to_owned(),
        (0, bytes) => format!("{bytes} bytes"),
        _ => "unknown".to_owned(),
    }
}

/// A ring as the kernel made and we mapped it: the only mapping of it in this process.
pub(super) struct KernelRing {
    pub(super) memory: Region,
    pub(super) layout: Layout,
}

/// Which call failed, and why.
pub(super) type CallError = (&'static str, io::Error);

/// An AF_XDP socket.
pub(super) struct XdpFd(OwnedFd);

impl XdpFd {
    /// # Errors
    /// EPERM without CAP_NET_RAW, EAFNOSUPPORT where the kernel has no AF_XDP.
    pub(super) fn new() -> io::Result<XdpFd> {
        // SAFETY: no pointers are passed.
        let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        check(fd)?;
        // SAFETY: `fd` was opened just now, is valid as `check` has seen, and nobody else knows it.
        Ok(XdpFd(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Sets an option of integers, in which the kernel finds no pointer.
    fn set<T: Copy>(&self, level: libc::c_int, option: libc::c_int, value: &T) -> io::Result<()> {
        let bytes = size_of::<T>() as libc::socklen_t;
        // SAFETY: `value` is `bytes` readable bytes for the length of the call, and the kernel reads no more of them.
        let result = unsafe { libc::setsockopt(self.0.as_raw_fd(), level, option, (&raw const *value).cast(), bytes) };
        check(result).map(drop)
    }

    /// Reads an option of integers; returns how many bytes of `into` the kernel wrote.
    fn get<T: Copy>(&self, level: libc::c_int, option: libc::c_int, into: &mut T) -> io::Result<usize> {
        let mut bytes = size_of::<T>() as libc::socklen_t;
        let value = (&raw mut *into).cast();
        // SAFETY: `value` points at `bytes` writable bytes, and the kernel writes no more of them; the callers below use
        // integers and structures of integers, for which any bytes are a value.
        let result = unsafe { libc::getsockopt(self.0.as_raw_fd(), level, option, value, &raw mut bytes) };
        check(result)?;
        Ok(bytes as usize)
    }

    /// Registers `memory` as the socket's packet buffer. The kernel pins its pages, and from the moment the socket is
    /// bound and has been given frames writes to those frames.
    pub(super) fn register(&self, memory: &Region, frame_bytes: u32, headroom_bytes: u32) -> io::Result<()> {
        let request = libc::xdp_umem_reg {
            addr: memory.base.addr().get() as u64,
            len: memory.bytes as u64,
            chunk_size: frame_bytes,
            headroom: headroom_bytes,
            flags: 0,
            tx_metadata_len: 0,
        };
        // Sound for any memory: pinned pages outlive their mapping, and a region hands out no references.
        self.set(libc::SOL_XDP, libc::XDP_UMEM_REG, &request)
    }

    /// Makes and maps rx and fill ring with that many entries; `None` from a kernel before 5.4, whose rings have no
    /// flags. Once for each socket: the kernel refuses to make them again.
    pub(super) fn rings(&self, rx: u32, fill: u32) -> Result<Option<(KernelRing, KernelRing)>, CallError> {
        /// bind(2) insists on a completion ring.
        const COMPLETION_ENTRIES: u32 = 2;
        for (option, entries, call) in [
            (libc::XDP_UMEM_FILL_RING, fill, "setsockopt(XDP_UMEM_FILL_RING)"),
            (libc::XDP_UMEM_COMPLETION_RING, COMPLETION_ENTRIES, "setsockopt(XDP_UMEM_COMPLETION_RING)"),
            (libc::XDP_RX_RING, rx, "setsockopt(XDP_RX_RING)"),
        ] {
            self.set(libc::SOL_XDP, option, &entries).map_err(|e| (call, e))?;
        }
        const NOWHERE: libc::xdp_ring_offset =
            libc::xdp_ring_offset { producer: u64::MAX, consumer: u64::MAX, desc: u64::MAX, flags: u64::MAX };
        let mut offsets = libc::xdp_mmap_offsets { rx: NOWHERE, tx: NOWHERE, fr: NOWHERE, cr: NOWHERE };
        let written = self.get(libc::SOL_XDP, libc::XDP_MMAP_OFFSETS, &mut offsets);
        if written.map_err(|e| ("getsockopt(XDP_MMAP_OFFSETS)", e))? != size_of_val(&offsets) {
            return Ok(None);
        }
        let rx_offset = libc::XDP_PGOFF_RX_RING;
        let fill_offset = libc::XDP_UMEM_PGOFF_FILL_RING as libc::off_t;
        let rx = self.map_ring(rx_offset, &offsets.rx, size_of::<libc::xdp_desc>(), rx);
        let fill = self.map_ring(fill_offset, &offsets.fr, size_of::<u64>(), fill);
        Ok(Some((rx.map_err(|e| ("mmap(XDP_RX_RING)", e))?, fill.map_err(|e| ("mmap(XDP_UMEM_FILL_RING)", e))?)))
    }

    /// The mapping stays valid when the socket is closed.
    fn map_ring(
        &self,
        offset: libc::off_t,
        parts: &libc::xdp_ring_offset,
        entry_bytes: usize,
        entries: u32,
    ) -> io::Result<KernelRing> {
        let layout = Layout {
            producer: parts.producer as usize,
            consumer: parts.consumer as usize,
            flags: parts.flags as usize,
            entries_at: parts.desc as usize,
            entries,
        };
        let bytes = entry_bytes.checked_mul(entries as usize).and_then(|n| n.checked_add(layout.entries_at));
        let bytes = bytes.ok_or(io::ErrorKind::InvalidData)?;
        let memory = Region::map(bytes, libc::MAP_SHARED | libc::MAP_POPULATE, self.0.as_raw_fd(), offset)?;
        Ok(KernelRing { memory, layout })
    }

    /// Binds to a queue; with XDP_SHARED_UMEM in `flags` to the packet buffer of `shared`.
    pub(super) fn bind(&self, index: u32, queue: u32, flags: u16, shared: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let address = libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: shared.map_or(0, |fd| fd.as_raw_fd() as u32),
        };
        let bytes = size_of_val(&address) as libc::socklen_t;
        // SAFETY: `address` is `bytes` readable bytes of a `sockaddr_xdp`, the address family's own structure.
        let result = unsafe { libc::bind(self.0.as_raw_fd(), (&raw const address).cast(), bytes) };
        check(result).map(drop)
    }

    /// Whether the bound socket really is in zero-copy mode.
    pub(super) fn is_zero_copy(&self) -> io::Result<bool> {
        let mut options = libc::xdp_options { flags: 0 };
        self.get(libc::SOL_XDP, libc::XDP_OPTIONS, &mut options)?;
        Ok(options.flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
    }

    /// The kernel's six counters since the socket was made. Costs a system call.
    pub(super) fn statistics(&self) -> io::Result<libc::xdp_statistics> {
        let mut statistics = libc::xdp_statistics {
            rx_dropped: 0,
            rx_invalid_descs: 0,
            tx_invalid_descs: 0,
            rx_ring_full: 0,
            rx_fill_ring_empty_descs: 0,
            tx_ring_empty_descs: 0,
        };
        self.get(libc::SOL_XDP, libc::XDP_STATISTICS, &mut statistics)?;
        Ok(statistics)
    }

    /// # Errors
    /// EPERM without CAP_NET_ADMIN, ENOPROTOOPT before Linux 5.11.
    pub(super) fn busy_poll(&self, options: BusyPoll) -> io::Result<()> {
        self.set(libc::SOL_SOCKET, SO_PREFER_BUSY_POLL, &1_i32)?;
        self.set(libc::SOL_SOCKET, libc::SO_BUSY_POLL, &(options.microseconds as i32))?;
        self.set(libc::SOL_SOCKET, SO_BUSY_POLL_BUDGET, &i32::from(options.budget))
    }

    /// Makes the driver look at the fill ring, and at the NIC with busy polling. Never waits.
    ///
    /// # Errors
    /// ENETDOWN while the interface is down, ENXIO when it was removed (`xsk_check_common`).
    pub(super) fn wake(&self) -> io::Result<()> {
        let (fd, nothing) = (self.0.as_raw_fd(), std::ptr::null_mut());
        let (address, bytes) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: an empty buffer, and no address asked for.
        let result = unsafe { libc::recvfrom(fd, nothing, 0, libc::MSG_DONTWAIT, address, bytes) };
        if result >= 0 {
            return Ok(());
        }
        match io::Error::last_os_error() {
            // The driver is at it already, or short of something: the next call tries again.
            e if matches!(e.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::EINTR | libc::ENOBUFS)) => Ok(()),
            e => Err(e),
        }
    }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg_attr(miri, ignore = "memory of the kernel")]
    fn an_aligned_region_starts_where_asked_and_is_writable_to_its_last_byte() {
        for (bytes, align) in [(4096, 4096), (3 << 20, 1 << 21), (1 << 21, 1 << 21)] {
            let region = Region::aligned(bytes, align).unwrap();
            assert!(region.base().addr().get().is_multiple_of(align));
            region.populate().unwrap();
            let last = region.base().as_ptr().wrapping_add(bytes - 1);
            // SAFETY: the last byte of a region that nobody else uses.
            unsafe { last.write(7) };
        }
    }

    #[test]
    fn a_node_that_cannot_be_is_an_error() {
        let region = Region::heap(4096);
        assert_eq!(region.prefer_node(1024).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
