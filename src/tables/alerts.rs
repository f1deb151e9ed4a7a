//! Table `alerts`: the alert log.

use super::{text, time};
use arrow::array::{
    ArrayRef, FixedSizeBinaryBuilder, Float64Array, RecordBatch, StringArray, TimestampMicrosecondArray, UInt64Array,
};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use detect::{Alert, AlertLog};
use query::{LiveRows, LiveTable, LiveTableError};
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};
use wire::{Addr, Nanos};

/// Alerts read at a time. Each time is a pass over the log, which is bounded (`storage.alert_log`).
const PAGE: usize = 16_384;

/// Reads the log of a data folder, whoever writes it.
pub(super) struct AlertsTable {
    dir: PathBuf,
}

impl AlertsTable {
    pub(super) fn new(dir: &Path) -> AlertsTable {
        AlertsTable { dir: dir.to_owned() }
    }
}

fn schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| {
        let ip = storage::flow_schema().field_with_name("src_ip").map(|f| f.metadata().clone()).unwrap_or_default();
        let address = |name| Field::new(name, DataType::FixedSizeBinary(16), true).with_metadata(ip.clone());
        Arc::new(Schema::new(vec![
            Field::new("seq", DataType::UInt64, false),
            time("time"),
            text("rule", false),
            text("state", false),
            text("key", false),
            text("severity", false),
            Field::new("score", DataType::Float64, false),
            text("tap", false),
            text("summary", false),
            address("src_ip"),
            address("dst_ip"),
            time("started"),
            text("evidence", false),
        ]))
    });
    SCHEMA.clone()
}

impl LiveTable for AlertsTable {
    fn name(&self) -> &'static str {
        "alerts"
    }

    fn schema(&self) -> SchemaRef {
        schema()
    }

    fn read(&self, rows: &mut LiveRows) -> Result<(), LiveTableError> {
        let mut after = 0;
        loop {
            let (alerts, _) =
                AlertLog::read(&self.dir, after, PAGE).map_err(|e| LiveTableError::Failed(Box::new(e)))?;
            let Some(last) = alerts.last() else { return Ok(()) };
            after = last.seq;
            rows.push(&batch(&alerts).map_err(|e| LiveTableError::Failed(e.into()))?)?;
        }
    }
}

fn batch(alerts: &[Alert]) -> anyhow::Result<RecordBatch> {
    let texts = |of: fn(&Alert) -> &str| -> ArrayRef { Arc::new(StringArray::from_iter_values(alerts.iter().map(of))) };
    let times = |of: fn(&Alert) -> Nanos| -> ArrayRef {
        let micros = TimestampMicrosecondArray::from_iter_values(alerts.iter().map(|a| of(a).as_micros() as i64));
        Arc::new(micros.with_timezone("UTC"))
    };
    let evidence = alerts.iter().map(|a| serde_json::to_string(&a.evidence)).collect::<Result<Vec<_>, _>>()?;
    let columns: Vec<ArrayRef> = vec![
        Arc::new(UInt64Array::from_iter_values(alerts.iter().map(|a| a.seq))),
        times(|a| a.time),
        texts(|a| &a.rule),
        texts(|a| a.state.name()),
        texts(|a| &a.key),
        texts(|a| a.severity.name()),
        Arc::new(Float64Array::from_iter_values(alerts.iter().map(|a| a.score))),
        texts(|a| &a.tap),
        texts(|a| &a.summary),
        addresses(alerts, |a| a.src_ip)?,
        addresses(alerts, |a| a.dst_ip)?,
        times(|a| a.started),
        Arc::new(StringArray::from_iter_values(evidence)),
    ];
    Ok(RecordBatch::try_new(schema(), columns)?)
}

fn addresses(alerts: &[Alert], of: fn(&Alert) -> Option<Addr>) -> anyhow::Result<ArrayRef> {
    let mut column = FixedSizeBinaryBuilder::with_capacity(alerts.len(), 16);
    for alert in alerts {
        match of(alert) {
            Some(address) => column.append_value(address.0)?,
            None => column.append_null(),
        }
    }
    Ok(Arc::new(column.finish()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{Array, AsArray};
    use arrow::datatypes::TimestampMicrosecondType;
    use detect::{AlertState, Evidence, Severity};

    #[test]
    fn a_row_says_what_the_alert_says() {
        let alert = Alert {
            seq: 7,
            time: Nanos(1_700_000_000_000_000_999),
            rule: "port_scan".into(),
            state: AlertState::Firing,
            key: "port_scan/core/10.0.0.1".into(),
            severity: Severity::Warning,
            score: 0.5,
            tap: "core".into(),
            summary: "words".into(),
            src_ip: Some(Addr::v4([10, 0, 0, 1])),
            dst_ip: None,
            started: Nanos(1_000),
            evidence: Evidence::from([("ports".into(), vec![1, 2].into())]),
        };
        let row = batch(&[alert]).unwrap();
        let text = |name: &str| row.column_by_name(name).unwrap().as_string::<i32>().value(0).to_owned();
        let words = ["rule", "state", "key", "severity", "tap", "summary", "evidence"].map(text);
        let expected =
            ["port_scan", "firing", "port_scan/core/10.0.0.1", "warning", "core", "words", r#"{"ports":[1,2]}"#];
        assert_eq!(words, expected);
        let time = |name: &str| row.column_by_name(name).unwrap().as_primitive::<TimestampMicrosecondType>().value(0);
        assert_eq!((time("time"), time("started")), (1_700_000_000_000_000, 1));
        let address = |name: &str| row.column_by_name(name).unwrap().as_fixed_size_binary().clone();
        assert_eq!(address("src_ip").value(0), Addr::v4([10, 0, 0, 1]).0);
        assert!(address("dst_ip").is_null(0));
    }
}
