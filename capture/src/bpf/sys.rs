//! bpf(2) and the little else that loading a program needs. Everything here is sound for any caller.
//!
//! The attributes are the parts of `union bpf_attr` (linux/bpf.h) that a command reads; the kernel takes what is behind
//! them as 0. All file descriptors it returns are close-on-exec.

use super::asm::Insn;
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;
#[cfg(test)]
use std::sync::atomic::AtomicU32;
use std::sync::atomic::{AtomicU64, Ordering};

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE_ELEM: libc::c_int = 2;
const MAP_DELETE_ELEM: libc::c_int = 3;
const PROG_LOAD: libc::c_int = 5;
const PROG_TEST_RUN: libc::c_int = 10;
const LINK_CREATE: libc::c_int = 28;

const MAP_TYPE_ARRAY: u32 = 2;
const MAP_TYPE_XSKMAP: u32 = 17;
const MAP_MMAPABLE: u32 = 1 << 10;
const PROG_TYPE_XDP: u32 = 6;
const ATTACH_TYPE_XDP: u32 = 37;
const PROG_XDP_FRAGS: u32 = 1 << 5;
const PROG_XDP_DEV_BOUND: u32 = 1 << 6;
const LINK_XDP_SKB: u32 = 1 << 1;
const LINK_XDP_DRV: u32 = 1 << 2;
const TEST_XDP_LIVE_FRAMES: u32 = 1 << 1;

/// The licence that the helpers and kernel functions in use ask of a program.
const LICENCE: &CStr = c"GPL";
/// Of programs and maps, as `bpftool` shows them.
const NAME: [u8; 16] = *b"taphouse\0\0\0\0\0\0\0\0";
/// What the verifier says is read up to this many bytes.
const LOG_BYTES_MAX: usize = 16 << 20;
/// The verifier gives up when a signal arrives, and may be asked again this often (as libbpf does).
const LOAD_ATTEMPTS: usize = 5;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    map_type: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    inner_map_fd: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
struct MapElement {
    map_fd: u32,
    padding: u32,
    key_at: u64,
    value_at: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insns: u32,
    insns_at: u64,
    licence_at: u64,
    log_level: u32,
    log_bytes: u32,
    log_at: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    interface_index: u32,
    expected_attach_type: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog_fd: u32,
    verdict: u32,
    data_in_bytes: u32,
    data_out_bytes: u32,
    data_in_at: u64,
    data_out_at: u64,
    repeat: u32,
    duration: u32,
    context_in_bytes: u32,
    context_out_bytes: u32,
    context_in_at: u64,
    context_out_at: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

#[repr(C)]
struct LinkCreate {
    prog_fd: u32,
    interface_index: u32,
    attach_type: u32,
    flags: u32,
}

/// A map from queue index to AF_XDP socket (`BPF_MAP_TYPE_XSKMAP`).
#[derive(Debug)]
pub(super) struct SocketMap(OwnedFd);

impl SocketMap {
    pub(super) fn new(queues: u32) -> io::Result<SocketMap> {
        let map = MapCreate { map_type: MAP_TYPE_XSKMAP, entries: queues, ..map_of(4) };
        create_map(map).map(SocketMap)
    }

    /// Puts a bound socket into the slot of a queue, in place of the one that is there. The kernel empties the slot when
    /// the socket is closed.
    pub(super) fn set(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        update(&self.0, queue, socket.as_raw_fd())
    }
}

impl SocketMap {
    /// Empties the slot of a queue.
    pub(super) fn clear(&self, queue: u32) -> io::Result<()> {
        let mut element = MapElement {
            map_fd: number(&self.0),
            padding: 0,
            key_at: address(&raw const queue),
            value_at: 0,
            flags: 0,
        };
        // SAFETY: the address is that of an integer, of the size of the map's keys, for reading.
        unsafe { bpf(MAP_DELETE_ELEM, &mut element) }.map(drop)
    }
}

impl AsFd for SocketMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An array of counters (`BPF_MAP_TYPE_ARRAY`), mapped into this process for reading.
#[derive(Debug)]
pub(super) struct CounterMap {
    map: OwnedFd,
    /// `words` mapped 64-bit words, readable until drop, aligned to a page.
    base: NonNull<u64>,
    words: usize,
}

// SAFETY: the mapping belongs to this value alone, stays where it is, and is only read, with atomic loads.
unsafe impl Send for CounterMap {}
// SAFETY: as above; loads from several threads do not disturb each other.
unsafe impl Sync for CounterMap {}

impl CounterMap {
    /// `entries` values of `entry_words` 64-bit words each, all 0.
    pub(super) fn new(entries: u32, entry_words: u32) -> io::Result<CounterMap> {
        let value_bytes = entry_words.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
        let map = MapCreate { map_type: MAP_TYPE_ARRAY, entries, flags: MAP_MMAPABLE, ..map_of(value_bytes) };
        let map = create_map(map)?;
        let words = (entries as usize).checked_mul(entry_words as usize).ok_or(io::ErrorKind::InvalidInput)?;
        let bytes = words.checked_mul(8).ok_or(io::ErrorKind::InvalidInput)?;
        let at = std::ptr::null_mut();
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe { libc::mmap(at, bytes, libc::PROT_READ, libc::MAP_SHARED, map.as_raw_fd(), 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::AddrNotAvailable)?;
        Ok(CounterMap { map, base, words })
    }

    /// One word, counted from the start of the array: one load, no system call.
    pub(super) fn load(&self, word: usize) -> Option<u64> {
        if word >= self.words {
            return None;
        }
        let word = self.base.as_ptr().wrapping_add(word);
        // SAFETY: the word is within the mapping, which lives as long as `self`; mappings are aligned to pages; the
        // kernel's side writes whole aligned words only; relaxed loads of 8 bytes are allowed on read-only memory.
        let word = unsafe { AtomicU64::from_ptr(word) };
        Some(word.load(Ordering::Relaxed))
    }
}

impl AsFd for CounterMap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.map.as_fd()
    }
}

impl Drop for CounterMap {
    fn drop(&mut self) {
        // SAFETY: exactly the mapping that `new` made, to which no borrow can be left.
        let result = unsafe { libc::munmap(self.base.as_ptr().cast(), self.words * 8) };
        debug_assert_eq!(result, 0);
    }
}

/// What a program is loaded with.
#[derive(Clone, Copy, Debug)]
pub(super) struct LoadOptions {
    /// Takes frames of several buffers (BPF_F_XDP_HAS_FRAGS, Linux 5.18).
    pub(super) frags: bool,
    /// Runs on this interface only, and may ask its driver for metadata (BPF_F_XDP_DEV_BOUND_ONLY, Linux 6.3).
    pub(super) bound_to: Option<u32>,
}

/// Why a program was not loaded.
#[derive(Debug)]
pub(super) struct LoadError {
    pub(super) source: io::Error,
    /// What the verifier said, if anything.
    pub(super) log: String,
}

/// A loaded XDP program.
#[derive(Debug)]
pub(super) struct Program(OwnedFd);

impl Program {
    /// Loads a program. The maps it names must be open; the program holds them from now on.
    pub(super) fn load(insns: &[Insn], options: &LoadOptions) -> Result<Program, LoadError> {
        let source = match load(insns, options, &mut []) {
            Ok(fd) => return Ok(Program(fd)),
            Err(e) => e,
        };
        // Only those that the verifier refused are worth its log.
        if !matches!(source.raw_os_error(), Some(libc::EINVAL | libc::EACCES | libc::E2BIG | libc::EPERM)) {
            return Err(LoadError { source, log: String::new() });
        }
        let mut log = vec![0; 64 << 10];
        loop {
            match load(insns, options, &mut log) {
                Ok(fd) => return Ok(Program(fd)),
                Err(e) if e.raw_os_error() == Some(libc::ENOSPC) && log.len() < LOG_BYTES_MAX => {
                    log = vec![0; log.len() * 4];
                }
                Err(_) => {
                    let text = log.split(|byte| *byte == 0).next().unwrap_or_default();
                    return Err(LoadError { source, log: String::from_utf8_lossy(text).into_owned() });
                }
            }
        }
    }

    /// Runs it once over a frame of 14 bytes or more, on no interface. Returns the verdict (`XDP_*`).
    #[cfg(test)]
    pub(super) fn test(&self, frame: &[u8]) -> io::Result<u32> {
        self.run(frame, TestRun { repeat: 1, ..TestRun::default() }).map(|run| run.verdict)
    }

    /// As [`test`](Program::test), `repeat` times; returns nanoseconds a run.
    #[cfg(test)]
    pub(super) fn time(&self, frame: &[u8], repeat: u32) -> io::Result<u32> {
        self.run(frame, TestRun { repeat, ..TestRun::default() }).map(|run| run.duration)
    }

    /// Runs it over `repeat` copies of a frame of 14 bytes or more, and does with them what it says, in batches of 64.
    pub(super) fn run_live(&self, frame: &[u8], repeat: u32) -> io::Result<()> {
        self.run(frame, TestRun { repeat, flags: TEST_XDP_LIVE_FRAMES, ..TestRun::default() }).map(drop)
    }

    fn run(&self, frame: &[u8], how: TestRun) -> io::Result<TestRun> {
        let data_in_bytes = u32::try_from(frame.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
        let mut run = TestRun { prog_fd: number(&self.0), data_in_bytes, data_in_at: address(frame.as_ptr()), ..how };
        // SAFETY: the one address is that of `data_in_bytes` readable bytes; none says where to write.
        unsafe { bpf(PROG_TEST_RUN, &mut run) }?;
        Ok(run)
    }

    /// Attaches it to an interface for as long as the link is open.
    pub(super) fn attach(&self, interface_index: u32, native: bool) -> io::Result<Link> {
        let flags = if native { LINK_XDP_DRV } else { LINK_XDP_SKB };
        let prog_fd = number(&self.0);
        let mut link = LinkCreate { prog_fd, interface_index, attach_type: ATTACH_TYPE_XDP, flags };
        // SAFETY: no addresses are passed; the command returns a new descriptor.
        unsafe { open(LINK_CREATE, &mut link) }.map(Link)
    }
}

/// A program on an interface. Closing the last descriptor takes it off.
#[derive(Debug)]
pub(super) struct Link(#[expect(dead_code, reason = "held for its drop")] OwnedFd);

/// One attempt to load a program, with the verifier's words, NUL-terminated, in `log` if that is not empty.
fn load(insns: &[Insn], options: &LoadOptions, log: &mut [u8]) -> io::Result<OwnedFd> {
    let mut flags = 0;
    if options.frags {
        flags |= PROG_XDP_FRAGS;
    }
    if options.bound_to.is_some() {
        flags |= PROG_XDP_DEV_BOUND;
    }
    let mut attributes = ProgLoad {
        prog_type: PROG_TYPE_XDP,
        insns: insns.len() as u32,
        insns_at: address(insns.as_ptr()),
        licence_at: address(LICENCE.as_ptr()),
        log_level: u32::from(!log.is_empty()),
        log_bytes: log.len() as u32,
        log_at: if log.is_empty() { 0 } else { log.as_mut_ptr().expose_provenance() as u64 },
        kernel_version: 0,
        flags,
        name: NAME,
        interface_index: options.bound_to.unwrap_or(0),
        expected_attach_type: 0,
    };
    let mut attempts = 1..LOAD_ATTEMPTS;
    loop {
        // SAFETY: the addresses are those of `insns` readable instructions, of a NUL-terminated string and of `log_bytes`
        // writable bytes, all of which outlive the call; the command returns a new descriptor.
        match unsafe { open(PROG_LOAD, &mut attributes) } {
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) && attempts.next().is_some() => {}
            result => return result,
        }
    }
}

fn map_of(value_bytes: u32) -> MapCreate {
    MapCreate { key_bytes: 4, value_bytes, name: NAME, ..MapCreate::default() }
}

fn create_map(mut attributes: MapCreate) -> io::Result<OwnedFd> {
    // SAFETY: no addresses are passed; the command returns a new descriptor.
    unsafe { open(MAP_CREATE, &mut attributes) }
}

/// Sets a value in a map whose keys and values have 4 bytes.
fn update(map: &OwnedFd, key: u32, value: i32) -> io::Result<()> {
    let (key_at, value_at) = (address(&raw const key), address(&raw const value));
    let mut element = MapElement { map_fd: number(map), padding: 0, key_at, value_at, flags: 0 };
    // SAFETY: the addresses are those of two integers, each of the size that the map was made with, for reading.
    unsafe { bpf(MAP_UPDATE_ELEM, &mut element) }.map(drop)
}

/// bpf(2).
///
/// # Safety
/// `attributes` are what the command reads, and each address in it is good for what the command does with it.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attributes` is as many initialised bytes as its size says; the rest is the caller's word.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
}

/// As [`bpf`], for commands that open a file descriptor.
///
/// # Safety
/// As for [`bpf`], and the command returns a new file descriptor.
unsafe fn open<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's word.
    let fd = unsafe { bpf(command, attributes) }?;
    // SAFETY: the kernel opened it just now, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

/// A pointer as the kernel takes it.
fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// Name of an interface in the network namespace of this thread.
pub(super) fn interface_name(index: u32) -> io::Result<String> {
    let mut name = [0_u8; libc::IF_NAMESIZE];
    // SAFETY: `name` has the IF_NAMESIZE writable bytes that the call asks for.
    let result = unsafe { libc::if_indextoname(index, name.as_mut_ptr().cast()) };
    if result.is_null() {
        return Err(io::Error::last_os_error());
    }
    let name = CStr::from_bytes_until_nul(&name).map_err(|_| io::ErrorKind::InvalidData)?;
    Ok(name.to_string_lossy().into_owned())
}

/// MTU of an interface, in bytes, by its name in the network namespace of this thread.
pub(super) fn interface_mtu(name: &str) -> io::Result<u32> {
    // SAFETY: no pointers are passed.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: `fd` was opened just now, is valid as was seen, and nobody else knows it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut request =
        libc::ifreq { ifr_name: [0; libc::IF_NAMESIZE], ifr_ifru: libc::__c_anonymous_ifr_ifru { ifru_mtu: 0 } };
    // The last byte stays NUL.
    for (to, from) in request.ifr_name[..libc::IF_NAMESIZE - 1].iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    // SAFETY: the request is a whole `ifreq` with a NUL-terminated name, and outlives the call.
    let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFMTU as _, &raw mut request) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has set this member of the union; any bytes are an integer.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// AF_XDP sockets just able to tell that a program reached them.
#[cfg(test)]
pub(super) mod stub {
    use super::{AsFd, AsRawFd, AtomicU32, BorrowedFd, FromRawFd, Ordering, OwnedFd, io};

    const CHUNK_BYTES: usize = 2048;
    const RING: u32 = 64;
    /// What frames are filled with at first.
    pub(crate) const FILLER: u8 = 0xaa;

    /// A socket with a UMEM of its own, bound to a queue in copy mode.
    pub(crate) struct Stub {
        fd: OwnedFd,
        /// `RING * CHUNK_BYTES` mapped bytes.
        umem: *mut u8,
    }

    impl Stub {
        /// With `frames <= RING` frames to receive into.
        pub(crate) fn bind(interface_index: u32, queue: u32, frames: u32) -> io::Result<Stub> {
            // SAFETY: no pointers are passed.
            let fd = unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
            check(fd)?;
            // SAFETY: opened just now and nobody else's.
            let fd = unsafe { OwnedFd::from_raw_fd(fd) };
            let umem = map(RING as usize * CHUNK_BYTES, None)?;
            // SAFETY: as many writable bytes were mapped just now.
            unsafe { umem.write_bytes(FILLER, RING as usize * CHUNK_BYTES) };
            let stub = Stub { fd, umem };
            let umem = libc::xdp_umem_reg {
                addr: umem.expose_provenance() as u64,
                len: (RING as usize * CHUNK_BYTES) as u64,
                chunk_size: CHUNK_BYTES as u32,
                headroom: 0,
                flags: 0,
                tx_metadata_len: 0,
            };
            stub.set(libc::XDP_UMEM_REG, &umem)?;
            for ring in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING, libc::XDP_RX_RING] {
                stub.set(ring, &RING)?;
            }
            stub.fill(frames.min(RING))?;
            let address = libc::sockaddr_xdp {
                sxdp_family: libc::AF_XDP as u16,
                sxdp_flags: libc::XDP_COPY,
                sxdp_ifindex: interface_index,
                sxdp_queue_id: queue,
                sxdp_shared_umem_fd: 0,
            };
            let bytes = size_of_val(&address) as libc::socklen_t;
            // SAFETY: a whole address of this family.
            check(unsafe { libc::bind(stub.fd.as_raw_fd(), (&raw const address).cast(), bytes) })?;
            Ok(stub)
        }

        fn fill(&self, frames: u32) -> io::Result<()> {
            // Four rings of producer, consumer, descriptors and flags, 64 bits each; fill is the third.
            let mut offsets = [0_u64; 16];
            self.get(libc::XDP_MMAP_OFFSETS, &mut offsets)?;
            let [producer, _, descriptors, _] = [offsets[8], offsets[9], offsets[10], offsets[11]].map(|o| o as usize);
            let bytes = descriptors + RING as usize * 8;
            let ring = map(bytes, Some((self.fd.as_fd(), libc::XDP_UMEM_PGOFF_FILL_RING as i64)))?;
            for i in 0..frames as usize {
                let descriptor = ring.wrapping_add(descriptors + 8 * i).cast::<u64>();
                // SAFETY: within the ring, aligned to 8, and the kernel looks at it only once it is produced.
                unsafe { descriptor.write((i * CHUNK_BYTES) as u64) };
            }
            // SAFETY: within the ring, aligned to 4, and shared with the kernel as an atomic.
            let producer = unsafe { AtomicU32::from_ptr(ring.wrapping_add(producer).cast()) };
            producer.store(frames, Ordering::Release);
            // SAFETY: the mapping made above, which nothing borrows any more.
            check(unsafe { libc::munmap(ring.cast(), bytes) }).map(drop)
        }

        /// The kernel's six counters: dropped, invalid rx, invalid tx, rx ring full, fill ring empty, tx ring empty.
        pub(crate) fn statistics(&self) -> io::Result<[u64; 6]> {
            let mut statistics = [0; 6];
            self.get(libc::XDP_STATISTICS, &mut statistics)?;
            Ok(statistics)
        }

        /// A copy of the UMEM. Call it once the frames were received.
        pub(crate) fn umem(&self) -> Vec<u8> {
            // SAFETY: mapped and initialised; the kernel writes no more of it, as the caller says.
            unsafe { std::slice::from_raw_parts(self.umem, RING as usize * CHUNK_BYTES) }.to_vec()
        }

        fn set<T: Copy>(&self, option: libc::c_int, value: &T) -> io::Result<()> {
            let (value, bytes) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
            // SAFETY: as many readable bytes as told.
            check(unsafe { libc::setsockopt(self.fd.as_raw_fd(), libc::SOL_XDP, option, value, bytes) }).map(drop)
        }

        fn get<const N: usize>(&self, option: libc::c_int, into: &mut [u64; N]) -> io::Result<()> {
            let mut bytes = size_of_val(into) as libc::socklen_t;
            let (into, bytes) = (into.as_mut_ptr().cast(), &raw mut bytes);
            // SAFETY: as many writable bytes as told, of integers.
            check(unsafe { libc::getsockopt(self.fd.as_raw_fd(), libc::SOL_XDP, option, into, bytes) }).map(drop)
        }
    }

    impl AsFd for Stub {
        fn as_fd(&self) -> BorrowedFd<'_> {
            self.fd.as_fd()
        }
    }

    impl Drop for Stub {
        fn drop(&mut self) {
            // SAFETY: the mapping of `bind`; the kernel holds the pages for itself as long as it needs them.
            unsafe { libc::munmap(self.umem.cast(), RING as usize * CHUNK_BYTES) };
        }
    }

    fn map(bytes: usize, of: Option<(BorrowedFd<'_>, i64)>) -> io::Result<*mut u8> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let (flags, fd, offset) = match of {
            Some((fd, offset)) => (libc::MAP_SHARED | libc::MAP_POPULATE, fd.as_raw_fd(), offset),
            None => (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0),
        };
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing of ours.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, protection, flags, fd, offset) };
        if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(base.cast()) }
    }

    fn check(result: libc::c_int) -> io::Result<libc::c_int> {
        if result >= 0 { Ok(result) } else { Err(io::Error::last_os_error()) }
    }
}
