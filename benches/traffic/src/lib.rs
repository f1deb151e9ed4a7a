#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod attack;
mod config;
mod dns;
mod encode;
mod endless;
mod fixed;
pub mod frames;
mod generator;
pub mod pcap;
mod rng;
mod schedule;
mod session;
mod truth;

pub use config::{Config, Sizes};
pub use endless::{Endless, EndlessConfig};
pub use generator::Generator;
pub use rng::Rng;
pub use schedule::Meta;
pub use truth::{Attack, AttackKind, Closed, FlowTruth, Truth};
