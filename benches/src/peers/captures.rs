//! The captures that every tool reads: the same flows twice, with frames of simple IMIX and of 60 bytes.

use super::{PeersError, file};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use traffic::{Config, Generator, Sizes, pcap};

/// Packet time the traffic is spread over: shorter than any tool's timeouts, so that all agree on what a flow is.
const DURATION_NS: u64 = 30_000_000_000;
/// nfpcapd makes a record of each DNS packet, so DNS flows are as short as they are in life.
const DNS_PACKETS_MAX: u32 = 16;

/// How much traffic.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Traffic {
    /// Packets of each capture.
    pub packets: u64,
    /// Flows, by Zipf's law.
    pub flows: u64,
    /// Names the captures.
    pub seed: u64,
}

/// A capture on disk.
#[derive(Clone, Debug, Serialize)]
pub struct Capture {
    /// For tables.
    pub name: &'static str,
    /// The file.
    #[serde(skip)]
    pub path: PathBuf,
    /// What it holds.
    pub truth: CaptureTruth,
}

/// What the generator counted while it wrote a capture.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CaptureTruth {
    /// Packets.
    pub packets: u64,
    /// Bidirectional flows.
    pub flows: u64,
    /// Bytes of all frames.
    pub frame_bytes: u64,
}

impl Capture {
    /// Bytes of a frame, on average.
    pub fn frame_bytes_mean(&self) -> f64 {
        self.truth.frame_bytes as f64 / self.truth.packets.max(1) as f64
    }

    /// Reads the file once, so that it comes from memory: what a disk does is no part of a figure.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn warm(&self) -> Result<(), PeersError> {
        let read = File::open(&self.path).and_then(|mut file| io::copy(&mut file, &mut io::sink()));
        file("read", &self.path, read).map(drop)
    }
}

/// Both captures, from `folder` where they are there from an earlier time, else written to it.
///
/// # Errors
/// A file cannot be written.
pub fn make(folder: &Path, traffic: Traffic, progress: &dyn Fn(&str)) -> Result<Vec<Capture>, PeersError> {
    file("make", folder, fs::create_dir_all(folder))?;
    let sizes = [("IMIX 7:4:1", "imix", Sizes::Imix741), ("60 bytes", "60", Sizes::Fixed(60))];
    sizes.into_iter().map(|(name, stem, sizes)| one(folder, traffic, (name, stem, sizes), progress)).collect()
}

fn one(
    folder: &Path,
    traffic: Traffic,
    (name, stem, sizes): (&'static str, &str, Sizes),
    progress: &dyn Fn(&str),
) -> Result<Capture, PeersError> {
    let Traffic { packets, flows, seed } = traffic;
    let path = folder.join(format!("{stem}-{packets}-{flows}-{seed}.pcap"));
    let beside = path.with_extension("json");
    let known = fs::read(&beside).ok().and_then(|text| serde_json::from_slice(&text).ok());
    if let Some(truth) = known.filter(|_| path.is_file()) {
        return Ok(Capture { name, path, truth });
    }
    progress(&format!("writing {}", path.display()));
    let mut generator = Generator::new(Config {
        packets,
        flows,
        seed,
        duration_ns: DURATION_NS,
        v6_ratio: 0.0, // an IPv6 frame with TCP does not fit 60 bytes
        sizes,
        pad: true,
        dns_packets_max: DNS_PACKETS_MAX,
        attacks: false,
        truth: true,
        ..Config::default()
    });
    // Microseconds: not every tool reads nanoseconds. The truth comes last, so that half a capture is never taken for one.
    file("write", &path, pcap::write_pcap_file(&path, &mut generator, false))?;
    let truth = generator.into_truth();
    let truth =
        CaptureTruth { packets: truth.packets, flows: truth.flows.len() as u64, frame_bytes: truth.frame_bytes };
    let json = serde_json::to_vec(&truth).map_err(io::Error::from);
    file("write", &beside, json.and_then(|json| fs::write(&beside, json)))?;
    Ok(Capture { name, path, truth })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn captures_are_written_once_and_hold_the_same_flows() {
        let folder = tempfile::tempdir().unwrap();
        let traffic = Traffic { packets: 6_000, flows: 200, seed: 3 };
        let first = make(folder.path(), traffic, &|_| {}).unwrap();
        let written = |c: &Capture| fs::metadata(&c.path).unwrap().modified().unwrap();
        let second = make(folder.path(), traffic, &|line| panic!("written again: {line}")).unwrap();
        for (a, b) in first.iter().zip(&second) {
            assert_eq!((a.truth, written(a)), (b.truth, written(b)));
            assert_eq!((a.truth.packets, a.truth.flows), (6_000, 200));
            let len = fs::metadata(&a.path).unwrap().len();
            assert_eq!(len, 24 + 16 * 6_000 + a.truth.frame_bytes);
            a.warm().unwrap();
        }
        assert!(first[0].frame_bytes_mean() > 250.0 && (60.0..64.0).contains(&first[1].frame_bytes_mean()));
    }
}
