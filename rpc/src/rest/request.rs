//! What a request says: query string, headers, body.

use super::error::ApiError;
use super::format::Format;
use super::time;
use crate::flows::{COLUMNS_MAX, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX};
use crate::status::page_size;
use crate::token;
use arrow::array::{
    ArrayRef, BooleanArray, Float64Array, Int64Array, NullArray, RecordBatch, StringArray, UInt64Array,
};
use axum::extract::Query;
use axum::http::{HeaderMap, StatusCode, Uri, header};
use query::{Addresses, FlowQuery, Parameters, QueryError};
use serde_json::Value;
use std::fmt::Write;
use std::sync::Arc;
use std::time::SystemTime;

/// Names in the query string of `/flows`.
pub(super) const FLOWS_PARAMETERS: [&str; 11] =
    ["filter", "since", "start", "until", "end", "columns", "limit", "page_size", "page_token", "format", "addresses"];

/// Names in the query string of `/sql`.
pub(super) const SQL_PARAMETERS: [&str; 2] = ["format", "addresses"];

/// Rows of a listing when the request does not say.
const LIMIT_DEFAULT: u64 = 1_000;

/// How the answer is to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Answering {
    pub(super) format: Format,
    pub(super) addresses: Addresses,
}

impl Answering {
    fn parse(query: &Pairs, headers: &HeaderMap) -> Result<Answering, ApiError> {
        let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
        let format = Format::choose(query.get("format")?, accept)?;
        let addresses = match query.get("addresses")? {
            None | Some("binary") => Addresses::Binary,
            Some("text") => Addresses::Text,
            Some(other) => {
                return Err(ApiError::invalid(format!("addresses is '{other}', allowed are text and binary")));
            }
        };
        Ok(Answering { format, addresses })
    }
}

/// Name and value pairs of a query string.
struct Pairs(Vec<(String, String)>);

impl Pairs {
    fn parse(text: &str, known: &[&str]) -> Result<Pairs, ApiError> {
        let unreadable = || ApiError::invalid("the query string cannot be read: write name=value pairs, joined by &");
        let uri: Uri = format!("/?{text}").parse().map_err(|_| unreadable())?;
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(&uri).map_err(|_| unreadable())?;
        if let Some((name, _)) = pairs.iter().find(|(name, _)| !known.contains(&name.as_str())) {
            return Err(ApiError::invalid(format!("there is no parameter '{name}': known are {}", known.join(", "))));
        }
        Ok(Pairs(pairs))
    }

    /// The value of a parameter that is given once at most. An empty one counts as none.
    fn get(&self, name: &str) -> Result<Option<&str>, ApiError> {
        let mut found = self.0.iter().filter(|(key, value)| key == name && !value.is_empty());
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(ApiError::invalid(format!("{name} is given more than once"))),
            (found, _) => Ok(found.map(|(_, value)| value.as_str())),
        }
    }

    /// The same of a parameter with two names.
    fn either(&self, name: &str, other: &str) -> Result<Option<&str>, ApiError> {
        match (self.get(name)?, self.get(other)?) {
            (Some(_), Some(_)) => Err(ApiError::invalid(format!("{name} and {other} mean the same: give one"))),
            (one, two) => Ok(one.or(two)),
        }
    }
}

/// How many flows, and from where on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Paging {
    /// The newest, in one answer; 0 for all of them, in no order.
    Limit(u64),
    /// One page.
    Page { size: usize, token: String },
}

/// `GET /api/v1/flows`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct FlowsRequest {
    pub(super) query: FlowQuery,
    pub(super) paging: Paging,
    pub(super) answering: Answering,
}

impl FlowsRequest {
    pub(super) fn parse(text: &str, headers: &HeaderMap) -> Result<FlowsRequest, ApiError> {
        let pairs = Pairs::parse(text, &FLOWS_PARAMETERS)?;
        let now = SystemTime::now();
        let time = |name, other| {
            let text = pairs.either(name, other)?;
            text.map(|text| time::parse(text, now)).transpose().map_err(|e| ApiError::invalid(format!("{name}: {e}")))
        };
        let columns = pairs.get("columns")?.unwrap_or_default().split(',').map(str::trim);
        let columns: Vec<String> = columns.filter(|name| !name.is_empty()).map(str::to_owned).collect();
        if columns.len() > COLUMNS_MAX {
            let count = columns.len();
            return Err(ApiError::invalid(format!("columns names {count} columns, allowed are {COLUMNS_MAX}")));
        }
        let filter = pairs.get("filter")?.filter(|filter| !filter.trim().is_empty()).map(str::to_owned);
        let (since, until) = (time("since", "start")?, time("until", "end")?);
        if since.zip(until).is_some_and(|(since, until)| since > until) {
            return Err(ApiError::invalid("until lies before since, and no time between them".to_owned()));
        }
        let query = FlowQuery { filter, since, until, columns, limit: None, after: None };
        let answering = Answering::parse(&pairs, headers)?;
        Ok(FlowsRequest { query, paging: paging(&pairs)?, answering })
    }

    /// A number for the request that its page tokens belong to; formats may change from page to page.
    pub(super) fn fingerprint(&self) -> u64 {
        let FlowQuery { filter, since, until, columns, .. } = &self.query;
        let bound = |time: &Option<i64>| time.map_or_else(Vec::new, |time| time.to_be_bytes().to_vec());
        let (since, until) = (bound(since), bound(until));
        let mut parts: Vec<&[u8]> = vec![b"rest", filter.as_deref().unwrap_or_default().as_bytes(), &since, &until];
        parts.extend(columns.iter().map(|name| name.as_bytes()));
        token::fingerprint(&parts)
    }

    /// Where the next page is. Times are absolute, so that a request relative to now stays what it was.
    pub(super) fn next_page(&self, size: usize, token: &str) -> String {
        let FlowQuery { filter, since, until, columns, .. } = &self.query;
        let columns = (!columns.is_empty()).then(|| columns.join(","));
        let text = self.answering.addresses == Addresses::Text;
        let mut link = format!("/api/v1/flows?page_size={size}&page_token={token}");
        for (name, value) in [
            ("filter", filter.clone()),
            ("since", since.map(time::text)),
            ("until", until.map(time::text)),
            ("columns", columns),
            ("addresses", text.then(|| "text".to_owned())),
        ] {
            if let Some(value) = value {
                let _ = write!(link, "&{name}=");
                escape(&value, &mut link);
            }
        }
        link
    }
}

/// Percent-encodes all but the unreserved characters of RFC 3986.
fn escape(text: &str, out: &mut String) {
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(char::from(byte)),
            _ => {
                let _ = write!(out, "%{byte:02X}");
            }
        }
    }
}

fn paging(pairs: &Pairs) -> Result<Paging, ApiError> {
    let (limit, size, token) = (pairs.get("limit")?, pairs.get("page_size")?, pairs.get("page_token")?);
    if let (Some(_), true) = (limit, size.is_some() || token.is_some()) {
        return Err(ApiError::invalid("limit and pages exclude each other: give limit, or page_size and page_token"));
    }
    if size.is_none() && token.is_none() {
        let read = |text: &str| {
            text.parse().map_err(|_| ApiError::invalid(format!("limit is '{text}': give a number, 0 for no limit")))
        };
        return Ok(Paging::Limit(limit.map(read).transpose()?.unwrap_or(LIMIT_DEFAULT)));
    }
    let size = size.unwrap_or("0");
    let asked = size.parse::<i32>().map_err(|_| ApiError::invalid(format!("page_size is '{size}': give a number")))?;
    let size = page_size(asked, PAGE_SIZE_DEFAULT, PAGE_SIZE_MAX)?;
    Ok(Paging::Page { size, token: token.unwrap_or_default().to_owned() })
}

/// `POST /api/v1/sql`.
#[derive(Debug)]
pub(super) struct SqlRequest {
    pub(super) sql: String,
    pub(super) parameters: Parameters,
    pub(super) answering: Answering,
}

impl SqlRequest {
    pub(super) fn parse(text: &str, headers: &HeaderMap, body: &[u8]) -> Result<SqlRequest, ApiError> {
        let answering = Answering::parse(&Pairs::parse(text, &SQL_PARAMETERS)?, headers)?;
        let given = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let content_type = given.split(';').next().unwrap_or_default().trim();
        let (sql, parameters) = if content_type.eq_ignore_ascii_case("text/plain") {
            let sql = std::str::from_utf8(body).map_err(|_| ApiError::invalid("the body is not UTF-8 text"))?;
            (sql.to_owned(), Parameters::default())
        } else if content_type.eq_ignore_ascii_case("application/json") {
            json_body(body)?
        } else {
            let told = format!(
                "the content type is '{content_type}': send {{\"sql\": \"...\"}} as application/json, or the query as \
                 text/plain"
            );
            return Err(ApiError::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "invalid_argument", told));
        };
        Ok(SqlRequest { sql, parameters, answering })
    }
}

fn json_body(body: &[u8]) -> Result<(String, Parameters), ApiError> {
    let wanted = "write {\"sql\": \"...\", \"parameters\": [...]}, the second if the query has ? in it";
    let value: Value =
        serde_json::from_slice(body).map_err(|e| ApiError::invalid(format!("the body is no JSON: {e}; {wanted}")))?;
    let Value::Object(mut object) = value else {
        return Err(ApiError::invalid(format!("the body is no JSON object: {wanted}")));
    };
    let Some(Value::String(sql)) = object.remove("sql") else {
        return Err(ApiError::invalid(format!("the body has no text \"sql\": {wanted}")));
    };
    let values = match object.remove("parameters") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(values)) => values,
        Some(_) => return Err(ApiError::invalid(format!("\"parameters\" is no list: {wanted}"))),
    };
    if let Some(name) = object.keys().next() {
        return Err(ApiError::invalid(format!("the body has an unknown \"{name}\": {wanted}")));
    }
    Ok((sql, parameters(&values)?))
}

fn parameters(values: &[Value]) -> Result<Parameters, ApiError> {
    if values.is_empty() {
        return Ok(Parameters::default());
    }
    let column = |(at, value): (usize, &Value)| Ok((format!("${}", at + 1), scalar(at + 1, value)?));
    let columns = values.iter().enumerate().map(column).collect::<Result<Vec<_>, ApiError>>()?;
    let row = RecordBatch::try_from_iter(columns).map_err(|e| ApiError::invalid(e.to_string()))?;
    Parameters::from_batch(&row).map_err(|e| QueryError::from(e).into())
}

fn scalar(number: usize, value: &Value) -> Result<ArrayRef, ApiError> {
    Ok(match value {
        Value::Null => Arc::new(NullArray::new(1)),
        Value::Bool(value) => Arc::new(BooleanArray::from(vec![*value])),
        Value::String(text) => Arc::new(StringArray::from(vec![text.as_str()])),
        Value::Number(value) => match (value.as_i64(), value.as_u64(), value.as_f64()) {
            (Some(value), ..) => Arc::new(Int64Array::from(vec![value])),
            (_, Some(value), _) => Arc::new(UInt64Array::from(vec![value])),
            (.., Some(value)) => Arc::new(Float64Array::from(vec![value])),
            _ => return Err(ApiError::invalid(format!("parameter {number} is a number beyond all types"))),
        },
        Value::Array(_) | Value::Object(_) => {
            return Err(ApiError::invalid(format!(
                "parameter {number} is a list or an object: allowed are text, numbers, true, false and null"
            )));
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flows(text: &str) -> Result<FlowsRequest, ApiError> {
        FlowsRequest::parse(text, &HeaderMap::new())
    }

    #[test]
    fn a_request_for_flows_is_read() {
        let request =
            flows("filter=src_ip%20%3D%20%2710.0.0.1%27&start=2026-03-01T12:00:00Z&columns=src_ip,+dst_ip&limit=5");
        let request = request.unwrap();
        assert_eq!(request.query.filter.as_deref(), Some("src_ip = '10.0.0.1'"));
        assert_eq!(request.query.since, Some(1_772_366_400_000_000));
        assert_eq!(request.query.columns, ["src_ip", "dst_ip"]);
        assert_eq!(request.paging, Paging::Limit(5));
        assert_eq!(flows("").unwrap().paging, Paging::Limit(LIMIT_DEFAULT));
        assert_eq!(flows("page_token=ab").unwrap().paging, Paging::Page { size: 100, token: "ab".into() });
    }

    #[test]
    fn a_link_to_the_next_page_asks_the_same() {
        let first = flows("filter=name+%3D+'a%26b%25'&since=-1h&columns=src_ip&page_size=7&addresses=text").unwrap();
        let link = first.next_page(7, "00ff");
        let next = flows(link.strip_prefix("/api/v1/flows?").unwrap()).unwrap();
        assert_eq!((&next.query, next.fingerprint()), (&first.query, first.fingerprint()));
        assert_eq!(next.paging, Paging::Page { size: 7, token: "00ff".into() });
        assert_ne!(flows("columns=src_ip").unwrap().fingerprint(), flows("columns=dst_ip").unwrap().fingerprint());
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, told) in [
            ("filtr=x", "'filtr'"),
            ("limit=x", "limit is 'x'"),
            ("limit=-1", "limit is '-1'"),
            ("limit=5&page_size=5", "exclude each other"),
            ("page_size=-1", "page_size is -1"),
            ("page_size=many", "page_size is 'many'"),
            ("since=yesterday", "since: 'yesterday'"),
            ("since=now&start=now", "since and start"),
            ("limit=1&limit=2", "more than once"),
            ("addresses=hex", "addresses is 'hex'"),
            ("format=xml", "format is 'xml'"),
        ] {
            let error = flows(text).unwrap_err();
            assert!(error.status == StatusCode::BAD_REQUEST && error.message.contains(told), "{text}: {error:?}");
        }
    }

    #[test]
    fn a_query_comes_as_json_or_as_text() {
        let request = |content_type: &str, body: &str| {
            let headers = [(header::CONTENT_TYPE, content_type.parse().unwrap())].into_iter().collect();
            SqlRequest::parse("", &headers, body.as_bytes())
        };
        assert_eq!(request("text/plain; charset=utf-8", "SELECT 1").unwrap().sql, "SELECT 1");
        let bound = request("application/json", r#"{"sql": "SELECT ?, ?", "parameters": ["a", 1.5]}"#).unwrap();
        assert_eq!((bound.sql.as_str(), bound.parameters.len()), ("SELECT ?, ?", 2));
        for (content_type, body, status) in [
            ("application/x-www-form-urlencoded", "SELECT 1", 415),
            ("application/json", "SELECT 1", 400),
            ("application/json", "[]", 400),
            ("application/json", r#"{"query": "SELECT 1"}"#, 400),
            ("application/json", r#"{"sql": "SELECT 1", "limit": 1}"#, 400),
            ("application/json", r#"{"sql": "SELECT ?", "parameters": [[1]]}"#, 400),
            ("application/json", r#"{"sql": "SELECT ?", "parameters": 1}"#, 400),
        ] {
            assert_eq!(request(content_type, body).unwrap_err().status.as_u16(), status, "{body}");
        }
    }
}
