//! Rows of `flows` as documents with other people's names: what [`ecs`](super::ecs) and [`eve`](super::eve) are made of.
//! A column that is missing, as in an answer of an older server, leaves out what would be made of it.

use super::{Cell, cell};
use crate::community_id;
use arrow::array::{Array, AsArray};
use arrow::datatypes::{Schema, TimestampMicrosecondType};
use arrow::record_batch::RecordBatch;
use chrono::{DateTime, Utc};
use serde_json::{Map, Value};
use std::collections::HashMap;
use wire::{Addr, Mac, proto};

/// Where each column stands.
pub(super) struct FlowColumns(HashMap<String, usize>);

impl FlowColumns {
    pub(super) fn new(schema: &Schema) -> FlowColumns {
        let names = schema.fields().iter().enumerate();
        FlowColumns(names.map(|(at, field)| (field.name().clone(), at)).collect())
    }

    pub(super) fn row<'a>(&'a self, batch: &'a RecordBatch, row: usize) -> FlowRow<'a> {
        FlowRow { columns: self, batch, row }
    }
}

/// One flow, or part of one.
pub(super) struct FlowRow<'a> {
    columns: &'a FlowColumns,
    batch: &'a RecordBatch,
    row: usize,
}

impl<'a> FlowRow<'a> {
    fn column(&self, name: &str) -> Option<&'a dyn Array> {
        let column = self.batch.columns().get(*self.columns.0.get(name)?)?;
        column.is_valid(self.row).then_some(column.as_ref())
    }

    /// Text, or what prints as text; never empty.
    pub(super) fn text(&self, name: &str) -> Option<String> {
        let text = cell(self.column(name)?, self.row).to_text().into_owned();
        (!text.is_empty()).then_some(text)
    }

    /// A count, port, number or size.
    pub(super) fn count(&self, name: &str) -> Option<u64> {
        match cell(self.column(name)?, self.row) {
            Cell::Uint(n) => Some(n),
            Cell::Int(n) => u64::try_from(n).ok(),
            _ => None,
        }
    }

    /// The same where it is small; what does not fit is not there.
    pub(super) fn small<T: TryFrom<u64>>(&self, name: &str) -> Option<T> {
        T::try_from(self.count(name)?).ok()
    }

    pub(super) fn addr(&self, name: &str) -> Option<Addr> {
        let bytes = self.column(name)?.as_fixed_size_binary_opt()?.value(self.row);
        bytes.try_into().ok().map(Addr)
    }

    pub(super) fn mac(&self, name: &str) -> Option<Mac> {
        let bytes = self.column(name)?.as_fixed_size_binary_opt()?.value(self.row);
        bytes.try_into().ok().map(Mac)
    }

    fn end_us(&self) -> Option<i64> {
        Some(self.column("t_end")?.as_primitive_opt::<TimestampMicrosecondType>()?.value(self.row))
    }

    /// Last packet.
    pub(super) fn end(&self) -> Option<DateTime<Utc>> {
        DateTime::from_timestamp_micros(self.end_us()?)
    }

    /// First packet of this part.
    pub(super) fn start(&self) -> Option<DateTime<Utc>> {
        let duration = i64::try_from(self.count("dur_us")?).ok()?;
        DateTime::from_timestamp_micros(self.end_us()?.checked_sub(duration)?)
    }

    /// Transport with ports; the flow's ports are 0 otherwise, which says nothing.
    pub(super) fn port(&self, name: &str) -> Option<u64> {
        let has_ports = [proto::TCP, proto::UDP, proto::DCCP, proto::SCTP, proto::UDP_LITE];
        self.count(name).filter(|_| self.small("proto").is_some_and(|p: u8| has_ports.contains(&p)))
    }

    pub(super) fn icmp(&self) -> Option<(u8, u8)> {
        Some((self.small("icmp_type")?, self.small("icmp_code")?))
    }

    pub(super) fn is_v4(&self) -> Option<bool> {
        Some(self.addr("src_ip")?.is_v4() && self.addr("dst_ip")?.is_v4())
    }

    /// Both directions of a count together.
    pub(super) fn sum(&self, originator: &str, responder: &str) -> Option<u64> {
        Some(self.count(originator)?.saturating_add(self.count(responder)?))
    }

    pub(super) fn community_id(&self) -> Option<String> {
        let src = (self.addr("src_ip")?, self.small("src_port")?);
        let dst = (self.addr("dst_ip")?, self.small("dst_port")?);
        Some(community_id(0, src, dst, self.small("proto")?, self.icmp()))
    }

    /// The tunnel the flow was found in, and its id.
    pub(super) fn tunnel(&self) -> Option<(String, Option<u64>)> {
        Some((self.text("tunnel")?, self.count("tunnel_id")))
    }
}

/// A JSON object, filled by dotted path.
#[derive(Default)]
pub(super) struct Document(Map<String, Value>);

impl Document {
    /// Sets a field; no value leaves it out, its parents too.
    pub(super) fn set<V: Into<Value>>(&mut self, path: &str, value: Option<V>) {
        let Some(value) = value else { return };
        let (parents, name) = path.rsplit_once('.').map_or((None, path), |(parents, name)| (Some(parents), name));
        let mut object = &mut self.0;
        for parent in parents.into_iter().flat_map(|parents| parents.split('.')) {
            let entry = object.entry(parent).or_insert_with(|| Value::Object(Map::new()));
            // Each path is either a value's or a parent's, by the lists in `ecs` and `eve`.
            let Value::Object(inner) = entry else { return };
            object = inner;
        }
        object.insert(name.to_owned(), value.into());
    }

    pub(super) fn into_line(self) -> String {
        Value::Object(self.0).to_string()
    }
}
