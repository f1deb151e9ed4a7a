//! Values for the `?` or `$1` of a statement. They take their places among the tokens, before anything is parsed: a
//! value is then planned, pruned by and complained about as the same literal in the text would be, and never read as
//! SQL.

use crate::address::Kind;
use arrow::array::{Array, AsArray, RecordBatch};
use arrow::compute::cast;
use arrow::datatypes::{
    DataType, Date32Type, Date64Type, Float64Type, Int64Type, TimeUnit, TimestampMicrosecondType,
    TimestampMillisecondType, TimestampNanosecondType, TimestampSecondType, UInt64Type,
};
use chrono::NaiveDate;
use datafusion::sql::sqlparser::tokenizer::{Token, TokenWithSpan};

/// Bytes of all text values of a statement at most, as of its text.
const VALUE_BYTES_MAX: usize = crate::TEXT_BYTES_MAX;

/// Why the values do not fit the statement.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// There are more or fewer values than places for them.
    #[error("parameters of the statement: {expected}, values given: {given}")]
    Count {
        /// Places in the statement.
        expected: usize,
        /// Values.
        given: usize,
    },
    /// A value that SQL has no literal for.
    #[error(
        "parameter {number} is of type {data_type}: allowed are text, numbers, yes or no, times, dates, addresses and \
         nothing (NULL)"
    )]
    Type {
        /// Which value, from 1.
        number: usize,
        /// The Arrow type it came with.
        data_type: String,
    },
    /// A time or a date beyond the calendar.
    #[error("parameter {number} is beyond the calendar")]
    Time {
        /// Which value, from 1.
        number: usize,
    },
    /// Several rows of values, or none.
    #[error("rows of parameters: {rows}, allowed is 1: execute the statement once for each row")]
    Rows {
        /// How many.
        rows: usize,
    },
    /// Too much text.
    #[error("the parameters are {bytes} bytes of text, allowed are {VALUE_BYTES_MAX}")]
    TooLong {
        /// How much.
        bytes: usize,
    },
    /// A parameter with a name.
    #[error("parameter {name} has a name: write ? or $1, $2, ... for values given in order")]
    Named {
        /// As it is written.
        name: String,
    },
    /// Both ways of writing parameters in one statement.
    #[error("the statement has parameters of both kinds, ? and $1: write all of them one way")]
    Mixed,
    /// A number that leaves out others.
    #[error("parameters of the statement: {distinct}, the highest is ${highest}: number them from $1 without gaps")]
    Gap {
        /// How many different numbers there are.
        distinct: usize,
        /// The highest of them.
        highest: usize,
    },
}

/// The values of a statement's parameters, in order. Empty for a statement without any.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Parameters(Vec<Vec<Token>>);

impl Parameters {
    /// The values of the only row, one of each column; names are ignored. Text beside an address column is read as an
    /// address, as in SQL; 16 and 6 bytes are an address and a MAC.
    ///
    /// # Errors
    /// [`ParameterError`] for more rows or none, and for types that SQL has no literal for.
    pub fn from_batch(batch: &RecordBatch) -> Result<Parameters, ParameterError> {
        if batch.num_columns() == 0 {
            return Ok(Parameters::default());
        }
        if batch.num_rows() != 1 {
            return Err(ParameterError::Rows { rows: batch.num_rows() });
        }
        let values = batch.columns().iter().enumerate();
        let values = values.map(|(at, column)| literal(column.as_ref(), at + 1)).collect::<Result<Vec<_>, _>>()?;
        let text = |token: &Token| match token {
            Token::SingleQuotedString(text) => text.len(),
            _ => 0,
        };
        let bytes = values.iter().flatten().map(text).sum();
        match bytes {
            0..=VALUE_BYTES_MAX => Ok(Parameters(values)),
            _ => Err(ParameterError::TooLong { bytes }),
        }
    }

    /// As many times NULL: for planning before the values are known.
    pub(crate) fn nulls(count: usize) -> Parameters {
        Parameters(vec![word("NULL"); count])
    }

    /// How many values there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Puts `$1`, `$2`, ... where `?` stands, and gives the number of parameters.
pub(crate) fn number(tokens: &mut [TokenWithSpan]) -> Result<usize, ParameterError> {
    let (mut questions, mut numbers) = (0, std::collections::BTreeSet::new());
    for token in tokens {
        let Token::Placeholder(name) = &token.token else { continue };
        let digits = name.strip_prefix(['?', '$']).unwrap_or(name);
        if name == "?" {
            questions += 1;
            token.token = Token::Placeholder(format!("${questions}"));
            continue;
        }
        match digits.parse::<usize>() {
            Ok(number) if number > 0 => {
                numbers.insert(number);
                token.token = Token::Placeholder(format!("${number}"));
            }
            _ => return Err(ParameterError::Named { name: name.clone() }),
        }
    }
    match (questions, numbers.last()) {
        (count, None) => Ok(count),
        (0, Some(highest)) if *highest == numbers.len() => Ok(*highest),
        (0, Some(highest)) => Err(ParameterError::Gap { distinct: numbers.len(), highest: *highest }),
        (_, Some(_)) => Err(ParameterError::Mixed),
    }
}

/// Replaces numbered parameters by their values. Each keeps its place in the text, for messages.
pub(crate) fn bind(
    mut tokens: Vec<TokenWithSpan>,
    parameters: &Parameters,
) -> Result<Vec<TokenWithSpan>, ParameterError> {
    let expected = number(&mut tokens)?;
    if expected != parameters.len() {
        return Err(ParameterError::Count { expected, given: parameters.len() });
    }
    if expected == 0 {
        return Ok(tokens);
    }
    let mut bound = Vec::with_capacity(tokens.len());
    for TokenWithSpan { token, span } in tokens {
        let value = match &token {
            Token::Placeholder(name) => name.strip_prefix('$').and_then(|n| n.parse::<usize>().ok()),
            _ => None,
        };
        match value.and_then(|number| parameters.0.get(number - 1)) {
            Some(value) => bound.extend(value.iter().map(|token| TokenWithSpan { token: token.clone(), span })),
            None => bound.push(TokenWithSpan { token, span }),
        }
    }
    Ok(bound)
}

/// The first value of a column as tokens.
fn literal(column: &dyn Array, number: usize) -> Result<Vec<Token>, ParameterError> {
    if column.is_null(0) || *column.data_type() == DataType::Null {
        return Ok(word("NULL"));
    }
    let odd = || ParameterError::Type { number, data_type: column.data_type().to_string() };
    let as_type = |to: &DataType| cast(column, to).map_err(|_| odd());
    Ok(match column.data_type() {
        DataType::Boolean => word(if column.as_boolean().value(0) { "TRUE" } else { "FALSE" }),
        DataType::Int8 | DataType::Int16 | DataType::Int32 | DataType::Int64 => {
            signed(as_type(&DataType::Int64)?.as_primitive::<Int64Type>().value(0).to_string())
        }
        DataType::UInt8 | DataType::UInt16 | DataType::UInt32 | DataType::UInt64 => {
            signed(as_type(&DataType::UInt64)?.as_primitive::<UInt64Type>().value(0).to_string())
        }
        DataType::Float16 | DataType::Float32 | DataType::Float64 => {
            let value = as_type(&DataType::Float64)?.as_primitive::<Float64Type>().value(0);
            // With a point or an exponent, so that it stays a number with a fraction.
            if value.is_finite() { signed(format!("{value:?}")) } else { return Err(odd()) }
        }
        DataType::Decimal128(..) | DataType::Decimal256(..) => {
            signed(as_type(&DataType::Utf8)?.as_string::<i32>().value(0).to_owned())
        }
        DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View => {
            quoted(as_type(&DataType::Utf8)?.as_string::<i32>().value(0))
        }
        DataType::Dictionary(..) => {
            let DataType::Dictionary(_, value) = column.data_type() else { return Err(odd()) };
            literal(as_type(value)?.as_ref(), number)?
        }
        DataType::Binary => address(column.as_binary::<i32>().value(0)).ok_or_else(odd)?,
        DataType::LargeBinary => address(column.as_binary::<i64>().value(0)).ok_or_else(odd)?,
        DataType::FixedSizeBinary(_) => address(column.as_fixed_size_binary().value(0)).ok_or_else(odd)?,
        DataType::Timestamp(unit, _) => time(column, *unit),
        DataType::Date32 => date(Date32Type::to_naive_date_opt(column.as_primitive::<Date32Type>().value(0)), number)?,
        DataType::Date64 => date(Date64Type::to_naive_date_opt(column.as_primitive::<Date64Type>().value(0)), number)?,
        _ => return Err(odd()),
    })
}

/// A keyword, or the name of a function.
fn word(text: &str) -> Vec<Token> {
    vec![Token::make_keyword(text)]
}

fn quoted(text: &str) -> Vec<Token> {
    vec![Token::SingleQuotedString(text.to_owned())]
}

/// In parentheses where there is a minus, so that `1 -?` does not begin a comment.
fn signed(number: String) -> Vec<Token> {
    match number.strip_prefix('-') {
        Some(digits) => vec![Token::LParen, Token::Minus, Token::Number(digits.to_owned(), false), Token::RParen],
        None => vec![Token::Number(number, false)],
    }
}

fn address(bytes: &[u8]) -> Option<Vec<Token>> {
    let width = i32::try_from(bytes.len()).ok()?;
    let text = Kind::of(&DataType::FixedSizeBinary(width))?.to_text(bytes)?;
    Some(quoted(&text))
}

/// `to_timestamp_micros(1700000000000000)`
fn time(column: &dyn Array, unit: TimeUnit) -> Vec<Token> {
    let (function, value) = match unit {
        TimeUnit::Second => ("to_timestamp_seconds", column.as_primitive::<TimestampSecondType>().value(0)),
        TimeUnit::Millisecond => ("to_timestamp_millis", column.as_primitive::<TimestampMillisecondType>().value(0)),
        TimeUnit::Microsecond => ("to_timestamp_micros", column.as_primitive::<TimestampMicrosecondType>().value(0)),
        TimeUnit::Nanosecond => ("to_timestamp_nanos", column.as_primitive::<TimestampNanosecondType>().value(0)),
    };
    let mut tokens = word(function);
    tokens.push(Token::LParen);
    tokens.extend(signed(value.to_string()));
    tokens.push(Token::RParen);
    tokens
}

/// `DATE '2026-03-01'`
fn date(day: Option<NaiveDate>, number: usize) -> Result<Vec<Token>, ParameterError> {
    let day = day.ok_or(ParameterError::Time { number })?;
    let mut tokens = word("DATE");
    tokens.extend(quoted(&day.format("%Y-%m-%d").to_string()));
    Ok(tokens)
}
