use std::fmt;
use wire::{Addr, Nanos, TapId};

/// What a number is of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Metric {
    /// IP bytes sent.
    #[default]
    Bytes = 0,
    /// Packets sent.
    Packets = 1,
    /// Flows begun.
    Flows = 2,
    /// Distinct elements.
    Distinct = 3,
    /// Entropy in bits.
    Entropy = 4,
    /// A quantile, in the unit of what it is of.
    Quantile = 5,
}

impl Metric {
    /// Every metric, in discriminant order.
    pub const ALL: [Metric; 6] =
        [Metric::Bytes, Metric::Packets, Metric::Flows, Metric::Distinct, Metric::Entropy, Metric::Quantile];

    /// Its name in configuration and tables.
    pub const fn name(self) -> &'static str {
        match self {
            Metric::Bytes => "bytes",
            Metric::Packets => "packets",
            Metric::Flows => "flows",
            Metric::Distinct => "distinct",
            Metric::Entropy => "entropy",
            Metric::Quantile => "quantile",
        }
    }

    /// The metric of that name.
    pub fn of_name(name: &str) -> Option<Metric> {
        Metric::ALL.into_iter().find(|metric| metric.name() == name)
    }
}

/// The fields of a key; `None` where it does not have the field. Addresses are cut to the key's prefix.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct KeyFields {
    /// Who sent the packets.
    pub src_ip: Option<Addr>,
    /// To whom they were sent.
    pub dst_ip: Option<Addr>,
    /// From which port.
    pub src_port: Option<u16>,
    /// To which port.
    pub dst_port: Option<u16>,
    /// IANA protocol number.
    pub proto: Option<u8>,
    /// Outer VLAN id, 0 for none.
    pub vlan: Option<u16>,
    /// Who began the flow.
    pub originator: Option<Addr>,
    /// With whom.
    pub responder: Option<Addr>,
    /// From which port.
    pub originator_port: Option<u16>,
    /// To which port.
    pub responder_port: Option<u16>,
}

/// The value of a field; shown as a query prints it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldValue {
    /// An address.
    Address(Addr),
    /// A port, a protocol, a VLAN.
    Number(u16),
}

impl fmt::Display for FieldValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            FieldValue::Address(address) => address.fmt(f),
            FieldValue::Number(number) => number.fmt(f),
        }
    }
}

impl KeyFields {
    /// All fields by name, and what each is.
    pub fn values(&self) -> [(&'static str, Option<FieldValue>); 10] {
        let address = |value: Option<Addr>| value.map(FieldValue::Address);
        let number = |value: Option<u16>| value.map(FieldValue::Number);
        [
            ("src_ip", address(self.src_ip)),
            ("dst_ip", address(self.dst_ip)),
            ("src_port", number(self.src_port)),
            ("dst_port", number(self.dst_port)),
            ("originator", address(self.originator)),
            ("responder", address(self.responder)),
            ("originator_port", number(self.originator_port)),
            ("responder_port", number(self.responder_port)),
            ("proto", number(self.proto.map(u16::from))),
            ("vlan", number(self.vlan)),
        ]
    }
}

/// One row of table `talkers`: what a sketch said at the end of a window of one key, of everything that is not listed
/// (then there is no rank and no field), or of the window as a whole (then `key_len` is 0).
///
/// Its texts are, one after the other: the task's name, the key's fields as in the configuration (`src_ip,dst_ip`), and
/// what was counted of them: the elements (`responder,responder_port`), or what a quantile is of (`rtt_us`).
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct TalkerRow {
    /// Start of the window.
    pub start: Nanos,
    /// End of the window, not part of it.
    pub end: Nanos,
    /// Where it was seen.
    pub tap: TapId,
    /// What the estimate is of.
    pub metric: Metric,
    /// Place in the list, from 1.
    pub rank: Option<u32>,
    /// Which key.
    pub key: KeyFields,
    /// Which quantile, 0 to 1.
    pub quantile: Option<f64>,
    /// Right on average.
    pub estimate: f64,
    /// It was no less: always, or with a confidence of 95 % for distinct elements and entropy.
    pub lower: f64,
    /// It was no more. Of the row of what is not listed: no single key of it had more.
    pub upper: f64,
    /// Length of the task's name.
    pub task_len: u8,
    /// Length of the names of the key's fields; 0 for the window as a whole.
    pub key_len: u8,
    /// Length of the names of the elements.
    pub elements_len: u8,
}
