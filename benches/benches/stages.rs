//! What each stage costs, per packet. Budgets: `BUDGET.md`.

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use flowtable::{FlowRecord, FlowSink, FlowTable, FlowTableConfig, Timeouts};
use std::hint::black_box;
use traffic::frames::{self, Link};
use traffic::{Config, Endless, EndlessConfig, Generator, Rng, Sizes};
use wire::{Frame, Limits, LinkType, Nanos, PacketMeta, TapId, decode};

const PACKETS: u64 = 100_000;
/// Frames of a decode round: more than fit the L2 cache, as in a live ring.
const FRAMES: usize = 16_384;

fn config(sizes: Sizes) -> Config {
    Config { packets: PACKETS, flows: 5_000, sizes, truth: false, ..Config::default() }
}

fn generate(c: &mut Criterion) {
    let mut group = c.benchmark_group("generate");
    group.throughput(Throughput::Elements(PACKETS));
    for (name, config) in [
        ("imix", config(Sizes::Imix)),
        ("60", config(Sizes::Fixed(60))),
        ("imix_with_truth", Config { truth: true, ..config(Sizes::Imix) }),
    ] {
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                || (Generator::new(config.clone()), Vec::with_capacity(2_048)),
                |(generator, buf)| while black_box(generator.next(buf)).is_some() {},
                BatchSize::PerIteration,
            )
        });
    }
    group.bench_function("endless", |b| {
        let mut endless = Endless::new(EndlessConfig::default());
        let mut buf = Vec::with_capacity(2_048);
        b.iter(|| {
            for _ in 0..PACKETS {
                black_box(endless.next(&mut buf));
            }
        })
    });
    group.finish();
}

/// Frames back to back in one buffer, as a capture file or a ring holds them.
struct Batch {
    bytes: Vec<u8>,
    /// Start and length.
    at: Vec<(usize, usize)>,
    link: LinkType,
}

impl Batch {
    fn generated(sizes: Sizes) -> Batch {
        let mut generator = Generator::new(config(sizes));
        let (mut bytes, mut at, mut buf) = (Vec::new(), Vec::new(), Vec::new());
        while at.len() < FRAMES
            && let Some(meta) = generator.next(&mut buf)
        {
            at.push((bytes.len(), meta.len as usize));
            bytes.extend_from_slice(&buf);
        }
        Batch { bytes, at, link: LinkType::Ethernet }
    }

    /// VLANs, labels, options, extension headers, fragments.
    fn odd() -> Batch {
        let mut rng = Rng::new(1);
        let (mut bytes, mut at) = (Vec::new(), Vec::new());
        while at.len() < FRAMES {
            let built = frames::random_on(Link::Ethernet, &mut rng);
            at.push((bytes.len(), built.bytes.len()));
            bytes.extend_from_slice(&built.bytes);
        }
        Batch { bytes, at, link: LinkType::Ethernet }
    }

    fn frames(&self) -> impl Iterator<Item = Frame<'_>> {
        self.at.iter().map(|(start, len)| Frame {
            data: &self.bytes[*start..start + len],
            wire_len: *len as u32,
            ts: Nanos(1),
            link: self.link,
            tap: TapId(0),
        })
    }
}

fn decoding(c: &mut Criterion) {
    let mut group = c.benchmark_group("decode");
    let limits = Limits::default();
    for (name, batch) in
        [("imix", Batch::generated(Sizes::Imix)), ("60", Batch::generated(Sizes::Fixed(60))), ("odd", Batch::odd())]
    {
        group.throughput(Throughput::Elements(batch.at.len() as u64));
        group.bench_function(name, |b| {
            b.iter(|| {
                for frame in batch.frames() {
                    let _ = black_box(decode(black_box(&frame), &limits));
                }
            })
        });
    }
    group.finish();
}

/// Decoded packets over many flows, as a worker hands them to its table.
fn packets(flows: u64) -> Vec<PacketMeta> {
    const PACKETS: u64 = 400_000;
    let config = Config { packets: PACKETS, flows, attacks: false, truth: false, ..Config::default() };
    let (mut generator, mut buf) = (Generator::new(config), Vec::new());
    let limits = Limits::default();
    let mut packets = Vec::new();
    while let Some(meta) = generator.next(&mut buf) {
        let frame =
            Frame { data: &buf, wire_len: meta.len, ts: Nanos(meta.ts_ns), link: LinkType::Ethernet, tap: TapId(0) };
        if let Ok(packet) = decode(&frame, &limits) {
            packets.push(PacketMeta { clock: packet.ts, ..packet });
        }
    }
    packets
}

struct Discard;

impl FlowSink for Discard {
    fn record(&mut self, record: &FlowRecord, _text: &[u8]) {
        black_box(record);
    }
}

fn flow_table(c: &mut Criterion) {
    let mut group = c.benchmark_group("flowtable");
    for (name, flows) in [("1k", 1_000), ("10k", 10_000), ("100k", 100_000)] {
        let packets = packets(flows);
        group.throughput(Throughput::Elements(packets.len() as u64));
        group.bench_function(name, |b| {
            b.iter_batched_ref(
                // Without timeouts: inserts and updates, no exports.
                || FlowTable::new(FlowTableConfig { timeouts: Timeouts::OFF, ..FlowTableConfig::default() }),
                |table| {
                    if let Ok(table) = table {
                        for batch in packets.chunks(256) {
                            table.process(batch, &mut Discard);
                        }
                    }
                },
                BatchSize::PerIteration,
            )
        });
    }
    group.finish();
}

criterion_group!(stages, generate, decoding, flow_table);
criterion_main!(stages);
