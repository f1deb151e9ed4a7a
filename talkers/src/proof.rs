//! The query over flows that proves an estimate.

use crate::field::{KeySpec, View};
use crate::task::Task;
use crate::{FieldValue, KeyFields, Metric};
use std::fmt::Write;
use wire::Nanos;

/// Which flows an estimate is proved from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flows {
    /// Those that are stored.
    Stored,
    /// Those in progress as well, which only the server that captures them has.
    StoredAndActive,
}

/// What an estimate is of.
#[derive(Clone, Copy, Debug)]
pub struct Estimand<'a> {
    /// Of packets or of flows.
    pub view: View,
    /// What was counted.
    pub metric: Metric,
    /// The key.
    pub by: &'a KeySpec,
    /// What was told apart, of distinct elements.
    pub elements: &'a KeySpec,
    /// Where it was seen, if that is one tap.
    pub tap: Option<&'a str>,
}

impl<'a> Estimand<'a> {
    /// What a task says by a key.
    pub fn of(task: &'a Task, by: &'a KeySpec, tap: Option<&'a str>) -> Estimand<'a> {
        Estimand { view: task.view(), metric: task.metric(), by, elements: &task.elements, tap }
    }

    /// A SQL query whose rows are the key's fields, named as they are, and `exact`. `keys` restricts it, if there are any.
    /// `times`: when the window began and ended; without them it is all there is.
    ///
    /// Of flows that begin it is exactly what was counted. Of packets it counts whole flows that overlap the window; of flows that
    /// end those whose last packet lies in the window, while the sketch has them when they are over, a timeout later. `None` where
    /// flows do not tell: of keys with a prefix, and of what has no key.
    pub fn proof(&self, keys: &[KeyFields], times: Option<(Nanos, Nanos)>, flows: Flows) -> Option<String> {
        if self.by.is_empty() || self.by.has_prefix() || self.elements.has_prefix() {
            return None;
        }
        let names = self.by.names();
        let mut columns = names.join(", ");
        for name in self.elements.names().into_iter().filter(|name| !names.contains(name)) {
            let _ = write!(columns, ", {name}");
        }
        let (what, exact, begins) = match self.metric {
            Metric::Distinct => (format!("DISTINCT {columns}"), "count(*)", true),
            Metric::Bytes => (format!("{columns}, bytes"), "sum(bytes)", false),
            Metric::Packets => (format!("{columns}, packets"), "sum(packets)", false),
            Metric::Flows => (columns, "count(*)", true),
            Metric::Entropy | Metric::Quantile => return None,
        };
        let (sides, when): (&[(&str, Option<&str>)], _) = match self.view {
            // Each side of a flow sends, if it does.
            View::Packets => (&[(FORTH, Some("pkts_o > 0")), (BACK, Some("pkts_r > 0"))], When::Overlaps),
            View::Flows => (&[(WHOLE, None)], if begins { When::Begins } else { When::Ends }),
        };
        let mut when = when.sql(times);
        if let Some(tap) = self.tap {
            when.push(format!("tap = '{}'", tap.replace('\'', "''")));
        }
        let tables: &[&str] = match (flows, self.view, begins) {
            // What counts at a flow's end has not happened to those in progress.
            (Flows::Stored, ..) | (_, View::Flows, false) => &["flows"],
            (Flows::StoredAndActive, ..) => &["flows", "active_flows"],
        };
        let parts: Vec<String> = tables
            .iter()
            .flat_map(|table| sides.iter().map(move |side| (table, side)))
            .map(|(table, (side, has_sent))| {
                let only: Vec<&str> = when.iter().map(String::as_str).chain(*has_sent).collect();
                let only = if only.is_empty() { String::new() } else { format!(" WHERE {}", only.join(" AND ")) };
                format!("SELECT {side} FROM {table}{only}")
            })
            .collect();
        let only = match keys.is_empty() {
            true => String::new(),
            false => format!(" WHERE {}", keys.iter().map(condition).collect::<Vec<_>>().join(" OR ")),
        };
        let (names, parts) = (names.join(", "), parts.join(" UNION ALL "));
        Some(format!("SELECT {names}, {exact} AS exact FROM (SELECT {what} FROM ({parts}){only}) GROUP BY {names}"))
    }
}

/// What the originator of a flow sent.
const FORTH: &str =
    "src_ip, dst_ip, src_port, dst_port, proto, coalesce(vlan, 0) AS vlan, bytes_o AS bytes, pkts_o AS packets";
/// What its responder sent.
const BACK: &str = "dst_ip, src_ip, dst_port, src_port, proto, coalesce(vlan, 0), bytes_r, pkts_r";
/// A flow.
const WHOLE: &str = "src_ip AS originator, dst_ip AS responder, src_port AS originator_port, dst_port AS responder_port, proto, \
                     coalesce(vlan, 0) AS vlan, bytes_o + bytes_r AS bytes, pkts_o + pkts_r AS packets";

/// Which flows belong to a window.
enum When {
    Overlaps,
    Begins,
    Ends,
}

impl When {
    fn sql(&self, times: Option<(Nanos, Nanos)>) -> Vec<String> {
        let mut all = match self {
            When::Begins => vec!["part = 0".to_owned()],
            When::Overlaps | When::Ends => Vec::new(),
        };
        if let Some((start, end)) = times {
            let time = |time: Nanos| format!("to_timestamp_micros({})", time.0 / 1_000);
            let (start, end) = (time(start), time(end));
            all.push(match self {
                When::Overlaps => format!("t_end >= {start} AND t_start < {end}"),
                When::Begins => format!("t_start >= {start} AND t_start < {end}"),
                When::Ends => format!("t_end >= {start} AND t_end < {end}"),
            });
        }
        all
    }
}

fn condition(key: &KeyFields) -> String {
    let of = |(name, value): (&str, Option<FieldValue>)| match value? {
        FieldValue::Address(address) => Some(format!("{name} = '{address}'")),
        FieldValue::Number(number) => Some(format!("{name} = {number}")),
    };
    let all: Vec<String> = key.values().into_iter().filter_map(of).collect();
    format!("({})", all.join(" AND "))
}
