//! A DNS message (RFC 1035 section 4), read as far as it is there and makes sense.

use super::name;
use crate::cursor::{Cursor, u16_at};
use crate::text::Text;
use std::fmt::Write as _;
use std::net::Ipv6Addr;

/// Questions that are read; more than one is hardly ever sent.
pub(crate) const QUESTIONS_MAX: usize = 4;

/// Records that are stepped through, of all sections together.
const RECORDS_MAX: usize = 512;

const HEADER_LEN: usize = 12;

/// Record types (RFC 1035 section 3.2.2 and later).
mod rtype {
    pub(super) const A: u16 = 1;
    pub(super) const NS: u16 = 2;
    pub(super) const CNAME: u16 = 5;
    pub(super) const PTR: u16 = 12;
    pub(super) const MX: u16 = 15;
    pub(super) const TXT: u16 = 16;
    pub(super) const AAAA: u16 = 28;
    pub(super) const SRV: u16 = 33;
    pub(super) const DNAME: u16 = 39;
    pub(super) const OPT: u16 = 41;
    pub(super) const SVCB: u16 = 64;
    pub(super) const HTTPS: u16 = 65;
}

/// How sure one has to be that bytes are a message.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Check {
    /// The port, or the flow's past, says so: the questions have to be there.
    Header,
    /// Nothing but the bytes says so: all of it has to, to its last byte.
    Whole,
}

/// A question and where its type lies.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Question {
    name_at: u16,
    qtype: u16,
}

/// Header and questions of a message; answers are read on demand.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message<'a> {
    bytes: &'a [u8],
    pub(crate) id: u16,
    pub(crate) flags: u16,
    pub(crate) answer_count: u16,
    questions: [Question; QUESTIONS_MAX],
    pub(crate) questions_count: usize,
    /// Where the answers begin; 0 where the questions were cut.
    answers_at: usize,
}

/// What answers and OPT record say.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Answers {
    pub(crate) ttl_min: Option<u32>,
    /// Upper bits of the response code (RFC 6891 section 6.1.3).
    extended_rcode: u8,
    /// All records were read, and they end where the message does.
    whole: bool,
}

/// Opcodes in use: QUERY, IQUERY, STATUS, NOTIFY, UPDATE, DSO.
fn is_opcode(flags: u16) -> bool {
    [0, 1, 2, 4, 5, 6].contains(&(flags >> 11 & 15))
}

impl<'a> Message<'a> {
    /// A few compares that hardly anything but a message passes: one question (or none in a response), few records.
    #[inline]
    pub(crate) fn is_plausible(bytes: &[u8]) -> bool {
        let Some(header) = bytes.first_chunk::<HEADER_LEN>() else { return false };
        header[4] == 0
            && header[5] <= QUESTIONS_MAX as u8
            && is_opcode(u16::from_be_bytes([header[2], header[3]]))
            // Bit Z (RFC 1035 section 4.1.1).
            && header[3] & 0x40 == 0
            && (header[5] > 0 || header[2] & 0x80 != 0)
    }

    /// Reads header and questions. `cut`: the capture holds less of the message than there was.
    pub(crate) fn read(bytes: &'a [u8], cut: bool, check: Check, scratch: &mut Text) -> Option<Message<'a>> {
        if bytes.len() < HEADER_LEN || check == Check::Whole && !Message::is_plausible(bytes) {
            return None;
        }
        let word = |at| u16_at(bytes, at);
        let mut message = Message {
            bytes,
            id: word(0)?,
            flags: word(2)?,
            answer_count: word(6)?,
            questions: [Question::default(); QUESTIONS_MAX],
            questions_count: usize::from(word(4)?).min(QUESTIONS_MAX),
            answers_at: HEADER_LEN,
        };
        for index in 0..message.questions_count {
            let at = message.answers_at;
            scratch.clear();
            // What the name says is asked for below alone.
            let text = (check == Check::Whole).then_some(&mut *scratch);
            let read = name::read(bytes, at, text).and_then(|end| Some((end, word(end)?, word(end + 2)?)));
            let Some((end, qtype, class)) = read else {
                if index == 0 || !cut {
                    return None;
                }
                (message.questions_count, message.answers_at) = (index, 0);
                return Some(message);
            };
            // IN, CH, HS, NONE, ANY; the top bit asks for unicast (RFC 6762 section 5.4).
            let is_class = [1, 3, 4, 254, 255].contains(&(class & 0x7fff));
            if check == Check::Whole && !(qtype != 0 && is_class && name::is_plain(scratch)) {
                return None;
            }
            message.questions[index] = Question { name_at: at as u16, qtype };
            message.answers_at = end + 4;
        }
        if message.questions_count == 0 && !message.is_response() {
            return None;
        }
        if check == Check::Whole {
            let counts = [6, 8, 10].map(|at| u32::from(word(at).unwrap_or(u16::MAX)));
            let asks_only = message.is_response() || message.flags & 0x000f == 0 && counts[0] == 0;
            scratch.clear();
            if cut || message.questions_count == 0 || !asks_only || !message.answers(scratch).whole {
                return None;
            }
        }
        Some(message)
    }

    pub(crate) fn is_response(&self) -> bool {
        self.flags & 0x8000 != 0
    }

    /// Type of a question, with its name into `text`.
    pub(crate) fn question(&self, index: usize, text: &mut Text) -> u16 {
        let question = self.questions[index];
        text.clear();
        let read = name::read(self.bytes, usize::from(question.name_at), Some(text));
        debug_assert!(read.is_some(), "it was read before");
        question.qtype
    }

    /// Response code, with what OPT adds to it.
    pub(crate) fn rcode(&self, answers: &Answers) -> u16 {
        u16::from(answers.extended_rcode) << 4 | self.flags & 15
    }

    /// Walks through all records. Answers become text in `text`, separated by commas, as many as fit.
    pub(crate) fn answers(&self, text: &mut Text) -> Answers {
        let mut found = Answers::default();
        let [answers, authorities, additional] = [6, 8, 10].map(|at| u16_at(self.bytes, at).map_or(0, usize::from));
        let total = answers + authorities + additional;
        let mut at = self.answers_at;
        if at == 0 {
            return found;
        }
        for index in 0..total.min(RECORDS_MAX) {
            let Some((record, end)) = Record::read(self.bytes, at) else { return found };
            at = end;
            if index < answers {
                found.ttl_min = Some(found.ttl_min.map_or(record.ttl, |ttl| ttl.min(record.ttl)));
                record.push(self.bytes, text);
            } else if record.rtype == rtype::OPT {
                found.extended_rcode = (record.ttl >> 24) as u8;
            }
        }
        found.whole = total <= RECORDS_MAX && at == self.bytes.len();
        found
    }
}

struct Record {
    rtype: u16,
    ttl: u32,
    data_at: usize,
    end: usize,
}

impl Record {
    fn read(bytes: &[u8], at: usize) -> Option<(Record, usize)> {
        let head_at = name::read(bytes, at, None)?;
        let mut head = Cursor::new(bytes.get(head_at..)?);
        let (rtype, _class, ttl) = (head.u16()?, head.u16()?, head.u32()?);
        let len = usize::from(head.u16()?);
        let data_at = head_at + 10;
        head.take(len)?;
        Some((Record { rtype, ttl, data_at, end: data_at + len }, data_at + len))
    }

    /// The data as text, behind a comma where it is not the first. What does not fit whole is left out, except for a name
    /// or text that stands alone.
    fn push(&self, bytes: &[u8], text: &mut Text) {
        let data = &bytes[self.data_at..self.end];
        let kinds = [rtype::A, rtype::AAAA, rtype::NS, rtype::CNAME, rtype::PTR, rtype::DNAME, rtype::MX, rtype::TXT];
        if text.is_cut()
            || !kinds.contains(&self.rtype) && ![rtype::SRV, rtype::SVCB, rtype::HTTPS].contains(&self.rtype)
        {
            return;
        }
        let before = text.as_bytes().len();
        if before > 0 {
            text.push_printable(b",");
        }
        let start = text.as_bytes().len();
        let is_read = self.push_data(bytes, data, text).is_some() && text.as_bytes().len() > start;
        if !is_read || before > 0 && text.is_cut() {
            text.take_back(before);
        }
    }

    fn push_data(&self, bytes: &[u8], data: &[u8], text: &mut Text) -> Option<()> {
        let name_at =
            |at: usize, text: &mut Text| name::read(&bytes[..self.end], self.data_at + at, Some(text)).map(drop);
        match self.rtype {
            rtype::A => {
                let &[a, b, c, d] = data else { return None };
                for (index, octet) in [a, b, c, d].into_iter().enumerate() {
                    if index > 0 {
                        text.push_printable(b".");
                    }
                    text.push_number(u32::from(octet));
                }
                Some(())
            }
            rtype::AAAA => {
                let octets: [u8; 16] = data.try_into().ok()?;
                write!(text, "{}", Ipv6Addr::from(octets)).ok()
            }
            rtype::MX | rtype::SVCB | rtype::HTTPS => {
                text.push_number(u32::from(u16_at(data, 0)?));
                text.push_printable(b" ");
                name_at(2, text)
            }
            rtype::SRV => {
                for at in [0, 2, 4] {
                    text.push_number(u32::from(u16_at(data, at)?));
                    text.push_printable(b" ");
                }
                name_at(6, text)
            }
            rtype::TXT => {
                let mut strings = Cursor::new(data);
                while let Some(string) = strings.vec8() {
                    text.push_lossy(string);
                }
                Some(())
            }
            _ => name_at(0, text),
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn labels(name: &str) -> Vec<u8> {
        let labels = name.split('.').filter(|l| !l.is_empty());
        let mut out: Vec<u8> = labels.flat_map(|l| [&[l.len() as u8], l.as_bytes()].concat()).collect();
        out.push(0);
        out
    }

    pub(crate) fn query(id: u16, name: &str, qtype: u16) -> Vec<u8> {
        let mut out = id.to_be_bytes().to_vec();
        out.extend([1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
        out.extend(labels(name));
        out.extend([qtype.to_be_bytes(), [0, 1]].concat());
        out
    }

    /// A response to [`query`] with answers of type, ttl and data, all of the question's name.
    pub(crate) fn response(id: u16, name: &str, qtype: u16, rcode: u8, answers: &[(u16, u32, Vec<u8>)]) -> Vec<u8> {
        let mut out = query(id, name, qtype);
        (out[2], out[3], out[7]) = (0x81, 0x80 | rcode, answers.len() as u8);
        for (rtype, ttl, data) in answers {
            out.extend([0xc0, 12]);
            out.extend(rtype.to_be_bytes());
            out.extend([0, 1]);
            out.extend(ttl.to_be_bytes());
            out.extend((data.len() as u16).to_be_bytes());
            out.extend(data);
        }
        out
    }

    fn answers_text(message: &[u8]) -> (String, Answers, u16) {
        let (mut text, mut scratch) = (Text::EMPTY, Text::EMPTY);
        let message = Message::read(message, false, Check::Whole, &mut scratch).expect("a message");
        let answers = message.answers(&mut text);
        (text.as_str().to_owned(), answers, message.rcode(&answers))
    }

    #[test]
    fn answers_of_all_kinds_become_text() {
        let mut v6 = vec![0x20, 1, 0x0d, 0xb8];
        v6.extend([0; 11]);
        v6.push(1);
        let answers = [
            (5, 300, vec![1, b'c', 0xc0, 12]),
            (1, 60, vec![192, 0, 2, 1]),
            (28, 90, v6),
            (15, 90, [&[0, 10][..], &labels("mx.example")].concat()),
            (16, 90, b"\x01a\x02bc".to_vec()),
            (33, 90, [&[0, 1, 0, 2, 0, 80][..], &labels("srv")].concat()),
            (65, 90, vec![0, 1, 0]),
            (99, 90, vec![1, 2, 3]),
            (1, 90, vec![1, 2, 3]),
        ];
        let (text, found, rcode) = answers_text(&response(1, "example.com", 1, 0, &answers));
        assert_eq!(text, "c.example.com,192.0.2.1,2001:db8::1,10 mx.example,abc,1 2 80 srv,1 <Root>");
        assert_eq!((found.ttl_min, rcode), (Some(60), 0));
    }

    #[test]
    fn response_codes_are_extended_by_opt() {
        let mut message = response(1, "a.b", 1, 3, &[]);
        message[11] = 1;
        message.extend([0, 0, 41, 4, 0, 1, 0, 0, 0, 0, 0]);
        assert_eq!(answers_text(&message).2, 0x13);
    }

    #[test]
    fn answers_that_do_not_fit_are_left_out_whole() {
        let answers = vec![(1, 1, vec![100, 100, 100, 100]); 40];
        let (text, ..) = answers_text(&response(1, "a", 1, 0, &answers));
        assert_eq!(text.len(), 15 * 16 + 15);
        assert!(text.split(',').all(|a| a == "100.100.100.100"));
    }

    /// A text is cut at a character; nothing follows what was cut, and nothing is cut that does not stand alone.
    #[test]
    fn texts_are_cut_only_alone() {
        let txt = |text: &[u8]| (16, 1, [&[text.len() as u8][..], text].concat());
        let long = [&[b'a'; 252][..], "\u{10348}".as_bytes()].concat()[..255].to_vec();
        let whole = [&[b'a'; 252][..], "\u{e9}".as_bytes()].concat();
        let of = |answers: &[(u16, u32, Vec<u8>)]| answers_text(&response(1, "a", 16, 0, answers)).0;
        assert_eq!(of(&[txt(&long), txt(b"bc")]), format!("{}\u{fffd}", "a".repeat(252)));
        assert_eq!(of(&[txt(b"a"), txt(&whole)]), "a");
        assert_eq!(of(&[txt(b"a"), txt(&[b'b'; 254]), txt(b"c")]), "a,c");
    }

    #[test]
    fn every_truncation_fails_the_whole_check() {
        let whole = response(7, "www.example.com", 1, 0, &[(1, 5, vec![1, 2, 3, 4])]);
        let mut scratch = Text::EMPTY;
        assert!(Message::read(&whole, false, Check::Whole, &mut scratch).is_some());
        for end in 0..whole.len() {
            assert!(Message::read(&whole[..end], false, Check::Whole, &mut scratch).is_none());
            // The question ends at 33.
            assert_eq!(Message::read(&whole[..end], true, Check::Header, &mut scratch).is_some(), end >= 33);
        }
        let longer = [&whole[..], &[0]].concat();
        assert!(Message::read(&longer, false, Check::Whole, &mut scratch).is_none());
    }

    #[test]
    fn headers_of_other_things_are_refused() {
        let query = query(1, "a.b", 1);
        let mut scratch = Text::EMPTY;
        for (at, value) in [(2, 0x18), (3, 0x40), (4, 1), (5, 0), (5, 9), (12, 9), (13, 0), (18, 0), (19, 9)] {
            let mut other = query.clone();
            other[at] = value;
            assert!(Message::read(&other, false, Check::Whole, &mut scratch).is_none(), "byte {at}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(mut bytes in prop::collection::vec(any::<u8>(), 0..300), whole in any::<bool>(), cut in any::<bool>()) {
            let (mut scratch, mut text) = (Text::EMPTY, Text::EMPTY);
            if let Some(head) = bytes.first_chunk_mut::<12>() {
                (head[2], head[3], head[4], head[5]) = (0x81, 0x80, 0, head[5] & 3);
                (head[6], head[8], head[10]) = (0, 0, 0);
            }
            let check = if whole { Check::Whole } else { Check::Header };
            if let Some(message) = Message::read(&bytes, cut, check, &mut scratch) {
                message.answers(&mut text);
                for index in 0..message.questions_count {
                    message.question(index, &mut scratch);
                }
            }
        }
    }
}
