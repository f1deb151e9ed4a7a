//! Where in the text of a query something went wrong, shown with a caret.

use crate::error::{Complaint, Culprit};
use datafusion::sql::sqlparser::dialect::GenericDialect;
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use std::fmt;

/// How much of a long line is shown around the place, in characters.
const SNIPPET_CHARS_MAX: usize = 96;

/// A mistake in a text, and where it is. Displays as message, position, the line with a caret under it, suggestion:
///
/// ```text
/// there is no column `srcip` (line 1, column 1)
///   srcip = '10.0.0.1'
///   ^
/// did you mean `src_ip`?
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// What is wrong: lowercase, no period.
    pub message: String,
    /// Line in the text, from 1; 0 where the place is not known.
    pub line: u64,
    /// Character in the line, from 1; 0 where the place is not known.
    pub column: u64,
    /// The line (cut to a window where it is long), a line break, and a caret under the place. Empty where the place
    /// is not known.
    pub snippet: String,
    /// What to write instead.
    pub suggestion: Option<String>,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if self.line > 0 {
            write!(f, " (line {}, column {})", self.line, self.column)?;
        }
        for line in self.snippet.lines() {
            write!(f, "\n  {line}")?;
        }
        match &self.suggestion {
            Some(suggestion) => write!(f, "\n{suggestion}"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Located {}

impl Located {
    /// At a place that is known: line and column from 1, or 0 for nowhere.
    pub(crate) fn at(text: &str, line: u64, column: u64, message: String, suggestion: Option<String>) -> Box<Located> {
        let snippet = snippet(text, line, column);
        let (line, column) = if snippet.is_empty() { (0, 0) } else { (line, column) };
        Box::new(Located { message, line, column, snippet, suggestion })
    }

    /// Finds the culprit of a planner's complaint in the text.
    pub(crate) fn complaint(text: &str, complaint: Complaint) -> Box<Located> {
        let (line, column) = match &complaint.culprit {
            Culprit::At(line, column) => (*line, *column),
            Culprit::Word(word) => find(text, |t| match t {
                Token::Word(w) => w.value.eq_ignore_ascii_case(word),
                _ => false,
            }),
            Culprit::Literal(literal) => find(text, |t| match t {
                Token::SingleQuotedString(s) => s == literal,
                Token::Number(n, _) => n == literal,
                _ => false,
            }),
            Culprit::Nowhere => (0, 0),
        };
        Located::at(text, line, column, complaint.message, complaint.hint)
    }

    /// A syntax error: the parser writes its position at the end of the message (" at Line: 1, Column: 5").
    pub(crate) fn syntax(text: &str, message: &str) -> Box<Located> {
        let (message, place) = match message.rsplit_once(" at Line: ") {
            Some((message, place)) => (message, place.split_once(", Column: ")),
            None => (message, None),
        };
        let place = place.and_then(|(line, column)| Some((line.trim().parse().ok()?, column.trim().parse().ok()?)));
        let (line, column) = place.unwrap_or_else(|| end(text));
        let message = message.replacen("Expected: ", "expected ", 1).replacen(", found: ", ", found ", 1);
        let message = message.replace("found EOF", "found the end of the text");
        Located::at(text, line, column, crate::error::plain(&message), None)
    }
}

fn find(text: &str, is_it: impl Fn(&Token) -> bool) -> (u64, u64) {
    let tokens = Tokenizer::new(&GenericDialect {}, text).tokenize_with_location().unwrap_or_default();
    match tokens.iter().find(|t| is_it(&t.token)) {
        Some(t) => (t.span.start.line, t.span.start.column),
        None => (0, 0),
    }
}

/// The place just after the last character.
fn end(text: &str) -> (u64, u64) {
    let text = text.trim_end();
    let last = text.lines().last().unwrap_or("");
    (text.lines().count().max(1) as u64, last.chars().count() as u64 + 1)
}

fn snippet(text: &str, line: u64, column: u64) -> String {
    let (Some(line), Some(column)) = (line.checked_sub(1), column.checked_sub(1)) else { return String::new() };
    let Some(line) = text.split('\n').nth(line as usize) else { return String::new() };
    let chars: Vec<char> = line.trim_end().chars().collect();
    let column = (column as usize).min(chars.len());
    let from = if chars.len() <= SNIPPET_CHARS_MAX { 0 } else { column.saturating_sub(SNIPPET_CHARS_MAX / 2) };
    let to = chars.len().min(from + SNIPPET_CHARS_MAX);
    // Whatever a terminal would act on becomes a space, which also keeps the caret in its place.
    let shown: String = chars[from..to].iter().map(|c| if c.is_control() { ' ' } else { *c }).collect();
    format!("{shown}\n{}^", " ".repeat(column - from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caret_stands_under_the_place() {
        let text = "proto = 6\n  AND sport = 1";
        let found = Located::complaint(
            text,
            Complaint { message: "m".into(), culprit: Culprit::Word("SPORT".into()), hint: Some("h".into()) },
        );
        assert_eq!((found.line, found.column), (2, 7));
        assert_eq!(found.to_string(), "m (line 2, column 7)\n    AND sport = 1\n        ^\nh");
    }

    #[test]
    fn long_lines_are_cut_to_a_window() {
        let text = format!("{} culprit {}", "x ".repeat(500), "y ".repeat(500));
        let found = Located::complaint(
            &text,
            Complaint { message: "m".into(), culprit: Culprit::Word("culprit".into()), hint: None },
        );
        let lines: Vec<&str> = found.snippet.lines().collect();
        assert!(lines[0].chars().count() <= SNIPPET_CHARS_MAX);
        assert_eq!(&lines[0][lines[1].len() - 1..][..7], "culprit");
    }

    #[test]
    fn places_outside_the_text_are_no_places() {
        let found = Located::at("a", 7, 1, "m".into(), None);
        assert_eq!(found.to_string(), "m");
        assert_eq!(Located::at("", 1, 1, "m".into(), None).to_string(), "m (line 1, column 1)\n  \n  ^");
    }

    #[test]
    fn the_end_of_the_text_is_a_place() {
        let found = Located::syntax("a = ", "Expected: an expression, found: EOF");
        assert_eq!(
            found.to_string(),
            "expected an expression, found the end of the text (line 1, column 4)\n  a =\n     ^"
        );
    }
}
