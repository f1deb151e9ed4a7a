//! What the tests of this crate share: made-up records, and rows read back.
#![allow(dead_code, reason = "each test binary uses a part")]

use arrow::array::{Array, AsArray};
use arrow::datatypes::*;
use arrow::record_batch::RecordBatch;
use flowtable::{ConnState, EndReason, FlowRecord, RttLife, TcpState};
use hints::{App, TextLens};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use std::fs::{self, File};
use std::path::Path;
use storage::{Compaction, Snapshot, StoreOptions};
use wire::{Addr, Mac, Nanos, TapId, Tunnel};

/// A plain record; `n` tells it from others and gives its time in seconds.
pub(crate) fn flow(n: u64) -> FlowRecord {
    FlowRecord {
        flow_id: n,
        start: Nanos::from_secs(n),
        end: Nanos::from_secs(n) + Nanos::from_millis(250),
        src_ip: Addr::v4([10, 0, (n >> 8) as u8, n as u8]),
        dst_ip: Addr::v4([192, 168, 0, 1]),
        src_port: 40_000 + (n % 20_000) as u16,
        dst_port: 443,
        proto: 6,
        part: 0,
        tap: TapId(0),
        vlan: 0,
        vlan_inner: 0,
        tunnel: Tunnel::None,
        tunnel_id: 0,
        src_mac: Some(Mac([2, 0, 0, 0, 0, 1])),
        dst_mac: None,
        icmp: None,
        pkts_o: 3,
        pkts_r: 2,
        bytes_o: 180,
        bytes_r: n,
        flags_o: 0x12,
        flags_r: 0x10,
        conn_state: Some(ConnState::SF),
        end_reason: EndReason::Closed,
        rtt_us: Some(1_200),
        rtt_srv_us: None,
        rtt_cli_us: Some(200),
        retrans_o: 0,
        retrans_r: 1,
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

pub(crate) fn flows(ids: std::ops::Range<u64>) -> Vec<FlowRecord> {
    ids.map(flow).collect()
}

pub(crate) fn options(dir: &Path) -> StoreOptions {
    StoreOptions {
        batch_rows: 16,
        segment_rows_max: 64,
        compaction: Compaction { enabled: false, ..Compaction::default() },
        ..StoreOptions::new(dir, vec!["core".into(), "edge".into()])
    }
}

/// All rows of a snapshot, segments first, as they lie there.
pub(crate) fn batches(snapshot: &Snapshot) -> Vec<RecordBatch> {
    let mut all = Vec::new();
    for segment in snapshot.segments.iter() {
        all.extend(read_parquet(&segment.path));
    }
    all.extend(snapshot.live.iter().cloned());
    all
}

pub(crate) fn read_parquet(path: &Path) -> Vec<RecordBatch> {
    let reader = ParquetRecordBatchReaderBuilder::try_new(File::open(path).unwrap()).unwrap().build().unwrap();
    reader.map(Result::unwrap).collect()
}

/// The `flow_id`s of a snapshot, sorted; duplicates stay.
pub(crate) fn ids(snapshot: &Snapshot) -> Vec<u64> {
    let mut ids: Vec<u64> = batches(snapshot)
        .iter()
        .flat_map(|batch| batch["flow_id"].as_primitive::<UInt64Type>().values().to_vec())
        .collect();
    ids.sort_unstable();
    ids
}

/// Copies a folder as it is at this moment: what a crash would leave. A file that goes meanwhile is left out.
pub(crate) fn copy_folder(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &target);
        } else {
            match fs::copy(entry.path(), target) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => assert!(copied.is_ok(), "{copied:?}"),
            }
        }
    }
}

/// Rows of a batch as records again, by other means than the crate's own.
pub(crate) fn records(batch: &RecordBatch, taps: &[&str]) -> Vec<FlowRecord> {
    (0..batch.num_rows()).map(|row| Row { batch, row }.record(taps)).collect()
}

/// The four texts of each row, as long as the records' lengths say, one after the other.
pub(crate) fn texts(batch: &RecordBatch) -> Vec<String> {
    let all = |row: usize| {
        let row = Row { batch, row };
        ["name", "alpn", "agent", "ja4"].map(|name| row.text(name).unwrap_or_default()).concat()
    };
    (0..batch.num_rows()).map(all).collect()
}

struct Row<'a> {
    batch: &'a RecordBatch,
    row: usize,
}

impl Row<'_> {
    fn opt<T: ArrowPrimitiveType>(&self, name: &str) -> Option<T::Native> {
        let column = self.batch[name].as_primitive::<T>();
        column.is_valid(self.row).then(|| column.value(self.row))
    }
    fn num<T: ArrowPrimitiveType>(&self, name: &str) -> T::Native {
        self.opt::<T>(name).unwrap_or_else(|| panic!("{name} is null"))
    }
    fn bytes<const N: usize>(&self, name: &str) -> Option<[u8; N]> {
        let column = self.batch[name].as_fixed_size_binary();
        column.is_valid(self.row).then(|| column.value(self.row).try_into().unwrap())
    }
    fn text(&self, name: &str) -> Option<String> {
        let column = self.batch[name].as_dictionary::<Int32Type>();
        column.key(self.row).map(|key| column.values().as_string::<i32>().value(key).to_owned())
    }
    fn count(&self, name: &str) -> u64 {
        u64::try_from(self.num::<Int64Type>(name)).unwrap()
    }
    fn life(&self, side: &str) -> Option<RttLife> {
        let [min, mean, max, median] =
            ["min", "mean", "max", "median"].map(|what| self.opt::<UInt32Type>(&format!("rtt_{side}_{what}_us")));
        min.map(|min_us| RttLife { min_us, mean_us: mean.unwrap(), max_us: max.unwrap(), median_us: median.unwrap() })
    }
    fn record(&self, taps: &[&str]) -> FlowRecord {
        let length = |name| self.text(name).map_or(0, |text| text.len() as u8);
        let tcp_state = self.text("tcp_state");
        let app = self.text("app");
        let end = self.num::<TimestampMicrosecondType>("t_end") as u64;
        let tap = self.text("tap").unwrap();
        let tunnel = self.text("tunnel").map(|name| Tunnel::ALL.into_iter().find(|t| t.name() == Some(&name)).unwrap());
        let state = self.text("conn_state");
        let reason = self.text("end_reason").unwrap();
        FlowRecord {
            flow_id: self.num::<UInt64Type>("flow_id"),
            start: Nanos((end - self.count("dur_us")) * 1_000),
            end: Nanos(end * 1_000),
            src_ip: Addr(self.bytes("src_ip").unwrap()),
            dst_ip: Addr(self.bytes("dst_ip").unwrap()),
            src_port: self.num::<UInt16Type>("src_port"),
            dst_port: self.num::<UInt16Type>("dst_port"),
            proto: self.num::<UInt8Type>("proto"),
            part: self.num::<UInt16Type>("part"),
            tap: TapId(taps.iter().position(|name| *name == tap).unwrap() as u16),
            vlan: self.opt::<UInt16Type>("vlan").unwrap_or(0),
            vlan_inner: self.opt::<UInt16Type>("vlan_inner").unwrap_or(0),
            tunnel: tunnel.unwrap_or(Tunnel::None),
            tunnel_id: self.opt::<UInt32Type>("tunnel_id").unwrap_or(0),
            src_mac: self.bytes("src_mac").map(Mac),
            dst_mac: self.bytes("dst_mac").map(Mac),
            icmp: self.opt::<UInt8Type>("icmp_type").map(|kind| (kind, self.num::<UInt8Type>("icmp_code"))),
            pkts_o: self.count("pkts_o"),
            pkts_r: self.count("pkts_r"),
            bytes_o: self.count("bytes_o"),
            bytes_r: self.count("bytes_r"),
            flags_o: self.num::<UInt8Type>("flags_o"),
            flags_r: self.num::<UInt8Type>("flags_r"),
            conn_state: state.map(|name| ConnState::ALL.into_iter().find(|s| s.name() == name).unwrap()),
            end_reason: EndReason::ALL.into_iter().find(|r| r.name() == reason).unwrap(),
            rtt_us: self.opt::<UInt32Type>("rtt_us"),
            rtt_srv_us: self.opt::<UInt32Type>("rtt_srv_us"),
            rtt_cli_us: self.opt::<UInt32Type>("rtt_cli_us"),
            retrans_o: self.num::<UInt32Type>("retrans_o"),
            retrans_r: self.num::<UInt32Type>("retrans_r"),
            ooo_o: self.num::<UInt32Type>("ooo_o"),
            ooo_r: self.num::<UInt32Type>("ooo_r"),
            lost_o: self.num::<UInt32Type>("lost_o"),
            lost_r: self.num::<UInt32Type>("lost_r"),
            zwin_o: self.num::<UInt32Type>("zwin_o"),
            zwin_r: self.num::<UInt32Type>("zwin_r"),
            ttl_o: self.num::<UInt8Type>("ttl_o"),
            ttl_r: self.num::<UInt8Type>("ttl_r"),
            dscp: self.num::<UInt8Type>("dscp"),
            fragments: self.num::<UInt32Type>("fragments"),
            goodput_o: self.count("goodput_o"),
            goodput_r: self.count("goodput_r"),
            tcp_state: tcp_state.map(|name| TcpState::ALL.into_iter().find(|s| s.name() == name).unwrap()),
            rtt_srv_life: self.life("srv"),
            rtt_cli_life: self.life("cli"),
            fast_retrans_o: self.num::<UInt32Type>("fast_retrans_o"),
            fast_retrans_r: self.num::<UInt32Type>("fast_retrans_r"),
            spurious_retrans_o: self.num::<UInt32Type>("spurious_retrans_o"),
            spurious_retrans_r: self.num::<UInt32Type>("spurious_retrans_r"),
            dup_ack_o: self.num::<UInt32Type>("dup_ack_o"),
            dup_ack_r: self.num::<UInt32Type>("dup_ack_r"),
            keep_alive_o: self.num::<UInt32Type>("keep_alive_o"),
            keep_alive_r: self.num::<UInt32Type>("keep_alive_r"),
            app: App::ALL.into_iter().find(|one| one.name() == app.as_deref()).unwrap(),
            text: TextLens { name: length("name"), alpn: length("alpn"), agent: length("agent"), ja4: length("ja4") },
        }
    }
}
