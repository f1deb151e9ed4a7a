//! The control side.

use super::queue::queue;
use super::table::{Shared, Table};
use super::trigger::{Board, Trigger};
use super::writer::Writer;
use super::{
    EndReason, Recorder, RecorderOptions, SliceCounts, SliceError, SliceId, SliceInfo, SliceState, TriggerRequest,
    folder,
};
use std::fs::{self, File};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};
use wire::TapId;

/// Bytes of a reason that are kept.
const REASON_BYTES_MAX: usize = 1000;
/// Bytes of a filter that are accepted.
const FILTER_BYTES_MAX: usize = 16 << 10;
/// Taps one request can name.
const TAPS_MAX: usize = 1024;

/// Where slices go, and how many of them.
#[derive(Clone, Debug)]
pub struct SliceOptions {
    /// Folder of the slices, created where missing. Nothing else should write files named `slice-*` there.
    pub dir: PathBuf,
    /// Names of the taps by `TapId`, for the interfaces in the files.
    pub tap_names: Vec<String>,
    /// Bytes of all slices together, 1 MiB or more: beyond, the oldest complete one is removed, and where there is none
    /// the largest that records ends. Can be exceeded by what each open slice writes at once, about 1 MiB.
    pub total_bytes_max: u64,
    /// Slices that are kept, 1 to 100,000; beyond, the oldest is removed.
    pub slices_max: usize,
    /// Slices recorded at a time, 1 to 64: each costs every worker a filter per packet.
    pub active_max: usize,
    /// Longest time before a trigger that can be asked for.
    pub before_max: Duration,
    /// Longest time from a trigger on that can be asked for.
    pub duration_max: Duration,
    /// How much later than its duration, by the wall clock, a slice ends even if packet time stands still.
    pub grace: Duration,
}

impl SliceOptions {
    /// 10 GiB and 1000 slices in `dir`, 8 at a time, up to an hour before and after the trigger.
    pub fn new(dir: impl Into<PathBuf>, tap_names: Vec<String>) -> SliceOptions {
        SliceOptions {
            dir: dir.into(),
            tap_names,
            total_bytes_max: 10 << 30,
            slices_max: 1000,
            active_max: 8,
            before_max: Duration::from_secs(3600),
            duration_max: Duration::from_secs(3600),
            grace: Duration::from_secs(10),
        }
    }

    fn check(&self) -> Result<(), SliceError> {
        let refuse = |field, value: u64, expected: &str| {
            Err(SliceError::Option { field, value: value.to_string(), expected: expected.to_owned() })
        };
        if self.total_bytes_max < 1 << 20 {
            return refuse("total_bytes_max", self.total_bytes_max, "1048576 or more");
        }
        if !(1..=100_000).contains(&self.slices_max) {
            return refuse("slices_max", self.slices_max as u64, "1 to 100000");
        }
        if !(1..=64).contains(&self.active_max) {
            return refuse("active_max", self.active_max as u64, "1 to 64");
        }
        Ok(())
    }

    pub(super) fn tap_name(&self, tap: TapId) -> String {
        self.tap_names.get(usize::from(tap.0)).cloned().unwrap_or_else(|| format!("tap {}", tap.0))
    }
}

/// All slices: those being recorded and those in the folder. Dropping it shuts down.
pub struct Slices {
    shared: Arc<Shared>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// To wake the writer.
    thread: std::thread::Thread,
}

impl Slices {
    /// Reads the folder and starts the writer. The recorders are for one worker thread each. Partial files of a run that
    /// died are completed with what is whole in them.
    ///
    /// # Errors
    /// [`SliceError::Option`], [`Folder`](SliceError::Folder), [`Memory`](SliceError::Memory) or
    /// [`Thread`](SliceError::Thread).
    pub fn start(
        options: SliceOptions,
        workers: usize,
        recorder: RecorderOptions,
    ) -> Result<(Arc<Slices>, Vec<Recorder>), SliceError> {
        options.check()?;
        recorder.check()?;
        let folder_error = |source| SliceError::Folder { path: options.dir.clone(), source };
        fs::create_dir_all(&options.dir).map_err(folder_error)?;
        let found = folder::scan(&options.dir).map_err(folder_error)?;

        let board = Arc::new(Board::new(workers));
        let (mut recorders, mut receivers) = (Vec::with_capacity(workers), Vec::with_capacity(workers));
        for index in 0..workers {
            let (sender, receiver) = queue(recorder.queue_bytes);
            receivers.push(receiver);
            let history = recorder.history()?;
            recorders.push(Recorder::new(Arc::clone(&board), index, history, sender, options.active_max));
        }
        let shared = Arc::new(Shared::new(board, options, found));
        shared.table().make_room(shared.options.total_bytes_max, shared.options.slices_max, None);
        let writer = Writer::new(Arc::clone(&shared), receivers);
        let handle = std::thread::Builder::new()
            .name("slices".to_owned())
            .spawn(move || writer.run())
            .map_err(|source| SliceError::Thread { source })?;
        let thread = handle.thread().clone();
        Ok((Arc::new(Slices { shared, writer: Mutex::new(Some(handle)), thread }), recorders))
    }

    /// Starts a slice. Workers take note of it with their next batch or idle call.
    ///
    /// # Errors
    /// [`SliceError::Option`] for a bound out of range, [`Active`](SliceError::Active),
    /// [`ShutDown`](SliceError::ShutDown). Refusals are counted.
    pub fn trigger(&self, request: TriggerRequest) -> Result<SliceId, SliceError> {
        let mut table = self.shared.table();
        let result = self.check(&request, &table).map(|()| self.open(&request, &mut table));
        table.refused += u64::from(result.is_err());
        drop(table);
        self.thread.unpark();
        result
    }

    fn check(&self, request: &TriggerRequest, table: &Table) -> Result<(), SliceError> {
        let options = &self.shared.options;
        let refuse = |field, value: String, expected: String| Err(SliceError::Option { field, value, expected });
        if request.before > options.before_max {
            return refuse("before", format!("{:?}", request.before), format!("at most {:?}", options.before_max));
        }
        if request.duration.is_zero() || request.duration > options.duration_max {
            let expected = format!("more than 0 s and at most {:?}", options.duration_max);
            return refuse("duration", format!("{:?}", request.duration), expected);
        }
        if !(1..=options.total_bytes_max).contains(&request.bytes_max) {
            let expected = format!("1 to {}, the limit of the folder", options.total_bytes_max);
            return refuse("bytes_max", request.bytes_max.to_string(), expected);
        }
        if request.filter_text.len() > FILTER_BYTES_MAX {
            let value = format!("{} bytes long", request.filter_text.len());
            return refuse("filter_text", value, format!("at most {FILTER_BYTES_MAX} bytes"));
        }
        if let Some(taps) = request.taps.as_ref().filter(|taps| !(1..=TAPS_MAX).contains(&taps.len())) {
            return refuse("taps", format!("a list of {}", taps.len()), format!("1 to {TAPS_MAX}, or none for all"));
        }
        if table.is_closing {
            return Err(SliceError::ShutDown);
        }
        if table.active.len() >= options.active_max {
            return Err(SliceError::Active { active: table.active.len() });
        }
        Ok(())
    }

    fn open(&self, request: &TriggerRequest, table: &mut Table) -> SliceId {
        let now_s = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let id = table.next_id(now_s);
        let board = &self.shared.board;
        let trigger = Arc::new(Trigger::new(id, request, board.clock(), board.workers.len()));
        let label = folder::clean_label(&request.label);
        let info = SliceInfo {
            id,
            path: folder::path_of(&self.shared.options.dir, id, &label),
            label,
            reason: cut(&request.reason, REASON_BYTES_MAX).to_owned(),
            filter: request.filter_text.clone(),
            state: SliceState::Recording,
            packets: 0,
            bytes: 0,
            file_bytes: 0,
            dropped_queue_full: 0,
            overwritten: 0,
            lost_disk: 0,
            ended_by: None,
            at: trigger.at(),
            first_ts: None,
            last_ts: None,
        };
        table.slices.insert(id, info);
        table.active.insert(id, Arc::clone(&trigger));
        // Last, and under the lock of the table: who sees it on the board finds it in the table.
        board.announce(trigger);
        id
    }

    /// Ends a slice with what has happened so far. Returns at once; [`wait`](Slices::wait) for the file. Nothing
    /// happens to one that has ended.
    ///
    /// # Errors
    /// [`SliceError::Unknown`].
    pub fn stop(&self, id: SliceId) -> Result<(), SliceError> {
        let table = self.shared.table();
        match table.active.get(&id) {
            Some(trigger) => trigger.stop(EndReason::Stopped, self.shared.board.clock()),
            None if table.slices.contains_key(&id) => {}
            None => return Err(SliceError::Unknown { id }),
        }
        Ok(())
    }

    /// All slices, oldest first.
    pub fn list(&self) -> Vec<SliceInfo> {
        self.shared.table().slices.values().cloned().collect()
    }

    /// One slice.
    ///
    /// # Errors
    /// [`SliceError::Unknown`].
    pub fn get(&self, id: SliceId) -> Result<SliceInfo, SliceError> {
        self.shared.table().slices.get(&id).cloned().ok_or(SliceError::Unknown { id })
    }

    /// Waits until a slice has ended, but no longer than `patience`; how it is then.
    ///
    /// # Errors
    /// [`SliceError::Unknown`], also when it was removed meanwhile.
    pub fn wait(&self, id: SliceId, patience: Duration) -> Result<SliceInfo, SliceError> {
        let started = Instant::now();
        let mut table = self.shared.table();
        while table.active.contains_key(&id) {
            let left = patience.saturating_sub(started.elapsed());
            if left.is_zero() {
                break;
            }
            let waited = self.shared.ended.wait_timeout(table, left);
            table = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        table.slices.get(&id).cloned().ok_or(SliceError::Unknown { id })
    }

    /// Removes a slice that has ended. Who is reading it can read on.
    ///
    /// # Errors
    /// [`SliceError::Unknown`], [`Recording`](SliceError::Recording) or [`File`](SliceError::File).
    pub fn delete(&self, id: SliceId) -> Result<(), SliceError> {
        let mut table = self.shared.table();
        let slice = table.slices.get(&id).ok_or(SliceError::Unknown { id })?;
        if slice.state == SliceState::Recording {
            return Err(SliceError::Recording { id });
        }
        let path = slice.path.clone();
        table.remove(id).map_err(|source| SliceError::File { doing: "remove", path, source })
    }

    /// Opens the file of a complete slice, a pcapng compressed with zstd.
    ///
    /// # Errors
    /// [`SliceError::Unknown`], [`Recording`](SliceError::Recording), [`Failed`](SliceError::Failed) or
    /// [`File`](SliceError::File).
    pub fn read(&self, id: SliceId) -> Result<File, SliceError> {
        // Under the lock, so that it is not removed between the look and the opening.
        let table = self.shared.table();
        let slice = table.slices.get(&id).ok_or(SliceError::Unknown { id })?;
        match &slice.state {
            SliceState::Recording => Err(SliceError::Recording { id }),
            SliceState::Failed(reason) => Err(SliceError::Failed { id, reason: reason.clone() }),
            SliceState::Complete => File::open(&slice.path).map_err(|source| {
                let path = slice.path.clone();
                SliceError::File { doing: "open", path, source }
            }),
        }
    }

    /// Totals since the start, for metrics.
    pub fn counts(&self) -> SliceCounts {
        self.shared.table().counts(&self.shared.board)
    }

    /// Ends all slices with what has happened so far and waits until their files are complete: at once where each
    /// [`Recorder`] was finished or dropped before, otherwise within about a second. No slice can be started any more.
    pub fn shutdown(&self) {
        {
            let mut table = self.shared.table();
            table.is_closing = true;
            let clock = self.shared.board.clock();
            table.active.values().for_each(|trigger| trigger.stop(EndReason::Shutdown, clock));
        }
        self.thread.unpark();
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(handle) = writer.take() {
            // A panic of the writer was reported by its own hook; what it left is completed at the next start.
            let _ = handle.join();
        }
    }
}

impl Drop for Slices {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// The longest start of `text` of at most `bytes` bytes that ends between characters.
fn cut(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}
