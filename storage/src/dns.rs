//! The columns of table `dns`: one row for each question with its answer.

use crate::cells::{Flag, Ip, Num, Opt, Time, Words};
use crate::table::{TableInfo, columns, micros, nonzero};
use arrow::datatypes::{Schema, SchemaRef, UInt8Type, UInt16Type, UInt32Type, UInt64Type};
use hints::DnsRecord;
use std::sync::{Arc, LazyLock};
use wire::TapId;

pub(crate) static DNS: TableInfo = TableInfo {
    name: "dns",
    folder: "dns",
    encoder: "dns-encoder",
    schema: dns_schema,
    columns: COLUMNS,
    duration: None,
    zones: &["rcode", "latency_us"],
};

columns! {
    /// A batch of DNS transactions under construction.
    DnsColumns of DnsRecord, &DNS;
    values {
        t: Time, Delta, |r| micros(r.time);
        flow_id: Num<UInt64Type>, Plain, |r| r.flow_id;
        tap: Words<TapId>, Dict, |r| r.tap;
        client_ip: Ip, Dict, |r| r.client.0;
        server_ip: Ip, Dict, |r| r.server.0;
        client_port: Num<UInt16Type>, Split, |r| r.client_port;
        server_port: Num<UInt16Type>, Dict, |r| r.server_port;
        proto: Num<UInt8Type>, Dict, |r| r.proto;
        vlan: Opt<UInt16Type>, Dict, |r| nonzero(r.vlan);
        id: Num<UInt16Type>, Split, |r| r.id;
        qtype: Num<UInt16Type>, Dict, |r| r.qtype;
        has_query: Flag, Plain, |r| r.has_query;
        rcode: Opt<UInt16Type>, Dict, |r| r.rcode;
        latency_us: Opt<UInt32Type>, Split, |r| r.latency_us;
        flags: Num<UInt16Type>, Dict, |r| r.flags;
        answer_count: Num<UInt16Type>, Dict, |r| r.answer_count;
        ttl_min: Opt<UInt32Type>, Dict, |r| r.ttl_min;
    }
    texts {
        qname: true, |r| r.question_len;
        answers: false, |r| r.answers_len;
    }
}

/// The columns of table `dns` as they are stored, in their order (see FORMAT.md).
pub fn dns_schema() -> SchemaRef {
    static SCHEMA: LazyLock<SchemaRef> = LazyLock::new(|| Arc::new(Schema::new(fields())));
    SCHEMA.clone()
}
