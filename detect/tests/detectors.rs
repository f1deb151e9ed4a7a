//! Feeds and detectors together: the same alerts with any number of workers, in time, and bounded.

use detect::{Alert, AlertState, DetectConfig, Detectors, FeedLimits, OpeningKind, PortScanConfig, Tick, TickFeed};
use flowtable::TcpOpening;
use sketches::mix;
use std::collections::VecDeque;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Duration;
use wire::{Addr, Nanos, TapId};

const START: u64 = 1_700_000_000_000_000_000;
const MS: u64 = 1_000_000;

/// SplitMix64.
struct Rng(u64);

impl Rng {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.0) % n
    }
}

/// What a packet causes: `at` nanoseconds after `START`.
#[derive(Clone, Copy)]
struct Event {
    at: u64,
    flow: u64,
    tap: u16,
    bytes: u64,
    opening: Option<(OpeningKind, Addr, Addr, u16)>,
}

fn host(net: u8, n: u64) -> Addr {
    let [.., a, b, c] = n.to_be_bytes();
    Addr::v4([net, a, b, c])
}

fn event(at: u64, kind: OpeningKind, src: Addr, dst: Addr, port: u16) -> Event {
    let bits = |a: Addr| u128::from_be_bytes(a.0) as u64;
    let flow = mix(mix(mix(bits(src)) ^ bits(dst)) ^ u64::from(port));
    Event { at, flow, tap: 0, bytes: 60, opening: Some((kind, src, dst, port)) }
}

fn syn(at: u64, src: Addr, dst: Addr, port: u16) -> Event {
    event(at, OpeningKind::Syn, src, dst, port)
}

fn answer(at: u64, src: Addr, dst: Addr, port: u16) -> Event {
    event(at, OpeningKind::Established, src, dst, port)
}

fn offline(port_scan: PortScanConfig) -> DetectConfig {
    DetectConfig { port_scan, lag_ticks_max: None, ..DetectConfig::default() }
}

fn taps() -> Vec<String> {
    vec!["north".into(), "south".into()]
}

/// Deals the events to feeds by flow; gives each feed's ticks in order.
fn feed(events: &[Event], workers: u16, limits: FeedLimits) -> Vec<VecDeque<Tick>> {
    (0..workers)
        .map(|worker| {
            let mut feed = TickFeed::new(worker, taps().len(), limits);
            let (mut ticks, mut clock) = (VecDeque::new(), Nanos::ZERO);
            for e in events.iter().filter(|e| e.flow % u64::from(workers) == u64::from(worker)) {
                clock = Nanos(START + e.at);
                ticks.extend(feed.advance(clock));
                feed.traffic(TapId(e.tap), 1, e.bytes);
                if let Some((kind, src_ip, dst_ip, dst_port)) = e.opening {
                    let tap = TapId(e.tap);
                    feed.opening(kind, &TcpOpening { clock, flow_id: e.flow, src_ip, dst_ip, dst_port, tap });
                }
            }
            ticks.push_back(feed.finish(clock));
            ticks
        })
        .collect()
}

/// Runs everything, the workers' ticks interleaved at random; alerts and the counters that must not depend on it.
fn run(config: &DetectConfig, mut events: Vec<Event>, workers: u16, seed: u64) -> (Vec<Alert>, [u64; 5]) {
    events.sort_by_key(|e| (e.at, e.flow));
    let mut detectors = Detectors::new(*config, usize::from(workers), taps()).unwrap();
    let mut queues = feed(&events, workers, config.limits);
    let (mut out, mut rng) = (Vec::new(), Rng(seed));
    while queues.iter().any(|q| !q.is_empty()) {
        let at = rng.below(u64::from(workers)) as usize;
        if let Some(tick) = queues[at].pop_front() {
            detectors.tick(tick, &mut out);
        }
    }
    detectors.finish(&mut out);
    let c = detectors.counters();
    let counts = [&c.ticks, &c.openings, &c.openings_dropped, &c.sources_evicted, &c.targets_untracked];
    assert_eq!((c.ticks_late.load(Relaxed), c.rejected.load(Relaxed)), (0, 0));
    (out, counts.map(|c| c.load(Relaxed)))
}

fn alerts(events: Vec<Event>) -> Vec<Alert> {
    run(&offline(PortScanConfig::default()), events, 1, 0).0
}

/// A few minutes of clients, scanners, floods, pauses and bursts.
fn mixture(seed: u64) -> Vec<Event> {
    let mut rng = Rng(seed);
    let mut events = Vec::new();
    let mut at = 0;
    while at < 150_000 * MS {
        at += 1 + rng.below(40) * MS;
        if rng.below(2_000) == 0 {
            at += rng.below(60_000) * MS;
        }
        let (src, dst, port) = (host(10, rng.below(30)), host(192, rng.below(200)), 1 + rng.below(5) as u16);
        events.push(Event { tap: rng.below(2) as u16, ..syn(at, src, dst, port) });
        if rng.below(3) > 0 {
            events
                .push(Event { tap: events[events.len() - 1].tap, ..answer(at + rng.below(400) * MS, src, dst, port) });
        }
        let bytes = if at / (30_000 * MS) % 2 == 1 { 400_000 } else { 20_000 };
        events.push(Event { at, flow: rng.below(u64::MAX), tap: rng.below(2) as u16, bytes, opening: None });
        if rng.below(400) == 0 {
            let (scanner, step) = (host(172, rng.below(5)), 1 + rng.below(5) * MS);
            events.extend((0..rng.below(400)).map(|n| syn(at + n * step, scanner, host(192, 7), n as u16)));
        }
        if rng.below(600) == 0 {
            events.extend((0..500).map(|n| syn(at + n * MS / 5, host(100, rng.below(1 << 24)), host(192, 1), 80)));
        }
    }
    events
}

#[test]
fn any_number_of_workers_gives_the_same_bytes() {
    for seed in 0..6 {
        let mut config = offline(PortScanConfig { targets_min: 50, ..PortScanConfig::default() });
        if seed % 2 == 1 {
            // Every bound is reached, and still nothing depends on the dealing.
            config.limits.openings_per_tick_max = 40;
            config.port_scan.sources_max = 50;
            config.port_scan.targets_per_source_max = 80;
            config.port_scan.targets_total_max = 400;
            config.port_scan.active_max = 2;
        }
        let (one, counts) = run(&config, mixture(seed), 1, 0);
        let text = |alerts: &[Alert]| serde_json::to_string_pretty(alerts).unwrap();
        let has = |rule, state| one.iter().any(|a| a.rule == rule && a.state == state);
        assert!(has("port_scan", AlertState::Firing) && has("port_scan", AlertState::Resolved), "seed {seed}");
        assert!(has("traffic_spike", AlertState::Firing) && has("traffic_spike", AlertState::Resolved), "seed {seed}");
        assert_eq!(seed % 2 == 1, counts[2] > 0 && counts[3] > 0 && counts[4] > 0, "seed {seed}: {counts:?}");
        for workers in [1, 2, 4, 7] {
            let (many, many_counts) = run(&config, mixture(seed), workers, seed + 100);
            assert_eq!(text(&one), text(&many), "seed {seed}, {workers} workers");
            assert_eq!(counts, many_counts, "seed {seed}, {workers} workers");
        }
    }
}

#[test]
fn each_key_alternates_between_firing_and_resolved() {
    for seed in 0..4 {
        let (alerts, _) =
            run(&offline(PortScanConfig { targets_min: 30, ..PortScanConfig::default() }), mixture(seed), 2, 1);
        assert!(alerts.is_sorted_by_key(|a| a.time), "seed {seed}");
        let mut states = std::collections::HashMap::new();
        for alert in &alerts {
            let before = states.insert(&alert.key, (alert.state, alert.started));
            match alert.state {
                AlertState::Firing => assert_ne!(before.map(|b| b.0), Some(AlertState::Firing), "seed {seed}"),
                AlertState::Resolved => assert_eq!(before, Some((AlertState::Firing, alert.started)), "seed {seed}"),
            }
            assert!(alert.started < alert.time && (0.0..=1.0).contains(&alert.score), "seed {seed}: {alert:?}");
        }
    }
}

/// 1,000 ports, 2 ms apart, three of them open.
fn vertical(at: u64, src: Addr, dst: Addr) -> Vec<Event> {
    let ports = (1..=1_000_u16).map(|port| (at + u64::from(port - 1) * 2 * MS, port));
    ports
        .flat_map(|(at, port)| {
            let open = [22, 80, 443].contains(&port);
            [Some(syn(at, src, dst, port)), open.then(|| answer(at + MS / 3, src, dst, port))]
        })
        .flatten()
        .collect()
}

#[test]
fn a_vertical_scan_fires_once_within_a_second_and_resolves_with_its_size() {
    let (src, dst) = (host(10, 0x666601), host(192, 5));
    let mut events = vertical(30_000 * MS + 12_345, src, dst);
    events.push(syn(90_000 * MS, host(10, 1), dst, 80));
    let alerts = alerts(events);
    let [firing, resolved] = &alerts[..] else { panic!("{alerts:#?}") };
    assert_eq!((firing.state, resolved.state), (AlertState::Firing, AlertState::Resolved));
    assert!(firing.time - Nanos(START + 30_000 * MS) <= Nanos::from_millis(600), "{:?}", firing.time);
    assert_eq!(firing.key, "port_scan/north/10.102.102.1");
    assert_eq!((firing.src_ip, firing.dst_ip), (Some(src), Some(dst)));
    assert_eq!(firing.evidence["kind"], "vertical");
    assert_eq!(firing.evidence["hosts"], 1);
    assert!(firing.evidence["flow_ids"][0].is_string());
    assert_eq!(resolved.evidence["targets_peak"], 1_000);
    assert_eq!(resolved.evidence["established"], 3);
    assert_eq!(resolved.evidence["openings"], 1_000);
    let estimate = resolved.evidence["targets_estimate"].as_u64().unwrap();
    assert!((1_000..1_100).contains(&estimate), "{estimate}");
    let ended = START + 32_000 * MS;
    assert_eq!(resolved.time, Nanos(ended) + Nanos::from_secs(30));
    assert_eq!(resolved.started, firing.started);
    assert_eq!(
        firing.summary,
        "10.102.102.1 tried 200 ports of 192.0.0.5 at north within 10 s and 2 of 100 answered (vertical port scan)"
    );
}

#[test]
fn a_horizontal_scan_fires_within_a_second_and_stays_firing_at_the_end() {
    let events = (0..500).map(|n| syn(n * 5 * MS, host(10, 2), host(192, n), 445)).collect();
    let alerts = alerts(events);
    let [firing] = &alerts[..] else { panic!("{alerts:#?}") };
    assert!(firing.time - Nanos(START) <= Nanos::from_millis(900));
    assert_eq!((&firing.evidence["kind"], firing.dst_ip), (&"horizontal".into(), None));
    assert_eq!(firing.evidence["sample_ports"], serde_json::json!([445]));
}

#[test]
fn a_busy_client_behind_a_translator_is_no_scanner() {
    // 500 connections a second to 5,000 targets; answered after 150 ms, one in ten never.
    let src = host(10, 3);
    let mut rng = Rng(1);
    let events = (0..20_000).flat_map(|n| {
        let (at, dst) = (n * 2 * MS, host(192, rng.below(5_000)));
        let answered = rng.below(10) > 0;
        [Some(syn(at, src, dst, 443)), answered.then(|| answer(at + 150 * MS, src, dst, 443))]
    });
    assert_eq!(alerts(events.flatten().collect()), []);
}

#[test]
fn a_burst_is_judged_after_its_targets_had_time_to_answer() {
    let burst = |answered_after: Option<u64>| {
        let events = (0..150).flat_map(|n| {
            let (src, dst) = (host(10, 4), host(192, n));
            [Some(syn(n * MS / 2, src, dst, 80)), answered_after.map(|d| answer(n * MS / 2 + d * MS, src, dst, 80))]
        });
        // The clock goes on, but the source does not.
        let later = [syn(1_000 * MS, host(10, 5), host(192, 1), 80)];
        alerts(events.flatten().chain(later).collect())
    };
    let silent = burst(None);
    assert_eq!(silent.len(), 1);
    assert!(silent[0].time - Nanos(START) <= Nanos::from_millis(400), "{:?}", silent[0].time);
    assert_eq!(burst(Some(120)), []);
}

#[test]
fn slow_or_repeated_attempts_are_no_scan() {
    let slow = (0..1_000).map(|n| syn(n * 200 * MS, host(10, 6), host(192, n), 22)).collect();
    assert_eq!(alerts(slow), [], "50 targets a window");
    let repeated = (0..10_000).map(|n| syn(n * MS, host(10, 7), host(192, n % 99), 22)).collect();
    assert_eq!(alerts(repeated), [], "99 targets, however often");
}

#[test]
fn a_scan_from_behind_many_good_connections_is_still_found() {
    let (src, dst) = (host(10, 8), host(192, 5));
    let mut events = vertical(0, src, dst);
    events.extend((0..5_000).flat_map(|n| {
        let at = n * MS / 2;
        [syn(at, src, host(192, 9), 443), answer(at + MS, src, host(192, 9), 443)]
    }));
    assert_eq!(alerts(events).len(), 1);
}

#[test]
fn a_flood_from_invented_sources_is_bounded_and_hides_no_scanner() {
    let config = offline(PortScanConfig { sources_max: 1_000, ..PortScanConfig::default() });
    let mut rng = Rng(2);
    let mut events: Vec<_> =
        (0..200_000).map(|n| syn(n * MS / 50, host(100, rng.below(1 << 24)), host(192, 5), 80)).collect();
    events.extend(vertical(1_000 * MS, host(10, 9), host(192, 5)));
    let (alerts, [.., evicted, _]) = run(&config, events, 2, 3);
    assert_eq!(alerts.iter().map(|a| &*a.key).collect::<Vec<_>>(), ["port_scan/north/10.0.0.9"]);
    assert!(evicted > 100_000, "{evicted}");
}

#[test]
fn a_scan_beyond_the_cap_of_a_source_says_so_and_is_estimated() {
    let config = offline(PortScanConfig { targets_per_source_max: 200, ..PortScanConfig::default() });
    let mut events: Vec<_> = (0..20_000).map(|n| syn(n * MS / 10, host(10, 1), host(192, n), 22)).collect();
    events.push(syn(60_000 * MS, host(10, 2), host(192, 1), 80));
    let (alerts, counts) = run(&config, events, 1, 0);
    assert_eq!((alerts.len(), alerts[0].evidence["targets_saturated"].as_bool()), (2, Some(true)));
    assert_eq!(counts[4], 20_000 - 200);
    assert_eq!(alerts[1].evidence["targets_peak"], 200);
    // Openings before the alert fired that found no room are in no sketch: some 0.2 s of 2 s.
    let estimate = alerts[1].evidence["targets_estimate"].as_u64().unwrap();
    assert!((15_500..20_500).contains(&estimate), "{estimate}");
}

#[test]
fn a_live_laggard_is_left_out_and_counted() {
    let config = DetectConfig { lag_ticks_max: Some(5), ..offline(PortScanConfig::default()) };
    let mut detectors = Detectors::new(config, 2, taps()).unwrap();
    let (mut feed, mut out) = (TickFeed::new(0, 2, config.limits), Vec::new());
    for e in vertical(0, host(10, 1), host(192, 1)) {
        let clock = Nanos(START + e.at);
        if let Some(tick) = feed.advance(clock) {
            detectors.tick(tick, &mut out);
        }
        if let Some(spent) = detectors.spent() {
            assert_eq!(spent.worker(), 0);
            feed.recycle(spent);
        }
        let Some((kind, src_ip, dst_ip, dst_port)) = e.opening else { continue };
        feed.opening(kind, &TcpOpening { clock, flow_id: e.flow, src_ip, dst_ip, dst_port, tap: TapId(0) });
    }
    assert_eq!(out.len(), 1, "worker 1 has sent nothing, worker 0 is not held up");
    let mut late = TickFeed::new(1, 2, config.limits);
    late.advance(Nanos(START));
    late.traffic(TapId(0), 1, 1);
    detectors.tick(late.finish(Nanos(START)), &mut out);
    detectors.tick(TickFeed::new(7, 2, config.limits).finish(Nanos(START)), &mut out);
    let counters = detectors.counters();
    assert_eq!((counters.ticks_late.load(Relaxed), counters.rejected.load(Relaxed)), (1, 1));
}

#[test]
fn a_spike_is_found_through_feeds_and_time_jumps_cost_nothing() {
    let mut events = Vec::new();
    let second = |at: u64, bytes: u64| {
        (0..10).map(move |i| Event { at: at + i * 100 * MS, flow: i, tap: 1, bytes: bytes / 10, opening: None })
    };
    for s in 0..120 {
        let rate = if (60..70).contains(&s) { 3_000_000 } else { 800_000 + mix(s) % 100_000 };
        events.extend(second(s * 1_000 * MS, rate));
    }
    // A year later.
    events.extend(second(365 * 86_400 * 1_000 * MS, 5_000_000));
    let (alerts, [ticks, ..]) = run(&offline(PortScanConfig::default()), events, 3, 0);
    assert_eq!(alerts.iter().map(|a| a.state).collect::<Vec<_>>(), [AlertState::Firing, AlertState::Resolved]);
    assert_eq!(alerts[0].key, "traffic_spike/south");
    assert_eq!(alerts[0].time, Nanos(START) + Nanos::from_secs(63));
    assert!(ticks < 1_300, "{ticks}");
}

#[test]
fn detectors_can_be_switched_off_and_need_a_worker() {
    let mut config = offline(PortScanConfig { enabled: false, ..PortScanConfig::default() });
    config.traffic_spike.enabled = false;
    assert_eq!(run(&config, mixture(1), 2, 0).0, []);
    assert!(Detectors::new(config, 0, taps()).is_err());
    config.port_scan.window = Duration::from_millis(1);
    assert!(Detectors::new(config, 1, taps()).is_err());
}
