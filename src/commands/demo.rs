//! `taphouse demo`: the whole server on generated traffic.

use super::run::reloader;
use super::{load_config, open_store, start_logging};
use crate::cli::DemoArgs;
use crate::config::Config;
use crate::failure::Failure;
use crate::server::{Listeners, Setup, serve};
use crate::taps::LiveTap;
use capture::{BATCH_FRAMES_MAX, BatchHandler, Polled, Source, SourceCounts, SourceError};
use std::path::PathBuf;
use std::time::{Duration, SystemTime};
use storage::OnError;
use traffic::{Endless, EndlessConfig};
use wire::{Frame, LinkType, Nanos, TapId};

const TAP: &str = "generated";
/// How long a poll waits for the next packet's time.
const WAIT_MAX: Duration = Duration::from_millis(20);

pub(crate) fn demo(args: &DemoArgs) -> Result<(), Failure> {
    let config = in_own_folder(load_config(&args.server)?, args.server.data_dir.is_some());
    let log = start_logging(&config.log)?;
    eprintln!(
        "taphouse: DEMO: all traffic is generated, about {} packets a second; nothing is read from a network",
        args.rate
    );
    let listeners = Listeners::bind(&config)?;
    let store = open_store(&config, &[TAP.to_owned()], OnError::Count)?;
    let source = Generated::new(args.rate);
    let tap = LiveTap::of_source(TAP, "generator", Box::new(source));
    let (read, chosen) = (reloader(&args.server), args.server.data_dir.is_some());
    let reload = Box::new(move || Ok(in_own_folder(read()?, chosen)));
    serve(Setup { reload, config, log, taps: vec![tap], store, listeners, generated: true, keeper: None })
}

/// Generated flows must not end up among real ones: where no folder was chosen, they get one of their own.
fn in_own_folder(mut config: Config, chosen: bool) -> Config {
    if !chosen && config.data_dir == Config::default().data_dir {
        config.data_dir = PathBuf::from("taphouse-demo");
    }
    config
}

/// An endless generator as a live source: a packet is delivered when the wall clock has come to its time.
struct Generated {
    traffic: Endless,
    frame: Vec<u8>,
    /// The packet in `frame` that is not due yet.
    next: traffic::Meta,
    /// Bytes of one batch, one frame after the other.
    bytes: Vec<u8>,
    batch: Vec<(usize, usize, Nanos)>,
    counts: SourceCounts,
}

impl Generated {
    fn new(rate: u64) -> Generated {
        let config = EndlessConfig { packets_per_s: rate, start_ns: now().0, ..EndlessConfig::default() };
        let mut traffic = Endless::new(config);
        let mut frame = Vec::new();
        let next = traffic.next(&mut frame);
        Generated {
            traffic,
            frame,
            next,
            bytes: Vec::new(),
            batch: Vec::with_capacity(BATCH_FRAMES_MAX),
            counts: SourceCounts::default(),
        }
    }
}

fn now() -> Nanos {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}

impl Source for Generated {
    fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError> {
        self.bytes.clear();
        self.batch.clear();
        let now = now();
        while self.next.ts_ns <= now.0 && self.batch.len() < BATCH_FRAMES_MAX {
            self.batch.push((self.bytes.len(), self.frame.len(), Nanos(self.next.ts_ns)));
            self.bytes.extend_from_slice(&self.frame);
            self.next = self.traffic.next(&mut self.frame);
        }
        if self.batch.is_empty() {
            std::thread::sleep(Duration::from_nanos(self.next.ts_ns - now.0).min(WAIT_MAX));
            handler.idle(now);
            return Ok(Polled::Idle);
        }
        let frames: Vec<Frame<'_>> = self
            .batch
            .iter()
            .map(|&(at, len, ts)| Frame {
                data: &self.bytes[at..at + len],
                wire_len: len as u32,
                ts,
                link: LinkType::Ethernet,
                tap: TapId(0),
            })
            .collect();
        handler.batch(&frames);
        let bytes: u64 = frames.iter().map(|f| u64::from(f.wire_len)).sum();
        self.counts.offered += frames.len() as u64;
        self.counts.delivered += frames.len() as u64;
        self.counts.wire_bytes += bytes;
        self.counts.captured_bytes += bytes;
        Ok(Polled::Packets(frames.len()))
    }

    fn counts(&self) -> SourceCounts {
        self.counts
    }

    fn name(&self) -> &str {
        TAP
    }
}
