//! What is captured, and how: taps, interfaces, remote hosts, packet memory, slices, privileges.

use super::{ConfigError, Period, Size};
use capture::{Filter, Mode, SshOptions};
use schemars::JsonSchema;
use serde::de::{Deserializer, MapAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Serialize, Serializer};
use std::fmt;
use std::path::PathBuf;

/// One capture point.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct TapConfig {
    /// The name in records, tables and metrics.
    pub(crate) name: String,
    /// Interfaces read together; each a name, or `{name: eth1, filter: "not arp"}`.
    pub(crate) interfaces: Vec<InterfaceConfig>,
    /// A remote host whose `tcpdump` is the tap, instead of interfaces.
    pub(crate) ssh: Option<SshConfig>,
    /// What to capture, in the syntax of pcap-filter(7); `null` for everything. `capture.filter` holds where this is
    /// `null`, and an interface's own filter comes before both.
    pub(crate) filter: Option<String>,
    /// Who gets a packet: `queue`, the worker of the queue it came in on, or `symmetric`, the worker that owns its flow.
    pub(crate) sharding: Sharding,
}

/// Who gets a packet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Sharding {
    /// The worker of the queue it came in on: free, and right where the card hashes symmetrically.
    #[default]
    Queue,
    /// The worker that owns its flow, over a ring between workers where that is another.
    Symmetric,
}

/// An interface of a tap.
#[derive(Clone, Debug, PartialEq, JsonSchema)]
#[schemars(with = "String")]
pub(crate) struct InterfaceConfig {
    pub(crate) name: String,
    pub(crate) filter: Option<String>,
}

impl From<&str> for InterfaceConfig {
    fn from(name: &str) -> InterfaceConfig {
        InterfaceConfig { name: name.to_owned(), filter: None }
    }
}

/// The long form of an interface.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct InterfaceMap {
    name: String,
    filter: Option<String>,
}

impl Serialize for InterfaceConfig {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match &self.filter {
            None => serializer.serialize_str(&self.name),
            Some(_) => InterfaceMap { name: self.name.clone(), filter: self.filter.clone() }.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for InterfaceConfig {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<InterfaceConfig, D::Error> {
        struct NameOrMap;
        impl<'de> Visitor<'de> for NameOrMap {
            type Value = InterfaceConfig;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("the name of an interface, or {name: eth1, filter: \"not arp\"}")
            }
            fn visit_str<E>(self, text: &str) -> Result<InterfaceConfig, E> {
                Ok(InterfaceConfig::from(text))
            }
            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<InterfaceConfig, A::Error> {
                let map = InterfaceMap::deserialize(MapAccessDeserializer::new(map))?;
                Ok(InterfaceConfig { name: map.name, filter: map.filter })
            }
        }
        deserializer.deserialize_any(NameOrMap)
    }
}

/// A remote host whose `tcpdump` is a tap.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SshConfig {
    /// `user@host`, or an alias of ssh_config(5).
    pub(crate) host: String,
    /// Port, where ssh_config(5) does not say it.
    pub(crate) port: Option<u16>,
    /// Interface over there; `any` for all.
    pub(crate) interface: String,
    /// Private key.
    pub(crate) identity: Option<PathBuf>,
    /// Keys of known hosts; ssh's own file otherwise. A host that is in neither is refused.
    pub(crate) known_hosts: Option<PathBuf>,
    /// ssh_config(5) to use instead of the user's.
    pub(crate) ssh_config: Option<PathBuf>,
    /// How tcpdump is called over there, such as `sudo tcpdump`.
    pub(crate) command: String,
    /// Bytes of a packet that are sent over.
    pub(crate) snaplen: u32,
    /// First pause before an attempt to connect again; it doubles up to the longest.
    pub(crate) retry_min: Period,
    /// Longest pause between attempts to connect again.
    pub(crate) retry_max: Period,
}

impl Default for SshConfig {
    fn default() -> SshConfig {
        SshConfig {
            host: String::new(),
            port: None,
            interface: "any".to_owned(),
            identity: None,
            known_hosts: None,
            ssh_config: None,
            command: "tcpdump".to_owned(),
            snaplen: 262_144,
            retry_min: Period::secs(1),
            retry_max: Period::secs(30),
        }
    }
}

impl SshConfig {
    /// What the source takes.
    pub(crate) fn options(&self, filter: Option<String>) -> SshOptions {
        SshOptions {
            port: self.port,
            identity: self.identity.clone(),
            known_hosts: self.known_hosts.clone(),
            config: self.ssh_config.clone(),
            filter,
            snaplen: self.snaplen,
            command: Some(self.command.clone()),
            retry_min: self.retry_min.0,
            retry_max: self.retry_max.0,
            ..SshOptions::new(&self.host, &self.interface)
        }
    }
}

/// How interfaces are read.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct CaptureConfig {
    /// `auto` takes the best that works; `zerocopy`, `copy` and `generic` (all AF_XDP) or `af_packet` demand one.
    pub(crate) mode: ModeConfig,
    /// Read an interface that has an address or the default route through AF_XDP all the same: the host loses what it
    /// receives there.
    pub(crate) force: bool,
    /// Take packets that are not for this host, as a mirror port delivers them.
    pub(crate) promiscuous: bool,
    /// What to capture, in the syntax of pcap-filter(7), where the tap does not say it; `null` for everything.
    pub(crate) filter: Option<String>,
    /// Packet memory of each queue, 2MiB to 4GiB: how much traffic a stall may last for.
    pub(crate) ring: Size,
    /// Bytes of one packet buffer of AF_XDP: 2048 or 4096.
    pub(crate) frame: u32,
    /// Packet memory on huge pages, where the host has reserved any.
    pub(crate) huge_pages: bool,
    /// Packets longer than a buffer are spread over several of them: `auto` where the MTU asks for it.
    pub(crate) multi_buffer: Switch,
    /// The kernel sleeps until it is told that there is room again; off, it looks by itself.
    pub(crate) need_wakeup: bool,
    /// The worker drives the card's queue itself, for so long at a time (SO_BUSY_POLL); `null` leaves it to interrupts.
    pub(crate) busy_poll: Option<Period>,
    /// What a worker does while nothing comes: `sleep`, `adaptive` (look again for 50 microseconds, then sleep) or `spin`
    /// (a core of its own for each worker).
    pub(crate) wait: WaitConfig,
    /// Take the card's own receive times where its driver offers them and its clock is right.
    pub(crate) hardware_timestamps: bool,
}

impl Default for CaptureConfig {
    fn default() -> CaptureConfig {
        CaptureConfig {
            mode: ModeConfig::Auto,
            force: false,
            promiscuous: true,
            filter: None,
            ring: Size::mib(64),
            frame: 2048,
            huge_pages: true,
            multi_buffer: Switch::Auto,
            need_wakeup: true,
            busy_poll: None,
            wait: WaitConfig::Sleep,
            hardware_timestamps: true,
        }
    }
}

/// How packets get from an interface to a worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ModeConfig {
    /// The best that works.
    Auto,
    /// AF_XDP, the card writes into our memory.
    Zerocopy,
    /// AF_XDP in the driver, one copy.
    Copy,
    /// AF_XDP behind the kernel's own buffers.
    Generic,
    /// A packet socket: copies, the host keeps its packets.
    AfPacket,
}

impl ModeConfig {
    pub(crate) fn demanded(self) -> Option<Mode> {
        match self {
            ModeConfig::Auto => None,
            ModeConfig::Zerocopy => Some(Mode::ZeroCopy),
            ModeConfig::Copy => Some(Mode::Copy),
            ModeConfig::Generic => Some(Mode::Generic),
            ModeConfig::AfPacket => Some(Mode::AfPacket),
        }
    }
}

/// Something that can be left to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Switch {
    /// As it is needed.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

/// What a worker does while nothing comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum WaitConfig {
    /// Sleeps at once.
    Sleep,
    /// Looks again for 50 microseconds, then sleeps.
    Adaptive,
    /// Never sleeps.
    Spin,
}

/// Packets kept on request or on an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SlicesConfig {
    /// Memory of each worker for the latest packets, so that a slice can begin before its trigger; 0B for none.
    pub(crate) ring: Size,
    /// Bytes kept of a packet.
    pub(crate) snaplen: u32,
    /// All slices together on disk; the oldest go first.
    pub(crate) max_size: Size,
    /// Slices that may be open at once; a trigger beyond that is refused.
    pub(crate) active_max: u16,
    /// What an alert that fires starts; `null` for nothing.
    pub(crate) on_alert: Option<OnAlertConfig>,
}

impl Default for SlicesConfig {
    fn default() -> SlicesConfig {
        SlicesConfig { ring: Size::mib(32), snaplen: 65_535, max_size: Size::mib(1024), active_max: 8, on_alert: None }
    }
}

/// A slice of the packets around an alert.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct OnAlertConfig {
    /// How long before the alert it begins, as far as the ring reaches.
    pub(crate) before: Period,
    /// How long it goes on.
    pub(crate) duration: Period,
    /// Bytes of packets after which it ends.
    pub(crate) max_size: Size,
}

impl Default for OnAlertConfig {
    fn default() -> OnAlertConfig {
        OnAlertConfig { before: Period::secs(5), duration: Period::secs(10), max_size: Size::mib(64) }
    }
}

/// What the process may still do once its interfaces are open.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct SecurityConfig {
    /// User to become; `null` stays who it is. Capabilities are given up in any case.
    pub(crate) user: Option<String>,
    /// Keep the right to open interfaces again in the one thread that does so. Off, an interface that was removed and
    /// comes back needs a restart.
    pub(crate) reopen: bool,
}

impl Default for SecurityConfig {
    fn default() -> SecurityConfig {
        SecurityConfig { user: None, reopen: true }
    }
}

/// What cannot be, by key.
pub(super) fn validate(taps: &[TapConfig], capture: &CaptureConfig, slices: &SlicesConfig) -> Result<(), ConfigError> {
    let invalid = |key: String, message: String| Err(ConfigError::Value { key, message });
    let mut names: Vec<&str> = taps.iter().map(|t| t.name.as_str()).collect();
    names.sort_unstable();
    if let Some(twice) = names.windows(2).find(|w| w[0] == w[1]) {
        return invalid("taps".into(), format!("the name '{}' occurs twice; each tap needs its own", twice[0]));
    }
    for (n, tap) in taps.iter().enumerate() {
        if tap.name.is_empty() {
            return invalid(format!("taps[{n}].name"), "each tap needs a name".to_owned());
        }
        if let Some(ssh) = &tap.ssh {
            let checked = ssh.options(None).check();
            checked.map_err(|e| ConfigError::Value { key: format!("taps[{n}].ssh"), message: e.to_string() })?;
        }
        match (&tap.ssh, tap.interfaces.is_empty()) {
            (None, true) => return invalid("taps".into(), format!("tap '{}' has no interfaces", tap.name)),
            (Some(_), false) => {
                let message = "either interfaces of this host or `ssh`, each in a tap of its own".to_owned();
                return invalid(format!("taps[{n}]"), message);
            }
            _ => {}
        }
        let interfaces = tap.interfaces.iter().enumerate();
        let filters = interfaces.map(|(i, f)| (format!("taps[{n}].interfaces[{i}].filter"), &f.filter));
        for (key, filter) in filters.chain([(format!("taps[{n}].filter"), &tap.filter)]) {
            check_filter(key, filter.as_deref())?;
        }
    }
    check_filter("capture.filter".into(), capture.filter.as_deref())?;
    if !(2 << 20..=4 << 30).contains(&capture.ring.0) {
        return invalid("capture.ring".into(), format!("{} bytes; allowed are 2MiB to 4GiB", capture.ring.0));
    }
    if ![2048, 4096].contains(&capture.frame) {
        return invalid("capture.frame".into(), format!("{}; allowed are 2048 and 4096 bytes", capture.frame));
    }
    if capture.busy_poll.is_some_and(|p| !(1..=100_000).contains(&p.0.as_micros())) {
        return invalid("capture.busy_poll".into(), "allowed are 1us to 100ms".to_owned());
    }
    if slices.max_size.0 < 1 << 20 {
        return invalid("slices.max_size".into(), format!("{} bytes; allowed are 1MiB and more", slices.max_size.0));
    }
    if slices.ring.0 > 16 << 30 {
        return invalid("slices.ring".into(), format!("{} bytes; allowed are 0B to 16GiB a worker", slices.ring.0));
    }
    if !(64..=262_144).contains(&slices.snaplen) {
        return invalid("slices.snaplen".into(), format!("{}; allowed are 64 to 262144 bytes", slices.snaplen));
    }
    if !(1..=32).contains(&slices.active_max) {
        return invalid("slices.active_max".into(), format!("{}; allowed are 1 to 32", slices.active_max));
    }
    Ok(())
}

fn check_filter(key: String, filter: Option<&str>) -> Result<(), ConfigError> {
    let parsed = filter.map(Filter::parse).transpose();
    parsed.map(drop).map_err(|e| ConfigError::Value { key, message: e.to_string() })
}
