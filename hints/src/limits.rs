use wire::Nanos;

/// Bounds of an [`Inspector`](crate::Inspector). All memory is taken when it is made; nothing grows afterwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InspectLimits {
    /// Payloads of a flow that are looked at in each direction before it is given up, 1 to 7. DNS messages and pieces
    /// of what has begun come on top.
    pub payloads_max: u8,
    /// Bytes kept of one ClientHello, HTTP request or DNS message in pieces; 1 to 65,535.
    pub assembly_bytes_max: usize,
    /// Segments (TCP) or datagrams (QUIC) of one assembly; 1 to 255.
    pub assembly_segments_max: u8,
    /// Assemblies at a time. When all are taken, the oldest is given up.
    pub assemblies_max: usize,
    /// Packet time after which an assembly is given up.
    pub assembly_timeout: Nanos,
    /// DNS queries waiting for their answer at a time. When all are taken, the oldest counts as unanswered.
    pub dns_pending_max: usize,
    /// Packet time after which a DNS query counts as unanswered.
    pub dns_timeout: Nanos,
}

impl Default for InspectLimits {
    fn default() -> InspectLimits {
        InspectLimits {
            payloads_max: 4,
            assembly_bytes_max: 16 * 1024,
            assembly_segments_max: 32,
            assemblies_max: 256,
            assembly_timeout: Nanos::from_secs(10),
            dns_pending_max: 16 * 1024,
            dns_timeout: Nanos::from_secs(10),
        }
    }
}

impl InspectLimits {
    /// The nearest limits that are within the ranges of the fields.
    pub(crate) fn in_range(self) -> InspectLimits {
        InspectLimits {
            payloads_max: self.payloads_max.clamp(1, 7),
            assembly_bytes_max: self.assembly_bytes_max.clamp(1, 0xffff),
            assembly_segments_max: self.assembly_segments_max.max(1),
            assemblies_max: self.assemblies_max.clamp(1, 1 << 24),
            dns_pending_max: self.dns_pending_max.clamp(1, 1 << 24),
            ..self
        }
    }
}

/// What an [`Inspector`](crate::Inspector) did, and every bound it ran into. Counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InspectCounts {
    /// Payloads looked at.
    pub payloads: u64,
    /// Hints given.
    pub hints: u64,
    /// Assemblies begun.
    pub assemblies: u64,
    /// Assemblies given up for a newer one, all being taken.
    pub assemblies_evicted: u64,
    /// Assemblies given up at their timeout or the end of their flow.
    pub assemblies_expired: u64,
    /// Assemblies given up because they outgrew their bytes or segments.
    pub assemblies_oversized: u64,
    /// ClientHellos that contradict themselves.
    pub hellos_malformed: u64,
    /// QUIC Initial packets that did not decrypt as a client's.
    pub quic_not_decrypted: u64,
    /// DNS messages read.
    pub dns_messages: u64,
    /// Payloads of DNS flows that are no DNS message.
    pub dns_malformed: u64,
    /// DNS queries that did not wait for their answer: the oldest where all places were taken, and any beyond 32 that wait under one
    /// id in one flow. They are exported as unanswered.
    pub dns_evicted: u64,
    /// DNS queries without an answer within the timeout.
    pub dns_unanswered: u64,
    /// DNS answers whose query was not seen.
    pub dns_unasked: u64,
}
