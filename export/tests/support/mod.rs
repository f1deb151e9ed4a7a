//! A collector that shares no code with the exporter: it learns templates and reads records by them, as RFC 7011 says.

use std::collections::BTreeMap;
use std::io::Read;

/// Value of each field by enterprise and element number.
pub(crate) type Record = BTreeMap<(u32, u16), Vec<u8>>;
/// Enterprise number of reverse elements.
pub(crate) const REVERSE: u32 = 29_305;

#[derive(Debug, Default)]
pub(crate) struct Collector {
    templates: BTreeMap<u16, Vec<(u32, u16, u16)>>,
    pub(crate) records: Vec<Record>,
    /// Template records seen.
    pub(crate) templates_seen: usize,
    pub(crate) domain: u32,
    /// The sequence number that the next message must have.
    pub(crate) sequence: u32,
}

fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
    let (head, rest) = bytes.split_at(count);
    *bytes = rest;
    head
}

fn u16_of(bytes: &mut &[u8]) -> u16 {
    u16::from_be_bytes(take(bytes, 2).try_into().unwrap())
}

fn u32_of(bytes: &mut &[u8]) -> u32 {
    u32::from_be_bytes(take(bytes, 4).try_into().unwrap())
}

/// Any unsigned number of up to 8 bytes.
pub(crate) fn number(record: &Record, enterprise: u32, element: u16) -> u64 {
    record[&(enterprise, element)].iter().fold(0, |n, byte| n << 8 | u64::from(*byte))
}

impl Collector {
    /// Reads one message; panics where it is malformed.
    pub(crate) fn message(&mut self, mut bytes: &[u8]) {
        let whole = bytes.len();
        assert_eq!(u16_of(&mut bytes), 10, "version");
        assert_eq!(usize::from(u16_of(&mut bytes)), whole, "length");
        assert!(u32_of(&mut bytes) > 1_700_000_000, "export time");
        assert_eq!(u32_of(&mut bytes), self.sequence, "sequence number");
        self.domain = u32_of(&mut bytes);
        let before = self.records.len();
        while !bytes.is_empty() {
            let (id, length) = (u16_of(&mut bytes), u16_of(&mut bytes));
            let set = take(&mut bytes, usize::from(length) - 4);
            match id {
                2 => self.template_set(set),
                256.. => self.data_set(id, set),
                _ => panic!("set {id}"),
            }
        }
        self.sequence = self.sequence.wrapping_add((self.records.len() - before) as u32);
    }

    fn template_set(&mut self, mut set: &[u8]) {
        while !set.is_empty() {
            let (id, count) = (u16_of(&mut set), u16_of(&mut set));
            let mut fields = Vec::new();
            for _ in 0..count {
                let (element, length) = (u16_of(&mut set), u16_of(&mut set));
                let enterprise = if element & 0x8000 != 0 { u32_of(&mut set) } else { 0 };
                fields.push((enterprise, element & 0x7fff, length));
            }
            self.templates.insert(id, fields);
            self.templates_seen += 1;
        }
    }

    fn data_set(&mut self, id: u16, mut set: &[u8]) {
        let fields = self.templates.get(&id).expect("a template before its data");
        while !set.is_empty() {
            let mut record = Record::new();
            for (enterprise, element, length) in fields {
                let length = match *length {
                    65_535 => match take(&mut set, 1)[0] {
                        255 => usize::from(u16_of(&mut set)),
                        short => usize::from(short),
                    },
                    fixed => usize::from(fixed),
                };
                let twice = record.insert((*enterprise, *element), take(&mut set, length).to_vec());
                assert!(twice.is_none(), "element {element} twice");
            }
            self.records.push(record);
        }
    }

    /// Reads one message from a stream; `false` at its end.
    pub(crate) fn read(&mut self, stream: &mut impl Read) -> bool {
        let mut message = vec![0; 4];
        match stream.read(&mut message[..1]).unwrap() {
            0 => return false,
            _ => stream.read_exact(&mut message[1..]).unwrap(),
        }
        let length = u16::from_be_bytes([message[2], message[3]]);
        message.resize(usize::from(length), 0);
        stream.read_exact(&mut message[4..]).unwrap();
        self.message(&message);
        true
    }
}
