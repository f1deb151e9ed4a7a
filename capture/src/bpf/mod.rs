//! The kernel's half of AF_XDP: an XDP program of our own, assembled here and loaded through bpf(2).
//!
//! [`Attached`] is a program on an interface. It counts in shared memory, which is read here without a system call, and
//! goes with this process, however that ends. [`LiveFrames`] is the opposite end: a fast source of frames for tests.

mod asm;
mod btf;
mod early;
mod error;
mod live;
mod program;
#[allow(unsafe_code, reason = "bpf(2), and reading the memory that the program counts in")]
mod sys;
#[cfg(test)]
mod tests;

pub(crate) use btf::BtfError;
#[allow(unused_imports, reason = "for the tests of whoever makes the filters")]
pub use error::BpfError;
pub use live::LiveFrames;
pub(crate) use program::EarlyError;

use crate::filter::early::Early;
use asm::Insn;
use program::{COUNTER_WORDS, Counting, FILTERED, PASSED, Parts, SEEN, STAMP_BYTES, UNSTAMPED};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::sync::atomic::{Ordering, fence};
use sys::{CounterMap, Link, LoadOptions, Program, SocketMap};

/// Most queues of an interface: the kernel's own bound is the NIC's, at most a few hundred.
pub(crate) const QUEUES_MAX: u32 = 4096;

/// Function of the kernel that asks the driver for the time a frame was received (Linux 6.3).
const TIMESTAMP_FUNCTION: &str = "bpf_xdp_metadata_rx_timestamp";

/// Where the program runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AttachMode {
    /// In the driver, before a socket buffer is made.
    Native,
    /// In the network stack, for every driver: slower.
    Generic,
}

/// What the program shall do.
#[derive(Clone, Copy, Debug)]
pub(crate) struct AttachOptions<'a> {
    /// Where it runs.
    pub(crate) mode: AttachMode,
    /// Queues that have counters and a slot for a socket, `1..=QUEUES_MAX`. Frames of others go to the host.
    pub(crate) queues: u32,
    /// Frames that need not be delivered. What the program cannot decide is kept.
    pub(crate) early: Option<&'a Early>,
    /// Whether to deliver the NIC's receive times, if it has any.
    pub(crate) timestamps: bool,
}

/// Frames of a queue since the program was attached. They are read one after the other, `seen` last, so that a reading
/// of a busy queue can be apart by the frames of that moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct QueueCounters {
    /// The program ran for them.
    pub(crate) seen: u64,
    /// Dropped by the early tests.
    pub(crate) filtered: u64,
    /// Left to the host, since the queue had no socket.
    pub(crate) passed: u64,
    /// The driver gave no room for the receive time: what is in front of such a frame is from an earlier one, and if
    /// this ever grows, no time of the queue can be trusted. Otherwise part of what was redirected or passed.
    pub(crate) unstamped: u64,
}

/// Why frames come without the NIC's receive times.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TimestampsRefused {
    /// Drivers give them to programs in native mode only.
    #[error("generic mode has no receive times of the driver")]
    Generic,
    /// The kernel cannot be asked for them.
    #[error(transparent)]
    Function(#[from] BtfError),
    /// The kernel, or the driver, has a program with them refused.
    #[error("a program that asks the driver for receive times was refused: {0}")]
    Program(BpfError),
}

/// A program on an interface. Dropping it takes the program off; so does the end of the process, of whatever kind.
#[derive(Debug)]
pub(crate) struct Attached {
    /// The program is on the interface as long as this is open.
    _link: Link,
    sockets: SocketMap,
    counters: CounterMap,
    frags: bool,
    is_stamped: bool,
    timestamps_refused: Option<TimestampsRefused>,
    early_refused: Option<EarlyError>,
}

impl Attached {
    /// Loads a program and attaches it to an interface of this thread's network namespace.
    ///
    /// Goes without what the kernel or the driver lacks: early tests that are too many
    /// ([`early_refused`](Attached::early_refused)), receive times
    /// ([`timestamps_refused`](Attached::timestamps_refused)), frames of several buffers ([`frags`](Attached::frags)).
    ///
    /// # Errors
    /// See [`BpfError`].
    pub(crate) fn attach(interface_index: u32, options: &AttachOptions<'_>) -> Result<Attached, BpfError> {
        let Ok(interface) = sys::interface_name(interface_index) else {
            return Err(BpfError::NoInterface { index: interface_index });
        };
        if !(1..=QUEUES_MAX).contains(&options.queues) {
            return Err(BpfError::QueueCount { queues: options.queues });
        }
        let sockets = SocketMap::new(options.queues).map_err(|e| BpfError::of_call("create an XDP socket map", e))?;
        let counters = CounterMap::new(options.queues, COUNTER_WORDS)
            .map_err(|e| BpfError::of_call("create a map of counters", e))?;
        let loader = Loader {
            counting: match options.mode {
                AttachMode::Native => Counting::Exclusive,
                AttachMode::Generic => Counting::Shared,
            },
            sockets: sockets.as_fd().as_raw_fd(),
            counters: counters.as_fd().as_raw_fd(),
            interface_index,
        };
        let on = |(program, frags): (Program, bool)| {
            let native = options.mode == AttachMode::Native;
            match program.attach(interface_index, native) {
                Ok(link) => Ok((link, frags)),
                Err(e) => Err(BpfError::of_attach(interface.clone(), native, frags, e)),
            }
        };

        let (plain, early, early_refused) = loader.plain(options.early)?;
        let (stamped, timestamps_refused) = match options.timestamps.then(|| loader.stamped(early, options.mode)) {
            None => (None, None),
            Some(Err(e)) => (None, Some(e)),
            Some(Ok(program)) => match on(program) {
                Ok(link) => (Some(link), None),
                Err(e) => (None, Some(TimestampsRefused::Program(e))),
            },
        };
        let is_stamped = stamped.is_some();
        let (link, frags) = match stamped {
            Some(link) => link,
            None => on(plain)?,
        };
        Ok(Attached { _link: link, sockets, counters, frags, is_stamped, timestamps_refused, early_refused })
    }

    /// Sends the frames of a queue to a socket that is bound to that queue of the interface, from now on and until the
    /// socket is closed.
    ///
    /// # Errors
    /// E2BIG for a queue beyond the table, EOPNOTSUPP or EBADF for what is no AF_XDP socket with a receive ring.
    pub(crate) fn set_socket(&self, queue: u32, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.sockets.set(queue, socket)
    }

    /// Leaves the frames of a queue to the host from now on.
    ///
    /// # Errors
    /// ENOENT where the queue has no socket (any more).
    pub(crate) fn clear_socket(&self, queue: u32) -> io::Result<()> {
        self.sockets.clear(queue)
    }

    /// Counters of a queue: a few loads, no system call.
    ///
    /// # Errors
    /// `InvalidInput` for a queue beyond the table.
    pub(crate) fn counters(&self, queue: u32) -> io::Result<QueueCounters> {
        let word = |counter: usize| {
            let word = (queue as usize).checked_mul(COUNTER_WORDS as usize)?.checked_add(counter)?;
            self.counters.load(word)
        };
        let read = || {
            let (filtered, passed, unstamped) = (word(FILTERED)?, word(PASSED)?, word(UNSTAMPED)?);
            // The program counts the whole first and the parts after it, so that they are read the other way round.
            fence(Ordering::Acquire);
            Some(QueueCounters { seen: word(SEEN)?, filtered, passed, unstamped })
        };
        read().ok_or_else(|| io::ErrorKind::InvalidInput.into())
    }

    /// Bytes in front of each frame that hold the time the NIC received it: 8, nanoseconds of the NIC's clock in this
    /// machine's byte order, 0 where it had none (always, with drivers that know none). 0 bytes when no times are
    /// delivered.
    pub(crate) fn metadata_bytes(&self) -> u32 {
        if self.is_stamped { STAMP_BYTES } else { 0 }
    }

    /// Whether frames of several buffers (jumbo) are taken.
    pub(crate) fn frags(&self) -> bool {
        self.frags
    }

    /// Why receive times are not delivered, if they were asked for.
    pub(crate) fn timestamps_refused(&self) -> Option<&TimestampsRefused> {
        self.timestamps_refused.as_ref()
    }

    /// Why nothing is dropped early, if it was asked for.
    pub(crate) fn early_refused(&self) -> Option<&EarlyError> {
        self.early_refused.as_ref()
    }
}

/// What all variants of the program have in common.
#[derive(Clone, Copy, Debug)]
struct Loader {
    counting: Counting,
    /// Descriptors of the maps, which outlive this.
    sockets: i32,
    counters: i32,
    interface_index: u32,
}

/// A program, and whether it takes frames of several buffers.
type Loaded = (Program, bool);

impl Loader {
    /// The program without receive times, and the early tests that are part of it, or why they are not.
    fn plain<'a>(&self, early: Option<&'a Early>) -> Result<(Loaded, Option<&'a Early>, Option<EarlyError>), BpfError> {
        let refused = match self.assemble(early, None) {
            Err(e) => e,
            Ok(insns) => match self.load(&insns, None) {
                // Complexity is the verifier's to judge.
                Err(e @ BpfError::Rejected { .. }) if early.is_some() => EarlyError::Kernel(e.to_string()),
                loaded => return Ok((loaded?, early, None)),
            },
        };
        let insns = self.assemble(None, None).map_err(BpfError::assembling)?;
        Ok((self.load(&insns, None)?, None, Some(refused)))
    }

    /// The program with receive times, bound to the interface.
    fn stamped(&self, early: Option<&Early>, mode: AttachMode) -> Result<Loaded, TimestampsRefused> {
        if mode == AttachMode::Generic {
            return Err(TimestampsRefused::Generic);
        }
        let function = btf::kernel_function(TIMESTAMP_FUNCTION)?;
        let insns = self.assemble(early, Some(function)).map_err(BpfError::assembling);
        insns.and_then(|insns| self.load(&insns, Some(self.interface_index))).map_err(TimestampsRefused::Program)
    }

    fn assemble(&self, early: Option<&Early>, timestamp_function: Option<i32>) -> Result<Vec<Insn>, EarlyError> {
        let Loader { counting, sockets, counters, .. } = *self;
        program::assemble(&Parts { early, counting, timestamp_function, sockets, counters })
    }

    /// Loads for frames of several buffers, or else, on kernels that do not know them (together with receive times:
    /// Linux before 6.14), for frames of one.
    fn load(&self, insns: &[Insn], bound_to: Option<u32>) -> Result<Loaded, BpfError> {
        let load = |frags| Program::load(insns, &LoadOptions { frags, bound_to });
        match load(true) {
            Ok(program) => Ok((program, true)),
            Err(e) if e.source.raw_os_error() == Some(libc::EINVAL) => {
                // The first refusal is the one to tell, should this not have been its reason.
                load(false).map(|program| (program, false)).map_err(|_| BpfError::of_load(e))
            }
            Err(e) => Err(BpfError::of_load(e)),
        }
    }
}
