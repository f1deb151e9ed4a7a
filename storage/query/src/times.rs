//! `date_trunc` and `date_bin` for times that the engine's own have no room for: these compute in ns, of which 2^63 end in
//! the year 2262 (and begin in 1677). A broken clock writes later ones, and one such row must not end a query over all others.
//! What bins by months, or from an origin, is left to the engine.

use arrow::array::{Array, ArrayRef, AsArray, TimestampMicrosecondArray};
use arrow::datatypes::{DataType, FieldRef, TimeUnit, TimestampMicrosecondType};
use chrono::{DateTime, Datelike, NaiveDate, NaiveTime};
use datafusion::common::{Result, ScalarValue};
use datafusion::logical_expr::sort_properties::{ExprProperties, SortProperties};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature,
};
use std::sync::Arc;

const SECOND_US: i64 = 1_000_000;
const DAY_US: i64 = 86_400 * SECOND_US;

/// The function, where it is one of these, with every time in its reach; others as they are.
pub(crate) fn of_all_times(engine: Arc<ScalarUDF>) -> Arc<ScalarUDF> {
    match engine.name() {
        "date_trunc" | "date_bin" => Arc::new(ScalarUDF::new_from_impl(OfAllTimes { engine })),
        _ => engine,
    }
}

/// The engine's function, but for columns with a time it cannot take.
#[derive(Debug, PartialEq, Eq, Hash)]
struct OfAllTimes {
    engine: Arc<ScalarUDF>,
}

impl ScalarUDFImpl for OfAllTimes {
    fn name(&self) -> &str {
        self.engine.name()
    }

    fn aliases(&self) -> &[String] {
        self.engine.aliases()
    }

    fn signature(&self) -> &Signature {
        self.engine.signature()
    }

    fn return_type(&self, types: &[DataType]) -> Result<DataType> {
        self.engine.return_type(types)
    }

    fn return_field_from_args(&self, args: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.engine.return_field_from_args(args)
    }

    fn output_ordering(&self, inputs: &[ExprProperties]) -> Result<SortProperties> {
        self.engine.output_ordering(inputs)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.engine.documentation()
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        match late(&args.args)? {
            Some(times) if let Some(begin) = beginning(self.name(), &args.args) => {
                let all: TimestampMicrosecondArray =
                    times.as_primitive::<TimestampMicrosecondType>().iter().map(|time| begin(time?)).collect();
                let zone = match times.data_type() {
                    DataType::Timestamp(_, zone) => zone.clone(),
                    _ => None,
                };
                let all: ArrayRef = Arc::new(all.with_timezone_opt(zone));
                Ok(match &args.args[1] {
                    ColumnarValue::Array(_) => ColumnarValue::Array(all),
                    ColumnarValue::Scalar(_) => ColumnarValue::Scalar(ScalarValue::try_from_array(&all, 0)?),
                })
            }
            _ => self.engine.invoke_with_args(args),
        }
    }
}

/// The times, if they are µs in UTC and one of them is more than the engine can take.
fn late(args: &[ColumnarValue]) -> Result<Option<ArrayRef>> {
    let Some(times) = args.get(1) else { return Ok(None) };
    let in_utc = match times.data_type() {
        DataType::Timestamp(TimeUnit::Microsecond, zone) => zone.is_none_or(|zone| matches!(&*zone, "UTC" | "+00:00")),
        _ => false,
    };
    if !in_utc {
        return Ok(None);
    }
    let times = times.to_array(1)?;
    let is_late = |time: i64| time.checked_mul(1_000).is_none();
    let any = times.as_primitive::<TimestampMicrosecondType>().iter().flatten().any(is_late);
    Ok(any.then_some(times))
}

/// What gives the beginning of the interval that a time lies in, µs. `None` where this is not known here, and the engine has to
/// say what it cannot do.
fn beginning(function: &str, args: &[ColumnarValue]) -> Option<Box<dyn Fn(i64) -> Option<i64>>> {
    let ColumnarValue::Scalar(of) = args.first()? else { return None };
    let (every, from) = match (function, of) {
        ("date_bin", ScalarValue::IntervalMonthDayNano(Some(every))) if every.months == 0 && args.len() == 2 => {
            let ns = i64::from(every.days).checked_mul(DAY_US * 1_000)?.checked_add(every.nanoseconds)?;
            (Some(ns / 1_000).filter(|us| ns % 1_000 == 0 && *us > 0)?, 0)
        }
        ("date_trunc", unit) => match unit.try_as_str()??.to_ascii_lowercase().as_str() {
            "microsecond" => (1, 0),
            "millisecond" => (1_000, 0),
            "second" => (SECOND_US, 0),
            "minute" => (60 * SECOND_US, 0),
            "hour" => (3_600 * SECOND_US, 0),
            "day" => (DAY_US, 0),
            // 1970 began on a Thursday, weeks begin on Mondays.
            "week" => (7 * DAY_US, -3 * DAY_US),
            "month" => return Some(Box::new(|time| month_of(time, 1))),
            "quarter" => return Some(Box::new(|time| month_of(time, 3))),
            "year" => return Some(Box::new(|time| month_of(time, 12))),
            _ => return None,
        },
        _ => return None,
    };
    Some(Box::new(move |time| time.checked_sub((time.checked_sub(from)?).rem_euclid(every))))
}

/// The beginning of the month, or of so many, µs.
fn month_of(time: i64, months: u32) -> Option<i64> {
    let day = DateTime::from_timestamp_micros(time)?.date_naive();
    let first = NaiveDate::from_ymd_opt(day.year(), day.month0() / months * months + 1, 1)?;
    Some(first.and_time(NaiveTime::MIN).and_utc().timestamp_micros())
}
