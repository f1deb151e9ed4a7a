//! Trigger capture through its public face: recorders on the test's own thread, files read back as captures.

#![allow(unsafe_code, reason = "a global allocator that counts")]

use capture::slice::{
    EndReason, LATE, Predicate, REORDER, Recorder, RecorderOptions, STAGED_MAX, SliceError, SliceInfo, SliceOptions,
    SliceState, Slices, TriggerRequest,
};
use capture::{BATCH_FRAMES_MAX, BatchHandler, FileOptions, FileSource, Polled, Source};
use proptest::prelude::*;
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{Frame, LinkType, Nanos, TapId};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call is passed on to the system allocator unchanged; counting touches no memory it manages.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's obligations are those of `System`.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: `ptr` came from `System` in `alloc` above.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
const SECOND: u64 = 1_000_000_000;
/// Some time in 2023.
const START: u64 = 1_700_000_000 * SECOND;

fn request() -> TriggerRequest {
    TriggerRequest {
        label: "Port scan!".into(),
        reason: "somebody looked".into(),
        filter_text: "tcp port 80".into(),
        predicate: None,
        taps: None,
        at: None,
        before: Duration::from_secs(10),
        duration: Duration::from_secs(5),
        bytes_max: 100 << 20,
    }
}

fn options(dir: &Path) -> SliceOptions {
    SliceOptions { grace: PATIENCE, ..SliceOptions::new(dir, vec!["uplink".into(), "dmz".into()]) }
}

fn small() -> RecorderOptions {
    RecorderOptions { history_bytes: 1 << 20, snap_bytes: 2000, queue_bytes: 1 << 20 }
}

fn one(dir: &Path, recorder: RecorderOptions) -> (Arc<Slices>, Recorder) {
    let (slices, mut recorders) = Slices::start(options(dir), 1, recorder).unwrap();
    (slices, recorders.pop().unwrap())
}

fn frame(ts: u64, data: &[u8]) -> Frame<'_> {
    Frame { data, wire_len: data.len() as u32, ts: Nanos(ts), link: LinkType::Ethernet, tap: TapId(0) }
}

/// What a capture holds.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    ts: u64,
    wire_len: u32,
    link: String,
    data: Vec<u8>,
}

impl From<&Frame<'_>> for Packet {
    fn from(frame: &Frame<'_>) -> Packet {
        let (ts, link) = (frame.ts.0, format!("{:?}", frame.link));
        Packet { ts, wire_len: frame.wire_len, link, data: frame.data.to_vec() }
    }
}

#[derive(Default)]
struct Collect(Vec<Packet>);

impl BatchHandler for Collect {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        self.0.extend(frames.iter().map(Packet::from));
    }
    fn idle(&mut self, _: Nanos) {}
}

fn read(path: &Path) -> Vec<Packet> {
    let mut source = FileSource::open(path, TapId(0), &FileOptions::default()).unwrap();
    let mut found = Collect::default();
    while source.poll(&mut found).unwrap() != Polled::End {}
    found.0
}

fn times(path: &Path) -> Vec<u64> {
    read(path).into_iter().map(|packet| packet.ts).collect()
}

/// The slice, which has ended in order.
fn complete(slices: &Slices, id: capture::slice::SliceId) -> SliceInfo {
    let info = slices.wait(id, PATIENCE).unwrap();
    assert_eq!(info.state, SliceState::Complete, "{info:?}");
    info
}

/// As [`complete`] for a worker whose source is idle at `now`, and says so again and again.
fn complete_idle(slices: &Slices, id: capture::slice::SliceId, recorder: &mut Recorder, now: u64) -> SliceInfo {
    let started = Instant::now();
    while slices.get(id).unwrap().state == SliceState::Recording && started.elapsed() < PATIENCE {
        recorder.idle(Nanos(now));
        std::thread::yield_now();
    }
    complete(slices, id)
}

#[test]
fn the_past_and_the_present_meet_without_a_seam() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    let at = |i: u64| START + i * SECOND / 10;
    let data = [7; 60];
    for i in 0..200 {
        recorder.batch(&[frame(at(i), &data)]);
    }
    let id = slices.trigger(request()).unwrap();
    for i in 200..300 {
        recorder.batch(&[frame(at(i), &data)]);
    }
    let info = complete(&slices, id);
    // The trigger is at packet 199: 10 s before are 100 packets, 5 s from it on are 50.
    let expected: Vec<u64> = (99..249).map(at).collect();
    assert_eq!(times(&info.path), expected);
    assert_eq!((info.packets, info.bytes, info.ended_by), (150, 150 * 60, Some(EndReason::Duration)));
    assert_eq!((info.dropped_queue_full, info.overwritten, info.lost_disk), (0, 0, 0));
    assert_eq!(
        (info.at, info.first_ts, info.last_ts),
        (Some(Nanos(at(199))), Some(Nanos(at(99))), Some(Nanos(at(248))))
    );
    assert_eq!((info.label.as_str(), info.file_bytes), ("port-scan", fs::metadata(&info.path).unwrap().len()));
    assert_eq!(info.path.file_name().unwrap().to_str().unwrap(), format!("slice-{id}-port-scan.pcapng.zst"));
    let counts = slices.counts();
    assert_eq!((counts.packets, counts.bytes, counts.active, counts.file_bytes), (150, 9000, 0, info.file_bytes));
    assert_eq!(counts.ended[EndReason::Duration as usize], 1);
}

#[test]
fn packets_come_back_as_they_were_from_every_tap_and_link() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), RecorderOptions { snap_bytes: 100, ..small() });
    let data: Vec<u8> = (0..=255).cycle().take(9000).collect();
    let links = [1, 0, 101, 9, 113, 276, 147].map(LinkType::from_linktype);
    let packets: Vec<Frame<'_>> = (0..500_u64)
        .map(|i| {
            let data = &data[..(i * 37 % 9000) as usize];
            let (link, tap) = (links[i as usize % links.len()], TapId((i % 3) as u16));
            Frame {
                data,
                wire_len: data.len() as u32 + (i % 2) as u32 * 10 + 1,
                ts: Nanos(START + i * 1_000_003),
                link,
                tap,
            }
        })
        .collect();
    recorder.batch(&packets[..100]);
    let id = slices.trigger(request()).unwrap();
    packets[100..].chunks(BATCH_FRAMES_MAX).for_each(|batch| recorder.batch(batch));
    recorder.finish(PATIENCE);
    let info = complete(&slices, id);
    assert_eq!(info.ended_by, Some(EndReason::SourceEnded));
    let found = read(&info.path);
    let expected: Vec<Packet> = packets.iter().map(Packet::from).collect();
    assert_eq!(found.len(), expected.len());
    for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
        // Until the present is reached, packets come from the history, which was told to keep 100 bytes of each.
        let kept = expected.data.len().min(if i < 100 { 100 } else { usize::MAX });
        let is_whole = found.data == expected.data;
        assert!(is_whole || (i < 400 && found.data == expected.data[..kept.min(100)]), "packet {i}");
        assert_eq!((found.ts, found.wire_len, &found.link), (expected.ts, expected.wire_len, &expected.link));
    }
    assert!(found[100..].iter().any(|packet| packet.data.len() > 100), "the present comes whole");
    // Names and comments, as text, in the decompressed file.
    let bytes = zstd::decode_all(slices.read(id).unwrap()).unwrap();
    for text in ["uplink", "dmz", "tap 2", "reason: somebody looked", "filter: tcp port 80", "taphouse 0."] {
        assert!(bytes.windows(text.len()).any(|window| window == text.as_bytes()), "{text}");
    }
}

/// Other tools read it, too.
#[test]
fn tcpdump_counts_the_same_packets() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    let data = [0; 60];
    (0..1000).for_each(|i| recorder.batch(&[frame(START + i * 1000, &data)]));
    let id = slices.trigger(request()).unwrap();
    recorder.finish(PATIENCE);
    let info = complete(&slices, id);
    let empty = slices.trigger(TriggerRequest { predicate: Some(Arc::new(|_| false)), ..request() }).unwrap();
    let empty = complete(&slices, empty);
    for (info, packets) in [(info, 1000), (empty, 0)] {
        let script = format!("set -o pipefail; zstd -qdc '{}' | tcpdump -nnr - --count", info.path.display());
        let Ok(output) = Command::new("bash").args(["-c", &script]).output() else {
            println!("SKIPPED: no bash");
            return;
        };
        if output.status.code() == Some(127) {
            println!("SKIPPED: no zstd or no tcpdump");
            return;
        }
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success() && text.contains(&format!("{packets} packet")), "{text}");
    }
}

#[test]
fn filter_and_taps_choose() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    let packets: Vec<[u8; 2]> = (0..200).map(|i| [i as u8, 0]).collect();
    let frames: Vec<_> = (0..200_u64)
        .map(|i| Frame { tap: TapId((i / 2 % 2) as u16), ..frame(START + i * 1000, &packets[i as usize]) })
        .collect();
    recorder.batch(&frames[..100]);
    let even: Predicate = Arc::new(|frame| frame.data[0].is_multiple_of(2));
    let asked = TriggerRequest { predicate: Some(even), taps: Some(vec![TapId(1)]), ..request() };
    let id = slices.trigger(asked).unwrap();
    recorder.batch(&frames[100..]);
    recorder.finish(PATIENCE);
    let found: Vec<u8> = read(&complete(&slices, id).path).iter().map(|packet| packet.data[0]).collect();
    assert_eq!(found, (0..200).filter(|i| i % 4 == 2).collect::<Vec<u8>>());
}

/// One worker's packets as the model of the history keeps them: whole blocks of 256 KiB, the oldest dropped first.
#[derive(Default)]
struct Model {
    blocks: VecDeque<(usize, Vec<usize>)>,
    clock: u64,
}

/// A packet of a generated run.
#[derive(Clone, Debug)]
struct Sent {
    ts: u64,
    data: Vec<u8>,
    /// The worker's clock once it saw the packet.
    clock: u64,
}

const SNAP: usize = 2000;

impl Model {
    fn store(&mut self, packet: usize, bytes: usize, ts: u64) -> u64 {
        let need = (24 + bytes.min(SNAP)).next_multiple_of(8);
        if self.blocks.back().is_none_or(|(used, _)| used + need > 256 << 10) {
            self.blocks.push_back((0, Vec::new()));
        }
        if self.blocks.len() > 4 {
            self.blocks.pop_front();
        }
        if let Some((used, packets)) = self.blocks.back_mut() {
            *used += need;
            packets.push(packet);
        }
        self.clock = self.clock.max(ts);
        self.clock
    }
}

/// A batch: its worker; for each packet length, step of time, how far its own time is behind, and the filter's answer.
type Batch = (usize, Vec<(usize, u64, u64, bool)>);

fn batches() -> impl Strategy<Value = Vec<Batch>> {
    let behind = prop_oneof![80 => Just(0), 20 => 0_u64..90_000_000, 1 => 0_u64..900_000_000];
    let packet = (16_usize..3000, 0_u64..20_000_000, behind, any::<bool>());
    prop::collection::vec((0_usize..3, prop::collection::vec(packet, 1..60)), 1..120)
}

/// Runs the batches with a trigger before batch `trigger_at`; what was sent, and what must be in the slice.
fn run(
    slices: &Slices,
    recorders: Vec<Recorder>,
    batches: &[Batch],
    trigger_at: usize,
    asked: TriggerRequest,
) -> (Vec<Sent>, Vec<usize>) {
    let mut recorders = recorders;
    let mut models: Vec<Model> = recorders.iter().map(|_| Model::default()).collect();
    let (mut sent, mut at, mut triggered) = (Vec::<Sent>::new(), None, false);
    // By worker: the packets that were in the history when it took note of the trigger, and those after.
    let mut seen: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
    let mut now = START;
    let note = |models: &[Model], seen: &mut BTreeMap<usize, Vec<usize>>, worker: usize| {
        let held = || models[worker].blocks.iter().flat_map(|(_, packets)| packets.clone()).collect();
        seen.entry(worker).or_insert_with(held);
    };
    for (i, (worker, packets)) in batches.iter().enumerate() {
        if i == trigger_at {
            slices.trigger(asked.clone()).unwrap();
            triggered = true;
            at = models.iter().map(|model| model.clock).max().filter(|clock| *clock > 0);
        }
        let first = sent.len();
        for (bytes, step, behind, matches) in packets {
            now += step;
            let mut data = vec![0; *bytes];
            data[0] = u8::from(*matches);
            data[1..9].copy_from_slice(&(sent.len() as u64).to_le_bytes());
            sent.push(Sent { ts: now - behind, data, clock: 0 });
        }
        if triggered {
            note(&models, &mut seen, *worker);
            at.get_or_insert(sent[first].ts);
        }
        for (n, packet) in sent.iter_mut().enumerate().skip(first) {
            packet.clock = models[*worker].store(n, packet.data.len(), packet.ts);
            if let Some(seen) = seen.get_mut(worker) {
                seen.push(n);
            }
        }
        let frames: Vec<_> = sent[first..].iter().map(|packet| frame(packet.ts, &packet.data)).collect();
        recorders[*worker].batch(&frames);
    }
    for (worker, recorder) in recorders.drain(..).enumerate() {
        if models[worker].clock > 0 {
            note(&models, &mut seen, worker);
        }
        recorder.finish(PATIENCE);
    }
    let Some(at) = at else { return (sent, Vec::new()) };
    let (from, until) = (at - asked.before.as_nanos() as u64, at + asked.duration.as_nanos() as u64);
    let done = until + LATE.0;
    let mut expected = Vec::new();
    for packets in seen.values() {
        let met = packets.iter().position(|n| sent[*n].clock >= done).unwrap_or(packets.len());
        let wanted = |n: &&usize| (from..until).contains(&sent[**n].ts) && sent[**n].data[0] == 1;
        expected.extend(packets[..met].iter().filter(wanted));
    }
    expected.sort_unstable();
    (sent, expected)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    /// Three workers, any batches, a trigger anywhere: each packet of the window once, in the order of time.
    #[test]
    fn each_packet_of_the_window_comes_exactly_once(
        batches in batches(),
        trigger_at in any::<prop::sample::Index>(),
        before_ms in 0_u64..4_000,
        duration_ms in 1_u64..4_000,
    ) {
        let dir = tempfile::tempdir().unwrap();
        let recorder = RecorderOptions { snap_bytes: SNAP as u32, ..small() };
        let (slices, recorders) = Slices::start(options(dir.path()), 3, recorder).unwrap();
        let asked = TriggerRequest {
            predicate: Some(Arc::new(|frame| frame.data[0] == 1)),
            before: Duration::from_millis(before_ms),
            duration: Duration::from_millis(duration_ms),
            ..request()
        };
        let started = Instant::now();
        let (sent, expected) = run(&slices, recorders, &batches, trigger_at.index(batches.len()), asked);
        let id = slices.list()[0].id;
        let info = complete(&slices, id);
        let found = read(&info.path);
        let number = |packet: &Packet| u64::from_le_bytes(packet.data[1..9].try_into().unwrap()) as usize;
        let mut numbers: Vec<usize> = found.iter().map(number).collect();
        for (packet, n) in found.iter().zip(&numbers) {
            let sent = &sent[*n];
            prop_assert_eq!((packet.ts, packet.wire_len as usize), (sent.ts, sent.data.len()));
            prop_assert!(packet.data == sent.data || packet.data == sent.data[..SNAP.min(sent.data.len())]);
        }
        let latest = batches.iter().flat_map(|(_, packets)| packets).map(|(_, _, behind, _)| *behind).max();
        if started.elapsed() < STAGED_MAX && latest < Some(REORDER.0) {
            prop_assert!(found.is_sorted_by_key(|packet| packet.ts), "out of order");
        }
        numbers.sort_unstable();
        prop_assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]), "a packet came twice");
        prop_assert_eq!(info.dropped_queue_full, 0);
        let expected_set: std::collections::BTreeSet<_> = expected.iter().collect();
        prop_assert!(numbers.iter().all(|n| expected_set.contains(n)), "a packet that nobody wanted");
        let missing = expected.len() - numbers.len();
        prop_assert!(missing as u64 <= info.overwritten, "{} missing, {} overwritten", missing, info.overwritten);
        if info.overwritten == 0 {
            prop_assert_eq!(numbers, expected);
        }
        prop_assert_eq!(info.packets as usize, found.len());
    }
}

/// Workers on threads of their own, slices asked for while they run: each holds exactly the packets of its time.
#[test]
fn threads_lose_and_repeat_nothing() {
    const PACKETS: u64 = 60_000;
    let dir = tempfile::tempdir().unwrap();
    let recorder = RecorderOptions { history_bytes: 32 << 20, ..small() };
    let (slices, recorders) = Slices::start(options(dir.path()), 3, recorder).unwrap();
    let workers: Vec<_> = recorders
        .into_iter()
        .enumerate()
        .map(|(worker, mut recorder)| {
            std::thread::spawn(move || {
                let numbers: Vec<[u8; 9]> = (0..PACKETS)
                    .map(|i| std::array::from_fn(|b| if b == 0 { worker as u8 } else { (i >> (8 * (b - 1))) as u8 }))
                    .collect();
                for (batch, numbers) in numbers.chunks(100).enumerate() {
                    let first = START + batch as u64 * 100 * 1_000_000;
                    let ts = |i: usize| first + i as u64 * 1_000_000;
                    let frames: Vec<_> = numbers.iter().enumerate().map(|(i, data)| frame(ts(i), data)).collect();
                    recorder.batch(&frames);
                }
                recorder.finish(PATIENCE);
            })
        })
        .collect();
    let mut ids = Vec::new();
    while workers.iter().any(|worker| !worker.is_finished()) {
        match slices.trigger(request()) {
            Ok(id) => ids.push(id),
            Err(error) => assert!(matches!(error, SliceError::Active { active: 8 }), "{error}"),
        }
        if let Some(oldest) = ids.len().checked_sub(8).and_then(|first| ids.get(first)) {
            slices.wait(*oldest, Duration::from_millis(5)).unwrap();
        }
    }
    workers.into_iter().for_each(|worker| worker.join().unwrap());
    assert!(!ids.is_empty());
    for id in ids {
        let info = complete(&slices, id);
        assert_eq!((info.dropped_queue_full, info.overwritten), (0, 0));
        let Some(Nanos(at)) = info.at else { continue };
        let (from, until) = (at - 10 * SECOND, at + 5 * SECOND);
        let of_worker = |i: u64| (from..until).contains(&(START + i * 1_000_000));
        let expected: Vec<(u8, u64)> =
            (0..3).flat_map(|worker| (0..PACKETS).filter(|i| of_worker(*i)).map(move |i| (worker, i))).collect();
        let mut found: Vec<(u8, u64)> = read(&info.path)
            .iter()
            .map(|packet| (packet.data[0], u64::from_le_bytes(packet.data[1..9].try_into().unwrap())))
            .collect();
        found.sort_unstable();
        // A worker that had gone before the slice was asked for has nothing for it.
        let gone: Vec<u8> = (0..3).filter(|worker| !found.iter().any(|(from, _)| from == worker)).collect();
        assert!(gone.is_empty() || info.ended_by == Some(EndReason::SourceEnded) || at > START + PACKETS * 900_000);
        let expected: Vec<_> = expected.into_iter().filter(|(worker, _)| !gone.contains(worker)).collect();
        assert!(found == expected, "slice at {at}: {} found, {} expected", found.len(), expected.len());
    }
}

/// What the queue has no room for waits in the history.
#[test]
fn a_queue_that_is_too_small_loses_nothing_while_the_history_lasts() {
    let dir = tempfile::tempdir().unwrap();
    let recorder = RecorderOptions { history_bytes: 32 << 20, snap_bytes: 65_535, queue_bytes: 1 << 20 };
    let (slices, mut recorder) = one(dir.path(), recorder);
    recorder.batch(&[frame(START, &[0; 60])]);
    let id = slices.trigger(request()).unwrap();
    // Reaches the present, so that the next batch is sent as it comes.
    recorder.batch(&[frame(START + 1, &[0; 60])]);
    let data = vec![3; 60_000];
    let frames: Vec<_> = (0..256).map(|i| frame(START + 2 + i, &data)).collect();
    recorder.batch(&frames);
    recorder.finish(PATIENCE);
    let info = complete(&slices, id);
    assert_eq!((info.packets, info.dropped_queue_full, info.overwritten), (258, 0, 0));
    assert_eq!(times(&info.path), (START..START + 258).collect::<Vec<_>>());
}

/// Without a history it is dropped, and counted.
#[test]
fn a_queue_that_is_too_small_counts_what_it_drops() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), RecorderOptions { history_bytes: 0, ..small() });
    recorder.batch(&[frame(START, &[0; 60])]);
    let id = slices.trigger(request()).unwrap();
    let data = vec![3; 60_000];
    let frames: Vec<_> = (0..256).map(|i| frame(START + i, &data)).collect();
    recorder.batch(&frames);
    let long = vec![0; 2 << 20];
    recorder.batch(&[frame(START + 300, &long)]);
    recorder.finish(PATIENCE);
    let info = complete(&slices, id);
    assert_eq!(info.packets + info.dropped_queue_full, 257, "the packet before the trigger is not there");
    assert!(info.dropped_queue_full >= 1, "the packet that is longer than the queue");
    assert_eq!(slices.counts().dropped_queue_full, info.dropped_queue_full);
    assert_eq!(times(&info.path).len() as u64, info.packets);
}

/// A history that holds less than was asked for gives what it has; one that is outrun counts it.
#[test]
fn what_the_history_overwrites_is_counted() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    recorder.batch(&[frame(START, &[0; 60])]);
    let id = slices.trigger(request()).unwrap();
    // 256 * 60,000 bytes, of which 2000 are kept each: half a history, more than the queue. Then ten histories.
    let data = vec![3; 60_000];
    for round in 0..20 {
        let frames: Vec<_> = (0..256).map(|i| frame(START + round * 1000 + i, &data)).collect();
        recorder.batch(&frames);
    }
    recorder.finish(PATIENCE);
    let info = complete(&slices, id);
    assert_eq!(info.packets + info.overwritten, 20 * 256 + 1);
    assert_eq!(slices.counts().overwritten, info.overwritten);
}

#[test]
fn a_slice_ends_with_its_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    recorder.batch(&[frame(START, &[0; 100])]);
    let id = slices.trigger(TriggerRequest { bytes_max: 1050, ..request() }).unwrap();
    for i in 1..100 {
        recorder.batch(&[frame(START + i * SECOND / 100, &[0; 100])]);
    }
    let info = complete_idle(&slices, id, &mut recorder, START + 2 * SECOND);
    assert_eq!((info.packets, info.bytes, info.ended_by), (10, 1000, Some(EndReason::Size)));
    assert_eq!(times(&info.path), (0..10).map(|i| START + i * SECOND / 100).collect::<Vec<_>>());
    // The worker has not noticed yet, and goes on with another slice as if nothing had been.
    let next = slices.trigger(request()).unwrap();
    recorder.batch(&[frame(START + 3 * SECOND, &[0; 100])]);
    recorder.finish(PATIENCE);
    assert_eq!(complete(&slices, next).packets, 101);
}

#[test]
fn a_quiet_tap_ends_by_the_clock_it_idles_with() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    let id = slices.trigger(request()).unwrap();
    assert_eq!(slices.get(id).unwrap().at, None, "nobody knows the time");
    recorder.idle(Nanos(START));
    recorder.batch(&[frame(START + SECOND, &[0; 60])]);
    recorder.idle(Nanos(START + 5 * SECOND + LATE.0 - 1));
    assert_eq!(slices.get(id).unwrap().state, SliceState::Recording);
    recorder.idle(Nanos(START + 5 * SECOND + LATE.0));
    let info = complete(&slices, id);
    assert_eq!((info.packets, info.at, info.ended_by), (1, Some(Nanos(START)), Some(EndReason::Duration)));
}

/// A worker that never had a packet knows no time, not even when it goes.
#[test]
fn a_trigger_before_the_first_packet_is_at_the_first_packet() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorders) = Slices::start(options(dir.path()), 2, small()).unwrap();
    let id = slices.trigger(request()).unwrap();
    recorders.swap_remove(0).finish(PATIENCE);
    recorders[0].batch(&[frame(START, &[0; 60]), frame(START + 1, &[0; 60])]);
    recorders.swap_remove(0).finish(PATIENCE);
    let info = complete(&slices, id);
    assert_eq!((info.packets, info.at, info.ended_by), (2, Some(Nanos(START)), Some(EndReason::SourceEnded)));
}

/// A worker that is never called: only the wall clock can tell.
#[test]
fn a_worker_that_is_gone_quiet_does_not_keep_a_slice_open() {
    let dir = tempfile::tempdir().unwrap();
    let options = SliceOptions { grace: Duration::from_millis(20), ..options(dir.path()) };
    let (slices, mut recorders) = Slices::start(options, 2, small()).unwrap();
    recorders[0].batch(&[frame(START, &[0; 60])]);
    let id = slices.trigger(TriggerRequest { duration: Duration::from_millis(10), ..request() }).unwrap();
    recorders[0].batch(&[frame(START + 1, &[0; 60])]);
    assert_eq!(complete(&slices, id).ended_by, Some(EndReason::Duration));
}

#[test]
fn a_stop_keeps_what_was_seen() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    (0..100).for_each(|i| recorder.batch(&[frame(START + i, &[0; 60])]));
    let id = slices.trigger(request()).unwrap();
    (100..110).for_each(|i| recorder.batch(&[frame(START + i, &[0; 60])]));
    slices.stop(id).unwrap();
    (110..200).for_each(|i| recorder.batch(&[frame(START + i, &[0; 60])]));
    let info = complete(&slices, id);
    assert_eq!((info.packets, info.ended_by), (110, Some(EndReason::Stopped)));
    slices.stop(id).unwrap();
    assert_eq!(slices.get(id).unwrap(), info, "stopping again changes nothing");
}

#[test]
fn a_shutdown_completes_what_is_open_and_refuses_more() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    recorder.batch(&[frame(START, &[0; 60])]);
    let id = slices.trigger(request()).unwrap();
    recorder.batch(&[frame(START + 1, &[0; 60])]);
    // The worker is neither finished nor polled again.
    slices.shutdown();
    let info = slices.get(id).unwrap();
    assert_eq!((info.packets, info.ended_by, &info.state), (2, Some(EndReason::Shutdown), &SliceState::Complete));
    assert!(matches!(slices.trigger(request()), Err(SliceError::ShutDown)));
    recorder.batch(&[frame(START + 2, &[0; 60])]);
    slices.shutdown();
}

#[test]
fn requests_out_of_range_are_refused_with_what_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    let options = SliceOptions { active_max: 2, ..options(dir.path()) };
    let (slices, recorders) = Slices::start(options, 1, small()).unwrap();
    let hour = Duration::from_secs(3601);
    let wrong = [
        (TriggerRequest { before: hour, ..request() }, "before is 3601s, expected at most 3600s"),
        (TriggerRequest { duration: hour, ..request() }, "duration is 3601s"),
        (TriggerRequest { duration: Duration::ZERO, ..request() }, "duration is 0ns, expected more than 0 s"),
        (TriggerRequest { bytes_max: 0, ..request() }, "bytes_max is 0, expected 1 to 10737418240"),
        (TriggerRequest { bytes_max: u64::MAX, ..request() }, "bytes_max is 18446744073709551615"),
        (TriggerRequest { filter_text: "x".repeat(20_000), ..request() }, "filter_text is 20000 bytes long"),
        (TriggerRequest { taps: Some(vec![]), ..request() }, "taps is a list of 0"),
    ];
    for (request, text) in wrong {
        let message = slices.trigger(request).unwrap_err().to_string();
        assert!(message.contains(text), "{message}");
    }
    let first = slices.trigger(TriggerRequest { reason: "é".repeat(2000), ..request() }).unwrap();
    assert_eq!(slices.get(first).unwrap().reason, "é".repeat(500));
    assert!(matches!(slices.delete(first), Err(SliceError::Recording { .. })));
    assert!(matches!(slices.read(first), Err(SliceError::Recording { .. })));
    slices.trigger(request()).unwrap();
    let message = slices.trigger(request()).unwrap_err().to_string();
    assert!(message.starts_with("2 slices are being recorded"), "{message}");
    assert_eq!(slices.counts().refused, 8);
    let none = capture::slice::SliceId(3);
    assert!(matches!(slices.get(none), Err(SliceError::Unknown { .. })));
    assert!(matches!(slices.stop(none), Err(SliceError::Unknown { .. })));
    assert!(matches!(slices.delete(none), Err(SliceError::Unknown { .. })));
    drop(recorders);
    // With no worker left there is nothing to wait for.
    assert_eq!(complete(&slices, first).ended_by, Some(EndReason::SourceEnded));

    for (recorder, text) in [
        (RecorderOptions { history_bytes: 5, ..small() }, "history_bytes is 5"),
        (RecorderOptions { snap_bytes: 10, ..small() }, "snap_bytes is 10"),
        (RecorderOptions { queue_bytes: 0, ..small() }, "queue_bytes is 0"),
    ] {
        let Err(error) = Slices::start(SliceOptions::new(dir.path(), vec![]), 1, recorder) else { panic!("{text}") };
        assert!(error.to_string().contains(text), "{error}");
    }
}

#[test]
fn slices_outlive_the_server() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    recorder.batch(&[frame(START, &[0; 60])]);
    for _ in 0..3 {
        slices.trigger(request()).unwrap();
    }
    recorder.batch(&[frame(START + 1, &[0; 60])]);
    recorder.finish(PATIENCE);
    for slice in slices.list() {
        complete(&slices, slice.id);
    }
    let before = slices.list();
    drop(slices);
    fs::write(dir.path().join("slice-9-left.pcapng.zst.tmp"), [1, 2, 3]).unwrap();
    let (slices, recorder) = one(dir.path(), small());
    assert_eq!(slices.list(), before);
    assert_eq!(slices.counts().file_bytes, before.iter().map(|slice| slice.file_bytes).sum::<u64>());
    let id = slices.trigger(request()).unwrap();
    assert!(before.iter().all(|slice| slice.id < id), "numbers go on");
    drop(recorder);
    complete(&slices, id);
    // Who reads while it is deleted reads on.
    let mut file = slices.read(before[0].id).unwrap();
    slices.delete(before[0].id).unwrap();
    assert!(!before[0].path.exists());
    assert!(std::io::copy(&mut file, &mut std::io::sink()).unwrap() > 0);
    assert!(matches!(slices.get(before[0].id), Err(SliceError::Unknown { .. })));
    assert_eq!(slices.list().len(), 3);
}

/// `count` packets of 1000 bytes that do not compress.
fn noise(count: usize) -> Vec<Vec<u8>> {
    let mut state = 88_172_645_463_325_252_u64;
    let mut byte = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..count).map(|_| (0..1000).map(|_| byte()).collect()).collect()
}

#[test]
fn the_oldest_make_room_for_the_newest() {
    let dir = tempfile::tempdir().unwrap();
    let options = SliceOptions { total_bytes_max: 1 << 20, ..options(dir.path()) };
    let (slices, mut recorders) = Slices::start(options, 1, small()).unwrap();
    let noise = noise(400);
    let mut ids = Vec::new();
    for round in 0..4 {
        let at = START + round * 100 * SECOND;
        recorders[0].batch(&[frame(at, &[0; 60])]);
        ids.push(slices.trigger(TriggerRequest { before: Duration::ZERO, bytes_max: 1 << 20, ..request() }).unwrap());
        for (i, data) in noise.iter().enumerate() {
            recorders[0].batch(&[frame(at + i as u64, data)]);
        }
        complete_idle(&slices, ids[round as usize], &mut recorders[0], at + 50 * SECOND);
    }
    let left: Vec<_> = slices.list().iter().map(|slice| slice.id).collect();
    assert_eq!(left, ids[2..], "400 kB each, 1 MiB in all");
    assert_eq!(slices.counts().removed, 2);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);
}

#[test]
fn a_slice_that_fills_the_folder_alone_ends() {
    let dir = tempfile::tempdir().unwrap();
    let options = SliceOptions { total_bytes_max: 1 << 20, ..options(dir.path()) };
    let recorder = RecorderOptions { history_bytes: 8 << 20, ..small() };
    let (slices, mut recorders) = Slices::start(options, 1, recorder).unwrap();
    recorders[0].batch(&[frame(START, &[0; 60])]);
    // The headers of tiny packets are more than their bytes.
    let id = slices.trigger(TriggerRequest { bytes_max: 1 << 20, ..request() }).unwrap();
    let noise = noise(1000);
    for (i, data) in noise.iter().cycle().take(200_000).enumerate() {
        let part = i % 990;
        recorders[0].batch(&[frame(START + (i as u64 * 7_919_777) % (4 * SECOND), &data[part..part + 8])]);
        if slices.get(id).unwrap().state != SliceState::Recording {
            break;
        }
    }
    let info = complete_idle(&slices, id, &mut recorders[0], START + 50 * SECOND);
    assert_eq!(info.ended_by, Some(EndReason::Size));
    assert!(info.file_bytes < 3 << 20, "{info:?}");
    assert_eq!(slices.list().len(), 1, "it is not removed for its own sake");
}

#[test]
fn a_folder_that_is_gone_fails_the_slice_and_nothing_else() {
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("slices");
    let (slices, mut recorder) = one(&folder, small());
    recorder.batch(&[frame(START, &[0; 60])]);
    fs::remove_dir(&folder).unwrap();
    fs::write(&folder, "a file").unwrap();
    let id = slices.trigger(request()).unwrap();
    recorder.batch(&[frame(START + 1, &[0; 60])]);
    let info = slices.wait(id, PATIENCE).unwrap();
    let SliceState::Failed(why) = &info.state else { panic!("{info:?}") };
    assert!(why.contains("could not be written") && why.contains("create it again"), "{why}");
    assert_eq!((info.ended_by, info.packets, info.file_bytes), (Some(EndReason::Failed), 0, 0));
    assert!(slices.read(id).unwrap_err().to_string().contains("could not be written"));

    // While it records.
    fs::remove_file(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    let id = slices.trigger(request()).unwrap();
    recorder.batch(&[frame(START + 2, &[0; 60])]);
    while fs::read_dir(&folder).unwrap().next().is_none() {
        std::thread::yield_now();
    }
    fs::remove_dir_all(&folder).unwrap();
    recorder.idle(Nanos(START + 60 * SECOND));
    let info = slices.wait(id, PATIENCE).unwrap();
    assert!(matches!(info.state, SliceState::Failed(_)), "{info:?}");

    // The worker goes on.
    fs::create_dir(&folder).unwrap();
    let id = slices.trigger(TriggerRequest { before: Duration::from_secs(3000), ..request() }).unwrap();
    recorder.batch(&[frame(START + 61 * SECOND, &[0; 60])]);
    recorder.finish(PATIENCE);
    assert_eq!(complete(&slices, id).packets, 4);

    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let Err(error) = Slices::start(options(&file), 1, small()) else { panic!("a file is no folder") };
    assert!(error.to_string().contains("cannot be used"), "{error}");
}

/// A tmpfs of 1 MiB, unmounted at the end.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn mount() -> Option<SmallDisk> {
        let dir = tempfile::tempdir().unwrap();
        let mount = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        let mounted = Command::new("mount").args(mount).arg(dir.path()).output();
        mounted.is_ok_and(|output| output.status.success()).then(|| SmallDisk(dir))
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg(self.0.path()).output();
    }
}

#[test]
fn a_full_disk_keeps_what_was_written_before() {
    let Some(disk) = SmallDisk::mount() else {
        println!("SKIPPED: mounting a tmpfs needs root");
        return;
    };
    let recorder = RecorderOptions { history_bytes: 8 << 20, ..small() };
    let (slices, mut recorder) = one(disk.0.path(), recorder);
    recorder.batch(&[frame(START, &[0; 60])]);
    let first = slices.trigger(request()).unwrap();
    recorder.batch(&[frame(START + 1, &[0; 60])]);
    complete_idle(&slices, first, &mut recorder, START + 6 * SECOND);
    let id = slices.trigger(request()).unwrap();
    for (i, data) in noise(3000).iter().enumerate() {
        recorder.batch(&[frame(START + 7 * SECOND + i as u64, data)]);
    }
    recorder.finish(PATIENCE);
    let info = complete(&slices, id);
    assert_eq!(info.ended_by, Some(EndReason::DiskFull));
    assert!(info.lost_disk > 0, "{info:?}");
    assert_eq!(read(&info.path).len() as u64, info.packets);
    assert_eq!(slices.counts().ended[EndReason::DiskFull as usize], 1);
}

/// Whether slices record or not, a batch allocates nothing.
#[test]
fn steady_batches_allocate_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (slices, mut recorder) = one(dir.path(), small());
    recorder.touch();
    let data = [9; 350];
    let batch =
        |round: u64| -> Vec<Frame<'_>> { (0..256).map(|i| frame(START + round * 1_000_000 + i, &data)).collect() };
    let count = |recorder: &mut Recorder, rounds: std::ops::Range<u64>| {
        for round in rounds {
            let frames = batch(round);
            let before = ALLOCATIONS.with(Cell::get);
            recorder.batch(&frames);
            assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "round {round}");
        }
    };
    count(&mut recorder, 0..50);
    for _ in 0..8 {
        slices.trigger(TriggerRequest { predicate: Some(Arc::new(|frame| frame.data[0] == 9)), ..request() }).unwrap();
    }
    count(&mut recorder, 50..200);
    let ids: Vec<_> = slices.list().iter().map(|slice| slice.id).collect();
    for id in ids {
        slices.stop(id).unwrap();
    }
    count(&mut recorder, 200..250);
    let before = ALLOCATIONS.with(Cell::get);
    recorder.idle(Nanos(START + 100 * SECOND));
    assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0);
}

/// Distance of the frames of the measurement: not a power of two, or they would share a few sets of the cache.
const STRIDE: usize = 2048 + 64;

/// Copies each frame to a ring without keeping anything else of it: the least that a history can cost.
fn copy_only(ring: &mut [u8], at: &mut usize, frames: &[Frame<'_>]) {
    for frame in frames {
        if *at + frame.data.len() + 32 > ring.len() {
            *at = 0;
        }
        ring[*at..*at + frame.data.len()].copy_from_slice(frame.data);
        *at += frame.data.len() + 24;
    }
}

/// The least time of many short runs, in nanoseconds a packet of batches of 256.
fn best_ns(mut batch: impl FnMut()) -> f64 {
    let run = |batch: &mut dyn FnMut()| {
        let started = Instant::now();
        (0..400).for_each(|_| batch());
        started.elapsed().as_nanos() as f64 / 400.0 / 256.0
    };
    (0..60).map(|_| run(&mut batch)).fold(f64::MAX, f64::min)
}

/// Nanoseconds a packet: `cargo test -p capture --release --test slice -- --ignored --nocapture`.
#[test]
#[ignore = "a measurement"]
fn what_a_packet_costs() {
    let dir = tempfile::tempdir().unwrap();
    let memory: Vec<u8> = vec![1; 256 * STRIDE];
    let frames = |bytes: usize| -> Vec<Frame<'_>> {
        (0..256).map(|i| frame(START + i as u64, &memory[i * STRIDE..][..bytes])).collect()
    };
    for history_bytes in [0, 1 << 20, 64 << 20, 512 << 20] {
        for bytes in [60, 350, 1500] {
            let (_slices, mut recorder) = one(dir.path(), RecorderOptions { history_bytes, ..Default::default() });
            recorder.touch();
            let (frames, mut ring, mut at) = (frames(bytes), vec![1_u8; history_bytes.max(1 << 20)], 0);
            let recorder_ns = best_ns(|| recorder.batch(std::hint::black_box(&frames)));
            let copy_ns = best_ns(|| copy_only(&mut ring, &mut at, std::hint::black_box(&frames)));
            let mib = history_bytes >> 20;
            println!("history {mib:>4} MiB, {bytes:>4} bytes: {recorder_ns:6.2} ns a packet, bare copy {copy_ns:6.2}");
        }
    }
    for matches in [false, true] {
        let (slices, mut recorder) = one(dir.path(), RecorderOptions::default());
        recorder.touch();
        let frames = frames(350);
        let asked = TriggerRequest { predicate: Some(Arc::new(move |_| matches)), bytes_max: 10 << 30, ..request() };
        let id = slices.trigger(asked).unwrap();
        let ns = best_ns(|| recorder.batch(std::hint::black_box(&frames)));
        recorder.finish(PATIENCE);
        let info = complete(&slices, id);
        let (packets, overwritten) = (info.packets, info.overwritten);
        println!(
            "one slice, filter says {matches}: {ns:.2} ns a packet; {packets} recorded, {overwritten} overwritten"
        );
    }
}
