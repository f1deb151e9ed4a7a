#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod alert;
mod config;
mod counters;
mod detectors;
mod emergency;
mod error;
mod log;
mod loss;
mod lru;
mod port_scan;
mod sources;
mod tick;
mod traffic_spike;

pub use alert::{Alert, AlertState, Evidence, Severity, format_time};
pub use config::{DetectConfig, FeedLimits, PortScanConfig, TrafficSpikeConfig};
pub use counters::DetectCounters;
pub use detectors::Detectors;
pub use emergency::{EmergencyDetector, TableReading};
pub use error::DetectError;
pub use log::{AlertLog, Recovery};
pub use loss::{LossDetector, LossReading};
pub use tick::{OpeningKind, TICK, Tick, TickFeed, tick_of};
