//! What a packet costs, and a flow takes, with how many flows at once.

use super::packets::steady;
use super::{BATCH, Feeder, TableBenchError, Tally, resident_bytes};
use crate::harness::Spread;
use flowtable::{FlowTable, FlowTableConfig};
use serde::Serialize;
use std::fmt::Write;
use traffic::Rng;
use wire::Nanos;

/// 10 million packets a second: a whole run stays within every timeout.
const GAP: Nanos = Nanos(100);

/// What to measure.
#[derive(Clone, Debug)]
pub struct ScalePlan {
    /// Concurrent flows, one table each.
    pub flows: Vec<u64>,
    /// Packets of a round in each table, of flows drawn uniformly.
    pub packets: u64,
    /// Rounds; each table has a turn in every one.
    pub rounds: usize,
}

/// One table.
#[derive(Clone, Debug, Serialize)]
pub struct ScaleResult {
    /// Concurrent flows.
    pub flows: u64,
    /// CPU time of a packet.
    pub ns_per_packet: Spread,
    /// CPU time of a packet that begins a flow, while the table fills.
    pub ns_per_new_flow: f64,
    /// Memory that came with the flows, bytes a flow.
    pub resident_bytes_per_flow: f64,
    /// What the table says it may come to take, bytes for each flow it may hold.
    pub memory_bytes_max_per_flow: f64,
}

struct Runner {
    flows: u64,
    table: FlowTable,
    feeder: Feeder,
    /// Packets sent so far, by flow: what makes sequence numbers go on. Touched outside of what is timed.
    sent: Vec<u32>,
    rng: Rng,
    ns_per_new_flow: f64,
    resident_bytes: u64,
    memory_bytes_max_per_flow: f64,
}

impl Runner {
    /// A table with all its flows begun.
    fn filled(flows: u64) -> Result<Runner, TableBenchError> {
        // Full to three quarters: nothing is evicted, and nothing hastened.
        let flows_max = u32::try_from(flows + flows / 3 + 16).unwrap_or(u32::MAX);
        let mut sent = vec![1_u32; usize::try_from(flows).unwrap_or(usize::MAX)];
        sent.fill(1); // so that its memory is there before memory is compared
        let before = resident_bytes()?;
        let mut table = FlowTable::new(FlowTableConfig { flows_max, ..FlowTableConfig::default() })?;
        let (mut feeder, mut sink) = (Feeder::new(GAP), Tally::default());
        for number in 0..flows {
            feeder.push(steady(number, 0), &mut table, &mut sink);
        }
        feeder.flush(&mut table, &mut sink);
        let resident_bytes = resident_bytes()?.saturating_sub(before);
        let ns_per_new_flow = feeder.stopwatch.ns_a(flows);
        let memory_bytes_max_per_flow = table.memory_bytes_max() as f64 / f64::from(flows_max);
        let rng = Rng::new(flows);
        Ok(Runner { flows, table, feeder, sent, rng, ns_per_new_flow, resident_bytes, memory_bytes_max_per_flow })
    }

    /// ns a packet.
    fn round(&mut self, packets: u64) -> f64 {
        let mut sink = Tally::default();
        self.feeder.restart();
        for _ in 0..packets {
            let number = self.rng.below(self.flows);
            let sent = &mut self.sent[number as usize];
            let packet = steady(number, *sent);
            *sent += 1;
            self.feeder.push(packet, &mut self.table, &mut sink);
        }
        self.feeder.flush(&mut self.table, &mut sink);
        self.feeder.stopwatch.ns_a(packets)
    }
}

/// Carries out a plan; `progress` hears a line a step.
///
/// # Errors
/// A table cannot be made, or memory cannot be read.
pub fn measure(plan: &ScalePlan, progress: &dyn Fn(&str)) -> Result<(Vec<ScaleResult>, Vec<String>), TableBenchError> {
    let mut runners = Vec::new();
    for flows in &plan.flows {
        progress(&format!("scale: filling a table with {flows} flows"));
        runners.push(Runner::filled(*flows)?);
    }
    let mut rounds: Vec<Vec<f64>> = vec![Vec::new(); runners.len()];
    for round in 0..plan.rounds {
        progress(&format!("scale: round {} of {}", round + 1, plan.rounds));
        for (runner, ns) in runners.iter_mut().zip(&mut rounds) {
            runner.round((BATCH * 400) as u64); // the caches have another table's flows
            ns.push(runner.round(plan.packets));
        }
    }
    let mut wrong = Vec::new();
    let result = |(runner, ns): (Runner, Vec<f64>)| {
        let counts = runner.table.counts();
        if counts.created != runner.flows || counts.active != runner.flows {
            wrong.push(format!(
                "scale: {} flows were sent, {} created, {} are active",
                runner.flows, counts.created, counts.active
            ));
        }
        ScaleResult {
            flows: runner.flows,
            ns_per_packet: Spread::of(ns).unwrap_or(Spread { median: 0.0, min: 0.0, max: 0.0 }),
            ns_per_new_flow: runner.ns_per_new_flow,
            resident_bytes_per_flow: runner.resident_bytes as f64 / runner.flows as f64,
            memory_bytes_max_per_flow: runner.memory_bytes_max_per_flow,
        }
    };
    let results = runners.into_iter().zip(rounds).map(result).collect();
    Ok((results, wrong))
}

/// As a table; the last column compares with the row of 100,000 flows, where there is one.
pub fn markdown(results: &[ScaleResult]) -> String {
    let base = results.iter().find(|r| r.flows == 100_000).or(results.first()).map_or(1.0, |r| r.ns_per_packet.median);
    let mut out = String::from(
        "| flows at once | ns a packet | min | max | ns a new flow | resident bytes a flow | bytes at most, by its own count | ratio |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|\n",
    );
    for r in results {
        let ns = r.ns_per_packet;
        writeln!(
            out,
            "| {} | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.2} |",
            r.flows,
            ns.median,
            ns.min,
            ns.max,
            r.ns_per_new_flow,
            r.resident_bytes_per_flow,
            r.memory_bytes_max_per_flow,
            ns.median / base.max(1e-9)
        )
        .expect("writing to a String cannot fail");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_small_scale_is_exact_and_told() {
        let plan = ScalePlan { flows: vec![1_000, 5_000], packets: 20_000, rounds: 2 };
        let (results, wrong) = measure(&plan, &|_| {}).unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!(results.iter().map(|r| r.flows).collect::<Vec<_>>(), [1_000, 5_000]);
        assert!(results.iter().all(|r| r.ns_per_packet.median > 0.0 && r.memory_bytes_max_per_flow > 100.0));
        assert!(markdown(&results).lines().count() == 4);
    }
}
