use super::{AfPacketSource, WAIT_MS, wall_clock};
use crate::sys::wait_any_readable;
use crate::{BatchHandler, Polled, Source, SourceCounts, SourceError};

/// One worker's share of a tap: the same queue of each of its interfaces, read in turn by one thread, so that both
/// directions of a passive tap meet in one flow table.
///
/// An interface that fails is reported to the handler and left out; the others go on.
pub struct TapSource {
    name: String,
    members: Vec<AfPacketSource>,
    /// Whose turn is first, so that a busy interface starves no other.
    first: usize,
}

impl TapSource {
    /// A tap of that name. The members must belong to it.
    pub fn new(name: impl Into<String>, members: Vec<AfPacketSource>) -> TapSource {
        TapSource { name: name.into(), members, first: 0 }
    }

    /// One batch from each member that has a block ready.
    fn deliver(&mut self, handler: &mut dyn BatchHandler) -> Option<usize> {
        let count = self.members.len();
        let mut delivered = None;
        for turn in 0..count {
            let member = &mut self.members[(self.first + turn) % count];
            if member.done {
                continue;
            }
            match member.deliver(handler) {
                Ok(Some(frames)) => delivered = Some(delivered.unwrap_or(0) + frames),
                Ok(None) => {}
                Err(error) => member.fail(&error, handler),
            }
        }
        self.first = (self.first + 1) % count.max(1);
        delivered
    }

    /// Waits until a member has something to deliver or to report.
    fn wait(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
        let fds: Vec<_> = self.members.iter().filter(|m| !m.done).map(AfPacketSource::fd).collect();
        wait_any_readable(&fds, WAIT_MS).map_err(|source| SourceError::System {
            name: self.name.clone(),
            call: "poll",
            source,
        })?;
        for member in self.members.iter_mut().filter(|m| !m.done) {
            if let Err(error) = member.wait(0).and_then(|_| member.read_statistics()) {
                member.fail(&error, handler);
            }
        }
        Ok(())
    }
}

impl AfPacketSource {
    fn fail(&mut self, error: &SourceError, handler: &mut dyn BatchHandler) {
        self.done = true;
        handler.failed(error);
    }
}

impl Source for TapSource {
    fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError> {
        if let Some(frames) = self.deliver(handler) {
            return Ok(Polled::Packets(frames));
        }
        if self.members.iter().all(|m| m.done) {
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
        for member in &mut self.members {
            // A member that failed before was reported then; what its ring still holds is counted all the same.
            let was_done = member.done;
            if let Err(error) = member.finish(handler)
                && !was_done
            {
                handler.failed(&error);
            }
        }
        Ok(())
    }

    fn counts(&self) -> SourceCounts {
        self.members.iter().map(Source::counts).fold(SourceCounts::default(), |a, b| a + b)
    }

    fn name(&self) -> &str {
        &self.name
    }
}
