//! Who used how much processor time, and where the kernel did its receive work.

use rustix::time::{ClockId, clock_gettime};
use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

/// Processor time of the calling thread (CLOCK_THREAD_CPUTIME_ID). Without CONFIG_IRQ_TIME_ACCOUNTING it includes the
/// interrupts and soft interrupts that happened to run on top of the thread.
pub fn of_this_thread() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Processor time of this process, all threads it has or had (CLOCK_PROCESS_CPUTIME_ID).
pub fn of_this_process() -> Duration {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Processor time of a process, or of a kernel thread; zero where it is gone. As of its last tick or switch, so up to some
/// milliseconds old.
pub fn of_process(pid: u32) -> Duration {
    run_time(&format!("/proc/{pid}/schedstat"))
}

/// Processor time of all threads of a process that live, in nanoseconds as the scheduler counts them.
pub fn of_threads(pid: u32) -> Duration {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    tasks.map(|task| run_time(&task.path().join("schedstat").to_string_lossy())).sum()
}

/// Processor time of some of our threads.
pub fn of_own_threads(threads: &BTreeSet<u32>) -> Duration {
    threads.iter().map(|tid| run_time(&format!("/proc/self/task/{tid}/schedstat"))).sum()
}

/// Our threads as of now.
pub fn own_threads() -> BTreeSet<u32> {
    let tasks = fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(|task| task.file_name().to_str()?.parse().ok()).collect()
}

/// The first number of schedstat: nanoseconds on a processor (`sched-stats` in the kernel's documentation).
fn run_time(path: &str) -> Duration {
    let text = fs::read_to_string(path).unwrap_or_default();
    Duration::from_nanos(text.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0))
}

/// Receive soft interrupts so far, by core (`NET_RX` of /proc/softirqs): where the kernel takes packets from interfaces.
pub fn receive_interrupts() -> Vec<u64> {
    let text = fs::read_to_string("/proc/softirqs").unwrap_or_default();
    let line = text.lines().find_map(|line| line.trim_start().strip_prefix("NET_RX:")).unwrap_or_default();
    line.split_ascii_whitespace().filter_map(|n| n.parse().ok()).collect()
}

/// Processes that wanted to run, over the last minute: how much else the machine had to do.
pub fn load_average() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split_ascii_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0.0)
}

/// Name of the processor and of the kernel, for captions.
pub fn machine() -> String {
    let info = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let value = |key: &str| info.lines().find(|line| line.starts_with(key)).and_then(|line| line.split_once(": "));
    let model = value("model name").map_or("unknown processor", |(_, model)| model.trim());
    let cores = info.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{model}, {cores} cores, Linux {}", kernel.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_shows_in_the_thread_that_does_it() {
        let before = of_this_thread();
        let mut sum = 0_u64;
        while of_this_thread() - before < Duration::from_millis(5) {
            sum = std::hint::black_box(sum.wrapping_add(1));
        }
        assert!(of_threads(std::process::id()) > Duration::ZERO);
        assert!(own_threads().contains(&std::process::id()));
        assert!(!machine().is_empty() && load_average() >= 0.0);
    }
}
