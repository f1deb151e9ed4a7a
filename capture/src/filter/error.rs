use std::fmt;

/// Most characters of the filter that a message quotes; longer ones are shown around the column.
const QUOTE_CHARS_MAX: usize = 100;

/// Why a capture filter was refused: one sentence, the text, and a caret under the column.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("capture filter: {message}\n  {quote}\n  {:>caret$}", "^")]
pub struct FilterError {
    message: String,
    column: usize,
    quote: String,
    /// Where in `quote` the caret goes, from 1.
    caret: usize,
}

impl FilterError {
    /// `at` is a byte offset into `text`. The message reads `{what} at column N{hint}`.
    pub(super) fn new(text: &str, at: usize, what: impl fmt::Display, hint: impl fmt::Display) -> FilterError {
        let before = text.char_indices().take_while(|(i, _)| *i < at).count();
        let start = before.saturating_sub(QUOTE_CHARS_MAX * 2 / 3);
        let cut_front = start > 0;
        // A tab or a line break would move the caret away from its character.
        let visible = |c: char| if c.is_control() { ' ' } else { c };
        let mut quote: String = if cut_front { "... ".to_owned() } else { String::new() };
        quote.extend(text.chars().skip(start).take(QUOTE_CHARS_MAX).map(visible));
        if text.chars().skip(start).nth(QUOTE_CHARS_MAX).is_some() {
            quote.push_str(" ...");
        }
        let caret = before - start + 1 + if cut_front { 4 } else { 0 };
        FilterError { message: format!("{what} at column {}{hint}", before + 1), column: before + 1, quote, caret }
    }

    /// The sentence, without the quoted text.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Where in the text, in characters from 1; one past its end where something is missing.
    pub fn column(&self) -> usize {
        self.column
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn caret_is_under_the_column() {
        let e = FilterError::new("tcp prt 80", 4, "unknown word 'prt'", ", did you mean 'port'?");
        let shown = e.to_string();
        assert_eq!(
            shown,
            "capture filter: unknown word 'prt' at column 5, did you mean 'port'?\n  tcp prt 80\n      ^"
        );
        assert_eq!((e.column(), e.message()), (5, "unknown word 'prt' at column 5, did you mean 'port'?"));
    }

    #[test]
    fn long_text_is_cut_and_columns_count_characters() {
        let text = format!("{} ärger {}", "x".repeat(500), "y".repeat(500));
        let at = text.find('r').unwrap();
        let e = FilterError::new(&text, at, "no", "");
        assert_eq!(e.column(), 503);
        let shown = e.to_string();
        let lines: Vec<&str> = shown.lines().collect();
        assert!(lines[1].chars().count() < 120);
        let under = lines[1].chars().nth(lines[2].chars().count() - 1);
        assert_eq!(under, Some('r'), "{shown}");
        assert_eq!(
            FilterError::new("a\tb\n", 4, "no", "").to_string(),
            "capture filter: no at column 5\n  a b \n      ^"
        );
    }
}
