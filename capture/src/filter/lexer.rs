//! Text to tokens, by the rules of libpcap's scanner.l: the longest match wins.

use super::FilterError;
use super::words;
use std::net::Ipv6Addr;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Token<'a> {
    /// A keyword or a name.
    Word(&'a str),
    /// A name behind a backslash, which is never a keyword.
    Escaped(&'a str),
    /// A number, or a name that stands for one.
    Number(u32),
    /// Two to four decimal bytes, as `10.1` or `192.168.1.1`: the bytes on the left of a 32-bit address, and how many.
    Dotted(u32, u32),
    Ip6(Ipv6Addr),
    Mac([u8; 6]),
    /// Punctuation; `!` is written `not`, `==` is `=`.
    Symbol(&'static str),
    End,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Spanned<'a> {
    pub(super) token: Token<'a>,
    /// Byte offset of its first character, and behind its last one.
    pub(super) at: usize,
    pub(super) end: usize,
}

/// The longest first.
const SYMBOLS: &[(&str, &str)] = &[
    ("&&", "and"),
    ("||", "or"),
    (">=", ">="),
    ("<=", "<="),
    ("!=", "!="),
    ("==", "="),
    ("<<", "<<"),
    (">>", ">>"),
    ("!", "not"),
    ("+", "+"),
    ("-", "-"),
    ("*", "*"),
    ("/", "/"),
    ("%", "%"),
    (":", ":"),
    ("[", "["),
    ("]", "]"),
    ("<", "<"),
    (">", ">"),
    ("(", "("),
    (")", ")"),
    ("&", "&"),
    ("|", "|"),
    ("^", "^"),
    ("=", "="),
];

/// All tokens, ended by one [`Token::End`].
pub(super) fn tokens(text: &str) -> Result<Vec<Spanned<'_>>, FilterError> {
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(c) = text[at..].chars().next() {
        if matches!(c, ' ' | '\r' | '\n' | '\t') {
            at += 1;
            continue;
        }
        let (token, len) = next(text, at)?;
        tokens.push(Spanned { token, at, end: at + len });
        at += len;
    }
    tokens.push(Spanned { token: Token::End, at, end: at });
    Ok(tokens)
}

fn next(text: &str, at: usize) -> Result<(Token<'_>, usize), FilterError> {
    let rest = &text[at..];
    if let Some(found) = with_colons(text, at)? {
        return Ok(found);
    }
    if let Some(name) = rest.strip_prefix('\\') {
        let len = name.find([' ', '!', '(', ')', '\n', '\t']).unwrap_or(name.len());
        if len == 0 {
            return Err(FilterError::new(text, at, "a name is missing behind '\\'", ""));
        }
        return Ok((Token::Escaped(&name[..len]), len + 1));
    }
    if rest.starts_with(|c: char| c.is_ascii_alphanumeric()) {
        let word = word_of(rest);
        return Ok((classify(text, at, word)?, word.len()));
    }
    match SYMBOLS.iter().find(|(written, _)| rest.starts_with(written)) {
        Some((written, symbol)) => Ok((Token::Symbol(symbol), written.len())),
        None => {
            let c = rest.chars().next().unwrap_or(' ');
            Err(FilterError::new(text, at, format_args!("unexpected character '{}'", c.escape_debug()), ""))
        }
    }
}

/// Letters, digits and `-_.`; the last one is neither `-` nor `_`.
fn word_of(rest: &str) -> &str {
    let run = rest.find(|c: char| !(c.is_ascii_alphanumeric() || "-_.".contains(c))).unwrap_or(rest.len());
    rest[..run].trim_end_matches(['-', '_'])
}

fn classify<'a>(text: &str, at: usize, word: &'a str) -> Result<Token<'a>, FilterError> {
    if let Some(mac) = mac_of(word) {
        return Ok(Token::Mac(mac));
    }
    let bytes = word.as_bytes();
    if bytes.iter().all(u8::is_ascii_digit) || hex_of(word).is_some() {
        return number(word).map(Token::Number).map_err(|why| FilterError::new(text, at, why, ""));
    }
    let parts = word.split('.').count();
    if (2..=4).contains(&parts) && word.split('.').all(|p| !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit())) {
        let mut address = 0u32;
        for part in word.split('.') {
            let byte: u8 = part.parse().map_err(|_| {
                FilterError::new(text, at, format_args!("'{part}' in '{word}' is not 0 to 255"), ": an IPv4 address")
            })?;
            address = address << 8 | u32::from(byte);
        }
        let bits = 8 * parts as u32;
        return Ok(Token::Dotted(address << (32 - bits), bits));
    }
    Ok(words::constant(word).map_or(Token::Word(word), Token::Number))
}

fn hex_of(word: &str) -> Option<&str> {
    let digits = word.strip_prefix("0x").or_else(|| word.strip_prefix("0X"))?;
    (!digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit())).then_some(digits)
}

/// Decimal, octal behind a 0, hexadecimal behind 0x.
fn number(word: &str) -> Result<u32, String> {
    let (digits, radix) = match hex_of(word) {
        Some(digits) => (digits, 16),
        None if word.len() > 1 && word.starts_with('0') => (word, 8),
        None => (word, 10),
    };
    if radix == 8 && digits.contains(['8', '9']) {
        return Err(format!("'{word}' starts with 0, so it is octal, and has a digit above 7"));
    }
    u32::from_str_radix(digits, radix).map_err(|_| format!("'{word}' is more than 4294967295"))
}

/// `aa-bb-cc-dd-ee-ff`, `a.b.c.d.e.f` (one or two digits each), `aabb.ccdd.eeff`, `aabbccddeeff`.
fn mac_of(word: &str) -> Option<[u8; 6]> {
    if !word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'.' || b == b'-') {
        return None;
    }
    for separator in ['-', '.'] {
        if word.split(separator).count() == 6 {
            return mac_bytes(word.split(separator));
        }
    }
    let digits: String = word.split('.').collect();
    let dotted = word.split('.').count() == 3 && word.split('.').all(|p| p.len() == 4);
    if digits.len() != 12 || digits.contains('-') || !(dotted || word.len() == 12) {
        return None;
    }
    mac_bytes((0..6).map(|i| &digits[2 * i..2 * i + 2]))
}

fn mac_bytes<'a>(parts: impl Iterator<Item = &'a str>) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut count = 0;
    for part in parts {
        if part.is_empty() || part.len() > 2 {
            return None;
        }
        *mac.get_mut(count)? = u8::from_str_radix(part, 16).ok()?;
        count += 1;
    }
    (count == 6).then_some(mac)
}

/// An Ethernet or IPv6 address written with colons, or nothing if what starts here has fewer than two colons.
fn with_colons(text: &str, at: usize) -> Result<Option<(Token<'_>, usize)>, FilterError> {
    let rest = &text[at..];
    let address = |c: char| c.is_ascii_hexdigit() || c == ':' || c == '.';
    let run = &rest[..rest.find(|c| !address(c)).unwrap_or(rest.len())];
    if run.matches(':').count() < 2 {
        return Ok(None);
    }
    let glued = rest[run.len()..].starts_with(|c: char| c.is_ascii_alphanumeric());
    let token = mac_bytes(run.split(':')).map(Token::Mac).or_else(|| run.parse().ok().map(Token::Ip6));
    match token {
        Some(token) if !glued => Ok(Some((token, run.len()))),
        _ => {
            let what = format_args!("'{run}' is neither an IPv6 nor an Ethernet address");
            Err(FilterError::new(text, at, what, ": fe80::1 and aa:bb:cc:dd:ee:ff are"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(text: &str) -> Vec<Token<'_>> {
        let mut tokens: Vec<_> = tokens(text).unwrap().iter().map(|s| s.token).collect();
        assert_eq!(tokens.pop(), Some(Token::End));
        tokens
    }

    #[test]
    fn the_longest_match_wins() {
        use Token::*;
        assert_eq!(all("tcp-syn tcp-synx"), [Number(2), Word("tcp-synx")]);
        assert_eq!(all("80-90 80 0x1F 017"), [Word("80-90"), Number(80), Number(31), Number(15)]);
        assert_eq!(all("10.1 1.2.3.4."), [Dotted(0x0a01_0000, 16), Word("1.2.3.4.")]);
        assert_eq!(all("len-4"), [Word("len-4")]);
        assert_eq!(all("tcp[0:2]"), [Word("tcp"), Symbol("["), Number(0), Symbol(":"), Number(2), Symbol("]")]);
        assert_eq!(
            all("!a&&b==\\tcp"),
            [Symbol("not"), Word("a"), Symbol("and"), Word("b"), Symbol("="), Escaped("tcp")]
        );
        let mac = Mac([0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff]);
        assert_eq!(all("aabbccddeeff aabb.ccdd.eeff aa-bb-cc-dd-ee-ff aa:bb:cc:dd:ee:ff"), [mac; 4]);
        assert_eq!(all("0:1:2:3:4:5 1.2.3.4.5.6"), [Mac([0, 1, 2, 3, 4, 5]), Mac([1, 2, 3, 4, 5, 6])]);
        assert_eq!(all("::1 fe80::1/64 ::")[0], Ip6("::1".parse().unwrap()));
        assert_eq!(all("1:2:3:4:5:6:7:8"), [Ip6("1:2:3:4:5:6:7:8".parse().unwrap())]);
        assert_eq!(all("::ffff:1.2.3.4"), [Ip6("::ffff:1.2.3.4".parse().unwrap())]);
    }

    #[test]
    fn bad_tokens_have_columns() {
        for (text, column) in [
            ("host 1.2.3.256", 6),
            ("port 4294967296", 6),
            ("port 089", 6),
            ("ip6 host 1::2::3", 10),
            ("ether host aa:bb:cc", 12),
            ("ether host aa:bb:cc:dd:ee:ff:00", 12),
            ("host fe80::1g", 6),
            ("tcp ; udp", 5),
            ("tcp \u{fc}", 5),
            ("ip proto \\", 10),
        ] {
            assert_eq!(tokens(text).unwrap_err().column(), column, "{text}");
        }
    }
}
