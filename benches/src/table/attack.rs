//! A flood of spoofed flows against a table with room for far fewer, while real flows go on.

use super::packets::{ACK, SYN, SYN_ACK, packet, steady, tcp, v4};
use super::{Feeder, TableBenchError, Tally, account, ended, resident_bytes};
use flowtable::{EndReason, FlowRecord, FlowSink, FlowTable, FlowTableConfig};
use serde::Serialize;
use std::collections::HashMap;
use traffic::Rng;
use wire::{Addr, FlowKey, Nanos, PacketMeta, proto};

/// 10 million packets a second.
const GAP: Nanos = Nanos(100);
/// One packet in so many is of a real flow.
const REAL_EVERY: u64 = 100;
/// Memory beside the table that a run may come to take: batches, and what the allocator keeps.
const SLACK_BYTES: u64 = 8 << 20;
/// Whom the flood is aimed at: no other flow has this address.
const VICTIM: (u8, u32) = (203, 0x00_7107);

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct AttackPlan {
    /// Spoofed flows, one packet each, all distinct; every other one a SYN, the others UDP.
    pub spoofed: u64,
    /// Flows seen before the flood, which go on during it.
    pub real: u64,
    /// Flows the table may hold.
    pub flows_max: u32,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct AttackResult {
    /// Spoofed flows sent.
    pub spoofed: u64,
    /// Real flows.
    pub real: u64,
    /// Flows the table may hold.
    pub flows_max: u32,
    /// CPU time of a packet during the flood.
    pub ns_per_packet: f64,
    /// What the table says it may come to take.
    pub memory_bytes_max: u64,
    /// What it took.
    pub resident_bytes: u64,
    /// Real flows of which every packet was counted, under one id, and none evicted.
    pub real_intact: u64,
    /// Records of real flows that were evicted.
    pub real_evicted: u64,
    /// Records by reason, by name.
    pub records: Vec<(&'static str, u64)>,
    /// Flows begun.
    pub created: u64,
    /// Flows ended.
    pub ended: u64,
}

/// Keeps what it hears of real flows.
struct Witness {
    tally: Tally,
    victim: Addr,
    /// By client's address and port and protocol: packets counted, ids seen, records that say evicted.
    real: HashMap<(Addr, u16, u8), Seen>,
}

#[derive(Default)]
struct Seen {
    packets: u64,
    flow_id: Option<u64>,
    is_split: bool,
    evicted: u64,
}

impl FlowSink for Witness {
    #[inline]
    fn record(&mut self, record: &FlowRecord, text: &[u8]) {
        self.tally.record(record, text);
        if record.dst_ip != self.victim && record.src_ip != self.victim {
            self.see(record);
        }
    }
}

impl Witness {
    #[cold]
    fn see(&mut self, record: &FlowRecord) {
        // Real flows begin with a packet of their client.
        let seen = self.real.entry((record.src_ip, record.src_port, record.proto)).or_default();
        seen.packets += record.pkts_o + record.pkts_r;
        seen.is_split |= seen.flow_id.is_some_and(|id| id != record.flow_id);
        seen.flow_id = Some(record.flow_id);
        seen.evicted += u64::from(record.end_reason == EndReason::Evicted);
    }
}

/// Spoofed flow `number`: another source for each, in an order that looks random.
fn spoofed(number: u64) -> PacketMeta {
    // An odd factor makes a permutation of the 2^32 addresses; what is beyond them takes another port.
    let source = (number as u32).wrapping_mul(0x9e37_79b1).to_be_bytes();
    let mut address = v4(0, 0);
    address.0[12..].copy_from_slice(&source);
    let victim = v4(VICTIM.0, VICTIM.1);
    let port = 1024 + (number >> 32) as u16;
    let (protocol, is_tcp) = if number.is_multiple_of(2) { (proto::TCP, true) } else { (proto::UDP, false) };
    let source_is_lo = (address, port) <= (victim, 80);
    let (lo, hi, lo_port, hi_port) =
        if source_is_lo { (address, victim, port, 80) } else { (victim, address, 80, port) };
    let key = FlowKey { lo, hi, lo_port, hi_port, proto: protocol, ..FlowKey::default() };
    if is_tcp { tcp(key, source_is_lo, SYN, number as u32, 0) } else { packet(key, source_is_lo) }
}

/// Handshake of real flow `number`, or two datagrams, then two data packets, as [`steady`] numbers them.
fn opening(number: u64) -> Vec<PacketMeta> {
    let data = [steady(number, 0), steady(number, 1)];
    let key = data[0].key;
    if key.proto != proto::TCP {
        return data.to_vec();
    }
    let (seq, isn) = (data[0].seq, data[0].seq.wrapping_sub(1));
    let ack = PacketMeta { payload_len: 0, ..tcp(key, true, ACK, seq, seq) };
    vec![tcp(key, true, SYN, isn, 0), tcp(key, false, SYN_ACK, isn, seq), ack, data[0], data[1]]
}

/// Carries out a plan; the second part says what was wrong.
///
/// # Errors
/// The table cannot be made, or memory cannot be read.
pub fn measure(plan: &AttackPlan) -> Result<(AttackResult, Vec<String>), TableBenchError> {
    let real = plan.real.max(1);
    let mut witness = Witness { tally: Tally::default(), victim: v4(VICTIM.0, VICTIM.1), real: HashMap::new() };
    witness.real.reserve(2 * real as usize);
    let mut sent: Vec<u64> = vec![0; real as usize];
    let before = resident_bytes()?;
    let mut table = FlowTable::new(FlowTableConfig { flows_max: plan.flows_max, ..FlowTableConfig::default() })?;
    let memory_bytes_max = table.memory_bytes_max() as u64;
    let mut feeder = Feeder::new(GAP);
    for number in 0..real {
        let packets = opening(number);
        sent[number as usize] += packets.len() as u64;
        packets.into_iter().for_each(|packet| feeder.push(packet, &mut table, &mut witness));
    }
    feeder.flush(&mut table, &mut witness);
    feeder.restart();

    let mut nth: Vec<u32> = vec![2; real as usize];
    let mut rng = Rng::new(1);
    let mut resident = 0;
    let mut wrong = Vec::new();
    for number in 0..plan.spoofed {
        feeder.push(spoofed(number), &mut table, &mut witness);
        if number % REAL_EVERY == 0 {
            // In an order the table cannot know, each as often as the others.
            let turn = number / REAL_EVERY;
            let flow = (turn % real + rng.below(2)) % real;
            let packet = steady(flow, nth[flow as usize]);
            nth[flow as usize] += 1;
            sent[flow as usize] += 1;
            feeder.push(packet, &mut table, &mut witness);
        }
        if number % (plan.spoofed / 16).max(1) == 0 {
            resident = resident.max(resident_bytes()?.saturating_sub(before));
            account(&table.counts(), &witness.tally.by_reason, &mut wrong);
        }
    }
    feeder.flush(&mut table, &mut witness);
    let ns_per_packet = feeder.stopwatch.ns_a(feeder.packets);
    resident = resident.max(resident_bytes()?.saturating_sub(before));
    account(&table.counts(), &witness.tally.by_reason, &mut wrong);
    table.finish(feeder.clock, &mut witness);
    let counts = table.counts();
    account(&counts, &witness.tally.by_reason, &mut wrong);

    let is_intact = |number: u64| {
        let first = steady(number, 0);
        let seen = witness.real.get(&(first.key.lo, first.key.lo_port, first.key.proto));
        seen.is_some_and(|seen| seen.packets == sent[number as usize] && !seen.is_split && seen.evicted == 0)
    };
    let result = AttackResult {
        spoofed: plan.spoofed,
        real,
        flows_max: plan.flows_max,
        ns_per_packet,
        memory_bytes_max,
        resident_bytes: resident,
        real_intact: (0..real).filter(|number| is_intact(*number)).count() as u64,
        real_evicted: witness.real.values().map(|seen| seen.evicted).sum(),
        records: EndReason::ALL.iter().map(|r| (r.name(), witness.tally.by_reason[*r as usize - 1])).collect(),
        created: counts.created,
        ended: ended(&counts),
    };
    wrong.extend(judged(&result, counts.active));
    Ok((result, wrong.into_iter().map(|line| format!("attack: {line}")).collect()))
}

/// What an attack must not do.
fn judged(result: &AttackResult, active: u64) -> Vec<String> {
    let mut wrong = Vec::new();
    if result.real_intact != result.real {
        wrong.push(format!(
            "{} of {} real flows are intact; {} of their records say evicted",
            result.real_intact, result.real, result.real_evicted
        ));
    }
    if result.resident_bytes > result.memory_bytes_max + SLACK_BYTES {
        wrong.push(format!("{} bytes are resident, allowed are {}", result.resident_bytes, result.memory_bytes_max));
    }
    if active != 0 {
        wrong.push(format!("{active} flows are active after the end"));
    }
    wrong
}

/// As a table.
pub fn markdown(result: &AttackResult) -> String {
    let records: Vec<String> = result.records.iter().map(|(name, count)| format!("{name} {count}")).collect();
    format!(
        "| spoofed flows | room for | ns a packet | resident MB | MB at most | real flows intact | created | ended | records |\n\
         |---:|---:|---:|---:|---:|---:|---:|---:|---|\n| {} | {} | {:.1} | {:.0} | {:.0} | {} of {} | {} | {} | {} |\n",
        result.spoofed,
        result.flows_max,
        result.ns_per_packet,
        result.resident_bytes as f64 / 1e6,
        result.memory_bytes_max as f64 / 1e6,
        result.real_intact,
        result.real,
        result.created,
        result.ended,
        records.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn spoofed_flows_are_distinct_and_none_is_real() {
        let keys: HashSet<FlowKey> = (0..100_000).map(|n| spoofed(n).key).collect();
        assert_eq!(keys.len(), 100_000);
        assert!(keys.iter().all(|k| (k.lo, k.lo_port) <= (k.hi, k.hi_port)));
        assert!((0..1000).all(|n| !keys.contains(&steady(n, 0).key)));
    }

    #[test]
    fn without_pressure_everybody_is_intact() {
        let (result, wrong) = measure(&AttackPlan { spoofed: 20_000, real: 100, flows_max: 50_000 }).unwrap();
        assert!(wrong.is_empty(), "{wrong:?}");
        assert_eq!((result.real_intact, result.created, result.ended), (100, 20_100, 20_100));
    }

    #[test]
    fn losses_are_told() {
        let (good, _) = measure(&AttackPlan { spoofed: 1_000, real: 10, flows_max: 5_000 }).unwrap();
        assert!(judged(&good, 0).is_empty());
        let bad = AttackResult { real_intact: 9, resident_bytes: good.memory_bytes_max + SLACK_BYTES + 1, ..good };
        assert_eq!(judged(&bad, 1).len(), 3);
    }
}
