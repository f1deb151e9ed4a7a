//! Alerts about ourselves: flow tables that are nearly full.

use crate::alert::Evidence;
use crate::{Alert, AlertState, Severity};
use serde_json::json;
use std::collections::BTreeMap;
use wire::Nanos;

/// The emergency is over when no table of the tap has been in that mode for this long: a flood that comes in waves is
/// one alert, not many.
const RESOLVE_AFTER: Nanos = Nanos(30_000_000_000);

/// The flow tables of one tap, added up, as they stand now. All but `in_emergency` and `active` only grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TableReading {
    /// Name of the tap.
    pub tap: String,
    /// Workers whose table is in emergency mode now.
    pub in_emergency: u64,
    /// Times a table went into emergency mode.
    pub emergencies: u64,
    /// Flows held now.
    pub active: u64,
    /// Most flows that can be held.
    pub capacity: u64,
    /// Flows that were put out because a table was full.
    pub evicted: u64,
    /// Those of them that both sides had sent in.
    pub evicted_answered: u64,
}

/// Fires `flow_table/TAP` when a flow table of the tap goes into emergency mode, and resolves it when none has been in
/// it for 30 s of packet time. As many states as taps.
#[derive(Debug, Default)]
pub struct EmergencyDetector {
    seen: BTreeMap<String, Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    emergencies: u64,
    evicted: u64,
    evicted_answered: u64,
    firing: Option<Firing>,
}

#[derive(Debug)]
struct Firing {
    started: Nanos,
    /// When a table was last seen in emergency mode.
    held: Nanos,
    /// Counters before it began.
    evicted_before: u64,
    evicted_answered_before: u64,
}

impl EmergencyDetector {
    /// Takes a look at the tables of every tap. `now` is packet time.
    pub fn look(&mut self, now: Nanos, readings: &[TableReading], alerts: &mut Vec<Alert>) {
        for reading in readings {
            let seen = self.seen.entry(reading.tap.clone()).or_default();
            alerts.extend(seen.look(now, reading));
        }
    }
}

impl Seen {
    fn look(&mut self, now: Nanos, reading: &TableReading) -> Option<Alert> {
        // A mode that came and went between two looks counts too.
        let holds = reading.in_emergency > 0 || reading.emergencies > self.emergencies;
        let before = (self.evicted, self.evicted_answered);
        (self.emergencies, self.evicted, self.evicted_answered) =
            (reading.emergencies, reading.evicted, reading.evicted_answered);
        match &mut self.firing {
            None if holds => {
                let (evicted_before, evicted_answered_before) = before;
                let firing = Firing { started: now, held: now, evicted_before, evicted_answered_before };
                let alert = firing.alert(now, reading, AlertState::Firing);
                self.firing = Some(firing);
                Some(alert)
            }
            Some(firing) if holds => {
                firing.held = now;
                None
            }
            Some(firing) if now.0.saturating_sub(firing.held.0) >= RESOLVE_AFTER.0 => {
                let alert = firing.alert(now, reading, AlertState::Resolved);
                self.firing = None;
                Some(alert)
            }
            _ => None,
        }
    }
}

impl Firing {
    fn alert(&self, now: Nanos, reading: &TableReading, state: AlertState) -> Alert {
        let TableReading { tap, in_emergency, emergencies, active, capacity, .. } = reading;
        let evicted = reading.evicted - self.evicted_before;
        let answered = reading.evicted_answered - self.evicted_answered_before;
        let summary = match state {
            AlertState::Firing => format!(
                "the flow table of tap {tap} is nearly full ({active} of {capacity} flows): flows that nobody answers are \
                 kept 2 s, others a quarter of their time; a flood, or flowtable.flows_max is too small"
            ),
            AlertState::Resolved => format!(
                "the flow table of tap {tap} has room again; {evicted} flows were put out meanwhile, {answered} of them \
                 answered"
            ),
        };
        let evidence: Evidence = [
            ("active", json!(active)),
            ("capacity", json!(capacity)),
            ("emergencies_total", json!(emergencies)),
            ("evicted", json!(evicted)),
            ("evicted_answered", json!(answered)),
            ("tables_in_emergency", json!(in_emergency)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        Alert {
            seq: 0,
            time: now,
            rule: "flow_table".to_owned(),
            state,
            key: format!("flow_table/{tap}"),
            // Without answered flows nothing was cut that anybody would miss.
            severity: if answered > 0 { Severity::Critical } else { Severity::Warning },
            score: 1.0,
            tap: tap.clone(),
            summary,
            src_ip: None,
            dst_ip: None,
            started: self.started,
            evidence,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: u64 = 1_000_000_000;

    fn reading(in_emergency: u64, emergencies: u64, evicted: u64, evicted_answered: u64) -> TableReading {
        let (active, capacity) = (940, 1000);
        TableReading { tap: "core".into(), in_emergency, emergencies, active, capacity, evicted, evicted_answered }
    }

    /// The alerts of looks, one a second.
    fn looks(detector: &mut EmergencyDetector, from: u64, readings: &[TableReading]) -> Vec<Alert> {
        let mut alerts = Vec::new();
        for (second, reading) in (from..).zip(readings) {
            detector.look(Nanos(second * S), std::slice::from_ref(reading), &mut alerts);
        }
        alerts
    }

    #[test]
    fn an_emergency_fires_once_and_resolves_when_it_has_stayed_away() {
        let mut detector = EmergencyDetector::default();
        assert!(looks(&mut detector, 0, &[reading(0, 0, 0, 0)]).is_empty());
        let alerts = looks(&mut detector, 1, &[reading(1, 1, 0, 0), reading(2, 2, 50, 0), reading(0, 2, 90, 0)]);
        let [alert] = &alerts[..] else { panic!("{alerts:?}") };
        assert_eq!((alert.key.as_str(), alert.state), ("flow_table/core", AlertState::Firing));
        assert!(alert.summary.contains("940 of 1000") && alert.severity == Severity::Warning, "{alert:?}");

        // It was last seen in second 2: a wave in second 20 prolongs it, though no look fell into it.
        let waves = [reading(0, 2, 90, 0), reading(0, 3, 95, 4)];
        let mut quiet = vec![waves[0].clone(); 17];
        quiet.extend(vec![waves[1].clone(); 30]);
        assert_eq!(looks(&mut detector, 4, &quiet), []);
        let alerts = looks(&mut detector, 51, &[waves[1].clone()]);
        let [alert] = &alerts[..] else { panic!("{alerts:?}") };
        assert_eq!((alert.state, alert.started, alert.severity), (AlertState::Resolved, Nanos(S), Severity::Critical));
        assert_eq!((&alert.evidence["evicted"], &alert.evidence["evicted_answered"]), (&json!(95), &json!(4)));
        assert_eq!(looks(&mut detector, 52, &[reading(1, 4, 95, 4)]).len(), 1, "it fires anew");
    }

    #[test]
    fn taps_have_alerts_of_their_own() {
        let mut alerts = Vec::new();
        let other = TableReading { tap: "edge".into(), ..reading(1, 1, 0, 0) };
        EmergencyDetector::default().look(Nanos(S), &[reading(0, 0, 0, 0), other], &mut alerts);
        assert_eq!(alerts.iter().map(|a| a.key.as_str()).collect::<Vec<_>>(), ["flow_table/edge"]);
    }
}
