//! Which folder below `segments/` a row lies in: `tap_name=NAME/date=YYYY-MM-DD/hour=HH`, as Hive lays out partitions,
//! so that DuckDB, ClickHouse, Spark, Trino, Polars and pyarrow skip what a filter rules out. The hour is that of the
//! row's time, in UTC.

use crate::encode::{Place, in_order};
use crate::sys;
use crate::table::TableInfo;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Int32Type, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use hashbrown::HashMap;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

/// Hours of taps that one log has partitions of its own for: those with most rows. Rows of others, in captures that
/// span weeks, go to their tap's partition without a date.
pub(crate) const HOURS_MAX: usize = 64;
/// Partitions without a date, one a tap; rows of further taps share the one without a name.
const UNDATED_MAX: usize = 63;
/// Longest name of a tap in a folder's name, whose limit is 255 bytes.
const NAME_BYTES_MAX: usize = 200;
/// What Hive calls a partition whose value is null.
const NULL: &str = "__HIVE_DEFAULT_PARTITION__";
const HOUR_US: i64 = 3_600_000_000;

/// The rows of one partition.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Partition {
    /// Its folder below `segments/`.
    pub(crate) dir: String,
    /// By time; rows of one time keep the order they came in. At least one.
    pub(crate) rows: Vec<Place>,
    /// Whether it is one without a date.
    pub(crate) is_undated: bool,
}

/// Splits rows by tap and hour into at most `HOURS_MAX` + `UNDATED_MAX` + 1 partitions, in the order of their folders:
/// the same rows give the same partitions.
pub(crate) fn split(table: &TableInfo, batches: &[RecordBatch]) -> Vec<Partition> {
    let mut cells = Cells::default();
    let of_row: Vec<Vec<u32>> = batches.iter().map(|batch| cells.of_rows(table, batch)).collect();
    let dirs = cells.dirs();
    let mut rows: BTreeMap<&str, Vec<(i64, Place)>> = BTreeMap::new();
    let mut by_cell: Vec<Vec<(i64, Place)>> = cells.rows.iter().map(|rows| Vec::with_capacity(*rows)).collect();
    for (b, (batch, cell_of)) in batches.iter().zip(&of_row).enumerate() {
        let times = batch.column(0).as_primitive::<TimestampMicrosecondType>().values();
        for (row, (&time, &cell)) in times.iter().zip(cell_of).enumerate() {
            by_cell[cell as usize].push((time, (b as u32, row as u32)));
        }
    }
    for ((dir, _), cell) in dirs.iter().zip(by_cell) {
        match rows.get_mut(dir.as_str()) {
            Some(rows) => rows.extend(cell),
            None => drop(rows.insert(dir, cell)),
        }
    }
    let undated: Vec<&str> = dirs.iter().filter(|(_, undated)| *undated).map(|(dir, _)| dir.as_str()).collect();
    let partition = |(dir, rows): (&str, Vec<(i64, Place)>)| Partition {
        dir: dir.to_owned(),
        rows: in_order(rows),
        is_undated: undated.contains(&dir),
    };
    rows.into_iter().map(partition).collect()
}

/// The pairs of tap and hour in some rows.
#[derive(Default)]
struct Cells {
    /// Names of taps as folders have them.
    names: Vec<String>,
    by_name: HashMap<String, u32>,
    /// Name and hour of each.
    keys: Vec<(u32, i64)>,
    by_key: HashMap<(u32, i64), u32>,
    /// Rows of each.
    rows: Vec<usize>,
}

impl Cells {
    /// The cell of each row of a batch.
    fn of_rows(&mut self, table: &TableInfo, batch: &RecordBatch) -> Vec<u32> {
        let times = batch[table.time()].as_primitive::<TimestampMicrosecondType>().values();
        let taps = batch["tap"].as_dictionary::<Int32Type>();
        let texts = taps.values().as_string::<i32>();
        let mut names: Vec<Option<u32>> = vec![None; texts.len()];
        let mut last: Option<((i32, i64), u32)> = None;
        let mut of_rows = Vec::with_capacity(times.len());
        for (&time, &tap) in times.iter().zip(taps.keys().values()) {
            let hour = time.div_euclid(HOUR_US);
            let cell = match last {
                // Rows come nearly in order, most of them from the tap and hour of the row before.
                Some((key, cell)) if key == (tap, hour) => cell,
                _ => {
                    let name = *names[tap as usize].get_or_insert_with(|| self.name(texts.value(tap as usize)));
                    self.cell(name, hour)
                }
            };
            last = Some(((tap, hour), cell));
            self.rows[cell as usize] += 1;
            of_rows.push(cell);
        }
        of_rows
    }

    fn name(&mut self, tap: &str) -> u32 {
        let next = self.names.len() as u32;
        let names = &mut self.names;
        *self.by_name.entry(folder_name(tap)).or_insert_with_key(|name| {
            names.push(name.clone());
            next
        })
    }

    fn cell(&mut self, name: u32, hour: i64) -> u32 {
        let next = self.keys.len() as u32;
        let cell = *self.by_key.entry((name, hour)).or_insert(next);
        if cell == next {
            self.keys.push((name, hour));
            self.rows.push(0);
        }
        cell
    }

    /// The folder of each cell, and whether it is one without a date.
    fn dirs(&self) -> Vec<(String, bool)> {
        let mut order: Vec<usize> = (0..self.keys.len()).collect();
        // Of equal ones the later hours: those are asked for more often.
        order.sort_by_key(|&cell| {
            let (name, hour) = self.keys[cell];
            (std::cmp::Reverse((self.rows[cell], hour)), &self.names[name as usize])
        });
        let mut dirs = vec![(String::new(), true); self.keys.len()];
        let mut undated: Vec<u32> = Vec::new();
        for (rank, cell) in order.into_iter().enumerate() {
            let (name, hour) = self.keys[cell];
            if rank < HOURS_MAX {
                dirs[cell] = (dated(&self.names[name as usize], hour), false);
                continue;
            }
            if !undated.contains(&name) && undated.len() < UNDATED_MAX {
                undated.push(name);
            }
            let name = if undated.contains(&name) { &self.names[name as usize] } else { NULL };
            dirs[cell].0 = format!("tap_name={name}/date={NULL}/hour={NULL}");
        }
        dirs
    }
}

fn dated(name: &str, hour: i64) -> String {
    format!("tap_name={name}/date={}/hour={:02}", sys::day(hour.saturating_mul(HOUR_US)), hour.rem_euclid(24))
}

/// A tap's name as part of a folder's: with the characters escaped that Hive escapes.
fn folder_name(tap: &str) -> String {
    let mut name = String::with_capacity(tap.len());
    for letter in tap.chars() {
        match letter {
            '"'
            | '#'
            | '%'
            | '\''
            | '*'
            | '/'
            | ':'
            | '='
            | '?'
            | '\\'
            | '{'
            | '}'
            | '['
            | ']'
            | '^'
            | '\0'..='\x1f'
            | '\x7f' => {
                // Writing to a text does not fail.
                let _ = write!(name, "%{:02X}", letter as u32);
            }
            _ => name.push(letter),
        }
    }
    if name.is_empty() || name.len() > NAME_BYTES_MAX {
        return NULL.to_owned();
    }
    name
}

/// The partition a segment's file lies in, from its path below `segments/`; `None` for the folders by day of format 1.
pub(crate) fn of_file(file: &Path) -> Option<&str> {
    file.parent()?.to_str().filter(|dir| dir.starts_with("tap_name="))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::columns::{FLOWS, FlowBatchBuilder};
    use flowtable::FlowRecord;
    use wire::{Nanos, TapId};

    /// Rows as (tap, second), in batches of `size`.
    fn batches(names: &[&str], rows: &[(u16, u64)], size: usize) -> Vec<RecordBatch> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let row = |&(tap, s): &(u16, u64)| {
            let end = Nanos::from_secs(s);
            FlowRecord { tap: TapId(tap), start: end, end, ..FlowRecord::default() }
        };
        rows.chunks(size)
            .map(|rows| {
                let mut builder = FlowBatchBuilder::new(&names, size);
                builder.extend(&rows.iter().map(row).collect::<Vec<_>>(), &[]);
                builder.finish().unwrap()
            })
            .collect()
    }

    fn counts(partitions: &[Partition]) -> Vec<(&str, usize)> {
        partitions.iter().map(|p| (p.dir.as_str(), p.rows.len())).collect()
    }

    #[test]
    fn rows_are_split_by_tap_and_hour_and_sorted_by_time() {
        let rows = [(0, 7_300), (1, 10), (0, 3_599), (0, 3_600), (1, 20), (0, 3_600), (0, 7_200), (9, 86_399)];
        for size in [1, 3, 100] {
            let batches = batches(&["core", "edge/1"], &rows, size);
            let partitions = split(&FLOWS, &batches);
            assert_eq!(
                counts(&partitions),
                [
                    ("tap_name=core/date=1970-01-01/hour=00", 1),
                    ("tap_name=core/date=1970-01-01/hour=01", 2),
                    ("tap_name=core/date=1970-01-01/hour=02", 2),
                    ("tap_name=edge%2F1/date=1970-01-01/hour=00", 2),
                    ("tap_name=unknown/date=1970-01-01/hour=23", 1),
                ]
            );
            let flat = |&(batch, row): &Place| batch as usize * size + row as usize;
            let places = |at: usize| partitions[at].rows.iter().map(flat).collect::<Vec<_>>();
            assert_eq!((places(1), places(2), places(3)), (vec![3, 5], vec![6, 0], vec![1, 4]));
        }
    }

    #[test]
    fn what_spans_weeks_keeps_the_fullest_hours_and_the_rest_by_tap() {
        // 100 hours of two taps, hour `h` with `h % 7 + 1` rows: 200 cells.
        let rows: Vec<(u16, u64)> = (0..100)
            .flat_map(|h| [0, 1].into_iter().flat_map(move |tap| (0..h % 7 + 1).map(move |s| (tap, h * 3_600 + s))))
            .collect();
        let partitions = split(&FLOWS, &batches(&["a", "b"], &rows, 50));
        assert_eq!(partitions.len(), HOURS_MAX + 2);
        assert_eq!(partitions.iter().map(|p| p.rows.len()).sum::<usize>(), rows.len());
        let undated: Vec<_> = partitions.iter().filter(|p| p.is_undated).map(|p| p.dir.as_str()).collect();
        let null = "date=__HIVE_DEFAULT_PARTITION__/hour=__HIVE_DEFAULT_PARTITION__";
        assert_eq!(undated, [format!("tap_name=a/{null}"), format!("tap_name=b/{null}")]);
        let fewest = partitions.iter().filter(|p| !p.is_undated).map(|p| p.rows.len()).min();
        assert_eq!(fewest, Some(5), "of 200 cells 84 have 5 rows or more");
    }

    #[test]
    fn more_taps_than_a_log_has_partitions_for_share_one() {
        let names: Vec<String> = (0..300).map(|n| format!("tap{n:03}")).collect();
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        let rows: Vec<(u16, u64)> = (0..300).map(|tap| (tap, 5)).collect();
        let partitions = split(&FLOWS, &batches(&names, &rows, 100));
        assert_eq!(partitions.len(), HOURS_MAX + UNDATED_MAX + 1);
        assert_eq!(partitions[0].dir.matches(NULL).count(), 3, "{}", partitions[0].dir);
        assert_eq!(partitions[0].rows.len(), 300 - HOURS_MAX - UNDATED_MAX);
    }

    #[test]
    fn names_are_escaped_as_hive_does() {
        assert_eq!(folder_name("core-1 näh"), "core-1 näh");
        assert_eq!(folder_name("a/b=c%d\n"), "a%2Fb%3Dc%25d%0A");
        assert_eq!(folder_name(".."), "..", "never alone in a folder's name");
        assert_eq!(folder_name(""), NULL);
        assert_eq!(folder_name(&"x".repeat(201)), NULL);
        assert_eq!(
            of_file(Path::new("tap_name=a/date=b/hour=c/0000000000000001-00.parquet")),
            Some("tap_name=a/date=b/hour=c")
        );
        assert_eq!(of_file(Path::new("2024-05-29/0000000000000001.parquet")), None);
    }
}
