//! The alert log: numbering, torn ends at every byte, damage, rotation, reading while it is written.

use detect::{Alert, AlertLog, AlertState, DetectError, Evidence, Severity};
use std::fs;
use std::path::Path;
use wire::{Addr, Nanos};

const CURRENT: &str = "alerts.ndjson";
const PREVIOUS: &str = "alerts.1.ndjson";

fn alert(n: u64) -> Alert {
    Alert {
        seq: 0,
        time: Nanos(n * 1_000_000_007),
        rule: "port_scan".into(),
        state: AlertState::Firing,
        key: format!("port_scan/tap0/{n}\n\"é"),
        severity: Severity::Critical,
        score: 0.125,
        tap: "tap0".into(),
        summary: "10.0.0.1 tried 100 ports".into(),
        src_ip: Some(Addr::v4([10, 0, 0, 1])),
        dst_ip: Some("2001:db8::1".parse().unwrap()),
        started: Nanos(n),
        evidence: Evidence::from([("ports".into(), serde_json::json!([1, 2, 3]))]),
    }
}

fn numbered(n: u64) -> Alert {
    Alert { seq: n, ..alert(n) }
}

fn read_all(dir: &Path) -> Vec<Alert> {
    AlertLog::read(dir, 0, usize::MAX).unwrap().0
}

#[test]
fn alerts_are_numbered_from_one_across_restarts() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(AlertLog::read(&dir.path().join("nowhere"), 0, 10).unwrap(), (vec![], 1));
    for n in 1..=10 {
        let mut log = AlertLog::open(dir.path(), 1 << 20).unwrap();
        assert_eq!((log.next_seq(), log.recovery()), (n, Default::default()));
        assert_eq!(log.append(alert(n)).unwrap(), numbered(n));
    }
    assert_eq!(read_all(dir.path()), (1..=10).map(numbered).collect::<Vec<_>>());
    assert_eq!(AlertLog::read(dir.path(), 4, 3).unwrap(), ((5..=7).map(numbered).collect(), 1));
    assert_eq!(AlertLog::read(dir.path(), 10, 3).unwrap(), (vec![], 1));
    assert_eq!(AlertLog::read(dir.path(), 0, 0).unwrap(), (vec![], 1));
}

#[test]
fn a_write_torn_at_any_byte_loses_no_complete_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = AlertLog::open(dir.path(), 1 << 20).unwrap();
    for n in 1..=2 {
        log.append(alert(n)).unwrap();
    }
    let bytes = fs::read(dir.path().join(CURRENT)).unwrap();
    for (garbage, step) in [(&b""[..], 1), (b"\0\0\0", 13), (b"\xff{", 17)] {
        for cut in (0..=bytes.len()).step_by(step) {
            let torn = tempfile::tempdir().unwrap();
            fs::write(torn.path().join(CURRENT), [&bytes[..cut], garbage].concat()).unwrap();
            let complete = bytes[..cut].iter().filter(|b| **b == b'\n').count() as u64;
            let complete_bytes = bytes[..cut].iter().rposition(|b| *b == b'\n').map_or(0, |at| at + 1);
            // A reader before the repair sees the complete lines.
            assert_eq!(read_all(torn.path()), (1..=complete).map(numbered).collect::<Vec<_>>(), "cut {cut}");

            let mut log = AlertLog::open(torn.path(), 1 << 20).unwrap();
            // Only the end of line is missing: the alert is whole and kept.
            let whole = garbage.is_empty() && cut > complete_bytes && bytes[cut] == b'\n';
            let kept = complete + u64::from(whole);
            let torn_bytes = if whole { 0 } else { cut + garbage.len() - complete_bytes };
            assert_eq!(log.recovery().torn_bytes, torn_bytes as u64, "cut {cut}");
            assert_eq!(log.append(alert(kept + 1)).unwrap().seq, kept + 1, "cut {cut}");
            assert_eq!(read_all(torn.path()), (1..=kept + 1).map(numbered).collect::<Vec<_>>(), "cut {cut}");
        }
    }
}

#[test]
fn damaged_lines_keep_their_numbers_and_their_neighbours() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = AlertLog::open(dir.path(), 1 << 20).unwrap();
    for n in 1..=5 {
        log.append(alert(n)).unwrap();
    }
    let path = dir.path().join(CURRENT);
    let text = fs::read_to_string(&path).unwrap();
    let mut lines = text.lines().map(str::to_owned).collect::<Vec<_>>();
    lines[1] = "not json".into();
    lines[4] = "\0".repeat(50);
    fs::write(&path, lines.join("\n") + "\n").unwrap();
    let mut log = AlertLog::open(dir.path(), 1 << 20).unwrap();
    assert_eq!((log.recovery().torn_bytes, log.recovery().unreadable_lines), (0, 2));
    assert_eq!(log.append(alert(6)).unwrap().seq, 6, "the number of the damaged last line is not given twice");
    assert_eq!(read_all(dir.path()).iter().map(|a| a.seq).collect::<Vec<_>>(), [1, 3, 4, 6]);
}

#[test]
fn rotation_bounds_the_files_and_readers_learn_what_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let mut log = AlertLog::open(dir.path(), 4_096).unwrap();
    let line = serde_json::to_string(&numbered(100)).unwrap().len() as u64 + 1;
    let per_file = 4_096 / line;
    for n in 1..=100 {
        assert_eq!(log.append(alert(n)).unwrap().seq, n);
        let (alerts, first) = AlertLog::read(dir.path(), 0, usize::MAX).unwrap();
        assert_eq!(alerts, (first..=n).map(numbered).collect::<Vec<_>>());
        assert!(n - first < 2 * per_file + 2 && (n - first + 1 >= per_file || first == 1), "{first}..={n}");
        for file in [CURRENT, PREVIOUS] {
            let bytes = fs::metadata(dir.path().join(file)).map_or(0, |m| m.len());
            assert!(bytes <= 4_096, "{file} has {bytes} bytes");
        }
        if n % 7 == 0 {
            log = AlertLog::open(dir.path(), 4_096).unwrap();
        }
    }
    let (alerts, first) = AlertLog::read(dir.path(), 98, 10).unwrap();
    assert_eq!(alerts, [numbered(99), numbered(100)]);
    assert!(first > 1 && first < 99);
}

#[test]
fn a_crash_between_the_steps_of_a_rotation_keeps_the_numbering() {
    for empty_file in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let mut log = AlertLog::open(dir.path(), 1 << 20).unwrap();
        for n in 1..=4 {
            log.append(alert(n)).unwrap();
        }
        drop(log);
        fs::rename(dir.path().join(CURRENT), dir.path().join(PREVIOUS)).unwrap();
        if empty_file {
            fs::write(dir.path().join(CURRENT), "").unwrap();
        }
        assert_eq!(read_all(dir.path()).len(), 4);
        let mut log = AlertLog::open(dir.path(), 1 << 20).unwrap();
        assert_eq!(log.append(alert(5)).unwrap().seq, 5);
        assert_eq!(read_all(dir.path()), (1..=5).map(numbered).collect::<Vec<_>>());
    }
}

#[test]
fn a_reader_follows_a_writer_through_rotations_without_gap_or_repeat() {
    let dir = tempfile::tempdir().unwrap();
    const N: u64 = 150;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut log = AlertLog::open(dir.path(), 8_192).unwrap();
            for n in 1..=N {
                log.append(alert(n)).unwrap();
            }
        });
        let mut last = 0;
        while last < N {
            let (alerts, first) = AlertLog::read(dir.path(), last, 5).unwrap();
            for alert in alerts {
                // A gap is allowed only where rotation took the alerts, and the reader can tell.
                assert!(alert.seq == last + 1 || alert.seq == first && first > last, "{last}, {first}, {}", alert.seq);
                assert_eq!(alert, numbered(alert.seq));
                last = alert.seq;
            }
            std::thread::yield_now();
        }
    });
}

#[test]
fn refusals_say_what_is_allowed_and_change_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let error = AlertLog::open(dir.path(), 100).unwrap_err();
    assert_eq!(error.to_string(), "max_bytes is 100, allowed is 4096 or more");
    let file = dir.path().join("file");
    fs::write(&file, "mine").unwrap();
    let error = AlertLog::open(&file, 1 << 20).unwrap_err();
    assert!(matches!(&error, DetectError::Io { path, .. } if *path == file), "{error}");
    assert_eq!(fs::read(&file).unwrap(), b"mine");

    let mut log = AlertLog::open(dir.path(), 4_096).unwrap();
    log.append(alert(1)).unwrap();
    let error = log.append(Alert { summary: "x".repeat(5_000), ..alert(2) }).unwrap_err().to_string();
    assert!(error.contains("bytes, allowed are 4096"), "{error}");
    let error = log.append(Alert { score: f64::NAN, ..alert(2) }).unwrap_err().to_string();
    assert_eq!(error, "alert score is NaN, allowed is 0 to 1");
    assert_eq!(log.append(alert(2)).unwrap().seq, 2);
    assert_eq!(read_all(dir.path()), [numbered(1), numbered(2)]);
}
