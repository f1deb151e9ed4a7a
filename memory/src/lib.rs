#![doc = include_str!("../README.md")]

mod huge;
mod prefetch;

pub use huge::{reserve, zeroed};
pub use prefetch::prefetch;
