//! Writing and asking at once: what each costs the other.

use crate::engines::Taphouse;
use crate::questions::Question;
use benches::capture::cpu;
use benches::flows::{Flows, RARE};
use benches::harness::Spread;
use flowtable::FlowRecord;
use std::error::Error;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use storage::{Store, StoreOptions};
use wire::Nanos;

/// Rows appended at a time.
const RUN: usize = 1_024;

/// What was seen.
pub(crate) struct Together {
    /// Rows a second that were asked for.
    pub(crate) wanted: u64,
    /// Rows a second that were written.
    pub(crate) written: f64,
    /// Questions answered meanwhile.
    pub(crate) answers: usize,
    /// Milliseconds of the slowest in a hundred.
    pub(crate) p99_ms: f64,
    pub(crate) median_ms: f64,
    /// Processor time of the appending thread, ns a row: with nobody asking, and while the whole table is read again
    /// and again.
    pub(crate) alone_ns: Spread,
    pub(crate) beside_ns: Spread,
}

/// Rows written at `rate` for some seconds while point questions are asked; then in turns with and without a query that
/// reads everything.
pub(crate) fn measure(
    parent: &Path,
    rate: u64,
    seconds: u64,
    rounds: usize,
    points: &[Question],
) -> Result<Together, Box<dyn Error>> {
    let dir = tempfile::tempdir_in(parent)?;
    // A flow a microsecond of packet time: a million a second.
    let rows = Flows::new(11, 1 << 20, Nanos(1_000));
    // They are written again and again, and those that are rare once.
    let (rare, rows): (Vec<FlowRecord>, Vec<FlowRecord>) =
        rows.partition(|flow| flow.src_ip == RARE || flow.dst_ip == RARE);
    let mut store = Store::open(StoreOptions::new(dir.path(), vec!["core".into()]))?;
    store.append(&rare, &[])?;
    let taphouse = Taphouse::new(store.reader(), 1)?;
    let stop = AtomicBool::new(false);
    let (times, written) = std::thread::scope(|scope| {
        let asking = scope.spawn(|| ask_until(&taphouse, points, &stop));
        let written = append(&mut store, &rows, Some(rate), Duration::from_secs(seconds));
        stop.store(true, Ordering::Relaxed);
        (asking.join(), written)
    });
    let mut times = times.map_err(|_| "the asking thread panicked")??;
    let (written, _) = written?;
    times.sort_by(f64::total_cmp);
    let at = |share: f64| times.get(((times.len() - 1) as f64 * share) as usize).copied().unwrap_or(f64::NAN);
    let (median_ms, p99_ms, answers) = (at(0.5), at(0.99), times.len());

    let everything = "SELECT sum(bytes_o), sum(pkts_r), count(DISTINCT dst_ip), max(rtt_us) FROM flows";
    let (mut alone, mut beside) = (Vec::new(), Vec::new());
    for _ in 0..rounds.max(1) {
        let turn = Duration::from_secs(3);
        alone.push(append(&mut store, &rows, Some(rate / 2), turn)?.1);
        stop.store(false, Ordering::Relaxed);
        let ns = std::thread::scope(|scope| {
            let asking = scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    taphouse.ask(everything).map_err(|e| e.to_string())?;
                }
                Ok::<_, String>(())
            });
            let ns = append(&mut store, &rows, Some(rate / 2), turn);
            stop.store(true, Ordering::Relaxed);
            asking.join().map_err(|_| "the asking thread panicked")??;
            ns
        });
        beside.push(ns?.1);
    }
    let spread = |values: Vec<f64>| Spread::of(values).ok_or("no round");
    Ok(Together {
        wanted: rate,
        written,
        answers,
        p99_ms,
        median_ms,
        alone_ns: spread(alone)?,
        beside_ns: spread(beside)?,
    })
}

/// Milliseconds of each answer.
fn ask_until(taphouse: &Taphouse, points: &[Question], stop: &AtomicBool) -> Result<Vec<f64>, String> {
    let mut times = Vec::new();
    for question in points.iter().cycle() {
        if stop.load(Ordering::Relaxed) && !times.is_empty() {
            break;
        }
        let answer = taphouse.ask(&question.taphouse).map_err(|e| e.to_string())?;
        times.push(answer.elapsed.as_secs_f64() * 1e3);
    }
    Ok(times)
}

/// Rows a second, and processor time of this thread in ns a row.
fn append(
    store: &mut Store,
    rows: &[FlowRecord],
    rate: Option<u64>,
    time: Duration,
) -> Result<(f64, f64), Box<dyn Error>> {
    let (since, before) = (Instant::now(), cpu::of_this_thread());
    let mut count = 0_u64;
    let mut runs = rows.chunks(RUN).cycle();
    while since.elapsed() < time {
        let due = rate.map_or(u64::MAX, |rate| (since.elapsed().as_secs_f64() * rate as f64) as u64);
        if count >= due {
            std::thread::sleep(Duration::from_micros(200));
            continue;
        }
        let run = runs.next().unwrap_or_default();
        store.append(run, &[])?;
        store.tick(storage::Now::read())?;
        count += run.len() as u64;
    }
    let ns = (cpu::of_this_thread() - before).as_nanos() as f64 / count.max(1) as f64;
    Ok((count as f64 / since.elapsed().as_secs_f64(), ns))
}
