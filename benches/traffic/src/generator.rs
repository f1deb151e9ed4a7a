use crate::attack::{Attacker, Plan};
use crate::config::Config;
use crate::fixed::zipf_weight_q32;
use crate::rng::{Chance, Rng};
use crate::schedule::{Actor, Core, Meta, Schedule};
use crate::truth::Truth;

const SECOND: u64 = 1_000_000_000;

/// A finite capture, one packet at a time.
///
/// Memory: 16 bytes for each flow to come, about 240 for each in progress, and the truth if it is asked for; never
/// per packet.
pub struct Generator {
    core: Core,
    schedule: Schedule,
    /// Background flows to come, latest first.
    planned: Vec<Planned>,
}

/// A background flow to come.
#[derive(Clone, Copy)]
struct Planned {
    start_ns: u64,
    packets: u32,
    gap_ns: u32,
}

impl Generator {
    /// Plans the capture that `config` describes; costs some 100 ns a flow.
    pub fn new(config: Config) -> Generator {
        let mut config = config;
        config.duration_ns = config.duration_ns.max(1_000_000);
        config.start_ns = config.start_ns.min(u64::MAX / 2);
        let attacks = if config.attacks { attacks(&config) } else { Vec::new() };
        let attack_packets: u64 = attacks.iter().map(|(_, plan)| plan.packets()).sum();
        let (attacks, attack_packets) =
            if attack_packets <= config.packets / 2 { (attacks, attack_packets) } else { (Vec::new(), 0) };

        let mut core = Core::new(config, usize::MAX);
        let planned = plan_background(&core.config.clone(), core.config.packets - attack_packets, &mut core.rng);
        let mut schedule = Schedule::default();
        for (after, plan) in attacks {
            schedule.add(core.config.start_ns + after, Actor::Attack(Attacker::new(plan)));
        }
        Generator { core, schedule, planned }
    }

    /// Writes the next frame to `buf`, replacing what is there; `None` after the last.
    #[allow(clippy::should_implement_trait, reason = "lends into a buffer, which Iterator cannot")]
    pub fn next(&mut self, buf: &mut Vec<u8>) -> Option<Meta> {
        while let Some(planned) = self.planned.last()
            && self.schedule.next_at().is_none_or(|at| planned.start_ns <= at)
        {
            let Planned { start_ns, packets, gap_ns } = *planned;
            self.planned.pop();
            let flow = self.core.background(packets, gap_ns);
            self.schedule.add(start_ns, flow);
        }
        self.schedule.step(&mut self.core, buf)
    }

    /// What was emitted so far.
    pub fn truth(&self) -> &Truth {
        &self.core.truth
    }

    /// What was emitted, without a copy.
    pub fn into_truth(self) -> Truth {
        self.core.truth
    }

    /// What is generated, after clamping.
    pub fn config(&self) -> &Config {
        &self.core.config
    }
}

/// One attack of each kind and when it begins, ns after the start.
fn attacks(config: &Config) -> Vec<(u64, Plan)> {
    let duration = config.duration_ns;
    let percent = |share: u64| (u128::from(duration) * u128::from(share) / 100) as u64;
    let large = config.packets >= 200_000;
    let sessions = (duration.saturating_sub(4 * SECOND)).div_ceil(10 * SECOND);
    let exchanges = (duration.saturating_sub(2 * SECOND)).div_ceil(5 * SECOND);
    let flood = (config.packets / 20).clamp(1, 20_000) as u32;
    let all = [
        (SECOND / 10, Plan::LongLived { exchanges: exchanges.min(1 << 20) as u32 }),
        (2 * SECOND, Plan::Beaconing { source: 0x0a0b0d, sessions: sessions.min(1 << 20) as u32 }),
        (percent(10), Plan::PortScanVertical { source: 0x666601, ports: 1000 }),
        (percent(18), Plan::PortScanHorizontal { source: 0x666602, hosts: 500 }),
        (percent(30), Plan::SynFlood { packets: flood }),
        (percent(40), Plan::Superspreader { source: 0x666603, destinations: 800 }),
        (
            percent(50),
            Plan::ExfilSpike { source: 0x0a0b0c, segments: if large { 10_000 } else { 500 }, over_ns: 10 * SECOND },
        ),
        (percent(62), Plan::DnsTunnel { source: 0x0a0b0e, queries: 600 }),
        (percent(75), Plan::IcmpSweep { source: 0x666604, hosts: 256 }),
    ];
    all.into_iter().filter(|(_, plan)| plan.packets() > 0).collect()
}

/// Flows whose sizes follow Zipf's law and add up to `packets`, latest start first.
fn plan_background(config: &Config, packets: u64, rng: &mut Rng) -> Vec<Planned> {
    let flows = config.flows.clamp(1, packets.clamp(1, u64::from(u32::MAX)));
    if packets == 0 {
        return Vec::new();
    }
    let exponent = Chance::from_ratio(config.zipf_exponent / 4.0).expected_in(4 << 32);
    let weight_sum: u128 = (1..=flows).map(|rank| u128::from(zipf_weight_q32(rank, exponent))).sum();
    let size = |rank| {
        let share = u128::from(packets) * u128::from(zipf_weight_q32(rank, exponent)) / weight_sum;
        (share as u64).clamp(1, u64::from(u32::MAX))
    };
    let mut sizes: Vec<u32> = (1..=flows).map(|rank| size(rank) as u32).collect();
    settle(&mut sizes, packets);

    let span = config.duration_ns / 20 * 19;
    let retransmit = Chance::from_ratio(config.retransmit_ratio);
    let mut planned: Vec<Planned> = sizes
        .into_iter()
        .map(|packets| {
            let n = u64::from(packets);
            let gap_ns = (span / 5 * 4 / n).min(rng.pick(&[200_000, 1_000_000, 20_000_000, 200_000_000]));
            // Mean length, with room for waits: a round trip or two, and 200 ms for each retransmission at most.
            let waits = (retransmit.expected_in(n) * 200_000_000).min(config.duration_ns / 10);
            let length = n * gap_ns * 5 / 4 + waits + 100_000_000;
            let start_ns = config.start_ns + rng.below(span.saturating_sub(length).max(span / 20));
            Planned { start_ns, packets, gap_ns: gap_ns as u32 }
        })
        .collect();
    planned.sort_by_key(|p| std::cmp::Reverse(p.start_ns)); // stable: equal starts keep their order
    planned
}

/// Changes `sizes`, largest first, so that they add up to `total`, which is at least their number.
fn settle(sizes: &mut [u32], total: u64) {
    let sum: u64 = sizes.iter().map(|n| u64::from(*n)).sum();
    if sum <= total {
        let (each, rest) = ((total - sum) / sizes.len() as u64, (total - sum) % sizes.len() as u64);
        for (i, size) in sizes.iter_mut().enumerate() {
            *size = size.saturating_add(each as u32 + u32::from((i as u64) < rest));
        }
        return;
    }
    let mut excess = sum - total;
    for size in sizes {
        let cut = excess.min(u64::from(*size) - 1);
        *size -= cut as u32;
        excess -= cut;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_settled_exactly() {
        for (sizes, total) in [(vec![5, 1, 1], 7), (vec![5, 1, 1], 3), (vec![9, 4, 1], 5), (vec![3, 2, 1], 106)] {
            let mut settled: Vec<u32> = sizes.clone();
            settle(&mut settled, total);
            assert_eq!(settled.iter().map(|n| u64::from(*n)).sum::<u64>(), total, "{sizes:?}");
            assert!(settled.iter().all(|n| *n >= 1));
        }
    }
}
