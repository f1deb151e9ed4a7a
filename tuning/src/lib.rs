#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod advice;
mod capabilities;
mod host;
mod interface;
mod route;
mod sysfs;

pub use advice::{Advice, advice};
pub use capabilities::Capabilities;
pub use host::{Host, HugePages, MemlockLimit};
pub use interface::Interface;
pub use route::TuningError;
pub use sysfs::Sysfs;

/// Effective capabilities of this process.
pub fn capabilities() -> Capabilities {
    Sysfs::default().capabilities()
}

/// Name of the interface that carries the default route.
///
/// # Errors
/// There is none; the error lists the interfaces that could be named instead.
pub fn default_route_interface() -> Result<String, TuningError> {
    Sysfs::default().default_route_interface()
}

/// Network interfaces of this network namespace, by index.
pub fn interfaces() -> Vec<Interface> {
    Sysfs::default().interfaces()
}

/// This host.
pub fn inspect() -> Host {
    Sysfs::default().inspect()
}
