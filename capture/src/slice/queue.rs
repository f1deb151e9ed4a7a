//! Packets on their way from a worker to the writer: records in a bounded ring of bytes, one producer, one consumer.

use super::SliceId;
use rtrb::{Consumer, Producer, RingBuffer};
use std::cmp::Ordering;
use wire::{Frame, Nanos, TapId};

/// Bytes before the data of a record, little-endian: captured length u32, wire length u32, time u64, slice
/// u64, LINKTYPE_ u16, tap u16, 4 bytes unused.
const HEAD_BYTES: usize = 32;

/// A queue of at most `bytes` bytes. Its memory is reserved at once and backed when first used.
pub(super) fn queue(bytes: usize) -> (Sender, Receiver) {
    let (producer, consumer) = RingBuffer::new(bytes);
    (Sender { producer, bytes }, Receiver { consumer, order: 0 })
}

/// The worker's end.
pub(super) struct Sender {
    producer: Producer<u8>,
    bytes: usize,
}

/// What became of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    Yes,
    /// No room now.
    Full,
    /// There never will be.
    TooLong,
}

impl Sender {
    /// Appends the whole packet, or nothing.
    #[inline]
    pub(super) fn send(&mut self, slice: SliceId, frame: &Frame<'_>) -> Sent {
        self.send_leaving(0, slice, frame)
    }

    /// As [`send`](Self::send) for packets that can wait: they leave half of the queue to those that cannot.
    pub(super) fn send_patiently(&mut self, slice: SliceId, frame: &Frame<'_>) -> Sent {
        self.send_leaving(self.bytes / 2, slice, frame)
    }

    #[inline]
    fn send_leaving(&mut self, free: usize, slice: SliceId, frame: &Frame<'_>) -> Sent {
        let record_bytes = HEAD_BYTES + frame.data.len();
        let need = record_bytes + free;
        if need > self.bytes {
            return Sent::TooLong;
        }
        // The cached count is a lower bound that costs no look at the consumer's cache line.
        if self.producer.cached_slots() < need && self.producer.slots() < need {
            return Sent::Full;
        }
        let lengths = frame.data.len() as u64 | u64::from(frame.wire_len) << 32;
        let place = u64::from(frame.link.linktype()) | u64::from(frame.tap.0) << 16;
        let mut head = [0; HEAD_BYTES];
        for (word, value) in head.as_chunks_mut::<8>().0.iter_mut().zip([lengths, frame.ts.0, slice.0, place]) {
            *word = value.to_le_bytes();
        }
        // The room was seen just now and only this end takes it: both succeed. The receiver waits for the second.
        let sent = self.producer.push_entire_slice(&head).and_then(|()| self.producer.push_entire_slice(frame.data));
        debug_assert!(sent.is_ok(), "the queue lost room that was there");
        if sent.is_ok() { Sent::Yes } else { Sent::Full }
    }
}

/// The writer's end.
pub(super) struct Receiver {
    consumer: Consumer<u8>,
    order: u64,
}

/// A packet in the hands of the writer. Orders by time, and by arrival where that is equal.
#[derive(Debug)]
pub(super) struct Staged {
    pub(super) ts: Nanos,
    /// Arrival at its queue.
    order: u64,
    pub(super) wire_len: u32,
    /// LINKTYPE_ value.
    pub(super) link: u16,
    pub(super) tap: TapId,
    pub(super) data: Box<[u8]>,
}

impl Receiver {
    /// Whether the worker's end is gone. What it sent before can still be received.
    pub(super) fn is_abandoned(&self) -> bool {
        self.consumer.is_abandoned()
    }

    /// Takes out everything that was sent before the call. How many bytes that were.
    pub(super) fn receive(&mut self, mut take: impl FnMut(SliceId, Staged)) -> usize {
        let bytes = self.consumer.slots();
        let mut received = 0;
        while received < bytes {
            let Some((slice, staged)) = self.record() else { break };
            received += HEAD_BYTES + staged.data.len();
            take(slice, staged);
        }
        received
    }

    fn record(&mut self) -> Option<(SliceId, Staged)> {
        let mut head = [0; HEAD_BYTES];
        // Read, not taken out: the data may not be there yet.
        gather(self.consumer.read_chunk(HEAD_BYTES).ok()?.as_slices(), 0, &mut head);
        let words = head.as_chunks::<8>().0;
        let word = |n: usize| words.get(n).map_or(0, |word| u64::from_le_bytes(*word));
        let (lengths, ts, slice, place) = (word(0), word(1), word(2), word(3));
        let mut data = vec![0; lengths as u32 as usize].into_boxed_slice();
        let chunk = self.consumer.read_chunk(HEAD_BYTES + data.len()).ok()?;
        gather(chunk.as_slices(), HEAD_BYTES, &mut data);
        chunk.commit_all();
        self.order += 1;
        let staged = Staged {
            ts: Nanos(ts),
            order: self.order,
            wire_len: (lengths >> 32) as u32,
            link: place as u16,
            tap: TapId((place >> 16) as u16),
            data,
        };
        Some((SliceId(slice), staged))
    }
}

/// Copies what follows the first `skip` bytes of `parts`, joined, which are `skip + into.len()` bytes.
fn gather(parts: (&[u8], &[u8]), skip: usize, into: &mut [u8]) {
    let (first, second) = match parts.0.get(skip..) {
        Some(rest) => (rest, parts.1),
        None => (&parts.1[skip - parts.0.len()..], &[][..]),
    };
    let (into_first, into_second) = into.split_at_mut(first.len());
    into_first.copy_from_slice(first);
    into_second.copy_from_slice(second);
}

impl Staged {
    /// Memory it takes, roughly: itself, its data and what the allocator adds.
    pub(super) fn cost_bytes(&self) -> usize {
        size_of::<Staged>() + self.data.len() + 16
    }
}

impl Ord for Staged {
    fn cmp(&self, other: &Staged) -> Ordering {
        (self.ts, self.order).cmp(&(other.ts, other.order))
    }
}

impl PartialOrd for Staged {
    fn partial_cmp(&self, other: &Staged) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Staged {
    fn eq(&self, other: &Staged) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Staged {}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;
    use wire::LinkType;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        /// Any mix of lengths and readings, round the ring many times.
        #[test]
        fn packets_arrive_whole_and_in_order_or_not_at_all(
            steps in prop::collection::vec((0_usize..150, prop::bool::weighted(0.3), any::<bool>()), 1..300),
        ) {
            const BYTES: usize = 256;
            let (mut sender, mut receiver) = queue(BYTES);
            let mut model: VecDeque<(u64, Vec<u8>)> = VecDeque::new();
            for (i, (len, receives, patient)) in steps.into_iter().enumerate() {
                let data: Vec<u8> = (0..len).map(|b| (b + i) as u8).collect();
                let frame = Frame { data: &data, wire_len: 9, ts: Nanos(i as u64), link: LinkType::LinuxSll2, tap: TapId(3) };
                let sent = match patient {
                    true => sender.send_patiently(SliceId(u64::MAX - 1), &frame),
                    false => sender.send(SliceId(u64::MAX - 1), &frame),
                };
                let filled: usize = model.iter().map(|(_, data)| HEAD_BYTES + data.len()).sum();
                let need = HEAD_BYTES + len + if patient { BYTES / 2 } else { 0 };
                let expected = if need > BYTES { Sent::TooLong } else if filled + need > BYTES { Sent::Full } else { Sent::Yes };
                prop_assert_eq!(sent, expected);
                if sent == Sent::Yes {
                    model.push_back((i as u64, data));
                }
                if receives {
                    let mut got = Vec::new();
                    let bytes = receiver.receive(|slice, staged| {
                        assert_eq!((slice, staged.wire_len, staged.link, staged.tap), (SliceId(u64::MAX - 1), 9, 276, TapId(3)));
                        got.push((staged.ts.0, staged.data.to_vec()));
                    });
                    prop_assert_eq!(bytes, got.iter().map(|(_, data)| HEAD_BYTES + data.len()).sum::<usize>());
                    prop_assert_eq!(got, model.drain(..).collect::<Vec<_>>());
                }
            }
        }
    }

    #[test]
    fn threads_agree_on_every_packet() {
        let (mut sender, mut receiver) = queue(4096);
        let worker = std::thread::spawn(move || {
            let data: Vec<u8> = (0..=255).collect();
            for i in 0..20_000_u64 {
                let data = &data[..(i * 31 % 256) as usize];
                let frame = Frame { data, wire_len: 300, ts: Nanos(i), link: LinkType::Ethernet, tap: TapId(0) };
                while sender.send(SliceId(i), &frame) != Sent::Yes {
                    std::thread::yield_now();
                }
            }
        });
        let mut next = 0;
        while next < 20_000 {
            let before = next;
            receiver.receive(|slice, staged| {
                assert_eq!((slice.0, staged.ts.0, staged.data.len() as u64), (next, next, next * 31 % 256));
                assert!(staged.data.iter().enumerate().all(|(i, b)| *b == i as u8));
                next += 1;
            });
            if next == before {
                std::thread::yield_now();
            }
        }
        worker.join().unwrap();
        assert!(receiver.is_abandoned());
    }
}
