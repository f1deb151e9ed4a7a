use arrow::array::{AsArray, RecordBatch};
use arrow::datatypes::{SchemaRef, TimestampMicrosecondType, UInt16Type, UInt64Type};
use futures::StreamExt;
use query::{Cursor, Engine, FlowQuery, QueryError};

/// Flows a page when the request does not say.
pub(crate) const PAGE_SIZE_DEFAULT: usize = 100;
/// Flows a page at most; more is clamped, as AIP-158 asks.
pub(crate) const PAGE_SIZE_MAX: usize = 10_000;

/// What names a record, and its place in a listing: `t_end` descending, then `flow_id`, then `part`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Key {
    /// Microseconds since 1970.
    pub(crate) t_end: i64,
    pub(crate) flow_id: u64,
    pub(crate) part: u16,
}

/// Where the next page begins: after `after`, and after `skip` rows more.
///
/// A key names one record, unless the same packets were stored twice (a capture replayed again). Then a page may end
/// between rows of one key, which "after this key" would lose; so the page is counted from the key before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Position {
    pub(crate) after: Option<Key>,
    pub(crate) skip: u32,
}

impl Position {
    /// The position after a page of rows with the keys `page`, which began at `self`; `next` is the first key beyond.
    pub(crate) fn advance(self, page: &[Key], next: Key) -> Position {
        match page.last() {
            None => self,
            Some(last) if *last != next => Position { after: Some(*last), skip: 0 },
            Some(last) => {
                let tied = page.iter().rev().take_while(|key| *key == last).count();
                let tied_u32 = u32::try_from(tied).unwrap_or(u32::MAX);
                match page.len() - tied {
                    0 => Position { after: self.after, skip: self.skip.saturating_add(tied_u32) },
                    before => Position { after: Some(page[before - 1]), skip: tied_u32 },
                }
            }
        }
    }
}

/// A page of flows.
pub(crate) struct Page {
    pub(crate) schema: SchemaRef,
    pub(crate) batches: Vec<RecordBatch>,
    /// Where the next one begins; `None` after the last.
    pub(crate) next: Option<Position>,
}

/// Reads `size` rows of a listing from `position` on. The columns of `query` are all, or have [`KEY_COLUMNS`] among them.
pub(crate) async fn read_page(
    engine: &Engine,
    query: FlowQuery,
    position: Position,
    size: usize,
) -> Result<Page, QueryError> {
    // One row beyond the page tells whether there is another.
    let wanted = u64::from(position.skip) + size as u64 + 1;
    let after = position.after.map(|key| Cursor { t_end: key.t_end, flow_id: key.flow_id, part: key.part });
    let mut rows = engine.flows(FlowQuery { limit: Some(wanted), after, ..query }).await?;
    let schema = rows.schema();
    let (mut batches, mut keys, mut to_skip) = (Vec::new(), Vec::with_capacity(size + 1), position.skip as usize);
    while let Some(batch) = rows.next().await {
        let batch = batch?;
        let skipped = to_skip.min(batch.num_rows());
        to_skip -= skipped;
        let batch = batch.slice(skipped, batch.num_rows() - skipped);
        let kept = batch.num_rows().min(size - keys.len().min(size));
        keys.extend(keys_of(&batch).ok_or_else(|| QueryError::Execution {
            message: "a flow came back without the columns that name it".to_owned(),
        })?);
        if kept > 0 {
            batches.push(batch.slice(0, kept));
        }
    }
    let next = keys.get(size).map(|next| position.advance(&keys[..size], *next));
    Ok(Page { schema, batches, next })
}

/// The columns a key is made of.
pub(crate) const KEY_COLUMNS: [&str; 3] = ["t_end", "flow_id", "part"];

fn keys_of(batch: &RecordBatch) -> Option<Vec<Key>> {
    let [t_end, flow_id, part] = KEY_COLUMNS.map(|name| batch.column_by_name(name));
    let t_end = t_end?.as_primitive_opt::<TimestampMicrosecondType>()?.values();
    let flow_id = flow_id?.as_primitive_opt::<UInt64Type>()?.values();
    let part = part?.as_primitive_opt::<UInt16Type>()?.values();
    let key = |((t_end, flow_id), part): ((&i64, &u64), &u16)| Key { t_end: *t_end, flow_id: *flow_id, part: *part };
    Some(t_end.iter().zip(flow_id).zip(part).map(key).collect())
}

/// Bytes of a position in a page token.
const LENGTH: usize = 4 + 1 + 8 + 8 + 2;

impl Position {
    /// For a token, big-endian: `skip` (4 bytes), 1 if a key follows (1), `t_end` (8), `flow_id` (8), `part` (2).
    pub(crate) fn to_bytes(self) -> [u8; LENGTH] {
        let key = self.after.unwrap_or(Key { t_end: 0, flow_id: 0, part: 0 });
        let mut bytes = [0; LENGTH];
        bytes[..4].copy_from_slice(&self.skip.to_be_bytes());
        bytes[4] = u8::from(self.after.is_some());
        bytes[5..13].copy_from_slice(&key.t_end.to_be_bytes());
        bytes[13..21].copy_from_slice(&key.flow_id.to_be_bytes());
        bytes[21..].copy_from_slice(&key.part.to_be_bytes());
        bytes
    }

    /// The way back; any bytes are a position, if a useless one.
    pub(crate) fn from_bytes(bytes: [u8; LENGTH]) -> Position {
        let [s0, s1, s2, s3, has_key, rest @ ..] = bytes;
        let [t0, t1, t2, t3, t4, t5, t6, t7, f0, f1, f2, f3, f4, f5, f6, f7, p0, p1] = rest;
        let key = Key {
            t_end: i64::from_be_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            flow_id: u64::from_be_bytes([f0, f1, f2, f3, f4, f5, f6, f7]),
            part: u16::from_be_bytes([p0, p1]),
        };
        Position { after: (has_key != 0).then_some(key), skip: u32::from_be_bytes([s0, s1, s2, s3]) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(t_end: i64) -> Key {
        Key { t_end, flow_id: u64::MAX, part: 3 }
    }

    #[test]
    fn positions_go_both_ways() {
        for position in [
            Position::default(),
            Position { after: Some(key(-5)), skip: 0 },
            Position { after: None, skip: 7 },
            Position { after: Some(key(i64::MAX)), skip: u32::MAX },
        ] {
            assert_eq!(Position::from_bytes(position.to_bytes()), position);
        }
    }

    /// Pages through rows with many equal keys, for every page size, against the plain list.
    #[test]
    fn pages_lose_and_repeat_nothing_where_keys_are_equal() {
        let rows: Vec<Key> = [5, 5, 5, 5, 5, 4, 3, 3, 2, 2, 2, 2, 2, 2, 2, 1].map(key).to_vec();
        for size in 1..=rows.len() + 1 {
            let (mut position, mut seen) = (Position::default(), Vec::new());
            loop {
                let found: Vec<Key> = rows
                    .iter()
                    .copied()
                    .filter(|k| position.after.is_none_or(|after| k.t_end < after.t_end))
                    .skip(position.skip as usize)
                    .take(size + 1)
                    .collect();
                let page = &found[..found.len().min(size)];
                seen.extend_from_slice(page);
                match found.get(size) {
                    None => break,
                    Some(next) => position = position.advance(page, *next),
                }
            }
            assert_eq!(seen, rows, "pages of {size}");
        }
    }
}
