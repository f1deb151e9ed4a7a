//! A flow table that is too small, and a tap that shows one direction: counted, told, and nothing lost.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{generate, replay, run, sql, taphouse};

/// Every packet is in a record, every record is stored, and the counters say what the rows say.
fn check_rows(summary: &Value, dir: &Path) {
    assert_eq!(summary["ledger"]["balanced"], true, "{summary}");
    let rows = sql(
        "SELECT sum(pkts_o + pkts_r) AS packets, count(*) AS records, \
         count(*) FILTER (WHERE end_reason = 'evicted') AS evicted, \
         count(*) FILTER (WHERE end_reason = 'evicted' AND pkts_r > 0) AS answered FROM flows",
        dir,
    );
    let (row, table) = (&rows[0], &summary["flow_table"]);
    assert_eq!((&row["packets"], &row["records"]), (&summary["packets"], &summary["records"]), "{summary}");
    assert_eq!((&row["evicted"], &row["answered"]), (&table["evicted"], &table["evicted_answered"]), "{summary}");
}

#[test]
fn a_flood_evicts_what_nobody_answered_and_every_packet_is_kept() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = traffic::Config { packets: 200_000, flows: 1_000, seed: 5, ..traffic::Config::default() };
    let (capture, _) = generate(dir.path(), config);
    let store = dir.path().join("small");
    let summary = replay(&capture, &store, &["flowtable.flows_max=4000"]);
    let table = &summary["flow_table"];
    assert!(table["emergencies"].as_u64() > Some(0) && table["evicted"].as_u64() > Some(1000), "{table}");
    assert_eq!(table["evicted_answered"], 0, "{table}");
    check_rows(&summary, &store);

    // So small that answered flows have to go as well: that is told apart.
    let store = dir.path().join("smaller");
    let summary = replay(&capture, &store, &["flowtable.flows_max=64"]);
    assert!(summary["flow_table"]["evicted_answered"].as_u64() > Some(0), "{summary}");
    check_rows(&summary, &store);

    let store = dir.path().join("large");
    let summary = replay(&capture, &store, &[]);
    assert_eq!((&summary["flow_table"]["emergencies"], &summary["flow_table"]["evicted"]), (&0.into(), &0.into()));
}

#[test]
fn a_tap_with_one_direction_is_noticed() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = traffic::Config {
        packets: 200_000,
        flows: 6_000,
        udp_ratio: 0.0,
        v6_ratio: 0.0,
        attacks: false,
        ..Default::default()
    };
    let (capture, _) = generate(dir.path(), config);
    let told = |name: &str, filter: &str| {
        let mut command = taphouse();
        command.arg("replay").arg(&capture).arg("--data-dir").arg(dir.path().join(name));
        String::from_utf8(run(command.args(["--filter", filter])).stdout).expect("text")
    };
    let both = told("both", "tcp");
    assert!(!both.contains("from one side only"), "{both}");
    let one = told("one", "src net 10.0.0.0/8");
    assert!(
        one.contains("100 % of") && one.contains("TCP connections from one side only: RSS is not symmetric"),
        "{one}"
    );
}
