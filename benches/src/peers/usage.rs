//! One run of one tool, in a process made for it, so that what its children used is what the tool used.
//!
//! CPU time comes from getrusage(2) of children: user and system time of every process that was waited for. Tools that leave
//! processes behind are covered as well: the measuring process is their subreaper, and waits until none is left.
//! Linux counts what a child held before exec(2) into its peak memory, and here that is this small process (4 to 5 MB), not
//! a harness with tables: the least that a peak can show.

use super::{PeersError, file};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use rustix::process::{WaitOptions, getpid, set_child_subreaper, wait};
use rustix::thread::{CpuSet, sched_setaffinity};
use serde::{Deserialize, Serialize};
use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

/// How long a tool that was asked to end may take until it is killed, seconds.
const KILL_AFTER_S: u32 = 10;
/// What timeout(1) exits with when it had to end the command.
const TIMED_OUT: i32 = 124;

/// What to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Name for messages.
    pub tool: String,
    /// Program and arguments.
    pub command: Vec<OsString>,
    /// Where it runs; its standard output and error go to `stdout` and `stderr` in there.
    pub folder: PathBuf,
    /// The core all of it is pinned to.
    pub core: Option<usize>,
    /// Ended after this many seconds of wall time.
    pub seconds_max: u32,
}

/// What a run used.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU seconds in user mode, of the whole process tree.
    pub user_s: f64,
    /// CPU seconds in the kernel, of the whole process tree.
    pub system_s: f64,
    /// Wall time, seconds.
    pub elapsed_s: f64,
    /// Largest resident set of any one process of the tree, bytes.
    pub memory_peak_bytes: u64,
    /// Exit code; `None` where a signal ended it.
    pub exit_code: Option<i32>,
}

impl Usage {
    /// CPU seconds in all.
    pub fn cpu_s(&self) -> f64 {
        self.user_s + self.system_s
    }

    /// Why the run does not count; `None` if it does.
    pub fn failure(&self) -> Option<String> {
        match self.exit_code {
            Some(0) => None,
            Some(TIMED_OUT) => Some(format!("did not end within the time allowed ({:.0} s)", self.elapsed_s)),
            Some(code) => Some(format!("exit code {code}")),
            None => Some("ended by a signal".to_owned()),
        }
    }
}

/// Runs a job in a process of its own: `runner` is this program, or another that calls [`run_here`] with the arguments
/// behind `measure-one`.
///
/// # Errors
/// The process cannot be started, or fails. A job that fails is no error: see [`Usage::failure`].
pub fn measure(runner: &Path, job: &Job) -> Result<Usage, PeersError> {
    let failed = |message: String| PeersError::Runner { tool: job.tool.clone(), message };
    let mut command = Command::new(runner);
    command.arg("measure-one").arg("--folder").arg(&job.folder);
    if let Some(core) = job.core {
        command.args(["--core", &core.to_string()]);
    }
    // A process group of its own, which ends as a whole.
    command.args(["--", "timeout", "-k", &KILL_AFTER_S.to_string(), &job.seconds_max.to_string()]);
    let output = command.args(&job.command).stdin(Stdio::null()).output();
    let output = output.map_err(|e| failed(format!("cannot run {}: {e}", runner.display())))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
    }
    serde_json::from_slice(&output.stdout).map_err(|e| failed(format!("it printed no usage: {e}")))
}

/// Runs a command in `folder` and waits for it and all that it left behind. To be called once in a process: children of
/// before would be counted as well.
///
/// # Errors
/// The command cannot be started, or this process cannot be prepared for it.
pub fn run_here(command: &[OsString], folder: &Path, core: Option<usize>) -> Result<Usage, String> {
    let (program, arguments) = command.split_first().ok_or("no command to run")?;
    if let Some(core) = core {
        let mut cores = CpuSet::new();
        if core >= CpuSet::MAX_CPU {
            return Err(format!("--core is {core}, expected less than {}", CpuSet::MAX_CPU));
        }
        cores.set(core);
        sched_setaffinity(None, &cores).map_err(|e| format!("cannot pin to core {core}: {e}"))?;
    }
    set_child_subreaper(Some(getpid())).map_err(|e| format!("cannot become the parent of orphans: {e}"))?;
    let create = |name: &str| file("make", folder.join(name), File::create(folder.join(name)));
    let (out, err) = (create("stdout").map_err(|e| e.to_string())?, create("stderr").map_err(|e| e.to_string())?);
    let start = Instant::now();
    let mut child = Command::new(program);
    child.args(arguments).current_dir(folder).stdin(Stdio::null()).stdout(out).stderr(err);
    let mut child = child.spawn().map_err(|e| format!("cannot run {}: {e}", program.display()))?;
    let status = child.wait().map_err(|e| format!("cannot wait for {}: {e}", program.display()))?;
    // Until there are no children (ECHILD).
    while wait(WaitOptions::empty()).is_ok() {}
    let elapsed_s = start.elapsed().as_secs_f64();
    let used = getrusage(UsageWho::RUSAGE_CHILDREN).map_err(|e| format!("cannot read what was used: {e}"))?;
    let seconds = |time: nix::sys::time::TimeVal| time.num_microseconds() as f64 / 1e6;
    Ok(Usage {
        user_s: seconds(used.user_time()),
        system_s: seconds(used.system_time()),
        elapsed_s,
        memory_peak_bytes: u64::try_from(used.max_rss()).unwrap_or(0) * 1024,
        exit_code: status.code(),
    })
}
