//! Flows aimed at one bucket by somebody who knows the stable hash, against flows that are aimed at nothing. The table's own
//! hash is keyed per process, so the two must cost the same.

use super::packets::{key, packet};
use super::{Feeder, TableBenchError, Tally};
use crate::harness::Spread;
use flowtable::{FlowTable, FlowTableConfig};
use serde::Serialize;
use wire::{FlowKey, Nanos, TapId, proto};

const GAP: Nanos = Nanos(100);
/// How much more an aimed packet may cost, by the median: more than noise, and far less than a bucket that is searched.
const RATIO_MAX: f64 = 1.5;

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub struct AimPlan {
    /// Packets, each of a flow of its own.
    pub packets: u64,
    /// Rounds; each has an aimed and a random turn, in tables of their own.
    pub rounds: usize,
}

/// What came of it.
#[derive(Clone, Debug, Serialize)]
pub struct AimResult {
    /// Packets of a turn.
    pub packets: u64,
    /// CPU time of a packet whose flow has the same stable hash as all others.
    pub aimed_ns: Spread,
    /// CPU time of a packet of a flow as it comes.
    pub random_ns: Spread,
    /// Aimed over random, round by round.
    pub ratio: Spread,
}

/// A key with a given `FlowKey::stable_hash` whatever its number. The hash takes in the key word by word and mixes once more;
/// the last word (inner VLAN id, tap, tunnel id) is free, so it is chosen to undo the difference that the others made: more
/// than an attacker on the wire could do.
fn aimed(number: u64) -> FlowKey {
    let base = key(number, proto::UDP);
    // What the state is before the last word is not told, but its difference to that of another key shows in no other
    // way than through this word: run the same steps over the five words before it.
    let state = state_before_last_word(&base);
    let word = state ^ 0x5eed_0000_7a97_0001;
    FlowKey { vlan_inner: word as u16, tap: TapId((word >> 16) as u16), tunnel_id: (word >> 32) as u32, ..base }
}

/// As `FlowKey::stable_hash` has it after five of six words; a test holds the two together.
fn state_before_last_word(key: &FlowKey) -> u64 {
    let fold = |a: u64, b: u64| {
        let product = u128::from(a) * u128::from(b);
        (product as u64) ^ ((product >> 64) as u64) ^ a.rotate_left(23)
    };
    let words = key.words();
    words[..5].iter().fold(0x9e37_79b9_7f4a_7c15, |state, word| fold(state ^ word, 0xd6e8_feb8_6659_fd93))
}

/// ns a packet.
fn turn(packets: u64, key_of: impl Fn(u64) -> FlowKey) -> Result<f64, TableBenchError> {
    let flows_max = u32::try_from(packets + packets / 3 + 16).unwrap_or(u32::MAX);
    let mut table = FlowTable::new(FlowTableConfig { flows_max, ..FlowTableConfig::default() })?;
    let (mut feeder, mut sink) = (Feeder::new(GAP), Tally::default());
    for number in 0..packets {
        feeder.push(packet(key_of(number), true), &mut table, &mut sink);
    }
    feeder.flush(&mut table, &mut sink);
    Ok(feeder.stopwatch.ns_a(packets))
}

/// Carries out a plan; the second part says what was wrong.
///
/// # Errors
/// A table cannot be made.
pub fn measure(plan: &AimPlan) -> Result<(AimResult, Vec<String>), TableBenchError> {
    let (mut aimed_ns, mut random_ns) = (Vec::new(), Vec::new());
    let as_it_comes = |number| key(number, proto::UDP);
    for round in 0..plan.rounds {
        // Who comes first alternates.
        if round % 2 == 0 {
            aimed_ns.push(turn(plan.packets, aimed)?);
            random_ns.push(turn(plan.packets, as_it_comes)?);
        } else {
            random_ns.push(turn(plan.packets, as_it_comes)?);
            aimed_ns.push(turn(plan.packets, aimed)?);
        }
    }
    let none = Spread { median: 0.0, min: 0.0, max: 0.0 };
    let ratios = aimed_ns.iter().zip(&random_ns).map(|(aimed, random)| aimed / random.max(1e-9));
    let result = AimResult {
        packets: plan.packets,
        ratio: Spread::of(ratios).unwrap_or(none),
        aimed_ns: Spread::of(aimed_ns).unwrap_or(none),
        random_ns: Spread::of(random_ns).unwrap_or(none),
    };
    let mut wrong = Vec::new();
    if result.ratio.median > RATIO_MAX {
        let ratio = result.ratio.median;
        wrong.push(format!("aim: an aimed packet costs {ratio:.2} times a random one, allowed is {RATIO_MAX}"));
    }
    Ok((result, wrong))
}

/// As a table.
pub fn markdown(result: &AimResult) -> String {
    format!(
        "| packets, each of a new flow | ns aimed | ns random | ratio | min | max |\n|---:|---:|---:|---:|---:|---:|\n\
         | {} | {:.1} | {:.1} | {:.2} | {:.2} | {:.2} |\n",
        result.packets,
        result.aimed_ns.median,
        result.random_ns.median,
        result.ratio.median,
        result.ratio.min,
        result.ratio.max
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn aimed_keys_differ_and_have_one_stable_hash() {
        let keys: HashSet<FlowKey> = (0..10_000).map(aimed).collect();
        assert_eq!(keys.len(), 10_000);
        let hashes: HashSet<u64> = keys.iter().map(FlowKey::stable_hash).collect();
        assert_eq!(hashes.len(), 1, "the stable hash has changed: change state_before_last_word with it");
    }

    #[test]
    fn both_turns_are_measured() {
        let (result, _) = measure(&AimPlan { packets: 20_000, rounds: 2 }).unwrap();
        assert!(result.aimed_ns.min > 0.0 && result.random_ns.min > 0.0 && result.ratio.median > 0.0);
    }
}
