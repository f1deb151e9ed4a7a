//! What is known of all slices, shared by the writer and those who ask.

use super::pcapng::Summary;
use super::trigger::{Board, Trigger};
use super::{EndReason, SliceCounts, SliceId, SliceInfo, SliceOptions, SliceState};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// Shared by the handle and the writer. No worker sees anything of it but the board.
pub(super) struct Shared {
    pub(super) board: Arc<Board>,
    pub(super) options: SliceOptions,
    table: Mutex<Table>,
    /// Signalled whenever a slice ends.
    pub(super) ended: Condvar,
}

impl Shared {
    pub(super) fn new(board: Arc<Board>, options: SliceOptions, slices: Vec<SliceInfo>) -> Shared {
        let slices = slices.into_iter().map(|slice| (slice.id, slice)).collect();
        let table = Table { slices, ..Table::default() };
        Shared { board, options, table: Mutex::new(table), ended: Condvar::new() }
    }

    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        // Whoever panicked left at worst one slice with old numbers.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The slices, and what was counted.
#[derive(Default)]
pub(super) struct Table {
    pub(super) slices: BTreeMap<SliceId, SliceInfo>,
    /// Those of `slices` that are being recorded.
    pub(super) active: BTreeMap<SliceId, Arc<Trigger>>,
    /// No more are started.
    pub(super) is_closing: bool,
    pub(super) ended: [u64; EndReason::COUNT],
    /// Numbers of the slices that ended since the start.
    pub(super) past: Summary,
    pub(super) removed: u64,
    pub(super) refused: u64,
    /// The number given last.
    latest: SliceId,
}

impl Table {
    /// A number that was never used, `now_s` seconds after 1970 if that is one.
    pub(super) fn next_id(&mut self, now_s: u64) -> SliceId {
        let highest = self.slices.keys().next_back().map_or(self.latest, |id| self.latest.max(*id));
        self.latest = SliceId(now_s.max(highest.0.saturating_add(1)));
        self.latest
    }

    /// Takes over the numbers of a slice.
    pub(super) fn update(&mut self, id: SliceId, trigger: &Trigger, summary: &Summary, file_bytes: u64) {
        let Some(slice) = self.slices.get_mut(&id) else { return };
        (slice.packets, slice.bytes, slice.file_bytes) = (summary.packets, summary.bytes, file_bytes);
        (slice.dropped_queue_full, slice.overwritten) = (trigger.dropped_queue_full(), trigger.overwritten());
        (slice.lost_disk, slice.at) = (summary.lost_disk, trigger.at());
        (slice.first_ts, slice.last_ts) = (summary.first_ts, summary.last_ts);
    }

    /// Takes over the end of a slice.
    pub(super) fn end(&mut self, id: SliceId, reason: EndReason, state: SliceState) {
        self.active.remove(&id);
        self.ended[reason as usize] += 1;
        let Some(slice) = self.slices.get_mut(&id) else { return };
        (slice.ended_by, slice.state) = (Some(reason), state);
        self.past.packets += slice.packets;
        self.past.bytes += slice.bytes;
        self.past.lost_disk += slice.lost_disk;
    }

    /// Bytes of all files.
    pub(super) fn file_bytes(&self) -> u64 {
        self.slices.values().map(|slice| slice.file_bytes).sum()
    }

    /// Removes the oldest slices, but none that is recording and not `keep`, until bytes and number are within the
    /// limits. Whether they are. A file that cannot be removed is passed over, and tried again next time.
    pub(super) fn make_room(&mut self, bytes_max: u64, slices_max: usize, keep: Option<SliceId>) -> bool {
        let mut passed_over = None;
        loop {
            if self.file_bytes() <= bytes_max && self.slices.len() - self.active.len() <= slices_max {
                return true;
            }
            let can_go = |id: &SliceId| {
                !self.active.contains_key(id) && Some(*id) != keep && passed_over.is_none_or(|passed| *id > passed)
            };
            let Some(oldest) = self.slices.keys().copied().find(can_go) else { return false };
            match self.remove(oldest) {
                Ok(()) => self.removed += 1,
                Err(_) => passed_over = Some(oldest),
            }
        }
    }

    /// Removes a slice and its file.
    pub(super) fn remove(&mut self, id: SliceId) -> io::Result<()> {
        if let Some(slice) = self.slices.get(&id) {
            match fs::remove_file(&slice.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => self.slices.remove(&id),
            };
        }
        Ok(())
    }

    pub(super) fn counts(&self, board: &Board) -> SliceCounts {
        let active = || self.active.keys().filter_map(|id| self.slices.get(id));
        SliceCounts {
            packets: self.past.packets + active().map(|slice| slice.packets).sum::<u64>(),
            bytes: self.past.bytes + active().map(|slice| slice.bytes).sum::<u64>(),
            dropped_queue_full: board.workers.iter().map(|worker| worker.dropped_queue_full.get()).sum(),
            overwritten: board.workers.iter().map(|worker| worker.overwritten.get()).sum(),
            lost_disk: self.past.lost_disk + active().map(|slice| slice.lost_disk).sum::<u64>(),
            ended: self.ended,
            removed: self.removed,
            refused: self.refused,
            active: self.active.len() as u64,
            file_bytes: self.file_bytes(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn slice(id: u64, path: &Path) -> SliceInfo {
        SliceInfo {
            id: SliceId(id),
            label: String::new(),
            reason: String::new(),
            filter: String::new(),
            state: SliceState::Complete,
            packets: 0,
            bytes: 0,
            file_bytes: 10,
            dropped_queue_full: 0,
            overwritten: 0,
            lost_disk: 0,
            ended_by: None,
            path: path.to_owned(),
            at: None,
            first_ts: None,
            last_ts: None,
        }
    }

    #[test]
    fn what_cannot_be_removed_does_not_protect_the_rest() {
        let dir = tempfile::tempdir().unwrap();
        let mut table = Table::default();
        for id in 1..=4 {
            let path = dir.path().join(id.to_string());
            match id {
                1 => fs::create_dir(&path).unwrap(),
                _ => fs::write(&path, "x").unwrap(),
            }
            table.slices.insert(SliceId(id), slice(id, &path));
        }
        assert!(table.make_room(30, 10, None));
        assert_eq!(table.slices.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 3, 4]);
        assert!(!table.make_room(5, 10, Some(SliceId(4))));
        assert_eq!(table.slices.keys().map(|id| id.0).collect::<Vec<_>>(), [1, 4]);
        assert!(table.make_room(100, 2, None));
        assert_eq!(table.removed, 2);
    }

    #[test]
    fn numbers_are_the_time_and_never_come_twice() {
        let mut table = Table::default();
        assert_eq!(table.next_id(100), SliceId(100));
        assert_eq!(table.next_id(100), SliceId(101));
        assert_eq!(table.next_id(50), SliceId(102), "a clock that was set back");
        assert_eq!(table.next_id(200), SliceId(200));
    }
}
