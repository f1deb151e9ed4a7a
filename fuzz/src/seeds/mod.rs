//! What the fuzzers begin with: packets of the generator and messages made here, and, where there are some, the packets of
//! capture files.

mod capture_file;
mod messages;

use crate::decode::LINKS;
use crate::quic::seal_client;
use capture::{BatchHandler, FileOptions, FileSource, Polled, Source};
use std::collections::HashMap;
use traffic::frames::{self, Built, nested};
use traffic::{Config, Generator, Rng};
use wire::{Frame, Limits, LinkType, Nanos, PacketMeta, TapId, proto};

/// Longest seed, in bytes: beyond it a fuzzer gets slow.
const LEN_MAX: usize = 4096;
/// Seeds taken from one capture file for one target.
const PER_CAPTURE_MAX: usize = 40;
/// Frames of one seed of `flows`, and payloads of one of `inspector`.
const SEQUENCE_MAX: usize = 24;

/// Seeds made without any file, the same every time.
pub fn made(target: &str) -> Vec<Vec<u8>> {
    match target {
        "decode" => frames_of_all_kinds().map(|built| decode_seed(built.link.linktype(), &built.bytes)).collect(),
        "captures" => capture_file::files().into_iter().map(|file| [&[0, 0xf7][..], &file].concat()).collect(),
        "filter" => messages::filters(),
        "tls" => messages::tls_streams(),
        "dns" => dns_messages(),
        "quic" => {
            let mut datagrams: Vec<_> = messages::crypto_frames().iter().map(|f| seal_client(0, f)).collect();
            datagrams.extend(messages::crypto_frames());
            datagrams
        }
        "quic_sealed" => messages::sealed(),
        "http" => messages::http(),
        "signatures" => [messages::first_payloads(), messages::http(), dns_messages()].concat(),
        "inspector" => inspector_seeds(),
        "flows" => flow_seeds(),
        _ => Vec::new(),
    }
}

/// Seeds out of a capture file, by target: the file itself, its frames, their payloads. What is damaged ends it.
pub fn of_capture(file: &[u8]) -> HashMap<&'static str, Vec<Vec<u8>>> {
    let mut taken = Taken::default();
    taken.add("captures", [&[0, 0xf7][..], &file[..file.len().min(LEN_MAX)]].concat());
    let mut source =
        FileSource::from_reader("seeds", std::io::Cursor::new(file.to_vec()), TapId(0), &FileOptions::default());
    while let Ok(Polled::Packets(_)) = source.poll(&mut taken) {}
    taken.add_sequences();
    taken.seeds
}

fn link_number(link: LinkType) -> u8 {
    LINKS.iter().position(|known| *known == link).unwrap_or(LINKS.len() - 1) as u8
}

fn decode_seed(linktype: u16, frame: &[u8]) -> Vec<u8> {
    [&[link_number(LinkType::from_linktype(linktype)), 0xff, 0], frame].concat()
}

/// Every link type, header and tunnel that the generator has.
fn frames_of_all_kinds() -> impl Iterator<Item = Built> {
    let mut rng = Rng::new(1);
    let plain = frames::Link::ALL.map(|link| [(); 3].map(|()| frames::random_on(link, &mut rng))).into_iter().flatten();
    let mut rng = Rng::new(2);
    let one = nested::Kind::ALL
        .map(|kind| [(); 2].map(|()| nested::in_tunnels(&mut rng, &[kind]).frame))
        .into_iter()
        .flatten();
    let mut rng = Rng::new(3);
    let deeper = (2..10).map(move |depth| nested::random(&mut rng, depth).frame);
    plain.chain(one).chain(deeper)
}

fn traffic() -> Vec<(u64, Vec<u8>)> {
    let config =
        Config { packets: 3_000, flows: 40, duration_ns: 20_000_000_000, retransmit_ratio: 0.1, ..Config::default() };
    let (mut generator, mut frame, mut all) = (Generator::new(config), Vec::new(), Vec::new());
    while let Some(meta) = generator.next(&mut frame) {
        all.push((meta.ts_ns, frame.clone()));
    }
    all
}

fn dns_messages() -> Vec<Vec<u8>> {
    let frames = traffic();
    let payloads = frames.iter().filter_map(|(_, frame)| {
        let frame = Frame {
            data: frame,
            wire_len: frame.len() as u32,
            ts: Nanos::ZERO,
            link: LinkType::Ethernet,
            tap: TapId(0),
        };
        let meta = wire::decode(&frame, &Limits::default()).ok()?;
        let is_dns = meta.key.proto == proto::UDP && (meta.key.lo_port == 53 || meta.key.hi_port == 53);
        is_dns.then(|| meta.payload(&frame).to_vec())
    });
    payloads.take(30).chain(messages::dns()).collect()
}

/// Each first payload alone, and in pieces, on each port that is special to the inspector and over both transports.
fn inspector_seeds() -> Vec<Vec<u8>> {
    let payloads = [messages::first_payloads(), messages::tls_streams(), messages::http(), dns_messages()].concat();
    let sealed = messages::crypto_frames();
    let payloads = payloads.into_iter().chain(sealed.iter().map(|f| seal_client(0, f)));
    payloads
        .enumerate()
        .flat_map(|(n, payload)| (0..2).map(move |transport| inspector_seed(n as u8, transport, &payload)))
        .collect()
}

/// One payload as `inspector` reads it: in pieces of up to 254 bytes from the originator.
fn inspector_seed(port: u8, transport: u8, payload: &[u8]) -> Vec<u8> {
    let mut seed = vec![port & 7, transport, 1];
    for piece in payload.chunks(254).take(SEQUENCE_MAX) {
        // An even length is the originator's.
        let padding = piece.len() % 2;
        seed.push((piece.len() + padding) as u8);
        seed.extend(piece);
        seed.extend(&[0][..padding]);
    }
    seed
}

fn flow_seeds() -> Vec<Vec<u8>> {
    let frames = traffic();
    let of_traffic = frames
        .chunks(SEQUENCE_MAX)
        .step_by(4)
        .enumerate()
        .map(|(n, frames)| sequence(0, n as u8, frames.iter().map(|(_, frame)| &frame[..])));
    let odd: Vec<Built> = frames_of_all_kinds().collect();
    let odd = odd.iter().enumerate().map(|(n, built)| {
        let frame = &built.bytes[..];
        // The same packet again and again: sent twice, and a flow that goes on.
        sequence(link_number(LinkType::from_linktype(built.link.linktype())), n as u8, [frame; 3].into_iter())
    });
    of_traffic.chain(odd).collect()
}

/// Frames as `flows` reads them.
fn sequence<'a>(link: u8, n: u8, frames: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    let mut seed = vec![link, n.wrapping_mul(37), n.wrapping_mul(91), n & 3, n];
    for frame in frames.take(SEQUENCE_MAX) {
        let frame = &frame[..frame.len().min(400)];
        // 2 x 16^5 ns, 2 ms; now and then 268 ms.
        seed.push(if frame.len() % 7 == 0 { 0x38 } else { 0x2c });
        seed.extend((frame.len() as u16).to_le_bytes());
        seed.extend(frame);
        if seed.len() > LEN_MAX {
            break;
        }
    }
    seed
}

/// Seeds of one capture file.
#[derive(Default)]
struct Taken {
    seeds: HashMap<&'static str, Vec<Vec<u8>>>,
    /// Frames of the first link type, for `flows`.
    frames: Vec<Vec<u8>>,
    link: Option<LinkType>,
    /// Payloads by flow, for `inspector`.
    flows: HashMap<u64, Vec<Vec<u8>>>,
}

impl BatchHandler for Taken {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        for frame in frames.iter().filter(|frame| frame.data.len() <= LEN_MAX) {
            self.add("decode", decode_seed(frame.link.linktype(), frame.data));
            if *self.link.get_or_insert(frame.link) == frame.link && self.frames.len() < 4 * SEQUENCE_MAX {
                self.frames.push(frame.data.to_vec());
            }
            if let Ok(meta) = wire::decode(frame, &Limits::default()) {
                self.payload(&meta, meta.payload(frame));
            }
        }
    }

    fn idle(&mut self, _: Nanos) {}
}

impl Taken {
    fn add(&mut self, target: &'static str, seed: Vec<u8>) {
        let seeds = self.seeds.entry(target).or_default();
        // One of each length: what differs in bytes only, the fuzzer finds itself.
        if seeds.len() < PER_CAPTURE_MAX && seeds.iter().all(|known| known.len() != seed.len()) {
            seeds.push(seed);
        }
    }

    fn payload(&mut self, meta: &PacketMeta, payload: &[u8]) {
        let key = &meta.key;
        if payload.is_empty() || !matches!(key.proto, proto::TCP | proto::UDP) {
            return;
        }
        let on = |port: u16| key.lo_port == port || key.hi_port == port;
        let kind = match payload {
            _ if [53, 5353, 5355].into_iter().any(on) => "dns",
            [22, 3, ..] => "tls",
            [0x80..=0xff, ..] if key.proto == proto::UDP && on(443) => "quic",
            [b'A'..=b'Z', b'A'..=b'Z' | b'a'..=b'z', ..] => "http",
            _ => "signatures",
        };
        self.add(kind, payload.to_vec());
        let flow = self.flows.entry(key.stable_hash()).or_default();
        if flow.len() < 6 {
            flow.push(payload.to_vec());
        }
    }

    fn add_sequences(&mut self) {
        let frames = std::mem::take(&mut self.frames);
        let link = self.link.map_or(0, link_number);
        for (n, frames) in frames.chunks(SEQUENCE_MAX).enumerate() {
            self.add("flows", sequence(link, n as u8, frames.iter().map(|frame| &frame[..])));
        }
        let mut flows: Vec<_> = std::mem::take(&mut self.flows).into_iter().collect();
        flows.sort();
        for (n, (hash, payloads)) in flows.into_iter().enumerate() {
            self.add("inspector", inspector_seed(n as u8, hash as u8 & 1, &payloads.concat()));
        }
    }
}
