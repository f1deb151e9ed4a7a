use crate::alerts::{AlertHub, Alerts};
use crate::flight::FlightSql;
use crate::flows::Flows;
use crate::metrics::QueryMetrics;
use crate::sketches::{READS_MAX, Sketches};
use crate::slices::{SliceControl, Slices};
use crate::v1::alert_service_server::AlertServiceServer;
use crate::v1::capture_service_server::{CaptureService, CaptureServiceServer};
use crate::v1::flow_service_server::FlowServiceServer;
use crate::v1::sketch_service_server::SketchServiceServer;
use crate::v1::slice_service_server::SliceServiceServer;
use crate::{FILE_DESCRIPTOR_SET, MESSAGE_BYTES_MAX, RpcError, StatusFn, v1};
use arrow_flight::flight_service_server::FlightServiceServer;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response};

/// What the services answer from.
#[derive(Clone)]
pub struct Services {
    /// Answers questions about flows.
    pub engine: query::Engine,
    /// Where alerts are published.
    pub alerts: AlertHub,
    /// Tells the state of the server.
    pub status: StatusFn,
    /// Records packets on request; `None` where nothing is captured.
    pub slices: Option<Arc<dyn SliceControl>>,
    /// Windows of the sketches; `None` where there are none.
    pub sketches: Option<Arc<talkers::Board>>,
    /// Counts queries; the same that [`crate::metrics::exporter`] is given.
    pub queries: Arc<QueryMetrics>,
}

/// Sets the size limits, which every service would otherwise leave at 4 MiB in and none out.
macro_rules! sized {
    ($service:expr) => {
        $service.max_decoding_message_size(MESSAGE_BYTES_MAX).max_encoding_message_size(MESSAGE_BYTES_MAX)
    };
}

/// Answers being made on one connection at once; more wait their turn.
const STREAMS_PER_CONNECTION_MAX: u32 = 256;
/// A peer that went silent, not closing its connection, is noticed after this and as long again.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long connections may take to close once the server goes down.
pub(crate) const SHUTDOWN_GRACE: Duration = Duration::from_secs(5);

/// Listens on `addr`. Port 0 picks a free one. `key` is the config key of the address, for the message.
///
/// # Errors
/// [`RpcError::AddressInUse`] or [`RpcError::Bind`].
pub async fn bind(addr: SocketAddr, key: &'static str) -> Result<TcpListener, RpcError> {
    TcpListener::bind(addr).await.map_err(|source| match source.kind() {
        std::io::ErrorKind::AddrInUse => RpcError::AddressInUse { addr, key },
        _ => RpcError::Bind { addr, key, source },
    })
}

/// Serves all services of `taphouse.v1`, Flight SQL, health and reflection until `shutdown` completes. Then running answers end
/// with UNAVAILABLE, and connections have five seconds to close.
///
/// # Errors
/// [`RpcError::Serve`] when the listener fails.
pub async fn serve_grpc(
    listener: TcpListener,
    services: Services,
    shutdown: impl Future<Output = ()>,
) -> Result<(), RpcError> {
    let failed = |source: Box<dyn std::error::Error + Send + Sync>| RpcError::Serve { what: "gRPC", source };
    let (close, closing) = watch::channel(false);
    let (engine, metrics) = (services.engine, services.queries);
    let flight = FlightServiceServer::new(FlightSql::new(engine.clone(), metrics.clone(), closing.clone()));
    let sketches = services.sketches.map(|board| {
        SketchServiceServer::new(Sketches {
            board,
            engine: engine.clone(),
            closing: closing.clone(),
            turns: Arc::new(Semaphore::new(READS_MAX)),
        })
    });
    let flows = FlowServiceServer::new(Flows { engine, metrics, closing: closing.clone() });
    let alerts = AlertServiceServer::new(Alerts { hub: services.alerts, closing: closing.clone() });
    let capture = CaptureServiceServer::new(Capture { status: services.status });
    let slices = services.slices.map(|control| SliceServiceServer::new(Slices { control }));

    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_serving::<FlowServiceServer<Flows>>().await;
    health.set_serving::<FlightServiceServer<FlightSql>>().await;
    health.set_serving::<AlertServiceServer<Alerts>>().await;
    health.set_serving::<CaptureServiceServer<Capture>>().await;
    if sketches.is_some() {
        health.set_serving::<SketchServiceServer<Sketches>>().await;
    }
    if slices.is_some() {
        health.set_serving::<SliceServiceServer<Slices>>().await;
    }

    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let router = Server::builder()
        .max_concurrent_streams(STREAMS_PER_CONNECTION_MAX)
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE))
        .add_service(sized!(flows))
        .add_service(sized!(flight))
        .add_service(sized!(alerts))
        .add_service(sized!(capture))
        .add_optional_service(sketches.map(|sketches| sized!(sketches)))
        .add_optional_service(slices.map(|slices| sized!(slices)))
        .add_service(health_service)
        .add_service(reflection().build_v1().map_err(|e| failed(e.into()))?)
        .add_service(reflection().build_v1alpha().map_err(|e| failed(e.into()))?);

    let mut closed = closing.clone();
    let stop = async move {
        // An error means that the sender is gone, which is the end as well.
        let _ = closed.wait_for(|closing| *closing).await;
    };
    let serving = router.serve_with_incoming_shutdown(TcpIncoming::from(listener).with_nodelay(Some(true)), stop);
    let signal = async {
        shutdown.await;
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
        close.send_replace(true);
        tokio::time::sleep(SHUTDOWN_GRACE).await;
    };
    tokio::select! {
        served = serving => served.map_err(|e| failed(e.into())),
        () = signal => Ok(()),
    }
}

/// `CaptureService` over the state that the composition root tells.
struct Capture {
    status: StatusFn,
}

#[tonic::async_trait]
impl CaptureService for Capture {
    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, tonic::Status> {
        let status = Arc::clone(&self.status);
        let status = tokio::task::spawn_blocking(move || status())
            .await
            .map_err(|_| tonic::Status::internal("the status of the server could not be read"))?;
        Ok(Response::new(v1::GetStatusResponse { status: Some(status) }))
    }
}
