//! New flows all the time, each over after two packets, that expire by timeouts: what a second of packet time costs.

use super::packets::{RST_ACK, SYN, key, packet, tcp, with_data};
use super::{Feeder, TableBenchError, Tally, account};
use flowtable::{EndReason, FlowTable, FlowTableConfig, Timeouts};
use serde::Serialize;
use wire::{Nanos, PacketMeta, proto};

/// Answers come this long after their question.
const ANSWER_AFTER_NS: u64 = 10_000_000;
/// Packets of a flow.
const PACKETS_A_FLOW: u64 = 2;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct ChurnPlan {
    /// New flows a second of packet time.
    pub flows_per_s: u64,
    /// Seconds of packet time that are timed; before them, flows come up to the number that stays.
    pub seconds: u64,
    /// How long a flow stays after its last packet, seconds.
    pub idle_s: u64,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct ChurnResult {
    /// New flows a second of packet time.
    pub flows_per_s: u64,
    /// CPU seconds for each second of packet time: below 1 it is sustained on one core.
    pub cpu_s_per_packet_s: f64,
    /// CPU time of a flow, from first packet to record.
    pub ns_per_flow: f64,
    /// Flows at once, at the end.
    pub active: u64,
    /// Flows that timed out while it was timed.
    pub expired: u64,
}

/// Half of them are UDP, a question and its answer; half are TCP, a SYN and its refusal.
fn first(number: u64) -> PacketMeta {
    match number.is_multiple_of(2) {
        true => with_data(packet(key(number, proto::UDP), true)),
        false => tcp(key(number, proto::TCP), true, SYN, 1000, 0),
    }
}

fn answer(number: u64) -> PacketMeta {
    match number.is_multiple_of(2) {
        true => with_data(packet(key(number, proto::UDP), false)),
        false => tcp(key(number, proto::TCP), false, RST_ACK, 0, 1001),
    }
}

/// Carries out a plan; the second part says what was wrong.
///
/// # Errors
/// The table cannot be made.
pub fn measure(plan: &ChurnPlan) -> Result<(ChurnResult, Vec<String>), TableBenchError> {
    let stay = Nanos::from_secs(plan.idle_s);
    let timeouts = Timeouts { tcp_idle: stay, udp_idle: stay, closed: stay, ..Timeouts::default() };
    // Twice what stays, so that the cap plays no part.
    let flows_max = u32::try_from(2 * plan.flows_per_s * (plan.idle_s + 1)).unwrap_or(u32::MAX);
    let mut table = FlowTable::new(FlowTableConfig { flows_max, timeouts, ..FlowTableConfig::default() })?;
    let gap = Nanos(1_000_000_000 / (plan.flows_per_s * PACKETS_A_FLOW).max(1));
    let (mut feeder, mut sink) = (Feeder::new(gap), Tally::default());
    let lag = ANSWER_AFTER_NS / (gap.0 * PACKETS_A_FLOW).max(1);
    let mut number = 0;
    let mut run = |seconds: u64, feeder: &mut Feeder, table: &mut FlowTable, sink: &mut Tally| {
        for _ in 0..seconds * plan.flows_per_s {
            feeder.push(first(number), table, sink);
            if number >= lag {
                feeder.push(answer(number - lag), table, sink);
            }
            number += 1;
        }
    };
    // A second more than the timeout: the sweep takes up to that to come round.
    run(plan.idle_s + 2, &mut feeder, &mut table, &mut sink);
    let expired = |table: &FlowTable| {
        let exported = table.counts().exported;
        exported[EndReason::Idle as usize - 1] + exported[EndReason::Closed as usize - 1]
    };
    let expired_before = expired(&table);
    feeder.restart();
    run(plan.seconds, &mut feeder, &mut table, &mut sink);
    feeder.flush(&mut table, &mut sink);
    let counts = table.counts();
    let expired = expired(&table) - expired_before;

    let mut wrong = Vec::new();
    account(&counts, &sink.by_reason, &mut wrong);
    let evicted = counts.exported[EndReason::Evicted as usize - 1];
    if counts.created != number || evicted > 0 {
        wrong.push(format!("{number} flows were sent, {} created, {evicted} evicted", counts.created));
    }
    // As many must go as come, or it is not sustained; a sweep may take a second to come round.
    let most = (plan.idle_s + 2) * plan.flows_per_s;
    if counts.active > most || expired + plan.flows_per_s < plan.seconds * plan.flows_per_s {
        wrong.push(format!(
            "{expired} flows expired while {} began; {} are active, allowed are {most}",
            plan.seconds * plan.flows_per_s,
            counts.active
        ));
    }
    let flows = plan.seconds * plan.flows_per_s;
    let result = ChurnResult {
        flows_per_s: plan.flows_per_s,
        cpu_s_per_packet_s: feeder.stopwatch.used.as_secs_f64() / plan.seconds.max(1) as f64,
        ns_per_flow: feeder.stopwatch.ns_a(flows),
        active: counts.active,
        expired,
    };
    Ok((result, wrong.into_iter().map(|line| format!("churn: {line}")).collect()))
}

/// As a table.
pub fn markdown(result: &ChurnResult) -> String {
    format!(
        "| new flows a second | CPU s for each s of packet time | ns a flow of {PACKETS_A_FLOW} packets | flows at once | expired |\n\
         |---:|---:|---:|---:|---:|\n| {} | {:.3} | {:.0} | {} | {} |\n",
        result.flows_per_s, result.cpu_s_per_packet_s, result.ns_per_flow, result.active, result.expired
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_flows_go_as_come() {
        let plan = ChurnPlan { flows_per_s: 5_000, seconds: 5, idle_s: 2 };
        let (result, wrong) = measure(&plan).unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert!((20_000..=30_000).contains(&result.expired), "{result:?}");
        assert!((10_000..=20_000).contains(&result.active), "{result:?}");
        assert!(result.cpu_s_per_packet_s > 0.0);
    }
}
