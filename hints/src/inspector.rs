//! Where payloads come in: what a flow's first ones are is decided here, and who reads on.

use crate::assembly::{Added, Assemblies, StreamKey};
use crate::dhcp;
use crate::dns::{Check, Exchange, Message, Transactions};
use crate::hello::Hello;
use crate::http;
use crate::ja4::{self, Transport};
use crate::progress::{Class, Dns, Stage};
use crate::quic;
use crate::signature;
use crate::text::Text;
use crate::tls::{self, handshake};
use crate::{App, DnsRecord, Hint, InspectCounts, InspectLimits, Progress};
use memory::Slot;
use wire::{Addr, Nanos, TapId, proto};

/// One transport payload and where it belongs.
#[derive(Clone, Copy, Debug)]
pub struct Payload<'a> {
    /// What was captured of it.
    pub bytes: &'a [u8],
    /// Bytes it had on the wire, as the headers say.
    pub len: u32,
    /// TCP sequence number of its first byte; 0 for others.
    pub seq: u32,
    /// Bytes of its side's stream that directly precede it and were not seen (TCP); 0 where there are none, or nobody knows.
    pub missing: u32,
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

/// Texts of the hint being made.
struct Texts {
    name: Text,
    alpn: Text,
    agent: Text,
    ja4: Option<[u8; ja4::LEN]>,
    sorter: ja4::Sorter,
}

impl Texts {
    fn clear(&mut self) {
        self.name.clear();
        self.alpn.clear();
        self.agent.clear();
        self.ja4 = None;
    }

    fn give(&self, app: App, counts: &mut InspectCounts, sink: &mut impl HintSink) {
        counts.hints += 1;
        let ja4 = self.ja4.as_ref().and_then(|chars| std::str::from_utf8(chars).ok()).unwrap_or_default();
        let (name, alpn, agent) = (self.name.as_str(), self.alpn.as_str(), self.agent.as_str());
        sink.hint(&Hint { app, name, alpn, agent, ja4 });
    }

    fn take_hello(&mut self, hello: &Hello<'_>, transport: Transport) {
        self.name.push_lossy(hello.name);
        self.alpn.push_lossy(hello.alpn.unwrap_or_default());
        if hello.complete {
            self.ja4 = ja4::fingerprint(hello, transport, &mut self.sorter);
        }
    }
}

/// What the beginning of a TCP stream turned out to be.
enum Stream {
    Foreign,
    /// Nothing that is missing would add to it.
    Complete(App),
    /// It is of this protocol, and the message that has begun is not all there. `None`: it may still be anything.
    Partial(App),
    /// It is of this protocol; what would be worth reading comes in another payload.
    Labelled(App, Class),
}

/// Payloads that may be looked at after a label, for the texts that belong to it.
const AFTER_LABEL: u8 = 7;

/// Payloads that may pass by a stream in pieces without adding to it.
const BESIDE_PIECES: u8 = 7;

/// Reads payloads. One for each worker; its memory is fixed when it is made.
pub struct Inspector {
    limits: InspectLimits,
    counts: InspectCounts,
    texts: Texts,
    assemblies: Assemblies,
    transactions: Transactions,
    /// Where messages are put together from records, and packets decrypted.
    scratch: Vec<u8>,
}

impl Inspector {
    /// Takes all memory that inspecting will need. Limits out of their range are moved into it.
    pub fn new(limits: InspectLimits) -> Inspector {
        let limits = limits.in_range();
        let sorter = ja4::Sorter::new();
        Inspector {
            counts: InspectCounts::default(),
            texts: Texts { name: Text::EMPTY, alpn: Text::EMPTY, agent: Text::EMPTY, ja4: None, sorter },
            assemblies: Assemblies::new(&limits),
            transactions: Transactions::new(&limits),
            scratch: vec![0; limits.assembly_bytes_max],
            limits,
        }
    }

    /// Looks at one payload of a flow that [wants](Progress::wants) it. An empty one says nothing and costs nothing.
    #[inline]
    pub fn inspect(&mut self, payload: &Payload<'_>, progress: &mut Progress, sink: &mut impl HintSink) {
        if payload.bytes.is_empty() {
            return;
        }
        // What is over by now is over, wherever batches begin and end.
        self.advance(payload.clock, sink);
        self.counts.payloads += 1;
        *progress = match progress.stage() {
            Stage::Looking { originator, responder } => self.look(payload, originator, responder, sink),
            Stage::Labelled { class, left } => self.read_on(payload, class, left, sink),
            Stage::Dns(dns) if payload.proto == proto::TCP => self.dns_over_tcp(payload, dns, sink),
            Stage::Dns(dns) => self.dns_over_udp(payload, dns, sink),
            Stage::Done => Stage::Done,
        }
        .into();
    }

    /// Moves packet time on: DNS queries without an answer are exported, assemblies that were not completed let go.
    #[inline]
    pub fn advance(&mut self, clock: Nanos, sink: &mut impl HintSink) {
        self.assemblies.expire(clock, &mut self.counts);
        self.transactions.expire(clock, &mut self.counts, sink);
    }

    /// Exports every DNS query that still waits, for the end of a capture.
    pub fn finish(&mut self, sink: &mut impl HintSink) {
        self.transactions.finish(&mut self.counts, sink);
    }

    /// Lets go of the pieces kept of a flow. Not needed: without it, the timeout does the same. DNS queries go on waiting.
    pub fn flow_ended(&mut self, flow_id: u64) {
        self.assemblies.flow_ended(flow_id, &mut self.counts);
    }

    /// What was done, and every bound that was met.
    pub fn counts(&self) -> InspectCounts {
        self.counts
    }

    /// Bytes taken at the start; also the most it ever has.
    pub fn memory_bytes_max(&self) -> usize {
        size_of::<Inspector>()
            + self.assemblies.memory_bytes()
            + self.transactions.memory_bytes()
            + self.scratch.capacity()
    }

    /// The first payloads: by far the most are of nothing that is known, and are to cost a few compares.
    #[inline]
    fn look(&mut self, p: &Payload<'_>, originator: u8, responder: u8, sink: &mut impl HintSink) -> Stage {
        let seen = if p.from_originator { originator } else { responder };
        if seen < self.limits.payloads_max {
            let found = match p.proto {
                proto::TCP if tcp_is_worth_a_look(p) => self.look_at_tcp(p, sink),
                proto::UDP if udp_is_worth_a_look(p) => self.look_at_udp(p, sink),
                proto::TCP | proto::UDP => None,
                _ => return Stage::Done,
            };
            if let Some(stage) = found {
                return stage;
            }
            if seen == 0 && p.missing > 0 && self.keep_ahead(p) {
                return Stage::Labelled { class: Class::Ahead, left: BESIDE_PIECES };
            }
        }
        let (mut originator, mut responder) = (originator, responder);
        *(if p.from_originator { &mut originator } else { &mut responder }) += 1;
        // One side that goes on and on does not keep the flow open for ever.
        let full = self.limits.payloads_max;
        if originator.min(responder) >= full || originator.max(responder) >= 7 {
            Stage::Done
        } else {
            Stage::Looking { originator, responder }
        }
    }

    #[cold]
    #[inline(never)]
    fn look_at_udp(&mut self, p: &Payload<'_>, sink: &mut impl HintSink) -> Option<Stage> {
        self.texts.clear();
        let low = p.src_port.min(p.dst_port);
        let on = |port: u16| p.src_port == port || p.dst_port == port;
        let (name, agent) = (&mut self.texts.name, &mut self.texts.agent);
        let dhcp = match low {
            67 | 68 => dhcp::read_v4(p.bytes, name, agent),
            546 | 547 => dhcp::read_v6(p.bytes, name, agent),
            _ => None,
        };
        if let Some(by) = dhcp {
            return Some(self.dhcp(by, sink));
        }
        if quic::is_long_header(p.bytes) {
            return Some(self.quic_begins(p, sink));
        }
        for (port, app) in [(5353, App::Mdns), (5355, App::Llmnr)] {
            if on(port) {
                let message = Message::read(p.bytes, is_cut(p), Check::Header, &mut self.texts.alpn)?;
                if message.questions_count > 0 {
                    message.question(0, &mut self.texts.name);
                }
                self.texts.alpn.clear();
                self.texts.give(app, &mut self.counts, sink);
                return Some(Stage::Done);
            }
        }
        if on(53) || Message::is_plausible(p.bytes) && low != 137 {
            let check = if on(53) { Check::Header } else { Check::Whole };
            if Message::read(p.bytes, is_cut(p), check, &mut self.texts.name).is_some() {
                return Some(self.dns_over_udp(p, Dns::default(), sink));
            }
            self.texts.clear();
        }
        match http::open(p.bytes) {
            // SSDP is what sends HTTP over UDP (UPnP device architecture 2.0, section 1).
            http::Opening::Request(App::Http) => return Some(self.http_over_udp(p, App::Ssdp, sink)),
            http::Opening::Request(App::Sip) => return Some(self.http_over_udp(p, App::Sip, sink)),
            http::Opening::Response(app @ (App::Http | App::Sip)) => {
                let app = if app == App::Http { App::Ssdp } else { app };
                self.texts.give(app, &mut self.counts, sink);
                return Some(Stage::Labelled { class: Class::Plain, left: 0 });
            }
            _ => {}
        }
        match signature::udp(p.bytes, p.len as usize, p.src_port, p.dst_port) {
            App::None => None,
            app => {
                self.texts.give(app, &mut self.counts, sink);
                Some(Stage::Done)
            }
        }
    }

    fn dhcp(&mut self, by: dhcp::Message, sink: &mut impl HintSink) -> Stage {
        if by == dhcp::Message::Server {
            // What it says is not the client's.
            self.texts.clear();
        }
        self.texts.give(App::Dhcp, &mut self.counts, sink);
        Stage::Done
    }

    fn http_over_udp(&mut self, p: &Payload<'_>, app: App, sink: &mut impl HintSink) -> Stage {
        let names = http::names(p.bytes);
        self.texts.name.push_lossy(names.host);
        self.texts.agent.push_lossy(names.user_agent);
        self.texts.give(app, &mut self.counts, sink);
        Stage::Done
    }

    #[cold]
    #[inline(never)]
    fn look_at_tcp(&mut self, p: &Payload<'_>, sink: &mut impl HintSink) -> Option<Stage> {
        self.texts.clear();
        // Where the beginning is missing, this may be in the middle of anything.
        let is_dns = (p.missing == 0 || p.bytes.len() >= 14) && is_dns_stream(p, p.bytes);
        if is_dns || is_whole_dns(p, &mut self.texts.name) {
            return Some(self.dns_over_tcp(p, Dns::default(), sink));
        }
        self.texts.clear();
        match self.read_stream(p.bytes, p.from_originator, true) {
            Stream::Foreign => {}
            found => return Some(self.stream_begins(found, p, sink)),
        }
        match signature::tcp(p.bytes, p.len as usize, p.src_port, p.dst_port) {
            App::None => None,
            app => {
                self.texts.give(app, &mut self.counts, sink);
                // These may turn into TLS (RFC 3207, RFC 2595, RFC 4217, and what databases do).
                Some(Stage::Labelled { class: Class::Plain, left: AFTER_LABEL })
            }
        }
    }

    /// What a stream begins with, its texts gathered. `all_kinds`: also what only the first bytes of a flow can be.
    fn read_stream(&mut self, stream: &[u8], from_originator: bool, all_kinds: bool) -> Stream {
        match tls::open(stream, &mut self.scratch) {
            tls::Opening::Foreign => {}
            tls::Opening::More => return Stream::Partial(App::None),
            tls::Opening::Midstream => return Stream::Labelled(App::Tls, Class::Tls),
            tls::Opening::Message { kind: handshake::CLIENT_HELLO, body, len } => {
                let Ok(hello) = Hello::parse(body, len) else {
                    self.counts.hellos_malformed += 1;
                    return Stream::Complete(App::Tls);
                };
                self.texts.take_hello(&hello, Transport::Tcp);
                let missing = !hello.complete;
                return if missing { Stream::Partial(App::Tls) } else { Stream::Complete(App::Tls) };
            }
            tls::Opening::Message { .. } => return Stream::Labelled(App::Tls, Class::Tls),
        }
        match http::open(stream) {
            http::Opening::Foreign => {}
            http::Opening::More => return Stream::Partial(App::None),
            http::Opening::Response(App::Http) => return Stream::Labelled(App::Http, Class::Http),
            http::Opening::Response(app) => return Stream::Labelled(app, Class::Plain),
            http::Opening::Request(app) => {
                let names = http::names(stream);
                // Targets of RTSP and SIP are addresses of what is called, not hosts.
                if app == App::Http {
                    self.texts.name.push_lossy(names.host);
                }
                self.texts.agent.push_lossy(names.user_agent);
                return match names {
                    http::Names { complete: false, .. } => Stream::Partial(app),
                    http::Names { is_connect: true, .. } => Stream::Labelled(app, Class::Http),
                    _ => Stream::Complete(app),
                };
            }
        }
        if stream.starts_with(b"SSH-") {
            // RFC 4253 section 4.2: at most 255 bytes, of which the client's are told.
            let banner = stream.split(|b| *b == b'\n').next().unwrap_or_default();
            let is_whole = banner.len() < stream.len() || banner.len() >= 255;
            if from_originator && is_whole {
                self.texts.agent.push_lossy(banner.trim_ascii_end());
            }
            return match (from_originator, is_whole) {
                (true, true) => Stream::Complete(App::Ssh),
                (true, false) => Stream::Partial(App::Ssh),
                (false, _) => Stream::Labelled(App::Ssh, Class::Ssh),
            };
        }
        if b"SSH-".starts_with(stream) {
            return Stream::Partial(App::None);
        }
        if all_kinds && tls::is_v2_hello(stream) {
            return Stream::Labelled(App::Tls, Class::Tls);
        }
        Stream::Foreign
    }

    fn stream_begins(&mut self, found: Stream, p: &Payload<'_>, sink: &mut impl HintSink) -> Stage {
        match found {
            Stream::Foreign => Stage::Done,
            Stream::Complete(app) => {
                self.texts.give(app, &mut self.counts, sink);
                Stage::Done
            }
            Stream::Labelled(app, class) => {
                self.texts.give(app, &mut self.counts, sink);
                Stage::Labelled { class, left: AFTER_LABEL }
            }
            Stream::Partial(app) => {
                if app != App::None {
                    self.texts.give(app, &mut self.counts, sink);
                }
                if is_cut(p) {
                    // What was not captured will not come.
                    return Stage::Done;
                }
                let Some(slot) = self.assemblies.begin(stream_key(p), p.seq, p.clock, &mut self.counts) else {
                    return Stage::Done;
                };
                self.assemblies.count_segment(slot);
                match self.assemblies.add_segment(slot, p.seq, p.bytes) {
                    Added::Oversized => self.too_large(slot),
                    _ => Stage::Labelled { class: Class::Pieces, left: BESIDE_PIECES },
                }
            }
        }
    }

    fn too_large(&mut self, slot: Slot) -> Stage {
        self.counts.assemblies_oversized += 1;
        self.assemblies.end(slot);
        Stage::Done
    }

    /// Payloads of a flow that has its label, or the beginning of one.
    #[cold]
    #[inline(never)]
    fn read_on(&mut self, p: &Payload<'_>, class: Class, left: u8, sink: &mut impl HintSink) -> Stage {
        self.texts.clear();
        match class {
            Class::Pieces | Class::Ahead => return self.piece(p, class, left, sink),
            Class::Quic => return self.quic_goes_on(p, left, sink),
            Class::Plain | Class::Tls | Class::Http | Class::Ssh => {}
        }
        let next = Stage::Labelled { class, left: left.saturating_sub(1) };
        if p.proto != proto::TCP {
            return next;
        }
        match self.read_stream(p.bytes, p.from_originator, false) {
            Stream::Foreign | Stream::Labelled(App::Tls | App::Ssh, _) => next,
            // A response, on a flow that has its request or waits for it.
            Stream::Labelled(_, Class::Http) if class == Class::Http && self.texts.name.is_empty() => next,
            Stream::Labelled(..) if class == Class::Plain => next,
            // A label is not given up for what merely may begin.
            Stream::Partial(App::None) if class == Class::Plain => next,
            Stream::Complete(App::Http) | Stream::Partial(App::Http) if class == Class::Plain => next,
            found => self.stream_begins(found, p, sink),
        }
    }

    /// Keeps the first payload of a side whose beginning has not come yet.
    #[cold]
    fn keep_ahead(&mut self, p: &Payload<'_>) -> bool {
        if p.proto != proto::TCP || p.missing as usize >= self.limits.assembly_bytes_max || is_cut(p) {
            return false;
        }
        let base = p.seq.wrapping_sub(p.missing);
        let Some(slot) = self.assemblies.begin(stream_key(p), base, p.clock, &mut self.counts) else { return false };
        self.assemblies.count_segment(slot);
        if self.assemblies.add_segment(slot, p.seq, p.bytes) == Added::Oversized {
            self.assemblies.end(slot);
            return false;
        }
        true
    }

    fn piece(&mut self, p: &Payload<'_>, class: Class, left: u8, sink: &mut impl HintSink) -> Stage {
        let beside = match left {
            0 => Stage::Done,
            _ => Stage::Labelled { class, left: left - 1 },
        };
        let Some(slot) = self.assemblies.find(stream_key(p)) else {
            // While one side's beginning is missing, the other may tell what it is.
            let found = if class == Class::Ahead && tcp_is_worth_a_look(p) { self.look_at_tcp(p, sink) } else { None };
            let kept = StreamKey { from_originator: !p.from_originator, ..stream_key(p) };
            if let Some(slot) = self.assemblies.find(kept).filter(|_| found.is_some()) {
                self.assemblies.end(slot);
            }
            return found.unwrap_or(beside);
        };
        let added = self.assemblies.add_segment(slot, p.seq, p.bytes);
        // What begins with something unknown, or with nothing that will be known, is looked at as others are.
        let look_on = match p.from_originator {
            true => Stage::Looking { originator: 1, responder: 0 },
            false => Stage::Looking { originator: 0, responder: 1 },
        };
        if added == Added::Oversized && self.assemblies.contiguous_range(slot).is_empty() {
            self.counts.assemblies_oversized += 1;
            self.assemblies.end(slot);
            return look_on;
        }
        match added {
            // A stream of retransmissions ends as well.
            Added::Same if beside == Stage::Done => return self.too_large(slot),
            Added::Same => return beside,
            Added::Ahead if self.assemblies.count_segment(slot) => return Stage::Labelled { class, left },
            Added::Ahead => return self.too_large(slot),
            Added::Grown | Added::Oversized if is_cut(p) => {
                self.assemblies.end(slot);
                return Stage::Done;
            }
            Added::Grown | Added::Oversized => {}
        }
        // Lent out to be read while the texts are filled.
        let all = std::mem::take(self.assemblies.bytes_mut());
        let range = self.assemblies.contiguous_range(slot);
        let stream = &all[range.clone()];
        let is_dns = class == Class::Ahead && is_dns_stream(p, stream);
        let found = if is_dns { Stream::Foreign } else { self.read_stream(stream, p.from_originator, true) };
        let other = match found {
            Stream::Foreign if class == Class::Ahead && !is_dns => {
                signature::tcp(stream, stream.len(), p.src_port, p.dst_port)
            }
            _ => App::None,
        };
        *self.assemblies.bytes_mut() = all;
        if is_dns {
            return self.dns_assembled(p, slot, added, Dns::default(), sink);
        }
        let within = self.assemblies.count_segment(slot);
        match found {
            Stream::Foreign if other != App::None => {
                self.assemblies.end(slot);
                self.texts.give(other, &mut self.counts, sink);
                Stage::Labelled { class: Class::Plain, left: AFTER_LABEL }
            }
            Stream::Foreign if class == Class::Ahead => {
                self.assemblies.end(slot);
                look_on
            }
            Stream::Partial(app) if within && range.len() < self.limits.assembly_bytes_max => {
                if class == Class::Ahead && app != App::None {
                    self.texts.give(app, &mut self.counts, sink);
                }
                Stage::Labelled { class: Class::Pieces, left }
            }
            Stream::Partial(app) => {
                // As far as it came.
                if app != App::None {
                    self.texts.give(app, &mut self.counts, sink);
                }
                self.too_large(slot)
            }
            found => {
                self.assemblies.end(slot);
                self.stream_begins(found, p, sink)
            }
        }
    }

    fn quic_begins(&mut self, p: &Payload<'_>, sink: &mut impl HintSink) -> Stage {
        let stage = self.quic_crypto(p, None, AFTER_LABEL, sink);
        if self.texts.name.is_empty() && self.texts.ja4.is_none() {
            // The label for now; texts come with the ClientHello.
            self.texts.give(App::Quic, &mut self.counts, sink);
        }
        stage
    }

    fn quic_goes_on(&mut self, p: &Payload<'_>, left: u8, sink: &mut impl HintSink) -> Stage {
        let next = if left == 0 { Stage::Done } else { Stage::Labelled { class: Class::Quic, left: left - 1 } };
        if p.bytes[0] & 0x80 == 0 {
            return next;
        }
        let slot = self.assemblies.find(stream_key(p));
        self.quic_crypto(p, slot, left.saturating_sub(1), sink)
    }

    /// Puts the CRYPTO frames of a datagram where they belong, and reads the ClientHello when it is all there.
    fn quic_crypto(&mut self, p: &Payload<'_>, slot: Option<Slot>, left: u8, sink: &mut impl HintSink) -> Stage {
        let mut slot = slot;
        let mut oversized = false;
        let mut tried = false;
        for packet in quic::packets(p.bytes).filter(quic::Packet::is_initial) {
            // Keys come from the first destination the client chose; after a Retry from that of the server.
            let kept = slot.map(|slot| self.assemblies.quic_keys(slot));
            let mut keys = kept.unwrap_or_else(|| packet.client_keys());
            let mut frames = packet.decrypt(&keys, &mut self.scratch);
            if frames.is_none() && kept.is_some() && !tried {
                tried = true;
                keys = packet.client_keys();
                frames = packet.decrypt(&keys, &mut self.scratch);
                if frames.is_some()
                    && let Some(old) = slot.take()
                {
                    self.assemblies.end(old);
                }
            }
            let Some(frames) = frames else {
                self.counts.quic_not_decrypted += 1;
                continue;
            };
            if slot.is_none() {
                slot = self.assemblies.begin(stream_key(p), 0, p.clock, &mut self.counts);
                if let Some(slot) = slot {
                    self.assemblies.assembly_mut(slot).quic = keys;
                }
            }
            let Some(slot) = slot else { break };
            for (offset, bytes) in quic::crypto_frames(frames) {
                oversized |= self.assemblies.add(slot, offset, bytes) == Added::Oversized;
            }
        }
        let Some(slot) = slot else {
            // Of the server, or after a Retry: the client's own may follow.
            return if left == 0 { Stage::Done } else { Stage::Labelled { class: Class::Quic, left } };
        };
        let within = self.assemblies.count_segment(slot);
        let stream = std::mem::take(self.assemblies.bytes_mut());
        let message = &stream[self.assemblies.contiguous_range(slot)];
        let complete = self.take_quic_hello(message);
        *self.assemblies.bytes_mut() = stream;
        if complete {
            self.texts.give(App::Quic, &mut self.counts, sink);
            self.assemblies.end(slot);
            return Stage::Done;
        }
        self.texts.clear();
        if oversized || !within || left == 0 {
            return self.too_large(slot);
        }
        Stage::Labelled { class: Class::Quic, left }
    }

    /// Whether the handshake stream holds all of the ClientHello, or something that never will.
    fn take_quic_hello(&mut self, stream: &[u8]) -> bool {
        let &[kind, a, b, c, ref body @ ..] = stream else { return false };
        let len = u32::from_be_bytes([0, a, b, c]) as usize;
        if kind != handshake::CLIENT_HELLO {
            self.counts.hellos_malformed += 1;
            return true;
        }
        if body.len() < len {
            return false;
        }
        match Hello::parse(body, len) {
            Ok(hello) => self.texts.take_hello(&hello, Transport::Quic),
            Err(_) => self.counts.hellos_malformed += 1,
        }
        true
    }

    #[cold]
    #[inline(never)]
    fn dns_over_udp(&mut self, p: &Payload<'_>, mut dns: Dns, sink: &mut impl HintSink) -> Stage {
        self.dns_message(p, p.bytes, is_cut(p), &mut dns, sink);
        Stage::Dns(dns)
    }

    fn dns_message(&mut self, p: &Payload<'_>, bytes: &[u8], cut: bool, dns: &mut Dns, sink: &mut impl HintSink) {
        self.texts.clear();
        let Some(message) = Message::read(bytes, cut, Check::Header, &mut self.texts.name) else {
            self.counts.dns_malformed += 1;
            return;
        };
        if !dns.hinted {
            dns.hinted = true;
            if message.questions_count > 0 {
                message.question(0, &mut self.texts.name);
            }
            self.texts.give(App::Dns, &mut self.counts, sink);
        }
        self.transactions.message(&message, &exchange(p), &mut self.counts, sink);
    }

    /// Messages behind their lengths (RFC 7766 section 8), any number in a segment, any number of segments to a message.
    #[cold]
    #[inline(never)]
    fn dns_over_tcp(&mut self, p: &Payload<'_>, mut dns: Dns, sink: &mut impl HintSink) -> Stage {
        let side = usize::from(!p.from_originator);
        let kept = if dns.partial[side] { self.assemblies.find(stream_key(p)) } else { None };
        let Some(slot) = kept else {
            let used = self.dns_messages(p, p.bytes, &mut dns, sink);
            let rest = &p.bytes[used..];
            dns.partial[side] = !rest.is_empty() && self.keep_dns(p, rest, used, &mut dns, sink);
            return Stage::Dns(dns);
        };
        let added = self.assemblies.add_segment(slot, p.seq, p.bytes);
        if matches!(added, Added::Same | Added::Ahead) && self.assemblies.count_segment(slot) {
            return Stage::Dns(dns);
        }
        self.dns_assembled(p, slot, added, dns, sink)
    }

    /// Reads what there is of messages in pieces.
    fn dns_assembled(
        &mut self,
        p: &Payload<'_>,
        slot: Slot,
        added: Added,
        dns: Dns,
        sink: &mut impl HintSink,
    ) -> Stage {
        let (side, mut dns) = (usize::from(!p.from_originator), dns);
        dns.partial[side] = true;
        let stream = std::mem::take(self.assemblies.bytes_mut());
        let used = self.dns_messages(p, &stream[self.assemblies.contiguous_range(slot)], &mut dns, sink);
        *self.assemblies.bytes_mut() = stream;
        self.assemblies.consume(slot, used);
        let within = used > 0 || self.assemblies.count_segment(slot);
        if added == Added::Oversized || !within || is_cut(p) {
            self.too_large(slot);
            dns.partial[side] = false;
        } else if self.assemblies.is_empty(slot) {
            self.assemblies.end(slot);
            dns.partial[side] = false;
        }
        Stage::Dns(dns)
    }

    /// Begins to keep what follows `used` bytes of a segment. Of a message that will not fit, what is there is read at once: its
    /// header and its question as a rule, and some answers.
    fn keep_dns(&mut self, p: &Payload<'_>, rest: &[u8], used: usize, dns: &mut Dns, sink: &mut impl HintSink) -> bool {
        let announced = rest.first_chunk().map_or(0, |len| usize::from(u16::from_be_bytes(*len)) + 2);
        if is_cut(p) || rest.len() >= 2 && !begins_dns(rest) {
            return false;
        }
        if announced.max(rest.len()) > self.limits.assembly_bytes_max {
            self.counts.assemblies_oversized += 1;
            if let Some(message) = rest.get(2..) {
                self.dns_message(p, message, true, dns, sink);
            }
            return false;
        }
        let seq = p.seq.wrapping_add(used as u32);
        let Some(slot) = self.assemblies.begin(stream_key(p), seq, p.clock, &mut self.counts) else { return false };
        self.assemblies.add_segment(slot, seq, rest);
        true
    }

    /// Takes in the messages at the front of a stream and returns how many bytes they were.
    fn dns_messages(&mut self, p: &Payload<'_>, stream: &[u8], dns: &mut Dns, sink: &mut impl HintSink) -> usize {
        let mut used = 0;
        while let Some(len) = stream[used..].first_chunk().map(|len| usize::from(u16::from_be_bytes(*len))) {
            let rest = &stream[used + 2..];
            if !begins_dns(&stream[used..]) {
                // Out of step: what is left of the segment is lost.
                self.counts.dns_malformed += 1;
                return stream.len();
            }
            let cut = rest.len() < len;
            if cut && !is_cut(p) {
                break;
            }
            self.dns_message(p, &rest[..rest.len().min(len)], cut, dns, sink);
            used += 2 + rest.len().min(len);
        }
        used
    }
}

/// Whether a TCP payload can be anything that is known: what decides the cost of all that is not.
#[inline]
fn tcp_is_worth_a_look(p: &Payload<'_>) -> bool {
    let Some(head) = p.bytes.first_chunk::<8>() else { return true };
    if is_text(head) {
        return true;
    }
    match head[0] {
        0x14..=0x18 => head[1] == 3,
        0x80 => head[2] == 1,
        0x13 => head[1] == b'B',
        0x10 => p.bytes.len() > 8 && (p.bytes[4..].starts_with(b"MQ") || p.bytes[5..].starts_with(b"MQ")),
        0x03 => head[1] == 0,
        0x05 => head[1] == 0x64,
        // Lengths: of NetBIOS, DNS, PostgreSQL, Kerberos.
        0x00 => true,
        _ => {
            let low = p.src_port.min(p.dst_port);
            matches!(low, 53 | 389 | 502 | 1194 | 3306) || is_tcp_length(p, head)
        }
    }
}

/// No byte has its top bit set, which one compare rules out for nearly all noise, and none is below the space but line
/// ends.
#[inline]
fn is_text(head: &[u8; 8]) -> bool {
    u64::from_ne_bytes(*head) & 0x8080_8080_8080_8080 == 0
        && head.iter().all(|b| *b >= 0x20 || *b == b'\r' || *b == b'\n')
}

/// The first two bytes count the others, as they do for DNS.
#[inline]
fn is_tcp_length(p: &Payload<'_>, head: &[u8; 8]) -> bool {
    u32::from(u16::from_be_bytes([head[0], head[1]])) + 2 == p.len
}

/// As [`tcp_is_worth_a_look`].
#[inline]
fn udp_is_worth_a_look(p: &Payload<'_>) -> bool {
    let Some(head) = p.bytes.first_chunk::<8>() else { return false };
    let low = p.src_port.min(p.dst_port);
    if low < 1024
        || low == 1194
        || low == 20000
        || [5353, 5355].contains(&p.src_port)
        || [5353, 5355].contains(&p.dst_port)
    {
        return true;
    }
    // Text, one question in a DNS message, a version of QUIC, STUN, WireGuard.
    is_text(head)
        || head[4] == 0 && Message::is_plausible(p.bytes)
        || head[0] & 0x80 != 0 && quic::is_long_header(p.bytes)
        || head[4..] == [0x21, 0x12, 0xa4, 0x42]
        || matches!(head, [1..=3, 0, 0, 0, ..])
}

/// A length that a DNS message can have, and its header as far as it is there.
fn begins_dns(bytes: &[u8]) -> bool {
    let Some((len, message)) = bytes.split_first_chunk() else { return false };
    u16::from_be_bytes(*len) >= 12 && (message.len() < 12 || Message::is_plausible(message))
}

/// The beginning of a stream on the port of DNS over TCP that is what it should be there, as far as one can tell.
fn is_dns_stream(p: &Payload<'_>, stream: &[u8]) -> bool {
    let on_53 = p.src_port == 53 || p.dst_port == 53;
    on_53 && (stream.len() < 2 || begins_dns(stream) && !is_client_hello(stream))
}

/// A record of TLS 1.0 to 1.3 that begins with a ClientHello (RFC 8446 sections 4 and 5.1), which reads as well as the beginning of
/// a DNS message of 5635 bytes.
fn is_client_hello(bytes: &[u8]) -> bool {
    matches!(bytes, [0x16, 3, 0..=4, _, _, handshake::CLIENT_HELLO, 0, ..])
}

/// The payload is one DNS message over TCP, to its last byte.
fn is_whole_dns(p: &Payload<'_>, scratch: &mut Text) -> bool {
    let Some((len, message)) = p.bytes.split_first_chunk() else { return false };
    usize::from(u16::from_be_bytes(*len)) == message.len()
        && !is_cut(p)
        && Message::read(message, false, Check::Whole, scratch).is_some()
}

/// The capture holds less of the payload than there was.
#[inline]
fn is_cut(p: &Payload<'_>) -> bool {
    (p.bytes.len() as u64) < u64::from(p.len)
}

fn stream_key(p: &Payload<'_>) -> StreamKey {
    StreamKey { flow_id: p.flow_id, from_originator: p.from_originator }
}

fn exchange(p: &Payload<'_>) -> Exchange {
    let base = DnsRecord {
        time: p.ts,
        flow_id: p.flow_id,
        tap: p.tap,
        client: p.src,
        server: p.dst,
        client_port: p.src_port,
        server_port: p.dst_port,
        proto: p.proto,
        vlan: p.vlan,
        ..DnsRecord::default()
    };
    Exchange { base, clock: p.clock }
}

#[cfg(test)]
mod tests;
