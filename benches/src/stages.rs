//! What each stage of a replay adds to the CPU time of a packet: the pipeline runs in this process, over one capture, cut
//! off after the first stage, the second, and so on; what one run takes more than the one before it is its last stage's.
//!
//! A stage that is measured alone would have its data in the cache, and its neighbours out of it.

use crate::capture::pipeline::StageHandler;
use crate::capture::{CaptureBenchError, cpu, file};
use crate::harness::Spread;
use ::capture::{FileOptions, FileSource, Source, worker};
use serde::Serialize;
use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use wire::TapId;

/// A stage, and the pipeline that ends with it.
struct Stage {
    name: &'static str,
    /// The pipeline, with a folder for what it stores.
    upto: fn(&Path) -> Result<StageHandler, CaptureBenchError>,
}

/// In the order that a packet meets them. A new stage is a new line.
const STAGES: [Stage; 6] = [
    Stage { name: "read", upto: |_| Ok(StageHandler::bare()) },
    Stage { name: "decode", upto: |_| Ok(StageHandler::decode()) },
    Stage { name: "flow table", upto: |_| StageHandler::table() },
    Stage { name: "detectors, record ring", upto: |_| StageHandler::replay_to_ring(false) },
    Stage { name: "sketches", upto: |_| StageHandler::replay_to_ring(true) },
    Stage { name: "columns, log, Parquet", upto: StageHandler::replay_to_store },
];

/// What a stage adds.
#[derive(Clone, Debug, Serialize)]
pub struct StageShare {
    /// Which.
    pub name: &'static str,
    /// CPU time of a packet from reading up to this stage, all threads, ns.
    pub upto_ns: Spread,
    /// What this stage adds, ns: differences of runs of one round.
    pub added_ns: Spread,
    /// Of the whole, 0 to 1.
    pub share: f64,
}

/// Runs every prefix `rounds` times, in turn. `packets`: as many as the capture must have, where known.
///
/// # Errors
/// The capture cannot be read, a stage cannot be made, or one saw another number of packets than the others.
pub fn measure(
    capture: &Path,
    packets: Option<u64>,
    rounds: usize,
    scratch: &Path,
    progress: &dyn Fn(&str),
) -> Result<Vec<StageShare>, CaptureBenchError> {
    let mut expected = packets;
    let mut ns: Vec<Vec<f64>> = vec![Vec::with_capacity(rounds); STAGES.len()];
    for round in 0..rounds {
        for n in 0..STAGES.len() {
            // Every round begins with another.
            let at = (n + round) % STAGES.len();
            progress(&format!("round {} of {rounds}: up to {}", round + 1, STAGES[at].name));
            let (seen, ns_a_packet) = run(&STAGES[at], capture, scratch)?;
            if *expected.get_or_insert(seen) != seen {
                let message = format!("saw {seen} packets of {}", expected.unwrap_or_default());
                return Err(CaptureBenchError::Stage { stage: STAGES[at].name, message });
            }
            ns[at].push(ns_a_packet);
        }
    }
    Ok(shares(&ns))
}

/// Packets, and CPU time of one in ns.
fn run(stage: &Stage, capture: &Path, scratch: &Path) -> Result<(u64, f64), CaptureBenchError> {
    let folder = scratch.join("stage");
    file("make", &folder, fs::create_dir(&folder))?;
    let mut handler = (stage.upto)(&folder)?;
    let mut source = FileSource::open(capture, TapId(0), &FileOptions::default())?;
    let start = cpu::of_this_process();
    worker::run(&mut source, handler.handler(), &AtomicBool::new(false))?;
    handler.finish()?;
    let used = cpu::of_this_process() - start;
    file("remove", &folder, fs::remove_dir_all(&folder))?;
    let packets = source.counts().delivered;
    Ok((packets, used.as_nanos() as f64 / packets.max(1) as f64))
}

/// By stage, then by round.
fn shares(ns: &[Vec<f64>]) -> Vec<StageShare> {
    let none = Spread { median: 0.0, min: 0.0, max: 0.0 };
    let whole = ns.last().and_then(|ns| Spread::of(ns.iter().copied())).map_or(1.0, |whole| whole.median);
    let share = |(at, stage): (usize, &Stage)| {
        let before = at.checked_sub(1).map(|before| &ns[before]);
        let added = ns[at].iter().enumerate().map(|(round, upto)| upto - before.map_or(0.0, |before| before[round]));
        let added_ns = Spread::of(added).unwrap_or(none);
        StageShare {
            name: stage.name,
            upto_ns: Spread::of(ns[at].iter().copied()).unwrap_or(none),
            added_ns,
            share: added_ns.median / whole.max(1e-9),
        }
    };
    STAGES.iter().enumerate().map(share).collect()
}

/// As a table.
pub fn markdown(shares: &[StageShare]) -> String {
    let mut out = String::from(
        "| stage | ns a packet it adds | min | max | share | ns a packet up to it | M packets per CPU s up to it |\n\
         |---|---:|---:|---:|---:|---:|---:|\n",
    );
    for share in shares {
        let (added, upto) = (share.added_ns, share.upto_ns);
        writeln!(
            out,
            "| {} | {:.1} | {:.1} | {:.1} | {:.0} % | {:.1} | {:.2} |",
            share.name,
            added.median,
            added.min,
            added.max,
            100.0 * share.share,
            upto.median,
            1e3 / upto.median.max(1e-9)
        )
        .expect("writing to a String cannot fail");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use traffic::{Config, Generator, pcap};

    #[test]
    fn every_stage_sees_every_packet() {
        let folder = tempfile::tempdir().unwrap();
        let capture = folder.path().join("x.pcap");
        let config = Config { packets: 5_000, flows: 100, truth: false, ..Config::default() };
        pcap::write_pcap_file(&capture, &mut Generator::new(config), true).unwrap();
        let shares = measure(&capture, Some(5_000), 2, folder.path(), &|_| {}).unwrap();
        assert_eq!(shares.len(), STAGES.len());
        assert!(shares.iter().all(|share| share.upto_ns.min > 0.0));
        assert!(markdown(&shares).contains("| read |"));
        let wrong = measure(&capture, Some(5_001), 1, folder.path(), &|_| {});
        assert!(wrong.unwrap_err().to_string().contains("saw 5000 packets of 5001"));
    }

    #[test]
    fn a_stage_has_what_it_adds_to_the_one_before() {
        let shares = shares(
            &[[10.0, 12.0], [15.0, 17.0], [20.0, 22.0], [20.0, 22.0], [30.0, 32.0], [40.0, 42.0]].map(Vec::from),
        );
        let added: Vec<f64> = shares.iter().map(|share| share.added_ns.median).collect();
        assert_eq!(added, [11.0, 5.0, 5.0, 0.0, 10.0, 10.0]);
        let sum: f64 = shares.iter().map(|share| share.share).sum();
        assert!((sum - 1.0).abs() < 1e-9);
    }
}
