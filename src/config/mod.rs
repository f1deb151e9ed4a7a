//! The configuration: YAML, optional, parsed once into types that cannot be wrong.

mod archive;
mod error;
mod example;
mod ipfix;
mod overrides;
mod reload;
mod sketches;
mod taps;
mod units;

pub(crate) use archive::ArchiveSection;
pub(crate) use error::ConfigError;
pub(crate) use example::example;
pub(crate) use ipfix::IpfixSection;
pub(crate) use reload::changes;
pub(crate) use sketches::SketchesSection;
pub(crate) use taps::{
    CaptureConfig, InterfaceConfig, OnAlertConfig, SecurityConfig, Sharding, SlicesConfig, SshConfig, Switch,
    TapConfig, WaitConfig,
};
pub(crate) use units::{Period, Size};

use flowtable::FlowTableConfig;
use schemars::JsonSchema;
use serde::de::{self, Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// Everything that can be set. Each key has a default; a file holds only what differs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Config {
    /// Folder of segments, write-ahead log and alerts; made if it is missing. One server a folder.
    pub(crate) data_dir: PathBuf,
    /// What is logged to standard error: error, warn, info, debug, trace, or a tracing filter such as `info,storage=debug`.
    pub(crate) log: String,
    /// Capture points. A tap is a named group of interfaces, for example the two directions of a passive tap:
    /// `- {name: core, interfaces: [eth1, eth2]}`. Empty: the interface of the default route.
    pub(crate) taps: Vec<TapConfig>,
    /// How interfaces are read.
    pub(crate) capture: CaptureConfig,
    /// Packets kept on request or on an alert, as pcapng files.
    pub(crate) slices: SlicesConfig,
    /// The threads between capture and storage.
    pub(crate) pipeline: PipelineConfig,
    /// How deep packets are looked into.
    pub(crate) decode: DecodeSection,
    /// The table of flows in progress.
    pub(crate) flowtable: FlowTableSection,
    /// What the first payloads of a flow are asked: names, fingerprints, DNS.
    pub(crate) hints: HintsSection,
    /// What is estimated in fixed memory, for every window: who sends most, to how many, how evenly.
    pub(crate) sketches: SketchesSection,
    /// Detectors that raise alerts while packets pass.
    pub(crate) detect: DetectSection,
    /// What is kept on disk.
    pub(crate) storage: StorageSection,
    /// Where finished segments go besides: object storage, ClickHouse.
    pub(crate) archive: ArchiveSection,
    /// Where flow records go besides: an IPFIX collector.
    pub(crate) ipfix: IpfixSection,
    /// Budget of one query: history must never cost a packet.
    pub(crate) query: QuerySection,
    /// Where the server answers: loopback addresses only, until there is authentication.
    pub(crate) rpc: RpcSection,
    /// What the process may still do once its interfaces are open.
    pub(crate) security: SecurityConfig,
}

impl Default for Config {
    fn default() -> Config {
        Config {
            data_dir: PathBuf::from("taphouse-data"),
            log: "info".to_owned(),
            taps: Vec::new(),
            capture: CaptureConfig::default(),
            slices: SlicesConfig::default(),
            pipeline: PipelineConfig::default(),
            decode: DecodeSection::default(),
            flowtable: FlowTableSection::default(),
            hints: HintsSection::default(),
            sketches: SketchesSection::default(),
            detect: DetectSection::default(),
            storage: StorageSection::default(),
            archive: ArchiveSection::default(),
            ipfix: IpfixSection::default(),
            query: QuerySection::default(),
            rpc: RpcSection::default(),
            security: SecurityConfig::default(),
        }
    }
}

/// The threads between capture and storage.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PipelineConfig {
    /// Worker threads of each tap, each with its own flow table. 0 means one for each queue of its interfaces, at most one
    /// for each core, with AF_XDP; one for each core but one with a packet socket; one in `replay`.
    pub(crate) workers: u16,
    /// Pin worker k of a live capture to core k.
    pub(crate) pin: bool,
    /// Finished flows that may wait between a worker and the writer; a live worker drops and counts beyond that.
    pub(crate) record_ring: u32,
}

impl Default for PipelineConfig {
    fn default() -> PipelineConfig {
        PipelineConfig { workers: 0, pin: true, record_ring: 65_536 }
    }
}

/// How deep packets are looked into. A packet that nests deeper is counted under its reason in the ledger.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DecodeSection {
    /// VLAN tags plus MPLS labels a frame may carry.
    pub(crate) tags_max: u8,
    /// IPv6 extension headers at one level.
    pub(crate) extensions_max: u8,
    /// Encapsulations inside one another.
    pub(crate) encapsulations_max: u8,
}

impl Default for DecodeSection {
    fn default() -> DecodeSection {
        let d = wire::Limits::default();
        DecodeSection {
            tags_max: d.tags_max,
            extensions_max: d.extensions_max,
            encapsulations_max: d.encapsulations_max,
        }
    }
}

/// What the first payloads of a flow are asked: names, fingerprints, DNS.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct HintsSection {
    /// Payloads of a flow that are looked at in each direction, 1 to 7. DNS messages, and pieces of what has begun, come
    /// on top.
    pub(crate) payloads_max: u8,
    /// Bytes kept of one ClientHello, request or DNS message in pieces, up to 64 KiB.
    pub(crate) assembly: Size,
    /// Messages in pieces at a time, for each worker.
    pub(crate) assemblies_max: u32,
    /// DNS queries that may wait for their answer at a time, for each worker.
    pub(crate) dns_pending_max: u32,
    /// Time after which a DNS query counts as unanswered.
    pub(crate) dns_timeout: Period,
}

impl Default for HintsSection {
    fn default() -> HintsSection {
        let d = hints::InspectLimits::default();
        HintsSection {
            payloads_max: d.payloads_max,
            assembly: Size(d.assembly_bytes_max as u64),
            assemblies_max: d.assemblies_max as u32,
            dns_pending_max: d.dns_pending_max as u32,
            dns_timeout: Period(std::time::Duration::from_nanos(d.dns_timeout.0)),
        }
    }
}

impl HintsSection {
    /// What the inspector takes.
    pub(crate) fn to_limits(&self) -> hints::InspectLimits {
        hints::InspectLimits {
            payloads_max: self.payloads_max,
            assembly_bytes_max: usize::try_from(self.assembly.0).unwrap_or(usize::MAX),
            assemblies_max: self.assemblies_max as usize,
            dns_pending_max: self.dns_pending_max as usize,
            dns_timeout: self.dns_timeout.nanos(),
            ..hints::InspectLimits::default()
        }
    }
}

/// The table of flows in progress.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct FlowTableSection {
    /// Flows held at once by each worker, about 255 bytes each. Near the cap flows that nobody answered are given two
    /// seconds and others a quarter of their timeouts; at the cap the table evicts, exports and counts.
    pub(crate) flows_max: u32,
    /// Memory of each worker for what only some flows have: names, fingerprints, round-trip times beyond the
    /// handshake, gaps in streams.
    pub(crate) side_memory: Size,
    /// Fragmented datagrams that are remembered at a time, so that later fragments find their flow.
    pub(crate) fragments_max: u32,
    /// When flows end, in packet time; `off` keeps each flow in one record until the end.
    pub(crate) timeouts: TimeoutsSection,
}

impl Default for FlowTableSection {
    fn default() -> FlowTableSection {
        FlowTableSection {
            flows_max: FlowTableConfig::default().flows_max,
            side_memory: Size(FlowTableConfig::default().side_bytes_max as u64),
            fragments_max: crate::pipeline::IngestSettings::default().fragments_max,
            timeouts: TimeoutsSection::On(Timeouts::default()),
        }
    }
}

/// `off`, or the timeouts one by one.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(untagged)]
pub(crate) enum TimeoutsSection {
    /// The timeouts.
    On(Timeouts),
    /// None at all.
    #[schemars(with = "String")]
    Off,
}

impl Serialize for TimeoutsSection {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            TimeoutsSection::On(timeouts) => timeouts.serialize(serializer),
            TimeoutsSection::Off => serializer.serialize_str("off"),
        }
    }
}

impl<'de> Deserialize<'de> for TimeoutsSection {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<TimeoutsSection, D::Error> {
        struct OffOrMap;
        impl<'de> Visitor<'de> for OffOrMap {
            type Value = TimeoutsSection;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("`off` or timeouts by name")
            }
            fn visit_str<E: de::Error>(self, text: &str) -> Result<TimeoutsSection, E> {
                if text == "off" {
                    Ok(TimeoutsSection::Off)
                } else {
                    Err(E::invalid_value(de::Unexpected::Str(text), &self))
                }
            }
            /// YAML 1.1 readers take `off` for false.
            fn visit_bool<E: de::Error>(self, on: bool) -> Result<TimeoutsSection, E> {
                if on { Err(E::invalid_value(de::Unexpected::Bool(on), &self)) } else { Ok(TimeoutsSection::Off) }
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<TimeoutsSection, A::Error> {
                Timeouts::deserialize(MapAccessDeserializer::new(map)).map(TimeoutsSection::On)
            }
        }
        deserializer.deserialize_any(OffOrMap)
    }
}

/// When flows end, in packet time.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Timeouts {
    /// TCP without a packet.
    pub(crate) tcp_idle: Period,
    /// UDP without a packet.
    pub(crate) udp_idle: Period,
    /// Any other protocol without a packet.
    pub(crate) other_idle: Period,
    /// TCP after FIN from both sides or RST.
    pub(crate) closed: Period,
    /// A flow that goes on is exported in parts of this length.
    pub(crate) active: Period,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        let t = flowtable::Timeouts::default();
        let period = |n: wire::Nanos| Period(std::time::Duration::from_nanos(n.0));
        Timeouts {
            tcp_idle: period(t.tcp_idle),
            udp_idle: period(t.udp_idle),
            other_idle: period(t.other_idle),
            closed: period(t.closed),
            active: period(t.active),
        }
    }
}

impl FlowTableSection {
    /// What the flow table takes.
    pub(crate) fn to_table(&self) -> FlowTableConfig {
        let timeouts = match &self.timeouts {
            TimeoutsSection::Off => flowtable::Timeouts::OFF,
            TimeoutsSection::On(t) => flowtable::Timeouts {
                tcp_idle: t.tcp_idle.nanos(),
                udp_idle: t.udp_idle.nanos(),
                other_idle: t.other_idle.nanos(),
                closed: t.closed.nanos(),
                active: t.active.nanos(),
                split_on_reuse: true,
            },
        };
        let side_bytes_max = usize::try_from(self.side_memory.0).unwrap_or(usize::MAX);
        FlowTableConfig { flows_max: self.flows_max, timeouts, side_bytes_max }
    }
}

/// Detectors that raise alerts while packets pass.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct DetectSection {
    /// One source that opens connections to many ports or hosts, of which few answer.
    pub(crate) port_scan: PortScanSection,
    /// More bytes per second at a tap than its recent past explains.
    pub(crate) traffic_spike: TrafficSpikeSection,
}

/// Port scan detector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct PortScanSection {
    /// Packet time looked back on.
    pub(crate) window: Period,
    /// Distinct targets (address and port) of one source that make a scan.
    pub(crate) targets_min: u32,
    /// Highest share of answered SYNs, 0 to 1, that still counts as a scan.
    pub(crate) established_ratio_max: f64,
}

impl Default for PortScanSection {
    fn default() -> PortScanSection {
        let d = detect::PortScanConfig::default();
        PortScanSection {
            window: Period(d.window),
            targets_min: d.targets_min,
            established_ratio_max: d.established_ratio_max,
        }
    }
}

/// Traffic spike detector.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TrafficSpikeSection {
    /// Half-life of the moving baseline.
    pub(crate) half_life: Period,
    /// Baseline needed before an alert may fire.
    pub(crate) warm_up: Period,
    /// Deviations above the mean that make a spike.
    pub(crate) deviations: f64,
    /// And at least this many times the mean.
    pub(crate) factor: f64,
    /// And at least this many bytes per second.
    pub(crate) rate_min: Size,
}

impl Default for TrafficSpikeSection {
    fn default() -> TrafficSpikeSection {
        let d = detect::TrafficSpikeConfig::default();
        TrafficSpikeSection {
            half_life: Period(d.half_life),
            warm_up: Period(d.warm_up),
            deviations: d.deviations,
            factor: d.factor,
            rate_min: Size(d.rate_min),
        }
    }
}

/// What is kept on disk.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct StorageSection {
    /// Rows after which a segment is written.
    pub(crate) segment_rows: u32,
    /// Wall time after which a segment is written, however few its rows.
    pub(crate) segment_age: Period,
    /// Longest time before written rows are forced to disk: what a power cut may cost.
    pub(crate) sync_interval: Period,
    /// Bytes of write-ahead log after which they are forced to disk earlier.
    pub(crate) sync_bytes: Size,
    /// Encodings: `tuned` for the smallest files, `compatible` for readers that know only the old ones.
    pub(crate) profile: SegmentProfile,
    /// Log of alerts, in two files of at most this size each.
    pub(crate) alert_log: Size,
    /// Merging of small segments in the background.
    pub(crate) compaction: CompactionSection,
    /// When old segments are removed, oldest first. `null` means no such limit.
    pub(crate) retention: RetentionSection,
}

impl Default for StorageSection {
    fn default() -> StorageSection {
        StorageSection {
            segment_rows: 1 << 20,
            segment_age: Period::secs(60),
            sync_interval: Period::secs(1),
            sync_bytes: Size::mib(8),
            profile: SegmentProfile::Tuned,
            alert_log: Size::mib(64),
            compaction: CompactionSection::default(),
            retention: RetentionSection::default(),
        }
    }
}

/// Encodings of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SegmentProfile {
    /// Smallest.
    Tuned,
    /// Read by everything.
    Compatible,
}

/// Merging of small segments in the background, in those that have a tap and an hour in common.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CompactionSection {
    /// Whether segments are merged at all.
    pub(crate) enabled: bool,
    /// Segments of an hour that still receives rows, 2 to 512, that make it worth while. Later it is two.
    pub(crate) min_segments: u16,
    /// Bytes read and written a second at most.
    pub(crate) rate: Size,
}

impl Default for CompactionSection {
    fn default() -> CompactionSection {
        let d = storage::Compaction::default();
        CompactionSection { enabled: d.enabled, min_segments: d.segments_min as u16, rate: Size(d.bytes_per_s) }
    }
}

/// When old segments are removed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RetentionSection {
    /// Age of the newest flow in a segment.
    pub(crate) max_age: Option<Period>,
    /// Bytes of all segments together.
    pub(crate) max_size: Option<Size>,
    /// Free space the disk must keep.
    pub(crate) min_free: Option<Size>,
}

impl Default for RetentionSection {
    fn default() -> RetentionSection {
        RetentionSection { max_age: None, max_size: None, min_free: Some(Size(1 << 30)) }
    }
}

/// Budget of one query.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct QuerySection {
    /// Memory of sorts, joins and groups, of all queries together.
    pub(crate) memory: Size,
    /// Wall time.
    pub(crate) time_max: Period,
    /// Bytes read from segments; `null` for no limit.
    pub(crate) scan_max: Option<Size>,
    /// Queries at a time; one more is refused.
    pub(crate) concurrent_max: u16,
    /// Threads of all queries; 0 means one for each core.
    pub(crate) threads: u16,
    /// MaxMind DB files (.mmdb), read again when they are replaced.
    pub(crate) geoip: GeoipSection,
}

/// MaxMind DB files that SQL functions look addresses up in.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct GeoipSection {
    /// Of `country(address)`.
    pub(crate) country: Option<PathBuf>,
    /// Of `asn(address)` and `as_org(address)`.
    pub(crate) asn: Option<PathBuf>,
}

impl Default for QuerySection {
    fn default() -> QuerySection {
        QuerySection {
            memory: Size::mib(1024),
            time_max: Period::secs(60),
            scan_max: None,
            concurrent_max: 16,
            threads: 0,
            geoip: GeoipSection::default(),
        }
    }
}

/// Where the server answers: loopback addresses only, until there is authentication.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct RpcSection {
    /// gRPC, Arrow Flight SQL.
    pub(crate) grpc_listen: SocketAddr,
    /// HTTP: REST under `/api/v1`, `/metrics` for Prometheus, `/healthz`.
    pub(crate) http_listen: SocketAddr,
}

impl Default for RpcSection {
    fn default() -> RpcSection {
        RpcSection { grpc_listen: ([127, 0, 0, 1], 50051).into(), http_listen: ([127, 0, 0, 1], 8080).into() }
    }
}

impl Config {
    /// From a file, where one is given, and `--set KEY=VALUE` on top of it.
    ///
    /// # Errors
    /// One sentence with the file, the line, the key and the nearest known key.
    pub(crate) fn load(file: Option<&Path>, overrides: &[String]) -> Result<Config, ConfigError> {
        let base = match file {
            None => Config::default(),
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|source| ConfigError::Read { path: path.to_owned(), source })?;
                Config::parse(&text).map_err(|e| e.in_file(path))?
            }
        };
        let config = overrides::apply(base, overrides)?;
        config.validate().map_err(|e| e.about(file))?;
        Ok(config)
    }

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let empty = text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'));
        if empty {
            return Ok(Config::default());
        }
        serde_saphyr::from_str(text).map_err(|e| ConfigError::from_yaml(&e, text))
    }

    pub(crate) fn validate(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, message: String| ConfigError::Value { key: key.to_owned(), message };
        taps::validate(&self.taps, &self.capture, &self.slices)?;
        if self.pipeline.workers > 256 {
            return Err(invalid("pipeline.workers", format!("{}; allowed are 0 to 256", self.pipeline.workers)));
        }
        if !(64..=1 << 24).contains(&self.pipeline.record_ring) {
            return Err(invalid(
                "pipeline.record_ring",
                format!("{}; allowed are 64 to 16777216 records", self.pipeline.record_ring),
            ));
        }
        if !(1..=1 << 24).contains(&self.storage.segment_rows) {
            return Err(invalid(
                "storage.segment_rows",
                format!("{}; allowed are 1 to 16777216", self.storage.segment_rows),
            ));
        }
        let compaction = &self.storage.compaction;
        if !(2..=512).contains(&compaction.min_segments) {
            return Err(invalid(
                "storage.compaction.min_segments",
                format!("{}; allowed are 2 to 512", compaction.min_segments),
            ));
        }
        if compaction.rate.0 == 0 {
            return Err(invalid(
                "storage.compaction.rate",
                "0; at least 1B, or set storage.compaction.enabled to false".to_owned(),
            ));
        }
        if self.query.concurrent_max == 0 {
            return Err(invalid("query.concurrent_max", "0; allowed are 1 to 65535".to_owned()));
        }
        for (key, address) in [("rpc.grpc_listen", self.rpc.grpc_listen), ("rpc.http_listen", self.rpc.http_listen)] {
            if !address.ip().is_loopback() {
                return Err(invalid(
                    key,
                    format!(
                        "{address} can be reached from outside, and there is no authentication yet; listen on \
                         127.0.0.1 or [::1], with a proxy that asks who is there in front"
                    ),
                ));
            }
        }
        if !(1..=1 << 24).contains(&self.flowtable.fragments_max) {
            return Err(invalid(
                "flowtable.fragments_max",
                format!("{}; allowed are 1 to 16777216", self.flowtable.fragments_max),
            ));
        }
        let hints = &self.hints;
        let bounds = [
            ("hints.payloads_max", u64::from(hints.payloads_max), 7),
            ("hints.assembly", hints.assembly.0, 65_535),
            ("hints.assemblies_max", u64::from(hints.assemblies_max), 1 << 20),
            ("hints.dns_pending_max", u64::from(hints.dns_pending_max), 1 << 24),
        ];
        for (key, value, most) in bounds {
            if !(1..=most).contains(&value) {
                return Err(invalid(key, format!("{value}; allowed are 1 to {most}")));
            }
        }
        self.flowtable.to_table().validate().map_err(|e| ConfigError::Stage(e.to_string()))?;
        self.sketches.validate()?;
        self.archive.to_archive(&self.storage)?;
        self.ipfix.to_export(export::WhenFull::Drop)?;
        self.to_detect().validate().map_err(|e| ConfigError::Stage(format!("detect.{e}")))?;
        if self.rpc.grpc_listen == self.rpc.http_listen && self.rpc.grpc_listen.port() != 0 {
            return Err(invalid("rpc.http_listen", "the same as rpc.grpc_listen; each needs its own port".to_owned()));
        }
        // A bare word is a level; anything else a filter, in which a bare word would name a module.
        let is_level = self.log.parse::<tracing::level_filters::LevelFilter>().is_ok();
        let is_filter = self.log.contains('=') && tracing_subscriber::EnvFilter::try_new(&self.log).is_ok();
        if !is_level && !is_filter {
            let expected = "error, warn, info, debug, trace, off, or a filter such as info,storage=debug";
            return Err(invalid("log", format!("'{}' is no log level; allowed are {expected}", self.log)));
        }
        Ok(())
    }

    /// What the first stage takes.
    pub(crate) fn to_ingest(&self) -> crate::pipeline::IngestSettings {
        let d = &self.decode;
        crate::pipeline::IngestSettings {
            limits: wire::Limits {
                tags_max: d.tags_max,
                extensions_max: d.extensions_max,
                encapsulations_max: d.encapsulations_max,
            },
            fragments_max: self.flowtable.fragments_max,
        }
    }

    /// What the detectors take.
    pub(crate) fn to_detect(&self) -> detect::DetectConfig {
        let mut config = detect::DetectConfig::default();
        let (scan, spike) = (&self.detect.port_scan, &self.detect.traffic_spike);
        config.port_scan.window = scan.window.0;
        config.port_scan.targets_min = scan.targets_min;
        config.port_scan.established_ratio_max = scan.established_ratio_max;
        config.traffic_spike.half_life = spike.half_life.0;
        config.traffic_spike.warm_up = spike.warm_up.0;
        config.traffic_spike.deviations = spike.deviations;
        config.traffic_spike.factor = spike.factor;
        config.traffic_spike.rate_min = spike.rate_min.0;
        config
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_is_the_default_and_stands_in_the_repository() {
        let text = example();
        assert_eq!(Config::parse(&text).unwrap(), Config::default());
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/taphouse.example.yaml");
        let stored = std::fs::read_to_string(path).unwrap();
        assert_eq!(stored, text, "run `cargo run -- example-config > taphouse.example.yaml`");
    }

    #[test]
    fn an_unknown_key_is_named_with_line_and_nearest_key() {
        let error = Config::parse("storage:\n  segment_row: 5\n").unwrap_err().to_string();
        assert!(
            error.contains("line 2") && error.contains("segment_row") && error.contains("'segment_rows'"),
            "{error}"
        );
        let error = Config::parse("flowtable:\n  timeouts:\n    tcp_idel: 5s\n").unwrap_err().to_string();
        assert!(error.contains("line 3") && error.contains("'tcp_idle'"), "{error}");
    }

    #[test]
    fn durations_and_sizes_need_their_unit() {
        let error = Config::parse("storage:\n  segment_age: 60\n").unwrap_err().to_string();
        assert!(error.contains("line 2") && error.contains("30s"), "{error}");
        let config = Config::parse("storage:\n  sync_bytes: 3MiB\n  segment_age: 1h 30m\n").unwrap();
        assert_eq!((config.storage.sync_bytes, config.storage.segment_age), (Size::mib(3), Period::secs(5400)));
    }

    #[test]
    fn overrides_reach_every_key() {
        let set = |s: &[&str]| {
            let s: Vec<String> = s.iter().map(|s| (*s).to_owned()).collect();
            Config::load(None, &s)
        };
        let config =
            set(&["flowtable.timeouts=off", "rpc.grpc_listen=127.0.0.1:9", "storage.retention.max_age=7d"]).unwrap();
        assert_eq!(config.flowtable.timeouts, TimeoutsSection::Off);
        assert_eq!(config.rpc.grpc_listen.port(), 9);
        assert_eq!(config.storage.retention.max_age, Some(Period::secs(7 * 86_400)));
        let config = set(&["taps=[{name: a, interfaces: [lo]}]"]).unwrap();
        assert_eq!(config.taps[0].name, "a");
        let error = set(&["storage.retention.max_agee=7d"]).unwrap_err().to_string();
        assert!(error.contains("max_agee") && error.contains("'storage.retention.max_age'"), "{error}");
        let error = set(&["pipeline.workers=many"]).unwrap_err().to_string();
        assert!(error.contains("pipeline.workers"), "{error}");
        assert!(set(&["pipeline.workers"]).is_err());
    }

    #[test]
    fn values_that_cannot_work_are_refused_by_key() {
        for (text, key) in [
            ("flowtable: {flows_max: 1}", "flowtable.flows_max"),
            ("flowtable: {timeouts: {active: 0s}}", "flowtable.timeouts.active"),
            ("taps: [{name: a, interfaces: [eth1]}, {name: a, interfaces: [eth2]}]", "taps"),
            ("capture: {ring: 1KiB}", "capture.ring"),
            ("rpc: {grpc_listen: '0.0.0.0:50051'}", "rpc.grpc_listen"),
            ("archive: {url: '/srv/flows'}", "archive.url"),
            ("archive: {sensor: 'a/b'}", "archive.sensor"),
            ("archive: {parts_max: 0}", "archive.parts_max"),
            ("archive: {clickhouse: {url: 'tcp://x:9000'}}", "archive.clickhouse.url"),
            ("ipfix: {collector: 'collector.example'}", "ipfix.collector"),
            ("ipfix: {message_bytes_max: 100}", "ipfix.message_bytes_max"),
            ("ipfix: {collector: '192.0.2.1:4739', ring: 1}", "ipfix.ring"),
            ("storage: {compaction: {min_segments: 1}}", "storage.compaction.min_segments"),
            ("storage: {compaction: {rate: 0}}", "storage.compaction.rate"),
            ("sketches: {memory_max: 1MiB}", "sketches.memory_max"),
            ("sketches: {tasks: [{name: a, kind: top_k}]}", "sketches.task 'a': key"),
            ("sketches: {tasks: [{name: a, kind: top_k, key: [src]}]}", "sketches.task 'a': key"),
            ("sketches: {tasks: [{name: a, kind: entropy, elements: [src_ip], window: 1500us}]}", "window"),
            ("sketches: {tasks: [{name: a, kind: quantiles, of: rtt_us, memory: 1MiB}]}", "memory"),
        ] {
            let error = Config::parse(text).unwrap().validate().unwrap_err().to_string();
            assert!(error.contains(key), "{error}");
        }
    }
}
