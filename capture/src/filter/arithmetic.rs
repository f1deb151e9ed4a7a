//! Relations between numbers, as libpcap compiles them: a relation holds only in packets of the protocols whose bytes it
//! loads (of operands on the right of an operator only the bytes are taken, not that condition).

use super::layers::{Layers, Refusal};
use super::program::{Field, Load, STACK_MAX, Step, calculate};
use super::syntax::{Arithmetic, Operator, Relation, Term, abbreviation};
use super::tree::NodeId;
use super::words::{Protocol, ether_type};

/// A number on the way: as little of it as possible is left to be computed for each packet.
#[derive(Clone, Debug)]
enum Value {
    Constant(u32),
    Field(Field),
    Steps {
        steps: Vec<Step>,
        /// Places on the stack that it needs.
        depth: usize,
    },
}

impl Value {
    fn depth(&self) -> usize {
        match self {
            Value::Steps { depth, .. } => *depth,
            _ => 1,
        }
    }

    fn into_steps(self) -> Vec<Step> {
        match self {
            Value::Constant(n) => vec![Step::Number(n)],
            Value::Field(field) => vec![Step::Field(field)],
            Value::Steps { steps, .. } => steps,
        }
    }
}

/// A value, and what the packet must be for it to be there.
type Guarded = (Value, Option<NodeId>);

impl Layers {
    pub(super) fn relation(
        &mut self,
        left: &Arithmetic,
        relation: Relation,
        right: &Arithmetic,
    ) -> Result<NodeId, Refusal> {
        let (left, left_guard) = self.value(left)?;
        let (right, right_guard) = self.value(right)?;
        let is = match relation {
            Relation::Greater | Relation::LessEqual => self.compare(left, Step::Greater, right)?,
            Relation::GreaterEqual | Relation::Less => self.compare(left, Step::GreaterEqual, right)?,
            Relation::Equal | Relation::NotEqual => self.compare(left, Step::Equal, right)?,
        };
        let is = match relation {
            Relation::LessEqual | Relation::Less | Relation::NotEqual => self.tree.not(is),
            _ => is,
        };
        let guard = match (left_guard, right_guard) {
            (Some(left), Some(right)) => Some(self.tree.and(left, right)),
            (left, right) => left.or(right),
        };
        Ok(guard.map_or(is, |guard| self.tree.and(guard, is)))
    }

    fn compare(&mut self, left: Value, relation: Step, right: Value) -> Result<NodeId, Refusal> {
        Ok(match (left, relation, right) {
            (Value::Constant(a), relation, Value::Constant(b)) => {
                let holds = match relation {
                    Step::Greater => a > b,
                    Step::GreaterEqual => a >= b,
                    _ => a == b,
                };
                self.tree.constant(holds)
            }
            (Value::Field(field), Step::Greater, Value::Constant(n)) => self.tree.above(field, n),
            (Value::Field(field), Step::GreaterEqual, Value::Constant(n)) => self.tree.at_least(field, n),
            (Value::Field(field), _, Value::Constant(n)) | (Value::Constant(n), Step::Equal, Value::Field(field)) => {
                self.tree.equal(field, n)
            }
            (left, relation, right) => {
                let depth = left.depth().max(right.depth() + 1);
                self.check_depth(depth)?;
                let steps = left.into_steps().into_iter().chain(right.into_steps()).chain([relation]);
                self.tree.relation(steps)
            }
        })
    }

    fn check_depth(&self, depth: usize) -> Result<(), Refusal> {
        if depth <= STACK_MAX {
            return Ok(());
        }
        self.refuse(format!("the arithmetic needs more than the {STACK_MAX} intermediate values that are accepted"))
    }

    /// Walks the postfix terms with a stack of values.
    fn value(&mut self, terms: &Arithmetic) -> Result<Guarded, Refusal> {
        let mut stack: Vec<Guarded> = Vec::new();
        for term in terms {
            let value = match *term {
                Term::Number(n) => (Value::Constant(n), None),
                Term::Length => (Value::Field(Field { load: Load::Length, at: 0, offset: 0, mask: u32::MAX }), None),
                Term::Load { protocol, width } => {
                    let Some((index, guard)) = stack.pop() else { break };
                    self.load(protocol, width, index, guard)?
                }
                Term::Negate => {
                    let Some((value, guard)) = stack.pop() else { break };
                    (negate(value), guard)
                }
                Term::Binary(operator) => {
                    let (Some((right, _)), Some((left, guard))) = (stack.pop(), stack.pop()) else { break };
                    (self.binary(operator, left, right)?, guard)
                }
            };
            stack.push(value);
        }
        match stack.pop() {
            Some(value) if stack.is_empty() => Ok(value),
            // The parser writes well-formed postfix; this is no panic if it ever does not.
            _ => self.refuse("this arithmetic is malformed"),
        }
    }

    fn binary(&self, operator: Operator, left: Value, right: Value) -> Result<Value, Refusal> {
        match (&left, operator, &right) {
            (Value::Constant(a), _, Value::Constant(b)) => {
                if let Some(n) = calculate(operator, *a, *b) {
                    return Ok(Value::Constant(n));
                }
            }
            (Value::Field(field), Operator::And, Value::Constant(bits))
            | (Value::Constant(bits), Operator::And, Value::Field(field)) => {
                return Ok(Value::Field(Field { mask: field.mask & bits, ..*field }));
            }
            _ => {}
        }
        let depth = left.depth().max(right.depth() + 1);
        self.check_depth(depth)?;
        let mut all = left.into_steps();
        all.extend(right.into_steps());
        all.push(Step::Binary(operator));
        Ok(steps(all, depth))
    }

    fn load(&mut self, protocol: Protocol, width: u8, index: Value, guard: Option<NodeId>) -> Result<Guarded, Refusal> {
        use Protocol::*;
        let (at, transport, guard) = match protocol {
            Link => (self.link_header_at(), false, guard),
            Tcp | Udp | Sctp | Icmp | Igmp | Igrp | Pim | Vrrp | Carp => {
                let is = self.abbreviated(protocol)?;
                let first = self.first_fragment();
                let mut all = self.tree.and(is, first);
                if let Some(guard) = guard {
                    all = self.tree.and(guard, all);
                }
                let ip = self.link_type(ether_type::IP)?;
                (self.network_at(), true, Some(self.tree.and(ip, all)))
            }
            Icmp6 => {
                let mut all = self.link_type(ether_type::IP6)?;
                if let Some(guard) = guard {
                    all = self.tree.and(guard, all);
                }
                let at = self.network_at();
                let next = Field { load: Load::Byte, at: at + 6, offset: 0, mask: 0xff };
                let is = self.tree.equal(next, 58);
                (at + 40, false, Some(self.tree.and(all, is)))
            }
            _ => {
                let mut is = self.abbreviated(protocol)?;
                if let Some(guard) = guard {
                    is = self.tree.and(guard, is);
                }
                (self.network_at(), false, Some(is))
            }
        };
        Ok((loaded(at, transport, width, index), guard))
    }

    fn abbreviated(&mut self, protocol: Protocol) -> Result<NodeId, Refusal> {
        match abbreviation(protocol) {
            Some(primitive) => self.primitive(&primitive),
            None => self.refuse("this protocol cannot be indexed"),
        }
    }
}

/// The bytes at `index` from `at`, or from the end of the IPv4 header there.
fn loaded(at: u32, transport: bool, width: u8, index: Value) -> Value {
    let (load, mask) = match (width, transport) {
        (1, false) => (Load::Byte, 0xff),
        (2, false) => (Load::Half, 0xffff),
        (_, false) => (Load::Word, u32::MAX),
        (1, true) => (Load::TransportByte, 0xff),
        (2, true) => (Load::TransportHalf, 0xffff),
        (_, true) => (Load::TransportWord, u32::MAX),
    };
    match index {
        Value::Constant(offset) if transport => Value::Field(Field { load, at, offset, mask }),
        // A fixed offset wraps around in libpcap's optimizer: `ip[-1]` is the byte before the header.
        Value::Constant(offset) => Value::Field(Field { load, at: at.wrapping_add(offset), offset: 0, mask }),
        index => {
            let depth = index.depth();
            let mut all = index.into_steps();
            all.push(Step::Indexed { load, at });
            steps(all, depth)
        }
    }
}

fn negate(value: Value) -> Value {
    match value {
        Value::Constant(n) => Value::Constant(n.wrapping_neg()),
        value => {
            let depth = value.depth();
            let mut all = value.into_steps();
            all.push(Step::Negate);
            steps(all, depth)
        }
    }
}

fn steps(steps: Vec<Step>, depth: usize) -> Value {
    Value::Steps { steps, depth }
}
