#![doc = include_str!("../README.md")]

mod huge;
mod prefetch;

pub use huge::reserve;
pub use prefetch::prefetch;
