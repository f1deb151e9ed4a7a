//! The boolean tree between syntax and program: tests of bytes at known offsets, for one link type.

use super::program::{Field, Load, Step};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NodeId(pub(super) u32);

#[derive(Clone, Copy, Debug)]
pub(super) enum Node {
    Constant(bool),
    /// Holds where `(field - low) mod 2^32 <= span`.
    Test {
        field: Field,
        low: u32,
        span: u32,
    },
    Not(NodeId),
    /// The left one first; the right one only if that does not decide.
    And(NodeId, NodeId),
    Or(NodeId, NodeId),
}

/// Nodes in one array, children before parents.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: Vec<Node>,
    steps: Vec<Step>,
}

impl Tree {
    pub(super) fn into_parts(self) -> (Vec<Node>, Vec<Step>) {
        (self.nodes, self.steps)
    }

    pub(super) fn len(&self) -> usize {
        self.nodes.len()
    }

    fn add(&mut self, node: Node) -> NodeId {
        self.nodes.push(node);
        NodeId((self.nodes.len() - 1) as u32)
    }

    pub(super) fn constant(&mut self, holds: bool) -> NodeId {
        self.add(Node::Constant(holds))
    }

    pub(super) fn not(&mut self, id: NodeId) -> NodeId {
        self.add(Node::Not(id))
    }

    pub(super) fn and(&mut self, left: NodeId, right: NodeId) -> NodeId {
        self.add(Node::And(left, right))
    }

    pub(super) fn or(&mut self, left: NodeId, right: NodeId) -> NodeId {
        self.add(Node::Or(left, right))
    }

    pub(super) fn equal(&mut self, field: Field, value: u32) -> NodeId {
        self.add(Node::Test { field, low: value, span: 0 })
    }

    /// Whether the bits of `value` under the mask are there. Without a mask nothing is read: `net 0.0.0.0/0`.
    pub(super) fn masked(&mut self, field: Field, mask: u32, value: u32) -> NodeId {
        match mask {
            0 => self.constant(value == 0),
            _ => self.equal(Field { mask, ..field }, value),
        }
    }

    pub(super) fn at_least(&mut self, field: Field, value: u32) -> NodeId {
        self.add(Node::Test { field, low: value, span: u32::MAX - value })
    }

    pub(super) fn above(&mut self, field: Field, value: u32) -> NodeId {
        match value.checked_add(1) {
            Some(least) => self.at_least(field, least),
            // Never, but the bytes have to be there.
            None => self.equal(Field { mask: 0, ..field }, 1),
        }
    }

    /// `first <= last`.
    pub(super) fn within(&mut self, field: Field, first: u32, last: u32) -> NodeId {
        self.add(Node::Test { field, low: first, span: last - first })
    }

    /// Whether one of the bits is set.
    pub(super) fn any_bit(&mut self, field: Field, bits: u32) -> NodeId {
        self.at_least(Field { mask: field.mask & bits, ..field }, 1)
    }

    /// A relation that is computed in steps.
    pub(super) fn relation(&mut self, steps: impl IntoIterator<Item = Step>) -> NodeId {
        let at = self.steps.len() as u32;
        self.steps.extend(steps);
        let field = Field { load: Load::Relation, at, offset: self.steps.len() as u32, mask: u32::MAX };
        self.equal(field, 1)
    }
}
