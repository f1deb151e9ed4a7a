//! Bytes of netlink messages: writing requests, reading answers. No message can make a reader panic or read beyond it.
//!
//! Format: netlink(7), linux/netlink.h. A datagram holds messages, a message a fixed header and attributes, an attribute
//! a length, a type and a value which may be attributes again; everything starts at a multiple of four bytes, in the
//! machine's byte order.

/// Bytes of `struct nlmsghdr`.
const HEADER_BYTES: usize = 16;
/// Bytes of `struct nlattr`.
const ATTRIBUTE_HEADER_BYTES: usize = 4;
/// The two upper bits of an attribute's type are flags.
const ATTRIBUTE_TYPE_MASK: u16 = 0x3fff;

/// Flag of an acknowledgement whose copy of the request is its header only.
const NLM_F_CAPPED: u16 = 0x100;
/// Flag of an acknowledgement with attributes behind it.
const NLM_F_ACK_TLVS: u16 = 0x200;
/// Attribute of an acknowledgement: the reason, in words.
const NLMSGERR_ATTR_MSG: u16 = 1;

/// A message that contradicts its own lengths.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} of {have} bytes, expected {need}")]
pub(super) struct Malformed {
    /// Which part.
    pub(super) what: &'static str,
    /// Bytes found.
    pub(super) have: usize,
    /// Bytes it has to have at least.
    pub(super) need: usize,
}

/// A request under construction; always whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Request {
    bytes: Vec<u8>,
}

impl Request {
    /// A request of type `kind` with its fixed header, whose length is padded.
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Request {
        let mut bytes = Vec::with_capacity(128);
        bytes.extend(0_u32.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 8]);
        bytes.extend(fixed);
        let mut request = Request { bytes };
        request.pad();
        request
    }

    /// Appends an attribute.
    ///
    /// # Panics
    /// If the value has more than 65,531 bytes; all of ours are names and numbers.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Request {
        let length = u16::try_from(ATTRIBUTE_HEADER_BYTES + value.len()).expect("an attribute of ours is short");
        self.bytes.extend(length.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value);
        self.pad();
        self
    }

    pub(super) fn u32(self, kind: u16, value: u32) -> Request {
        self.attribute(kind, &value.to_ne_bytes())
    }

    /// Appends a NUL-terminated text.
    pub(super) fn text(self, kind: u16, value: &str) -> Request {
        let mut bytes = value.as_bytes().to_vec();
        bytes.push(0);
        self.attribute(kind, &bytes)
    }

    /// Appends an attribute made of the attributes of `inner`.
    pub(super) fn nested(self, kind: u16, inner: &Nest) -> Request {
        self.attribute(kind | libc::NLA_F_NESTED as u16, &inner.bytes)
    }

    /// The message, with a sequence number and an answer that is asked for by `flags`.
    pub(super) fn numbered(&mut self, sequence: u32) -> &[u8] {
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }

    fn pad(&mut self) {
        self.bytes.resize(align(self.bytes.len()), 0);
        let length = self.bytes.len() as u32;
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
    }
}

/// Attributes that go into one attribute.
#[derive(Clone, Debug, Default)]
pub(super) struct Nest {
    bytes: Vec<u8>,
}

impl Nest {
    pub(super) fn u32(mut self, kind: u16, value: u32) -> Nest {
        self.bytes.extend(8_u16.to_ne_bytes());
        self.bytes.extend(kind.to_ne_bytes());
        self.bytes.extend(value.to_ne_bytes());
        self
    }
}

/// A message of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message<'a> {
    pub(super) kind: u16,
    pub(super) flags: u16,
    pub(super) sequence: u32,
    /// All behind the header.
    pub(super) body: &'a [u8],
}

/// Messages of a datagram, in turn. Ends after the first that is malformed.
#[derive(Clone, Debug)]
pub(super) struct Messages<'a> {
    rest: &'a [u8],
}

impl<'a> Messages<'a> {
    pub(super) fn new(datagram: &'a [u8]) -> Messages<'a> {
        Messages { rest: datagram }
    }

    fn take(&mut self) -> Result<Message<'a>, Malformed> {
        let bytes = self.rest;
        let header: &[u8; HEADER_BYTES] = bytes.first_chunk().ok_or(short("message header", bytes, HEADER_BYTES))?;
        let length = u32_at(header, 0) as usize;
        if length < HEADER_BYTES {
            return Err(Malformed { what: "message", have: length, need: HEADER_BYTES });
        }
        let body = bytes.get(HEADER_BYTES..length).ok_or(short("datagram", bytes, length))?;
        self.rest = bytes.get(align(length)..).unwrap_or_default();
        let kinds = u32_at(header, 4).to_ne_bytes();
        Ok(Message {
            kind: u16::from_ne_bytes([kinds[0], kinds[1]]),
            flags: u16::from_ne_bytes([kinds[2], kinds[3]]),
            sequence: u32_at(header, 8),
            body,
        })
    }
}

impl<'a> Iterator for Messages<'a> {
    type Item = Result<Message<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let message = self.take();
        if message.is_err() {
            self.rest = &[];
        }
        Some(message)
    }
}

/// The end of an answer: NLMSG_ERROR (an acknowledgement, too), or NLMSG_DONE.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    /// 0, or a positive errno.
    pub(super) errno: i32,
    /// What the kernel has to say about it: extended ACK.
    pub(super) text: Option<String>,
}

impl Outcome {
    /// Reads the body of a message of type NLMSG_ERROR or NLMSG_DONE. A DONE without a body means success.
    pub(super) fn parse(message: &Message<'_>) -> Result<Outcome, Malformed> {
        let body = message.body;
        let is_error = i32::from(message.kind) == libc::NLMSG_ERROR;
        let Some(code) = body.first_chunk::<4>() else {
            return if is_error {
                Err(short("acknowledgement", body, 4))
            } else {
                Ok(Outcome { errno: 0, text: None })
            };
        };
        let errno = i32::from_ne_bytes(*code).checked_neg().unwrap_or(libc::EIO).max(0);
        let text = if message.flags & NLM_F_ACK_TLVS == 0 { None } else { reason(message, body, is_error) };
        Ok(Outcome { errno, text })
    }
}

/// The text is a courtesy: what is wrong with it must not hide the errno.
fn reason(message: &Message<'_>, body: &[u8], is_error: bool) -> Option<String> {
    let behind = match is_error {
        false => 4,
        true if message.flags & NLM_F_CAPPED != 0 => 4 + HEADER_BYTES,
        // The request as it was sent, whose length its header says.
        true => 4 + align((u32_at(body.get(4..)?.first_chunk::<HEADER_BYTES>()?, 0) as usize).max(HEADER_BYTES)),
    };
    let found = Attributes::new(body.get(behind..)?).map_while(Result::ok).find(|a| a.kind == NLMSGERR_ATTR_MSG)?;
    let text = found.text();
    (!text.is_empty()).then_some(text)
}

/// One attribute.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Attribute<'a> {
    /// Type without its flags.
    pub(super) kind: u16,
    pub(super) value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub(super) fn u16(&self) -> Result<u16, Malformed> {
        self.number().map(u16::from_ne_bytes)
    }

    pub(super) fn u32(&self) -> Result<u32, Malformed> {
        self.number().map(u32::from_ne_bytes)
    }

    pub(super) fn i32(&self) -> Result<i32, Malformed> {
        self.number().map(i32::from_ne_bytes)
    }

    /// A number of four or eight bytes: type `uint` of the YAML families, and u64.
    pub(super) fn uint(&self) -> Result<u64, Malformed> {
        if self.value.len() == 4 { self.u32().map(u64::from) } else { self.number().map(u64::from_ne_bytes) }
    }

    /// A text, up to its NUL or its end. Interface names are bytes; what is not UTF-8 is replaced.
    pub(super) fn text(&self) -> String {
        text(self.value)
    }

    /// The attributes inside.
    pub(super) fn nested(&self) -> Attributes<'a> {
        Attributes::new(self.value)
    }

    fn number<const N: usize>(&self) -> Result<[u8; N], Malformed> {
        self.value.try_into().map_err(|_| short("attribute", self.value, N))
    }
}

/// Attributes behind a fixed header, in turn. Ends after the first that is malformed.
#[derive(Clone, Debug)]
pub(super) struct Attributes<'a> {
    rest: &'a [u8],
}

impl<'a> Attributes<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Attributes<'a> {
        Attributes { rest: bytes }
    }

    /// Splits a message body into its fixed header and the attributes.
    pub(super) fn behind<const N: usize>(body: &'a [u8]) -> Result<(&'a [u8; N], Attributes<'a>), Malformed> {
        let fixed = body.first_chunk().ok_or(short("fixed header", body, N))?;
        Ok((fixed, Attributes::new(body.get(align(N)..).unwrap_or_default())))
    }

    fn take(&mut self) -> Result<Attribute<'a>, Malformed> {
        let bytes = self.rest;
        let need = ATTRIBUTE_HEADER_BYTES;
        let header: &[u8; ATTRIBUTE_HEADER_BYTES] =
            bytes.first_chunk().ok_or(short("attribute header", bytes, need))?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        if length < need {
            return Err(Malformed { what: "attribute", have: length, need });
        }
        let value = bytes.get(need..length).ok_or(short("attributes", bytes, length))?;
        self.rest = bytes.get(align(length)..).unwrap_or_default();
        Ok(Attribute { kind: u16::from_ne_bytes([header[2], header[3]]) & ATTRIBUTE_TYPE_MASK, value })
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Result<Attribute<'a>, Malformed>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let attribute = self.take();
        if attribute.is_err() {
            self.rest = &[];
        }
        Some(attribute)
    }
}

/// Text of a NUL-padded field.
pub(super) fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// The number at `at`, which every caller has checked to be inside.
pub(super) fn u32_at<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from_ne_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn short(what: &'static str, bytes: &[u8], need: usize) -> Malformed {
    Malformed { what, have: bytes.len(), need }
}

/// Up to the next multiple of four. A length near the end of `usize` stays what it is: there is nothing behind it.
fn align(length: usize) -> usize {
    length.checked_next_multiple_of(4).unwrap_or(length)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = ((HEADER_BYTES + body.len()) as u32).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(body);
        bytes
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(align(bytes.len()), 0);
        bytes
    }

    #[test]
    fn a_request_is_the_bytes_of_the_format() {
        let nest = Nest::default().u32(1, 5);
        let mut request = Request::new(18, 0x301, &[9; 3]).text(3, "veth0").u32(29, 8).nested(1, &nest);
        let mut expected = message(18, 0x301, 77, &[]);
        expected.extend([9, 9, 9, 0]);
        expected.extend(attribute(3, b"veth0\0"));
        expected.extend(attribute(29, &8_u32.to_ne_bytes()));
        expected.extend(attribute(0x8001, &attribute(1, &5_u32.to_ne_bytes())));
        let length = expected.len() as u32;
        expected[..4].copy_from_slice(&length.to_ne_bytes());
        assert_eq!(request.numbered(77), expected);
        assert_eq!(length % 4, 0);
    }

    #[test]
    fn messages_follow_each_other_at_multiples_of_four() {
        let mut datagram = message(16, 2, 5, &[1, 2, 3]);
        datagram.push(0);
        datagram.extend(message(3, 2, 5, &0_i32.to_ne_bytes()));
        let all: Vec<_> = Messages::new(&datagram).collect::<Result<_, _>>().unwrap();
        assert_eq!(all[0], Message { kind: 16, flags: 2, sequence: 5, body: &[1, 2, 3] });
        assert_eq!(all[1].kind, 3);
        assert_eq!(all.len(), 2);
    }

    #[test]
    fn wrong_lengths_of_messages_are_errors_and_end_the_datagram() {
        let whole = message(16, 0, 1, &[7; 8]);
        for (length, what) in [(0_u32, "message"), (15, "message"), (25, "datagram"), (u32::MAX, "datagram")] {
            let mut bytes = whole.clone();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            let mut messages = Messages::new(&bytes);
            assert_eq!(messages.next().unwrap().unwrap_err().what, what, "length {length}");
            assert!(messages.next().is_none());
        }
        for cut in 1..whole.len() {
            assert!(Messages::new(&whole[..cut]).next().unwrap().is_err(), "cut to {cut}");
        }
    }

    #[test]
    fn wrong_lengths_of_attributes_are_errors_and_end_the_list() {
        let mut bytes = attribute(3, b"lo\0");
        bytes.extend(attribute(4, &65536_u32.to_ne_bytes()));
        let all: Vec<_> = Attributes::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!((all[0].text(), all[1].u32().unwrap()), ("lo".to_owned(), 65536));
        assert_eq!(all[0].u32().unwrap_err(), Malformed { what: "attribute", have: 3, need: 4 });
        assert_eq!(all[1].u16().unwrap_err(), Malformed { what: "attribute", have: 4, need: 2 });
        assert_eq!(all[1].uint().unwrap(), 65536);
        for cut in 9..bytes.len() {
            assert!(Attributes::new(&bytes[..cut]).any(|a| a.is_err()), "cut to {cut}");
        }
        for length in [0_u16, 3, 9, u16::MAX] {
            let mut bytes = attribute(4, &[0; 4]);
            bytes[..2].copy_from_slice(&length.to_ne_bytes());
            let mut attributes = Attributes::new(&bytes);
            assert!(attributes.next().unwrap().is_err(), "length {length}");
            assert!(attributes.next().is_none());
        }
    }

    #[test]
    fn the_last_attribute_may_lack_its_padding() {
        let mut bytes = attribute(3, b"eth0\0");
        bytes.truncate(9);
        let all: Vec<_> = Attributes::new(&bytes).collect::<Result<_, _>>().unwrap();
        assert_eq!(all[0].text(), "eth0");
    }

    #[test]
    fn flags_of_a_type_are_no_part_of_it() {
        let bytes = attribute(0xc000 | 18, &attribute(1, b"veth\0"));
        let outer = Attributes::new(&bytes).next().unwrap().unwrap();
        assert_eq!(outer.kind, 18);
        assert_eq!(outer.nested().next().unwrap().unwrap().text(), "veth");
    }

    #[test]
    fn an_acknowledgement_says_why() {
        let request = message(18, 5, 1, &[0; 20]);
        let mut whole = (-libc::ENODEV).to_ne_bytes().to_vec();
        whole.extend(&request);
        whole.extend(attribute(2, &0_u32.to_ne_bytes()));
        whole.extend(attribute(1, b"no such thing\0"));
        let outcome = |flags, body: &[u8]| Outcome::parse(&Message { kind: 2, flags, sequence: 1, body });
        let expected = Outcome { errno: libc::ENODEV, text: Some("no such thing".into()) };
        assert_eq!(outcome(NLM_F_ACK_TLVS, &whole), Ok(expected.clone()));
        assert_eq!(outcome(0, &whole), Ok(Outcome { text: None, ..expected.clone() }));

        let mut capped = (-libc::ENODEV).to_ne_bytes().to_vec();
        capped.extend(&request[..16]);
        capped.extend(attribute(1, b"no such thing\0"));
        assert_eq!(outcome(NLM_F_ACK_TLVS | NLM_F_CAPPED, &capped), Ok(expected));

        assert_eq!(outcome(NLM_F_ACK_TLVS, &whole[..4]), Ok(Outcome { errno: libc::ENODEV, text: None }));
        assert!(outcome(0, &whole[..3]).is_err());
        assert_eq!(outcome(0, &i32::MIN.to_ne_bytes()).unwrap().errno, libc::EIO);
        let done = Message { kind: 3, flags: 0, sequence: 1, body: &[] };
        assert_eq!(Outcome::parse(&done), Ok(Outcome { errno: 0, text: None }));
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300), n in 0_u32..40) {
            let mut shaped = bytes.clone();
            // Random lengths are mostly refused at once; a small one lets more of the message through.
            if shaped.len() >= 4 {
                shaped[..4].copy_from_slice(&n.to_ne_bytes());
            }
            for bytes in [&bytes, &shaped] {
                for message in Messages::new(bytes).flatten() {
                    let _ = Outcome::parse(&message);
                    prop_assert!(message.body.len() <= bytes.len());
                }
                let mut covered = 0;
                for attribute in Attributes::new(bytes).flatten() {
                    covered += 4 + attribute.value.len();
                    let _ = (attribute.u16(), attribute.u32(), attribute.uint(), attribute.text());
                    for inner in attribute.nested().flatten() {
                        prop_assert!(inner.value.len() <= attribute.value.len());
                    }
                }
                prop_assert!(covered <= bytes.len());
                let _ = Attributes::behind::<16>(bytes).map(|(_, rest)| rest.count());
                for flags in [0, NLM_F_ACK_TLVS, NLM_F_ACK_TLVS | NLM_F_CAPPED] {
                    let _ = Outcome::parse(&Message { kind: 2, flags, sequence: 0, body: bytes });
                }
            }
        }

        #[test]
        fn what_is_written_is_read(values in proptest::collection::vec((0_u16..0x4000, any::<u32>()), 0..20)) {
            let mut request = Request::new(16, 1, &[0; 16]);
            for (kind, value) in &values {
                request = request.u32(*kind, *value);
            }
            let message = Messages::new(request.numbered(9)).next().unwrap().unwrap();
            prop_assert_eq!((message.kind, message.flags, message.sequence), (16, 1, 9));
            let (_, attributes) = Attributes::behind::<16>(message.body).unwrap();
            let read: Vec<_> = attributes.map(|a| a.map(|a| (a.kind, a.u32().unwrap()))).collect::<Result<_, _>>().unwrap();
            prop_assert_eq!(read, values);
        }
    }
}
