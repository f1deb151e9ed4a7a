//! Asking bloom filters of segments, off the threads that plan. A segment costs opening its file and reading a block of
//! 32 bytes for each value looked up, and in an archive a request a block; many segments are asked side by side.

use crate::prune::Pruner;
use crate::reader::ScanBudget;
use datafusion::object_store::path::Path as StorePath;
use datafusion::object_store::{ObjectStore, ObjectStoreExt};
use futures::{StreamExt, TryStreamExt, stream};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use storage::{BLOOM_BLOCK_BYTES, Bloom, BloomHash, Segment};
use tokio::runtime::Handle;
use tokio::task::JoinError;

/// Segments a thread asks in one go. A query that ends meanwhile ends after these.
const SEGMENTS_A_TASK: usize = 64;

/// Of an archive, where an answer takes long and costs no core: as many at a time, each by itself.
const OBJECTS_AT_A_TIME: usize = 16;

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
    objects: Option<&Arc<dyn ObjectStore>>,
) -> Result<Vec<Candidate>, JoinError> {
    let (a_task, tasks) = match objects {
        Some(_) => (1, OBJECTS_AT_A_TIME),
        None => (SEGMENTS_A_TASK, threads.max(1)),
    };
    let chunks: Vec<Vec<Arc<Segment>>> = segments.chunks(a_task).map(<[_]>::to_vec).collect();
    let asked = chunks.into_iter().map(|chunk| {
        let (pruner, budget, objects) = (pruner.clone(), budget.clone(), objects.cloned());
        tokio::task::spawn_blocking(move || {
            let ask = |segment| ask_one(&pruner, segment, &budget, objects.as_deref());
            chunk.into_iter().filter_map(ask).collect::<Vec<_>>()
        })
    });
    stream::iter(asked).buffered(tasks).try_concat().await
}

fn ask_one(
    pruner: &Pruner,
    segment: Arc<Segment>,
    budget: &ScanBudget,
    objects: Option<&dyn ObjectStore>,
) -> Option<Candidate> {
    let mut filters = Filters { segment: &segment, objects, file: None, failed: false };
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
    /// What it lies in, if not this machine's file system.
    objects: Option<&'a dyn ObjectStore>,
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
        if let Some(objects) = self.objects {
            let object = StorePath::parse(self.segment.path.to_string_lossy()).map_err(io::Error::other)?;
            // This thread may wait.
            let block = Handle::current().block_on(objects.get_range(&object, bloom.block(hash)));
            let block = block.map_err(io::Error::other)?;
            return block.as_ref().try_into().map_err(|_| io::ErrorKind::UnexpectedEof.into());
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => none.insert(File::open(&self.segment.path)?),
        };
        let mut block = [0; BLOOM_BLOCK_BYTES];
        file.read_exact_at(&mut block, bloom.block(hash).start)?;
        Ok(block)
    }
}
