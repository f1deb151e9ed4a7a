use wire::{Addr, Nanos, TapId};

/// One DNS question with its answer: a row of table `dns`. Fixed size; the texts travel beside it, question first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DnsRecord {
    /// When the query was seen, or its answer where the query was not.
    pub time: Nanos,
    /// The flow it belongs to.
    pub flow_id: u64,
    /// Capture point.
    pub tap: TapId,
    /// Who asked.
    pub client: Addr,
    /// Who was asked.
    pub server: Addr,
    /// Port of who asked.
    pub client_port: u16,
    /// Port of who was asked.
    pub server_port: u16,
    /// IANA protocol number: 17 or 6.
    pub proto: u8,
    /// dot1qVlanId, 0 for none.
    pub vlan: u16,
    /// Identifier of the transaction (RFC 1035 section 4.1.1).
    pub id: u16,
    /// Type of the question (RFC 1035 section 3.2.3).
    pub qtype: u16,
    /// Whether the query was seen.
    pub has_query: bool,
    /// Response code, extended by EDNS where present (RFC 6891); `None` where no answer was seen.
    pub rcode: Option<u16>,
    /// Query to answer, µs; `None` unless both were seen.
    pub latency_us: Option<u32>,
    /// Header flags of the answer, or of the query where there is none: the second word of the header (RFC 1035).
    pub flags: u16,
    /// Records in the answer section, as its header says.
    pub answer_count: u16,
    /// Least time to live of the answers, seconds.
    pub ttl_min: Option<u32>,
    /// Bytes of the question's name.
    pub question_len: u8,
    /// Bytes of the answers: addresses and names as text, separated by commas, as many as fit.
    pub answers_len: u8,
}
