//! `taphouse status`: the ledger of a running server, and what it holds.

use super::query::remote;
use crate::cli::{Output, StatusArgs};
use crate::failure::Failure;
use comfy_table::{CellAlignment, Table, presets};
use rpc::v1;
use serde_json::{Value, json};
use std::io::Write;
use std::time::Duration;

pub(crate) fn status(args: &StatusArgs, output: Output) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let status = runtime.block_on(async {
        let mut client = rpc::client::connect(&args.server).await.map_err(remote)?;
        client.status().await.map_err(remote)
    })?;
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table => write!(out, "{}", text(&status))?,
        Output::Json => writeln!(out, "{:#}", document(&status))?,
        Output::Csv => {
            writeln!(out, "tap,queue,cause,packets,loss")?;
            for (q, c) in status.queues.iter().flat_map(|q| q.causes.iter().map(move |c| (q, c))) {
                writeln!(out, "\"{}\",{},{},{},{}", q.tap.replace('"', "\"\""), q.queue, c.name, c.count, c.loss)?;
            }
        }
        _ => writeln!(out, "{}", document(&status))?,
    }
    Ok(())
}

pub(super) fn time(t: &Option<prost_types::Timestamp>) -> Option<String> {
    let t = t.as_ref()?;
    chrono::DateTime::from_timestamp(t.seconds, u32::try_from(t.nanos).ok()?)
        .map(|t| t.to_rfc3339_opts(chrono::SecondsFormat::Micros, true))
}

fn document(s: &v1::Status) -> Value {
    let ledger = |r: Option<v1::RecordLedger>| {
        let r = r.unwrap_or_default();
        json!({ "stored": r.stored, "dropped_ring_full": r.dropped_ring_full, "dropped_disk": r.dropped_disk })
    };
    let flows = s.flows.clone().unwrap_or_default();
    let storage = s.storage.clone().unwrap_or_default();
    let alerts = s.alerts.unwrap_or_default();
    let detectors = s.detectors.unwrap_or_default();
    let exported: serde_json::Map<String, Value> =
        flows.exported.iter().map(|e| (e.reason.clone(), json!(e.count))).collect();
    json!({
        "version": s.version,
        "start_time": time(&s.start_time),
        "uptime_s": s.uptime.map(|u| u.seconds as f64 + f64::from(u.nanos) / 1e9),
        "data_dir": s.data_dir,
        "generated_traffic": s.generated_traffic,
        "packet_clock": time(&s.packet_clock),
        "taps": s.taps.iter().map(|t| json!({ "name": t.name, "interfaces": t.interfaces, "source": t.source })).collect::<Vec<_>>(),
        "interfaces": s.interfaces.iter().map(interface).collect::<Vec<_>>(),
        "remotes": s.remotes.iter().map(|r| json!({
            "tap": r.tap, "host": r.host, "connected": r.connected, "gaps": r.gaps, "gap_s": seconds(&r.gap_time),
        })).collect::<Vec<_>>(),
        "slices": s.slices.map(|s| json!({
            "recording": s.recording, "packets": s.packets, "dropped_queue_full": s.dropped_queue_full,
            "overwritten": s.overwritten,
        })),
        "queues": s.queues.iter().map(queue).collect::<Vec<_>>(),
        "records": ledger(s.records),
        "dns": ledger(s.dns),
        "flows": { "active": flows.active, "capacity": flows.capacity, "created": flows.created, "exported": exported,
                   "originators_estimate": flows.originators_estimate.round(), "in_emergency": flows.in_emergency,
                   "emergencies": flows.emergencies, "evicted_answered": flows.evicted_answered,
                   "tcp_both_sides": flows.tcp_both_sides, "tcp_one_side": flows.tcp_one_side,
                   "side_refused": flows.side_refused, "notes": flows.notes },
        "fragments": s.fragments.map(|f| json!({
            "first": f.first, "assigned": f.assigned, "unassigned": f.unassigned, "overlapping": f.overlapping,
            "evicted": f.evicted,
        })),
        "hints": s.hints.as_ref().map(hint_counts),
        "storage": { "segments": storage.segments, "rows": storage.rows, "bytes": storage.bytes,
                     "wal_bytes": storage.wal_bytes, "oldest": time(&storage.oldest), "newest": time(&storage.newest),
                     "dns_segments": storage.dns_segments, "dns_rows": storage.dns_rows, "dns_bytes": storage.dns_bytes,
                     "talkers_segments": storage.talkers_segments, "talkers_rows": storage.talkers_rows,
                     "talkers_bytes": storage.talkers_bytes,
                     "compaction": storage.compaction.map(|c| json!({
                         "compactions": c.compactions, "segments_merged": c.segments_merged, "rows": c.rows,
                         "bytes_read": c.bytes_read, "bytes_written": c.bytes_written, "abandoned": c.abandoned,
                         "errors": c.errors,
                     })),
                     "waiting_bytes": storage.waiting_bytes, "segments_removed": storage.segments_removed,
                     "rows_removed": storage.rows_removed, "bytes_removed": storage.bytes_removed,
                     "removed_unshipped": storage.removed_unshipped, "last_error": storage.last_error },
        "detectors": { "openings": detectors.openings, "openings_dropped": detectors.openings_dropped,
                       "ticks_late": detectors.ticks_late, "ticks_dropped": detectors.ticks_dropped,
                       "sources_tracked": detectors.sources_tracked, "sources_evicted": detectors.sources_evicted },
        "export": s.export.as_ref().map(|e| json!({
            "collector": e.collector, "transport": e.transport, "up": e.up, "offered": e.offered, "sent": e.sent,
            "messages": e.messages, "bytes": e.bytes, "dropped_ring_full": e.dropped_ring_full,
            "dropped_unreachable": e.dropped_unreachable, "reconnects": e.reconnects, "faults": e.faults,
        })),
        "archives": s.archives.iter().map(|a| json!({
            "place": a.place, "failing": a.failing, "segments": a.segments, "rows": a.rows, "bytes": a.bytes,
            "due_segments": a.due_segments, "due_bytes": a.due_bytes, "early_segments": a.early_segments,
            "early_bytes": a.early_bytes, "lag_seconds": seconds(&a.lag), "failures": a.failures, "corrupt": a.corrupt,
            "read_back": a.read_back, "lost": a.lost, "unreadable": a.unreadable, "last_error": a.last_error,
        })).collect::<Vec<_>>(),
        "sketches": s.sketches.map(|s| json!({
            "tasks": s.tasks, "memory_bytes": s.memory_bytes, "windows": s.windows, "late": s.late,
            "stragglers": s.stragglers, "rows_lost": s.rows_lost,
        })),
        "alerts": { "firing": alerts.firing, "last_seq": alerts.last_seq, "log_errors": alerts.log_errors },
    })
}

fn archive(a: &v1::ArchiveStatus) -> String {
    let lag = humantime::format_duration(Duration::from_secs(seconds(&a.lag) as u64));
    let mut line = format!(
        "archive  {} segment(s), {} shipped to {}; {} due ({}, for {lag}), {} not yet\n",
        a.segments,
        bytesize::ByteSize(a.bytes),
        a.place,
        a.due_segments,
        bytesize::ByteSize(a.due_bytes),
        a.early_segments
    );
    if a.failing {
        line.push_str(&format!("! not shipping, and tries again: {}\n", a.last_error));
    }
    if a.lost + a.unreadable > 0 {
        line.push_str(&format!(
            "! {} segment(s) went before they were shipped, {} cannot be read\n",
            a.lost, a.unreadable
        ));
    }
    line
}

fn hint_counts(h: &v1::HintStatus) -> Value {
    json!({
        "payloads": h.payloads, "hints": h.hints, "assemblies": h.assemblies, "assemblies_evicted": h.assemblies_evicted,
        "assemblies_expired": h.assemblies_expired, "assemblies_oversized": h.assemblies_oversized,
        "hellos_malformed": h.hellos_malformed, "quic_not_decrypted": h.quic_not_decrypted,
        "dns_messages": h.dns_messages, "dns_malformed": h.dns_malformed, "dns_evicted": h.dns_evicted,
        "dns_unanswered": h.dns_unanswered, "dns_unasked": h.dns_unasked,
    })
}

fn seconds(d: &Option<prost_types::Duration>) -> f64 {
    d.map_or(0.0, |d| d.seconds as f64 + f64::from(d.nanos) / 1e9)
}

fn interface(i: &v1::Interface) -> Value {
    let port = |p: &v1::Port| {
        let statistics: std::collections::BTreeMap<_, _> = p.xdp_statistics.iter().collect();
        json!({ "queue": p.queue, "worker": p.worker, "pages": p.pages, "clock": p.clock,
                "filtered_early": p.filtered_early, "xdp_statistics": statistics })
    };
    json!({ "tap": i.tap, "name": i.name, "mode": i.mode, "up": i.up, "mtu": i.mtu, "notes": i.notes,
            "reopened": i.reopened, "blind_s": seconds(&i.blind_for), "ports": i.ports.iter().map(port).collect::<Vec<_>>() })
}

/// One line an interface: how it is read, and what is to be known of it.
fn interfaces(s: &v1::Status, out: &mut String) {
    for i in &s.interfaces {
        let link = if i.up { "up" } else { "down" };
        let mut line = format!("  {}/{}: {}, link {link}, MTU {}", i.tap, i.name, i.mode, i.mtu);
        if let Some(port) = i.ports.first() {
            line += &format!(", {} queue(s), {} clock", i.ports.len(), port.clock);
            if !port.pages.is_empty() {
                line += &format!(", {} pages", port.pages);
            }
            if port.filtered_early {
                line += ", filter in the driver";
            }
        }
        let blind = seconds(&i.blind_for);
        if i.reopened > 0 || blind > 0.0 {
            line += &format!("; opened again {} times, saw nothing for {blind:.1} s", i.reopened);
        }
        out.push_str(&line);
        out.push('\n');
        i.notes.iter().for_each(|note| out.push_str(&format!("    {note}\n")));
    }
    for r in &s.remotes {
        let state = if r.connected { "connected" } else { "not connected" };
        let gaps = format!("{} gap(s), {:.1} s in all", r.gaps, seconds(&r.gap_time));
        out.push_str(&format!("  {}/{}: {state}; {gaps}\n", r.tap, r.host));
    }
}

fn queue(q: &v1::QueueLedger) -> Value {
    let causes: serde_json::Map<String, Value> = q.causes.iter().map(|c| (c.name.clone(), json!(c.count))).collect();
    json!({ "tap": q.tap, "queue": q.queue, "offered": q.offered, "bytes": q.bytes, "causes": causes, "balanced": q.balanced })
}

fn text(s: &v1::Status) -> String {
    let uptime = s.uptime.map(|u| std::time::Duration::from_secs(u.seconds.max(0) as u64)).unwrap_or_default();
    let mut out =
        format!("taphouse {}, up {}, data in {}\n", s.version, humantime::format_duration(uptime), s.data_dir);
    if s.generated_traffic {
        out.push_str("DEMO: this traffic is generated, nothing was read from a network\n");
    }
    for tap in &s.taps {
        let interfaces = tap.interfaces.join(", ");
        out.push_str(format!("tap {} ({}) {interfaces}", tap.name, tap.source).trim_end());
        out.push('\n');
    }
    interfaces(s, &mut out);
    out.push_str(&format!("\n{}\n", ledger(s)));
    hints(s, &mut out);
    let (records, storage) = (s.records.unwrap_or_default(), s.storage.clone().unwrap_or_default());
    let (flows, alerts) = (s.flows.clone().unwrap_or_default(), s.alerts.unwrap_or_default());
    let ended: Vec<String> =
        flows.exported.iter().filter(|e| e.count > 0).map(|e| format!("{} {}", e.count, e.reason)).collect();
    out.push_str(&format!(
        "\nflows    {} active of {} at most, {} begun; exported: {}\n",
        flows.active,
        flows.capacity,
        flows.created,
        match ended.is_empty() {
            true => "none yet".to_owned(),
            false => format!("{}; from about {:.0} originators", ended.join(", "), flows.originators_estimate),
        }
    ));
    let connections = flows.tcp_both_sides + flows.tcp_one_side;
    if connections > 0 {
        let share = 100.0 * flows.tcp_one_side as f64 / connections as f64;
        out.push_str(&format!("tcp      {connections} connections ended, {share:.1} % seen from one side only\n"));
    }
    let lanes = [("records", records), ("dns", s.dns.unwrap_or_default())];
    for (name, r) in lanes {
        out.push_str(&format!(
            "{name:9}{} stored, {} dropped (ring full), {} dropped (disk)\n",
            r.stored, r.dropped_ring_full, r.dropped_disk
        ));
    }
    out.push_str(&format!(
        "storage  {} flow rows, {} dns rows, {} talkers rows; {} segment(s), {}; {} in the write-ahead log\n",
        storage.rows,
        storage.dns_rows,
        storage.talkers_rows,
        storage.segments + storage.dns_segments + storage.talkers_segments,
        bytesize::ByteSize(storage.bytes + storage.dns_bytes + storage.talkers_bytes),
        bytesize::ByteSize(storage.wal_bytes)
    ));
    if let Some(c) = storage.compaction.filter(|c| c.compactions + c.errors > 0) {
        out.push_str(&format!(
            "         {} segments merged into {}, {} read and {} written for it; {} attempts failed\n",
            c.segments_merged,
            c.compactions,
            bytesize::ByteSize(c.bytes_read),
            bytesize::ByteSize(c.bytes_written),
            c.errors
        ));
    }
    if storage.segments_removed > 0 {
        out.push_str(&format!(
            "         {} segments dropped by retention, {} rows, {}; {} held by queries\n",
            storage.segments_removed,
            storage.rows_removed,
            bytesize::ByteSize(storage.bytes_removed),
            bytesize::ByteSize(storage.waiting_bytes)
        ));
    }
    if !storage.last_error.is_empty() {
        out.push_str(&format!("! storage: {}\n", storage.last_error));
    }
    if let Some(e) = &s.export {
        let state = if e.up { "reached" } else { "not reached" };
        out.push_str(&format!(
            "export   {} of {} records sent to {} ({}, {state}); {} dropped (ring full), {} dropped (collector away)\n",
            e.sent, e.offered, e.collector, e.transport, e.dropped_ring_full, e.dropped_unreachable
        ));
    }
    s.archives.iter().for_each(|a| out.push_str(&archive(a)));
    if let Some(s) = &s.sketches {
        out.push_str(&format!(
            "sketches {} tasks in {}, {} windows over; {} late, {} stragglers, {} rows lost\n",
            s.tasks,
            bytesize::ByteSize(s.memory_bytes),
            s.windows,
            s.late,
            s.stragglers,
            s.rows_lost
        ));
    }
    if let Some(s) = s.slices.filter(|s| s.recording + s.packets > 0) {
        out.push_str(&format!(
            "slices   {} recording, {} packets kept, {} missing (overwritten), {} missing (queue full)\n",
            s.recording, s.packets, s.overwritten, s.dropped_queue_full
        ));
    }
    out.push_str(&format!("alerts   {} firing, {} in the log\n", alerts.firing, alerts.last_seq));
    flows.notes.iter().for_each(|note| out.push_str(&format!("! {note}\n")));
    let d = s.detectors.unwrap_or_default();
    if d.openings_dropped + d.ticks_late + d.ticks_dropped > 0 {
        out.push_str(&format!(
            "! detectors did not see {} openings, {} late and {} dropped worker reports: more cores, or fewer taps\n",
            d.openings_dropped, d.ticks_late, d.ticks_dropped
        ));
    }
    out
}

/// Where every packet ended: one line a cause, one column a queue, totals that add up.
fn ledger(s: &v1::Status) -> Table {
    let mut table = Table::new();
    table.load_style(presets::UTF8_HORIZONTAL_ONLY);
    let mut header = vec!["packets".to_owned()];
    header.extend(s.queues.iter().map(|q| format!("{}/{}", q.tap, q.queue)));
    header.push("total".to_owned());
    let columns = header.len();
    table.set_header(header);
    let row = |name: &str, counts: Vec<u64>| {
        let total = counts.iter().sum::<u64>();
        let counts = counts.into_iter().chain([total]).map(|n| n.to_string());
        [name.to_owned()].into_iter().chain(counts).collect::<Vec<_>>()
    };
    for (i, cause) in s.queues.first().map(|q| q.causes.as_slice()).unwrap_or_default().iter().enumerate() {
        let counts: Vec<u64> = s.queues.iter().filter_map(|q| q.causes.get(i)).map(|c| c.count).collect();
        // What never happened is left out; the line `lost` says so where it is about losses.
        if cause.name == "processed" || counts.iter().any(|n| *n > 0) {
            table.add_row(row(&cause.name, counts));
        }
    }
    let lost = |q: &v1::QueueLedger| q.causes.iter().filter(|c| c.loss).map(|c| c.count).sum();
    table.add_row(row("lost", s.queues.iter().map(lost).collect()));
    table.add_row(row("offered", s.queues.iter().map(|q| q.offered).collect()));
    for index in 1..columns {
        if let Some(column) = table.column_mut(index) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

fn hints(s: &v1::Status, out: &mut String) {
    for (q, c) in s.queues.iter().flat_map(|q| q.causes.iter().map(move |c| (q, c))) {
        if c.loss && c.count > 0 {
            out.push_str(&format!("! {}/{}: {} {}: {}\n", q.tap, q.queue, c.count, c.name, c.hint));
        }
    }
}
