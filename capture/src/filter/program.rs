//! The compiled form: tests in one array, each with the next test for both outcomes, always further on in the array.
//! Like a BPF program, it drops the packet at once when a test reads beyond the captured bytes.

use super::tree::{Node, NodeId, Tree};
use std::collections::HashMap;

/// Most tests of a program for one link type.
pub(super) const TESTS_MAX: usize = 8192;

/// Most values a relation may hold at once while it is computed.
pub(super) const STACK_MAX: usize = 16;

/// In place of a next test: the frame passes, or not.
const PASS: u16 = u16::MAX;
const DROP: u16 = u16::MAX - 1;

/// What a test looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub(super) enum Load {
    /// 1, 2 or 4 bytes at a fixed offset, big-endian.
    Byte,
    Half,
    Word,
    /// The same behind an IPv4 header at `at`, whose length it reads (libpcap: `4*([k]&0xf)`).
    TransportByte,
    TransportHalf,
    TransportWord,
    /// Length on the wire.
    Length,
    /// 1 if the relation in `steps[at..offset]` holds, else 0.
    Relation,
}

/// A number found in a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Field {
    pub(super) load: Load,
    /// Bytes from the start of the frame.
    pub(super) at: u32,
    /// Bytes from the end of the IPv4 header at `at`, wrapping; 0 for other loads.
    pub(super) offset: u32,
    pub(super) mask: u32,
}

/// Holds where `(field - low) mod 2^32 <= span`: one comparison for equal, less, greater and ranges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(align(32))]
struct Test {
    field: Field,
    low: u32,
    span: u32,
    yes: u16,
    no: u16,
}

/// A step of a relation, on a stack of numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Number(u32),
    Field(Field),
    /// Takes an offset from `at`, or from the end of the IPv4 header there.
    Indexed {
        load: Load,
        at: u32,
    },
    Negate,
    Binary(super::syntax::Operator),
    Greater,
    GreaterEqual,
    Equal,
}

#[derive(Clone, Debug)]
pub(super) struct Program {
    tests: Vec<Test>,
    steps: Vec<Step>,
    start: u16,
}

impl Program {
    /// Passes every frame.
    pub(super) const ALL: Program = Program { tests: Vec::new(), steps: Vec::new(), start: PASS };

    /// `None` if it would have more than [`TESTS_MAX`] tests.
    pub(super) fn new(tree: Tree, root: NodeId) -> Option<Program> {
        let (nodes, steps) = tree.into_parts();
        let mut builder = Builder { nodes: &nodes, tests: Vec::new(), known: HashMap::new() };
        let start = builder.emit(root, PASS, DROP)?;
        // Built from the end: the other way round, every test comes before its next ones.
        let last = builder.tests.len().wrapping_sub(1) as u16;
        let turn = |next: u16| if next >= DROP { next } else { last - next };
        let mut tests: Vec<Test> =
            builder.tests.iter().rev().map(|t| Test { yes: turn(t.yes), no: turn(t.no), ..*t }).collect();
        let start = simplify(&mut tests, turn(start));
        Some(Program { tests, steps, start })
    }

    /// Number of tests.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.tests.len()
    }

    /// Whether the frame passes. Takes at most as many steps as there are tests.
    pub(super) fn run(&self, data: &[u8], wire_len: u32) -> bool {
        let mut next = self.start;
        while let Some(test) = self.tests.get(usize::from(next)) {
            let value = match test.field.load {
                Load::Relation => self.relation(test.field, data, wire_len),
                _ => field(test.field, data, wire_len),
            };
            let Some(value) = value else { return false };
            let holds = value.wrapping_sub(test.low) <= test.span;
            debug_assert!(test.yes > next && test.no > next);
            if holds {
                next = test.yes;
            } else {
                std::hint::black_box(());
                next = test.no;
            }
        }
        next == PASS
    }

    #[cold]
    fn relation(&self, relation: Field, data: &[u8], wire_len: u32) -> Option<u32> {
        let steps = self.steps.get(relation.at as usize..relation.offset as usize)?;
        let mut stack = Stack { values: [0; STACK_MAX], len: 0 };
        for step in steps {
            match *step {
                Step::Number(n) => stack.push(n)?,
                Step::Field(f) => stack.push(field(f, data, wire_len)?)?,
                Step::Indexed { load, at } => {
                    let index = stack.pop()?;
                    stack.push(indexed(load, at, index, data)?)?;
                }
                Step::Negate => {
                    let n = stack.pop()?;
                    stack.push(n.wrapping_neg())?;
                }
                Step::Binary(operator) => {
                    let (right, left) = (stack.pop()?, stack.pop()?);
                    stack.push(calculate(operator, left, right)?)?;
                }
                Step::Greater => stack.compare(|left, right| left > right)?,
                Step::GreaterEqual => stack.compare(|left, right| left >= right)?,
                Step::Equal => stack.compare(|left, right| left == right)?,
            }
        }
        stack.pop()
    }
}

/// The operators of the BPF machine; `None` where it drops the packet.
pub(super) fn calculate(operator: super::syntax::Operator, left: u32, right: u32) -> Option<u32> {
    use super::syntax::Operator::*;
    Some(match operator {
        Add => left.wrapping_add(right),
        Subtract => left.wrapping_sub(right),
        Multiply => left.wrapping_mul(right),
        Divide => left.checked_div(right)?,
        Modulo => left.checked_rem(right)?,
        And => left & right,
        Or => left | right,
        Xor => left ^ right,
        ShiftLeft => left.checked_shl(right).unwrap_or(0),
        ShiftRight => left.checked_shr(right).unwrap_or(0),
    })
}

struct Stack {
    values: [u32; STACK_MAX],
    len: usize,
}

impl Stack {
    fn push(&mut self, value: u32) -> Option<()> {
        *self.values.get_mut(self.len)? = value;
        self.len += 1;
        Some(())
    }

    fn pop(&mut self) -> Option<u32> {
        self.len = self.len.checked_sub(1)?;
        self.values.get(self.len).copied()
    }

    fn compare(&mut self, relation: impl Fn(u32, u32) -> bool) -> Option<()> {
        let (right, left) = (self.pop()?, self.pop()?);
        self.push(u32::from(relation(left, right)))
    }
}

/// `None` where it reads beyond the captured bytes.
#[inline]
fn field(field: Field, data: &[u8], wire_len: u32) -> Option<u32> {
    let at = field.at as usize;
    let value = match field.load {
        Load::Byte => u32::from(*data.get(at)?),
        Load::Half => half(data, at)?,
        Load::Word => word(data, at)?,
        Load::TransportByte => u32::from(*data.get(transport(data, at, field.offset)?)?),
        Load::TransportHalf => half(data, transport(data, at, field.offset)?)?,
        Load::TransportWord => word(data, transport(data, at, field.offset)?)?,
        Load::Length => wire_len,
        Load::Relation => return None,
    };
    Some(value & field.mask)
}

/// An offset that is only known now. Unlike `at + index` for a fixed index, the sum does not wrap around.
fn indexed(load: Load, at: u32, index: u32, data: &[u8]) -> Option<u32> {
    let start = at as usize;
    match load {
        Load::Byte => Some(u32::from(*data.get(start.checked_add(index as usize)?)?)),
        Load::Half => half(data, start.checked_add(index as usize)?),
        Load::Word => word(data, start.checked_add(index as usize)?),
        Load::TransportByte => Some(u32::from(*data.get(transport(data, start, index)?)?)),
        Load::TransportHalf => half(data, transport(data, start, index)?),
        Load::TransportWord => word(data, transport(data, start, index)?),
        Load::Length | Load::Relation => None,
    }
}

/// Where `offset` bytes behind the IPv4 header at `at` are. That sum wraps around in the BPF machine.
#[inline]
fn transport(data: &[u8], at: usize, offset: u32) -> Option<usize> {
    let header = u32::from(*data.get(at)? & 0x0f) * 4;
    at.checked_add(header.wrapping_add(offset) as usize)
}

#[inline]
fn half(data: &[u8], at: usize) -> Option<u32> {
    let bytes = data.get(at..)?.first_chunk::<2>()?;
    Some(u32::from(u16::from_be_bytes(*bytes)))
}

#[inline]
fn word(data: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*data.get(at..)?.first_chunk::<4>()?))
}

/// Turns the tree into tests, from its end to its start, so that the next tests of a test are there before it.
struct Builder<'a> {
    nodes: &'a [Node],
    tests: Vec<Test>,
    known: HashMap<Test, u16>,
}

impl Builder<'_> {
    /// Where to go to find out whether `id` holds, and then to `yes` or to `no`. Long chains lean to the left, where
    /// this loops; it recurses to the right, where a tree is no deeper than its parentheses.
    fn emit(&mut self, mut id: NodeId, mut yes: u16, mut no: u16) -> Option<u16> {
        loop {
            match self.nodes[id.0 as usize] {
                Node::Constant(holds) => return Some(if holds { yes } else { no }),
                Node::Not(inner) => {
                    (yes, no) = (no, yes);
                    id = inner;
                }
                Node::And(left, right) => {
                    yes = self.emit(right, yes, no)?;
                    id = left;
                }
                Node::Or(left, right) => {
                    no = self.emit(right, yes, no)?;
                    id = left;
                }
                Node::Test { field, low, span } => return self.add(Test { field, low, span, yes, no }),
            }
        }
    }

    fn add(&mut self, test: Test) -> Option<u16> {
        // A test that leads to the same place either way stays: its bytes have to be there.
        if let Some(same) = self.known.get(&test) {
            return Some(*same);
        }
        if self.tests.len() == TESTS_MAX {
            return None;
        }
        self.tests.push(test);
        let index = (self.tests.len() - 1) as u16;
        self.known.insert(test, index);
        Some(index)
    }
}

/// What is known of a field on every way to a test.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Fact {
    field: Field,
    low: u32,
    span: u32,
    holds: bool,
}

/// Facts kept on the way to a test. More would only find less likely shortcuts.
const FACTS_MAX: usize = 24;

/// Times that shortcuts are looked for: they remove ways to a test, and so leave more known on the others.
const PASSES_MAX: usize = 4;

/// Skips tests whose outcome is already known from the ones before (`ip` behind `ip6`), and drops those that no way
/// leads to any more. A skipped test reads only bytes that were read before, so that the first missing byte is the same.
fn simplify(tests: &mut Vec<Test>, mut start: u16) -> u16 {
    for _ in 0..PASSES_MAX {
        let changed = shortcut(tests);
        compact(tests, &mut start);
        if !changed {
            break;
        }
    }
    start
}

fn shortcut(tests: &mut [Test]) -> bool {
    let mut changed = false;
    let mut facts: Vec<Option<Vec<Fact>>> = vec![None; tests.len()];
    for i in 0..tests.len() {
        let before = facts[i].take().unwrap_or_default();
        for holds in [true, false] {
            let test = tests[i];
            let mut known = before.clone();
            known.push(Fact { field: test.field, low: test.low, span: test.span, holds });
            if known.len() > FACTS_MAX {
                known.remove(0);
            }
            let was = if holds { test.yes } else { test.no };
            let mut next = was;
            while let Some(after) = tests.get(usize::from(next)) {
                let Some(outcome) = known.iter().find_map(|f| implied(f, after)) else { break };
                next = if outcome { after.yes } else { after.no };
            }
            changed |= next != was;
            *(if holds { &mut tests[i].yes } else { &mut tests[i].no }) = next;
            if let Some(slot) = facts.get_mut(usize::from(next)) {
                match slot {
                    Some(others) => others.retain(|f| known.contains(f)),
                    None => *slot = Some(known),
                }
            }
        }
    }
    changed
}

/// The outcome of a test as far as one fact tells it.
fn implied(fact: &Fact, test: &Test) -> Option<bool> {
    // Ranges that wrap around tell nothing here.
    let (fact_end, test_end) = (fact.low.checked_add(fact.span)?, test.low.checked_add(test.span)?);
    if fact.field != test.field {
        return None;
    }
    match fact.holds {
        true if test.low <= fact.low && fact_end <= test_end => Some(true),
        true if fact_end < test.low || test_end < fact.low => Some(false),
        false if fact.low <= test.low && test_end <= fact_end => Some(false),
        _ => None,
    }
}

/// Removes tests that no way leads to.
fn compact(tests: &mut Vec<Test>, start: &mut u16) {
    let mut used = vec![false; tests.len()];
    let mark = |next: u16, used: &mut Vec<bool>| {
        if let Some(u) = used.get_mut(usize::from(next)) {
            *u = true;
        }
    };
    mark(*start, &mut used);
    for (i, test) in tests.iter().enumerate() {
        if used[i] {
            mark(test.yes, &mut used);
            mark(test.no, &mut used);
        }
    }
    let mut moved = Vec::with_capacity(tests.len());
    let mut count = 0;
    for u in &used {
        moved.push(count);
        count += u16::from(*u);
    }
    let renamed = |next: u16| moved.get(usize::from(next)).copied().unwrap_or(next);
    *start = renamed(*start);
    let mut index = 0;
    tests.retain(|_| {
        index += 1;
        used[index - 1]
    });
    for test in tests {
        (test.yes, test.no) = (renamed(test.yes), renamed(test.no));
    }
}
