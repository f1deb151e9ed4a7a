//! Records and templates into messages, and the sequence numbers of a session.

use crate::config::{ExportConfig, Transport};
use crate::message::{Message, TEMPLATE_SET};
use crate::template::{Kind, Templates};
use flowtable::FlowRecord;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Longest record, bytes: IPv6, and a name of the longest length that takes one byte.
const RECORD_BYTES_MAX: usize = 512;

/// Encodes the messages of one session after the other.
pub(crate) struct Encoder {
    templates: Templates,
    message: Message,
    /// The templates alone, in as many messages as they take.
    template_message: Message,
    record: Vec<u8>,
    domain: u32,
    /// Data Records sent in this session, modulo 2^32: the Sequence Number of the next message.
    sequence: u32,
    refresh: Refresh,
    /// When the first record of the message came in.
    begun: Option<Instant>,
}

/// When templates are due.
struct Refresh {
    transport: Transport,
    interval: Duration,
    messages: u32,
    /// When they were sent in this session, and how many messages ago.
    sent: Option<(Instant, u32)>,
}

impl Refresh {
    /// Over UDP again and again, over TCP once (RFC 7011 sections 8.4 and 10.4).
    fn is_due(&self, now: Instant) -> bool {
        match self.sent {
            None => true,
            Some(_) if self.transport == Transport::Tcp => false,
            Some((at, messages)) => messages >= self.messages || now.duration_since(at) >= self.interval,
        }
    }
}

impl Encoder {
    pub(crate) fn new(config: &ExportConfig) -> Encoder {
        Encoder {
            templates: Templates::new(config.times),
            message: Message::new(config.message_bytes_max),
            template_message: Message::new(config.message_bytes_max),
            record: Vec::with_capacity(RECORD_BYTES_MAX),
            domain: config.observation_domain,
            sequence: 0,
            refresh: Refresh {
                transport: config.transport,
                interval: config.template_interval,
                messages: config.template_messages,
                sent: None,
            },
            begun: None,
        }
    }

    /// A new session: numbers begin at 0, templates are due. A message that could not be sent is kept.
    pub(crate) fn begin_session(&mut self) {
        self.sequence = 0;
        self.refresh.sent = None;
    }

    /// Adds a record to the message; `false` if it is full.
    pub(crate) fn add(&mut self, record: &FlowRecord, now: Instant) -> bool {
        let kind = Kind::of(record);
        self.record.clear();
        self.templates.put_record(kind, record, &mut self.record);
        debug_assert!(self.record.len() <= RECORD_BYTES_MAX);
        let added = self.message.add(kind.id(), &self.record);
        if added {
            self.begun.get_or_insert(now);
        }
        added
    }

    /// Records that wait in the message.
    pub(crate) fn records(&self) -> u32 {
        self.message.records()
    }

    /// How long the first of them has waited.
    pub(crate) fn age(&self, now: Instant) -> Duration {
        self.begun.map_or(Duration::ZERO, |begun| now.saturating_duration_since(begun))
    }

    /// Sends the templates, if they are due; gives the number of messages and bytes.
    ///
    /// # Errors
    /// Whatever `send` has met with; the templates are still due then.
    pub(crate) fn send_templates<E>(
        &mut self,
        now: Instant,
        mut send: impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(u64, u64), E> {
        if !self.refresh.is_due(now) {
            return Ok((0, 0));
        }
        let (mut messages, mut bytes) = (0, 0);
        self.template_message.clear();
        let mut kinds = Kind::ALL.into_iter().peekable();
        while let Some(kind) = kinds.peek() {
            self.record.clear();
            self.templates.put_template(*kind, &mut self.record);
            // One template fits into the smallest message allowed; `template_fits` holds that.
            let added = self.template_message.add(TEMPLATE_SET, &self.record);
            if added {
                kinds.next();
            }
            if !added || kinds.peek().is_none() {
                let sealed = self.template_message.seal(wall_seconds(), self.sequence, self.domain);
                send(sealed)?;
                messages += 1;
                bytes += sealed.len() as u64;
                self.template_message.clear();
            }
        }
        self.refresh.sent = Some((now, 0));
        Ok((messages, bytes))
    }

    /// Sends the message and begins the next; gives its records and bytes.
    ///
    /// # Errors
    /// Whatever `send` has met with; the message is kept then, to be sent in this session or the next.
    pub(crate) fn send_message<E>(&mut self, send: impl FnOnce(&[u8]) -> Result<(), E>) -> Result<(u32, u64), E> {
        let records = self.message.records();
        let sealed = self.message.seal(wall_seconds(), self.sequence, self.domain);
        send(sealed)?;
        let bytes = sealed.len() as u64;
        self.sequence = self.sequence.wrapping_add(records);
        if let Some((_, messages)) = &mut self.refresh.sent {
            *messages = messages.saturating_add(1);
        }
        self.message.clear();
        self.begun = None;
        Ok((records, bytes))
    }
}

/// Export Time: seconds since 1970 when the message leaves, by the wall clock (RFC 7011 section 3.1).
fn wall_seconds() -> u32 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs() as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{MESSAGE_BYTES_MIN, TimeUnit};
    use crate::message::HEADER_BYTES;

    #[test]
    fn template_fits() {
        let templates = Templates::new(TimeUnit::Nanoseconds);
        for kind in Kind::ALL {
            let (mut template, mut record) = (Vec::new(), Vec::new());
            templates.put_template(kind, &mut template);
            templates.put_record(kind, &FlowRecord::default(), &mut record);
            let room = usize::from(MESSAGE_BYTES_MIN) - HEADER_BYTES - 4;
            // A name takes 254 bytes at most.
            assert!(template.len() <= room && record.len() + 254 <= room.min(RECORD_BYTES_MAX), "{kind:?}");
        }
    }

    #[test]
    fn templates_are_split_over_small_messages() {
        let config = ExportConfig { message_bytes_max: 512, ..ExportConfig::new("h:1".parse().unwrap()) };
        let mut encoder = Encoder::new(&config);
        let now = Instant::now();
        let mut sizes = Vec::new();
        let mut keep = |bytes: &[u8]| -> Result<(), ()> {
            sizes.push(bytes.len());
            Ok(())
        };
        let (messages, bytes) = encoder.send_templates(now, &mut keep).unwrap();
        assert!(encoder.send_templates(now, &mut keep).unwrap() == (0, 0), "not due again yet");
        assert!(encoder.send_templates(now + Duration::from_secs(60), &mut keep).unwrap().0 > 0, "due after a minute");
        let first = &sizes[..messages as usize];
        assert!(first.len() > 1 && first.iter().all(|size| *size <= 512), "{sizes:?}");
        assert_eq!(first.iter().sum::<usize>() as u64, bytes);
    }
}
