//! Nanoseconds a payload costs, by kind: `cargo run --profile bench -p hints --example cost [KIND [ROUNDS]]`. One kind and a
//! number of rounds for counting instructions.

#[path = "../tests/support/mod.rs"]
mod support;

use hints::{InspectLimits, Inspector, Progress};
use std::hint::black_box;
use std::time::Instant;
use support::{Count, HTTP_REQUEST, Noise, client_hello, dns_answer, dns_query, payload, quic_initial};
use wire::{Nanos, proto};

const KINDS: [&str; 9] =
    ["nothing", "random-tcp", "random-udp", "hello", "hello-in-two", "http", "dns", "quic", "quic-server"];

fn main() {
    let mut args = std::env::args().skip(1);
    let only = args.next();
    let rounds = args.next().and_then(|n| n.parse().ok()).unwrap_or(200_000);
    for kind in KINDS.iter().filter(|kind| only.as_deref().is_none_or(|only| only == **kind)) {
        let best = (0..5).map(|_| measure(kind, rounds)).fold(f64::MAX, f64::min);
        println!("{kind:>14} {best:8.1} ns a payload");
    }
}

fn measure(kind: &str, rounds: u64) -> f64 {
    let mut inspector = Inspector::new(InspectLimits::default());
    let mut sink = Count::default();
    let hello = client_hello();
    let noise: Vec<[u8; 64]> = {
        let mut random = Noise(0x9e37_79b9_7f4a_7c15);
        (0..4096)
            .map(|_| {
                let mut bytes = [0; 64];
                random.fill(&mut bytes);
                bytes
            })
            .collect()
    };
    let initial = quic_initial();
    // Of the server: the same shape under keys that are not the client's.
    let mut foreign = initial.clone();
    foreign[8] ^= 1;
    let (query, answer) = (dns_query(7), dns_answer(7));
    let start = Instant::now();
    let mut payloads = 0;
    for round in 0..rounds {
        let time = round * 1000;
        let mut progress = Progress::default();
        let mut see = |bytes: &[u8], proto, port, from_client, seq| {
            let mut payload = payload(bytes, proto, port, from_client, round, time);
            payload.seq = seq;
            payloads += 1;
            if black_box(&progress).wants() {
                inspector.inspect(black_box(&payload), &mut progress, &mut sink);
            }
        };
        match kind {
            // What the loop itself costs.
            "nothing" => see(&[], proto::TCP, 40000, true, 0),
            "random-tcp" | "random-udp" => {
                let proto = if kind == "random-tcp" { proto::TCP } else { proto::UDP };
                for side in [true, true, false, false] {
                    let at = (round * 4 + u64::from(side)) % 4096;
                    see(&noise[at as usize], proto, 40000, side, 0);
                }
            }
            "hello" => see(&hello, proto::TCP, 443, true, 1000),
            "hello-in-two" => {
                see(&hello[..1000], proto::TCP, 443, true, 1000);
                see(&hello[1000..], proto::TCP, 443, true, 2000);
            }
            "http" => see(HTTP_REQUEST, proto::TCP, 80, true, 1000),
            "dns" => {
                see(&query, proto::UDP, 53, true, 0);
                see(&answer, proto::UDP, 53, false, 0);
            }
            "quic" => see(&initial, proto::UDP, 443, true, 0),
            _ => see(&foreign, proto::UDP, 443, false, 0),
        }
    }
    let spent = start.elapsed();
    inspector.advance(Nanos::MAX, &mut sink);
    black_box((sink.hints, sink.texts, sink.dns));
    spent.as_nanos() as f64 / payloads as f64
}
