//! What `/metrics` tells: the state of the server, and the queries it answered.

use crate::v1;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, LabelSetEncoder, LabelValueEncoder, NoLabelSet};
use prometheus_client::encoding::{EncodeLabelValue, MetricEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::{MetricType, histogram::exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::fmt;
use std::sync::Arc;
use std::time::Instant;
use tonic::Code;

/// What `/metrics` is served as: OpenMetrics 1.0 text, which Prometheus reads since 2.5.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Supplies the text of one scrape; see [`exporter`].
pub type MetricsFn = Arc<dyn Fn() -> String + Send + Sync>;

/// The metrics of a whole server: what its status says, and the queries it answered.
pub fn exporter(status: crate::StatusFn, queries: Arc<QueryMetrics>) -> MetricsFn {
    Arc::new(move || render(&status(), &queries))
}

/// One scrape as OpenMetrics text. Everything that `status` tells is read from it and counted nowhere else, so that
/// `taphouse status` and `/metrics` cannot disagree.
pub fn render(status: &v1::Status, queries: &QueryMetrics) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(StatusCollector(status.clone())));
    queries.register(&mut registry);
    let mut text = String::with_capacity(8 * 1024);
    // Writing into a `String` fails only if one of the encoders above does; none of them has a reason to.
    match encode(&mut text, &registry) {
        Ok(()) => text,
        Err(fmt::Error) => "# EOF\n".to_owned(),
    }
}

/// Which call ran a query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Method {
    /// `ListFlows` of `FlowService`.
    ListFlows,
    /// `StreamFlows` and `StreamFlowsArrow` of `FlowService`.
    StreamFlows,
    /// `Query` of `FlowService`.
    Query,
    /// A statement planned for a Flight SQL client: `GetFlightInfo`, `GetSchema`, `CreatePreparedStatement`.
    FlightPlan,
    /// An answer fetched by a Flight SQL client: `DoGet`.
    FlightGet,
    /// `GET /api/v1/flows`.
    RestFlows,
    /// `POST /api/v1/sql`.
    RestSql,
}

impl Method {
    /// Every method.
    pub const ALL: [Method; 7] = [
        Method::ListFlows,
        Method::StreamFlows,
        Method::Query,
        Method::FlightPlan,
        Method::FlightGet,
        Method::RestFlows,
        Method::RestSql,
    ];

    /// The value of the label `method`.
    pub const fn name(self) -> &'static str {
        match self {
            Method::ListFlows => "list_flows",
            Method::StreamFlows => "stream_flows",
            Method::Query => "query",
            Method::FlightPlan => "flight_plan",
            Method::FlightGet => "flight_get",
            Method::RestFlows => "rest_flows",
            Method::RestSql => "rest_sql",
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct MethodLabel(Method);

impl EncodeLabelSet for MethodLabel {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        label(encoder, "method", self.0.name())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct ErrorLabels {
    method: Method,
    code: &'static str,
}

impl EncodeLabelSet for ErrorLabels {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        label(encoder, "method", self.method.name())?;
        label(encoder, "code", self.code)
    }
}

/// Counters of the queries answered over gRPC, Flight SQL and REST. Cheap to share, safe to update from any thread.
#[derive(Debug)]
pub struct QueryMetrics {
    started: Family<MethodLabel, Counter>,
    errors: Family<ErrorLabels, Counter>,
    seconds: Family<MethodLabel, Histogram, fn() -> Histogram>,
    rows: Family<MethodLabel, Counter>,
    bytes: Family<MethodLabel, Counter>,
    in_flight: Gauge,
    pub(crate) prepared: PreparedMetrics,
}

/// Prepared statements of Flight SQL clients.
#[derive(Debug, Default)]
pub(crate) struct PreparedMetrics {
    /// Held now.
    pub(crate) open: Gauge,
    pub(crate) opened: Counter,
    /// Forgotten since nobody used them.
    pub(crate) expired: Counter,
    /// Not taken on, as many being held as allowed.
    pub(crate) refused: Counter,
}

impl Default for QueryMetrics {
    fn default() -> QueryMetrics {
        // 1 ms to 131 s: a page of the last minute up to a scan of everything.
        let seconds: fn() -> Histogram = || Histogram::new(exponential_buckets(0.001, 2.0, 18));
        let metrics = QueryMetrics {
            started: Family::default(),
            errors: Family::default(),
            seconds: Family::new_with_constructor(seconds),
            rows: Family::default(),
            bytes: Family::default(),
            in_flight: Gauge::default(),
            prepared: PreparedMetrics::default(),
        };
        // Series that exist from the start, so that a rate over the first query is not lost.
        for method in Method::ALL {
            metrics.started.get_or_create_owned(&MethodLabel(method));
            metrics.seconds.get_or_create_owned(&MethodLabel(method));
            metrics.rows.get_or_create_owned(&MethodLabel(method));
            metrics.bytes.get_or_create_owned(&MethodLabel(method));
        }
        metrics
    }
}

impl QueryMetrics {
    /// Counts a query as begun. It is over when the guard is dropped, whether it ended, failed or was abandoned.
    pub fn start(self: &Arc<Self>, method: Method) -> QueryGuard {
        self.started.get_or_create(&MethodLabel(method)).inc();
        self.in_flight.inc();
        QueryGuard { metrics: Arc::clone(self), method, begun: Instant::now(), outcome: None }
    }

    /// Queries begun so far with `method`.
    pub fn started(&self, method: Method) -> u64 {
        self.started.get_or_create(&MethodLabel(method)).get()
    }

    /// Prepared statements held for Flight SQL clients now.
    pub fn prepared_open(&self) -> u64 {
        u64::try_from(self.prepared.open.get()).unwrap_or(0)
    }

    /// Queries running now.
    pub fn in_flight(&self) -> u64 {
        u64::try_from(self.in_flight.get()).unwrap_or(0)
    }

    fn register(&self, registry: &mut Registry) {
        registry.register("taphouse_queries", "Queries begun", self.started.clone());
        registry.register(
            "taphouse_query_errors",
            "Queries that failed, by gRPC code; `CANCELLED` when the caller went away",
            self.errors.clone(),
        );
        registry.register("taphouse_query_rows", "Rows sent in answer to queries", self.rows.clone());
        registry.register_with_unit(
            "taphouse_query_sent",
            "Size of the answers to queries",
            Unit::Bytes,
            self.bytes.clone(),
        );
        registry.register_with_unit(
            "taphouse_query_duration",
            "From the first byte of a query to the last of its answer, the reader's pace included",
            Unit::Seconds,
            self.seconds.clone(),
        );
        registry.register("taphouse_queries_in_flight", "Queries running now", self.in_flight.clone());
        let PreparedMetrics { open, opened, expired, refused } = &self.prepared;
        let name = "taphouse_prepared_statements";
        registry.register(format!("{name}_open"), "Prepared statements of Flight SQL clients held now", open.clone());
        registry.register(name, "Statements prepared for Flight SQL clients", opened.clone());
        registry.register(format!("{name}_expired"), "Prepared statements forgotten unused", expired.clone());
        registry.register(
            format!("{name}_refused"),
            "Statements not prepared, as many being held as allowed",
            refused.clone(),
        );
    }
}

/// A running query.
#[derive(Debug)]
pub struct QueryGuard {
    metrics: Arc<QueryMetrics>,
    method: Method,
    begun: Instant,
    /// How it ended; `None` while it runs, so that a guard dropped early counts as abandoned.
    outcome: Option<Code>,
}

impl QueryGuard {
    /// Counts what is handed over for sending; also for a task that runs without the guard.
    pub fn sent(&self) -> Sent {
        let label = MethodLabel(self.method);
        Sent {
            rows: self.metrics.rows.get_or_create_owned(&label),
            bytes: self.metrics.bytes.get_or_create_owned(&label),
        }
    }

    /// Says how the query ended. Only the first call counts.
    pub fn finish(&mut self, code: Code) {
        self.outcome.get_or_insert(code);
    }
}

impl Drop for QueryGuard {
    fn drop(&mut self) {
        let code = self.outcome.unwrap_or(Code::Cancelled);
        if code != Code::Ok {
            let labels = ErrorLabels { method: self.method, code: code_name(code) };
            self.metrics.errors.get_or_create(&labels).inc();
        }
        self.metrics.in_flight.dec();
        self.metrics.seconds.get_or_create(&MethodLabel(self.method)).observe(self.begun.elapsed().as_secs_f64());
    }
}

/// Counts what leaves in answer to a query.
#[derive(Clone, Debug)]
pub struct Sent {
    rows: Counter,
    bytes: Counter,
}

impl Sent {
    /// Rows of the answer.
    pub fn rows(&self, count: usize) {
        self.rows.inc_by(count as u64);
    }

    /// Bytes of the answer, framing left out.
    pub fn bytes(&self, count: usize) {
        self.bytes.inc_by(count as u64);
    }
}

/// The name of a code as the gRPC documentation writes it.
pub(crate) fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

fn label(encoder: &mut LabelSetEncoder<'_>, key: &str, value: &str) -> fmt::Result {
    let mut encoder = encoder.encode_label();
    let mut key_encoder = encoder.encode_label_key()?;
    fmt::Write::write_str(&mut key_encoder, key)?;
    let mut value_encoder: LabelValueEncoder<'_> = key_encoder.encode_label_value()?;
    EncodeLabelValue::encode(&value, &mut value_encoder)?;
    value_encoder.finish()
}

/// Turns a status into metrics, once for each scrape.
#[derive(Debug)]
struct StatusCollector(v1::Status);

impl Collector for StatusCollector {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut out = Families(encoder);
        out.server(&self.0)?;
        out.ledger(&self.0.queues)?;
        out.interfaces(&self.0.interfaces)?;
        out.remotes(&self.0.remotes)?;
        out.slices(self.0.slices.as_ref())?;
        let records = self.0.records.unwrap_or_default();
        out.records("taphouse_records", "Where flow records ended", &records)?;
        let dns = self.0.dns.unwrap_or_default();
        out.records("taphouse_dns_records", "Where DNS transactions ended", &dns)?;
        out.export(self.0.export.as_ref())?;
        out.archives(&self.0.archives)?;
        let flows = self.0.flows.clone().unwrap_or_default();
        out.flows(&flows)?;
        out.flow_table(&flows)?;
        out.fragments(&self.0.fragments.unwrap_or_default())?;
        out.hints(&self.0.hints.unwrap_or_default())?;
        out.storage(&self.0.storage.clone().unwrap_or_default())?;
        out.detectors(&self.0.detectors.unwrap_or_default())?;
        out.sketches(self.0.sketches.as_ref())?;
        out.alerts(&self.0.alerts.unwrap_or_default())
    }
}

fn duration(d: Option<&prost_types::Duration>) -> f64 {
    d.map_or(0.0, |d| d.seconds as f64 + f64::from(d.nanos) / 1e9)
}

/// Labels of one sample.
type Labels<'a> = &'a [(&'static str, &'a str)];

/// A metric of each place segments are shipped to: name, help, unit, and where its value is.
type OfArchive<T> = (&'static str, &'static str, Option<Unit>, fn(&v1::ArchiveStatus) -> T);

struct LabelSlice<'a>(Labels<'a>);

impl EncodeLabelSet for LabelSlice<'_> {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(key, value)| label(encoder, key, value))
    }
}

struct Families<'e>(DescriptorEncoder<'e>);

impl Families<'_> {
    fn server(&mut self, status: &v1::Status) -> fmt::Result {
        let demo = if status.generated_traffic { "true" } else { "false" };
        self.gauge(
            "taphouse_build_info",
            "Always 1; the labels tell the version, and whether the traffic is generated",
            None,
            [(&[("version", status.version.as_str()), ("generated_traffic", demo)] as Labels<'_>, 1.0)],
        )?;
        self.plain_gauge(
            "taphouse_uptime",
            "Time since the server started",
            Some(Unit::Seconds),
            status.uptime.map_or(0.0, |d| d.seconds as f64 + f64::from(d.nanos) / 1e9),
        )?;
        // A clock that has not started is left out: 0 would read as 1970.
        match &status.packet_clock {
            Some(clock) => self.plain_gauge(
                "taphouse_packet_clock_timestamp",
                "Packet time, as seconds since 1970",
                Some(Unit::Seconds),
                seconds(clock),
            ),
            None => Ok(()),
        }
    }

    fn ledger(&mut self, queues: &[v1::QueueLedger]) -> fmt::Result {
        let names: Vec<String> = queues.iter().map(|q| q.queue.to_string()).collect();
        let labelled = || queues.iter().zip(&names);
        let mut causes = Vec::with_capacity(queues.len() * 16);
        for (q, queue) in labelled() {
            for cause in &q.causes {
                let loss = if cause.loss { "true" } else { "false" };
                let labels = [("tap", q.tap.as_str()), ("queue", queue), ("cause", &cause.name), ("loss", loss)];
                causes.push((labels, cause.count));
            }
        }
        let own = |q: &'_ v1::QueueLedger, queue: &'_ String| [("tap", q.tap.clone()), ("queue", queue.clone())];
        let owned: Vec<_> = labelled().map(|(q, queue)| (own(q, queue), q)).collect();
        let borrowed: Vec<_> = owned.iter().map(|(l, q)| (l.each_ref().map(|(k, v)| (*k, v.as_str())), *q)).collect();
        self.counter(
            "taphouse_packets_offered",
            "Packets the source was offered",
            None,
            borrowed.iter().map(|(l, q)| (&l[..], q.offered)),
        )?;
        self.counter(
            "taphouse_packets",
            "Where each packet offered ended; the causes add up to taphouse_packets_offered_total",
            None,
            causes.iter().map(|(l, count)| (&l[..], *count)),
        )?;
        self.counter(
            "taphouse_capture",
            "Bytes of the packets processed, as they were on the wire",
            Some(Unit::Bytes),
            borrowed.iter().map(|(l, q)| (&l[..], q.bytes)),
        )?;
        self.gauge(
            "taphouse_ledger_balanced",
            "1 if the causes add up to the packets offered, 0 if not",
            None,
            borrowed.iter().map(|(l, q)| (&l[..], f64::from(u8::from(q.balanced)))),
        )
    }

    fn interfaces(&mut self, interfaces: &[v1::Interface]) -> fmt::Result {
        let of = |i: &v1::Interface| [("tap", i.tap.clone()), ("interface", i.name.clone())];
        let owned: Vec<_> = interfaces.iter().map(|i| (of(i), i)).collect();
        let each: Vec<_> = owned.iter().map(|(l, i)| (l.each_ref().map(|(k, v)| (*k, v.as_str())), *i)).collect();
        self.gauge(
            "taphouse_interface_up",
            "1 while the link is up and the interface is read",
            None,
            each.iter().map(|(l, i)| (&l[..], f64::from(u8::from(i.up && i.mode != "closed")))),
        )?;
        self.counter(
            "taphouse_interface_reopened",
            "Times the interface was closed and opened again",
            None,
            each.iter().map(|(l, i)| (&l[..], i.reopened)),
        )?;
        self.gauge(
            "taphouse_interface_blind",
            "How long nothing could come in, the link being down or the interface closed",
            Some(Unit::Seconds),
            each.iter().map(|(l, i)| (&l[..], duration(i.blind_for.as_ref()))),
        )?;
        let mut modes = Vec::new();
        let mut statistics = Vec::new();
        for i in interfaces {
            modes.push(([("tap", i.tap.as_str()), ("interface", &i.name), ("mode", &i.mode)], 1.0));
            for port in &i.ports {
                for (name, count) in &port.xdp_statistics {
                    statistics.push((i, port.queue.to_string(), name, *count));
                }
            }
        }
        statistics.sort_by(|a, b| (&a.0.tap, &a.0.name, &a.1, a.2).cmp(&(&b.0.tap, &b.0.name, &b.1, b.2)));
        self.gauge(
            "taphouse_interface_info",
            "Always 1; the labels tell how the interface is read",
            None,
            modes.iter().map(|(l, value)| (&l[..], *value)),
        )?;
        let labelled: Vec<_> = statistics
            .iter()
            .map(|(i, queue, name, count)| {
                ([("tap", i.tap.as_str()), ("interface", &i.name), ("queue", queue), ("counter", name)], *count)
            })
            .collect();
        self.counter(
            "taphouse_xdp_statistics",
            "The kernel's counters of AF_XDP sockets (struct xdp_statistics); one packet may raise two of them",
            None,
            labelled.iter().map(|(l, count)| (&l[..], *count)),
        )
    }

    fn remotes(&mut self, remotes: &[v1::Remote]) -> fmt::Result {
        let each: Vec<_> = remotes.iter().map(|r| ([("tap", r.tap.as_str()), ("host", &r.host)], r)).collect();
        self.gauge(
            "taphouse_remote_connected",
            "1 while packets can come from the remote host",
            None,
            each.iter().map(|(l, r)| (&l[..], f64::from(u8::from(r.connected)))),
        )?;
        self.counter(
            "taphouse_remote_gaps",
            "Times the connection was lost",
            None,
            each.iter().map(|(l, r)| (&l[..], r.gaps)),
        )?;
        self.gauge(
            "taphouse_remote_gap",
            "How long there was no connection",
            Some(Unit::Seconds),
            each.iter().map(|(l, r)| (&l[..], duration(r.gap_time.as_ref()))),
        )
    }

    fn slices(&mut self, slices: Option<&v1::SliceStatus>) -> fmt::Result {
        let Some(s) = slices else { return Ok(()) };
        self.plain_gauge("taphouse_slices_recording", "Slices being recorded", None, s.recording as f64)?;
        for (name, help, count) in [
            ("taphouse_slice_packets", "Packets written to slices", s.packets),
            ("taphouse_slice_packets_dropped", "Packets missing in slices, the queue being full", s.dropped_queue_full),
            (
                "taphouse_slice_packets_overwritten",
                "Packets overwritten in a worker's memory before a slice could take them",
                s.overwritten,
            ),
        ] {
            self.counter(name, help, None, [(&[] as Labels<'_>, count)])?;
        }
        Ok(())
    }

    fn records(&mut self, name: &str, help: &str, records: &v1::RecordLedger) -> fmt::Result {
        self.counter(
            name,
            help,
            None,
            [
                (&[("outcome", "stored")] as Labels<'_>, records.stored),
                (&[("outcome", "dropped_ring_full")], records.dropped_ring_full),
                (&[("outcome", "dropped_disk")], records.dropped_disk),
            ],
        )
    }

    /// Nothing where there is no collector.
    fn export(&mut self, export: Option<&v1::ExportStatus>) -> fmt::Result {
        let Some(e) = export else { return Ok(()) };
        self.plain_gauge("taphouse_export_up", "1 while the IPFIX collector can be reached", None, e.up.into())?;
        self.counter(
            "taphouse_export_records",
            "Where flow records for the IPFIX collector ended",
            None,
            [
                (&[("outcome", "sent")] as Labels<'_>, e.sent),
                (&[("outcome", "dropped_ring_full")], e.dropped_ring_full),
                (&[("outcome", "dropped_unreachable")], e.dropped_unreachable),
            ],
        )?;
        for (name, help, unit, count) in [
            ("taphouse_export_messages", "IPFIX messages sent", None, e.messages),
            ("taphouse_export", "Size of the IPFIX messages sent", Some(Unit::Bytes), e.bytes),
            ("taphouse_export_reconnects", "Times the collector was reached again", None, e.reconnects),
            ("taphouse_export_faults", "Connects and sends to the collector that failed", None, e.faults),
        ] {
            self.counter(name, help, unit, [(&[] as Labels<'_>, count)])?;
        }
        Ok(())
    }

    /// Nothing where segments are shipped to nowhere.
    fn archives(&mut self, archives: &[v1::ArchiveStatus]) -> fmt::Result {
        if archives.is_empty() {
            return Ok(());
        }
        let each: Vec<_> = archives.iter().map(|a| ([("place", a.place.as_str())], a)).collect();
        let gauges: [OfArchive<f64>; 6] = [
            ("taphouse_archive_up", "1 while shipping works", None, |a| f64::from(u8::from(!a.failing))),
            ("taphouse_archive_lag", "How long the oldest segment to ship has been due", Some(Unit::Seconds), |a| {
                duration(a.lag.as_ref())
            }),
            ("taphouse_archive_due_segments", "Segments due and not shipped", None, |a| a.due_segments as f64),
            ("taphouse_archive_due", "Size of the segments due and not shipped", Some(Unit::Bytes), |a| {
                a.due_bytes as f64
            }),
            ("taphouse_archive_early_segments", "Segments not due yet", None, |a| a.early_segments as f64),
            ("taphouse_archive_early", "Size of the segments not due yet", Some(Unit::Bytes), |a| a.early_bytes as f64),
        ];
        for (name, help, unit, value) in gauges {
            self.gauge(name, help, unit, each.iter().map(|(l, a)| (&l[..], value(a))))?;
        }
        let counters: [OfArchive<u64>; 8] = [
            ("taphouse_archive_segments", "Segments shipped", None, |a| a.segments),
            ("taphouse_archive_rows", "Rows in the segments shipped", None, |a| a.rows),
            ("taphouse_archive", "Size of the segments shipped", Some(Unit::Bytes), |a| a.bytes),
            ("taphouse_archive_failures", "Attempts to ship that failed", None, |a| a.failures),
            ("taphouse_archive_corrupt", "Segments that arrived changed and were sent again", None, |a| a.corrupt),
            ("taphouse_archive_read_back", "Segments read back to be compared", None, |a| a.read_back),
            ("taphouse_archive_lost", "Segments that went before they were shipped", None, |a| a.lost),
            ("taphouse_archive_unreadable", "Segments that cannot be read to be shipped", None, |a| a.unreadable),
        ];
        for (name, help, unit, value) in counters {
            self.counter(name, help, unit, each.iter().map(|(l, a)| (&l[..], value(a))))?;
        }
        Ok(())
    }

    fn flows(&mut self, flows: &v1::FlowTableStatus) -> fmt::Result {
        self.plain_gauge("taphouse_flows_active", "Flows in the tables now", None, flows.active as f64)?;
        self.plain_gauge("taphouse_flows_capacity", "Most flows the tables may hold", None, flows.capacity as f64)?;
        let fill = if flows.capacity == 0 { 0.0 } else { flows.active as f64 / flows.capacity as f64 };
        self.plain_gauge(
            "taphouse_flow_table_fill",
            "Active flows over capacity",
            Some(Unit::Other("ratio".to_owned())),
            fill,
        )?;
        self.plain_gauge(
            "taphouse_flow_originators_estimate",
            "Distinct originators among the flows exported, estimated within 1.6 %",
            None,
            flows.originators_estimate,
        )?;
        self.counter("taphouse_flows_created", "Flows begun", None, [(&[] as Labels<'_>, flows.created)])?;
        let exported: Vec<_> = flows.exported.iter().map(|e| ([("reason", e.reason.as_str())], e.count)).collect();
        self.counter(
            "taphouse_flow_records_exported",
            "Flow records exported, by end reason",
            None,
            exported.iter().map(|(l, count)| (&l[..], *count)),
        )
    }

    /// How the tables fare: room, and whether flows have both their sides.
    fn flow_table(&mut self, flows: &v1::FlowTableStatus) -> fmt::Result {
        self.plain_gauge(
            "taphouse_flow_tables_in_emergency",
            "Flow tables that are nearly full, so that flows are given less time",
            None,
            flows.in_emergency as f64,
        )?;
        for (name, help, count) in [
            ("taphouse_flow_table_emergencies", "Times a flow table became nearly full", flows.emergencies),
            ("taphouse_flows_evicted_answered", "Evicted flows that both sides had sent in", flows.evicted_answered),
            (
                "taphouse_flow_side_memory_refused",
                "Names, fingerprints and round-trip times without room in flowtable.side_memory",
                flows.side_refused,
            ),
        ] {
            self.counter(name, help, None, [(&[] as Labels<'_>, count)])?;
        }
        self.counter(
            "taphouse_tcp_connections_ended",
            "Ended TCP connections by the sides they were seen from; of one side, those with acknowledged data",
            None,
            [(&[("sides", "both")] as Labels<'_>, flows.tcp_both_sides), (&[("sides", "one")], flows.tcp_one_side)],
        )
    }

    fn fragments(&mut self, f: &v1::FragmentStatus) -> fmt::Result {
        self.counter(
            "taphouse_fragments",
            "IP fragments: first ones, later ones in the flow of their first one, later ones without it",
            None,
            [
                (&[("kind", "first")] as Labels<'_>, f.first),
                (&[("kind", "assigned")], f.assigned),
                (&[("kind", "unassigned")], f.unassigned),
            ],
        )?;
        for (name, help, count) in [
            ("taphouse_fragments_overlapping", "Datagrams with fragments that overlap", f.overlapping),
            ("taphouse_fragments_evicted", "Fragmented datagrams forgotten before their time", f.evicted),
        ] {
            self.counter(name, help, None, [(&[] as Labels<'_>, count)])?;
        }
        Ok(())
    }

    fn hints(&mut self, h: &v1::HintStatus) -> fmt::Result {
        for (name, help, count) in [
            ("taphouse_hint_payloads", "First payloads of flows looked at", h.payloads),
            ("taphouse_hints", "Times a flow was given a label, a name or a fingerprint", h.hints),
            ("taphouse_hint_assemblies", "Messages in pieces begun to be put together", h.assemblies),
            ("taphouse_hellos_malformed", "ClientHellos that contradict themselves", h.hellos_malformed),
            ("taphouse_quic_not_decrypted", "QUIC Initial packets that did not decrypt", h.quic_not_decrypted),
            ("taphouse_dns_messages", "DNS messages read", h.dns_messages),
            ("taphouse_dns_malformed", "Payloads of DNS flows that are no DNS message", h.dns_malformed),
            ("taphouse_dns_evicted", "DNS queries that could not wait for their answer", h.dns_evicted),
            ("taphouse_dns_unanswered", "DNS queries without an answer in time", h.dns_unanswered),
            ("taphouse_dns_unasked", "DNS answers whose query was not seen", h.dns_unasked),
        ] {
            self.counter(name, help, None, [(&[] as Labels<'_>, count)])?;
        }
        self.counter(
            "taphouse_hint_assemblies_given_up",
            "Messages in pieces that were given up, by reason",
            None,
            [
                (&[("reason", "evicted")] as Labels<'_>, h.assemblies_evicted),
                (&[("reason", "expired")], h.assemblies_expired),
                (&[("reason", "oversized")], h.assemblies_oversized),
            ],
        )
    }

    fn storage(&mut self, storage: &v1::StorageStatus) -> fmt::Result {
        let bytes = Some(Unit::Bytes);
        self.plain_gauge("taphouse_storage_segments", "Parquet segments on disk", None, storage.segments as f64)?;
        self.plain_gauge("taphouse_storage_rows", "Rows held, on disk and not yet", None, storage.rows as f64)?;
        self.plain_gauge("taphouse_storage", "Size of the segments", bytes.clone(), storage.bytes as f64)?;
        self.plain_gauge("taphouse_storage_wal", "Size of the write-ahead log", bytes, storage.wal_bytes as f64)?;
        // What stands above is of flows alone.
        for (table, segments, rows, bytes) in [
            ("dns", storage.dns_segments, storage.dns_rows, storage.dns_bytes),
            ("talkers", storage.talkers_segments, storage.talkers_rows, storage.talkers_bytes),
        ] {
            for (what, help, unit, value) in [
                ("_segments", "Parquet segments of the table", None, segments),
                ("_rows", "Rows, on disk and not yet, of the table", None, rows),
                ("", "Size of the segments of the table", Some(Unit::Bytes), bytes),
            ] {
                let name = format!("taphouse_storage_{table}{what}");
                self.plain_gauge(&name, &format!("{help} {table}"), unit, value as f64)?;
            }
        }
        self.counter(
            "taphouse_storage_removed_unshipped",
            "Segments dropped before they were shipped, the disk being nearly full",
            None,
            [(&[] as Labels<'_>, storage.removed_unshipped)],
        )?;
        for (name, help, time) in [
            ("taphouse_storage_oldest_timestamp", "Least t_end held, as seconds since 1970", &storage.oldest),
            ("taphouse_storage_newest_timestamp", "Greatest t_end held, as seconds since 1970", &storage.newest),
        ] {
            if let Some(time) = time {
                self.plain_gauge(name, help, Some(Unit::Seconds), seconds(time))?;
            }
        }
        self.reworked(storage)
    }

    /// Segments merged and dropped.
    fn reworked(&mut self, storage: &v1::StorageStatus) -> fmt::Result {
        let c = storage.compaction.unwrap_or_default();
        let bytes = Some(Unit::Bytes);
        for (name, help, unit, count) in [
            ("taphouse_storage_compactions", "Segments made by merging others", None, c.compactions),
            ("taphouse_storage_segments_merged", "Segments merged into larger ones", None, c.segments_merged),
            ("taphouse_storage_rows_merged", "Rows rewritten by merging", None, c.rows),
            ("taphouse_storage_compactions_abandoned", "Merges given up for retention", None, c.abandoned),
            ("taphouse_storage_compaction_errors", "Merges that failed", None, c.errors),
            ("taphouse_storage_segments_removed", "Segments dropped by retention", None, storage.segments_removed),
            ("taphouse_storage_rows_removed", "Rows in them", None, storage.rows_removed),
            ("taphouse_storage_removed", "Their size", bytes.clone(), storage.bytes_removed),
        ] {
            self.counter(name, help, unit, [(&[] as Labels<'_>, count)])?;
        }
        self.counter(
            "taphouse_storage_compaction",
            "Bytes of segments read and written by merging",
            bytes.clone(),
            [(&[("direction", "read")] as Labels<'_>, c.bytes_read), (&[("direction", "written")], c.bytes_written)],
        )?;
        let help = "Size of files dropped or merged that queries hold";
        self.plain_gauge("taphouse_storage_waiting", help, bytes, storage.waiting_bytes as f64)
    }

    fn detectors(&mut self, d: &v1::DetectorStatus) -> fmt::Result {
        for (name, help, count) in [
            ("taphouse_detector_openings", "TCP openings looked at", d.openings),
            ("taphouse_detector_openings_dropped", "TCP openings beyond a worker's limit", d.openings_dropped),
            ("taphouse_detector_ticks_late", "Worker reports that came too late", d.ticks_late),
            (
                "taphouse_detector_ticks_dropped",
                "Worker reports dropped, the detectors being too slow",
                d.ticks_dropped,
            ),
            ("taphouse_detector_sources_evicted", "Sources no longer watched, to make room", d.sources_evicted),
        ] {
            self.counter(name, help, None, [(&[] as Labels<'_>, count)])?;
        }
        self.plain_gauge(
            "taphouse_detector_sources_tracked",
            "Sources watched for scans",
            None,
            d.sources_tracked as f64,
        )
    }

    /// Nothing where there are no sketches.
    fn sketches(&mut self, sketches: Option<&v1::SketchStatus>) -> fmt::Result {
        let Some(s) = sketches else { return Ok(()) };
        let bytes = Some(Unit::Bytes);
        self.plain_gauge("taphouse_sketch_tasks", "Tasks of the sketches", None, s.tasks as f64)?;
        self.plain_gauge("taphouse_sketch_memory", "Size of all sketches", bytes, s.memory_bytes as f64)?;
        for (name, help, count) in [
            ("taphouse_sketch_windows", "Windows of the sketches that are over, of all taps and tasks", s.windows),
            (
                "taphouse_sketch_windows_late",
                "Windows that went on in the memory of the one before, which had not been collected yet",
                s.late,
            ),
            (
                "taphouse_sketch_stragglers",
                "What workers that stood still had of windows over without them, counted in later ones",
                s.stragglers,
            ),
            ("taphouse_sketch_rows_lost", "Rows of the table talkers that the disk could not take", s.rows_lost),
        ] {
            self.counter(name, help, None, [(&[] as Labels<'_>, count)])?;
        }
        Ok(())
    }

    fn alerts(&mut self, alerts: &v1::AlertStatus) -> fmt::Result {
        self.plain_gauge("taphouse_alerts_firing", "Alerts firing now", None, alerts.firing as f64)?;
        self.plain_gauge("taphouse_alert_log_seq", "Number of the newest alert", None, alerts.last_seq as f64)?;
        self.counter(
            "taphouse_alert_log_errors",
            "Alerts that could not be written to the log",
            None,
            [(&[] as Labels<'_>, alerts.log_errors)],
        )
    }

    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        self.family(name, help, unit, MetricType::Counter, samples, |encoder, count| {
            encoder.encode_counter::<NoLabelSet, u64, u64>(count, None)
        })
    }

    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        samples: impl IntoIterator<Item = (Labels<'l>, f64)>,
    ) -> fmt::Result {
        self.family(name, help, unit, MetricType::Gauge, samples, |encoder, value| encoder.encode_gauge(value))
    }

    fn plain_gauge(&mut self, name: &str, help: &str, unit: Option<Unit>, value: f64) -> fmt::Result {
        self.gauge(name, help, unit, [(&[] as Labels<'_>, value)])
    }

    fn family<'l, T>(
        &mut self,
        name: &str,
        help: &str,
        unit: Option<Unit>,
        kind: MetricType,
        samples: impl IntoIterator<Item = (Labels<'l>, T)>,
        encode: impl Fn(&mut MetricEncoder<'_>, &T) -> fmt::Result,
    ) -> fmt::Result {
        let mut metric = self.0.encode_descriptor(name, help, unit.as_ref(), kind)?;
        for (labels, value) in samples {
            if labels.is_empty() {
                encode(&mut metric, &value)?;
            } else {
                encode(&mut metric.encode_family(&LabelSlice(labels))?, &value)?;
            }
        }
        Ok(())
    }
}

fn seconds(time: &prost_types::Timestamp) -> f64 {
    time.seconds as f64 + f64::from(time.nanos) / 1e9
}
