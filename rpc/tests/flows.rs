//! `FlowService` over a real store: pages, streams, SQL.

mod common;

use arrow::array::AsArray;
use arrow::datatypes::Int64Type;
use common::{Fixture, full_record, record};
use rpc::client::Client;
use rpc::v1::{Flow, ListFlowsRequest, StreamFlowsRequest};
use rpc::{RpcError, metrics::Method};
use std::time::Duration;
use tonic::Code;

async fn pages(client: &mut Client, mut request: ListFlowsRequest) -> Vec<Vec<Flow>> {
    let mut pages = vec![];
    loop {
        let page = client.flows.list_flows(request.clone()).await.unwrap().into_inner();
        pages.push(page.flows);
        request.page_token = page.next_page_token;
        if request.page_token.is_empty() {
            return pages;
        }
    }
}

fn key(flow: &Flow) -> (i64, i32, u64, u32) {
    let end = flow.t_end.unwrap();
    (end.seconds, end.nanos, flow.flow_id, flow.part)
}

async fn stream(client: &mut Client, request: StreamFlowsRequest) -> Result<Vec<Flow>, tonic::Status> {
    let mut messages = client.flows.stream_flows(request).await?.into_inner();
    let mut flows = vec![];
    while let Some(message) = messages.message().await? {
        assert!((1..=1_000).contains(&message.flows.len()));
        flows.extend(message.flows);
    }
    Ok(flows)
}

#[tokio::test]
async fn every_column_reaches_the_reader() {
    let (record, flow) = full_record();
    let mut fixture = Fixture::start(&[record]).await;
    let listed = fixture.client.flows.list_flows(ListFlowsRequest::default()).await.unwrap().into_inner();
    assert_eq!(listed.flows, [flow]);
    assert_eq!(listed.next_page_token, "");
}

#[tokio::test]
async fn pages_together_are_all_rows_newest_first() {
    // Every fifth flow is stored four times, as after a second replay of the same capture.
    let rows: Vec<_> = (0..60).flat_map(|i| vec![record(i); if i % 5 == 0 { 4 } else { 1 }]).collect();
    let mut fixture = Fixture::start(&rows).await;
    let mut expected: Vec<_> = rows.iter().map(|r| (r.end.as_micros(), r.flow_id)).collect();
    expected.sort_by_key(|(end, id)| (std::cmp::Reverse(*end), *id));
    for page_size in [1, 3, 7, 96, 10_000] {
        let pages = pages(&mut fixture.client, ListFlowsRequest { page_size, ..Default::default() }).await;
        let (last, full) = pages.split_last().unwrap();
        assert!(full.iter().all(|page| page.len() == page_size as usize) && !last.is_empty());
        let seen: Vec<_> = pages
            .concat()
            .iter()
            .map(|flow| {
                let end = flow.t_end.unwrap();
                (end.seconds as u64 * 1_000_000 + end.nanos as u64 / 1_000, flow.flow_id)
            })
            .collect();
        assert_eq!(seen, expected, "pages of {page_size}");
    }
}

#[tokio::test]
async fn a_page_is_a_hundred_flows_unless_asked_and_never_more_than_ten_thousand() {
    let rows: Vec<_> = (0..10_050).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    for (page_size, flows) in [(0, 100), (i32::MAX, 10_000)] {
        let request = ListFlowsRequest { page_size, columns: vec!["proto".into()], ..Default::default() };
        let page = fixture.client.flows.list_flows(request).await.unwrap().into_inner();
        assert_eq!(page.flows.len(), flows);
        assert_ne!(page.next_page_token, "");
    }
    let request = ListFlowsRequest { page_size: -1, ..Default::default() };
    let status = fixture.client.flows.list_flows(request).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert!(status.message().contains("page_size is -1"), "{status}");
}

#[tokio::test]
async fn filter_time_and_columns_choose() {
    let rows: Vec<_> = (0..300).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let at = |ms: i32| Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: ms * 1_000_000 });
    let request = ListFlowsRequest {
        filter: "dst_port = 53 and net('10.0.0.0/24')".into(),
        start_time: at(30),
        end_time: at(60),
        columns: vec!["src_ip".into(), "dst_port".into()],
        page_size: 4,
        ..Default::default()
    };
    let flows = pages(&mut fixture.client, request).await.concat();
    // A flow lasts 5 ms: those that end from 30 ms on and start before 60 ms, of which every third goes to port 53.
    let expected: Vec<_> = (30..65).rev().filter(|i| i % 3 == 0).map(|i| format!("10.0.0.{i}")).collect();
    assert_eq!(flows.iter().map(|f| f.src_ip.clone()).collect::<Vec<_>>(), expected);
    for flow in &flows {
        assert_eq!((flow.dst_port, flow.proto, flow.dst_ip.as_str(), flow.bytes_o), (53, 0, "", 0));
        assert!(flow.t_end.is_some() && flow.flow_id != 0, "what names a record is always there");
    }
}

#[tokio::test]
async fn a_token_belongs_to_its_request() {
    let rows: Vec<_> = (0..50).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let request = ListFlowsRequest { filter: "proto = 6".into(), page_size: 5, ..Default::default() };
    let page = fixture.client.flows.list_flows(request.clone()).await.unwrap().into_inner();
    let next = ListFlowsRequest { page_token: page.next_page_token, ..request };

    let larger = ListFlowsRequest { page_size: 9, ..next.clone() };
    assert_eq!(fixture.client.flows.list_flows(larger).await.unwrap().into_inner().flows.len(), 9);

    let time = Some(prost_types::Timestamp { seconds: 1, nanos: 0 });
    for misused in [
        ListFlowsRequest { filter: "proto = 17".into(), ..next.clone() },
        ListFlowsRequest { start_time: time, ..next.clone() },
        ListFlowsRequest { end_time: time, ..next.clone() },
        ListFlowsRequest { columns: vec!["proto".into()], ..next.clone() },
        ListFlowsRequest { page_token: "made up".into(), ..next.clone() },
        ListFlowsRequest { page_token: next.page_token[1..].into(), ..next.clone() },
    ] {
        let status = fixture.client.flows.list_flows(misused).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().contains("page_token"), "{status}");
    }
}

#[tokio::test]
async fn pages_stand_still_while_flows_arrive() {
    let rows: Vec<_> = (0..40).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let mut request = ListFlowsRequest { page_size: 10, ..Default::default() };
    let first = fixture.client.flows.list_flows(request.clone()).await.unwrap().into_inner();
    fixture.store.append(&(40..60).map(record).collect::<Vec<_>>(), &[]).unwrap();
    fixture.store.flush().unwrap();
    request.page_token = first.next_page_token;
    let mut seen = first.flows;
    seen.extend(pages(&mut fixture.client, request).await.concat());
    let ids: Vec<u64> = seen.iter().map(|flow| flow.flow_id).collect();
    assert_eq!(ids, rows.iter().rev().map(|row| row.flow_id).collect::<Vec<_>>());
}

#[tokio::test]
async fn a_bad_filter_is_the_callers_fault_and_shown_where() {
    let mut fixture = Fixture::start(&[record(1)]).await;
    for (filter, said) in
        [("src_prot = 1", "src_port"), ("src_ip = '10.0.0'", "10.0.0"), ("proto = ", ""), ("proto", "")]
    {
        let request = ListFlowsRequest { filter: filter.into(), ..Default::default() };
        let status = fixture.client.flows.list_flows(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{filter}: {status}");
        assert!(status.message().contains('^') && status.message().contains(said), "{filter}: {status}");

        let request = StreamFlowsRequest { filter: filter.into(), ..Default::default() };
        let streamed = stream(&mut fixture.client, request).await.unwrap_err();
        assert_eq!((streamed.code(), streamed.message()), (status.code(), status.message()));
    }
    let request = ListFlowsRequest { columns: vec!["src_prot".into()], ..Default::default() };
    let status = fixture.client.flows.list_flows(request).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("src_port"), "{status}");
}

#[tokio::test]
async fn streams_bring_all_or_the_newest() {
    let rows: Vec<_> = (0..5_000).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let mut all = stream(&mut fixture.client, StreamFlowsRequest::default()).await.unwrap();
    all.sort_by_key(key);
    let listed = pages(&mut fixture.client, ListFlowsRequest { page_size: 10_000, ..Default::default() }).await;
    let mut listed = listed.concat();
    let newest = StreamFlowsRequest { limit: 1_500, ..Default::default() };
    assert_eq!(stream(&mut fixture.client, newest).await.unwrap(), listed[..1_500]);
    listed.sort_by_key(key);
    assert_eq!(all, listed);

    let at = |ms: i32| Some(prost_types::Timestamp { seconds: 1_700_000_000, nanos: ms * 1_000_000 });
    let request = StreamFlowsRequest {
        filter: "proto = 17 -- name lookups".into(),
        start_time: at(30),
        end_time: at(60),
        columns: vec!["proto".into()],
        ..Default::default()
    };
    let mut some = stream(&mut fixture.client, request).await.unwrap();
    some.sort_by_key(key);
    let expected: Vec<_> = (30..65).filter(|i| i % 3 == 0).map(|i| record(i).flow_id).collect();
    assert_eq!(some.iter().map(|flow| flow.flow_id).collect::<Vec<_>>(), expected);
    assert!(some.iter().all(|flow| flow.proto == 17 && flow.src_ip.is_empty()));
}

#[tokio::test]
async fn flows_come_as_record_batches_with_just_the_columns_asked_for() {
    let rows: Vec<_> = (0..100).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let query = query::FlowQuery {
        filter: Some("proto = 17".into()),
        since: Some(1_700_000_000_030_000),
        until: Some(1_700_000_000_060_000),
        columns: vec!["bytes_r".into()],
        limit: Some(5),
        after: None,
    };
    let mut answer = fixture.client.flows(&query).await.unwrap();
    let mut seen = vec![];
    while let Some(batch) = answer.next().await.unwrap() {
        assert_eq!(batch.num_columns(), 1);
        let bytes = batch.column(0).as_primitive::<Int64Type>();
        seen.extend(bytes.values().iter().copied());
    }
    assert_eq!(seen, [63, 60, 57, 54, 51], "the newest, newest first");
}

#[tokio::test]
async fn a_filter_is_one_expression() {
    let mut fixture = Fixture::start(&[record(1)]).await;
    for filter in ["proto = 6) or (1 = 1", "proto = 6; select 1", "proto = 6 order by proto", "proto = 6 /* open"] {
        let request = StreamFlowsRequest { filter: filter.into(), ..Default::default() };
        let status = stream(&mut fixture.client, request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{filter}: {status}");
    }
}

#[tokio::test]
async fn sql_comes_back_as_record_batches() {
    let rows: Vec<_> = (0..2_000).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let mut answer =
        fixture.client.query("select proto, count(*) as n from flows group by proto order by proto").await.unwrap();
    let names: Vec<_> = answer.schema().fields().iter().map(|f| f.name().clone()).collect();
    assert_eq!(names, ["proto", "n"]);
    let batch = answer.next().await.unwrap().unwrap();
    let table = format!("{:?} {:?}", batch.column(0), batch.column(1));
    assert!(table.contains("1333") && table.contains("667"), "{table}");
    assert!(answer.next().await.unwrap().is_none());
    assert!(answer.next().await.unwrap().is_none());

    let mut all = fixture.client.query("select * from flows").await.unwrap();
    let mut count = 0;
    while let Some(batch) = all.next().await.unwrap() {
        assert_eq!(batch.schema(), all.schema());
        count += batch.num_rows();
    }
    assert_eq!(count, rows.len());

    let empty = fixture.client.query("select tap from flows where proto = 200").await.unwrap();
    assert_eq!(empty.schema().fields().len(), 1);

    for wrong in ["select nothing from flows", "drop table flows", ""] {
        match fixture.client.query(wrong).await {
            Err(RpcError::Status(status)) => assert_eq!(status.code(), Code::InvalidArgument, "{wrong}: {status}"),
            other => panic!("{wrong}: {other:?}"),
        }
    }
}

/// An answer far larger than anything between server and reader holds.
const ENDLESS: &str = "select a.flow_id, a.src_ip from flows a, flows b, flows c";

#[tokio::test]
async fn a_reader_that_goes_away_stops_its_query() {
    let rows: Vec<_> = (0..1_000).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let mut answer = fixture.client.query(ENDLESS).await.unwrap();
    assert!(answer.next().await.unwrap().is_some());
    assert_eq!(fixture.queries.in_flight(), 1);
    drop(answer);
    let gone = async {
        while fixture.queries.in_flight() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone).await.expect("the query is still running");
    assert_eq!(fixture.queries.started(Method::Query), 1);
}

#[tokio::test]
async fn a_deadline_holds_for_the_whole_of_a_stream() {
    let rows: Vec<_> = (0..1_000).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let mut request = tonic::Request::new(rpc::v1::QueryRequest { sql: ENDLESS.into() });
    request.set_timeout(Duration::from_secs(2));
    let mut answer = fixture.client.flows.query(request).await.unwrap().into_inner();
    // Never reading would do as well: the server counts the time, not its reader.
    let status = loop {
        match answer.message().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the answer ended"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status}");
}

#[tokio::test]
async fn a_server_that_stops_ends_its_answers_first() {
    let rows: Vec<_> = (0..1_000).map(record).collect();
    let mut fixture = Fixture::start(&rows).await;
    let mut answer = fixture.client.query(ENDLESS).await.unwrap();
    fixture.begin_stop();
    let error = loop {
        match answer.next().await {
            Ok(Some(_)) => {}
            Ok(None) => panic!("the answer ended"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("shutting down"), "{error}");
    drop(answer);
    fixture.stopped().await;
}
