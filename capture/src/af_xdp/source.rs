//! One AF_XDP queue as a source: frames are lent out of the packet memory, and every packet is accounted for.

use super::XdpError;
use super::socket::XskSocket;
use super::statistics::{Lost, Statistics};
use crate::bpf::{Attached, QueueCounters};
use crate::file::recycle;
use crate::port::{Clock, NicTotals, Port};
use crate::sys::wait_readable;
use crate::tap::{QueueSource, wall_clock};
use crate::{BATCH_FRAMES_MAX, BatchHandler, SourceCounts, SourceError, Undelivered};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{Frame, LinkType, Nanos, TapId};

/// How often the kernel's counters are read: some system calls.
const LOOK_EVERY: Nanos = Nanos(100_000_000);
/// How long packets may be on their way to us after the inflow has ended.
const FINISH_MAX: Duration = Duration::from_millis(100);
/// How far a card's clock may be from the system's. One that runs on TAI is 37 s off, one that nobody set is at 1970.
const CLOCK_APART_MAX: u64 = 5_000_000_000;

/// One queue of one interface, read through AF_XDP.
pub(crate) struct XskSource {
    tap: TapId,
    port: Arc<Port>,
    socket: XskSocket,
    /// The interface's program; the last queue to go detaches it.
    program: Arc<Attached>,
    /// Counters of the card, with its lowest queue alone.
    nic: Option<Arc<NicTotals>>,
    counts: SourceCounts,
    /// The kernel's counters at the last look.
    statistics: Statistics,
    lost: Lost,
    counters: QueueCounters,
    /// What the program had seen before we came.
    seen_before: u64,
    next_look: Nanos,
    /// No more packets come in: what the program sees now is not offered to us.
    closed: bool,
    frames: Vec<Frame<'static>>,
}

impl XskSource {
    /// Puts the socket behind the program: packets come from here on.
    pub(crate) fn start(
        tap: TapId,
        port: Arc<Port>,
        mut socket: XskSocket,
        program: Arc<Attached>,
        nic: Option<Arc<NicTotals>>,
    ) -> Result<XskSource, SourceError> {
        socket.set_metadata_bytes(program.metadata_bytes() as u8);
        let counters = program.counters(port.queue).map_err(|e| system(&port, "reading the program's counters", e))?;
        program.set_socket(port.queue, socket.fd()).map_err(|e| system(&port, "bpf(BPF_MAP_UPDATE_ELEM)", e))?;
        Ok(XskSource {
            tap,
            port,
            socket,
            program,
            nic,
            counts: SourceCounts::default(),
            statistics: Statistics::default(),
            lost: Lost::default(),
            seen_before: counters.seen,
            counters,
            next_look: Nanos::ZERO,
            closed: false,
            frames: Vec::with_capacity(BATCH_FRAMES_MAX),
        })
    }

    fn batch(&mut self, handler: &mut dyn BatchHandler) -> Result<Option<usize>, SourceError> {
        let now = wall_clock();
        let (tap, port, counts) = (self.tap, &self.port, &mut self.counts);
        let empty = std::mem::take(&mut self.frames);
        let delivered = self.socket.receive(BATCH_FRAMES_MAX, |packets| {
            let mut frames = recycle(empty);
            // The first packet tells for all whether the card gives times. Where it gives none, what lies in front of the
            // others is not looked at: another cache line of each, written by another core, some 20 ns a packet.
            let first = packets.first().map_or(&[][..], |packet| packet.metadata);
            let has_times = hardware_time(first, now).is_some();
            frames.extend(packets.iter().map(|packet| Frame {
                data: packet.data,
                wire_len: packet.wire_len,
                ts: if has_times { hardware_time(packet.metadata, now).unwrap_or(now) } else { now },
                link: LinkType::Ethernet,
                tap,
            }));
            if !first.is_empty() {
                port.set_clock(if has_times { Clock::Hardware } else { Clock::Batch });
            }
            handler.batch(&frames);
            counts.deliver(&frames);
            (frames.len(), recycle(frames))
        });
        let delivered = match delivered? {
            Some((count, frames)) => {
                self.frames = frames;
                Some(count)
            }
            None => {
                // A driver that waits for us is told that there is room. One whose link is down will come back.
                match self.socket.wake_if_needed() {
                    Ok(_) | Err(XdpError::InterfaceDown { .. }) => None,
                    Err(e) => return Err(e.into()),
                }
            }
        };
        if now >= self.next_look {
            self.next_look = Nanos(now.0.saturating_add(LOOK_EVERY.0));
            // What is missing is on its way while packets come.
            self.look()?;
        }
        Ok(delivered)
    }

    /// Adds what the kernel counted since the last look. Returns how many packets the program saw that are in no count
    /// yet: they are on their way, or lost.
    fn look(&mut self) -> Result<u64, SourceError> {
        let mut program = self.program.counters(self.port.queue);
        if let (true, Ok(program)) = (self.closed, &mut program) {
            // Since we left our place in the program's map it lets all pass.
            program.seen -= program.passed - self.counters.passed;
            program.passed = self.counters.passed;
        }
        let program = program.map_err(|e| system(&self.port, "reading the program's counters", e))?;
        let statistics = self.socket.statistics();
        let statistics = statistics.map_err(|e| system(&self.port, "getsockopt(XDP_STATISTICS)", e))?;
        let (before, now) = (self.lost, statistics.lost_packets(self.socket.is_zero_copy(), &self.lost));
        let counts = &mut self.counts;
        for (cause, now, before) in [
            (Undelivered::FilteredEarly, program.filtered, self.counters.filtered),
            (Undelivered::PassedToHost, program.passed, self.counters.passed),
            (Undelivered::FillRingEmpty, now.fill_ring_empty, before.fill_ring_empty),
            (Undelivered::RxRingFull, now.rx_ring_full, before.rx_ring_full),
            (Undelivered::RxDropped, now.rx_dropped, before.rx_dropped),
            (Undelivered::InvalidDescriptor, now.invalid_descriptors, before.invalid_descriptors),
        ] {
            counts.lose(cause, now.saturating_sub(before));
        }
        let growth = six(&statistics).into_iter().zip(six(&self.statistics));
        for (counter, (now, before)) in self.port.xdp.iter().zip(growth) {
            counter.add(now.saturating_sub(before));
        }
        (self.statistics, self.lost, self.counters) = (statistics, now, program);
        if let Some(nic) = &self.nic {
            nic.count(counts);
        }
        let elsewhere = counts.undelivered(Undelivered::NicMissed) + counts.undelivered(Undelivered::PeerDropped);
        Ok((program.seen - self.seen_before).saturating_sub(counts.offered - elsewhere))
    }

    /// Delivers what the ring holds.
    fn drain(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        while self.batch(handler)?.is_some() {}
        Ok(())
    }
}

impl QueueSource for XskSource {
    fn deliver(&mut self, handler: &mut dyn BatchHandler) -> Result<Option<usize>, SourceError> {
        self.batch(handler)
    }

    fn check(&mut self) -> Result<(), SourceError> {
        match self.socket.check() {
            // The socket stays bound, and packets come again when the link does.
            Ok(()) | Err(XdpError::InterfaceDown { .. }) => {}
            Err(e) => return Err(e.into()),
        }
        let seen = self.counters.seen;
        let missing = self.look()?;
        // Nothing came since the last look and nothing waits: what is missing now was redirected and never arrived.
        if missing > 0 && self.counters.seen == seen && self.socket.pending()? == 0 {
            self.counts.lose(Undelivered::RedirectFailed, missing);
        }
        Ok(())
    }

    /// Leaves the program's map, so that nothing more comes in, then delivers until each packet the program saw before
    /// is accounted for.
    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        if !self.closed {
            self.look()?;
            self.closed = true;
            let cleared = self.program.clear_socket(self.port.queue);
            if let Err(e) = cleared
                && e.raw_os_error() != Some(libc::ENOENT)
            {
                return Err(system(&self.port, "bpf(BPF_MAP_DELETE_ELEM)", e));
            }
        }
        let deadline = Instant::now() + FINISH_MAX;
        loop {
            self.drain(handler)?;
            let missing = self.look()?;
            if missing == 0 {
                return Ok(());
            }
            if Instant::now() >= deadline {
                self.counts.lose(Undelivered::RedirectFailed, missing);
                return Ok(());
            }
            wait_readable(self.socket.fd(), 1).map_err(|e| system(&self.port, "poll", e))?;
        }
    }

    fn counts(&self) -> SourceCounts {
        self.counts
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.socket.fd()
    }
}

/// In the order of `XDP_STATISTICS`.
fn six(s: &Statistics) -> [u64; 6] {
    [s.rx_dropped, s.rx_invalid_descs, s.tx_invalid_descs, s.rx_ring_full, s.rx_fill_ring_empty, s.tx_ring_empty]
}

/// The card's time of a packet, from the eight bytes the program put before it.
fn hardware_time(metadata: &[u8], now: Nanos) -> Option<Nanos> {
    let stamp = u64::from_ne_bytes(metadata.try_into().ok()?);
    (stamp.abs_diff(now.0) < CLOCK_APART_MAX).then_some(Nanos(stamp))
}

#[cold]
fn system(port: &Port, call: &'static str, source: std::io::Error) -> SourceError {
    SourceError::System { name: port.interface.clone(), call, source }
}
