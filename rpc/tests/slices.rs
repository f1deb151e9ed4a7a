//! `SliceService`: requests reach the control, files reach the client whole, refusals keep their code.

mod common;

use common::Fixture;
use rpc::v1;
use tonic::Code;

fn start(filter: &str) -> v1::StartSliceRequest {
    v1::StartSliceRequest { filter: filter.into(), ..Default::default() }
}

#[tokio::test]
async fn a_slice_is_started_listed_read_and_removed() {
    let mut fixture = Fixture::start(&[]).await;
    let slices = &mut fixture.client.slices;
    let made = slices.start_slice(start("port 53")).await.unwrap().into_inner().slice.unwrap();
    assert_eq!((made.id, made.filter.as_str()), (1, "port 53"));
    slices.start_slice(start("")).await.unwrap();
    let listed = slices.list_slices(v1::ListSlicesRequest {}).await.unwrap().into_inner().slices;
    assert_eq!(listed.iter().map(|s| s.id).collect::<Vec<_>>(), [2, 1]);
    let got = slices.get_slice(v1::GetSliceRequest { id: 1 }).await.unwrap().into_inner().slice.unwrap();
    assert_eq!(got, made);

    // Several chunks, the last one short.
    let mut stream = slices.read_slice(v1::ReadSliceRequest { id: 1 }).await.unwrap().into_inner();
    let mut bytes = Vec::new();
    while let Some(part) = stream.message().await.unwrap() {
        bytes.extend(part.chunk);
    }
    assert_eq!(bytes, common::slice_bytes());

    slices.delete_slice(v1::DeleteSliceRequest { id: 1 }).await.unwrap();
    let error = slices.get_slice(v1::GetSliceRequest { id: 1 }).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    fixture.stopped_now().await;
}

#[tokio::test]
async fn what_is_refused_says_why() {
    let mut fixture = Fixture::start(&[]).await;
    let slices = &mut fixture.client.slices;
    let error = slices.start_slice(start("prt 53")).await.unwrap_err();
    assert_eq!((error.code(), error.message()), (Code::InvalidArgument, "unknown word 'prt'"));
    let error = slices.read_slice(v1::ReadSliceRequest { id: 9 }).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    let error = slices.stop_slice(v1::StopSliceRequest { id: 9 }).await.unwrap_err();
    assert_eq!(error.code(), Code::NotFound);
    fixture.stopped_now().await;
}
