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
