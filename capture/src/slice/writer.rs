//! The thread that turns what workers send into files.

use super::file::SliceFile;
use super::folder;
use super::pcapng::{Header, Summary};
use super::queue::{Receiver, Staged};
use super::table::Shared;
use super::trigger::{PROGRESS_ENDED, PROGRESS_GONE, Trigger};
use super::{EndReason, REORDER, STAGED_BYTES_MAX, STAGED_MAX, SliceId, SliceState};
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::{Nanos, TapId};

/// How long to sleep when nothing has come: at 10 Gbit/s a queue takes in 2.5 MB in that time. A wake-up call would
/// cost the worker a system call.
const POLL: Duration = Duration::from_millis(2);
/// How long a slice that was stopped waits for its workers: one that is not polled never answers.
const STOP_GRACE: Duration = Duration::from_secs(1);

/// The writer's state.
pub(super) struct Writer {
    shared: Arc<Shared>,
    /// One for each worker.
    receivers: Vec<Receiver>,
    opens: Opens,
}

/// The slices being recorded.
struct Opens {
    shared: Arc<Shared>,
    list: Vec<Open>,
    /// Latest trigger that was taken up.
    seen: SliceId,
}

/// One slice while it records.
struct Open {
    trigger: Arc<Trigger>,
    /// `None` once it failed.
    file: Option<SliceFile>,
    /// Held back until every worker is past them.
    staged: BinaryHeap<Reverse<Staged>>,
    staged_bytes: usize,
    /// Since when nothing was written although something is held back.
    stuck_since: Instant,
    /// Wall clock at which it ends whatever packet time says.
    deadline: Instant,
    stop_seen: bool,
    /// Every worker has sent all packets up to here.
    horizon: Nanos,
    /// Whether a worker met the end of its time.
    timed_out: bool,
    end: Option<(EndReason, Option<io::Error>)>,
}

impl Writer {
    pub(super) fn new(shared: Arc<Shared>, receivers: Vec<Receiver>) -> Writer {
        let opens = Opens { shared: Arc::clone(&shared), list: Vec::new(), seen: SliceId(0) };
        Writer { shared, receivers, opens }
    }

    /// Runs until the handle shuts down and the last slice is complete.
    pub(super) fn run(mut self) {
        loop {
            // Before new slices are taken up: none is announced after closing.
            let is_closing = self.shared.table().is_closing;
            self.opens.adopt();
            self.opens.look_at_progress(&self.receivers);
            let received = self.receive();
            let now = Instant::now();
            for open in &mut self.opens.list {
                open.advance(now, &self.shared);
            }
            self.publish();
            self.end_slices();
            match (self.opens.list.is_empty(), received) {
                (true, 0) if is_closing => return,
                (true, 0) => std::thread::park(),
                (false, 0) => std::thread::park_timeout(POLL),
                _ => {}
            }
        }
    }

    /// Empties the queues. How many bytes that were.
    fn receive(&mut self) -> usize {
        let mut bytes = 0;
        for receiver in &mut self.receivers {
            bytes += receiver.receive(|id, packet| self.opens.stage(id, packet));
            for open in &mut self.opens.list {
                open.shed(&self.shared);
            }
        }
        bytes
    }

    fn publish(&self) {
        let mut table = self.shared.table();
        for open in &self.opens.list {
            open.publish(&mut table);
        }
    }

    /// Ends the slices for which that was decided, and those for which the folder has no room.
    fn end_slices(&mut self) {
        let options = &self.shared.options;
        if !self.opens.list.is_empty() {
            let has_room = self.shared.table().make_room(options.total_bytes_max, options.slices_max, None);
            if !has_room && let Some(largest) = self.opens.list.iter_mut().max_by_key(|open| open.file_bytes()) {
                largest.end(EndReason::Size);
            }
        }
        while let Some(at) = self.opens.list.iter().position(|open| open.end.is_some()) {
            self.opens.list.swap_remove(at).finish(&self.shared);
        }
    }
}

impl Opens {
    /// Takes up new triggers.
    fn adopt(&mut self) {
        let mut found = Vec::new();
        self.shared.board.after(self.seen, |trigger| found.push(Arc::clone(trigger)));
        for trigger in found {
            self.seen = trigger.id;
            self.list.push(Open::new(trigger, &self.shared));
        }
    }

    /// Notes how far the workers are: whatever they sent until then is received after this.
    fn look_at_progress(&mut self, receivers: &[Receiver]) {
        for open in &mut self.list {
            let mut horizon = PROGRESS_ENDED;
            for (share, receiver) in open.trigger.shares.iter().zip(receivers) {
                let mut progress = share.progress();
                if progress < PROGRESS_GONE && receiver.is_abandoned() {
                    // What a worker says of a slice when it goes, it says before; one that says nothing never saw it.
                    progress = share.progress().max(PROGRESS_GONE);
                }
                open.timed_out |= progress == PROGRESS_ENDED;
                horizon = horizon.min(progress);
            }
            open.horizon = horizon;
        }
    }

    /// Takes in a packet; one of a slice that has ended is left.
    fn stage(&mut self, id: SliceId, packet: Staged) {
        if id > self.seen {
            // Announced and answered since this turn began.
            self.adopt();
        }
        if let Some(open) = self.list.iter_mut().find(|open| open.trigger.id == id) {
            open.stage(packet);
        }
    }
}

impl Open {
    fn new(trigger: Arc<Trigger>, shared: &Shared) -> Open {
        let now = Instant::now();
        let (header, path) = match shared.table().slices.get(&trigger.id) {
            Some(slice) => {
                let (label, reason, filter) = (slice.label.clone(), slice.reason.clone(), slice.filter.clone());
                (Header { id: slice.id, label, reason, filter }, slice.path.clone())
            }
            None => (Header::default(), folder::path_of(&shared.options.dir, trigger.id, "slice")),
        };
        let (file, end) = match SliceFile::create(&path, &header) {
            Ok(file) => (Some(file), None),
            Err(error) => (None, Some((failure_reason(&error), Some(error)))),
        };
        Open {
            file,
            staged: BinaryHeap::new(),
            staged_bytes: 0,
            stuck_since: now,
            deadline: now + trigger.time_left(shared.board.clock()) + shared.options.grace,
            stop_seen: false,
            horizon: Nanos::ZERO,
            timed_out: false,
            end,
            trigger,
        }
    }

    fn file_bytes(&self) -> u64 {
        self.file.as_ref().map_or(0, SliceFile::bytes)
    }

    fn stage(&mut self, packet: Staged) {
        if self.end.is_some() {
            return;
        }
        if self.staged.is_empty() {
            self.stuck_since = Instant::now();
        }
        self.staged_bytes += packet.cost_bytes();
        self.staged.push(Reverse(packet));
    }

    /// Writes the earliest packets while more are held back than may be.
    fn shed(&mut self, shared: &Shared) {
        while self.staged_bytes > STAGED_BYTES_MAX && self.end.is_none() {
            self.write_earliest(shared);
        }
    }

    /// Writes what need not be held back any longer, and decides whether this is the end.
    fn advance(&mut self, now: Instant, shared: &Shared) {
        if self.trigger.stop_reason().is_some() && !self.stop_seen {
            self.stop_seen = true;
            self.deadline = self.deadline.min(now + STOP_GRACE);
        }
        let is_late = now >= self.deadline;
        let is_over = self.horizon >= PROGRESS_GONE || is_late;
        let is_stuck = now.duration_since(self.stuck_since) >= STAGED_MAX;
        while self.end.is_none()
            && let Some(Reverse(earliest)) = self.staged.peek()
        {
            if !is_over && !is_stuck && earliest.ts + REORDER > self.horizon {
                break;
            }
            self.write_earliest(shared);
        }
        if is_over {
            let own = if self.timed_out || is_late { EndReason::Duration } else { EndReason::SourceEnded };
            self.end(self.trigger.stop_reason().unwrap_or(own));
        }
        if let (None, Some(file)) = (&self.end, &mut self.file)
            && let Err(error) = file.write_if_due(now)
        {
            self.end = Some((failure_reason(&error), Some(error)));
        }
    }

    fn write_earliest(&mut self, shared: &Shared) {
        let (Some(Reverse(packet)), Some(file)) = (self.staged.pop(), &mut self.file) else { return };
        self.staged_bytes -= packet.cost_bytes();
        self.stuck_since = Instant::now();
        if file.summary().bytes + packet.data.len() as u64 > self.trigger.bytes_max {
            return self.end(EndReason::Size);
        }
        if let Err(error) = file.add(&packet, || shared.options.tap_name(packet.tap)) {
            self.end = Some((failure_reason(&error), Some(error)));
        }
    }

    /// The first reason counts.
    fn end(&mut self, reason: EndReason) {
        self.end.get_or_insert((reason, None));
    }

    fn publish(&self, table: &mut super::table::Table) {
        if let Some(file) = &self.file {
            table.update(self.trigger.id, &self.trigger, file.summary(), file.bytes());
        }
    }

    /// Completes the file, or gives up on it.
    fn finish(self, shared: &Shared) {
        let (id, trigger) = (self.trigger.id, &self.trigger);
        trigger.close();
        shared.board.remove(id);
        let (reason, error) = self.end.unwrap_or((EndReason::Failed, None));
        let ended = Summary {
            ended_by: Some(reason),
            dropped_queue_full: trigger.dropped_queue_full(),
            overwritten: trigger.overwritten(),
            at: trigger.at(),
            ..Summary::default()
        };
        let result = match (self.file, error) {
            (Some(file), None) => finish_file(file, &ended, shared),
            // A full disk costs the last packets, not the slice.
            (Some(file), Some(_)) if reason == EndReason::DiskFull => finish_file(file, &ended, shared),
            (file, error) => {
                file.inspect(SliceFile::remove);
                Err(error.unwrap_or_else(|| io::ErrorKind::Other.into()))
            }
        };
        let mut table = shared.table();
        match result {
            Ok((summary, file_bytes)) => {
                table.update(id, trigger, &summary, file_bytes);
                table.end(id, summary.ended_by.unwrap_or(reason), SliceState::Complete);
            }
            Err(error) => {
                table.update(id, trigger, &Summary::default(), 0);
                table.end(id, failure_reason(&error), SliceState::Failed(sentence(&error, shared)));
            }
        }
        table.make_room(shared.options.total_bytes_max, shared.options.slices_max, Some(id));
        drop(table);
        shared.ended.notify_all();
    }
}

fn finish_file(file: SliceFile, ended: &Summary, shared: &Shared) -> io::Result<(Summary, u64)> {
    file.finish(ended, || shared.options.tap_name(TapId(0)))
}

fn failure_reason(error: &io::Error) -> EndReason {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => EndReason::DiskFull,
        _ => EndReason::Failed,
    }
}

fn sentence(error: &io::Error, shared: &Shared) -> String {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "free some space or lower the limit of the folder",
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => "let the server's user write there",
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => "create it again, then trigger again",
        _ => "no packet was kept",
    };
    format!("the slice folder '{}' could not be written ({error}): {hint}", shared.options.dir.display())
}
