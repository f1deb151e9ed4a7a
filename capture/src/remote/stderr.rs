//! What `ssh` and the remote host say on standard error: statistics, the remote clock, and why something failed.

use std::io::{self, Read};

/// Longest line that is kept, in bytes; the rest of it is left out.
const LINE_BYTES_MAX: usize = 512;
/// Most lines that are kept: the warning about a changed host key is 14.
const LINES_MAX: usize = 24;
/// Bytes that are read in one go, so that a flood does not hold up the packets.
const READ_BYTES_MAX: usize = 64 * 1024;

/// Reads lines as they come, takes in those with a known meaning and keeps the latest others.
#[derive(Default)]
pub(super) struct Stderr {
    line: Vec<u8>,
    lines: Vec<String>,
    at_end: bool,
    /// `tcpdump` is past its start: from here on it answers a request for statistics.
    pub(super) listening: bool,
    /// Seconds since 1970 by the remote clock, once: when its script began.
    pub(super) clock: Option<u64>,
    /// Totals since `tcpdump` began.
    drops: Drops,
    /// How much of them was taken.
    taken: Drops,
}

/// Packets `tcpdump` did not see, in its own words "dropped by kernel" and "dropped by interface". It counts in 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drops {
    pub(super) kernel: u32,
    pub(super) interface: u32,
}

impl Stderr {
    /// Reads what is there without waiting.
    pub(super) fn read(&mut self, from: &mut impl Read) {
        let mut buffer = [0; 4096];
        let mut total = 0;
        while !self.at_end && total < READ_BYTES_MAX {
            match from.read(&mut buffer) {
                Ok(0) => self.finish(),
                Ok(n) => {
                    total += n;
                    self.take(&buffer[..n]);
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
                Err(_) => self.finish(),
            }
        }
    }

    /// What was dropped since the last call.
    pub(super) fn take_drops(&mut self) -> Drops {
        let taken = std::mem::replace(&mut self.taken, self.drops);
        // Totals never shrink: the larger one is kept.
        Drops { kernel: self.drops.kernel - taken.kernel, interface: self.drops.interface - taken.interface }
    }

    /// Whether nothing more will come.
    pub(super) fn is_at_end(&self) -> bool {
        self.at_end
    }

    /// Lines without a meaning of their own, the latest last, fit to be shown.
    pub(super) fn lines(&self) -> &[String] {
        &self.lines
    }

    fn take(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            if byte == b'\n' {
                self.end_line();
            } else if self.line.len() < LINE_BYTES_MAX {
                self.line.push(byte);
            }
        }
    }

    fn finish(&mut self) {
        self.at_end = true;
        self.end_line();
    }

    fn end_line(&mut self) {
        let line = printable(&String::from_utf8_lossy(&self.line));
        self.line.clear();
        if line.is_empty() || self.understand(&line) {
            return;
        }
        if self.lines.len() == LINES_MAX {
            self.lines.remove(0);
        }
        self.lines.push(line);
    }

    /// Takes in a line that is no complaint.
    fn understand(&mut self, line: &str) -> bool {
        if let Some(clock) = line.strip_prefix("taphouse: clock ") {
            self.clock = self.clock.or_else(|| clock.parse().ok());
            return true;
        }
        if line.contains("listening on ") {
            self.listening = true;
            return true;
        }
        // At the end one count a line; on request all of them in one, behind the name of the program.
        let mut known = line.starts_with("dropped privs to ");
        for part in line.split(", ") {
            let part = part.rsplit_once(": ").map_or(part, |(_, count)| count);
            let Some((count, what)) = part.split_once(' ') else { continue };
            let Ok(count) = count.parse::<u32>() else { continue };
            match what.strip_prefix("packets ").or_else(|| what.strip_prefix("packet ")) {
                Some("dropped by kernel") => self.drops.kernel = self.drops.kernel.max(count),
                Some("dropped by interface") => self.drops.interface = self.drops.interface.max(count),
                Some("captured" | "received by filter") => {}
                _ => continue,
            }
            known = true;
        }
        known
    }
}

/// Text of somebody else's, as one line that does nothing to a terminal or a log.
pub(super) fn printable(text: &str) -> String {
    let shown: String = text.chars().take(LINE_BYTES_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    shown.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(text: &[u8]) -> Stderr {
        let mut stderr = Stderr::default();
        stderr.read(&mut &text[..]);
        stderr
    }

    #[test]
    fn statistics_are_read_at_the_end_and_on_request() {
        let stderr = read(
            b"taphouse: clock 1700000000\n\
              dropped privs to tcpdump\n\
              tcpdump: listening on eth0, link-type EN10MB (Ethernet), snapshot length 262144 bytes\n\
              tcpdump: 12 packets captured, 12 packets received by filter, 3 packets dropped by kernel\n\
              20 packets captured\n20 packets received by filter\n5 packets dropped by kernel\n\
              1 packet dropped by interface\n",
        );
        assert_eq!(stderr.clock, Some(1_700_000_000));
        assert_eq!(stderr.drops, Drops { kernel: 5, interface: 1 });
        assert!(stderr.listening && stderr.lines().is_empty() && stderr.is_at_end(), "{:?}", stderr.lines());
        assert_eq!(read(b"1 packet dropped by kernel").drops.kernel, 1);
    }

    #[test]
    fn other_lines_are_kept_the_latest_ones_and_cleaned() {
        let stderr = read(b"ssh: \x1b[31mred\x07\r\n\nlast");
        assert_eq!(stderr.lines(), ["ssh:  [31mred", "last"]);
        let many: String = (0..100).map(|i| format!("line {i}\n")).collect();
        let stderr = read(many.as_bytes());
        assert_eq!((stderr.lines().len(), stderr.lines().last().unwrap().as_str()), (LINES_MAX, "line 99"));
        assert_eq!(read(&[b'x'; 10_000]).lines()[0].len(), LINE_BYTES_MAX);
    }

    proptest! {
        #[test]
        fn anything_can_be_said(text in prop::collection::vec(any::<u8>(), 0..2000)) {
            let stderr = read(&text);
            prop_assert!(stderr.lines().iter().all(|line| !line.contains(char::is_control)));
        }
    }
}
