//! The same capture gives the same records, alerts and flow ids with any number of workers.

mod support;

use serde_json::Value;
use std::path::Path;
use support::{generate, replay, run, sql, taphouse};

fn outcome(capture: &Path, workers: u16) -> (Vec<Value>, Vec<Value>) {
    let dir = tempfile::tempdir().expect("a folder");
    let summary = replay(capture, dir.path(), &[&format!("pipeline.workers={workers}")]);
    assert_eq!(summary["ledger"]["balanced"], true, "{summary}");
    let rows = sql("SELECT * FROM flows ORDER BY t_end, flow_id, part", dir.path());
    let alerts = run(taphouse().args(["alerts", "--limit", "0", "--output", "json", "--data-dir"]).arg(dir.path()));
    let alerts: Vec<Value> = serde_json::from_slice(&alerts.stdout).expect("valid JSON");
    (rows, alerts)
}

#[test]
fn one_two_and_four_workers_give_identical_records_and_alerts() {
    let dir = tempfile::tempdir().expect("a folder");
    let config = traffic::Config { packets: 150_000, flows: 3_000, seed: 7, ..traffic::Config::default() };
    let (capture, truth) = generate(dir.path(), config);
    let (rows, alerts) = outcome(&capture, 1);
    let packets: i64 = rows.iter().map(|r| r["pkts_o"].as_i64().unwrap() + r["pkts_r"].as_i64().unwrap()).sum();
    assert_eq!(packets as u64, truth.packets);
    assert!(alerts.iter().any(|a| a["rule"] == "port_scan"), "the generated port scan was not found: {alerts:#?}");
    for workers in [1, 2, 4] {
        let (other_rows, other_alerts) = outcome(&capture, workers);
        let first = rows.iter().zip(&other_rows).find(|(a, b)| a != b);
        assert!(first.is_none() && rows.len() == other_rows.len(), "{workers} workers: {first:#?}");
        assert_eq!(alerts, other_alerts, "{workers} workers");
    }
}

#[test]
fn every_generated_flow_is_counted_exactly() {
    let dir = tempfile::tempdir().expect("a folder");
    for seed in [1, 2, 3] {
        let config = traffic::Config { packets: 100_000, flows: 2_000, seed, ..traffic::Config::default() };
        let (capture, truth) = generate(dir.path(), config);
        let store = tempfile::tempdir().expect("a folder");
        replay(&capture, store.path(), &["flowtable.timeouts=off"]);
        let rows = sql(
            "SELECT count(*) AS flows, sum(pkts_o + pkts_r) AS packets, sum(bytes_o + bytes_r) AS bytes, \
             sum(retrans_o + retrans_r) AS retrans FROM flows",
            store.path(),
        );
        let sum = |f: fn(&traffic::FlowTruth) -> u64| truth.flows.iter().map(f).sum::<u64>();
        let want = serde_json::json!({
            "flows": truth.flows.len(),
            "packets": truth.packets,
            "bytes": sum(|f| f.ip_bytes_client + f.ip_bytes_server),
            "retrans": sum(|f| f.retransmits_client + f.retransmits_server),
        });
        assert_eq!(rows[0], want, "seed {seed}");
    }
}
