//! `taphouse run`: live traffic.

use super::{load_config, open_store, start_logging};
use crate::cli::{RunArgs, ServerArgs};
use crate::config::{Config, TapConfig};
use crate::failure::{Code, Failure};
use crate::server::{Listeners, LiveTap, Setup, serve};
use anyhow::anyhow;
use capture::{AfPacketOptions, AfPacketSource, Source, SourceError, TapSource};
use std::collections::HashSet;
use storage::OnError;
use wire::TapId;

/// Bytes of one block of a kernel ring: a batch's worth of packets handed over at a time.
const BLOCK_BYTES: u32 = 1 << 20;

pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    let config = load_config(&args.server)?;
    let log = start_logging(&config.log)?;
    let taps = choose_taps(args, &config)?;
    let listeners = Listeners::bind(&config)?;
    let taps = open_taps(&taps, &config)?;
    let names: Vec<String> = taps.iter().map(|t| t.name.clone()).collect();
    let store = open_store(&config, &names, OnError::Count)?;
    serve(Setup { reload: reloader(&args.server), config, log, taps, store, listeners, generated: false })
}

/// Reads file and overrides again.
pub(super) fn reloader(args: &ServerArgs) -> Box<dyn Fn() -> Result<Config, Failure> + Send> {
    let (file, overrides, data_dir) = (args.config.clone(), args.overrides.clone(), args.data_dir.clone());
    Box::new(move || {
        let args = ServerArgs { config: file.clone(), overrides: overrides.clone(), data_dir: data_dir.clone() };
        load_config(&args)
    })
}

/// `-i`, else the config's taps, else the interface of the default route.
fn choose_taps(args: &RunArgs, config: &Config) -> Result<Vec<TapConfig>, Failure> {
    let own = |interface: &String| TapConfig { name: interface.clone(), interfaces: vec![interface.clone()] };
    let mut seen = HashSet::new();
    if let Some(twice) = args.interfaces.iter().find(|i| !seen.insert(*i)) {
        return Err(Failure::new(Code::Usage, anyhow!("-i {twice} is given twice; each interface is captured once")));
    }
    if !args.interfaces.is_empty() {
        return Ok(args.interfaces.iter().map(own).collect());
    }
    if !config.taps.is_empty() {
        return Ok(config.taps.clone());
    }
    let interface = tuning::default_route_interface()?;
    tracing::info!("no interface given: watching {interface}, which holds the default route");
    Ok(vec![own(&interface)])
}

fn open_taps(taps: &[TapConfig], config: &Config) -> Result<Vec<LiveTap>, Failure> {
    let workers = match config.pipeline.workers {
        0 => std::thread::available_parallelism().map_or(1, |n| n.get().saturating_sub(1).max(1)),
        n => usize::from(n),
    };
    let options = AfPacketOptions {
        block_bytes: BLOCK_BYTES,
        blocks: u32::try_from(config.capture.ring.0 / u64::from(BLOCK_BYTES)).unwrap_or(u32::MAX),
        promiscuous: config.capture.promiscuous,
        ..AfPacketOptions::default()
    };
    taps.iter().enumerate().map(|(id, tap)| open_tap(tap, TapId(id as u16), workers, &options)).collect()
}

fn open_tap(tap: &TapConfig, id: TapId, workers: usize, options: &AfPacketOptions) -> Result<LiveTap, Failure> {
    let mut queues: Vec<Vec<AfPacketSource>> = (0..workers).map(|_| Vec::new()).collect();
    for interface in &tap.interfaces {
        let group = AfPacketSource::open_group(interface, id, options, workers).map_err(|e| explain(e, interface))?;
        for (queue, source) in queues.iter_mut().zip(group) {
            queue.push(source);
        }
    }
    let sources = queues.into_iter().map(|group| Box::new(TapSource::new(&tap.name, group)) as Box<dyn Source>);
    Ok(LiveTap {
        name: tap.name.clone(),
        interfaces: tap.interfaces.clone(),
        kind: "af_packet",
        sources: sources.collect(),
    })
}

/// A missing capability is the first thing a newcomer meets: say what would work.
fn explain(error: SourceError, interface: &str) -> Failure {
    if !matches!(error, SourceError::Permission { .. }) {
        return error.into();
    }
    let me = std::env::current_exe().map_or_else(|_| "taphouse".to_owned(), |p| super::show(&p));
    Failure::new(
        Code::NotPermitted,
        anyhow!(
            "capturing on {interface} needs the capability CAP_NET_RAW, which this process does not have; any of these works:\n  \
             sudo setcap cap_net_raw+ep {me}    (once, then run as you are)\n  \
             sudo {me} run -i {interface}\n  \
             {me} replay FILE.pcap              (no privilege: a capture file)\n  \
             {me} demo                          (no privilege: generated traffic)"
        ),
    )
}
