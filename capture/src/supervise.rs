//! Keeps interfaces open: one that goes away and comes back, or changes its queues, is closed and opened again while
//! the other interfaces keep running.

use crate::interface::{InterfaceOptions, OpenInterface};
use crate::nic::{self, CounterReader, Interface, LinkWatch, NicError};
use crate::port::{Mode, NicTotals, Port};
use crate::sys::wait_readable;
use crate::tap::TapControl;
use crate::{InterfaceFailed, SourceError};
use std::fmt;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use wire::TapId;

/// How long a stop may go unseen.
const WAIT_MS: i32 = 200;
/// How often the cards' counters are read, and interfaces looked at for what nobody tells: a program that was detached.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// First and longest pause between attempts to open an interface again.
const RETRY: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));
/// How long a worker may take to let go of a queue.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

/// Opens an interface with whatever privileges that takes.
pub type OpenFn = Box<dyn Fn(&str, TapId, usize, &InterfaceOptions) -> Result<OpenInterface, SourceError> + Send>;

/// Reads a card's counters with whatever privileges that takes: those of the far end of a veth pair in another namespace
/// take CAP_NET_ADMIN at each reading.
pub type ReadFn = Box<dyn Fn(NicWatch) -> Option<NicWatch> + Send>;

/// What a card, and the far end of a veth pair, lose: read here, counted by the worker of the lowest queue.
pub struct NicWatch {
    reader: CounterReader,
    totals: Arc<NicTotals>,
    /// Counters at the start.
    missed: u64,
    peer_dropped: u64,
}

impl NicWatch {
    /// From now on.
    pub(crate) fn open(interface: &Interface) -> Result<NicWatch, NicError> {
        let mut reader = CounterReader::open(interface)?;
        let missed = reader.read()?.rx_missed;
        let peer_dropped = reader.peer_dropped().unwrap_or(0);
        Ok(NicWatch { reader, totals: Arc::default(), missed, peer_dropped })
    }

    pub(crate) fn totals(&self) -> Arc<NicTotals> {
        self.totals.clone()
    }

    /// Takes a reading. A card that is gone for the moment has lost nothing new that could be known.
    pub fn read(&mut self) {
        if let Ok(now) = self.reader.read() {
            self.totals.missed.store(now.rx_missed.saturating_sub(self.missed), Ordering::Relaxed);
        }
        if let Some(now) = self.reader.peer_dropped() {
            self.totals.peer_dropped.store(now.saturating_sub(self.peer_dropped), Ordering::Relaxed);
        }
    }
}

/// An interface to look after.
pub struct Supervised {
    /// Tap that it belongs to.
    pub tap: TapId,
    /// Its number within the tap.
    pub number: usize,
    /// Name of the interface.
    pub name: String,
    /// How it is opened.
    pub options: InterfaceOptions,
    /// The tap's workers.
    pub controls: Vec<TapControl>,
    /// What can be seen from outside.
    pub view: Arc<InterfaceView>,
}

/// The state of an interface, for whoever asks.
#[derive(Debug)]
pub struct InterfaceView {
    /// Tap that it belongs to.
    pub tap: TapId,
    /// Name of the interface.
    pub name: String,
    state: Mutex<InterfaceState>,
}

/// The state of an interface.
#[derive(Clone, Debug, Default)]
pub struct InterfaceState {
    /// How it is read; `None` while it is closed.
    pub mode: Option<Mode>,
    /// Its queues; empty while it is closed.
    pub ports: Vec<Arc<Port>>,
    /// Whether the link is up.
    pub is_up: bool,
    /// Largest packet in bytes, link header excluded.
    pub mtu: u32,
    /// Why it is closed, or is not read in the best mode. One sentence each.
    pub notes: Vec<String>,
    /// Times it was opened again.
    pub reopened: u64,
    /// How long nothing could come in, the link being down or the interface closed, apart from now.
    pub blind_for: Duration,
    /// Since when nothing can come in.
    pub blind_since: Option<Instant>,
    index: u32,
    queue_count: u32,
}

/// What happened to an interface.
#[derive(Debug)]
pub struct InterfaceReport {
    /// Interface.
    pub name: String,
    /// What happened.
    pub what: InterfaceChange,
}

/// What happened to an interface.
#[derive(Debug)]
pub enum InterfaceChange {
    /// The link went down or came up.
    Link(bool),
    /// The MTU changed.
    Mtu(u32, u32),
    /// It was closed, for this reason.
    Closed(String),
    /// It could not be opened again; the next attempt is in so much time.
    StillClosed(String, Duration),
    /// It is read again, in this mode, after so much time.
    Reopened(Mode, Duration),
}

impl fmt::Display for InterfaceReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.what {
            InterfaceChange::Link(true) => write!(f, "interface {name} is up again"),
            InterfaceChange::Link(false) => write!(f, "interface {name} went down; waiting for it"),
            InterfaceChange::Mtu(from, to) => write!(f, "interface {name}: the MTU changed from {from} to {to}"),
            InterfaceChange::Closed(reason) => {
                write!(f, "interface {name} was closed: {reason}; it is opened again as soon as that works")
            }
            InterfaceChange::StillClosed(reason, pause) => {
                write!(f, "interface {name} stays closed: {reason}; next attempt in {:.1} s", pause.as_secs_f64())
            }
            InterfaceChange::Reopened(mode, gap) => {
                write!(f, "interface {name} is read again ({mode}) after {:.1} s", gap.as_secs_f64())
            }
        }
    }
}

impl InterfaceView {
    /// Of an interface that was just opened.
    pub fn new(tap: TapId, name: &str, open: &OpenInterface) -> InterfaceView {
        let mut state = InterfaceState::default();
        state.open(open);
        InterfaceView { tap, name: name.to_owned(), state: Mutex::new(state) }
    }

    /// A copy of the state.
    pub fn state(&self) -> InterfaceState {
        self.with(|state| state.clone())
    }

    fn with<R>(&self, f: impl FnOnce(&mut InterfaceState) -> R) -> R {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl InterfaceState {
    fn open(&mut self, open: &OpenInterface) {
        self.mode = Some(open.mode);
        self.ports.clone_from(&open.ports);
        self.is_up = open.interface.is_up;
        self.mtu = open.interface.mtu;
        self.notes.clone_from(&open.notes);
        self.index = open.interface.index;
        self.queue_count = open.queue_count;
        self.see();
    }

    /// Nothing comes in from here on.
    fn go_blind(&mut self) {
        self.blind_since.get_or_insert_with(Instant::now);
    }

    fn see(&mut self) {
        self.blind_for += self.blind_since.take().map_or(Duration::ZERO, |since| since.elapsed());
    }
}

/// What is held while an interface is open.
#[derive(Default)]
pub struct Held {
    /// Promiscuous mode.
    pub promiscuous: Option<nic::Promiscuous>,
    /// The card's counters.
    pub nic: Option<NicWatch>,
}

impl Held {
    /// Out of an interface that was opened.
    pub fn of(open: &mut OpenInterface) -> Held {
        Held { promiscuous: open.promiscuous.take(), nic: open.nic.take() }
    }
}

/// The thread that looks after all interfaces.
pub struct Supervisor {
    watch: LinkWatch,
    interfaces: Vec<Watched>,
    failures: Receiver<InterfaceFailed>,
    open: OpenFn,
    read: ReadFn,
    report: Box<dyn FnMut(InterfaceReport) + Send>,
}

struct Watched {
    interface: Supervised,
    held: Held,
    next_try: Instant,
    pause: Duration,
    /// What the last attempt failed with, so that it is told once.
    told: String,
}

impl Supervisor {
    /// Looks after interfaces, each with what is held of it. `failures` is what the taps' workers report.
    ///
    /// # Errors
    /// The kernel tells us nothing of interfaces.
    pub fn new(
        interfaces: Vec<(Supervised, Held)>,
        failures: Receiver<InterfaceFailed>,
        open: OpenFn,
        read: ReadFn,
        report: Box<dyn FnMut(InterfaceReport) + Send>,
    ) -> Result<Supervisor, SourceError> {
        let watched = |(interface, held)| Watched {
            interface,
            held,
            next_try: Instant::now(),
            pause: RETRY.0,
            told: String::new(),
        };
        let interfaces = interfaces.into_iter().map(watched).collect();
        Ok(Supervisor { watch: LinkWatch::open()?, interfaces, failures, open, read, report })
    }

    /// Until `stop` is set.
    pub fn run(mut self, stop: &AtomicBool) {
        let mut looked = Instant::now();
        while !stop.load(Ordering::Relaxed) {
            // A signal may end the wait early; looking too often costs little.
            let changed = wait_readable(self.watch.as_fd(), WAIT_MS).unwrap_or(false);
            if changed {
                // What exactly changed is read off the interfaces below.
                let _ = self.watch.next();
            }
            let due = looked.elapsed() >= LOOK_EVERY;
            if due {
                looked = Instant::now();
            }
            let failed: Vec<InterfaceFailed> = self.failures.try_iter().collect();
            for watched in &mut self.interfaces {
                let Supervised { tap, number, .. } = watched.interface;
                let generation = watched.interface.view.state().reopened;
                let of_this = |f: &&InterfaceFailed| (f.tap, f.interface, f.generation) == (tap, number, generation);
                if let Some(failed) = failed.iter().find(of_this) {
                    watched.close(failed.reason.clone(), &mut self.report);
                }
                if changed || due {
                    watched.look(&mut self.report);
                    watched.count(&self.read);
                }
                watched.reopen(&self.open, changed, &mut self.report);
            }
        }
        self.interfaces.iter_mut().for_each(|watched| watched.count(&self.read));
    }
}

impl Watched {
    fn tell(&self, report: &mut dyn FnMut(InterfaceReport), what: InterfaceChange) {
        report(InterfaceReport { name: self.interface.name.clone(), what });
    }

    /// Reads the card's counters.
    fn count(&mut self, read: &ReadFn) {
        self.held.nic = self.held.nic.take().and_then(read);
    }

    /// Compares the interface with what it was.
    fn look(&mut self, report: &mut (dyn FnMut(InterfaceReport) + Send)) {
        let before = self.interface.view.state();
        if before.mode.is_none() {
            return;
        }
        let now = match nic::interface(&self.interface.name) {
            Ok(now) => now,
            Err(NicError::NoInterface { .. }) => return self.close("it was removed".to_owned(), report),
            // A look that failed is repeated with the next change.
            Err(error) => {
                return self.tell(report, InterfaceChange::StillClosed(error.to_string(), Duration::ZERO));
            }
        };
        if now.is_up != before.is_up {
            self.tell(report, InterfaceChange::Link(now.is_up));
        }
        if now.mtu != before.mtu {
            self.tell(report, InterfaceChange::Mtu(before.mtu, now.mtu));
        }
        self.interface.view.with(|state| {
            (state.is_up, state.mtu) = (now.is_up, now.mtu);
            if now.is_up { state.see() } else { state.go_blind() }
        });
        if let Some(reason) = replaced(&before, &now) {
            self.close(reason, report);
        }
    }

    /// Has every worker let go of the interface.
    fn close(&mut self, reason: String, report: &mut (dyn FnMut(InterfaceReport) + Send)) {
        if self.interface.view.with(|state| state.mode.is_none()) {
            return;
        }
        for control in &self.interface.controls {
            // A worker that has ended holds nothing any more.
            control.close(self.interface.number, CLOSE_PATIENCE);
        }
        self.held = Held::default();
        self.interface.view.with(|state| {
            state.mode = None;
            state.ports.clear();
            state.notes = vec![reason.clone()];
            state.go_blind();
        });
        (self.next_try, self.pause) = (Instant::now(), RETRY.0);
        self.told.clone_from(&reason);
        self.tell(report, InterfaceChange::Closed(reason));
    }

    /// Opens a closed interface when it is time, or when something changed.
    fn reopen(&mut self, open: &OpenFn, changed: bool, report: &mut (dyn FnMut(InterfaceReport) + Send)) {
        let state = self.interface.view.state();
        let due = state.mode.is_none() && (changed || Instant::now() >= self.next_try);
        let Some(blind) = state.blind_since.filter(|_| due) else { return };
        let Supervised { name, tap, controls, options, .. } = &self.interface;
        match open(name, *tap, controls.len(), options) {
            Ok(mut opened) => {
                let generation = self.interface.view.with(|state| {
                    state.open(&opened);
                    state.reopened += 1;
                    state.reopened
                });
                for (worker, queue) in opened.queues.drain(..) {
                    if let Some(control) = controls.get(worker) {
                        // A worker that has ended takes nothing more on; the server stops with its last one.
                        drop(control.adopt(self.interface.number, generation, queue));
                    }
                }
                self.held = Held::of(&mut opened);
                self.tell(report, InterfaceChange::Reopened(opened.mode, blind.elapsed()));
            }
            Err(error) => {
                let reason = error.to_string();
                self.next_try = Instant::now() + self.pause;
                if reason != self.told {
                    self.told.clone_from(&reason);
                    self.interface.view.with(|state| state.notes = vec![reason.clone()]);
                    self.tell(report, InterfaceChange::StillClosed(reason, self.pause));
                }
                self.pause = (self.pause * 2).min(RETRY.1);
            }
        }
    }
}

/// Why an open interface must be opened anew.
fn replaced(before: &InterfaceState, now: &Interface) -> Option<String> {
    if now.index != before.index {
        return Some("it was removed and made anew".to_owned());
    }
    if before.mode == Some(Mode::AfPacket) {
        return None;
    }
    if now.xdp_program.is_none() {
        return Some("its XDP program was detached by somebody else".to_owned());
    }
    let queues = nic::receive_queues(now).ok()?;
    (queues != before.queue_count)
        .then(|| format!("it has {queues} receive queue(s) now, it had {}", before.queue_count))
}
