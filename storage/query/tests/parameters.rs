//! Statements with parameters: bound values against the same literals in the text, and what planning tells before.

mod common;

use arrow::array::{
    ArrayRef, BinaryArray, BooleanArray, Date32Array, DictionaryArray, FixedSizeBinaryArray, Float64Array, Int64Array,
    ListArray, NullArray, RecordBatch, StringArray, TimestampMicrosecondArray, UInt8Array, UInt64Array,
};
use arrow::datatypes::{DataType, Int32Type};
use common::{Flows, HOUR, T0, addr, csv, sql, wait};
use query::{Engine, ParameterError, Parameters, QueryError};
use std::sync::Arc;

fn bound(values: &[ArrayRef]) -> Result<Parameters, ParameterError> {
    let named = values.iter().enumerate().map(|(at, value)| (at.to_string(), value.clone()));
    Parameters::from_batch(&RecordBatch::try_from_iter_with_nullable(named.map(|(n, v)| (n, v, true))).unwrap())
}

fn text(text: &str) -> ArrayRef {
    Arc::new(StringArray::from(vec![text]))
}

fn number(number: i64) -> ArrayRef {
    Arc::new(Int64Array::from(vec![number]))
}

fn answer(engine: &Engine, statement: &str, values: &[ArrayRef]) -> Vec<String> {
    let stream = wait(engine.sql_with(statement, bound(values).unwrap()));
    csv(stream.unwrap_or_else(|e| panic!("{statement}: {e}"))).split_off(1)
}

#[test]
fn a_value_is_what_the_literal_would_be() {
    let flows = Flows::sample(1);
    let engine = flows.engine();
    let id = flows.rows[7].flow_id;
    let ip = addr("10.0.0.1").0;
    let time = Arc::new(TimestampMicrosecondArray::from(vec![T0 + HOUR]).with_timezone("UTC")) as ArrayRef;
    let choice: DictionaryArray<Int32Type> = [Some("core")].into_iter().collect();
    for (statement, values, literal) in [
        ("src_ip = ?", vec![text("10.0.0.1")], "src_ip = '10.0.0.1'"),
        ("src_ip = ?", vec![Arc::new(BinaryArray::from_vec(vec![&ip])) as ArrayRef], "src_ip = '10.0.0.1'"),
        (
            "dst_ip IN (?, ?)",
            vec![
                Arc::new(FixedSizeBinaryArray::try_from_iter([ip].into_iter()).unwrap()) as ArrayRef,
                text("2001:db8::1"),
            ],
            "dst_ip IN ('10.0.0.1', '2001:db8::1')",
        ),
        ("host($1) AND port($2, 53)", vec![text("10.0.0.1"), number(443)], "host('10.0.0.1') AND port(443, 53)"),
        ("in_cidr(src_ip, $1) OR net($1)", vec![text("10.0.0.0/8")], "net('10.0.0.0/8')"),
        ("proto = ?", vec![Arc::new(UInt8Array::from(vec![6])) as ArrayRef], "proto = 6"),
        ("flow_id = ?", vec![Arc::new(UInt64Array::from(vec![id])) as ArrayRef], &format!("flow_id = {id}")),
        ("bytes_o - ? > 0", vec![number(-5)], "bytes_o - -5 > 0"),
        ("bytes_o > ?", vec![Arc::new(Float64Array::from(vec![50_000.5])) as ArrayRef], "bytes_o > 50000.5"),
        ("tap = ?", vec![Arc::new(choice) as ArrayRef], "tap = 'core'"),
        ("t_end < ?", vec![time], "t_end < '2026-01-01T01:00:00Z'"),
        ("t_end >= ?", vec![Arc::new(Date32Array::from(vec![20_454])) as ArrayRef], "t_end >= '2026-01-01T00:00:00Z'"),
        ("(rtt_us IS NULL) = ?", vec![Arc::new(BooleanArray::from(vec![true])) as ArrayRef], "rtt_us IS NULL"),
        ("rtt_us = ?", vec![Arc::new(NullArray::new(1)) as ArrayRef], "rtt_us = NULL"),
        ("tap = ? OR tap = ''' OR 1 = 1 --'", vec![text("' OR 1 = 1 --")], "1 = 0"),
    ] {
        let count = |condition: &str| format!("SELECT count(*), sum(bytes_o) FROM flows WHERE {condition}");
        let expected = sql(&engine, &count(literal));
        assert_eq!(answer(&engine, &count(statement), &values), expected, "{statement}");
    }
    let all = sql(&engine, "SELECT flow_id FROM flows ORDER BY t_end, flow_id LIMIT 3");
    assert_eq!(answer(&engine, "SELECT flow_id FROM flows ORDER BY t_end, flow_id LIMIT ?", &[number(3)]), all);
    assert_eq!(answer(&engine, "SELECT '?' AS q, $2, $1", &[number(1), text("it's")]), ["?,it's,1"]);
}

#[test]
fn what_does_not_fit_is_said() {
    let flows = Flows::sample(2);
    let engine = flows.engine();
    let error = |statement: &str, values: &[ArrayRef]| match wait(engine.sql_with(statement, bound(values).unwrap())) {
        Err(QueryError::Parameters(error)) => error.to_string(),
        other => panic!("{statement}: {other:?}"),
    };
    assert_eq!(error("SELECT ?, ?", &[number(1)]), "parameters of the statement: 2, values given: 1");
    assert_eq!(error("SELECT 1", &[number(1)]), "parameters of the statement: 0, values given: 1");
    assert!(error("SELECT ?, $1", &[number(1)]).contains("both kinds"));
    assert!(error("SELECT $1, $3", &[number(1), number(2)]).contains("number them from $1"));
    assert!(error("SELECT $name", &[number(1)]).contains("$name has a name"));

    let two = RecordBatch::try_from_iter([("1", Arc::new(Int64Array::from(vec![1, 2])) as ArrayRef)]).unwrap();
    assert_eq!(Parameters::from_batch(&two), Err(ParameterError::Rows { rows: 2 }));
    let list = ListArray::from_iter_primitive::<arrow::datatypes::Int64Type, _, _>([Some([Some(1)])]);
    assert!(matches!(bound(&[Arc::new(list)]), Err(ParameterError::Type { number: 1, .. })));
    assert!(matches!(bound(&[Arc::new(BinaryArray::from_vec(vec![b"abc"]))]), Err(ParameterError::Type { .. })));
    assert!(matches!(bound(&[Arc::new(Float64Array::from(vec![f64::NAN]))]), Err(ParameterError::Type { .. })));
    let long = text(&"x".repeat(query::TEXT_BYTES_MAX + 1));
    assert!(matches!(bound(&[long]), Err(ParameterError::TooLong { .. })));

    // The place of a wrong value is that of its parameter.
    let wrong = wait(engine.sql_with("SELECT * FROM flows WHERE src_ip = ?", bound(&[text("10.0.0")]).unwrap()));
    assert!(wrong.unwrap_err().to_string().starts_with("'10.0.0' is not an IPv4 or IPv6 address"));
}

#[test]
fn a_statement_tells_its_columns_and_parameters() {
    let flows = Flows::sample(3);
    let engine = flows.engine();
    let types = |schema: &arrow::datatypes::Schema| -> Vec<DataType> {
        schema.fields().iter().map(|field| field.data_type().clone()).collect()
    };
    let ip = DataType::FixedSizeBinary(16);
    for (statement, columns, parameters) in [
        ("SELECT proto FROM flows", vec![DataType::UInt8], vec![]),
        ("SELECT src_ip FROM flows WHERE dst_ip = ? AND bytes_o > ?", vec![ip.clone()], vec![ip, DataType::Int64]),
        ("SELECT count(*) AS n FROM flows WHERE in_cidr(src_ip, ?)", vec![DataType::Int64], vec![DataType::Utf8]),
        ("SELECT count(*) AS n FROM flows WHERE net($1)", vec![DataType::Int64], vec![DataType::Utf8]),
    ] {
        let prepared = wait(engine.prepare(statement)).unwrap_or_else(|e| panic!("{statement}: {e}"));
        assert_eq!((types(&prepared.columns), types(&prepared.parameters)), (columns, parameters), "{statement}");
    }
    for wrong in ["SELECT srcip FROM flows", "DROP TABLE flows", "SELECT 1; SELECT 2", ""] {
        let told = wait(engine.prepare(wrong)).unwrap_err().to_string();
        assert_eq!(told, wait(engine.sql(wrong)).unwrap_err().to_string());
    }
    let told = wait(engine.prepare("SELECT srcip FROM flows WHERE proto = ?")).unwrap_err().to_string();
    assert!(told.contains("did you mean `src_ip`?"), "{told}");

    for statement in ["SELECT * FROM flows", "SELECT tap, max(src_ip) FROM flows GROUP BY tap", "EXPLAIN SELECT 1"] {
        let told = wait(engine.describe(statement, Parameters::default())).unwrap();
        assert_eq!(told, wait(engine.sql(statement)).unwrap().schema(), "{statement}");
    }
}

#[test]
fn tables_are_listed_with_all_their_columns() {
    let flows = Flows::sample(4);
    let tables = wait(flows.engine().tables()).unwrap();
    let names: Vec<&str> = tables.iter().map(|table| table.name.as_str()).collect();
    assert_eq!(names, ["dns", "flows", "talkers"]);
    for table in tables {
        let all = wait(flows.engine().describe(&format!("SELECT * FROM {}", table.name), Parameters::default()));
        let columns = |schema: &arrow::datatypes::Schema| -> Vec<String> {
            schema.fields().iter().map(|field| field.name().clone()).collect()
        };
        assert_eq!(columns(&table.columns), columns(&all.unwrap()));
    }
}
