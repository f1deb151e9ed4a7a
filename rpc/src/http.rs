use crate::RpcError;
use crate::metrics::{CONTENT_TYPE, MetricsFn, QueryMetrics};
use crate::rest;
use crate::server::SHUTDOWN_GRACE;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use query::Engine;
use std::future::{Future, IntoFuture};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::watch;

const INDEX: &str = "taphouse

/api/v1/openapi.json  the REST interface, described
/api/v1/flows         flows, newest first
/api/v1/sql           any SQL query (POST)
/api/v1/tables        tables and their columns
/metrics              OpenMetrics text for Prometheus
/healthz              200 while the server runs
";

/// What the HTTP server answers from.
#[derive(Clone)]
pub struct HttpServices {
    /// Supplies `/metrics`. Called once a scrape, on a thread that may block for it.
    pub metrics: MetricsFn,
    /// Answers questions about flows.
    pub engine: Engine,
    /// Counts queries; the same that the gRPC services are given.
    pub queries: Arc<QueryMetrics>,
}

/// Serves the REST interface under `/api/v1`, `/metrics`, `/healthz` and a text index at `/` until `shutdown`
/// completes. Then running answers end, and connections have five seconds to close.
///
/// # Errors
/// [`RpcError::Serve`] when the listener fails.
pub async fn serve_http(
    listener: TcpListener,
    services: HttpServices,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RpcError> {
    let (close, closing) = watch::channel(false);
    let loopback = listener.local_addr().is_ok_and(|addr| addr.ip().is_loopback());
    let mut closed = closing.clone();
    let serving = axum::serve(listener, router(services, loopback, closing)).with_graceful_shutdown(async move {
        // An error means that the sender is gone, which is the end as well.
        let _ = closed.wait_for(|closing| *closing).await;
    });
    let signal = async {
        shutdown.await;
        close.send_replace(true);
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        served = serving.into_future() => {
            served.map_err(|source| RpcError::Serve { what: "HTTP", source: source.into() })
        }
        () = signal => Ok(()),
    }
}

fn router(services: HttpServices, loopback: bool, closing: watch::Receiver<bool>) -> Router {
    let HttpServices { metrics, engine, queries } = services;
    Router::new()
        .route("/", get(async || INDEX))
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(async move || scrape(metrics).await))
        .nest("/api/v1", rest::router(rest::Api { engine, metrics: queries, closing }, loopback))
}

/// The status behind the metrics may wait for a lock, so it is asked for on a thread that may.
async fn scrape(metrics: MetricsFn) -> Result<impl IntoResponse, (StatusCode, &'static str)> {
    match tokio::task::spawn_blocking(move || metrics()).await {
        Ok(text) => Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text)),
        Err(_) => Err((StatusCode::INTERNAL_SERVER_ERROR, "the status of the server could not be read\n")),
    }
}
