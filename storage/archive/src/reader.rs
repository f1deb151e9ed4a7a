//! An archive as queries see it: what its indexes list.

use crate::index::{self, Entry};
use crate::{ArchiveError, Place};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::path::Path as FilePath;
use std::sync::Arc;
use storage::{Segment, Snapshot, Table};

/// Indexes read at a time.
const READS_MAX: usize = 16;

/// Reads the part of every sensor of an archive, or of one (`.../sensor=NAME`). Cheap to clone.
#[derive(Clone, Debug)]
pub struct ArchiveReader {
    place: Place,
}

impl ArchiveReader {
    /// A reader of the archive at an URL, as [`Place::open`]. Nothing is asked of it yet.
    ///
    /// # Errors
    /// If the URL names none.
    pub fn open(url: &str) -> Result<ArchiveReader, ArchiveError> {
        Ok(ArchiveReader { place: Place::open(url)? })
    }

    /// A reader of a place.
    pub fn new(place: Place) -> ArchiveReader {
        ArchiveReader { place }
    }

    /// As it was named.
    pub fn url(&self) -> &str {
        self.place.url()
    }

    /// What the objects lie in.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.place.store()
    }

    /// All segments of a table that are listed now, of every sensor. Their `path` is the object's; `sensor=NAME` is in it.
    /// Of a table that a sensor has shipped nothing of it has none.
    ///
    /// # Errors
    /// If the archive cannot be read, or there is none.
    pub async fn snapshot_of(&self, table: Table) -> Result<Snapshot, ArchiveError> {
        let sensors = self.sensors().await?;
        let mut segments = Vec::new();
        for sensor in &sensors {
            let days = self.days(sensor, table.name()).await?;
            let read = futures::stream::iter(days).map(|object| async move { self.day(&object).await });
            let entries: Vec<Vec<Entry>> = read.buffered(READS_MAX).try_collect().await?;
            let root = self.place.table_dir(sensor, table.name());
            for entry in entries.into_iter().flatten() {
                let segment = Segment::elsewhere(FilePath::new(&root), &entry.segment.to_string())?;
                segments.push(Arc::new(segment));
            }
        }
        Ok(Snapshot { segments: Arc::new(segments.into_iter().collect()), live: Vec::new() })
    }

    /// Names of all sensors that have shipped to it.
    ///
    /// # Errors
    /// If the archive cannot be read, or there is none.
    pub async fn sensors(&self) -> Result<Vec<String>, ArchiveError> {
        if let Some(sensor) = self.place.one_sensor() {
            let object = self.place.sensor_object(sensor)?;
            return match self.place.store.head(&object).await {
                Ok(_) => Ok(vec![sensor.to_owned()]),
                Err(object_store::Error::NotFound { .. }) => {
                    Err(ArchiveError::Empty { url: self.place.url().to_owned() })
                }
                Err(error) => Err(self.place.failed("look at", &object, &error)),
            };
        }
        let prefix = self.place.prefix()?;
        let found = self.place.store.list_with_delimiter(Some(&prefix)).await;
        let found = found.map_err(|e| self.place.failed("list", &prefix, &e))?;
        let name = |path: &Path| path.filename()?.strip_prefix("sensor=").map(str::to_owned);
        let sensors: Vec<String> = found.common_prefixes.iter().filter_map(name).collect();
        if sensors.is_empty() {
            return Err(ArchiveError::Empty { url: self.place.url().to_owned() });
        }
        Ok(sensors)
    }

    /// The index objects of a table, in the order of their days.
    async fn days(&self, sensor: &str, table: &str) -> Result<Vec<Path>, ArchiveError> {
        let prefix = self.place.indexes(sensor)?.join(format!("table={table}"));
        let found: Result<Vec<_>, _> = self.place.store.list(Some(&prefix)).try_collect().await;
        let found = found.map_err(|e| self.place.failed("list", &prefix, &e))?;
        let mut days: Vec<Path> = found.into_iter().map(|object| object.location).collect();
        days.retain(|object| object.extension() == Some("ndjson"));
        days.sort();
        Ok(days)
    }

    async fn day(&self, object: &Path) -> Result<Vec<Entry>, ArchiveError> {
        let failed = |error| self.place.failed("read", object, &error);
        let text = self.place.store.get(object).await.map_err(failed)?.bytes().await.map_err(failed)?;
        index::read(object.as_ref(), &text)
    }
}
