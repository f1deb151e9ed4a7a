//! What is compared: each a process that captures our interface, and tells how many packets it has seen.

use super::network::TAP;
use super::{CaptureBenchError, cpu, file};
use serde::Serialize;
use serde_json::Value;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Memory of the ring between kernel and tool, the same for all.
const RING_MIB: u64 = 64;
/// How long a tool may take to come up.
const START_MAX: Duration = Duration::from_secs(60);
/// How long a tool may take to end when asked to.
const STOP_MAX: Duration = Duration::from_secs(15);

/// A tool that is compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ToolKind {
    /// `taphouse run`, AF_XDP in copy mode.
    AfXdp,
    /// `taphouse run`, TPACKET_V3.
    AfPacket,
    /// Suricata through TPACKET_V3, flow log only.
    Suricata,
    /// softflowd through libpcap.
    Softflowd,
}

impl ToolKind {
    /// For tables.
    pub fn name(self) -> &'static str {
        match self {
            ToolKind::AfXdp => "Taphouse, AF_XDP",
            ToolKind::AfPacket => "Taphouse, AF_PACKET",
            ToolKind::Suricata => "Suricata",
            ToolKind::Softflowd => "softflowd",
        }
    }

    /// Why it cannot be measured here; `None` where it can.
    pub fn missing(self) -> Option<&'static str> {
        let is_installed = |program: &str| {
            let path = std::env::var_os("PATH").unwrap_or_default();
            std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
        };
        match self {
            ToolKind::Suricata if !is_installed("suricata") => {
                Some("suricata is not installed (Debian 12: apt-get install -t bookworm-backports suricata)")
            }
            ToolKind::Softflowd if !is_installed("softflowd") || !is_installed("softflowctl") => {
                Some("softflowd is not installed (Debian: apt-get install softflowd)")
            }
            _ => None,
        }
    }
}

/// What a tool has counted since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// Packets it worked on.
    pub received: u64,
    /// Packets it knows to have lost.
    pub own_lost: u64,
}

/// A running tool. Killed when dropped.
pub struct Tool {
    kind: ToolKind,
    child: Child,
    taphouse: PathBuf,
    folder: PathBuf,
}

impl Tool {
    /// Starts a tool on one core, and returns when it captures. What it writes goes to `folder`.
    ///
    /// # Errors
    /// It does not start, or ends at once: with the last that it said.
    pub fn start(kind: ToolKind, taphouse: &Path, folder: &Path, core: usize) -> Result<Tool, CaptureBenchError> {
        file("make", folder, fs::create_dir_all(folder))?;
        let mut command = Command::new("taskset");
        command.args(["-c", &core.to_string()]);
        match kind {
            ToolKind::AfXdp => taphouse_command(&mut command, taphouse, folder, "copy"),
            ToolKind::AfPacket => taphouse_command(&mut command, taphouse, folder, "af_packet"),
            ToolKind::Suricata => suricata_command(&mut command, folder)?,
            ToolKind::Softflowd => softflowd_command(&mut command, folder),
        }
        let log = folder.join("log");
        let out = file("make", &log, File::create(&log))?;
        let err = file("write", &log, out.try_clone())?;
        let child = command.stdin(Stdio::null()).stdout(out).stderr(err).spawn();
        let child = child.map_err(|source| CaptureBenchError::Program {
            program: "taskset".to_owned(),
            package: "util-linux",
            source,
        })?;
        let mut tool = Tool { kind, child, taphouse: taphouse.to_owned(), folder: folder.to_owned() };
        tool.wait_until_ready()?;
        Ok(tool)
    }

    fn wait_until_ready(&mut self) -> Result<(), CaptureBenchError> {
        let start = Instant::now();
        while start.elapsed() < START_MAX {
            if let Ok(Some(status)) = self.child.try_wait() {
                return Err(self.failed(format!("ended with {status}: {}", self.last_words())));
            }
            if self.seen().is_some() {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Err(self.failed(format!("did not come up within {} s: {}", START_MAX.as_secs(), self.last_words())))
    }

    /// What it has counted so far; `None` where it does not say.
    pub fn seen(&self) -> Option<Seen> {
        match self.kind {
            ToolKind::AfXdp | ToolKind::AfPacket => taphouse_seen(&self.taphouse),
            ToolKind::Suricata => suricata_seen(&self.folder),
            ToolKind::Softflowd => softflowd_seen(&self.folder),
        }
    }

    /// Its counts when they no longer change: two equal readings, one second apart (Suricata tells once a second).
    ///
    /// # Errors
    /// It does not say any more.
    pub fn settled(&self) -> Result<Seen, CaptureBenchError> {
        let silent = || self.failed(format!("tells no counts any more: {}", self.last_words()));
        // The last reading of Suricata may be older than the last packet.
        std::thread::sleep(Duration::from_millis(if self.kind == ToolKind::Suricata { 1200 } else { 100 }));
        let mut last = self.seen().ok_or_else(silent)?;
        let start = Instant::now();
        loop {
            std::thread::sleep(Duration::from_millis(if self.kind == ToolKind::Suricata { 1200 } else { 400 }));
            let now = self.seen().ok_or_else(silent)?;
            if now == last {
                return Ok(now);
            }
            if start.elapsed() > START_MAX {
                return Err(self.failed("its counts still change a minute after the last packet".to_owned()));
            }
            last = now;
        }
    }

    /// Processor time of all its threads.
    pub fn cpu(&self) -> Duration {
        // `taskset` becomes the tool, under the same number.
        cpu::of_threads(self.child.id())
    }

    #[cold]
    fn failed(&self, message: String) -> CaptureBenchError {
        CaptureBenchError::Tool { tool: self.kind.name(), message }
    }

    fn last_words(&self) -> String {
        let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
        log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_owned()
    }

    /// Asks it to end, and waits. One that does not is killed.
    pub fn stop(mut self) {
        // SIGTERM; a tool that is gone already is as good.
        let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        let start = Instant::now();
        while start.elapsed() < STOP_MAX {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Tool {
    fn drop(&mut self) {
        // Both fail where it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn taphouse_command(command: &mut Command, taphouse: &Path, folder: &Path, mode: &str) {
    command.arg(taphouse).args(["run", "-i", TAP, "--data-dir"]).arg(folder.join("data"));
    command.args(["--set", &format!("capture.mode={mode}"), "--set", &format!("capture.ring={RING_MIB}MiB")]);
    command.args(["--set", "pipeline.workers=1"]);
}

/// The ledger of `taphouse status`.
fn taphouse_seen(taphouse: &Path) -> Option<Seen> {
    let output = Command::new(taphouse).args(["status", "--output", "json"]).stdin(Stdio::null()).output().ok()?;
    let status: Value = serde_json::from_slice(&output.stdout).ok()?;
    let mut seen = Seen::default();
    for queue in status["queues"].as_array()? {
        let processed = queue["causes"]["processed"].as_u64()?;
        seen.received += processed;
        seen.own_lost += queue["offered"].as_u64()?.saturating_sub(processed);
    }
    Some(seen)
}

/// Suricata as a flow collector: no rules, no application layer, one worker, a ring as large as ours.
fn suricata_command(command: &mut Command, folder: &Path) -> Result<(), CaptureBenchError> {
    let config = format!(
        "%YAML 1.1\n---\n\
         capture:\n  disable-offloading: false\n\
         af-packet:\n  - interface: {TAP}\n    threads: 1\n    cluster-id: 99\n    cluster-type: cluster_flow\n    \
         defrag: no\n    use-mmap: yes\n    tpacket-v3: yes\n    ring-size: {}\n    block-size: 1048576\n    \
         checksum-checks: no\n\
         stats:\n  enabled: yes\n  interval: 1\n\
         outputs:\n  - eve-log:\n      enabled: yes\n      filetype: regular\n      filename: eve.json\n      \
         types:\n        - flow\n        - stats:\n            totals: yes\n            threads: no\n\
         app-layer:\n  protocols: {{}}\n\
         flow:\n  memcap: 1gb\n  hash-size: 65536\n  prealloc: 100000\n",
        (RING_MIB << 20) / 2048
    );
    let path = folder.join("suricata.yaml");
    file("write", &path, fs::write(&path, config))?;
    command.arg("suricata").arg("-c").arg(&path).args(["-S", "/dev/null", "-k", "none", "--runmode=workers"]);
    command.arg("-l").arg(folder).arg(format!("--af-packet={TAP}"));
    Ok(())
}

/// The last of the events with counters. They come once a second, from when the engine has started.
fn suricata_seen(folder: &Path) -> Option<Seen> {
    let events = tail(&folder.join("eve.json"), 1 << 20)?;
    let is_stats = |line: &&str| line.contains("\"event_type\":\"stats\"");
    let event: Value = events.lines().rev().filter(is_stats).find_map(|line| serde_json::from_str(line).ok())?;
    let stats = &event["stats"];
    Some(Seen {
        received: stats["decoder"]["pkts"].as_u64()?,
        own_lost: stats["capture"]["kernel_drops"].as_u64().unwrap_or(0),
    })
}

/// The end of a file.
fn tail(path: &Path, bytes: u64) -> Option<String> {
    use std::io::{Read, Seek, SeekFrom};
    let mut file = File::open(path).ok()?;
    let len = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(len.saturating_sub(bytes))).ok()?;
    let mut end = Vec::new();
    file.read_to_end(&mut end).ok()?;
    Some(String::from_utf8_lossy(&end).into_owned())
}

fn softflowd_command(command: &mut Command, folder: &Path) {
    command.args(["softflowd", "-d", "-i", TAP, "-m", "2000000", "-B", &(RING_MIB << 20).to_string()]);
    command.arg("-c").arg(folder.join("control")).arg("-p").arg(folder.join("pid"));
}

/// libpcap's counters, as `softflowctl statistics` prints them: "Packets received by libpcap: 12", those dropped included.
/// "Packets processed" would stay behind: softflowd leaves its last block of packets unread until more come.
fn softflowd_seen(folder: &Path) -> Option<Seen> {
    let control = folder.join("control");
    let output = Command::new("softflowctl").arg("-c").arg(control).arg("statistics").stdin(Stdio::null()).output();
    let text = String::from_utf8_lossy(&output.ok()?.stdout).into_owned();
    softflowd_counts(&text)
}

fn softflowd_counts(text: &str) -> Option<Seen> {
    let value = |name: &str| -> Option<u64> {
        text.lines().find_map(|line| line.trim().strip_prefix(name))?.trim().parse().ok()
    };
    value("Packets processed:")?;
    // Not there before the first packet.
    let received = value("Packets received by libpcap:").unwrap_or(0);
    let dropped = value("Packets dropped by libpcap:").unwrap_or(0);
    Some(Seen { received: received.saturating_sub(dropped), own_lost: dropped })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suricatas_last_counters_are_found_among_its_flows() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(suricata_seen(folder.path()), None);
        let stats = |n: u64| {
            format!(
                "{{\"event_type\":\"stats\",\"stats\":{{\"capture\":{{\"kernel_drops\":{n}}},\"decoder\":{{\"pkts\":{}}}}}}}\n",
                n * 2
            )
        };
        let events = format!("{}{}{{\"event_type\":\"flow\"}}\n{{\"event_type\":\"sta", stats(3), stats(5));
        fs::write(folder.path().join("eve.json"), events).unwrap();
        assert_eq!(suricata_seen(folder.path()), Some(Seen { received: 10, own_lost: 5 }));
    }

    #[test]
    fn softflowds_counters_are_those_of_libpcap() {
        assert_eq!(softflowd_counts("cannot connect\n"), None);
        assert_eq!(softflowd_counts("Packets processed: 0\n"), Some(Seen::default()));
        let text = "Packets processed: 7\nPackets received by libpcap: 12\nPackets dropped by libpcap: 3\n";
        assert_eq!(softflowd_counts(text), Some(Seen { received: 9, own_lost: 3 }));
    }

    #[test]
    fn a_tool_that_is_missing_says_how_to_get_it() {
        assert_eq!(ToolKind::AfXdp.missing(), None);
        for kind in [ToolKind::Suricata, ToolKind::Softflowd] {
            assert!(kind.missing().is_none_or(|why| why.contains("apt-get install")));
        }
    }
}
