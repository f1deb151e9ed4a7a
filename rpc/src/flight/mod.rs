//! Arrow Flight SQL: the protocol of ADBC and JDBC drivers, over the engine that answers `FlowService`.

mod catalog;
mod prepared;
mod running;
mod ticket;

use crate::arrow_stream::parts;
use crate::metrics::{Method, QueryMetrics, Sent};
use crate::scope::{Scope, reader_gone};
use crate::status::ToStatus;
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use arrow::error::ArrowError;
use arrow::ipc::writer::IpcWriteOptions;
use arrow_flight::decode::FlightRecordBatchStream;
use arrow_flight::encode::FlightDataEncoderBuilder;
use arrow_flight::error::FlightError;
use arrow_flight::flight_descriptor::DescriptorType;
use arrow_flight::flight_service_server::FlightService;
use arrow_flight::sql::{
    ActionCancelQueryRequest, ActionCancelQueryResult, ActionClosePreparedStatementRequest,
    ActionCreatePreparedStatementRequest, ActionCreatePreparedStatementResult, Any, Command,
    DoPutPreparedStatementResult, ProstMessageExt,
};
use arrow_flight::{
    Action, ActionType, CancelFlightInfoRequest, CancelFlightInfoResult, CancelStatus, Criteria, Empty, FlightData,
    FlightDescriptor, FlightEndpoint, FlightInfo, HandshakeRequest, HandshakeResponse, IpcMessage, PollInfo, PutResult,
    SchemaAsIpc, SchemaResult, Ticket,
};
use futures::stream::{self, BoxStream};
use futures::{Stream, StreamExt};
use prepared::{PreparedStatements, Statement};
use prost::Message;
use prost::bytes::Bytes;
use query::{Addresses, Engine, Parameters, QueryError, View};
use running::Running;
use std::sync::Arc;
use std::time::Instant;
use ticket::{Question, command, write_batch};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status, Streaming};

/// The call header by which a client chooses how addresses come: `text` or `binary`.
const ADDRESSES_HEADER: &str = "taphouse-addresses";

const CREATE_PREPARED: &str = "CreatePreparedStatement";
const CLOSE_PREPARED: &str = "ClosePreparedStatement";
const CANCEL_QUERY: &str = "CancelQuery";
const CANCEL_FLIGHT_INFO: &str = "CancelFlightInfo";

/// What `DoAction` does, and how `ListActions` describes it.
const ACTIONS: [(&str, &str); 4] = [
    (CREATE_PREPARED, "ActionCreatePreparedStatementRequest: plans a statement, parameters written ? or $1"),
    (CLOSE_PREPARED, "ActionClosePreparedStatementRequest: forgets a prepared statement"),
    (CANCEL_QUERY, "ActionCancelQueryRequest: cancels the answers to a question that are on their way"),
    (CANCEL_FLIGHT_INFO, "CancelFlightInfoRequest: the same"),
];

/// Flight SQL over an engine.
pub(crate) struct FlightSql {
    engine: Engine,
    metrics: Arc<QueryMetrics>,
    closing: watch::Receiver<bool>,
    prepared: PreparedStatements,
    running: Running,
}

impl FlightSql {
    pub(crate) fn new(engine: Engine, metrics: Arc<QueryMetrics>, closing: watch::Receiver<bool>) -> FlightSql {
        let prepared = PreparedStatements::new(metrics.clone());
        FlightSql { engine, metrics, closing, prepared, running: Running::default() }
    }

    fn scope(&self, metadata: &MetadataMap) -> Scope {
        Scope::new(metadata, self.closing.clone())
    }

    /// Plans on behalf of a call, within its deadline, and counts it.
    async fn plan<T>(
        &self,
        metadata: &MetadataMap,
        work: impl Future<Output = Result<T, QueryError>>,
    ) -> Result<T, Status> {
        let mut guard = self.metrics.start(Method::FlightPlan);
        let planned = self.scope(metadata).run(async { work.await.map_err(|e| e.to_status()) }).await;
        guard.finish(planned.as_ref().map_or_else(Status::code, |_| Code::Ok));
        planned
    }

    /// What a descriptor asks for: the columns of the answer, and the ticket for it.
    async fn look_up(
        &self,
        descriptor: &FlightDescriptor,
        metadata: &MetadataMap,
    ) -> Result<(SchemaRef, Ticket), Status> {
        let addresses = addresses(metadata)?;
        let (sql, parameters) = match descriptor.r#type() {
            DescriptorType::Path => (whole_table(&descriptor.path)?, Bytes::new()),
            _ => match command(&descriptor.cmd)? {
                Command::CommandStatementQuery(statement) => (statement.query, Bytes::new()),
                Command::CommandPreparedStatementQuery(prepared) => {
                    let statement = self.prepared.get(&prepared.prepared_statement_handle, Instant::now())?;
                    (statement.sql, statement.parameters.unwrap_or_default())
                }
                other => {
                    let schema = catalog::answer(&other, &[], addresses)?.schema();
                    return Ok((schema, Ticket::new(descriptor.cmd.clone())));
                }
            },
        };
        let text = addresses == Addresses::Text;
        let question = Question { sql, parameters, text, id: self.running.question() };
        let columns = self.plan(metadata, self.engine.describe(&question.sql, question.parameters()?)).await?;
        Ok((View::new(&columns, addresses).schema(), question.to_ticket()))
    }

    async fn info(&self, request: Request<FlightDescriptor>) -> Result<FlightInfo, Status> {
        let (metadata, _, descriptor) = request.into_parts();
        let (schema, ticket) = self.look_up(&descriptor, &metadata).await?;
        let info = FlightInfo::new().try_with_schema(&schema).map_err(|e| e.to_status())?;
        Ok(info.with_endpoint(FlightEndpoint::new().with_ticket(ticket)).with_descriptor(descriptor))
    }

    /// Streams the answer to a question, two messages ahead of the reader.
    fn answer(&self, question: Question, scope: Scope) -> Messages {
        let guard = self.metrics.start(Method::FlightGet);
        let (running, cancelled) = self.running.begin(question.id);
        let engine = self.engine.clone();
        let messages = scope.answer(guard, |sent, sender| async move {
            let _running = running;
            tokio::select! {
                biased;
                ended = send_answer(engine, question, sent, sender) => ended,
                Ok(()) = cancelled => Err(Status::cancelled("the query was cancelled by a client")),
            }
        });
        ReceiverStream::new(messages).boxed()
    }

    /// Answers a question about the catalog.
    async fn catalog(&self, question: Command, metadata: &MetadataMap) -> Result<Messages, Status> {
        let addresses = addresses(metadata)?;
        let tables = match question {
            Command::CommandGetTables(_) => self.plan(metadata, self.engine.tables()).await?,
            _ => Vec::new(),
        };
        let batch = catalog::answer(&question, &tables, addresses)?;
        let schema = batch.schema();
        let messages = messages(schema, stream::once(async { Ok(batch) }));
        Ok(messages.map(|message| message.map_err(flight_status)).boxed())
    }

    async fn prepare(
        &self,
        request: ActionCreatePreparedStatementRequest,
        metadata: &MetadataMap,
    ) -> Result<ActionCreatePreparedStatementResult, Status> {
        let addresses = addresses(metadata)?;
        let planned = self.plan(metadata, self.engine.prepare(&request.query)).await?;
        let parameters_count = planned.parameters.fields().len();
        let ipc = |schema: &Schema| ipc_schema(&View::new(schema, addresses).schema()).map_err(|e| e.to_status());
        let (dataset_schema, parameter_schema) = (ipc(&planned.columns)?, ipc(&planned.parameters)?);
        let statement = Statement { sql: request.query, parameters_count, parameters: None };
        let prepared_statement_handle = self.prepared.open(statement, Instant::now())?;
        Ok(ActionCreatePreparedStatementResult { prepared_statement_handle, dataset_schema, parameter_schema })
    }

    /// Takes the values of a prepared statement's parameters from an upload.
    async fn bind(&self, handle: &Bytes, upload: impl Stream<Item = Upload> + Send + 'static) -> Result<(), Status> {
        let statement = self.prepared.get(handle, Instant::now())?;
        let mut batches = FlightRecordBatchStream::new_from_flight_data(upload);
        let mut row: Option<RecordBatch> = None;
        while let Some(batch) = batches.next().await {
            let batch = batch.map_err(flight_status)?;
            let rows = row.as_ref().map_or(0, RecordBatch::num_rows) + batch.num_rows();
            if rows > 1 {
                return Err(QueryError::from(query::ParameterError::Rows { rows }).to_status());
            }
            row = if batch.num_rows() == 1 { Some(batch) } else { row.or(Some(batch)) };
        }
        let batch = row.ok_or_else(|| QueryError::from(query::ParameterError::Rows { rows: 0 }).to_status())?;
        let given = Parameters::from_batch(&batch).map_err(|e| QueryError::from(e).to_status())?.len();
        let expected = statement.parameters_count;
        if given != expected {
            return Err(QueryError::from(query::ParameterError::Count { expected, given }).to_status());
        }
        let values = write_batch(&batch).map_err(|e| e.to_status())?;
        self.prepared.bind(handle, values, Instant::now())
    }

    /// Cancels the answers to the question that some flight info is for.
    fn cancel(&self, info: Option<&FlightInfo>) -> Result<CancelStatus, Status> {
        let ticket = info.and_then(|info| info.endpoint.first()).and_then(|endpoint| endpoint.ticket.as_ref());
        let ticket = ticket.ok_or_else(|| Status::invalid_argument("the flight info has no ticket to cancel by"))?;
        let question = Question::from_ticket(ticket)?;
        match self.running.cancel(question.id) {
            true => Ok(CancelStatus::Cancelled),
            false => Err(Status::not_found("no answer to this query is on its way: it ended, or was not fetched yet")),
        }
    }
}

type Messages = BoxStream<'static, Result<FlightData, Status>>;
type Upload = Result<FlightData, FlightError>;

#[tonic::async_trait]
impl FlightService for FlightSql {
    type HandshakeStream = BoxStream<'static, Result<HandshakeResponse, Status>>;
    type ListFlightsStream = BoxStream<'static, Result<FlightInfo, Status>>;
    type DoGetStream = Messages;
    type DoPutStream = BoxStream<'static, Result<PutResult, Status>>;
    type DoActionStream = BoxStream<'static, Result<arrow_flight::Result, Status>>;
    type ListActionsStream = BoxStream<'static, Result<ActionType, Status>>;
    type DoExchangeStream = Messages;

    async fn handshake(
        &self,
        _: Request<Streaming<HandshakeRequest>>,
    ) -> Result<Response<Self::HandshakeStream>, Status> {
        Err(Status::unimplemented("this server asks for no credentials: connect without user name and password"))
    }

    async fn list_flights(&self, _: Request<Criteria>) -> Result<Response<Self::ListFlightsStream>, Status> {
        Err(Status::unimplemented("flights are not listed: ask for tables with a Flight SQL client"))
    }

    async fn get_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<FlightInfo>, Status> {
        self.info(request).await.map(Response::new)
    }

    async fn poll_flight_info(&self, request: Request<FlightDescriptor>) -> Result<Response<PollInfo>, Status> {
        // Planned is ready: rows are computed while they are fetched.
        let info = self.info(request).await?;
        let done = PollInfo { info: Some(info), flight_descriptor: None, progress: Some(1.0), expiration_time: None };
        Ok(Response::new(done))
    }

    async fn get_schema(&self, request: Request<FlightDescriptor>) -> Result<Response<SchemaResult>, Status> {
        let (metadata, _, descriptor) = request.into_parts();
        let (schema, _) = self.look_up(&descriptor, &metadata).await?;
        ipc_schema(&schema).map(|schema| Response::new(SchemaResult { schema })).map_err(|e| e.to_status())
    }

    async fn do_get(&self, request: Request<Ticket>) -> Result<Response<Messages>, Status> {
        let (metadata, _, ticket) = request.into_parts();
        let scope = self.scope(&metadata);
        let messages = match command(&ticket.ticket)? {
            Command::TicketStatementQuery(handle) => self.answer(Question::from_handle(&handle)?, scope),
            Command::CommandPreparedStatementQuery(prepared) => {
                let statement = self.prepared.get(&prepared.prepared_statement_handle, Instant::now())?;
                let question = Question {
                    sql: statement.sql,
                    parameters: statement.parameters.unwrap_or_default(),
                    text: addresses(&metadata)? == Addresses::Text,
                    id: self.running.question(),
                };
                self.answer(question, scope)
            }
            other => self.catalog(other, &metadata).await?,
        };
        Ok(Response::new(messages))
    }

    async fn do_put(&self, request: Request<Streaming<FlightData>>) -> Result<Response<Self::DoPutStream>, Status> {
        let (metadata, _, mut upload) = request.into_parts();
        let first = upload.message().await?.ok_or_else(|| Status::invalid_argument("the upload is empty"))?;
        let descriptor = first.flight_descriptor.clone().unwrap_or_default();
        let Command::CommandPreparedStatementQuery(prepared) = command(&descriptor.cmd)? else {
            return Err(only_reads());
        };
        let upload = stream::once(async { Ok(first) }).chain(upload.map(|data| data.map_err(FlightError::from)));
        let handle = prepared.prepared_statement_handle;
        self.scope(&metadata).run(self.bind(&handle, upload)).await?;
        let result = DoPutPreparedStatementResult { prepared_statement_handle: Some(handle) };
        let result = PutResult { app_metadata: result.encode_to_vec().into() };
        Ok(Response::new(stream::once(async { Ok(result) }).boxed()))
    }

    async fn do_exchange(&self, _: Request<Streaming<FlightData>>) -> Result<Response<Messages>, Status> {
        Err(only_reads())
    }

    async fn do_action(&self, request: Request<Action>) -> Result<Response<Self::DoActionStream>, Status> {
        let (metadata, _, action) = request.into_parts();
        let body = match action.r#type.as_str() {
            CREATE_PREPARED => {
                let request: ActionCreatePreparedStatementRequest = unpack(&action)?;
                Some(self.prepare(request, &metadata).await?.as_any().encode_to_vec())
            }
            CLOSE_PREPARED => {
                let request: ActionClosePreparedStatementRequest = unpack(&action)?;
                self.prepared.close(&request.prepared_statement_handle);
                None
            }
            CANCEL_QUERY => {
                let request: ActionCancelQueryRequest = unpack(&action)?;
                let info = FlightInfo::decode(request.info).map_err(|_| unreadable(CANCEL_QUERY))?;
                // `CancelResult` of Flight SQL numbers its values as `CancelStatus` of Flight does.
                let result = self.cancel(Some(&info))? as i32;
                Some(ActionCancelQueryResult { result }.as_any().encode_to_vec())
            }
            CANCEL_FLIGHT_INFO => {
                let request =
                    CancelFlightInfoRequest::decode(action.body).map_err(|_| unreadable(CANCEL_FLIGHT_INFO))?;
                let status = self.cancel(request.info.as_ref())? as i32;
                Some(CancelFlightInfoResult { status }.encode_to_vec())
            }
            "BeginTransaction" | "EndTransaction" | "BeginSavepoint" | "EndSavepoint" => {
                let told = "there are no transactions: each query sees one snapshot of all tables";
                return Err(Status::unimplemented(told));
            }
            other => {
                let known = ACTIONS.map(|(name, _)| name).join(", ");
                return Err(Status::unimplemented(format!("there is no action {other}: known are {known}")));
            }
        };
        let results = body.map(|body| Ok(arrow_flight::Result { body: body.into() }));
        Ok(Response::new(stream::iter(results).boxed()))
    }

    async fn list_actions(&self, _: Request<Empty>) -> Result<Response<Self::ListActionsStream>, Status> {
        let actions = ACTIONS.map(|(name, told)| Ok(ActionType { r#type: name.into(), description: told.into() }));
        Ok(Response::new(stream::iter(actions).boxed()))
    }
}

/// How a call wants its addresses.
fn addresses(metadata: &MetadataMap) -> Result<Addresses, Status> {
    match metadata.get(ADDRESSES_HEADER).map(|value| value.as_bytes()) {
        None | Some(b"binary") => Ok(Addresses::Binary),
        Some(b"text") => Ok(Addresses::Text),
        Some(other) => Err(Status::invalid_argument(format!(
            "the header {ADDRESSES_HEADER} is '{}', allowed are text and binary",
            String::from_utf8_lossy(other)
        ))),
    }
}

/// The statement for a path, which names a table.
fn whole_table(path: &[String]) -> Result<String, Status> {
    match path {
        [table] => Ok(format!("SELECT * FROM \"{}\"", table.replace('"', "\"\""))),
        _ => Err(Status::invalid_argument("a path names one table, such as flows")),
    }
}

fn only_reads() -> Status {
    Status::invalid_argument("updates are refused: queries only read; use SELECT, EXPLAIN, SHOW or DESCRIBE")
}

fn unreadable(action: &str) -> Status {
    Status::invalid_argument(format!("the body of the action {action} cannot be read"))
}

fn unpack<M: ProstMessageExt + Default>(action: &Action) -> Result<M, Status> {
    let unpacked = Any::decode(action.body.clone()).ok().and_then(|any| any.unpack().ok().flatten());
    unpacked.ok_or_else(|| unreadable(&action.r#type))
}

/// A schema as Flight writes it beside handles and infos.
fn ipc_schema(schema: &Schema) -> Result<Bytes, ArrowError> {
    let options = IpcWriteOptions::default();
    let IpcMessage(bytes) = SchemaAsIpc::new(schema, &options).try_into()?;
    Ok(bytes)
}

/// Batches as Flight messages, the schema first, each batch one message.
fn messages(
    schema: SchemaRef,
    batches: impl Stream<Item = Result<RecordBatch, FlightError>> + Send + 'static,
) -> impl Stream<Item = Result<FlightData, FlightError>> + Send {
    // Batches are cut already, by what they refer to; the encoder would go by the buffers behind them.
    FlightDataEncoderBuilder::new().with_schema(schema).with_max_flight_data_size(usize::MAX).build(batches)
}

async fn send_answer(
    engine: Engine,
    question: Question,
    sent: Sent,
    sender: mpsc::Sender<Result<FlightData, Status>>,
) -> Result<(), Status> {
    let answer = engine.sql_with(&question.sql, question.parameters()?).await.map_err(|e| e.to_status())?;
    let view = View::new(&answer.schema(), question.addresses());
    let (schema, rows) = (view.schema(), sent.clone());
    let batches = answer.flat_map(move |batch| {
        let seen = batch.map_err(|e| e.to_status()).and_then(|b| view.batch(&b).map_err(|e| e.to_status()));
        let cut: Vec<Result<RecordBatch, FlightError>> = match seen {
            Ok(batch) => {
                rows.rows(batch.num_rows());
                parts(&batch).map(Ok).collect()
            }
            Err(status) => vec![Err(status.into())],
        };
        stream::iter(cut)
    });
    let mut messages = std::pin::pin!(messages(schema, batches));
    while let Some(message) = messages.next().await {
        let message = message.map_err(flight_status)?;
        sent.bytes(message.data_header.len() + message.data_body.len());
        sender.send(Ok(message)).await.map_err(reader_gone)?;
    }
    Ok(())
}

/// The status behind an error of the Flight layer: ours, or that something could not be encoded or decoded.
fn flight_status(error: FlightError) -> Status {
    match error {
        FlightError::Tonic(status) => *status,
        FlightError::Arrow(error) => Status::invalid_argument(format!("the batches cannot be read: {error}")),
        other => Status::invalid_argument(format!("the batches cannot be read: {other}")),
    }
}
