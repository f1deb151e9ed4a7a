//! Flows: the service that finds them, and how they travel.

mod message;
mod page;
mod service;

pub(crate) use service::Flows;
