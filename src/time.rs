//! Times on the command line: RFC 3339, or back from now.

use anyhow::{Context, bail};
use chrono::{DateTime, Duration, Utc};

/// Microseconds since 1970 of `text` as seen at `now`.
pub(crate) fn parse(text: &str, now: DateTime<Utc>) -> anyhow::Result<i64> {
    if text == "now" {
        return Ok(now.timestamp_micros());
    }
    if let Some(back) = text.strip_prefix('-') {
        let back = humantime::parse_duration(back)
            .with_context(|| format!("'{text}' is no time: after the minus comes a duration such as -15m or -2h"))?;
        let time = Duration::from_std(back).ok().and_then(|back| now.checked_sub_signed(back));
        return time
            .map(|t| t.timestamp_micros())
            .with_context(|| format!("'{text}' is before all time: give a shorter way back"));
    }
    match DateTime::parse_from_rfc3339(text) {
        Ok(time) => Ok(time.timestamp_micros()),
        Err(_) => {
            bail!("'{text}' is no time: give RFC 3339 such as 2026-03-01T12:00:00Z, or back from now such as -15m")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absolute_and_relative_times() {
        let now = DateTime::parse_from_rfc3339("2026-03-01T12:00:00Z").unwrap().to_utc();
        let at = |text: &str| parse(text, now).unwrap();
        assert_eq!(at("2026-03-01T12:00:00Z"), at("now"));
        assert_eq!(at("-15m"), at("2026-03-01T11:45:00Z"));
        assert_eq!(at("2026-03-01T13:00:00.000001+01:00"), at("now") + 1);
        assert!(parse("yesterday", now).unwrap_err().to_string().contains("RFC 3339"));
        assert!(parse("-15", now).is_err());
        for text in ["-99999999y", "-5000000000y", "-"] {
            assert!(parse(text, now).unwrap_err().to_string().contains(text), "{text}");
        }
    }
}
