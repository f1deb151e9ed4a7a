#![doc = include_str!("../README.md")]

mod expiring;
mod huge;
mod prefetch;

pub use expiring::{Expiring, Slot};
pub use huge::{reserve, zeroed};
pub use prefetch::prefetch;
