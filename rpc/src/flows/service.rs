use super::message::flows_from_batch;
use super::page::{Key, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX, Position};
use crate::arrow_stream::Encoder;
use crate::metrics::{Method, QueryGuard, QueryMetrics};
use crate::scope::{Scope, reader_gone};
use crate::status::{ToStatus, micros, page_size};
use crate::v1::flow_service_server::FlowService;
use crate::{token, v1};
use futures::StreamExt;
use prost::Message;
use query::{Cursor, Engine, FlowQuery, QueryError, QueryStream};
use std::sync::Arc;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Request, Response, Status};

/// Flows in one message of `StreamFlows`: some 250 bytes each.
const STREAM_FLOWS_MAX: usize = 1_000;
/// Columns a request may name; there are fewer, so more is a mistake.
const COLUMNS_MAX: usize = 1_000;

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
        guard.rows(page.as_ref().map_or(0, |page| page.flows.len()));
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
        let stream = counted(scope, guard, |rows, sender| stream_flows(engine, request, rows, sender));
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
        let stream = counted(scope, guard, |rows, sender| async move {
            let query = FlowQuery {
                limit: (request.limit > 0).then_some(request.limit),
                ..flow_query(request.filter, &request.start_time, &request.end_time, &request.columns)?
            };
            let query = FlowQuery { columns: request.columns, ..query };
            stream_arrow(engine.flows(query).await, rows, sender).await
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    type QueryStream = ReceiverStream<Result<v1::QueryResponse, Status>>;

    async fn query(&self, request: Request<v1::QueryRequest>) -> Result<Response<Self::QueryStream>, Status> {
        let guard = self.metrics.start(Method::Query);
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let engine = self.engine.clone();
        let sql = request.into_inner().sql;
        let stream = counted(scope, guard, |rows, sender| async move {
            let answer = engine.sql(&sql).await;
            stream_arrow(answer, rows, sender).await
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// Counts rows as they are handed over.
type Rows = Arc<dyn Fn(usize) + Send + Sync>;

/// Streams `work`, which counts its rows, and records how it ended.
fn counted<T, W>(
    scope: Scope,
    mut guard: QueryGuard,
    work: impl FnOnce(Rows, mpsc::Sender<Result<T, Status>>) -> W,
) -> mpsc::Receiver<Result<T, Status>>
where
    T: Send + 'static,
    W: Future<Output = Result<(), Status>> + Send + 'static,
{
    let rows = guard.row_counter();
    scope.stream(|sender| work(rows, sender), move |code| guard.finish(code))
}

async fn list(engine: &Engine, request: v1::ListFlowsRequest) -> Result<v1::ListFlowsResponse, Status> {
    let fingerprint =
        token::fingerprint(&[
            &v1::ListFlowsRequest { page_size: 0, page_token: String::new(), ..request.clone() }.encode_to_vec()
        ]);
    let size = page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
    let position =
        token::decode(&request.page_token, fingerprint)?.map_or_else(Position::default, Position::from_bytes);
    let skip = position.skip as usize;
    // One row beyond the page tells whether there is another.
    let wanted = u64::from(position.skip) + size as u64 + 1;
    let query = FlowQuery {
        limit: Some(wanted),
        after: position.after.map(|key| Cursor { t_end: key.t_end, flow_id: key.flow_id, part: key.part }),
        ..flow_query(request.filter, &request.start_time, &request.end_time, &request.columns)?
    };
    let mut batches = engine.flows(query).await.map_err(|e| e.to_status())?;
    let mut flows = Vec::with_capacity(size + 1);
    let mut passed = 0;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|e| e.to_status())?;
        let skipped = (skip - passed).min(batch.num_rows());
        passed += skipped;
        let rest = batch.slice(skipped, (batch.num_rows() - skipped).min(size + 1 - flows.len()));
        flows.extend(flows_from_batch(&rest).map_err(|e| e.to_status())?);
    }
    let next_page_token = if flows.len() > size {
        let keys = flows.iter().map(key).collect::<Result<Vec<Key>, Status>>()?;
        flows.truncate(size);
        token::encode(fingerprint, position.advance(&keys[..size], keys[size]).to_bytes())
    } else {
        String::new()
    };
    Ok(v1::ListFlowsResponse { flows, next_page_token })
}

async fn stream_flows(
    engine: Engine,
    request: v1::StreamFlowsRequest,
    rows: Rows,
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
            rows(flows.len());
            sender.send(Ok(v1::StreamFlowsResponse { flows })).await.map_err(reader_gone)?;
        }
    }
    Ok(())
}

/// All rows of `query` in the order they are read. A listing would sort them, and hold them for that.
async fn everything(engine: &Engine, query: FlowQuery) -> Result<QueryStream, QueryError> {
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
    rows: Rows,
    sender: mpsc::Sender<Result<v1::QueryResponse, Status>>,
) -> Result<(), Status> {
    let send = async |arrow_ipc| sender.send(Ok(v1::QueryResponse { arrow_ipc })).await.map_err(reader_gone);
    let mut batches = answer.map_err(|e| e.to_status())?;
    let mut encoder = Encoder::new(&batches.schema()).map_err(|e| e.to_status())?;
    send(encoder.schema()).await?;
    while let Some(batch) = batches.next().await {
        let batch = batch.map_err(|e| e.to_status())?;
        for chunk in encoder.batch(&batch).map_err(|e| e.to_status())? {
            send(chunk).await?;
        }
        rows(batch.num_rows());
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
    let columns = if columns.is_empty() {
        Vec::new()
    } else {
        let mut all: Vec<String> = ["t_end", "flow_id", "part"].map(str::to_owned).into();
        for column in columns {
            if !all.contains(column) {
                all.push(column.clone());
            }
        }
        all
    };
    Ok(FlowQuery {
        filter: (!filter.trim().is_empty()).then_some(filter),
        since: micros("start_time", since)?,
        until: micros("end_time", until)?,
        columns,
        limit: None,
        after: None,
    })
}

fn key(flow: &v1::Flow) -> Result<Key, Status> {
    let internal = || Status::internal("a flow came back without the columns that name it");
    let time = flow.t_end.ok_or_else(internal)?;
    Ok(Key {
        t_end: time.seconds * 1_000_000 + i64::from(time.nanos / 1_000),
        flow_id: flow.flow_id,
        part: u16::try_from(flow.part).map_err(|_| internal())?,
    })
}
