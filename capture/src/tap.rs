//! A tap: a group of interfaces whose queues are read together, so that both directions of a passive tap meet in one
//! flow table.

use crate::sys::wait_any_readable;
use crate::{BatchHandler, Polled, Source, SourceCounts, SourceError, Wake};
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant, SystemTime};
use wire::{Nanos, TapId};

/// Longest wait of one poll.
const WAIT_MS: i32 = 100;

/// One queue of one interface, read by one worker: what a [`TapSource`] is made of. Nothing here waits.
pub trait QueueSource: Send {
    /// Delivers one batch; `None` where nothing is there.
    ///
    /// # Errors
    /// The queue is of no more use. What was complete has been delivered, and stays counted.
    fn deliver(&mut self, handler: &mut dyn BatchHandler) -> Result<Option<usize>, SourceError>;

    /// Looks at what no packet tells: the kernel's counters, an interface that is gone. Called after each wait.
    ///
    /// # Errors
    /// As [`deliver`](QueueSource::deliver).
    fn check(&mut self) -> Result<(), SourceError>;

    /// As [`Source::finish`].
    ///
    /// # Errors
    /// As [`deliver`](QueueSource::deliver).
    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError>;

    /// Totals since the queue was opened.
    fn counts(&self) -> SourceCounts;

    /// Readable when a packet is there, or an error to report.
    fn fd(&self) -> BorrowedFd<'_>;
}

/// What a worker does while no packet comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Waiting {
    /// Sleeps until the kernel wakes it: least CPU time, some microseconds of latency.
    Sleep,
    /// Looks again for this long, then sleeps: the pauses between bursts cost no system call.
    Adaptive(Duration),
    /// Never sleeps: a core of its own for each worker, always busy.
    Spin,
}

/// One worker's share of a tap: the same queue of each of its interfaces, read in turn by one thread.
///
/// A queue that fails is reported to the handler and left out; the others go on. With a [`TapControl`] queues can be
/// taken away and added while it runs, and having none is no end.
pub struct TapSource {
    name: String,
    members: Vec<Member>,
    waiting: Waiting,
    /// Whose turn is first, so that a busy interface starves no other.
    first: usize,
    /// Counts of the queues that were taken away.
    retired: SourceCounts,
    control: Option<Receiver<Change>>,
    failures: Option<(TapId, Sender<InterfaceFailed>)>,
    wake: Option<Arc<Wake>>,
}

struct Member {
    /// Interface of the tap that it belongs to, by number.
    interface: usize,
    /// How often the interface had been opened before.
    generation: u64,
    queue: Box<dyn QueueSource>,
    failed: bool,
}

enum Change {
    /// Deliver what the queues of this interface still hold, close them, then say so.
    Close {
        interface: usize,
        done: Sender<()>,
    },
    Adopt {
        interface: usize,
        generation: u64,
        queue: Box<dyn QueueSource>,
    },
}

/// A queue of an interface is of no more use.
#[derive(Clone, Debug)]
pub struct InterfaceFailed {
    /// Tap of the interface.
    pub tap: TapId,
    /// Number of the interface within the tap.
    pub interface: usize,
    /// How often the interface had been opened before: a report may come late, of a queue that was replaced since.
    pub generation: u64,
    /// What happened.
    pub reason: String,
}

/// Changes the queues of a [`TapSource`] from another thread, within 100 ms.
#[derive(Clone)]
pub struct TapControl(Sender<Change>);

impl TapControl {
    /// Takes away all queues of an interface; they are closed when this returns. Returns false if the worker has ended
    /// or did not answer within `patience`.
    pub fn close(&self, interface: usize, patience: Duration) -> bool {
        let (done, answer) = channel();
        self.0.send(Change::Close { interface, done }).is_ok() && answer.recv_timeout(patience).is_ok()
    }

    /// Adds a queue of an interface that had been opened `generation` times before. Gives it back if the worker has
    /// ended.
    pub fn adopt(
        &self,
        interface: usize,
        generation: u64,
        queue: Box<dyn QueueSource>,
    ) -> Result<(), Box<dyn QueueSource>> {
        self.0.send(Change::Adopt { interface, generation, queue }).map_err(|e| match e.0 {
            Change::Adopt { queue, .. } => queue,
            Change::Close { .. } => unreachable!("what comes back is what was sent"),
        })
    }
}

impl TapSource {
    /// A tap of that name. The queues must belong to it; each with the number of its interface.
    pub fn new(name: impl Into<String>, queues: Vec<(usize, Box<dyn QueueSource>)>, waiting: Waiting) -> TapSource {
        let member = |(interface, queue)| Member { interface, generation: 0, queue, failed: false };
        TapSource {
            name: name.into(),
            members: queues.into_iter().map(member).collect(),
            waiting,
            first: 0,
            retired: SourceCounts::default(),
            control: None,
            failures: None,
            wake: None,
        }
    }

    /// From now on queues can come and go, and one that fails is told to `failures`.
    pub fn control(&mut self, tap: TapId, failures: Sender<InterfaceFailed>) -> TapControl {
        let (sender, receiver) = channel();
        self.control = Some(receiver);
        self.failures = Some((tap, failures));
        TapControl(sender)
    }

    /// Leaves a queue out, and says so.
    fn fail(&mut self, member: usize, error: &SourceError, handler: &mut dyn BatchHandler) {
        let member = &mut self.members[member];
        member.failed = true;
        handler.failed(error);
        if let Some((tap, failures)) = &self.failures {
            let (interface, generation) = (member.interface, member.generation);
            let report = InterfaceFailed { tap: *tap, interface, generation, reason: error.to_string() };
            // Nobody listens any more when the server stops.
            let _ = failures.send(report);
        }
    }

    /// From now on `wake` ends its sleep; the handler's `idle` follows.
    pub fn wake_by(&mut self, wake: Arc<Wake>) {
        self.wake = Some(wake);
    }

    /// One batch from each member that has one.
    fn deliver(&mut self, handler: &mut dyn BatchHandler) -> Option<usize> {
        let count = self.members.len();
        let mut delivered = None;
        for turn in 0..count {
            let at = (self.first + turn) % count;
            let member = &mut self.members[at];
            if member.failed {
                continue;
            }
            match member.queue.deliver(handler) {
                Ok(Some(frames)) => delivered = Some(delivered.unwrap_or(0) + frames),
                Ok(None) => {}
                Err(error) => self.fail(at, &error, handler),
            }
        }
        self.first = (self.first + 1) % count.max(1);
        delivered
    }

    /// Looks again and again for as long as the policy says.
    fn spin(&mut self, handler: &mut dyn BatchHandler) -> Option<usize> {
        let patience = match self.waiting {
            Waiting::Sleep => return None,
            Waiting::Adaptive(patience) => patience,
            Waiting::Spin => Duration::from_millis(1),
        };
        let start = Instant::now();
        while start.elapsed() < patience {
            for _ in 0..64 {
                std::hint::spin_loop();
            }
            let delivered = self.deliver(handler);
            if delivered.is_some() {
                return delivered;
            }
        }
        None
    }

    /// Waits until a member has something to deliver or to report.
    fn wait(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        if self.waiting != Waiting::Spin {
            self.sleep().map_err(|source| SourceError::System { name: self.name.clone(), call: "poll", source })?;
        }
        for at in 0..self.members.len() {
            let member = &mut self.members[at];
            if !member.failed
                && let Err(error) = member.queue.check()
            {
                self.fail(at, &error, handler);
            }
        }
        Ok(())
    }

    fn sleep(&self) -> std::io::Result<()> {
        let queues = self.members.iter().filter(|m| !m.failed).map(|m| m.queue.fd());
        let fds: Vec<_> = queues.chain(self.wake.iter().map(|w| w.fd())).collect();
        if let Some(wake) = &self.wake {
            wake.fall_asleep();
        }
        let slept = wait_any_readable(&fds, WAIT_MS);
        if let Some(wake) = &self.wake {
            wake.woken();
        }
        slept.map(drop)
    }

    /// Takes on what was asked for through the control.
    fn change(&mut self, handler: &mut dyn BatchHandler) {
        while let Some(Ok(change)) = self.control.as_ref().map(Receiver::try_recv) {
            match change {
                Change::Close { interface, done } => {
                    self.close(interface, handler);
                    // Who asked may have lost patience.
                    let _ = done.send(());
                }
                Change::Adopt { interface, generation, queue } => {
                    self.members.push(Member { interface, generation, queue, failed: false });
                }
            }
        }
    }

    fn close(&mut self, interface: usize, handler: &mut dyn BatchHandler) {
        for mut member in self.members.extract_if(.., |m| m.interface == interface) {
            member.finish(handler);
            self.retired += member.queue.counts();
        }
        self.first = 0;
    }
}

impl Member {
    /// A member that failed before was reported then; what its ring still holds is counted all the same.
    fn finish(&mut self, handler: &mut dyn BatchHandler) {
        if let Err(error) = self.queue.finish(handler)
            && !self.failed
        {
            handler.failed(&error);
        }
    }
}

impl Source for TapSource {
    fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError> {
        self.change(handler);
        if let Some(frames) = self.deliver(handler).or_else(|| self.spin(handler)) {
            return Ok(Polled::Packets(frames));
        }
        if self.control.is_none() && self.members.iter().all(|m| m.failed) {
            return Ok(Polled::End);
        }
        self.wait(handler)?;
        match self.deliver(handler) {
            Some(frames) => Ok(Polled::Packets(frames)),
            None => {
                handler.idle(wall_clock());
                Ok(Polled::Idle)
            }
        }
    }

    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        self.members.iter_mut().for_each(|member| member.finish(handler));
        Ok(())
    }

    fn counts(&self) -> SourceCounts {
        self.retired + self.members.iter().map(|m| m.queue.counts()).sum()
    }

    fn name(&self) -> &str {
        &self.name
    }
}

/// Time for packets that carry none, and for taps without packets.
pub(crate) fn wall_clock() -> Nanos {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Nanos(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX))
}
