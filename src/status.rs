//! The state of the whole server, as `status`, metrics and health tell it.

use crate::config::Config;
use crate::pipeline::{Pipeline, RareCounts, WorkerView, one_sided};
use crate::slices::SliceRecorder;
use crate::taps::LiveTap;
use archive::{Archive, ArchiveCounters};
use capture::ledger::{Cause, QueueCounts};
use capture::{InterfaceView, Port, RemoteView, XDP_STATISTICS};
use detect::DetectCounters;
use export::{ExportCounters, LinkState};
use flowtable::{EndReason, FlowTableCounts, FragmentCounts};
use hints::InspectCounts;
use rpc::{AlertHub, v1};
use sketches::HyperLogLog;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};
use storage::{StoreCounts, StoreReader, Table};
use talkers::Board;

/// Reads the state of the whole server from relaxed counters.
pub(crate) struct Status {
    started: Instant,
    started_wall: SystemTime,
    data_dir: PathBuf,
    generated: bool,
    taps: Vec<v1::Tap>,
    /// Tap name and queue of each worker.
    queues: Vec<(String, u32)>,
    views: Vec<WorkerView>,
    detect_counts: Arc<DetectCounters>,
    board: Option<Arc<Board>>,
    reader: StoreReader,
    alerts: AlertState,
    /// Interfaces, each with the name of its tap.
    interfaces: Vec<(String, Arc<InterfaceView>)>,
    /// Remote taps: name, host, connection.
    remotes: Vec<(String, String, Arc<RemoteView>)>,
    slices: Arc<SliceRecorder>,
    /// Collector, transport and counters, where flow records are exported.
    export: Option<(String, &'static str, Arc<ExportCounters>)>,
    /// Places segments are shipped to, with their names.
    archives: Vec<(String, Arc<ArchiveCounters>)>,
}

/// Where alerts are, and how many of them fire.
#[derive(Clone)]
pub(crate) struct AlertState {
    pub(crate) hub: AlertHub,
    pub(crate) firing: Arc<AtomicU64>,
}

impl Status {
    #[expect(clippy::too_many_arguments, reason = "called once, with each part of the server")]
    pub(crate) fn new(
        config: &Config,
        taps: &[LiveTap],
        pipeline: &Pipeline,
        reader: StoreReader,
        alerts: AlertState,
        slices: Arc<SliceRecorder>,
        archive: Option<&Archive>,
        generated: bool,
    ) -> Status {
        let queues = taps.iter().flat_map(|t| (0..t.workers.len()).map(|k| (t.name.clone(), k as u32)));
        let interfaces = taps.iter().flat_map(|t| t.supervised.iter().map(|(s, _)| (t.name.clone(), s.view.clone())));
        let remotes = taps.iter().filter_map(|t| {
            let (host, view) = t.remote.as_ref()?;
            Some((t.name.clone(), host.clone(), view.clone()))
        });
        Status {
            started: Instant::now(),
            started_wall: SystemTime::now(),
            data_dir: config.data_dir.clone(),
            generated,
            taps: taps
                .iter()
                .map(|t| v1::Tap { name: t.name.clone(), interfaces: t.interfaces.clone(), source: t.kind.to_owned() })
                .collect(),
            queues: queues.collect(),
            views: pipeline.views.clone(),
            detect_counts: pipeline.detect_counts.clone(),
            board: pipeline.board.clone(),
            reader,
            alerts,
            interfaces: interfaces.collect(),
            remotes: remotes.collect(),
            slices,
            export: pipeline.export.clone().map(|counters| {
                let ipfix = &config.ipfix;
                (ipfix.collector.clone().unwrap_or_default(), ipfix.transport.name(), counters)
            }),
            archives: archive.map(|archive| archive.places().to_vec()).unwrap_or_default(),
        }
    }

    pub(crate) fn read(&self) -> v1::Status {
        let ledgers: Vec<QueueCounts> = self.views.iter().map(|v| v.ledger.snapshot()).collect();
        let clock = self.views.iter().map(|v| v.gauges.clock()).max().unwrap_or_default();
        v1::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            start_time: Some(self.started_wall.into()),
            uptime: self.started.elapsed().try_into().ok(),
            data_dir: self.data_dir.display().to_string(),
            generated_traffic: self.generated,
            taps: self.taps.clone(),
            queues: self.queues.iter().zip(&ledgers).map(|((tap, queue), c)| queue_ledger(tap, *queue, c)).collect(),
            detectors: Some(self.detectors()),
            records: Some(v1::RecordLedger {
                stored: ledgers.iter().map(|c| c.records_stored).sum(),
                dropped_ring_full: ledgers.iter().map(|c| c.records_ring_full).sum(),
                dropped_disk: ledgers.iter().map(|c| c.records_disk_full).sum(),
            }),
            dns: Some(v1::RecordLedger {
                stored: ledgers.iter().map(|c| c.dns_stored).sum(),
                dropped_ring_full: ledgers.iter().map(|c| c.dns_ring_full).sum(),
                dropped_disk: ledgers.iter().map(|c| c.dns_disk_full).sum(),
            }),
            flows: Some(self.flows()),
            fragments: Some(fragments(&self.rare(|rare| rare.fragments))),
            hints: Some(hint_status(&self.rare(|rare| rare.hints))),
            storage: Some(self.storage()),
            alerts: Some(v1::AlertStatus {
                firing: self.alerts.firing.load(Ordering::Relaxed),
                last_seq: self.alerts.hub.last_seq(),
                log_errors: self.alerts.hub.log_errors(),
            }),
            interfaces: self.interfaces.iter().map(|(tap, view)| interface(tap, view)).collect(),
            remotes: self.remotes.iter().map(|(tap, host, view)| remote(tap, host, view)).collect(),
            slices: Some(self.slices.status()),
            export: self.export.as_ref().map(|(collector, transport, c)| export(collector, transport, c)),
            archives: self.archives.iter().map(|(place, counters)| archive(place, counters)).collect(),
            sketches: self.board.as_deref().map(|board| self.sketches(board)),
            packet_clock: (clock.0 > 0).then(|| (SystemTime::UNIX_EPOCH + Duration::from_nanos(clock.0)).into()),
        }
    }

    fn sketches(&self, board: &Board) -> v1::SketchStatus {
        let counts = board.counts();
        v1::SketchStatus {
            tasks: board.tasks().len() as u64,
            memory_bytes: board.memory_bytes() as u64,
            windows: counts.windows,
            late: counts.late,
            stragglers: counts.stragglers,
            rows_lost: self.reader.counts_of(Table::Talkers).map_or(0, |counts| counts.rows_lost()),
        }
    }

    fn flows(&self) -> v1::FlowTableStatus {
        let counts: Vec<_> = self.views.iter().map(|v| v.gauges.counts()).collect();
        let sum = |of: fn(&FlowTableCounts) -> u64| counts.iter().map(of).sum();
        let exported = EndReason::ALL.into_iter().map(|reason| v1::EndReasonCount {
            reason: reason.name().to_owned(),
            count: counts.iter().map(|c| c.exported[reason as usize - 1]).sum(),
        });
        v1::FlowTableStatus {
            active: sum(|c| c.active),
            capacity: self.views.iter().map(|v| v.gauges.flows_max()).sum(),
            created: sum(|c| c.created),
            exported: exported.collect(),
            originators_estimate: self.originators(),
            in_emergency: sum(|c| c.emergency.into()),
            emergencies: sum(|c| c.emergencies),
            evicted_answered: sum(|c| c.evicted_answered),
            tcp_both_sides: sum(|c| c.tcp_both_sides),
            tcp_one_side: sum(|c| c.tcp_one_side),
            side_refused: sum(|c| c.side_refused),
            notes: self.notes(&counts),
        }
    }

    /// What an operator should know of the flow tables, tap by tap. `counts` are those of the workers.
    fn notes(&self, counts: &[FlowTableCounts]) -> Vec<String> {
        let mut notes = Vec::new();
        for tap in &self.taps {
            let of_tap = self.queues.iter().zip(counts).filter(|((name, _), _)| *name == tap.name);
            let counts: Vec<FlowTableCounts> = of_tap.map(|(_, counts)| *counts).collect();
            let full = counts.iter().filter(|c| c.emergency).count();
            if full > 0 {
                notes.push(format!(
                    "tap {}: {full} of {} flow tables nearly full, flows are given less time: a flood, or flowtable.flows_max \
                     is too small",
                    tap.name,
                    counts.len()
                ));
            }
            notes.extend(one_sided(&tap.name, &counts));
        }
        notes
    }

    /// The counts of each worker that are published now and then.
    fn rare<T>(&self, of: fn(RareCounts) -> T) -> Vec<T> {
        self.views.iter().map(|view| of(view.gauges.rare())).collect()
    }

    /// The workers' sketches, merged into one of our own.
    fn originators(&self) -> f64 {
        let Some(first) = self.views.first() else { return 0.0 };
        let Ok(merged) = HyperLogLog::new(first.sources.precision()) else { return 0.0 };
        // All were made with one precision, so that every merge succeeds.
        let complete = self.views.iter().all(|v| merged.merge(&v.sources).is_ok());
        debug_assert!(complete);
        merged.estimate()
    }

    fn detectors(&self) -> v1::DetectorStatus {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let c = &self.detect_counts;
        v1::DetectorStatus {
            openings: get(&c.openings),
            openings_dropped: get(&c.openings_dropped),
            ticks_late: get(&c.ticks_late),
            ticks_dropped: self.views.iter().map(|v| v.gauges.ticks_dropped()).sum(),
            sources_tracked: get(&c.sources_tracked),
            sources_evicted: get(&c.sources_evicted),
        }
    }

    fn storage(&self) -> v1::StorageStatus {
        let counts: Option<Vec<StoreCounts>> =
            Table::ALL.into_iter().map(|table| self.reader.counts_of(table)).collect();
        let Some(counts) = counts else { return v1::StorageStatus::default() };
        let of = |table: Table| &counts[table as usize];
        let (flows, dns, talkers) = (of(Table::Flows), of(Table::Dns), of(Table::Talkers));
        let sum = |of: fn(&StoreCounts) -> u64| counts.iter().map(of).sum();
        let range = self.reader.snapshot().ok().and_then(|s| {
            let times = s.segments.times();
            Some((times.iter().map(|t| t.t_end_min).min()?, times.iter().map(|t| t.t_end_max).max()?))
        });
        let time = |us: Option<i64>| {
            us.and_then(|us| u64::try_from(us).ok())
                .map(|us| (SystemTime::UNIX_EPOCH + Duration::from_micros(us)).into())
        };
        v1::StorageStatus {
            segments: flows.segments,
            rows: flows.segment_rows + flows.live_rows,
            bytes: flows.segment_bytes,
            wal_bytes: wal_bytes(self.reader.dir()),
            oldest: time(range.map(|r| r.0)),
            newest: time(range.map(|r| r.1)),
            dns_segments: dns.segments,
            dns_rows: dns.segment_rows + dns.live_rows,
            dns_bytes: dns.segment_bytes,
            talkers_segments: talkers.segments,
            talkers_rows: talkers.segment_rows + talkers.live_rows,
            talkers_bytes: talkers.segment_bytes,
            compaction: Some(v1::CompactionStatus {
                compactions: sum(|c| c.compactions),
                segments_merged: sum(|c| c.segments_merged),
                rows: sum(|c| c.rows_merged),
                bytes_read: sum(|c| c.bytes_merged),
                bytes_written: sum(|c| c.bytes_merged_into),
                abandoned: sum(|c| c.compactions_abandoned),
                errors: sum(|c| c.compaction_errors),
            }),
            waiting_bytes: sum(|c| c.unlinks_waiting_bytes),
            segments_removed: sum(|c| c.segments_removed),
            rows_removed: sum(|c| c.rows_removed),
            bytes_removed: sum(|c| c.bytes_removed),
            removed_unshipped: sum(|c| c.segments_removed_unshipped),
            last_error: counts.iter().find_map(|c| c.last_error.clone()).unwrap_or_default(),
        }
    }
}

/// Size of the log files as they are now; they come and go while this looks.
fn wal_bytes(data_dir: &Path) -> u64 {
    let folders = Table::ALL.map(|table| data_dir.join(table.folder()).join("wal"));
    let files = folders.iter().flat_map(std::fs::read_dir).flatten().flatten();
    files.filter_map(|file| file.metadata().ok()).map(|meta| meta.len()).sum()
}

fn fragments(counts: &[FragmentCounts]) -> v1::FragmentStatus {
    let sum = |of: fn(&FragmentCounts) -> u64| counts.iter().map(of).sum();
    v1::FragmentStatus {
        first: sum(|c| c.first),
        assigned: sum(|c| c.assigned),
        unassigned: sum(|c| c.unassigned),
        overlapping: sum(|c| c.overlapping),
        evicted: sum(|c| c.evicted),
    }
}

fn hint_status(counts: &[InspectCounts]) -> v1::HintStatus {
    let sum = |of: fn(&InspectCounts) -> u64| counts.iter().map(of).sum();
    v1::HintStatus {
        payloads: sum(|c| c.payloads),
        hints: sum(|c| c.hints),
        assemblies: sum(|c| c.assemblies),
        assemblies_evicted: sum(|c| c.assemblies_evicted),
        assemblies_expired: sum(|c| c.assemblies_expired),
        assemblies_oversized: sum(|c| c.assemblies_oversized),
        hellos_malformed: sum(|c| c.hellos_malformed),
        quic_not_decrypted: sum(|c| c.quic_not_decrypted),
        dns_messages: sum(|c| c.dns_messages),
        dns_malformed: sum(|c| c.dns_malformed),
        dns_evicted: sum(|c| c.dns_evicted),
        dns_unanswered: sum(|c| c.dns_unanswered),
        dns_unasked: sum(|c| c.dns_unasked),
    }
}

fn queue_ledger(tap: &str, queue: u32, c: &QueueCounts) -> v1::QueueLedger {
    v1::QueueLedger {
        tap: tap.to_owned(),
        queue,
        offered: c.offered,
        bytes: c.wire_bytes,
        causes: Cause::all()
            .map(|cause| v1::Cause {
                name: cause.name().to_owned(),
                count: c.count(cause),
                hint: cause.hint().to_owned(),
                loss: cause.is_loss(),
            })
            .collect(),
        balanced: c.balance() == 0,
    }
}

fn interface(tap: &str, view: &InterfaceView) -> v1::Interface {
    let state = view.state();
    let blind_now = state.blind_since.map_or(Duration::ZERO, |since| since.elapsed());
    v1::Interface {
        tap: tap.to_owned(),
        name: view.name.clone(),
        mode: state.mode.map_or("closed", capture::Mode::name).to_owned(),
        up: state.is_up,
        mtu: state.mtu,
        notes: state.notes,
        reopened: state.reopened,
        blind_for: (state.blind_for + blind_now).try_into().ok(),
        ports: state.ports.iter().map(|port| self::port(port)).collect(),
    }
}

fn port(port: &Port) -> v1::Port {
    let xdp = port.mode != capture::Mode::AfPacket;
    let statistics = XDP_STATISTICS.iter().zip(&port.xdp).filter(|_| xdp);
    v1::Port {
        queue: port.queue,
        worker: port.worker as u32,
        pages: port.pages.clone(),
        clock: port.clock().name().to_owned(),
        filtered_early: port.filtered_early,
        xdp_statistics: statistics.map(|(name, counter)| ((*name).to_owned(), counter.get())).collect(),
    }
}

fn export(collector: &str, transport: &str, counters: &ExportCounters) -> v1::ExportStatus {
    let c = counters.snapshot();
    v1::ExportStatus {
        collector: collector.to_owned(),
        transport: transport.to_owned(),
        up: c.state == LinkState::Up,
        offered: c.offered,
        sent: c.sent,
        messages: c.messages,
        bytes: c.bytes,
        dropped_ring_full: c.dropped_ring_full,
        dropped_unreachable: c.dropped_unreachable,
        reconnects: c.reconnects,
        faults: c.faults,
    }
}

fn archive(place: &str, counters: &ArchiveCounters) -> v1::ArchiveStatus {
    let c = counters.read();
    v1::ArchiveStatus {
        place: place.to_owned(),
        segments: c.segments,
        rows: c.rows,
        bytes: c.bytes,
        due_segments: c.due_segments,
        due_bytes: c.due_bytes,
        early_segments: c.early_segments,
        early_bytes: c.early_bytes,
        lag: c.lag.try_into().ok(),
        failures: c.failures,
        corrupt: c.corrupt,
        read_back: c.read_back,
        lost: c.lost,
        unreadable: c.unreadable,
        failing: c.failing,
        last_error: c.last_error.unwrap_or_default(),
    }
}

fn remote(tap: &str, host: &str, view: &RemoteView) -> v1::Remote {
    let gaps = view.gaps();
    v1::Remote {
        tap: tap.to_owned(),
        host: host.to_owned(),
        connected: view.is_connected(),
        gaps: gaps.count,
        gap_time: gaps.total.try_into().ok(),
    }
}
