#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod alerts;
mod arrow_stream;
pub mod client;
mod error;
mod flight;
mod flows;
mod http;
pub mod metrics;
mod rest;
mod scope;
mod server;
mod sketches;
mod slices;
mod status;
mod token;

pub use alerts::message::alert_from_message;
pub use alerts::{AlertHub, SUBSCRIBER_ALERTS_MAX, SUBSCRIBERS_MAX};
pub use arrow_stream::Decoder;
pub use error::RpcError;
pub use http::{HttpServices, serve_http};
pub use rest::parse_time;
pub use server::{Services, bind, serve_grpc};
pub use slices::SliceControl;

use std::sync::Arc;

/// The messages and services of `proto/taphouse/v1`, generated. Their documentation stands in the proto files.
#[allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated from the proto files"
)]
pub mod v1 {
    tonic::include_proto!("taphouse.v1");
}

/// Descriptors of the proto files, encoded, as reflection serves them.
pub const FILE_DESCRIPTOR_SET: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/taphouse.v1.bin"));

/// Bytes of one gRPC message at most, in both directions, at server and client.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Supplies what `CaptureService` and the metrics tell. Called once a request or scrape, on a thread that may block.
pub type StatusFn = Arc<dyn Fn() -> v1::Status + Send + Sync>;
