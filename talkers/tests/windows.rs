//! Windows of several workers against plain counting of the same packets and flows.

mod common;

use common::*;
use flowtable::{FlowDelta, FlowRecord};
use std::sync::Arc;
use talkers::{
    Board, Collector, Feed, KeyFields, KeySpec, Kind, Measure, Metric, Size, TalkerRow, TaskConfig, WhenBehind, Which,
    Window, default_tasks, start,
};
use wire::{Direction, Nanos, PacketMeta};

fn elements(config: TaskConfig, elements: &[&str]) -> TaskConfig {
    TaskConfig { elements: elements.iter().map(|name| (*name).to_owned()).collect(), ..config }
}

/// Time comes to `clock`. Flows tell at once: what they do not know yet is for `tests/flows.rs`.
fn advance(feed: &mut Feed, clock: Nanos) {
    if feed.is_due(clock) && feed.must_turn(clock, true) {
        feed.turn(clock);
        feed.swept();
    }
}

/// A packet, told by its flow at once.
fn count(feed: &mut Feed, packet: &PacketMeta) {
    feed.packets(std::slice::from_ref(packet));
    let (pkts, bytes) = ([1, 0], [u64::from(packet.ip_bytes), 0]);
    feed.delta(&FlowDelta { key: &packet.key, originator: packet.direction, pkts, bytes }, false);
}

/// Deals packets to workers by their flow, and lets all of them hear of the time.
fn deal(feeds: &mut [Feed], packets: &[PacketMeta]) {
    let workers = feeds.len() as u64;
    for packet in packets {
        for (k, feed) in feeds.iter_mut().enumerate() {
            advance(feed, packet.clock);
            if packet.key.stable_hash() % workers == k as u64 {
                count(feed, packet);
            }
        }
    }
}

fn taps(count: usize) -> Vec<String> {
    (0..count).map(|n| format!("tap{n}")).collect()
}

fn finish(feeds: Vec<Feed>, collector: &mut Collector) -> Vec<Arc<Window>> {
    feeds.into_iter().for_each(Feed::finish);
    let over = collector.poll().unwrap();
    assert!(collector.is_over());
    over
}

/// All windows of a stream, from `workers` that one thread drives.
fn windows(tasks: Vec<TaskConfig>, workers: usize, packets: &[PacketMeta]) -> (Vec<Arc<Window>>, Arc<Board>) {
    let (mut feeds, mut collector, board) =
        start(tasks, &taps(1), &vec![0; workers], 1 << 30, 5, WhenBehind::GoOn).unwrap();
    let mut over = Vec::new();
    for run in packets.chunk_by(|a, b| a.clock.0 / SECOND == b.clock.0 / SECOND) {
        deal(&mut feeds, run);
        over.extend(collector.poll().unwrap());
    }
    over.extend(finish(feeds, &mut collector));
    (over, board)
}

const FULL: [&str; 6] = ["src_ip", "dst_ip", "src_port", "dst_port", "proto", "vlan"];

/// With room for all keys every part of them is exact, however the packets were dealt.
#[test]
fn with_room_for_all_keys_every_part_is_exact() {
    type Key = fn(&PacketMeta) -> KeyFields;
    let parts: [(&str, Key); 4] =
        [("src_ip", by_source), ("src_ip,dst_ip", by_pair), ("src_port,proto,vlan", by_port), ("src_ip/24/48", by_net)];
    let packets = stream(1, 35, 4_000, 40);
    for workers in [1, 3] {
        let tasks = vec![
            task("all", Kind::HeavyHitters, &FULL, Size::Memory(8 << 20)),
            task("sources", Kind::TopK, &["src_ip"], Size::Memory(64 << 10)),
        ];
        let (over, board) = windows(tasks, workers, &packets);
        assert_eq!(over.len(), 8, "four windows of each");
        assert_eq!((board.counts().windows, board.counts().late, board.counts().stragglers), (8, 0, 0));
        for window in &over {
            let number = window.times().0.0 / (10 * SECOND);
            assert_eq!(window.times().1.0 - window.times().0.0, 10 * SECOND);
            let parts = if window.task().name() == "all" { &parts[..] } else { &parts[..1] };
            for (by, key) in parts {
                let by: KeySpec = by.parse().unwrap();
                let mut wanted = truth(&packets, key).remove(&number).unwrap();
                let total: u64 = wanted.values().sum();
                assert_eq!(window.total(), Some(total));
                let listing = window.list(&by, 0, 30).unwrap();
                assert_eq!(listing.keys.len(), wanted.len().min(30));
                assert!(listing.keys.is_sorted_by(|a, b| a.1.estimate >= b.1.estimate));
                for (key, known) in &listing.keys {
                    let bytes = wanted.remove(key).unwrap_or_else(|| panic!("{key:?} by {by}")) as f64;
                    assert_eq!((known.estimate, known.lower, known.upper), (bytes, bytes, bytes));
                    assert_eq!(window.estimate(&by, key).unwrap(), *known);
                }
                assert_eq!(listing.others.estimate, wanted.values().sum::<u64>() as f64);
                assert!(wanted.values().all(|bytes| *bytes as f64 <= listing.others.upper));
                let smallest = listing.keys.last().unwrap().1.estimate as u64;
                let more = listing.keys.iter().filter(|(_, known)| known.estimate > smallest as f64).count();
                assert_eq!(window.list(&by, smallest + 1, 30).unwrap().keys.len(), more);
            }
        }
    }
}

/// With far too little room the bounds hold all the same, also of what is not listed.
#[test]
fn bounds_hold_where_there_is_too_little_room() {
    for seed in 0..20 {
        let packets = stream(seed, 25, 20_000, 3_000);
        for kind in [Kind::HeavyHitters, Kind::TopK] {
            let key: &[&str] = if kind == Kind::TopK { &["src_ip"] } else { &FULL };
            let (over, _) = windows(vec![task("small", kind, key, Size::Memory(32 << 10))], 2, &packets);
            assert_eq!(over.len(), 3);
            let by: KeySpec = "src_ip".parse().unwrap();
            for window in over {
                let wanted = truth(&packets, by_source).remove(&(window.times().0.0 / (10 * SECOND))).unwrap();
                let listing = window.list(&by, 0, 20).unwrap();
                assert_eq!(listing.keys.len(), 20);
                for (key, known) in &listing.keys {
                    let bytes = wanted.get(key).copied().unwrap_or(0) as f64;
                    assert!(
                        known.lower <= bytes && bytes <= known.upper,
                        "seed {seed} {kind:?} {key:?}: {known:?} {bytes}"
                    );
                }
                let listed = |key: &KeyFields| listing.keys.iter().any(|(other, _)| other == key);
                let mut unlisted: Vec<_> = wanted.iter().filter(|(key, _)| !listed(key)).collect();
                assert!(
                    unlisted.iter().all(|(_, bytes)| **bytes as f64 <= listing.others.upper),
                    "seed {seed} {kind:?}"
                );
                // Each question is a pass over the sketch.
                unlisted.sort();
                for (key, bytes) in unlisted.into_iter().step_by(199) {
                    let known = window.estimate(&by, key).unwrap();
                    assert!(
                        known.lower <= *bytes as f64 && *bytes as f64 <= known.upper,
                        "seed {seed} {kind:?} {known:?}"
                    );
                }
            }
        }
    }
}

/// A flow between two hosts.
fn record(originator: u64, responder: (u64, u16), bytes: u64, rtt_us: Option<u32>) -> FlowRecord {
    FlowRecord {
        src_ip: host(originator),
        src_port: 4_000,
        dst_ip: host(responder.0),
        dst_port: responder.1,
        proto: 6,
        bytes_o: bytes / 2,
        bytes_r: bytes - bytes / 2,
        pkts_o: 1,
        pkts_r: 1,
        rtt_us,
        ..FlowRecord::default()
    }
}

/// An entropy of more items than its sample has room for, most of them on a few: known only while those are, whether a worker's own
/// sample became too small or that of all workers together.
#[test]
fn the_largest_items_of_an_entropy_are_known_when_the_sample_is_full() {
    let config = || {
        let config = task("ports", Kind::Entropy, &[], Size::Memory(64 << 10));
        elements(TaskConfig { metric: Metric::Flows, ..config }, &["responder_port"])
    };
    for (workers, ports) in [(1, 1_500), (1, 10_000), (2, 20_000), (3, 3_000), (4, 1_500)] {
        let (mut feeds, mut collector, _) =
            start(vec![config()], &taps(1), &vec![0; workers], 1 << 30, 9, WhenBehind::GoOn).unwrap();
        feeds.iter_mut().for_each(|feed| advance(feed, Nanos(1_000 * SECOND)));
        let mut counts = vec![0_u64; 65_536];
        let mut begin = |n: usize, port: u16| {
            counts[usize::from(port)] += 1;
            let first = packet((1, 4_000), (2, port), 1_000 * SECOND, 60, 0);
            feeds[n % workers].begun(&first.key, first.direction);
        };
        // Two that have most from the start, two that come when there are many others, and each of the others once or twice.
        for n in 0..ports {
            begin(n, 1_024 + n as u16);
            begin(n, [80, 443][n % 2]);
            if n % 3 == 0 {
                begin(n, 1_024 + n as u16);
            }
        }
        for n in 0..ports {
            begin(n, [53, 123][n % 2]);
        }
        let all: f64 = counts.iter().sum::<u64>() as f64;
        let shares = counts.iter().filter(|n| **n > 0).map(|n| *n as f64 / all);
        let wanted: f64 = shares.map(|share| -share * share.log2()).sum();
        let over = finish(feeds, &mut collector);
        let (entropy, _) = over[0].entropy().unwrap();
        let told = format!("{workers} workers, {ports} ports: {entropy:?} of {wanted}");
        match ports {
            1_500 => assert!((entropy.estimate - wanted).abs() < 1e-9 && entropy.lower == entropy.upper, "{told}"),
            _ => assert!((entropy.estimate - wanted).abs() < 0.2 && entropy.lower < entropy.upper, "{told}"),
        }
        assert_eq!(over[0].total(), Some(all as u64));
    }
}

/// Questions to the window being filled share a copy of it, until it is old or the window is over.
#[test]
fn questions_share_a_copy_of_the_window_being_filled() {
    let tasks = vec![task("senders", Kind::TopK, &["src_ip"], Size::Memory(1 << 16))];
    let (mut feeds, _collector, board) = start(tasks, &taps(2), &[0, 1], 1 << 30, 5, WhenBehind::GoOn).unwrap();
    let running = |tap| board.window(&board.tasks()[0], tap, Which::Running).unwrap().unwrap();
    let mut send = |second: u64| {
        for feed in &mut feeds {
            advance(feed, Nanos(second * SECOND));
            count(feed, &packet((1, 1), (2, 2), second * SECOND, 100, 0));
            feed.flush();
        }
    };
    send(1_000);
    board.share_running(std::time::Duration::from_secs(3_600));
    let [all, one] = [None, Some("tap1")].map(running);
    assert_eq!((all.total(), one.total()), (Some(200), Some(100)));
    send(1_001);
    assert!(Arc::ptr_eq(&all, &running(None)) && Arc::ptr_eq(&one, &running(Some("tap1"))));
    // The next window is another one.
    send(1_010);
    assert_eq!((running(None).total(), running(Some("tap1")).total()), (Some(200), Some(100)));
    assert!(running(None).times().0 > all.times().0);
    send(1_011);
    board.share_running(std::time::Duration::from_nanos(1));
    assert_eq!(running(None).total(), Some(400));
}

/// Flows: who contacts many, how many there are, how evenly, how large, how far.
#[test]
fn flows_are_counted_by_who_began_them() {
    let names = ["originator"];
    let flows = |config: TaskConfig| TaskConfig { metric: Metric::Flows, ..config };
    let small = Size::Memory(1 << 20);
    let tasks = vec![
        elements(flows(task("fan_out", Kind::Spreaders, &names, small)), &["responder", "responder_port"]),
        elements(flows(task("hosts", Kind::Cardinality, &[], Size::Error(0.01))), &names),
        elements(flows(task("ports", Kind::Entropy, &[], small)), &["responder_port"]),
        flows(task("openers", Kind::HeavyHitters, &names, small)),
        task("bytes", Kind::TopK, &names, small),
        TaskConfig {
            measure: Some(Measure::Rtt),
            quantiles: vec![0.0, 0.5, 1.0],
            ..task("rtt", Kind::Quantiles, &[], Size::Error(0.01))
        },
    ];
    let (mut feeds, mut collector, board) = start(tasks, &taps(1), &[0, 0], 1 << 30, 3, WhenBehind::GoOn).unwrap();
    // Host 1 contacts 500 others on one port; hosts 2 to 101 contact one, on 100 ports.
    for feed in &mut feeds {
        advance(feed, Nanos(1_000 * SECOND));
    }
    for n in 0..500 {
        let first = packet((1, 4_000), (1_000 + n, 443), 1_000 * SECOND, 60, 0);
        // The one who answers is no originator, whoever sent the packet that was seen first.
        let feed = &mut feeds[n as usize % 2];
        feed.begun(&first.key, first.direction);
        feed.ended(&record(1, (1_000 + n, 443), 100, Some(1_000 + n as u32)));
    }
    for n in 2..102 {
        let answer = packet((5_000, n as u16), (n, 4_000), 1_000 * SECOND, 60, 0);
        let originator = match answer.direction {
            Direction::LoToHi => Direction::HiToLo,
            Direction::HiToLo => Direction::LoToHi,
        };
        feeds[0].begun(&answer.key, originator);
        feeds[0].ended(&record(n, (5_000, n as u16), 7, None));
    }
    feeds.iter_mut().for_each(Feed::flush);
    let by: KeySpec = "originator".parse().unwrap();
    let one = KeyFields { originator: Some(host(1)), ..KeyFields::default() };
    let running = board.find(None, Some(Metric::Distinct), &by).unwrap();
    let running = board.window(running, None, Which::Running).unwrap().unwrap();
    assert!(running.is_running() && running.list(&by, 100, 9).unwrap().keys[0].0 == one);
    assert!(board.window(running.task(), None, Which::Last).unwrap().is_none());
    let over = finish(feeds, &mut collector);
    assert_eq!(over.len(), 6);
    let window = |name: &str| over.iter().find(|window| window.task().name() == name).unwrap();
    let listing = window("fan_out").list(&by, 10, 9).unwrap();
    assert_eq!(listing.keys.len(), 1);
    let (key, known) = listing.keys[0];
    assert_eq!(key, one);
    assert!(known.lower <= 500.0 && 500.0 <= known.upper && known.upper < 800.0, "{known:?}");
    assert!((80.0..120.0).contains(&listing.others.estimate), "{listing:?}");
    let hosts = window("hosts").distinct().unwrap();
    assert!(hosts.lower <= 101.0 && 101.0 <= hosts.upper, "{hosts:?}");
    // 500 of 600 on one port, the others on one each.
    let wanted = -(500.0 / 600.0 * (500.0_f64 / 600.0).log2() + 100.0 / 600.0 * (1.0_f64 / 600.0).log2());
    let (entropy, evenness) = window("ports").entropy().unwrap();
    assert!((entropy.estimate - wanted).abs() < 1e-9 && evenness < 0.5, "{entropy:?} {wanted}");
    assert_eq!(window("openers").estimate(&by, &one).unwrap().estimate, 500.0);
    assert_eq!(window("openers").total(), Some(600));
    assert_eq!(window("bytes").estimate(&by, &one).unwrap().lower, 50_000.0);
    let quantile = |q: f64| window("rtt").quantile(q).unwrap().unwrap();
    assert_eq!((quantile(0.0).estimate, quantile(1.0).estimate), (1_000.0, 1_499.0));
    assert!((quantile(0.5).estimate - 1_249.0).abs() <= 12.5);
    assert_eq!(window("rtt").total(), Some(500));
    let error = window("rtt").list(&by, 0, 9).unwrap_err().to_string();
    assert!(error.contains("task 'rtt' cannot be asked by originator: it knows the quantile of rtt_us"), "{error}");
    let error = window("bytes").distinct().unwrap_err().to_string();
    assert!(error.contains("it answers by originator"), "{error}");
}

/// What grew and what shrank since the window before.
#[test]
fn changes_between_windows_are_told() {
    let mut packets = Vec::new();
    for (second, hosts) in [(1_000, [(1, 100), (2, 5_000), (3, 70)]), (1_010, [(1, 9_000), (2, 300), (3, 70)])] {
        packets.extend(hosts.map(|(n, bytes)| packet((n, 1), (99, 443), second * SECOND, bytes, 0)));
    }
    let (_, board) = windows(vec![task("all", Kind::HeavyHitters, &FULL, Size::Memory(1 << 20))], 1, &packets);
    let spec = &board.tasks()[0];
    let window = |which| board.window(spec, Some("tap0"), which).unwrap().unwrap();
    let by: KeySpec = "src_ip".parse().unwrap();
    let changed = window(Which::Last).changed(&window(Which::Previous), &by, 10).unwrap();
    let told: Vec<_> = changed.iter().map(|one| (one.key.src_ip.unwrap(), one.change.estimate)).collect();
    assert_eq!(told, [(host(1), 8_900.0), (host(2), -4_700.0)]);
    assert_eq!((changed[1].before.estimate, changed[1].after.estimate), (5_000.0, 300.0));
    assert!(board.window(spec, Some("tap9"), Which::Last).unwrap_err().to_string().contains("there are tap0"));
}

/// Rows name the task, the window, the key and what is not listed, in all its texts.
#[test]
fn rows_have_the_listed_keys_and_what_is_not_listed() {
    let packets = stream(9, 10, 3_000, 50);
    let lists = vec![vec!["src_ip".to_owned()], vec!["proto".to_owned(), "dst_port".to_owned()]];
    let all = TaskConfig { lists, rows_max: 10, ..task("all", Kind::HeavyHitters, &FULL, Size::Memory(1 << 20)) };
    let sizes = TaskConfig {
        measure: Some(Measure::PacketBytes),
        quantiles: vec![0.5, 1.0],
        ..task("sizes", Kind::Quantiles, &[], Size::Error(0.01))
    };
    let (over, _) = windows(vec![all, sizes], 2, &packets);
    let (mut rows, mut texts) = (Vec::new(), Vec::new());
    for window in &over {
        window.rows(&mut rows, &mut texts).unwrap();
    }
    let mut rest = &texts[..];
    let mut text = |length: u8| {
        let (text, others) = rest.split_at(usize::from(length));
        rest = others;
        String::from_utf8(text.to_vec()).unwrap()
    };
    let texts: Vec<[String; 3]> =
        rows.iter().map(|row| [row.task_len, row.key_len, row.elements_len].map(&mut text)).collect();
    assert!(rest.is_empty());
    let of = |wanted: &[&str; 3]| -> Vec<&TalkerRow> {
        rows.iter().zip(&texts).filter(|(_, texts)| texts.iter().eq(wanted)).map(|(row, _)| row).collect()
    };
    let sources = of(&["all", "src_ip", ""]);
    assert_eq!(sources.len(), 11);
    assert!(sources.iter().enumerate().all(|(at, row)| row.rank == (at < 10).then_some(at as u32 + 1)));
    assert!(sources.iter().all(|row| row.key.src_ip.is_some() == row.rank.is_some() && row.metric == Metric::Bytes));
    assert!(sources.iter().all(|row| (row.start, row.end) == (Nanos(1_000 * SECOND), Nanos(1_010 * SECOND))));
    let total: u32 = packets.iter().map(|packet| packet.ip_bytes).sum();
    assert_eq!(sources.iter().map(|row| row.estimate).sum::<f64>(), f64::from(total));
    let ports = of(&["all", "proto,dst_port", ""]);
    assert_eq!((ports.len(), ports[0].key.dst_port, ports[1].estimate), (2, Some(443), 0.0));
    let sizes = of(&["sizes", "", "packet_bytes"]);
    let largest = packets.iter().map(|packet| packet.ip_bytes).max().unwrap();
    assert_eq!((sizes[0].quantile, sizes[1].estimate), (Some(0.5), f64::from(largest)));
    assert_eq!(rows.len(), 11 + 2 + 2);
}

/// Taps are counted apart, and answered together where none is named.
#[test]
fn taps_are_counted_apart() {
    let all = task("all", Kind::HeavyHitters, &FULL, Size::Memory(1 << 20));
    let (mut feeds, mut collector, board) = start(vec![all], &taps(2), &[0, 1], 1 << 30, 5, WhenBehind::GoOn).unwrap();
    for (tap, feed) in feeds.iter_mut().enumerate() {
        advance(feed, Nanos(1_000 * SECOND));
        count(feed, &packet((1, 1), (2, 2), 1_000 * SECOND, 100 << tap, tap as u16));
    }
    assert_eq!(finish(feeds, &mut collector).len(), 2);
    let total = |tap| board.window(&board.tasks()[0], tap, Which::Last).unwrap().unwrap().total();
    assert_eq!([total(Some("tap0")), total(Some("tap1")), total(None)], [Some(100), Some(200), Some(300)]);
}

/// Nobody collects: a live worker goes on in the same window and says so. Nothing is lost.
#[test]
fn a_window_that_is_not_collected_goes_on() {
    let all = task("all", Kind::HeavyHitters, &FULL, Size::Memory(1 << 20));
    let (mut feeds, mut collector, board) = start(vec![all], &taps(1), &[0], 1 << 30, 5, WhenBehind::GoOn).unwrap();
    let packets = stream(4, 60, 600, 10);
    deal(&mut feeds, &packets);
    assert_eq!(board.counts().late, 1);
    let mut over = collector.poll().unwrap();
    over.extend(finish(feeds, &mut collector));
    let total: u64 = packets.iter().map(|packet| u64::from(packet.ip_bytes)).sum();
    assert_eq!(over.iter().filter_map(|window| window.total()).sum::<u64>(), total);
    assert_eq!(over.len(), 2);
}

/// A worker that stands still is waited for, but not for ever; what it had is counted later.
#[test]
fn a_straggler_is_left_behind_and_counted() {
    let all = task("all", Kind::HeavyHitters, &FULL, Size::Memory(1 << 20));
    let (mut feeds, mut collector, board) = start(vec![all], &taps(1), &[0, 0], 1 << 30, 5, WhenBehind::GoOn).unwrap();
    let one = |second: u64| packet((1, 1), (2, 2), second * SECOND, 100, 0);
    let mut over = Vec::new();
    for second in (1_000..1_100).step_by(10) {
        let worker = if second == 1_000 { &mut feeds[..] } else { &mut feeds[..1] };
        for feed in worker {
            advance(feed, Nanos(second * SECOND));
            count(feed, &one(second));
        }
        over.extend(collector.poll().unwrap());
    }
    assert!(!over.is_empty(), "windows were published without the one that stands still");
    over.extend(finish(feeds, &mut collector));
    assert!(over.is_sorted_by_key(|window| window.times().0));
    assert_eq!(over.iter().filter_map(|window| window.total()).sum::<u64>(), 11 * 100);
    assert_eq!((board.counts().stragglers, board.counts().late), (1, 0));
}

/// Workers on threads that wait, a collector on another, questions on a third: every byte is in exactly one window, and what
/// is running is never more than there was.
#[test]
fn threads_lose_nothing() {
    let packets = stream(11, 200, 60_000, 200);
    let all = TaskConfig { window: Nanos(SECOND), ..task("all", Kind::HeavyHitters, &FULL, Size::Memory(2 << 20)) };
    let (feeds, mut collector, board) = start(vec![all], &taps(1), &[0, 0], 1 << 30, 5, WhenBehind::Wait).unwrap();
    let of_window = |number: u64| -> u64 {
        let in_window = packets.iter().filter(|packet| packet.clock.0 / SECOND == number);
        in_window.map(|packet| u64::from(packet.ip_bytes)).sum()
    };
    let over: Vec<Arc<Window>> = std::thread::scope(|scope| {
        for (k, feed) in feeds.into_iter().enumerate() {
            let (packets, mut feed) = (&packets, feed);
            scope.spawn(move || {
                for packet in packets {
                    advance(&mut feed, packet.clock);
                    if packet.key.stable_hash() % 2 == k as u64 {
                        count(&mut feed, packet);
                    }
                }
                feed.finish();
            });
        }
        let asked = board.clone();
        let asking = scope.spawn(move || {
            let mut answers = Vec::new();
            while asked.counts().windows < 200 {
                if let Ok(Some(window)) = asked.window(&asked.tasks()[0], None, Which::Running) {
                    answers.push((window.times().0.0 / SECOND, window.total().unwrap()));
                }
            }
            answers
        });
        let mut over = Vec::new();
        while !collector.is_over() {
            over.extend(collector.poll().unwrap());
        }
        for (number, total) in asking.join().unwrap() {
            assert!(total <= of_window(number), "window {number} had {total} while it ran");
        }
        over
    });
    assert_eq!(over.len(), 200);
    for window in over {
        assert_eq!(window.total(), Some(of_window(window.times().0.0 / SECOND)));
    }
    assert_eq!((board.counts().late, board.counts().stragglers), (0, 0));
}

/// In a replay a worker that is far ahead waits for the others, also for one that brings an older window than all that are known.
#[test]
fn workers_of_a_replay_may_be_far_apart() {
    let all = task("all", Kind::HeavyHitters, &FULL, Size::Memory(1 << 20));
    let (mut feeds, mut collector, board) = start(vec![all], &taps(1), &[0, 0], 1 << 30, 5, WhenBehind::Wait).unwrap();
    let one = |second: u64| packet((1, 1), (2, 2), second * SECOND, 100, 0);
    let (mut ahead, mut behind) = (feeds.remove(0), feeds.remove(0));
    let (mut over, (told, counted)) = (Vec::new(), std::sync::mpsc::channel());
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Nothing in the first window.
            advance(&mut ahead, Nanos(1_000 * SECOND));
            for second in (1_010..1_200).step_by(10) {
                advance(&mut ahead, Nanos(second * SECOND));
                count(&mut ahead, &one(second));
                told.send(second).unwrap();
            }
            ahead.finish();
        });
        advance(&mut behind, Nanos(1_000 * SECOND));
        count(&mut behind, &one(1_000));
        // Three windows are taken from it, the fourth stays with it, and the fifth it fills: that is as far as it gets.
        while counted.try_recv() != Ok(1_050) {
            over.extend(collector.poll().unwrap());
        }
        for _ in 0..100 {
            over.extend(collector.poll().unwrap());
        }
        assert!(over.is_empty() && counted.try_recv().is_err(), "the first window is still being filled");
        advance(&mut behind, Nanos(1_300 * SECOND));
        behind.finish();
        while !collector.is_over() {
            over.extend(collector.poll().unwrap());
        }
    });
    assert!(over.is_sorted_by_key(|window| window.times().0));
    assert_eq!(over.iter().map(|window| window.total()).collect::<Vec<_>>(), [Some(100); 20]);
    assert_eq!((board.counts().late, board.counts().stragglers), (0, 0));
}

/// A refresh that waits for a sweep does not make a window end late.
#[test]
fn a_window_ends_at_its_end_also_while_a_refresh_waits() {
    let all = TaskConfig { window: Nanos(SECOND), ..task("all", Kind::HeavyHitters, &FULL, Size::Memory(1 << 20)) };
    let all = TaskConfig { snapshot_interval: Nanos(SECOND / 5), ..all };
    let (mut feeds, _collector, _) = start(vec![all], &taps(1), &[0], 1 << 30, 5, WhenBehind::GoOn).unwrap();
    let feed = &mut feeds[0];
    advance(feed, Nanos(1_000 * SECOND));
    let late = Nanos(1_000 * SECOND + SECOND * 95 / 100);
    assert!(feed.is_due(late) && !feed.must_turn(late, false));
    assert!(!feed.is_due(Nanos(late.0 + 1)));
    let end = Nanos(1_001 * SECOND);
    assert!(feed.is_due(end) && feed.must_turn(end, false));
}

/// The first window of a capture may begin at time 0.
#[test]
fn time_may_begin_at_zero() {
    let all = task("all", Kind::HeavyHitters, &FULL, Size::Memory(1 << 20));
    let (mut feeds, mut collector, board) = start(vec![all], &taps(1), &[0], 1 << 30, 5, WhenBehind::GoOn).unwrap();
    advance(&mut feeds[0], Nanos(5));
    count(&mut feeds[0], &packet((1, 1), (2, 2), 5, 100, 0));
    feeds[0].flush();
    let running = board.window(&board.tasks()[0], None, Which::Running).unwrap().unwrap();
    assert_eq!((running.times().0, running.total()), (Nanos(0), Some(100)));
    advance(&mut feeds[0], Nanos(11 * SECOND));
    count(&mut feeds[0], &packet((1, 1), (2, 2), 11 * SECOND, 7, 0));
    let over = finish(feeds, &mut collector);
    assert_eq!(over.iter().map(|window| window.total()).collect::<Vec<_>>(), [Some(100), Some(7)]);
}

#[test]
fn the_default_tasks_can_be() {
    let tasks = default_tasks();
    let (feeds, _collector, board) = start(tasks, &taps(1), &[0], 1 << 30, 5, WhenBehind::GoOn).unwrap();
    assert_eq!((feeds.len(), board.tasks().len()), (1, 8));
    assert!(board.memory_bytes() < 64 << 20, "{}", board.memory_bytes());
    let by: KeySpec = "dst_ip/24,proto".parse().unwrap();
    assert_eq!(board.find(None, Some(Metric::Bytes), &by).unwrap().name(), "talkers");
    let error = board.find(None, Some(Metric::Packets), &by).unwrap_err().to_string();
    assert!(
        error.contains("no task counts packets by dst_ip/24,proto; there are talkers (bytes by src_ip,"),
        "{error}"
    );
}

#[test]
fn tasks_that_cannot_be_are_refused_by_setting() {
    let base = || task("a", Kind::HeavyHitters, &["src_ip"], Size::Memory(1 << 20));
    let refused = |config: TaskConfig| {
        start(vec![config], &taps(1), &[0], 1 << 30, 0, WhenBehind::GoOn).err().expect("refused").to_string()
    };
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for (config, words) in [
        (TaskConfig { name: "a b".into(), ..base() }, "name is 'a b'"),
        (TaskConfig { window: Nanos(150_000_000), ..base() }, "window is '0.15 s'"),
        (TaskConfig { snapshot_interval: Nanos(11 * SECOND), ..base() }, "snapshot_interval"),
        (TaskConfig { rows_max: 0, ..base() }, "rows_max"),
        (TaskConfig { key: names(&[]), ..base() }, "key"),
        (TaskConfig { key: names(&["source"]), ..base() }, "no field of a key"),
        (TaskConfig { lists: vec![names(&["dst_ip"])], ..base() }, "no part of the key src_ip"),
        (TaskConfig { elements: names(&["dst_ip"]), ..base() }, "elements"),
        (TaskConfig { metric: Metric::Flows, ..base() }, "metric is 'flows'"),
        (
            TaskConfig { size: Size::Memory(100), ..base() },
            "task 'a': memory is '100': 464B to 8GiB for a task of kind heavy_hitters",
        ),
        (
            TaskConfig { size: Size::Memory(1 << 40), ..base() },
            "memory_max is '1073741824': up to task 'a' they take at least",
        ),
        (TaskConfig { size: Size::Error(0.0), ..base() }, "error is '0'"),
        (
            elements(
                TaskConfig { kind: Kind::Entropy, key: names(&[]), size: Size::Memory(300), ..base() },
                &["src_ip"],
            ),
            "'300': 512B to 16GiB",
        ),
        (TaskConfig { kind: Kind::Quantiles, key: names(&[]), ..base() }, "of is 'nothing'"),
        (TaskConfig { lists: vec![names(&["src_ip"]), names(&["src_ip"])], ..base() }, "there twice"),
        (elements(TaskConfig { kind: Kind::Spreaders, ..base() }, &["responder"]), "another view"),
        (TaskConfig { kind: Kind::TopK, lists: vec![names(&["src_ip"])], ..base() }, "lists"),
    ] {
        let error = refused(config);
        assert!(error.contains(words), "{error}");
        assert!(error.contains("task 'a"), "{error}");
    }
    let error = start(vec![base(), base()], &taps(1), &[0], 1 << 30, 0, WhenBehind::GoOn).err().unwrap().to_string();
    assert!(error.contains("there twice"), "{error}");
    let error = start(vec![base()], &taps(1), &[0], 1 << 20, 0, WhenBehind::GoOn).err().unwrap().to_string();
    assert!(error.contains("memory_max is '1048576'") && error.contains("take at least 9437184 bytes"), "{error}");
}
