/// Why a sketch cannot be made or merged.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum SketchError {
    /// A size or probability outside what the sketch supports.
    #[error("{field} is {value}, allowed is {allowed}")]
    OutOfRange {
        /// The parameter.
        field: &'static str,
        /// What it was.
        value: String,
        /// What it may be, in words.
        allowed: &'static str,
    },
    /// Two sketches that do not describe the same thing.
    #[error("cannot merge: {field} is {ours} here and {theirs} there; build both with the same {field}")]
    Mismatch {
        /// The parameter that differs.
        field: &'static str,
        /// Its value in the sketch merged into.
        ours: String,
        /// Its value in the sketch merged from.
        theirs: String,
    },
}

impl SketchError {
    pub(crate) fn out_of_range(field: &'static str, value: impl ToString, allowed: &'static str) -> SketchError {
        SketchError::OutOfRange { field, value: value.to_string(), allowed }
    }

    pub(crate) fn mismatch(field: &'static str, ours: impl ToString, theirs: impl ToString) -> SketchError {
        SketchError::Mismatch { field, ours: ours.to_string(), theirs: theirs.to_string() }
    }
}
