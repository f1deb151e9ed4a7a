//! Questions that wait for their answers.
//!
//! Each question of each query message becomes one row, and so does an answer whose query was not seen. A query that is
//! sent again under its id gets its own row at once, without an answer; the first one keeps waiting, so that the
//! latency tells what the client waited.

use super::Message;
use crate::expiring::{Expiring, Slot};
use crate::text::Text;
use crate::{DnsRecord, HintSink, InspectCounts, InspectLimits, TEXT_MAX};
use wire::{Nanos, proto};

/// What an answer has in common with its query.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
struct Key {
    flow_id: u64,
    /// Of the name without case (answers may change it) and the type.
    question: u64,
    id: u16,
}

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
}

impl Transactions {
    pub(crate) fn new(limits: &InspectLimits) -> Transactions {
        let empty = || Pending { record: DnsRecord::default(), question: Text::EMPTY };
        Transactions {
            pending: Expiring::new(limits.dns_pending_max, empty),
            timeout: limits.dns_timeout,
            question: Text::EMPTY,
            answers: Text::EMPTY,
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
            self.question.clear();
            counts.dns_unasked += 1;
            emit(record, &self.question, &self.answers, sink);
        }
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
        if self.pending.find(&key).is_some() {
            // Over TCP the id is not used again: a segment was.
            if record.proto != proto::TCP {
                emit(record, &self.question, &Text::EMPTY, sink);
            }
            return;
        }
        if self.pending.is_full()
            && let Some(oldest) = self.pending.oldest()
        {
            counts.dns_evicted += 1;
            self.give_up(oldest, sink);
        }
        if let Some(slot) = self.pending.insert(key, clock) {
            let pending = self.pending.value_mut(slot);
            pending.record = record;
            pending.question.clone_from(&self.question);
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
        let Some(slot) = self.pending.find(&key(&record, &self.question)) else {
            counts.dns_unasked += 1;
            emit(record, &self.question, &self.answers, sink);
            return;
        };
        let pending = self.pending.value(slot);
        let waited = (record.time - pending.record.time).as_micros();
        record.latency_us = Some(u32::try_from(waited).unwrap_or(u32::MAX));
        record.has_query = true;
        record.time = pending.record.time;
        // The query's own spelling.
        emit(record, &pending.question, &self.answers, sink);
        self.pending.remove(slot);
    }

    /// Exports queries that have waited for too long.
    #[inline]
    pub(crate) fn expire(&mut self, clock: Nanos, counts: &mut InspectCounts, sink: &mut impl HintSink) {
        if clock < self.timeout {
            return;
        }
        while let Some(slot) = self.pending.expired(clock - self.timeout) {
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
        emit(pending.record, &pending.question, &Text::EMPTY, sink);
        self.pending.remove(slot);
    }
}

fn key(record: &DnsRecord, question: &Text) -> Key {
    // FNV-1a: the table hashes what comes out with a key of its own.
    let byte = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let name = question.as_bytes().iter().map(u8::to_ascii_lowercase);
    let hash = record.qtype.to_be_bytes().into_iter().chain(name).fold(0xcbf2_9ce4_8422_2325, byte);
    Key { flow_id: record.flow_id, question: hash, id: record.id }
}

fn emit(mut record: DnsRecord, question: &Text, answers: &Text, sink: &mut impl HintSink) {
    let (question, answers) = (question.as_bytes(), answers.as_bytes());
    let mut text = [0; 2 * TEXT_MAX];
    text[..question.len()].copy_from_slice(question);
    text[question.len()..question.len() + answers.len()].copy_from_slice(answers);
    (record.question_len, record.answers_len) = (question.len() as u8, answers.len() as u8);
    sink.dns(&record, &text[..question.len() + answers.len()]);
}

const _: () = assert!(TEXT_MAX <= u8::MAX as usize);
