//! The columns of a flow, in their order. Adding one is adding a line to the table below (and to FORMAT.md).

use crate::StorageError;
use crate::cells::{Ip, MacCells, Newer, NewerRare, Num, Opt, Port, Rare, Time, Words};
use crate::table::{BatchBuilder, TableInfo, columns, micros, nonzero};
use arrow::datatypes::{Int64Type, Schema, SchemaRef, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use flowtable::{ConnState, EndReason, FlowRecord, TcpState};
use hints::App;
use std::sync::{Arc, LazyLock};
use wire::{TapId, Tunnel};

pub(crate) static FLOWS: TableInfo = TableInfo {
    name: "flows",
    folder: "",
    encoder: "segment-encoder",
    schema: flow_schema,
    columns: COLUMNS,
    duration: Some("dur_us"),
    zones: &["dur_us", "vlan", "bytes_o", "bytes_r", "rtt_us", "retrans_o", "retrans_r"],
};

columns! {
    /// A batch of flow records under construction.
    FlowColumns of FlowRecord, &FLOWS;
    values {
        t_end: Time, Delta, |r| micros(r.end);
        dur_us: Num<Int64Type>, Split, |r| micros(r.end).saturating_sub(micros(r.start)).max(0);
        flow_id: Num<UInt64Type>, Plain, |r| r.flow_id;
        part: Num<UInt16Type>, Dict, |r| r.part;
        tap: Words<TapId>, Dict, |r| r.tap;
        src_ip: Ip, Dict, |r| r.src_ip.0;
        dst_ip: Ip, Dict, |r| r.dst_ip.0;
        src_port: Port, Split, |r| r.src_port;
        dst_port: Port, Dict, |r| r.dst_port;
        proto: Num<UInt8Type>, Dict, |r| r.proto;
        icmp_type: Opt<UInt8Type>, Dict, |r| r.icmp.map(|(kind, _)| kind);
        icmp_code: Opt<UInt8Type>, Dict, |r| r.icmp.map(|(_, code)| code);
        vlan: Opt<UInt16Type>, Dict, |r| nonzero(r.vlan);
        vlan_inner: Opt<UInt16Type>, Dict, |r| nonzero(r.vlan_inner);
        tunnel: Words<Tunnel>, Dict, |r| r.tunnel;
        tunnel_id: Opt<UInt32Type>, Dict, |r| nonzero(r.tunnel_id);
        src_mac: MacCells, Dict, |r| r.src_mac.map(|mac| mac.0);
        dst_mac: MacCells, Dict, |r| r.dst_mac.map(|mac| mac.0);
        pkts_o: Num<Int64Type>, Split, |r| counter(r.pkts_o);
        pkts_r: Num<Int64Type>, Split, |r| counter(r.pkts_r);
        bytes_o: Num<Int64Type>, Split, |r| counter(r.bytes_o);
        bytes_r: Num<Int64Type>, Split, |r| counter(r.bytes_r);
        flags_o: Num<UInt8Type>, Dict, |r| r.flags_o;
        flags_r: Num<UInt8Type>, Dict, |r| r.flags_r;
        conn_state: Words<Option<ConnState>>, Dict, |r| r.conn_state;
        end_reason: Words<EndReason>, Dict, |r| r.end_reason;
        rtt_us: Opt<UInt32Type>, Split, |r| r.rtt_us;
        rtt_srv_us: Opt<UInt32Type>, Split, |r| r.rtt_srv_us;
        rtt_cli_us: Opt<UInt32Type>, Split, |r| r.rtt_cli_us;
        retrans_o: Rare, Delta, |r| r.retrans_o;
        retrans_r: Rare, Delta, |r| r.retrans_r;
        ooo_o: Rare, Delta, |r| r.ooo_o;
        ooo_r: Rare, Delta, |r| r.ooo_r;
        lost_o: Rare, Delta, |r| r.lost_o;
        lost_r: Rare, Delta, |r| r.lost_r;
        zwin_o: Rare, Delta, |r| r.zwin_o;
        zwin_r: Rare, Delta, |r| r.zwin_r;
        ttl_o: Num<UInt8Type>, Dict, |r| r.ttl_o;
        ttl_r: Num<UInt8Type>, Dict, |r| r.ttl_r;
        dscp: Num<UInt8Type>, Dict, |r| r.dscp;
        fragments: NewerRare, Delta, |r| r.fragments;
        goodput_o: Newer<Int64Type>, Split, |r| counter(r.goodput_o);
        goodput_r: Newer<Int64Type>, Split, |r| counter(r.goodput_r);
        tcp_state: Words<Option<TcpState>>, Dict, |r| r.tcp_state;
        rtt_srv_min_us: Opt<UInt32Type>, Split, |r| r.rtt_srv_life.map(|rtt| rtt.min_us);
        rtt_srv_mean_us: Opt<UInt32Type>, Split, |r| r.rtt_srv_life.map(|rtt| rtt.mean_us);
        rtt_srv_max_us: Opt<UInt32Type>, Split, |r| r.rtt_srv_life.map(|rtt| rtt.max_us);
        rtt_srv_median_us: Opt<UInt32Type>, Split, |r| r.rtt_srv_life.map(|rtt| rtt.median_us);
        rtt_cli_min_us: Opt<UInt32Type>, Split, |r| r.rtt_cli_life.map(|rtt| rtt.min_us);
        rtt_cli_mean_us: Opt<UInt32Type>, Split, |r| r.rtt_cli_life.map(|rtt| rtt.mean_us);
        rtt_cli_max_us: Opt<UInt32Type>, Split, |r| r.rtt_cli_life.map(|rtt| rtt.max_us);
        rtt_cli_median_us: Opt<UInt32Type>, Split, |r| r.rtt_cli_life.map(|rtt| rtt.median_us);
        fast_retrans_o: NewerRare, Delta, |r| r.fast_retrans_o;
        fast_retrans_r: NewerRare, Delta, |r| r.fast_retrans_r;
        spurious_retrans_o: NewerRare, Delta, |r| r.spurious_retrans_o;
        spurious_retrans_r: NewerRare, Delta, |r| r.spurious_retrans_r;
        dup_ack_o: NewerRare, Delta, |r| r.dup_ack_o;
        dup_ack_r: NewerRare, Delta, |r| r.dup_ack_r;
        keep_alive_o: NewerRare, Delta, |r| r.keep_alive_o;
        keep_alive_r: NewerRare, Delta, |r| r.keep_alive_r;
        app: Words<App>, Dict, |r| r.app;
    }
    texts {
        name: true, |r| r.text.name;
        alpn: false, |r| r.text.alpn;
        agent: false, |r| r.text.agent;
        ja4: false, |r| r.text.ja4;
    }
}

/// Signed for the readers' sake; a count past 2^63 (no flow has one) stays at the largest.
fn counter(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The columns of table `flows` as they are stored, in their order (see FORMAT.md).
pub fn flow_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(fields())));
    SCHEMA.clone()
}

/// Turns records into batches of [`flow_schema`]. Allocates once a batch, and nothing for a row without text.
#[derive(Clone)]
pub struct FlowBatchBuilder(BatchBuilder<FlowColumns>);

impl FlowBatchBuilder {
    /// A builder for batches of about `rows_max` rows. `tap_names[i]` is the name of tap `i`; any other tap is
    /// stored as `unknown`.
    pub fn new(tap_names: &[String], rows_max: usize) -> FlowBatchBuilder {
        FlowBatchBuilder(BatchBuilder::new(tap_names, rows_max))
    }

    /// Adds rows. `texts` are those of all of them, one after the other, each record's part as long as its `text`
    /// says; texts that are missing are none.
    pub fn extend(&mut self, rows: &[FlowRecord], texts: &[u8]) {
        self.0.extend(rows, texts);
    }

    /// Rows in the unfinished batch.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The batch, in the order rows were added; the builder is empty afterwards.
    ///
    /// # Errors
    /// If Arrow refuses the columns, which would be a fault of this crate.
    pub fn finish(&mut self) -> Result<RecordBatch, StorageError> {
        self.0.finish()
    }
}
