//! The capture filter between a source and its handler.

use crate::file::recycle;
use crate::filter::Filter;
use crate::tap::QueueSource;
use crate::{BATCH_FRAMES_MAX, BatchHandler, Polled, Progress, Source, SourceCounts, SourceError, Undelivered};
use std::os::fd::BorrowedFd;
use wire::{Frame, Nanos};

/// Lets through what the filter keeps, and counts the rest.
struct Sieve {
    filter: Filter,
    /// What was kept from the handler: `offered` is 0, it only corrects what the source says.
    left_out: SourceCounts,
    frames: Vec<Frame<'static>>,
}

/// A sieve before a handler, for the length of one call.
struct Sieving<'a> {
    sieve: &'a mut Sieve,
    handler: &'a mut dyn BatchHandler,
}

impl Sieve {
    fn new(filter: Filter) -> Sieve {
        Sieve { filter, left_out: SourceCounts::default(), frames: Vec::with_capacity(BATCH_FRAMES_MAX) }
    }

    fn before<'a>(&'a mut self, handler: &'a mut dyn BatchHandler) -> Sieving<'a> {
        Sieving { sieve: self, handler }
    }

    /// What the source counted, with the packets that were left out moved to where they belong.
    fn correct(&self, counts: SourceCounts) -> SourceCounts {
        let out = self.left_out;
        let mut counts = counts;
        counts.delivered -= out.delivered;
        counts.undelivered[Undelivered::Filtered as usize] += out.delivered;
        counts.wire_bytes -= out.wire_bytes;
        counts.captured_bytes -= out.captured_bytes;
        counts.cut -= out.cut;
        counts
    }
}

impl BatchHandler for Sieving<'_> {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        let Sieve { filter, left_out, frames: empty } = &mut *self.sieve;
        let mut kept = recycle(std::mem::take(empty));
        for frame in frames {
            if filter.matches(frame) {
                kept.push(*frame);
            } else {
                left_out.deliver(std::slice::from_ref(frame));
            }
        }
        match kept.is_empty() {
            // Time passes all the same.
            true => frames.last().into_iter().for_each(|last| self.handler.idle(last.ts)),
            false => self.handler.batch(&kept),
        }
        self.sieve.frames = recycle(kept);
    }

    fn idle(&mut self, now: Nanos) {
        self.handler.idle(now);
    }

    fn counted(&mut self, delta: &SourceCounts) {
        self.handler.counted(delta);
    }

    fn failed(&mut self, error: &SourceError) {
        self.handler.failed(error);
    }
}

/// A queue behind a filter.
pub(crate) struct SievedQueue {
    queue: Box<dyn QueueSource>,
    sieve: Sieve,
}

impl SievedQueue {
    pub(crate) fn new(queue: Box<dyn QueueSource>, filter: Filter) -> SievedQueue {
        SievedQueue { queue, sieve: Sieve::new(filter) }
    }
}

impl QueueSource for SievedQueue {
    fn deliver(&mut self, handler: &mut dyn BatchHandler) -> Result<Option<usize>, SourceError> {
        self.queue.deliver(&mut self.sieve.before(handler))
    }

    fn check(&mut self) -> Result<(), SourceError> {
        self.queue.check()
    }

    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        self.queue.finish(&mut self.sieve.before(handler))
    }

    fn counts(&self) -> SourceCounts {
        self.sieve.correct(self.queue.counts())
    }

    fn fd(&self) -> BorrowedFd<'_> {
        self.queue.fd()
    }
}

/// A source behind a filter: a capture file of which a part is wanted.
pub struct FilteredSource {
    source: Box<dyn Source>,
    sieve: Sieve,
}

impl FilteredSource {
    /// Delivers what `filter` keeps of `source`.
    pub fn new(source: Box<dyn Source>, filter: Filter) -> FilteredSource {
        FilteredSource { source, sieve: Sieve::new(filter) }
    }
}

impl Source for FilteredSource {
    fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError> {
        self.source.poll(&mut self.sieve.before(handler))
    }

    fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        self.source.finish(&mut self.sieve.before(handler))
    }

    fn counts(&self) -> SourceCounts {
        self.sieve.correct(self.source.counts())
    }

    fn name(&self) -> &str {
        self.source.name()
    }

    fn progress(&self) -> Option<Progress> {
        self.source.progress()
    }
}
