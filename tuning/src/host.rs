use crate::sysfs::parse_list;
use crate::{Capabilities, Sysfs};
use serde::Serialize;

/// What a host offers a capture, and to this process. `None`: the kernel does not say (an older one, a container, a virtual machine).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Effective capabilities of this process.
    pub capabilities: Capabilities,
    /// CPUs that are online.
    pub cores: Option<usize>,
    /// Release of the running kernel, as `uname -r` prints it.
    pub kernel_release: Option<String>,
    /// Usable memory, bytes.
    pub memory_total_bytes: Option<u64>,
    /// Memory that can be had without swapping, bytes.
    pub memory_available_bytes: Option<u64>,
    /// Huge pages of 2 MiB.
    pub huge_pages_2m: Option<HugePages>,
    /// Huge pages of 1 GiB.
    pub huge_pages_1g: Option<HugePages>,
    /// How much memory this process may lock (RLIMIT_MEMLOCK, soft); CAP_IPC_LOCK lifts it.
    pub memlock_limit: Option<MemlockLimit>,
    /// Frequency governors in use, each once, in alphabetical order; empty without frequency control.
    pub cpu_governors: Vec<String>,
    /// CPUs kept free of ordinary tasks by `isolcpus`.
    pub isolated_cpus: Option<Vec<u32>>,
    /// Transparent huge pages: always, madvise or never.
    pub transparent_huge_pages: Option<String>,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct HugePages {
    /// Pages set aside.
    pub total: u64,
    /// Of those, not in use.
    pub free: u64,
}

/// A limit on locked memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum MemlockLimit {
    /// None.
    Unlimited,
    /// So many bytes.
    Bytes(u64),
}

impl Sysfs {
    /// The host.
    pub fn inspect(&self) -> Host {
        let meminfo = self.text("proc/meminfo").unwrap_or_default();
        Host {
            capabilities: self.capabilities(),
            cores: self
                .text("sys/devices/system/cpu/online")
                .and_then(|text| parse_list(&text))
                .map(|cpus| cpus.len())
                .filter(|cores| *cores > 0),
            kernel_release: self.text("proc/sys/kernel/osrelease"),
            memory_total_bytes: meminfo_bytes(&meminfo, "MemTotal"),
            memory_available_bytes: meminfo_bytes(&meminfo, "MemAvailable"),
            huge_pages_2m: self.huge_pages(2 << 10),
            huge_pages_1g: self.huge_pages(1 << 20),
            memlock_limit: self.memlock_limit(),
            cpu_governors: self.cpu_governors(),
            isolated_cpus: self.isolated_cpus(),
            transparent_huge_pages: self
                .text("sys/kernel/mm/transparent_hugepage/enabled")
                .and_then(|text| bracketed(&text).map(str::to_owned)),
        }
    }

    fn huge_pages(&self, kib: u32) -> Option<HugePages> {
        let base = format!("sys/kernel/mm/hugepages/hugepages-{kib}kB");
        Some(HugePages {
            total: self.number(format!("{base}/nr_hugepages"))?,
            free: self.number(format!("{base}/free_hugepages"))?,
        })
    }

    /// From `/proc/self/limits`, which says what getrlimit(2) does and can stand in a tree made for a test.
    fn memlock_limit(&self) -> Option<MemlockLimit> {
        let limits = self.text("proc/self/limits")?;
        let line = limits.lines().find_map(|line| line.strip_prefix("Max locked memory"))?;
        match line.split_ascii_whitespace().next()? {
            "unlimited" => Some(MemlockLimit::Unlimited),
            bytes => bytes.parse().ok().map(MemlockLimit::Bytes),
        }
    }

    fn cpu_governors(&self) -> Vec<String> {
        let base = "sys/devices/system/cpu/cpufreq";
        let policies = self.names(base).into_iter().filter(|name| name.starts_with("policy"));
        let mut governors: Vec<String> =
            policies.filter_map(|policy| self.text(format!("{base}/{policy}/scaling_governor"))).collect();
        governors.sort();
        governors.dedup();
        governors
    }

    /// An empty file means that no CPU is isolated, a missing one that the kernel does not say.
    fn isolated_cpus(&self) -> Option<Vec<u32>> {
        let path = "sys/devices/system/cpu/isolated";
        if !self.path(path).exists() {
            return None;
        }
        parse_list(&self.text(path).unwrap_or_default())
    }
}

/// A line of `/proc/meminfo`: `MemTotal:  24689764 kB`.
fn meminfo_bytes(meminfo: &str, key: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// The choice in effect of `always [madvise] never`.
fn bracketed(text: &str) -> Option<&str> {
    text.split_once('[')?.1.split_once(']').map(|(choice, _)| choice)
}
