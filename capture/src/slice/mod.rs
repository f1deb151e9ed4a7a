//! Trigger capture: on request, packets that match a filter go to a file, with the seconds before the request.
//!
//! ```text
//! worker 0: Recorder { history ring } ── bytes, SPSC ──┐
//! worker 1: Recorder { history ring } ── bytes, SPSC ──┼─> writer thread: sort by time, pcapng, zstd ─> slice
//! control:  Slices::trigger(..) ── board of triggers ──┘
//! ```
//!
//! A [`Recorder`] keeps the latest packets of its worker in a ring of its own, one copy each. A trigger gives it a
//! cursor into that ring, which walks from `before` the trigger towards the present a bounded piece per batch. Once it
//! has arrived, packets are taken from the batch itself. So the past and the present are one walk and each packet is
//! met exactly once. When the queue to the writer is full the cursor just stays where it is: the ring is the queue's
//! overflow, and only what it overwrites before the cursor gets there is lost, and counted. The worker never waits,
//! locks, allocates or calls the system on behalf of a slice.
//!
//! Time is packet time. A slice holds the packets with `trigger - before <= ts < trigger + duration`, where the time
//! of the trigger is the highest packet time any worker has seen. A worker is done with a slice once its clock is
//! [`LATE`] beyond the end, so that packets that come out of order by less are still recorded.
//!
//! Order: the writer holds packets back until every worker is [`REORDER`] beyond them, and writes them by time.
//! It gives up on that order, never on packets, when it holds more than [`STAGED_BYTES_MAX`] of one slice or has waited
//! for [`STAGED_MAX`] of wall time (a worker without packets and without a wall clock: a replay that has none left).

mod error;
mod file;
mod folder;
mod history;
mod info;
mod pcapng;
mod queue;
mod recorder;
mod slices;
#[allow(unsafe_code, reason = "madvise, which std has no safe name for")]
mod sys;
mod table;
mod trigger;
mod writer;

pub use error::SliceError;
pub use info::{EndReason, SliceCounts, SliceId, SliceInfo, SliceState};
pub use recorder::{Recorder, RecorderOptions};
pub use slices::{SliceOptions, Slices};
pub use trigger::{Predicate, TriggerRequest};

use std::time::Duration;
use wire::Nanos;

/// How far out of order packets of one worker may come at the end of a slice and still be part of it: a worker that
/// reads several interfaces in turn sees each of their blocks a little late.
pub const LATE: Nanos = Nanos::from_millis(200);
/// How far apart in packet time packets may reach the writer and still be written in order.
pub const REORDER: Nanos = Nanos::from_millis(100);
/// Bytes the writer holds back of one slice for the sake of order, bookkeeping included.
pub const STAGED_BYTES_MAX: usize = 16 << 20;
/// Wall time the writer holds packets back for the sake of order.
pub const STAGED_MAX: Duration = Duration::from_secs(1);

/// Where every clock of the pipeline stops: a capture may lie about its times, but no sum overflows beyond this.
const CLOCK_MAX: Nanos = Nanos(1 << 63);
