//! Alerts about ourselves: a cause of loss whose counter grows.

use crate::alert::{Evidence, round3};
use crate::{Alert, AlertState, Severity};
use serde_json::json;
use std::collections::BTreeMap;
use wire::Nanos;

/// A loss ends when its counter has stood still for this long.
const RESOLVE_AFTER: Nanos = Nanos(30_000_000_000);
/// Share of the packets offered from which on a loss is critical.
const CRITICAL_RATIO: f64 = 0.01;

/// One counter of the ledger, as it stands now. Counters only grow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LossReading {
    /// Name of the tap.
    pub tap: String,
    /// Name of the cause, as in the ledger.
    pub cause: &'static str,
    /// What an operator can do about it.
    pub hint: &'static str,
    /// What is lost: `packets` or `records`.
    pub unit: &'static str,
    /// How many were lost for this cause since the start.
    pub lost: u64,
    /// How many there were in all since the start.
    pub offered: u64,
}

/// Fires `loss/TAP/CAUSE` when a cause of loss grows, and resolves it when it has stood still for 30 s of packet time.
/// There are as many states as taps have causes, and both are fixed.
#[derive(Debug, Default)]
pub struct LossDetector {
    seen: BTreeMap<(String, &'static str), Seen>,
}

#[derive(Debug, Default)]
struct Seen {
    lost: u64,
    offered: u64,
    firing: Option<Firing>,
}

#[derive(Debug)]
struct Firing {
    started: Nanos,
    grew: Nanos,
    /// Counters before it began.
    lost_before: u64,
    offered_before: u64,
}

impl LossDetector {
    /// Takes a look at every cause of every tap. `now` is packet time.
    pub fn look(&mut self, now: Nanos, readings: &[LossReading], alerts: &mut Vec<Alert>) {
        for reading in readings {
            let seen = self.seen.entry((reading.tap.clone(), reading.cause)).or_default();
            if let Some(alert) = seen.look(now, reading) {
                alerts.push(alert);
            }
        }
    }
}

impl Seen {
    fn look(&mut self, now: Nanos, reading: &LossReading) -> Option<Alert> {
        let grew = reading.lost > self.lost;
        let (lost_before, offered_before) = (self.lost, self.offered);
        (self.lost, self.offered) = (reading.lost, reading.offered);
        match &mut self.firing {
            None if grew => {
                let firing = Firing { started: now, grew: now, lost_before, offered_before };
                let alert = firing.alert(now, reading, AlertState::Firing);
                self.firing = Some(firing);
                Some(alert)
            }
            Some(firing) if grew => {
                firing.grew = now;
                None
            }
            Some(firing) if now.0.saturating_sub(firing.grew.0) >= RESOLVE_AFTER.0 => {
                let alert = firing.alert(now, reading, AlertState::Resolved);
                self.firing = None;
                Some(alert)
            }
            _ => None,
        }
    }
}

impl Firing {
    fn alert(&self, now: Nanos, reading: &LossReading, state: AlertState) -> Alert {
        let LossReading { tap, cause, hint, unit, .. } = reading;
        let (lost, offered) = (reading.lost - self.lost_before, reading.offered.saturating_sub(self.offered_before));
        let ratio = lost as f64 / offered.max(lost).max(1) as f64;
        let share = 100.0 * ratio;
        let summary = match state {
            AlertState::Firing => format!("tap {tap} is losing {unit} ({cause}): {lost} so far, {share:.2} %; {hint}"),
            AlertState::Resolved => format!("tap {tap} lost {lost} {unit} ({cause}), {share:.2} %; no more for 30 s"),
        };
        let evidence: Evidence = [
            ("cause", json!(cause)),
            ("hint", json!(hint)),
            ("lost", json!(lost)),
            ("lost_total", json!(reading.lost)),
            ("offered", json!(offered)),
            ("unit", json!(unit)),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .collect();
        Alert {
            seq: 0,
            time: now,
            rule: "loss".to_owned(),
            state,
            key: format!("loss/{tap}/{cause}"),
            severity: if ratio >= CRITICAL_RATIO { Severity::Critical } else { Severity::Warning },
            score: round3(ratio),
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

    fn reading(cause: &'static str, lost: u64, offered: u64) -> LossReading {
        LossReading { tap: "core".into(), cause, hint: "more queues", unit: "packets", lost, offered }
    }

    #[test]
    fn a_growing_cause_fires_once_and_resolves_after_it_stood_still() {
        let mut detector = LossDetector::default();
        let mut alerts = Vec::new();
        detector.look(Nanos(0), &[reading("rx_ring_full", 0, 1000), reading("nic_missed", 0, 1000)], &mut alerts);
        assert!(alerts.is_empty());
        for second in 1..=3 {
            let readings = [reading("rx_ring_full", 5 * second, 1000 + 500 * second), reading("nic_missed", 0, 2000)];
            detector.look(Nanos(second * S), &readings, &mut alerts);
        }
        let [alert] = &alerts[..] else { panic!("{alerts:?}") };
        assert_eq!((alert.key.as_str(), alert.state), ("loss/core/rx_ring_full", AlertState::Firing));
        assert_eq!((&alert.evidence["lost"], &alert.evidence["offered"]), (&json!(5), &json!(500)));
        assert_eq!((alert.severity, alert.started), (Severity::Critical, Nanos(S)));
        assert!(alert.summary.contains("5 so far, 1.00 %; more queues"), "{}", alert.summary);

        alerts.clear();
        let still = reading("rx_ring_full", 15, 9000);
        detector.look(Nanos(32 * S), std::slice::from_ref(&still), &mut alerts);
        assert!(alerts.is_empty(), "29 s after it grew last");
        detector.look(Nanos(33 * S), std::slice::from_ref(&still), &mut alerts);
        let [alert] = &alerts[..] else { panic!("{alerts:?}") };
        assert_eq!((alert.state, &alert.evidence["lost"]), (AlertState::Resolved, &json!(15)));
        assert_eq!((alert.severity, alert.started), (Severity::Warning, Nanos(S)));

        alerts.clear();
        detector.look(Nanos(34 * S), &[reading("rx_ring_full", 16, 9001)], &mut alerts);
        assert_eq!(alerts.len(), 1, "it fires anew");
        assert_eq!(alerts[0].evidence["lost"], json!(1));
    }

    #[test]
    fn what_was_lost_before_the_first_look_counts() {
        let mut alerts = Vec::new();
        LossDetector::default().look(Nanos(S), &[reading("nic_missed", 3, 0)], &mut alerts);
        assert_eq!((alerts.len(), alerts[0].score), (1, 1.0));
    }
}
