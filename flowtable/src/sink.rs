use crate::FlowRecord;
use wire::{Addr, Nanos, TapId};

/// Where a flow table delivers. Called inline by the worker; must not block on a live source.
pub trait FlowSink {
    /// A flow, or a part of one, is finished. `text` holds its texts, `record.text` their lengths.
    fn record(&mut self, record: &FlowRecord, text: &[u8]);

    /// A flow began with a SYN (without ACK). Called once a flow.
    fn syn(&mut self, opening: &TcpOpening) {
        let _ = opening;
    }

    /// The responder answered the SYN of `opening` with SYN/ACK. Called at most once a flow, after `syn`.
    fn established(&mut self, opening: &TcpOpening) {
        let _ = opening;
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
