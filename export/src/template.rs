//! The templates: which fields a record has, by its addresses and protocol.

use crate::config::TimeUnit;
use crate::field::{self, Field, REVERSE_PEN};
use flowtable::FlowRecord;

/// What a record looks like on the wire. The number is its Template ID; those below 256 are reserved for sets
/// (RFC 7011 section 3.4.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum Kind {
    V4 = 256,
    V6 = 257,
    V4Icmp = 258,
    V6Icmp = 259,
}

impl Kind {
    pub(crate) const ALL: [Kind; 4] = [Kind::V4, Kind::V6, Kind::V4Icmp, Kind::V6Icmp];

    pub(crate) fn of(record: &FlowRecord) -> Kind {
        match (field::is_v4(record), record.icmp.is_some()) {
            (true, false) => Kind::V4,
            (false, false) => Kind::V6,
            (true, true) => Kind::V4Icmp,
            (false, true) => Kind::V6Icmp,
        }
    }

    pub(crate) fn id(self) -> u16 {
        self as u16
    }
}

/// All templates, with their fields.
pub(crate) struct Templates([Vec<Field>; 4]);

impl Templates {
    pub(crate) fn new(unit: TimeUnit) -> Templates {
        let fields = |kind| {
            let (addresses, ports) = match kind {
                Kind::V4 => (field::ADDRESSES_V4, &field::PORTS[..]),
                Kind::V6 => (field::ADDRESSES_V6, &field::PORTS[..]),
                Kind::V4Icmp => (field::ADDRESSES_V4, &field::ICMP_V4[..]),
                Kind::V6Icmp => (field::ADDRESSES_V6, &field::ICMP_V6[..]),
            };
            [&addresses[..], ports, &field::times(unit), &field::COMMON].concat()
        };
        Templates(Kind::ALL.map(fields))
    }

    fn fields(&self, kind: Kind) -> &[Field] {
        &self.0[usize::from(kind.id() - Kind::V4.id())]
    }

    /// Appends a Template Record (RFC 7011 section 3.4.1).
    pub(crate) fn put_template(&self, kind: Kind, out: &mut Vec<u8>) {
        let fields = self.fields(kind);
        out.extend_from_slice(&kind.id().to_be_bytes());
        out.extend_from_slice(&(fields.len() as u16).to_be_bytes());
        for field in fields {
            // The highest bit says that an enterprise number follows.
            let element = field.element | if field.reverse { 0x8000 } else { 0 };
            out.extend_from_slice(&element.to_be_bytes());
            out.extend_from_slice(&field.length.to_be_bytes());
            if field.reverse {
                out.extend_from_slice(&REVERSE_PEN.to_be_bytes());
            }
        }
    }

    /// Appends a Data Record.
    pub(crate) fn put_record(&self, kind: Kind, record: &FlowRecord, out: &mut Vec<u8>) {
        for field in self.fields(kind) {
            (field.put)(record, out);
        }
    }
}
