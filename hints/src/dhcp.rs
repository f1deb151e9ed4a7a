//! What DHCP clients say of themselves: host name and vendor (RFC 2132, RFC 4702), in DHCPv6 the name by RFC 4704.

use crate::cursor::{Cursor, u32_at};
use crate::text::Text;

/// What a message is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Message {
    Client,
    Server,
}

/// Where options begin: behind the cookie of RFC 2131 section 3.
const OPTIONS_AT: usize = 240;
/// Fields that hold options as well where option 52 says so (RFC 2132 section 9.3): `file`, if it is odd, then `sname`, if it is above 1.
const FILE: std::ops::Range<usize> = 108..236;
const SNAME: std::ops::Range<usize> = 44..108;
const COOKIE: u32 = 0x6382_5363;

/// DHCP for IPv4: host name (option 12, else the name of option 81) and vendor class (option 60).
pub(crate) fn read_v4<'a>(bytes: &'a [u8], name: &mut Text, vendor: &mut Text) -> Option<Message> {
    let message = match bytes.first()? {
        1 => Message::Client,
        2 => Message::Server,
        _ => return None,
    };
    if u32_at(bytes, OPTIONS_AT - 4)? != COOKIE {
        return None;
    }
    let mut qualified: &[u8] = &[];
    let mut read = |options: &'a [u8]| {
        let (mut options, mut overload) = (Cursor::new(options), 0);
        while let Some(code) = options.u8() {
            if code == 0 {
                continue;
            }
            let Some(data) = options.vec8().filter(|_| code != 255) else { break };
            match code {
                12 if name.is_empty() => name.push_lossy(trim_nul(data)),
                52 => overload = data.first().copied().unwrap_or(0),
                60 if vendor.is_empty() => vendor.push_lossy(trim_nul(data)),
                81 => qualified = data,
                _ => {}
            }
        }
        overload
    };
    let overload = read(bytes.get(OPTIONS_AT..)?);
    for (bit, field) in [(1, FILE), (2, SNAME)] {
        if overload & bit != 0 {
            read(bytes.get(field)?);
        }
    }
    if name.is_empty()
        && let [flags, _, _, rest @ ..] = qualified
    {
        // Bit E: as in DNS messages, otherwise plain text.
        match flags & 4 {
            0 => name.push_lossy(trim_nul(rest)),
            _ => push_labels(rest, name),
        }
    }
    Some(message)
}

/// DHCPv6 (RFC 8415): client FQDN (option 39) and vendor class (option 16).
pub(crate) fn read_v6(bytes: &[u8], name: &mut Text, vendor: &mut Text) -> Option<Message> {
    // Types 1 to 11 without those of relays, whose messages hold another.
    let message = match bytes.first()? {
        1 | 3..=6 | 8 | 9 | 11 => Message::Client,
        2 | 7 | 10 => Message::Server,
        _ => return None,
    };
    let mut options = Cursor::new(bytes.get(4..)?);
    let mut seen = 0;
    while let (Some(code), Some(data)) = (options.u16(), options.vec16()) {
        seen += 1;
        match (code, data) {
            (39, [_, labels @ ..]) if name.is_empty() => push_labels(labels, name),
            (16, [_, _, _, _, class @ ..]) if vendor.is_empty() => {
                vendor.push_lossy(Cursor::new(class).vec16().unwrap_or_default());
            }
            _ => {}
        }
    }
    // Options fill a message to its end, and each has one.
    (seen > 0 && options.left().len() < 4).then_some(message)
}

fn trim_nul(text: &[u8]) -> &[u8] {
    let end = text.iter().rposition(|b| *b != 0).map_or(0, |last| last + 1);
    &text[..end]
}

/// Labels as in DNS messages, without compression; the last may be missing.
fn push_labels(bytes: &[u8], name: &mut Text) {
    let mut labels = Cursor::new(bytes);
    while let Some(label) = labels.vec8().filter(|label| (1..64).contains(&label.len())) {
        if !name.is_empty() {
            name.push_str(".");
        }
        name.push_lossy(label);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;

    pub(crate) fn request(options: &[u8]) -> Vec<u8> {
        let mut message = vec![0; OPTIONS_AT];
        message[0] = 1;
        message[OPTIONS_AT - 4..].copy_from_slice(&COOKIE.to_be_bytes());
        message.extend(options);
        message
    }

    fn v4(options: &[u8]) -> (Option<Message>, String, String) {
        let (mut name, mut vendor) = (Text::EMPTY, Text::EMPTY);
        let message = read_v4(&request(options), &mut name, &mut vendor);
        (message, name.as_str().to_owned(), vendor.as_str().to_owned())
    }

    #[test]
    fn names_of_a_client() {
        let found = v4(b"\x35\x01\x01\0\0\x0c\x05host\0\x3c\x04MSFT\xff\x0c\x01x");
        assert_eq!(found, (Some(Message::Client), "host".into(), "MSFT".into()));
        assert_eq!(v4(b"\x51\x08\x04\0\0\x01a\x02bc").1, "a.bc");
        assert_eq!(v4(b"\x51\x06\0\0\0abc").1, "abc");
        assert_eq!(v4(b"\x0c\xf0abc").1, "", "longer than the message");
    }

    #[test]
    fn options_in_other_fields() {
        let told = |overload: u8| {
            let mut message = request(&[52, 1, overload, 255]);
            message[FILE.start..][..8].copy_from_slice(b"\x3c\x04MSFT\xff\x0c");
            message[SNAME.start..][..8].copy_from_slice(b"\0\x0c\x04host\xff");
            let (mut name, mut vendor) = (Text::EMPTY, Text::EMPTY);
            assert_eq!(read_v4(&message, &mut name, &mut vendor), Some(Message::Client));
            (name.as_str().to_owned(), vendor.as_str().to_owned())
        };
        assert_eq!(told(0), (String::new(), String::new()));
        assert_eq!(told(1), (String::new(), "MSFT".into()));
        assert_eq!(told(2), ("host".into(), String::new()));
        assert_eq!(told(3), ("host".into(), "MSFT".into()));
    }

    #[test]
    fn names_of_a_client_of_v6() {
        let (mut name, mut vendor) = (Text::EMPTY, Text::EMPTY);
        let message = b"\x01abc\0\x01\0\x02\0\x01\0\x27\0\x09\x01\x04host\x02ab\0\x10\0\x08\0\0\x01\x37\0\x02os";
        assert_eq!(read_v6(message, &mut name, &mut vendor), Some(Message::Client));
        assert_eq!((name.as_str(), vendor.as_str()), ("host.ab", "os"));
        assert_eq!(read_v6(&message[..20], &mut Text::EMPTY.clone(), &mut Text::EMPTY.clone()), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..80)) {
            v4(&bytes);
            read_v6(&bytes, &mut Text::EMPTY.clone(), &mut Text::EMPTY.clone());
            read_v4(&bytes, &mut Text::EMPTY.clone(), &mut Text::EMPTY.clone());
        }
    }
}
