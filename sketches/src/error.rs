/// Why a sketch cannot be made, merged or read.
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
    /// Bytes of another kind of sketch.
    #[error("the bytes are of a {found} sketch, a {wanted} sketch was expected")]
    Foreign {
        /// What they are.
        found: String,
        /// What they should be.
        wanted: &'static str,
    },
    /// Bytes of a version that is not known here.
    #[error("the {kind} sketch was written in version {found}, this program reads version {known}; use a newer one")]
    Version {
        /// What sketch it is.
        kind: &'static str,
        /// Its version.
        found: u8,
        /// The one that is known.
        known: u8,
    },
    /// Bytes that are no sketch, or not a whole one.
    #[error("the bytes of a sketch are damaged: {reason}")]
    Damaged {
        /// What does not fit.
        reason: String,
    },
}

impl SketchError {
    pub(crate) fn out_of_range(field: &'static str, value: impl ToString, allowed: &'static str) -> SketchError {
        SketchError::OutOfRange { field, value: value.to_string(), allowed }
    }

    pub(crate) fn damaged(reason: impl Into<String>) -> SketchError {
        SketchError::Damaged { reason: reason.into() }
    }

    pub(crate) fn mismatch(field: &'static str, ours: impl ToString, theirs: impl ToString) -> SketchError {
        SketchError::Mismatch { field, ours: ours.to_string(), theirs: theirs.to_string() }
    }
}
