//! A fast source of frames: the kernel itself, told to run a program over "live" frames of its own making.

use super::asm::{Alu, Asm, AsmError, If, Insn, Reg::*, Width};
use super::error::BpfError;
use super::sys::{self, CounterMap, LoadOptions, Program};
use std::io;
use std::os::fd::{AsFd, AsRawFd};

const INSNS_MAX: usize = 100;

/// Least frame that the kernel takes: an Ethernet header.
const FRAME_BYTES_MIN: usize = 14;
/// Longest frame: what fits a page of 4096 bytes beside what the kernel keeps there, with some to spare.
const FRAME_BYTES_MAX: usize = 3072;
/// Ethernet, IPv4 without options, UDP.
const HEADER_BYTES: usize = 14 + 20 + 8;

/// Where in the frame the program writes, for flows.
const IPV4_CHECKSUM_AT: i16 = 14 + 10;
/// The lower half of the source address.
const SOURCE_LOW_AT: i16 = 14 + 12 + 2;
const SOURCE_PORT_AT: i16 = 14 + 20;
const UDP_CHECKSUM_AT: i16 = 14 + 20 + 6;

const MAP_LOOKUP_ELEM: i32 = 1;
const BPF_REDIRECT: i32 = 23;
const XDP_ABORTED: i32 = 0;
/// Offsets of `struct xdp_md`.
const XDP_MD_DATA: i16 = 0;
const XDP_MD_DATA_END: i16 = 4;

/// Sends copies of a frame out of an interface, several million a second: BPF_PROG_TEST_RUN with live frames (Linux
/// 5.18). For tests and benchmarks; takes CAP_BPF and CAP_NET_ADMIN.
///
/// On a veth the peer must have an XDP program or GRO on (`ethtool -K peer gro on`). Frames that the interface has no
/// room for are dropped; its own statistics tell. Send from a thread of the interface's network namespace.
#[derive(Debug)]
pub struct LiveFrames {
    program: Program,
    flows: u32,
}

impl LiveFrames {
    /// A source of identical frames.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn new(interface_index: u32) -> Result<LiveFrames, BpfError> {
        LiveFrames::with_flows(interface_index, 1)
    }

    /// A source of UDP packets of `flows` flows in turn (0 is taken as 1): flow `n` has the low 16 bits of `n` as the
    /// lower half of its source address, and the high 16 bits as its source port. The IPv4 checksum is kept right, the
    /// UDP checksum becomes 0, that is "none". With one flow frames leave as they were given.
    ///
    /// The turn goes on from one `send` to the next, and over the threads that share this.
    ///
    /// # Errors
    /// See [`BpfError`].
    pub fn with_flows(interface_index: u32, flows: u32) -> Result<LiveFrames, BpfError> {
        if sys::interface_name(interface_index).is_err() {
            return Err(BpfError::NoInterface { index: interface_index });
        }
        let flows = flows.max(1);
        let (turn, insns);
        if flows == 1 {
            insns = identical(interface_index);
        } else {
            turn = CounterMap::new(1, 1).map_err(|e| BpfError::of_call("create a map for the flows' turn", e))?;
            insns = in_turn(interface_index, flows, turn.as_fd().as_raw_fd());
        }
        let insns = insns.map_err(BpfError::assembling)?;
        let program =
            Program::load(&insns, &LoadOptions { frags: false, bound_to: None }).map_err(BpfError::of_load)?;
        Ok(LiveFrames { program, flows })
    }

    /// Sends `count` copies of an Ethernet frame of 14 to 3072 bytes, and returns when the kernel has. With several
    /// flows the frame must be IPv4 without options and UDP, with a right IPv4 checksum.
    ///
    /// # Errors
    /// `InvalidInput` for other frames; `Interrupted` when a signal arrived, in which case it is not known how many were
    /// sent; else what bpf(2) says.
    pub fn send(&self, frame: &[u8], count: u32) -> io::Result<()> {
        if !(FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&frame.len()) {
            let message = format!("a frame of {} bytes, expected {FRAME_BYTES_MIN} to {FRAME_BYTES_MAX}", frame.len());
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        if self.flows > 1 && !is_udp(frame) {
            let message = "flows take an untagged frame of IPv4 without options and UDP";
            return Err(io::Error::new(io::ErrorKind::InvalidInput, message));
        }
        // The kernel takes 0 as 1.
        if count == 0 { Ok(()) } else { self.program.run_live(frame, count) }
    }
}

fn is_udp(frame: &[u8]) -> bool {
    frame.len() >= HEADER_BYTES && frame[12..15] == [8, 0, 0x45] && frame[23] == 17
}

fn identical(interface_index: u32) -> Result<Vec<Insn>, AsmError> {
    let mut a = Asm::new(INSNS_MAX);
    redirect(&mut a, interface_index);
    a.finish()
}

/// The kernel makes the copies once and uses them again and again, so that a flow's fields are overwritten, whatever an
/// earlier round left there.
fn in_turn(interface_index: u32, flows: u32, turn: i32) -> Result<Vec<Insn>, AsmError> {
    let mut a = Asm::new(INSNS_MAX);
    let abort = a.label();
    a.mov(R6, R1);
    // R7 = this packet's flow.
    a.store(Width::U32, R10, -4, 0);
    a.load_map(R1, turn);
    a.mov(R2, R10);
    a.alu(Alu::Add, R2, -4);
    a.call(MAP_LOOKUP_ELEM);
    a.jump_if(If::Eq, R0, 0, abort);
    a.mov(R7, 1);
    a.atomic_fetch_add(R0, 0, R7);
    // Loaded as a register, since an immediate operand is sign-extended.
    a.mov32(R1, flows.cast_signed());
    a.alu(Alu::Mod, R7, R1);

    a.load(Width::U32, R2, R6, XDP_MD_DATA);
    a.load(Width::U32, R3, R6, XDP_MD_DATA_END);
    a.mov(R1, R2);
    a.alu(Alu::Add, R1, HEADER_BYTES as i32);
    a.jump_if(If::Gt, R1, R3, abort);

    // The address: R4 is what was there, R5 what comes there, both big endian.
    a.load(Width::U16, R4, R2, SOURCE_LOW_AT);
    a.mov(R5, R7);
    a.big_endian(R5, 16);
    a.store(Width::U16, R2, SOURCE_LOW_AT, R5);
    // HC' = ~(~HC + ~m + m') in one's complement, in either byte order (RFC 1624).
    a.load(Width::U16, R1, R2, IPV4_CHECKSUM_AT);
    for reg in [R1, R4] {
        a.alu(Alu::Xor, reg, 0xffff);
        a.alu(Alu::Add, R5, reg);
    }
    for _ in 0..2 {
        a.mov(R1, R5);
        a.alu(Alu::Rsh, R1, 16);
        a.alu(Alu::And, R5, 0xffff);
        a.alu(Alu::Add, R5, R1);
    }
    a.alu(Alu::Xor, R5, 0xffff);
    a.store(Width::U16, R2, IPV4_CHECKSUM_AT, R5);

    a.alu(Alu::Rsh, R7, 16);
    a.big_endian(R7, 16);
    a.store(Width::U16, R2, SOURCE_PORT_AT, R7);
    a.store(Width::U16, R2, UDP_CHECKSUM_AT, 0);
    redirect(&mut a, interface_index);
    a.bind(abort);
    a.mov(R0, XDP_ABORTED);
    a.exit();
    a.finish()
}

fn redirect(a: &mut Asm, interface_index: u32) {
    a.mov(R1, interface_index.cast_signed());
    a.mov(R2, 0);
    a.call(BPF_REDIRECT);
    a.exit();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn udp_is_told_from_the_rest() {
        let mut frame = vec![0; HEADER_BYTES];
        assert!(!is_udp(&frame));
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = 17;
        assert!(is_udp(&frame) && !is_udp(&frame[..HEADER_BYTES - 1]));
        frame[14] = 0x46;
        assert!(!is_udp(&frame));
    }
}
