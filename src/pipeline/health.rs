//! A look at ourselves, tap by tap: what is lost, which flow tables are nearly full, whether flows have both their sides.

use super::shared::WorkerView;
use capture::ledger::QueueCounts;
use detect::{LossReading, TableReading};
use flowtable::{EndReason, FlowTableCounts};
use wire::Nanos;

/// Ended connections from which on their sides say something.
const CONNECTIONS_MIN: u64 = 1000;

/// Reads the counters of all workers of a live server.
pub(super) struct Health {
    taps: Vec<Tap>,
}

struct Tap {
    name: String,
    workers: Vec<WorkerView>,
    /// That its flows are one-sided has been said.
    told: bool,
}

impl Health {
    pub(super) fn new(tap_names: &[String], worker_taps: &[usize], views: &[WorkerView]) -> Health {
        let tap = |(number, name): (usize, &String)| {
            let of_tap = worker_taps.iter().zip(views).filter(|(of, _)| **of == number);
            Tap { name: name.clone(), workers: of_tap.map(|(_, view)| view.clone()).collect(), told: false }
        };
        Health { taps: tap_names.iter().enumerate().map(tap).collect() }
    }

    /// Packet time, the latest of all workers.
    pub(super) fn clock(&self) -> Nanos {
        let workers = self.taps.iter().flat_map(|tap| &tap.workers);
        workers.map(|view| view.gauges.clock()).max().unwrap_or_default()
    }

    /// What each tap has lost so far, cause by cause.
    pub(super) fn losses(&self) -> Vec<LossReading> {
        let mut readings = Vec::new();
        for tap in &self.taps {
            let counts: QueueCounts = tap.workers.iter().map(|view| view.ledger.snapshot()).sum();
            let packets = counts.rows().map(|row| (row, "packets", counts.offered));
            let records = counts.record_rows().map(|row| (row, "records", counts.records));
            let lost = packets.chain(records).filter(|(row, ..)| row.is_loss);
            readings.extend(lost.map(|(row, unit, offered)| LossReading {
                tap: tap.name.clone(),
                cause: row.name,
                hint: row.hint,
                unit,
                lost: row.count,
                offered,
            }));
        }
        readings
    }

    /// How full each tap's flow tables are.
    pub(super) fn tables(&self) -> Vec<TableReading> {
        let reading = |tap: &Tap| {
            let counts = tap.counts();
            let sum = |of: fn(&FlowTableCounts) -> u64| counts.iter().map(of).sum();
            TableReading {
                tap: tap.name.clone(),
                in_emergency: sum(|c| c.emergency.into()),
                emergencies: sum(|c| c.emergencies),
                active: sum(|c| c.active),
                capacity: tap.workers.iter().map(|view| view.gauges.flows_max()).sum(),
                evicted: sum(|c| c.exported[EndReason::Evicted as usize - 1]),
                evicted_answered: sum(|c| c.evicted_answered),
            }
        };
        self.taps.iter().map(reading).collect()
    }

    /// Says once for each tap that its connections are seen from one side only, when that is so.
    pub(super) fn warn_of_one_sided_flows(&mut self) {
        for tap in self.taps.iter_mut().filter(|tap| !tap.told) {
            if let Some(told) = one_sided(&tap.name, &tap.counts()) {
                tracing::warn!("{told}");
                tap.told = true;
            }
        }
    }
}

impl Tap {
    fn counts(&self) -> Vec<FlowTableCounts> {
        self.workers.iter().map(|view| view.gauges.counts()).collect()
    }
}

/// A sentence where more than half of a tap's ended TCP connections were seen from one side only, and there were enough of
/// them to tell. Of unanswered attempts one side is all there is: connections that acknowledged nothing do not count.
pub(crate) fn one_sided(tap: &str, counts: &[FlowTableCounts]) -> Option<String> {
    let one: u64 = counts.iter().map(|c| c.tcp_one_side).sum();
    let all = one + counts.iter().map(|c| c.tcp_both_sides).sum::<u64>();
    if all < CONNECTIONS_MIN || one * 2 <= all {
        return None;
    }
    let share = 100.0 * one as f64 / all as f64;
    Some(format!(
        "tap {tap} saw {share:.0} % of {all} TCP connections from one side only: RSS is not symmetric, or the tap delivers \
         one direction; `sharding: symmetric`, or both interfaces in one tap"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_sided_connections_are_told_when_there_are_enough_of_them() {
        let counts =
            |tcp_one_side, tcp_both_sides| FlowTableCounts { tcp_one_side, tcp_both_sides, ..Default::default() };
        assert_eq!(one_sided("core", &[counts(999, 0)]), None, "too few");
        assert_eq!(one_sided("core", &[counts(400, 100), counts(100, 400)]), None, "half is not more than half");
        let told = one_sided("core", &[counts(600, 100), counts(150, 150)]).unwrap();
        assert!(told.starts_with("tap core saw 75 % of 1000 TCP connections from one side only: RSS"), "{told}");
    }

    #[test]
    fn each_tap_reads_its_own_workers() {
        let views: [WorkerView; 3] = std::array::from_fn(|k| {
            let sources = std::sync::Arc::new(sketches::HyperLogLog::new(4).unwrap());
            let view = WorkerView {
                gauges: Default::default(),
                sources,
                ledger: Default::default(),
                desk: Default::default(),
            };
            view.gauges.capacity(100);
            let mut counts = FlowTableCounts { active: 10 + k as u64, emergency: k == 2, ..Default::default() };
            counts.exported[EndReason::Evicted as usize - 1] = 5;
            view.gauges.publish(&counts, Nanos(k as u64));
            view.ledger.worker.handoff_full.add(k as u64);
            view
        });
        let health = Health::new(&["a".to_owned(), "b".to_owned()], &[0, 1, 1], &views);
        let [a, b] = &health.tables()[..] else { panic!("two taps") };
        assert_eq!((a.tap.as_str(), a.active, a.capacity, a.evicted, a.in_emergency), ("a", 10, 100, 5, 0));
        assert_eq!((b.tap.as_str(), b.active, b.capacity, b.evicted, b.in_emergency), ("b", 23, 200, 10, 1));
        let handoff =
            |tap: &str| health.losses().iter().find(|l| l.tap == tap && l.cause == "handoff_full").unwrap().lost;
        assert_eq!((handoff("a"), handoff("b"), health.clock()), (0, 3, Nanos(2)));
    }
}
