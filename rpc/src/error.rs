use std::net::SocketAddr;

/// What can go wrong between a client and a server.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// The address to listen on belongs to another process.
    #[error(
        "{addr} is in use by another process: stop it, or listen elsewhere with `--set {key}={host}:{alternative}` \
         (`:0` picks a free port)",
        host = host(addr),
        alternative = addr.port().checked_add(1).unwrap_or(0)
    )]
    AddressInUse {
        /// Where the server was to listen.
        addr: SocketAddr,
        /// The config key that says so.
        key: &'static str,
    },
    /// The address to listen on cannot be used.
    #[error("cannot listen on {addr} ({key}): {source}")]
    Bind {
        /// Where the server was to listen.
        addr: SocketAddr,
        /// The config key that says so.
        key: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// A listener failed while serving.
    #[error("the {what} server stopped: {source}")]
    Serve {
        /// `gRPC` or `HTTP`.
        what: &'static str,
        /// What stopped it.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The address of a server cannot be read.
    #[error("'{addr}' is no server address: write host:port, such as 127.0.0.1:50051")]
    Address {
        /// What was given.
        addr: String,
    },
    /// Nobody answers.
    #[error("no taphouse server at {addr}: {reason}; start one with `taphouse run`")]
    NoServer {
        /// Where it was looked for.
        addr: String,
        /// Innermost cause.
        reason: String,
    },
    /// The server answered with an error.
    #[error("{}", .0.message())]
    Status(#[source] Box<tonic::Status>),
    /// What the server sent is no Arrow IPC stream.
    #[error("the server sent an answer that cannot be decoded: {0}; are client and server of one version?")]
    Decode(#[from] arrow::error::ArrowError),
}

impl From<tonic::Status> for RpcError {
    fn from(status: tonic::Status) -> RpcError {
        RpcError::Status(Box::new(status))
    }
}

/// The host as it is written before `:port`.
fn host(addr: &SocketAddr) -> String {
    match addr {
        SocketAddr::V4(v4) => v4.ip().to_string(),
        SocketAddr::V6(v6) => format!("[{}]", v6.ip()),
    }
}
