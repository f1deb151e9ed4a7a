use crate::v1;
use detect::{Alert, AlertState, Severity};
use prost_types::value::Kind;
use prost_types::{ListValue, Struct, Timestamp, Value};
use wire::Nanos;

/// An alert as it travels.
pub(crate) fn alert(alert: &Alert) -> v1::Alert {
    v1::Alert {
        seq: alert.seq,
        time: Some(timestamp(alert.time)),
        rule: alert.rule.clone(),
        state: match alert.state {
            AlertState::Firing => v1::AlertState::Firing,
            AlertState::Resolved => v1::AlertState::Resolved,
        }
        .into(),
        key: alert.key.clone(),
        severity: match alert.severity {
            Severity::Info => v1::Severity::Info,
            Severity::Warning => v1::Severity::Warning,
            Severity::Critical => v1::Severity::Critical,
        }
        .into(),
        score: alert.score,
        tap: alert.tap.clone(),
        summary: alert.summary.clone(),
        src_ip: alert.src_ip.map(|addr| addr.to_string()),
        dst_ip: alert.dst_ip.map(|addr| addr.to_string()),
        started: Some(timestamp(alert.started)),
        evidence: Some(Struct { fields: alert.evidence.iter().map(|(k, v)| (k.clone(), value(v))).collect() }),
    }
}

/// Packet time, to the nanosecond.
pub(crate) fn timestamp(time: Nanos) -> Timestamp {
    // Nanos ends in 2554, which is 1.8e10 seconds.
    Timestamp { seconds: (time.0 / 1_000_000_000) as i64, nanos: (time.0 % 1_000_000_000) as i32 }
}

/// An alert as it was before it travelled; `None` if the message holds values no alert has.
pub fn alert_from_message(message: v1::Alert) -> Option<Alert> {
    let state = match message.state() {
        v1::AlertState::Firing => AlertState::Firing,
        v1::AlertState::Resolved => AlertState::Resolved,
        v1::AlertState::Unspecified => return None,
    };
    let severity = match message.severity() {
        v1::Severity::Info => Severity::Info,
        v1::Severity::Warning => Severity::Warning,
        v1::Severity::Critical => Severity::Critical,
        v1::Severity::Unspecified => return None,
    };
    let evidence = message.evidence.unwrap_or_default().fields;
    Some(Alert {
        seq: message.seq,
        time: nanos(&message.time?)?,
        rule: message.rule,
        state,
        key: message.key,
        severity,
        score: message.score,
        tap: message.tap,
        summary: message.summary,
        src_ip: message.src_ip.map(|ip| ip.parse().ok()).map_or(Some(None), |ip| ip.map(Some))?,
        dst_ip: message.dst_ip.map(|ip| ip.parse().ok()).map_or(Some(None), |ip| ip.map(Some))?,
        started: nanos(&message.started?)?,
        evidence: evidence.into_iter().map(|(k, v)| (k, json(v))).collect(),
    })
}

fn nanos(time: &Timestamp) -> Option<Nanos> {
    let seconds = u64::try_from(time.seconds).ok()?;
    Some(Nanos(seconds.checked_mul(1_000_000_000)?.checked_add(u64::try_from(time.nanos).ok()?)?))
}

/// The inverse of [`value`]; protobuf knows doubles only, so whole numbers become integers again.
fn json(value: Value) -> serde_json::Value {
    match value.kind {
        None | Some(Kind::NullValue(_)) => serde_json::Value::Null,
        Some(Kind::BoolValue(b)) => b.into(),
        Some(Kind::NumberValue(n)) if n.fract() == 0.0 && n.abs() < 9e15 => (n as i64).into(),
        Some(Kind::NumberValue(n)) => n.into(),
        Some(Kind::StringValue(s)) => s.into(),
        Some(Kind::ListValue(l)) => l.values.into_iter().map(json).collect(),
        Some(Kind::StructValue(s)) => {
            serde_json::Value::Object(s.fields.into_iter().map(|(k, v)| (k, json(v))).collect())
        }
    }
}

/// JSON as protobuf has it: the depth is what `serde_json` let through when the alert was read or made.
fn value(json: &serde_json::Value) -> Value {
    let kind = match json {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(b) => Kind::BoolValue(*b),
        serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or(f64::NAN)),
        serde_json::Value::String(s) => Kind::StringValue(s.clone()),
        serde_json::Value::Array(a) => Kind::ListValue(ListValue { values: a.iter().map(value).collect() }),
        serde_json::Value::Object(o) => {
            Kind::StructValue(Struct { fields: o.iter().map(|(k, v)| (k.clone(), value(v))).collect() })
        }
    };
    Value { kind: Some(kind) }
}
