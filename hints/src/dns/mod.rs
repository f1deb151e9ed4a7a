//! DNS: messages, and questions paired with their answers.

mod message;
mod name;
mod transactions;

pub(crate) use message::{Check, Message};
pub(crate) use transactions::{Exchange, Transactions};

#[cfg(test)]
pub(crate) use message::tests as build;
