//! Flight SQL over a real store, with the client of the Arrow project.

mod common;

use arrow::array::{ArrayRef, AsArray, RecordBatch, StringArray};
use arrow::compute::concat_batches;
use arrow::datatypes::{DataType, Int64Type};
use arrow_flight::FlightInfo;
use arrow_flight::error::FlightError;
use arrow_flight::sql::client::FlightSqlServiceClient;
use common::{Fixture, record};
use futures::{StreamExt, TryStreamExt};
use std::sync::Arc;
use tonic::transport::Channel;
use tonic::{Code, Status};

type Client = FlightSqlServiceClient<Channel>;

async fn client(fixture: &Fixture) -> Client {
    FlightSqlServiceClient::new(fixture.channel().await)
}

async fn fetch(client: &mut Client, info: &FlightInfo) -> Result<RecordBatch, FlightError> {
    let ticket = info.endpoint[0].ticket.clone().unwrap();
    let mut stream = client.do_get(ticket).await.map_err(|e| Status::unknown(e.to_string()))?;
    let batches: Vec<RecordBatch> = stream.by_ref().try_collect().await?;
    let schema = stream.schema().unwrap().clone();
    let told = info.clone().try_decode_schema().unwrap();
    assert_eq!(*schema, told, "the answer has the columns that its info tells");
    Ok(concat_batches(&schema, &batches).unwrap())
}

#[tokio::test]
async fn answers_are_those_of_the_query_service() {
    let rows: Vec<_> = (0..20_000).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let mut flight = client(&fixture).await;
    let sql = "SELECT flow_id, src_ip, tap, end_reason, bytes_r FROM flows ORDER BY t_end";
    let info = flight.execute(sql.to_owned(), None).await.unwrap();
    let seen = fetch(&mut flight, &info).await.unwrap();
    assert_eq!(seen.num_rows(), rows.len());

    let mut query = fixture.client.query(sql).await.unwrap();
    let mut batches = vec![];
    while let Some(batch) = query.next().await.unwrap() {
        batches.push(batch);
    }
    let expected = concat_batches(&query.schema(), &batches).unwrap();
    for (field, column) in seen.schema_ref().fields().iter().zip(seen.columns()) {
        assert!(!matches!(field.data_type(), DataType::Dictionary(..)), "{field}");
        let same = arrow::compute::cast(&expected[field.name()], field.data_type()).unwrap();
        assert_eq!(column, &same, "{field}");
    }
    // A ticket holds nothing on the server: it can be used again, also by another client.
    assert_eq!(fetch(&mut client(&fixture).await, &info).await.unwrap(), seen);
}

#[tokio::test]
async fn addresses_come_as_text_where_asked() {
    let fixture = Fixture::start(&(0..10).map(record).collect::<Vec<_>>()).await;
    let mut flight = client(&fixture).await;
    flight.set_header("taphouse-addresses", "text");
    let mut prepared =
        flight.prepare("SELECT src_ip FROM flows WHERE src_ip = $1 AND bytes_r < $2".to_owned(), None).await.unwrap();
    let types = |schema: &arrow::datatypes::Schema| -> Vec<DataType> {
        schema.fields().iter().map(|field| field.data_type().clone()).collect()
    };
    assert_eq!(types(prepared.dataset_schema().unwrap()), [DataType::Utf8]);
    assert_eq!(types(prepared.parameter_schema().unwrap()), [DataType::Utf8, DataType::Int64]);
    let address = Arc::new(StringArray::from(vec!["10.0.0.7"])) as ArrayRef;
    let bytes = Arc::new(arrow::array::Int64Array::from(vec![100])) as ArrayRef;
    prepared.set_parameters(RecordBatch::try_from_iter([("1", address), ("2", bytes)]).unwrap()).unwrap();
    let info = prepared.execute().await.unwrap();
    let seen = fetch(&mut flight, &info).await.unwrap();
    assert_eq!(seen.column(0).as_string::<i32>(), &StringArray::from(vec!["10.0.0.7"]));
    assert_eq!(fixture.queries.prepared_open(), 1);
    prepared.close().await.unwrap();
    assert_eq!(fixture.queries.prepared_open(), 0);
}

#[tokio::test]
async fn values_that_do_not_fit_are_refused_when_bound() {
    let fixture = Fixture::start(&[record(1)]).await;
    let mut flight = client(&fixture).await;
    let mut prepared = flight.prepare("SELECT count(*) FROM flows WHERE proto = ?".to_owned(), None).await.unwrap();
    let rows = |values: Vec<i64>| {
        RecordBatch::try_from_iter([("1", Arc::new(arrow::array::Int64Array::from(values)) as ArrayRef)]).unwrap()
    };
    prepared.set_parameters(rows(vec![6, 17])).unwrap();
    let told = prepared.execute().await.unwrap_err().to_string();
    assert!(told.contains("rows of parameters: 2, allowed is 1"), "{told}");
    prepared.set_parameters(rows(vec![6])).unwrap();
    let info = prepared.execute().await.unwrap();
    assert_eq!(fetch(&mut flight, &info).await.unwrap().column(0).as_primitive::<Int64Type>().value(0), 1);
}

/// An answer far larger than anything between server and reader holds.
const ENDLESS: &str = "SELECT a.flow_id, a.src_ip FROM flows a, flows b, flows c";

#[tokio::test]
async fn an_answer_on_its_way_is_cancelled_by_its_info() {
    let fixture = Fixture::start(&(0..1_000).map(record).collect::<Vec<_>>()).await;
    let mut flight = client(&fixture).await;
    let info = flight.execute(ENDLESS.to_owned(), None).await.unwrap();
    let cancel = async |info: &FlightInfo| {
        let request = arrow_flight::CancelFlightInfoRequest { info: Some(info.clone()) };
        let body = prost::Message::encode_to_vec(&request).into();
        let action = arrow_flight::Action { r#type: "CancelFlightInfo".to_owned(), body };
        let mut raw = arrow_flight::flight_service_client::FlightServiceClient::new(fixture.channel().await);
        raw.do_action(action).await.map(drop)
    };
    assert_eq!(cancel(&info).await.unwrap_err().code(), Code::NotFound, "nothing is on its way yet");
    let mut answer = flight.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(answer.next().await.unwrap().is_ok());
    cancel(&info).await.unwrap();
    let ended = loop {
        match answer.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => break error,
            None => panic!("the answer ended"),
        }
    };
    assert!(ended.to_string().contains("cancelled by a client"), "{ended}");
    while fixture.queries.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_reader_that_goes_away_stops_its_query() {
    let fixture = Fixture::start(&(0..1_000).map(record).collect::<Vec<_>>()).await;
    let mut flight = client(&fixture).await;
    let info = flight.execute(ENDLESS.to_owned(), None).await.unwrap();
    let mut answer = flight.do_get(info.endpoint[0].ticket.clone().unwrap()).await.unwrap();
    assert!(answer.next().await.unwrap().is_ok());
    assert_eq!(fixture.queries.in_flight(), 1);
    drop(answer);
    while fixture.queries.in_flight() > 0 {
        tokio::task::yield_now().await;
    }
}
