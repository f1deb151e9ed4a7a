//! A real server over a real store, on loopback.

#![allow(dead_code, reason = "each test file uses its part")]

use detect::{Alert, AlertState, Evidence, Severity};
use flowtable::{ConnState, EndReason, FlowRecord, RttLife, TcpState};
use query::{Engine, QueryLimits};
use rpc::client::Client;
use rpc::metrics::QueryMetrics;
use rpc::{AlertHub, RpcError, Services, v1};
use std::net::SocketAddr;
use std::sync::Arc;
use storage::{Store, StoreOptions, StoreReader};
use tempfile::TempDir;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use wire::{Addr, Mac, Nanos, TapId, Tunnel};

/// A server, and everything behind it.
pub(crate) struct Fixture {
    pub(crate) addr: SocketAddr,
    pub(crate) client: Client,
    pub(crate) store: Store,
    pub(crate) engine: Engine,
    pub(crate) hub: AlertHub,
    pub(crate) queries: Arc<QueryMetrics>,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<Result<(), RpcError>>,
    _dir: TempDir,
}

impl Fixture {
    /// Serves `rows`, the first half in a segment, the rest in none yet.
    pub(crate) async fn start(rows: &[FlowRecord]) -> Fixture {
        Fixture::with_alert_bytes(rows, 1 << 20).await
    }

    /// As `start`, with an alert log of this size.
    pub(crate) async fn with_alert_bytes(rows: &[FlowRecord], alert_bytes_max: u64) -> Fixture {
        Fixture::with(rows, alert_bytes_max, None, |reader| Engine::new(reader, QueryLimits::default()).unwrap()).await
    }

    /// As `start`, with windows of sketches and another engine.
    pub(crate) async fn with(
        rows: &[FlowRecord],
        alert_bytes_max: u64,
        sketches: Option<Arc<talkers::Board>>,
        engine: impl FnOnce(StoreReader) -> Engine,
    ) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        let taps = vec!["core".to_owned(), "edge".to_owned()];
        let mut store = Store::open(StoreOptions::new(dir.path().join("data"), taps)).unwrap();
        let (old, new) = rows.split_at(rows.len() / 2);
        store.append(old, &[]).unwrap();
        store.flush().unwrap();
        store.append(new, &[]).unwrap();
        let engine = engine(store.reader());
        let hub = AlertHub::open(&dir.path().join("alerts"), alert_bytes_max).unwrap();
        let queries = Arc::new(QueryMetrics::default());

        let listener = rpc::bind("127.0.0.1:0".parse().unwrap(), "rpc.grpc_listen").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let (stop, stopped) = oneshot::channel();
        let services = Services {
            engine: engine.clone(),
            alerts: hub.clone(),
            status: Arc::new(status),
            slices: Some(Arc::new(FakeSlices::default())),
            sketches,
            queries: Arc::clone(&queries),
        };
        let serving = tokio::spawn(rpc::serve_grpc(listener, services, async {
            let _ = stopped.await;
        }));
        let client = rpc::client::connect(&addr.to_string()).await.unwrap();
        Fixture { addr, client, store, engine, hub, queries, stop: Some(stop), serving, _dir: dir }
    }

    /// Another connection.
    pub(crate) async fn channel(&self) -> tonic::transport::Channel {
        tonic::transport::Endpoint::from_shared(format!("http://{}", self.addr)).unwrap().connect().await.unwrap()
    }

    /// Asks the server to stop.
    pub(crate) fn begin_stop(&mut self) {
        self.stop.take().unwrap().send(()).unwrap();
    }

    /// Stops it and waits until it has.
    pub(crate) async fn stopped_now(mut self) {
        self.begin_stop();
        self.stopped().await;
    }

    /// Waits until it has.
    pub(crate) async fn stopped(self) {
        let Fixture { serving, client, .. } = self;
        drop(client);
        serving.await.unwrap().unwrap();
    }
}

/// More than two chunks.
pub(crate) fn slice_bytes() -> Vec<u8> {
    (0..600_000_u32).map(|i| (i % 251) as u8).collect()
}

/// Slices that are kept in memory, and all have the same file.
#[derive(Default)]
pub(crate) struct FakeSlices(std::sync::Mutex<Vec<v1::Slice>>);

impl FakeSlices {
    fn find(&self, id: u64) -> Result<v1::Slice, tonic::Status> {
        let found = self.0.lock().unwrap().iter().find(|s| s.id == id).cloned();
        found.ok_or_else(|| tonic::Status::not_found("no such slice"))
    }
}

impl rpc::SliceControl for FakeSlices {
    fn start(&self, request: v1::StartSliceRequest) -> Result<v1::Slice, tonic::Status> {
        if request.filter.starts_with("prt") {
            return Err(tonic::Status::invalid_argument("unknown word 'prt'"));
        }
        let mut all = self.0.lock().unwrap();
        let slice = v1::Slice { id: all.len() as u64 + 1, filter: request.filter, ..Default::default() };
        all.insert(0, slice.clone());
        Ok(slice)
    }

    fn stop(&self, id: u64) -> Result<v1::Slice, tonic::Status> {
        self.find(id)
    }

    fn list(&self) -> Vec<v1::Slice> {
        self.0.lock().unwrap().clone()
    }

    fn open(&self, id: u64) -> Result<std::fs::File, tonic::Status> {
        self.find(id)?;
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, &slice_bytes()).unwrap();
        std::io::Seek::rewind(&mut file).unwrap();
        Ok(file)
    }

    fn delete(&self, id: u64) -> Result<(), tonic::Status> {
        self.find(id)?;
        self.0.lock().unwrap().retain(|s| s.id != id);
        Ok(())
    }
}

/// A state with a value in every field.
pub(crate) fn status() -> v1::Status {
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let cause = |name: &str, count, loss| v1::Cause { name: name.into(), count, hint: "more memory".into(), loss };
    v1::Status {
        version: "1.2.3".into(),
        start_time: time(1_700_000_000),
        uptime: Some(prost_types::Duration { seconds: 90, nanos: 500_000_000 }),
        data_dir: "data \"quoted\"\n".into(),
        generated_traffic: true,
        taps: vec![v1::Tap { name: "core".into(), interfaces: vec!["eth0".into()], source: "af_packet".into() }],
        queues: vec![
            v1::QueueLedger {
                tap: "core".into(),
                queue: 0,
                offered: 100,
                bytes: 6_400,
                causes: vec![cause("processed", 90, false), cause("rx_ring_full", 10, true)],
                balanced: true,
            },
            v1::QueueLedger {
                tap: "odd \"name\" \\ \n".into(),
                queue: 1,
                offered: 5,
                bytes: 0,
                causes: vec![cause("processed", 4, false)],
                balanced: false,
            },
        ],
        records: Some(v1::RecordLedger { stored: 7, dropped_ring_full: 2, dropped_disk: 1 }),
        dns: Some(v1::RecordLedger { stored: 70, dropped_ring_full: 20, dropped_disk: 10 }),
        fragments: Some(v1::FragmentStatus { first: 61, assigned: 62, unassigned: 63, overlapping: 64, evicted: 65 }),
        hints: Some(v1::HintStatus {
            payloads: 81,
            hints: 82,
            assemblies: 83,
            assemblies_evicted: 84,
            assemblies_expired: 85,
            assemblies_oversized: 86,
            hellos_malformed: 87,
            quic_not_decrypted: 88,
            dns_messages: 89,
            dns_malformed: 90,
            dns_evicted: 91,
            dns_unanswered: 92,
            dns_unasked: 93,
        }),
        export: Some(v1::ExportStatus {
            collector: "192.0.2.9:4739".into(),
            transport: "tcp".into(),
            up: true,
            offered: 21,
            sent: 11,
            messages: 3,
            bytes: 1_234,
            dropped_ring_full: 8,
            dropped_unreachable: 2,
            reconnects: 5,
            faults: 6,
        }),
        archives: vec![v1::ArchiveStatus {
            place: "s3://flows/fleet".into(),
            segments: 101,
            rows: 102,
            bytes: 103,
            due_segments: 104,
            due_bytes: 105,
            early_segments: 106,
            early_bytes: 107,
            lag: Some(prost_types::Duration { seconds: 108, nanos: 500_000_000 }),
            failures: 109,
            corrupt: 110,
            read_back: 111,
            lost: 112,
            unreadable: 113,
            failing: true,
            last_error: "it rains".into(),
        }],
        flows: Some(v1::FlowTableStatus {
            active: 25,
            capacity: 100,
            created: 30,
            exported: vec![v1::EndReasonCount { reason: "idle".into(), count: 5 }],
            originators_estimate: 17.5,
            in_emergency: 1,
            emergencies: 52,
            evicted_answered: 53,
            tcp_both_sides: 54,
            tcp_one_side: 55,
            side_refused: 56,
            notes: vec!["the table is small".into()],
        }),
        detectors: Some(v1::DetectorStatus {
            openings: 40,
            openings_dropped: 3,
            ticks_late: 2,
            ticks_dropped: 1,
            sources_tracked: 6,
            sources_evicted: 4,
        }),
        storage: Some(v1::StorageStatus {
            segments: 3,
            rows: 1_000,
            bytes: 25_000,
            wal_bytes: 512,
            oldest: time(1_600_000_000),
            newest: time(1_700_000_000),
            dns_segments: 4,
            dns_rows: 41,
            dns_bytes: 42,
            talkers_segments: 43,
            talkers_rows: 44,
            talkers_bytes: 45,
            compaction: Some(v1::CompactionStatus {
                compactions: 21,
                segments_merged: 22,
                rows: 23,
                bytes_read: 24,
                bytes_written: 26,
                abandoned: 27,
                errors: 28,
            }),
            waiting_bytes: 29,
            segments_removed: 31,
            rows_removed: 32,
            bytes_removed: 33,
            last_error: String::new(),
            removed_unshipped: 114,
        }),
        alerts: Some(v1::AlertStatus { firing: 1, last_seq: 12, log_errors: 0 }),
        packet_clock: time(1_700_000_001),
        interfaces: vec![v1::Interface {
            tap: "core".into(),
            name: "eth0".into(),
            mode: "copy".into(),
            up: true,
            mtu: 1500,
            notes: vec!["not zerocopy on eth0: the driver".into()],
            reopened: 2,
            blind_for: Some(prost_types::Duration { seconds: 1, nanos: 500_000_000 }),
            ports: vec![v1::Port {
                queue: 3,
                worker: 1,
                pages: "2 MiB".into(),
                clock: "batch".into(),
                filtered_early: false,
                xdp_statistics: [("rx_ring_full".to_owned(), 9)].into(),
            }],
        }],
        remotes: vec![v1::Remote {
            tap: "branch".into(),
            host: "probe@branch".into(),
            connected: true,
            gaps: 4,
            gap_time: Some(prost_types::Duration { seconds: 7, nanos: 0 }),
        }],
        sketches: Some(v1::SketchStatus {
            tasks: 121,
            memory_bytes: 122,
            windows: 123,
            late: 124,
            stragglers: 125,
            rows_lost: 126,
        }),
        slices: Some(v1::SliceStatus { recording: 1, packets: 20, dropped_queue_full: 3, overwritten: 2 }),
    }
}

/// A flow like many others: TCP, two packets, from 10.0.0.`i` to port 443, ending `i` ms after a fixed time.
pub(crate) fn record(i: u32) -> FlowRecord {
    let end = Nanos(1_700_000_000_000_000_000 + u64::from(i) * 1_000_000);
    FlowRecord {
        flow_id: u64::from(i).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1,
        start: end - Nanos::from_millis(5),
        end,
        src_ip: Addr::v4([10, 0, (i >> 8) as u8, i as u8]),
        dst_ip: Addr::v4([192, 0, 2, 1]),
        src_port: 40_000 + (i % 1_000) as u16,
        dst_port: if i.is_multiple_of(3) { 53 } else { 443 },
        proto: if i.is_multiple_of(3) { 17 } else { 6 },
        part: 0,
        tap: TapId((i % 2) as u16),
        vlan: 0,
        vlan_inner: 0,
        tunnel: Tunnel::None,
        tunnel_id: 0,
        src_mac: None,
        dst_mac: None,
        icmp: None,
        pkts_o: 1,
        pkts_r: 1,
        bytes_o: 60,
        bytes_r: u64::from(i),
        flags_o: 0,
        flags_r: 0,
        conn_state: None,
        end_reason: EndReason::Idle,
        rtt_us: None,
        rtt_srv_us: None,
        rtt_cli_us: None,
        retrans_o: 0,
        retrans_r: 0,
        ooo_o: 0,
        ooo_r: 0,
        lost_o: 0,
        lost_r: 0,
        zwin_o: 0,
        zwin_r: 0,
        ttl_o: 64,
        ttl_r: 57,
        dscp: 0,
        ..FlowRecord::default()
    }
}

/// A flow with a different value in every field, and the message it must become.
pub(crate) fn full_record() -> (FlowRecord, v1::Flow) {
    let record = FlowRecord {
        flow_id: u64::MAX - 1,
        start: Nanos(1_700_000_000_000_001_999),
        end: Nanos(1_700_000_001_000_003_999),
        src_ip: "2001:db8::1".parse().unwrap(),
        dst_ip: "10.1.2.3".parse().unwrap(),
        src_port: 1001,
        dst_port: 1002,
        proto: 6,
        part: 3,
        tap: TapId(1),
        vlan: 100,
        vlan_inner: 200,
        tunnel: Tunnel::Vxlan,
        tunnel_id: 77,
        src_mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        dst_mac: Some(Mac([2, 0, 0, 0, 0, 0xab])),
        icmp: Some((8, 1)),
        pkts_o: 11,
        pkts_r: 12,
        bytes_o: 13,
        bytes_r: 14,
        flags_o: 0x1b,
        flags_r: 0x12,
        conn_state: Some(ConnState::SF),
        end_reason: EndReason::Closed,
        rtt_us: Some(15),
        rtt_srv_us: Some(16),
        rtt_cli_us: Some(17),
        retrans_o: 18,
        retrans_r: 19,
        ooo_o: 20,
        ooo_r: 21,
        lost_o: 22,
        lost_r: 23,
        zwin_o: 24,
        zwin_r: 25,
        ttl_o: 26,
        ttl_r: 27,
        dscp: 28,
        fragments: 29,
        goodput_o: 30,
        goodput_r: 31,
        tcp_state: Some(TcpState::TimeWait),
        rtt_srv_life: Some(RttLife { min_us: 32, mean_us: 34, max_us: 35, median_us: 33 }),
        rtt_cli_life: Some(RttLife { min_us: 36, mean_us: 38, max_us: 39, median_us: 37 }),
        fast_retrans_o: 40,
        fast_retrans_r: 41,
        spurious_retrans_o: 42,
        spurious_retrans_r: 43,
        dup_ack_o: 44,
        dup_ack_r: 45,
        keep_alive_o: 46,
        keep_alive_r: 47,
        // Texts travel beside the record, and the server of these tests is given none.
        app: hints::App::Tls,
        text: hints::TextLens::default(),
    };
    let flow = v1::Flow {
        t_end: Some(prost_types::Timestamp { seconds: 1_700_000_001, nanos: 3_000 }),
        dur_us: 1_000_002,
        flow_id: u64::MAX - 1,
        part: 3,
        tap: "edge".into(),
        src_ip: "2001:db8::1".into(),
        dst_ip: "10.1.2.3".into(),
        src_port: 1001,
        dst_port: 1002,
        proto: 6,
        icmp_type: Some(8),
        icmp_code: Some(1),
        vlan: Some(100),
        vlan_inner: Some(200),
        tunnel: Some("vxlan".into()),
        tunnel_id: Some(77),
        src_mac: Some("02:00:00:00:00:01".into()),
        dst_mac: Some("02:00:00:00:00:ab".into()),
        pkts_o: 11,
        pkts_r: 12,
        bytes_o: 13,
        bytes_r: 14,
        flags_o: 0x1b,
        flags_r: 0x12,
        conn_state: Some("SF".into()),
        end_reason: "closed".into(),
        rtt_us: Some(15),
        rtt_srv_us: Some(16),
        rtt_cli_us: Some(17),
        retrans_o: 18,
        retrans_r: 19,
        ooo_o: 20,
        ooo_r: 21,
        lost_o: 22,
        lost_r: 23,
        zwin_o: 24,
        zwin_r: 25,
        ttl_o: 26,
        ttl_r: 27,
        dscp: 28,
        fragments: 29,
        goodput_o: 30,
        goodput_r: 31,
        tcp_state: Some("time_wait".to_owned()),
        rtt_srv_min_us: Some(32),
        rtt_srv_median_us: Some(33),
        rtt_srv_mean_us: Some(34),
        rtt_srv_max_us: Some(35),
        rtt_cli_min_us: Some(36),
        rtt_cli_median_us: Some(37),
        rtt_cli_mean_us: Some(38),
        rtt_cli_max_us: Some(39),
        fast_retrans_o: 40,
        fast_retrans_r: 41,
        spurious_retrans_o: 42,
        spurious_retrans_r: 43,
        dup_ack_o: 44,
        dup_ack_r: 45,
        keep_alive_o: 46,
        keep_alive_r: 47,
        app: Some("tls".to_owned()),
        name: None,
        alpn: None,
        agent: None,
        ja4: None,
    };
    (record, flow)
}

/// An alert of a rule at a second.
pub(crate) fn alert(rule: &str, second: u64) -> Alert {
    Alert {
        seq: 0,
        time: Nanos::from_secs(second),
        rule: rule.into(),
        state: AlertState::Firing,
        key: format!("{rule}/core"),
        severity: Severity::Critical,
        score: 0.75,
        tap: "core".into(),
        summary: format!("{rule} at {second}"),
        src_ip: Some(Addr::v4([10, 0, 0, 9])),
        dst_ip: None,
        started: Nanos::from_secs(second - 1),
        evidence: Evidence::from([("ports".to_owned(), serde_json::json!({"distinct": 40, "sample": [1, 2]}))]),
    }
}
