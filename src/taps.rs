//! Opens what the configuration calls taps: interfaces through AF_XDP or packet sockets, remote hosts through ssh.

use crate::config::{CaptureConfig, Config, InterfaceConfig, Sharding, SshConfig, Switch, TapConfig, WaitConfig};
use crate::failure::{Code, Failure};
use anyhow::anyhow;
use capture::privileges::{Opener, OpenerError};
use capture::{
    AfPacketOptions, BusyPoll, Filter, Held, InterfaceFailed, InterfaceOptions, InterfaceView, Mode, OpenInterface,
    RemoteView, Source, SourceError, SshSource, Supervised, TapSource, Waiting, Wake, XdpOptions,
};
use std::sync::Arc;
use std::sync::mpsc::Sender;
use std::time::Duration;
use wire::TapId;

/// Blocks of a packet socket's ring, and the least bytes of one. At low rates the kernel hands over a block every 10 ms,
/// however little is in it: their number, too, says how long a stall may last.
const BLOCKS: u64 = 256;
const BLOCK_BYTES_MIN: u64 = 256 << 10;
/// How long an adaptive worker looks again before it sleeps: longer than the pauses between interrupts.
const SPIN: Duration = Duration::from_micros(50);
/// Packets the kernel may process in one busy poll; the kernel's own default for NAPI.
const BUSY_POLL_BUDGET: u16 = 64;

/// A tap of a live server.
pub(crate) struct LiveTap {
    pub(crate) name: String,
    pub(crate) interfaces: Vec<String>,
    /// `af_xdp`, `af_packet`, `mixed`, `ssh`, `generator`.
    pub(crate) kind: &'static str,
    pub(crate) workers: Vec<LiveWorker>,
    /// Whether packets go to the worker that owns their flow.
    pub(crate) sharding: Sharding,
    pub(crate) supervised: Vec<(Supervised, Held)>,
    /// The remote host, and its connection.
    pub(crate) remote: Option<(String, Arc<RemoteView>)>,
}

/// What one worker of a tap reads.
pub(crate) struct LiveWorker {
    pub(crate) source: Box<dyn Source>,
    /// What ends its sleep, where it sleeps on such a thing.
    pub(crate) wake: Option<Arc<Wake>>,
}

impl LiveTap {
    /// A tap of one worker that is no interface.
    pub(crate) fn of_source(name: &str, kind: &'static str, source: Box<dyn Source>) -> LiveTap {
        LiveTap {
            name: name.to_owned(),
            interfaces: Vec::new(),
            kind,
            workers: vec![LiveWorker { source, wake: None }],
            sharding: Sharding::Queue,
            supervised: Vec::new(),
            remote: None,
        }
    }
}

/// Opens an interface where the privileges are.
pub(crate) fn open_with(
    opener: &Opener,
    name: &str,
    tap: TapId,
    workers: usize,
    options: &InterfaceOptions,
) -> Result<OpenInterface, SourceError> {
    let (name, options) = (name.to_owned(), options.clone());
    let opened = opener.run({
        let name = name.clone();
        move || capture::open_interface(&name, tap, workers, &options)
    });
    opened.unwrap_or_else(|error: OpenerError| Err(SourceError::Opener { name, reason: error.to_string() }))
}

/// Opens the interfaces of a tap, all of them or none.
pub(crate) fn open_interfaces(
    tap: &TapConfig,
    id: TapId,
    config: &Config,
    opener: &Opener,
    failures: &Sender<InterfaceFailed>,
) -> Result<LiveTap, Failure> {
    let each: Vec<(&InterfaceConfig, InterfaceOptions)> = tap
        .interfaces
        .iter()
        .map(|i| Ok((i, interface_options(i, tap, &config.capture)?)))
        .collect::<Result<_, Failure>>()?;
    let workers = worker_count(&each, config)?;
    let mut opened = Vec::new();
    for (interface, options) in &each {
        let open = open_with(opener, &interface.name, id, workers, options).map_err(|e| explain(e, &interface.name))?;
        for note in &open.notes {
            tracing::info!("{note}");
        }
        tracing::info!("reading {} ({}, {} queue(s))", interface.name, open.mode, open.queue_count);
        opened.push(open);
    }
    let kind = kind(&opened);
    let mut queues: Vec<Vec<_>> = (0..workers).map(|_| Vec::new()).collect();
    for (number, open) in opened.iter_mut().enumerate() {
        for (worker, queue) in open.queues.drain(..) {
            queues[worker].push((number, queue));
        }
    }
    let (mut live, mut controls) = (Vec::new(), Vec::new());
    for queues in queues {
        let mut source = TapSource::new(&tap.name, queues, waiting(config.capture.wait));
        controls.push(source.control(id, failures.clone()));
        let wake = Arc::new(Wake::new().map_err(|e| anyhow!("cannot make an eventfd: {e}"))?);
        source.wake_by(wake.clone());
        live.push(LiveWorker { source: Box::new(source), wake: Some(wake) });
    }
    let supervised = each.into_iter().zip(opened).enumerate().map(|(number, ((interface, options), mut open))| {
        let view = Arc::new(InterfaceView::new(id, &interface.name, &open));
        let name = interface.name.clone();
        (Supervised { tap: id, number, name, options, controls: controls.clone(), view }, Held::of(&mut open))
    });
    Ok(LiveTap {
        name: tap.name.clone(),
        interfaces: tap.interfaces.iter().map(|i| i.name.clone()).collect(),
        kind,
        workers: live,
        sharding: tap.sharding,
        supervised: supervised.collect(),
        remote: None,
    })
}

fn kind(opened: &[OpenInterface]) -> &'static str {
    let packet_sockets = opened.iter().filter(|open| open.mode == Mode::AfPacket).count();
    match packet_sockets {
        0 => "af_xdp",
        n if n == opened.len() => "af_packet",
        _ => "mixed",
    }
}

/// As many workers as the interfaces have queues where that is given by the card, as many as there are cores to spare
/// where it is not, or as the configuration says.
fn worker_count(interfaces: &[(&InterfaceConfig, InterfaceOptions)], config: &Config) -> Result<usize, Failure> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let mut queues = None;
    for (interface, options) in interfaces {
        let found = capture::queues_of(&interface.name, options).map_err(|e| explain(e, &interface.name))?;
        queues = queues.max(found);
    }
    Ok(match (config.pipeline.workers, queues) {
        (0, Some(queues)) => (queues as usize).clamp(1, cores),
        (0, None) => cores.saturating_sub(1).max(1),
        (n, _) => usize::from(n),
    })
}

fn waiting(config: WaitConfig) -> Waiting {
    match config {
        WaitConfig::Sleep => Waiting::Sleep,
        WaitConfig::Adaptive => Waiting::Adaptive(SPIN),
        WaitConfig::Spin => Waiting::Spin,
    }
}

fn interface_options(
    interface: &InterfaceConfig,
    tap: &TapConfig,
    config: &CaptureConfig,
) -> Result<InterfaceOptions, Failure> {
    let frames = (config.ring.0 / u64::from(config.frame)).max(64);
    let block_bytes = 1_u64 << (config.ring.0 / BLOCKS).max(BLOCK_BYTES_MIN).ilog2();
    Ok(InterfaceOptions {
        mode: config.mode.demanded(),
        force: config.force,
        promiscuous: config.promiscuous,
        hardware_timestamps: config.hardware_timestamps,
        filter: filter([&interface.filter, &tap.filter, &config.filter])?,
        multi_buffer: match config.multi_buffer {
            Switch::Auto => None,
            Switch::Always => Some(true),
            Switch::Never => Some(false),
        },
        xdp: XdpOptions {
            // Rings have a power of two of entries; rounding down keeps within what was allowed.
            frames: 1 << frames.ilog2(),
            frame_bytes: config.frame,
            huge_pages: config.huge_pages,
            need_wakeup: config.need_wakeup,
            busy_poll: config.busy_poll.map(|period| BusyPoll {
                microseconds: u32::try_from(period.0.as_micros()).unwrap_or(u32::MAX),
                budget: BUSY_POLL_BUDGET,
            }),
            ..XdpOptions::default()
        },
        packet: AfPacketOptions {
            block_bytes: u32::try_from(block_bytes).unwrap_or(u32::MAX),
            blocks: u32::try_from(config.ring.0 / block_bytes).unwrap_or(u32::MAX),
            promiscuous: config.promiscuous,
            ..AfPacketOptions::default()
        },
    })
}

/// The first that is set.
pub(crate) fn filter<const N: usize>(texts: [&Option<String>; N]) -> Result<Option<Filter>, Failure> {
    let text = texts.into_iter().flatten().next();
    let filter = text.map(|text| Filter::parse(text)).transpose();
    filter.map_err(|e| Failure::new(Code::Usage, anyhow!("{e}")))
}

/// Connects to a remote tap.
pub(crate) fn open_remote(tap: &TapConfig, ssh: &SshConfig, id: TapId, config: &Config) -> Result<LiveTap, Failure> {
    let options = ssh.options(tap.filter.clone().or_else(|| config.capture.filter.clone()));
    let source = SshSource::open(&options, id)?;
    let view = source.view();
    let mut live = LiveTap::of_source(&tap.name, "ssh", Box::new(source));
    live.interfaces = vec![format!("{}:{}", ssh.host, ssh.interface)];
    live.remote = Some((ssh.host.clone(), view));
    Ok(live)
}

/// A missing capability is the first thing a newcomer meets: say what would work.
fn explain(error: SourceError, interface: &str) -> Failure {
    if !error.is_permission() {
        return error.into();
    }
    let me = std::env::current_exe().map_or_else(|_| "taphouse".to_owned(), |p| crate::commands::show(&p));
    Failure::new(
        Code::NotPermitted,
        anyhow!(
            "{error}; any of these works:\n  \
             sudo setcap cap_net_raw,cap_net_admin,cap_bpf+ep {me}    (once, then run as you are)\n  \
             sudo {me} run -i {interface}\n  \
             {me} replay FILE.pcap              (no privilege: a capture file)\n  \
             {me} demo                          (no privilege: generated traffic)"
        ),
    )
}
