use crate::locate::Located;
use crate::parameters::ParameterError;
use datafusion::common::{DataFusionError, SchemaError};
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;
use storage::StorageError;

/// Why there is no answer, or no more of it.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// The SQL text is wrong; says where.
    #[error("{0}")]
    Sql(Box<Located>),
    /// The filter expression (or the column list) of a flow listing is wrong; says where.
    #[error("{0}")]
    Filter(Box<Located>),
    /// A statement that does more than read.
    #[error("{statement} is refused: queries only read; use SELECT, EXPLAIN, SHOW or DESCRIBE")]
    ReadOnly {
        /// Its first word.
        statement: String,
    },
    /// Too much text to parse.
    #[error("the query has {value} {unit}, allowed are {max}: write long lists of values as `column IN (...)`")]
    TooLong {
        /// How many it has.
        value: usize,
        /// Of what.
        unit: &'static str,
        /// The most allowed.
        max: usize,
    },
    /// The values of its parameters do not fit the statement.
    #[error(transparent)]
    Parameters(#[from] ParameterError),
    /// As many queries as allowed are running.
    #[error(
        "{max} queries are running already, which is the most allowed: try again when one has finished, or raise \
         `query.concurrent_max`"
    )]
    Busy {
        /// The limit.
        max: usize,
    },
    /// The time limit was reached.
    #[error(
        "the query took more than {limit:?}, the most allowed{read}: narrow its time range, or raise `query.time_max`"
    )]
    TimeLimit {
        /// The limit.
        limit: Duration,
        /// How far it had come.
        read: Reading,
    },
    /// The limit of bytes read from segments was reached.
    #[error(
        "the query wants to read more than {limit} bytes, the most allowed{read}: narrow its time range, name fewer \
         columns, or raise `query.scan_max`"
    )]
    ScanLimit {
        /// The limit.
        limit: u64,
        /// How far it had come.
        read: Reading,
    },
    /// The answer has too many rows.
    #[error("the answer has more than {limit} rows, the most allowed: add a LIMIT, or raise the row limit")]
    RowLimit {
        /// The limit.
        limit: u64,
    },
    /// Grouping, sorting or joining did not fit into the memory all queries share.
    #[error(
        "the query needs more memory than the {limit} bytes all queries share: {in_use} were in use when {wanted} more were \
         asked for; narrow its time range, group or sort fewer rows, or raise `query.memory`"
    )]
    MemoryLimit {
        /// The limit.
        limit: usize,
        /// Bytes in use when it was reached.
        in_use: usize,
        /// Bytes asked for that did not fit.
        wanted: usize,
    },
    /// What the query keeps of a live table did not fit into the memory all queries share.
    #[error(
        "what the query keeps of `{table}` needs more memory than the {limit} bytes all queries share: narrow it with WHERE \
         (addresses, ports, tap), name fewer columns, or raise the memory limit"
    )]
    LiveTableMemory {
        /// Its name.
        table: &'static str,
        /// The limit.
        limit: usize,
    },
    /// A live table could not be read.
    #[error("`{table}` cannot be read: {message}")]
    LiveTable {
        /// Its name.
        table: &'static str,
        /// Why, and what to do about it.
        message: String,
    },
    /// The data folder could not be read.
    #[error(transparent)]
    Storage(#[from] StorageError),
    /// Retention of another process removed a segment between the snapshot and its reading.
    #[error(
        "segment {path} is gone: it expired or was merged while it was read, and the same query finds what there is now; or \
         somebody has removed it, and a start of the server takes it off its list"
    )]
    SegmentGone {
        /// The file, or in an archive the object.
        path: String,
    },
    /// The query computes what cannot be computed: a division by zero, a cast of what is no number.
    #[error("the query failed: {message}")]
    Computing {
        /// What went wrong.
        message: String,
    },
    /// What a segment lies in does not give it.
    #[error(
        "segment {path} cannot be read ({message}): see to the disk or the object storage, and run the query again"
    )]
    UnreadSegment {
        /// The file, or in an archive the object.
        path: String,
        /// Why not.
        message: String,
    },
    /// A segment's file does not read as one.
    #[error(
        "segment {path} is damaged ({message}): leave its time out of the query, or move the file away; of a data folder \
         the server goes on without it when it starts again"
    )]
    BadSegment {
        /// The file, or in an archive the object.
        path: String,
        /// What is wrong with it.
        message: String,
    },
    /// A MaxMind DB file does not read.
    #[error("{}: {reason}; name a MaxMind DB file (.mmdb), or leave its key out", path.display())]
    GeoFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// Reading or computing failed.
    #[error("the query failed: {message}")]
    Execution {
        /// What went wrong.
        message: String,
    },
    /// The engine was dropped, or the query's task ended without an answer.
    #[error("the query was stopped before it was answered: the server is shutting down")]
    Stopped,
}

/// How much of what it had to read a query had read when its budget ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reading {
    /// Segments it had to read.
    pub segments: u64,
    /// Size of their files; of these, only the columns that are asked for are read.
    pub bytes: u64,
    /// Bytes read.
    pub bytes_read: u64,
}

/// A part of a sentence; empty where nothing was to be read.
impl fmt::Display for Reading {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Reading { segments, bytes, bytes_read } = self;
        match segments {
            0 => Ok(()),
            1 => write!(f, ", and had read {bytes_read} of up to {bytes} bytes in 1 segment"),
            _ => write!(f, ", and had read {bytes_read} of up to {bytes} bytes in {segments} segments"),
        }
    }
}

/// A text that should be an address and is none. Travels through the planner as an external error, so that the place
/// in the query can be found again.
#[derive(Clone, Debug, thiserror::Error)]
#[error("'{text}' is not {expected}")]
pub(crate) struct BadLiteral {
    pub(crate) text: String,
    pub(crate) expected: &'static str,
    pub(crate) hint: Option<String>,
}

/// An error whose culprit is an identifier or word in the text.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct BadUse {
    pub(crate) message: String,
    /// The word in the text that the message is about.
    pub(crate) word: String,
    pub(crate) hint: Option<String>,
}

/// What the planner said, boiled down to a message and, where known, the culprit in the text.
pub(crate) struct Complaint {
    pub(crate) message: String,
    pub(crate) culprit: Culprit,
    pub(crate) hint: Option<String>,
}

/// How to find the place a message is about.
pub(crate) enum Culprit {
    /// Line and column, from 1.
    At(u64, u64),
    /// The first identifier that reads so.
    Word(String),
    /// The first string literal that reads so.
    Literal(String),
    /// Not known.
    Nowhere,
}

/// What a misspelt name is compared with.
pub(crate) trait Names {
    fn functions(&self) -> Vec<String>;
    fn tables(&self) -> Vec<&'static str>;
    /// Why a table is not here that is elsewhere.
    fn absent(&self, table: &str) -> Option<String>;
}

impl Complaint {
    /// Reads a planner's error.
    pub(crate) fn new(error: &DataFusionError, names: &dyn Names) -> Complaint {
        match error {
            DataFusionError::Context(_, inner) | DataFusionError::Diagnostic(_, inner) => Complaint::new(inner, names),
            DataFusionError::Shared(inner) => Complaint::new(inner, names),
            DataFusionError::Collection(all) if !all.is_empty() => Complaint::new(&all[0], names),
            DataFusionError::SchemaError(inner, _) => Complaint::schema(inner),
            DataFusionError::External(inner) => Complaint::external(inner.as_ref()),
            other => Complaint::text(&message_of(other), names),
        }
    }

    /// Where a column is missing that is not in the text: `host`, `net` and `port` stand for columns that some tables do not
    /// have.
    pub(crate) fn of_either_side(self, error: &DataFusionError, text: &str) -> Complaint {
        let DataFusionError::SchemaError(missing, _) = error.find_root() else { return self };
        let SchemaError::FieldNotFound { field, .. } = missing.as_ref() else { return self };
        let text = text.to_ascii_lowercase();
        let (columns, words, example): (_, &[&str], _) = match field.name() {
            "src_ip" | "dst_ip" => {
                ("src_ip and dst_ip", &["host", "net"], "client_ip = '10.0.0.1' OR server_ip = '10.0.0.1'")
            }
            "src_port" | "dst_port" => ("src_port and dst_port", &["port"], "client_port = 53 OR server_port = 53"),
            _ => return self,
        };
        match words.iter().find(|word| text.contains(&format!("{word}("))) {
            Some(word) if !text.contains(field.name()) => Complaint {
                message: format!("`{word}` looks at {columns}, which this table does not have"),
                culprit: Culprit::Word((*word).to_owned()),
                hint: Some(format!("name its own columns, as in {example}")),
            },
            _ => self,
        }
    }

    fn schema(error: &SchemaError) -> Complaint {
        match error {
            SchemaError::FieldNotFound { field, valid_fields } => {
                let place = field.spans.first().map(|s| Culprit::At(s.start.line, s.start.column));
                let names: Vec<&str> = valid_fields.iter().map(|c| c.name()).collect();
                Complaint {
                    message: format!("there is no column `{}`", field.flat_name()),
                    culprit: place.unwrap_or_else(|| Culprit::Word(field.name().to_owned())),
                    hint: nearest(field.name(), names.iter().copied()).map(|n| format!("did you mean `{n}`?")),
                }
            }
            SchemaError::AmbiguousReference { field } => Complaint {
                message: format!("column `{}` is in more than one table here", field.name()),
                culprit: Culprit::Word(field.name().to_owned()),
                hint: Some(format!("write the table's name or alias before it, as in `f.{}`", field.name())),
            },
            other => Complaint { message: plain(&other.to_string()), culprit: Culprit::Nowhere, hint: None },
        }
    }

    fn external(error: &(dyn std::error::Error + Send + Sync + 'static)) -> Complaint {
        if let Some(bad) = error.downcast_ref::<BadLiteral>() {
            return Complaint {
                message: bad.to_string(),
                culprit: Culprit::Literal(bad.text.clone()),
                hint: bad.hint.clone(),
            };
        }
        if let Some(bad) = error.downcast_ref::<BadUse>() {
            return Complaint {
                message: bad.message.clone(),
                culprit: Culprit::Word(bad.word.clone()),
                hint: bad.hint.clone(),
            };
        }
        Complaint { message: plain(&error.to_string()), culprit: Culprit::Nowhere, hint: None }
    }

    fn text(message: &str, names: &dyn Names) -> Complaint {
        if let Some(name) = between(message, "Invalid function '", "'") {
            let known = names.functions();
            return Complaint {
                message: format!("there is no function `{name}`"),
                culprit: Culprit::Word(name.to_owned()),
                hint: nearest(name, known.iter().map(String::as_str)).map(|n| format!("did you mean `{n}`?")),
            };
        }
        if let Some(path) = between(message, "table '", "' not found") {
            let name = path.rsplit('.').next().unwrap_or(path);
            let tables = names.tables();
            let list = || tables.iter().map(|table| format!("`{table}`")).collect::<Vec<_>>().join(", ");
            return Complaint {
                message: format!("there is no table `{name}`"),
                culprit: Culprit::Word(name.to_owned()),
                hint: Some(match (names.absent(name), nearest(name, tables.iter().copied())) {
                    (Some(absent), _) => absent,
                    (None, Some(table)) => format!("did you mean `{table}`?"),
                    (None, None) => format!("the tables are {}", list()),
                }),
            };
        }
        if let Some(column) = between(message, "column \"", "\" must appear in the GROUP BY") {
            let name = column.rsplit('.').next().unwrap_or(column);
            return Complaint {
                message: format!("`{name}` is neither grouped by nor in an aggregate function"),
                culprit: Culprit::Word(name.to_owned()),
                hint: Some(format!("name {name} in GROUP BY, or write max({name})")),
            };
        }
        // The engine's name of the type.
        let of_address = message.contains("FixedSizeBinary(16)");
        let of_time =
            ["parsing timestamp", "to Nanosecond", "Timestamp(µs, \"UTC\") "].iter().any(|it| message.contains(it));
        let hint = match (of_address, of_time) {
            (true, _) => Some(
                "an address is compared with addresses, and counted; `ip_text(...)` gives it as text for everything else",
            ),
            (false, true) => {
                Some("write a time as '2026-11-28T09:30:00Z', to the year 2262, or as now() - interval '1 hour'")
            }
            (false, false) => None,
        };
        let hint = hint.map(str::to_owned);
        let no_match = ["failed to match any signature", "coercion failed with"].iter().any(|it| message.contains(it));
        if no_match && let Some(name) = between(message, "unction '", "'") {
            let message = format!("`{name}` does not take what it is given");
            return Complaint { message, culprit: Culprit::Word(name.to_owned()), hint };
        }
        let literal =
            [("string '", "'"), ("timestamp from '", "'")].iter().find_map(|(from, to)| between(message, from, to));
        let message =
            plain(message).replace("FixedSizeBinary(16)", "address").replace("FixedSizeBinary(6)", "MAC address");
        Complaint { message, culprit: literal.map_or(Culprit::Nowhere, |text| Culprit::Literal(text.to_owned())), hint }
    }
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let rest = &text[text.find(before)? + before.len()..];
    rest.find(after).map(|end| &rest[..end])
}

/// The nearest of `names`, if it is near enough to be what was meant.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<String> {
    let name = name.to_lowercase();
    let (score, best) =
        names.map(|n| (strsim::jaro_winkler(&name, n), n)).max_by(|a, b| a.0.total_cmp(&b.0).then(b.1.cmp(a.1)))?;
    (score > 0.75).then(|| best.to_owned())
}

/// What Parquet's reader says of a filter that fails inside it.
pub(crate) const FILTER_FAILED: &str = "Error evaluating filter predicate";

/// What is wrong with a segment's file, on its way through the engine.
#[derive(Debug, thiserror::Error)]
#[error("segment {path}: {message}")]
pub(crate) struct BadSegment {
    pub(crate) path: String,
    pub(crate) message: String,
    /// Not what it lies in, but the file.
    pub(crate) damaged: bool,
}

/// The message alone, without the engine's own prefix ("Error during planning: ") and backtrace.
pub(crate) fn message_of(error: &DataFusionError) -> String {
    match error.find_root() {
        DataFusionError::Plan(m)
        | DataFusionError::Execution(m)
        | DataFusionError::NotImplemented(m)
        | DataFusionError::Internal(m)
        | DataFusionError::Configuration(m)
        | DataFusionError::ResourcesExhausted(m) => m.clone(),
        other => other.strip_backtrace(),
    }
}

/// In the manner of this project: first letter small, one line, no period at the end.
pub(crate) fn plain(message: &str) -> String {
    let message = message.split("\n\nbacktrace:").next().unwrap_or(message);
    // Whose mistake it is, is not for the engine to say.
    let message = message.split("This issue was likely caused by a bug").next().unwrap_or(message).trim_end();
    const PREFIXES: [&str; 6] = [
        "Internal error: ",
        "External error: ",
        "Arrow error: ",
        "Parser error: ",
        "Cast error: ",
        "Error during planning: ",
    ];
    let mut message = message;
    while let Some(rest) = PREFIXES.iter().find_map(|prefix| message.strip_prefix(prefix)) {
        message = rest;
    }
    let line = message.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.trim_end_matches('.');
    let mut chars = line.chars();
    match (chars.next(), chars.clone().next()) {
        // "SQL ..." and "CAST ..." keep their capitals.
        (Some(first), Some(second)) if !second.is_uppercase() => first.to_lowercase().chain(chars).collect(),
        _ => line.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_near() {
        let names = ["src_ip", "dst_ip", "src_port", "bytes_o"];
        assert_eq!(nearest("srcip", names.into_iter()).as_deref(), Some("src_ip"));
        assert_eq!(nearest("SRC_PROT", names.into_iter()).as_deref(), Some("src_port"));
        assert_eq!(nearest("zzz", names.into_iter()), None);
    }

    #[test]
    fn engine_messages_become_ours() {
        assert_eq!(plain("Cannot do\nthis."), "cannot do this");
        assert_eq!(plain("SQL is hard"), "SQL is hard");
        assert_eq!(plain("A"), "A");
        let bug = "Internal error: could not cast.\nThis issue was likely caused by a bug in DataFusion's code. Please help us";
        assert_eq!(plain(bug), "could not cast");
        assert_eq!(plain("Arrow error: Cast error: Cannot cast string 'https'"), "cannot cast string 'https'");
    }
}
