//! What goes wrong, as gRPC says it; and the checks that requests share.

use crate::alerts::HubError;
use detect::DetectError;
use prost_types::Timestamp;
use query::QueryError;
use storage::StorageError;
use tonic::{Code, Status};

/// Bytes of a message at most: it travels in a header, of which HTTP/2 peers commonly take 8 to 16 KiB, escaped.
const MESSAGE_BYTES_MAX: usize = 2048;

/// An error on its way to a client.
#[derive(Debug)]
pub(crate) enum Failure<'a> {
    Query(&'a QueryError),
    Storage(&'a StorageError),
    Detect(&'a DetectError),
    Hub(&'a HubError),
    Arrow(&'a arrow::error::ArrowError),
}

/// The one place where errors become codes. The message is what the command line would print.
fn to_status(failure: Failure<'_>) -> Status {
    let (code, message) = match &failure {
        Failure::Query(error) => (
            match error {
                QueryError::Sql(_)
                | QueryError::Filter(_)
                | QueryError::Parameters(_)
                | QueryError::ReadOnly { .. }
                | QueryError::Computing { .. }
                | QueryError::TooLong { .. } => Code::InvalidArgument,
                QueryError::Busy { .. }
                | QueryError::ScanLimit { .. }
                | QueryError::RowLimit { .. }
                | QueryError::MemoryLimit { .. }
                | QueryError::LiveTableMemory { .. } => Code::ResourceExhausted,
                QueryError::TimeLimit { .. } => Code::DeadlineExceeded,
                QueryError::Storage(inner) => return to_status(Failure::Storage(inner)),
                QueryError::Execution { .. } => Code::Internal,
                QueryError::BadSegment { .. } => Code::DataLoss,
                QueryError::GeoFile { .. } => Code::FailedPrecondition,
                QueryError::Stopped
                | QueryError::SegmentGone { .. }
                | QueryError::UnreadSegment { .. }
                | QueryError::LiveTable { .. } => Code::Unavailable,
            },
            error.to_string(),
        ),
        Failure::Storage(error) => (
            match error {
                StorageError::Damaged { .. } | StorageError::RowsLost { .. } => Code::DataLoss,
                StorageError::Option { .. } => Code::InvalidArgument,
                StorageError::NoSuchFolder { .. }
                | StorageError::NotAFolder { .. }
                | StorageError::Foreign { .. }
                | StorageError::BadMarker { .. }
                | StorageError::Newer { .. }
                | StorageError::ReadOnly { .. }
                | StorageError::Locked { .. } => Code::FailedPrecondition,
                _ => Code::Internal,
            },
            error.to_string(),
        ),
        Failure::Detect(error) => (Code::Internal, error.to_string()),
        Failure::Hub(error) => match error {
            HubError::Ahead { .. } => (Code::OutOfRange, error.to_string()),
            HubError::Full => (Code::ResourceExhausted, error.to_string()),
            HubError::Stopped => (Code::Unavailable, error.to_string()),
            HubError::Log(inner) => return to_status(Failure::Detect(inner)),
        },
        Failure::Arrow(error) => (Code::Internal, format!("the answer could not be encoded: {error}")),
    };
    Status::new(code, shortened(message))
}

/// Turns an error into a status.
pub(crate) trait ToStatus {
    fn to_status(&self) -> Status;
}

macro_rules! to_status {
    ($($error:ty => $failure:ident),*) => {
        $(impl ToStatus for $error {
            fn to_status(&self) -> Status {
                to_status(Failure::$failure(self))
            }
        })*
    };
}

to_status!(QueryError => Query, HubError => Hub, arrow::error::ArrowError => Arrow);

fn shortened(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES_MAX {
        message.truncate(message.floor_char_boundary(MESSAGE_BYTES_MAX));
        message.push_str(" ...");
    }
    message
}

/// The page size that a request asks for, as AIP-158 has it: 0 is the default, too much is clamped.
pub(crate) fn page_size(asked: i32, default: usize, max: usize) -> Result<usize, Status> {
    match usize::try_from(asked) {
        Ok(0) => Ok(default),
        Ok(size) => Ok(size.min(max)),
        Err(_) => Err(Status::invalid_argument(format!(
            "page_size is {asked}, allowed are 0 (which stands for {default}) to {max}"
        ))),
    }
}

/// Nanoseconds since 1970 of an optional time.
pub(crate) fn nanos(field: &str, time: &Option<Timestamp>) -> Result<Option<i128>, Status> {
    let Some(time) = time else { return Ok(None) };
    if !(0..1_000_000_000).contains(&time.nanos) {
        let nanos = time.nanos;
        return Err(Status::invalid_argument(format!("{field}.nanos is {nanos}, allowed are 0 to 999999999")));
    }
    Ok(Some(i128::from(time.seconds) * 1_000_000_000 + i128::from(time.nanos)))
}

/// Microseconds since 1970 of an optional time, the rest cut off.
pub(crate) fn micros(field: &str, time: &Option<Timestamp>) -> Result<Option<i64>, Status> {
    let Some(nanos) = nanos(field, time)? else { return Ok(None) };
    i64::try_from(nanos.div_euclid(1_000)).map(Some).map_err(|_| {
        Status::invalid_argument(format!("{field} is out of range: microseconds since 1970 must fit 64 bits"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn page_sizes_are_clamped_and_negative_ones_refused() {
        assert_eq!(page_size(0, 100, 10_000).unwrap(), 100);
        assert_eq!(page_size(7, 100, 10_000).unwrap(), 7);
        assert_eq!(page_size(i32::MAX, 100, 10_000).unwrap(), 10_000);
        assert_eq!(page_size(-1, 100, 10_000).unwrap_err().code(), Code::InvalidArgument);
    }

    #[test]
    fn times_are_checked() {
        let time = |seconds, nanos| Some(Timestamp { seconds, nanos });
        assert_eq!(micros("t", &None).unwrap(), None);
        assert_eq!(micros("t", &time(1, 2_999)).unwrap(), Some(1_000_002));
        assert_eq!(micros("t", &time(-1, 0)).unwrap(), Some(-1_000_000));
        for bad in [time(i64::MAX, 0), time(0, -1), time(0, 1_000_000_000)] {
            let status = micros("end_time", &bad).unwrap_err();
            assert!(status.code() == Code::InvalidArgument && status.message().starts_with("end_time"), "{status}");
        }
    }

    #[test]
    fn codes_tell_the_callers_fault_from_the_servers() {
        assert_eq!(QueryError::Busy { max: 1 }.to_status().code(), Code::ResourceExhausted);
        let limit = std::time::Duration::from_secs(1);
        assert_eq!(
            QueryError::TimeLimit { limit, read: Default::default() }.to_status().code(),
            Code::DeadlineExceeded
        );
        assert_eq!(HubError::Ahead { resume_after: 2, last_seq: 1 }.to_status().code(), Code::OutOfRange);
        let long = QueryError::Execution { message: "é".repeat(MESSAGE_BYTES_MAX) }.to_status();
        assert!(long.message().len() < MESSAGE_BYTES_MAX + 8 && long.message().ends_with(" ..."));
    }
}
