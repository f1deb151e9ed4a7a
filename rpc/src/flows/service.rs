use super::message::flows_from_batch;
use super::page::{KEY_COLUMNS, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Position, read_page};
use crate::arrow_stream::Encoder;
use crate::metrics::{Method, QueryMetrics, Sent};
use crate::scope::{Scope, reader_gone};
use crate::status::{ToStatus, micros, page_size};
use crate::v1::flow_service_server::FlowService;
use crate::{token, v1};
use futures::StreamExt;
use prost::Message;
use prost::bytes::Bytes;
use query::{Engine, FlowQuery, QueryError, QueryStream};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

/// Flows in one message of `StreamFlows`: some 250 bytes each.
const STREAM_FLOWS_MAX: usize = 1_000;
/// Columns a request may name; there are fewer, so more is a mistake.
pub(crate) const COLUMNS_MAX: usize = 1_000;

/// `FlowService` over an engine.
pub(crate) struct Flows {
    pub(crate) engine: Engine,
    pub(crate) metrics: Arc<QueryMetrics>,
    pub(crate) closing: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl FlowService for Flows {
    async fn list_flows(
        &self,
        request: Request<v1::ListFlowsRequest>,
    ) -> Result<Response<v1::ListFlowsResponse>, Status> {
        let mut guard = self.metrics.start(Method::ListFlows);
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let request = request.into_inner();
        let page = scope.run(list(&self.engine, request)).await;
        guard.finish(page.as_ref().map_or_else(Status::code, |_| Code::Ok));
        if let Ok(page) = &page {
            guard.sent().rows(page.flows.len());
            guard.sent().bytes(page.encoded_len());
        }
        page.map(Response::new)
    }

    type StreamFlowsStream = ReceiverStream<Result<v1::StreamFlowsResponse, Status>>;

    async fn stream_flows(
        &self,
        request: Request<v1::StreamFlowsRequest>,
    ) -> Result<Response<Self::StreamFlowsStream>, Status> {
        let guard = self.metrics.start(Method::StreamFlows);
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let engine = self.engine.clone();
        let request = request.into_inner();
        let stream = scope.answer(guard, |sent, sender| stream_flows(engine, request, sent, sender));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type StreamFlowsArrowStream = ReceiverStream<Result<v1::QueryResponse, Status>>;

    async fn stream_flows_arrow(
        &self,
        request: Request<v1::StreamFlowsRequest>,
    ) -> Result<Response<Self::StreamFlowsArrowStream>, Status> {
        let guard = self.metrics.start(Method::StreamFlows);
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let engine = self.engine.clone();
        let request = request.into_inner();
        let stream = scope.answer(guard, |sent, sender| async move {
            let query = FlowQuery {
                limit: (request.limit > 0).then_some(request.limit),
                ..flow_query(request.filter, &request.start_time, &request.end_time, &request.columns)?
            };
            let query = FlowQuery { columns: request.columns, ..query };
            stream_arrow(engine.flows(query).await, sent, sender).await
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type QueryStream = ReceiverStream<Result<v1::QueryResponse, Status>>;

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<Self::QueryStream>, Status> {
        let guard = self.metrics.start(Method::Query);
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let engine = self.engine.clone();
        let sql = request.into_inner().sql;
        let stream = scope.answer(guard, |sent, sender| async move {
            let answer = engine.sql(&sql).await;
            stream_arrow(answer, sent, sender).await
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

async fn list(engine: &Engine, request: v1::ListFlowsRequest) -> Result<v1::ListFlowsResponse, Status> {
    let fingerprint =
        token::fingerprint(&[
            &v1::ListFlowsRequest { page_size: 0, page_token: String::new(), ..request.clone() }.encode_to_vec()
        ]);
    let size = page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
    let position =
        token::decode(&request.page_token, fingerprint)?.map_or_else(Position::default, Position::from_bytes);
    let query = flow_query(request.filter, &request.start_time, &request.end_time, &request.columns)?;
    let page = read_page(engine, query, position, size).await.map_err(|e| e.to_status())?;
    let mut flows = Vec::with_capacity(size);
    for batch in &page.batches {
        flows.extend(flows_from_batch(batch).map_err(|e| e.to_status())?);
    }
    let next_page_token =
        page.next.map_or_else(String::new, |position| token::encode(fingerprint, position.to_bytes()));
    Ok(v1::ListFlowsResponse { flows, next_page_token })
}

async fn stream_flows(
    engine: Engine,
    request: v1::StreamFlowsRequest,
    sent: Sent,
    sender: mpsc::Sender<Result<v1::StreamFlowsResponse, Status>>,
) -> Result<(), Status> {
    let query = FlowQuery {
        limit: Some(request.limit),
        ..flow_query(request.filter, &request.start_time, &request.end_time, &request.columns)?
    };
    let mut batches = match request.limit {
        0 => everything(&engine, query).await,
        _ => engine.flows(query).await,
    }
    .map_err(|e| e.to_status())?;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|e| e.to_status())?;
        for start in (0..batch.num_rows()).step_by(STREAM_FLOWS_MAX) {
            let part = batch.slice(start, STREAM_FLOWS_MAX.min(batch.num_rows() - start));
            let flows = flows_from_batch(&part).map_err(|e| e.to_status())?;
            sent.rows(flows.len());
            let message = v1::StreamFlowsResponse { flows };
            sent.bytes(message.encoded_len());
            sender.send(Ok(message)).await.map_err(reader_gone)?;
        }
    }
    Ok(())
}

/// All rows of `query` in the order they are read. A listing would sort them, and hold them for that.
pub(crate) async fn everything(engine: &Engine, query: FlowQuery) -> Result<QueryStream, QueryError> {
    let mut conditions = vec![];
    if let Some(filter) = &query.filter {
        // On lines of its own: it may end in a comment.
        conditions.push(format!("(\n{filter}\n)"));
    }
    conditions.extend(query.since.map(|since| format!("t_end >= to_timestamp_micros({since})")));
    conditions.extend(query.until.map(|until| format!("t_start < to_timestamp_micros({until})")));
    let selection = match conditions.is_empty() {
        true => String::new(),
        false => format!(" where {}", conditions.join(" and ")),
    };
    let columns = match query.columns.is_empty() {
        true => engine.flow_schema().fields().iter().map(|field| field.name().clone()).collect(),
        false => query.columns.clone(),
    };
    // Planned as a listing first: what passes there is one expression over existing columns, so it cannot close the
    // parenthesis, and what does not is refused with places in the caller's text.
    drop(engine.flows(FlowQuery { limit: Some(1), ..query }).await?);
    engine.sql(&format!("select {} from flows{selection}", columns.join(", "))).await
}

async fn stream_arrow(
    answer: Result<QueryStream, QueryError>,
    sent: Sent,
    sender: mpsc::Sender<Result<v1::QueryResponse, Status>>,
) -> Result<(), Status> {
    let send = async |arrow_ipc: Bytes| {
        sent.bytes(arrow_ipc.len());
        sender.send(Ok(v1::QueryResponse { arrow_ipc })).await.map_err(reader_gone)
    };
    let mut batches = answer.map_err(|e| e.to_status())?;
    let mut encoder = Encoder::new(&batches.schema()).map_err(|e| e.to_status())?;
    send(encoder.schema()).await?;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|e| e.to_status())?;
        for chunk in encoder.batch(&batch).map_err(|e| e.to_status())? {
            send(chunk).await?;
        }
        sent.rows(batch.num_rows());
    }
    send(encoder.finish().map_err(|e| e.to_status())?).await
}

/// What `ListFlows` and `StreamFlows` share. The columns that name a record come first.
fn flow_query(
    filter: String,
    since: &Option<prost_types::Timestamp>,
    until: &Option<prost_types::Timestamp>,
    columns: &[String],
) -> Result<FlowQuery, Status> {
    if columns.len() > COLUMNS_MAX {
        let count = columns.len();
        return Err(Status::invalid_argument(format!("columns names {count} columns, allowed are {COLUMNS_MAX}")));
    }
    let columns = with_key(columns);
    let (since, until) = (micros("start_time", since)?, micros("end_time", until)?);
    if since.zip(until).is_some_and(|(since, until)| since > until) {
        return Err(Status::invalid_argument("end_time lies before start_time, and no time between them"));
    }
    Ok(FlowQuery {
        filter: (!filter.trim().is_empty()).then_some(filter),
        since,
        until,
        columns,
        limit: None,
        after: None,
    })
}

/// The columns that name a record, and then those asked for; none for all.
pub(crate) fn with_key(columns: &[String]) -> Vec<String> {
    if columns.is_empty() {
        return Vec::new();
    }
    let mut all: Vec<String> = KEY_COLUMNS.map(str::to_owned).into();
    for column in columns {
        if !all.contains(column) {
            all.push(column.clone());
        }
    }
    all
}
