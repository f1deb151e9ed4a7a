//! Standard output: as it is, or a terminal, where a long answer goes through a pager.

use std::io::{self, IsTerminal, Stdout, Write};
use std::process::{Child, Command, Stdio};

/// Size of the terminal that standard output is, characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) width: usize,
    pub(super) height: usize,
}

impl Size {
    /// `None` if standard output is no terminal, or one that does not tell.
    pub(super) fn of_stdout() -> Option<Size> {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return None;
        }
        let size = rustix::termios::tcgetwinsize(&stdout).ok()?;
        let size = Size { width: size.ws_col.into(), height: size.ws_row.into() };
        (size.width > 0 && size.height > 0).then_some(size)
    }
}

/// Where an answer is printed.
pub(super) struct Screen {
    out: Stdout,
    /// Where it is shown once it is longer than the screen.
    paging: Option<Paging>,
}

struct Paging {
    command: Command,
    size: Size,
    /// What fits the screen so far, and its lines.
    held: Vec<u8>,
    lines: usize,
    pager: Option<Child>,
}

impl Screen {
    /// Standard output, through a pager if it is a terminal of `size` and `paged`.
    pub(super) fn new(size: Option<Size>, paged: bool) -> Screen {
        let command = size.filter(|_| paged).and_then(|size| Some((pager()?, size)));
        let paging = command.map(|(command, size)| Paging { command, size, held: Vec::new(), lines: 0, pager: None });
        Screen { out: io::stdout(), paging }
    }

    /// Whether an interrupt ends the pager's reader and not us: it has the terminal.
    pub(super) fn may_page(&self) -> bool {
        self.paging.is_some()
    }

    /// Prints what is held back, and waits until the pager is left.
    pub(super) fn close(mut self) -> io::Result<()> {
        let Some(mut paging) = self.paging.take() else { return self.out.flush() };
        match paging.pager.take() {
            Some(mut pager) => {
                drop(pager.stdin.take());
                pager.wait().map(drop)
            }
            None => {
                self.out.write_all(&paging.held)?;
                self.out.flush()
            }
        }
    }
}

impl Drop for Screen {
    /// After an error too the terminal is the pager's until it is left.
    fn drop(&mut self) {
        if let Some(mut pager) = self.paging.as_mut().and_then(|paging| paging.pager.take()) {
            drop(pager.stdin.take());
            drop(pager.wait());
        }
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let Some(paging) = &mut self.paging else { return self.out.write(bytes) };
        if let Some(stdin) = paging.pager.as_mut().and_then(|pager| pager.stdin.as_mut()) {
            return stdin.write(bytes);
        }
        paging.hold(bytes);
        // The last line is the prompt's.
        if paging.lines >= paging.size.height {
            let held = std::mem::take(&mut paging.held);
            match paging.command.spawn() {
                Ok(pager) => {
                    let stdin = paging.pager.insert(pager).stdin.as_mut();
                    stdin.map_or(Ok(()), |stdin| stdin.write_all(&held))?;
                }
                Err(_) => {
                    // No such pager: better the whole answer than none.
                    self.paging = None;
                    self.out.write_all(&held)?;
                }
            }
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.paging {
            None => self.out.flush(),
            Some(paging) => paging.pager.as_mut().and_then(|pager| pager.stdin.as_mut()).map_or(Ok(()), Write::flush),
        }
    }
}

impl Paging {
    /// Keeps bytes, and counts lines as the terminal will break them.
    fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
        let text = String::from_utf8_lossy(&self.held);
        self.lines = text.lines().map(|line| line.chars().count().div_ceil(self.size.width).max(1)).sum();
    }
}

/// `$PAGER`, which is a shell's command, else `less`; `None` where the user or the terminal wants no pager.
fn pager() -> Option<Command> {
    if std::env::var_os("TERM").is_some_and(|term| term == "dumb") {
        return None;
    }
    let mut command = match std::env::var_os("PAGER") {
        Some(pager) if pager.is_empty() || pager == "cat" => return None,
        Some(pager) => {
            let mut shell = Command::new("sh");
            shell.arg("-c").arg(pager);
            shell
        }
        None => Command::new("less"),
    };
    if std::env::var_os("LESS").is_none() {
        // Long lines stay lines, and the screen stays as it was left.
        command.env("LESS", "-SFX");
    }
    command.stdin(Stdio::piped());
    Some(command)
}
