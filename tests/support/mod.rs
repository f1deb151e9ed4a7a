//! What the end-to-end tests share: the built binary, run as a person would.

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// The binary under test.
pub(crate) fn taphouse() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_taphouse"));
    command.env_remove("RUST_LOG");
    command
}

/// Runs to the end; panics with both outputs unless it succeeds.
pub(crate) fn run(command: &mut Command) -> Output {
    let output = command.output().expect("the binary starts");
    assert!(
        output.status.success(),
        "{command:?} ended with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// `taphouse replay FILE --data-dir DIR`, its summary as JSON.
#[allow(dead_code, reason = "each test file uses its part of this module")]
pub(crate) fn replay(file: &Path, dir: &Path, settings: &[&str]) -> Value {
    let mut command = taphouse();
    command.arg("replay").arg(file).arg("--data-dir").arg(dir).args(["--output", "json"]);
    for setting in settings {
        command.args(["--set", setting]);
    }
    let output = command.output().expect("the binary starts");
    // 3: the capture is damaged or odd, and what was read is stored; the summary tells how much that is.
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(matches!(output.status.code(), Some(0 | 3)), "{command:?} ended with {}\n{stderr}", output.status);
    serde_json::from_slice(&output.stdout).expect("a JSON summary")
}

/// `taphouse sql QUERY --data-dir DIR`, its rows.
#[allow(dead_code, reason = "each test file uses its part of this module")]
pub(crate) fn sql(query: &str, dir: &Path) -> Vec<Value> {
    let output = run(taphouse().args(["sql", query, "--output", "json", "--data-dir"]).arg(dir));
    match serde_json::from_slice(&output.stdout).expect("valid JSON") {
        Value::Array(rows) => rows,
        other => panic!("expected an array of rows, got {other}"),
    }
}

/// The folder of captures with independent ground truth, if there is one. Says so if there is not.
#[allow(dead_code, reason = "each test file uses its part of this module")]
pub(crate) fn testdata() -> Option<PathBuf> {
    match std::env::var_os("TAPHOUSE_TESTDATA") {
        Some(dir) => Some(PathBuf::from(dir).canonicalize().expect("TAPHOUSE_TESTDATA is a folder")),
        None => {
            println!("SKIPPED: TAPHOUSE_TESTDATA is not set; it names the folder of captures with ground truth");
            None
        }
    }
}

/// A generated capture in `dir`.
#[allow(dead_code, reason = "each test file uses its part of this module")]
pub(crate) fn generate(dir: &Path, config: traffic::Config) -> (PathBuf, traffic::Truth) {
    let path = dir.join("generated.pcap");
    let mut generator = traffic::Generator::new(traffic::Config { truth: true, ..config });
    traffic::pcap::write_pcap_file(&path, &mut generator, true).expect("a written capture");
    (path, generator.into_truth())
}
