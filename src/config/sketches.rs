//! What is estimated: sketches over windows of packet time.

use super::{ConfigError, Period, Size};
use crate::pipeline::WhenFull;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::hash::{BuildHasher, Hasher};
use std::sync::Arc;
use std::time::Duration;
use talkers::{Board, Collector, Feed, Kind, Measure, Metric, TaskConfig, TaskError, WhenBehind};

/// Sketches: who sends most, to how many, how evenly, in fixed memory, for windows of packet time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SketchesSection {
    /// Whether there are any.
    pub(crate) enabled: bool,
    /// Memory of all of them together, two windows for each worker, seven for each tap and one of all taps.
    pub(crate) memory_max: Size,
    /// What is counted. A file that has this key has all tasks there are; docs/sketches.md says what a task may have.
    pub(crate) tasks: Vec<TaskSection>,
}

impl Default for SketchesSection {
    fn default() -> SketchesSection {
        let tasks = talkers::default_tasks();
        SketchesSection { enabled: true, memory_max: Size(1 << 30), tasks: tasks.iter().map(TaskSection::of).collect() }
    }
}

/// One task.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct TaskSection {
    /// What answers and the table `talkers` call it.
    pub(crate) name: String,
    /// Which sketch.
    pub(crate) kind: KindConfig,
    /// What is counted: `bytes` or `packets` of packets, `flows`, `bytes` or `packets` of flows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) metric: Option<CountConfig>,
    /// Fields of the key: `src_ip`, `dst_ip`, `src_port`, `dst_port` of packets, or `originator`, `responder`,
    /// `originator_port`, `responder_port` of flows; `proto`, `vlan` of both. Addresses may have a prefix: `src_ip/24`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) key: Vec<String>,
    /// Fields of what is told apart or spread.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) elements: Vec<String>,
    /// What quantiles are of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) of: Option<MeasureConfig>,
    /// Quantiles that history keeps.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) quantiles: Vec<f64>,
    /// Parts of the key for which history keeps lists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) lists: Vec<Vec<String>>,
    /// Memory of a window of a worker.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) memory: Option<Size>,
    /// Or the error, from which the memory follows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) error: Option<f64>,
    /// Length of a window, in packet time.
    #[serde(default = "window")]
    pub(crate) window: Period,
    /// How often those who follow hear of the window being filled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) snapshot_interval: Option<Period>,
    /// Keys with less are not listed.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub(crate) threshold: u64,
    /// Keys of a list that history keeps of a window.
    #[serde(default = "rows_max")]
    pub(crate) rows_max: u32,
}

fn window() -> Period {
    Period::secs(60)
}

fn rows_max() -> u32 {
    1_000
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// Names for serde, and which value each stands for.
macro_rules! names {
    ($(#[$doc:meta])* $name:ident of $of:ident { $($(#[$value_doc:meta])* $value:ident = $stands:ident,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "snake_case")]
        pub(crate) enum $name { $($(#[$value_doc])* $value,)* }

        impl $name {
            fn value(self) -> $of {
                match self { $($name::$value => $of::$stands,)* }
            }

            fn of(value: $of) -> Option<$name> {
                [$($name::$value),*].into_iter().find(|name| name.value() == value)
            }
        }
    };
}

names! {
    /// A kind of sketch.
    KindConfig of Kind {
        /// What each key had, and each part of the key.
        HeavyHitters = HeavyHitters,
        /// The keys that had most, none of them missed.
        TopK = TopK,
        /// With how many distinct elements each key was seen.
        Spreaders = Spreaders,
        /// How many distinct elements there were.
        Cardinality = Cardinality,
        /// How evenly what was counted is spread over elements.
        Entropy = Entropy,
        /// How values are spread.
        Quantiles = Quantiles,
    }
}

names! {
    /// What is counted.
    CountConfig of Metric {
        /// IP bytes.
        Bytes = Bytes,
        /// Packets.
        Packets = Packets,
        /// Flows.
        Flows = Flows,
    }
}

names! {
    /// What quantiles are of.
    MeasureConfig of Measure {
        /// IP bytes of a packet.
        PacketBytes = PacketBytes,
        /// Bytes of a flow.
        FlowBytes = FlowBytes,
        /// Packets of a flow.
        FlowPackets = FlowPackets,
        /// From a flow's first packet to its last.
        FlowDurationUs = FlowDuration,
        /// Mean time between packets of a flow.
        PacketGapUs = PacketGap,
        /// Round trip of the handshake.
        RttUs = Rtt,
        /// Its half between tap and responder.
        RttSrvUs = RttServer,
        /// Its half between tap and originator.
        RttCliUs = RttClient,
    }
}

impl TaskSection {
    fn of(task: &TaskConfig) -> TaskSection {
        let weighs = matches!(task.kind, Kind::HeavyHitters | Kind::TopK | Kind::Entropy);
        let period = |time: wire::Nanos| Period(std::time::Duration::from_nanos(time.0));
        TaskSection {
            name: task.name.clone(),
            kind: KindConfig::of(task.kind).unwrap_or(KindConfig::HeavyHitters),
            metric: CountConfig::of(task.metric).filter(|_| weighs),
            key: task.key.clone(),
            elements: task.elements.clone(),
            of: task.measure.and_then(MeasureConfig::of),
            quantiles: task.quantiles.clone(),
            lists: task.lists.clone(),
            memory: match task.size {
                talkers::Size::Memory(bytes) => Some(Size(bytes as u64)),
                talkers::Size::Error(_) => None,
            },
            error: match task.size {
                talkers::Size::Error(error) => Some(error),
                talkers::Size::Memory(_) => None,
            },
            window: period(task.window),
            snapshot_interval: Some(period(task.snapshot_interval)),
            threshold: task.threshold,
            rows_max: u32::try_from(task.rows_max).unwrap_or(u32::MAX),
        }
    }

    /// What the sketches take.
    fn to_task(&self) -> Result<TaskConfig, TaskError> {
        let kind = self.kind.value();
        let of_flows = |names: &Vec<String>| {
            names.iter().any(|name| name.starts_with("originator") || name.starts_with("responder"))
        };
        let metric = match self.metric {
            Some(metric) => metric.value(),
            None if of_flows(&self.key) || of_flows(&self.elements) => Metric::Flows,
            None => Metric::Bytes,
        };
        let size = match (self.memory, self.error) {
            (Some(_), Some(error)) => {
                return Err(TaskError::Setting {
                    task: self.name.clone(),
                    field: "error",
                    value: error.to_string(),
                    allowed: "beside a memory; leave one of them out".to_owned(),
                });
            }
            (Some(memory), None) => talkers::Size::Memory(usize::try_from(memory.0).unwrap_or(usize::MAX)),
            (None, Some(error)) => talkers::Size::Error(error),
            (None, None) => match kind {
                Kind::HeavyHitters | Kind::TopK => talkers::Size::Memory(512 << 10),
                Kind::Spreaders => talkers::Size::Memory(2 << 20),
                Kind::Entropy => talkers::Size::Memory(64 << 10),
                Kind::Cardinality | Kind::Quantiles => talkers::Size::Error(0.01),
            },
        };
        let quantiles = match (kind, &self.quantiles[..]) {
            (Kind::Quantiles, []) => vec![0.5, 0.9, 0.99],
            (_, quantiles) => quantiles.to_vec(),
        };
        Ok(TaskConfig {
            name: self.name.clone(),
            kind,
            metric,
            key: self.key.clone(),
            elements: self.elements.clone(),
            measure: self.of.map(MeasureConfig::value),
            quantiles,
            lists: self.lists.clone(),
            size,
            window: self.window.nanos(),
            snapshot_interval: self.snapshot_interval.unwrap_or(Period::secs(10)).nanos().min(self.window.nanos()),
            threshold: self.threshold,
            rows_max: self.rows_max as usize,
        })
    }
}

/// What the workers feed, what collects their windows, and what answers.
pub(crate) type Started = (Vec<Feed>, Collector, Arc<Board>);

impl SketchesSection {
    /// What the sketches take.
    ///
    /// # Errors
    /// What cannot be, by key.
    fn to_tasks(&self) -> Result<Vec<TaskConfig>, ConfigError> {
        self.tasks.iter().map(TaskSection::to_task).collect::<Result<_, _>>().map_err(refused)
    }

    /// Whether all tasks can be, with the fewest workers there are, and also where they are not enabled.
    ///
    /// # Errors
    /// What cannot be, by key.
    pub(super) fn validate(&self) -> Result<(), ConfigError> {
        talkers::check(self.to_tasks()?, 1, 1, self.memory_max(), 0).map(drop).map_err(refused)
    }

    fn memory_max(&self) -> usize {
        usize::try_from(self.memory_max.0).unwrap_or(usize::MAX)
    }

    /// Makes the sketches of all workers; `None` if they are not enabled.
    ///
    /// # Errors
    /// What cannot be, by key.
    pub(crate) fn start(
        &self,
        taps: &[String],
        worker_taps: &[usize],
        when_full: WhenFull,
    ) -> Result<Option<Started>, ConfigError> {
        if !self.enabled {
            return Ok(None);
        }
        // A replay with one worker gives the same estimates each time; where a live server puts a key is for nobody to know.
        let (seed, when_behind) = match when_full {
            WhenFull::Wait => (0, WhenBehind::Wait),
            WhenFull::Drop => (std::hash::RandomState::new().build_hasher().finish(), WhenBehind::GoOn),
        };
        let tasks = self.to_tasks()?;
        let started =
            talkers::start(tasks, taps, worker_taps, self.memory_max(), seed, when_behind).map_err(refused)?;
        started.2.share_running(RUNNING_EVERY);
        Ok(Some(started))
    }
}

/// How often the window being filled is copied for questions: seldom enough that a worker does not feel it
/// (`sketches --only reader`).
const RUNNING_EVERY: Duration = Duration::from_millis(100);

fn refused(error: TaskError) -> ConfigError {
    ConfigError::Stage(format!("sketches.{error}"))
}
