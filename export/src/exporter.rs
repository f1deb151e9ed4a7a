//! The thread that takes records from the ring and sends them.

use crate::config::{ExportConfig, ExportError, WhenFull};
use crate::counters::{ExportCounters, LinkState, add};
use crate::encoder::Encoder;
use crate::handle::ExportHandle;
use crate::session::Session;
use flowtable::FlowRecord;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

/// How long the thread sleeps when there is nothing to do.
const IDLE: Duration = Duration::from_millis(5);
/// How long a record may wait for others to fill its message.
const MESSAGE_AGE_MAX: Duration = Duration::from_millis(200);
/// How often a connection is asked whether it still stands.
const CHECK_INTERVAL: Duration = Duration::from_millis(100);
/// How long one send may take before the collector counts as gone.
const SEND_MAX: Duration = Duration::from_secs(10);
/// Pause after the first failure; doubled with each.
const RETRY_MIN: Duration = Duration::from_millis(250);
/// Longest pause between attempts.
const RETRY_MAX: Duration = Duration::from_secs(10);
/// How often the log may say that records are dropped.
const TELL_INTERVAL: Duration = Duration::from_secs(60);
/// Unused rate that may be caught up on at once.
const BURST: Duration = Duration::from_millis(20);

/// Sends flow records to one collector, from a thread of its own.
pub struct Exporter {
    config: ExportConfig,
    records: rtrb::Consumer<FlowRecord>,
    counters: Arc<ExportCounters>,
    encoder: Encoder,
    link: Link,
    /// Records of the last datagram: over UDP its fate shows only afterwards.
    unconfirmed: u64,
    checked: Instant,
    /// A session has stood.
    was_up: bool,
    /// When the next message may go, by the rate.
    not_before: Instant,
    told: Told,
}

enum Link {
    Up(Session),
    Down { next: Instant, pause: Duration },
}

/// What the log has said.
struct Told {
    at: Option<Instant>,
    dropped: u64,
}

impl Exporter {
    /// Starts the thread `ipfix`. It ends when the handle is dropped and all is sent, or once nothing has gone out for
    /// [`ExportConfig::linger`]. A collector that cannot be reached is tried again; it is no error here.
    ///
    /// # Errors
    /// When the configuration cannot work or there is no thread to be had.
    pub fn start(config: ExportConfig) -> Result<(ExportHandle, JoinHandle<()>), ExportError> {
        config.validate()?;
        let counters = Arc::new(ExportCounters::default());
        let (producer, records) = rtrb::RingBuffer::new(config.ring_records as usize);
        let handle = ExportHandle { records: producer, counters: counters.clone(), when_full: config.when_full };
        let now = Instant::now();
        let exporter = Exporter {
            encoder: Encoder::new(&config),
            config,
            records,
            counters,
            link: Link::Down { next: now, pause: RETRY_MIN },
            unconfirmed: 0,
            checked: now,
            was_up: false,
            not_before: now,
            told: Told { at: None, dropped: 0 },
        };
        let thread = Builder::new().name("ipfix".to_owned()).spawn(move || exporter.run());
        Ok((handle, thread.map_err(ExportError::Thread)?))
    }

    fn run(mut self) {
        let mut last_progress = Instant::now();
        let mut is_last = false;
        loop {
            let now = Instant::now();
            // Asked before the ring is emptied: what was pushed before the handle went is then still found.
            let ending = self.records.is_abandoned();
            if ending && !is_last {
                (is_last, last_progress) = (true, now);
                self.hurry();
            }
            let sent = self.work(now, ending);
            // A live server has the time of `linger` in all, a replay as long as it gets on.
            if sent > 0 && (!is_last || self.config.when_full == WhenFull::Wait) {
                last_progress = now;
            }
            if ending && self.records.is_empty() && self.encoder.records() == 0 {
                self.check(now);
                if self.unconfirmed == 0 {
                    break;
                }
            }
            if ending && now.duration_since(last_progress) >= self.config.linger {
                break;
            }
            self.tell_drops(now);
            if sent == 0 {
                std::thread::sleep(IDLE);
            }
        }
        let left = self.records.slots() as u64 + u64::from(self.encoder.records()) + self.unconfirmed;
        if left > 0 {
            add(&self.counters.dropped_unreachable, left);
            tracing::warn!("{left} records were not exported: {} took none at the end", self.config.collector);
        }
    }

    /// One round: connect if need be, send what there is. Gives the number of messages sent.
    fn work(&mut self, now: Instant, ending: bool) -> u64 {
        if let Link::Down { next, pause } = self.link {
            if now < next {
                return 0;
            }
            match Session::connect(&self.config.collector, self.config.transport) {
                Ok(session) => self.begin(session, pause, ending),
                Err(error) => self.failed(&error, pause),
            }
            if matches!(self.link, Link::Down { .. }) {
                return 0;
            }
        }
        if now.saturating_duration_since(self.checked) >= CHECK_INTERVAL && !self.check(now) {
            return 0;
        }
        let before = self.counters.messages.load(Relaxed);
        let outcome = self.send_round(now, ending);
        if let Err(error) = outcome {
            self.broken(&error);
        }
        self.counters.messages.load(Relaxed) - before
    }

    /// Fills and sends messages until the ring is empty, the rate is reached or something fails.
    fn send_round(&mut self, now: Instant, ending: bool) -> io::Result<()> {
        // As many as the ring holds now: the round ends, however fast records come in.
        for _ in 0..self.records.slots() {
            let Ok(record) = self.records.peek() else { break };
            if !self.encoder.add(record, now) {
                if !self.send_message()? {
                    return Ok(());
                }
                continue;
            }
            let _ = self.records.pop();
        }
        let is_late = ending || self.encoder.age(now) >= MESSAGE_AGE_MAX;
        if self.encoder.records() > 0 && is_late && self.records.is_empty() {
            self.send_message()?;
        }
        Ok(())
    }

    /// Sends the message, after the templates if they are due; `false` if the rate does not allow it yet.
    fn send_message(&mut self) -> io::Result<bool> {
        let now = Instant::now();
        if now < self.not_before {
            return Ok(false);
        }
        let Link::Up(session) = &mut self.link else { return Ok(false) };
        let (messages, bytes) = self.encoder.send_templates(now, |bytes| session.send(bytes))?;
        add(&self.counters.messages, messages);
        add(&self.counters.bytes, bytes);
        if let Session::Udp(_) = session {
            // What came of the datagram before this one, and of the templates.
            if let Some(error) = session.fault() {
                return Err(error);
            }
        }
        add(&self.counters.sent, std::mem::take(&mut self.unconfirmed));
        let (records, bytes) = self.encoder.send_message(|bytes| session.send(bytes))?;
        let records = u64::from(records);
        match session {
            Session::Udp(_) => self.unconfirmed = records,
            Session::Tcp(_) => add(&self.counters.sent, records),
        }
        add(&self.counters.messages, 1);
        add(&self.counters.bytes, bytes);
        if self.config.records_per_second_max > 0 {
            let takes = Duration::from_secs_f64(records as f64 / f64::from(self.config.records_per_second_max));
            let from = now.checked_sub(BURST).map_or(self.not_before, |earliest| self.not_before.max(earliest));
            self.not_before = from + takes;
        }
        Ok(true)
    }

    /// Asks the network what has become of what was sent; `false` if the session is over.
    fn check(&mut self, now: Instant) -> bool {
        self.checked = now;
        let Link::Up(session) = &self.link else { return false };
        match session.fault() {
            Some(error) => {
                self.broken(&error);
                false
            }
            None => {
                add(&self.counters.sent, std::mem::take(&mut self.unconfirmed));
                true
            }
        }
    }

    /// Begins a session. Templates go first and alone: over UDP, where nobody has answered yet, it often shows then that
    /// nobody listens, before a record is lost.
    fn begin(&mut self, mut session: Session, pause: Duration, ending: bool) {
        self.encoder.begin_session();
        let patience = if ending { self.config.linger.min(SEND_MAX) } else { SEND_MAX };
        let sent = session.set_patience(patience);
        let sent = sent.and_then(|()| self.encoder.send_templates(Instant::now(), |bytes| session.send(bytes)));
        match sent.and_then(|sent| session.fault().map_or(Ok(sent), Err)) {
            Err(error) => self.failed(&error, pause),
            Ok((messages, bytes)) => {
                add(&self.counters.messages, messages);
                add(&self.counters.bytes, bytes);
                let again = self.counters.state() == LinkState::Away && self.was_up;
                add(&self.counters.reconnects, u64::from(again));
                let (collector, transport) = (&self.config.collector, self.config.transport.name());
                if self.was_up {
                    tracing::debug!("exporting to {collector} over {transport} again");
                } else {
                    tracing::info!("exporting to {collector} over {transport}");
                }
                self.was_up = true;
                self.counters.set_state(LinkState::Up);
                self.link = Link::Up(session);
            }
        }
    }

    /// The end has come: no send may take longer than what is left of it.
    fn hurry(&self) {
        if let Link::Up(session) = &self.link
            && let Err(error) = session.set_patience(self.config.linger.min(SEND_MAX))
        {
            tracing::debug!("the collector may take longer than it should: {error}");
        }
    }

    /// A session has ended. Records of a datagram that was refused are lost; a message that was not sent is kept.
    fn broken(&mut self, error: &io::Error) {
        add(&self.counters.dropped_unreachable, std::mem::take(&mut self.unconfirmed));
        self.failed(error, RETRY_MIN);
    }

    /// An attempt has failed: there will be another.
    fn failed(&mut self, error: &io::Error, pause: Duration) {
        add(&self.counters.faults, 1);
        if self.counters.state() != LinkState::Away && self.told.may_speak(Instant::now()) {
            let (collector, ring) = (&self.config.collector, self.config.ring_records);
            tracing::warn!(
                "cannot export to {collector}: {error}; trying again, {ring} records may wait, those beyond are dropped"
            );
        }
        self.counters.set_state(LinkState::Away);
        self.link = Link::Down { next: Instant::now() + pause, pause: (pause * 2).min(RETRY_MAX) };
    }

    /// Says how many records were dropped, now and then.
    fn tell_drops(&mut self, now: Instant) {
        let counts = self.counters.snapshot();
        let dropped = counts.dropped_ring_full + counts.dropped_unreachable;
        if dropped > self.told.dropped && self.told.may_speak(now) {
            let more = dropped - self.told.dropped;
            let why = match counts.state {
                LinkState::Away => "the collector is away",
                _ => "more come than can be sent; see ipfix.rate_max and ipfix.ring",
            };
            tracing::warn!("{more} records were not exported to {}: {why}", self.config.collector);
            self.told.dropped = dropped;
        }
    }
}

impl Told {
    fn may_speak(&mut self, now: Instant) -> bool {
        let may = self.at.is_none_or(|at| now.duration_since(at) >= TELL_INTERVAL);
        if may {
            self.at = Some(now);
        }
        may
    }
}
