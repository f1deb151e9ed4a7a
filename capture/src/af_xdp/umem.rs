//! The packet buffer (UMEM): one piece of memory, cut into frames of equal size.
//!
//! Frame `n` of a buffer starts at address `n * frame_bytes`; addresses are bytes from the start of the buffer, which is
//! how kernel and rings name them, too. Each socket has a range of frames to itself, and each frame of it is always in
//! exactly one place: with the kernel (fill ring, driver, rx ring) or with us (lent to a handler, about to go back).

use super::options::XdpOptions;
use super::ring::{Producer, RingFault};
use super::sys::{Region, XdpFd};
use super::{CopyMode, XdpError};
use std::fmt;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

const MIB_2: usize = 1 << 21;
const GIB_1: usize = 1 << 30;
/// Pages are at least that large on every architecture.
const PAGE_BYTES: usize = 4096;

/// What a packet buffer's memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PageKind {
    /// Reserved pages of 1 GiB.
    Huge1GiB,
    /// Reserved pages of 2 MiB.
    Huge2MiB,
    /// Pages of 2 MiB that the kernel found without a reservation.
    Transparent2MiB,
    /// Pages of the usual size.
    Normal,
}

impl PageKind {
    /// For tables.
    pub(crate) fn name(self) -> &'static str {
        match self {
            PageKind::Huge1GiB => "1 GiB",
            PageKind::Huge2MiB => "2 MiB",
            PageKind::Transparent2MiB => "2 MiB (transparent)",
            PageKind::Normal => "4 KiB",
        }
    }

    pub(crate) fn is_huge(self) -> bool {
        self != PageKind::Normal
    }
}

/// A sentence for logs and `status`.
impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageKind::Huge1GiB => "huge pages of 1 GiB",
            PageKind::Huge2MiB => "huge pages of 2 MiB",
            PageKind::Transparent2MiB => {
                "transparent huge pages of 2 MiB: as fast as reserved ones, but not sure to be had after the next start \
                 (sysctl vm.nr_hugepages reserves some)"
            }
            PageKind::Normal => {
                "normal pages of 4 KiB: every packet lies in another page, so each costs a TLB miss (some 10 ns, more in \
                 a virtual machine) and in zero-copy mode an IOMMU miss; sysctl vm.nr_hugepages reserves huge ones"
            }
        })
    }
}

/// A packet buffer, shared by up to as many sockets as it was made for.
#[derive(Clone)]
pub(crate) struct Umem(Arc<Buffer>);

/// Where a socket gets its frames from.
#[derive(Clone, Copy)]
pub(crate) enum UmemChoice<'a> {
    /// A buffer of its own.
    Own,
    /// A range of a buffer that several sockets of one worker share: one mapping, so fewer TLB entries.
    Shared(&'a Umem),
}

struct Buffer {
    memory: Arc<Region>,
    page_kind: PageKind,
    numa_node: Option<u32>,
    frame_bytes: u32,
    headroom_bytes: u32,
    /// Frames of a socket.
    frames: u32,
    shares: Mutex<Shares>,
}

#[derive(Default)]
struct Shares {
    ranges: Vec<RangeState>,
    /// Bound sockets that the buffer is registered with.
    members: Vec<Member>,
}

#[derive(Clone, Copy, Default)]
struct RangeState {
    taken: bool,
    /// Interface index and queue of the socket that had it last.
    last: Option<(u32, u32)>,
}

struct Member {
    kind: MemberKind,
    socket: Weak<XdpFd>,
}

/// What a socket that shares the buffer inherits from the one that registered it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct MemberKind {
    pub(super) copy: CopyMode,
    pub(super) multi_buffer: bool,
    pub(super) need_wakeup: bool,
}

impl Umem {
    /// A buffer for `sockets` sockets with these options, in the largest pages that are to be had, on `numa_node` where
    /// that has memory left; all of it is touched, so that no packet waits for a page.
    ///
    /// # Errors
    /// What mmap(2) said, ENOMEM above all.
    pub(crate) fn new(options: &XdpOptions, sockets: u32, numa_node: Option<u32>) -> io::Result<Umem> {
        let frames_bytes = options.frames as usize * options.frame_bytes as usize;
        let bytes = frames_bytes.checked_mul(sockets as usize).filter(|n| *n > 0).ok_or(io::ErrorKind::InvalidInput)?;
        let (memory, page_kind, numa_node) = allocate(bytes, options.huge_pages, numa_node)?;
        let ranges = vec![RangeState::default(); sockets as usize];
        Ok(Umem(Arc::new(Buffer {
            memory: Arc::new(memory),
            page_kind,
            numa_node,
            frame_bytes: options.frame_bytes,
            headroom_bytes: options.headroom_bytes,
            frames: options.frames,
            shares: Mutex::new(Shares { ranges, members: Vec::new() }),
        })))
    }

    pub(crate) fn page_kind(&self) -> PageKind {
        self.0.page_kind
    }

    /// The node that was asked for, unless the kernel would not hear of it.
    pub(crate) fn numa_node(&self) -> Option<u32> {
        self.0.numa_node
    }

    pub(crate) fn bytes(&self) -> usize {
        self.0.memory.bytes()
    }

    pub(super) fn memory(&self) -> &Region {
        &self.0.memory
    }

    /// Whether a socket with these options can use it.
    pub(super) fn check(&self, interface: &str, options: &XdpOptions) -> Result<(), XdpError> {
        let pairs = [
            ("frame_bytes", options.frame_bytes, self.0.frame_bytes),
            ("headroom_bytes", options.headroom_bytes, self.0.headroom_bytes),
            ("frames", options.frames, self.0.frames),
        ];
        match pairs.into_iter().find(|(_, value, shared)| value != shared) {
            Some((field, value, shared)) => {
                Err(XdpError::UmemShape { interface: interface.to_owned(), field, value, shared })
            }
            None => Ok(()),
        }
    }

    /// Nothing between lock and unlock panics, so a poisoned lock protects sound data.
    fn shares(&self) -> MutexGuard<'_, Shares> {
        self.0.shares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sockets that can be open at once.
    pub(super) fn sockets_max(&self) -> usize {
        self.shares().ranges.len()
    }

    /// A range of frames for the socket of a queue, until it is dropped. `None` where all are taken.
    ///
    /// The driver of a zero-copy socket writes to its frames until some time after the socket is closed; that it has
    /// stopped is known when its queue can be bound again. So a queue gets the range it had before, if that is free, and
    /// otherwise one that nobody had, and only for want of one that of another queue.
    pub(super) fn claim(&self, index: u32, queue: u32) -> Option<FrameRange> {
        let mut shares = self.shares();
        let key = Some((index, queue));
        let rank = |range: &RangeState| match range.last {
            last if last == key => 0,
            None => 1,
            Some(_) => 2,
        };
        let free = shares.ranges.iter_mut().enumerate().filter(|(_, range)| !range.taken);
        let (number, range) = free.min_by_key(|(_, range)| rank(range))?;
        *range = RangeState { taken: true, last: key };
        Some(FrameRange { umem: self.clone(), number })
    }

    /// A bound socket of that kind, through which another can join the buffer.
    pub(super) fn member(&self, kind: MemberKind) -> Option<Arc<XdpFd>> {
        let mut shares = self.shares();
        shares.members.retain(|member| member.socket.strong_count() > 0);
        shares.members.iter().filter(|member| member.kind == kind).find_map(|member| member.socket.upgrade())
    }

    /// Makes known a socket that is bound to the buffer.
    pub(super) fn join(&self, kind: MemberKind, socket: &Arc<XdpFd>) {
        self.shares().members.push(Member { kind, socket: Arc::downgrade(socket) });
    }
}

/// A range of frames that one socket has to itself.
pub(super) struct FrameRange {
    umem: Umem,
    /// Which of the buffer's ranges.
    number: usize,
}

impl Drop for FrameRange {
    fn drop(&mut self) {
        if let Some(range) = self.umem.shares().ranges.get_mut(self.number) {
            range.taken = false;
        }
    }
}

/// Memory in the largest pages there are, and on which node it was asked for.
fn allocate(bytes: usize, huge: bool, node: Option<u32>) -> io::Result<(Region, PageKind, Option<u32>)> {
    let place = |region: &Region| node.filter(|node| region.prefer_node(*node).is_ok());
    if huge {
        for (kind, page, log2) in [(PageKind::Huge1GiB, GIB_1, 30), (PageKind::Huge2MiB, MIB_2, 21)] {
            if bytes < page / 2 {
                continue;
            }
            // A reservation may be exhausted, or beyond this process's cgroup, which shows when the pages are touched.
            let Ok(region) = Region::anonymous(bytes.next_multiple_of(page), Some(log2)) else { continue };
            let node = place(&region);
            if region.populate().is_ok() {
                return Ok((region, kind, node));
            }
        }
    }
    let region = Region::aligned(bytes.next_multiple_of(PAGE_BYTES), if huge { MIB_2 } else { PAGE_BYTES })?;
    let node = place(&region);
    // Refused where the kernel has none: then there are normal pages, as the count below says.
    let advised = huge && region.advise_huge().is_ok();
    match region.populate() {
        // Before Linux 5.14. The kernel touches the pages when it pins them.
        Err(e) if e.raw_os_error() == Some(libc::EINVAL) => {}
        populated => populated?,
    }
    let whole = bytes / MIB_2 * MIB_2;
    let is_transparent = advised && whole > 0 && transparent_bytes(&region) >= whole as u64;
    Ok((region, if is_transparent { PageKind::Transparent2MiB } else { PageKind::Normal }, node))
}

/// How much of a region is in transparent huge pages, as /proc/self/smaps has it; 0 where that cannot be read. The kernel
/// may join neighbours to one mapping, so this may be more than the region has.
fn transparent_bytes(region: &Region) -> u64 {
    let address = region.base().addr().get();
    let text = std::fs::read_to_string("/proc/self/smaps").unwrap_or_default();
    let mut inside = false;
    for line in text.lines() {
        let first = line.split(' ').next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let parse = |text| usize::from_str_radix(text, 16).unwrap_or(0);
            inside = (parse(start)..parse(end)).contains(&address);
        } else if inside && let Some(rest) = line.strip_prefix("AnonHugePages:") {
            let kib: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap_or(0);
            return kib * 1024;
        }
    }
    0
}

/// Where a packet, or a part of it, lies in the buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Bytes from the start of the buffer.
    at: usize,
    bytes: usize,
}

impl Span {
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

/// The frames of one socket, and where each of them is.
///
/// Invariant: a frame is marked in `with_kernel`, or its address is in `returns`, never both and never neither.
pub(super) struct Frames {
    memory: Arc<Region>,
    /// Address of the first one.
    first: u64,
    /// log2 of the bytes of a frame.
    shift: u32,
    count: u32,
    /// One bit a frame.
    with_kernel: Vec<u64>,
    /// Addresses of the frames that are ours, in the order they go back. Of capacity `count`, so it never grows.
    returns: Vec<u64>,
    /// For as long as the frames are in use.
    _range: Option<FrameRange>,
}

impl Frames {
    /// The frames of a range, all of them ours.
    pub(super) fn new(range: FrameRange) -> Frames {
        let buffer = &range.umem.0;
        let first = range.number as u64 * u64::from(buffer.frames) * u64::from(buffer.frame_bytes);
        let (memory, frames, frame_bytes) = (buffer.memory.clone(), buffer.frames, buffer.frame_bytes);
        Frames::of(memory, first, frames, frame_bytes, Some(range))
    }

    fn of(memory: Arc<Region>, first: u64, count: u32, frame_bytes: u32, range: Option<FrameRange>) -> Frames {
        let shift = frame_bytes.trailing_zeros();
        assert!(frame_bytes.is_power_of_two() && first + (u64::from(count) << shift) <= memory.bytes() as u64);
        let with_kernel = vec![0; (count as usize).div_ceil(64)];
        let returns = (0..u64::from(count)).map(|n| first + (n << shift)).collect();
        Frames { memory, first, shift, count, with_kernel, returns, _range: range }
    }

    /// Takes over the frame of a descriptor that came out of the rx ring: it goes back with the others. `None` where the
    /// descriptor is not to be believed: outside of our frames, beyond its frame's end, or of a frame that is ours.
    #[inline]
    pub(super) fn claim(&mut self, descriptor: &libc::xdp_desc) -> Option<Span> {
        let offset = descriptor.addr.wrapping_sub(self.first);
        let frame = offset >> self.shift;
        if frame >= u64::from(self.count) {
            return None;
        }
        let (word, bit) = ((frame / 64) as usize, 1_u64 << (frame % 64));
        if self.with_kernel[word] & bit == 0 {
            return None;
        }
        self.with_kernel[word] &= !bit;
        debug_assert!(self.returns.len() < self.count as usize);
        self.returns.push(self.first + (frame << self.shift));
        let frame_bytes = 1_u64 << self.shift;
        let within = offset & (frame_bytes - 1);
        if within + u64::from(descriptor.len) > frame_bytes {
            return None;
        }
        Some(Span { at: descriptor.addr as usize, bytes: descriptor.len as usize })
    }

    /// The bytes of a span that `claim` returned.
    ///
    /// # Panics
    /// If its frame has gone back since.
    #[inline]
    pub(super) fn bytes(&self, span: Span) -> &[u8] {
        let offset = (span.at as u64).wrapping_sub(self.first);
        let frame = offset >> self.shift;
        let end = (offset & ((1 << self.shift) - 1)) + span.bytes as u64;
        assert!(frame < u64::from(self.count) && end <= 1 << self.shift, "{span:?} is not within a frame");
        assert!(self.with_kernel[(frame / 64) as usize] & 1 << (frame % 64) == 0, "{span:?} is lent to the kernel");
        let start = self.memory.base().as_ptr().wrapping_add(span.at);
        // SAFETY: the bytes lie within one frame of ours, that is, within the buffer (checked in `of`), which lives as
        // long as `self` and is initialised (zeroed pages). The frame is not with the kernel, and stays so as long as
        // the slice's shared borrow of `self` lasts, since giving it back takes an exclusive one; so nobody writes to it.
        unsafe { std::slice::from_raw_parts(start, span.bytes) }
    }

    /// The `count` bytes in front of a span, where XDP programs leave metadata; nothing where its frame starts later.
    #[inline]
    pub(super) fn in_front(&self, span: Span, count: usize) -> &[u8] {
        let within = ((span.at as u64).wrapping_sub(self.first) & ((1 << self.shift) - 1)) as usize;
        if count > within {
            return &[];
        }
        self.bytes(Span { at: span.at - count, bytes: count })
    }

    /// Asks the cache for the start of a span. Whoever wrote it ran on another core, so that it is some 100 ns away; asked
    /// for a batch at a time, packets are on their way together.
    #[inline]
    pub(super) fn prefetch(&self, span: Span) {
        let start = self.memory.base().as_ptr().wrapping_add(span.at);
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a prefetch is a hint: it reads nothing, faults on no address, and SSE is part of x86_64.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(start.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = start;
    }

    /// Gives as many of our frames as there is room for to the kernel, the oldest first.
    pub(super) fn give_back(&mut self, fill: &mut Producer<u64>) -> Result<(), RingFault> {
        if self.returns.is_empty() {
            return Ok(());
        }
        let given = fill.push(&self.returns)?;
        for address in self.returns.drain(..given) {
            let frame = (address - self.first) >> self.shift;
            self.with_kernel[(frame / 64) as usize] |= 1 << (frame % 64);
        }
        Ok(())
    }

    /// Frames that are with us.
    #[cfg(test)]
    pub(super) fn ours(&self) -> usize {
        self.returns.len()
    }

    /// Frames there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> u32 {
        self.count
    }

    #[cfg(test)]
    pub(super) fn plain(count: u32, frame_bytes: u32, first: u64) -> (Frames, Arc<Region>) {
        let memory = Arc::new(Region::heap(first as usize + count as usize * frame_bytes as usize));
        (Frames::of(memory.clone(), first, count, frame_bytes, None), memory)
    }

    /// Checks the invariant.
    #[cfg(test)]
    pub(super) fn assert_each_in_one_place(&self) {
        let mut ours = vec![0_u64; self.with_kernel.len()];
        for address in &self.returns {
            let frame = (address - self.first) >> self.shift;
            assert_eq!(ours[(frame / 64) as usize] & 1 << (frame % 64), 0, "frame {frame} goes back twice");
            ours[(frame / 64) as usize] |= 1 << (frame % 64);
        }
        for frame in 0..self.count {
            let (word, bit) = ((frame / 64) as usize, 1_u64 << (frame % 64));
            assert_ne!(ours[word] & bit == 0, self.with_kernel[word] & bit == 0, "frame {frame} is in no place or two");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::ring::plain::ring;
    use super::*;

    fn small() -> XdpOptions {
        XdpOptions { frames: 64, frame_bytes: 2048, ..XdpOptions::default() }
    }

    fn descriptor(addr: u64, len: u32) -> libc::xdp_desc {
        libc::xdp_desc { addr, len, options: 0 }
    }

    /// Frames of the second range of a buffer, all with the kernel.
    fn with_kernel() -> (Frames, Producer<u64>) {
        let (mut frames, _) = Frames::plain(4, 2048, 8192);
        let (mut fill, _) = ring(4, 0);
        frames.give_back(&mut fill).unwrap();
        assert_eq!((frames.ours(), frames.count()), (0, 4));
        (frames, fill)
    }

    #[test]
    fn a_descriptor_outside_of_the_frames_is_refused_and_changes_nothing() {
        let (mut frames, _fill) = with_kernel();
        for addr in [0, 8191, 8192 + 4 * 2048, u64::MAX, 1 << 48] {
            assert_eq!(frames.claim(&descriptor(addr, 60)), None, "{addr}");
        }
        assert_eq!(frames.ours(), 0);
        frames.assert_each_in_one_place();
    }

    #[test]
    fn a_descriptor_beyond_its_frames_end_is_refused_and_the_frame_goes_back() {
        let (mut frames, mut fill) = with_kernel();
        assert_eq!(frames.claim(&descriptor(8192 + 256, 1793)), None);
        assert_eq!(frames.claim(&descriptor(8192 + 2048, u32::MAX)), None);
        assert_eq!(frames.ours(), 2);
        frames.assert_each_in_one_place();
        assert!(frames.claim(&descriptor(8192 + 2 * 2048 + 256, 1792)).is_some());
        // The ring has four entries and the kernel has taken none, so nothing fits: the frames stay ours, and known.
        frames.give_back(&mut fill).unwrap();
        assert_eq!(frames.ours(), 3);
        frames.assert_each_in_one_place();
    }

    #[test]
    fn a_frame_is_lent_once_until_it_went_back() {
        let (mut frames, mut fill) = with_kernel();
        let span = frames.claim(&descriptor(8192 + 300, 5)).unwrap();
        assert_eq!(frames.claim(&descriptor(8192 + 300, 5)), None, "the same frame again");
        assert_eq!(frames.bytes(span), [0; 5]);
        assert_eq!(frames.in_front(span, 16).len(), 16);
        assert!(frames.in_front(span, 301).is_empty());
        frames.give_back(&mut fill).unwrap();
        assert_eq!(frames.ours(), 1, "no room yet");
        frames.bytes(span);
    }

    #[test]
    #[should_panic(expected = "is lent to the kernel")]
    fn the_bytes_of_a_frame_that_went_back_are_out_of_reach() {
        let (mut frames, _) = Frames::plain(4, 2048, 0);
        let (mut fill, mut consumer) = ring(4, 0);
        frames.give_back(&mut fill).unwrap();
        let span = frames.claim(&descriptor(256, 5)).unwrap();
        consumer.ready().unwrap();
        consumer.release(1);
        frames.give_back(&mut fill).unwrap();
        frames.bytes(span);
    }

    #[test]
    #[cfg_attr(miri, ignore = "memory of the kernel")]
    fn a_buffer_is_writable_to_its_end_and_says_what_it_is_made_of() {
        for (huge_pages, sockets) in [(false, 1), (true, 1), (true, 24)] {
            let umem = Umem::new(&XdpOptions { huge_pages, ..small() }, sockets, None).unwrap();
            assert!(umem.bytes() >= 64 * 2048 * sockets as usize);
            assert!(huge_pages || umem.page_kind() == PageKind::Normal);
            assert!(!umem.page_kind().to_string().is_empty());
            let last = umem.memory().base().as_ptr().wrapping_add(umem.bytes() - 1);
            // SAFETY: the last byte of a region that nobody else uses.
            unsafe { last.write(7) };
            println!("{} bytes: {}", umem.bytes(), umem.page_kind());
        }
        assert!(Umem::new(&small(), 0, None).is_err());
    }

    #[test]
    #[cfg_attr(miri, ignore = "memory of the kernel")]
    fn a_node_that_is_not_there_is_no_reason_to_fail() {
        assert_eq!(Umem::new(&small(), 1, Some(1000)).unwrap().numa_node(), None);
        let node = Umem::new(&small(), 1, Some(0)).unwrap().numa_node();
        assert!(matches!(node, None | Some(0)), "kernels without NUMA have no nodes");
    }

    #[test]
    #[cfg_attr(miri, ignore = "memory of the kernel")]
    fn ranges_are_disjoint_and_a_queue_gets_its_own_back() {
        let umem = Umem::new(&small(), 3, None).unwrap();
        let ranges: Vec<_> = (0..3).map(|queue| umem.claim(1, queue).unwrap()).collect();
        assert!(umem.claim(1, 3).is_none(), "there are {}", umem.sockets_max());
        let numbers: Vec<_> = ranges.iter().map(|range| range.number).collect();
        assert_eq!(numbers, [0, 1, 2]);
        drop(ranges);
        assert_eq!(umem.claim(1, 1).unwrap().number, 1);
        let frames = Frames::new(umem.claim(1, 2).unwrap());
        assert_eq!((frames.first, frames.count, frames.returns.len()), (2 * 64 * 2048, 64, 64));
        let wrong = XdpOptions { frame_bytes: 4096, ..small() };
        let message = umem.check("tap0", &wrong).unwrap_err().to_string();
        assert!(message.contains("'tap0' wants frame_bytes 4096") && message.contains("2048"), "{message}");
        umem.check("tap0", &small()).unwrap();
    }
}
