//! The segments of a table, in a form that queries look through without touching each.

use crate::Segment;
use std::ops::Deref;
use std::sync::Arc;

/// What time a segment covers, µs since 1970.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimeRange {
    /// Earliest start.
    pub t_start_min: i64,
    /// Earliest `t_end`.
    pub t_end_min: i64,
    /// Latest `t_end`.
    pub t_end_max: i64,
}

/// Segments by id. Shared by snapshots, and copied only where one changes it while others hold it.
#[derive(Clone, Debug, Default)]
pub struct Segments {
    all: Vec<Arc<Segment>>,
    /// Of each, side by side: of 100,000 segments they are 2 MB, while the segments lie all over the memory.
    times: Vec<TimeRange>,
}

impl Segments {
    /// The time each covers, in their order.
    pub fn times(&self) -> &[TimeRange] {
        &self.times
    }

    pub(crate) fn insert(&mut self, segment: Arc<Segment>) {
        let at = self.all.partition_point(|other| other.id < segment.id);
        self.times.insert(at, times(&segment));
        self.all.insert(at, segment);
    }

    /// `ids` are sorted.
    pub(crate) fn remove(&mut self, ids: &[u64]) {
        self.all.retain(|segment| ids.binary_search(&segment.id).is_err());
        self.times = self.all.iter().map(|segment| times(segment)).collect();
    }
}

fn times(segment: &Segment) -> TimeRange {
    TimeRange { t_start_min: segment.t_start_min, t_end_min: segment.t_end_min, t_end_max: segment.t_end_max }
}

impl Deref for Segments {
    type Target = [Arc<Segment>];

    fn deref(&self) -> &[Arc<Segment>] {
        &self.all
    }
}

/// They come sorted by id.
impl FromIterator<Arc<Segment>> for Segments {
    fn from_iter<I: IntoIterator<Item = Arc<Segment>>>(segments: I) -> Segments {
        let all: Vec<_> = segments.into_iter().collect();
        let times = all.iter().map(|segment| times(segment)).collect();
        Segments { all, times }
    }
}
