//! Where flow records go besides the data folder: an IPFIX collector.

use super::{ConfigError, Period};
use export::{Collector, ExportConfig, TimeUnit, Transport, WhenFull};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Export of flow records as IPFIX (RFC 7011).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct IpfixSection {
    /// Collector as `host:port`, an IPv6 address in brackets; `null` for none. 4739 is the registered port.
    pub(crate) collector: Option<String>,
    /// `udp`, or `tcp`: a connection, made again when it breaks.
    pub(crate) transport: TransportConfig,
    /// Observation Domain ID, by which a collector tells exporters apart that share an address.
    pub(crate) observation_domain: u32,
    /// Elements for start and end of a flow: `milliseconds`, which every collector knows, `microseconds` or `nanoseconds`.
    pub(crate) times: TimesConfig,
    /// Templates are sent again after this time, over UDP.
    pub(crate) template_interval: Period,
    /// Templates are sent again after this many messages, over UDP.
    pub(crate) template_messages: u32,
    /// Largest message in bytes, headers of IP and UDP excluded, 512 to 65507; over TCP larger ones are cheaper.
    pub(crate) message_bytes_max: u16,
    /// Records sent a second at most, so that a collector's socket buffer can take them; 0 for no limit.
    pub(crate) rate_max: u32,
    /// Records that may wait, also while the collector is away; beyond that they are dropped and counted.
    pub(crate) ring: u32,
}

impl Default for IpfixSection {
    fn default() -> IpfixSection {
        IpfixSection {
            collector: None,
            transport: TransportConfig::Udp,
            observation_domain: 1,
            times: TimesConfig::Milliseconds,
            template_interval: Period::secs(60),
            template_messages: 1000,
            message_bytes_max: 1400,
            rate_max: 0,
            ring: 32_768,
        }
    }
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TransportConfig {
    /// A datagram a message.
    Udp,
    /// A connection.
    Tcp,
}

impl TransportConfig {
    pub(crate) fn name(self) -> &'static str {
        match self {
            TransportConfig::Udp => "udp",
            TransportConfig::Tcp => "tcp",
        }
    }
}

/// Elements that carry the times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum TimesConfig {
    /// flowStartMilliseconds.
    Milliseconds,
    /// flowStartMicroseconds.
    Microseconds,
    /// flowStartNanoseconds.
    Nanoseconds,
}

impl IpfixSection {
    /// What the exporter takes; `None` where there is no collector.
    ///
    /// # Errors
    /// What cannot be, by key.
    pub(crate) fn to_export(&self, when_full: WhenFull) -> Result<Option<ExportConfig>, ConfigError> {
        // Without a collector the other keys are checked all the same.
        let text = self.collector.as_deref().unwrap_or("localhost:4739");
        let collector = text
            .parse::<Collector>()
            .map_err(|e| ConfigError::Value { key: "ipfix.collector".to_owned(), message: e.to_string() })?;
        let config = ExportConfig {
            transport: match self.transport {
                TransportConfig::Udp => Transport::Udp,
                TransportConfig::Tcp => Transport::Tcp,
            },
            observation_domain: self.observation_domain,
            template_interval: self.template_interval.0,
            template_messages: self.template_messages,
            message_bytes_max: self.message_bytes_max,
            records_per_second_max: self.rate_max,
            ring_records: self.ring,
            times: match self.times {
                TimesConfig::Milliseconds => TimeUnit::Milliseconds,
                TimesConfig::Microseconds => TimeUnit::Microseconds,
                TimesConfig::Nanoseconds => TimeUnit::Nanoseconds,
            },
            when_full,
            ..ExportConfig::new(collector)
        };
        config.validate().map_err(|e| ConfigError::Stage(format!("ipfix.{e}")))?;
        Ok(self.collector.is_some().then_some(config))
    }
}
