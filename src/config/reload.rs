//! What a re-read configuration changes, and which of it a running server can take on.

use super::{Config, overrides::keys};
use serde_json::Value;

/// One key whose value differs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Change {
    /// Dotted path.
    pub(crate) key: String,
    /// Whether it takes effect without a restart.
    pub(crate) live: bool,
}

/// Sections a running server takes on at once.
const LIVE: [&str; 4] = ["log", "detect.", "storage.retention.", "flowtable.timeouts"];

/// The leaves in which `new` differs from `old`, in order.
pub(crate) fn changes(old: &Config, new: &Config) -> Vec<Change> {
    let tree = |c: &Config| serde_json::to_value(c).unwrap_or_default();
    let (old, new) = (tree(old), tree(new));
    let mut all = keys(&old, "");
    all.extend(keys(&new, ""));
    all.sort();
    all.dedup();
    let leaf = |t: &Value, key: &str| key.split('.').try_fold(t, |node, name| node.get(name)).cloned();
    let differs = |key: &str| {
        let (a, b) = (leaf(&old, key), leaf(&new, key));
        a != b && !matches!((&a, &b), (Some(Value::Object(_)), Some(Value::Object(_))))
    };
    // A section that came or went as a whole (`timeouts: off`) says so once, not for each of its keys.
    let within_another = |key: &str| key.match_indices('.').any(|(at, _)| differs(&key[..at]));
    all.into_iter()
        .filter(|key| differs(key) && !within_another(key))
        .map(|key| Change { live: LIVE.iter().any(|live| key.starts_with(live)), key })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_live_changes_from_those_that_need_a_restart() {
        let old = Config::default();
        let mut new = old.clone();
        new.log = "debug".into();
        new.pipeline.workers = 3;
        new.flowtable.timeouts = crate::config::TimeoutsSection::Off;
        let found = changes(&old, &new);
        let live = |key: &str| found.iter().find(|c| c.key == key).map(|c| c.live);
        assert_eq!(live("log"), Some(true));
        assert_eq!(live("pipeline.workers"), Some(false));
        assert_eq!(live("flowtable.timeouts"), Some(true));
        assert_eq!(found.len(), 3, "{found:?}");
        assert!(changes(&old, &old).is_empty());
    }
}
