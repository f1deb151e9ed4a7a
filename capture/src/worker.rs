//! The loop that moves packets from one source to one handler, and the pinning of the thread it runs on.

use crate::{BatchHandler, Polled, Source, SourceCounts, SourceError, sys};
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

/// Polls `source` until it ends, fails or `stop` is set (seen within about 100 ms), then delivers what is still on its
/// way. After each step the handler is told what the source counted.
///
/// # Errors
/// Those of the source. What it delivered before has reached the handler and is counted.
pub fn run(source: &mut dyn Source, handler: &mut dyn BatchHandler, stop: &AtomicBool) -> Result<(), SourceError> {
    let mut told = source.counts();
    let mut result = Ok(());
    while !stop.load(Ordering::Relaxed) {
        let polled = source.poll(handler);
        tell(source, handler, &mut told);
        match polled {
            Ok(Polled::Packets(_) | Polled::Idle) => {}
            Ok(Polled::End) => break,
            Err(e) => {
                result = Err(e);
                break;
            }
        }
    }
    let finished = source.finish(handler);
    tell(source, handler, &mut told);
    result.and(finished)
}

fn tell(source: &dyn Source, handler: &mut dyn BatchHandler, told: &mut SourceCounts) {
    let counts = source.counts();
    if counts != *told {
        handler.counted(&(counts - *told));
        *told = counts;
    }
}

/// A thread could not be pinned. It runs on all the same, wherever the scheduler puts it.
#[derive(Debug, thiserror::Error)]
#[error("cannot pin a thread to core {core}: {source}; expected a core from 0 to {} that this process may use (see taskset -p)", sys::CORES_MAX - 1)]
pub struct PinError {
    /// Core asked for.
    pub core: usize,
    /// What the operating system said.
    pub source: io::Error,
}

/// Confines the calling thread to `core`.
///
/// # Errors
/// No such core, or one this process is not allowed to use.
pub fn pin(core: usize) -> Result<(), PinError> {
    sys::pin_thread(core).map_err(|source| PinError { core, source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{Frame, LinkType, Nanos, TapId};

    /// Delivers `left` packets one by one, keeps `held` back for `finish`, then ends or fails.
    struct Fake {
        left: u64,
        held: u64,
        fails: bool,
        counts: SourceCounts,
    }

    impl Fake {
        fn deliver(&mut self, handler: &mut dyn BatchHandler) {
            let frame = Frame { data: &[1, 2], wire_len: 3, ts: Nanos::ZERO, link: LinkType::Ethernet, tap: TapId(0) };
            handler.batch(&[frame]);
            self.counts.deliver(&[frame]);
        }
    }

    impl Source for Fake {
        fn poll(&mut self, handler: &mut dyn BatchHandler) -> Result<Polled, SourceError> {
            if self.left == 0 {
                return match self.fails {
                    true => Err(SourceError::InterfaceGone { name: "fake".into(), packets: self.counts.delivered }),
                    false => Ok(Polled::End),
                };
            }
            self.left -= 1;
            self.deliver(handler);
            Ok(Polled::Packets(1))
        }

        fn finish(&mut self, handler: &mut dyn BatchHandler) -> Result<(), SourceError> {
            for _ in 0..std::mem::take(&mut self.held) {
                self.deliver(handler);
            }
            Ok(())
        }

        fn counts(&self) -> SourceCounts {
            self.counts
        }

        fn name(&self) -> &str {
            "fake"
        }
    }

    #[derive(Default)]
    struct Sum {
        frames: u64,
        counts: SourceCounts,
    }

    impl BatchHandler for Sum {
        fn batch(&mut self, frames: &[Frame<'_>]) {
            self.frames += frames.len() as u64;
        }
        fn idle(&mut self, _: Nanos) {}
        fn counted(&mut self, delta: &SourceCounts) {
            self.counts += *delta;
        }
    }

    #[test]
    fn what_is_on_its_way_arrives_whether_the_source_ends_or_fails() {
        for fails in [false, true] {
            let mut source = Fake { left: 5, held: 2, fails, counts: SourceCounts::default() };
            let mut sum = Sum::default();
            let result = run(&mut source, &mut sum, &AtomicBool::new(false));
            assert_eq!(result.is_err(), fails);
            assert_eq!((sum.frames, sum.counts), (7, source.counts()));
            assert_eq!((sum.counts.wire_bytes, sum.counts.captured_bytes, sum.counts.cut), (21, 14, 7));
        }
    }

    #[test]
    fn a_stop_flag_ends_the_loop_before_the_next_poll() {
        let mut source = Fake { left: 5, held: 2, fails: false, counts: SourceCounts::default() };
        let mut sum = Sum::default();
        run(&mut source, &mut sum, &AtomicBool::new(true)).unwrap();
        assert_eq!((sum.frames, source.left), (2, 5));
    }

    #[test]
    fn a_thread_can_be_pinned_to_some_core_and_to_none_beyond_the_mask() {
        std::thread::spawn(|| {
            assert!((0..sys::CORES_MAX).any(|core| pin(core).is_ok()));
            let message = pin(sys::CORES_MAX).unwrap_err().to_string();
            assert!(message.contains("core 1024") && message.contains("0 to 1023"), "{message}");
        })
        .join()
        .unwrap();
    }
}
