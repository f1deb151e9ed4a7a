//! What the store needs to know of a table. Logs, segments, manifest, recovery and retention are the same code for all
//! of them; a table is its columns (`columns.rs`, `dns.rs`, `talkers.rs`) and the description here.

use crate::StorageError;
use crate::cells::{Cells, Tables};
use crate::columns::FLOWS;
use crate::dns::DNS;
use crate::talkers::TALKERS;
use arrow::array::{ArrayRef, new_null_array};
use arrow::datatypes::{DataType, Field, SchemaRef};
use arrow::error::ArrowError;
use arrow::record_batch::RecordBatch;

/// A table of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    /// Flow records.
    Flows,
    /// DNS transactions.
    Dns,
    /// What sketches said at the end of each window.
    Talkers,
}

impl Table {
    /// Every table, in the order of the enum.
    pub const ALL: [Table; 3] = [Table::Flows, Table::Dns, Table::Talkers];

    /// As queries call it.
    pub fn name(self) -> &'static str {
        self.info().name
    }

    /// Its columns as they are stored, in their order (see FORMAT.md).
    pub fn schema(self) -> SchemaRef {
        (self.info().schema)()
    }

    /// Its folder below the data folder; empty for the data folder itself.
    pub fn folder(self) -> &'static str {
        self.info().folder
    }

    pub(crate) fn info(self) -> &'static TableInfo {
        match self {
            Table::Flows => &FLOWS,
            Table::Dns => &DNS,
            Table::Talkers => &TALKERS,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// DELTA_BINARY_PACKED: sorted or slowly changing, and columns that are almost always 0.
    Delta,
    /// BYTE_STREAM_SPLIT: the high bytes repeat, the low ones do not.
    Split,
    /// Dictionary: few distinct values.
    Dict,
    /// PLAIN, without statistics: evenly distributed hashes.
    Plain,
}

/// What the segment writer needs to know of a column.
pub(crate) struct ColumnInfo {
    pub(crate) name: &'static str,
    pub(crate) encoding: Encoding,
    /// Looked up by value: gets a bloom filter.
    pub(crate) bloom: bool,
    /// Has statistics by page.
    pub(crate) statistics: bool,
}

/// A table, whatever its rows are.
pub(crate) struct TableInfo {
    /// As queries call it.
    pub(crate) name: &'static str,
    /// Its folder below the data folder; empty for the data folder itself.
    pub(crate) folder: &'static str,
    /// Name of the thread that encodes its segments.
    pub(crate) encoder: &'static str,
    /// Its columns, in order. The first is the time rows are sorted by; `tap` is among them, and `proto`, which may be
    /// missing from rows.
    pub(crate) schema: fn() -> SchemaRef,
    pub(crate) columns: &'static [ColumnInfo],
    /// Column of the µs from a row's start to its time, in a table whose rows last.
    pub(crate) duration: Option<&'static str>,
    /// Columns of numbers whose smallest and largest value the manifest has: what people look for the extremes of.
    pub(crate) zones: &'static [&'static str],
}

/// The name as columns of one of the tables have it.
pub(crate) fn column_name(name: &str) -> Option<&'static str> {
    let mut columns = Table::ALL.into_iter().flat_map(|table| table.info().columns);
    columns.find(|column| column.name == name).map(|column| column.name)
}

impl TableInfo {
    /// Column of the time.
    pub(crate) fn time(&self) -> &'static str {
        self.columns[0].name
    }

    /// A batch of an older or newer version with the columns of this one: by name, a missing nullable one all null.
    ///
    /// # Errors
    /// If a column is missing that cannot be null, or has another type.
    pub(crate) fn conform(&self, batch: &RecordBatch) -> Result<RecordBatch, StorageError> {
        let schema = (self.schema)();
        if batch.schema_ref() == &schema {
            return Ok(batch.clone());
        }
        let columns = schema
            .fields()
            .iter()
            .map(|field| match batch.column_by_name(field.name()) {
                Some(column) => column.clone(),
                None => new_null_array(field.data_type(), batch.num_rows()),
            })
            .collect();
        RecordBatch::try_new(schema, columns).map_err(StorageError::arrow("read rows of another version"))
    }
}

/// The columns of a batch under construction; one type for each table.
pub(crate) trait Columns: Clone + Send + 'static {
    type Row: Copy;
    /// The table.
    const TABLE: &'static TableInfo;
    fn with_capacity(rows: usize) -> Self;
    fn extend(&mut self, rows: &[Self::Row]);
    /// Takes the texts of as many rows off the front of `texts`, in the order of the columns; `first` is the number
    /// of the first row.
    fn extend_texts(&mut self, rows: &[Self::Row], first: usize, texts: &mut &[u8]);
    /// Bytes of a row's texts.
    fn text_bytes(row: &Self::Row) -> usize;
    fn finish(self, rows: usize, tables: &Tables) -> Result<Vec<ArrayRef>, ArrowError>;
}

/// Declares the columns of a table, one line each: those of fixed size and how a row gives their value, then those of
/// text, whether they have a bloom filter, and how a row gives their length.
macro_rules! columns {
    (
        $(#[$doc:meta])* $columns:ident of $row:ty, $table:expr;
        values { $($name:ident: $cells:ty, $encoding:ident, $value:expr;)* }
        texts { $($text:ident: $bloom:literal, $length:expr;)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone)]
        pub(crate) struct $columns { $($name: $cells,)* $($text: $crate::texts::Texts,)* }

        impl $crate::table::Columns for $columns {
            type Row = $row;
            const TABLE: &'static $crate::table::TableInfo = $table;

            fn with_capacity(rows: usize) -> Self {
                $columns {
                    $($name: $crate::cells::Cells::with_capacity(rows),)*
                    $($text: $crate::texts::Texts::default(),)*
                }
            }

            fn extend(&mut self, rows: &[$row]) {
                $($crate::cells::Cells::extend(&mut self.$name, rows, $value);)*
            }

            fn extend_texts(&mut self, rows: &[$row], first: usize, texts: &mut &[u8]) {
                for (at, row) in rows.iter().enumerate().filter(|(_, row)| Self::text_bytes(row) > 0) {
                    $({
                        let length: fn(&$row) -> u8 = $length;
                        let (text, rest) = texts.split_at(usize::from(length(row)).min(texts.len()));
                        *texts = rest;
                        if !text.is_empty() {
                            self.$text.set(first + at, text);
                        }
                    })*
                }
            }

            fn text_bytes(row: &$row) -> usize {
                [$({ let length: fn(&$row) -> u8 = $length; usize::from(length(row)) },)*].into_iter().sum()
            }

            fn finish(
                self,
                rows: usize,
                tables: &$crate::cells::Tables,
            ) -> Result<Vec<arrow::array::ArrayRef>, arrow::error::ArrowError> {
                Ok(vec![$($crate::cells::Cells::finish(self.$name, tables)?,)* $(self.$text.finish(rows, tables.odd)?,)*])
            }
        }

        static COLUMNS: &[$crate::table::ColumnInfo] = &[
            $($crate::table::ColumnInfo {
                name: stringify!($name),
                encoding: $crate::table::Encoding::$encoding,
                bloom: <$cells as $crate::cells::Cells>::BLOOM,
                statistics: <$cells as $crate::cells::Cells>::STATISTICS
                    && !matches!($crate::table::Encoding::$encoding, $crate::table::Encoding::Plain),
            },)*
            $($crate::table::ColumnInfo {
                name: stringify!($text),
                encoding: $crate::table::Encoding::Dict,
                bloom: $bloom,
                statistics: true,
            },)*
        ];

        fn fields() -> Vec<arrow::datatypes::Field> {
            vec![
                $($crate::table::field::<$cells>(stringify!($name)),)*
                $($crate::table::text_field(stringify!($text)),)*
            ]
        }
    };
}
pub(crate) use columns;

pub(crate) fn field<C: Cells>(name: &str) -> Field {
    let field = Field::new(name, C::data_type(), C::NULLABLE);
    match C::EXTENSION {
        Some(extension) => {
            field.with_metadata([("ARROW:extension:name".to_owned(), extension.to_owned())].into_iter().collect())
        }
        None => field,
    }
}

/// Free text: a dictionary, null where there is none.
pub(crate) fn text_field(name: &str) -> Field {
    Field::new(name, DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8)), true)
}

/// Microseconds since 1970, rounded down. Every `Nanos` fits: the year 2554 is 1.8e16 µs.
pub(crate) fn micros(time: wire::Nanos) -> i64 {
    time.as_micros() as i64
}

/// The row's 0 for "none" is stored as null.
pub(crate) fn nonzero<T: Default + PartialEq>(value: T) -> Option<T> {
    (value != T::default()).then_some(value)
}

/// Turns rows into batches. Allocates once a batch, and nothing for a row without text.
#[derive(Clone)]
pub(crate) struct BatchBuilder<C: Columns> {
    columns: C,
    tables: Tables,
    rows: usize,
    rows_max: usize,
}

impl<C: Columns> BatchBuilder<C> {
    pub(crate) fn new(tap_names: &[String], rows_max: usize) -> Self {
        BatchBuilder { columns: C::with_capacity(rows_max), tables: Tables::new(tap_names), rows: 0, rows_max }
    }

    /// Adds rows. They are wide, so they are walked in runs that stay in the first-level cache while all columns pick
    /// their value from them.
    pub(crate) fn extend(&mut self, rows: &[C::Row], mut texts: &[u8]) {
        const RUN: usize = 64;
        for run in rows.chunks(RUN) {
            self.columns.extend(run);
            if !texts.is_empty() {
                self.columns.extend_texts(run, self.rows, &mut texts);
            }
            self.rows += run.len();
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.rows
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.rows == 0
    }

    pub(crate) fn clear(&mut self) -> usize {
        self.columns = C::with_capacity(self.rows_max);
        std::mem::take(&mut self.rows)
    }

    pub(crate) fn finish(&mut self) -> Result<RecordBatch, StorageError> {
        let columns = std::mem::replace(&mut self.columns, C::with_capacity(self.rows_max));
        self.tables.odd = !self.tables.odd;
        columns
            .finish(std::mem::take(&mut self.rows), &self.tables)
            .and_then(|arrays| RecordBatch::try_new((C::TABLE.schema)(), arrays))
            .map_err(StorageError::arrow("build a batch of rows"))
    }
}
