//! The system calls that the scenes of `privileges.rs` try.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

pub(super) const SO_PREFER_BUSY_POLL: i32 = 69;
pub(super) const SO_BUSY_POLL_BUDGET: i32 = 70;
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_DETACH: libc::c_long = 34;
const LOOPBACK: u32 = 1;
/// Frames of a UMEM, and entries of each ring.
const FRAMES: usize = 64;

pub(super) fn open(family: i32) -> io::Result<OwnedFd> {
    // SAFETY: integers only.
    let fd = unsafe { libc::socket(family, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
    owned(libc::c_long::from(fd))
}

/// Sets the real user id of the calling thread: the system call itself, glibc's would set it for all.
pub(super) fn set_own_uid(uid: u32) -> io::Result<()> {
    // SAFETY: integers only.
    check(unsafe { libc::syscall(libc::SYS_setuid, uid) }).map(drop)
}

pub(super) fn limit_memlock(soft: u64, hard: u64) {
    let limit = libc::rlimit { rlim_cur: soft, rlim_max: hard };
    // SAFETY: `limit` is a readable rlimit.
    let result = unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
    check(libc::c_long::from(result)).unwrap();
}

/// `union bpf_attr`, `linux/bpf.h`, as 32-bit words.
fn bpf(command: libc::c_long, words: &[u32]) -> io::Result<libc::c_long> {
    let mut attributes = [0_u64; 16];
    for (i, word) in words.iter().enumerate() {
        attributes[i / 2] |= u64::from(*word) << (i % 2 * 32);
    }
    // SAFETY: the kernel reads that many bytes at most; addresses among them are of buffers of the callers, which
    // outlive the call and have the sizes it says.
    check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size_of_val(&attributes)) })
}

fn address<T>(of: &T) -> [u32; 2] {
    let address = (&raw const *of) as u64;
    [address as u32, (address >> 32) as u32]
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd() as u32
}

/// An XSKMAP of four slots.
pub(super) fn create_map() -> io::Result<OwnedFd> {
    bpf(BPF_MAP_CREATE, &[17, 4, 4, 4]).and_then(owned)
}

/// `r0 = XDP_PASS; exit`.
pub(super) fn load_program() -> io::Result<OwnedFd> {
    let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let licence = *b"GPL\0";
    let ([a, b], [c, d]) = (address(&instructions), address(&licence));
    bpf(BPF_PROG_LOAD, &[6, 2, a, b, c, d]).and_then(owned)
}

/// To the loopback interface, in generic mode.
pub(super) fn attach(program: &OwnedFd) -> io::Result<OwnedFd> {
    bpf(BPF_LINK_CREATE, &[number(program), LOOPBACK, 37, 2]).and_then(owned)
}

pub(super) fn detach(link: &OwnedFd) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &[number(link)]).map(drop)
}

pub(super) fn update(map: &OwnedFd, xsk: &OwnedFd) -> io::Result<()> {
    let (slot, value) = (0_u32, number(xsk));
    let ([a, b], [c, d]) = (address(&slot), address(&value));
    bpf(BPF_MAP_UPDATE_ELEM, &[number(map), 0, a, b, c, d]).map(drop)
}

pub(super) fn delete(map: &OwnedFd) -> io::Result<()> {
    let slot = 0_u32;
    let [a, b] = address(&slot);
    bpf(BPF_MAP_DELETE_ELEM, &[number(map), 0, a, b]).map(drop)
}

pub(super) fn info(program: &OwnedFd) -> io::Result<()> {
    let info = [0_u64; 64];
    let [a, b] = address(&info);
    bpf(BPF_OBJ_GET_INFO_BY_FD, &[number(program), size_of_val(&info) as u32, a, b]).map(drop)
}

/// Registers a UMEM, makes the rings and binds to queue 0 of the loopback interface.
pub(super) fn bind_xsk(xsk: &OwnedFd) -> io::Result<()> {
    // Read by nobody: the process ends before a frame arrives.
    let umem = Box::leak(vec![0_u8; (FRAMES + 1) * 4096].into_boxed_slice());
    let start = umem.as_ptr() as u64;
    let registration =
        [start.next_multiple_of(4096), (FRAMES * 4096) as u64, 4096 /* chunk size; headroom above it: 0 */, 0];
    set_value(xsk, libc::SOL_XDP, libc::XDP_UMEM_REG, &registration)?;
    for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING] {
        set(xsk, libc::SOL_XDP, ring, FRAMES as i32)?;
    }
    let address = libc::sockaddr_xdp {
        sxdp_family: libc::AF_XDP as u16,
        sxdp_flags: libc::XDP_COPY,
        sxdp_ifindex: LOOPBACK,
        sxdp_queue_id: 0,
        sxdp_shared_umem_fd: 0,
    };
    bind(xsk, &address)
}

pub(super) fn bind_packet(packet: &OwnedFd) -> io::Result<()> {
    let address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: (libc::ETH_P_ALL as u16).to_be(),
        sll_ifindex: LOOPBACK as i32,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    bind(packet, &address)
}

fn bind<T>(socket: &OwnedFd, address: &T) -> io::Result<()> {
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: `address` is `bytes` readable bytes.
    let result = unsafe { libc::bind(socket.as_raw_fd(), (&raw const *address).cast(), bytes) };
    check(libc::c_long::from(result)).map(drop)
}

pub(super) fn packet_ring(packet: &OwnedFd) -> io::Result<()> {
    let request = libc::tpacket_req { tp_block_size: 4096, tp_block_nr: 1, tp_frame_size: 2048, tp_frame_nr: 2 };
    set_value(packet, libc::SOL_PACKET, libc::PACKET_RX_RING, &request)
}

pub(super) fn promiscuous(packet: &OwnedFd) -> io::Result<()> {
    let request = libc::packet_mreq {
        mr_ifindex: LOOPBACK as i32,
        mr_type: libc::PACKET_MR_PROMISC as u16,
        mr_alen: 0,
        mr_address: [0; 8],
    };
    set_value(packet, libc::SOL_PACKET, libc::PACKET_ADD_MEMBERSHIP, &request)
}

pub(super) fn set(socket: &OwnedFd, level: i32, option: i32, value: i32) -> io::Result<()> {
    set_value(socket, level, option, &value)
}

fn set_value<T>(socket: &OwnedFd, level: i32, option: i32, value: &T) -> io::Result<()> {
    let bytes = size_of::<T>() as libc::socklen_t;
    // SAFETY: `value` is `bytes` readable bytes.
    let result = unsafe { libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const *value).cast(), bytes) };
    check(libc::c_long::from(result)).map(drop)
}

pub(super) fn get(socket: &OwnedFd, level: i32, option: i32) -> io::Result<()> {
    let mut value = [0_u64; 16];
    // XDP_OPTIONS is 4 bytes, XDP_STATISTICS 48; the kernel says how many it wrote.
    let mut bytes = size_of_val(&value) as libc::socklen_t;
    // SAFETY: `value` is `bytes` writable bytes.
    let result =
        unsafe { libc::getsockopt(socket.as_raw_fd(), level, option, value.as_mut_ptr().cast(), &raw mut bytes) };
    check(libc::c_long::from(result)).map(drop)
}

pub(super) fn is_at_least(major: u32, minor: u32) -> bool {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|n| n.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0)) >= (major, minor)
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = check(result)? as i32;
    // SAFETY: the call succeeded, so `fd` is a descriptor that it has just opened, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}
