//! The few things the standard library does not say about a file system.

use std::ffi::CString;
use std::io;
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// Bytes an unprivileged process can still write to the file system that holds `path` (statvfs(3)).
pub(crate) fn free_bytes(path: &Path) -> io::Result<u64> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut stat = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: `path` is NUL-terminated and lives across the call, and `stat` is writable and large enough for the
    // structure the call fills.
    let status = unsafe { libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) };
    if status != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: statvfs returned 0, so it has filled the structure.
    let stat = unsafe { stat.assume_init() };
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Lets the calling thread run, and use the disk, only where others leave something (setpriority(2), ioprio_set(2)). Where
/// that is not possible it runs as any other: it is slowed down by its own limit too.
pub(crate) fn lowest_priority() {
    const NICE_MAX: i32 = 19;
    const IOPRIO_WHO_PROCESS: i32 = 1;
    const IOPRIO_CLASS_IDLE: i32 = 3 << 13;
    // SAFETY: setpriority takes numbers alone; process 0 is the calling thread.
    let nice = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, NICE_MAX) };
    // SAFETY: ioprio_set takes numbers alone; process 0 is the calling thread.
    let idle = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, IOPRIO_CLASS_IDLE) };
    if nice != 0 || idle != 0 {
        tracing::debug!(nice, idle, "cannot lower the priority of a thread");
    }
}

/// Day of a time in microseconds since 1970 as `YYYY-MM-DD`, UTC (days-to-civil, proleptic Gregorian).
pub fn day(micros: i64) -> String {
    // Days are counted from 0000-03-01, so that the leap day ends a year.
    let z = micros.div_euclid(86_400_000_000) + 719_468;
    let era = z.div_euclid(146_097);
    let of_era = z.rem_euclid(146_097);
    let year_of_era = (of_era - of_era / 1_460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn days_are_those_of_the_calendar() {
        let day_of = |secs: i64| day(secs * 1_000_000);
        assert_eq!(day_of(0), "1970-01-01");
        assert_eq!(day_of(951_782_399), "2000-02-28");
        assert_eq!(day_of(951_782_400), "2000-02-29");
        assert_eq!(day_of(951_868_800), "2000-03-01");
        assert_eq!(day_of(1_735_689_599), "2024-12-31");
        assert_eq!(day_of(4_107_542_399), "2100-02-28");
        assert_eq!(day_of(4_107_542_400), "2100-03-01");
        assert_eq!(day(-1), "1969-12-31");
        assert_eq!(day((u64::MAX / 1_000) as i64), "2554-07-21");
    }

    #[test]
    fn free_space_is_known_for_a_folder_and_not_for_nothing() {
        assert!(free_bytes(Path::new(".")).unwrap() > 0);
        assert!(free_bytes(Path::new("no/such/folder")).is_err());
    }
}
