use crate::metrics::{QueryGuard, Sent};
use std::future::Future;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};
use tonic::Status;
use tonic::metadata::MetadataMap;

/// What ends a call before its answer does: the caller's deadline, or the server going down.
///
/// `tonic` applies `grpc-timeout` only until the first byte of an answer, and answers CANCELLED; here it holds for the
/// whole of a stream, and the answer is DEADLINE_EXCEEDED.
#[derive(Clone, Debug)]
pub(crate) struct Scope {
    deadline: Option<Instant>,
    closing: watch::Receiver<bool>,
}

impl Scope {
    /// The scope of the call with this metadata. `closing` turns true when the server goes down.
    pub(crate) fn new(metadata: &MetadataMap, closing: watch::Receiver<bool>) -> Scope {
        let deadline = metadata
            .get("grpc-timeout")
            .and_then(|value| value.to_str().ok())
            .and_then(parse_timeout)
            // Ahead of tonic's own timer, whose answer would be the wrong one.
            .map(|timeout| timeout - (timeout / 10).min(Duration::from_millis(5)))
            .and_then(|timeout| Instant::now().checked_add(timeout));
        Scope { deadline, closing }
    }

    /// The scope of a request over HTTP, which sets no deadline.
    pub(crate) fn without_deadline(closing: watch::Receiver<bool>) -> Scope {
        Scope { deadline: None, closing }
    }

    /// Runs `work` as far as the scope goes; past it `work` is dropped, which stops it.
    pub(crate) async fn run<T, E: From<Status>>(&self, work: impl Future<Output = Result<T, E>>) -> Result<T, E> {
        let mut closing = self.closing.clone();
        tokio::select! {
            biased;
            result = work => result,
            () = at(self.deadline) => Err(E::from(Status::deadline_exceeded(
                "the deadline set by the caller passed: allow more time, or narrow the filter or the time range",
            ))),
            // An error means that the sender is gone, and the server with it.
            _ = closing.wait_for(|closing| *closing) => Err(E::from(Status::unavailable("the server is shutting down"))),
        }
    }

    /// Runs `work`, which sends into a bounded channel, on a task of its own, so that a reader that stopped reading
    /// cannot hold it past the scope. It is dropped as soon as the reader is gone. An error becomes the last message.
    ///
    /// `finished` learns how it ended, [`tonic::Code::Cancelled`] standing for a reader that went away.
    pub(crate) fn stream<T, W>(
        self,
        work: impl FnOnce(mpsc::Sender<Result<T, Status>>) -> W,
        finished: impl FnOnce(tonic::Code) + Send + 'static,
    ) -> mpsc::Receiver<Result<T, Status>>
    where
        T: Send + 'static,
        W: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let (sender, receiver) = mpsc::channel(STREAM_MESSAGES_MAX);
        let work = work(sender.clone());
        tokio::spawn(async move {
            let ended = tokio::select! {
                biased;
                () = sender.closed() => None,
                result = self.run(work) => Some(result),
            };
            finished(match &ended {
                None => tonic::Code::Cancelled,
                Some(Ok(())) => tonic::Code::Ok,
                Some(Err(status)) => status.code(),
            });
            if let Some(Err(status)) = ended {
                // The room may be full of messages that nobody reads; then the task ends with the connection.
                let _ = sender.send(Err(status)).await;
            }
        });
        receiver
    }
}

impl Scope {
    /// Streams the answer to a query: as [`Scope::stream`], and counts what `work` sends and how it ended.
    pub(crate) fn answer<T, W>(
        self,
        mut guard: QueryGuard,
        work: impl FnOnce(Sent, mpsc::Sender<Result<T, Status>>) -> W,
    ) -> mpsc::Receiver<Result<T, Status>>
    where
        T: Send + 'static,
        W: Future<Output = Result<(), Status>> + Send + 'static,
    {
        let sent = guard.sent();
        self.stream(|sender| work(sent, sender), move |code| guard.finish(code))
    }
}

/// Messages made ahead of the reader.
const STREAM_MESSAGES_MAX: usize = 2;

/// The status for a reader that is gone, when sending to it fails.
pub(crate) fn reader_gone<T>(_: mpsc::error::SendError<T>) -> Status {
    Status::cancelled("the caller went away")
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// `grpc-timeout` as the gRPC protocol writes it (PROTOCOL-HTTP2.md): up to 8 digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    match unit {
        "H" => Some(Duration::from_secs(count * 3600)),
        "M" => Some(Duration::from_secs(count * 60)),
        "S" => Some(Duration::from_secs(count)),
        "m" => Some(Duration::from_millis(count)),
        "u" => Some(Duration::from_micros(count)),
        "n" => Some(Duration::from_nanos(count)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_read_as_the_protocol_writes_them() {
        assert_eq!(parse_timeout("1S"), Some(Duration::from_secs(1)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        for bad in ["", "S", "1", "1s", "123456789S", "-1S", "1.5S", "é"] {
            assert_eq!(parse_timeout(bad), None, "{bad}");
        }
    }

    #[tokio::test]
    async fn work_past_the_deadline_is_dropped() {
        let (_open, closing) = watch::channel(false);
        let mut metadata = MetadataMap::new();
        metadata.insert("grpc-timeout", "1m".parse().unwrap());
        let scope = Scope::new(&metadata, closing);
        let never = scope.run(std::future::pending::<Result<(), Status>>()).await;
        assert_eq!(never.unwrap_err().code(), tonic::Code::DeadlineExceeded);
    }

    #[tokio::test]
    async fn a_server_that_goes_down_ends_its_streams() {
        let (close, closing) = watch::channel(false);
        let scope = Scope::new(&MetadataMap::new(), closing);
        let (told, outcome) = tokio::sync::oneshot::channel();
        let mut stream = scope.stream::<(), _>(|_| std::future::pending(), |code| told.send(code).unwrap());
        close.send_replace(true);
        assert_eq!(stream.recv().await.unwrap().unwrap_err().code(), tonic::Code::Unavailable);
        assert_eq!(outcome.await.unwrap(), tonic::Code::Unavailable);
        assert!(stream.recv().await.is_none());
    }

    #[tokio::test]
    async fn a_reader_that_goes_away_stops_the_work() {
        let (_open, closing) = watch::channel(false);
        let scope = Scope::new(&MetadataMap::new(), closing);
        let (told, outcome) = tokio::sync::oneshot::channel();
        drop(scope.stream::<(), _>(|_| std::future::pending(), |code| told.send(code).unwrap()));
        assert_eq!(outcome.await.unwrap(), tonic::Code::Cancelled);
    }
}
