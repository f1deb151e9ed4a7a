//! HTTP/1 requests and responses (RFC 9112), and the messages of other protocols that look like them.

use crate::App;

/// What a message that begins here is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Opening {
    Foreign,
    /// A request, in whose header names may stand.
    Request(App),
    Response(App),
    /// Too little to tell, but it may become a request.
    More,
}

/// Methods of HTTP, WebDAV, UPnP, RTSP and SIP: what a request line begins with. Longest first where one begins another.
const METHODS: [&[u8]; 30] = [
    b"GET ",
    b"POST ",
    b"HEAD ",
    b"PUT ",
    b"DELETE ",
    b"OPTIONS ",
    b"CONNECT ",
    b"PATCH ",
    b"TRACE ",
    b"PROPFIND ",
    b"PROPPATCH ",
    b"MKCOL ",
    b"COPY ",
    b"MOVE ",
    b"LOCK ",
    b"UNLOCK ",
    b"REPORT ",
    b"SEARCH ",
    b"NOTIFY ",
    b"M-SEARCH ",
    b"SUBSCRIBE ",
    b"UNSUBSCRIBE ",
    b"INVITE ",
    b"REGISTER ",
    b"ACK ",
    b"BYE ",
    b"CANCEL ",
    b"DESCRIBE ",
    b"SETUP ",
    b"RPC_CONNECT ",
];

/// Longest method above, and the shortest payload that a method can be told from.
const METHOD_MAX: usize = 12;

/// The version at the end of a request line or the start of a status line.
fn version_app(version: &[u8]) -> Option<App> {
    match version {
        [b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'0'..=b'9'] => Some(App::Http),
        b"SIP/2.0" => Some(App::Sip),
        [b'R', b'T', b'S', b'P', b'/', b'1' | b'2', b'.', b'0'..=b'9'] => Some(App::Rtsp),
        _ => None,
    }
}

/// Reads the first line as far as it is there.
#[inline]
pub(crate) fn open(bytes: &[u8]) -> Opening {
    // Methods and versions begin with a capital letter: most payloads end here.
    match bytes.first() {
        Some(b'A'..=b'Z') => open_text(bytes),
        Some(b'\r') if !behind_empty_lines(bytes).is_empty() => open_text(behind_empty_lines(bytes)),
        Some(_) => Opening::Foreign,
        None => Opening::More,
    }
}

/// A server ignores empty lines before a request (RFC 9112 section 2.2).
fn behind_empty_lines(bytes: &[u8]) -> &[u8] {
    let mut rest = bytes;
    while let Some(next) = rest.strip_prefix(b"\r\n") {
        rest = next;
    }
    rest
}

fn open_text(bytes: &[u8]) -> Opening {
    let end = bytes.iter().take(16).position(|b| *b == b' ');
    if let Some(app) = end.and_then(|end| version_app(&bytes[..end])) {
        return Opening::Response(app);
    }
    let Some(method) = METHODS.iter().find(|method| method[0] == bytes[0] && bytes.starts_with(method)) else {
        let begun = bytes.len() < METHOD_MAX && METHODS.iter().any(|method| method.starts_with(bytes));
        return if begun { Opening::More } else { Opening::Foreign };
    };
    match line(bytes, method.len()) {
        Some((line, _)) => {
            let version = line.rsplit(|b| *b == b' ').next().unwrap_or_default();
            version_app(version).map_or(Opening::Foreign, Opening::Request)
        }
        // A target without end so far; other protocols have other commands behind these words.
        None => match bytes[method.len()..].first() {
            Some(b'/' | b'*' | b'h' | b'H') => Opening::Request(App::Http),
            Some(_) if *method == b"CONNECT " => Opening::Request(App::Http),
            Some(_) => Opening::Foreign,
            None => Opening::More,
        },
    }
}

/// Names in a request's header.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub(crate) struct Names<'a> {
    /// `Host`, or where there is none the authority of the target.
    pub(crate) host: &'a [u8],
    pub(crate) user_agent: &'a [u8],
    /// The connection becomes a tunnel if the server agrees.
    pub(crate) is_connect: bool,
    /// The header's end was seen: no name follows.
    pub(crate) complete: bool,
}

/// Reads the header of a request as far as whole lines of it are there. Folded lines (RFC 9112 section 5.2) are ignored.
pub(crate) fn names(bytes: &[u8]) -> Names<'_> {
    let bytes = behind_empty_lines(bytes);
    let mut names = Names { is_connect: bytes.starts_with(b"CONNECT "), ..Names::default() };
    let Some((request, mut at)) = line(bytes, 0) else { return names };
    let mut has_host = false;
    while let Some((text, next)) = line(bytes, at) {
        at = next;
        if text.is_empty() {
            names.complete = true;
            break;
        }
        let Some(colon) = text.iter().position(|b| *b == b':') else { continue };
        let (field, value) = (&text[..colon], text[colon + 1..].trim_ascii());
        if !has_host && field.eq_ignore_ascii_case(b"host") {
            (names.host, has_host) = (value, true);
        } else if names.user_agent.is_empty() && field.eq_ignore_ascii_case(b"user-agent") {
            names.user_agent = value;
        }
        if has_host && !names.user_agent.is_empty() {
            names.complete = true;
            break;
        }
    }
    if !has_host {
        names.host = authority(request, names.is_connect).unwrap_or_default();
    }
    names
}

/// Host and port of a target in absolute or authority form (RFC 9112 section 3.2).
fn authority(request: &[u8], is_connect: bool) -> Option<&[u8]> {
    let target = request.split(|b| *b == b' ').nth(1)?;
    if is_connect {
        return Some(target);
    }
    let scheme = target.windows(3).take(12).position(|w| w == b"://")?;
    let rest = &target[scheme + 3..];
    let rest = &rest[..rest.iter().position(|b| b"/?#".contains(b)).unwrap_or(rest.len())];
    // No credentials in records.
    Some(rest.rsplit(|b| *b == b'@').next().unwrap_or(rest))
}

/// The line at `at` without its end, and where the next begins; `None` where its end is not there.
fn line(bytes: &[u8], at: usize) -> Option<(&[u8], usize)> {
    let rest = bytes.get(at..)?;
    let end = rest.iter().position(|b| *b == b'\n')?;
    Some((rest[..end].strip_suffix(b"\r").unwrap_or(&rest[..end]), at + end + 1))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const REQUEST: &[u8] =
        b"GET /a?b HTTP/1.1\r\nX: y\r\n host: folded\r\nhOsT:\t example.com:8080 \r\nUser-Agent: curl/8\r\n\r\nHost: body\r\n";

    #[test]
    fn host_and_agent_are_found_whatever_their_case() {
        assert_eq!(open(REQUEST), Opening::Request(App::Http));
        let found = names(REQUEST);
        assert_eq!((found.host, found.user_agent), (&b"example.com:8080"[..], &b"curl/8"[..]));
        assert!(found.complete && !found.is_connect);
    }

    #[test]
    fn targets_in_all_forms() {
        let host = |request: &'static [u8]| String::from_utf8_lossy(names(request).host).into_owned();
        assert_eq!(host(b"GET http://u:p@example.com:81/x HTTP/1.1\r\n\r\n"), "example.com:81");
        assert_eq!(host(b"GET http://example.com/x HTTP/1.1\r\nHost: other\r\n\r\n"), "other");
        assert_eq!(host(b"CONNECT example.com:443 HTTP/1.1\r\n\r\n"), "example.com:443");
        assert_eq!(host(b"GET / HTTP/1.0\r\n\r\n"), "");
        assert!(names(b"CONNECT a:1 HTTP/1.1\r\n\r\n").is_connect);
    }

    #[test]
    fn what_looks_alike_is_told_apart() {
        assert_eq!(open(b"HTTP/1.1 200 OK\r\n"), Opening::Response(App::Http));
        assert_eq!(open(b"SIP/2.0 100 Trying\r\n"), Opening::Response(App::Sip));
        assert_eq!(open(b"INVITE sip:a@b SIP/2.0\r\n"), Opening::Request(App::Sip));
        assert_eq!(open(b"DESCRIBE rtsp://a/b RTSP/1.0\r\n"), Opening::Request(App::Rtsp));
        assert_eq!(open(b"GET key\r\n"), Opening::Foreign);
        assert_eq!(open(b"GET /a/very/long/target"), Opening::Request(App::Http));
        assert_eq!(open(b"GETTING /"), Opening::Foreign);
        assert_eq!(open(b"PROP"), Opening::More);
        assert_eq!(open(b"HTTP/2 200"), Opening::Foreign);
        assert_eq!(open(b"\r\n"), Opening::Foreign);
        assert_eq!(open(b"\r\n\r\nGET / HTTP/1.1\r\n"), Opening::Request(App::Http));
        assert_eq!(names(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n").host, b"a");
        assert_eq!(open(b"\r\n\x01\x02"), Opening::Foreign);
    }

    #[test]
    fn every_truncation_is_incomplete_until_the_header_ends() {
        let end = REQUEST.windows(8).position(|w| w == b"curl/8\r\n").expect("the agent") + 8;
        for cut in 0..end {
            assert!(!names(&REQUEST[..cut]).complete, "{cut}");
            assert!(matches!(open(&REQUEST[..cut]), Opening::More | Opening::Request(App::Http)), "{cut}");
        }
        assert!(names(&REQUEST[..end]).complete);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read(bytes in prop::collection::vec(any::<u8>(), 0..100), method in 0..METHODS.len()) {
            open(&bytes);
            names(&bytes);
            let bytes = [METHODS[method], &bytes].concat();
            open(&bytes);
            names(&bytes);
        }
    }
}
