//! A tap on another host: `tcpdump` there, its stream through the system's `ssh`.
//!
//! The system's `ssh` rather than a library: it honours the operator's `ssh_config`, agents, jump hosts and known hosts,
//! and checks keys as everybody expects.

mod command;
mod fault;
mod link;
mod options;
mod stderr;
#[allow(unsafe_code, reason = "system calls that std has no safe name for")]
mod sys;
mod view;

use crate::{BatchHandler, Polled, Source, SourceCounts, SourceError, Undelivered};
pub use fault::RemoteFault;
use link::Link;
pub use options::SshOptions;
use std::mem::Discriminant;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};
pub use view::{GapCounts, RemoteView};
use wire::{Frame, Nanos, TapId};

/// Longest wait of one poll.
const WAIT: Duration = Duration::from_millis(100);
/// How often standard error is looked at while packets come without a pause.
const CHORES_INTERVAL: Duration = Duration::from_millis(100);
/// How long `finish` waits for what is on its way.
const FINISH_WAIT: Duration = Duration::from_secs(2);
/// How late `tcpdump` may hand a packet over: it has the kernel collect for this long (`to_ms` of pcap_open_live).
const BUFFER_LAG: Duration = Duration::from_secs(1);

/// Packets of an interface of another host, with the times that host gave them; they come up to 1 s late. The remote capture leaves out the
/// connection it comes through, and nothing else.
///
/// A connection that ends is made again, for as long as it takes: the source itself never ends and `poll` returns no
/// error. What was missed meanwhile is counted as time ([`gaps`](SshSource::gaps)), since nobody knows the packets; what
/// the remote kernel dropped while `tcpdump` ran is counted as packets, which `tcpdump` is asked for every 5 s and tells
/// when it ends. `sudo` passes both on (1.9 keeps its user's real id, so that the user may signal it).
///
/// `ssh` and its helpers are ended and waited for on drop.
pub struct SshSource {
    options: SshOptions,
    name: String,
    tap: TapId,
    state: State,
    /// What earlier connections delivered, and all drops.
    past: SourceCounts,
    /// Wait before the next attempt but one.
    backoff: Duration,
    /// While there is no connection: until when the gap is counted.
    gap: Option<Instant>,
    /// A fault nobody was told of yet.
    pending: Option<RemoteFault>,
    /// Kinds of faults of this gap that were reported: at most as many as there are.
    reported: Vec<Discriminant<RemoteFault>>,
    /// A time the remote clock has shown, and when that was here.
    clock: Option<(Nanos, Instant)>,
    /// When standard error is looked at next.
    chores: Instant,
    /// What ends now ends because we want it to.
    stopping: bool,
    view: Arc<RemoteView>,
}

enum State {
    /// `ssh` runs; whether the capture has begun is [`Link::is_live`].
    Up(Box<Link>),
    Down {
        retry: Instant,
    },
    Done,
}

impl SshSource {
    /// Connects and waits for the remote capture to begin, for [`SshOptions::connect_timeout`] at most. A host that is
    /// down or slow is no reason to fail: the source is then opened within its first gap.
    ///
    /// # Errors
    /// [`SourceError::RemoteOption`], and [`SourceError::Remote`] for everything that will not pass by itself: keys,
    /// names, permissions, the filter ([`RemoteFault::is_transient`]).
    pub fn open(options: &SshOptions, tap: TapId) -> Result<SshSource, SourceError> {
        options.check()?;
        let name = options.name();
        let now = Instant::now();
        let mut source = SshSource {
            options: options.clone(),
            name,
            tap,
            state: State::Down { retry: now },
            past: SourceCounts::default(),
            backoff: options.retry_min,
            gap: None,
            pending: None,
            reported: Vec::new(),
            clock: None,
            chores: now,
            stopping: false,
            view: Arc::default(),
        };
        source.connect();
        while source.pending.is_none() && !source.view.is_connected() {
            source.step(&mut Nobody);
        }
        match source.pending.take() {
            Some(reason) if !reason.is_transient() => {
                Err(SourceError::Remote { name: source.name.clone(), reason: Box::new(reason) })
            }
            pending => {
                source.pending = pending;
                Ok(source)
            }
        }
    }

    /// What was missed so far.
    pub fn gaps(&self) -> GapCounts {
        self.view.gaps()
    }

    /// The state, for other threads.
    pub fn view(&self) -> Arc<RemoteView> {
        Arc::clone(&self.view)
    }

    /// One step of whatever is to be done; waits for [`WAIT`] at most.
    fn step(&mut self, handler: &mut dyn BatchHandler) -> Polled {
        self.count_gap();
        match &mut self.state {
            State::Done => return Polled::End,
            State::Down { retry } => {
                let left = retry.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    self.connect();
                } else {
                    std::thread::sleep(left.min(WAIT));
                }
            }
            State::Up(link) if link.ended.is_some() => {
                if let Some(fault) = link.settle(&self.options, WAIT) {
                    self.fall(fault);
                }
            }
            State::Up(_) => {
                if let Some(count) = self.receive(handler) {
                    return Polled::Packets(count);
                }
            }
        }
        if let Some(now) = self.idle_clock() {
            handler.idle(now);
        }
        Polled::Idle
    }

    fn connect(&mut self) {
        match Link::start(&self.options, &self.name, self.tap) {
            Ok(link) => self.state = State::Up(Box::new(link)),
            Err(fault) => self.fall(fault),
        }
    }

    /// Delivers a batch, or waits for one; `None` when none came.
    fn receive(&mut self, handler: &mut dyn BatchHandler) -> Option<usize> {
        let now = Instant::now();
        if now >= self.chores {
            self.chores = now + CHORES_INTERVAL;
            self.listen(now);
        }
        for may_wait in [true, false] {
            let State::Up(link) = &mut self.state else { return None };
            let mut timed = Timed { inner: handler, latest: None };
            let polled = link.stream.poll(&mut timed);
            if let Some(latest) = timed.latest {
                self.clock = Some((latest, Instant::now()));
            }
            match polled {
                Ok(Polled::Packets(count)) => {
                    self.note_live();
                    return Some(count);
                }
                Ok(Polled::Idle) if may_wait => self.wait(),
                Ok(Polled::Idle) => return None,
                Ok(Polled::End) => {
                    self.end(None, handler);
                    return None;
                }
                Err(error) => {
                    self.end(Some(error), handler);
                    return None;
                }
            }
        }
        None
    }

    /// Waits for the stream; without a capture no longer than until it is due.
    fn wait(&mut self) {
        let State::Up(link) = &mut self.state else { return };
        let mut timeout = WAIT;
        if !link.is_live() {
            let left = (link.began + self.options.connect_timeout).saturating_duration_since(Instant::now());
            if left.is_zero() {
                let fault = link.overdue(&self.options);
                return self.fall(fault);
            }
            timeout = timeout.min(left);
        }
        if let Err(error) = link.wait(timeout) {
            let fault = RemoteFault::Damaged { host: self.options.host.clone(), message: error.to_string() };
            return self.fall(fault);
        }
        self.take_drops();
    }

    /// Looks at standard error, and asks for what should come there.
    fn listen(&mut self, now: Instant) {
        if let State::Up(link) = &mut self.state {
            link.listen();
            link.ask(now);
        }
        self.take_drops();
    }

    /// Takes over what `tcpdump` told of drops, and the clock of its host.
    fn take_drops(&mut self) {
        let State::Up(link) = &mut self.state else { return };
        if let Some(seconds) = link.stderr.clock.take() {
            // It shows this or more by now, as it does the time of a packet, which is finer.
            self.clock.get_or_insert((Nanos(seconds.saturating_mul(1_000_000_000)), Instant::now()));
        }
        let drops = link.stderr.take_drops();
        let kernel = u64::from(drops.kernel);
        self.view.kernel_drops.add(kernel);
        self.view.interface_drops.add(u64::from(drops.interface));
        self.past.lose(Undelivered::KernelDrop, kernel);
    }

    /// The stream has ended; why is known when `ssh` has.
    fn end(&mut self, error: Option<SourceError>, handler: &mut dyn BatchHandler) {
        let State::Up(link) = &mut self.state else { return };
        link.ended = Some(Instant::now());
        let host = self.options.host.clone();
        match error {
            // An end within a record, or before any, is how a lost connection looks.
            None | Some(SourceError::Truncated { .. } | SourceError::Empty { .. }) => {}
            Some(error @ SourceError::Times { .. }) => handler.failed(&error),
            Some(SourceError::Magic { magic, .. }) => {
                let start = stderr::printable(&String::from_utf8_lossy(&magic));
                link.fault = Some(RemoteFault::NotCapture { host, start });
            }
            Some(error) => link.fault = Some(RemoteFault::Damaged { host, message: error.to_string() }),
        }
        self.begin_gap();
    }

    /// The capture has begun: a gap ends.
    fn note_live(&mut self) {
        if self.view.is_connected() || !matches!(&self.state, State::Up(link) if link.is_live()) {
            return;
        }
        if self.gap.is_some() {
            self.count_gap();
            self.gap = None;
            self.view.reconnects.add(1);
            self.reported.clear();
        }
        self.view.set_connected(true);
    }

    /// From here on there is no connection.
    fn begin_gap(&mut self) {
        self.view.set_connected(false);
        if self.gap.is_none() && !self.stopping {
            self.gap = Some(Instant::now());
            self.view.gaps.add(1);
        }
    }

    /// Counts the gap up to now.
    fn count_gap(&mut self) {
        if let Some(since) = &mut self.gap {
            let now = Instant::now();
            self.view.gap_nanos.add(u64::try_from((now - *since).as_nanos()).unwrap_or(u64::MAX));
            *since = now;
        }
    }

    /// Gives this connection up and plans the next one. The wait doubles from attempt to attempt, and begins anew after
    /// a connection that held for longer than the wait.
    fn fall(&mut self, fault: RemoteFault) {
        self.take_drops();
        self.begin_gap();
        let now = Instant::now();
        if let State::Up(link) = &self.state {
            self.past += link.stream.counts();
            if link.stream.has_header() && link.ended.is_some_and(|ended| ended - link.began > self.backoff) {
                self.backoff = self.options.retry_min;
            }
        }
        self.state = State::Down { retry: now + self.backoff };
        self.backoff = (self.backoff * 2).min(self.options.retry_max);
        self.pending = Some(fault);
    }

    /// Tells the handler of a fault, unless it was told of one of that kind in this gap.
    fn report(&mut self, handler: &mut dyn BatchHandler) {
        let Some(reason) = self.pending.take() else { return };
        let kind = std::mem::discriminant(&reason);
        if self.reported.contains(&kind) {
            return;
        }
        self.reported.push(kind);
        let retry = match &self.state {
            State::Down { retry } => retry.saturating_duration_since(Instant::now()),
            _ => Duration::ZERO,
        };
        let retry = Duration::from_millis(retry.as_millis().try_into().unwrap_or(u64::MAX));
        let (name, packets) = (self.name.clone(), self.counts().delivered);
        handler.failed(&SourceError::RemoteGap { name, packets, retry, reason: Box::new(reason) });
    }

    /// A time that the packets to come are not before, going by the remote clock. Not our own clock: where the two
    /// differ, that would let time run ahead of the packets.
    fn idle_clock(&self) -> Option<Nanos> {
        match self.clock {
            Some((then, at)) => {
                let since = at.elapsed().saturating_sub(BUFFER_LAG).as_nanos();
                Some(Nanos(then.0.saturating_add(u64::try_from(since).unwrap_or(u64::MAX))))
            }
            // Nobody there yet: our own has to do, so that others who wait for this clock go on.
            None => {
                let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
                Some(Nanos(u64::try_from(since.as_nanos()).ok()?))
            }
        }
    }

    /// Delivers what is on its way until the stream ends, then takes in the statistics. False if it does not end.
    fn drain(&mut self, handler: &mut dyn BatchHandler) -> bool {
        let deadline = Instant::now() + FINISH_WAIT;
        if let State::Up(link) = &mut self.state {
            link.close_input();
        }
        while let State::Up(link) = &mut self.state {
            if !link.stream.has_header() {
                return true;
            }
            if Instant::now() >= deadline {
                return false;
            }
            if link.ended.is_none() {
                self.receive(handler);
            } else if link.settle(&self.options, WAIT).is_some() {
                self.take_drops();
                return true;
            }
        }
        true
    }
}

impl Source for SshSource {
    fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError> {
        let polled = self.step(handler);
        self.report(handler);
        Ok(polled)
    }

    /// Tells the remote `tcpdump` to end, delivers what it had captured by then and counts what it says was dropped.
    /// Takes little more than 2 s at most.
    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        self.report(handler);
        self.count_gap();
        self.gap = None;
        self.stopping = true;
        if !self.drain(handler) {
            let reason = Box::new(RemoteFault::NotEnded { host: self.options.host.clone() });
            handler.failed(&SourceError::Remote { name: self.name.clone(), reason });
        }
        self.past = self.counts();
        self.state = State::Done;
        self.view.set_connected(false);
        Ok(())
    }

    fn counts(&self) -> SourceCounts {
        match &self.state {
            State::Up(link) => self.past + link.stream.counts(),
            State::Down { .. } | State::Done => self.past,
        }
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Passes frames on and remembers the time of the last.
struct Timed<'a> {
    inner: &'a mut dyn BatchHandler,
    latest: Option<Nanos>,
}

impl BatchHandler for Timed<'_> {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        self.latest = frames.last().map(|frame| frame.ts);
        self.inner.batch(frames);
    }

    fn idle(&mut self, now: Nanos) {
        self.inner.idle(now);
    }
}

/// Until the capture begins there is nothing to deliver.
struct Nobody;

impl BatchHandler for Nobody {
    fn batch(&mut self, _: &[Frame<'_>]) {}
    fn idle(&mut self, _: Nanos) {}
}
