//! One IPFIX Message being filled (RFC 7011 section 3): a header, then sets, each with records of one template.

/// Bytes of a message header.
pub(crate) const HEADER_BYTES: usize = 16;
/// Bytes of a set header.
const SET_HEADER_BYTES: usize = 4;
/// Version of IPFIX; 9 would be NetFlow.
const VERSION: u16 = 10;
/// Set ID of a Template Set.
pub(crate) const TEMPLATE_SET: u16 = 2;

/// A message with room for `bytes_max`. Its buffer is allocated once.
pub(crate) struct Message {
    bytes: Vec<u8>,
    bytes_max: usize,
    /// Where the set being filled begins, and its ID.
    set: Option<(usize, u16)>,
    /// Data Records in the message; templates do not count (RFC 7011 section 3.1, Sequence Number).
    records: u32,
}

impl Message {
    pub(crate) fn new(bytes_max: u16) -> Message {
        let bytes_max = usize::from(bytes_max);
        let mut bytes = Vec::with_capacity(bytes_max);
        bytes.resize(HEADER_BYTES, 0);
        Message { bytes, bytes_max, set: None, records: 0 }
    }

    /// Data Records in it.
    pub(crate) fn records(&self) -> u32 {
        self.records
    }

    /// Adds one record to the set with this ID, which is begun if another is open. `false`: there is no room, and nothing
    /// was added.
    pub(crate) fn add(&mut self, set_id: u16, record: &[u8]) -> bool {
        let open = self.set.filter(|(_, id)| *id == set_id);
        let needed = record.len() + if open.is_some() { 0 } else { SET_HEADER_BYTES };
        if self.bytes.len() + needed > self.bytes_max {
            return false;
        }
        if open.is_none() {
            self.close_set();
            self.set = Some((self.bytes.len(), set_id));
            self.bytes.extend_from_slice(&set_id.to_be_bytes());
            self.bytes.extend_from_slice(&[0, 0]);
        }
        self.bytes.extend_from_slice(record);
        self.records += u32::from(set_id != TEMPLATE_SET);
        true
    }

    fn close_set(&mut self) {
        if let Some((at, _)) = self.set.take() {
            let length = (self.bytes.len() - at) as u16;
            self.bytes[at + 2..at + 4].copy_from_slice(&length.to_be_bytes());
        }
    }

    /// The message as it is sent. May be asked for again, with another sequence number, if sending fails.
    pub(crate) fn seal(&mut self, export_time: u32, sequence: u32, observation_domain: u32) -> &[u8] {
        self.close_set();
        // The buffer never outgrows `bytes_max`, which is a u16.
        let length = self.bytes.len() as u16;
        self.bytes[0..2].copy_from_slice(&VERSION.to_be_bytes());
        self.bytes[2..4].copy_from_slice(&length.to_be_bytes());
        self.bytes[4..8].copy_from_slice(&export_time.to_be_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_be_bytes());
        self.bytes[12..16].copy_from_slice(&observation_domain.to_be_bytes());
        &self.bytes
    }

    /// Begins an empty message.
    pub(crate) fn clear(&mut self) {
        self.bytes.truncate(HEADER_BYTES);
        self.set = None;
        self.records = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_have_their_length_and_the_message_its_bound() {
        let mut message = Message::new(512);
        assert!(message.add(256, &[1; 100]) && message.add(256, &[2; 100]) && message.add(257, &[3; 100]));
        // 16 + (4 + 200) + (4 + 100) = 324; 188 are left, a new set's header takes 4 of them.
        assert!(!message.add(256, &[4; 185]) && message.add(257, &[4; 188]));
        assert_eq!(message.records(), 4);
        let bytes = message.seal(7, 8, 9);
        assert_eq!(bytes.len(), 512);
        assert_eq!(bytes[..16], [0, 10, 2, 0, 0, 0, 0, 7, 0, 0, 0, 8, 0, 0, 0, 9]);
        assert_eq!(bytes[16..20], [1, 0, 0, 204]);
        assert_eq!(bytes[220..224], [1, 1, 1, 36]);
        message.clear();
        assert!(message.records() == 0 && message.bytes.len() == HEADER_BYTES);
        assert!(message.add(TEMPLATE_SET, &[5; 10]) && message.records() == 0, "templates are no data");
    }
}
