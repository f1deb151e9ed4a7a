//! The tools: where they are, how each is run over a capture, and how to get those that are missing.
//!
//! Each runs as its manual has it for one flow a connection: timeouts longer than the capture, tables larger than its flows,
//! everything that is not flow accounting turned off. What each does beyond that is said in `benches/peers/README.md`.

use super::captures::Capture;
use super::counts::{self, Counted};
use super::{PeersError, file};
use rustix::process::geteuid;
use serde::Serialize;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Configuration of the tools that take a file.
const SURICATA_YAML: &str = include_str!("../../peers/suricata.yaml");
const PMACCTD_CONF: &str = include_str!("../../peers/pmacctd.conf");
const NFSTREAM_PY: &str = include_str!("../../peers/nfstream_flows.py");

/// Seconds pmacctd waits before it reads: its plugin fills its cache with zeros first, and what comes meanwhile is lost.
/// Waiting costs no CPU time.
const PMACCTD_DELAY_S: &str = "8";

/// A kind of tool.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Our own `taphouse replay`, into Parquet.
    Taphouse,
    /// Reads, and writes to nowhere: what reading alone costs with libpcap.
    Tcpdump,
    /// IPFIX biflows.
    Yaf,
    /// NetFlow, sent to nowhere.
    Softflowd,
    /// nfdump's collector, reading packets itself.
    Nfpcapd,
    /// Flow log only.
    Suricata,
    /// Its `print` plugin.
    Pmacctd,
    /// Argus records.
    Argus,
    /// A Python library on a C core.
    Nfstream,
}

impl Kind {
    /// All, ours first, then from reading alone to the slowest.
    pub const ALL: [Kind; 9] = [
        Kind::Taphouse,
        Kind::Tcpdump,
        Kind::Yaf,
        Kind::Softflowd,
        Kind::Nfpcapd,
        Kind::Suricata,
        Kind::Pmacctd,
        Kind::Argus,
        Kind::Nfstream,
    ];

    /// For tables and the command line.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Taphouse => "taphouse",
            Kind::Tcpdump => "tcpdump",
            Kind::Yaf => "yaf",
            Kind::Softflowd => "softflowd",
            Kind::Nfpcapd => "nfpcapd",
            Kind::Suricata => "suricata",
            Kind::Pmacctd => "pmacctd",
            Kind::Argus => "argus",
            Kind::Nfstream => "nfstream",
        }
    }

    /// Programs it takes: the one that is measured, and those that count its output.
    const fn programs(self) -> &'static [&'static str] {
        match self {
            Kind::Taphouse => &["taphouse"],
            Kind::Tcpdump => &["tcpdump"],
            Kind::Yaf => &["yaf"],
            Kind::Softflowd => &["softflowd"],
            Kind::Nfpcapd => &["nfpcapd", "nfdump"],
            Kind::Suricata => &["suricata"],
            Kind::Pmacctd => &["pmacctd"],
            Kind::Argus => &["argus", "racluster", "racount"],
            Kind::Nfstream => &[],
        }
    }

    /// How to get it.
    pub const fn install(self) -> &'static str {
        match self {
            Kind::Taphouse => "cargo build --profile dist -p taphouse, or --taphouse PATH",
            Kind::Tcpdump => "apt-get install tcpdump",
            Kind::Yaf => {
                "in neither Debian nor PyPI; from source (tools.netsa.cert.org/yaf2): apt-get install libfixbuf-dev \
                 libglib2.0-dev libpcap-dev, then ./configure && make && make install"
            }
            Kind::Softflowd => "apt-get install softflowd",
            Kind::Nfpcapd => "apt-get install nfdump",
            Kind::Suricata => "apt-get install suricata; Debian 12: apt-get install -t bookworm-backports suricata",
            Kind::Pmacctd => "apt-get install pmacct",
            Kind::Argus => "apt-get install argus-server argus-client",
            Kind::Nfstream => "python3 -m venv VENV && VENV/bin/pip install nfstream, then --python VENV/bin/python",
        }
    }
}

/// Where to look.
#[derive(Clone, Debug)]
pub struct Search {
    /// Binaries of ours; each is measured.
    pub taphouse: Vec<PathBuf>,
    /// Config keys for them, `KEY=VALUE`.
    pub settings: Vec<String>,
    /// The Python that may have nfstream.
    pub python: PathBuf,
    /// Folders with programs, those of PATH and the usual ones for daemons.
    pub folders: Vec<PathBuf>,
}

impl Search {
    /// PATH, and where daemons lie that PATH often lacks.
    pub fn default_folders() -> Vec<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let daemons = ["/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/sbin"].map(PathBuf::from);
        std::env::split_paths(&path).chain(daemons).collect()
    }

    fn program(&self, name: &str) -> Option<PathBuf> {
        self.folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file())
    }

    /// The tools of one kind that are there: for all kinds but ours one or none.
    pub fn find(&self, kind: Kind) -> Vec<Tool> {
        let tool = |name: String, program: PathBuf| Tool { kind, name, program, search: self.clone() };
        match kind {
            Kind::Taphouse => {
                let is_one = self.taphouse.len() == 1;
                let name = |path: &Path| if is_one { "Taphouse".to_owned() } else { path.display().to_string() };
                let found = self.taphouse.iter().filter(|path| path.is_file());
                found.map(|path| tool(name(path), path.clone())).collect()
            }
            Kind::Nfstream => {
                let import = Command::new(&self.python).args(["-c", "import nfstream"]).stdin(Stdio::null()).output();
                let is_there = import.is_ok_and(|output| output.status.success());
                is_there.then(|| tool(kind.name().to_owned(), self.python.clone())).into_iter().collect()
            }
            _ => {
                let programs: Option<Vec<PathBuf>> = kind.programs().iter().map(|name| self.program(name)).collect();
                let first = programs.and_then(|programs| programs.into_iter().next());
                first.map(|program| tool(kind.name().to_owned(), program)).into_iter().collect()
            }
        }
    }
}

/// A tool that is there.
#[derive(Clone, Debug)]
pub struct Tool {
    /// Which.
    pub kind: Kind,
    /// For tables.
    pub name: String,
    program: PathBuf,
    search: Search,
}

impl Tool {
    /// Makes what a run needs in `folder`, which is empty, and returns the command to run there.
    ///
    /// # Errors
    /// A file cannot be written.
    pub fn prepare(&self, capture: &Capture, folder: &Path) -> Result<Vec<OsString>, PeersError> {
        let mut command: Vec<OsString> = vec![self.program.clone().into()];
        let mut add = |arguments: &[&str]| command.extend(arguments.iter().map(OsString::from));
        let path = capture.path.to_string_lossy();
        let path = path.as_ref();
        match self.kind {
            Kind::Taphouse => {
                add(&["replay", path, "--data-dir", "data", "--output", "json", "--set", "pipeline.workers=1"]);
                self.search.settings.iter().for_each(|setting| add(&["--set", setting]));
            }
            Kind::Tcpdump => {
                add(&["-r", path, "-w", "/dev/null"]);
                if geteuid().is_root() {
                    add(&["-Z", "root"]); // or it becomes a user who may not read the capture
                }
            }
            Kind::Yaf => {
                add(&["--in", path, "--out", "flows.yaf", "--idle-timeout", "3600", "--active-timeout", "7200"]);
                add(&["--max-flows", "2000000", "--verbose"]);
            }
            // Without a collector: it counts flows and builds no datagrams. Its default table holds 8192.
            Kind::Softflowd => add(&["-d", "-r", path, "-m", "2000000", "-c", "none", "-p", "softflowd.pid"]),
            Kind::Nfpcapd => {
                file("make", folder, fs::create_dir(folder.join("flows")))?;
                add(&["-r", path, "-w", "flows", "-e", "3600,3600"]);
            }
            Kind::Suricata => {
                file("write", folder, fs::write(folder.join("suricata.yaml"), SURICATA_YAML))?;
                add(&["-c", "suricata.yaml", "-S", "/dev/null", "-k", "none", "--runmode=single", "-l", "."]);
                add(&["-r", path]);
            }
            Kind::Pmacctd => {
                // It counts each direction: twice the flows, and some room.
                let entries = (capture.truth.flows * 5 / 2).max(1024) | 1;
                let conf = PMACCTD_CONF.replace("CACHE_ENTRIES", &entries.to_string());
                let conf = conf.replace("FOLDER", &folder.to_string_lossy());
                file("write", folder, fs::write(folder.join("pmacctd.conf"), conf))?;
                add(&["-f", "pmacctd.conf", "-I", path, "-Z", PMACCTD_DELAY_S]);
            }
            Kind::Argus => add(&["-X", "-r", path, "-w", "flows.argus", "-S", "7200"]),
            Kind::Nfstream => {
                file("write", folder, fs::write(folder.join("nfstream_flows.py"), NFSTREAM_PY))?;
                add(&["nfstream_flows.py", path]);
            }
        }
        Ok(command)
    }

    /// What it says to have counted, from what it wrote to `folder`. Not part of what is measured.
    ///
    /// # Errors
    /// Its output cannot be read, or is not what it is known to be.
    pub fn counted(&self, folder: &Path) -> Result<Counted, String> {
        let text = |name: &str| {
            let bytes = fs::read(folder.join(name)).map_err(|e| format!("cannot read its {name}: {e}"))?;
            Ok::<String, String>(String::from_utf8_lossy(&bytes).into_owned())
        };
        match self.kind {
            Kind::Taphouse => counts::of_json(&text("stdout")?, "packets", "flows"),
            Kind::Tcpdump => Ok(Counted::default()),
            Kind::Yaf => counts::of_yaf(&text("stderr")?),
            Kind::Softflowd => counts::of_softflowd(&(text("stdout")? + &text("stderr")?)),
            Kind::Nfpcapd => {
                let biflows = self.output_of("nfdump", folder, &["-R", "flows", "-B", "-q", "-o", "fmt:%pr"])?;
                counts::of_nfpcapd(&(text("stdout")? + &text("stderr")?), &biflows)
            }
            Kind::Suricata => counts::of_suricata(&text("eve.json")?, &(text("stdout")? + &text("stderr")?)),
            Kind::Pmacctd => counts::of_pmacctd(&text("flows.csv")?),
            Kind::Argus => {
                // One flow has several records: one when it begins, one when it ends.
                self.output_of("racluster", folder, &["-r", "flows.argus", "-w", "merged.argus"])?;
                counts::of_argus(&self.output_of("racount", folder, &["-M", "proto", "-r", "merged.argus"])?)
            }
            Kind::Nfstream => {
                let said = text("stdout")?; // warnings first
                counts::of_json(said.lines().last().unwrap_or_default(), "packets", "flows")
            }
        }
    }

    fn output_of(&self, program: &str, folder: &Path, arguments: &[&str]) -> Result<String, String> {
        let path = self.search.program(program).ok_or_else(|| format!("{program} is not installed"))?;
        let output = Command::new(path).args(arguments).current_dir(folder).stdin(Stdio::null()).output();
        let output = output.map_err(|e| format!("cannot run {program}: {e}"))?;
        if !output.status.success() {
            return Err(format!("{program} ended with {}", output.status));
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
