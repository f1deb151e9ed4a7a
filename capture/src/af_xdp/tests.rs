//! Sockets on veth pairs, in network namespaces of their own: every packet arrives, or is counted where it was lost.

use super::netns::{CAP_IPC_LOCK, CAP_NET_RAW, Injector, Net, limit_memlock, udp_frame, without_capability};
use super::receiver::RxPacket;
use super::statistics::{Lost, Statistics};
use super::{CopyMode, Umem, UmemChoice, XdpError, XdpOptions, XskSocket};
use crate::bpf::{AttachMode, AttachOptions, Attached};
use crate::sys::wait_any_readable;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// How long tests wait for what must happen.
const PATIENCE: Duration = Duration::from_secs(10);

/// A veth pair: a program and sockets on `near`, a sender on `far`.
struct Rig {
    sockets: Vec<XskSocket>,
    attached: Attached,
    injector: Injector,
    index: u32,
    net: Net,
}

fn small() -> XdpOptions {
    XdpOptions { frames: 64, frame_bytes: 2048, huge_pages: false, multi_buffer: false, ..XdpOptions::default() }
}

impl Rig {
    fn new(mode: AttachMode, queues: u32, mtu: u32) -> Option<Rig> {
        let net = Net::new()?;
        net.veth("near", "far", queues, mtu);
        let index = net.index("near");
        let options = AttachOptions { mode, queues, early: None, timestamps: false };
        let attached = net.run(|| Attached::attach(index, &options)).unwrap();
        let injector = net.injector("far", queues > 1);
        Some(Rig { sockets: Vec::new(), attached, injector, index, net })
    }

    fn open(
        &self,
        queue: u32,
        copy: CopyMode,
        options: &XdpOptions,
        umem: UmemChoice<'_>,
    ) -> Result<XskSocket, XdpError> {
        self.net.run(|| XskSocket::open("near", self.index, queue, copy, options, None, umem))
    }

    fn add(&mut self, queue: u32, options: &XdpOptions, umem: UmemChoice<'_>) {
        let socket = self.open(queue, CopyMode::Copy, options, umem).unwrap();
        self.add_socket(queue, socket);
    }

    fn add_socket(&mut self, queue: u32, socket: XskSocket) {
        self.attached.set_socket(queue, socket.fd()).unwrap();
        self.sockets.push(socket);
    }

    /// One socket on the only queue.
    fn single(mode: AttachMode, options: &XdpOptions, mtu: u32) -> Option<Rig> {
        let mut rig = Rig::new(mode, 1, mtu)?;
        rig.add(0, options, UmemChoice::Own);
        Some(rig)
    }

    /// Sends frames and waits until the program has seen them all. No more at once than the peer has room for (256).
    fn send(&self, frames: &[Vec<u8>]) {
        for chunk in frames.chunks(128) {
            let before = self.seen();
            chunk.iter().for_each(|frame| self.injector.send(frame));
            let deadline = Instant::now() + PATIENCE;
            while self.seen() - before < chunk.len() as u64 {
                let missing = chunk.len() as u64 - (self.seen() - before);
                assert!(Instant::now() < deadline, "{missing} frames not seen, {} dropped", self.dropped_on_the_way());
                std::thread::yield_now();
            }
        }
        assert_eq!(self.dropped_on_the_way(), 0, "the peer had no room");
    }

    fn seen(&self) -> u64 {
        let queues = 0..self.sockets.len() as u32;
        queues.map(|queue| self.attached.counters(queue).unwrap().seen).sum()
    }

    fn dropped_on_the_way(&self) -> u64 {
        self.net.sent_and_dropped("far").1
    }

    /// Receives until `count` packets are there.
    fn receive(&mut self, count: usize) -> Vec<Vec<u8>> {
        let mut packets = Vec::new();
        let deadline = Instant::now() + PATIENCE;
        while packets.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} packets", packets.len());
            let fds: Vec<_> = self.sockets.iter().map(XskSocket::fd).collect();
            wait_any_readable(&fds, 100).unwrap();
            for socket in &mut self.sockets {
                collect(socket, &mut packets);
            }
        }
        assert_eq!(packets.len(), count);
        for socket in &mut self.sockets {
            assert_eq!(socket.pending().unwrap(), 0);
        }
        packets
    }

    /// Packets that the program handed to a socket were received or are counted as lost, each once.
    fn assert_ledger(&self, received: u64) -> Lost {
        let mut lost = Lost::default();
        for socket in &self.sockets {
            let one = socket.statistics().unwrap().lost_packets(socket.is_zero_copy(), &Lost::default());
            lost.fill_ring_empty += one.fill_ring_empty;
            lost.rx_ring_full += one.rx_ring_full;
            lost.rx_dropped += one.rx_dropped;
            lost.invalid_descriptors += one.invalid_descriptors;
        }
        assert_eq!(self.seen(), received + lost.total(), "{lost:?}");
        lost
    }
}

fn collect(socket: &mut XskSocket, packets: &mut Vec<Vec<u8>>) {
    let received = |batch: &[RxPacket<'_>]| {
        for packet in batch {
            assert_eq!(packet.wire_len as usize, packet.data.len());
            packets.push(packet.data.to_vec());
        }
    };
    socket.receive(32, received).unwrap();
    socket.wake_if_needed().unwrap();
}

fn frames(count: u32, len: usize) -> Vec<Vec<u8>> {
    (0..count).map(|n| udp_frame((n % 64) as u16, n, len)).collect()
}

/// Order is kept within a flow, not between queues.
fn sorted(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    packets.sort();
    packets
}

#[test]
fn every_packet_arrives_on_1_2_and_4_queues_in_both_modes() {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        for queues in [1, 2, 4] {
            let Some(mut rig) = Rig::new(mode, queues, 1500) else { return };
            let options = XdpOptions { frames: 1024, need_wakeup: queues == 2, huge_pages: queues == 1, ..small() };
            for queue in 0..queues {
                rig.add(queue, &options, UmemChoice::Own);
                assert!(!rig.sockets[queue as usize].is_zero_copy());
            }
            let sent = frames(1000, 60 + 300 * queues as usize);
            rig.send(&sent);
            assert_eq!(sorted(rig.receive(1000)), sorted(sent), "{mode:?}, {queues} queues");
            assert_eq!(rig.assert_ledger(1000), Lost::default());
            for queue in 0..queues {
                assert_eq!(rig.sockets[queue as usize].statistics().unwrap(), Statistics::default());
                // In generic mode veth leaves the sender's queue number in the packet, which is read as one more than the
                // receiver's: queues 0 and 1 end in 0, and so on.
                let has_share = mode == AttachMode::Native || queue == 0 || queue + 1 < queues;
                let seen = rig.attached.counters(queue).unwrap().seen;
                assert_eq!(seen > 0, has_share, "{mode:?}, queue {queue} of {queues}");
            }
        }
    }
}

#[test]
fn frames_go_round_many_times_and_none_is_missing_after_a_panic() {
    let Some(mut rig) = Rig::single(AttachMode::Native, &small(), 1500) else { return };
    for round in 0..100 {
        let sent = frames(64, 60 + round);
        rig.send(&sent);
        if round % 10 == 3 {
            let socket = &mut rig.sockets[0];
            let result = catch_unwind(AssertUnwindSafe(|| {
                socket.receive(64, |_| std::panic::resume_unwind(Box::new("the handler gives up")))
            }));
            assert!(result.is_err());
        } else {
            assert_eq!(rig.receive(64), sent, "in order");
        }
    }
    assert_eq!(rig.sockets[0].statistics().unwrap(), Statistics::default());
}

#[test]
fn a_packet_for_which_there_is_no_frame_raises_two_counters_and_counts_once() {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        let Some(mut rig) = Rig::single(mode, &small(), 1500) else { return };
        let sent = frames(100, 60);
        rig.send(&sent);
        let statistics = rig.sockets[0].statistics().unwrap();
        assert_eq!(statistics, Statistics { rx_dropped: 36, rx_fill_ring_empty: 36, ..Statistics::default() });
        assert_eq!(rig.receive(64), sent[..64]);
        assert_eq!(rig.assert_ledger(64), Lost { fill_ring_empty: 36, ..Lost::default() });
        let more = frames(10, 70);
        rig.send(&more);
        assert_eq!(rig.receive(10), more, "the frames are back");
        rig.assert_ledger(74);
    }
}

#[test]
fn a_packet_for_which_the_rx_ring_has_no_entry_raises_one() {
    let Some(mut rig) = Rig::new(AttachMode::Native, 1, 1500) else { return };
    let socket = rig.net.run(|| XskSocket::open_with_rx_ring("near", rig.index, 32, &small())).unwrap();
    rig.add_socket(0, socket);
    let sent = frames(50, 60);
    rig.send(&sent);
    let statistics = rig.sockets[0].statistics().unwrap();
    assert_eq!(statistics, Statistics { rx_ring_full: 18, ..Statistics::default() });
    assert_eq!(rig.receive(32), sent[..32]);
    assert_eq!(rig.assert_ledger(32), Lost { rx_ring_full: 18, ..Lost::default() });
    // The kernel kept the frames it could not deliver for later: none is missing.
    for _ in 0..10 {
        rig.send(&sent[..32]);
        assert_eq!(rig.receive(32), sent[..32]);
    }
    rig.assert_ledger(32 * 11);
}

#[test]
fn a_packet_longer_than_a_frame_raises_one() {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        let Some(mut rig) = Rig::single(mode, &small(), 3000) else { return };
        assert_eq!(small().packet_bytes_max(), 1792);
        let sent: Vec<_> = (0..20).map(|n| udp_frame(0, n, 1783 + n as usize)).collect();
        rig.send(&sent);
        let statistics = rig.sockets[0].statistics().unwrap();
        assert_eq!(statistics, Statistics { rx_dropped: 10, ..Statistics::default() });
        assert_eq!(rig.receive(10), sent[..10]);
        assert_eq!(rig.assert_ledger(10), Lost { rx_dropped: 10, ..Lost::default() });
    }
}

#[test]
fn an_invalid_address_in_the_fill_ring_raises_none_and_loses_no_packet() {
    let Some(mut rig) = Rig::single(AttachMode::Native, &small(), 1500) else { return };
    rig.send(&frames(40, 60));
    // Ten addresses beyond the buffer, behind the 24 frames that are left.
    rig.sockets[0].post_to_fill_ring(&[1 << 40; 10]);
    assert_eq!(rig.receive(40).len(), 40);
    // There was room for 30 of the 40 frames beside them: 10 wait for the next call.
    let sent = frames(54, 60);
    rig.send(&sent);
    assert_eq!(rig.sockets[0].statistics().unwrap(), Statistics::default());
    assert_eq!(rig.receive(54), sent);
    let sent = frames(64, 60);
    rig.send(&sent);
    assert_eq!(rig.receive(64), sent, "none is missing");
    assert_eq!(rig.assert_ledger(158), Lost::default());
}

#[test]
fn jumbo_packets_arrive_in_one_piece() {
    for mode in [AttachMode::Native, AttachMode::Generic] {
        for frame_bytes in [2048, 4096] {
            let options = XdpOptions { frames: 1024, frame_bytes, multi_buffer: true, ..small() };
            let Some(mut rig) = Rig::single(mode, &options, 9000) else { return };
            let mut sent: Vec<_> = (0..100).map(|n| udp_frame(n as u16, n, 60 + 90 * n as usize)).collect();
            sent.extend(
                [1791, 1792, 1793, 3584, 3585, 3839, 3840, 3841, 9014].map(|len| udp_frame(1, len, len as usize)),
            );
            for _ in 0..5 {
                rig.send(&sent);
                assert_eq!(rig.receive(sent.len()), sent, "{mode:?}, {frame_bytes}");
            }
            assert_eq!(rig.sockets[0].statistics().unwrap(), Statistics::default());
            rig.assert_ledger(5 * sent.len() as u64);
        }
    }
}

#[test]
fn a_jumbo_packet_that_finds_too_few_frames_raises_one_counter_or_two() {
    let options = XdpOptions { multi_buffer: true, ..small() };
    let Some(mut rig) = Rig::single(AttachMode::Native, &options, 9000) else { return };
    // 12 packets of 5 frames leave 4 frames.
    let sent = frames(15, 8900);
    rig.send(&sent);
    let statistics = rig.sockets[0].statistics().unwrap();
    assert_eq!(statistics, Statistics { rx_dropped: 3, ..Statistics::default() });
    // A packet of 4 frames takes those.
    rig.send(&frames(1, 7000));
    rig.send(&sent[..2]);
    let statistics = rig.sockets[0].statistics().unwrap();
    assert_eq!(statistics, Statistics { rx_dropped: 5, rx_fill_ring_empty: 2, ..Statistics::default() });
    assert_eq!(rig.receive(13)[..12], sent[..12]);
    assert_eq!(rig.assert_ledger(13), Lost { fill_ring_empty: 2, rx_dropped: 3, ..Lost::default() });
}

#[test]
fn a_queue_can_be_bound_again_and_belongs_to_one_socket_at_a_time() {
    let Some(mut rig) = Rig::single(AttachMode::Native, &small(), 1500) else { return };
    let started = Instant::now();
    let error = rig.open(0, CopyMode::Copy, &small(), UmemChoice::Own).err().unwrap();
    assert!(matches!(error, XdpError::QueueTaken { .. }), "{error}");
    assert!(error.to_string().contains("'near' queue 0 is taken") && started.elapsed() > Duration::from_secs(1));
    for round in 0..5 {
        rig.sockets.clear();
        rig.add(0, &small(), UmemChoice::Own);
        let sent = frames(64, 60 + round);
        rig.send(&sent);
        assert_eq!(rig.receive(64), sent);
    }
}

#[test]
fn sockets_that_share_a_buffer_outlive_each_other() {
    let Some(mut rig) = Rig::new(AttachMode::Native, 2, 1500) else { return };
    let umem = Umem::new(&small(), 2, None).unwrap();
    for queue in [0, 1] {
        rig.add(queue, &small(), UmemChoice::Shared(&umem));
    }
    let error = rig.open(0, CopyMode::Copy, &small(), UmemChoice::Shared(&umem)).err().unwrap();
    assert!(matches!(error, XdpError::UmemFull { sockets: 2, .. }), "{error}");
    let sent = frames(60, 60);
    for _ in 0..4 {
        rig.send(&sent);
        assert_eq!(sorted(rig.receive(60)), sorted(sent.clone()));
    }
    rig.assert_ledger(240);
    // The one that registered the buffer goes, and comes back through the other; then the other way round.
    for gone in [0, 1, 0] {
        drop(rig.sockets.remove(gone));
        let socket = rig.open(gone as u32, CopyMode::Copy, &small(), UmemChoice::Shared(&umem)).unwrap();
        rig.attached.set_socket(gone as u32, socket.fd()).unwrap();
        rig.sockets.insert(gone, socket);
        rig.send(&sent);
        assert_eq!(sorted(rig.receive(60)), sorted(sent.clone()), "after {gone} was opened again");
    }
    // Nobody left to join: the buffer is registered again.
    rig.sockets.clear();
    for queue in [0, 1] {
        rig.add(queue, &small(), UmemChoice::Shared(&umem));
    }
    rig.send(&sent);
    assert_eq!(sorted(rig.receive(60)), sorted(sent.clone()));
}

#[test]
fn what_cannot_be_opened_is_refused_by_name() {
    let Some(mut rig) = Rig::new(AttachMode::Native, 1, 1500) else { return };
    let error = |queue, copy, options: &XdpOptions| rig.open(queue, copy, options, UmemChoice::Own).err().unwrap();
    let forced = error(0, CopyMode::ZeroCopy, &small());
    assert!(matches!(forced, XdpError::NoZeroCopy { .. }), "{forced}");
    let beyond = error(7, CopyMode::Copy, &small());
    assert!(matches!(beyond, XdpError::NoQueue { queue: 7, .. }), "{beyond}");
    let option = error(0, CopyMode::Copy, &XdpOptions { frames: 65, ..small() });
    assert!(matches!(option, XdpError::Option { field: "frames", value: 65, .. }), "{option}");
    let gone = rig.net.run(|| XskSocket::open("gone", 4_000_000, 0, CopyMode::Copy, &small(), None, UmemChoice::Own));
    assert!(matches!(gone, Err(XdpError::InterfaceGone { .. })));
    let unprivileged = rig.net.run(|| without_capability(CAP_NET_RAW, || rig.open_here(&small())));
    let unprivileged = unprivileged.err().unwrap();
    assert!(matches!(unprivileged, XdpError::Permission { capability: "CAP_NET_RAW", .. }), "{unprivileged}");
    // Left to the kernel, zero-copy becomes a copy without a word.
    let socket = rig.open(0, CopyMode::Kernel, &small(), UmemChoice::Own).unwrap();
    assert!(!socket.is_zero_copy());
    rig.add_socket(0, socket);
    rig.send(&frames(5, 60));
    assert_eq!(rig.receive(5).len(), 5);
}

#[test]
fn too_little_lockable_memory_is_explained() {
    let Some(rig) = Rig::new(AttachMode::Native, 1, 1500) else { return };
    limit_memlock(1 << 20);
    let large = XdpOptions { frames: 4096, frame_bytes: 4096, ..small() };
    let error = rig.net.run(|| without_capability(CAP_IPC_LOCK, || rig.open_here(&large))).err().unwrap();
    assert!(matches!(error, XdpError::Memlock { bytes: 16_777_216, .. }), "{error}");
    let message = error.to_string();
    assert!(message.contains("ulimit -l 16384") && message.contains("LimitMEMLOCK=16777216"), "{message}");
    assert!(message.contains("1048576 bytes"), "{message}");
}

impl Rig {
    /// On the calling thread, which is in the namespace.
    fn open_here(&self, options: &XdpOptions) -> Result<XskSocket, XdpError> {
        XskSocket::open("near", self.index, 0, CopyMode::Copy, options, None, UmemChoice::Own)
    }
}

#[test]
fn an_interface_that_goes_down_comes_back_and_one_that_is_removed_is_gone() {
    let Some(mut rig) = Rig::single(AttachMode::Native, &small(), 1500) else { return };
    rig.net.ip("link set near down");
    let error = rig.sockets[0].check().unwrap_err();
    assert!(matches!(error, XdpError::InterfaceDown { .. }), "{error}");
    assert!(!wait_any_readable(&[rig.sockets[0].fd()], 0).unwrap(), "poll says nothing");
    rig.net.ip("link set near up");
    rig.sockets[0].check().unwrap();
    let sent = frames(30, 60);
    rig.send(&sent);
    assert_eq!(rig.receive(30), sent, "the socket is still bound");
    rig.net.ip("link del far");
    let error = rig.sockets[0].check().unwrap_err();
    assert!(!wait_any_readable(&[rig.sockets[0].fd()], 0).unwrap(), "poll says nothing");
    assert!(matches!(error, XdpError::InterfaceGone { .. }), "{error}");
    assert_eq!(rig.sockets[0].receive(8, |packets| packets.len()).unwrap(), None);
}

#[test]
fn busy_polling_receives_all_packets() {
    let Some(mut rig) = Rig::new(AttachMode::Native, 1, 1500) else { return };
    let busy_poll = Some(super::BusyPoll { microseconds: 20, budget: 64 });
    rig.add(0, &XdpOptions { busy_poll, ..small() }, UmemChoice::Own);
    for _ in 0..10 {
        let sent = frames(64, 60);
        rig.send(&sent);
        assert!(rig.sockets[0].wake_if_needed().unwrap());
        assert_eq!(rig.receive(64), sent);
    }
    assert_eq!(rig.assert_ledger(640), Lost::default());
}

#[test]
fn a_sender_in_another_namespace_is_heard() {
    let (Some(near), Some(far)) = (Net::new(), Net::new()) else { return };
    near.veth("near", "far", 1, 1500);
    near.give("far", &far);
    far.ip("link set far up");
    let index = near.index("near");
    let options = AttachOptions { mode: AttachMode::Native, queues: 1, early: None, timestamps: false };
    let attached = near.run(|| Attached::attach(index, &options)).unwrap();
    let injector = far.injector("far", false);
    let mut rig = Rig { sockets: Vec::new(), attached, injector, index, net: near };
    rig.add(0, &small(), UmemChoice::Own);
    let sent = frames(50, 60);
    sent.iter().for_each(|frame| rig.injector.send(frame));
    assert_eq!(rig.receive(50), sent);
    assert_eq!(rig.assert_ledger(50), Lost::default());
}
