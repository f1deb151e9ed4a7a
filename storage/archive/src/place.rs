//! An archive's place, and what lies where in it.

use crate::ArchiveError;
use object_store::aws::{AmazonS3Builder, AmazonS3ConfigKey, Checksum};
use object_store::client::ClientConfigKey;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::{BackoffConfig, ObjectStore, RetryConfig};
use std::sync::Arc;
use std::time::Duration;
use url::Url;

/// Folder of what is ours alone in a sensor's part of the archive; engines pass over names that begin so.
const OWN: &str = "_taphouse";

/// A bucket and a prefix in it, or a folder.
#[derive(Clone, Debug)]
pub struct Place {
    pub(crate) store: Arc<dyn ObjectStore>,
    prefix: String,
    url: String,
}

/// Whether a text names an archive, not a folder of this machine.
pub fn is_url(text: &str) -> bool {
    text.contains("://")
}

impl Place {
    /// The place an URL names: `s3://BUCKET/PREFIX`, for which credentials, region and endpoint come from the usual
    /// variables (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_REGION`, `AWS_ENDPOINT_URL`, `AWS_ALLOW_HTTP`), or
    /// `file:///FOLDER`. Nothing is asked of it yet.
    ///
    /// # Errors
    /// If it names none, or a variable cannot be.
    pub fn open(url: &str) -> Result<Place, ArchiveError> {
        let bad = |reason: String| ArchiveError::Url { url: url.to_owned(), reason };
        let parsed = Url::parse(url).map_err(|e| bad(e.to_string()))?;
        let prefix = parsed.path().trim_matches('/').to_owned();
        let prefix = Path::from_url_path(&prefix).map_err(|e| bad(e.to_string()))?.to_string();
        let (store, prefix): (Arc<dyn ObjectStore>, String) = match (parsed.scheme(), parsed.host_str()) {
            ("s3" | "s3a", Some(bucket)) => (Arc::new(s3(bucket).map_err(|e| bad(e.to_string()))?), prefix),
            ("s3" | "s3a", None) => return Err(bad("the bucket is missing".to_owned())),
            ("file", None) => (Arc::new(LocalFileSystem::new()), prefix),
            ("file", Some(_)) => return Err(bad("a folder of another machine; mount it".to_owned())),
            (other, _) => return Err(bad(format!("the scheme {other} is not known"))),
        };
        Ok(Place { store, prefix, url: url.trim_end_matches('/').to_owned() })
    }

    /// A place in any store, for tests and embedding.
    pub fn new(store: Arc<dyn ObjectStore>, prefix: &str) -> Place {
        let url = format!("{store}/{prefix}");
        Place { store, prefix: prefix.trim_matches('/').to_owned(), url }
    }

    /// As it was named, without a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// What its objects lie in.
    pub fn store(&self) -> Arc<dyn ObjectStore> {
        self.store.clone()
    }

    /// The part of a prefix that names one sensor, where it does: `.../sensor=NAME`.
    pub(crate) fn one_sensor(&self) -> Option<&str> {
        self.prefix.rsplit('/').next()?.strip_prefix("sensor=")
    }

    pub(crate) fn prefix(&self) -> Result<Path, ArchiveError> {
        self.path(&self.prefix)
    }

    /// All of a sensor.
    fn sensor_dir(&self, sensor: &str) -> String {
        match (self.one_sensor(), self.prefix.as_str()) {
            (Some(_), prefix) => prefix.to_owned(),
            (None, "") => format!("sensor={sensor}"),
            (None, prefix) => format!("{prefix}/sensor={sensor}"),
        }
    }

    /// Who the sensor is.
    pub(crate) fn sensor_object(&self, sensor: &str) -> Result<Path, ArchiveError> {
        self.path(&format!("{}/{OWN}/sensor.json", self.sensor_dir(sensor)))
    }

    /// Below which the indexes of all tables and days lie.
    pub(crate) fn indexes(&self, sensor: &str) -> Result<Path, ArchiveError> {
        self.path(&format!("{}/{OWN}/index", self.sensor_dir(sensor)))
    }

    /// What was shipped of one table and day.
    pub(crate) fn index_object(&self, sensor: &str, table: &str, day: &str) -> Result<Path, ArchiveError> {
        self.path(&format!("{}/{OWN}/index/table={table}/{day}.ndjson", self.sensor_dir(sensor)))
    }

    /// Below which a table's segments lie, as they do in `segments` of the data folder.
    pub(crate) fn table_dir(&self, sensor: &str, table: &str) -> String {
        format!("{}/table={table}", self.sensor_dir(sensor))
    }

    pub(crate) fn segment_object(&self, sensor: &str, table: &str, file: &str) -> Result<Path, ArchiveError> {
        self.path(&format!("{}/{file}", self.table_dir(sensor, table)))
    }

    /// Names are taken as they are: those of folders are escaped already where they must be.
    fn path(&self, text: &str) -> Result<Path, ArchiveError> {
        Path::parse(text).map_err(|e| ArchiveError::Url { url: self.url.clone(), reason: e.to_string() })
    }

    pub(crate) fn failed(&self, action: &'static str, object: &Path, error: &object_store::Error) -> ArchiveError {
        ArchiveError::store(&self.url, action, object.as_ref(), error)
    }
}

/// Attempts are few and short here: who ships comes back by itself, and who asks does not want to wait for long.
fn s3(bucket: &str) -> object_store::Result<object_store::aws::AmazonS3> {
    let backoff = BackoffConfig { init_backoff: Duration::from_millis(100), ..BackoffConfig::default() };
    let retry = RetryConfig { max_retries: 3, retry_timeout: Duration::from_secs(30), backoff };
    AmazonS3Builder::from_env()
        .with_bucket_name(bucket)
        .with_checksum_algorithm(Checksum::SHA256)
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::ConnectTimeout), "5s")
        .with_config(AmazonS3ConfigKey::Client(ClientConfigKey::Timeout), "120s")
        .with_retry(retry)
        .build()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_no_place_is_refused() {
        for (url, word) in [
            ("s3:///x", "bucket"),
            ("gopher://x/y", "gopher"),
            ("file://host/x", "mount"),
            ("/var/lib", "relative URL"),
        ] {
            let error = Place::open(url).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("s3://BUCKET"), "{error}");
        }
        assert!(is_url("s3://b/p") && !is_url("/var/lib/taphouse") && !is_url("taphouse-data"));
    }

    #[test]
    fn names_stay_as_they_are() {
        let place = Place::open("file:///srv/flows/").unwrap();
        let file = "tap_name=a%2Fb ü/date=2024-05-29/hour=07/0000000000000041-03.parquet";
        let path = place.segment_object("edge-1", "flows", file).unwrap();
        assert_eq!(path.as_ref(), format!("srv/flows/sensor=edge-1/table=flows/{file}"));
        assert_eq!(place.url(), "file:///srv/flows");
        let one = Place::open("file:///srv/flows/sensor=edge-1").unwrap();
        assert_eq!(one.one_sensor(), Some("edge-1"));
        assert_eq!(one.segment_object("edge-1", "flows", file).unwrap(), path);
        assert_eq!(place.one_sensor(), None);
    }
}
