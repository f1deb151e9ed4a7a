#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod capture;
pub mod flows;
pub mod harness;
pub mod peers;
pub mod stages;
mod svg;
pub mod table;
