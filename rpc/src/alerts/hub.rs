use detect::{Alert, AlertLog, DetectError, Recovery};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::broadcast;
use tokio::sync::broadcast::error::RecvError;

/// Alerts a subscriber may fall behind before it loses the oldest, and is told so. A power of two.
pub const SUBSCRIBER_ALERTS_MAX: usize = 1024;
/// Subscribers at a time; one more is refused.
pub const SUBSCRIBERS_MAX: usize = 256;
/// Alerts read from the log at once.
const LOG_CHUNK: usize = 1024;

/// Where alerts go: into the numbered log, then to everyone who listens. A clone is another handle to the same hub.
#[derive(Clone, Debug)]
pub struct AlertHub(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    recovery: Recovery,
    log: Mutex<AlertLog>,
    /// Sent to while `log` is locked, so that subscribers see the order of the log.
    live: broadcast::Sender<Arc<Alert>>,
    /// Number of the newest alert in the log. Stored after the log has it and before `live` has it; a subscriber joins
    /// `live` before it reads this, so that what it does not hear live is in the log already. Release pairs with the
    /// Acquire in `last_seq`.
    last_seq: AtomicU64,
    log_errors: AtomicU64,
    subscribers: AtomicUsize,
}

impl AlertHub {
    /// Opens the log in `dir`; see [`AlertLog::open`] for `max_bytes`.
    ///
    /// # Errors
    /// Those of [`AlertLog::open`].
    pub fn open(dir: &Path, max_bytes: u64) -> Result<AlertHub, DetectError> {
        AlertHub::with_capacity(dir, max_bytes, SUBSCRIBER_ALERTS_MAX)
    }

    fn with_capacity(dir: &Path, max_bytes: u64, subscriber_alerts_max: usize) -> Result<AlertHub, DetectError> {
        let log = AlertLog::open(dir, max_bytes)?;
        let (last_seq, recovery) = (log.next_seq() - 1, log.recovery());
        let (live, _) = broadcast::channel(subscriber_alerts_max);
        Ok(AlertHub(Arc::new(Inner {
            dir: dir.to_owned(),
            recovery,
            log: Mutex::new(log),
            live,
            last_seq: AtomicU64::new(last_seq),
            log_errors: AtomicU64::new(0),
            subscribers: AtomicUsize::new(0),
        })))
    }

    /// Numbers the alert, writes it to the log and tells every subscriber. Blocks on the disk, never on a subscriber;
    /// for any thread, async or not. Returns the number.
    ///
    /// # Errors
    /// When the log cannot be written. Subscribers are told all the same, with the number 0; the error is counted.
    pub fn publish(&self, alert: Alert) -> Result<u64, DetectError> {
        // A thread that panicked in here left the log whole: the lock guards order, not an invariant.
        let mut log = self.0.log.lock().unwrap_or_else(PoisonError::into_inner);
        let unnumbered = Alert { seq: 0, ..alert.clone() };
        let (told, written) = match log.append(alert) {
            Ok(alert) => {
                let seq = alert.seq;
                self.0.last_seq.store(seq, Ordering::Release);
                (alert, Ok(seq))
            }
            Err(error) => {
                self.0.log_errors.fetch_add(1, Ordering::Relaxed);
                (unnumbered, Err(error))
            }
        };
        // Fails only if nobody listens.
        let _ = self.0.live.send(Arc::new(told));
        written
    }

    /// What opening the log found amiss.
    pub fn recovery(&self) -> Recovery {
        self.0.recovery
    }

    /// Number of the newest alert in the log; 0 for none.
    pub fn last_seq(&self) -> u64 {
        self.0.last_seq.load(Ordering::Acquire)
    }

    /// Alerts that could not be written to the log.
    pub fn log_errors(&self) -> u64 {
        self.0.log_errors.load(Ordering::Relaxed)
    }

    /// Subscribers now.
    pub fn subscribers(&self) -> usize {
        self.0.subscribers.load(Ordering::Relaxed)
    }

    /// Up to `limit` alerts with numbers above `after_seq`, in order.
    pub(crate) async fn read(&self, after_seq: u64, limit: usize) -> Result<Vec<Alert>, HubError> {
        let hub = self.clone();
        match tokio::task::spawn_blocking(move || AlertLog::read(&hub.0.dir, after_seq, limit)).await {
            Ok(read) => Ok(read?.0),
            Err(_) => Err(HubError::Stopped),
        }
    }

    /// Listens from now on, after what the log holds beyond `resume_after`, if that is given.
    pub(crate) fn subscribe(&self, resume_after: Option<u64>) -> Result<Subscription, HubError> {
        let slot = Slot::take(self)?;
        let live = self.0.live.subscribe();
        let last_seq = self.last_seq();
        let seq = resume_after.unwrap_or(last_seq);
        if seq > last_seq {
            return Err(HubError::Ahead { resume_after: seq, last_seq });
        }
        Ok(Subscription { slot, live, seq, backlog_end: last_seq, ready: VecDeque::new() })
    }
}

/// Why the hub refuses.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HubError {
    #[error(
        "resume_after is {resume_after}, but the newest alert is {last_seq}: this log is another one, or was removed; \
         resume after 0 for everything it holds"
    )]
    Ahead { resume_after: u64, last_seq: u64 },
    #[error("{SUBSCRIBERS_MAX} subscribers are listening already, which is the most: try again later")]
    Full,
    #[error("the server is shutting down")]
    Stopped,
    #[error(transparent)]
    Log(#[from] DetectError),
}

/// One of [`SUBSCRIBERS_MAX`], given back when dropped.
#[derive(Debug)]
struct Slot(AlertHub);

impl Slot {
    fn take(hub: &AlertHub) -> Result<Slot, HubError> {
        // Counted first and undone by the drop if that was one too many: two callers cannot both take the last slot.
        let taken = hub.0.subscribers.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(hub.clone());
        if taken < SUBSCRIBERS_MAX { Ok(slot) } else { Err(HubError::Full) }
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.subscribers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// What a subscriber hears.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Heard {
    Alert(Arc<Alert>),
    /// These numbers, both included, will not come.
    Gap {
        from_seq: u64,
        to_seq: u64,
        reason: GapReason,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GapReason {
    TooSlow,
    NotRetained,
}

/// One subscriber: first the log up to where it stood at the start, then what is published. Every number after the
/// first comes once, in order, as an alert or within a gap.
#[derive(Debug)]
pub(crate) struct Subscription {
    slot: Slot,
    live: broadcast::Receiver<Arc<Alert>>,
    /// Every alert up to this number was heard, or told of as a gap.
    seq: u64,
    /// The log is read up to this number; after it, `live` has everything.
    backlog_end: u64,
    ready: VecDeque<Heard>,
}

impl Subscription {
    /// The number up to which everything was heard or told of as a gap.
    pub(crate) fn seq(&self) -> u64 {
        self.seq
    }

    /// The next event; `None` when the hub is gone. Dropping the future loses nothing.
    pub(crate) async fn next(&mut self) -> Result<Option<Heard>, HubError> {
        loop {
            if let Some(heard) = self.ready.pop_front() {
                self.seq = match &heard {
                    Heard::Alert(alert) => self.seq.max(alert.seq),
                    Heard::Gap { to_seq, .. } => *to_seq,
                };
                return Ok(Some(heard));
            }
            if self.seq < self.backlog_end {
                self.read_backlog().await?;
                continue;
            }
            match self.live.recv().await {
                Ok(alert) => self.take(alert, GapReason::TooSlow),
                // The numbers around the hole tell how large it is.
                Err(RecvError::Lagged(_)) => {}
                Err(RecvError::Closed) => return Ok(None),
            }
        }
    }

    async fn read_backlog(&mut self) -> Result<(), HubError> {
        let alerts = self.slot.0.read(self.seq, LOG_CHUNK).await?;
        let end = self.backlog_end;
        let mut found = false;
        for alert in alerts.into_iter().take_while(|alert| alert.seq <= end) {
            found = true;
            self.take(Arc::new(alert), GapReason::NotRetained);
        }
        if !found {
            let reason = GapReason::NotRetained;
            self.ready.push_back(Heard::Gap { from_seq: self.seq + 1, to_seq: end, reason });
        }
        Ok(())
    }

    /// Queues an alert, and before it the gap that its number shows. One that was heard already is left out.
    fn take(&mut self, alert: Arc<Alert>, reason: GapReason) {
        let queued = match self.ready.back() {
            Some(Heard::Alert(last)) => self.seq.max(last.seq),
            Some(Heard::Gap { to_seq, .. }) => *to_seq,
            None => self.seq,
        };
        // Number 0: the log could not be written, so it has no place in the order.
        if alert.seq != 0 {
            if alert.seq <= queued {
                return;
            }
            if alert.seq > queued + 1 {
                self.ready.push_back(Heard::Gap { from_seq: queued + 1, to_seq: alert.seq - 1, reason });
            }
        }
        self.ready.push_back(Heard::Alert(alert));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use detect::{AlertState, Evidence, Severity};
    use wire::Nanos;

    fn alert(summary: &str) -> Alert {
        Alert {
            seq: 0,
            time: Nanos::from_secs(1),
            rule: "port_scan".into(),
            state: AlertState::Firing,
            key: "port_scan/a/10.0.0.1".into(),
            severity: Severity::Warning,
            score: 1.0,
            tap: "a".into(),
            summary: summary.into(),
            src_ip: None,
            dst_ip: None,
            started: Nanos::ZERO,
            evidence: Evidence::new(),
        }
    }

    fn publish(hub: &AlertHub, count: usize) {
        for _ in 0..count {
            hub.publish(alert("words")).unwrap();
        }
    }

    /// Hears up to number `to`: the alerts, and the gaps as ranges.
    async fn hear(subscription: &mut Subscription, to: u64) -> (Vec<u64>, Vec<(u64, u64, GapReason)>) {
        let (mut alerts, mut gaps) = (vec![], vec![]);
        while subscription.seq() < to {
            match subscription.next().await.unwrap().unwrap() {
                Heard::Alert(alert) => alerts.push(alert.seq),
                Heard::Gap { from_seq, to_seq, reason } => gaps.push((from_seq, to_seq, reason)),
            }
        }
        (alerts, gaps)
    }

    #[tokio::test]
    async fn a_new_subscriber_hears_only_what_is_new() {
        let dir = tempfile::tempdir().unwrap();
        let hub = AlertHub::open(dir.path(), 1 << 20).unwrap();
        publish(&hub, 3);
        let mut subscription = hub.subscribe(None).unwrap();
        assert_eq!(subscription.seq(), 3);
        publish(&hub, 2);
        assert_eq!(hear(&mut subscription, 5).await, (vec![4, 5], vec![]));
    }

    #[tokio::test]
    async fn resuming_goes_from_log_to_live_without_a_seam() {
        let dir = tempfile::tempdir().unwrap();
        publish(&AlertHub::open(dir.path(), 1 << 20).unwrap(), 3);
        let hub = AlertHub::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(hub.last_seq(), 3, "the numbers go on after a restart");
        let mut subscription = hub.subscribe(Some(1)).unwrap();
        publish(&hub, 2);
        assert_eq!(hear(&mut subscription, 5).await, (vec![2, 3, 4, 5], vec![]));
    }

    #[tokio::test]
    async fn a_subscriber_too_slow_is_told_which_it_lost() {
        let dir = tempfile::tempdir().unwrap();
        let hub = AlertHub::with_capacity(dir.path(), 1 << 20, 4).unwrap();
        let mut subscription = hub.subscribe(None).unwrap();
        publish(&hub, 10);
        let (alerts, gaps) = hear(&mut subscription, 10).await;
        assert_eq!(gaps, [(1, 6, GapReason::TooSlow)]);
        assert_eq!(alerts, [7, 8, 9, 10]);
    }

    #[tokio::test]
    async fn what_the_log_lost_is_a_gap() {
        let dir = tempfile::tempdir().unwrap();
        let hub = AlertHub::open(dir.path(), 4096).unwrap();
        publish(&hub, 100);
        let mut subscription = hub.subscribe(Some(0)).unwrap();
        let (alerts, gaps) = hear(&mut subscription, 100).await;
        let first = alerts[0];
        assert!(first > 1, "4 KiB cannot hold 100 alerts");
        assert_eq!(gaps, [(1, first - 1, GapReason::NotRetained)]);
        assert_eq!(alerts, (first..=100).collect::<Vec<u64>>());
    }

    #[tokio::test]
    async fn a_log_that_is_gone_is_a_gap_and_not_a_wait() {
        let dir = tempfile::tempdir().unwrap();
        let hub = AlertHub::open(dir.path(), 1 << 20).unwrap();
        publish(&hub, 3);
        let mut subscription = hub.subscribe(Some(1)).unwrap();
        std::fs::remove_file(dir.path().join("alerts.ndjson")).unwrap();
        assert_eq!(hear(&mut subscription, 3).await, (vec![], vec![(2, 3, GapReason::NotRetained)]));
    }

    #[tokio::test]
    async fn an_alert_that_cannot_be_logged_is_told_all_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let hub = AlertHub::open(dir.path(), 4096).unwrap();
        let mut subscription = hub.subscribe(None).unwrap();
        hub.publish(alert(&"x".repeat(5000))).unwrap_err();
        publish(&hub, 1);
        let heard = [subscription.next().await.unwrap().unwrap(), subscription.next().await.unwrap().unwrap()];
        let numbers = heard.map(|heard| match heard {
            Heard::Alert(alert) => alert.seq,
            Heard::Gap { .. } => panic!("nothing is missing"),
        });
        assert_eq!(numbers, [0, 1]);
        assert_eq!((hub.log_errors(), hub.last_seq()), (1, 1));
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn subscribers_that_join_while_alerts_come_miss_none() {
        let dir = tempfile::tempdir().unwrap();
        let hub = AlertHub::open(dir.path(), 1 << 20).unwrap();
        let publisher = {
            let hub = hub.clone();
            std::thread::spawn(move || publish(&hub, 200))
        };
        for _ in 0..20 {
            let mut subscription = hub.subscribe(Some(0)).unwrap();
            let (alerts, gaps) = hear(&mut subscription, 200).await;
            assert_eq!((alerts, gaps), ((1..=200).collect(), vec![]));
        }
        publisher.join().unwrap();
    }

    #[tokio::test]
    async fn the_number_of_subscribers_is_bounded() {
        let dir = tempfile::tempdir().unwrap();
        let hub = AlertHub::open(dir.path(), 4096).unwrap();
        let mut all: Vec<Subscription> = (0..SUBSCRIBERS_MAX).map(|_| hub.subscribe(None).unwrap()).collect();
        assert!(matches!(hub.subscribe(None), Err(HubError::Full)));
        all.pop();
        hub.subscribe(None).unwrap();
        assert_eq!(hub.subscribers(), SUBSCRIBERS_MAX - 1);
        assert!(matches!(hub.subscribe(Some(1)), Err(HubError::Ahead { resume_after: 1, last_seq: 0 })));
    }
}
