use crate::v1;
use arrow::array::cast::AsArray;
use arrow::array::types::{Int64Type, UInt32Type, UInt64Type};
use arrow::array::{Array, ArrayRef, ArrowPrimitiveType, PrimitiveArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{DataType, TimeUnit};
use arrow::error::ArrowError;
use std::fmt::Display;
use wire::{Addr, Mac};

/// The columns of a record batch as messages, one for each row.
///
/// Works column by column: a column is looked at once, its type settled once, and then written into every message.
/// A column that [`v1::Flow`] has no field for is left out.
///
/// # Errors
/// When a column has a type that its field cannot be made from.
pub(crate) fn flows_from_batch(batch: &RecordBatch) -> Result<Vec<v1::Flow>, ArrowError> {
    let mut flows = vec![v1::Flow::default(); batch.num_rows()];
    for (field, column) in batch.schema_ref().fields().iter().zip(batch.columns()) {
        fill(&mut flows, field.name(), column)
            .map_err(|e| ArrowError::SchemaError(format!("column {} cannot be sent: {e}", field.name())))?;
    }
    Ok(flows)
}

fn fill(flows: &mut [v1::Flow], name: &str, column: &ArrayRef) -> Result<(), ArrowError> {
    match name {
        "t_end" => times(flows, column, |f, v| f.t_end = Some(v)),
        "dur_us" => numbers::<Int64Type>(flows, column, |f, v| f.dur_us = v),
        "flow_id" => numbers::<UInt64Type>(flows, column, |f, v| f.flow_id = v),
        "part" => numbers::<UInt32Type>(flows, column, |f, v| f.part = v),
        "tap" => texts(flows, column, |f, v| f.tap = v),
        "src_ip" => addresses(flows, column, |f, v| f.src_ip = v),
        "dst_ip" => addresses(flows, column, |f, v| f.dst_ip = v),
        "src_port" => numbers::<UInt32Type>(flows, column, |f, v| f.src_port = v),
        "dst_port" => numbers::<UInt32Type>(flows, column, |f, v| f.dst_port = v),
        "proto" => numbers::<UInt32Type>(flows, column, |f, v| f.proto = v),
        "icmp_type" => numbers::<UInt32Type>(flows, column, |f, v| f.icmp_type = Some(v)),
        "icmp_code" => numbers::<UInt32Type>(flows, column, |f, v| f.icmp_code = Some(v)),
        "vlan" => numbers::<UInt32Type>(flows, column, |f, v| f.vlan = Some(v)),
        "vlan_inner" => numbers::<UInt32Type>(flows, column, |f, v| f.vlan_inner = Some(v)),
        "tunnel" => texts(flows, column, |f, v| f.tunnel = Some(v)),
        "tunnel_id" => numbers::<UInt32Type>(flows, column, |f, v| f.tunnel_id = Some(v)),
        "src_mac" => macs(flows, column, |f, v| f.src_mac = Some(v)),
        "dst_mac" => macs(flows, column, |f, v| f.dst_mac = Some(v)),
        "pkts_o" => numbers::<Int64Type>(flows, column, |f, v| f.pkts_o = v),
        "pkts_r" => numbers::<Int64Type>(flows, column, |f, v| f.pkts_r = v),
        "bytes_o" => numbers::<Int64Type>(flows, column, |f, v| f.bytes_o = v),
        "bytes_r" => numbers::<Int64Type>(flows, column, |f, v| f.bytes_r = v),
        "flags_o" => numbers::<UInt32Type>(flows, column, |f, v| f.flags_o = v),
        "flags_r" => numbers::<UInt32Type>(flows, column, |f, v| f.flags_r = v),
        "conn_state" => texts(flows, column, |f, v| f.conn_state = Some(v)),
        "end_reason" => texts(flows, column, |f, v| f.end_reason = v),
        "rtt_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_us = Some(v)),
        "rtt_srv_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_srv_us = Some(v)),
        "rtt_cli_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_cli_us = Some(v)),
        "retrans_o" => numbers::<UInt32Type>(flows, column, |f, v| f.retrans_o = v),
        "retrans_r" => numbers::<UInt32Type>(flows, column, |f, v| f.retrans_r = v),
        "ooo_o" => numbers::<UInt32Type>(flows, column, |f, v| f.ooo_o = v),
        "ooo_r" => numbers::<UInt32Type>(flows, column, |f, v| f.ooo_r = v),
        "lost_o" => numbers::<UInt32Type>(flows, column, |f, v| f.lost_o = v),
        "lost_r" => numbers::<UInt32Type>(flows, column, |f, v| f.lost_r = v),
        "zwin_o" => numbers::<UInt32Type>(flows, column, |f, v| f.zwin_o = v),
        "zwin_r" => numbers::<UInt32Type>(flows, column, |f, v| f.zwin_r = v),
        "ttl_o" => numbers::<UInt32Type>(flows, column, |f, v| f.ttl_o = v),
        "ttl_r" => numbers::<UInt32Type>(flows, column, |f, v| f.ttl_r = v),
        "dscp" => numbers::<UInt32Type>(flows, column, |f, v| f.dscp = v),
        "fragments" => numbers::<UInt32Type>(flows, column, |f, v| f.fragments = v),
        "goodput_o" => numbers::<Int64Type>(flows, column, |f, v| f.goodput_o = v),
        "goodput_r" => numbers::<Int64Type>(flows, column, |f, v| f.goodput_r = v),
        "tcp_state" => texts(flows, column, |f, v| f.tcp_state = Some(v)),
        "rtt_srv_min_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_srv_min_us = Some(v)),
        "rtt_srv_mean_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_srv_mean_us = Some(v)),
        "rtt_srv_max_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_srv_max_us = Some(v)),
        "rtt_srv_median_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_srv_median_us = Some(v)),
        "rtt_cli_min_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_cli_min_us = Some(v)),
        "rtt_cli_mean_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_cli_mean_us = Some(v)),
        "rtt_cli_max_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_cli_max_us = Some(v)),
        "rtt_cli_median_us" => numbers::<UInt32Type>(flows, column, |f, v| f.rtt_cli_median_us = Some(v)),
        "fast_retrans_o" => numbers::<UInt32Type>(flows, column, |f, v| f.fast_retrans_o = v),
        "fast_retrans_r" => numbers::<UInt32Type>(flows, column, |f, v| f.fast_retrans_r = v),
        "spurious_retrans_o" => numbers::<UInt32Type>(flows, column, |f, v| f.spurious_retrans_o = v),
        "spurious_retrans_r" => numbers::<UInt32Type>(flows, column, |f, v| f.spurious_retrans_r = v),
        "dup_ack_o" => numbers::<UInt32Type>(flows, column, |f, v| f.dup_ack_o = v),
        "dup_ack_r" => numbers::<UInt32Type>(flows, column, |f, v| f.dup_ack_r = v),
        "keep_alive_o" => numbers::<UInt32Type>(flows, column, |f, v| f.keep_alive_o = v),
        "keep_alive_r" => numbers::<UInt32Type>(flows, column, |f, v| f.keep_alive_r = v),
        "app" => texts(flows, column, |f, v| f.app = Some(v)),
        "name" => texts(flows, column, |f, v| f.name = Some(v)),
        "alpn" => texts(flows, column, |f, v| f.alpn = Some(v)),
        "agent" => texts(flows, column, |f, v| f.agent = Some(v)),
        "ja4" => texts(flows, column, |f, v| f.ja4 = Some(v)),
        _ => Ok(()),
    }
}

/// Writes each value that is not null, widened to `T`.
fn numbers<T: ArrowPrimitiveType>(
    flows: &mut [v1::Flow],
    column: &ArrayRef,
    set: impl Fn(&mut v1::Flow, T::Native),
) -> Result<(), ArrowError> {
    let widened = match column.data_type() {
        t if *t == T::DATA_TYPE => column.clone(),
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 => cast(column, &T::DATA_TYPE)?,
        other => return Err(ArrowError::CastError(format!("{other} where {} was expected", T::DATA_TYPE))),
    };
    each(flows, widened.as_primitive::<T>(), set);
    Ok(())
}

fn each<T: ArrowPrimitiveType>(
    flows: &mut [v1::Flow],
    column: &PrimitiveArray<T>,
    set: impl Fn(&mut v1::Flow, T::Native),
) {
    for (flow, value) in flows.iter_mut().zip(column.iter()) {
        if let Some(value) = value {
            set(flow, value);
        }
    }
}

fn times(
    flows: &mut [v1::Flow],
    column: &ArrayRef,
    set: impl Fn(&mut v1::Flow, prost_types::Timestamp),
) -> Result<(), ArrowError> {
    match column.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            // Same buffer, read as integers.
            let micros = cast(column, &DataType::Int64)?;
            each(flows, micros.as_primitive::<Int64Type>(), |flow, us| set(flow, timestamp(us)));
            Ok(())
        }
        other => Err(ArrowError::CastError(format!("{other} where microseconds were expected"))),
    }
}

/// Text in any of Arrow's forms, dictionaries included.
fn texts(flows: &mut [v1::Flow], column: &ArrayRef, set: impl Fn(&mut v1::Flow, String)) -> Result<(), ArrowError> {
    let plain = match column.data_type() {
        DataType::Utf8 => column.clone(),
        DataType::LargeUtf8 | DataType::Utf8View | DataType::Dictionary(..) => cast(column, &DataType::Utf8)?,
        other => return Err(ArrowError::CastError(format!("{other} where text was expected"))),
    };
    for (flow, value) in flows.iter_mut().zip(plain.as_string::<i32>().iter()) {
        if let Some(value) = value {
            set(flow, value.to_owned());
        }
    }
    Ok(())
}

fn addresses(flows: &mut [v1::Flow], column: &ArrayRef, set: impl Fn(&mut v1::Flow, String)) -> Result<(), ArrowError> {
    bytes_as_text::<16, Addr>(flows, column, Addr, set)
}

fn macs(flows: &mut [v1::Flow], column: &ArrayRef, set: impl Fn(&mut v1::Flow, String)) -> Result<(), ArrowError> {
    bytes_as_text::<6, Mac>(flows, column, Mac, set)
}

fn bytes_as_text<const N: usize, T: Display>(
    flows: &mut [v1::Flow],
    column: &ArrayRef,
    make: impl Fn([u8; N]) -> T,
    set: impl Fn(&mut v1::Flow, String),
) -> Result<(), ArrowError> {
    let DataType::FixedSizeBinary(_) = column.data_type() else {
        let found = column.data_type();
        return Err(ArrowError::CastError(format!("{found} where {N} bytes were expected")));
    };
    for (flow, value) in flows.iter_mut().zip(column.as_fixed_size_binary().iter()) {
        let Some(value) = value else { continue };
        let bytes = <[u8; N]>::try_from(value)
            .map_err(|_| ArrowError::CastError(format!("{} bytes where {N} were expected", value.len())))?;
        set(flow, make(bytes).to_string());
    }
    Ok(())
}

/// Microseconds since 1970 as protobuf writes times.
pub(crate) fn timestamp(micros: i64) -> prost_types::Timestamp {
    let seconds = micros.div_euclid(1_000_000);
    let nanos = (micros.rem_euclid(1_000_000) * 1_000) as i32;
    prost_types::Timestamp { seconds, nanos }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::types::UInt16Type as Key;
    use arrow::array::{DictionaryArray, FixedSizeBinaryArray, Int64Array, TimestampMicrosecondArray, UInt8Array};
    use arrow::array::{StringArray, UInt32Array};
    use std::sync::Arc;

    #[test]
    fn times_go_both_ways() {
        for us in [0, 1, -1, 999_999, 1_700_000_000_123_456, -62_135_596_800_000_000] {
            let time = timestamp(us);
            assert!((0..1_000_000_000).contains(&time.nanos), "{time:?}");
            assert_eq!(time.seconds * 1_000_000 + i64::from(time.nanos / 1_000), us);
        }
    }

    #[test]
    fn a_batch_becomes_messages() {
        let addr = FixedSizeBinaryArray::try_from_iter([Addr::v4([10, 0, 0, 1]).0, [0; 16]].into_iter()).unwrap();
        let tap: DictionaryArray<Key> = [Some("core"), Some("edge")].into_iter().collect();
        let batch = RecordBatch::try_from_iter([
            ("t_end", Arc::new(TimestampMicrosecondArray::from(vec![1_500_000, 2]).with_timezone("UTC")) as ArrayRef),
            ("tap", Arc::new(tap)),
            ("src_ip", Arc::new(addr)),
            ("proto", Arc::new(UInt8Array::from(vec![6, 17]))),
            ("bytes_o", Arc::new(Int64Array::from(vec![100, 200]))),
            ("rtt_us", Arc::new(UInt32Array::from(vec![Some(7), None]))),
            ("conn_state", Arc::new(StringArray::from(vec![Some("SF"), None]))),
            ("not_a_field", Arc::new(UInt32Array::from(vec![1, 2]))),
        ])
        .unwrap();
        let flows = flows_from_batch(&batch).unwrap();
        assert_eq!(flows[0].t_end, Some(prost_types::Timestamp { seconds: 1, nanos: 500_000_000 }));
        assert_eq!((flows[0].tap.as_str(), flows[1].tap.as_str()), ("core", "edge"));
        assert_eq!((flows[0].src_ip.as_str(), flows[1].src_ip.as_str()), ("10.0.0.1", "::"));
        assert_eq!((flows[0].proto, flows[1].bytes_o), (6, 200));
        assert_eq!((flows[0].rtt_us, flows[1].rtt_us), (Some(7), None));
        assert_eq!((flows[0].conn_state.as_deref(), flows[1].conn_state.as_deref()), (Some("SF"), None));
    }

    /// The message has a field for each column of the table, under its name.
    #[test]
    fn every_stored_column_reaches_the_message() {
        let schema = storage::flow_schema();
        for (at, field) in schema.fields().iter().enumerate() {
            let mut builder = storage::FlowBatchBuilder::new(&["core".to_owned()], 1);
            builder.extend(&[full()], b"example.orgh2agentt13d1516h2_8daaf6152771_e5627efa2ab1");
            let batch = builder.finish().unwrap().project(&[at]).unwrap();
            assert_ne!(flows_from_batch(&batch).unwrap()[0], v1::Flow::default(), "column {}", field.name());
        }
    }

    /// A record in which nothing is 0 or missing.
    fn full() -> flowtable::FlowRecord {
        use flowtable::{ConnState, EndReason, RttLife, TcpState};
        let life = Some(RttLife { min_us: 1, mean_us: 2, max_us: 3, median_us: 2 });
        flowtable::FlowRecord {
            flow_id: 1,
            start: wire::Nanos(1_000),
            end: wire::Nanos(5_000),
            src_ip: Addr::v4([10, 0, 0, 1]),
            dst_ip: Addr::v4([10, 0, 0, 2]),
            src_port: 1,
            dst_port: 2,
            proto: 6,
            part: 1,
            tap: wire::TapId(0),
            vlan: 1,
            vlan_inner: 2,
            tunnel: wire::Tunnel::Vxlan,
            tunnel_id: 7,
            src_mac: Some(Mac([2; 6])),
            dst_mac: Some(Mac([4; 6])),
            icmp: Some((8, 1)),
            fragments: 1,
            pkts_o: 1,
            pkts_r: 2,
            bytes_o: 3,
            bytes_r: 4,
            goodput_o: 5,
            goodput_r: 6,
            flags_o: 1,
            flags_r: 2,
            conn_state: Some(ConnState::SF),
            tcp_state: Some(TcpState::Closed),
            end_reason: EndReason::Closed,
            rtt_us: Some(3),
            rtt_srv_us: Some(1),
            rtt_cli_us: Some(2),
            rtt_srv_life: life,
            rtt_cli_life: life,
            retrans_o: 1,
            retrans_r: 2,
            fast_retrans_o: 3,
            fast_retrans_r: 4,
            spurious_retrans_o: 5,
            spurious_retrans_r: 6,
            ooo_o: 7,
            ooo_r: 8,
            lost_o: 9,
            lost_r: 10,
            dup_ack_o: 11,
            dup_ack_r: 12,
            keep_alive_o: 13,
            keep_alive_r: 14,
            zwin_o: 15,
            zwin_r: 16,
            ttl_o: 64,
            ttl_r: 63,
            dscp: 10,
            app: hints::App::Tls,
            text: hints::TextLens { name: 11, alpn: 2, agent: 5, ja4: 36 },
        }
    }

    #[test]
    fn a_wrong_type_is_named() {
        let batch =
            RecordBatch::try_from_iter([("proto", Arc::new(StringArray::from(vec!["tcp"])) as ArrayRef)]).unwrap();
        let message = flows_from_batch(&batch).unwrap_err().to_string();
        assert!(message.contains("proto") && message.contains("Utf8"), "{message}");
    }
}
