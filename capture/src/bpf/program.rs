//! The XDP program that hands an interface's frames to AF_XDP sockets.
//!
//! For each frame: count it as seen; drop it, counted, if the early tests say so; store the driver's receive time in
//! front of it, if asked to; redirect it to the socket of its queue, or count it as passed to the host where there is
//! none.

use super::asm::{Alu, Asm, AsmError, If, Insn, Label, Reg, Reg::*, Width};
use super::early::{self, DEPTH_MAX};
use crate::filter::early::Early;

/// Most instructions of a program. The verifier walks each path of the tests a few times, once for each kind of header
/// it can have found; it gives up at a million steps.
pub(crate) const INSNS_MAX: usize = 2000;
/// What receive times may add to that, so that they never decide whether a filter fits.
const STAMP_INSNS_MAX: usize = 40;

/// Counters of a queue, 64 bits each, in the order of the constants. They fill two cache lines, so that neither two
/// queues nor the pair of lines that processors fetch together are shared.
pub(super) const COUNTER_WORDS: u32 = 16;
/// Frames that the program ran for.
pub(super) const SEEN: usize = 0;
/// Of them: dropped by the early tests.
pub(super) const FILTERED: usize = 1;
/// Of them: passed to the host, since the queue's slot had no socket.
pub(super) const PASSED: usize = 2;
/// Of them: without room for the receive time in front.
pub(super) const UNSTAMPED: usize = 3;

/// Bytes in front of a frame that hold the receive time: nanoseconds, 64 bits in the machine's order, 0 for none.
pub(super) const STAMP_BYTES: u32 = 8;

const XDP_DROP: i32 = 1;
const XDP_PASS: i32 = 2;

const MAP_LOOKUP_ELEM: i32 = 1;
const REDIRECT_MAP: i32 = 51;
const XDP_ADJUST_META: i32 = 54;

/// Offsets of `struct xdp_md` (linux/bpf.h).
const XDP_MD_DATA: i16 = 0;
const XDP_MD_DATA_META: i16 = 8;
const XDP_MD_RX_QUEUE_INDEX: i16 = 16;

/// What lasts through calls: the context, the counters of the queue, the receive time.
const CONTEXT: Reg = R6;
const COUNTERS: Reg = R7;
const STAMP: Reg = R8;
/// The stack: queue index, and where the receive time is put.
const QUEUE_AT: i16 = -4;
const STAMP_AT: i16 = -16;

/// How a counter is added to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Counting {
    /// Load, add, store: right where a queue is served by one CPU at a time. So it is in a driver, where the program
    /// runs in the queue's NAPI poll, which the kernel never enters twice.
    Exclusive,
    /// Atomically. Generic mode runs behind receive packet steering and, on interfaces without NAPI, in the backlog of
    /// whatever CPU sent the frame: there a queue has several CPUs at once.
    Shared,
}

/// What a program is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Parts<'a> {
    pub(super) early: Option<&'a Early>,
    pub(super) counting: Counting,
    /// BTF id of `bpf_xdp_metadata_rx_timestamp`, if times are wanted.
    pub(super) timestamp_function: Option<i32>,
    /// Descriptors of the maps.
    pub(super) sockets: i32,
    pub(super) counters: i32,
}

/// Why early tests have to be left to the filter behind them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum EarlyError {
    /// Nested too deep.
    #[error("the filter is nested deeper than {DEPTH_MAX} levels")]
    TooDeep,
    /// Too large, mostly.
    #[error("the filter does not fit the XDP program: {0}")]
    Program(#[from] AsmError),
    /// The verifier gave up on it.
    #[error("with the filter in it, {0}")]
    Kernel(String),
}

/// Assembles the program.
///
/// # Errors
/// [`EarlyError`], but never without early tests.
pub(super) fn assemble(parts: &Parts<'_>) -> Result<Vec<Insn>, EarlyError> {
    let mut a = Asm::new(INSNS_MAX + parts.timestamp_function.map_or(0, |_| STAMP_INSNS_MAX));
    let beyond = a.label();
    find_counters(&mut a, parts.counters, beyond);
    count(&mut a, parts.counting, SEEN);
    if let Some(early) = parts.early {
        let (keep, drop) = (a.label(), a.label());
        if !early::compile(early, &mut a, CONTEXT, keep, drop) {
            return Err(EarlyError::TooDeep);
        }
        a.bind(drop);
        count(&mut a, parts.counting, FILTERED);
        exit_with(&mut a, XDP_DROP);
        a.bind(keep);
    }
    if let Some(function) = parts.timestamp_function {
        stamp(&mut a, function, parts.counting);
    }
    redirect(&mut a, parts.sockets, parts.counting);
    // A queue beyond the table has neither counters nor a slot for a socket.
    a.bind(beyond);
    exit_with(&mut a, XDP_PASS);
    Ok(a.finish()?)
}

/// Sets CONTEXT and COUNTERS, or goes to `beyond`.
fn find_counters(a: &mut Asm, counters: i32, beyond: Label) {
    a.mov(CONTEXT, R1);
    a.load(Width::U32, R1, CONTEXT, XDP_MD_RX_QUEUE_INDEX);
    a.store(Width::U32, R10, QUEUE_AT, R1);
    a.load_map(R1, counters);
    stack_address(a, R2, QUEUE_AT);
    a.call(MAP_LOOKUP_ELEM);
    a.jump_if(If::Eq, R0, 0, beyond);
    a.mov(COUNTERS, R0);
}

/// Adds 1 to a counter of the queue. Changes R1.
fn count(a: &mut Asm, counting: Counting, counter: usize) {
    let at = (counter * 8) as i16;
    match counting {
        Counting::Exclusive => {
            a.load(Width::U64, R1, COUNTERS, at);
            a.alu(Alu::Add, R1, 1);
            a.store(Width::U64, COUNTERS, at, R1);
        }
        Counting::Shared => {
            a.mov(R1, 1);
            a.atomic_add(COUNTERS, at, R1);
        }
    }
}

/// Puts the receive time in front of the frame.
fn stamp(a: &mut Asm, function: i32, counting: Counting) {
    let (known, no_room, done) = (a.label(), a.label(), a.label());
    a.store(Width::U64, R10, STAMP_AT, 0);
    a.mov(R1, CONTEXT);
    stack_address(a, R2, STAMP_AT);
    a.call_kfunc(function);
    a.load(Width::U64, STAMP, R10, STAMP_AT);
    a.jump_if32(If::Eq, R0, 0, known);
    a.mov(STAMP, 0);
    a.bind(known);

    a.mov(R1, CONTEXT);
    a.mov(R2, -(STAMP_BYTES as i32));
    a.call(XDP_ADJUST_META);
    a.jump_if32(If::Ne, R0, 0, no_room);
    // The verifier wants to see that there is room now.
    a.load(Width::U32, R1, CONTEXT, XDP_MD_DATA_META);
    a.load(Width::U32, R2, CONTEXT, XDP_MD_DATA);
    a.mov(R3, R1);
    a.alu(Alu::Add, R3, STAMP_BYTES as i32);
    a.jump_if(If::Gt, R3, R2, no_room);
    a.store(Width::U64, R1, 0, STAMP);
    a.jump(done);
    a.bind(no_room);
    count(a, counting, UNSTAMPED);
    a.bind(done);
}

fn redirect(a: &mut Asm, sockets: i32, counting: Counting) {
    let redirected = a.label();
    a.load(Width::U32, R2, R10, QUEUE_AT);
    a.load_map(R1, sockets);
    // What the helper returns for an empty slot.
    a.mov(R3, XDP_PASS);
    a.call(REDIRECT_MAP);
    a.jump_if32(If::Ne, R0, XDP_PASS, redirected);
    count(a, counting, PASSED);
    a.bind(redirected);
    a.exit();
}

fn exit_with(a: &mut Asm, verdict: i32) {
    a.mov(R0, verdict);
    a.exit();
}

/// `to` = address of a place on the stack.
fn stack_address(a: &mut Asm, to: Reg, at: i16) {
    a.mov(to, R10);
    a.alu(Alu::Add, to, i32::from(at));
}
