//! The sender: the kernel's own live frames, as fast as they go or paced.

use super::network::{self, SENDER};
use super::{CaptureBenchError, cpu};
use ::capture::{LiveFrames, worker};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Frames of one call at full speed: the kernel prepares its pages anew for each call, which is not to be seen.
const BURST_MAX: u32 = 1 << 17;
/// How often a paced sender sends: the bursts of a rate are what it carries in this time. Not less, since each call of the
/// kernel takes some 3 ms, most of them asleep: it has other processors forget and learn the program.
const PACE: Duration = Duration::from_millis(4);
/// What a paced sender that was held up makes good at most, in steps of `PACE`; the rest it leaves out, rather than send
/// a burst that no one asked for.
const LATE_MAX: u32 = 8;

/// Ethernet, IPv4, UDP.
const HEADER_BYTES: usize = 14 + 20 + 8;
/// The least that goes over an Ethernet wire, without its checksum.
pub const FRAME_BYTES_MIN: usize = 60;

/// Sends UDP frames of one size, in any number of flows, out of the sending end of the veth pair.
pub struct Generator {
    frames: LiveFrames,
    frame: Vec<u8>,
    core: usize,
}

/// What a sender did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Sent {
    /// Frames handed to the interface.
    pub frames: u64,
    /// How long it took.
    pub elapsed: Duration,
    /// Processor time of the sending thread, with the receive work that the kernel did on top of it.
    pub cpu: Duration,
}

/// How fast to send.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pace {
    /// As fast as it goes.
    Full,
    /// So many packets a second, in small bursts.
    PacketsPerSecond(f64),
}

impl Generator {
    /// Frames of `frame_bytes` in `flows` flows, sent from `core`.
    ///
    /// # Errors
    /// The kernel does not take the program.
    pub fn new(frame_bytes: usize, flows: u32, core: usize) -> Result<Generator, CaptureBenchError> {
        let frames = LiveFrames::with_flows(network::index_of(SENDER)?, flows)?;
        Ok(Generator { frames, frame: udp_frame(frame_bytes), core })
    }

    /// Sends on the calling thread, which it pins, until `stop`.
    ///
    /// # Errors
    /// The thread cannot be pinned, or the kernel does not send.
    pub fn run(&self, pace: Pace, stop: &AtomicBool) -> Result<Sent, CaptureBenchError> {
        worker::pin(self.core)?;
        let (start, cpu) = (Instant::now(), cpu::of_this_thread());
        let frames = match pace {
            Pace::Full => self.run_full(stop)?,
            Pace::PacketsPerSecond(rate) => self.run_paced(rate, stop)?,
        };
        Ok(Sent { frames, elapsed: start.elapsed(), cpu: cpu::of_this_thread() - cpu })
    }

    fn run_full(&self, stop: &AtomicBool) -> Result<u64, CaptureBenchError> {
        let mut sent = 0;
        while !stop.load(Ordering::Relaxed) {
            self.send(BURST_MAX)?;
            sent += u64::from(BURST_MAX);
        }
        Ok(sent)
    }

    fn run_paced(&self, rate: f64, stop: &AtomicBool) -> Result<u64, CaptureBenchError> {
        let a_burst = (rate * PACE.as_secs_f64()).max(1.0);
        let (mut sent, mut left_out, start) = (0_u64, 0.0, Instant::now());
        while !stop.load(Ordering::Relaxed) {
            let due = rate * start.elapsed().as_secs_f64() - sent as f64 - left_out;
            let now = due.min(a_burst * f64::from(LATE_MAX));
            left_out += due - now;
            if now >= a_burst {
                self.send(now as u32)?;
                sent += u64::from(now as u32);
            } else {
                std::thread::sleep(PACE.mul_f64((1.0 - now / a_burst).clamp(0.0, 1.0)));
            }
        }
        Ok(sent)
    }

    fn send(&self, count: u32) -> Result<(), CaptureBenchError> {
        self.frames.send(&self.frame, count).map_err(|source| CaptureBenchError::Send { source })
    }
}

/// A datagram from 10.1.0.1 to the discard port of 10.2.0.1, without UDP checksum. `LiveFrames` varies its source.
fn udp_frame(frame_bytes: usize) -> Vec<u8> {
    let mut frame = vec![0; frame_bytes.max(FRAME_BYTES_MIN)];
    let ip_bytes = (frame.len() - 14) as u16;
    frame[..6].copy_from_slice(&[2, 0, 0, 0, 0, 2]);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&[0x08, 0x00]);
    frame[14] = 0x45;
    frame[16..18].copy_from_slice(&ip_bytes.to_be_bytes());
    frame[22..24].copy_from_slice(&[64, 17]);
    frame[26..34].copy_from_slice(&[10, 1, 0, 1, 10, 2, 0, 1]);
    let checksum = checksum(&frame[14..34]);
    frame[24..26].copy_from_slice(&checksum.to_be_bytes());
    frame[34..36].copy_from_slice(&40_000_u16.to_be_bytes());
    frame[36..38].copy_from_slice(&9_u16.to_be_bytes());
    frame[38..40].copy_from_slice(&(ip_bytes - 20).to_be_bytes());
    debug_assert!(frame.len() >= HEADER_BYTES);
    frame
}

/// RFC 1071, of an even number of bytes.
fn checksum(bytes: &[u8]) -> u16 {
    let (words, _) = bytes.as_chunks::<2>();
    let mut sum: u32 = words.iter().map(|word| u32::from(u16::from_be_bytes(*word))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use wire::{Frame, Limits, LinkType, Nanos, TapId, decode, proto};

    #[test]
    fn the_frame_is_the_datagram_it_is_meant_to_be() {
        for bytes in [0, 60, 1514] {
            let data = udp_frame(bytes);
            let wire_len = data.len() as u32;
            assert_eq!(data.len(), bytes.max(60));
            let frame = Frame { data: &data, wire_len, ts: Nanos::ZERO, link: LinkType::Ethernet, tap: TapId(0) };
            let packet = decode(&frame, &Limits::default()).unwrap();
            assert_eq!((packet.key.proto, packet.ip_bytes), (proto::UDP, wire_len - 14));
            assert_eq!(packet.payload_len, wire_len - 42);
            assert_eq!(checksum(&data[14..34]), 0, "a right checksum sums up to nothing");
        }
    }
}
