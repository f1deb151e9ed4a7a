//! The segments of a table, in a form that queries look through without touching each.

use crate::{Segment, SegmentId};
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

    /// Lists segments, which are in order, with no other between them.
    pub(crate) fn insert(&mut self, segments: Vec<Arc<Segment>>) {
        let Some(first) = segments.first() else { return };
        let at = self.all.partition_point(|other| other.id < first.id);
        self.times.splice(at..at, segments.iter().map(|segment| times(segment)));
        self.all.splice(at..at, segments);
    }

    /// `ids` are sorted.
    pub(crate) fn remove(&mut self, ids: &[SegmentId]) {
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
