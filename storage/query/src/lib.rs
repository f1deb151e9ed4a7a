#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod address;
mod community_id;
mod engine;
mod error;
mod explain;
mod flows;
mod functions;
mod geo;
mod keys;
mod live;
mod locate;
mod memory;
mod parameters;
mod parse;
mod ports;
mod prepare;
mod probe;
mod prune;
pub mod question;
mod reader;
pub mod render;
mod seek;
mod stop;
mod stream;
mod table;
mod times;
mod view;

pub use community_id::community_id;
pub use engine::{CATALOG, Engine, FlowSource, QueryLimits, SCHEMA};
pub use error::{QueryError, Reading};
pub use flows::{Cursor, FlowQuery};
pub use geo::GeoFiles;
pub use live::{LiveRows, LiveTable, LiveTableError};
pub use locate::Located;
pub use parameters::{ParameterError, Parameters};
pub use parse::{TEXT_BYTES_MAX, TEXT_WORDS_MAX};
pub use prepare::{Prepared, TableInfo};
pub use reader::ScanStats;
pub use stream::QueryStream;
pub use view::{Addresses, View};
