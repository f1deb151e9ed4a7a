use crate::metrics::code_name;
use crate::status::ToStatus;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use query::QueryError;
use serde_json::json;
use tonic::{Code, Status};

/// An error as a client of the REST interface sees it: `{"error": {"code": "...", "message": "..."}}`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    /// As gRPC names it, in small letters.
    pub(crate) code: String,
    pub(crate) message: String,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &str, message: impl Into<String>) -> ApiError {
        ApiError { status, code: code.to_owned(), message: message.into() }
    }

    /// The request itself is wrong.
    pub(crate) fn invalid(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, "invalid_argument", message)
    }

    /// For the metrics.
    pub(crate) fn grpc_code(&self) -> Code {
        match self.status {
            StatusCode::TOO_MANY_REQUESTS => Code::ResourceExhausted,
            StatusCode::SERVICE_UNAVAILABLE if self.code == "resource_exhausted" => Code::ResourceExhausted,
            StatusCode::SERVICE_UNAVAILABLE => Code::Unavailable,
            StatusCode::GATEWAY_TIMEOUT => Code::DeadlineExceeded,
            status if status.is_client_error() => Code::InvalidArgument,
            _ => Code::Internal,
        }
    }
}

impl From<Status> for ApiError {
    fn from(status: Status) -> ApiError {
        let http = match status.code() {
            Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
            Code::NotFound => StatusCode::NOT_FOUND,
            Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
            Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
            Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(http, &code_name(status.code()).to_ascii_lowercase(), status.message())
    }
}

impl From<QueryError> for ApiError {
    /// Another try may succeed where the server is busy (503), not where the query asks for too much (429).
    fn from(error: QueryError) -> ApiError {
        let told = ApiError::from(error.to_status());
        match error {
            QueryError::Busy { .. } => ApiError { status: StatusCode::SERVICE_UNAVAILABLE, ..told },
            QueryError::TimeLimit { .. } => ApiError { status: StatusCode::TOO_MANY_REQUESTS, ..told },
            _ => told,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = json!({ "error": { "code": self.code, "message": self.message } });
        let mut response = (self.status, format!("{body}\n")).into_response();
        let json = HeaderValue::from_static("application/json");
        response.headers_mut().insert(header::CONTENT_TYPE, json);
        if self.status == StatusCode::SERVICE_UNAVAILABLE {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use query::Reading;
    use std::time::Duration;

    #[test]
    fn a_busy_server_and_a_greedy_query_are_told_apart() {
        let busy = ApiError::from(QueryError::Busy { max: 1 });
        assert_eq!((busy.status.as_u16(), busy.code.as_str()), (503, "resource_exhausted"));
        assert_eq!(busy.clone().into_response().headers()[header::RETRY_AFTER], "1");
        assert_eq!(busy.grpc_code(), Code::ResourceExhausted);
        for greedy in [
            QueryError::RowLimit { limit: 1 },
            QueryError::ScanLimit { limit: 1, read: Reading::default() },
            QueryError::MemoryLimit { limit: 1, in_use: 1, wanted: 1 },
            QueryError::TimeLimit { limit: Duration::from_secs(1), read: Reading::default() },
        ] {
            let told = greedy.to_string();
            let error = ApiError::from(greedy);
            assert_eq!((error.status.as_u16(), error.message), (429, told));
        }
        assert_eq!(ApiError::from(QueryError::Stopped).status.as_u16(), 503);
        assert_eq!(ApiError::from(QueryError::Execution { message: "x".into() }).status.as_u16(), 500);
    }
}
