//! Which segments a filter cannot match, decided before any is opened: by the times they cover, by what else the manifest
//! knows, and last by their bloom filters, of which a block of 32 bytes is read for each value. Parquet's own reader
//! gives up its filters at the first `OR`, and either-side searches are nothing but that.
//!
//! A filter becomes a [`Test`] first: an over-approximation that is true for a segment if a row in it may make the
//! filter true. `NOT` is pushed down to the comparisons, which three-valued logic allows, so that no test needs to know
//! whether a row may make it false.

use crate::table::{SENSOR, T_START, sensor_of};
use arrow::datatypes::{DataType, Schema, TimeUnit};
use datafusion::common::ScalarValue;
use datafusion::logical_expr::expr::{Between, BinaryExpr, InList};
use datafusion::logical_expr::{Expr, Operator};
use std::ops::RangeInclusive;
use storage::{BloomHash, Segment, TimeRange};

/// Values of an `IN` list looked up in bloom filters. Beyond these, reading the rows costs about as much.
const VALUES_MAX: usize = 64;

/// What may be true of a row in a segment.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Test {
    /// Not known.
    Maybe,
    Never,
    All(Vec<Test>),
    Any(Vec<Test>),
    /// A column of numbers has a value in a range, which is not empty.
    Number(Number, RangeInclusive<i64>),
    /// The tap compares so with a text.
    Tap(Operator, String),
    /// The sensor an object of an archive comes from compares so with a text.
    Sensor(Operator, String),
    /// A column has a value.
    Has(String, Value),
}

/// A value as PLAIN has it, texts without their length: what [`storage::BloomHash`] is made of.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Value(Vec<u8>);

impl Value {
    pub(crate) fn plain(&self) -> &[u8] {
        &self.0
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Number {
    /// What rows are sorted by.
    Time,
    Start,
    Proto,
    Other(String),
}

/// A filter as segments are asked it.
#[derive(Clone, Debug)]
pub(crate) struct Pruner {
    /// All of it.
    test: Test,
    /// The times of rows it matches, and of their starts; those that cannot match are outside of both.
    time: RangeInclusive<i64>,
    start: RangeInclusive<i64>,
}

impl Pruner {
    /// Of a conjunction of filters over a table, whose first column is the time.
    pub(crate) fn new(filters: &[Expr], schema: &Schema) -> Pruner {
        let test = all(filters.iter().map(|filter| compile(filter, schema, false)));
        let (mut time, mut start) = (i64::MIN..=i64::MAX, i64::MIN..=i64::MAX);
        let narrow = |range: &mut RangeInclusive<i64>, by: &RangeInclusive<i64>| {
            *range = *range.start().max(by.start())..=*range.end().min(by.end());
        };
        let conjuncts = match &test {
            Test::All(tests) => &tests[..],
            test => std::slice::from_ref(test),
        };
        for conjunct in conjuncts {
            match conjunct {
                Test::Number(Number::Time, range) => narrow(&mut time, range),
                Test::Number(Number::Start, range) => narrow(&mut start, range),
                _ => {}
            }
        }
        Pruner { test, time, start }
    }

    /// Numbers of the segments whose times may match. The one loop over all of them: comparisons of integers that lie
    /// side by side.
    pub(crate) fn by_time(&self, times: &[TimeRange]) -> Vec<usize> {
        let may = |t: &TimeRange| {
            t.t_end_max >= *self.time.start()
                && t.t_end_min <= *self.time.end()
                && t.t_end_max >= *self.start.start()
                && t.t_start_min <= *self.start.end()
        };
        times.iter().enumerate().filter(|(_, t)| may(t)).map(|(at, _)| at).collect()
    }

    /// Whether the segment may match by what the manifest knows.
    pub(crate) fn by_zones(&self, segment: &Segment) -> bool {
        may(&self.test, segment, &mut |_, _| true)
    }

    /// What it matches, and the times of the rows it does.
    pub(crate) fn test(&self) -> (&Test, &RangeInclusive<i64>) {
        (&self.test, &self.time)
    }

    /// Whether bloom filters can rule anything out.
    pub(crate) fn asks_blooms(&self) -> bool {
        asks_blooms(&self.test)
    }

    /// Whether a row group of the segment may match. `probe` is asked whether a column of it may have a value.
    pub(crate) fn by_blooms(&self, segment: &Segment, mut probe: impl FnMut(&str, BloomHash) -> bool) -> bool {
        may(&self.test, segment, &mut probe)
    }
}

fn may(test: &Test, segment: &Segment, probe: &mut dyn FnMut(&str, BloomHash) -> bool) -> bool {
    match test {
        Test::Maybe => true,
        Test::Never => false,
        Test::All(tests) => tests.iter().all(|test| may(test, segment, probe)),
        Test::Any(tests) => tests.iter().any(|test| may(test, segment, probe)),
        Test::Number(column, range) => {
            let overlaps = |min: i64, max: i64| min <= *range.end() && max >= *range.start();
            match column {
                Number::Time => overlaps(segment.t_end_min, segment.t_end_max),
                // A flow starts before it ends, so the latest end bounds the latest start.
                Number::Start => overlaps(segment.t_start_min, segment.t_end_max),
                Number::Proto => {
                    segment.protos.is_empty() || segment.protos.iter().any(|proto| range.contains(&i64::from(*proto)))
                }
                Number::Other(name) => match segment.zone(name) {
                    Some(zone) => !zone.is_empty() && overlaps(*zone.start(), *zone.end()),
                    None => true,
                },
            }
        }
        Test::Tap(op, text) => segment.taps.is_empty() || segment.taps.iter().any(|tap| holds(tap, *op, text)),
        Test::Sensor(op, text) => holds(sensor_of(segment), *op, text),
        Test::Has(column, value) => probe(column, BloomHash::of(value.plain())),
    }
}

fn holds(left: &str, op: Operator, right: &str) -> bool {
    match op {
        Operator::Eq => left == right,
        Operator::NotEq => left != right,
        Operator::Lt => left < right,
        Operator::LtEq => left <= right,
        Operator::Gt => left > right,
        Operator::GtEq => left >= right,
        _ => true,
    }
}

fn asks_blooms(test: &Test) -> bool {
    match test {
        Test::All(tests) | Test::Any(tests) => tests.iter().any(asks_blooms),
        Test::Has(..) => true,
        _ => false,
    }
}

/// What rules out little stands behind what rules out much and costs as much: ports behind addresses and names.
fn rarity(test: &Test) -> u8 {
    match test {
        Test::All(tests) | Test::Any(tests) => tests.iter().map(rarity).max().unwrap_or(0),
        Test::Has(_, value) if value.plain().len() == size_of::<u32>() => 2,
        Test::Has(..) => 1,
        _ => 0,
    }
}

/// All of the tests, the cheap ones first.
fn all(tests: impl Iterator<Item = Test>) -> Test {
    let mut out = Vec::new();
    for test in tests {
        match test {
            Test::Maybe => {}
            Test::Never => return Test::Never,
            Test::All(tests) => out.extend(tests),
            test => out.push(test),
        }
    }
    out.sort_by_key(rarity);
    match out.len() {
        0 => Test::Maybe,
        1 => out.remove(0),
        _ => Test::All(out),
    }
}

/// Any of the tests, the cheap ones first.
fn any(tests: impl Iterator<Item = Test>) -> Test {
    let mut out = Vec::new();
    for test in tests {
        match test {
            Test::Never => {}
            Test::Maybe => return Test::Maybe,
            Test::Any(tests) => out.extend(tests),
            test => out.push(test),
        }
    }
    out.sort_by_key(rarity);
    match out.len() {
        0 => Test::Never,
        1 => out.remove(0),
        _ => Test::Any(out),
    }
}

/// What may be true where `expr` is, or with `negated` where `NOT expr` is.
fn compile(expr: &Expr, schema: &Schema, negated: bool) -> Test {
    match expr {
        Expr::Alias(alias) => compile(&alias.expr, schema, negated),
        Expr::Not(inner) => compile(inner, schema, !negated),
        Expr::Literal(ScalarValue::Boolean(value), _) => match value {
            Some(value) if *value != negated => Test::Maybe,
            _ => Test::Never,
        },
        Expr::BinaryExpr(BinaryExpr { left, op: op @ (Operator::And | Operator::Or), right }) => {
            let both = [left, right].into_iter().map(|side| compile(side, schema, negated));
            if (*op == Operator::And) != negated { all(both) } else { any(both) }
        }
        Expr::BinaryExpr(BinaryExpr { left, op, right }) => {
            let (op, is_null_told) = match op {
                // Beside a value these are `=` and `<>`, but for null.
                Operator::IsNotDistinctFrom => (Operator::Eq, true),
                Operator::IsDistinctFrom => (Operator::NotEq, true),
                op => (*op, false),
            };
            let op = if negated { op.negate() } else { Some(op) };
            let has_null =
                || [left, right].iter().any(|side| matches!(side.as_ref(), Expr::Literal(v, _) if v.is_null()));
            match op {
                // True of null as well.
                Some(Operator::NotEq) if is_null_told => Test::Maybe,
                Some(_) if is_null_told && has_null() => Test::Maybe,
                Some(op) => comparison(left, op, right, schema),
                None => Test::Maybe,
            }
        }
        Expr::InList(InList { expr, list, negated: not_in }) => {
            let op = if *not_in != negated { Operator::NotEq } else { Operator::Eq };
            if op == Operator::Eq && list.len() > VALUES_MAX {
                return any(list.iter().map(|value| without_blooms(comparison(expr, op, value, schema))));
            }
            let each = list.iter().map(|value| comparison(expr, op, value, schema));
            if op == Operator::Eq { any(each) } else { all(each) }
        }
        Expr::Between(Between { expr, negated: not_between, low, high }) => {
            if *not_between != negated {
                let outside = [(Operator::Lt, low), (Operator::Gt, high)];
                return any(outside.into_iter().map(|(op, bound)| comparison(expr, op, bound, schema)));
            }
            let inside = [(Operator::GtEq, low), (Operator::LtEq, high)];
            all(inside.into_iter().map(|(op, bound)| comparison(expr, op, bound, schema)))
        }
        _ => Test::Maybe,
    }
}

fn without_blooms(test: Test) -> Test {
    match test {
        Test::All(tests) => all(tests.into_iter().map(without_blooms)),
        Test::Any(tests) => any(tests.into_iter().map(without_blooms)),
        Test::Has(..) => Test::Maybe,
        test => test,
    }
}

fn comparison(left: &Expr, op: Operator, right: &Expr, schema: &Schema) -> Test {
    let (column, op, value) = match (left, right) {
        (column, Expr::Literal(value, _)) => (column, op, value),
        (Expr::Literal(value, _), column) => match op.swap() {
            Some(op) => (column, op, value),
            None => return Test::Maybe,
        },
        _ => return Test::Maybe,
    };
    use Operator::{Eq, Gt, GtEq, Lt, LtEq, NotEq};
    if !matches!(op, Eq | NotEq | Lt | LtEq | Gt | GtEq) {
        return Test::Maybe;
    }
    // No comparison with null is true.
    if value.is_null() {
        return Test::Never;
    }
    let Some((name, data_type)) = column_of(column, schema) else { return Test::Maybe };
    match &data_type {
        DataType::FixedSizeBinary(_) => match plain_bytes(value) {
            Some(bytes) if op == Eq => Test::Has(name, Value(bytes.to_vec())),
            _ => Test::Maybe,
        },
        DataType::Dictionary(_, _) => match text_of(value) {
            Some(text) if name == "tap" => Test::Tap(op, text.to_owned()),
            Some(text) if name == SENSOR => Test::Sensor(op, text.to_owned()),
            Some(text) if op == Eq => Test::Has(name, Value(text.as_bytes().to_vec())),
            _ => Test::Maybe,
        },
        _ => number(name, &data_type, op, value, schema),
    }
}

/// The column `expr` is, and its type; also where it is cast to something that compares the same way.
fn column_of(expr: &Expr, schema: &Schema) -> Option<(String, DataType)> {
    let (inner, to) = match expr {
        Expr::Alias(alias) => return column_of(&alias.expr, schema),
        Expr::Cast(cast) => (cast.expr.as_ref(), Some(cast.field.data_type())),
        Expr::TryCast(cast) => (cast.expr.as_ref(), Some(cast.field.data_type())),
        other => (other, None),
    };
    let (name, data_type) = match inner {
        Expr::Column(column) => (column.name.clone(), schema.field_with_name(&column.name).ok()?.data_type().clone()),
        Expr::ScalarFunction(f) if f.func.name() == T_START => {
            (T_START.to_owned(), schema.field(0).data_type().clone())
        }
        _ => return None,
    };
    let same = match to {
        None => true,
        Some(to) if data_type.is_integer() => to.is_integer() || *to == DataType::Float64,
        // A coarser unit would round.
        Some(DataType::Timestamp(TimeUnit::Microsecond | TimeUnit::Nanosecond, _)) => {
            matches!(data_type, DataType::Timestamp(_, _))
        }
        Some(to) => matches!(&data_type, DataType::Dictionary(_, value) if value.is_string() && to.is_string()),
    };
    same.then_some((name, data_type))
}

fn number(name: String, data_type: &DataType, op: Operator, value: &ScalarValue, schema: &Schema) -> Test {
    // Between two whole numbers a column of floating-point ones has others.
    if matches!(data_type, DataType::Float64) {
        return Test::Maybe;
    }
    let Some((below, above)) = neighbours(data_type, value) else { return Test::Maybe };
    let is_exact = below == above;
    // Where `column < v` is, the column is at most the last number below `v`, and so on.
    let up_to = |last: Option<i64>| last.map(|last| i64::MIN..=last);
    let from = |first: Option<i64>| first.map(|first| first..=i64::MAX);
    let before = if is_exact { below.checked_sub(1) } else { Some(below) };
    let after = if is_exact { above.checked_add(1) } else { Some(above) };
    let ranges = match op {
        Operator::Eq if is_exact => vec![Some(below..=below)],
        Operator::Eq => vec![],
        Operator::NotEq if is_exact => vec![up_to(before), from(after)],
        Operator::Lt => vec![up_to(before)],
        Operator::LtEq => vec![up_to(Some(below))],
        Operator::Gt => vec![from(after)],
        Operator::GtEq => vec![from(Some(above))],
        _ => return Test::Maybe,
    };
    let column = match name.as_str() {
        T_START => Number::Start,
        "proto" => Number::Proto,
        name if name == schema.field(0).name() => Number::Time,
        name => Number::Other(name.to_owned()),
    };
    let in_range = any(ranges.into_iter().flatten().map(|range| Test::Number(column.clone(), range)));
    // Of numbers, those of this width may have filters: ports.
    match u16::try_from(below) {
        Ok(value) if op == Operator::Eq && *data_type == DataType::UInt16 => {
            let plain = u32::from(value).to_le_bytes().to_vec();
            all([in_range, Test::Has(name, Value(plain))].into_iter())
        }
        _ => in_range,
    }
}

/// The last number of the column's kind that is not above `value`, and the first that is not below it.
fn neighbours(data_type: &DataType, value: &ScalarValue) -> Option<(i64, i64)> {
    let exact = |number: i64| Some((number, number));
    if matches!(data_type, DataType::Timestamp(_, _)) {
        return match value {
            ScalarValue::TimestampSecond(Some(s), _) => exact(s.checked_mul(1_000_000)?),
            ScalarValue::TimestampMillisecond(Some(ms), _) => exact(ms.checked_mul(1_000)?),
            ScalarValue::TimestampMicrosecond(Some(us), _) => exact(*us),
            ScalarValue::TimestampNanosecond(Some(ns), _) => {
                let below = ns.div_euclid(1_000);
                Some((below, below + i64::from(ns.rem_euclid(1_000) != 0)))
            }
            _ => None,
        };
    }
    match value {
        ScalarValue::Int8(Some(v)) => exact(i64::from(*v)),
        ScalarValue::Int16(Some(v)) => exact(i64::from(*v)),
        ScalarValue::Int32(Some(v)) => exact(i64::from(*v)),
        ScalarValue::Int64(Some(v)) => exact(*v),
        ScalarValue::UInt8(Some(v)) => exact(i64::from(*v)),
        ScalarValue::UInt16(Some(v)) => exact(i64::from(*v)),
        ScalarValue::UInt32(Some(v)) => exact(i64::from(*v)),
        ScalarValue::UInt64(Some(v)) => exact(i64::try_from(*v).ok()?),
        // Up to 2^53 numbers and their floating-point forms are ordered alike.
        ScalarValue::Float64(Some(v)) if v.abs() < 9e15 => Some((v.floor() as i64, v.ceil() as i64)),
        _ => None,
    }
}

fn plain_bytes(value: &ScalarValue) -> Option<&[u8]> {
    match value {
        ScalarValue::FixedSizeBinary(_, Some(bytes)) => Some(bytes),
        _ => None,
    }
}

fn text_of(value: &ScalarValue) -> Option<&str> {
    match value {
        ScalarValue::Dictionary(_, inner) => text_of(inner),
        other => other.try_as_str().flatten(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use datafusion::logical_expr::{cast, col, lit, not};

    fn test(expr: Expr) -> Test {
        compile(&expr, &storage::flow_schema(), false)
    }

    fn number(column: &str, range: RangeInclusive<i64>) -> Test {
        Test::Number(Number::Other(column.to_owned()), range)
    }

    fn address(last: u8) -> Expr {
        let mut bytes = vec![0; 16];
        bytes[15] = last;
        lit(ScalarValue::FixedSizeBinary(16, Some(bytes)))
    }

    #[test]
    fn not_goes_down_to_the_comparisons() {
        let (large, web) = (col("bytes_o").gt(lit(5i64)), col("vlan").eq(lit(7u16)));
        assert_eq!(test(not(large.clone())), number("bytes_o", i64::MIN..=5));
        let not_web = Test::Any(vec![number("vlan", i64::MIN..=6), number("vlan", 8..=i64::MAX)]);
        let either = test(not(large.clone().and(web.clone())));
        assert_eq!(either, any([number("bytes_o", i64::MIN..=5), not_web.clone()].into_iter()));
        let both = test(not(large.or(web)));
        assert_eq!(both, Test::All(vec![number("bytes_o", i64::MIN..=5), not_web]));
        assert_eq!(test(not(col("src_ip").not_eq(address(1)))), test(col("src_ip").eq(address(1))));
        assert_eq!(test(not(col("name").is_null())), Test::Maybe);
    }

    #[test]
    fn what_cannot_be_told_may_be() {
        let null = || lit(ScalarValue::UInt16(None));
        assert_eq!(test(col("vlan").eq(null())), Test::Never);
        assert_eq!(test(not(col("vlan").eq(null()))), Test::Never);
        let same = |right| Expr::BinaryExpr(BinaryExpr::new(Box::new(col("vlan")), Operator::IsNotDistinctFrom, right));
        assert_eq!(test(same(Box::new(null()))), Test::Maybe);
        assert_eq!(test(not(same(Box::new(lit(7u16))))), Test::Maybe);
        assert_eq!(test(col("name").eq(lit("a")).or(col("bytes_o").eq(col("bytes_r")))), Test::Maybe);
        let many = |count: u8| col("src_ip").in_list((0..count).map(address).collect(), false);
        assert!(matches!(test(many(64)), Test::Any(hashes) if hashes.len() == 64));
        assert_eq!(test(many(65)), Test::Maybe);
        let seconds = DataType::Timestamp(TimeUnit::Second, Some("UTC".into()));
        let time = |value| lit(ScalarValue::TimestampSecond(Some(value), Some("UTC".into())));
        assert_eq!(test(cast(col("t_end"), seconds).eq(time(1))), Test::Maybe, "seconds round");
    }

    #[test]
    fn finer_units_and_fractions_keep_the_numbers_beside_them() {
        let nanos = |value| lit(ScalarValue::TimestampNanosecond(Some(value), None));
        let finer = || cast(col("t_end"), DataType::Timestamp(TimeUnit::Nanosecond, Some("UTC".into())));
        let time = |range| Test::Number(Number::Time, range);
        assert_eq!(test(finer().gt(nanos(1_001))), time(2..=i64::MAX));
        assert_eq!(test(finer().lt_eq(nanos(-1_001))), time(i64::MIN..=-2));
        assert_eq!(test(finer().eq(nanos(3_000))), time(3..=3));
        assert_eq!(test(finer().eq(nanos(3_001))), Test::Never);
        assert_eq!(test(finer().not_eq(nanos(3_001))), Test::Maybe);
        let float = || cast(col("bytes_o"), DataType::Float64);
        assert_eq!(test(float().gt_eq(lit(2.5))), number("bytes_o", 3..=i64::MAX));
        assert_eq!(test(lit(2.0).gt(float())), number("bytes_o", i64::MIN..=1));
        assert_eq!(test(float().gt(lit(1e18))), Test::Maybe, "beyond 2^53 some are the same");
        assert_eq!(test(float().gt(lit(f64::NAN))), Test::Maybe);
        let estimate = |expr: Expr| compile(&expr, &storage::talkers_schema(), false);
        assert_eq!(estimate(col("estimate").eq(lit(2.5))), Test::Maybe);
        assert_eq!(estimate(col("quantile").lt(lit(0.5))), Test::Maybe);
    }
}
