use crate::{FlowDelta, FlowRecord};
use hints::{App, Hint, Progress};
use wire::{Addr, Direction, Nanos, PacketMeta, TapId};

/// Where a flow table delivers. Called inline by the worker; must not block on a live source.
pub trait FlowSink {
    /// A flow, or a part of one, is finished. `text` holds its texts, `record.text` their lengths.
    fn record(&mut self, record: &FlowRecord, text: &[u8]);

    /// A flow began with the packet `first`; its originator sends in the direction `originator`. Called once a flow, however
    /// many parts it is exported in.
    fn begun(&mut self, first: &PacketMeta, originator: Direction) {
        let _ = (first, originator);
    }

    /// A flow tells what it sent since it told last, `is_before` the last turn of time, or after it; if that is wanted
    /// ([`FlowTable::want_deltas`](crate::FlowTable::want_deltas)).
    fn delta(&mut self, delta: &FlowDelta<'_>, is_before: bool) {
        let _ = (delta, is_before);
    }

    /// A flow began with a SYN (without ACK). Called once a flow.
    fn syn(&mut self, opening: &TcpOpening) {
        let _ = opening;
    }

    /// The responder answered the SYN of `opening` with SYN/ACK. Called at most once a flow, after `syn`.
    fn established(&mut self, opening: &TcpOpening) {
        let _ = opening;
    }

    /// A packet with payload came in a flow that still wants its payloads looked at: number `at` of the slice that
    /// [`FlowTable::process`](crate::FlowTable::process) was given. What is found out goes to `hint`.
    fn payload(&mut self, at: usize, packet: &PacketMeta, flow: FlowInView, hint: HintSlot<'_>) {
        let _ = (at, packet, flow);
        *hint.progress = Progress::DONE;
    }
}

/// A flow as the inspection of its payloads needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowInView {
    /// The record this flow will become.
    pub flow_id: u64,
    /// Whether the packet was sent by the flow's originator.
    pub from_originator: bool,
    /// Bytes of its side's TCP stream that directly precede the packet and were not seen; 0 where there are none, or nobody knows.
    pub missing: u32,
}

/// Where the inspection of a flow's payloads leaves what it found.
pub struct HintSlot<'a> {
    /// How far the inspection has come; the table keeps it between packets.
    pub progress: &'a mut Progress,
    /// Takes the hints.
    pub flow: HintOwner<'a>,
}

/// The flow that hints are kept for.
pub struct HintOwner<'a> {
    pub(crate) extra: &'a mut u32,
    pub(crate) app: &'a mut u8,
    pub(crate) extras: &'a mut crate::extras::Extras,
}

impl HintOwner<'_> {
    /// Adds a hint to what the flow has: a label that is known and texts that are not empty replace older ones. Texts that
    /// find no room are counted and left out.
    pub fn keep(&mut self, hint: &Hint<'_>) {
        if hint.app != App::None {
            *self.app = hint.app as u8;
        }
        self.extras.add_texts(self.extra, hint);
    }
}

/// An attempt to open a TCP connection, as detectors see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpOpening {
    /// The pipeline's clock at the packet that caused the event.
    pub clock: Nanos,
    /// The record this flow will become.
    pub flow_id: u64,
    /// Who sent the SYN.
    pub src_ip: Addr,
    /// Whom it was sent to.
    pub dst_ip: Addr,
    /// To which port.
    pub dst_port: u16,
    /// Where it was seen.
    pub tap: TapId,
}
