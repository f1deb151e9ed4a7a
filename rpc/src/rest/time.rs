use std::time::{SystemTime, UNIX_EPOCH};

/// Microseconds since 1970 of a time as people write it: RFC 3339, `now`, or back from now such as `-15m`.
pub(crate) fn parse(text: &str, now: SystemTime) -> Result<i64, String> {
    if text == "now" {
        return micros(now).ok_or_else(|| "the clock of the server is off".to_owned());
    }
    if let Some(back) = text.strip_prefix('-') {
        let back = humantime::parse_duration(back)
            .map_err(|_| format!("'{text}' is no time: after the minus comes a duration such as -15m or -2h"))?;
        return now.checked_sub(back).and_then(micros).ok_or_else(|| format!("'{text}' is before all time"));
    }
    let time: prost_types::Timestamp = text.parse().map_err(|_| {
        format!("'{text}' is no time: give RFC 3339 such as 2026-03-01T12:00:00Z, or back from now such as -15m")
    })?;
    Ok(time.seconds.saturating_mul(1_000_000).saturating_add(i64::from(time.nanos / 1_000)))
}

/// A time as RFC 3339.
pub(crate) fn text(micros: i64) -> String {
    crate::flows::timestamp(micros).to_string()
}

/// `None` beyond 64 bits.
fn micros(time: SystemTime) -> Option<i64> {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => i64::try_from(since.as_micros()).ok(),
        Err(before) => i64::try_from(before.duration().as_micros()).ok().map(|micros| -micros),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn absolute_and_relative_times() {
        let now = UNIX_EPOCH + Duration::from_secs(1_772_366_400);
        let at = |text: &str| parse(text, now).unwrap();
        assert_eq!(at("2026-03-01T12:00:00Z"), 1_772_366_400_000_000);
        assert_eq!(at("now"), at("2026-03-01T12:00:00Z"));
        assert_eq!(at("-15m"), at("2026-03-01T11:45:00Z"));
        assert_eq!(at("2026-03-01T13:00:00.000001+01:00"), at("now") + 1);
        assert_eq!(at(&text(at("now") + 7)), at("now") + 7);
        for text in ["yesterday", "-15", "-", "-99999999y", ""] {
            assert!(parse(text, now).unwrap_err().contains(text), "{text}");
        }
    }
}
