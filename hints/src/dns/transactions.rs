//! Questions that wait for their answers.
//!
//! Each question of each query message becomes one row, and so does an answer whose query was not seen. A query that is
//! sent again under its id gets its own row at once, without an answer; the first one keeps waiting, so that the
//! latency tells what the client waited.

use super::Message;
use crate::text::Text;
use crate::{DnsRecord, HintSink, InspectCounts, InspectLimits, TEXT_MAX};
use memory::{Expiring, Slot};
use std::hash::{Hash, Hasher};
use wire::{Nanos, proto};

/// What an answer has in common with its query.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Key {
    flow_id: u64,
    /// Of the name without case (answers may change it) and the type.
    question: u64,
    id: u16,
}

impl Hash for Key {
    /// Without the question: an answer need not repeat it.
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.flow_id.hash(state);
        self.id.hash(state);
    }
}

/// Questions that may wait under one id in one flow: they lie in each other's way. More than one is hardly ever sent.
const ALIKE_MAX: usize = 32;

struct Pending {
    record: DnsRecord,
    question: Text,
}

/// Who said what when: a record with everything but the message in it.
pub(crate) struct Exchange {
    /// `client` and `server` are sender and receiver of the message.
    pub(crate) base: DnsRecord,
    pub(crate) clock: Nanos,
}

pub(crate) struct Transactions {
    pending: Expiring<Key, Pending>,
    timeout: Nanos,
    question: Text,
    answers: Text,
    /// Both, as they are handed over.
    texts: Box<[u8; 2 * TEXT_MAX]>,
}

impl Transactions {
    pub(crate) fn new(limits: &InspectLimits) -> Transactions {
        let empty = || Pending { record: DnsRecord::default(), question: Text::EMPTY };
        Transactions {
            pending: Expiring::new(limits.dns_pending_max, empty),
            timeout: limits.dns_timeout,
            question: Text::EMPTY,
            answers: Text::EMPTY,
            texts: Box::new([0; 2 * TEXT_MAX]),
        }
    }

    pub(crate) fn memory_bytes(&self) -> usize {
        self.pending.memory_bytes()
    }

    /// Takes a message in. Notifications and updates are questions as well; their opcode stands in the flags.
    pub(crate) fn message(
        &mut self,
        message: &Message<'_>,
        exchange: &Exchange,
        counts: &mut InspectCounts,
        sink: &mut impl HintSink,
    ) {
        counts.dns_messages += 1;
        let mut record = DnsRecord { id: message.id, flags: message.flags, ..exchange.base };
        record.answer_count = message.answer_count;
        if !message.is_response() {
            record.has_query = true;
            for index in 0..message.questions_count {
                self.query(message, index, record, exchange.clock, counts, sink);
            }
            return;
        }
        std::mem::swap(&mut record.client, &mut record.server);
        std::mem::swap(&mut record.client_port, &mut record.server_port);
        self.answers.clear();
        let answers = message.answers(&mut self.answers);
        record.rcode = Some(message.rcode(&answers));
        record.ttl_min = answers.ttl_min;
        for index in 0..message.questions_count {
            self.answer(message, index, record, counts, sink);
        }
        // Refused without repeating the question. Otherwise a response without one continues another (RFC 5936).
        if message.questions_count == 0 && record.rcode != Some(0) {
            self.refusal(record, counts, sink);
        }
    }

    /// Refused without repeating the question: that of the oldest query under its id.
    fn refusal(&mut self, mut record: DnsRecord, counts: &mut InspectCounts, sink: &mut impl HintSink) {
        let key = Key { flow_id: record.flow_id, question: 0, id: record.id };
        let of_id = |slot: &Slot| {
            let waiting = self.pending.key(*slot);
            (waiting.flow_id, waiting.id) == (key.flow_id, key.id)
        };
        let Some(slot) = self.pending.alike(&key).find(of_id) else {
            self.question.clear();
            counts.dns_unasked += 1;
            emit(record, &self.question, &self.answers, &mut self.texts, sink);
            return;
        };
        let pending = self.pending.value(slot);
        record.qtype = pending.record.qtype;
        answered(&mut record, pending);
        emit(record, &pending.question, &self.answers, &mut self.texts, sink);
        self.pending.remove(slot);
    }

    fn query(
        &mut self,
        message: &Message<'_>,
        index: usize,
        mut record: DnsRecord,
        clock: Nanos,
        counts: &mut InspectCounts,
        sink: &mut impl HintSink,
    ) {
        record.qtype = message.question(index, &mut self.question);
        let key = key(&record, &self.question);
        let (mut alike, mut is_there) = (0, false);
        for slot in self.pending.alike(&key) {
            alike += 1;
            is_there |= *self.pending.key(slot) == key;
        }
        if is_there {
            // Over TCP the id is not used again: a segment was.
            if record.proto != proto::TCP {
                emit(record, &self.question, NO_TEXT, &mut self.texts, sink);
            }
            return;
        }
        if alike >= ALIKE_MAX {
            counts.dns_evicted += 1;
            emit(record, &self.question, NO_TEXT, &mut self.texts, sink);
            return;
        }
        if self.pending.is_full()
            && let Some(oldest) = self.pending.oldest()
        {
            counts.dns_evicted += 1;
            self.give_up(oldest, sink);
        }
        if let Some(slot) = self.pending.insert(key, clock.0) {
            let pending = self.pending.value_mut(slot);
            pending.record = record;
            pending.question.copy_from(&self.question);
        }
    }

    fn answer(
        &mut self,
        message: &Message<'_>,
        index: usize,
        mut record: DnsRecord,
        counts: &mut InspectCounts,
        sink: &mut impl HintSink,
    ) {
        record.qtype = message.question(index, &mut self.question);
        let Some(pending) = self.pending.take(&key(&record, &self.question)) else {
            counts.dns_unasked += 1;
            emit(record, &self.question, &self.answers, &mut self.texts, sink);
            return;
        };
        answered(&mut record, pending);
        // The query's own spelling.
        emit(record, &pending.question, &self.answers, &mut self.texts, sink);
    }

    /// Exports queries that have waited for too long.
    #[inline]
    pub(crate) fn expire(&mut self, clock: Nanos, counts: &mut InspectCounts, sink: &mut impl HintSink) {
        if clock < self.timeout {
            return;
        }
        while let Some(slot) = self.pending.expired((clock - self.timeout).0) {
            counts.dns_unanswered += 1;
            self.give_up(slot, sink);
        }
    }

    /// Exports every query that still waits.
    pub(crate) fn finish(&mut self, counts: &mut InspectCounts, sink: &mut impl HintSink) {
        while let Some(slot) = self.pending.oldest() {
            counts.dns_unanswered += 1;
            self.give_up(slot, sink);
        }
    }

    fn give_up(&mut self, slot: Slot, sink: &mut impl HintSink) {
        let pending = self.pending.value(slot);
        emit(pending.record, &pending.question, NO_TEXT, &mut self.texts, sink);
        self.pending.remove(slot);
    }
}

/// The record of an answer becomes that of the whole exchange.
fn answered(record: &mut DnsRecord, query: &Pending) {
    let waited = (record.time - query.record.time).as_micros();
    record.latency_us = Some(u32::try_from(waited).unwrap_or(u32::MAX));
    record.has_query = true;
    record.time = query.record.time;
}

fn key(record: &DnsRecord, question: &Text) -> Key {
    // Eight bytes at a time, as in wyhash (Wang Yi, 2019); the table hashes what comes out with a key of its own.
    let word = |hash: u64, word: u64| {
        let product = u128::from(hash ^ lower_case(word)) * 0x9e37_79b9_7f4a_7c15;
        product as u64 ^ (product >> 64) as u64
    };
    let (words, rest) = question.as_bytes().as_chunks::<8>();
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    let start = word(0xcbf2_9ce4_8422_2325, u64::from(record.qtype) << 8 | question.as_bytes().len() as u64);
    let hash = words.iter().chain([&last]).fold(start, |hash, bytes| word(hash, u64::from_le_bytes(*bytes)));
    Key { flow_id: record.flow_id, question: hash, id: record.id }
}

/// Eight bytes of text, `A` to `Z` among them as `a` to `z`.
fn lower_case(word: u64) -> u64 {
    const EACH: u64 = 0x0101_0101_0101_0101;
    let low = word & (0x7f * EACH);
    // The top bit of each byte that is `A` or above, but not above `Z`, and no part of a longer character.
    let upper = (low + (0x80 - 0x41) * EACH) & !(low + (0x80 - 0x5b) * EACH) & !word & (0x80 * EACH);
    word | upper >> 2
}

const NO_TEXT: &Text = &Text::EMPTY;

fn emit(
    mut record: DnsRecord,
    question: &Text,
    answers: &Text,
    texts: &mut [u8; 2 * TEXT_MAX],
    sink: &mut impl HintSink,
) {
    let (question, answers) = (question.as_bytes(), answers.as_bytes());
    let whole = question.len() + answers.len();
    texts[..question.len()].copy_from_slice(question);
    texts[question.len()..whole].copy_from_slice(answers);
    (record.question_len, record.answers_len) = (question.len() as u8, answers.len() as u8);
    sink.dns(&record, &texts[..whole]);
}

const _: () = assert!(TEXT_MAX <= u8::MAX as usize);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_in_lower_case_whatever_stands_beside_it() {
        for byte in 0..=255_u8 {
            for beside in [0, 0x40, 0x5a, 0x7f, 0x80, 0xff] {
                let mut bytes = [beside; 8];
                bytes[3] = byte;
                let wanted = bytes.map(|byte| byte.to_ascii_lowercase());
                assert_eq!(lower_case(u64::from_le_bytes(bytes)).to_le_bytes(), wanted);
            }
        }
    }

    #[test]
    fn questions_are_told_apart_but_not_by_case() {
        let of = |qtype, name: &str| {
            let mut text = Text::EMPTY;
            text.push_str(name);
            key(&DnsRecord { qtype, ..DnsRecord::default() }, &text).question
        };
        assert_eq!(of(1, "WWW.Example.com"), of(1, "www.eXample.COM"));
        let names =
            ["", "a", "b", "aa", "www.example.com", "www.example.org", "www.example.com.", "www.exbmple.com", "a\\000"];
        let all: std::collections::HashSet<u64> =
            names.iter().flat_map(|name| [1, 28].map(|qtype| of(qtype, name))).collect();
        assert_eq!(all.len(), 2 * names.len());
    }
}
