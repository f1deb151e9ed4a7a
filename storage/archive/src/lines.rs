//! Lines of JSON behind their checksum, as the manifest has them: `crc json`, the CRC-32 (IEEE, eight hexadecimal digits)
//! of the JSON text before it.

use serde::Serialize;
use serde::de::DeserializeOwned;

/// Why a text of lines does not read to its end.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct BadLine {
    /// From 1.
    pub(crate) number: usize,
    pub(crate) reason: String,
    /// It is the last one and does not end: an append that a crash cut short, never acknowledged.
    pub(crate) torn: bool,
}

pub(crate) fn print<T: Serialize>(line: &T) -> String {
    // Strings, numbers and lists of them: nothing here can fail to serialise.
    let json = serde_json::to_string(line).unwrap_or_default();
    format!("{:08x} {json}\n", crc32fast::hash(json.as_bytes()))
}

/// The lines of a text, up to the first that does not check out.
pub(crate) fn parse<T: DeserializeOwned>(text: &[u8]) -> (Vec<T>, Option<BadLine>) {
    let mut lines = Vec::new();
    for (at, line) in text.split_inclusive(|&byte| byte == b'\n').enumerate() {
        let whole = line.strip_suffix(b"\n");
        match whole.ok_or_else(|| "the line is not complete".to_owned()).and_then(parse_line) {
            Ok(line) => lines.push(line),
            Err(reason) => return (lines, Some(BadLine { number: at + 1, reason, torn: whole.is_none() })),
        }
    }
    (lines, None)
}

fn parse_line<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    let (crc, json) = line.split_at_checked(9).ok_or("the line is too short")?;
    let crc = std::str::from_utf8(&crc[..8]).ok().and_then(|hex| u32::from_str_radix(hex, 16).ok());
    if crc != Some(crc32fast::hash(json)) {
        return Err("the checksum does not match".to_owned());
    }
    serde_json::from_slice(json).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_cut_anywhere_gives_its_first_lines() {
        let all = ["a", "b \"quoted\"\n", "ü"];
        let text: String = all.iter().map(print).collect();
        for cut in 0..=text.len() {
            let (lines, bad) = parse::<String>(&text.as_bytes()[..cut]);
            assert!(all.starts_with(&lines.iter().map(String::as_str).collect::<Vec<_>>()), "cut at {cut}");
            let ends = text.as_bytes()[..cut].last().is_none_or(|&last| last == b'\n');
            assert_eq!(bad.is_none(), ends, "cut at {cut}");
            assert!(bad.is_none_or(|bad| bad.torn));
        }
    }

    #[test]
    fn a_changed_line_is_found() {
        let text = print(&"first") + &print(&"second");
        let (lines, bad) = parse::<String>(text.replace("first", "First").as_bytes());
        let bad = bad.unwrap();
        assert_eq!((lines.len(), bad.number, bad.torn), (0, 1, false));
        assert!(bad.reason.contains("checksum"), "{bad:?}");
    }
}
