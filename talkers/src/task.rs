//! What is to be counted: tasks as the configuration has them, checked.

use crate::field::{Hasher, KeySpec, View};
use crate::sketch::Sketch;
use crate::{Metric, TaskError};
use flowtable::FlowRecord;
use wire::Nanos;

/// Which sketch a task keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// What each key had, for every part of the key as well: CocoSketch.
    HeavyHitters,
    /// What the keys had that had most, none of them missed: Misra-Gries.
    TopK,
    /// With how many distinct elements each key was seen.
    Spreaders,
    /// How many distinct elements there were: HyperLogLog.
    Cardinality,
    /// How evenly what was counted is spread over elements.
    Entropy,
    /// How values are spread: DDSketch.
    Quantiles,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 6] =
        [Kind::HeavyHitters, Kind::TopK, Kind::Spreaders, Kind::Cardinality, Kind::Entropy, Kind::Quantiles];

    /// Its name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::HeavyHitters => "heavy_hitters",
            Kind::TopK => "top_k",
            Kind::Spreaders => "spreaders",
            Kind::Cardinality => "cardinality",
            Kind::Entropy => "entropy",
            Kind::Quantiles => "quantiles",
        }
    }
}

/// What quantiles are of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Measure {
    /// IP bytes of a packet.
    PacketBytes,
    /// Bytes of a flow, both directions.
    FlowBytes,
    /// Packets of a flow, both directions.
    FlowPackets,
    /// From a flow's first packet to its last, in µs.
    FlowDuration,
    /// Mean time between two packets of a flow, in µs.
    PacketGap,
    /// Round trip of a handshake, in µs.
    Rtt,
    /// Its half between tap and responder, in µs.
    RttServer,
    /// Its half between tap and originator, in µs.
    RttClient,
}

impl Measure {
    /// Every measure.
    pub const ALL: [Measure; 8] = [
        Measure::PacketBytes,
        Measure::FlowBytes,
        Measure::FlowPackets,
        Measure::FlowDuration,
        Measure::PacketGap,
        Measure::Rtt,
        Measure::RttServer,
        Measure::RttClient,
    ];

    /// Its name in configuration and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Measure::PacketBytes => "packet_bytes",
            Measure::FlowBytes => "flow_bytes",
            Measure::FlowPackets => "flow_packets",
            Measure::FlowDuration => "flow_duration_us",
            Measure::PacketGap => "packet_gap_us",
            Measure::Rtt => "rtt_us",
            Measure::RttServer => "rtt_srv_us",
            Measure::RttClient => "rtt_cli_us",
        }
    }

    /// What a flow has of it.
    pub(crate) fn of_flow(self, r: &FlowRecord) -> Option<u64> {
        let packets = r.pkts_o.saturating_add(r.pkts_r);
        let lasted = r.end.0.saturating_sub(r.start.0) / 1_000;
        match self {
            Measure::PacketBytes => None,
            Measure::FlowBytes => Some(r.bytes_o.saturating_add(r.bytes_r)),
            Measure::FlowPackets => Some(packets),
            Measure::FlowDuration => Some(lasted),
            Measure::PacketGap => lasted.checked_div(packets.saturating_sub(1)),
            Measure::Rtt => r.rtt_us.map(u64::from),
            Measure::RttServer => r.rtt_srv_us.map(u64::from),
            Measure::RttClient => r.rtt_cli_us.map(u64::from),
        }
    }
}

/// How large a sketch is to be.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Size {
    /// Bytes of one window of one worker.
    Memory(usize),
    /// The memory follows from the error: of a count as a share of everything counted (`heavy_hitters` on average, `top_k`
    /// always), of a number of distinct elements or of a quantile as a share of itself.
    Error(f64),
}

/// A task as somebody wants it. All durations are packet time.
#[derive(Clone, Debug, PartialEq)]
pub struct TaskConfig {
    /// What it is called, up to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// Which sketch.
    pub kind: Kind,
    /// What is counted.
    pub metric: Metric,
    /// Names of the key's fields (see [`KeySpec`]).
    pub key: Vec<String>,
    /// Names of the elements' fields.
    pub elements: Vec<String>,
    /// What quantiles are of.
    pub measure: Option<Measure>,
    /// Which quantiles are kept in history, 0 to 1.
    pub quantiles: Vec<f64>,
    /// For which parts of the key history keeps a list; empty: for the key itself.
    pub lists: Vec<Vec<String>>,
    /// How large.
    pub size: Size,
    /// Length of a window, whole tenths of a second.
    pub window: Nanos,
    /// How often whoever follows hears of the window that is being filled.
    pub snapshot_interval: Nanos,
    /// Keys with less are not listed.
    pub threshold: u64,
    /// Keys of a list that history keeps of a window.
    pub rows_max: usize,
}

/// When a task is fed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Packet,
    FlowDelta,
    FlowBegin,
    FlowEnd,
}

/// A task that can be.
#[derive(Debug)]
pub struct Task {
    pub(crate) config: TaskConfig,
    pub(crate) key: KeySpec,
    pub(crate) elements: KeySpec,
    pub(crate) lists: Vec<KeySpec>,
    pub(crate) event: Event,
    view: View,
    pub(crate) seed: u64,
    memory_bytes: usize,
}

/// Windows are cut where ticks of the detectors are.
const TENTH: u64 = 100_000_000;
const WINDOW_MAX: Nanos = Nanos(86_400_000_000_000);
const NAME_MAX: usize = 64;
/// A text of a row is up to 255 bytes.
const TEXT_MAX: usize = 255;
const LISTS_MAX: usize = 16;
const ROWS_MAX: usize = 100_000;

impl Task {
    /// Checks a task. `seed` chooses its hash. A window of it may take `memory_max` bytes.
    ///
    /// # Errors
    /// What cannot be, by task and setting; [`TaskError::Memory`] for what would take more.
    pub fn new(config: TaskConfig, seed: u64, memory_max: usize) -> Result<Task, TaskError> {
        let name = config.name.clone();
        check(config, seed, memory_max).map_err(|error| error.of(&name))
    }

    /// The task as it was wanted.
    pub fn config(&self) -> &TaskConfig {
        &self.config
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.config.name
    }

    /// The key.
    pub fn key(&self) -> &KeySpec {
        &self.key
    }

    /// Whether it counts packets or flows.
    pub fn view(&self) -> View {
        self.view
    }

    /// What is counted of a key.
    pub fn metric(&self) -> Metric {
        match self.config.kind {
            Kind::HeavyHitters | Kind::TopK => self.config.metric,
            Kind::Spreaders | Kind::Cardinality => Metric::Distinct,
            Kind::Entropy => Metric::Entropy,
            Kind::Quantiles => Metric::Quantile,
        }
    }

    /// Names of the elements' fields, or what quantiles are of.
    pub fn elements(&self) -> String {
        self.config.measure.map_or_else(|| self.elements.to_string(), |measure| measure.name().to_owned())
    }

    /// Bytes of one of its windows at one worker.
    pub fn memory_bytes(&self) -> usize {
        self.memory_bytes
    }

    /// Whether it answers by these fields; none: for the window as a whole.
    pub fn answers(&self, by: &KeySpec) -> bool {
        match self.config.kind {
            Kind::HeavyHitters => !by.is_empty() && by.is_part_of(&self.key),
            Kind::TopK | Kind::Spreaders => by.is_same(&self.key),
            Kind::Cardinality | Kind::Entropy | Kind::Quantiles => by.is_empty(),
        }
    }

    /// Hashes its keys.
    pub(crate) fn hasher(&self) -> Hasher {
        Hasher::new(self.seed)
    }

    /// Hashes its elements.
    pub(crate) fn element_hasher(&self) -> Hasher {
        Hasher::new(!self.seed)
    }

    /// Number of the window that `clock` lies in.
    pub(crate) fn window_of(&self, clock: Nanos) -> u64 {
        clock.0 / self.config.window.0
    }

    /// What a flow adds to a count at its end.
    pub(crate) fn flow_weight(&self, record: &FlowRecord) -> u64 {
        match self.config.metric {
            Metric::Bytes => record.bytes_o.saturating_add(record.bytes_r),
            Metric::Packets => record.pkts_o.saturating_add(record.pkts_r),
            _ => 1,
        }
    }
}

fn check(config: TaskConfig, seed: u64, memory_max: usize) -> Result<Task, TaskError> {
    let name = &config.name;
    let is_letter = |letter: char| letter.is_ascii_alphanumeric() || letter == '_' || letter == '-';
    if name.is_empty() || name.len() > NAME_MAX || !name.chars().all(is_letter) {
        return Err(TaskError::new("name", name, "wanted are 1 to 64 letters, digits, _ and -"));
    }
    let window = config.window;
    if window < Nanos(TENTH) || window > WINDOW_MAX || !window.0.is_multiple_of(TENTH) {
        return Err(TaskError::new("window", seconds(window), "wanted are whole tenths of a second up to a day"));
    }
    if config.snapshot_interval < Nanos(TENTH) || config.snapshot_interval > window {
        let allowed = "wanted is a tenth of a second up to the window";
        return Err(TaskError::new("snapshot_interval", seconds(config.snapshot_interval), allowed));
    }
    if config.rows_max == 0 || config.rows_max > ROWS_MAX {
        return Err(TaskError::new("rows_max", config.rows_max.to_string(), "wanted are 1 to 100000"));
    }
    if let Some(q) = config.quantiles.iter().find(|q| !(0.0..=1.0).contains(*q)) {
        return Err(TaskError::new("quantiles", q.to_string(), "wanted are numbers from 0 to 1"));
    }
    let spec = |field: &'static str, names: &[String]| {
        KeySpec::new(names).map_err(|error| match error {
            TaskError::Setting { task, value, allowed, .. } => TaskError::Setting { task, field, value, allowed },
            other => other,
        })
    };
    let (key, elements) = (spec("key", &config.key)?, spec("elements", &config.elements)?);
    let keyed = matches!(config.kind, Kind::HeavyHitters | Kind::TopK | Kind::Spreaders);
    let with_elements = matches!(config.kind, Kind::Spreaders | Kind::Cardinality | Kind::Entropy);
    let kind = config.kind.name();
    for (field, spec, is_wanted) in [("key", &key, keyed), ("elements", &elements, with_elements)] {
        if spec.is_empty() == is_wanted {
            let words = if is_wanted { "needs at least one field" } else { "has none: leave it out" };
            return Err(TaskError::new(field, spec.to_string(), format!("a task of kind {kind} {words}")));
        }
    }
    if config.measure.is_some() != (config.kind == Kind::Quantiles) {
        let value = config.measure.map_or("nothing", Measure::name);
        let known: Vec<&str> = Measure::ALL.into_iter().map(Measure::name).collect();
        let allowed = format!("a task of kind quantiles, and only that, is of one of {}", known.join(", "));
        return Err(TaskError::new("of", value, allowed));
    }
    let lists = match config.kind {
        Kind::HeavyHitters if !config.lists.is_empty() => {
            config.lists.iter().map(|names| spec("lists", names)).collect::<Result<Vec<_>, _>>()?
        }
        _ if !config.lists.is_empty() => {
            let allowed = "only heavy_hitters can be listed by parts of their key; leave it out";
            return Err(TaskError::new("lists", config.lists[0].join(","), allowed));
        }
        _ if keyed => vec![key.clone()],
        _ => Vec::new(),
    };
    if let Some(list) = lists.iter().find(|list| list.is_empty() || !list.is_part_of(&key)) {
        return Err(TaskError::new("lists", list.to_string(), format!("no part of the key {key}")));
    }
    if let Some((_, list)) = lists.iter().enumerate().find(|(at, list)| lists[..*at].iter().any(|a| a.is_same(list))) {
        return Err(TaskError::new("lists", list.to_string(), "there twice; name each list once"));
    }
    if lists.len() > LISTS_MAX {
        return Err(TaskError::new("lists", lists.len().to_string(), "up to 16 lists"));
    }
    if let Some(spec) = lists.iter().chain([&elements]).find(|spec| spec.to_string().len() > TEXT_MAX) {
        return Err(TaskError::new("key", spec.to_string(), "longer than 255 bytes"));
    }
    let view = match (key.view(), elements.view()) {
        (Some(View::Packets), Some(View::Flows)) | (Some(View::Flows), Some(View::Packets)) => {
            let allowed =
                format!("fields of another view than those of the key {key}: both of packets, or both of flows");
            return Err(TaskError::new("elements", elements.to_string(), allowed));
        }
        (Some(view), _) | (None, Some(view)) => view,
        (None, None) if config.metric == Metric::Flows => View::Flows,
        (None, None) => View::Packets,
    };
    let counts = matches!(config.metric, Metric::Bytes | Metric::Packets | Metric::Flows);
    let weighs = matches!(config.kind, Kind::HeavyHitters | Kind::TopK | Kind::Entropy);
    if weighs && (!counts || (view == View::Packets && config.metric == Metric::Flows)) {
        let allowed = match view {
            View::Packets => "packets have bytes and packets; flows are counted by originator and responder",
            View::Flows => "flows have flows, bytes and packets",
        };
        return Err(TaskError::new("metric", config.metric.name(), allowed));
    }
    let view = match config.measure {
        Some(Measure::PacketBytes) => View::Packets,
        Some(_) => View::Flows,
        None => view,
    };
    let event = match (config.kind, view) {
        (Kind::Quantiles, View::Flows) => Event::FlowEnd,
        (Kind::Quantiles, View::Packets) => Event::Packet,
        (_, View::Packets) => Event::FlowDelta,
        (Kind::Spreaders | Kind::Cardinality, View::Flows) => Event::FlowBegin,
        (_, View::Flows) if config.metric == Metric::Flows => Event::FlowBegin,
        (_, View::Flows) => Event::FlowEnd,
    };
    let wanted = Sketch::wanted_bytes(config.kind, config.size)?;
    if wanted > memory_max {
        return Err(TaskError::Memory { bytes: wanted });
    }
    let mut task = Task { key, elements, lists, event, view, seed, memory_bytes: 0, config };
    // Made once and let go: whether it can be, and what it takes, is for the sketch to say.
    task.memory_bytes = Sketch::new(&task)?.memory_bytes();
    Ok(task)
}

fn seconds(time: Nanos) -> String {
    format!("{} s", time.0 as f64 / 1e9)
}

/// Tasks that are useful untouched: who sends most to whom, who contacts many, whom many contact, how many there are, how evenly
/// they and their ports are spread, round trips and sizes. One of them sees every packet; the others see flows.
pub fn default_tasks() -> Vec<TaskConfig> {
    let names = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<String>>();
    let base = TaskConfig {
        name: String::new(),
        kind: Kind::HeavyHitters,
        metric: Metric::Flows,
        key: Vec::new(),
        elements: Vec::new(),
        measure: None,
        quantiles: Vec::new(),
        lists: Vec::new(),
        size: Size::Memory(64 << 10),
        window: Nanos::from_secs(60),
        snapshot_interval: Nanos::from_secs(10),
        threshold: 0,
        rows_max: 1_000,
    };
    let quantiles = vec![0.5, 0.9, 0.99];
    vec![
        TaskConfig {
            name: "talkers".to_owned(),
            metric: Metric::Bytes,
            key: names(&["src_ip", "dst_ip", "src_port", "dst_port", "proto", "vlan"]),
            lists: [&["src_ip"][..], &["dst_ip"], &["src_ip", "dst_ip"], &["proto", "dst_port"]].map(names).into(),
            size: Size::Memory(512 << 10),
            ..base.clone()
        },
        TaskConfig {
            name: "fan_out".to_owned(),
            kind: Kind::Spreaders,
            key: names(&["originator"]),
            elements: names(&["responder", "responder_port"]),
            size: Size::Memory(2 << 20),
            rows_max: 200,
            ..base.clone()
        },
        TaskConfig {
            name: "fan_in".to_owned(),
            kind: Kind::Spreaders,
            key: names(&["responder"]),
            elements: names(&["originator"]),
            size: Size::Memory(2 << 20),
            rows_max: 200,
            ..base.clone()
        },
        TaskConfig {
            name: "originators".to_owned(),
            kind: Kind::Cardinality,
            elements: names(&["originator"]),
            size: Size::Error(0.01),
            ..base.clone()
        },
        TaskConfig {
            name: "originator_entropy".to_owned(),
            kind: Kind::Entropy,
            elements: names(&["originator"]),
            ..base.clone()
        },
        TaskConfig {
            name: "port_entropy".to_owned(),
            kind: Kind::Entropy,
            elements: names(&["responder_port"]),
            ..base.clone()
        },
        TaskConfig {
            name: "rtt".to_owned(),
            kind: Kind::Quantiles,
            measure: Some(Measure::Rtt),
            quantiles: quantiles.clone(),
            size: Size::Error(0.01),
            ..base.clone()
        },
        TaskConfig {
            name: "flow_bytes".to_owned(),
            kind: Kind::Quantiles,
            measure: Some(Measure::FlowBytes),
            quantiles,
            size: Size::Error(0.01),
            ..base
        },
    ]
}
