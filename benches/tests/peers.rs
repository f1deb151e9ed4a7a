//! The comparison against stand-ins for the tools, measured by the program itself.

use benches::peers::captures::{self, Traffic};
use benches::peers::measure::{Comparison, Plan, compare};
use benches::peers::tools::{Kind, Search};
use benches::peers::usage::{self, Job};
use benches::peers::{markdown, svg};
use std::ffi::OsString;
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

fn runner() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_peers"))
}

fn job(folder: &Path, script: &str, seconds_max: u32) -> Job {
    let command = ["sh", "-c", script].map(OsString::from).to_vec();
    Job { tool: "sh".to_owned(), command, folder: folder.to_owned(), core: None, seconds_max }
}

/// Counts to `n` in the shell: some milliseconds of CPU time for each thousand.
fn work(n: u32) -> String {
    format!("i=0; while [ $i -lt {n} ]; do i=$((i+1)); done")
}

#[test]
fn children_and_orphans_are_counted() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let none = usage::measure(runner(), &job(folder.path(), "true", 60)).unwrap();
    let child = usage::measure(runner(), &job(folder.path(), &format!("({}); true", work(300_000)), 60)).unwrap();
    // The shell ends at once, and leaves the work behind.
    let orphan = usage::measure(runner(), &job(folder.path(), &format!("({}) & exit 0", work(300_000)), 60)).unwrap();
    assert!(none.cpu_s() < 0.05, "{none:?}");
    assert!(child.cpu_s() > none.cpu_s() + 0.05, "{child:?}");
    assert!(orphan.cpu_s() > none.cpu_s() + 0.05, "{orphan:?}");
    assert!(none.memory_peak_bytes > 100_000 && none.failure().is_none());
}

#[test]
fn memory_is_that_of_the_largest_process() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let script = "dd if=/dev/zero of=/dev/null bs=64M count=1";
    let large = usage::measure(runner(), &job(folder.path(), script, 60)).unwrap();
    assert!((64 << 20..96 << 20).contains(&large.memory_peak_bytes), "{large:?}");
}

#[test]
fn what_fails_or_hangs_says_so() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let failed = usage::measure(runner(), &job(folder.path(), "exit 7", 60)).unwrap();
    assert!(failed.failure().unwrap().contains("exit code 7"));
    let hangs = usage::measure(runner(), &job(folder.path(), "read line < fifo || while :; do :; done", 1)).unwrap();
    assert!(hangs.failure().unwrap().contains("did not end"), "{hangs:?}");
    let nowhere = usage::measure(runner(), &job(Path::new("/nonexistent"), "true", 60));
    assert!(nowhere.unwrap_err().to_string().contains("/nonexistent"));
}

/// A program that behaves like a tool as far as we can tell.
fn stand_in(folder: &Path, name: &str, body: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Softflowd short of flows, yaf that ends with an error, Suricata that leaves packets out; argus is not there.
fn compared(folder: &Path) -> (Comparison, Vec<Kind>) {
    let bin = folder.join("bin");
    fs::create_dir(&bin).unwrap();
    stand_in(&bin, "softflowd", "echo 'Packets processed: 5000'; echo 'Flows expired: 95 (0 forced)'");
    stand_in(&bin, "yaf", "echo 'libfixbuf is too old' >&2; exit 3");
    stand_in(
        &bin,
        "suricata",
        "echo '{\"event_type\":\"flow\"}' > eve.json; echo 'pcap: read 1 file, 4999 packets, 1 bytes'",
    );
    let taphouse = stand_in(&bin, "taphouse", "mkdir data && echo '{\"packets\": 5000, \"flows\": 100}'");
    let search =
        Search { taphouse: vec![taphouse], settings: Vec::new(), python: folder.join("no-python"), folders: vec![bin] };
    let wanted = [Kind::Taphouse, Kind::Softflowd, Kind::Yaf, Kind::Suricata, Kind::Argus, Kind::Nfstream];
    let missing = wanted.into_iter().filter(|kind| search.find(*kind).is_empty()).collect();
    let traffic = Traffic { packets: 5_000, flows: 100, seed: 1 };
    let plan = Plan {
        tools: wanted.into_iter().flat_map(|kind| search.find(kind)).collect(),
        captures: captures::make(folder, traffic, &|_| {}).unwrap(),
        rounds: 3,
        core: None,
        seconds_max: 60,
        scratch: folder.to_owned(),
        runner: runner().to_owned(),
    };
    (compare(&plan, &|_| {}).unwrap(), missing)
}

#[test]
fn a_tool_that_fails_is_a_line_and_not_the_end() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let (comparison, missing) = compared(folder.path());
    assert_eq!(missing, [Kind::Argus, Kind::Nfstream]);
    for result in &comparison.captures {
        let runs: Vec<usize> = result.tools.iter().map(|tool| tool.runs.len()).collect();
        assert_eq!(runs, [3, 3, 1, 1], "who failed is left out of further rounds");
        assert!(result.ours_to(&result.tools[1]).is_some() && result.ours_to(&result.tools[2]).is_none());
    }
    let text = markdown(&comparison, &missing);
    assert!(text.contains("| 95 (-5) |") && text.contains("| 100 |"), "{text}");
    assert!(text.contains("yaf failed over 60 bytes: exit code 3: libfixbuf is too old"), "{text}");
    assert!(text.contains("suricata failed over 60 bytes: counted 4999 packets, not 5000"), "{text}");
    assert!(text.contains("- argus: apt-get install argus-server"), "{text}");
    assert!(svg(&comparison).contains(">softflowd</text>"));
    assert!(!folder.path().join("run").exists(), "nothing is left but the captures");
}
