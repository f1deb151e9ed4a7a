//! The columns of table `talkers`: one row for each key, or total, that a sketch told of at the end of a window.

use crate::cells::{Num, Opt, OptIp, Time, Words};
use crate::table::{TableInfo, columns, micros};
use arrow::datatypes::{Float64Type, Int64Type, Schema, SchemaRef, UInt8Type, UInt16Type, UInt32Type};
use std::sync::{Arc, LazyLock};
use talkers::{Metric, TalkerRow};
use wire::TapId;

pub(crate) static TALKERS: TableInfo = TableInfo {
    name: "talkers",
    folder: "talkers",
    encoder: "talkers-encoder",
    schema: talkers_schema,
    columns: COLUMNS,
    duration: Some("dur_us"),
    // Most tasks have few fields: a segment without any of a port is ruled out by that alone.
    zones: &["dur_us", "rank", "src_port", "dst_port", "originator_port", "responder_port", "vlan"],
};

columns! {
    /// A batch of rows of sketches under construction.
    TalkerColumns of TalkerRow, &TALKERS;
    values {
        t_end: Time, Delta, |r| micros(r.end);
        dur_us: Num<Int64Type>, Dict, |r| micros(r.end).saturating_sub(micros(r.start)).max(0);
        tap: Words<TapId>, Dict, |r| r.tap;
        metric: Words<Metric>, Dict, |r| r.metric;
        rank: Opt<UInt32Type>, Delta, |r| r.rank;
        src_ip: OptIp, Dict, |r| r.key.src_ip.map(|ip| ip.0);
        dst_ip: OptIp, Dict, |r| r.key.dst_ip.map(|ip| ip.0);
        originator: OptIp, Dict, |r| r.key.originator.map(|ip| ip.0);
        responder: OptIp, Dict, |r| r.key.responder.map(|ip| ip.0);
        src_port: Opt<UInt16Type>, Dict, |r| r.key.src_port;
        dst_port: Opt<UInt16Type>, Dict, |r| r.key.dst_port;
        originator_port: Opt<UInt16Type>, Dict, |r| r.key.originator_port;
        responder_port: Opt<UInt16Type>, Dict, |r| r.key.responder_port;
        vlan: Opt<UInt16Type>, Dict, |r| r.key.vlan;
        proto: Opt<UInt8Type>, Dict, |r| r.key.proto;
        quantile: Opt<Float64Type>, Dict, |r| r.quantile;
        estimate: Num<Float64Type>, Split, |r| r.estimate;
        lower: Num<Float64Type>, Split, |r| r.lower;
        upper: Num<Float64Type>, Split, |r| r.upper;
    }
    texts {
        task: false, |r| r.task_len;
        key_fields: false, |r| r.key_len;
        elements: false, |r| r.elements_len;
    }
}

/// The columns of table `talkers` as they are stored, in their order (see FORMAT.md).
pub fn talkers_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(fields())));
    SCHEMA.clone()
}
