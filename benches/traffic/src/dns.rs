//! DNS messages (RFC 1035 section 4) with one question, written by hand.

/// Resource record type A.
pub(crate) const TYPE_A: u16 = 1;
/// Resource record type TXT.
pub(crate) const TYPE_TXT: u16 = 16;

/// A query for `name`, recursion desired.
pub(crate) fn query(out: &mut Vec<u8>, id: u16, name: &str, kind: u16) {
    out.clear();
    header(out, id, 0x0100, 0);
    question(out, name, kind);
}

/// The answer to [`query`]: one record holding `data`, TTL 60 s.
pub(crate) fn answer(out: &mut Vec<u8>, id: u16, name: &str, kind: u16, data: &[u8]) {
    out.clear();
    header(out, id, 0x8180, 1);
    question(out, name, kind);
    out.extend_from_slice(&[0xc0, 12]); // the name: a pointer to the question's
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1, 0, 0, 0, 60]);
    out.extend_from_slice(&(data.len() as u16).to_be_bytes());
    out.extend_from_slice(data);
}

fn header(out: &mut Vec<u8>, id: u16, flags: u16, answers: u16) {
    for word in [id, flags, 1, answers, 0, 0] {
        out.extend_from_slice(&word.to_be_bytes());
    }
}

fn question(out: &mut Vec<u8>, name: &str, kind: u16) {
    for label in name.split('.') {
        debug_assert!((1..64).contains(&label.len()), "a DNS label has 1 to 63 bytes: {name}");
        out.push(label.len() as u8);
        out.extend_from_slice(label.as_bytes());
    }
    out.push(0);
    out.extend_from_slice(&kind.to_be_bytes());
    out.extend_from_slice(&[0, 1]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_what_rfc_1035_says() {
        let mut out = vec![9; 3];
        query(&mut out, 0x1234, "h1.example.org", TYPE_A);
        assert_eq!(
            out,
            b"\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x02h1\x07example\x03org\x00\x00\x01\x00\x01"
        );
        answer(&mut out, 0x1234, "h1.example.org", TYPE_A, &[10, 0, 0, 1]);
        assert!(out.ends_with(b"\xc0\x0c\x00\x01\x00\x01\x00\x00\x00\x3c\x00\x04\x0a\x00\x00\x01"));
    }
}
