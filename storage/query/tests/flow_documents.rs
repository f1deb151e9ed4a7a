//! `ecs` and `eve`: flows under other people's names, by parsing what is printed.

mod common;

use arrow::array::{
    ArrayRef, DictionaryArray, FixedSizeBinaryArray, Int64Array, TimestampMicrosecondArray, UInt8Array, UInt16Array,
    UInt64Array,
};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use query::render::{OutputFormat, Renderer};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::sync::Arc;

fn words(values: [Option<&str>; 3]) -> ArrayRef {
    Arc::new(values.into_iter().collect::<DictionaryArray<Int32Type>>())
}

fn bytes<const N: usize>(values: [Option<[u8; N]>; 3]) -> ArrayRef {
    let values = values.into_iter();
    Arc::new(FixedSizeBinaryArray::try_from_sparse_iter_with_size(values, N as i32).unwrap())
}

/// A TLS connection, a ping that goes on, and a DNS question over IPv6 that nobody answered.
fn batch() -> RecordBatch {
    let ip = |texts: [&str; 3]| bytes(texts.map(|text| Some(common::addr(text).0)));
    let counts = |values: [i64; 3]| -> ArrayRef { Arc::new(Int64Array::from(values.to_vec())) };
    let end = common::T0 + 2_500_000;
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("t_end", Arc::new(TimestampMicrosecondArray::from(vec![end; 3]).with_timezone("UTC"))),
        ("dur_us", counts([1_250_000, 0, 0])),
        ("flow_id", Arc::new(UInt64Array::from(vec![u64::MAX, 7, 8]))),
        ("part", Arc::new(UInt16Array::from(vec![2, 0, 0]))),
        ("tap", words([Some("core"); 3])),
        ("src_ip", ip(["128.232.110.120", "10.0.0.1", "2001:db8::1"])),
        ("dst_ip", ip(["66.35.250.204", "10.0.0.1", "2001:db8::2"])),
        ("src_port", Arc::new(UInt16Array::from(vec![34_855, 0, 5353]))),
        ("dst_port", Arc::new(UInt16Array::from(vec![80, 0, 53]))),
        ("proto", Arc::new(UInt8Array::from(vec![6, 1, 17]))),
        ("icmp_type", Arc::new(UInt8Array::from(vec![None, Some(8), None]))),
        ("icmp_code", Arc::new(UInt8Array::from(vec![None, Some(0), None]))),
        ("vlan", Arc::new(UInt16Array::from(vec![Some(100), None, None]))),
        ("vlan_inner", Arc::new(UInt16Array::from(vec![Some(7), None, None]))),
        ("tunnel", words([Some("vxlan"), None, None])),
        ("src_mac", bytes([Some([2, 0, 0x5e, 0, 0xab, 1]), None, None])),
        ("pkts_o", counts([10, 1, 1])),
        ("pkts_r", counts([8, 1, 0])),
        ("bytes_o", counts([1000, 84, 70])),
        ("bytes_r", counts([9000, 84, 0])),
        ("flags_o", Arc::new(UInt8Array::from(vec![0x1b, 0, 0]))),
        ("flags_r", Arc::new(UInt8Array::from(vec![0x12, 0, 0]))),
        ("conn_state", words([Some("SF"), None, None])),
        ("end_reason", words([Some("closed"), Some("active"), Some("idle")])),
        ("app", words([Some("tls"), None, Some("dns")])),
        ("name", words([Some("a\"b.example"), None, Some("example.org")])),
        ("ja4", words([Some("t13d1516h2_8daaf6152771_e5627efa2ab1"), None, None])),
        ("alpn", words([Some("h2"), None, None])),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
}

fn rendered(format: OutputFormat, batch: &RecordBatch) -> Vec<Value> {
    let mut out = Vec::new();
    let mut renderer = Renderer::new(format, &batch.schema(), &mut out).unwrap();
    renderer.write(batch).unwrap();
    assert_eq!(renderer.finish().unwrap(), batch.num_rows() as u64);
    let text = String::from_utf8(out).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// Each leaf by its dotted path.
fn leaf<'a>(document: &'a Value, path: &str) -> &'a Value {
    path.split('.').try_fold(document, |node, name| node.get(name)).unwrap_or(&Value::Null)
}

fn assert_leaves(document: &Value, expected: &[(&str, Value)]) {
    for (path, value) in expected {
        assert_eq!(leaf(document, path), value, "{path}");
    }
}

#[test]
fn ecs_names_what_the_flow_says() {
    let rows = rendered(OutputFormat::Ecs, &batch());
    assert_leaves(
        &rows[0],
        &[
            ("event.kind", json!("event")),
            ("event.category", json!(["network"])),
            ("event.type", json!(["connection", "end"])),
            ("event.id", json!("18446744073709551615-2")),
            ("event.duration", json!(1_250_000_000)),
            ("event.reason", json!("closed")),
            ("flow.final", json!(true)),
            ("source.ip", json!("128.232.110.120")),
            ("source.port", json!(34_855)),
            ("source.mac", json!("02-00-5E-00-AB-01")),
            ("source.packets", json!(10)),
            ("source.bytes", json!(1000)),
            ("destination.ip", json!("66.35.250.204")),
            ("destination.packets", json!(8)),
            ("destination.mac", Value::Null),
            ("network.transport", json!("tcp")),
            ("network.type", json!("ipv4")),
            ("network.iana_number", json!("6")),
            ("network.packets", json!(18)),
            ("network.bytes", json!(10_000)),
            ("network.protocol", json!("tls")),
            ("network.community_id", json!("1:LQU9qZlK+B5F3KDmev6m5PMibrg=")),
            ("network.vlan.id", json!("100")),
            ("network.inner.vlan.id", json!("7")),
            ("observer.name", json!("core")),
            ("observer.ingress.interface.alias", json!("core")),
            ("tls.client.server_name", json!("a\"b.example")),
            ("tls.client.ja4", json!("t13d1516h2_8daaf6152771_e5627efa2ab1")),
            ("tls.next_protocol", json!("h2")),
            ("related.ip", json!(["128.232.110.120", "66.35.250.204"])),
            ("taphouse.tunnel", json!("vxlan")),
            ("taphouse.conn_state", json!("SF")),
        ],
    );
    let time = |path| leaf(&rows[0], path).as_str().unwrap().parse::<chrono::DateTime<chrono::Utc>>().unwrap();
    assert_eq!(time("event.end").timestamp_micros(), common::T0 + 2_500_000);
    assert_eq!(time("@timestamp"), time("event.end"));
    assert_eq!(time("event.start").timestamp_micros(), common::T0 + 1_250_000);
    assert_leaves(
        &rows[1],
        &[
            ("event.type", json!(["connection"])),
            ("flow.final", json!(false)),
            ("source.port", Value::Null),
            ("network.transport", json!("icmp")),
            ("related.ip", json!(["10.0.0.1"])),
            ("taphouse.icmp_type", json!(8)),
            ("tls", Value::Null),
        ],
    );
    let dns = [("dns.question.name", json!("example.org")), ("network.type", json!("ipv6")), ("tls", Value::Null)];
    assert_leaves(&rows[2], &dns);
}

#[test]
fn eve_events_are_those_of_suricata() {
    let rows = rendered(OutputFormat::Eve, &batch());
    assert_leaves(
        &rows[0],
        &[
            ("event_type", json!("flow")),
            ("flow_id", json!((1u64 << 51) - 1)),
            ("taphouse.flow_id", json!("18446744073709551615")),
            ("vlan", json!([100, 7])),
            ("src_ip", json!("128.232.110.120")),
            ("src_port", json!(34_855)),
            ("dest_ip", json!("66.35.250.204")),
            ("dest_port", json!(80)),
            ("proto", json!("TCP")),
            ("app_proto", json!("tls")),
            ("community_id", json!("1:LQU9qZlK+B5F3KDmev6m5PMibrg=")),
            ("in_iface", json!("core")),
            ("flow.pkts_toserver", json!(10)),
            ("flow.pkts_toclient", json!(8)),
            ("flow.bytes_toserver", json!(1000)),
            ("flow.bytes_toclient", json!(9000)),
            ("flow.age", json!(1)),
            ("flow.state", json!("closed")),
            ("flow.reason", json!("timeout")),
            ("flow.alerted", json!(false)),
            ("tcp.tcp_flags", json!("1b")),
            ("tcp.tcp_flags_ts", json!("1b")),
            ("tcp.tcp_flags_tc", json!("12")),
            ("tcp.syn", json!(true)),
            ("tcp.fin", json!(true)),
            ("tcp.rst", Value::Null),
            ("tcp.state", json!("closed")),
        ],
    );
    let format = "%Y-%m-%dT%H:%M:%S%.6f%z";
    let time = |path| chrono::DateTime::parse_from_str(leaf(&rows[0], path).as_str().unwrap(), format).unwrap();
    assert_eq!(time("flow.end").timestamp_micros(), common::T0 + 2_500_000);
    assert_eq!(time("flow.start").timestamp_micros(), common::T0 + 1_250_000);
    assert!(rows[0]["timestamp"].as_str().unwrap().ends_with("+0000"));
    let ping = [("proto", json!("ICMP")), ("icmp_type", json!(8)), ("icmp_code", json!(0)), ("tcp", Value::Null)];
    assert_leaves(&rows[1], &ping);
    assert_leaves(&rows[1], &[("src_port", Value::Null), ("vlan", Value::Null), ("flow.reason", json!("unknown"))]);
    assert_leaves(&rows[2], &[("flow.state", json!("new")), ("ip_v", json!(6)), ("dest_port", json!(53))]);
}

#[test]
fn a_missing_column_leaves_out_its_fields_and_no_others() {
    fn paths(document: &Value, at: &str, out: &mut BTreeSet<String>) {
        match document {
            Value::Object(map) => map.iter().for_each(|(k, v)| paths(v, &format!("{at}.{k}"), out)),
            _ => drop(out.insert(at.to_owned())),
        }
    }
    let whole = batch();
    for format in [OutputFormat::Ecs, OutputFormat::Eve] {
        let mut all = BTreeSet::new();
        paths(&rendered(format, &whole)[0], "", &mut all);
        for left_out in 0..whole.num_columns() {
            let kept: Vec<usize> = (0..whole.num_columns()).filter(|at| *at != left_out).collect();
            let mut fewer = BTreeSet::new();
            paths(&rendered(format, &whole.project(&kept).unwrap())[0], "", &mut fewer);
            let name = whole.schema().field(left_out).name().clone();
            // Without `app` a name is no longer TLS's; `proto` says whether there are ports, flags and an id.
            assert!(name == "app" || fewer.is_subset(&all), "{format} without {name}");
            assert!(name == "proto" || fewer.len() + 12 > all.len(), "{format} without {name} has only {fewer:?}");
            for always in ["src_ip", "event_type", "event.kind", "flow.bytes_toclient"] {
                let at = format!(".{always}");
                let own = [("src_ip", "src_ip"), ("bytes_r", "flow.bytes_toclient")].contains(&(name.as_str(), always));
                assert!(!all.contains(&at) || own || fewer.contains(&at), "{format} without {name} has no {always}");
            }
        }
    }
}
