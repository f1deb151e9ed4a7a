//! What an exporter is told, checked before anything starts.

use std::fmt;
use std::io;
use std::str::FromStr;
use std::time::Duration;

/// Smallest message allowed, bytes: each of our templates and records fits with room to spare, and so does every
/// IPv4 path (RFC 791: 576 bytes a datagram).
pub(crate) const MESSAGE_BYTES_MIN: u16 = 512;
/// Largest payload of a UDP datagram over IPv4, bytes.
const UDP_BYTES_MAX: u16 = 65_507;

/// How records get to a collector.
#[derive(Clone, Debug, PartialEq)]
pub struct ExportConfig {
    /// Where to.
    pub collector: Collector,
    /// Over what.
    pub transport: Transport,
    /// Observation Domain ID of every message (RFC 7011 section 3.1).
    pub observation_domain: u32,
    /// UDP: templates are sent again after this time (RFC 7011 section 8.4).
    pub template_interval: Duration,
    /// UDP: templates are sent again after this many messages.
    pub template_messages: u32,
    /// Largest message, bytes, IP and UDP headers excluded: 512 to 65,507 (UDP) or 65,535 (TCP).
    pub message_bytes_max: u16,
    /// Records sent a second at most, 0 for no limit: UDP has no other brake, and a collector's socket buffer is small.
    pub records_per_second_max: u32,
    /// Records that wait for the exporter, 64 to 2^24. While the collector is away they wait here.
    pub ring_records: u32,
    /// Which elements carry the times.
    pub times: TimeUnit,
    /// What happens when the ring is full.
    pub when_full: WhenFull,
    /// How long what is left may take at the end, once nothing more goes out.
    pub linger: Duration,
}

impl ExportConfig {
    /// The defaults, to this collector over UDP.
    pub fn new(collector: Collector) -> ExportConfig {
        ExportConfig {
            collector,
            transport: Transport::Udp,
            observation_domain: 1,
            template_interval: Duration::from_secs(60),
            template_messages: 1000,
            message_bytes_max: 1400,
            records_per_second_max: 0,
            ring_records: 32_768,
            times: TimeUnit::Milliseconds,
            when_full: WhenFull::Drop,
            linger: Duration::from_secs(5),
        }
    }

    /// Whether this can work.
    ///
    /// # Errors
    /// The first field that cannot, with what is allowed.
    pub fn validate(&self) -> Result<(), ExportError> {
        let out_of_range = |field, value: u64, allowed| Err(ExportError::OutOfRange { field, value, allowed });
        let (bytes_max, allowed) = match self.transport {
            Transport::Udp => (UDP_BYTES_MAX, "512 to 65507 bytes over UDP"),
            Transport::Tcp => (u16::MAX, "512 to 65535 bytes"),
        };
        if !(MESSAGE_BYTES_MIN..=bytes_max).contains(&self.message_bytes_max) {
            return out_of_range("message_bytes_max", self.message_bytes_max.into(), allowed);
        }
        if !(64..=1 << 24).contains(&self.ring_records) {
            return out_of_range("ring", self.ring_records.into(), "64 to 16777216 records");
        }
        if !(1..=86_400).contains(&self.template_interval.as_secs()) {
            return out_of_range("template_interval", self.template_interval.as_secs(), "1 to 86400 seconds");
        }
        if self.template_messages == 0 {
            return out_of_range("template_messages", 0, "1 and more");
        }
        if (1..100).contains(&self.records_per_second_max) {
            return out_of_range("rate_max", self.records_per_second_max.into(), "0 (no limit), and 100 and more");
        }
        Ok(())
    }
}

/// The address of a collector: `host:port`, an IPv6 address in brackets. The name is looked up at each connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collector {
    host: String,
    port: u16,
}

impl Collector {
    /// Name or address, without brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// UDP or TCP port; 4739 is registered for IPFIX.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Collector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

impl FromStr for Collector {
    type Err = ExportError;
    fn from_str(text: &str) -> Result<Collector, ExportError> {
        let wrong = || ExportError::Collector { text: text.to_owned() };
        let (host, port) = text.rsplit_once(':').ok_or_else(wrong)?;
        let port = port.parse().ok().filter(|port| *port > 0).ok_or_else(wrong)?;
        let host = match host.strip_prefix('[').map(|host| host.strip_suffix(']')) {
            Some(inner) => inner.filter(|inner| inner.parse::<std::net::Ipv6Addr>().is_ok()).ok_or_else(wrong)?,
            None => host,
        };
        let is_name = |c: char| c.is_alphanumeric() || "-._".contains(c);
        let bracketed = host.len() < text.len() && text.starts_with('[');
        if host.is_empty() || !(bracketed || host.chars().all(is_name)) {
            return Err(wrong());
        }
        Ok(Collector { host: host.to_owned(), port })
    }
}

/// What carries the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// One message a datagram; what the network loses is lost.
    #[default]
    Udp,
    /// A connection, made again when it breaks.
    Tcp,
}

impl Transport {
    /// The name in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Udp => "udp",
            Transport::Tcp => "tcp",
        }
    }
}

/// Which elements carry start and end of a flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TimeUnit {
    /// flowStartMilliseconds: what every collector knows.
    #[default]
    Milliseconds,
    /// flowStartMicroseconds, in NTP's format (RFC 7011 section 6.1.9).
    Microseconds,
    /// flowStartNanoseconds, in NTP's format.
    Nanoseconds,
}

/// What happens to a record when the ring is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// Dropped and counted: a live capture never waits for a collector.
    #[default]
    Drop,
    /// Waited for, unless the collector is away: a replay has time.
    Wait,
}

/// What keeps an exporter from starting.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// Text that is no `host:port`.
    #[error("'{text}' is no collector; write host:port, such as 192.0.2.1:4739 or [2001:db8::1]:4739")]
    Collector {
        /// The text.
        text: String,
    },
    /// A number that cannot work.
    #[error("{field}: {value}; allowed are {allowed}")]
    OutOfRange {
        /// Name of the configuration key.
        field: &'static str,
        /// What it was.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
    /// The operating system has no thread for us.
    #[error("cannot start the thread that exports: {0}")]
    Thread(#[source] io::Error),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn collectors_are_host_and_port() {
        for good in ["192.0.2.1:4739", "[2001:db8::1]:9995", "collector.example:2055", "a_b-c:1"] {
            assert_eq!(good.parse::<Collector>().unwrap().to_string(), good);
        }
        let no_port = ["", "host", "host:", ":4739", "host:0", "host:65536", "2001:db8::1:4739", "[::1]", "[::1:47"];
        for bad in no_port.into_iter().chain(["[x]:1", "udp://host:4739", "a b:1", "[]:5"]) {
            let error = bad.parse::<Collector>().unwrap_err().to_string();
            assert!(error.contains("host:port"), "{bad}: {error}");
        }
    }

    #[test]
    fn what_cannot_work_is_named() {
        let config = || ExportConfig::new("127.0.0.1:4739".parse().unwrap());
        config().validate().unwrap();
        let bad = [
            ("message_bytes_max", ExportConfig { message_bytes_max: 511, ..config() }),
            ("message_bytes_max", ExportConfig { message_bytes_max: 65_508, ..config() }),
            ("ring", ExportConfig { ring_records: 63, ..config() }),
            ("template_interval", ExportConfig { template_interval: Duration::ZERO, ..config() }),
            ("template_messages", ExportConfig { template_messages: 0, ..config() }),
            ("rate_max", ExportConfig { records_per_second_max: 99, ..config() }),
        ];
        for (field, config) in bad {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(field) && error.contains("allowed"), "{error}");
        }
        let over_tcp = ExportConfig { message_bytes_max: u16::MAX, transport: Transport::Tcp, ..config() };
        over_tcp.validate().unwrap();
    }
}
