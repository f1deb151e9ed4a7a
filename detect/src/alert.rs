use chrono::{DateTime, SecondsFormat, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use wire::{Addr, Nanos};

/// Figures by name: counts, samples, flow ids (as decimal text, since JSON readers round 64-bit numbers), the baseline.
pub type Evidence = BTreeMap<String, Value>;

/// Something that is wrong, or has stopped being wrong. JSON field names are those of this struct and stable; the crate's
/// README describes them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Alert {
    /// Position in the alert log, from 1 without gaps; 0 until logged.
    pub seq: u64,
    /// Packet time at which it was decided. JSON: RFC 3339, UTC, nine digits.
    #[serde(with = "rfc3339")]
    pub time: Nanos,
    /// What found it: `port_scan`, `traffic_spike`, `loss` or `flow_table`.
    pub rule: String,
    /// Beginning or end.
    pub state: AlertState,
    /// The same for the beginning and the end, and for each recurrence: `port_scan/TAP/SOURCE`, `traffic_spike/TAP`,
    /// `loss/TAP/CAUSE`, `flow_table/TAP`.
    pub key: String,
    /// How urgent.
    pub severity: Severity,
    /// How clear the case is, from 0 to 1, rounded to three digits.
    pub score: f64,
    /// Name of the tap it was seen at.
    pub tap: String,
    /// One sentence with the figures that matter.
    pub summary: String,
    /// Who did it, where that is one address.
    #[serde(with = "addr_text")]
    pub src_ip: Option<Addr>,
    /// To whom, where that is one address.
    #[serde(with = "addr_text")]
    pub dst_ip: Option<Addr>,
    /// Packet time at which what is reported began; the same at the beginning and at the end.
    #[serde(with = "rfc3339")]
    pub started: Nanos,
    /// What the summary was derived from.
    pub evidence: Evidence,
}

/// Whether an alert begins or ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum AlertState {
    /// The condition holds. Sent once, however long it lasts.
    Firing,
    /// The condition has been absent for the rule's `resolve_after`.
    Resolved,
}

/// How urgent an alert is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Good to know.
    Info,
    /// Look at it today.
    Warning,
    /// Look at it now.
    Critical,
}

impl AlertState {
    /// The name in JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            AlertState::Firing => "firing",
            AlertState::Resolved => "resolved",
        }
    }
}

impl Severity {
    /// The name in JSON and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Severity::Info => "info",
            Severity::Warning => "warning",
            Severity::Critical => "critical",
        }
    }
}

/// Rounds to three digits, so that text and number agree and JSON gives the same number back.
pub(crate) fn round3(x: f64) -> f64 {
    (x * 1_000.0).round() / 1_000.0
}

/// A rate for people: three digits and a unit.
pub(crate) fn rate_text(bytes_per_s: f64) -> String {
    let (value, unit) = match bytes_per_s {
        r if r >= 999.5e6 => (r / 1e9, "GB/s"),
        r if r >= 999.5e3 => (r / 1e6, "MB/s"),
        r if r >= 999.5 => (r / 1e3, "kB/s"),
        r => (r, "B/s"),
    };
    let digits = if value >= 99.95 || unit == "B/s" { 0 } else { 1 };
    format!("{value:.digits$} {unit}")
}

const SECOND: u64 = 1_000_000_000;

/// Packet time as RFC 3339 text in UTC with nine decimals, as it stands in the log.
pub fn format_time(time: Nanos) -> String {
    // Nanos ends in 2554, far inside chrono's range.
    let utc = DateTime::<Utc>::from_timestamp((time.0 / SECOND) as i64, (time.0 % SECOND) as u32).unwrap_or_default();
    utc.to_rfc3339_opts(SecondsFormat::Nanos, true)
}

/// `Nanos` as RFC 3339 text.
mod rfc3339 {
    use super::SECOND;
    use chrono::DateTime;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use wire::Nanos;

    pub(super) fn serialize<S: Serializer>(time: &Nanos, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&super::format_time(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Nanos, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bad =
            || D::Error::custom(format!("'{text}' is no time between 1970 and 2554 such as 2024-01-31T08:30:00.5Z"));
        let time = DateTime::parse_from_rfc3339(&text).map_err(|_| bad())?;
        let secs = u64::try_from(time.timestamp()).map_err(|_| bad())?;
        let nanos = secs.checked_mul(SECOND).and_then(|n| n.checked_add(u64::from(time.timestamp_subsec_nanos())));
        nanos.map(Nanos).ok_or_else(bad)
    }
}

/// An optional address as people write it.
mod addr_text {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use wire::Addr;

    pub(super) fn serialize<S: Serializer>(addr: &Option<Addr>, serializer: S) -> Result<S::Ok, S::Error> {
        match addr {
            Some(addr) => serializer.collect_str(addr),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Addr>, D::Error> {
        Option::<String>::deserialize(deserializer)?.map(|text| text.parse().map_err(D::Error::custom)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alert() -> Alert {
        Alert {
            seq: 7,
            time: Nanos(1_700_000_000_000_000_001),
            rule: "port_scan".into(),
            state: AlertState::Firing,
            key: "port_scan/tap0/10.0.0.1".into(),
            severity: Severity::Warning,
            score: 0.5,
            tap: "tap0".into(),
            summary: "words".into(),
            src_ip: Some(Addr::v4([10, 0, 0, 1])),
            dst_ip: None,
            started: Nanos::MAX,
            evidence: Evidence::from([("ports".into(), Value::from(vec![1, 2]))]),
        }
    }

    #[test]
    fn json_is_exactly_this_and_reads_back() {
        let json = serde_json::to_string(&alert()).unwrap();
        let expected = r#"{"seq":7,"time":"2023-11-14T22:13:20.000000001Z","rule":"port_scan","state":"firing","key":"port_scan/tap0/10.0.0.1","severity":"warning","score":0.5,"tap":"tap0","summary":"words","src_ip":"10.0.0.1","dst_ip":null,"started":"2554-07-21T23:34:33.709551615Z","evidence":{"ports":[1,2]}}"#;
        assert_eq!(json, expected);
        assert_eq!(serde_json::from_str::<Alert>(&json).unwrap(), alert());
    }

    #[test]
    fn times_and_addresses_that_are_none_are_named() {
        let json = serde_json::to_string(&alert()).unwrap();
        for (from, to, expected) in [
            ("2023-", "1969-", "is no time between 1970 and 2554"),
            ("2554-", "2555-", "is no time between 1970 and 2554"),
            ("\"10.0.0.1\"", "\"10.0.0\"", "'10.0.0' is not an IPv4 or IPv6 address"),
        ] {
            let error = serde_json::from_str::<Alert>(&json.replace(from, to)).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
    }

    #[test]
    fn rates_read_well() {
        for (rate, text) in [
            (0.0, "0 B/s"),
            (999.4, "999 B/s"),
            (1_000.0, "1.0 kB/s"),
            (2_149_000.0, "2.1 MB/s"),
            (250e9, "250 GB/s"),
            (999.6e3, "1.0 MB/s"),
        ] {
            assert_eq!(rate_text(rate), text);
        }
    }
}
