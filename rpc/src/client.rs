//! The other side: how a command reaches a running server.

use crate::v1::alert_service_client::AlertServiceClient;
use crate::v1::capture_service_client::CaptureServiceClient;
use crate::v1::flow_service_client::FlowServiceClient;
use crate::v1::sketch_service_client::SketchServiceClient;
use crate::v1::slice_service_client::SliceServiceClient;
use crate::{Decoder, MESSAGE_BYTES_MAX, RpcError, v1};
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use query::FlowQuery;
use std::collections::VecDeque;
use std::error::Error;
use std::sync::Arc;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// How long a server has to take a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The services of one server, over one connection.
#[derive(Clone, Debug)]
pub struct Client {
    /// Flows, paged, streamed or by SQL.
    pub flows: FlowServiceClient<Channel>,
    /// Alerts, listed or as they happen.
    pub alerts: AlertServiceClient<Channel>,
    /// The server's state and its loss ledger.
    pub capture: CaptureServiceClient<Channel>,
    /// What is estimated in windows.
    pub sketches: SketchServiceClient<Channel>,
    /// Packets kept on request.
    pub slices: SliceServiceClient<Channel>,
}

/// Connects to the server at `addr`, written `host:port`.
///
/// # Errors
/// [`RpcError::Address`] if `addr` does not read as one, [`RpcError::NoServer`] if nobody answers there.
pub async fn connect(addr: &str) -> Result<Client, RpcError> {
    let malformed = || RpcError::Address { addr: addr.to_owned() };
    let bare = addr.strip_prefix("http://").unwrap_or(addr);
    let (host, port) = bare.rsplit_once(':').ok_or_else(malformed)?;
    if host.is_empty() || port.parse::<u16>().is_err() {
        return Err(malformed());
    }
    let endpoint = Endpoint::from_shared(format!("http://{bare}"))
        .map_err(|_| malformed())?
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true);
    let channel = endpoint
        .connect()
        .await
        .map_err(|source| RpcError::NoServer { addr: bare.to_owned(), reason: innermost(&source) })?;
    Ok(Client {
        flows: FlowServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
        alerts: AlertServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
        sketches: SketchServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
        slices: SliceServiceClient::new(channel.clone())
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
        capture: CaptureServiceClient::new(channel)
            .max_decoding_message_size(MESSAGE_BYTES_MAX)
            .max_encoding_message_size(MESSAGE_BYTES_MAX),
    })
}

/// The cause that people know: "connection refused" rather than "transport error".
fn innermost(error: &dyn Error) -> String {
    let mut error = error;
    while let Some(source) = error.source() {
        error = source;
    }
    error.to_string().to_lowercase()
}

impl Client {
    /// Runs a SQL query on the server.
    ///
    /// # Errors
    /// [`RpcError::Status`] with the server's message if it refuses the query.
    pub async fn query(&mut self, sql: &str) -> Result<BatchStream, RpcError> {
        BatchStream::begin(self.flows.query(v1::QueryRequest { sql: sql.to_owned() }).await?.into_inner()).await
    }

    /// Lists flows, newest first. `query.after` is not asked for: one stream brings all pages.
    ///
    /// # Errors
    /// [`RpcError::Status`] with the server's message if it refuses the question.
    pub async fn flows(&mut self, query: &FlowQuery) -> Result<BatchStream, RpcError> {
        let request = v1::StreamFlowsRequest {
            filter: query.filter.clone().unwrap_or_default(),
            start_time: query.since.map(timestamp_micros),
            end_time: query.until.map(timestamp_micros),
            columns: query.columns.clone(),
            limit: query.limit.unwrap_or(0),
        };
        BatchStream::begin(self.flows.stream_flows_arrow(request).await?.into_inner()).await
    }

    /// The server's state.
    ///
    /// # Errors
    /// [`RpcError::Status`] if the server does not answer.
    pub async fn status(&mut self) -> Result<v1::Status, RpcError> {
        let response = self.capture.get_status(v1::GetStatusRequest {}).await?.into_inner();
        Ok(response.status.unwrap_or_default())
    }
}

/// The answer to a SQL query, batch by batch. Dropping it cancels the query.
#[derive(Debug)]
pub struct BatchStream {
    stream: tonic::Streaming<v1::QueryResponse>,
    decoder: Decoder,
    ready: VecDeque<RecordBatch>,
    schema: Option<SchemaRef>,
    ended: bool,
}

/// µs since 1970, as protobuf has it.
fn timestamp_micros(us: i64) -> prost_types::Timestamp {
    prost_types::Timestamp { seconds: us.div_euclid(1_000_000), nanos: us.rem_euclid(1_000_000) as i32 * 1000 }
}

impl BatchStream {
    /// Reads up to the schema.
    async fn begin(stream: tonic::Streaming<v1::QueryResponse>) -> Result<BatchStream, RpcError> {
        let mut stream =
            BatchStream { stream, decoder: Decoder::new(), ready: VecDeque::new(), schema: None, ended: false };
        while stream.schema.is_none() && stream.advance().await? {}
        Ok(stream)
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone().unwrap_or_else(|| Arc::new(Schema::empty()))
    }

    /// The next batch; `None` after the last.
    ///
    /// # Errors
    /// [`RpcError::Status`] if the query failed on its way, [`RpcError::Decode`] if the answer makes no sense.
    pub async fn next(&mut self) -> Result<Option<RecordBatch>, RpcError> {
        loop {
            if let Some(batch) = self.ready.pop_front() {
                return Ok(Some(batch));
            }
            if !self.advance().await? {
                return Ok(None);
            }
        }
    }

    /// Takes one message; false at the end.
    async fn advance(&mut self) -> Result<bool, RpcError> {
        if self.ended {
            return Ok(false);
        }
        match self.stream.message().await? {
            Some(message) => {
                self.ready.extend(self.decoder.push(message.arrow_ipc)?);
                if self.schema.is_none() {
                    self.schema = self.decoder.schema();
                }
            }
            None => {
                self.ended = true;
                self.decoder.finish()?;
            }
        }
        Ok(!self.ended)
    }
}
