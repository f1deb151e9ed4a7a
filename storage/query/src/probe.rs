//! Asking bloom filters of segments, off the threads that plan. A segment costs opening its file and reading a block of
//! 32 bytes for each value looked up; many segments are asked side by side.

use crate::prune::Pruner;
use crate::reader::ScanBudget;
use futures::{StreamExt, TryStreamExt, stream};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use storage::{BLOOM_BLOCK_BYTES, Bloom, BloomHash, Segment};
use tokio::task::JoinError;

/// Segments a thread asks in one go. A query that ends meanwhile ends after these.
const SEGMENTS_A_TASK: usize = 64;

/// A segment that may have matching rows.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) segment: Arc<Segment>,
    /// Which of its row groups may have some; `None` for all.
    pub(crate) row_groups: Option<Vec<bool>>,
}

/// Those of `segments` whose filters do not rule out every row group, in their order. What cannot be asked is kept:
/// whoever reads it will see why.
pub(crate) async fn ask(
    pruner: &Arc<Pruner>,
    segments: Vec<Arc<Segment>>,
    threads: usize,
    budget: &Arc<ScanBudget>,
) -> Result<Vec<Candidate>, JoinError> {
    let chunks: Vec<Vec<Arc<Segment>>> = segments.chunks(SEGMENTS_A_TASK).map(<[_]>::to_vec).collect();
    let asked = chunks.into_iter().map(|chunk| {
        let (pruner, budget) = (pruner.clone(), budget.clone());
        tokio::task::spawn_blocking(move || {
            chunk.into_iter().filter_map(|segment| ask_one(&pruner, segment, &budget)).collect::<Vec<_>>()
        })
    });
    stream::iter(asked).buffered(threads.max(1)).try_concat().await
}

fn ask_one(pruner: &Pruner, segment: Arc<Segment>, budget: &ScanBudget) -> Option<Candidate> {
    let mut filters = Filters { segment: &segment, file: None, failed: false };
    let groups: Vec<bool> = (0..segment.bloom_row_groups())
        .map(|group| pruner.by_blooms(&segment, |column, hash| filters.may_have(column, group, hash, budget)))
        .collect();
    match groups.iter().filter(|may| **may).count() {
        _ if groups.is_empty() => Some(Candidate { segment, row_groups: None }),
        0 => None,
        n if n == groups.len() => Some(Candidate { segment, row_groups: None }),
        _ => Some(Candidate { segment, row_groups: Some(groups) }),
    }
}

struct Filters<'a> {
    segment: &'a Segment,
    /// Opened for the first question.
    file: Option<File>,
    failed: bool,
}

impl Filters<'_> {
    fn may_have(&mut self, column: &str, row_group: usize, hash: BloomHash, budget: &ScanBudget) -> bool {
        let Some(bloom) = self.segment.bloom(column, row_group) else { return true };
        if self.failed || !budget.take_block() {
            return true;
        }
        match self.block(bloom, hash) {
            Ok(block) => hash.may_be_in(&block),
            Err(error) => {
                tracing::debug!(path = %self.segment.path.display(), %error, "cannot ask a segment's bloom filters");
                self.failed = true;
                true
            }
        }
    }

    fn block(&mut self, bloom: Bloom, hash: BloomHash) -> io::Result<[u8; BLOOM_BLOCK_BYTES]> {
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(&self.segment.path)?),
        };
        let mut block = [0; BLOOM_BLOCK_BYTES];
        file.read_exact_at(&mut block, bloom.block(hash).start)?;
        Ok(block)
    }
}
