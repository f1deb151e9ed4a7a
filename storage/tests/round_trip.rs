//! What goes in comes out: every column, nulls and extremes, through segments of both profiles, the log and memory.

mod common;

use common::{batches, flow, options, read_parquet, records, texts};
use flowtable::{ConnState, EndReason, FlowRecord, RttLife, TcpState};
use hints::{App, TextLens};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};
use std::sync::Arc;
use storage::{SegmentProfile, Store, StoreOptions, StoreReader, flow_schema};
use wire::{Addr, Mac, Nanos, TapId, Tunnel};

const TAPS: [&str; 2] = ["core", "edge"];

/// Whole microseconds: what is stored.
fn time() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX / 1_000), any::<u64>().prop_map(|n| n / 1_000), 0..10_000_000u64]
}

fn edgy<T: Arbitrary + Clone + 'static>(low: T, high: T) -> impl Strategy<Value = T> {
    prop_oneof![Just(low), Just(high), any::<T>()]
}

prop_compose! {
    fn ends()(a in time(), b in time()) -> (u64, u64) { (a.min(b), a.max(b)) }
}

prop_compose! {
    fn base()(
        (start, end) in ends(), flow_id in edgy(0u64, u64::MAX), part in edgy(0u16, u16::MAX), tap in 0..2u16,
        src in any::<[u8; 16]>(), dst in prop_oneof![Just([0; 16]), Just([255; 16]), any::<[u8; 4]>().prop_map(|b| Addr::v4(b).0)],
        ports in any::<(u16, u16)>(), proto in any::<u8>(), vlans in (0..4096u16, 0..4096u16), tunnel in 0..Tunnel::ALL.len(),
        tunnel_id in edgy(0u32, u32::MAX),
    ) -> FlowRecord {
        FlowRecord {
            start: Nanos(start * 1_000), end: Nanos(end * 1_000), flow_id, part, tap: TapId(tap), src_ip: Addr(src), dst_ip: Addr(dst),
            src_port: ports.0, dst_port: ports.1, proto, vlan: vlans.0, vlan_inner: vlans.1,
            tunnel: Tunnel::ALL[tunnel], tunnel_id, ..flow(0)
        }
    }
}

prop_compose! {
    fn record()(
        base in base(), macs in any::<(Option<[u8; 6]>, Option<[u8; 6]>)>(), icmp in any::<Option<(u8, u8)>>(),
        counts in proptest::array::uniform4(0..=i64::MAX as u64), flags in any::<(u8, u8)>(),
        state in proptest::option::of(0..13usize), reason in 0..5usize, rtts in proptest::array::uniform3(any::<Option<u32>>()),
        quality in proptest::array::uniform8(edgy(0u32, u32::MAX)), ttls in any::<(u8, u8, u8)>(),
    ) -> FlowRecord {
        FlowRecord {
            src_mac: macs.0.map(Mac), dst_mac: macs.1.map(Mac), icmp,
            pkts_o: counts[0], pkts_r: counts[1], bytes_o: counts[2], bytes_r: counts[3], flags_o: flags.0, flags_r: flags.1,
            conn_state: state.map(|i| ConnState::ALL[i]), end_reason: EndReason::ALL[reason],
            rtt_us: rtts[0], rtt_srv_us: rtts[1], rtt_cli_us: rtts[2],
            retrans_o: quality[0], retrans_r: quality[1], ooo_o: quality[2], ooo_r: quality[3],
            lost_o: quality[4], lost_r: quality[5], zwin_o: quality[6], zwin_r: quality[7],
            ttl_o: ttls.0, ttl_r: ttls.1, dscp: ttls.2, ..base
        }
    }
}

fn life() -> impl Strategy<Value = Option<RttLife>> {
    let life = proptest::array::uniform4(edgy(0u32, u32::MAX));
    proptest::option::of(life.prop_map(|[min_us, mean_us, max_us, median_us]| RttLife {
        min_us,
        mean_us,
        max_us,
        median_us,
    }))
}

/// What of the columns came later, and the texts.
fn whole() -> impl Strategy<Value = Row> {
    let counts = proptest::array::uniform9(prop_oneof![3 => Just(0u32), 1 => any::<u32>()]);
    let goodput = (0..=i64::MAX as u64, edgy(0, i64::MAX as u64));
    let states = (proptest::option::of(0..TcpState::ALL.len()), 0..App::ALL.len());
    let word = prop_oneof![3 => Just(String::new()), 2 => "[a-c]{1,2}", 1 => "\\PC{1,60}"];
    let words = proptest::array::uniform4(word);
    (record(), counts, goodput.prop_map(|(o, r)| (o, r.min(i64::MAX as u64))), states, (life(), life()), words)
        .prop_map(|(base, counts, goodput, states, lives, words)| {
            let [name, alpn, agent, ja4] = words.each_ref().map(|word| word.len() as u8);
            let record = FlowRecord {
                fragments: counts[0],
                fast_retrans_o: counts[1],
                fast_retrans_r: counts[2],
                spurious_retrans_o: counts[3],
                spurious_retrans_r: counts[4],
                dup_ack_o: counts[5],
                dup_ack_r: counts[6],
                keep_alive_o: counts[7],
                keep_alive_r: counts[8],
                goodput_o: goodput.0,
                goodput_r: goodput.1,
                tcp_state: states.0.map(|i| TcpState::ALL[i]),
                app: App::ALL[states.1],
                rtt_srv_life: lives.0,
                rtt_cli_life: lives.1,
                text: TextLens { name, alpn, agent, ja4 },
                ..base
            };
            (record, words.concat())
        })
}

/// A record and its texts.
type Row = (FlowRecord, String);

fn sorted(mut rows: Vec<Row>) -> Vec<Row> {
    rows.sort_by_key(|row| format!("{row:?}"));
    rows
}

fn stored(snapshot: &storage::Snapshot) -> Vec<Row> {
    sorted(batches(snapshot).iter().flat_map(|batch| records(batch, &TAPS).into_iter().zip(texts(batch))).collect())
}

#[test]
fn every_column_comes_back_from_memory_log_and_segment() {
    let mut runner = TestRunner::new_with_rng(
        Config { cases: 12, failure_persistence: None, ..Config::default() },
        proptest::test_runner::TestRng::deterministic_rng(proptest::test_runner::RngAlgorithm::ChaCha),
    );
    let rows = proptest::collection::vec(whole(), 1..150);
    let profile = prop_oneof![Just(SegmentProfile::Tuned), Just(SegmentProfile::Compatible)];
    runner
        .run(&(rows, profile), |(rows, profile)| {
            let dir = tempfile::tempdir().unwrap();
            let mut store =
                Store::open(StoreOptions { profile, segment_rows_max: 1_000, ..options(dir.path()) }).unwrap();
            let (records, texts): (Vec<FlowRecord>, Vec<String>) = rows.iter().cloned().unzip();
            store.append(&records, texts.concat().as_bytes()).unwrap();
            let wanted = sorted(rows);
            let snapshot = store.reader().snapshot().unwrap();
            prop_assert_eq!(snapshot.segments.len(), 0);
            prop_assert_eq!(&stored(&snapshot), &wanted, "from memory");
            store.sync().unwrap();
            let other = StoreReader::open(dir.path()).unwrap();
            prop_assert_eq!(&stored(&other.snapshot().unwrap()), &wanted, "from the log");
            store.flush().unwrap();
            let snapshot = store.reader().snapshot().unwrap();
            prop_assert_eq!(snapshot.live.len(), 0);
            prop_assert_eq!(&stored(&snapshot), &wanted, "from segments");
            prop_assert_eq!(&stored(&other.snapshot().unwrap()), &wanted, "from segments, by another process");
            for segment in snapshot.segments.iter() {
                let one =
                    storage::Snapshot { segments: Arc::new([segment.clone()].into_iter().collect()), live: Vec::new() };
                let rows: Vec<FlowRecord> = stored(&one).into_iter().map(|(row, _)| row).collect();
                let ends = || rows.iter().map(|row| row.end.as_micros() as i64);
                prop_assert_eq!(Some(segment.t_end_min), ends().min());
                prop_assert_eq!(Some(segment.t_end_max), ends().max());
                prop_assert_eq!(Some(segment.t_start_min), rows.iter().map(|row| row.start.as_micros() as i64).min());
                prop_assert_eq!(segment.rows, rows.len() as u64);
                let mut protos: Vec<u8> = rows.iter().map(|row| row.proto).collect();
                protos.sort_unstable();
                protos.dedup();
                prop_assert_eq!(&segment.protos, &protos);
                let taps: Vec<&str> = TAPS
                    .iter()
                    .enumerate()
                    .filter(|(tap, _)| rows.iter().any(|row| usize::from(row.tap.0) == *tap))
                    .map(|(_, name)| *name)
                    .collect();
                prop_assert_eq!(&segment.taps, &taps);
            }
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_segment_is_sorted_by_end_and_keeps_the_schema() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    // 37 is coprime to 50, so this is a shuffle.
    let rows: Vec<FlowRecord> = (0..50).map(|n| flow(n * 37 % 50)).collect();
    store.append(&rows, &[]).unwrap();
    store.flush().unwrap();
    let snapshot = store.reader().snapshot().unwrap();
    let batches = read_parquet(&snapshot.segments[0].path);
    assert_eq!(batches[0].schema(), flow_schema(), "extension names and dictionaries included");
    let ids: Vec<u64> = records(&batches[0], &TAPS).iter().map(|row| row.flow_id).collect();
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
}

#[test]
fn values_no_column_can_hold_are_stored_as_the_nearest() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::open(options(dir.path())).unwrap();
    let odd = FlowRecord {
        bytes_o: u64::MAX,
        tap: TapId(7),
        start: Nanos::from_secs(9),
        end: Nanos(5_000_000_999),
        ..flow(1)
    };
    store.append(&[odd], &[]).unwrap();
    store.flush().unwrap();
    let all = batches(&store.reader().snapshot().unwrap());
    let row = records(&all[0], &["core", "edge", "unknown"])[0];
    assert_eq!(row.bytes_o, i64::MAX as u64);
    assert_eq!(row.tap, TapId(2));
    assert_eq!((row.start, row.end), (Nanos::from_secs(5), Nanos::from_secs(5)));
}
