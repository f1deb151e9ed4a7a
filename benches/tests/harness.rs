//! The harness against stand-ins for the binary.

use benches::harness::{HarnessError, Plan, markdown, measure};
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// One test at a time: a script cannot be started (ETXTBSY) while a process that another test just forked still holds
/// the file open for writing.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A script that behaves like `taphouse replay` as far as the harness can tell.
fn stand_in(folder: &Path, name: &str, body: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

fn plan(folder: &Path, binaries: Vec<PathBuf>) -> Plan {
    Plan {
        binaries,
        capture: folder.join("x.pcap"),
        packets: Some(1000),
        runs: 3,
        settings: vec!["pipeline.workers=1".to_owned()],
        scratch: folder.to_owned(),
    }
}

const GOOD: &str = r#"echo '{"packets":1000,"bytes":7,"flows":12,"decode_errors":{},"elapsed_s":0.5,"cpu_s":0.001}'"#;

#[test]
fn binaries_are_run_in_turn_and_summed_up() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let logged = format!("echo \"$0 $*\" >> {}; test -d \"$4\" || exit 9; {GOOD}", log.display());
    let old = stand_in(folder.path(), "old", &logged);
    let new = stand_in(folder.path(), "new", &logged.replace("0.001", "0.0005"));
    let result = measure(&plan(folder.path(), vec![old, new]), |_| ()).unwrap();
    assert_eq!((result[0].packets_per_cpu_s.median, result[1].packets_per_cpu_s.median), (1e6, 2e6));
    assert_eq!((result[0].flows, result[0].runs.len(), result[1].ns_per_packet), (12, 3, 500.0));
    let log = fs::read_to_string(log).unwrap();
    let called: Vec<&str> = log.lines().map(|l| if l.contains("/old replay ") { "old" } else { "new" }).collect();
    assert_eq!(called, ["old", "new", "old", "new", "old", "new"]);
    assert!(log.lines().all(|line| line.ends_with("--output json --set pipeline.workers=1")), "{log}");
    assert_eq!(markdown(&result).lines().count(), 4);
    assert!(!folder.path().join("data").exists(), "data folders are removed");
}

#[test]
fn what_fails_is_said_in_a_sentence() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let error = |body: &str| {
        let binary = stand_in(folder.path(), "taphouse", body);
        let error = measure(&plan(folder.path(), vec![binary]), |_| ()).unwrap_err();
        assert!(!error.to_string().contains('\n'), "{error}");
        error
    };
    let failed = error("echo 'error: no such file' >&2; exit 3");
    assert!(matches!(&failed, HarnessError::Failed { message, .. } if message == "error: no such file"), "{failed}");
    assert!(matches!(error("echo hello"), HarnessError::Summary { .. }));
    assert!(matches!(error(r#"echo '{"packets":1000}'"#), HarnessError::Summary { .. }));
    let wrong = error(&GOOD.replace("1000", "999"));
    assert!(matches!(wrong, HarnessError::Wrong { what: "packets", got: 999, expected: 1000, .. }), "{wrong}");
    let absent = measure(&plan(folder.path(), vec![folder.path().join("absent")]), |_| ()).unwrap_err();
    assert!(absent.to_string().contains("--taphouse"), "{absent}");
}

#[test]
fn flows_that_change_between_runs_are_an_error() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let count = folder.path().join("count");
    let body = format!(
        r#"echo >> {0}; n=$(wc -l < {0}); echo "{{\"packets\":1000,\"flows\":$n,\"elapsed_s\":1,\"cpu_s\":1}}""#,
        count.display()
    );
    let binary = stand_in(folder.path(), "taphouse", &body);
    let error = measure(&plan(folder.path(), vec![binary]), |_| ()).unwrap_err();
    assert!(matches!(error, HarnessError::Wrong { what: "flows", got: 2, expected: 1, .. }), "{error}");
}
