//! `AlertService` over a real log: live, resumed, with gaps, listed.

mod common;

use common::{Fixture, alert};
use rpc::v1::alert_event::Event;
use rpc::v1::{self, ListAlertsRequest, SubscribeAlertsRequest};
use tonic::{Code, Streaming};

async fn next(stream: &mut Streaming<v1::AlertEvent>) -> Event {
    stream.message().await.unwrap().unwrap().event.unwrap()
}

async fn subscribe(fixture: &mut Fixture, resume_after: Option<u64>, rules: &[&str]) -> Streaming<v1::AlertEvent> {
    let rules = rules.iter().map(|rule| (*rule).to_owned()).collect();
    fixture.client.alerts.subscribe_alerts(SubscribeAlertsRequest { resume_after, rules }).await.unwrap().into_inner()
}

fn number(event: Event) -> u64 {
    match event {
        Event::Alert(alert) => alert.seq,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn alerts_come_as_they_are_published() {
    let mut fixture = Fixture::start(&[]).await;
    fixture.hub.publish(alert("port_scan", 10)).unwrap();
    let mut stream = subscribe(&mut fixture, None, &[]).await;
    assert_eq!(next(&mut stream).await, Event::Heartbeat(v1::Heartbeat { seq: 1 }));

    let hub = fixture.hub.clone();
    std::thread::spawn(move || hub.publish(alert("traffic_spike", 11)).unwrap()).join().unwrap();
    let Event::Alert(told) = next(&mut stream).await else { panic!("no alert") };
    let logged = detect::Alert { seq: 2, ..alert("traffic_spike", 11) };
    assert_eq!(rpc::alert_from_message(told.clone()), Some(logged), "what arrives is what was logged");
    assert_eq!((told.seq, told.rule.as_str(), told.summary.as_str()), (2, "traffic_spike", "traffic_spike at 11"));
    assert_eq!(told.state(), v1::AlertState::Firing);
    assert_eq!(told.severity(), v1::Severity::Critical);
    assert_eq!(told.time, Some(prost_types::Timestamp { seconds: 11, nanos: 0 }));
    assert_eq!((told.src_ip.as_deref(), told.dst_ip), (Some("10.0.0.9"), None));
    let evidence = format!("{:?}", told.evidence.unwrap().fields["ports"]);
    assert!(evidence.contains("40.0") && evidence.contains("sample"), "{evidence}");
}

#[tokio::test]
async fn a_subscriber_resumes_where_it_was() {
    let mut fixture = Fixture::start(&[]).await;
    for second in 10..15 {
        fixture.hub.publish(alert("port_scan", second)).unwrap();
    }
    let mut stream = subscribe(&mut fixture, Some(3), &[]).await;
    assert_eq!(next(&mut stream).await, Event::Heartbeat(v1::Heartbeat { seq: 3 }));
    fixture.hub.publish(alert("port_scan", 20)).unwrap();
    for seq in 4..=6 {
        assert_eq!(number(next(&mut stream).await), seq);
    }
}

#[tokio::test]
async fn a_subscriber_hears_only_the_rules_it_named() {
    let mut fixture = Fixture::start(&[]).await;
    let mut stream = subscribe(&mut fixture, Some(0), &["traffic_spike"]).await;
    assert!(matches!(next(&mut stream).await, Event::Heartbeat(_)));
    for (rule, second) in [("port_scan", 10), ("traffic_spike", 11), ("port_scan", 12), ("traffic_spike", 13)] {
        fixture.hub.publish(alert(rule, second)).unwrap();
    }
    assert_eq!([number(next(&mut stream).await), number(next(&mut stream).await)], [2, 4]);
}

#[tokio::test]
async fn what_was_rotated_away_is_a_gap() {
    let mut fixture = Fixture::with_alert_bytes(&[], 4_096).await;
    for second in 1..=60 {
        fixture.hub.publish(alert("port_scan", second)).unwrap();
    }
    let mut stream = subscribe(&mut fixture, Some(5), &["no such rule", "port_scan"]).await;
    assert!(matches!(next(&mut stream).await, Event::Heartbeat(_)));
    let Event::Gap(gap) = next(&mut stream).await else { panic!("no gap") };
    assert_eq!((gap.from_seq, gap.count), (6, gap.to_seq - 5));
    assert_eq!(gap.reason(), v1::gap::Reason::NotRetained);
    for seq in gap.to_seq + 1..=60 {
        assert_eq!(number(next(&mut stream).await), seq);
    }
}

#[tokio::test]
async fn a_number_of_another_log_is_refused() {
    let mut fixture = Fixture::start(&[]).await;
    let request = SubscribeAlertsRequest { resume_after: Some(900), rules: vec![] };
    let status = fixture.client.alerts.subscribe_alerts(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange);
    assert!(status.message().contains("900"), "{status}");
}

#[tokio::test]
async fn a_server_that_stops_tells_its_subscribers() {
    let mut fixture = Fixture::start(&[]).await;
    let mut stream = subscribe(&mut fixture, None, &[]).await;
    assert!(matches!(next(&mut stream).await, Event::Heartbeat(_)));
    fixture.begin_stop();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    drop(stream);
    fixture.stopped().await;
}

#[tokio::test]
async fn listing_pages_through_what_was_asked_for() {
    let mut fixture = Fixture::start(&[]).await;
    for second in 1..=30 {
        let rule = if second % 3 == 0 { "port_scan" } else { "traffic_spike" };
        fixture.hub.publish(alert(rule, second)).unwrap();
    }
    let time = |seconds| Some(prost_types::Timestamp { seconds, nanos: 0 });
    let request = ListAlertsRequest {
        after_seq: 4,
        rules: vec!["port_scan".into()],
        start_time: time(3),
        end_time: time(24),
        ..Default::default()
    };
    for page_size in [0, 1, 2, 5, 1_000] {
        let mut request = ListAlertsRequest { page_size, ..request.clone() };
        let mut seen = vec![];
        loop {
            let page = fixture.client.alerts.list_alerts(request.clone()).await.unwrap().into_inner();
            assert!(page_size == 0 || page.alerts.len() <= page_size as usize);
            seen.extend(page.alerts.iter().map(|alert| alert.seq));
            request.page_token = page.next_page_token;
            if request.page_token.is_empty() {
                break;
            }
        }
        assert_eq!(seen, [6, 9, 12, 15, 18, 21], "pages of {page_size}");
    }

    let page = fixture.client.alerts.list_alerts(ListAlertsRequest { page_size: 1, ..request.clone() }).await.unwrap();
    let page_token = page.into_inner().next_page_token;
    let misused = ListAlertsRequest { page_token, rules: vec![], ..request };
    let status = fixture.client.alerts.list_alerts(misused).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().contains("page_token"), "{status}");
}
