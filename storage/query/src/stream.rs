use crate::QueryError;
use crate::engine::{QueryLimits, Session, Shared};
use crate::error::{BadSegment, FILTER_FAILED, message_of, plain};
use crate::explain;
use crate::memory::SharedMemory;
use crate::reader::{ScanBudget, ScanStats};
use crate::stop::Stop;
use arrow::datatypes::SchemaRef;
use arrow::record_batch::RecordBatch;
use datafusion::common::DataFusionError;
use datafusion::execution::SendableRecordBatchStream;
use futures::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

/// Batches computed ahead of the reader.
const BATCHES_AHEAD: usize = 2;

/// The answer to a query, batch by batch, while it is computed. Holds the query's snapshot: the segments it reads stay
/// on disk as long as it lives. Dropping it cancels the query.
///
/// After an error or the end it only gives `None`.
pub struct QueryStream {
    schema: SchemaRef,
    batches: mpsc::Receiver<Answer>,
    budget: Arc<ScanBudget>,
    ended: bool,
    stop: Arc<Stop>,
    _task: AbortOnDrop<()>,
    /// The threads that compute it.
    _engine: Arc<Shared>,
}

/// `Ok(None)` is the end. A channel that closes without one means that the task died.
type Answer = Result<Option<RecordBatch>, QueryError>;

impl std::fmt::Debug for QueryStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueryStream").field("schema", &self.schema).field("ended", &self.ended).finish_non_exhaustive()
    }
}

impl QueryStream {
    pub(crate) fn new(running: Running, engine: Arc<Shared>) -> QueryStream {
        let Running { schema, batches, budget, stop, task } = running;
        QueryStream { schema, batches, budget, ended: false, stop, _task: task, _engine: engine }
    }

    /// The columns of every batch.
    pub fn schema(&self) -> SchemaRef {
        self.schema.clone()
    }

    /// What it has read so far.
    pub fn stats(&self) -> ScanStats {
        self.budget.stats()
    }

    /// The whole answer.
    ///
    /// # Errors
    /// The first error of the stream.
    pub async fn collect_all(mut self) -> Result<Vec<RecordBatch>, QueryError> {
        let mut batches = Vec::new();
        while let Some(batch) = self.next().await {
            batches.push(batch?);
        }
        Ok(batches)
    }
}

impl Drop for QueryStream {
    fn drop(&mut self) {
        self.stop.drop_query();
    }
}

impl Stream for QueryStream {
    type Item = Result<RecordBatch, QueryError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let answer = match ready!(self.batches.poll_recv(cx)) {
            Some(Ok(Some(batch))) => return Poll::Ready(Some(Ok(batch))),
            Some(Ok(None)) => None,
            Some(Err(error)) => Some(Err(error)),
            None => Some(Err(QueryError::Stopped)),
        };
        self.ended = true;
        Poll::Ready(answer)
    }
}

/// Ends a task with its owner.
pub(crate) struct AbortOnDrop<T>(pub(crate) JoinHandle<T>);

impl<T> Drop for AbortOnDrop<T> {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An answer on its way.
pub(crate) struct Running {
    schema: SchemaRef,
    batches: mpsc::Receiver<Answer>,
    budget: Arc<ScanBudget>,
    stop: Arc<Stop>,
    task: AbortOnDrop<()>,
}

/// Starts computing on the current runtime. `time_left` is what planning has left of the query's time.
pub(crate) fn spawn(
    rows: SendableRecordBatchStream,
    limits: &QueryLimits,
    time_left: Option<Duration>,
    stop: Arc<Stop>,
    session: Session,
) -> Running {
    let (schema, budget) = (rows.schema(), session.budget.clone());
    let (sender, batches) = mpsc::channel(BATCHES_AHEAD);
    let mut producer =
        Producer { rows, limits: limits.clone(), time_left, stop: stop.clone(), rows_sent: 0, ended: false, session };
    let task = tokio::spawn(async move {
        loop {
            let answer = producer.next().await;
            let last = !matches!(answer, Ok(Some(_)));
            if sender.send(answer).await.is_err() || last {
                return;
            }
        }
    });
    Running { schema, batches, budget, stop, task: AbortOnDrop(task) }
}

struct Producer {
    rows: SendableRecordBatchStream,
    limits: QueryLimits,
    time_left: Option<Duration>,
    stop: Arc<Stop>,
    rows_sent: u64,
    ended: bool,
    session: Session,
}

impl Producer {
    async fn next(&mut self) -> Answer {
        let begun = Instant::now();
        if self.ended {
            return Ok(None);
        }
        self.stop.allow(self.time_left);
        let next = match (self.time_left, self.limits.time_max) {
            (Some(left), Some(limit)) => match tokio::time::timeout(left, self.rows.next()).await {
                Ok(next) => next,
                Err(_) => return Err(QueryError::TimeLimit { limit, read: self.session.budget.reading() }),
            },
            _ => self.rows.next().await,
        };
        let next = next.transpose().map_err(|e| self.explain(&e))?;
        self.stop.allow(None);
        self.time_left = self.time_left.map(|left| left.saturating_sub(begun.elapsed()));
        let Some(batch) = next else {
            self.ended = true;
            return self.explanation();
        };
        self.rows_sent += batch.num_rows() as u64;
        match self.limits.rows_max {
            Some(limit) if self.rows_sent > limit => Err(QueryError::RowLimit { limit }),
            _ => Ok(Some(batch)),
        }
    }

    /// What an EXPLAIN tells last: of the segments.
    fn explanation(&mut self) -> Answer {
        match std::mem::take(&mut self.session.explains) {
            true => Ok(explain::row(&self.rows.schema(), &self.session.budget)),
            false => Ok(None),
        }
    }

    fn explain(&self, error: &DataFusionError) -> QueryError {
        if let Some(limit) = self.session.budget.exceeded() {
            return QueryError::ScanLimit { limit, read: self.session.budget.reading() };
        }
        if let (true, Some(limit)) = (self.stop.timed_out(), self.limits.time_max) {
            return QueryError::TimeLimit { limit, read: self.session.budget.reading() };
        }
        let root = error.find_root();
        if let DataFusionError::External(error) = root
            && let Some(BadSegment { path, message, damaged }) = error.downcast_ref()
        {
            let path = path.clone();
            if is_gone(message) {
                return QueryError::SegmentGone { path };
            }
            // Of a chain of errors the first.
            let message = plain(message.rsplit(" error: ").next().unwrap_or(message));
            return match damaged {
                true => QueryError::BadSegment { path, message },
                false => QueryError::UnreadSegment { path, message },
            };
        }
        match root {
            DataFusionError::ResourcesExhausted(_) => {
                let pool = &self.session.state.runtime_env().memory_pool;
                let (wanted, in_use) =
                    pool.downcast_ref::<SharedMemory>().map(SharedMemory::refused).unwrap_or_default();
                QueryError::MemoryLimit { limit: self.limits.memory_bytes, in_use, wanted }
            }
            DataFusionError::ArrowError(error, _) => QueryError::Computing { message: plain(&error.to_string()) },
            root if root.to_string().contains(FILTER_FAILED) => {
                QueryError::Computing { message: plain(&filter_failure(&message_of(root))) }
            }
            _ => QueryError::Execution { message: plain(&message_of(error)) },
        }
    }
}

/// What went wrong in a filter. Parquet's reader, which asked it, hands on only how the error looks to a programmer:
/// `ArrowError(DivideByZero, ...)`, or with a text of its own in quotes.
fn filter_failure(message: &str) -> String {
    let cause = message.split_once(FILTER_FAILED).map_or(message, |(_, cause)| cause.trim_start_matches([':', ' ']));
    match cause.split_once("(\"").and_then(|(_, rest)| rest.split_once("\")")) {
        _ if cause.contains("DivideByZero") => "divide by zero".to_owned(),
        Some((text, _)) => text.replace("\\\"", "\""),
        None => cause.to_owned(),
    }
}

/// Whether a file was missing. The reader of footers hands on only the text of the store's error.
fn is_gone(message: &str) -> bool {
    message.contains("Object at location") && message.contains("not found")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_fails_in_a_filter_is_said_as_elsewhere() {
        let said = |cause: &str| filter_failure(&format!("External: Compute error: {FILTER_FAILED}: {cause}"));
        assert_eq!(said("ArrowError(DivideByZero, Some(\"\"))"), "divide by zero");
        assert_eq!(said("ArrowError(CastError(\"Cannot cast 'x'\"), Some(\"\"))"), "Cannot cast 'x'");
        assert_eq!(said("something else"), "something else");
    }
}
