//! Segments into object storage, listed there in the index of their day.

use crate::index::{self, Entry, day_of};
use crate::pace::Pacer;
use crate::state::Key;
use crate::upload::{Sent, upload};
use crate::{ArchiveConfig, ArchiveError, Place};
use object_store::path::Path;
use object_store::{ObjectStoreExt, PutMode, PutOptions};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs::File;
use storage::Segment;

/// `_taphouse/sensor.json`: whose the sensor's part of the archive is.
#[derive(Serialize, Deserialize)]
struct Owner {
    product: String,
    format: u32,
    sensor: String,
    origin: String,
}

/// One sensor's part of an archive, to write.
pub(crate) struct Objects {
    place: Place,
    sensor: String,
    origin: String,
    /// The archive has been asked whose this part is.
    known: bool,
}

impl Objects {
    pub(crate) fn new(place: Place, sensor: String, origin: String) -> Objects {
        Objects { place, sensor, origin, known: false }
    }

    /// Makes sure that the sensor's name is this data folder's: numbers of segments are unique in a folder only, so two
    /// folders under one name would overwrite each other's.
    pub(crate) async fn begin(&mut self) -> Result<(), ArchiveError> {
        if self.known {
            return Ok(());
        }
        let object = self.place.sensor_object(&self.sensor)?;
        let owner = match self.read(&object).await? {
            Some(owner) => owner,
            None => {
                let owner = Owner {
                    product: "taphouse".to_owned(),
                    format: index::FORMAT,
                    sensor: self.sensor.clone(),
                    origin: self.origin.clone(),
                };
                let text = serde_json::to_vec_pretty(&owner).unwrap_or_default();
                let create = PutOptions::from(PutMode::Create);
                match self.place.store.put_opts(&object, text.into(), create).await {
                    Ok(_) => owner.origin.into_bytes(),
                    // Another was faster.
                    Err(object_store::Error::AlreadyExists { .. } | object_store::Error::Precondition { .. }) => {
                        self.read(&object).await?.unwrap_or_default()
                    }
                    Err(error) => return Err(self.place.failed("create", &object, &error)),
                };
                self.known = true;
                return Ok(());
            }
        };
        let damaged = |e: serde_json::Error| ArchiveError::Damaged { name: object.to_string(), reason: e.to_string() };
        let owner: Owner = serde_json::from_slice(&owner).map_err(damaged)?;
        if owner.format > index::FORMAT {
            let (name, supported) = (object.to_string(), index::FORMAT);
            return Err(ArchiveError::Newer { name, found: owner.format, supported });
        }
        if owner.origin != self.origin {
            return Err(ArchiveError::Taken { url: self.place.url().to_owned(), sensor: self.sensor.clone() });
        }
        self.known = true;
        Ok(())
    }

    /// Sends a segment under its relative path.
    pub(crate) async fn send(
        &self,
        table: &str,
        segment: &Segment,
        file: &File,
        config: &ArchiveConfig,
        pacer: &mut Pacer,
    ) -> Result<Sent, ArchiveError> {
        let object = self.place.segment_object(&self.sensor, table, &segment.file)?;
        upload(&self.place, &object, file, segment.bytes, config, pacer).await
    }

    /// Lists segments that have arrived: readers of the archive see them from then on.
    pub(crate) async fn list(&self, arrived: &[(Key, Value, String)]) -> Result<(), ArchiveError> {
        let mut days: BTreeMap<(&str, String), Vec<Entry>> = BTreeMap::new();
        for ((table, _), segment, sha256) in arrived {
            let entry = Entry { sha256: sha256.clone(), segment: segment.clone() };
            days.entry((table, day_of(segment))).or_default().push(entry);
        }
        for ((table, day), more) in days {
            let object = self.place.index_object(&self.sensor, table, &day)?;
            let listed = match self.read(&object).await? {
                Some(text) => index::read(object.as_ref(), &text)?,
                None => Vec::new(),
            };
            let text = index::write(table, &day, listed, &more);
            let put = self.place.store.put(&object, text.clone().into()).await;
            put.map_err(|e| self.place.failed("write", &object, &e))?;
            if self.read(&object).await?.as_deref() != Some(text.as_bytes()) {
                return Err(ArchiveError::Corrupt { object: object.to_string() });
            }
        }
        Ok(())
    }

    /// Takes back a segment that was begun and cannot be completed. It is not listed, so nobody misses it.
    pub(crate) async fn take_back(&self, table: &str, segment: &Value) -> Result<(), ArchiveError> {
        let object = self.place.segment_object(&self.sensor, table, segment["file"].as_str().unwrap_or_default())?;
        match self.place.store.delete(&object).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(self.place.failed("delete", &object, &error)),
        }
    }

    async fn read(&self, object: &Path) -> Result<Option<Vec<u8>>, ArchiveError> {
        let failed = |error| self.place.failed("read", object, &error);
        match self.place.store.get(object).await {
            Ok(found) => Ok(Some(found.bytes().await.map_err(failed)?.to_vec())),
            // A bucket that is missing is another matter than an object.
            Err(error @ object_store::Error::NotFound { .. }) => match failed(error) {
                missing @ ArchiveError::NoBucket { .. } => Err(missing),
                _ => Ok(None),
            },
            Err(error) => Err(failed(error)),
        }
    }
}
