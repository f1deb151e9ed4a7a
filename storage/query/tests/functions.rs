//! Functions on nulls, on what lies out of range, and on text that is none of theirs.

mod common;

use common::{Flows, one, sql_error};
use std::sync::LazyLock;

static FLOWS: LazyLock<Flows> = LazyLock::new(|| Flows::new(0xf0));

#[test]
fn ports_have_names() {
    let engine = FLOWS.engine();
    for (call, expected) in [
        ("port_name(443)", "https"),
        ("port_name(22, 6)", "ssh"),
        ("port_name(514)", "shell"),
        ("port_name(514, 6)", "shell"),
        ("port_name(514, 17)", "syslog"),
        ("port_name(53, 17)", "domain"),
        ("port_name(4789, 17)", "vxlan"),
        ("port_name(49152)", "49152"),
        ("port_name(0)", "0"),
        ("port_name(-1)", "-1"),
        ("port_name(65979)", "65979"),
        ("port_name(514, 300)", "shell"),
        ("port_name(NULL)", ""),
        ("port_name(443, NULL)", ""),
    ] {
        assert_eq!(one(&engine, &format!("SELECT {call} AS x, 1")), format!("{expected},1"), "{call}");
    }
    let flows = Flows::sample(0xf1);
    let named = one(&flows.engine(), "SELECT count(*) FROM flows WHERE port_name(dst_port, proto) = 'http-alt'");
    assert_eq!(named, flows.rows.iter().filter(|r| r.dst_port == 8_080).count().to_string());
}

#[test]
fn odd_input_gives_null_or_a_sentence() {
    let engine = FLOWS.engine();
    for (call, expected) in [
        ("proto_name(-1)", "-1"),
        ("proto_name(256)", "256"),
        ("proto_name(NULL)", ""),
        ("dns_type_name(70000)", "TYPE70000"),
        ("rcode_name(-5)", "-5"),
        ("ip_text(NULL)", ""),
        ("mac_text(NULL)", ""),
        ("ip(NULL)", ""),
        ("in_cidr(NULL, '10.0.0.0/8')", ""),
        ("in_cidr('10.0.0.1', NULL)", ""),
        ("in_cidr('10.0.0.1', '0.0.0.0/0')", "true"),
        ("in_cidr('10.0.0.1', '::/0')", "true"),
        ("in_cidr('10.0.0.1', '10.0.0.1/32')", "true"),
        ("community_id(NULL, '10.0.0.1', 1, 2, 6)", ""),
        ("community_id('10.0.0.2', '10.0.0.1', 1, 70000, 6)", ""),
        ("community_id('10.0.0.2', '10.0.0.1', 1, 2, -6)", ""),
        ("community_id('10.0.0.2', '10.0.0.1', 1, 2, 6, 70000)", ""),
    ] {
        assert_eq!(one(&engine, &format!("SELECT {call} AS x, 1")), format!("{expected},1"), "{call}");
    }
    for (text, expected) in [
        ("SELECT ip('')", "'' is not an IPv4 or IPv6 address"),
        ("SELECT in_cidr('10.0.0.1', 'ten')", "'ten' is not an address block"),
        ("SELECT count(*) FROM flows WHERE host(NULL, '10.0.0')", "'10.0.0' is not an IPv4 or IPv6 address"),
        ("SELECT count(*) FROM flows WHERE net()", "`net` takes one or more values"),
        ("SELECT count(*) FROM flows WHERE port()", "`port` takes one or more values"),
        ("SELECT count(*) FROM flows WHERE port(443, 70000)", "70000 is no port: they are numbers from 0 to 65535"),
        ("SELECT count(*) FROM flows WHERE port(-1)", "-1 is no port"),
    ] {
        assert!(sql_error(&engine, text).starts_with(expected), "{text}: {}", sql_error(&engine, text));
    }
    let flows = Flows::sample(0xf2);
    for filter in ["host(NULL)", "port(NULL)"] {
        assert_eq!(one(&flows.engine(), &format!("SELECT count(*) FROM flows WHERE {filter}")), "0", "{filter}");
    }
}

/// What the engine computes, and what is computed here where a later time is beside it.
#[test]
fn times_beyond_the_year_2262_are_cut_like_all_others() {
    let engine = FLOWS.engine();
    // 2554-07-21T23:34:33.709551Z, a Sunday: the last time there is in ns without a sign.
    const LATE: &str = "(18446744073709551)";
    let ordinary = [0, 1, -1, 951_782_400_000_000, 1_709_251_199_999_999, 1_767_225_599_999_999, -86_400_000_001];
    let ordinary = ordinary.map(|time: i64| format!("({time})")).join(",");
    let cut = |call: &str, rows: &str| {
        one(
            &engine,
            &format!(
                "SELECT string_agg(CAST(cut AS TEXT), ' ' ORDER BY v) FROM (SELECT v, CAST({call} AS BIGINT) AS cut FROM \
                 (SELECT v, to_timestamp_micros(v) AS t FROM (VALUES {rows}) AS x(v)))"
            ),
        )
    };
    for (call, late) in [
        ("date_trunc('millisecond', t)", "2554-07-21T23:34:33.709Z"),
        ("date_trunc('second', t)", "2554-07-21T23:34:33Z"),
        ("date_trunc('minute', t)", "2554-07-21T23:34:00Z"),
        ("date_trunc('hour', t)", "2554-07-21T23:00:00Z"),
        ("date_trunc('day', t)", "2554-07-21T00:00:00Z"),
        ("date_trunc('week', t)", "2554-07-15T00:00:00Z"),
        ("date_trunc('month', t)", "2554-07-01T00:00:00Z"),
        ("date_trunc('quarter', t)", "2554-07-01T00:00:00Z"),
        ("date_trunc('YEAR', t)", "2554-01-01T00:00:00Z"),
        ("date_bin(interval '15 minutes', t)", "2554-07-21T23:30:00Z"),
        ("date_bin(interval '1 day', t)", "2554-07-21T00:00:00Z"),
    ] {
        let late = chrono::DateTime::parse_from_rfc3339(late).unwrap().timestamp_micros();
        assert_eq!(cut(call, &format!("{ordinary},{LATE}")), format!("{} {late}", cut(call, &ordinary)), "{call}");
    }
    assert!(sql_error(&engine, "SELECT date_trunc('fortnight', to_timestamp_micros(0))").contains("fortnight"));
}
