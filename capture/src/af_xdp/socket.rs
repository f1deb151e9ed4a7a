//! One AF_XDP socket: one queue of one interface.

use super::receiver::{Receiver, RxPacket};
use super::ring::{Consumer, Producer, RingFault};
use super::statistics::Statistics;
use super::sys::{self, XdpFd};
use super::umem::{Frames, MemberKind, PageKind, Umem, UmemChoice};
use super::{XdpError, XdpOptions};
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a queue that is taken is asked for again: the kernel takes a closed socket off its queue in the background,
/// within some 200 ms.
const BUSY_MAX: Duration = Duration::from_secs(2);
/// How often.
const BUSY_RETRY: Duration = Duration::from_millis(10);

/// Who copies packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyMode {
    /// Nobody: the NIC writes into our frames (XDP_ZEROCOPY).
    ZeroCopy,
    /// The kernel (XDP_COPY).
    Copy,
    /// Zero-copy where the driver has it, without a word where it has not: what the tests ask the kernel for.
    #[cfg(test)]
    Kernel,
}

/// Everything that identifies a queue, for messages.
#[derive(Clone, Debug)]
struct QueueName {
    interface: String,
    queue: u32,
}

/// A bound socket. It receives what an XDP program redirects to it; closed on drop.
pub(crate) struct XskSocket {
    name: QueueName,
    /// Before `receiver`: closed before its frames can become another socket's.
    socket: Arc<XdpFd>,
    receiver: Receiver,
    umem: Umem,
    zero_copy: bool,
    busy_poll: bool,
}

impl XskSocket {
    /// Opens a socket on a queue. `index` is the interface's index; `numa_node` is where the NIC is, and only of use with
    /// [`UmemChoice::Own`]. A queue that is taken is waited for, up to 2 s: so long may a socket closed just now keep it.
    ///
    /// # Errors
    /// See [`XdpError`]; forced zero-copy gives [`NoZeroCopy`](XdpError::NoZeroCopy) where the driver has none.
    pub(crate) fn open(
        interface: &str,
        index: u32,
        queue: u32,
        copy: CopyMode,
        options: &XdpOptions,
        numa_node: Option<u32>,
        umem: UmemChoice<'_>,
    ) -> Result<XskSocket, XdpError> {
        Opening { name: QueueName { interface: interface.to_owned(), queue }, index, copy, options }.open(
            options.frames,
            numa_node,
            umem,
        )
    }

    /// The socket, for an event loop of the caller's: readable when packets are waiting.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// Whether zero-copy is in force, as the kernel says.
    pub(crate) fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// What the packet buffer is made of.
    pub(crate) fn page_kind(&self) -> PageKind {
        self.umem.page_kind()
    }

    /// The NUMA node that the packet buffer was asked for on, unless that was refused.
    pub(crate) fn numa_node(&self) -> Option<u32> {
        self.umem.numa_node()
    }

    /// How many bytes in front of each packet are lent with it: what the XDP program puts there.
    pub(crate) fn set_metadata_bytes(&mut self, bytes: u8) {
        self.receiver.set_metadata_bytes(bytes);
    }

    /// Counters since the socket was opened. Costs a system call.
    pub(crate) fn statistics(&self) -> io::Result<Statistics> {
        let kernel = self.socket.statistics()?;
        Ok(Statistics {
            rx_dropped: kernel.rx_dropped,
            rx_invalid_descs: kernel.rx_invalid_descs,
            tx_invalid_descs: kernel.tx_invalid_descs,
            rx_ring_full: kernel.rx_ring_full,
            rx_fill_ring_empty: kernel.rx_fill_ring_empty_descs,
            tx_ring_empty: kernel.tx_ring_empty_descs,
            invalid_descriptors: self.receiver.invalid(),
        })
    }

    /// Lends up to `max` packets to `f`. Their frames go back to the kernel when it returns, or panics. `None`, and no
    /// call, where no packet is waiting. Never waits, and is no system call.
    ///
    /// # Errors
    /// [`XdpError::Ring`]: the socket is of no use any more.
    pub(crate) fn receive<R>(
        &mut self,
        max: usize,
        f: impl FnOnce(&[RxPacket<'_>]) -> R,
    ) -> Result<Option<R>, XdpError> {
        self.receiver.receive(max, f).map_err(|fault| self.name.fault(fault))
    }

    /// Wakes the driver where it asked for that, or where we are the ones to run it (busy polling); to be called after
    /// batches and before waiting. True where a system call was made.
    ///
    /// # Errors
    /// [`XdpError::InterfaceDown`], [`XdpError::InterfaceGone`].
    pub(crate) fn wake_if_needed(&mut self) -> Result<bool, XdpError> {
        if !self.busy_poll && !self.receiver.needs_wakeup() {
            return Ok(false);
        }
        match self.socket.wake() {
            Ok(()) => Ok(true),
            Err(e) => Err(self.name.error("recvfrom", e)),
        }
    }

    /// Descriptors that are waiting in the rx ring.
    ///
    /// # Errors
    /// [`XdpError::Ring`].
    pub(crate) fn pending(&mut self) -> Result<u32, XdpError> {
        self.receiver.pending().map_err(|fault| self.name.fault(fault))
    }

    /// Whether the socket can still receive. poll(2) reports neither that the interface went down nor that it was
    /// removed (`xsk_poll` returns nothing at all then), so this is to be asked when nothing arrives. A system call.
    ///
    /// # Errors
    /// [`XdpError::InterfaceDown`]: the socket stays bound and goes on when the interface is up again.
    /// [`XdpError::InterfaceGone`]: it was removed, and the socket receives nothing any more.
    pub(crate) fn check(&self) -> Result<(), XdpError> {
        self.socket.wake().map_err(|e| self.name.error("recvfrom", e))
    }
}

#[cfg(test)]
impl XskSocket {
    /// A socket in copy mode on queue 0 whose rx ring is smaller than its number of frames.
    pub(super) fn open_with_rx_ring(
        interface: &str,
        index: u32,
        rx_entries: u32,
        options: &XdpOptions,
    ) -> Result<XskSocket, XdpError> {
        let name = QueueName { interface: interface.to_owned(), queue: 0 };
        Opening { name, index, copy: CopyMode::Copy, options }.open(rx_entries, None, UmemChoice::Own)
    }

    /// Writes any addresses into the fill ring.
    pub(super) fn post_to_fill_ring(&mut self, addresses: &[u64]) {
        self.receiver.post_to_fill_ring(addresses);
    }
}

/// A socket on its way to be bound.
struct Opening<'a> {
    name: QueueName,
    index: u32,
    copy: CopyMode,
    options: &'a XdpOptions,
}

impl Opening<'_> {
    /// With an rx ring of `rx_entries`; with one smaller than the number of frames it may overflow.
    fn open(&self, rx_entries: u32, node: Option<u32>, choice: UmemChoice<'_>) -> Result<XskSocket, XdpError> {
        self.options.check()?;
        let socket = XdpFd::new().map_err(|e| self.name.error("socket(AF_XDP)", e))?;
        let umem = match choice {
            UmemChoice::Own => Umem::new(self.options, 1, node).map_err(|e| self.memory("mmap", e))?,
            UmemChoice::Shared(umem) => umem.clone(),
        };
        umem.check(&self.name.interface, self.options)?;
        let Some(range) = umem.claim(self.index, self.name.queue) else {
            let QueueName { interface, queue } = self.name.clone();
            return Err(XdpError::UmemFull { interface, queue, sockets: umem.sockets_max() });
        };
        let host = umem.member(self.kind());
        if host.is_none() {
            let registered = socket.register(umem.memory(), self.options.frame_bytes, self.options.headroom_bytes);
            registered.map_err(|e| self.registration(&umem, e))?;
        }
        if let Some(busy_poll) = self.options.busy_poll {
            socket.busy_poll(busy_poll).map_err(|e| self.name.error("setsockopt(SO_PREFER_BUSY_POLL)", e))?;
        }
        let receiver = self.receiver(&socket, rx_entries, Frames::new(range))?;
        self.bind(&socket, host.as_deref())?;
        let zero_copy = socket.is_zero_copy().map_err(|e| self.name.error("getsockopt(XDP_OPTIONS)", e))?;
        let socket = Arc::new(socket);
        umem.join(self.kind(), &socket);
        let busy_poll = self.options.busy_poll.is_some();
        Ok(XskSocket { name: self.name.clone(), socket, receiver, umem, zero_copy, busy_poll })
    }

    fn kind(&self) -> MemberKind {
        let XdpOptions { multi_buffer, need_wakeup, .. } = *self.options;
        MemberKind { copy: self.copy, multi_buffer, need_wakeup }
    }

    /// Makes and maps the rings, and fills the fill ring.
    fn receiver(&self, socket: &XdpFd, rx_entries: u32, frames: Frames) -> Result<Receiver, XdpError> {
        let rings = socket.rings(rx_entries, self.options.frames).map_err(|(call, e)| self.memory(call, e))?;
        let (rx, fill) = rings.ok_or(XdpError::OldKernel { what: "rings without flags" })?;
        let (rx, fill) = (Consumer::of_rx(rx), Producer::of_fill(fill));
        let (Some(rx), Some(fill)) = (rx, fill) else {
            return Err(XdpError::OldKernel { what: "rings of an unknown layout" });
        };
        Receiver::new(rx, fill, frames, self.options.multi_buffer).map_err(|fault| self.name.fault(fault))
    }

    fn bind(&self, socket: &XdpFd, host: Option<&XdpFd>) -> Result<(), XdpError> {
        let flag = |on, flag| if on { flag } else { 0 };
        let copy = match self.copy {
            CopyMode::ZeroCopy => libc::XDP_ZEROCOPY,
            CopyMode::Copy => libc::XDP_COPY,
            #[cfg(test)]
            CopyMode::Kernel => 0,
        };
        let own = copy
            | flag(self.options.need_wakeup, libc::XDP_USE_NEED_WAKEUP)
            | flag(self.options.multi_buffer, libc::XDP_USE_SG);
        // A socket that shares takes these over from its host (xp_assign_dev_shared), and may not give them.
        let flags = if host.is_some() { libc::XDP_SHARED_UMEM } else { own };
        let deadline = Instant::now() + BUSY_MAX;
        loop {
            match socket.bind(self.index, self.name.queue, flags, host.map(XdpFd::fd)) {
                Ok(()) => return Ok(()),
                Err(e) if e.raw_os_error() == Some(libc::EBUSY) && Instant::now() < deadline => {
                    std::thread::sleep(BUSY_RETRY);
                }
                Err(e) => return Err(self.refused(e)),
            }
        }
    }

    #[cold]
    fn refused(&self, source: io::Error) -> XdpError {
        let QueueName { interface, queue } = self.name.clone();
        let multi_buffer = self.options.multi_buffer;
        match source.raw_os_error() {
            Some(libc::EBUSY) => XdpError::QueueTaken { interface, queue },
            Some(libc::EOPNOTSUPP) => XdpError::NoZeroCopy { interface, queue, multi_buffer },
            Some(libc::EINVAL) => XdpError::NoQueue { interface, queue, multi_buffer },
            _ => self.name.error("bind", source),
        }
    }

    #[cold]
    fn registration(&self, umem: &Umem, source: io::Error) -> XdpError {
        let QueueName { interface, queue } = self.name.clone();
        let bytes = umem.bytes() as u64;
        let XdpOptions { frame_bytes, headroom_bytes, .. } = *self.options;
        match source.raw_os_error() {
            Some(libc::ENOBUFS) => XdpError::Memlock { interface, queue, bytes, limit: sys::memlock_limit() },
            Some(libc::EINVAL) => XdpError::FrameSize { frame_bytes, headroom_bytes },
            Some(libc::ENOMEM) => XdpError::Memory { interface, queue, bytes },
            _ => self.name.error("setsockopt(XDP_UMEM_REG)", source),
        }
    }

    #[cold]
    fn memory(&self, call: &'static str, source: io::Error) -> XdpError {
        let QueueName { interface, queue } = self.name.clone();
        let bytes = u64::from(self.options.frames) * u64::from(self.options.frame_bytes);
        match source.kind() {
            io::ErrorKind::OutOfMemory => XdpError::Memory { interface, queue, bytes },
            _ => self.name.error(call, source),
        }
    }
}

impl QueueName {
    #[cold]
    fn fault(&self, fault: RingFault) -> XdpError {
        let QueueName { interface, queue } = self.clone();
        XdpError::Ring { interface, queue, fault }
    }

    #[cold]
    fn error(&self, call: &'static str, source: io::Error) -> XdpError {
        let QueueName { interface, queue } = self.clone();
        match source.raw_os_error() {
            Some(libc::EPERM | libc::EACCES) => {
                let busy_poll = call.contains("BUSY_POLL");
                let capability = if busy_poll { "CAP_NET_ADMIN" } else { "CAP_NET_RAW" };
                XdpError::Permission { interface, capability, call }
            }
            Some(libc::EAFNOSUPPORT) => XdpError::NoAfXdp,
            Some(libc::ENODEV | libc::ENXIO) => XdpError::InterfaceGone { interface },
            Some(libc::ENETDOWN) => XdpError::InterfaceDown { interface },
            _ => XdpError::System { interface, queue, call, source },
        }
    }
}
