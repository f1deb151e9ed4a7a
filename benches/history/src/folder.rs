//! The data folder that is asked: made once, and kept for the next run if it has a place of its own.

use benches::flows::Flows;
use serde::{Deserialize, Serialize};
use std::error::Error;
use std::fs;
use std::path::{Path, PathBuf};
use storage::{Store, StoreOptions};
use wire::Nanos;

/// What the folder holds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Content {
    /// Flow records.
    pub(crate) rows: u64,
    /// Seed of the generator.
    pub(crate) seed: u64,
    /// Packet time the flows end in, in hours.
    pub(crate) hours: u64,
}

/// Flows in the folder, and what they take.
pub(crate) struct Folder {
    pub(crate) dir: PathBuf,
    pub(crate) content: Content,
    pub(crate) segments: u64,
    pub(crate) bytes: u64,
}

impl Content {
    fn gap(&self) -> Nanos {
        Nanos(self.hours * 3_600_000_000_000 / self.rows.max(1))
    }

    pub(crate) fn flows(&self) -> Flows {
        Flows::new(self.seed, self.rows, self.gap())
    }
}

impl Folder {
    /// The flows of `content` below `parent`: those of an earlier run, or made now.
    pub(crate) fn open(parent: &Path, content: Content) -> Result<Folder, Box<dyn Error>> {
        let dir = parent.join(format!("flows-{}-{}-{}h", content.rows, content.seed, content.hours));
        let done = dir.join("complete.json");
        if fs::read(&done).ok().and_then(|text| serde_json::from_slice(&text).ok()).as_ref() != Some(&content) {
            eprintln!("writing {} flows to {}", content.rows, dir.display());
            let _ = fs::remove_dir_all(&dir);
            fs::create_dir_all(&dir)?;
            write(&dir.join("data"), &content)?;
            fs::write(&done, serde_json::to_string(&content)?)?;
        }
        let dir = dir.join("data");
        let snapshot = storage::StoreReader::open(&dir)?.snapshot()?;
        if snapshot.rows() != content.rows {
            return Err(format!("{} holds {} rows, not {}", dir.display(), snapshot.rows(), content.rows).into());
        }
        let bytes = snapshot.segments.iter().map(|segment| segment.bytes).sum();
        Ok(Folder { dir, content, segments: snapshot.segments.len() as u64, bytes })
    }
}

fn write(dir: &Path, content: &Content) -> Result<(), Box<dyn Error>> {
    let mut store = Store::open(StoreOptions::new(dir, vec!["core".into()]))?;
    let mut flows = content.flows();
    let mut run = Vec::with_capacity(1_024);
    loop {
        run.clear();
        run.extend(flows.by_ref().take(1_024));
        if run.is_empty() {
            break;
        }
        store.append(&run, &[])?;
    }
    store.sync()?;
    store.flush()?;
    Ok(())
}
