//! An assembler for the eBPF of straight-line programs (Documentation/bpf/standardization/instruction-set.rst).
//!
//! Jumps go forward only, so a label's users are all known when it is bound. That lets the assembler leave out what no
//! jump reaches, which the verifier would refuse ("unreachable insn"), and jumps to the next instruction.

/// One instruction as the kernel takes it: `struct bpf_insn`, 8 bytes, fields in the machine's byte order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub(crate) struct Insn {
    /// Class, operation and source.
    code: u8,
    /// Destination and source register, a nibble each.
    registers: u8,
    /// Of a jump: instructions to skip; of a memory access: bytes.
    offset: i16,
    imm: i32,
}

const _: () = assert!(size_of::<Insn>() == 8);

/// A register. R1-R5 are arguments and do not survive a call, R6-R9 do, R10 is the (read-only) end of the stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reg {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    R10,
}

/// Width of a memory access.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Width {
    U8 = 0x10,
    U16 = 0x08,
    U32 = 0x00,
    U64 = 0x18,
}

/// A 64-bit operation on a register.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum Alu {
    Add = 0x00,
    And = 0x50,
    Rsh = 0x70,
    Mod = 0x90,
    Xor = 0xa0,
    Mov = 0xb0,
}

/// When to jump; comparisons are unsigned.
#[derive(Clone, Copy, Debug)]
#[repr(u8)]
pub(super) enum If {
    Eq = 0x10,
    Gt = 0x20,
    Ne = 0x50,
    Lt = 0xa0,
}

/// The second operand.
#[derive(Clone, Copy, Debug)]
pub(super) enum Operand {
    Reg(Reg),
    /// Sign-extended to the width of the operation.
    Imm(i32),
}

impl From<Reg> for Operand {
    fn from(reg: Reg) -> Operand {
        Operand::Reg(reg)
    }
}

impl From<i32> for Operand {
    fn from(imm: i32) -> Operand {
        Operand::Imm(imm)
    }
}

/// Where jumps go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Label(usize);

/// Why a program could not be assembled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AsmError {
    /// More instructions than were allowed.
    #[error("the program takes more than {max} instructions")]
    TooLong {
        /// How many were allowed.
        max: usize,
    },
    /// A jump over more instructions than its offset of 16 bits can tell.
    #[error("a jump over {instructions} instructions is too far, at most 32767 fit")]
    JumpTooFar {
        /// How many are jumped over.
        instructions: usize,
    },
    /// A jump to a label that was not bound before the end.
    #[error("a jump goes to a label that was never bound")]
    Unbound,
    /// A path runs past the last instruction.
    #[error("the program does not end in an exit")]
    NoExit,
}

const LDX_MEM: u8 = 0x61;
const ST_MEM: u8 = 0x62;
const STX_MEM: u8 = 0x63;
const STX_ATOMIC: u8 = 0xc3;
const LD_IMM64: u8 = 0x18;
const ALU32: u8 = 0x04;
const ALU64: u8 = 0x07;
const TO_BE: u8 = 0xdc;
const JMP: u8 = 0x05;
const JMP32: u8 = 0x06;
const JA: u8 = JMP;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Bit of ALU and jump codes: the second operand is a register.
const SOURCE_REG: u8 = 0x08;
/// Source "register" of LD_IMM64: the value is the map of this file descriptor.
const PSEUDO_MAP_FD: u8 = 1;
/// Source "register" of CALL: the value is the BTF id of a kernel function.
const PSEUDO_KFUNC_CALL: u8 = 2;
/// Value of an atomic operation: the old value comes back in the source register.
const FETCH: i32 = 1;

/// Uses of a label.
#[derive(Debug, Default)]
struct Uses {
    /// Jumps to it, as indices of instructions; empty once it is bound.
    jumps: Vec<usize>,
}

/// A program under construction.
#[derive(Debug)]
pub(super) struct Asm {
    insns: Vec<Insn>,
    labels: Vec<Uses>,
    /// Whether the next instruction can be reached. Those that cannot are left out.
    live: bool,
    /// Where a label was bound last: instructions before it stay where they are.
    bound: usize,
    max: usize,
    error: Option<AsmError>,
}

impl Asm {
    /// An empty program that may grow to `max` instructions.
    pub(super) fn new(max: usize) -> Asm {
        Asm { insns: Vec::new(), labels: Vec::new(), live: true, bound: 0, max, error: None }
    }

    /// The program.
    ///
    /// # Errors
    /// What went wrong first, if anything.
    pub(super) fn finish(self) -> Result<Vec<Insn>, AsmError> {
        match self.error {
            Some(e) => Err(e),
            None if self.labels.iter().any(|uses| !uses.jumps.is_empty()) => Err(AsmError::Unbound),
            None if self.live => Err(AsmError::NoExit),
            None => Ok(self.insns),
        }
    }

    /// A label, to be bound behind its uses.
    pub(super) fn label(&mut self) -> Label {
        self.labels.push(Uses::default());
        Label(self.labels.len() - 1)
    }

    /// Says that `label` is here. Later jumps to it are [`AsmError::Unbound`].
    pub(super) fn bind(&mut self, label: Label) {
        let jumps = std::mem::take(&mut self.labels[label.0].jumps);
        let mut jumps = jumps.as_slice();
        // A jump to the next instruction is none. It can go while nothing has been placed behind it.
        if let Some((last, rest)) = jumps.split_last()
            && last + 1 == self.insns.len()
            && self.insns[*last].code == JA
            && self.bound < self.insns.len()
        {
            self.insns.pop();
            self.live = true;
            jumps = rest;
        }
        let here = self.insns.len();
        for &at in jumps {
            let instructions = here - at - 1;
            match i16::try_from(instructions) {
                Ok(offset) => self.insns[at].offset = offset,
                Err(_) => self.fail(AsmError::JumpTooFar { instructions }),
            }
        }
        self.live |= !jumps.is_empty();
        self.bound = here;
    }

    /// `to = from`, or any other operation: `to op= from`.
    pub(super) fn alu(&mut self, op: Alu, to: Reg, from: impl Into<Operand>) {
        self.binary(ALU64 | op as u8, to, 0, from.into());
    }

    /// `to = from`.
    pub(super) fn mov(&mut self, to: Reg, from: impl Into<Operand>) {
        self.alu(Alu::Mov, to, from);
    }

    /// `to` = an unsigned number of 32 bits, given with its sign bit as it is.
    pub(super) fn mov32(&mut self, to: Reg, imm: i32) {
        self.emit(ALU32 | Alu::Mov as u8, to, 0, 0, imm);
    }

    /// The low `bits` (16, 32 or 64) of `reg` between big endian and the machine's order; the rest becomes 0.
    pub(super) fn big_endian(&mut self, reg: Reg, bits: i32) {
        self.emit(TO_BE, reg, 0, 0, bits);
    }

    /// `to = *(width *)(from + offset)`, zero-extended.
    pub(super) fn load(&mut self, width: Width, to: Reg, from: Reg, offset: i16) {
        self.emit(LDX_MEM | width as u8, to, from as u8, offset, 0);
    }

    /// `*(width *)(to + offset) = from`.
    pub(super) fn store(&mut self, width: Width, to: Reg, offset: i16, from: impl Into<Operand>) {
        match from.into() {
            Operand::Reg(from) => self.emit(STX_MEM | width as u8, to, from as u8, offset, 0),
            Operand::Imm(imm) => self.emit(ST_MEM | width as u8, to, 0, offset, imm),
        }
    }

    /// `*(u64 *)(to + offset) += from`, atomically.
    pub(super) fn atomic_add(&mut self, to: Reg, offset: i16, from: Reg) {
        self.emit(STX_ATOMIC | Width::U64 as u8, to, from as u8, offset, 0);
    }

    /// As [`atomic_add`](Asm::atomic_add), with the old value in `from` afterwards.
    pub(super) fn atomic_fetch_add(&mut self, to: Reg, offset: i16, from: Reg) {
        self.emit(STX_ATOMIC | Width::U64 as u8, to, from as u8, offset, FETCH);
    }

    /// `to = ` the map of a file descriptor. Takes two instructions.
    pub(super) fn load_map(&mut self, to: Reg, fd: i32) {
        self.emit(LD_IMM64, to, PSEUDO_MAP_FD, 0, fd);
        self.emit(0, Reg::R0, 0, 0, 0);
    }

    /// Calls a helper of the kernel (`enum bpf_func_id`).
    pub(super) fn call(&mut self, helper: i32) {
        self.emit(CALL, Reg::R0, 0, 0, helper);
    }

    /// Calls a function of the kernel, by its id in the kernel's BTF.
    pub(super) fn call_kfunc(&mut self, btf_id: i32) {
        self.emit(CALL, Reg::R0, PSEUDO_KFUNC_CALL, 0, btf_id);
    }

    /// Jumps to `label`.
    pub(super) fn jump(&mut self, label: Label) {
        self.emit_jump(JA, Reg::R0, Operand::Imm(0), label);
        self.live = false;
    }

    /// Jumps to `label` if `left condition right`, over 64 bits.
    pub(super) fn jump_if(&mut self, condition: If, left: Reg, right: impl Into<Operand>, label: Label) {
        self.emit_jump(JMP | condition as u8, left, right.into(), label);
    }

    /// As [`jump_if`](Asm::jump_if), over the low 32 bits.
    pub(super) fn jump_if32(&mut self, condition: If, left: Reg, right: impl Into<Operand>, label: Label) {
        self.emit_jump(JMP32 | condition as u8, left, right.into(), label);
    }

    /// Returns R0.
    pub(super) fn exit(&mut self) {
        self.emit(EXIT, Reg::R0, 0, 0, 0);
        self.live = false;
    }

    fn emit_jump(&mut self, code: u8, left: Reg, right: Operand, label: Label) {
        if self.live {
            self.labels[label.0].jumps.push(self.insns.len());
        }
        self.binary(code, left, 0, right);
    }

    fn binary(&mut self, code: u8, left: Reg, offset: i16, right: Operand) {
        match right {
            Operand::Reg(right) => self.emit(code | SOURCE_REG, left, right as u8, offset, 0),
            Operand::Imm(imm) => self.emit(code, left, 0, offset, imm),
        }
    }

    fn emit(&mut self, code: u8, to: Reg, from: u8, offset: i16, imm: i32) {
        if !self.live {
            return;
        }
        if self.insns.len() == self.max {
            // The jumps noted meanwhile are never resolved: nothing more is placed, and `finish` fails.
            self.fail(AsmError::TooLong { max: self.max });
            self.live = false;
            for uses in &mut self.labels {
                uses.jumps.clear();
            }
            return;
        }
        let registers = if cfg!(target_endian = "little") { to as u8 | (from << 4) } else { ((to as u8) << 4) | from };
        self.insns.push(Insn { code, registers, offset, imm });
    }

    fn fail(&mut self, error: AsmError) {
        self.error.get_or_insert(error);
    }
}

#[cfg(test)]
mod tests {
    use super::Reg::*;
    use super::*;

    fn bytes(insns: &[Insn]) -> Vec<u8> {
        insns
            .iter()
            .flat_map(|i| {
                let ([o0, o1], [i0, i1, i2, i3]) = (i.offset.to_le_bytes(), i.imm.to_le_bytes());
                [i.code, i.registers, o0, o1, i0, i1, i2, i3]
            })
            .collect()
    }

    /// The least XDP program for AF_XDP, whose bytes are known to load.
    #[test]
    #[cfg(target_endian = "little")]
    fn redirect_program() {
        let mut a = Asm::new(10);
        a.load(Width::U32, R2, R1, 16);
        a.load_map(R1, 5);
        a.mov(R3, 2);
        a.call(51);
        a.exit();
        let expected = [
            [0x61, 0x12, 0x10, 0, 0, 0, 0, 0],
            [0x18, 0x11, 0, 0, 5, 0, 0, 0],
            [0, 0, 0, 0, 0, 0, 0, 0],
            [0xb7, 0x03, 0, 0, 2, 0, 0, 0],
            [0x85, 0, 0, 0, 51, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes(&a.finish().unwrap()), expected.concat());
    }

    /// Against the tables of the instruction set's specification.
    #[test]
    #[cfg(target_endian = "little")]
    fn encodings() {
        let mut a = Asm::new(100);
        let end = a.label();
        a.mov(R6, R1);
        a.alu(Alu::Add, R1, -8);
        a.alu(Alu::And, R1, 0xffff);
        a.alu(Alu::Rsh, R1, 16);
        a.alu(Alu::Mod, R0, 7);
        a.mov32(R1, -1);
        a.big_endian(R4, 32);
        a.load(Width::U8, R1, R2, 23);
        a.load(Width::U16, R0, R2, 12);
        a.load(Width::U64, R1, R7, 8);
        a.store(Width::U64, R10, -16, 0);
        a.store(Width::U32, R10, -4, R1);
        a.atomic_add(R7, 8, R1);
        a.atomic_fetch_add(R7, 8, R1);
        a.call_kfunc(0x1234);
        a.jump_if(If::Gt, R1, R3, end);
        a.jump_if32(If::Ne, R1, 0x0a, end);
        a.jump_if(If::Lt, R1, 80, end);
        a.mov(R0, 1);
        a.bind(end);
        a.exit();
        let expected = [
            [0xbf, 0x16, 0, 0, 0, 0, 0, 0],
            [0x07, 0x01, 0, 0, 0xf8, 0xff, 0xff, 0xff],
            [0x57, 0x01, 0, 0, 0xff, 0xff, 0, 0],
            [0x77, 0x01, 0, 0, 16, 0, 0, 0],
            [0x97, 0x00, 0, 0, 7, 0, 0, 0],
            [0xb4, 0x01, 0, 0, 0xff, 0xff, 0xff, 0xff],
            [0xdc, 0x04, 0, 0, 32, 0, 0, 0],
            [0x71, 0x21, 23, 0, 0, 0, 0, 0],
            [0x69, 0x20, 12, 0, 0, 0, 0, 0],
            [0x79, 0x71, 8, 0, 0, 0, 0, 0],
            [0x7a, 0x0a, 0xf0, 0xff, 0, 0, 0, 0],
            [0x63, 0x1a, 0xfc, 0xff, 0, 0, 0, 0],
            [0xdb, 0x17, 8, 0, 0, 0, 0, 0],
            [0xdb, 0x17, 8, 0, 1, 0, 0, 0],
            [0x85, 0x20, 0, 0, 0x34, 0x12, 0, 0],
            [0x2d, 0x31, 3, 0, 0, 0, 0, 0],
            [0x56, 0x01, 2, 0, 0x0a, 0, 0, 0],
            [0xa5, 0x01, 1, 0, 80, 0, 0, 0],
            [0xb7, 0x00, 0, 0, 1, 0, 0, 0],
            [0x95, 0, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(bytes(&a.finish().unwrap()), expected.concat());
    }

    #[test]
    fn what_is_never_reached_is_left_out() {
        let mut a = Asm::new(10);
        let (used, unused) = (a.label(), a.label());
        a.jump_if(If::Eq, R1, 0, used);
        a.mov(R0, 1);
        a.exit();
        a.mov(R0, 7);
        a.jump(unused);
        a.bind(unused);
        a.mov(R0, 8);
        a.bind(used);
        a.mov(R0, 2);
        a.exit();
        let insns = a.finish().unwrap();
        assert_eq!(insns.len(), 5);
        assert_eq!((insns[0].offset, insns[3].imm), (2, 2));
    }

    #[test]
    fn jumps_to_the_next_instruction_are_left_out() {
        let mut a = Asm::new(10);
        let (next, end) = (a.label(), a.label());
        a.jump_if(If::Eq, R1, 0, next);
        a.jump(next);
        a.bind(next);
        a.jump(end);
        a.bind(end);
        a.exit();
        let insns = a.finish().unwrap();
        assert_eq!(insns.iter().map(|i| (i.code, i.offset)).collect::<Vec<_>>(), [(0x15, 0), (EXIT, 0)]);

        // Not so while another label is behind the jump: what goes there must not move.
        let mut a = Asm::new(10);
        let (behind, next) = (a.label(), a.label());
        a.jump_if(If::Eq, R1, 0, behind);
        a.jump(next);
        a.bind(behind);
        a.bind(next);
        a.exit();
        let insns = a.finish().unwrap();
        assert_eq!(insns.iter().map(|i| (i.code, i.offset)).collect::<Vec<_>>(), [(0x15, 1), (JA, 0), (EXIT, 0)]);
    }

    #[test]
    fn refusals() {
        let mut a = Asm::new(2);
        let label = a.label();
        a.mov(R0, 0);
        a.jump_if(If::Eq, R0, 0, label);
        a.exit();
        a.bind(label);
        a.exit();
        assert_eq!(a.finish(), Err(AsmError::TooLong { max: 2 }));

        let mut a = Asm::new(2);
        let label = a.label();
        a.jump(label);
        assert_eq!(a.finish(), Err(AsmError::Unbound));

        let mut a = Asm::new(2);
        a.mov(R0, 0);
        assert_eq!(a.finish(), Err(AsmError::NoExit));

        for (between, result) in [(32_767, Ok(())), (32_768, Err(AsmError::JumpTooFar { instructions: 32_768 }))] {
            let mut a = Asm::new(40_000);
            let label = a.label();
            a.jump_if(If::Eq, R0, 0, label);
            (0..between).for_each(|_| a.mov(R0, 0));
            a.bind(label);
            a.exit();
            assert_eq!(a.finish().map(drop), result);
        }
    }
}
