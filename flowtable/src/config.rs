use thiserror::Error;
use wire::Nanos;

/// Sizes and timeouts of one shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowTableConfig {
    /// Flows held at once by this shard; at the cap the table evicts and says so in the record.
    pub flows_max: u32,
    /// When a flow ends, in packet time.
    pub timeouts: Timeouts,
    /// Memory for what only some flows have: texts (names, fingerprints) and round-trip times beyond the handshake, in
    /// blocks of 64 bytes. What finds no room is not kept, and counted.
    pub side_bytes_max: usize,
}

impl Default for FlowTableConfig {
    fn default() -> FlowTableConfig {
        FlowTableConfig { flows_max: 1_000_000, timeouts: Timeouts::default(), side_bytes_max: 64 << 20 }
    }
}

/// When a flow is over, or a part of it is exported; all in packet time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// TCP without a packet for this long.
    pub tcp_idle: Nanos,
    /// UDP and UDP-Lite without a packet for this long.
    pub udp_idle: Nanos,
    /// Any other protocol without a packet for this long.
    pub other_idle: Nanos,
    /// TCP after FIN from both sides or RST: stragglers are still counted for this long.
    pub closed: Nanos,
    /// A flow that goes on is exported in parts of this length.
    pub active: Nanos,
    /// A SYN that opens another connection begins a new flow before the time of the old one has passed.
    pub split_on_reuse: bool,
}

impl Default for Timeouts {
    fn default() -> Timeouts {
        Timeouts {
            tcp_idle: Nanos::from_secs(120),
            udp_idle: Nanos::from_secs(30),
            other_idle: Nanos::from_secs(30),
            closed: Nanos::from_secs(5),
            active: Nanos::from_secs(60),
            split_on_reuse: true,
        }
    }
}

impl Timeouts {
    /// One record a flow however long it lasts, for comparison with tools that know no timeouts.
    pub const OFF: Timeouts = Timeouts {
        tcp_idle: Nanos::MAX,
        udp_idle: Nanos::MAX,
        other_idle: Nanos::MAX,
        closed: Nanos::MAX,
        active: Nanos::MAX,
        split_on_reuse: false,
    };
}

/// A configuration that cannot work.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FlowTableError {
    /// `flows_max` out of range.
    #[error(
        "flowtable.flows_max is {value}; allowed are {} to {}",
        FlowTableError::FLOWS_MIN,
        FlowTableError::FLOWS_MAX
    )]
    FlowsMax {
        /// What was asked for.
        value: u32,
    },
    /// `side_bytes_max` out of range.
    #[error("flowtable.side_memory is {value} bytes; allowed are 0 to {} GiB", FlowTableError::SIDE_BYTES_MAX >> 30)]
    SideBytes {
        /// What was asked for.
        value: usize,
    },
    /// The system does not give so much memory.
    #[error(
        "flowtable.flows_max {flows_max} and side_memory take {gigabytes} GB in each worker, which this host does not give; lower \
         them, or pipeline.workers"
    )]
    Memory {
        /// Flows that were asked for.
        flows_max: u32,
        /// Bytes of all, in units of 10^9, rounded up.
        gigabytes: usize,
    },
    /// A timeout of zero would end every flow at its first packet.
    #[error("flowtable.timeouts.{name} is 0; give a duration above zero, or `timeouts: off` for none at all")]
    ZeroTimeout {
        /// Which one.
        name: &'static str,
    },
}

impl FlowTableError {
    /// Fewest flows a shard can be made for.
    pub const FLOWS_MIN: u32 = 16;
    /// Most side memory a shard can be made for.
    pub const SIDE_BYTES_MAX: usize = 64 << 30;
    /// Most flows a shard can be made for: 2^27, about 34 GB.
    pub const FLOWS_MAX: u32 = 1 << 27;
}

impl FlowTableConfig {
    /// Whether a table can be made of this.
    ///
    /// # Errors
    /// The first size or timeout that cannot work.
    pub fn validate(&self) -> Result<(), FlowTableError> {
        if !(FlowTableError::FLOWS_MIN..=FlowTableError::FLOWS_MAX).contains(&self.flows_max) {
            return Err(FlowTableError::FlowsMax { value: self.flows_max });
        }
        if self.side_bytes_max > FlowTableError::SIDE_BYTES_MAX {
            return Err(FlowTableError::SideBytes { value: self.side_bytes_max });
        }
        let t = &self.timeouts;
        let named = [
            ("tcp_idle", t.tcp_idle),
            ("udp_idle", t.udp_idle),
            ("other_idle", t.other_idle),
            ("closed", t.closed),
            ("active", t.active),
        ];
        match named.iter().find(|(_, value)| *value == Nanos::ZERO) {
            Some(&(name, _)) => Err(FlowTableError::ZeroTimeout { name }),
            None => Ok(()),
        }
    }
}
