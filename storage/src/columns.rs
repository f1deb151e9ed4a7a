//! The columns of a flow, in their order. Adding one is adding a line to the table below (and to FORMAT.md).

use crate::StorageError;
use crate::cells::{Cells, Ip, MacCells, Newer, Num, Opt, Tables, Time, Words};
use crate::texts::Texts;
use arrow::array::{ArrayRef, new_null_array};
use arrow::datatypes::{DataType, Field, Int64Type, Schema, SchemaRef, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use arrow::record_batch::RecordBatch;
use flowtable::{ConnState, EndReason, FlowRecord, TcpState};
use hints::{App, TextLens};
use std::sync::{Arc, LazyLock};
use wire::{TapId, Tunnel};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// DELTA_BINARY_PACKED: sorted or slowly changing, and columns that are almost always 0.
    Delta,
    /// BYTE_STREAM_SPLIT: the high bytes repeat, the low ones do not.
    Split,
    /// Dictionary: few distinct values.
    Dict,
    /// PLAIN, without statistics: evenly distributed hashes.
    Plain,
}

/// What the segment writer needs to know of a column.
pub(crate) struct ColumnInfo {
    pub(crate) name: &'static str,
    pub(crate) encoding: Encoding,
    /// Looked up by value: gets a bloom filter.
    pub(crate) bloom: bool,
    /// Has statistics by page.
    pub(crate) statistics: bool,
}

macro_rules! columns {
    (
        values { $($name:ident: $cells:ty, $encoding:ident, $value:expr;)* }
        texts { $($text:ident: $bloom:literal, $length:expr;)* }
    ) => {
        /// A batch under construction, column by column.
        #[derive(Clone)]
        struct Columns { $($name: $cells,)* $($text: Texts,)* }

        impl Columns {
            fn with_capacity(rows: usize) -> Columns {
                Columns { $($name: Cells::with_capacity(rows),)* $($text: Texts::default(),)* }
            }

            fn extend(&mut self, rows: &[FlowRecord]) {
                $(self.$name.extend(rows, $value);)*
            }

            /// Takes the texts of as many rows off the front of `texts`, in the order of the columns.
            /// `first` is the number of the first of them.
            fn extend_texts(&mut self, rows: &[FlowRecord], first: usize, texts: &mut &[u8]) {
                let said = |(_, row): &(usize, &FlowRecord)| row.text != TextLens::default();
                for (at, row) in rows.iter().enumerate().filter(said) {
                    $({
                        let length = usize::from(($length)(row));
                        let (text, rest) = texts.split_at(length.min(texts.len()));
                        *texts = rest;
                        if !text.is_empty() {
                            self.$text.set(first + at, text);
                        }
                    })*
                }
            }

            fn finish(self, rows: usize, tables: &Tables) -> Result<Vec<ArrayRef>, arrow::error::ArrowError> {
                Ok(vec![$(self.$name.finish(tables)?,)* $(self.$text.finish(rows)?,)*])
            }
        }

        pub(crate) static COLUMNS: &[ColumnInfo] = &[
            $(ColumnInfo {
                name: stringify!($name),
                encoding: Encoding::$encoding,
                bloom: <$cells as Cells>::BLOOM,
                statistics: <$cells as Cells>::STATISTICS && !matches!(Encoding::$encoding, Encoding::Plain),
            },)*
            $(ColumnInfo { name: stringify!($text), encoding: Encoding::Dict, bloom: $bloom, statistics: true },)*
        ];

        fn fields() -> Vec<Field> {
            vec![
                $(field::<$cells>(stringify!($name)),)*
                $(Field::new(stringify!($text), text_type(), true),)*
            ]
        }
    };
}

columns! {
    values {
        t_end: Time, Delta, |r| micros(r.end);
        dur_us: Num<Int64Type>, Split, |r| micros(r.end).saturating_sub(micros(r.start)).max(0);
        flow_id: Num<UInt64Type>, Plain, |r| r.flow_id;
        part: Num<UInt16Type>, Dict, |r| r.part;
        tap: Words<TapId>, Dict, |r| r.tap;
        src_ip: Ip, Dict, |r| r.src_ip.0;
        dst_ip: Ip, Dict, |r| r.dst_ip.0;
        src_port: Num<UInt16Type>, Split, |r| r.src_port;
        dst_port: Num<UInt16Type>, Dict, |r| r.dst_port;
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
        retrans_o: Num<UInt32Type>, Delta, |r| r.retrans_o;
        retrans_r: Num<UInt32Type>, Delta, |r| r.retrans_r;
        ooo_o: Num<UInt32Type>, Delta, |r| r.ooo_o;
        ooo_r: Num<UInt32Type>, Delta, |r| r.ooo_r;
        lost_o: Num<UInt32Type>, Delta, |r| r.lost_o;
        lost_r: Num<UInt32Type>, Delta, |r| r.lost_r;
        zwin_o: Num<UInt32Type>, Delta, |r| r.zwin_o;
        zwin_r: Num<UInt32Type>, Delta, |r| r.zwin_r;
        ttl_o: Num<UInt8Type>, Dict, |r| r.ttl_o;
        ttl_r: Num<UInt8Type>, Dict, |r| r.ttl_r;
        dscp: Num<UInt8Type>, Dict, |r| r.dscp;
        fragments: Newer<UInt32Type>, Delta, |r| r.fragments;
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
        fast_retrans_o: Newer<UInt32Type>, Delta, |r| r.fast_retrans_o;
        fast_retrans_r: Newer<UInt32Type>, Delta, |r| r.fast_retrans_r;
        spurious_retrans_o: Newer<UInt32Type>, Delta, |r| r.spurious_retrans_o;
        spurious_retrans_r: Newer<UInt32Type>, Delta, |r| r.spurious_retrans_r;
        dup_ack_o: Newer<UInt32Type>, Delta, |r| r.dup_ack_o;
        dup_ack_r: Newer<UInt32Type>, Delta, |r| r.dup_ack_r;
        keep_alive_o: Newer<UInt32Type>, Delta, |r| r.keep_alive_o;
        keep_alive_r: Newer<UInt32Type>, Delta, |r| r.keep_alive_r;
        app: Words<App>, Dict, |r| r.app;
    }
    texts {
        name: true, |r: &FlowRecord| r.text.name;
        alpn: false, |r: &FlowRecord| r.text.alpn;
        agent: false, |r: &FlowRecord| r.text.agent;
        ja4: false, |r: &FlowRecord| r.text.ja4;
    }
}

/// Text with few distinct values.
fn text_type() -> DataType {
    DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
}

fn field<C: Cells>(name: &str) -> Field {
    let field = Field::new(name, C::data_type(), C::NULLABLE);
    match C::EXTENSION {
        Some(extension) => {
            field.with_metadata([("ARROW:extension:name".to_owned(), extension.to_owned())].into_iter().collect())
        }
        None => field,
    }
}

/// Microseconds since 1970, rounded down. Every `Nanos` fits: the year 2554 is 1.8e16 µs.
fn micros(time: wire::Nanos) -> i64 {
    time.as_micros() as i64
}

/// Signed for the readers' sake; a count past 2^63 (no flow has one) stays at the largest.
fn counter(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The record's 0 for "none" is stored as null.
fn nonzero<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// The columns of table `flows` as they are stored, in their order (see FORMAT.md).
pub fn flow_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(fields())));
    SCHEMA.clone()
}

/// Turns records into a batch of [`flow_schema`]. Allocates once a batch, nothing per row.
#[derive(Clone)]
pub struct FlowBatchBuilder {
    columns: Columns,
    tables: Tables,
    rows: usize,
    rows_max: usize,
}

impl FlowBatchBuilder {
    /// A builder for batches of about `rows_max` rows. `tap_names[i]` is the name of tap `i`; any other tap is
    /// stored as `unknown`.
    pub fn new(tap_names: &[String], rows_max: usize) -> FlowBatchBuilder {
        FlowBatchBuilder {
            columns: Columns::with_capacity(rows_max),
            tables: Tables::new(tap_names),
            rows: 0,
            rows_max,
        }
    }

    /// Adds rows. `texts` are those of all of them, one after the other, each record's part as long as its
    /// [`TextLens`] says; texts that are missing are none.
    ///
    /// Records are wide, so they are walked in runs that stay in the second-level cache while all columns pick their
    /// value from them.
    pub fn extend(&mut self, rows: &[FlowRecord], mut texts: &[u8]) {
        const RUN: usize = 512;
        for run in rows.chunks(RUN) {
            self.columns.extend(run);
            if !texts.is_empty() {
                self.columns.extend_texts(run, self.rows, &mut texts);
            }
            self.rows += run.len();
        }
    }

    /// Rows in the unfinished batch.
    pub fn len(&self) -> usize {
        self.rows
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.rows == 0
    }

    /// Drops the rows of the unfinished batch; returns how many.
    pub fn clear(&mut self) -> usize {
        self.columns = Columns::with_capacity(self.rows_max);
        std::mem::take(&mut self.rows)
    }

    /// The batch, in the order rows were added; the builder is empty afterwards.
    ///
    /// # Errors
    /// If Arrow refuses the columns, which would be a fault of this crate.
    pub fn finish(&mut self) -> Result<RecordBatch, StorageError> {
        let columns = std::mem::replace(&mut self.columns, Columns::with_capacity(self.rows_max));
        columns
            .finish(std::mem::take(&mut self.rows), &self.tables)
            .and_then(|arrays| RecordBatch::try_new(flow_schema(), arrays))
            .map_err(StorageError::arrow("build a batch of flow records"))
    }
}

/// A batch of an older format as one of [`flow_schema`]: columns by name, a missing nullable column all null.
///
/// # Errors
/// If a column is missing that cannot be null, or has another type.
pub(crate) fn conform(batch: &RecordBatch) -> Result<RecordBatch, StorageError> {
    let schema = flow_schema();
    if batch.schema_ref() == &schema {
        return Ok(batch.clone());
    }
    let columns = schema
        .fields()
        .iter()
        .map(|field| match batch.column_by_name(field.name()) {
            Some(column) => column.clone(),
            None => new_null_array(field.data_type(), batch.num_rows()),
        })
        .collect();
    RecordBatch::try_new(schema, columns).map_err(StorageError::arrow("read rows of another format"))
}
