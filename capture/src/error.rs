use crate::af_xdp::XdpError;
use crate::bpf::BpfError;
use crate::nic::NicError;
use crate::remote::RemoteFault;
use std::io;
use std::time::Duration;

/// Why a source could not be opened, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The file could not be opened.
    #[error("cannot open capture '{name}': {source}")]
    Open {
        /// Path as given.
        name: String,
        /// What the operating system said.
        source: io::Error,
    },
    /// Not one byte.
    #[error("capture '{name}' is empty: a pcap or pcapng file has at least a header of 24 bytes")]
    Empty {
        /// Path as given.
        name: String,
    },
    /// Not a capture.
    #[error(
        "'{name}' is no capture: it starts with {}, expected pcap (d4c3b2a1, a1b2c3d4, 4d3cb2a1, a1b23c4d, 34cdb2a1, \
         a1b2cd34), pcapng (0a0d0d0a), gzip (1f8b) or zstd (28b52ffd){}",
        Hex(*magic), hint(*magic)
    )]
    Magic {
        /// Path as given.
        name: String,
        /// The first four bytes.
        magic: [u8; 4],
    },
    /// A pcap file of a format version that is not known.
    #[error("capture '{name}' has pcap version {major}.{minor}, expected 2.x")]
    Version {
        /// Path as given.
        name: String,
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// The input ends inside a record.
    #[error(
        "capture '{name}' is cut short: the {} at byte {at_byte} has {need_bytes} bytes or more, {have_bytes} are \
         there; {}",
        if *at_byte == 0 { "header" } else { "record" }, before(*packets)
    )]
    Truncated {
        /// Path as given.
        name: String,
        /// Where the record starts, in the decompressed stream.
        at_byte: u64,
        /// Length of the record as far as it is known.
        need_bytes: u64,
        /// Bytes of it that exist.
        have_bytes: u64,
        /// Packets delivered before.
        packets: u64,
    },
    /// A record that contradicts its format.
    #[error(
        "capture '{name}' is corrupt: the record at byte {at_byte} {reason}; {}", before(*packets)
    )]
    Corrupt {
        /// Path as given.
        name: String,
        /// Where the record starts, in the decompressed stream.
        at_byte: u64,
        /// Packets delivered before.
        packets: u64,
        /// What is wrong with it.
        reason: Corruption,
    },
    /// Times that no clock shows. Every packet was read.
    #[error(
        "capture '{name}' has {} with an impossible time, a fraction of a second that is a second or more; it was \
         added as it stands, and every packet was read", packets_of(*impossible)
    )]
    Times {
        /// Path as given.
        name: String,
        /// Packets of the capture.
        packets: u64,
        /// How many of them have such a time.
        impossible: u64,
    },
    /// The compressed stream is damaged or ends early.
    #[error(
        "capture '{name}': its {format} stream fails after {at_byte} decompressed bytes ({source}); {}",
        before(*packets)
    )]
    Decompress {
        /// Path as given.
        name: String,
        /// `gzip` or `zstd`.
        format: &'static str,
        /// Bytes that were decompressed before.
        at_byte: u64,
        /// Packets delivered before.
        packets: u64,
        /// What the decompressor said.
        source: io::Error,
    },
    /// The operating system failed a read.
    #[error("reading capture '{name}' failed at byte {at_byte} ({source}); {}", before(*packets))]
    Read {
        /// Path as given.
        name: String,
        /// Bytes that were read before.
        at_byte: u64,
        /// Packets delivered before.
        packets: u64,
        /// What the operating system said.
        source: io::Error,
    },
    /// No interface of that name in this network namespace.
    #[error("no interface '{name}', there are: {}", list(existing))]
    NoInterface {
        /// Name as given.
        name: String,
        /// What there is.
        existing: Vec<String>,
    },
    /// The process may not open a packet socket.
    #[error(
        "capturing on '{name}' needs the capability CAP_NET_RAW: run with sudo, or once: sudo setcap cap_net_raw+ep on \
         the binary"
    )]
    Permission {
        /// Interface.
        name: String,
    },
    /// The interface is not up.
    #[error("interface '{name}' is down: sudo ip link set dev '{name}' up")]
    InterfaceDown {
        /// Interface.
        name: String,
    },
    /// The interface was removed while capturing.
    #[error("interface '{name}' was removed; {packets} packets were captured before")]
    InterfaceGone {
        /// Interface.
        name: String,
        /// Packets delivered before.
        packets: u64,
    },
    /// Frames of that interface have no link layer known here.
    #[error(
        "interface '{name}' has hardware type {arphrd} (ARPHRD), expected Ethernet (1), loopback (772), PPP (512) or an IP tunnel (768, 769, 776, 519, 65534)"
    )]
    Hardware {
        /// Interface.
        name: String,
        /// ARPHRD_ value, `linux/if_arp.h`.
        arphrd: u16,
    },
    /// A ring option out of range.
    #[error("ring option {field} is {value}, expected {expected}")]
    RingOption {
        /// Field of `AfPacketOptions`.
        field: &'static str,
        /// Its value.
        value: u64,
        /// What is allowed.
        expected: &'static str,
    },
    /// The kernel has no memory for the ring.
    #[error("no memory for a capture ring of {bytes} bytes on '{name}': lower the number of blocks")]
    RingMemory {
        /// Interface.
        name: String,
        /// Size of the ring.
        bytes: u64,
    },
    /// A ring block that contradicts its own lengths: kernel and program disagree on the layout.
    #[error(
        "the capture ring of '{name}' is unreadable: packet header at byte {at_byte} of a block reaches beyond it; {packets} packets were captured before"
    )]
    Ring {
        /// Interface.
        name: String,
        /// Offset in the block.
        at_byte: u64,
        /// Packets delivered before.
        packets: u64,
    },
    /// AF_XDP on an interface that the host needs.
    #[error(
        "AF_XDP takes the packets of '{name}' away from the host, and {reason}: mode af_packet takes copies, `force: true` \
         takes them all the same"
    )]
    HostTraffic {
        /// Interface.
        name: String,
        /// Why the host needs it.
        reason: String,
    },
    /// AF_XDP sockets cannot be had, or one has failed.
    #[error("{source}")]
    Xdp {
        /// What is wrong, and what to do.
        source: Box<dyn std::error::Error + Send + Sync>,
        /// Whether it is a capability that is missing.
        is_permission: bool,
    },
    /// The XDP program cannot be attached.
    #[error(transparent)]
    Bpf(#[from] BpfError),
    /// The kernel does not tell, or does not do, what an interface is asked for.
    #[error(transparent)]
    Nic(NicError),
    /// The thread that opens interfaces cannot do so any more.
    #[error("interface '{name}' cannot be opened: {reason}")]
    Opener {
        /// Interface.
        name: String,
        /// Why.
        reason: String,
    },
    /// Any other failure of a system call on a packet socket.
    #[error("capturing on '{name}': {call} failed: {source}")]
    System {
        /// Interface.
        name: String,
        /// System call and option.
        call: &'static str,
        /// What the operating system said.
        source: io::Error,
    },
    /// An option of a remote tap that cannot be.
    #[error("option {field} of the ssh source is '{value}', expected {expected}")]
    RemoteOption {
        /// Field of `SshOptions`.
        field: &'static str,
        /// Its value, fit to be shown.
        value: String,
        /// What is allowed.
        expected: &'static str,
    },
    /// A remote tap that will not come about as it is configured.
    #[error("remote tap '{name}': {reason}")]
    Remote {
        /// `ssh:HOST:INTERFACE`.
        name: String,
        /// What is wrong.
        reason: Box<RemoteFault>,
    },
    /// A remote tap without a connection. Told once for each reason, while attempts to connect go on.
    #[error(
        "remote tap '{name}' sees nothing: {reason}; {} came before, trying again in {retry:?} and for as long as it \
         takes", packets_of(*packets)
    )]
    RemoteGap {
        /// `ssh:HOST:INTERFACE`.
        name: String,
        /// Packets delivered before.
        packets: u64,
        /// Until the next attempt.
        retry: Duration,
        /// Why.
        reason: Box<RemoteFault>,
    },
}

impl From<NicError> for SourceError {
    fn from(error: NicError) -> SourceError {
        match error {
            NicError::NoInterface { name, existing } => SourceError::NoInterface { name, existing },
            error => SourceError::Nic(error),
        }
    }
}

impl From<XdpError> for SourceError {
    fn from(error: XdpError) -> SourceError {
        let is_permission = matches!(error, XdpError::Permission { .. });
        SourceError::Xdp { source: Box::new(error), is_permission }
    }
}

impl SourceError {
    /// Whether the process lacks a capability.
    pub fn is_permission(&self) -> bool {
        match self {
            SourceError::Permission { .. } | SourceError::Bpf(BpfError::Permission { .. }) => true,
            SourceError::Nic(NicError::Permission { .. }) => true,
            SourceError::Xdp { is_permission, .. } => *is_permission,
            _ => false,
        }
    }

    /// Whether packets were delivered before: the caller finishes storing them, then exits non-zero.
    pub fn is_partial(&self) -> bool {
        self.packets() > 0
    }

    /// Packets that were delivered before.
    pub fn packets(&self) -> u64 {
        match self {
            SourceError::Truncated { packets, .. }
            | SourceError::Corrupt { packets, .. }
            | SourceError::Decompress { packets, .. }
            | SourceError::Read { packets, .. }
            | SourceError::Times { packets, .. }
            | SourceError::InterfaceGone { packets, .. }
            | SourceError::Ring { packets, .. }
            | SourceError::RemoteGap { packets, .. } => *packets,
            _ => 0,
        }
    }

    /// Where in the (decompressed) input the trouble starts.
    pub fn at_byte(&self) -> Option<u64> {
        match self {
            SourceError::Truncated { at_byte, .. }
            | SourceError::Corrupt { at_byte, .. }
            | SourceError::Decompress { at_byte, .. }
            | SourceError::Read { at_byte, .. } => Some(*at_byte),
            _ => None,
        }
    }
}

/// What is wrong with a record of a capture file. Reads on after "the record at byte N".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Corruption {
    /// A packet longer than any that is accepted.
    #[error("says it holds {bytes} bytes, at most {max} are accepted")]
    PacketLength {
        /// Captured length, as the record says.
        bytes: u64,
        /// `FileOptions::packet_bytes_max`.
        max: u64,
    },
    /// A pcapng block length that cannot be.
    #[error("has block length {bytes}, expected a multiple of 4 from {min} to {max}")]
    BlockLength {
        /// Length, as the block says.
        bytes: u32,
        /// Least length of a block of its type.
        min: u32,
        /// Greatest length that is accepted.
        max: u32,
    },
    /// The two lengths around a pcapng block differ.
    #[error("has block length {first} in front and {last} behind")]
    BlockLengths {
        /// Length before the body.
        first: u32,
        /// Length after the body.
        last: u32,
    },
    /// A packet that does not fit its block.
    #[error("says it holds a packet of {bytes} bytes in a block with room for {room}")]
    PacketInBlock {
        /// Captured length, as the block says.
        bytes: u32,
        /// Room for it.
        room: u32,
    },
    /// A packet of an interface nobody described.
    #[error("is of interface {interface}, the section describes {interfaces}")]
    Interface {
        /// Index of the interface.
        interface: u32,
        /// Interfaces the section described before.
        interfaces: u32,
    },
    /// More interfaces than are accepted.
    #[error("describes one interface more than the {max} that are accepted in a section")]
    Interfaces {
        /// Most interfaces of a section.
        max: u32,
    },
    /// Neither order of the byte-order magic.
    #[error("has byte-order magic {magic:08x}, expected 1a2b3c4d or 4d3c2b1a")]
    ByteOrder {
        /// Magic, read as big-endian.
        magic: u32,
    },
    /// A section of a format version that is not known.
    #[error("starts a section of pcapng version {major}.{minor}, expected 1.x")]
    SectionVersion {
        /// Major version found.
        major: u16,
        /// Minor version found.
        minor: u16,
    },
    /// An option that ends behind its block, or has another length than its kind.
    #[error("has option {code} with impossible length {bytes}")]
    OptionLength {
        /// Option code.
        code: u16,
        /// Its length.
        bytes: u16,
    },
}

/// How many, in words.
fn packets_of(n: u64) -> String {
    if n == 1 { "1 packet".to_owned() } else { format!("{n} packets") }
}

/// What came before the damage.
fn before(packets: u64) -> String {
    match packets {
        0 => "no packet was read before".to_owned(),
        1 => "the packet before was read".to_owned(),
        n => format!("the {n} packets before were read"),
    }
}

struct Hex([u8; 4]);

impl std::fmt::Display for Hex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

/// What else people pass by mistake.
fn hint(magic: [u8; 4]) -> &'static str {
    match magic {
        [0xfd, b'7', b'z', b'X'] => "; this is xz: decompress it first",
        [b'B', b'Z', b'h', _] => "; this is bzip2: decompress it first",
        [0x04, 0x22, 0x4d, 0x18] => "; this is lz4: decompress it first",
        [b'P', b'K', 3, 4] => "; this is a zip archive: unpack it first",
        [0x1f, 0x8b, ..] | [0x28, 0xb5, 0x2f, 0xfd] => "; it is compressed twice: decompress it once",
        [0x0a, 0x0d, 0x0a, _] | [0x0a, 0x0a, ..] | [0x0d, 0x0d, 0x0a, _] => {
            "; this looks like pcapng that went through a text-mode transfer: copy it in binary mode"
        }
        [b's', b'n', b'o', b'o'] => "; this is a Solaris snoop file: convert it with editcap",
        _ => "",
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() { "none".to_owned() } else { names.join(", ") }
}
