//! The same flows in nfdump's files, by way of our IPFIX export and its own collector.

use crate::folder::Content;
use export::{Collector, ExportConfig, Exporter, WhenFull};
use std::error::Error;
use std::fs;
use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Records a second: what nfcapd takes on one core without losing datagrams.
const RECORDS_PER_S: u32 = 150_000;

/// Bytes of nfcapd's socket buffer.
const SOCKET_BYTES: &str = "67108864";

/// Files below `parent`, of an earlier run or made now. `Ok(None)` where there is no nfcapd or nfdump.
pub(crate) fn files(parent: &Path, content: &Content) -> Result<Option<PathBuf>, Box<dyn Error>> {
    if !["nfcapd", "nfdump"].iter().all(|name| is_there(name)) {
        return Ok(None);
    }
    let dir = parent.join(format!("nfcapd-{}-{}-{}h", content.rows, content.seed, content.hours));
    let done = dir.join("complete");
    if !done.exists() {
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(dir.join("files"))?;
        collect(&dir.join("files"), content)?;
        fs::write(&done, "")?;
    }
    Ok(Some(dir.join("files")))
}

fn is_there(program: &str) -> bool {
    Command::new(program).arg("-V").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// nfcapd while it runs.
struct Nfcapd(Child);

impl Drop for Nfcapd {
    fn drop(&mut self) {
        if let Ok(pid) = i32::try_from(self.0.id())
            && let Some(pid) = rustix::process::Pid::from_raw(pid)
        {
            // It closes its file at SIGTERM. That it is gone already is as good.
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.0.wait();
    }
}

fn collect(dir: &Path, content: &Content) -> Result<(), Box<dyn Error>> {
    eprintln!("exporting {} flows to nfcapd", content.rows);
    // A port that was free a moment ago.
    let port = UdpSocket::bind("127.0.0.1:0")?.local_addr()?.port();
    let mut command = Command::new("nfcapd");
    command.args(["-b", "127.0.0.1", "-p", &port.to_string(), "-B", SOCKET_BYTES, "-t", "3600", "-y"]);
    command.arg("-w").arg(dir).stdout(Stdio::null()).stderr(Stdio::null());
    let nfcapd = Nfcapd(command.spawn()?);
    wait_for_listener(port)?;
    let config = ExportConfig {
        when_full: WhenFull::Wait,
        records_per_second_max: RECORDS_PER_S,
        message_bytes_max: 8_000,
        ..ExportConfig::new(format!("127.0.0.1:{port}").parse::<Collector>()?)
    };
    let (mut handle, thread) = Exporter::start(config)?;
    let mut flows = content.flows();
    loop {
        let run: Vec<_> = flows.by_ref().take(4_096).collect();
        if run.is_empty() {
            break;
        }
        handle.push_all(&run);
    }
    drop(handle);
    thread.join().map_err(|_| "the exporter panicked")?;
    wait_until_read(port)?;
    drop(nfcapd);
    let counted = count(dir)?;
    // Flows with a side that answered are two records to nfdump where it splits them, one where it does not.
    if counted < content.rows {
        return Err(format!("nfcapd stored {counted} of {} flows: the machine is too busy", content.rows).into());
    }
    Ok(())
}

fn count(dir: &Path) -> Result<u64, Box<dyn Error>> {
    let output = Command::new("nfdump").arg("-R").arg(dir).arg("-I").output()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let flows = text.lines().find_map(|line| line.strip_prefix("Flows:")).ok_or("nfdump -I tells no flows")?;
    Ok(flows.trim().parse()?)
}

fn wait_for_listener(port: u16) -> Result<(), Box<dyn Error>> {
    let since = Instant::now();
    while queued(port).is_none() {
        if since.elapsed() > Duration::from_secs(10) {
            return Err("nfcapd does not listen".into());
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn wait_until_read(port: u16) -> Result<(), Box<dyn Error>> {
    while queued(port).ok_or("nfcapd ended")? > 0 {
        std::thread::sleep(Duration::from_millis(50));
    }
    Ok(())
}

/// Bytes that wait in the socket of this port (`rx_queue` of /proc/net/udp); `None` where nobody listens.
fn queued(port: u16) -> Option<u64> {
    let text = fs::read_to_string("/proc/net/udp").ok()?;
    let wanted = format!(":{port:04X}");
    let line = text.lines().find(|l| l.split_whitespace().nth(1).is_some_and(|local| local.ends_with(&wanted)))?;
    let (_, waiting) = line.split_whitespace().nth(4)?.split_once(':')?;
    u64::from_str_radix(waiting, 16).ok()
}
