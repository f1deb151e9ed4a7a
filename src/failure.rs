//! How a command ends badly: one sentence for people, JSON where JSON was asked for, and an exit code.

use crate::cli::Output;
use serde_json::json;
use std::io::Write;
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
}

impl Code {
    fn name(self) -> &'static str {
        match self {
            Code::Failed => "failed",
            Code::Usage => "usage",
            Code::DamagedInput => "damaged_input",
            Code::NotPermitted => "not_permitted",
            Code::Unreachable => "unreachable",
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

    /// Whoever read our output has read enough (`| head`).
    pub(crate) fn is_broken_pipe(&self) -> bool {
        let kinds = self.error.chain().filter_map(|e| e.downcast_ref::<std::io::Error>());
        kinds.map(std::io::Error::kind).any(|kind| kind == std::io::ErrorKind::BrokenPipe)
    }

    /// The sentence.
    pub(crate) fn message(&self) -> String {
        format!("{:#}", self.error)
    }

    /// Prints the sentence and gives the code to exit with.
    pub(crate) fn report(&self, output: Output) -> ExitCode {
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

/// What is not said to be anything else has failed.
impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Failure {
        Failure::new(Code::Failed, error)
    }
}
