use crate::RpcError;
use crate::metrics::{CONTENT_TYPE, MetricsFn};
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::future::Future;
use tokio::net::TcpListener;

const INDEX: &str = "taphouse\n\n/metrics  OpenMetrics text for Prometheus\n/healthz  200 while the server runs\n";

/// Serves `/metrics`, `/healthz` and a text index at `/` until `shutdown` completes. `metrics` is called once a scrape,
/// on a thread that may block for it.
///
/// # Errors
/// [`RpcError::Serve`] when the listener fails.
pub async fn serve_http(
    listener: TcpListener,
    metrics: MetricsFn,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RpcError> {
    axum::serve(listener, router(metrics))
        .with_graceful_shutdown(shutdown)
        .await
        .map_err(|source| RpcError::Serve { what: "http", source: source.into() })
}

fn router(metrics: MetricsFn) -> Router {
    Router::new()
        .route("/", get(async || INDEX))
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(async move || scrape(metrics).await))
}

/// The status behind the metrics may wait for a lock, so it is asked for on a thread that may.
async fn scrape(metrics: MetricsFn) -> Result<impl IntoResponse, (StatusCode, &'static str)> {
    match tokio::task::spawn_blocking(move || metrics()).await {
        Ok(text) => Ok(([(header::CONTENT_TYPE, CONTENT_TYPE)], text)),
        Err(_) => Err((StatusCode::INTERNAL_SERVER_ERROR, "the status of the server could not be read\n")),
    }
}
