//! How a command ends badly: one sentence for people, JSON where JSON was asked for, and an exit code.

use crate::cli::Output;
use serde_json::json;
use std::io::{ErrorKind, Write};
use std::process::ExitCode;

/// The exit codes of `cli::EXIT_CODES`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Code {
    Failed = 1,
    Usage = 2,
    DamagedInput = 3,
    NotPermitted = 4,
    Unreachable = 5,
    Interrupted = 130,
    Terminated = 143,
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Code::Failed => "failed",
            Code::Usage => "usage",
            Code::DamagedInput => "damaged_input",
            Code::NotPermitted => "not_permitted",
            Code::Unreachable => "unreachable",
            Code::Interrupted => "interrupted",
            Code::Terminated => "terminated",
        }
    }
}

/// An error with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) code: Code,
    pub(crate) error: anyhow::Error,
    /// The command has printed its JSON document already, the error in it.
    pub(crate) reported: bool,
}

impl Failure {
    pub(crate) fn new(code: Code, error: impl Into<anyhow::Error>) -> Failure {
        Failure { code, error: error.into(), reported: false }
    }

    /// A command line that does not parse, in one sentence instead of clap's paragraphs.
    pub(crate) fn usage(error: &clap::Error) -> Failure {
        let text = error.render().to_string();
        let paragraphs = text.split("\n\n").map(|p| p.split_whitespace().collect::<Vec<_>>().join(" "));
        let told: Vec<String> = paragraphs
            .map(|p| p.strip_prefix("error: ").map(str::to_owned).unwrap_or(p))
            .filter(|p| !p.is_empty() && !p.starts_with("Usage:") && !p.starts_with("For more information"))
            .collect();
        Failure::new(Code::Usage, anyhow::anyhow!("{}; --help tells what there is", told.join("; ")))
    }

    /// Whoever read our output has read enough (`| head`).
    pub(crate) fn is_broken_pipe(&self) -> bool {
        let kinds = self.error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>());
        kinds.map(std::io::Error::kind).any(|kind| kind == std::io::ErrorKind::BrokenPipe)
    }

    /// The sentence: the error, then each cause it does not name already.
    pub(crate) fn message(&self) -> String {
        let mut sentence = String::new();
        for part in self.error.chain().map(ToString::to_string) {
            if sentence.is_empty() {
                sentence = part;
            } else if !sentence.contains(&part) {
                sentence = format!("{sentence}: {part}");
            }
        }
        sentence
    }

    /// Prints the sentence and gives the code to exit with.
    pub(crate) fn report(&self, output: Output) -> ExitCode {
        // Who sends a signal knows why it ended.
        if matches!(self.code, Code::Interrupted | Code::Terminated) {
            return ExitCode::from(self.code as u8);
        }
        let message = self.message();
        if output.is_json() && !self.reported {
            let document = json!({ "error": { "code": self.code.name(), "message": message } });
            // Standard output may be closed; the sentence below still tells.
            drop(writeln!(std::io::stdout(), "{document}"));
        }
        eprintln!("taphouse: {message}");
        ExitCode::from(self.code as u8)
    }
}

/// What is not said to be anything else has failed, or was not permitted if the operating system says so.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        let error = error.into();
        let kinds = error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>()).map(std::io::Error::kind);
        let refused = |kind| matches!(kind, ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem);
        let code = if kinds.into_iter().any(refused) { Code::NotPermitted } else { Code::Failed };
        Failure::new(code, error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::Parser;
    use std::io::Error;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot open x: {0}")]
    struct Told(#[source] Error);

    #[test]
    fn a_cause_that_is_named_is_not_told_twice() {
        let failure = Failure::from(Told(ErrorKind::NotFound.into()));
        assert_eq!(failure.message(), "cannot open x: entity not found");
        let failure = Failure::from(anyhow::Error::from(Error::other("b")).context("a"));
        assert_eq!(failure.message(), "a: b");
    }

    #[test]
    fn what_the_system_refuses_has_a_code_of_its_own() {
        assert_eq!(Failure::from(Told(ErrorKind::PermissionDenied.into())).code, Code::NotPermitted);
        assert_eq!(Failure::from(Told(ErrorKind::NotFound.into())).code, Code::Failed);
    }

    #[test]
    fn a_wrong_command_line_is_one_sentence() {
        let message = |args: &[&str]| Failure::usage(&Cli::try_parse_from(args).unwrap_err()).message();
        let text = message(&["taphouse", "repla"]);
        assert!(text.starts_with("unrecognized subcommand 'repla'") && text.contains("'replay'"), "{text}");
        let text = message(&["taphouse", "replay"]);
        assert!(text.contains("<FILE>") && !text.contains('\n'), "{text}");
    }
}
