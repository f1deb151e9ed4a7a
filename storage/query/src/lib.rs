#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod address;
mod community_id;
mod engine;
mod error;
mod flows;
mod functions;
mod locate;
mod parse;
mod probe;
mod prune;
mod reader;
pub mod render;
mod stop;
mod stream;
mod table;

pub use community_id::community_id;
pub use engine::{Engine, FlowSource, QueryLimits};
pub use error::QueryError;
pub use flows::{Cursor, FlowQuery};
pub use locate::Located;
pub use parse::{TEXT_BYTES_MAX, TEXT_WORDS_MAX};
pub use reader::ScanStats;
pub use stream::QueryStream;
