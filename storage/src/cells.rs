//! One growing column for each shape of value. A column takes a slice of records and a function that picks its value,
//! so that filling it is one tight loop without a call per row.

use arrow::array::{
    Array, ArrayRef, BooleanArray, DictionaryArray, FixedSizeBinaryArray, Int32Array, PrimitiveArray, StringArray,
    TimestampMicrosecondArray, UInt32Array,
};
use arrow::buffer::{BooleanBuffer, Buffer, NullBuffer, ScalarBuffer};
use arrow::datatypes::{ArrowPrimitiveType, DataType, Int32Type, TimeUnit, UInt16Type};
use arrow::error::ArrowError;
use flowtable::{ConnState, EndReason, TcpState};
use hints::App;
use std::marker::PhantomData;
use std::sync::{Arc, LazyLock};
use talkers::Metric;
use wire::{TapId, Tunnel};

/// Name that stands for a tap the store was not told about.
pub(crate) const UNKNOWN_TAP: &str = "unknown";

/// Values of the dictionary columns. Every batch shares them, so that the log writes each table once a file.
#[derive(Clone, Debug)]
pub(crate) struct Tables {
    tap: ArrayRef,
    /// Alternates from batch to batch (see `Texts::finish`).
    pub(crate) odd: bool,
}

impl Tables {
    pub(crate) fn new(tap_names: &[String]) -> Tables {
        let names = tap_names.iter().map(String::as_str).chain([UNKNOWN_TAP]);
        Tables { tap: Arc::new(StringArray::from_iter_values(names)), odd: false }
    }
}

/// A growing column.
pub(crate) trait Cells: Clone + Default {
    /// What a record gives for it.
    type Value;
    const NULLABLE: bool;
    /// Name of its Arrow extension type, if it has one.
    const EXTENSION: Option<&'static str> = None;
    /// Looked up by value: segments have a bloom filter of it.
    const BLOOM: bool = false;
    /// Whether the smallest and largest value of a page say anything. They cost a comparison each per row.
    const STATISTICS: bool = true;
    fn data_type() -> DataType;
    fn with_capacity(rows: usize) -> Self;
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> Self::Value);
    fn finish(self, tables: &Tables) -> Result<ArrayRef, ArrowError>;
}

/// Numbers, none of them missing.
pub(crate) struct Num<T: ArrowPrimitiveType, const NULLABLE: bool = false, const BLOOM: bool = false>(Vec<T::Native>);

/// Numbers of a column that older segments do not have, where they read as null.
pub(crate) type Newer<T> = Num<T, true>;

/// Ports.
pub(crate) type Port = Num<UInt16Type, false, true>;

// Derived, these would ask the same of `T`, which is only a name.
impl<T: ArrowPrimitiveType, const NULLABLE: bool, const BLOOM: bool> Clone for Num<T, NULLABLE, BLOOM> {
    fn clone(&self) -> Self {
        Num(self.0.clone())
    }
}

impl<T: ArrowPrimitiveType, const NULLABLE: bool, const BLOOM: bool> Default for Num<T, NULLABLE, BLOOM> {
    fn default() -> Self {
        Num(Vec::new())
    }
}

impl<T: ArrowPrimitiveType, const NULLABLE: bool, const BLOOM: bool> Cells for Num<T, NULLABLE, BLOOM> {
    type Value = T::Native;
    const NULLABLE: bool = NULLABLE;
    const BLOOM: bool = BLOOM;
    fn data_type() -> DataType {
        T::DATA_TYPE
    }
    fn with_capacity(rows: usize) -> Self {
        Num(Vec::with_capacity(rows))
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> T::Native) {
        self.0.extend(rows.iter().map(value));
    }
    fn finish(self, _: &Tables) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(PrimitiveArray::<T>::new(self.0.into(), None)))
    }
}

/// Yes or no.
#[derive(Clone, Default)]
pub(crate) struct Flag(Vec<bool>);

impl Cells for Flag {
    type Value = bool;
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::Boolean
    }
    fn with_capacity(rows: usize) -> Self {
        Flag(Vec::with_capacity(rows))
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> bool) {
        self.0.extend(rows.iter().map(value));
    }
    fn finish(self, _: &Tables) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(BooleanArray::new(BooleanBuffer::collect_bool(self.0.len(), |i| self.0[i]), None)))
    }
}

/// Microseconds since 1970, UTC.
#[derive(Clone, Default)]
pub(crate) struct Time(Vec<i64>);

impl Cells for Time {
    type Value = i64;
    const NULLABLE: bool = false;
    fn data_type() -> DataType {
        DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
    }
    fn with_capacity(rows: usize) -> Self {
        Time(Vec::with_capacity(rows))
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> i64) {
        self.0.extend(rows.iter().map(value));
    }
    fn finish(self, _: &Tables) -> Result<ArrayRef, ArrowError> {
        Ok(Arc::new(TimestampMicrosecondArray::new(self.0.into(), None).with_timezone("UTC")))
    }
}

/// One byte a row until the batch is finished: cheaper to fill and to copy than bits.
fn null_buffer(valid: &[bool]) -> NullBuffer {
    NullBuffer::new(BooleanBuffer::collect_bool(valid.len(), |i| valid[i]))
}

/// Adds a value and whether there is one for each row, in one walk over the rows.
fn extend_options<R, T: Copy + Default>(
    values: &mut Vec<T>,
    valid: &mut Vec<bool>,
    rows: &[R],
    value: impl Fn(&R) -> Option<T>,
) {
    let first = values.len();
    values.resize(first + rows.len(), T::default());
    valid.resize(first + rows.len(), false);
    for ((row, value_at), valid_at) in rows.iter().zip(&mut values[first..]).zip(&mut valid[first..]) {
        // Without a branch: which rows have one is anyone's guess.
        let value = value(row);
        *valid_at = value.is_some();
        *value_at = value.unwrap_or_default();
    }
}

/// Values that may be missing. Costs nothing but a look while all of them are.
#[derive(Clone, Default)]
struct Sparse<T> {
    values: Vec<T>,
    /// As long as `values`.
    valid: Vec<bool>,
    /// Rows there are; those behind `values` have none.
    rows: usize,
}

impl<T: Copy + Default> Sparse<T> {
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> Option<T>) {
        if rows.iter().fold(false, |any, row| any | value(row).is_some()) {
            self.values.resize(self.rows, T::default());
            self.valid.resize(self.rows, false);
            extend_options(&mut self.values, &mut self.valid, rows, value);
        }
        self.rows += rows.len();
    }

    /// The values, and which rows have one; `None` if no row has.
    fn finish(mut self) -> Option<(Vec<T>, NullBuffer)> {
        if self.values.is_empty() {
            return None;
        }
        self.values.resize(self.rows, T::default());
        self.valid.resize(self.rows, false);
        Some((self.values, null_buffer(&self.valid)))
    }
}

/// Numbers that may be missing.
pub(crate) struct Opt<T: ArrowPrimitiveType>(Sparse<T::Native>);

impl<T: ArrowPrimitiveType> Clone for Opt<T> {
    fn clone(&self) -> Self {
        Opt(self.0.clone())
    }
}

impl<T: ArrowPrimitiveType> Default for Opt<T> {
    fn default() -> Self {
        Opt(Sparse::default())
    }
}

impl<T: ArrowPrimitiveType> Cells for Opt<T> {
    type Value = Option<T::Native>;
    const NULLABLE: bool = true;
    fn data_type() -> DataType {
        T::DATA_TYPE
    }
    fn with_capacity(_: usize) -> Self {
        Self::default()
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> Self::Value) {
        self.0.extend(rows, value);
    }
    fn finish(self, _: &Tables) -> Result<ArrayRef, ArrowError> {
        let rows = self.0.rows;
        let (values, nulls) = match self.0.finish() {
            Some((values, nulls)) => (values.into(), nulls),
            None => (ScalarBuffer::new(zeros(rows), 0, rows), NullBuffer::new_null(rows)),
        };
        Ok(Arc::new(PrimitiveArray::<T>::try_new(values, Some(nulls))?))
    }
}

/// Counts that are almost always 0. Costs nothing but a look while all of them are.
#[derive(Clone, Default)]
pub(crate) struct Rare<const NULLABLE: bool = false> {
    values: Vec<u32>,
    /// Rows there are; those behind `values` have 0.
    rows: usize,
}

/// The same, of a column that older segments do not have, where they read as null.
pub(crate) type NewerRare = Rare<true>;

impl<const NULLABLE: bool> Cells for Rare<NULLABLE> {
    type Value = u32;
    const NULLABLE: bool = NULLABLE;
    fn data_type() -> DataType {
        DataType::UInt32
    }
    fn with_capacity(_: usize) -> Self {
        Self::default()
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> u32) {
        if rows.iter().fold(0, |any, row| any | value(row)) != 0 {
            self.values.resize(self.rows, 0);
            self.values.extend(rows.iter().map(value));
        }
        self.rows += rows.len();
    }
    fn finish(mut self, _: &Tables) -> Result<ArrayRef, ArrowError> {
        if self.values.is_empty() {
            let values = ScalarBuffer::new(zeros(self.rows), 0, self.rows);
            return Ok(Arc::new(UInt32Array::new(values, None)));
        }
        self.values.resize(self.rows, 0);
        Ok(Arc::new(UInt32Array::new(self.values.into(), None)))
    }
}

/// Bytes of the zeros all columns of nothing share: enough for every batch there can be.
const ZEROS_BYTES: usize = ROWS_MAX * 8;
/// Most rows of a batch (`StoreOptions::batch_rows`).
const ROWS_MAX: usize = 64 << 10;

/// At least `rows` values of 0, of up to 8 bytes each.
fn zeros(rows: usize) -> Buffer {
    static ZEROS: LazyLock<Buffer> = LazyLock::new(|| Buffer::from_vec(vec![0u64; ROWS_MAX]));
    match rows * 8 <= ZEROS_BYTES {
        true => ZEROS.clone(),
        false => Buffer::from_vec(vec![0u64; rows]),
    }
}

/// Whether a column is one of nothing but 0 that this module made. Columns read from a log are not known as such.
pub(crate) fn is_all_zero(column: &dyn Array) -> bool {
    column
        .as_any()
        .downcast_ref::<UInt32Array>()
        .is_some_and(|column| column.null_count() == 0 && column.values().inner().as_ptr() == zeros(0).as_ptr())
}

/// Addresses: 16 bytes, IPv4 mapped.
#[derive(Clone, Default)]
pub(crate) struct Ip(Vec<[u8; 16]>);

impl Cells for Ip {
    type Value = [u8; 16];
    const NULLABLE: bool = false;
    const EXTENSION: Option<&'static str> = Some("taphouse.ip");
    const BLOOM: bool = true;
    fn data_type() -> DataType {
        DataType::FixedSizeBinary(16)
    }
    fn with_capacity(rows: usize) -> Self {
        Ip(Vec::with_capacity(rows))
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> [u8; 16]) {
        self.0.extend(rows.iter().map(value));
    }
    fn finish(self, _: &Tables) -> Result<ArrayRef, ArrowError> {
        let bytes = Buffer::from_vec(self.0.into_flattened());
        Ok(Arc::new(FixedSizeBinaryArray::try_new(16, bytes, None)?))
    }
}

/// Addresses that may be missing; otherwise as [`Ip`].
#[derive(Clone, Default)]
pub(crate) struct OptIp(Sparse<[u8; 16]>);

impl Cells for OptIp {
    type Value = Option<[u8; 16]>;
    const NULLABLE: bool = true;
    const EXTENSION: Option<&'static str> = Ip::EXTENSION;
    const BLOOM: bool = true;
    fn data_type() -> DataType {
        Ip::data_type()
    }
    fn with_capacity(_: usize) -> Self {
        Self::default()
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> Self::Value) {
        self.0.extend(rows, value);
    }
    fn finish(self, _: &Tables) -> Result<ArrayRef, ArrowError> {
        let rows = self.0.rows;
        Ok(Arc::new(match self.0.finish() {
            Some((values, nulls)) => {
                FixedSizeBinaryArray::try_new(16, Buffer::from_vec(values.into_flattened()), Some(nulls))?
            }
            None => FixedSizeBinaryArray::new_null(16, rows),
        }))
    }
}

/// MAC addresses, missing where the link has none.
#[derive(Clone, Default)]
pub(crate) struct MacCells {
    values: Vec<[u8; 6]>,
    /// As long as `values`.
    valid: Vec<bool>,
}

impl Cells for MacCells {
    type Value = Option<[u8; 6]>;
    const NULLABLE: bool = true;
    const EXTENSION: Option<&'static str> = Some("taphouse.mac");
    const STATISTICS: bool = false;
    fn data_type() -> DataType {
        DataType::FixedSizeBinary(6)
    }
    fn with_capacity(rows: usize) -> Self {
        MacCells { values: Vec::with_capacity(rows), valid: Vec::with_capacity(rows) }
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> Self::Value) {
        extend_options(&mut self.values, &mut self.valid, rows, value);
    }
    fn finish(self, _: &Tables) -> Result<ArrayRef, ArrowError> {
        let bytes = Buffer::from_vec(self.values.into_flattened());
        Ok(Arc::new(FixedSizeBinaryArray::try_new(6, bytes, Some(null_buffer(&self.valid)))?))
    }
}

/// Text from a fixed table, stored as keys into it; 4 bytes a row in memory.
pub(crate) struct Words<W: Word> {
    /// Negative for null; clamped to the table when the batch is finished.
    keys: Vec<i32>,
    word: PhantomData<fn() -> W>,
}

impl<W: Word> Clone for Words<W> {
    fn clone(&self) -> Self {
        Words { keys: self.keys.clone(), word: PhantomData }
    }
}

impl<W: Word> Default for Words<W> {
    fn default() -> Self {
        Words { keys: Vec::new(), word: PhantomData }
    }
}

impl<W: Word> Cells for Words<W> {
    type Value = W;
    const NULLABLE: bool = W::NULLABLE;
    fn data_type() -> DataType {
        DataType::Dictionary(Box::new(DataType::Int32), Box::new(DataType::Utf8))
    }
    fn with_capacity(rows: usize) -> Self {
        Words { keys: Vec::with_capacity(rows), ..Self::default() }
    }
    fn extend<R>(&mut self, rows: &[R], value: impl Fn(&R) -> W) {
        self.keys.extend(rows.iter().map(|row| value(row).key()));
    }
    fn finish(self, tables: &Tables) -> Result<ArrayRef, ArrowError> {
        let values = W::table(tables);
        let last = values.len() as i32 - 1;
        let nulls =
            W::NULLABLE.then(|| NullBuffer::new(BooleanBuffer::collect_bool(self.keys.len(), |i| self.keys[i] >= 0)));
        // A tap beyond the table is the table's last word, "unknown".
        let keys: Vec<i32> = self.keys.iter().map(|&key| key.clamp(0, last)).collect();
        let keys = Int32Array::try_new(keys.into(), nulls)?;
        Ok(Arc::new(DictionaryArray::<Int32Type>::try_new(keys, values)?))
    }
}

/// A value that has a name in a fixed table.
pub(crate) trait Word {
    const NULLABLE: bool;
    /// Position in the table; negative for null.
    fn key(self) -> i32;
    fn table(tables: &Tables) -> ArrayRef;
}

impl Word for TapId {
    const NULLABLE: bool = false;
    fn key(self) -> i32 {
        i32::from(self.0)
    }
    fn table(tables: &Tables) -> ArrayRef {
        tables.tap.clone()
    }
}

impl Word for Tunnel {
    const NULLABLE: bool = true;
    fn key(self) -> i32 {
        self as i32 - 1
    }
    fn table(_: &Tables) -> ArrayRef {
        static TABLE: LazyLock<ArrayRef> =
            LazyLock::new(|| Arc::new(StringArray::from_iter_values(Tunnel::ALL.into_iter().filter_map(Tunnel::name))));
        TABLE.clone()
    }
}

impl Word for Option<ConnState> {
    const NULLABLE: bool = true;
    fn key(self) -> i32 {
        self.map_or(-1, |state| state as i32)
    }
    fn table(_: &Tables) -> ArrayRef {
        static TABLE: LazyLock<ArrayRef> =
            LazyLock::new(|| Arc::new(StringArray::from_iter_values(ConnState::ALL.map(ConnState::name))));
        TABLE.clone()
    }
}

impl Word for Option<TcpState> {
    const NULLABLE: bool = true;
    fn key(self) -> i32 {
        self.map_or(-1, |state| state as i32)
    }
    fn table(_: &Tables) -> ArrayRef {
        static TABLE: LazyLock<ArrayRef> =
            LazyLock::new(|| Arc::new(StringArray::from_iter_values(TcpState::ALL.map(TcpState::name))));
        TABLE.clone()
    }
}

impl Word for App {
    const NULLABLE: bool = true;
    fn key(self) -> i32 {
        self as i32 - 1
    }
    fn table(_: &Tables) -> ArrayRef {
        static TABLE: LazyLock<ArrayRef> =
            LazyLock::new(|| Arc::new(StringArray::from_iter_values(App::ALL.into_iter().filter_map(App::name))));
        TABLE.clone()
    }
}

impl Word for Metric {
    const NULLABLE: bool = false;
    fn key(self) -> i32 {
        self as i32
    }
    fn table(_: &Tables) -> ArrayRef {
        static TABLE: LazyLock<ArrayRef> =
            LazyLock::new(|| Arc::new(StringArray::from_iter_values(Metric::ALL.map(Metric::name))));
        TABLE.clone()
    }
}

impl Word for EndReason {
    const NULLABLE: bool = false;
    fn key(self) -> i32 {
        self as i32 - 1
    }
    fn table(_: &Tables) -> ArrayRef {
        static TABLE: LazyLock<ArrayRef> =
            LazyLock::new(|| Arc::new(StringArray::from_iter_values(EndReason::ALL.map(EndReason::name))));
        TABLE.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arrow::array::AsArray;
    use arrow::datatypes::UInt16Type;

    fn text<W: Word>(word: W) -> Option<String> {
        let mut cells = Words::<W>::default();
        cells.keys.push(word.key());
        let array = cells.finish(&Tables::new(&["a".into(), "b".into()])).unwrap();
        let array = array.as_dictionary::<Int32Type>();
        array.key(0).map(|key| array.values().as_string::<i32>().value(key).to_owned())
    }

    #[test]
    fn every_word_finds_its_own_name_in_its_table() {
        for reason in EndReason::ALL {
            assert_eq!(text(reason).as_deref(), Some(reason.name()));
        }
        for metric in Metric::ALL {
            assert_eq!(text(metric).as_deref(), Some(metric.name()));
        }
        for state in ConnState::ALL {
            assert_eq!(text(Some(state)).as_deref(), Some(state.name()));
        }
        assert_eq!(text(None::<ConnState>), None);
        for state in TcpState::ALL {
            assert_eq!(text(Some(state)).as_deref(), Some(state.name()));
        }
        assert_eq!(text(None::<TcpState>), None);
        for app in App::ALL {
            assert_eq!(text(app).as_deref(), app.name());
        }
        for tunnel in Tunnel::ALL {
            assert_eq!(text(tunnel).as_deref(), tunnel.name());
        }
        assert_eq!(text(TapId(1)).as_deref(), Some("b"));
        assert_eq!(text(TapId(2)).as_deref(), Some(UNKNOWN_TAP));
        assert_eq!(text(TapId(u16::MAX)).as_deref(), Some(UNKNOWN_TAP));
    }

    /// Runs of nothing before, between and after runs with something.
    #[test]
    fn rare_values_stay_in_their_rows() {
        for filled in [vec![], vec![0], vec![2], vec![0, 3], vec![1, 2, 3]] {
            let rows: Vec<u32> =
                (0..40).map(|n| if filled.contains(&(n / 10)) && n % 3 == 0 { n + 1 } else { 0 }).collect();
            let (mut rare, mut option) = (Rare::<false>::default(), Opt::<UInt16Type>::default());
            let mut address = OptIp::default();
            for run in rows.chunks(10) {
                rare.extend(run, |n| *n);
                option.extend(run, |n| (*n != 0).then_some(*n as u16));
                address.extend(run, |n| (*n != 0).then_some([*n as u8; 16]));
            }
            let tables = Tables::new(&[]);
            let address = address.finish(&tables).unwrap();
            let read = address.as_fixed_size_binary().iter().map(|bytes| bytes.map_or(0, |bytes| u32::from(bytes[15])));
            assert_eq!(read.collect::<Vec<_>>(), rows, "{filled:?}");
            let (rare, option) = (rare.finish(&tables).unwrap(), option.finish(&tables).unwrap());
            assert_eq!(is_all_zero(&rare), filled.is_empty(), "{filled:?}");
            assert_eq!(rare.as_primitive::<arrow::datatypes::UInt32Type>().values(), rows.as_slice());
            let read: Vec<u32> = option.as_primitive::<UInt16Type>().iter().map(|n| n.map_or(0, u32::from)).collect();
            assert_eq!(read, rows, "{filled:?}");
        }
        assert!(!is_all_zero(&UInt32Array::from(vec![0, 0])));
    }
}
