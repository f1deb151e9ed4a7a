//! What shipping is told, checked before anything starts.

use crate::{ArchiveError, ClickHouseConfig, Place};
use std::time::Duration;

/// Smallest part of an object in several parts that S3 takes, bytes.
pub(crate) const PART_BYTES_MIN: u64 = 5 << 20;

/// Where finished segments go, and how.
#[derive(Clone, Debug)]
pub struct ArchiveConfig {
    /// Object storage, if any.
    pub objects: Option<Place>,
    /// A ClickHouse server, if any.
    pub clickhouse: Option<ClickHouseConfig>,
    /// Name of this sensor there: 1 to 64 letters, digits, `.`, `_` or `-`. No other data folder may have it.
    pub sensor: String,
    /// Age of its newest row at which a segment goes: by then the hour is over and compaction is done with it.
    pub delay: Duration,
    /// Rows from which on a segment is as large as segments become: it goes at once.
    pub rows_full: u64,
    /// Bytes a second, on average; `None` for no limit.
    pub bytes_per_second_max: Option<u64>,
    /// Size of the parts a large segment is sent in, at least 5 MiB. As many as `parts_max` are in memory.
    pub part_bytes: u64,
    /// Parts on their way at a time, 1 to 64.
    pub parts_max: usize,
    /// Pause after the first failure, doubled with each, jittered.
    pub retry_min: Duration,
    /// Longest pause between attempts.
    pub retry_max: Duration,
}

impl ArchiveConfig {
    /// The defaults, for a sensor of this name. Nothing is shipped until a place is named.
    pub fn new(sensor: impl Into<String>) -> ArchiveConfig {
        ArchiveConfig {
            objects: None,
            clickhouse: None,
            sensor: sensor.into(),
            delay: Duration::from_secs(90 * 60),
            rows_full: 1 << 20,
            bytes_per_second_max: None,
            part_bytes: 8 << 20,
            parts_max: 4,
            retry_min: Duration::from_secs(1),
            retry_max: Duration::from_secs(300),
        }
    }

    /// Whether this can work.
    ///
    /// # Errors
    /// The first field that cannot, with what is allowed.
    pub fn validate(&self) -> Result<(), ArchiveError> {
        let wrong = |field, value: String, allowed| Err(ArchiveError::Option { field, value, allowed });
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let length = self.sensor.len();
        if !(1..=64).contains(&length) || !self.sensor.chars().all(is_name) || self.sensor.starts_with('.') {
            let allowed = "1 to 64 letters, digits, '.', '_' or '-', the first no '.'";
            return wrong("sensor", format!("'{}'", self.sensor), allowed);
        }
        if self.part_bytes < PART_BYTES_MIN || self.part_bytes > 1 << 30 {
            return wrong("part_size", self.part_bytes.to_string(), "5 MiB to 1 GiB");
        }
        if !(1..=64).contains(&self.parts_max) {
            return wrong("parts_max", self.parts_max.to_string(), "1 to 64");
        }
        if self.bytes_per_second_max.is_some_and(|rate| rate < 1_000) {
            let value = self.bytes_per_second_max.unwrap_or_default().to_string();
            return wrong("rate_max", value, "null (no limit), and 1000 bytes a second and more");
        }
        if self.retry_min.is_zero() || self.retry_max < self.retry_min {
            return wrong("retry_min", format!("{:?}", self.retry_min), "more than nothing, and up to retry_max");
        }
        Ok(())
    }

    /// Bit mask of the places segments are shipped to, for [`storage::Retention::shipped_to`].
    pub fn places(&self) -> u8 {
        u8::from(self.objects.is_some()) | u8::from(self.clickhouse.is_some()) << 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_work_is_named() {
        let config = || ArchiveConfig::new("edge-1");
        config().validate().unwrap();
        let bad = [
            ("sensor", ArchiveConfig::new("")),
            ("sensor", ArchiveConfig::new("a/b")),
            ("sensor", ArchiveConfig::new("..")),
            ("part_size", ArchiveConfig { part_bytes: 5 << 19, ..config() }),
            ("parts_max", ArchiveConfig { parts_max: 0, ..config() }),
            ("rate_max", ArchiveConfig { bytes_per_second_max: Some(10), ..config() }),
            ("retry_min", ArchiveConfig { retry_max: Duration::ZERO, ..config() }),
        ];
        for (field, config) in bad {
            let error = config.validate().unwrap_err().to_string();
            assert!(error.starts_with(field) && error.contains("allowed"), "{error}");
        }
    }
}
