use super::command::ssh_arguments;
use super::fault::{Outcome, explain};
use super::options::SNAPLEN_MAX;
use super::stderr::Stderr;
use super::{RemoteFault, SshOptions, sys};
use crate::sys::wait_any_readable;
use crate::{FileOptions, FileSource};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStderr, ChildStdin, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};
use wire::TapId;

/// How often `tcpdump` is asked for its statistics.
const ASK_INTERVAL: Duration = Duration::from_secs(5);
/// How long `ssh` may take to end once its stream has.
const EXIT_WAIT: Duration = Duration::from_secs(1);
/// How often it is looked at meanwhile.
const EXIT_POLL: Duration = Duration::from_millis(5);

/// One run of `ssh`, leader of a process group of its own (a `ProxyCommand` is in it). Nothing of it outlives this.
pub(super) struct Link {
    child: Child,
    /// It was waited for: its number may be somebody else's by now.
    reaped: bool,
    /// Closing it tells the remote `tcpdump` to end.
    stdin: Option<ChildStdin>,
    stdout: Arc<File>,
    stderr_pipe: ChildStderr,
    pub(super) stderr: Stderr,
    /// Reads `stdout`.
    pub(super) stream: FileSource,
    pub(super) began: Instant,
    /// Since when the stream is over; `ssh` then ends, too.
    pub(super) ended: Option<Instant>,
    /// What the reader found wrong, where that says more than `ssh` will.
    pub(super) fault: Option<RemoteFault>,
    asked: Instant,
}

impl Link {
    pub(super) fn start(options: &SshOptions, name: &str, tap: TapId) -> Result<Link, RemoteFault> {
        let child = Command::new("ssh")
            .args(ssh_arguments(options))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(RemoteFault::NoSsh)?;
        Link::adopt(child, name, tap).map_err(RemoteFault::NoSsh)
    }

    fn adopt(mut child: Child, name: &str, tap: TapId) -> io::Result<Link> {
        let pipes = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let (Some(stdin), Some(stdout), Some(stderr_pipe)) = pipes else {
            return Err(io::ErrorKind::BrokenPipe.into());
        };
        let stdout = Arc::new(File::from(OwnedFd::from(stdout)));
        // A remote host may make this reader hold one packet of the largest snapshot, no more.
        let sizes = FileOptions { packet_bytes_max: SNAPLEN_MAX as usize, ..FileOptions::default() };
        let stream = FileSource::from_stream(name, Pipe(Arc::clone(&stdout)), tap, &sizes);
        let (began, stderr) = (Instant::now(), Stderr::default());
        let link = Link {
            child,
            reaped: false,
            stdin: Some(stdin),
            stdout,
            stderr_pipe,
            stderr,
            stream,
            began,
            ended: None,
            fault: None,
            asked: began,
        };
        sys::set_nonblocking(link.stdout.as_fd())?;
        sys::set_nonblocking(link.stderr_pipe.as_fd())?;
        if let Some(stdin) = &link.stdin {
            sys::set_nonblocking(stdin.as_fd())?;
        }
        Ok(link)
    }

    /// Whether the capture has begun.
    pub(super) fn is_live(&self) -> bool {
        self.ended.is_none() && self.stream.has_header()
    }

    /// Waits until there is something to read, then takes in what was said on standard error.
    pub(super) fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        let both: [BorrowedFd<'_>; 2] = [self.stdout.as_fd(), self.stderr_pipe.as_fd()];
        let open = if self.stderr.is_at_end() { &both[..1] } else { &both };
        wait_any_readable(open, millis(timeout))?;
        self.listen();
        Ok(())
    }

    /// Takes in what was said on standard error.
    pub(super) fn listen(&mut self) {
        self.stderr.read(&mut self.stderr_pipe);
    }

    /// Asks for the statistics when it is time. Not before `tcpdump` says that it listens: the signal this becomes would
    /// end it, as it would one that reads a file.
    pub(super) fn ask(&mut self, now: Instant) {
        if !self.stderr.listening || now.duration_since(self.asked) < ASK_INTERVAL {
            return;
        }
        self.asked = now;
        if let Some(stdin) = &mut self.stdin {
            // A pipe that is full or closed belongs to a connection that does not stand: the stream will tell.
            let _ = stdin.write(b"\n");
        }
    }

    /// Tells the remote `tcpdump` to end.
    pub(super) fn close_input(&mut self) {
        self.stdin = None;
    }

    /// Waits for `ssh` to end after its stream has; `None` if it has not yet.
    pub(super) fn settle(&mut self, options: &SshOptions, timeout: Duration) -> Option<RemoteFault> {
        let now = Instant::now();
        let give_up = *self.ended.get_or_insert(now) + EXIT_WAIT;
        self.close_input();
        let deadline = give_up.min(now + timeout);
        loop {
            self.listen();
            let exited = sys::has_exited(self.child.id());
            if exited && self.stderr.is_at_end() || Instant::now() >= give_up {
                break;
            }
            if Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(EXIT_POLL);
        }
        let status = if sys::has_exited(self.child.id()) { self.reap() } else { None };
        Some(self.explain(options, status))
    }

    /// What the end means, or the silence so far.
    fn explain(&mut self, options: &SshOptions, status: Option<i32>) -> RemoteFault {
        if let Some(fault) = self.fault.take() {
            return fault;
        }
        explain(options, &Outcome { status, was_live: self.stream.has_header(), lines: self.stderr.lines() })
    }

    /// The fault of a capture that has not begun in time.
    pub(super) fn overdue(&mut self, options: &SshOptions) -> RemoteFault {
        let last = self.stderr.lines().last();
        RemoteFault::NoAnswer {
            host: options.host.clone(),
            timeout: options.connect_timeout,
            message: last.map_or_else(|| "nothing was said".to_owned(), Clone::clone),
        }
    }

    /// Ends the whole group, then waits for its leader; the exit status, if it ended by itself.
    fn reap(&mut self) -> Option<i32> {
        if !std::mem::replace(&mut self.reaped, true) {
            sys::kill_group(self.child.id());
        }
        self.child.wait().ok().and_then(|status| status.code())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        self.close_input();
        self.reap();
    }
}

/// Rounded up, so that a wait for less than a millisecond is one.
fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i32::MAX)
}

/// The reading end of a pipe that does not wait.
struct Pipe(Arc<File>);

impl Read for Pipe {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        (&*self.0).read(into)
    }
}
