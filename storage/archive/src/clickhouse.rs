//! Segments into a ClickHouse server: each one INSERT over HTTP with the file as it is for its body.

use crate::ArchiveError;
use crate::error::shortened;
use crate::pace::Pacer;
use bytes::Bytes;
use std::fs::File;
use std::io::Read;
use std::time::{Duration, Instant};
use storage::Segment;
use url::Url;

/// Bytes of a piece of a body.
const PIECE_BYTES: usize = 1 << 20;

/// A server and a database in it. User and password come from `CLICKHOUSE_USER` and `CLICKHOUSE_PASSWORD`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClickHouseConfig {
    url: Url,
    database: String,
}

impl ClickHouseConfig {
    /// Its HTTP address, such as `http://127.0.0.1:8123`, and the database whose tables take the rows, by the
    /// names they have here.
    ///
    /// # Errors
    /// If either cannot be.
    pub fn new(url: &str, database: &str) -> Result<ClickHouseConfig, ArchiveError> {
        let wrong = |field, value: &str, allowed| ArchiveError::Option { field, value: format!("'{value}'"), allowed };
        let allowed = "http://HOST:PORT or https://HOST:PORT, without user, path or query";
        let bad_url = || wrong("clickhouse.url", url, allowed);
        let parsed = Url::parse(url).map_err(|_| bad_url())?;
        let plain = parsed.path() == "/" && parsed.query().is_none() && parsed.username().is_empty();
        if !matches!(parsed.scheme(), "http" | "https") || parsed.host_str().is_none() || !plain {
            return Err(bad_url());
        }
        let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if database.is_empty() || !database.chars().all(is_word) || database.starts_with(|c: char| c.is_ascii_digit()) {
            let allowed = "letters, digits and '_', the first no digit";
            return Err(wrong("clickhouse.database", database, allowed));
        }
        Ok(ClickHouseConfig { url: parsed, database: database.to_owned() })
    }

    /// How it is told from other places.
    pub(crate) fn name(&self) -> String {
        format!("{}{}", self.url, self.database)
    }
}

/// A connection to the server.
pub(crate) struct ClickHouse {
    config: ClickHouseConfig,
    client: reqwest::Client,
    origin: String,
    login: Option<(String, String)>,
}

impl ClickHouse {
    pub(crate) fn new(config: ClickHouseConfig, origin: String) -> Result<ClickHouse, ArchiveError> {
        let client = reqwest::Client::builder().connect_timeout(Duration::from_secs(5)).build();
        let client = client.map_err(|e| failed(&config, &e))?;
        let user = std::env::var("CLICKHOUSE_USER").ok().filter(|user| !user.is_empty());
        let login = user.map(|user| (user, std::env::var("CLICKHOUSE_PASSWORD").unwrap_or_default()));
        Ok(ClickHouse { config, client, origin, login })
    }

    /// Inserts a segment. At least once: should the answer be lost, the same block comes again under the same token, which
    /// a table with deduplication then leaves out.
    pub(crate) async fn send(
        &self,
        table: &str,
        segment: &Segment,
        file: &File,
        pacer: &mut Pacer,
    ) -> Result<(), ArchiveError> {
        let mut url = self.config.url.clone();
        let insert = format!("INSERT INTO {}.{table} FORMAT Parquet", self.config.database);
        let token = format!("{}-{table}-{}", self.origin, segment.file);
        url.query_pairs_mut().append_pair("query", &insert).append_pair("insert_deduplication_token", &token);
        let body = in_pieces(file, segment)?;
        tokio::time::sleep(pacer.wait(Instant::now(), segment.bytes)).await;
        // As long as the body takes at 100 kB/s, and a minute for the server's work.
        let patience = Duration::from_secs(60 + segment.bytes / 100_000);
        let pieces = body.into_iter().map(Ok::<_, std::io::Error>);
        let mut request = self
            .client
            .post(url)
            .header("Content-Length", segment.bytes)
            .timeout(patience)
            .body(reqwest::Body::wrap_stream(futures::stream::iter(pieces)));
        if let Some((user, password)) = &self.login {
            request = request.header("X-ClickHouse-User", user).header("X-ClickHouse-Key", password);
        }
        let answer = request.send().await.map_err(|e| failed(&self.config, &e))?;
        let refused = answer.headers().contains_key("X-ClickHouse-Exception-Code") || !answer.status().is_success();
        let status = answer.status();
        let text = answer.text().await.map_err(|e| failed(&self.config, &e))?;
        // An error after the first byte of an answer comes in its text.
        if refused || text.contains("DB::Exception") {
            let reason = format!("{status}: {}", shortened(&text));
            return Err(ArchiveError::ClickHouse { url: self.config.url.to_string(), reason });
        }
        Ok(())
    }
}

/// The whole file; the server gets it in pieces.
fn in_pieces(mut file: &File, segment: &Segment) -> Result<Vec<Bytes>, ArchiveError> {
    let mut left = usize::try_from(segment.bytes).unwrap_or(usize::MAX);
    let mut pieces = Vec::new();
    while left > 0 {
        let mut piece = vec![0; left.min(PIECE_BYTES)];
        let unreadable = |source| ArchiveError::Unreadable { path: segment.path.clone(), source };
        file.read_exact(&mut piece).map_err(unreadable)?;
        left -= piece.len();
        pieces.push(piece.into());
    }
    Ok(pieces)
}

fn failed(config: &ClickHouseConfig, error: &reqwest::Error) -> ArchiveError {
    // The address is told before it; the query is ours.
    let mut reason = error.to_string().split(" for url").next().unwrap_or_default().to_owned();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason = format!("{reason}: {cause}");
        source = cause.source();
    }
    ArchiveError::ClickHouse { url: config.url.to_string(), reason: shortened(&reason) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_a_plain_address() {
        let good = ClickHouseConfig::new("http://127.0.0.1:8123", "taphouse").unwrap();
        assert_eq!(good.name(), "http://127.0.0.1:8123/taphouse");
        for url in ["127.0.0.1:8123", "tcp://h:9000", "http://h/x", "http://u@h", "http://h/?a=b", "http://"] {
            let error = ClickHouseConfig::new(url, "d").unwrap_err().to_string();
            assert!(error.starts_with("clickhouse.url") && error.contains("http://HOST:PORT"), "{error}");
        }
        for database in ["", "a b", "1a", "a;drop", "a.b"] {
            let error = ClickHouseConfig::new("http://h", database).unwrap_err().to_string();
            assert!(error.starts_with("clickhouse.database"), "{error}");
        }
    }
}
