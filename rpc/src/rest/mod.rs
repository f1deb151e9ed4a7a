//! The REST interface: flows and SQL over HTTP, for `curl`, scripts and dashboards. Described by `openapi.json`.

mod error;
mod format;
mod guard;
mod request;
mod time;

use crate::flows::{Position, everything, read_page, with_key};
use crate::metrics::{Method, QueryGuard, QueryMetrics};
use crate::scope::{Scope, reader_gone};
use crate::status::ToStatus;
use crate::token;
use arrow::array::RecordBatch;
use arrow::datatypes::{Schema, SchemaRef};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::rejection::BytesRejection;
use axum::extract::{DefaultBodyLimit, RawQuery, Request, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use error::ApiError;
use format::BodyWriter;
use futures::{Stream, StreamExt, stream};
use query::{Engine, FlowQuery, QueryError};
use request::{Answering, FlowsRequest, Paging, SqlRequest};
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

/// Bytes of a request's body at most: the longest query, escaped.
const BODY_BYTES_MAX: usize = 2 * query::TEXT_BYTES_MAX;
/// A reader that takes nothing for so long is let go, since its query keeps others out.
const READER_PATIENCE: Duration = Duration::from_secs(600);
/// The header that names the next page.
const NEXT_PAGE_HEADER: &str = "taphouse-next-page-token";

const OPENAPI: &str = include_str!("openapi.json");

/// What the REST interface answers from.
pub(crate) struct Api {
    pub(crate) engine: Engine,
    pub(crate) metrics: Arc<QueryMetrics>,
    /// Turns true when the server goes down.
    pub(crate) closing: watch::Receiver<bool>,
}

/// The routes, below `/api/v1`.
fn routes() -> [(&'static str, MethodRouter<Arc<Api>>); 4] {
    [
        ("/flows", get(flows)),
        ("/sql", post(sql)),
        ("/tables", get(tables)),
        ("/openapi.json", get(async || ([(header::CONTENT_TYPE, "application/json")], OPENAPI))),
    ]
}

/// `loopback` tells that the server listens where only this machine reaches it.
pub(crate) fn router(api: Api, loopback: bool) -> Router {
    let router = routes().into_iter().fold(Router::new(), |router, (path, route)| router.route(path, route));
    router
        .fallback(async || {
            let known = routes().map(|(path, _)| format!("/api/v1{path}")).join(", ");
            ApiError::new(StatusCode::NOT_FOUND, "not_found", format!("there is no such path: known are {known}"))
        })
        .method_not_allowed_fallback(async || {
            let told = "the path does not take this method: see /api/v1/openapi.json";
            ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "unimplemented", told)
        })
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn(move |request: Request, next: Next| guard::own_pages_only(loopback, request, next)))
        .with_state(Arc::new(api))
}

async fn flows(
    State(api): State<Arc<Api>>,
    RawQuery(text): RawQuery,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let guard = api.metrics.start(Method::RestFlows);
    counted(guard, async |guard| {
        let request = FlowsRequest::parse(text.as_deref().unwrap_or_default(), &headers)?;
        let answering = request.answering;
        match request.paging.clone() {
            Paging::Limit(0) => respond(&api, guard, answering, everything(&api.engine, request.query)).await,
            Paging::Limit(limit) => {
                let query = FlowQuery { limit: Some(limit), ..request.query };
                respond(&api, guard, answering, api.engine.flows(query)).await
            }
            Paging::Page { size, token } => page(&api, guard, request, size, &token).await,
        }
    })
    .await
}

/// One page. The next one is named by headers, so that the body is the same as without pages.
async fn page(
    api: &Api,
    guard: &mut Option<QueryGuard>,
    request: FlowsRequest,
    size: usize,
    token: &str,
) -> Result<Response, ApiError> {
    let fingerprint = request.fingerprint();
    let position = token::decode(token, fingerprint).map_err(Status::from)?;
    let position = position.map_or_else(Position::default, Position::from_bytes);
    let query = FlowQuery { columns: with_key(&request.query.columns), ..request.query.clone() };
    let scope = Scope::without_deadline(api.closing.clone());
    let work = async { Ok::<_, ApiError>(read_page(&api.engine, query, position, size).await?) };
    let page = scope.run(work).await?;
    let wanted = asked_for(&page.schema, &request.query.columns)?;
    let schema = page.schema.project(&wanted).map_err(|e| e.to_status())?;
    let rows = page.batches.into_iter().map(move |batch| Ok(batch.project(&wanted).unwrap_or(batch)));
    let mut response = stream_body(scope, guard, request.answering, Arc::new(schema), stream::iter(rows))?;
    if let Some(next) = page.next {
        let token = token::encode(fingerprint, next.to_bytes());
        let link = format!("<{}>; rel=\"next\"", request.next_page(size, &token));
        for (name, value) in [(NEXT_PAGE_HEADER, token), ("link", link)] {
            let value = HeaderValue::try_from(value)
                .map_err(|_| Status::internal("the next page cannot be named in a header"))?;
            response.headers_mut().insert(name, value);
        }
    }
    Ok(response)
}

/// The places of the columns asked for; none stand for all.
fn asked_for(schema: &Schema, columns: &[String]) -> Result<Vec<usize>, ApiError> {
    if columns.is_empty() {
        return Ok((0..schema.fields().len()).collect());
    }
    let places = columns.iter().map(|name| schema.index_of(name)).collect::<Result<_, _>>();
    places.map_err(|e| ApiError::from(e.to_status()))
}

async fn sql(
    State(api): State<Arc<Api>>,
    RawQuery(text): RawQuery,
    headers: HeaderMap,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, ApiError> {
    let guard = api.metrics.start(Method::RestSql);
    counted(guard, async |guard| {
        let body = body.map_err(|rejection| match rejection.status() {
            StatusCode::PAYLOAD_TOO_LARGE => {
                let told = format!("the body is longer than {BODY_BYTES_MAX} bytes, the most allowed");
                ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "invalid_argument", told)
            }
            _ => ApiError::invalid("the body could not be read to its end"),
        })?;
        let request = SqlRequest::parse(text.as_deref().unwrap_or_default(), &headers, &body)?;
        let answer = api.engine.sql_with(&request.sql, request.parameters);
        respond(&api, guard, request.answering, answer).await
    })
    .await
}

/// Counts a request that fails before its answer begins; the guard is handed on to the answer.
async fn counted(
    guard: QueryGuard,
    work: impl AsyncFnOnce(&mut Option<QueryGuard>) -> Result<Response, ApiError>,
) -> Result<Response, ApiError> {
    let mut guard = Some(guard);
    let response = work(&mut guard).await;
    if let (Some(guard), Err(error)) = (&mut guard, &response) {
        guard.finish(error.grpc_code());
    }
    response
}

/// Answers with the rows of a query. It is waited for the first of them, so that most errors have a status.
async fn respond(
    api: &Api,
    guard: &mut Option<QueryGuard>,
    answering: Answering,
    answer: impl Future<Output = Result<query::QueryStream, QueryError>>,
) -> Result<Response, ApiError> {
    let scope = Scope::without_deadline(api.closing.clone());
    let begun = scope.run(async {
        let mut rows = answer.await?;
        let first = rows.next().await.transpose()?;
        Ok::<_, ApiError>((rows, first))
    });
    let (rows, first) = begun.await?;
    let schema = rows.schema();
    stream_body(scope, guard, answering, schema, stream::iter(first.map(Ok)).chain(rows))
}

/// Streams rows as a body, two chunks ahead of the reader.
fn stream_body(
    scope: Scope,
    guard: &mut Option<QueryGuard>,
    answering: Answering,
    schema: SchemaRef,
    rows: impl Stream<Item = Result<RecordBatch, QueryError>> + Send + 'static,
) -> Result<Response, ApiError> {
    let mut writer = BodyWriter::new(answering.format, &schema, answering.addresses)?;
    let guard = guard.take().ok_or_else(|| Status::internal("the answer was begun twice"))?;
    let body = scope.answer(guard, |sent, sender| async move {
        let mut rows = std::pin::pin!(rows);
        let send = async |chunk: Bytes| {
            if chunk.is_empty() {
                return Ok(());
            }
            sent.bytes(chunk.len());
            hand_over(&sender, chunk).await
        };
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(|e| e.to_status())?;
            for part in writer.parts(&batch) {
                for chunk in writer.write(&part)? {
                    send(chunk).await?;
                }
            }
            sent.rows(batch.num_rows());
        }
        send(writer.finish()?).await
    });
    // An error after the first rows cuts the body off, which a client sees as an answer that is not complete.
    let body = Body::from_stream(ReceiverStream::new(body));
    Ok(([(header::CONTENT_TYPE, answering.format.content_type())], body).into_response())
}

async fn hand_over(sender: &mpsc::Sender<Result<Bytes, Status>>, chunk: Bytes) -> Result<(), Status> {
    match tokio::time::timeout(READER_PATIENCE, sender.send(Ok(chunk))).await {
        Ok(sent) => sent.map_err(reader_gone),
        Err(_) => Err(Status::deadline_exceeded("the reader of the answer took nothing for ten minutes")),
    }
}

async fn tables(State(api): State<Arc<Api>>) -> Result<Response, ApiError> {
    let scope = Scope::without_deadline(api.closing.clone());
    let tables = scope.run(async { api.engine.tables().await.map_err(ApiError::from) }).await?;
    let column = |field: &arrow::datatypes::FieldRef| {
        json!({
            "name": field.name(),
            "type": field.data_type().to_string(),
            "extension": field.metadata().get("ARROW:extension:name"),
            "nullable": field.is_nullable(),
        })
    };
    let tables: Vec<_> = tables
        .iter()
        .map(|table| {
            json!({ "name": table.name, "columns": table.columns.fields().iter().map(column).collect::<Vec<_>>() })
        })
        .collect();
    let body = format!("{}\n", json!({ "tables": tables }));
    Ok(([(header::CONTENT_TYPE, "application/json")], body).into_response())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The description names exactly the routes there are, and every parameter of theirs.
    #[test]
    fn the_description_is_of_these_routes() {
        let described: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        assert_eq!(described["openapi"], "3.1.0");
        let paths: Vec<&str> = described["paths"].as_object().unwrap().keys().map(String::as_str).collect();
        assert_eq!(paths, routes().map(|(path, _)| path));
        assert_eq!(described["servers"][0]["url"], "/api/v1");
        let parameters = |path: &str, method: &str| -> Vec<String> {
            let list = described["paths"][path][method]["parameters"].as_array().unwrap();
            let resolved = |p: &serde_json::Value| match p["$ref"].as_str() {
                Some(reference) => described.pointer(reference.trim_start_matches('#')).unwrap().clone(),
                None => p.clone(),
            };
            list.iter().map(|p| resolved(p)["name"].as_str().unwrap().to_owned()).collect()
        };
        assert_eq!(parameters("/flows", "get"), request::FLOWS_PARAMETERS);
        assert_eq!(parameters("/sql", "post"), request::SQL_PARAMETERS);
    }
}
