use crate::RpcError;
use crate::metrics::{CONTENT_TYPE, MetricsFn};
use crate::server::SHUTDOWN_GRACE;
use axum::Router;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::routing::get;
use std::future::{Future, IntoFuture};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

const INDEX: &str = "taphouse\n\n/metrics  OpenMetrics text for Prometheus\n/healthz  200 while the server runs\n";

/// Serves `/metrics`, `/healthz` and a text index at `/` until `shutdown` completes; connections then have five seconds
/// to close. `metrics` is called once a scrape, on a thread that may block for it.
///
/// # Errors
/// [`RpcError::Serve`] when the listener fails.
pub async fn serve_http(
    listener: TcpListener,
    metrics: MetricsFn,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> Result<(), RpcError> {
    let (close, closing) = oneshot::channel();
    let serving = axum::serve(listener, router(metrics)).with_graceful_shutdown(async {
        // An error means that the sender is gone, which is the end as well.
        let _ = closing.await;
    });
    let signal = async {
        shutdown.await;
        let _ = close.send(());
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        served = serving.into_future() => {
            served.map_err(|source| RpcError::Serve { what: "HTTP", source: source.into() })
        }
        () = signal => Ok(()),
    }
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
