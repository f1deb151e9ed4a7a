//! Live capture through a packet socket with a TPACKET_V3 ring: a copy of each packet, the host keeps its own.

mod block;
#[allow(unsafe_code, reason = "memory shared with the kernel")]
mod ring;
#[allow(unsafe_code, reason = "system calls that std has no safe name for")]
mod sys;

use crate::file::recycle;
use crate::port::NicTotals;
use crate::sys::wait_readable;
use crate::tap::{QueueSource, wall_clock};
use crate::{BATCH_FRAMES_MAX, BatchHandler, Polled, Source, SourceCounts, SourceError, Undelivered};
use block::{Cursor, View};
use ring::RxRing;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use sys::PacketSocket;
use wire::{Frame, LinkType, TapId};

/// Longest wait of one poll.
const WAIT_MS: i32 = 100;
/// Unit in which the kernel checks the size of blocks; without meaning for version 3, whose packets are packed.
const FRAME_BYTES: u32 = 2048;

/// Interfaces that carry IP without a link layer (mobile modems); not in `libc`.
const ARPHRD_RAWIP: u16 = 519;

/// Shape of the ring, per worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AfPacketOptions {
    /// Bytes of a block, a power of two from 64 KiB to 64 MiB. A longer packet is cut.
    pub block_bytes: u32,
    /// Number of blocks, 2 to 4096. `block_bytes * blocks` is how much traffic a stall of the worker may last for.
    pub blocks: u32,
    /// After how many milliseconds the kernel hands over a block that is not full, 1 to 1000: the latency at low rates.
    pub retire_ms: u32,
    /// Whether to receive frames that are for other stations, too: the point of a tap.
    pub promiscuous: bool,
}

/// 64 MiB: half a second at 1 Gbit/s.
impl Default for AfPacketOptions {
    fn default() -> AfPacketOptions {
        AfPacketOptions { block_bytes: 1 << 20, blocks: 64, retire_ms: 10, promiscuous: true }
    }
}

/// One worker's share of an interface. The ring is unmapped and the socket closed on drop.
pub struct AfPacketSource {
    interface: String,
    index: i32,
    retire_ms: u32,
    view: View,
    /// Before `socket`: unmapped first.
    ring: RxRing,
    socket: PacketSocket,
    /// How far the current block of the ring was read.
    cursor: Option<Cursor>,
    counts: SourceCounts,
    /// Packets the kernel let in, dropped ones included (`tp_packets`).
    seen: u64,
    /// On loopback each packet would be seen going out and coming in.
    outgoing: bool,
    /// The interface went down, and may come back.
    down: bool,
    done: bool,
    /// Counters of the card, with the first of a group alone.
    nic: Option<Arc<NicTotals>>,
    frames: Vec<Frame<'static>>,
}

impl AfPacketSource {
    /// Captures all packets of an interface, its own host's included; on loopback each of them once.
    ///
    /// # Errors
    /// [`NoInterface`](SourceError::NoInterface), [`Permission`](SourceError::Permission),
    /// [`InterfaceDown`](SourceError::InterfaceDown), [`Hardware`](SourceError::Hardware),
    /// [`RingOption`](SourceError::RingOption), [`RingMemory`](SourceError::RingMemory), or
    /// [`System`](SourceError::System) for what nobody foresaw.
    pub fn open(interface: &str, tap: TapId, options: &AfPacketOptions) -> Result<AfPacketSource, SourceError> {
        let source = AfPacketSource::prepare(interface, tap, options)?;
        source.start()?;
        Ok(source)
    }

    /// Captures an interface with one source for each of `queues` workers. The kernel deals packets by a hash that is
    /// the same for both directions of a flow (PACKET_FANOUT_HASH); of a fragmented datagram it hashes the addresses
    /// alone. No packet comes twice or to the wrong worker, not even while the group forms.
    ///
    /// # Errors
    /// As [`open`](AfPacketSource::open).
    pub fn open_group(
        interface: &str,
        tap: TapId,
        options: &AfPacketOptions,
        queues: usize,
    ) -> Result<Vec<AfPacketSource>, SourceError> {
        let mut group = None;
        let mut sources = Vec::with_capacity(queues);
        for _ in 0..queues {
            let source = AfPacketSource::prepare(interface, tap, options)?;
            if queues > 1 {
                let joined = source.socket.join_fanout(group);
                group = Some(joined.map_err(|e| system(interface, "setsockopt(PACKET_FANOUT)", e))?);
            }
            sources.push(source);
        }
        for source in &sources {
            source.start()?;
        }
        Ok(sources)
    }

    /// Everything but letting packets in.
    fn prepare(interface: &str, tap: TapId, options: &AfPacketOptions) -> Result<AfPacketSource, SourceError> {
        options.check()?;
        let index = sys::interface_index(interface)
            .ok_or_else(|| SourceError::NoInterface { name: interface.to_owned(), existing: interfaces() })?;
        let socket = PacketSocket::new().map_err(|e| match e.kind() {
            io::ErrorKind::PermissionDenied => SourceError::Permission { name: interface.to_owned() },
            _ => system(interface, "socket(AF_PACKET)", e),
        })?;
        socket.close_gate().map_err(|e| system(interface, "setsockopt(SO_ATTACH_FILTER)", e))?;
        let ring = make_ring(&socket, interface, options)?;
        let arphrd = socket.bind(index).map_err(|e| system(interface, "bind", e))?;
        let pending = socket.take_error().map_err(|e| system(interface, "getsockopt(SO_ERROR)", e))?;
        match pending {
            Some(e) if e.raw_os_error() == Some(libc::ENETDOWN) => {
                return Err(SourceError::InterfaceDown { name: interface.to_owned() });
            }
            Some(e) => return Err(system(interface, "bind", e)),
            None => {}
        }
        let link = link_type(arphrd).ok_or_else(|| SourceError::Hardware { name: interface.to_owned(), arphrd })?;
        if options.promiscuous {
            let membership = libc::packet_mreq {
                mr_ifindex: index,
                mr_type: libc::PACKET_MR_PROMISC as u16,
                mr_alen: 0,
                mr_address: [0; 8],
            };
            let added = socket.set(libc::PACKET_ADD_MEMBERSHIP, &membership);
            added.map_err(|e| system(interface, "setsockopt(PACKET_MR_PROMISC)", e))?;
        }
        Ok(AfPacketSource {
            interface: interface.to_owned(),
            index,
            retire_ms: options.retire_ms,
            view: View { link, tap },
            ring,
            socket,
            cursor: None,
            counts: SourceCounts::default(),
            seen: 0,
            outgoing: arphrd != libc::ARPHRD_LOOPBACK,
            down: false,
            done: false,
            nic: None,
            frames: Vec::with_capacity(BATCH_FRAMES_MAX),
        })
    }

    fn start(&self) -> Result<(), SourceError> {
        self.socket.open_gate(self.outgoing).map_err(|e| system(&self.interface, "setsockopt(SO_DETACH_FILTER)", e))
    }

    /// Counts what the card loses, too.
    pub(crate) fn count_nic(&mut self, nic: Arc<NicTotals>) {
        self.nic = Some(nic);
    }

    /// The socket, for an event loop of the caller's: readable when a block is ready.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }

    /// How frames of this interface begin.
    pub fn link(&self) -> LinkType {
        self.view.link
    }

    /// Delivers a batch from the current block; `None` where the kernel has not handed one over.
    fn batch(&mut self, handler: &mut dyn BatchHandler) -> Result<Option<usize>, SourceError> {
        let Some(block) = self.ring.block() else { return Ok(None) };
        let cursor = self.cursor.get_or_insert_with(|| Cursor::new(block));
        let mut frames = recycle(std::mem::take(&mut self.frames));
        let outcome = cursor.frames(block, &self.view, &mut frames);
        let count = frames.len();
        if count > 0 {
            handler.batch(&frames);
            self.counts.deliver(&frames);
        }
        self.frames = recycle(frames);
        let block_done = cursor.is_at_end();
        if let Err(beyond) = outcome {
            self.done = true;
            let (name, packets) = (self.interface.clone(), self.counts.delivered);
            return Err(SourceError::Ring { name, at_byte: beyond.0 as u64, packets });
        }
        if block_done {
            self.cursor = None;
            self.ring.release();
            self.read_statistics()?;
        }
        Ok(Some(count))
    }

    /// Adds the kernel's counters to ours: once a block, since it costs a system call.
    fn read_statistics(&mut self) -> Result<(), SourceError> {
        let s = self.socket.statistics().map_err(|e| system(&self.interface, "getsockopt(PACKET_STATISTICS)", e))?;
        self.seen += u64::from(s.packets);
        self.counts.lose(Undelivered::KernelDrop, u64::from(s.drops));
        self.counts.ring_freezes += u64::from(s.freezes);
        if let Some(nic) = &self.nic {
            nic.count(&mut self.counts);
        }
        Ok(())
    }

    /// Waits for a block. A link that goes down is waited for; an interface that is gone is not.
    fn wait(&mut self, timeout_ms: i32) -> Result<bool, SourceError> {
        let name = &self.interface;
        let ready = wait_readable(self.socket.fd(), timeout_ms).map_err(|e| system(name, "poll", e))?;
        if ready && self.ring.block().is_some() {
            self.down = false;
            return Ok(true);
        }
        if ready {
            match self.socket.take_error().map_err(|e| system(name, "getsockopt(SO_ERROR)", e))? {
                Some(e) if e.raw_os_error() == Some(libc::ENETDOWN) => self.down = true,
                Some(e) => return Err(system(name, "poll", e)),
                None => {}
            }
        }
        // The kernel announces the removal of an interface as its going down, nothing more.
        if self.down && sys::interface_index(name) != Some(self.index) {
            self.done = true;
            return Err(SourceError::InterfaceGone { name: name.clone(), packets: self.counts.delivered });
        }
        Ok(false)
    }
}

impl Source for AfPacketSource {
    fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError> {
        if self.done {
            return Ok(Polled::End);
        }
        for may_wait in [true, false] {
            if let Some(count) = self.batch(handler)? {
                return Ok(Polled::Packets(count));
            }
            if may_wait && !self.wait(WAIT_MS)? {
                break;
            }
        }
        self.read_statistics()?;
        handler.idle(wall_clock());
        Ok(Polled::Idle)
    }

    /// Closes the socket to new packets, then delivers until each one the kernel let in is accounted for. That takes
    /// up to two retire timeouts, since the last block is handed over by the kernel's timer.
    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        self.socket.close_gate().map_err(|e| system(&self.interface, "setsockopt(SO_ATTACH_FILTER)", e))?;
        self.done = true;
        // A pending error would make the waits below return at once.
        self.socket.take_error().map_err(|e| system(&self.interface, "getsockopt(SO_ERROR)", e))?;
        let deadline = Instant::now() + Duration::from_millis(100 + 4 * u64::from(self.retire_ms));
        loop {
            while self.batch(handler)?.is_some() {}
            self.read_statistics()?;
            let accounted = self.counts.delivered + self.counts.undelivered(Undelivered::KernelDrop);
            if self.seen == accounted || Instant::now() >= deadline {
                return Ok(());
            }
            wait_readable(self.socket.fd(), self.retire_ms as i32).map_err(|e| system(&self.interface, "poll", e))?;
        }
    }

    fn counts(&self) -> SourceCounts {
        self.counts
    }

    fn name(&self) -> &str {
        &self.interface
    }
}

impl QueueSource for AfPacketSource {
    fn deliver(&mut self, handler: &mut dyn BatchHandler) -> Result<Option<usize>, SourceError> {
        if self.done { Ok(None) } else { self.batch(handler) }
    }

    fn check(&mut self) -> Result<(), SourceError> {
        self.wait(0)?;
        self.read_statistics()
    }

    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        Source::finish(self, handler)
    }

    fn counts(&self) -> SourceCounts {
        self.counts
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}

impl AfPacketOptions {
    fn check(&self) -> Result<(), SourceError> {
        let refuse =
            |field, value: u32, expected| Err(SourceError::RingOption { field, value: u64::from(value), expected });
        if !self.block_bytes.is_power_of_two() || !(1 << 16..=1 << 26).contains(&self.block_bytes) {
            return refuse("block_bytes", self.block_bytes, "a power of two from 65536 to 67108864");
        }
        if !(2..=4096).contains(&self.blocks) {
            return refuse("blocks", self.blocks, "2 to 4096");
        }
        if !(1..=1000).contains(&self.retire_ms) {
            return refuse("retire_ms", self.retire_ms, "1 to 1000");
        }
        Ok(())
    }

    fn ring_bytes(&self) -> u64 {
        u64::from(self.block_bytes) * u64::from(self.blocks)
    }
}

/// Sets the ring up and maps it. The order is the kernel's: version, headroom, ring.
fn make_ring(socket: &PacketSocket, interface: &str, options: &AfPacketOptions) -> Result<RxRing, SourceError> {
    let version = libc::tpacket_versions::TPACKET_V3 as libc::c_int;
    socket.set(libc::PACKET_VERSION, &version).map_err(|e| system(interface, "setsockopt(PACKET_VERSION)", e))?;
    let reserve = block::VLAN_TAG_BYTES as u32;
    socket.set(libc::PACKET_RESERVE, &reserve).map_err(|e| system(interface, "setsockopt(PACKET_RESERVE)", e))?;
    let request = libc::tpacket_req3 {
        tp_block_size: options.block_bytes,
        tp_block_nr: options.blocks,
        tp_frame_size: FRAME_BYTES,
        tp_frame_nr: options.block_bytes / FRAME_BYTES * options.blocks,
        tp_retire_blk_tov: options.retire_ms,
        tp_sizeof_priv: 0,
        tp_feature_req_word: 0,
    };
    let no_memory = || SourceError::RingMemory { name: interface.to_owned(), bytes: options.ring_bytes() };
    socket.set(libc::PACKET_RX_RING, &request).map_err(|e| match e.kind() {
        io::ErrorKind::OutOfMemory => no_memory(),
        _ => system(interface, "setsockopt(PACKET_RX_RING)", e),
    })?;
    RxRing::map(socket.fd(), options.block_bytes as usize, options.blocks as usize).map_err(|e| match e.kind() {
        io::ErrorKind::OutOfMemory => no_memory(),
        _ => system(interface, "mmap", e),
    })
}

/// What frames of an interface begin with on a raw packet socket.
fn link_type(arphrd: u16) -> Option<LinkType> {
    match arphrd {
        libc::ARPHRD_ETHER | libc::ARPHRD_LOOPBACK => Some(LinkType::Ethernet),
        // Tunnels show the packet inside. So does PPP: ppp_generic.c takes its header off before packet sockets see it.
        libc::ARPHRD_NONE
        | ARPHRD_RAWIP
        | libc::ARPHRD_TUNNEL
        | libc::ARPHRD_TUNNEL6
        | libc::ARPHRD_SIT
        | libc::ARPHRD_PPP => Some(LinkType::RawIp),
        _ => None,
    }
}

/// Interfaces of this thread's network namespace, which /sys/class/net does not always show.
fn interfaces() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let mut names: Vec<_> =
        table.lines().filter_map(|line| line.split_once(':')).map(|(name, _)| name.trim().to_owned()).collect();
    names.sort();
    names
}

#[cold]
fn system(interface: &str, call: &'static str, source: io::Error) -> SourceError {
    SourceError::System { name: interface.to_owned(), call, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_options_out_of_range_are_named() {
        AfPacketOptions::default().check().unwrap();
        let wrong = [
            (AfPacketOptions { block_bytes: 100_000, ..Default::default() }, "block_bytes is 100000"),
            (AfPacketOptions { block_bytes: 4096, ..Default::default() }, "block_bytes is 4096"),
            (AfPacketOptions { blocks: 1, ..Default::default() }, "blocks is 1,"),
            (AfPacketOptions { retire_ms: 0, ..Default::default() }, "retire_ms is 0"),
        ];
        for (options, text) in wrong {
            let message = options.check().unwrap_err().to_string();
            assert!(message.contains(text), "{message}");
        }
    }

    #[test]
    fn a_wrong_interface_is_answered_with_the_right_ones() {
        let options = AfPacketOptions::default();
        for name in ["none-such-0", "", "a\0b", "a-name-longer-than-any-interface-has"] {
            let Err(error) = AfPacketSource::open(name, TapId(0), &options) else {
                panic!("{name:?} was opened");
            };
            assert!(matches!(error, SourceError::NoInterface { .. }), "{error}");
            assert!(error.to_string().contains(" lo"), "{error}");
        }
    }
}
