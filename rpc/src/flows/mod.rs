//! Flows: the service that finds them, and how they travel.

mod message;
mod page;
mod service;

pub(crate) use message::timestamp;
pub(crate) use page::{PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Position, read_page};
pub(crate) use service::{COLUMNS_MAX, Flows, everything, with_key};
