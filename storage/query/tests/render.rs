//! Every format on awkward values; JSON by parsing it.

mod common;

use arrow::array::{
    ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Float64Array, Int64Array, StringArray,
    TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::Int32Type;
use arrow::record_batch::RecordBatch;
use common::{Flows, wait};
use query::render::{ColumnFormat, ColumnWriter, OutputFormat, Renderer, TableLayout, text_batch};
use serde_json::{Value, json};
use std::sync::Arc;

fn batch() -> RecordBatch {
    let v4 = common::addr("10.0.0.1").0;
    let v6 = common::addr("2001:db8::1").0;
    let ips = FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(v4), None, Some(v6)].into_iter(), 16).unwrap();
    let macs =
        FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some([2, 0, 0, 0, 0, 1]), None, None].into_iter(), 6);
    let taps: DictionaryArray<Int32Type> = [Some("core"), None, Some("a,\"b\"\nc\u{1b}[31m")].into_iter().collect();
    let times = TimestampMicrosecondArray::from(vec![Some(common::T0 + 1), None, Some(-1)]).with_timezone("UTC");
    let columns: Vec<(&str, ArrayRef)> = vec![
        ("flow_id", Arc::new(UInt64Array::from(vec![Some(u64::MAX), None, Some(1)]))),
        ("src_ip", Arc::new(ips)),
        ("src_mac", Arc::new(macs.unwrap())),
        ("tap", Arc::new(taps)),
        ("t", Arc::new(times)),
        ("x", Arc::new(Float64Array::from(vec![Some(f64::NAN), Some(f64::INFINITY), Some(-0.25)]))),
        ("n", Arc::new(Int64Array::from(vec![Some(i64::MIN), Some(7), None]))),
        ("ok", Arc::new(BooleanArray::from(vec![Some(true), None, Some(false)]))),
        ("a \"name\"", Arc::new(StringArray::from(vec![Some(""), None, Some("é\u{202e}")]))),
    ];
    RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap()
}

fn rendered(format: OutputFormat, batches: &[RecordBatch]) -> String {
    let mut out = Vec::new();
    let mut renderer = Renderer::new(format, &batch().schema(), &mut out).unwrap();
    for batch in batches {
        renderer.write(batch).unwrap();
    }
    assert_eq!(renderer.finish().unwrap(), batches.iter().map(|b| b.num_rows() as u64).sum::<u64>());
    String::from_utf8(out).unwrap()
}

#[test]
fn json_is_one_valid_array() {
    let text = rendered(OutputFormat::Json, &[batch(), batch()]);
    let value: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value.as_array().unwrap().len(), 6);
    assert_eq!(
        value[0],
        json!({"flow_id": "18446744073709551615", "src_ip": "10.0.0.1", "src_mac": "02:00:00:00:00:01", "tap": "core",
               "t": "2026-01-01T00:00:00.000001Z", "x": null, "n": i64::MIN, "ok": true, "a \"name\"": ""})
    );
    assert_eq!(value[1]["src_ip"], Value::Null);
    assert_eq!(value[1]["x"], Value::Null);
    assert_eq!(value[2]["src_ip"], "2001:db8::1");
    assert_eq!(value[2]["tap"], "a,\"b\"\nc\u{1b}[31m");
    assert_eq!(value[2]["t"], "1969-12-31T23:59:59.999999Z");
    assert_eq!(value[2]["x"], -0.25);
    assert_eq!(rendered(OutputFormat::Json, &[]), "[]\n");
    assert_eq!(rendered(OutputFormat::Json, &[batch().slice(0, 0)]), "[]\n");
}

#[test]
fn ndjson_is_an_object_a_line() {
    let text = rendered(OutputFormat::Ndjson, &[batch()]);
    let lines: Vec<Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[1]["n"], 7);
    assert_eq!(rendered(OutputFormat::Ndjson, &[]), "");
}

#[test]
fn csv_has_its_header_even_when_empty() {
    let header = "flow_id,src_ip,src_mac,tap,t,x,n,ok,\"a \"\"name\"\"\"\n";
    assert_eq!(rendered(OutputFormat::Csv, &[]), header);
    let expected = "18446744073709551615,10.0.0.1,02:00:00:00:00:01,core,2026-01-01T00:00:00.000001Z,NaN,\
                    -9223372036854775808,true,\"\"\n,,,,,inf,7,,\n\
                    1,2001:db8::1,,\"a,\"\"b\"\"\nc\u{1b}[31m\",1969-12-31T23:59:59.999999Z,-0.25,,false,é\u{202e}\n";
    assert_eq!(rendered(OutputFormat::Csv, &[batch()]), format!("{header}{expected}"));
}

#[test]
fn tables_are_aligned_and_cannot_be_spoofed() {
    let expected = r#"
             flow_id  src_ip       src_mac            tap                 t                                x                     n  ok     a "name"
--------------------  -----------  -----------------  ------------------  ---------------------------  -----  --------------------  -----  ---------
18446744073709551615  10.0.0.1     02:00:00:00:00:01  core                2026-01-01T00:00:00.000001Z    NaN  -9223372036854775808  true
                   -  -            -                  -                   -                              inf                     7  -      -
                   1  2001:db8::1  -                  a,"b"\nc\u{1b}[31m  1969-12-31T23:59:59.999999Z  -0.25                     -  false  é\u{202e}
(3 rows)
"#;
    assert_eq!(rendered(OutputFormat::Table, &[batch()]), expected[1..]);
    assert!(rendered(OutputFormat::Table, &[batch().slice(0, 1)]).ends_with("\n(1 row)\n"));
    assert!(rendered(OutputFormat::Table, &[]).ends_with("\n(0 rows)\n"));
}

#[test]
fn long_tables_stream() {
    let many: Vec<RecordBatch> = std::iter::repeat_n(batch(), 500).collect();
    let text = rendered(OutputFormat::Table, &many);
    assert_eq!(text.lines().count(), 2 + 1500 + 1);
}

#[test]
fn formats_are_known_by_name() {
    for format in OutputFormat::ALL {
        assert_eq!(format.to_string().to_uppercase().parse(), Ok(format));
    }
    let error = "xml".parse::<OutputFormat>().unwrap_err().to_string();
    assert_eq!(error, "'xml' is no output format: use table, json, ndjson, csv, ecs or eve");
}

#[test]
fn whatever_sql_gives_is_valid_json() {
    let flows = Flows::sample(0x77);
    let engine = flows.engine();
    for text in [
        "SELECT * FROM flows LIMIT 20",
        "SELECT array_agg(DISTINCT src_ip) AS peers, array_agg(tap) AS taps, avg(rtt_us), sum(bytes_o) FROM flows",
        "SELECT 0.0/0.0 AS nan, 1.0/0.0 AS inf, interval '1 hour' AS i, DATE '2026-01-01' AS d, NULL AS n, 1.5::DECIMAL(5,2) AS x",
        "SELECT date_trunc('hour', t_end) AS hour, count(*) FROM flows GROUP BY 1 ORDER BY 1",
        "DESCRIBE flows",
        "EXPLAIN SELECT 1",
    ] {
        let stream = wait(engine.sql(text)).unwrap_or_else(|e| panic!("{text}: {e}"));
        let mut out = Vec::new();
        let mut renderer = Renderer::new(OutputFormat::Json, &stream.schema(), &mut out).unwrap();
        for batch in wait(stream.collect_all()).unwrap() {
            renderer.write(&batch).unwrap();
        }
        let rows = renderer.finish().unwrap();
        let value: Value = serde_json::from_slice(&out).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(value.as_array().unwrap().len() as u64, rows, "{text}");
    }
}

#[test]
fn text_batches_have_addresses_as_text() {
    let text = text_batch(&batch()).unwrap();
    use arrow::array::AsArray;
    assert_eq!(text.column_by_name("src_ip").unwrap().as_string::<i32>().value(2), "2001:db8::1");
    assert_eq!(text.column_by_name("tap").unwrap().as_string::<i32>().value(0), "core");
    assert_eq!(text.column_by_name("n").unwrap().data_type(), &arrow::datatypes::DataType::Int64);
}

/// Flows as a terminal shows them.
fn laid_out(width: usize, columns: Vec<(&str, ArrayRef)>) -> String {
    let batch = RecordBatch::try_from_iter_with_nullable(columns.into_iter().map(|(n, c)| (n, c, true))).unwrap();
    let layout = TableLayout { width: Some(width), row_count: false };
    let mut out = Vec::new();
    let mut renderer = Renderer::with_layout(OutputFormat::Table, layout, &batch.schema(), &mut out).unwrap();
    renderer.write(&batch).unwrap();
    renderer.finish().unwrap();
    String::from_utf8(out).unwrap()
}

fn named_flows() -> Vec<(&'static str, ArrayRef)> {
    let v4 = common::addr("10.0.0.1").0;
    let v6 = common::addr("2001:db8::1").0;
    let ips = FixedSizeBinaryArray::try_from_sparse_iter_with_size([Some(v4), Some(v6)].into_iter(), 16).unwrap();
    let times = TimestampMicrosecondArray::from(vec![common::T0 + 1, common::T0 + 2]).with_timezone("UTC");
    let names = ["a-host-with-quite-a-long-name.example.com", "short.example"];
    let bars = ["\u{2588}\u{2588}\u{2588}", "\u{258c}"];
    vec![
        ("t_end", Arc::new(times)),
        ("src_ip", Arc::new(ips)),
        ("name", Arc::new(StringArray::from(names.to_vec()))),
        ("bytes", Arc::new(Int64Array::from(vec![Some(1_234_567), None]))),
        ("plot", Arc::new(StringArray::from(bars.to_vec()))),
    ]
}

#[test]
fn a_table_fits_its_terminal() {
    let lines = |width| laid_out(width, named_flows()).lines().map(str::to_owned).collect::<Vec<_>>();
    let widest = |width| lines(width).iter().map(|l| l.chars().count()).max().unwrap();
    assert_eq!(lines(200), laid_out(10_000, named_flows()).lines().collect::<Vec<_>>(), "nothing is cut that fits");
    assert_eq!(
        lines(80),
        [
            "t_end                 src_ip       name                              bytes  plot",
            "--------------------  -----------  ------------------------------  -------  ----",
            "2026-01-01T00:00:00Z  10.0.0.1     a-host-with-quite-a-long-name\u{2026}  1234567  \u{2588}\u{2588}\u{2588}",
            "2026-01-01T00:00:00Z  2001:db8::1  short.example                         -  \u{258c}",
        ]
    );
    for width in [56, 60, 70, 80, 100] {
        assert!(widest(width) <= width, "{width}: {:?}", lines(width));
    }
    assert!(!lines(56)[0].contains("plot"));
    // A record a block where even that is too much; what does not fit there goes on in the next line of the terminal.
    let blocks = lines(55);
    assert_eq!(
        blocks[..5],
        [
            "-[ row 1 ]------------------------------",
            "t_end   2026-01-01T00:00:00.000001Z",
            "src_ip  10.0.0.1",
            "name    a-host-with-quite-a-long-name.example.com",
            "bytes   1234567",
        ]
    );
    assert_eq!(blocks.len(), 10);
    // Bars keep their proportion.
    let long = |eighths: usize| "\u{2588}".repeat(eighths / 8);
    let bars = StringArray::from(vec![long(320), long(160), String::new()]);
    let numbers = Int64Array::from(vec![2, 1, 0]);
    assert_eq!(
        laid_out(26, vec![("n", Arc::new(numbers)), ("plot", Arc::new(bars))]),
        format!("n  plot\n-  {}\n2  {}\n1  {}\u{258c}\n0\n", "-".repeat(23), long(184), long(88))
    );
}

#[test]
fn columns_are_read_back() {
    use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
    let batch = text_batch(&batch()).unwrap();
    for format in [ColumnFormat::ArrowStream, ColumnFormat::ArrowFile, ColumnFormat::Parquet] {
        for count in [0, 3] {
            let mut writer = ColumnWriter::new(format, &batch.schema(), Vec::new()).unwrap();
            for _ in 0..count {
                writer.write(&batch).unwrap();
            }
            let bytes = writer.into_inner().unwrap();
            let cursor = || std::io::Cursor::new(bytes.clone());
            let (schema, rows): (_, Vec<RecordBatch>) = match format {
                ColumnFormat::ArrowStream => {
                    let reader = arrow::ipc::reader::StreamReader::try_new(cursor(), None).unwrap();
                    (reader.schema(), reader.map(Result::unwrap).collect())
                }
                ColumnFormat::ArrowFile => {
                    let reader = arrow::ipc::reader::FileReader::try_new(cursor(), None).unwrap();
                    (reader.schema(), reader.map(Result::unwrap).collect())
                }
                ColumnFormat::Parquet => {
                    let file = bytes::Bytes::from(bytes.clone());
                    let reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap();
                    (reader.schema().clone(), reader.build().unwrap().map(Result::unwrap).collect::<Vec<_>>())
                }
            };
            assert_eq!(schema, batch.schema(), "{format:?}");
            let rows = arrow::compute::concat_batches(&schema, &rows).unwrap();
            let right = arrow::compute::concat_batches(&schema, std::iter::repeat_n(&batch, count)).unwrap();
            // NaN is no other NaN.
            let known = |batch: &RecordBatch| batch.project(&[0, 1, 2, 3, 4, 6, 7, 8]).unwrap();
            assert_eq!(known(&rows), known(&right), "{format:?}");
        }
    }
}

#[test]
fn lists_of_addresses_are_text_too() {
    use arrow::array::AsArray;
    let flows = Flows::sample(0x78);
    let stream = wait(flows.engine().sql("SELECT array_agg(DISTINCT src_ip) AS peers FROM flows")).unwrap();
    let text = text_batch(&wait(stream.collect_all()).unwrap()[0]).unwrap();
    let peers = text.column(0).as_list::<i32>().value(0);
    let mut peers: Vec<&str> = peers.as_string::<i32>().iter().flatten().collect();
    peers.sort_unstable();
    let mut right = common::ADDRS.to_vec();
    right.sort_unstable();
    assert_eq!(peers, right);
}
