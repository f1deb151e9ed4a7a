//! What an archive says of its segments: one object for each sensor, table and day (UTC, of a segment's latest row), with
//! a line for each segment, so that a reader needs not open one to know what it can leave out.

use crate::ArchiveError;
use crate::lines::{parse, print};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Version of the lines.
pub(crate) const FORMAT: u32 = 1;

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Line {
    /// First line.
    Index { format: u32, table: String, day: String },
    /// A segment that is there; `segment` is its description.
    Segment { sha256: String, segment: Value },
}

/// A segment of the archive.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) sha256: String,
    pub(crate) segment: Value,
}

impl Entry {
    fn file(&self) -> &str {
        self.segment["file"].as_str().unwrap_or_default()
    }
}

/// Day of a segment, by its description.
pub(crate) fn day_of(segment: &Value) -> String {
    storage::day(segment["t_end_max"].as_i64().unwrap_or_default())
}

/// The lines of an index object.
///
/// # Errors
/// If it does not check out, or is of a newer version.
pub(crate) fn read(name: &str, text: &[u8]) -> Result<Vec<Entry>, ArchiveError> {
    let damaged = |reason: String| ArchiveError::Damaged { name: name.to_owned(), reason };
    let (lines, bad) = parse::<Line>(text);
    let newer = match lines.first() {
        Some(Line::Index { format, .. }) if *format > FORMAT => Some(*format),
        _ => None,
    };
    if let Some(found) = newer {
        return Err(ArchiveError::Newer { name: name.to_owned(), found, supported: FORMAT });
    }
    if let Some(bad) = bad {
        let reason = format!("line {}: {}; restore an earlier version of this object", bad.number, bad.reason);
        return Err(damaged(reason));
    }
    let mut lines = lines.into_iter();
    match lines.next() {
        Some(Line::Index { .. }) => {}
        _ => return Err(damaged("its first line is missing".to_owned())),
    }
    Ok(lines
        .filter_map(|line| match line {
            Line::Segment { sha256, segment } => Some(Entry { sha256, segment }),
            Line::Index { .. } => None,
        })
        .collect())
}

/// The index with more segments in it; one that is there already is replaced.
pub(crate) fn write(table: &str, day: &str, mut entries: Vec<Entry>, more: &[Entry]) -> String {
    entries.retain(|entry| !more.iter().any(|new| new.file() == entry.file()));
    entries.extend_from_slice(more);
    let first = Line::Index { format: FORMAT, table: table.to_owned(), day: day.to_owned() };
    let mut text = print(&first);
    for Entry { sha256, segment } in entries {
        text += &print(&Line::Segment { sha256, segment });
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn entry(file: &str, rows: u64) -> Entry {
        Entry { sha256: "ab".into(), segment: json!({ "file": file, "rows": rows }) }
    }

    #[test]
    fn a_segment_stands_once_in_its_index() {
        let text = write("flows", "2024-05-29", Vec::new(), &[entry("a", 1), entry("b", 2)]);
        let entries = read("x", text.as_bytes()).unwrap();
        assert_eq!(entries, [entry("a", 1), entry("b", 2)]);
        let text = write("flows", "2024-05-29", entries, &[entry("a", 1), entry("c", 3)]);
        assert_eq!(read("x", text.as_bytes()).unwrap(), [entry("b", 2), entry("a", 1), entry("c", 3)]);
    }

    #[test]
    fn what_does_not_check_out_is_named() {
        let text = write("flows", "2024-05-29", Vec::new(), &[entry("a", 1)]);
        let error = |text: &str| read("day.ndjson", text.as_bytes()).unwrap_err().to_string();
        assert!(error(&text.replace("\"rows\":1", "\"rows\":2")).contains("day.ndjson is damaged: line 2"));
        assert!(error(&text[..text.len() - 5]).contains("not complete"), "an object is whole or it is not ours");
        assert!(error("").contains("first line"));
        let newer = print(&Line::Index { format: 2, table: "flows".into(), day: "x".into() });
        assert!(error(&(newer + "future")).contains("format 2"));
    }

    #[test]
    fn days_are_those_of_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (4_107_542_400, "2100-03-01"),
            (-1, "1969-12-31"),
        ] {
            assert_eq!(day_of(&json!({ "t_end_max": seconds * 1_000_000_i64 })), text);
        }
    }
}
