//! The language: addresses wherever they may stand, either-side functions, what is refused, and how mistakes read.

mod common;

use common::{Flows, one, sql, sql_error, wait};
use query::{FlowQuery, QueryError};
use std::sync::LazyLock;

static FLOWS: LazyLock<Flows> = LazyLock::new(|| Flows::sample(0x51));

fn count(predicate: impl Fn(&flowtable::FlowRecord) -> bool) -> String {
    FLOWS.rows.iter().filter(|r| predicate(r)).count().to_string()
}

#[test]
fn address_literals_work_in_every_position() {
    let engine = FLOWS.engine();
    let x = common::addr("10.0.0.1");
    let from_x = count(|r| r.src_ip == x);
    for text in [
        "SELECT count(*) FROM flows WHERE src_ip = '10.0.0.1'",
        "SELECT count(*) FROM flows WHERE '10.0.0.1' = src_ip",
        "SELECT count(*) FROM flows AS f WHERE f.src_ip = '10.0.0.1'",
        "SELECT count(*) FROM flows WHERE src_ip = '::ffff:10.0.0.1'",
        "SELECT count(*) FROM flows WHERE src_ip IN ('10.0.0.1')",
        "SELECT count(*) FROM flows WHERE src_ip BETWEEN '10.0.0.1' AND '10.0.0.1'",
        "SELECT count(*) FROM flows WHERE NOT (src_ip <> '10.0.0.1')",
        "SELECT count(*) FROM flows WHERE src_ip IS NOT DISTINCT FROM '10.0.0.1'",
        "SELECT count(*) FROM flows WHERE ip_text(src_ip) = '10.0.0.1'",
        "SELECT count(*) FROM flows WHERE in_cidr(src_ip, '10.0.0.1/32')",
        "SELECT count(*) FROM (SELECT src_ip AS who FROM flows) WHERE who = '10.0.0.1'",
        "SELECT count(*) FROM (SELECT src_ip = '10.0.0.1' AS hit FROM flows) WHERE hit",
        "SELECT sum(CASE WHEN src_ip = '10.0.0.1' THEN 1 ELSE 0 END) FROM flows",
        "SELECT sum(CASE src_ip WHEN '10.0.0.1' THEN 1 ELSE 0 END) FROM flows",
        "SELECT count(*) FILTER (WHERE src_ip = '10.0.0.1') FROM flows",
        "SELECT n FROM (SELECT src_ip, count(*) AS n FROM flows GROUP BY src_ip HAVING src_ip = '10.0.0.1')",
        "SELECT count(*) FROM flows WHERE coalesce(src_ip, '::') = '10.0.0.1'",
        "SELECT count(*) FROM flows WHERE CAST(src_ip AS TEXT) = '10.0.0.1'",
        "SELECT count(*) FROM (SELECT src_ip::varchar AS a FROM flows) WHERE a = '10.0.0.1'",
        "SELECT count(*) FROM (SELECT 'at ' || src_ip AS a FROM flows) WHERE a = 'at 10.0.0.1'",
        "SELECT count(*) FROM (SELECT CASE WHEN src_ip = '10.0.0.1' THEN src_ip ELSE '::1' END AS a FROM flows) WHERE a = '10.0.0.1'",
        "WITH w AS (SELECT ip('10.0.0.1') AS a) SELECT count(*) FROM flows JOIN w ON src_ip = w.a",
        "SELECT count(*) FROM flows JOIN (VALUES ('10.0.0.1', 'dns')) AS v(addr, name) ON src_ip = v.addr",
        "SELECT count(*) FROM flows WHERE src_ip IN (SELECT src_ip FROM flows WHERE src_ip = '10.0.0.1')",
        "SELECT count(*) FROM flows WHERE EXISTS (SELECT 1 FROM (SELECT ip('10.0.0.1') AS a) w WHERE w.a = flows.src_ip)",
    ] {
        assert_eq!(one(&engine, text), from_x, "{text}");
    }
    assert_eq!(one(&engine, "SELECT min(src_ip) FROM flows HAVING min(src_ip) < '255.0.0.0'"), "10.0.0.1");
    assert_eq!(one(&engine, "SELECT in_cidr('10.1.1.1', '10.0.0.0/8'), ip_text(NULL), ip('::1')"), "true,,::1");
}

#[test]
fn groups_by_address_are_those_by_its_text() {
    let engine = FLOWS.engine();
    for (by_address, by_text) in [
        (
            "SELECT src_ip, count(*), sum(bytes_o) FROM flows GROUP BY src_ip",
            "SELECT ip_text(src_ip), count(*), sum(bytes_o) FROM flows GROUP BY ip_text(src_ip)",
        ),
        (
            "SELECT f.dst_ip AS b, f.proto, f.src_ip, max(bytes_r) FROM flows AS f GROUP BY 1, 2, 3",
            "SELECT ip_text(f.dst_ip), proto, ip_text(src_ip), max(bytes_r) FROM flows AS f GROUP BY 1, 2, 3",
        ),
        (
            "SELECT a, count(*) FROM (SELECT CASE WHEN bytes_o > 50000 THEN src_ip END AS a FROM flows) GROUP BY a",
            "SELECT a, count(*) FROM (SELECT CASE WHEN bytes_o > 50000 THEN ip_text(src_ip) END AS a FROM flows) GROUP BY a",
        ),
        (
            "SELECT src_ip, dst_ip, count(*) FROM flows GROUP BY ROLLUP (src_ip, dst_ip)",
            "SELECT ip_text(src_ip), ip_text(dst_ip), count(*) FROM flows GROUP BY ROLLUP (ip_text(src_ip), ip_text(dst_ip))",
        ),
        (
            "SELECT src_ip, count(DISTINCT dst_ip), sum(pkts_o) FROM flows GROUP BY src_ip HAVING src_ip <> '10.0.0.1'",
            "SELECT ip_text(src_ip), count(DISTINCT ip_text(dst_ip)), sum(pkts_o) FROM flows \
             WHERE src_ip <> '10.0.0.1' GROUP BY ip_text(src_ip)",
        ),
        ("SELECT count(DISTINCT src_ip) FROM flows", "SELECT count(DISTINCT ip_text(src_ip)) FROM flows"),
        (
            "SELECT a.src_ip, count(*) FROM flows AS a JOIN (SELECT dst_ip, count(*) AS n FROM flows GROUP BY dst_ip) AS b \
             ON a.src_ip = b.dst_ip WHERE b.n > 1 GROUP BY a.src_ip",
            "SELECT ip_text(a.src_ip), count(*) FROM flows AS a \
             WHERE src_ip IN (SELECT dst_ip FROM (SELECT dst_ip, count(*) AS n FROM flows GROUP BY dst_ip) WHERE n > 1) \
             GROUP BY ip_text(a.src_ip)",
        ),
    ] {
        let sorted = |text| {
            let mut lines = sql(&engine, text);
            lines.sort();
            lines
        };
        let groups = sorted(by_address);
        assert!(!groups.is_empty(), "{by_address}");
        assert_eq!(groups, sorted(by_text), "{by_address}");
    }
    // As numbers they are fast, and only then.
    let plan =
        sql(&engine, "EXPLAIN SELECT src_ip, sum(bytes_o) AS n FROM flows GROUP BY src_ip ORDER BY n DESC LIMIT 20");
    assert!(plan.iter().any(|line| line.contains("gby=[address_bits(src_ip")), "{plan:#?}");
}

#[test]
fn macs_and_protocols_are_read_like_addresses() {
    let engine = FLOWS.engine();
    let with_mac = count(|r| r.src_mac == Some(common::mac(3)));
    for text in ["'02:00:00:00:00:03'", "'02-00-00-00-00-03'", "'0200.0000.0003'", "mac('02:00:00:00:00:03')"] {
        assert_eq!(one(&engine, &format!("SELECT count(*) FROM flows WHERE src_mac = {text}")), with_mac, "{text}");
    }
    let tcp = count(|r| r.proto == 6);
    for text in
        ["proto = 6", "proto = 'tcp'", "proto = 'TCP'", "proto = '6'", "proto_name(proto) = 'tcp'", "proto IN ('tcp')"]
    {
        assert_eq!(one(&engine, &format!("SELECT count(*) FROM flows WHERE {text}")), tcp, "{text}");
    }
    assert_eq!(sql(&engine, "SELECT DISTINCT proto_name(proto) AS p FROM flows ORDER BY p"), ["icmp", "tcp", "udp"]);
    assert_eq!(one(&engine, "SELECT proto_name(255), mac_text(mac('AA-BB-CC-DD-EE-FF'))"), "255,aa:bb:cc:dd:ee:ff");
}

#[test]
fn either_side_works_with_aliases_and_joins() {
    let engine = FLOWS.engine();
    let x = common::addr("10.0.0.1");
    let either = count(|r| (r.src_ip == x || r.dst_ip == x) && (r.src_port == 53 || r.dst_port == 53));
    for text in [
        "SELECT count(*) FROM flows WHERE host('10.0.0.1') AND port(53)",
        "SELECT count(*) FROM flows f WHERE f.host('10.0.0.1') AND f.port(53)",
        "SELECT count(*) FROM flows f WHERE net('10.0.0.1/32') AND port(53)",
    ] {
        assert_eq!(one(&engine, text), either, "{text}");
    }
    let pairs = "SELECT count(*) FROM flows a JOIN flows b ON a.flow_id = b.flow_id \
                 WHERE a.host('10.0.0.1') AND b.port(53)";
    assert_eq!(one(&engine, pairs), either);
}

#[test]
fn t_start_is_a_column() {
    let engine = FLOWS.engine();
    assert_eq!(one(&engine, "SELECT min(t_start) FROM flows"), {
        let first = FLOWS.rows.iter().map(|r| r.start.as_micros() as i64).min().unwrap();
        chrono::DateTime::from_timestamp_micros(first).unwrap().to_rfc3339_opts(chrono::SecondsFormat::Micros, true)
    });
    assert_eq!(
        one(&engine, "SELECT count(t_start) FROM (SELECT t_start FROM flows) AS x"),
        FLOWS.rows.len().to_string()
    );
    let columns = wait(engine.sql("SELECT * FROM flows LIMIT 0")).unwrap().schema();
    assert_eq!(columns.fields().len(), storage::flow_schema().fields().len() + 1);
    assert_eq!(columns.field(columns.fields().len() - 1).name(), "t_start");
    let stored = wait(engine.flows(FlowQuery { limit: Some(1), ..FlowQuery::default() })).unwrap().schema();
    let names = |s: &arrow::datatypes::Schema| s.fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
    assert_eq!(names(&stored), names(&storage::flow_schema()));
}

#[test]
fn the_schema_can_be_asked_for() {
    let engine = FLOWS.engine();
    assert!(sql(&engine, "SHOW TABLES").iter().any(|l| l.contains("flows")));
    assert!(sql(&engine, "DESCRIBE flows").iter().any(|l| l.starts_with("src_ip,")));
    assert!(!sql(&engine, "EXPLAIN SELECT count(*) FROM flows").is_empty());
    assert!(sql(&engine, "SHOW COLUMNS FROM flows").iter().any(|l| l.contains("t_start")));
}

#[test]
fn filters_run_inside_the_parquet_reader_where_much_else_is_asked_for() {
    let engine = FLOWS.engine();
    for (columns, inside) in [("bytes_o", false), ("bytes_o, bytes_r, pkts_o", true), ("*", true)] {
        let filter = "host('10.0.0.1') AND in_cidr(dst_ip, '10.0.0.0/8')";
        let plan = sql(&engine, &format!("EXPLAIN SELECT {columns} FROM flows WHERE {filter}")).join("\n");
        let scan = plan.lines().find(|l| l.contains("file_type=parquet")).expect(&plan);
        // In any case the scan knows of it, and leaves pages out by it.
        assert!(scan.contains("predicate=(src_ip@") && scan.contains("dst_ip@6 >= "), "{plan}");
        // Live rows are filtered by themselves.
        assert_eq!(plan.matches("FilterExec").count(), if inside { 1 } else { 2 }, "{columns}: {plan}");
    }
}

#[test]
fn what_does_more_than_read_is_refused() {
    let engine = FLOWS.engine();
    assert_eq!(
        sql_error(&engine, "DROP TABLE flows"),
        "DROP is refused: queries only read; use SELECT, EXPLAIN, SHOW or DESCRIBE"
    );
    for text in [
        "CREATE VIEW v AS SELECT 1",
        "COPY (SELECT 1) TO '/tmp/never.parquet'",
        "SET datafusion.execution.parquet.pushdown_filters = false",
        "EXPLAIN ANALYZE INSERT INTO flows SELECT * FROM flows",
    ] {
        assert!(matches!(wait(engine.sql(text)), Err(QueryError::ReadOnly { .. })), "{text}");
    }
    for text in [
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM read_parquet('/etc/passwd')",
        "SELECT * FROM \"segments/1.parquet\"",
        "SELECT 1 INTO t",
        "WITH x AS (INSERT INTO flows SELECT * FROM flows) SELECT 1",
    ] {
        assert!(wait(engine.sql(text)).is_err(), "{text}");
    }
}

#[test]
fn mistakes_point_at_their_place() {
    let engine = FLOWS.engine();
    for (text, expected) in [
        (
            "SELECT srcip FROM flows",
            "there is no column `srcip` (line 1, column 8)\n  SELECT srcip FROM flows\n         ^\ndid you mean `src_ip`?",
        ),
        (
            "SELECT 1\nFROM flow",
            "there is no table `flow` (line 2, column 6)\n  FROM flow\n       ^\ndid you mean `flows`?",
        ),
        (
            "SELECT iptext(src_ip) FROM flows",
            "there is no function `iptext` (line 1, column 8)\n  SELECT iptext(src_ip) FROM flows\n         ^\ndid you mean `ip_text`?",
        ),
        (
            "SELECT * FROM flows WHERE src_ip = 'web01'",
            "'web01' is not an IPv4 or IPv6 address such as 10.0.0.1 or 2001:db8::1 (line 1, column 36)\n  \
             SELECT * FROM flows WHERE src_ip = 'web01'\n                                     ^",
        ),
        (
            "SELECT 1 FROM flows WHERE dst_ip IN ('10.0.0.1', '10.0.0.256')",
            "'10.0.0.256' is not an IPv4 or IPv6 address such as 10.0.0.1 or 2001:db8::1 (line 1, column 50)\n  \
             SELECT 1 FROM flows WHERE dst_ip IN ('10.0.0.1', '10.0.0.256')\n                                                   ^",
        ),
        (
            "SELECT 1 FROM flows WHERE src_ip = '10.0.0.0/8'",
            "'10.0.0.0/8' is not an IPv4 or IPv6 address such as 10.0.0.1 or 2001:db8::1 (line 1, column 36)\n  \
             SELECT 1 FROM flows WHERE src_ip = '10.0.0.0/8'\n                                     ^\n\
             for a block write in_cidr(src_ip, '10.0.0.0/8'), or net('10.0.0.0/8') for either side",
        ),
        (
            "SELECT 1 FROM flows WHERE src_ip LIKE '10.%'",
            "`src_ip` is an address, not text that LIKE can match (line 1, column 27)\n  \
             SELECT 1 FROM flows WHERE src_ip LIKE '10.%'\n                            ^\n\
             write in_cidr(src_ip, '10.0.0.0/8'), or ip_text(src_ip) LIKE ...",
        ),
        (
            "SELECT src_ip FROM flows a JOIN flows b ON a.flow_id = b.flow_id",
            "column `src_ip` is in more than one table here (line 1, column 8)\n  \
             SELECT src_ip FROM flows a JOIN flows b ON a.flow_id = b.flow_id\n         ^\n\
             write the table's name or alias before it, as in `f.src_ip`",
        ),
        (
            "SELECT 1 FROM flows WHERE t_end > 'yesterday'",
            "error parsing timestamp from 'yesterday': timestamp must contain at least 10 characters (line 1, column 35)\n  \
             SELECT 1 FROM flows WHERE t_end > 'yesterday'\n                                    ^\n\
             write a time as '2026-11-28T09:30:00Z', to the year 2262, or as now() - interval '1 hour'",
        ),
        (
            "SELECT 1 FROM flows WHERE dst_port = 'https'",
            "cannot cast string 'https' to value of UInt16 type (line 1, column 38)\n  \
             SELECT 1 FROM flows WHERE dst_port = 'https'\n                                       ^",
        ),
        (
            "SELECT sum(src_ip) FROM flows",
            "`sum` does not take what it is given (line 1, column 8)\n  SELECT sum(src_ip) FROM flows\n         ^\n\
             an address is compared with addresses, and counted; `ip_text(...)` gives it as text for everything else",
        ),
        (
            "SELECT tap, count(*) FROM flows",
            "`tap` is neither grouped by nor in an aggregate function (line 1, column 8)\n  \
             SELECT tap, count(*) FROM flows\n         ^\nname tap in GROUP BY, or write max(tap)",
        ),
        (
            "SELECT 1 FROM dns WHERE host('1.1.1.1')",
            "`host` looks at src_ip and dst_ip, which this table does not have (line 1, column 25)\n  \
             SELECT 1 FROM dns WHERE host('1.1.1.1')\n                          ^\n\
             name its own columns, as in client_ip = '10.0.0.1' OR server_ip = '10.0.0.1'",
        ),
        (
            "SELECT 1 FROM dns WHERE port(53)",
            "`port` looks at src_port and dst_port, which this table does not have (line 1, column 25)\n  \
             SELECT 1 FROM dns WHERE port(53)\n                          ^\n\
             name its own columns, as in client_port = 53 OR server_port = 53",
        ),
        (
            "SELECT host('10.0.0.1'), count(*) FROM flows",
            "`src_ip` is neither grouped by nor in an aggregate function\nname src_ip in GROUP BY, or write max(src_ip)",
        ),
        (
            "SELECT 1 FROM flows a JOIN flows b ON a.flow_id = b.flow_id WHERE host('10.0.0.1')",
            "column `src_ip` is in more than one table here\nwrite the table's name or alias before it, as in `f.src_ip`",
        ),
        (
            "SELECT 1 FROM flows WHERE proto = ) 6",
            "expected an expression, found ) (line 1, column 35)\n  \
             SELECT 1 FROM flows WHERE proto = ) 6\n                                    ^",
        ),
    ] {
        assert_eq!(sql_error(&engine, text), expected, "{text}");
    }
}

#[test]
fn mistakes_in_filters_point_at_their_place() {
    let engine = FLOWS.engine();
    let error = |filter: &str| {
        let query = FlowQuery { filter: Some(filter.to_owned()), ..FlowQuery::default() };
        match wait(engine.flows(query)) {
            Err(QueryError::Filter(located)) => *located,
            other => panic!("{filter}: {other:?}"),
        }
    };
    let located = error("host('10.0.0.1') AND\n  sport = 443");
    assert_eq!((located.line, located.column), (2, 3));
    assert_eq!(located.message, "there is no column `sport`");
    assert_eq!(located.snippet, "  sport = 443\n  ^");
    assert_eq!(located.suggestion.as_deref(), Some("did you mean `src_port`?"));
    for (filter, expected) in [
        ("proto == ", "expected an expression, found the end of the text (line 1, column 9)"),
        ("bytes_o", "the filter gives a number, not yes or no (line 1, column 1)"),
        ("src_ip", "the filter gives an address, not yes or no (line 1, column 1)"),
        ("count(*) > 1", "`count` looks at many rows, a filter only at one: use SQL (line 1, column 1)"),
        (
            "row_number() OVER () = 1",
            "`row_number` looks at many rows, a filter only at one: use SQL (line 1, column 1)",
        ),
        (
            "host('10.0.0.300')",
            "'10.0.0.300' is not an IPv4 or IPv6 address such as 10.0.0.1 or 2001:db8::1 (line 1, column 6)",
        ),
        (
            "net('10.0.0.0/40')",
            "'10.0.0.0/40' is not an address block such as 10.0.0.0/8 or 2001:db8::/32 (line 1, column 5)",
        ),
        (
            "proto = 'tpc'",
            "'tpc' is not a protocol number from 0 to 255 or a name such as tcp, udp, icmp (line 1, column 9)",
        ),
        ("src_mac = 'x'", "'x' is not a MAC address such as 00:1b:21:3c:4d:5e (line 1, column 11)"),
        ("nosuch(proto) = 1", "there is no function `nosuch` (line 1, column 1)"),
        ("proto = 6 OR", "expected an expression, found the end of the text (line 1, column 13)"),
    ] {
        let text = error(filter).to_string();
        assert_eq!(text.lines().next().unwrap(), expected, "{filter}");
    }
    let columns = vec!["src_ip".to_owned(), "bytes".to_owned()];
    let error = wait(engine.flows(FlowQuery { columns, ..FlowQuery::default() })).unwrap_err().to_string();
    assert_eq!(
        error,
        "there is no column `bytes` (line 1, column 9)\n  src_ip, bytes\n          ^\ndid you mean `bytes_o`?"
    );
}

#[test]
fn the_deepest_expression_that_parses_does_not_overflow() {
    let engine = FLOWS.engine();
    let chain = vec!["bytes_o"; query::TEXT_WORDS_MAX / 2 - 20].join("|");
    assert_eq!(one(&engine, &format!("SELECT count(*) FROM flows WHERE ({chain}) >= 0")), FLOWS.rows.len().to_string());
    let ors = vec!["proto=6"; query::TEXT_WORDS_MAX / 3 - 20].join(" OR ");
    let words = query::TEXT_WORDS_MAX;
    let unions = vec!["SELECT 1"; words / 4].join(" UNION ALL ");
    assert_eq!(sql(&engine, &unions).len(), words / 4);
    assert_eq!(one(&engine, &format!("SELECT 7{}", "::INT".repeat(words / 2 - 2))), "7");
    assert_eq!(one(&engine, &format!("SELECT 7{}", " IS NULL".repeat(words / 2 - 2))), "false");
    assert!(wait(engine.flows(FlowQuery { filter: Some(ors), limit: Some(1), ..FlowQuery::default() })).is_ok());
}
