//! The memory that kernel and program share: a ring of blocks, each owned by one side at a time.

use super::block::STATUS_AT;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

/// A mapped TPACKET_V3 receive ring.
///
/// A block whose status has TP_STATUS_USER is ours, and the kernel touches no byte of it until we store
/// TP_STATUS_KERNEL. The kernel fills blocks in order, so only the current one needs looking at.
pub(super) struct RxRing {
    /// `block_bytes * blocks` mapped bytes, readable and writable, until drop.
    base: NonNull<u8>,
    block_bytes: usize,
    blocks: usize,
    /// `current < blocks`: the block that is handed to us next, or is ours.
    current: usize,
}

// SAFETY: the mapping belongs to this value alone and is reached through it only; the kernel's side of the protocol
// does not depend on the thread.
unsafe impl Send for RxRing {}

impl RxRing {
    /// Maps the ring that PACKET_RX_RING made on `socket` with these sizes. With other sizes than the ring's the kernel
    /// refuses (EINVAL).
    pub(super) fn map(socket: BorrowedFd<'_>, block_bytes: usize, blocks: usize) -> io::Result<RxRing> {
        let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let (at, bytes) = (std::ptr::null_mut(), block_bytes * blocks);
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe { libc::mmap(at, bytes, protection, flags, socket.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(RxRing { base, block_bytes, blocks, current: 0 })
    }

    /// Start of the current block.
    fn start(&self) -> *mut u8 {
        self.base.as_ptr().wrapping_add(self.current * self.block_bytes)
    }

    fn status(&self) -> &AtomicU32 {
        let word = self.start().wrapping_add(STATUS_AT).cast();
        // SAFETY: the word lies within the current block, which is mapped as long as `self` lives; blocks are aligned to
        // pages and STATUS_AT to 4; both sides access it atomically, apart from the slice of `block`, whose exclusive
        // borrow of `self` excludes this one.
        unsafe { AtomicU32::from_ptr(word) }
    }

    /// The current block, if it is ours.
    pub(super) fn block(&mut self) -> Option<&mut [u8]> {
        // Acquire: pairs with the kernel's smp_wmb() before it stores the status (prb_close_block, af_packet.c).
        if self.status().load(Ordering::Acquire) & libc::TP_STATUS_USER == 0 {
            return None;
        }
        // SAFETY: the block is mapped, initialised by the kernel (zeroed pages at least), ours until `release`, which
        // needs the same exclusive borrow of `self` as the returned slice.
        Some(unsafe { std::slice::from_raw_parts_mut(self.start(), self.block_bytes) })
    }

    /// Gives the current block, which `block` returned, back to the kernel and goes on to the next.
    pub(super) fn release(&mut self) {
        debug_assert!(self.status().load(Ordering::Relaxed) & libc::TP_STATUS_USER != 0);
        // Release: our reads of the block come before the kernel's next writes (it reads the status, then smp_rmb()).
        self.status().store(libc::TP_STATUS_KERNEL, Ordering::Release);
        self.current = (self.current + 1) % self.blocks;
    }
}

impl Drop for RxRing {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `map` made, to which no borrow can be left.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.block_bytes * self.blocks) };
        debug_assert_eq!(result, 0);
    }
}
