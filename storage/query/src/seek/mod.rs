//! Rows that have the values a filter asks for, sought before anything else is done with the others: in segments where
//! they lie packed, and in batches of memory. The engine then applies the whole filter to what is left, so that nothing
//! here needs to be more than an over-approximation.

mod rows;
mod segments;

pub(crate) use rows::sought;
pub(crate) use segments::{ReadBefore, seeking};

use crate::prune::Test;

/// Values a filter may ask for. Each costs a comparison with every row of its column.
const VALUES_MAX: usize = 16;

/// Whether it is worth while to seek what a test asks for.
fn seeks(test: &Test) -> bool {
    (1..=VALUES_MAX).contains(&values(test))
}

/// How many values a test asks for.
fn values(test: &Test) -> usize {
    match test {
        Test::All(tests) | Test::Any(tests) => tests.iter().map(values).sum(),
        Test::Has(..) => 1,
        _ => 0,
    }
}
