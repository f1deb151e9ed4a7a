//! `taphouse replay`: captures through the same pipeline as live traffic.

use super::{load_config, open_store, start_logging};
use crate::cli::{Output, ReplayArgs};
use crate::failure::{Code, Failure};
use crate::pipeline::{
    AlertSink, Dealer, Ingest, IngestSettings, Pipeline, Stage, WhenFull, Worker, WorkerView, one_sided,
};
use anyhow::Context;
use capture::ledger::{Cause, QueueCounts};
use capture::{FileOptions, FileSource, FilteredSource, Progress, Source, SourceError};
use detect::AlertLog;
use export::ExportCounts;
use flowtable::{EndReason, FlowTableCounts, FragmentCounts};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use storage::OnError;
use wire::{DropReason, TapId};

pub(crate) fn replay(args: &ReplayArgs, output: Output) -> Result<(), Failure> {
    let mut config = load_config(&args.server)?;
    // A capture is as old as it is: measured against today it would be removed as soon as it is stored.
    config.storage.retention.max_age = None;
    let _ = start_logging(&config.log)?;
    let started = Instant::now();
    // Every file is opened before the folder is touched: a wrong name costs nothing, and nothing is stored twice when
    // the corrected command is given.
    let filter = crate::taps::filter([&args.filter, &config.capture.filter])?;
    let behind = |source: FileSource| -> Box<dyn Source> {
        match &filter {
            Some(filter) => Box::new(FilteredSource::new(Box::new(source), filter.clone())),
            None => Box::new(source),
        }
    };
    let sources = args.files.iter().map(|file| open(file).map(behind)).collect::<Result<Vec<_>, _>>()?;
    let taps = [args.tap.clone()];
    let store = open_store(&config, &taps, OnError::Fail)?;
    let (alert_sink, alert_count) = alert_log(&config.data_dir, config.storage.alert_log.0)?;
    let workers = vec![0; usize::from(config.pipeline.workers.max(1))];
    let (pipeline, workers) = Pipeline::start(&config, &taps, &workers, WhenFull::Wait, store, alert_sink)?;
    let interrupted = flag_on_signal(&pipeline.stop)?;
    let export = pipeline.export.clone();
    let damage = read_all(sources, workers, config.to_ingest(), &pipeline.views, &pipeline.stop)?;
    let views = pipeline.finish().context("the replay is not complete, what is stored stays")?;
    let totals = totals(&views);
    let tables: Vec<FlowTableCounts> = views.iter().map(|v| v.gauges.counts()).collect();
    let summary = Summary {
        counts: totals,
        flows: tables.iter().map(|c| c.created).sum(),
        fragments: views[0].gauges.rare().fragments,
        one_sided: one_sided(&args.tap, &tables),
        tables,
        records: totals.records_stored,
        alerts: alert_count.load(Ordering::Relaxed),
        elapsed: started.elapsed(),
        cpu: cpu_time(),
        interrupted: interrupted.load(Ordering::Relaxed),
        export: export.map(|counters| counters.snapshot()),
        error: damage.as_ref().map(ToString::to_string),
        data_dir: config.data_dir.clone(),
    };
    summary.print(output)?;
    match damage {
        Some(error) => Err(Failure { reported: true, ..Failure::new(Code::DamagedInput, error) }),
        None => Ok(()),
    }
}

/// Opens a capture; of a regular file the header is checked.
fn open(file: &Path) -> Result<FileSource, Failure> {
    FileSource::open(file, TapId(0), &FileOptions::default()).map_err(|error| match error {
        SourceError::Open { .. } | SourceError::Read { .. } => error.into(),
        _ => Failure::new(Code::DamagedInput, error),
    })
}

/// CPU time of this process, all threads.
fn cpu_time() -> Duration {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(t.tv_sec).unwrap_or(0), u32::try_from(t.tv_nsec).unwrap_or(0))
}

/// Alerts of a replay go to the folder's log, where `taphouse alerts` finds them.
fn alert_log(dir: &Path, bytes_max: u64) -> anyhow::Result<(AlertSink, Arc<AtomicU64>)> {
    let mut log = AlertLog::open(dir, bytes_max)?;
    let count = Arc::new(AtomicU64::new(0));
    let counter = count.clone();
    let sink = move |alert: detect::Alert| match log.append(alert) {
        Ok(_) => drop(counter.fetch_add(1, Ordering::Relaxed)),
        Err(error) => tracing::error!("an alert is lost: {error}"),
    };
    Ok((Box::new(sink), count))
}

/// SIGINT and SIGTERM end the reading; what was read is stored. The flag given back tells that this has happened.
fn flag_on_signal(stop: &Arc<AtomicBool>) -> anyhow::Result<Arc<AtomicBool>> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let (stop, flag) = (stop.clone(), interrupted.clone());
    crate::server::on_stop_signal(move || {
        flag.store(true, Ordering::Relaxed);
        stop.store(true, Ordering::Relaxed);
    })?;
    Ok(interrupted)
}

/// Reads the sources one after the other with one clock; `Some` is the damage that ended it.
fn read_all(
    sources: Vec<Box<dyn Source>>,
    mut workers: Vec<Worker>,
    settings: IngestSettings,
    views: &[WorkerView],
    stop: &Arc<AtomicBool>,
) -> anyhow::Result<Option<anyhow::Error>> {
    let (ledger, gauges) = (views[0].ledger.clone(), views[0].gauges.clone());
    if workers.len() == 1
        && let Some(worker) = workers.pop()
    {
        let mut ingest = Ingest::new(worker, settings, ledger, gauges);
        let damage = drive(sources, &mut ingest, views, stop);
        let (worker, clock) = ingest.finish();
        worker.finish(clock);
        return Ok(damage);
    }
    let mut ingest = Ingest::new(Dealer::start(workers)?, settings, ledger, gauges);
    let damage = drive(sources, &mut ingest, views, stop);
    let (dealer, clock) = ingest.finish();
    dealer.finish(clock);
    Ok(damage)
}

fn drive<S: Stage>(
    sources: Vec<Box<dyn Source>>,
    ingest: &mut Ingest<S>,
    views: &[WorkerView],
    stop: &Arc<AtomicBool>,
) -> Option<anyhow::Error> {
    let bar = Bar::start(&sources, views);
    let mut damage = None;
    let mut left = sources.len();
    for mut source in sources {
        left -= 1;
        if let Err(error) = capture::worker::run(source.as_mut(), ingest, stop) {
            let error = anyhow::Error::from(error);
            damage = Some(match left {
                0 => error,
                n => anyhow::anyhow!("{error}; {n} more file(s) on the command line were not read"),
            });
            break;
        }
    }
    bar.finish();
    damage
}

/// Progress on a terminal: bytes, packets per second, time left. Drawn by a thread of its own from relaxed counters.
struct Bar {
    done: Arc<AtomicBool>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Bar {
    fn start(sources: &[Box<dyn Source>], views: &[WorkerView]) -> Bar {
        let done = Arc::new(AtomicBool::new(false));
        let parts: Vec<Progress> = sources.iter().filter_map(|s| s.progress()).collect();
        let ledger = views[0].ledger.clone();
        let draw = move |done: Arc<AtomicBool>| {
            let total = parts.iter().map(Progress::total_bytes).sum::<Option<u64>>();
            let bar = ProgressBar::with_draw_target(total, ProgressDrawTarget::stderr());
            let template = match total {
                Some(_) => "{bar:40.cyan} {percent:>3}% {bytes}/{total_bytes} {msg} eta {eta}",
                None => "{spinner} {bytes} {msg}",
            };
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            let begun = Instant::now();
            while !done.load(Ordering::Relaxed) {
                let packets = ledger.worker.offered.get();
                let rate = packets as f64 / begun.elapsed().as_secs_f64().max(1e-3);
                bar.set_position(parts.iter().map(Progress::consumed_bytes).sum());
                bar.set_message(format!("{packets} packets, {:.2} M/s", rate / 1e6));
                std::thread::park_timeout(Duration::from_millis(100));
            }
            bar.finish_and_clear();
        };
        let thread = std::io::stderr().is_terminal().then(|| {
            let done = done.clone();
            std::thread::spawn(move || draw(done))
        });
        Bar { done, thread }
    }

    fn finish(self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread {
            thread.thread().unpark();
            // A panic there has printed itself and concerns only the drawing.
            drop(thread.join());
        }
    }
}

fn totals(views: &[WorkerView]) -> QueueCounts {
    views.iter().map(|v| v.ledger.snapshot()).fold(QueueCounts::default(), |a, b| a + b)
}

struct Summary {
    counts: QueueCounts,
    flows: u64,
    /// Of each worker.
    tables: Vec<FlowTableCounts>,
    fragments: FragmentCounts,
    /// That most connections were seen from one side only, where they were.
    one_sided: Option<String>,
    records: u64,
    alerts: u64,
    elapsed: Duration,
    cpu: Duration,
    interrupted: bool,
    /// What became of the records for an IPFIX collector, where there is one.
    export: Option<ExportCounts>,
    error: Option<String>,
    data_dir: PathBuf,
}

impl Summary {
    fn print(&self, output: Output) -> std::io::Result<()> {
        let mut out = std::io::stdout().lock();
        match output {
            Output::Json => writeln!(out, "{:#}", self.json()),
            Output::Csv => {
                let errors: u64 = self.decode_errors().iter().map(|(_, n)| n).sum();
                writeln!(out, "packets,bytes,flows,records,alerts,not_ip,decode_errors,elapsed_s,cpu_s")?;
                let c = &self.counts;
                writeln!(
                    out,
                    "{},{},{},{},{},{},{errors},{:.6},{:.6}",
                    c.offered,
                    c.wire_bytes,
                    self.flows,
                    self.records,
                    self.alerts,
                    c.undecoded[DropReason::NotIp as usize],
                    self.elapsed.as_secs_f64(),
                    self.cpu.as_secs_f64()
                )
            }
            Output::Table => self.table(&mut out),
            _ => writeln!(out, "{}", self.json()),
        }
    }

    fn decode_errors(&self) -> Vec<(&'static str, u64)> {
        let all = DropReason::ALL.into_iter().filter(|r| r.is_error());
        all.map(|r| (r.name(), self.counts.undecoded[r as usize])).collect()
    }

    fn sum(&self, of: fn(&FlowTableCounts) -> u64) -> u64 {
        self.tables.iter().map(of).sum()
    }

    fn evicted(&self) -> u64 {
        self.sum(|t| t.exported[EndReason::Evicted as usize - 1])
    }

    fn json(&self) -> Value {
        let (c, f) = (&self.counts, &self.fragments);
        let decode_errors: serde_json::Map<_, _> =
            self.decode_errors().into_iter().map(|(name, n)| (name.to_owned(), json!(n))).collect();
        let ledger: serde_json::Map<_, _> = c.rows().map(|row| (row.name.to_owned(), json!(row.count))).collect();
        let mut document = json!({
            "packets": c.offered,
            "bytes": c.wire_bytes,
            "flows": self.flows,
            "records": self.records,
            "alerts": self.alerts,
            "decode_errors": decode_errors,
            "ledger": { "offered": c.offered, "causes": ledger, "balanced": c.is_balanced(),
                        "records": { "created": c.records, "stored": c.records_stored,
                                     "dropped_ring_full": c.records_ring_full, "dropped_disk": c.records_disk_full },
                        "dns": { "created": c.dns_records, "stored": c.dns_stored,
                                 "dropped_ring_full": c.dns_ring_full, "dropped_disk": c.dns_disk_full } },
            "dns": c.dns_stored,
            "flow_table": { "emergencies": self.sum(|t| t.emergencies), "evicted": self.evicted(),
                            "evicted_answered": self.sum(|t| t.evicted_answered),
                            "tcp_both_sides": self.sum(|t| t.tcp_both_sides), "tcp_one_side": self.sum(|t| t.tcp_one_side),
                            "side_refused": self.sum(|t| t.side_refused) },
            "fragments": { "first": f.first, "assigned": f.assigned, "unassigned": f.unassigned,
                           "overlapping": f.overlapping, "evicted": f.evicted },
            "elapsed_s": self.elapsed.as_secs_f64(),
            "cpu_s": self.cpu.as_secs_f64(),
            "interrupted": self.interrupted,
            "data_dir": self.data_dir,
        });
        if let Some(e) = &self.export {
            document["export"] = json!({ "offered": e.offered, "sent": e.sent, "messages": e.messages, "bytes": e.bytes,
                                         "dropped_ring_full": e.dropped_ring_full,
                                         "dropped_unreachable": e.dropped_unreachable });
        }
        if let Some(message) = &self.error {
            document["error"] = json!({ "code": "damaged_input", "message": message });
        }
        document
    }

    fn table(&self, out: &mut impl Write) -> std::io::Result<()> {
        let c = &self.counts;
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        let rate = c.offered as f64 / seconds / 1e6;
        let per_cpu = c.offered as f64 / self.cpu.as_secs_f64().max(1e-9) / 1e6;
        writeln!(out, "{:>15}  packets, {} bytes on the wire", grouped(c.offered), grouped(c.wire_bytes))?;
        writeln!(
            out,
            "{:>15}  flows in {} records, stored in {}",
            grouped(self.flows),
            grouped(self.records),
            super::show(&self.data_dir)
        )?;
        if let Some(e) = &self.export {
            let dropped = e.dropped_ring_full + e.dropped_unreachable;
            let lost = if dropped > 0 { format!(", {} NOT SENT", grouped(dropped)) } else { String::new() };
            writeln!(out, "{:>15}  records sent in {} IPFIX messages{lost}", grouped(e.sent), grouped(e.messages))?;
        }
        if c.dns_stored > 0 {
            writeln!(out, "{:>15}  DNS transactions stored", grouped(c.dns_stored))?;
        }
        writeln!(out, "{:>15}  alerts", grouped(self.alerts))?;
        if self.evicted() > 0 {
            let answered = grouped(self.sum(|t| t.evicted_answered));
            let told = "flows put out of a full table";
            writeln!(
                out,
                "{:>15}  {told}, {answered} of them answered: raise flowtable.flows_max",
                grouped(self.evicted())
            )?;
        }
        if let Some(told) = &self.one_sided {
            writeln!(out, "{:>15}  {told}", "note:")?;
        }
        for cause in Cause::all().filter(|cause| *cause != Cause::Processed && c.count(*cause) > 0) {
            writeln!(out, "{:>15}  {}: {}", grouped(c.count(cause)), cause.name(), cause.hint())?;
        }
        let verdict = if c.is_balanced() { "every packet and record accounted for" } else { "LEDGER OUT OF BALANCE" };
        writeln!(out, "{:>15}  {verdict}", grouped(c.accounted()))?;
        writeln!(
            out,
            "{seconds:>14.3}s  elapsed, {:.3} s CPU: {rate:.2} M packets/s, {per_cpu:.2} M packets per CPU second",
            self.cpu.as_secs_f64()
        )?;
        if self.interrupted {
            writeln!(out, "{:>15}  before the end: what was read is stored", "interrupted")?;
        }
        Ok(())
    }
}

/// `1234567` as `1,234,567`.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let first = digits.len() % 3;
    let (head, tail) = digits.split_at(first);
    let mut parts: Vec<&str> = if head.is_empty() { Vec::new() } else { vec![head] };
    parts.extend(tail.as_bytes().chunks(3).filter_map(|c| std::str::from_utf8(c).ok()));
    parts.join(",")
}

#[cfg(test)]
mod tests {
    use super::grouped;

    #[test]
    fn digits_in_threes() {
        assert_eq!(
            ["0", "999", "1,000", "12,345,678"],
            [0, 999, 1000, 12_345_678].map(grouped).each_ref().map(String::as_str)
        );
    }
}
