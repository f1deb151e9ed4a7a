//! Captures from elsewhere against what tshark read in them. They are not in the repository: `TAPHOUSE_TESTDATA` names
//! the folder.

mod support;

use capture::{FileOptions, FileSource, SourceError};
use std::io::Read;
use std::path::{Path, PathBuf};
use support::{TAP, drain};

#[test]
fn captures_hold_what_tshark_says() {
    let Some(root) = std::env::var_os("TAPHOUSE_TESTDATA").map(PathBuf::from) else {
        println!("SKIPPED: TAPHOUSE_TESTDATA is not set");
        return;
    };
    // Relative to the workspace, where cargo was called.
    let root = if root.is_relative() { Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(root) } else { root };
    let mut paths: Vec<_> = std::fs::read_dir(root.join("pcap")).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    let mut files = 0;
    let mut wrong = Vec::new();
    for path in paths.iter().filter(|p| p.extension().is_some_and(|e| e == "pcap" || e == "pcapng")) {
        let stem = path.file_stem().unwrap().to_str().unwrap();
        let Some(truth) = truth(&root.join("truth"), stem) else {
            wrong.push(format!("{stem}: no truth file"));
            continue;
        };
        let mut source = FileSource::open(path, TAP, &FileOptions::default()).unwrap();
        let (keep, result) = drain(&mut source, usize::MAX);
        // A file that tshark complains about may be an error here, after the packets tshark could read.
        match &result {
            // tshark reads on without a word.
            Err(SourceError::Times { impossible: 2, .. }) if stem == "ts_invalid_nano" => {}
            Err(e) if truth["reader_message"].is_null() => wrong.push(format!("{stem}: {e}")),
            _ => {}
        }
        let times = || keep.packets.iter().map(|p| p.ts).filter(|ts| *ts != 0);
        for (field, ours) in [
            ("packets", Some(keep.packets.len() as u64)),
            ("captured_bytes", Some(keep.packets.iter().map(|p| p.data.len() as u64).sum())),
            ("wire_bytes", Some(keep.packets.iter().map(|p| u64::from(p.wire_len)).sum())),
            ("cut_packets", Some(keep.packets.iter().filter(|p| p.data.len() < p.wire_len as usize).count() as u64)),
            ("first_ns", times().min()),
            ("last_ns", times().max()),
        ] {
            if expected(stem, field, &truth[field]) != ours {
                wrong.push(format!("{stem}: {field} is {ours:?}, tshark says {}", truth[field]));
            }
        }
        files += 1;
    }
    println!("{files} captures");
    assert!(files > 0 && wrong.is_empty(), "{}", wrong.join("\n"));
}

/// What tshark says, where it and this crate can both say it.
fn expected(stem: &str, field: &str, tshark: &serde_json::Value) -> Option<u64> {
    match (stem, field) {
        // The nanosecond field of the third packet is 2^31: tshark takes it as negative, and prints nonsense. Of the
        // sums of both fields these are the least and the greatest.
        ("ts_invalid_nano", "first_ns") => Some(1_418_145_369_999_999_999),
        ("ts_invalid_nano", "last_ns") => Some(1_418_145_372_147_483_648),
        // Times beyond the year 2554 end there.
        _ => tshark.as_u64().or_else(|| tshark.as_f64().filter(|ns| *ns > u64::MAX as f64).map(|_| u64::MAX)),
    }
}

fn truth(folder: &Path, stem: &str) -> Option<serde_json::Value> {
    if let Ok(file) = std::fs::File::open(folder.join(format!("{stem}.json.gz"))) {
        let mut json = String::new();
        flate2::read::MultiGzDecoder::new(file).read_to_string(&mut json).ok()?;
        return serde_json::from_str(&json).ok();
    }
    serde_json::from_slice(&std::fs::read(folder.join(format!("{stem}.json"))).ok()?).ok()
}
