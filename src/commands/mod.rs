//! One module a command, or a few that share what they do.

pub(crate) mod alerts;
pub(crate) mod demo;
pub(crate) mod misc;
pub(crate) mod query;
pub(crate) mod replay;
pub(crate) mod retention;
pub(crate) mod run;
pub(crate) mod slice;
pub(crate) mod status;

use crate::cli::ServerArgs;
use crate::config::{Config, SegmentProfile};
use crate::failure::{Code, Failure};
use std::io::IsTerminal;
use std::path::Path;
use storage::{Compaction, OnError, Retention, Store, StoreOptions};

/// The configuration of a command that writes: file, then `--set`, then `--data-dir` and `--ipfix`.
fn load_config(args: &ServerArgs) -> Result<Config, Failure> {
    let mut config = Config::load(args.config.as_deref(), &args.overrides).map_err(|e| Failure::new(Code::Usage, e))?;
    if let Some(dir) = &args.data_dir {
        config.data_dir.clone_from(dir);
    }
    if let Some(collector) = &args.ipfix {
        config.ipfix.collector = Some(collector.clone());
        config.validate().map_err(|e| Failure::new(Code::Usage, e))?;
    }
    Ok(config)
}

/// Opens the data folder for writing. With `OnError::Fail`, as a replay does, nothing is ever dropped to make room: the
/// limits of retention are the server's, and apply when it next starts on the folder.
fn open_store(config: &Config, tap_names: &[String], on_error: OnError) -> Result<Store, Failure> {
    let s = &config.storage;
    let mut options = StoreOptions::new(&config.data_dir, tap_names.to_vec());
    options.segment_rows_max = u64::from(s.segment_rows);
    options.segment_age_max = s.segment_age.0;
    options.wal_sync_interval = s.sync_interval.0;
    options.wal_sync_bytes = s.sync_bytes.0;
    if on_error == OnError::Count {
        options.retention = retention(config);
    }
    options.profile = match s.profile {
        SegmentProfile::Tuned => storage::SegmentProfile::Tuned,
        SegmentProfile::Compatible => storage::SegmentProfile::Compatible,
    };
    options.compaction = Compaction {
        enabled: s.compaction.enabled,
        segments_min: s.compaction.min_segments as usize,
        bytes_per_s: s.compaction.rate.0,
    };
    options.left = archive::left(&config.data_dir).map_err(|e| Failure::new(Code::Failed, e))?;
    options.on_error = on_error;
    Ok(Store::open(options)?)
}

pub(crate) fn retention(config: &Config) -> Retention {
    let r = &config.storage.retention;
    Retention {
        max_age: r.max_age.map(|p| p.0),
        max_bytes: r.max_size.map(|s| s.0),
        min_free_bytes: r.min_free.map(|s| s.0),
        shipped_to: config.archive.held_for(),
    }
}

/// Logs to standard error as the configuration says; the handle changes it later.
fn start_logging(filter: &str) -> anyhow::Result<crate::server::LogHandle> {
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    use tracing_subscriber::{EnvFilter, fmt, registry, reload};
    let (filter, handle) = reload::Layer::new(EnvFilter::try_new(filter)?);
    let colours = std::io::stderr().is_terminal();
    let layer = fmt::layer().with_writer(std::io::stderr).with_ansi(colours).with_target(false);
    registry().with(filter).with(layer).try_init()?;
    Ok(Box::new(move |text: &str| {
        EnvFilter::try_new(text).map_err(|e| e.to_string()).and_then(|f| handle.reload(f).map_err(|e| e.to_string()))
    }))
}

/// A path as messages show it.
pub(crate) fn show(path: &Path) -> String {
    path.display().to_string()
}
