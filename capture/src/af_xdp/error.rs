use super::ring::RingFault;
use std::io;

/// Why an AF_XDP socket could not be opened, or stopped. Each message says what to do next.
#[derive(Debug, thiserror::Error)]
pub(crate) enum XdpError {
    /// An option out of range.
    #[error("xdp option {field} is {value}, expected {expected}")]
    Option { field: &'static str, value: u64, expected: &'static str },
    /// The process lacks a capability.
    #[error(
        "AF_XDP on '{interface}' needs the capability {capability} ({call}): run with sudo, or once: sudo setcap \
         cap_net_raw,cap_net_admin,cap_bpf+ep on the binary"
    )]
    Permission { interface: String, capability: &'static str, call: &'static str },
    /// The kernel has no AF_XDP.
    #[error(
        "this kernel has no AF_XDP sockets: a kernel with CONFIG_XDP_SOCKETS=y is needed (Linux 5.9 or later), or mode \
         af_packet"
    )]
    NoAfXdp,
    /// The kernel is too old for the way its rings are mapped here.
    #[error("this kernel is too old for AF_XDP as it is used here ({what}): Linux 5.9 or later, or mode af_packet")]
    OldKernel { what: &'static str },
    /// RLIMIT_MEMLOCK.
    #[error(
        "'{interface}' queue {queue}: the packet buffer of {bytes} bytes is more than may be locked in memory \
         (RLIMIT_MEMLOCK is {limit}): ulimit -l {} (KiB), LimitMEMLOCK={bytes} in the systemd unit, for each queue, the \
         capability CAP_IPC_LOCK, or fewer frames", bytes.div_ceil(1024)
    )]
    Memlock { interface: String, queue: u32, bytes: u64, limit: String },
    /// No memory for buffer or rings.
    #[error("'{interface}' queue {queue}: no memory for a packet buffer of {bytes} bytes and its rings: fewer frames")]
    Memory { interface: String, queue: u32, bytes: u64 },
    /// A frame size, headroom or layout that the kernel refuses.
    #[error(
        "the kernel refuses frames of {frame_bytes} bytes with a headroom of {headroom_bytes}: frame_bytes may be at \
         most a page, and must hold 256 bytes, the headroom and a packet"
    )]
    FrameSize { frame_bytes: u32, headroom_bytes: u32 },
    /// Another socket has the queue.
    #[error(
        "'{interface}' queue {queue} is taken by another AF_XDP socket, of this or another process: stop it (ss -f xdp \
         -e lists them)"
    )]
    QueueTaken { interface: String, queue: u32 },
    /// Forced zero-copy, which is not to be had.
    #[error(
        "'{interface}' queue {queue}: its driver has no zero-copy AF_XDP{}: mode copy or auto",
        if *multi_buffer { ", or none with packets in several frames (multi_buffer: never may help)" } else { "" }
    )]
    NoZeroCopy { interface: String, queue: u32, multi_buffer: bool },
    /// No such queue.
    #[error(
        "'{interface}' has no receive queue {queue}: ethtool -l '{interface}' says how many there are{}",
        if *multi_buffer { " (a kernel before 6.6 refuses multi_buffer with the same error)" } else { "" }
    )]
    NoQueue { interface: String, queue: u32, multi_buffer: bool },
    /// The interface does not exist (any more), or the socket lost it.
    #[error("interface '{interface}' is gone")]
    InterfaceGone { interface: String },
    /// The interface is not up.
    #[error("interface '{interface}' is down: sudo ip link set dev '{interface}' up")]
    InterfaceDown { interface: String },
    /// All parts of a shared buffer are in use.
    #[error("the shared packet buffer has room for {sockets} sockets, '{interface}' queue {queue} is one more")]
    UmemFull { interface: String, queue: u32, sockets: usize },
    /// A shared buffer of another shape.
    #[error("'{interface}' wants {field} {value}, the packet buffer it shares was made with {shared}")]
    UmemShape { interface: String, field: &'static str, value: u32, shared: u32 },
    /// Kernel and program disagree about a ring.
    #[error("'{interface}' queue {queue}: {fault}; the socket has to be opened again")]
    Ring { interface: String, queue: u32, fault: RingFault },
    /// Anything else.
    #[error("AF_XDP on '{interface}' queue {queue}: {call} failed: {source}")]
    System { interface: String, queue: u32, call: &'static str, source: io::Error },
}
