use crate::{DnsRecord, Hint, InspectCounts, InspectLimits, Progress};
use wire::{Addr, Nanos, TapId};

/// One transport payload and where it belongs.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// Bytes it had on the wire, as the headers say.
    pub len: u32,
    /// TCP sequence number of its first byte; 0 for others.
    pub seq: u32,
    /// IANA protocol number: payloads other than those of TCP and UDP say nothing.
    pub proto: u8,
    /// Port of the sender.
    pub src_port: u16,
    /// Port of the receiver.
    pub dst_port: u16,
    /// Whether the flow's originator sent it.
    pub from_originator: bool,
    /// Sender.
    pub src: Addr,
    /// Receiver.
    pub dst: Addr,
    /// The flow it belongs to.
    pub flow_id: u64,
    /// Capture point.
    pub tap: TapId,
    /// dot1qVlanId, 0 for none.
    pub vlan: u16,
    /// When it was captured.
    pub ts: Nanos,
    /// Packet time, which never goes back.
    pub clock: Nanos,
}

/// Takes what payloads say.
pub trait HintSink {
    /// What the flow of the payload being inspected says. A later hint of a flow adds to an earlier one: a text that is
    /// not empty, and a label other than `None`, replace what the flow has.
    fn hint(&mut self, hint: &Hint<'_>);
    /// One DNS question. `text` is the question's name and the answers, of the lengths that the record tells. It may
    /// belong to another flow than that of the payload being inspected, so the record names its own.
    fn dns(&mut self, record: &DnsRecord, text: &[u8]);
}

/// Reads payloads. One for each worker; its memory is fixed when it is made.
pub struct Inspector {
    limits: InspectLimits,
    counts: InspectCounts,
}

impl Inspector {
    /// Takes all memory that inspecting will need. Limits out of their range are moved into it.
    pub fn new(limits: InspectLimits) -> Inspector {
        Inspector { limits: limits.in_range(), counts: InspectCounts::default() }
    }

    /// Looks at one payload of a flow that [wants](Progress::wants) it.
    #[inline]
    pub fn inspect(&mut self, payload: &Payload<'_>, progress: &mut Progress, sink: &mut impl HintSink) {
        let _ = (payload, progress, sink);
        self.counts.payloads += 1;
    }

    /// Moves packet time on: DNS queries without an answer are exported, assemblies that were not completed let go.
    pub fn advance(&mut self, clock: Nanos, sink: &mut impl HintSink) {
        let _ = (clock, sink);
    }

    /// Exports every DNS query that still waits, for the end of a capture.
    pub fn finish(&mut self, sink: &mut impl HintSink) {
        let _ = sink;
    }

    /// Lets go of what is kept of a flow. Not needed for correctness: without it, timeouts do the same.
    pub fn flow_ended(&mut self, flow_id: u64) {
        let _ = flow_id;
    }

    /// What was done, and every bound that was met.
    pub fn counts(&self) -> InspectCounts {
        self.counts
    }

    /// Bytes taken at the start; also the most it ever has.
    pub fn memory_bytes_max(&self) -> usize {
        size_of::<Inspector>() + self.limits.assemblies_max * self.limits.assembly_bytes_max
    }
}
