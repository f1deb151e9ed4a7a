//! Where finished segments go besides the data folder: object storage, ClickHouse.

use super::{ConfigError, Period, Size, StorageSection};
use archive::{ArchiveConfig, ArchiveError, ClickHouseConfig, Place};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Shipping of finished segments.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ArchiveSection {
    /// Object storage: `s3://BUCKET/PREFIX`, or `file:///FOLDER` of a mounted one; `null` for none. Credentials, region and
    /// endpoint come from the usual variables: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION, AWS_ENDPOINT_URL.
    pub(crate) url: Option<String>,
    /// Name of this sensor there: letters, digits, `.`, `_`, `-`; no other data folder may have it. `null` for the name of
    /// the host.
    pub(crate) sensor: Option<String>,
    /// Age of its newest row at which a segment goes, its hour being over and compaction done with it. A full one goes at
    /// once.
    pub(crate) delay: Period,
    /// Bytes a second, on average; `null` for no limit.
    pub(crate) rate_max: Option<Size>,
    /// Size of the parts a large segment goes in, 5MiB and more.
    pub(crate) part_size: Size,
    /// Parts on their way at a time; as many are in memory.
    pub(crate) parts_max: u16,
    /// Retention leaves segments that have not arrived, beyond its limits of age and size; not beyond `min_free`.
    pub(crate) keep_unshipped: bool,
    /// A ClickHouse server that takes the rows as well.
    pub(crate) clickhouse: ClickHouseSection,
}

impl Default for ArchiveSection {
    fn default() -> ArchiveSection {
        let d = ArchiveConfig::new("");
        ArchiveSection {
            url: None,
            sensor: None,
            delay: Period(d.delay),
            rate_max: None,
            part_size: Size(d.part_bytes),
            parts_max: d.parts_max as u16,
            keep_unshipped: true,
            clickhouse: ClickHouseSection::default(),
        }
    }
}

/// A ClickHouse server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ClickHouseSection {
    /// Its HTTP address, such as `http://127.0.0.1:8123`; `null` for none. User and password come from CLICKHOUSE_USER and
    /// CLICKHOUSE_PASSWORD.
    pub(crate) url: Option<String>,
    /// Database with the tables `flows`, `dns` and `talkers`.
    pub(crate) database: String,
}

impl Default for ClickHouseSection {
    fn default() -> ClickHouseSection {
        ClickHouseSection { url: None, database: "taphouse".to_owned() }
    }
}

impl ArchiveSection {
    /// What shipping takes; `None` where it goes nowhere.
    ///
    /// # Errors
    /// What cannot be, by key.
    pub(crate) fn to_archive(&self, storage: &StorageSection) -> Result<Option<ArchiveConfig>, ConfigError> {
        let wrong = |error: ArchiveError| match error {
            error @ ArchiveError::Url { .. } => {
                ConfigError::Value { key: "archive.url".to_owned(), message: error.to_string() }
            }
            error => ConfigError::Stage(format!("archive.{error}")),
        };
        let server = |url: &String| ClickHouseConfig::new(url, &self.clickhouse.database);
        let config = ArchiveConfig {
            objects: self.url.as_deref().map(Place::open).transpose().map_err(wrong)?,
            clickhouse: self.clickhouse.url.as_ref().map(server).transpose().map_err(wrong)?,
            delay: self.delay.0,
            rows_full: u64::from(storage.segment_rows),
            bytes_per_second_max: self.rate_max.map(|rate| rate.0),
            part_bytes: self.part_size.0,
            parts_max: usize::from(self.parts_max),
            ..ArchiveConfig::new(self.sensor.clone().unwrap_or_else(host_name))
        };
        config.validate().map_err(wrong)?;
        Ok((config.places() != 0).then_some(config))
    }

    /// Places whose segments retention waits for, as a bit mask.
    pub(crate) fn held_for(&self) -> u8 {
        let places = u8::from(self.url.is_some()) | u8::from(self.clickhouse.url.is_some()) << 1;
        if self.keep_unshipped { places } else { 0 }
    }
}

/// Name of this host, as far as it can be told.
fn host_name() -> String {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    if name.trim().is_empty() { "sensor".to_owned() } else { name.trim().to_owned() }
}
