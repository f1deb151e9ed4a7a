//! One minute out of a folder of very many segments.

use crate::engines::Taphouse;
use benches::flows::{FIRST_END, Flows};
use benches::harness::Spread;
use std::error::Error;
use storage::{Compaction, Store, StoreOptions};
use wire::Nanos;

/// What a query took, in milliseconds.
pub(crate) struct Many {
    pub(crate) segments: u64,
    /// The whole query.
    pub(crate) ms: Spread,
    /// Segments opened by it.
    pub(crate) opened: u64,
}

/// A folder in memory with that many segments of one flow and one minute each; a query for one of the minutes.
pub(crate) fn measure(segments: u64, rounds: usize, threads: usize) -> Result<Many, Box<dyn Error>> {
    // Files in memory: what is measured is not the disk, and syncing each of them would take hours.
    let dir = tempfile::tempdir_in("/dev/shm")?;
    let gap = Nanos(60_000_000_000);
    let options = StoreOptions {
        segment_rows_max: 1,
        batch_rows: 1,
        compaction: Compaction { enabled: false, ..Compaction::default() },
        ..StoreOptions::new(dir.path(), vec!["core".into()])
    };
    let mut store = Store::open(options)?;
    for (number, flow) in Flows::new(3, segments, gap).enumerate() {
        store.append(&[flow], &[])?;
        if number % 10_000 == 0 {
            eprintln!("{number} of {segments} segments");
        }
    }
    store.sync()?;
    store.flush()?;
    let taphouse = Taphouse::new(store.reader(), threads)?;
    let minute = FIRST_END.0 / 1_000 + segments / 2 * 60_000_000;
    let sql = format!(
        "SELECT count(*) FROM flows WHERE t_end >= to_timestamp_micros({minute}) AND t_end < to_timestamp_micros({})",
        minute + 60_000_000
    );
    let mut times = Vec::new();
    for _ in 0..rounds.max(1) + 1 {
        times.push(taphouse.ask(&sql)?.elapsed.as_secs_f64() * 1e3);
    }
    let opened = taphouse.opened(&sql)?;
    // The first fills caches.
    let ms = Spread::of(times.into_iter().skip(1)).ok_or("no round")?;
    Ok(Many { segments, ms, opened })
}
