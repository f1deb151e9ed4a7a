//! Reads captures and prints what was in them and what a packet cost: the floor under every replay.
//!
//! `cargo run --release -p capture --example count -- FILE...`

use capture::{BatchHandler, FileOptions, FileSource, Source, SourceError, worker};
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use wire::{Frame, Nanos, TapId};

/// Touches the first cache line of each frame, as a decoder would.
#[derive(Default)]
struct Touch(u64);

impl BatchHandler for Touch {
    fn batch(&mut self, frames: &[Frame<'_>]) {
        for frame in frames {
            self.0 += frame.data.get(12).copied().map_or(0, u64::from);
        }
    }
    fn idle(&mut self, _: Nanos) {}
}

fn main() -> Result<(), SourceError> {
    for path in std::env::args_os().skip(1) {
        let mut source = FileSource::open(&path, TapId(0), &FileOptions::default())?;
        let mut touch = Touch::default();
        let began = Instant::now();
        let result = worker::run(&mut source, &mut touch, &AtomicBool::new(false));
        let ns = began.elapsed().as_nanos() as f64;
        let counts = source.counts();
        println!(
            "{}: {} packets, {} bytes on the wire, {:.1} ns a packet (checksum {})",
            source.name(),
            counts.delivered,
            counts.wire_bytes,
            ns / counts.delivered.max(1) as f64,
            touch.0
        );
        result?;
    }
    Ok(())
}
