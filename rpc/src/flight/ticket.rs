//! Tickets: the whole of a question, so that the server holds nothing for a client that never comes back for the
//! answer, and a ticket outlives a restart.

use crate::arrow_stream::Decoder;
use arrow::array::RecordBatch;
use arrow::error::ArrowError;
use arrow::ipc::writer::StreamWriter;
use arrow_flight::Ticket;
use arrow_flight::sql::{Any, Command, ProstMessageExt, TicketStatementQuery};
use prost::Message;
use prost::bytes::Bytes;
use query::{Addresses, Parameters};
use tonic::Status;

/// A question whose answer can be fetched.
#[derive(Clone, PartialEq, Message)]
pub(crate) struct Question {
    #[prost(string, tag = "1")]
    pub(crate) sql: String,
    /// One row as an Arrow IPC stream; empty where there are no parameters.
    #[prost(bytes = "bytes", tag = "2")]
    pub(crate) parameters: Bytes,
    /// Addresses as text.
    #[prost(bool, tag = "3")]
    pub(crate) text: bool,
    /// By which it can be cancelled.
    #[prost(fixed64, tag = "4")]
    pub(crate) id: u64,
}

impl Question {
    pub(crate) fn to_ticket(&self) -> Ticket {
        let ticket = TicketStatementQuery { statement_handle: self.encode_to_vec().into() };
        Ticket::new(ticket.as_any().encode_to_vec())
    }

    /// From what a client gave back.
    pub(crate) fn from_handle(handle: &TicketStatementQuery) -> Result<Question, Status> {
        Question::decode(handle.statement_handle.clone()).map_err(|_| not_ours())
    }

    pub(crate) fn from_ticket(ticket: &Ticket) -> Result<Question, Status> {
        match command(&ticket.ticket)? {
            Command::TicketStatementQuery(handle) => Question::from_handle(&handle),
            _ => Err(not_ours()),
        }
    }

    pub(crate) fn addresses(&self) -> Addresses {
        if self.text { Addresses::Text } else { Addresses::Binary }
    }

    pub(crate) fn parameters(&self) -> Result<Parameters, Status> {
        if self.parameters.is_empty() {
            return Ok(Parameters::default());
        }
        let batch = read_batch(&self.parameters).map_err(|_| not_ours())?.ok_or_else(not_ours)?;
        Parameters::from_batch(&batch).map_err(|e| Status::invalid_argument(e.to_string()))
    }
}

fn not_ours() -> Status {
    Status::invalid_argument("the ticket was not given out by this server: ask for flight info first")
}

/// The Flight SQL command in some bytes.
pub(crate) fn command(bytes: &[u8]) -> Result<Command, Status> {
    let unreadable =
        || Status::invalid_argument("the request is no Flight SQL command: use a Flight SQL client to ask");
    let any = Any::decode(bytes).map_err(|_| unreadable())?;
    Command::try_from(any).map_err(|_| unreadable())
}

/// A batch as an Arrow IPC stream.
pub(crate) fn write_batch(batch: &RecordBatch) -> Result<Bytes, ArrowError> {
    let mut writer = StreamWriter::try_new(Vec::new(), batch.schema_ref())?;
    writer.write(batch)?;
    writer.into_inner().map(Bytes::from)
}

/// Made up bytes may tell any length: this reader takes no memory for what is not there.
fn read_batch(bytes: &Bytes) -> Result<Option<RecordBatch>, ArrowError> {
    let mut decoder = Decoder::new();
    let mut batches = decoder.push(bytes.clone())?;
    decoder.finish()?;
    Ok(batches.pop())
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::{ArrayRef, StringArray};
    use std::sync::Arc;

    #[test]
    fn a_ticket_is_the_whole_question() {
        let values = Arc::new(StringArray::from(vec!["10.0.0.1"])) as ArrayRef;
        let parameters = write_batch(&RecordBatch::try_from_iter([("1", values)]).unwrap()).unwrap();
        let question = Question { sql: "SELECT ?".to_owned(), parameters, text: true, id: u64::MAX };
        let back = Question::from_ticket(&question.to_ticket()).unwrap();
        assert_eq!(back, question);
        assert_eq!((back.parameters().unwrap().len(), back.addresses()), (1, Addresses::Text));
    }

    #[test]
    fn what_is_no_ticket_is_refused() {
        for bytes in [&b""[..], b"\xff\xff", b"SELECT 1"] {
            let status = Question::from_ticket(&Ticket::new(bytes.to_vec())).unwrap_err();
            assert_eq!(status.code(), tonic::Code::InvalidArgument);
        }
        let damaged = Question { parameters: Bytes::from_static(b"no stream"), ..Question::default() };
        assert_eq!(damaged.parameters().unwrap_err().code(), tonic::Code::InvalidArgument);
    }
}
