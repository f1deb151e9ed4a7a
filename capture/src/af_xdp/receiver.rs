//! From descriptors to packets: everything about a socket but the system calls, so that it runs on plain memory, too.

use super::ring::{Consumer, Producer, RingFault};
use super::umem::{Frames, Span};

/// Longest packet that is put together from several frames, in bytes; more of it is left out. The longest that the
/// kernel has (GSO_LEGACY_MAX_SIZE), and more than any wire's.
pub(super) const PACKET_BYTES_MAX: usize = 1 << 16;
/// Room for the long packets of one batch, in bytes: what exceeds it waits for the next.
const SCRATCH_BYTES: usize = 8 * PACKET_BYTES_MAX;
/// Most bytes of metadata: what fits in the headroom that the kernel keeps.
const METADATA_BYTES_MAX: usize = 255;

/// A packet, lent for the length of the call.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RxPacket<'a> {
    /// The packet, at most 64 KiB of it.
    pub(crate) data: &'a [u8],
    /// The bytes in front of it that the XDP program has written, as many as were asked for; whether it has written them
    /// is for the caller to know. Empty where none were asked for.
    pub(crate) metadata: &'a [u8],
    /// Length of the packet, in bytes, also where `data` is cut.
    pub(crate) wire_len: u32,
}

/// Where a packet of the current batch is.
#[derive(Clone, Copy)]
enum Part {
    /// In one frame.
    Frame(Span),
    /// Put together in the scratch buffer.
    Scratch(Gathered),
}

/// A packet in the scratch buffer, metadata in front.
#[derive(Clone, Copy)]
struct Gathered {
    start: usize,
    metadata_bytes: usize,
    end: usize,
    wire_len: u32,
}

/// Packets that are put together from several frames, one after the other.
struct Scratch {
    /// Of fixed capacity; what is in there is initialised.
    bytes: Vec<u8>,
    /// The packet whose last frame is still to come.
    open: Option<Gathered>,
    /// One of its descriptors was invalid: it will be left out.
    open_is_broken: bool,
}

impl Scratch {
    /// Room for another packet of any length?
    fn has_room(&self) -> bool {
        self.bytes.len() + METADATA_BYTES_MAX + PACKET_BYTES_MAX <= self.bytes.capacity()
    }

    /// Forgets the packets of the last batch; the unfinished one moves to the front.
    fn restart(&mut self) {
        match &mut self.open {
            None => self.bytes.clear(),
            Some(open) => {
                self.bytes.drain(..open.start);
                open.end -= open.start;
                open.start = 0;
            }
        }
    }

    /// Adds a part to the unfinished packet, which its first part opens.
    fn append(&mut self, metadata: &[u8], data: &[u8]) {
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let start = self.bytes.len();
                self.bytes.extend_from_slice(metadata);
                let end = self.bytes.len();
                self.open.insert(Gathered { start, metadata_bytes: metadata.len(), end, wire_len: 0 })
            }
        };
        let have = open.end - open.start - open.metadata_bytes;
        let more = data.len().min(PACKET_BYTES_MAX - have);
        self.bytes.extend_from_slice(&data[..more]);
        open.end += more;
        open.wire_len = open.wire_len.saturating_add(data.len() as u32);
    }

    /// Ends the unfinished packet; `None` where it is broken.
    fn close(&mut self) -> Option<Gathered> {
        let closed = self.open.take()?;
        if std::mem::take(&mut self.open_is_broken) {
            self.bytes.truncate(closed.start);
            return None;
        }
        Some(closed)
    }
}

/// The two rings of a socket and its frames.
pub(super) struct Receiver {
    rx: Consumer<libc::xdp_desc>,
    fill: Producer<u64>,
    frames: Frames,
    /// The packets of the current batch.
    parts: Vec<Part>,
    scratch: Scratch,
    metadata_bytes: usize,
    /// Packets that were left out because a descriptor of theirs is not to be believed.
    invalid: u64,
    /// What was found wrong after a batch was delivered: the next call says so.
    fault: Option<RingFault>,
    /// Empty; its allocation is what each batch is lent in.
    packets: Vec<RxPacket<'static>>,
}

/// Frames that were taken out of the rx ring go back, however the batch ends.
struct Lease<'a>(&'a mut Receiver);

impl Drop for Lease<'_> {
    fn drop(&mut self) {
        if let Err(fault) = self.0.frames.give_back(&mut self.0.fill) {
            self.0.fault = Some(fault);
        }
    }
}

impl Receiver {
    /// Puts all frames into the fill ring. Where packets may take several frames, a scratch buffer of 512 KiB is kept.
    pub(super) fn new(
        rx: Consumer<libc::xdp_desc>,
        fill: Producer<u64>,
        frames: Frames,
        multi_buffer: bool,
    ) -> Result<Receiver, RingFault> {
        let scratch_bytes = if multi_buffer { SCRATCH_BYTES } else { 0 };
        let scratch = Scratch { bytes: Vec::with_capacity(scratch_bytes), open: None, open_is_broken: false };
        let mut receiver = Receiver {
            rx,
            fill,
            frames,
            parts: Vec::new(),
            scratch,
            metadata_bytes: 0,
            invalid: 0,
            fault: None,
            packets: Vec::new(),
        };
        receiver.frames.give_back(&mut receiver.fill)?;
        Ok(receiver)
    }

    /// How many bytes in front of each packet are lent with it, at most 255.
    pub(super) fn set_metadata_bytes(&mut self, bytes: u8) {
        self.metadata_bytes = usize::from(bytes);
    }

    /// Packets that were left out.
    pub(super) fn invalid(&self) -> u64 {
        self.invalid
    }

    /// Whether the kernel wants to be told of new frames.
    pub(super) fn needs_wakeup(&self) -> bool {
        self.fill.needs_wakeup()
    }

    /// Descriptors that are waiting.
    pub(super) fn pending(&mut self) -> Result<u32, RingFault> {
        self.rx.ready()
    }

    /// Lends up to `max` packets to `f`; their frames go back to the kernel afterwards, also if `f` panics. `None`, and
    /// no call, where there is no packet.
    pub(super) fn receive<R>(
        &mut self,
        max: usize,
        f: impl FnOnce(&[RxPacket<'_>]) -> R,
    ) -> Result<Option<R>, RingFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let lease = Lease(self);
        lease.0.gather(max)?;
        if lease.0.parts.is_empty() {
            return Ok(None);
        }
        let mut packets = recycle(std::mem::take(&mut lease.0.packets));
        packets.extend(lease.0.parts.iter().map(|part| lease.0.packet(part)));
        let result = f(&packets);
        lease.0.packets = recycle(packets);
        Ok(Some(result))
    }

    /// Writes any addresses into the fill ring.
    #[cfg(test)]
    pub(super) fn post_to_fill_ring(&mut self, addresses: &[u64]) {
        assert!(self.fill.push_all(addresses).unwrap());
    }

    /// Takes descriptors out of the rx ring until `max` packets are complete, or there are no more.
    fn gather(&mut self, max: usize) -> Result<(), RingFault> {
        self.parts.clear();
        self.scratch.restart();
        while self.parts.len() < max {
            let want = u32::try_from(max - self.parts.len()).unwrap_or(u32::MAX);
            let ready = self.rx.peek(want)?;
            let mut taken = 0;
            while taken < ready && self.take(self.rx.get(taken)) {
                taken += 1;
            }
            // Before the frames go back: with as many entries as frames the kernel then never finds the rx ring full.
            self.rx.release(taken);
            if taken == 0 || taken < ready {
                break;
            }
        }
        Ok(())
    }

    /// Takes over one descriptor. False where it has to wait for the next batch.
    #[inline]
    fn take(&mut self, descriptor: libc::xdp_desc) -> bool {
        let continued = descriptor.options & libc::XDP_PKT_CONTD != 0;
        if continued || self.scratch.open.is_some() {
            return self.take_fragment(&descriptor, continued);
        }
        match self.frames.claim(&descriptor) {
            Some(span) => {
                self.frames.prefetch(span);
                self.parts.push(Part::Frame(span));
            }
            None => self.invalid += 1,
        }
        true
    }

    /// Takes over one of several frames of a packet: its bytes are copied, so that `data` is in one piece.
    fn take_fragment(&mut self, descriptor: &libc::xdp_desc, continued: bool) -> bool {
        let is_first = self.scratch.open.is_none();
        let has_room = !is_first || self.scratch.has_room();
        if !has_room && !self.parts.is_empty() {
            return false;
        }
        match self.frames.claim(descriptor) {
            Some(span) if has_room => {
                let metadata = if is_first { self.frames.in_front(span, self.metadata_bytes) } else { &[] };
                self.scratch.append(metadata, self.frames.bytes(span));
            }
            // No room at all: several frames were not asked for.
            _ => {
                self.scratch.append(&[], &[]);
                self.scratch.open_is_broken = true;
            }
        }
        if !continued {
            match self.scratch.close() {
                Some(gathered) => self.parts.push(Part::Scratch(gathered)),
                None => self.invalid += 1,
            }
        }
        true
    }

    #[inline]
    fn packet(&self, part: &Part) -> RxPacket<'_> {
        match *part {
            Part::Frame(span) => RxPacket {
                data: self.frames.bytes(span),
                metadata: self.frames.in_front(span, self.metadata_bytes),
                wire_len: span.bytes() as u32,
            },
            Part::Scratch(Gathered { start, metadata_bytes, end, wire_len }) => {
                let (metadata, data) = self.scratch.bytes[start..end].split_at(metadata_bytes);
                RxPacket { data, metadata, wire_len }
            }
        }
    }
}

/// An empty vector of packets of any lifetime in the allocation of another, as [`crate::file::recycle`].
fn recycle<'b>(mut packets: Vec<RxPacket<'_>>) -> Vec<RxPacket<'b>> {
    packets.clear();
    packets.into_iter().map(|_| unreachable!("the vector was cleared")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::ring::plain;
    use super::super::sys::Region;
    use super::*;
    use libc::xdp_desc;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use std::panic::{AssertUnwindSafe, catch_unwind};
    use std::sync::Arc;

    const FRAME_BYTES: u32 = 2048;
    /// Address of the first frame: that of the second range of a shared buffer.
    const FIRST: u64 = 16 * FRAME_BYTES as u64;

    /// The naive kernel: it takes frames from the fill ring, writes packets into them, and says so in the rx ring.
    struct Kernel {
        fill: Consumer<u64>,
        rx: Producer<xdp_desc>,
        memory: Arc<Region>,
        /// Frames that came out of the fill ring and went nowhere yet.
        free: VecDeque<u64>,
        /// Number of the next packet, and what the receiver has to deliver.
        next: u32,
        expected: VecDeque<Vec<u8>>,
        invalid: u64,
    }

    /// Content of a packet: its number, then bytes that depend on it.
    fn content(number: u32, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len).map(|i| (number as usize * 7 + i) as u8).collect();
        bytes[..4].copy_from_slice(&number.to_le_bytes());
        bytes
    }

    fn start(frames: u32, at: u32, multi_buffer: bool) -> (Receiver, Kernel) {
        let (fill, kernel_fill) = plain::ring(frames, at);
        let (kernel_rx, rx) = plain::ring(frames, at.wrapping_mul(31));
        let (frames, memory) = Frames::plain(frames, FRAME_BYTES, FIRST);
        let receiver = Receiver::new(rx, fill, frames, multi_buffer).unwrap();
        let kernel = Kernel {
            fill: kernel_fill,
            rx: kernel_rx,
            memory,
            free: VecDeque::new(),
            next: 0,
            expected: VecDeque::new(),
            invalid: 0,
        };
        (receiver, kernel)
    }

    impl Kernel {
        /// Takes up to `max` frames, each of which must be free.
        fn take_frames(&mut self, max: u32) {
            let ready = self.fill.peek(max).unwrap();
            for n in 0..ready {
                let address = self.fill.get(n);
                assert!(!self.free.contains(&address), "frame {address} is in the fill ring and with the driver");
                self.free.push_back(address);
            }
            self.fill.release(ready);
        }

        fn descriptor(&mut self, addr: u64, len: usize, continued: bool) {
            let options = if continued { libc::XDP_PKT_CONTD } else { 0 };
            assert!(self.rx.push_all(&[xdp_desc { addr, len: len as u32, options }]).unwrap());
        }

        /// Frames and entries of the rx ring; descriptors that point nowhere take up entries, too.
        fn has_room(&mut self, descriptors: usize) -> bool {
            self.free.len() >= descriptors && self.rx.free() as usize >= descriptors
        }

        /// Receives a packet of `len` bytes in parts of at most `part`, if there are frames for it.
        fn packet(&mut self, len: usize, part: usize) {
            if !self.has_room(len.div_ceil(part)) {
                return;
            }
            let bytes = content(self.next, len);
            self.next += 1;
            let parts = bytes.chunks(part).count();
            for (n, chunk) in bytes.chunks(part).enumerate() {
                let at = self.write(chunk, self.next);
                self.descriptor(at, chunk.len(), n + 1 < parts);
            }
            self.expected.push_back(bytes);
        }

        /// Writes into a free frame, with 8 bytes of metadata in front; returns where.
        fn write(&mut self, chunk: &[u8], metadata: u32) -> u64 {
            let at = self.free.pop_front().unwrap() + 256;
            let bytes = [&[0xa5; 4], &metadata.to_le_bytes(), chunk].concat();
            self.memory.write_as_kernel(at as usize - 8, &bytes);
            at
        }

        /// A packet of several parts, the first of which points nowhere.
        fn broken_packet(&mut self, parts: usize) {
            if !self.has_room(parts + 1) {
                return;
            }
            self.descriptor(3, 60, true);
            for n in 1..parts {
                let at = self.write(&[1; 60], 0);
                self.descriptor(at, 60, n + 1 < parts);
            }
            if parts == 1 {
                self.descriptor(FIRST - 1, 60, false);
            }
            self.invalid += 1;
        }

        /// A frame that is fine with a length that is not: the packet is lost, the frame is not.
        fn too_long(&mut self) {
            if self.has_room(1) {
                let address = self.free.pop_front().unwrap();
                self.descriptor(address + 256, FRAME_BYTES as usize - 255, false);
                self.invalid += 1;
            }
        }
    }

    /// Receives a batch and compares it with what was sent. Returns how many packets there were.
    fn receive(receiver: &mut Receiver, kernel: &mut Kernel, max: usize) -> usize {
        let got = receiver.receive(max, |packets| {
            assert!((1..=max).contains(&packets.len()));
            for packet in packets {
                let expected = kernel.expected.pop_front().unwrap();
                assert_eq!(packet.wire_len as usize, expected.len());
                assert!(packet.data == expected, "{:?} instead of {:?}", &packet.data[..4], &expected[..4]);
                let number = u32::from_le_bytes(expected[..4].try_into().unwrap()) + 1;
                assert_eq!(packet.metadata, number.to_le_bytes());
            }
            packets.len()
        });
        receiver.frames.assert_each_in_one_place();
        got.unwrap().unwrap_or(0)
    }

    #[derive(Clone, Debug)]
    enum Step {
        TakeFrames(u32),
        Packet(usize),
        Jumbo(usize),
        Broken(usize),
        TooLong,
        Receive(usize),
        Panic(usize),
        Wakeup(bool),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0_u32..20).prop_map(Step::TakeFrames),
            8 => (4_usize..=1792).prop_map(Step::Packet),
            3 => (1793_usize..9000).prop_map(Step::Jumbo),
            1 => (1_usize..4).prop_map(Step::Broken),
            1 => Just(Step::TooLong),
            6 => (1_usize..20).prop_map(Step::Receive),
            1 => (1_usize..20).prop_map(Step::Panic),
            1 => any::<bool>().prop_map(Step::Wakeup),
        ]
    }

    /// Every packet arrives once, in order and whole; every frame is always in one place, and none is missing at the end.
    fn run(frames: u32, at: u32, steps: Vec<Step>) {
        let (mut receiver, mut kernel) = start(frames, at, true);
        receiver.set_metadata_bytes(4);
        for step in steps {
            match step {
                Step::TakeFrames(n) => kernel.take_frames(n),
                Step::Packet(len) => kernel.packet(len, 1792),
                Step::Jumbo(len) => kernel.packet(len, 1792),
                Step::Broken(parts) => kernel.broken_packet(parts),
                Step::TooLong => kernel.too_long(),
                Step::Receive(max) => drop(receive(&mut receiver, &mut kernel, max)),
                Step::Panic(max) => {
                    let mut seen = 0;
                    let result = catch_unwind(AssertUnwindSafe(|| {
                        receiver.receive(max, |packets| {
                            seen = packets.len();
                            std::panic::resume_unwind(Box::new("the handler gives up"));
                        })
                    }));
                    assert!(result.is_err() == (seen > 0));
                    kernel.expected.drain(..seen);
                    receiver.frames.assert_each_in_one_place();
                }
                Step::Wakeup(on) => {
                    kernel.fill.set_need_wakeup(on);
                    assert_eq!(receiver.needs_wakeup(), on);
                }
            }
        }
        while receiver.pending().unwrap() > 0 || receiver.frames.ours() > 0 {
            receive(&mut receiver, &mut kernel, 64);
            kernel.take_frames(frames);
        }
        kernel.take_frames(frames);
        assert_eq!((kernel.expected.len(), receiver.invalid()), (0, kernel.invalid));
        let mut all: Vec<u64> = kernel.free.iter().map(|address| address & !u64::from(FRAME_BYTES - 1)).collect();
        all.sort_unstable();
        let whole: Vec<u64> = (0..u64::from(frames)).map(|n| FIRST + n * u64::from(FRAME_BYTES)).collect();
        assert_eq!(all, whole, "all frames are with the kernel again");
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 8 } else { 512 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]
        #[test]
        fn no_frame_is_leaked_or_lent_twice(
            at in prop_oneof![Just(0), Just(u32::MAX - 5), any::<u32>()],
            log2 in 2_u32..6,
            steps in prop::collection::vec(step(), 0..if cfg!(miri) { 30 } else { 200 }),
        ) {
            run(1 << log2, at, steps);
        }
    }

    #[test]
    fn a_packet_in_several_frames_may_arrive_over_several_calls() {
        let (mut receiver, mut kernel) = start(8, u32::MAX, true);
        receiver.set_metadata_bytes(4);
        kernel.take_frames(8);
        kernel.packet(100, 1792);
        let long = content(1, 5000);
        let mut batches = Vec::new();
        for (n, chunk) in long.chunks(1792).enumerate() {
            let at = kernel.write(chunk, 2);
            kernel.descriptor(at, chunk.len(), n < 2);
            if n == 2 {
                kernel.expected.push_back(long.clone());
            }
            batches.push(receive(&mut receiver, &mut kernel, 8));
            assert_eq!(receiver.frames.ours(), 0, "a part that waits keeps no frame");
            kernel.take_frames(8);
            assert_eq!(kernel.free.len(), 8);
        }
        assert_eq!(batches, [1, 0, 1], "the packet before it, nothing, itself");
    }

    #[test]
    #[cfg_attr(miri, ignore = "many bytes")]
    fn a_packet_beyond_the_longest_is_cut_and_says_how_long_it_was() {
        let (mut receiver, mut kernel) = start(64, 0, true);
        kernel.take_frames(64);
        kernel.packet(PACKET_BYTES_MAX + 1000, 1792);
        let expected = kernel.expected.pop_front().unwrap();
        let got = receiver.receive(8, |packets| {
            assert_eq!(packets.len(), 1);
            assert_eq!(packets[0].wire_len as usize, PACKET_BYTES_MAX + 1000);
            assert!(packets[0].data == &expected[..PACKET_BYTES_MAX]);
        });
        assert_eq!(got.unwrap(), Some(()));
    }

    #[test]
    #[cfg_attr(miri, ignore = "many bytes")]
    fn a_batch_ends_when_the_scratch_buffer_is_full_and_the_rest_follows() {
        let (mut receiver, mut kernel) = start(1024, 0, true);
        kernel.take_frames(1024);
        receiver.set_metadata_bytes(4);
        for _ in 0..20 {
            kernel.packet(60_000, 1792);
        }
        let batches: Vec<usize> =
            std::iter::from_fn(|| Some(receive(&mut receiver, &mut kernel, 64))).take_while(|n| *n > 0).collect();
        assert_eq!((batches.iter().sum::<usize>(), batches.len() > 1), (20, true), "{batches:?}");
        kernel.take_frames(1024);
        assert_eq!(kernel.free.len(), 1024);
    }

    #[test]
    fn steady_batches_use_the_same_memory() {
        let (mut receiver, mut kernel) = start(64, 0, true);
        receiver.set_metadata_bytes(4);
        let mut round = |receiver: &mut Receiver| {
            kernel.take_frames(64);
            (0..20).for_each(|_| kernel.packet(100, 1792));
            kernel.packet(5000, 1792);
            assert_eq!(receive(receiver, &mut kernel, 32), 21);
            let (packets, parts) = (&receiver.packets, &receiver.parts);
            (packets.as_ptr().addr(), packets.capacity(), parts.as_ptr().addr(), receiver.scratch.bytes.as_ptr().addr())
        };
        let first = round(&mut receiver);
        assert!(first.1 >= 21);
        (0..5).for_each(|_| assert_eq!(round(&mut receiver), first));
    }

    #[test]
    fn without_multi_buffer_a_continued_descriptor_loses_its_packet_only() {
        let (mut receiver, mut kernel) = start(16, 0, false);
        receiver.set_metadata_bytes(4);
        kernel.take_frames(16);
        kernel.packet(5000, 1792);
        kernel.expected.clear();
        kernel.packet(100, 1792);
        assert_eq!(receive(&mut receiver, &mut kernel, 8), 1);
        assert_eq!(receiver.invalid(), 1);
        kernel.take_frames(16);
        assert_eq!(kernel.free.len(), 16);
    }

    #[test]
    fn an_impossible_index_stops_the_receiver_for_good() {
        let (mut receiver, mut kernel) = start(8, 0, false);
        kernel.take_frames(8);
        kernel.packet(100, 1792);
        kernel.rx.lie(100);
        assert!(receiver.receive(8, |_| ()).is_err());
        receiver.frames.assert_each_in_one_place();

        let (mut receiver, mut kernel) = start(8, 0, false);
        kernel.take_frames(8);
        kernel.packet(100, 1792);
        kernel.fill.lie(9);
        assert!(receiver.receive(8, |packets| packets.len()).unwrap() == Some(1), "the packets are fine");
        assert_eq!(receiver.receive(8, |packets| packets.len()).unwrap_err().ring, "test");
        receiver.frames.assert_each_in_one_place();
    }
}
