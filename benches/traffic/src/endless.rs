use crate::attack::{Attacker, Plan};
use crate::config::{Config, Sizes};
use crate::schedule::{Actor, Core, Meta, Schedule};
use crate::truth::Attack;

const SECOND: u64 = 1_000_000_000;
/// Attacks that [`Endless::attacks`] remembers.
const ATTACKS_MAX: usize = 64;
/// When the first attack begins, ns after the start: late enough for a baseline.
const FIRST_ATTACK_NS: u64 = 12 * SECOND;

/// A tap that never falls silent.
#[derive(Clone, Debug, PartialEq)]
pub struct EndlessConfig {
    /// Background packets a second of packet time, on average; clamped to 10..=100,000,000. Attacks come on top.
    pub packets_per_s: u64,
    /// Names the whole output.
    pub seed: u64,
    /// Time of the beginning, ns since 1970.
    pub start_ns: u64,
    /// Share of background flows that are IPv6.
    pub v6_ratio: f64,
    /// Share of background flows that are UDP.
    pub udp_ratio: f64,
    /// Share of TCP data segments that are sent twice.
    pub retransmit_ratio: f64,
    /// Packet lengths.
    pub sizes: Sizes,
    /// Whether an attack begins every 20 to 30 s: first a port scan, then a traffic spike, then any.
    pub attacks: bool,
}

impl Default for EndlessConfig {
    fn default() -> EndlessConfig {
        let Config { seed, start_ns, v6_ratio, udp_ratio, retransmit_ratio, sizes, .. } = Config::default();
        let packets_per_s = 20_000;
        EndlessConfig { packets_per_s, seed, start_ns, v6_ratio, udp_ratio, retransmit_ratio, sizes, attacks: true }
    }
}

/// Traffic without end, for demonstrations: flows arrive at a rate that keeps the nominal packet rate, times a slow
/// wobble (15 % either way over 10 minutes, 25 % over a day). The time stamps pace the caller, not the other way round.
/// It takes about three seconds of packet time to reach its rate. Memory is bounded by the flows in progress.
pub struct Endless {
    core: Core,
    schedule: Schedule,
    packets_per_s: u64,
    next_flow_ns: u64,
    next_attack_ns: u64,
}

impl Endless {
    /// A tap that begins at `config.start_ns`.
    pub fn new(config: EndlessConfig) -> Endless {
        let start_ns = config.start_ns.min(u64::MAX / 2);
        let core = Core::new(
            Config {
                seed: config.seed,
                start_ns,
                duration_ns: 60 * SECOND,
                v6_ratio: config.v6_ratio,
                udp_ratio: config.udp_ratio,
                retransmit_ratio: config.retransmit_ratio,
                sizes: config.sizes,
                attacks: config.attacks,
                truth: false,
                ..Config::default()
            },
            ATTACKS_MAX,
        );
        Endless {
            core,
            schedule: Schedule::default(),
            packets_per_s: config.packets_per_s.clamp(10, 100_000_000),
            next_flow_ns: start_ns,
            next_attack_ns: if config.attacks { start_ns.saturating_add(FIRST_ATTACK_NS) } else { u64::MAX },
        }
    }

    /// Writes the next frame to `buf`, replacing what is there.
    #[allow(clippy::should_implement_trait, reason = "lends into a buffer, which Iterator cannot")]
    pub fn next(&mut self, buf: &mut Vec<u8>) -> Meta {
        loop {
            let next_packet_ns = self.schedule.next_at().unwrap_or(u64::MAX);
            if self.next_flow_ns <= next_packet_ns {
                self.flow_begins();
            } else if self.next_attack_ns <= next_packet_ns {
                self.attack_begins();
            } else if let Some(meta) = self.schedule.step(&mut self.core, buf) {
                return meta;
            }
        }
    }

    /// The latest attacks begun, at most 64, earliest first.
    pub fn attacks(&self) -> &[Attack] {
        &self.core.truth.attacks
    }

    /// Attacks begun in all.
    pub fn attacks_begun(&self) -> u64 {
        self.core.attacks_begun()
    }

    /// Packets emitted.
    pub fn packets(&self) -> u64 {
        self.core.truth.packets
    }

    /// Bytes of the frames emitted.
    pub fn frame_bytes(&self) -> u64 {
        self.core.truth.frame_bytes
    }

    fn flow_begins(&mut self) {
        let core = &mut self.core;
        let packets = core.distributions.flow_packets(&mut core.rng);
        // Short enough that the rate follows the arrivals within seconds.
        let gap_ns = core.rng.pick(&[200_000, 1_000_000, 20_000_000, 200_000_000]).min(3 * SECOND / u64::from(packets));
        let flow = core.background(packets, gap_ns as u32);
        self.schedule.add(self.next_flow_ns, flow);

        let mean_ns = u128::from(core.distributions.flow_packets_sum()) * u128::from(SECOND)
            / (1024 * u128::from(self.packets_per_s));
        let level = wobble_q16(self.next_flow_ns);
        let wait = core.distributions.exponential(&mut core.rng, ((mean_ns << 16) / u128::from(level)) as u64);
        self.next_flow_ns = self.next_flow_ns.saturating_add(wait.max(1));
    }

    fn attack_begins(&mut self) {
        let begun = self.core.attacks_begun();
        let rng = &mut self.core.rng;
        let source = 0x66_0000 | (begun as u32 & 0xffff); // 10.102.x.y: a new source each time
        let rate = self.packets_per_s.min(1 << 30) as u32;
        let plan = match (begun, rng.below(8)) {
            (0, _) | (2.., 0..2) => Plan::PortScanVertical { source, ports: 1000 },
            (1, _) | (2.., 2..4) => Plan::ExfilSpike { source, segments: rate.saturating_mul(5), over_ns: 5 * SECOND },
            (_, 4) => Plan::PortScanHorizontal { source, hosts: 500 },
            (_, 5) => Plan::SynFlood { packets: rate.clamp(1_000, 20_000) },
            (_, 6) => Plan::DnsTunnel { source, queries: 200 },
            _ => Plan::IcmpSweep { source, hosts: 256 },
        };
        let wait = rng.between(20 * SECOND, 30 * SECOND);
        self.schedule.add(self.next_attack_ns, Actor::Attack(Attacker::new(plan)));
        self.next_attack_ns = self.next_attack_ns.saturating_add(wait);
    }
}

/// The level of background traffic at a time, around 1 in Q16: two triangle waves.
fn wobble_q16(at_ns: u64) -> u64 {
    let wave = |period: u64, percent: u64| {
        let half = period / 2;
        let phase = at_ns % period;
        let height = if phase < half { phase } else { period - phase }; // 0 to half and back
        (u128::from(height) * 2 * u128::from(percent) * 65_536 / (u128::from(half) * 100)) as u64
    };
    65_536 - 65_536 * 40 / 100 + wave(600 * SECOND, 15) + wave(86_400 * SECOND, 25)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wobble_stays_around_one() {
        let levels: Vec<u64> = (0..86_400).step_by(7).map(|s| wobble_q16(s * SECOND)).collect();
        let mean = levels.iter().sum::<u64>() / levels.len() as u64;
        assert!((65_000..66_100).contains(&mean), "{mean}");
        assert!(levels.iter().all(|level| (39_000..92_000).contains(level)));
    }
}
