//! Alerts: the hub they are published to, and the service that passes them on.

mod hub;
pub(crate) mod message;
mod service;

pub(crate) use hub::HubError;
pub use hub::{AlertHub, SUBSCRIBER_ALERTS_MAX, SUBSCRIBERS_MAX};
pub(crate) use service::Alerts;
