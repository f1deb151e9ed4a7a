//! Capture filters in the language of pcap-filter(7), with the meaning that libpcap gives them.
//!
//! Text becomes tokens (`lexer`), an expression (`parser`, `operand`, `syntax`), a tree of tests of bytes for each link
//! type (`layers`, `arithmetic`, `tree`), and a flat program (`program`). `approximate` derives what an XDP program can
//! decide early.

mod approximate;
mod arithmetic;
#[allow(unreachable_pub, reason = "the XDP program is the only reader, inside this crate")]
pub(crate) mod early;
mod error;
mod layers;
mod lexer;
mod operand;
mod parser;
mod program;
mod syntax;
mod tree;
mod words;

pub(crate) use early::Early;
pub use error::FilterError;

use layers::Link;
use program::Program;
use std::fmt;
use std::sync::Arc;
use wire::{Frame, LinkType};

/// A capture filter such as `tcp port 443 and not host 10.0.0.1`, in the language of pcap-filter(7) and with libpcap's
/// meaning, quirks included:
///
/// - A test that reads beyond the captured bytes drops the frame at once, behind `not` too. This is so for tests whose
///   outcome does not matter as well, as with `tcpdump -O`; libpcap's optimizer removes some of them.
/// - `port` looks at first fragments over IPv4, and over IPv6 only straight behind the fixed header.
/// - `host` without a protocol finds IPv4, ARP and RARP.
/// - `and` and `or` bind alike, from left to right; an operand without qualifiers takes those before it
///   (`tcp port 80 or 443`).
/// - `vlan`, `mpls` and `pppoes` move the headers for all the text behind them, even behind `or`.
///
/// The same text means different bytes for each link type. Where libpcap refuses it for a link type (`vlan` in Linux
/// cooked captures), frames of that type do not pass; [`parse`](Filter::parse) fails if that is so for all of them.
/// Frames of other link types than Ethernet, Linux cooked captures, raw IP, BSD loopback and PPP know only `len`, `less`,
/// `greater` and `ether[N]`.
///
/// It goes beyond libpcap in that `proto` takes `tcp` without a backslash, and that frames of [`LinkType::Null`] may have
/// the family in either byte order, and Linux's number for IPv6. It has fewer port and protocol names, and none of
/// hosts, since nothing is looked up. [`LinkType::RawIp`] is read by the version of each packet (as LINKTYPE_RAW).
///
/// Cloning is cheap. The empty text passes every frame.
#[derive(Clone)]
pub struct Filter {
    inner: Arc<Inner>,
}

struct Inner {
    text: Box<str>,
    /// By `Link`; `None` where no frame passes.
    programs: [Option<Program>; Link::ALL.len()],
    early: Option<Early>,
}

impl Filter {
    /// Compiles a filter of at most 8 KiB.
    ///
    /// # Errors
    /// What is wrong and where, or which word of the language is not supported.
    pub fn parse(text: &str) -> Result<Filter, FilterError> {
        let Some(expr) = parser::parse(text)? else {
            let programs = [const { Some(Program::ALL) }; Link::ALL.len()];
            return Ok(Filter { inner: Arc::new(Inner { text: text.into(), programs, early: None }) });
        };
        let compiled = Link::ALL.map(|link| layers::compile(&expr, link));
        // Ethernet comes first: its refusal tells most.
        if let ([Err(refusal), ..], true) = (&compiled, compiled.iter().all(Result::is_err)) {
            return Err(FilterError::new(text, refusal.at, &refusal.what, ""));
        }
        let early = approximate::early(&expr);
        Ok(Filter { inner: Arc::new(Inner { text: text.into(), programs: compiled.map(Result::ok), early }) })
    }

    /// Whether the frame passes. Takes one walk through at most a few tests, allocates nothing, and reads no byte beyond
    /// the captured ones.
    #[inline]
    pub fn matches(&self, frame: &Frame<'_>) -> bool {
        let link = match frame.link {
            LinkType::Ethernet => Link::Ethernet,
            LinkType::RawIp => Link::Raw,
            LinkType::Null => Link::Null,
            LinkType::Ppp => Link::Ppp,
            LinkType::LinuxSll => Link::Sll,
            LinkType::LinuxSll2 => Link::Sll2,
            _ => Link::Other,
        };
        match &self.inner.programs[link as usize] {
            Some(program) => program.run(frame.data, frame.wire_len),
            None => false,
        }
    }

    /// The filter as it was given.
    pub fn text(&self) -> &str {
        &self.inner.text
    }

    /// What an XDP program can decide of Ethernet frames: it keeps all that the filter keeps, or more. `None` if that
    /// would be every frame, or the filter is beyond it.
    pub(crate) fn early(&self) -> Option<Early> {
        self.inner.early.clone()
    }
}

impl fmt::Debug for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Filter").field(&self.text()).finish()
    }
}

#[cfg(test)]
mod tests;
