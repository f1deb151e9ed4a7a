//! `SliceService` over what the composition root records with.

use crate::v1;
use crate::v1::slice_service_server::SliceService;
use std::io::Read;
use std::sync::Arc;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Bytes of a file in one message.
const CHUNK_BYTES: usize = 256 * 1024;
/// Chunks read ahead of a slow client.
const CHUNKS_AHEAD: usize = 4;

/// Records slices of packets. Called on threads that may block; errors are what the client is told.
pub trait SliceControl: Send + Sync {
    /// Starts a slice.
    ///
    /// # Errors
    /// INVALID_ARGUMENT for what cannot be, RESOURCE_EXHAUSTED while too many are open.
    fn start(&self, request: v1::StartSliceRequest) -> Result<v1::Slice, Status>;

    /// Ends a slice and waits until its file is complete.
    ///
    /// # Errors
    /// NOT_FOUND.
    fn stop(&self, id: u64) -> Result<v1::Slice, Status>;

    /// All slices, the newest first.
    fn list(&self) -> Vec<v1::Slice>;

    /// Opens the file of a complete slice.
    ///
    /// # Errors
    /// NOT_FOUND, or FAILED_PRECONDITION while it is being recorded.
    fn open(&self, id: u64) -> Result<std::fs::File, Status>;

    /// Removes a complete slice.
    ///
    /// # Errors
    /// As [`open`](SliceControl::open).
    fn delete(&self, id: u64) -> Result<(), Status>;
}

pub(crate) struct Slices {
    pub(crate) control: Arc<dyn SliceControl>,
}

impl Slices {
    async fn run<T: Send + 'static>(
        &self,
        f: impl FnOnce(&dyn SliceControl) -> Result<T, Status> + Send + 'static,
    ) -> Result<T, Status> {
        let control = Arc::clone(&self.control);
        let done = tokio::task::spawn_blocking(move || f(control.as_ref())).await;
        done.map_err(|_| Status::internal("the request could not be carried out"))?
    }
}

#[tonic::async_trait]
impl SliceService for Slices {
    async fn start_slice(
        &self,
        request: Request<v1::StartSliceRequest>,
    ) -> Result<Response<v1::StartSliceResponse>, Status> {
        let request = request.into_inner();
        let slice = self.run(move |control| control.start(request)).await?;
        Ok(Response::new(v1::StartSliceResponse { slice: Some(slice) }))
    }

    async fn stop_slice(
        &self,
        request: Request<v1::StopSliceRequest>,
    ) -> Result<Response<v1::StopSliceResponse>, Status> {
        let id = request.into_inner().id;
        let slice = self.run(move |control| control.stop(id)).await?;
        Ok(Response::new(v1::StopSliceResponse { slice: Some(slice) }))
    }

    async fn list_slices(&self, _: Request<v1::ListSlicesRequest>) -> Result<Response<v1::ListSlicesResponse>, Status> {
        let slices = self.run(|control| Ok(control.list())).await?;
        Ok(Response::new(v1::ListSlicesResponse { slices }))
    }

    async fn get_slice(&self, request: Request<v1::GetSliceRequest>) -> Result<Response<v1::GetSliceResponse>, Status> {
        let id = request.into_inner().id;
        let slices = self.run(|control| Ok(control.list())).await?;
        let slice = slices.into_iter().find(|s| s.id == id);
        let slice = slice.ok_or_else(|| Status::not_found(format!("there is no slice {id}")))?;
        Ok(Response::new(v1::GetSliceResponse { slice: Some(slice) }))
    }

    type ReadSliceStream = ReceiverStream<Result<v1::ReadSliceResponse, Status>>;

    async fn read_slice(
        &self,
        request: Request<v1::ReadSliceRequest>,
    ) -> Result<Response<Self::ReadSliceStream>, Status> {
        let id = request.into_inner().id;
        let file = self.run(move |control| control.open(id)).await?;
        let (sender, receiver) = mpsc::channel(CHUNKS_AHEAD);
        tokio::task::spawn_blocking(move || send(file, &sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn delete_slice(
        &self,
        request: Request<v1::DeleteSliceRequest>,
    ) -> Result<Response<v1::DeleteSliceResponse>, Status> {
        let id = request.into_inner().id;
        self.run(move |control| control.delete(id)).await?;
        Ok(Response::new(v1::DeleteSliceResponse {}))
    }
}

/// Sends a file until its end, an error, or the client has gone.
fn send(mut file: std::fs::File, sender: &mpsc::Sender<Result<v1::ReadSliceResponse, Status>>) {
    loop {
        let mut chunk = vec![0; CHUNK_BYTES];
        let message = match file.read(&mut chunk) {
            Ok(0) => return,
            Ok(bytes) => {
                chunk.truncate(bytes);
                Ok(v1::ReadSliceResponse { chunk })
            }
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(e) => Err(Status::internal(format!("the slice could not be read: {e}"))),
        };
        let failed = message.is_err();
        if sender.blocking_send(message).is_err() || failed {
            return;
        }
    }
}
