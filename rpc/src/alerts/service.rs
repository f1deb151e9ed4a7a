use super::hub::{AlertHub, GapReason, Heard, Subscription};
use super::message;
use crate::scope::{Scope, reader_gone};
use crate::status::{ToStatus, nanos};
use crate::v1::alert_event::Event;
use crate::v1::alert_service_server::AlertService;
use crate::{token, v1};
use detect::Alert;
use prost::Message;
use std::time::Duration;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

/// Quiet time after which a subscriber hears where the log stands.
const HEARTBEAT: Duration = Duration::from_secs(15);
const PAGE_SIZE_DEFAULT: usize = 100;
const PAGE_SIZE_MAX: usize = 1_000;
/// A page ends early here, so that it fits a message whatever its alerts hold.
const PAGE_BYTES_MAX: usize = crate::MESSAGE_BYTES_MAX / 4;
/// Alerts read from the log at once.
const LOG_CHUNK: usize = 1_024;
/// Rules a request may name.
const RULES_MAX: usize = 1_000;

/// `AlertService` over a hub.
pub(crate) struct Alerts {
    pub(crate) hub: AlertHub,
    pub(crate) closing: watch::Receiver<bool>,
}

#[tonic::async_trait]
impl AlertService for Alerts {
    async fn list_alerts(
        &self,
        request: Request<v1::ListAlertsRequest>,
    ) -> Result<Response<v1::ListAlertsResponse>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let request = Listing::new(&request.into_inner())?;
        scope.run(self.page(&request)).await.map(Response::new)
    }

    type SubscribeAlertsStream = ReceiverStream<Result<v1::AlertEvent, Status>>;

    async fn subscribe_alerts(
        &self,
        request: Request<v1::SubscribeAlertsRequest>,
    ) -> Result<Response<Self::SubscribeAlertsStream>, Status> {
        let scope = Scope::new(request.metadata(), self.closing.clone());
        let v1::SubscribeAlertsRequest { resume_after, rules } = request.into_inner();
        let rules = Rules::new(rules)?;
        let subscription = self.hub.subscribe(resume_after).map_err(|e| e.to_status())?;
        let events = scope.stream(|sender| forward(subscription, rules, sender), |_| ());
        Ok(Response::new(ReceiverStream::new(events)))
    }
}

/// Passes on what a subscription hears, for as long as there is a reader.
async fn forward(
    mut subscription: Subscription,
    rules: Rules,
    sender: mpsc::Sender<Result<v1::AlertEvent, Status>>,
) -> Result<(), Status> {
    let heartbeat = |seq| Event::Heartbeat(v1::Heartbeat { seq });
    let send = async |event| sender.send(Ok(v1::AlertEvent { event: Some(event) })).await.map_err(reader_gone);
    send(heartbeat(subscription.seq())).await?;
    loop {
        match tokio::time::timeout(HEARTBEAT, subscription.next()).await {
            Err(_quiet) => send(heartbeat(subscription.seq())).await?,
            Ok(heard) => match heard.map_err(|e| e.to_status())? {
                None => return Ok(()),
                Some(Heard::Alert(alert)) if rules.allow(&alert) => send(Event::Alert(message::alert(&alert))).await?,
                Some(Heard::Alert(_)) => {}
                Some(Heard::Gap { from_seq, to_seq, reason }) => {
                    let reason = match reason {
                        GapReason::TooSlow => v1::gap::Reason::TooSlow,
                        GapReason::NotRetained => v1::gap::Reason::NotRetained,
                    };
                    let count = to_seq - from_seq + 1;
                    send(Event::Gap(v1::Gap { from_seq, to_seq, count, reason: reason.into() })).await?;
                }
            },
        }
    }
}

/// Names to choose by; none for all.
struct Rules(Vec<String>);

impl Rules {
    fn new(rules: Vec<String>) -> Result<Rules, Status> {
        if rules.len() > RULES_MAX {
            let count = rules.len();
            return Err(Status::invalid_argument(format!("rules names {count} rules, allowed are {RULES_MAX}")));
        }
        Ok(Rules(rules))
    }

    fn allow(&self, alert: &Alert) -> bool {
        self.0.is_empty() || self.0.contains(&alert.rule)
    }
}

/// A checked `ListAlertsRequest`.
struct Listing {
    rules: Rules,
    /// Packet time, nanoseconds.
    since: Option<i128>,
    until: Option<i128>,
    /// The page begins after this number.
    after_seq: u64,
    page_size: usize,
    fingerprint: u64,
}

impl Listing {
    fn new(request: &v1::ListAlertsRequest) -> Result<Listing, Status> {
        let fingerprint = token::fingerprint(&[&v1::ListAlertsRequest {
            page_size: 0,
            page_token: String::new(),
            ..request.clone()
        }
        .encode_to_vec()]);
        let page_size = crate::status::page_size(request.page_size, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
        let after_seq = match token::decode(&request.page_token, fingerprint)? {
            Some(seq) => u64::from_be_bytes(seq),
            None => request.after_seq,
        };
        Ok(Listing {
            rules: Rules::new(request.rules.clone())?,
            since: nanos("start_time", &request.start_time)?,
            until: nanos("end_time", &request.end_time)?,
            after_seq,
            page_size,
            fingerprint,
        })
    }

    fn allow(&self, alert: &Alert) -> bool {
        let time = i128::from(alert.time.0);
        self.rules.allow(alert)
            && self.since.is_none_or(|since| time >= since)
            && self.until.is_none_or(|until| time < until)
    }
}

impl Alerts {
    async fn page(&self, request: &Listing) -> Result<v1::ListAlertsResponse, Status> {
        let mut page = v1::ListAlertsResponse::default();
        let (mut after_seq, mut bytes) = (request.after_seq, 0);
        loop {
            let chunk = self.hub.read(after_seq, LOG_CHUNK).await.map_err(|e| e.to_status())?;
            let ended = chunk.len() < LOG_CHUNK;
            for alert in chunk {
                after_seq = alert.seq;
                if !request.allow(&alert) {
                    continue;
                }
                if page.alerts.len() == request.page_size || bytes > PAGE_BYTES_MAX {
                    let last = page.alerts.last().map_or(request.after_seq, |alert| alert.seq);
                    page.next_page_token = token::encode(request.fingerprint, last.to_be_bytes());
                    return Ok(page);
                }
                let alert = message::alert(&alert);
                bytes += alert.encoded_len();
                page.alerts.push(alert);
            }
            if ended {
                return Ok(page);
            }
        }
    }
}
