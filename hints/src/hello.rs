//! ClientHello (RFC 8446 section 4.1.2), read where it lies: nothing is copied or allocated, which is what parsers
//! that return lists of ciphers and extensions do.

use crate::cursor::Cursor;
use crate::ja4::is_grease;

/// Extension types that are read.
pub(crate) mod extension {
    pub(crate) const SERVER_NAME: u16 = 0;
    pub(crate) const SIGNATURE_ALGORITHMS: u16 = 13;
    pub(crate) const ALPN: u16 = 16;
    pub(crate) const SUPPORTED_VERSIONS: u16 = 43;
}

/// The body of a ClientHello: what follows type and length of the handshake message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hello<'a> {
    legacy_version: u16,
    ciphers: &'a [u8],
    extensions: &'a [u8],
    /// The server's name (RFC 6066 section 3), empty where the extension holds none.
    pub(crate) name: &'a [u8],
    /// Whether the extension is there.
    pub(crate) has_name: bool,
    /// First protocol offered (RFC 7301).
    pub(crate) alpn: Option<&'a [u8]>,
    versions: &'a [u8],
    signature_algorithms: &'a [u8],
    /// All of the message was there: only then is it fingerprinted.
    pub(crate) complete: bool,
}

/// It contradicts itself: no ClientHello.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Malformed;

impl<'a> Hello<'a> {
    /// Reads what is there of a body of `len` bytes. Of a body that is cut, what lies before the cut is told.
    pub(crate) fn parse(bytes: &'a [u8], len: usize) -> Result<Hello<'a>, Malformed> {
        let whole = bytes.len() >= len;
        let bytes = &bytes[..bytes.len().min(len)];
        let mut hello = Hello {
            legacy_version: 0,
            ciphers: &[],
            extensions: &[],
            name: &[],
            has_name: false,
            alpn: None,
            versions: &[],
            signature_algorithms: &[],
            complete: false,
        };
        match hello.read(bytes) {
            Some(()) => {
                hello.complete = whole;
                Ok(hello)
            }
            None if whole => Err(Malformed),
            None => Ok(hello),
        }
    }

    /// `None` where the bytes end too early.
    fn read(&mut self, bytes: &'a [u8]) -> Option<()> {
        let mut body = Cursor::new(bytes);
        self.legacy_version = body.u16()?;
        // Random and session id.
        body.take(32)?;
        body.vec8()?;
        self.ciphers = body.vec16()?;
        // Compression methods.
        body.vec8()?;
        if body.is_empty() {
            // Before TLS 1.2 extensions are optional, their length as well.
            return Some(());
        }
        let len = usize::from(body.u16()?);
        self.extensions = body.take_up_to(len);
        let mut extensions = Cursor::new(self.extensions);
        while !extensions.is_empty() {
            let (kind, data) = (extensions.u16()?, extensions.vec16()?);
            self.extension(kind, data);
        }
        (self.extensions.len() == len).then_some(())
    }

    /// An extension that contradicts itself is as good as absent: the others still tell something.
    fn extension(&mut self, kind: u16, data: &'a [u8]) {
        let mut data = Cursor::new(data);
        match kind {
            extension::SERVER_NAME if !self.has_name => {
                self.has_name = true;
                self.name = server_name(data).unwrap_or_default();
            }
            extension::ALPN if self.alpn.is_none() => {
                self.alpn = data.vec16().and_then(|list| Cursor::new(list).vec8());
            }
            extension::SUPPORTED_VERSIONS => self.versions = data.vec8().unwrap_or_default(),
            extension::SIGNATURE_ALGORITHMS => self.signature_algorithms = data.vec16().unwrap_or_default(),
            _ => {}
        }
    }

    pub(crate) fn ciphers(&self) -> impl Iterator<Item = u16> + use<'a> {
        words(self.ciphers)
    }

    pub(crate) fn signature_algorithms(&self) -> impl Iterator<Item = u16> + use<'a> {
        words(self.signature_algorithms)
    }

    /// Types and contents, in their order.
    pub(crate) fn extensions(&self) -> impl Iterator<Item = (u16, &'a [u8])> + use<'a> {
        let mut cursor = Cursor::new(self.extensions);
        std::iter::from_fn(move || Some((cursor.u16()?, cursor.vec16()?)))
    }

    /// The highest version offered.
    pub(crate) fn version(&self) -> u16 {
        words(self.versions).filter(|v| !is_grease(*v)).max().unwrap_or(self.legacy_version)
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u16> + use<'_> {
    bytes.chunks_exact(2).map(|pair| u16::from_be_bytes([pair[0], pair[1]]))
}

/// The first name of type `host_name` in the list.
fn server_name(mut data: Cursor<'_>) -> Option<&[u8]> {
    let mut list = Cursor::new(data.vec16()?);
    loop {
        let (kind, name) = (list.u8()?, list.vec16()?);
        if kind == 0 {
            return Some(name);
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Writes a ClientHello field by field.
    #[derive(Clone)]
    pub(crate) struct HelloBuilder {
        pub(crate) version: u16,
        pub(crate) ciphers: Vec<u16>,
        pub(crate) extensions: Vec<(u16, Vec<u8>)>,
    }

    pub(crate) fn sized16(bytes: &[u8]) -> Vec<u8> {
        [&(bytes.len() as u16).to_be_bytes(), bytes].concat()
    }

    fn be(words: &[u16]) -> Vec<u8> {
        words.iter().flat_map(|w| w.to_be_bytes()).collect()
    }

    impl HelloBuilder {
        pub(crate) fn body(&self) -> Vec<u8> {
            let mut out = self.version.to_be_bytes().to_vec();
            out.extend([7; 32]);
            out.extend([32]);
            out.extend([9; 32]);
            out.extend(sized16(&be(&self.ciphers)));
            out.extend([1, 0]);
            let extensions =
                self.extensions.iter().flat_map(|(kind, data)| [kind.to_be_bytes().to_vec(), sized16(data)].concat());
            out.extend(sized16(&extensions.collect::<Vec<u8>>()));
            out
        }

        /// As a handshake message.
        pub(crate) fn message(&self) -> Vec<u8> {
            let body = self.body();
            [&[1, 0], &(body.len() as u16).to_be_bytes()[..], &body].concat()
        }
    }

    pub(crate) fn name_extension(name: &[u8]) -> (u16, Vec<u8>) {
        (0, sized16(&[&[0], &sized16(name)[..]].concat()))
    }

    /// The client of the specification's example.
    pub(crate) fn chrome() -> HelloBuilder {
        let ciphers = [
            0x2a2a, 0x1301, 0x1302, 0x1303, 0xc02b, 0xc02f, 0xc02c, 0xc030, 0xcca9, 0xcca8, 0xc013, 0xc014, 0x009c,
            0x009d, 0x002f, 0x0035,
        ];
        let algorithms = [0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0806, 0x0601];
        let mut extensions = vec![
            (0x4a4a, vec![]),
            name_extension(b"example.com"),
            (0x0010, sized16(b"\x02h2\x08http/1.1")),
            (0x000d, sized16(&be(&algorithms))),
            (0x002b, vec![6, 0x1a, 0x1a, 3, 4, 3, 3]),
            (0x0015, vec![0; 40]),
        ];
        let others = [0x001b, 0x0033, 0x4469, 0x0017, 0x002d, 0x0005, 0x0023, 0x0012, 0x000b, 0x000a, 0xff01];
        extensions.extend(others.map(|kind| (kind, vec![1, 2, 3])));
        extensions.push((0x6a6a, vec![0]));
        HelloBuilder { version: 0x0303, ciphers: ciphers.to_vec(), extensions }
    }

    #[test]
    fn a_hello_tells_name_protocol_and_version() {
        let body = chrome().body();
        let hello = Hello::parse(&body, body.len()).unwrap();
        assert_eq!((hello.name, hello.alpn), (&b"example.com"[..], Some(&b"h2"[..])));
        assert_eq!(hello.version(), 0x0304);
        assert!(hello.complete);
    }

    #[test]
    fn a_cut_hello_tells_what_lies_before_the_cut() {
        let body = chrome().body();
        for end in 0..body.len() {
            let hello = Hello::parse(&body[..end], body.len()).unwrap();
            assert!(!hello.complete);
            // Ends behind the name, which lies in the second extension.
            assert!(hello.name.is_empty() || end > 125);
            assert!(Hello::parse(&body[..end], end).is_err() || end == 103, "{end} bytes cannot be all of it");
        }
        assert_eq!(Hello::parse(&body[..200], body.len()).unwrap().name, b"example.com");
    }

    #[test]
    fn an_extension_that_contradicts_itself_hides_no_other() {
        let mut hello = chrome();
        hello.extensions[2].1[1] = 200;
        let body = hello.body();
        let read = Hello::parse(&body, body.len()).unwrap();
        assert_eq!((read.name, read.alpn), (&b"example.com"[..], None));
    }
}
