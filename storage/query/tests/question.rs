//! Questions made as SQL, against loops over the same rows.

mod common;

use arrow::array::AsArray;
use arrow::record_batch::RecordBatch;
use common::{Flows, HOUR, Rng, SECOND, T0, wait};
use flowtable::{EndReason, FlowRecord};
use query::Engine;
use query::question::{
    Column, Filter, Grid, INTERVALS_MAX, Listing, Measure, QuestionError, Selection, SortKey, Timeline, Top,
};
use query::render::{OutputFormat, Renderer, cell};
use std::collections::{BTreeMap, BTreeSet};
use wire::Nanos;

const SEEDS: [u64; 2] = [0x51, 0x52];

/// Flows of one to four records, in segments and not, some cut off by the begin of what is kept.
fn long_flows(seed: u64) -> Flows {
    let mut flows = Flows::new(seed);
    for id in 0..600u64 {
        let parts = 1 + flows.rng.below(4) as u16;
        let first = if flows.rng.below(8) == 0 { 1 } else { 0 };
        let begin = T0 + flows.rng.below(3 * HOUR as u64) as i64;
        let rng = &mut flows.rng;
        let model = common::record(rng, (id + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15), begin);
        for part in first..parts.max(first + 1) {
            let end = begin + i64::from(part) * 60 * SECOND + flows.rng.below(50 * SECOND as u64) as i64;
            let last = part + 1 >= parts && flows.rng.below(10) > 0;
            let row = FlowRecord {
                part,
                start: Nanos((begin + i64::from(part) * 60 * SECOND) as u64 * 1000),
                end: Nanos(end as u64 * 1000),
                pkts_o: flows.rng.below(100),
                bytes_o: flows.rng.below(100_000),
                bytes_r: flows.rng.below(100_000),
                retrans_o: flows.rng.below(4) as u32,
                retrans_r: flows.rng.below(4) as u32,
                end_reason: if last { EndReason::Idle } else { EndReason::Active },
                ..model
            };
            flows.rows.push(row);
            flows.store.append(&[row], &[]).unwrap();
        }
        if id % 250 == 249 {
            flows.store.flush().unwrap();
        }
    }
    flows
}

fn end(row: &FlowRecord) -> i64 {
    (row.end.0 / 1000) as i64
}

fn start(row: &FlowRecord) -> i64 {
    (row.start.0 / 1000) as i64
}

fn names(names: &[&str]) -> Vec<Column> {
    Column::list(&names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>()).unwrap()
}

fn batches(engine: &Engine, sql: &str) -> Vec<RecordBatch> {
    wait(async { engine.sql(sql).await?.collect_all().await }).unwrap_or_else(|e| panic!("{sql}\n{e}"))
}

/// Rows as texts.
fn texts(batches: &[RecordBatch]) -> Vec<Vec<String>> {
    let row = |b: &RecordBatch, row| b.columns().iter().map(|c| cell(c.as_ref(), row).to_text().into_owned()).collect();
    batches.iter().flat_map(|b| (0..b.num_rows()).map(move |r| row(b, r))).collect()
}

/// The conditions of the tests, as text and as a loop has them.
type Model = fn(&FlowRecord) -> bool;
const FILTERS: [(&str, Model); 4] = [
    ("true -- all of them", |_| true),
    ("proto = 'tcp' OR port(53)", |r| r.proto == 6 || r.src_port == 53 || r.dst_port == 53),
    ("NOT host('10.0.0.1') AND bytes_o > 5000", |r| {
        r.src_ip != common::addr("10.0.0.1") && r.dst_ip != common::addr("10.0.0.1") && r.bytes_o > 5000
    }),
    ("proto = 254", |_| false),
];

/// What a measure is of one record; flows are counted apart.
fn measure(name: &str, r: &FlowRecord) -> u64 {
    match name {
        "packets" => r.pkts_o + r.pkts_r,
        "bytes" => r.bytes_o + r.bytes_r,
        "bytes_r" => r.bytes_r,
        "retrans" => u64::from(r.retrans_o) + u64::from(r.retrans_r),
        other => panic!("{other}"),
    }
}

/// The sums of a group of records: distinct flows, packets, bytes, and a measure.
#[derive(Clone, Default)]
struct Sums {
    flows: BTreeSet<u64>,
    packets: u64,
    bytes: u64,
    other: u64,
}

impl Sums {
    fn add(&mut self, row: &FlowRecord, name: &str) {
        self.flows.insert(row.flow_id);
        self.packets += measure("packets", row);
        self.bytes += measure("bytes", row);
        if name != "flows" {
            self.other += measure(name, row);
        }
    }

    fn value(&self, name: &str) -> u64 {
        if name == "flows" { self.flows.len() as u64 } else { self.other }
    }
}

#[test]
fn the_top_is_that_of_a_loop() {
    for seed in SEEDS {
        let flows = long_flows(seed);
        let engine = flows.engine();
        let (since, until) = (T0 + HOUR / 2, T0 + 2 * HOUR);
        for (text, model) in FILTERS {
            for name in ["flows", "packets", "bytes", "bytes_r", "retrans"] {
                let selection =
                    Selection { filter: Some(Filter::parse(text).unwrap()), since: Some(since), until: Some(until) };
                let top =
                    Top { selection, by: names(&["src_ip", "dst_port"]), measure: name.parse().unwrap(), limit: 7 };
                let answer = batches(&engine, &top.to_sql().unwrap());
                let mut groups: BTreeMap<([u8; 16], u16), Sums> = BTreeMap::new();
                let chosen = flows.rows.iter().filter(|r| model(r) && end(r) >= since && start(r) < until);
                for row in chosen {
                    groups.entry((row.src_ip.0, row.dst_port)).or_default().add(row, name);
                }
                let total: u64 = groups.values().map(|g| g.value(name)).sum();
                let mut right: Vec<_> = groups.into_iter().collect();
                right.sort_by_key(|(_, sums)| std::cmp::Reverse(sums.value(name)));
                right.truncate(7);
                let right: Vec<Vec<String>> = right
                    .iter()
                    .map(|((ip, port), sums)| {
                        let mut row = vec![wire::Addr(*ip).to_string(), port.to_string()];
                        row.extend([sums.flows.len() as u64, sums.packets, sums.bytes].map(|n| n.to_string()));
                        if !["flows", "packets", "bytes"].contains(&name) {
                            row.push(sums.other.to_string());
                        }
                        row
                    })
                    .collect();
                let mut got = texts(&answer);
                for (row, values) in got.iter_mut().zip(&right) {
                    let share: f64 = row.pop().unwrap().parse().unwrap();
                    let at = match name {
                        "flows" => 2,
                        "packets" => 3,
                        "bytes" => 4,
                        _ => 5,
                    };
                    let value: f64 = values[at].parse().unwrap();
                    assert!((share - 100.0 * value / total as f64).abs() < 1e-9, "seed {seed:#x}: {text}, {name}");
                }
                assert_eq!(got, right, "seed {seed:#x}: {text}, {name}");
            }
        }
    }
}

fn grid(engine: &Engine, timeline: &Timeline) -> Grid {
    let mut grid = timeline.grid().unwrap();
    for batch in batches(engine, &timeline.to_sql().unwrap()) {
        grid.push(&batch).unwrap();
    }
    grid.finish().unwrap()
}

#[test]
fn a_timeline_is_that_of_a_loop_and_has_no_gaps() {
    for seed in SEEDS {
        let flows = long_flows(seed);
        let engine = flows.engine();
        let mut rng = Rng(seed);
        for (text, model) in FILTERS {
            // From hours, all of which have rows, to seconds, most of which have none.
            for every in [HOUR, 600 * SECOND, 7 * SECOND] {
                let name = rng.pick(&["flows", "packets", "bytes", "bytes_r"]);
                let by = rng.pick(&[&[][..], &["proto"], &["src_ip", "dst_port"]]);
                let bounds = rng.pick(&[(None, None), (Some(T0 - HOUR), Some(T0 + HOUR + 1))]);
                let selection =
                    Selection { filter: Some(Filter::parse(text).unwrap()), since: bounds.0, until: bounds.1 };
                let timeline = Timeline {
                    selection,
                    every_us: every,
                    by: names(by),
                    measure: name.parse().unwrap(),
                    groups_max: 2,
                    limit: None,
                };
                let got = texts(&[grid(&engine, &timeline).rows().unwrap()]);

                let chosen: Vec<&FlowRecord> = flows
                    .rows
                    .iter()
                    .filter(|r| model(r) && bounds.0.is_none_or(|t| end(r) >= t) && bounds.1.is_none_or(|t| end(r) < t))
                    .collect();
                let key = |r: &FlowRecord| match by.len() {
                    0 => vec![],
                    1 => vec![u128::from(r.proto)],
                    _ => vec![u128::from_be_bytes(r.src_ip.0), u128::from(r.dst_port)],
                };
                // The whole time decides which groups are largest; as everywhere a flow counts once an interval.
                let mut cells: BTreeMap<(i64, Vec<u128>), Sums> = BTreeMap::new();
                for row in &chosen {
                    cells.entry((end(row) / every, key(row))).or_default().add(row, name);
                }
                let mut totals: BTreeMap<Vec<u128>, u64> = BTreeMap::new();
                for ((_, key), sums) in &cells {
                    *totals.entry(key.clone()).or_default() += sums.value(name);
                }
                let mut ranked: Vec<_> = totals.into_iter().collect();
                ranked.sort_by_key(|(key, total)| (std::cmp::Reverse(*total), key.clone()));
                let mut groups: Vec<Option<Vec<u128>>> = ranked.iter().take(2).map(|(k, _)| Some(k.clone())).collect();
                if ranked.len() > 2 {
                    groups.push(None);
                }
                if by.is_empty() {
                    groups = vec![Some(vec![])];
                }
                let slots: Vec<i64> = match (cells.keys().next(), bounds) {
                    (_, (Some(since), Some(until))) => {
                        (since.div_euclid(every)..=(until - 1).div_euclid(every)).collect()
                    }
                    (None, _) => vec![],
                    (Some((first, _)), _) => (*first..=cells.keys().map(|(slot, _)| *slot).max().unwrap()).collect(),
                };
                let mut right = Vec::new();
                for slot in slots {
                    for group in &groups {
                        let mut sums = [0; 4];
                        let taken: Vec<&Sums> = match group {
                            Some(key) => cells.get(&(slot, key.clone())).into_iter().collect(),
                            None => cells
                                .iter()
                                .filter(|((s, key), _)| *s == slot && !groups.contains(&Some(key.clone())))
                                .map(|(_, sums)| sums)
                                .collect(),
                        };
                        for s in taken {
                            sums[0] += s.flows.len() as u64;
                            sums[1] += s.packets;
                            sums[2] += s.bytes;
                            sums[3] += s.other;
                        }
                        let time = chrono::DateTime::from_timestamp_micros(slot * every).unwrap();
                        let mut row = vec![time.to_rfc3339_opts(chrono::SecondsFormat::Micros, true)];
                        if !by.is_empty() {
                            let shown = group.clone().map(|key| match by.len() {
                                1 => vec![key[0].to_string()],
                                _ => vec![wire::Addr(key[0].to_be_bytes()).to_string(), key[1].to_string()],
                            });
                            row.extend(shown.unwrap_or_else(|| vec![String::new(); by.len()]));
                            row.push(group.is_none().to_string());
                        }
                        let own = usize::from(name == "bytes_r");
                        row.extend(sums[..3 + own].iter().map(u64::to_string));
                        right.push(row);
                    }
                }
                assert_eq!(got, right, "seed {seed:#x}: {text}, every {every}, {name} by {by:?}, {bounds:?}");
            }
        }
    }
}

#[test]
fn listings_are_sorted_as_a_loop_sorts() {
    for seed in SEEDS {
        let flows = long_flows(seed);
        let engine = flows.engine();
        for (text, model) in FILTERS {
            let listing = Listing {
                selection: Selection { filter: Some(Filter::parse(text).unwrap()), since: None, until: None },
                columns: names(&["flow_id", "part", "bytes", "rtt_us"]),
                sort: ["rtt_us:asc", "bytes"].iter().map(|key| key.parse::<SortKey>().unwrap()).collect(),
                limit: Some(50),
            };
            let mut right: Vec<&FlowRecord> = flows.rows.iter().filter(|r| model(r)).collect();
            right.sort_by_key(|r| {
                let bytes = std::cmp::Reverse(r.bytes_o + r.bytes_r);
                (r.rtt_us.is_none(), r.rtt_us, bytes, std::cmp::Reverse(end(r)), r.flow_id, r.part)
            });
            let right: Vec<Vec<String>> = right
                .iter()
                .take(50)
                .map(|r| {
                    let rtt = r.rtt_us.map(|rtt| rtt.to_string()).unwrap_or_default();
                    vec![r.flow_id.to_string(), r.part.to_string(), (r.bytes_o + r.bytes_r).to_string(), rtt]
                })
                .collect();
            assert_eq!(texts(&batches(&engine, &listing.to_sql())), right, "seed {seed:#x}: {text}");
        }
        let all = Listing::default();
        let rows: usize = batches(&engine, &all.to_sql()).iter().map(RecordBatch::num_rows).sum();
        assert_eq!(rows, flows.rows.len());
    }
}

#[test]
fn a_filter_stays_one_expression() {
    let flows = long_flows(1);
    let engine = flows.engine();
    for text in ["1 = 1) OR (1 = 1", "true; DROP TABLE flows", "true UNION SELECT 1", "flow_id IN (SELECT 1)", "true)"]
    {
        assert!(Filter::parse(text).is_err(), "{text}");
    }
    // What the text says and what is asked are the same condition.
    for text in [
        "tap = 'it''s' OR tap = 'a\"b' -- ) OR true",
        "src_ip BETWEEN '10.0.0.0' AND '10.0.0.255' AND NOT (dst_port IN (1, 2) OR proto IS NOT DISTINCT FROM 6)",
        "net('10.0.0.0/8', '2001:db8::/32') /* ' */ AND CASE WHEN pkts_r = 0 THEN false ELSE true END",
        "t_end > timestamp '2026-01-01 01:00:00' AND bytes_o::double / 3 > 1e3 AND tap NOT LIKE '%b\\_%' ESCAPE '\\'",
        "t_end - interval '90 minutes' > '2026-01-01T00:00:00Z' AND src_mac = '02:00:00:00:00:01'",
    ] {
        let count = |filter: &str| common::sql(&engine, &format!("SELECT count(*) FROM flows WHERE ({filter}\n)"));
        let parsed = Filter::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert_eq!(count(text), count(&parsed.to_string()), "{text}");
        assert_eq!(parsed.to_string(), Filter::parse(&parsed.to_string()).unwrap().to_string());
    }
}

#[test]
fn bounds_prune_segments() {
    let flows = Flows::sample(7);
    let engine = flows.engine();
    let selection = Selection { filter: None, since: Some(T0 + 2 * HOUR), until: Some(T0 + 3 * HOUR) };
    let top =
        Top { selection: selection.clone(), by: names(&["tap"]), measure: Measure::Flows, limit: 3 }.to_sql().unwrap();
    let listing = Listing { selection, ..Listing::default() }.to_sql();
    for sql in [top, listing] {
        let stats = wait(engine.sql(&sql)).unwrap().stats();
        assert!(stats.segments_kept < stats.segments, "{sql}: {stats:?}");
    }
}

#[test]
fn too_much_is_refused_in_a_sentence() {
    let timeline = |since, until, every_us| Timeline {
        selection: Selection { filter: None, since, until },
        every_us,
        by: vec![],
        measure: Measure::Flows,
        groups_max: 5,
        limit: None,
    };
    let error = timeline(Some(T0), Some(T0 + HOUR), 1).grid().unwrap_err();
    assert_eq!(error, QuestionError::Intervals { count: HOUR });
    assert_eq!(
        error.to_string(),
        "there are 3600000000 intervals in this time, allowed are 100000: make them longer, or the time shorter"
    );
    assert!(timeline(Some(T0), Some(T0 + INTERVALS_MAX), 1).grid().is_ok());
    let flows = long_flows(2);
    let engine = flows.engine();
    let question = timeline(None, None, 1000);
    let mut grid = question.grid().unwrap();
    let refused = batches(&engine, &question.to_sql().unwrap()).iter().try_for_each(|batch| grid.push(batch));
    assert!(matches!(refused, Err(QuestionError::Intervals { .. })));
    let twice = Top { selection: Selection::default(), by: names(&["bytes"]), measure: Measure::Flows, limit: 1 };
    assert_eq!(twice.to_sql().unwrap_err().to_string(), "`bytes` is named twice");
}

/// Tables as people see them.
#[test]
fn plots_are_drawn() {
    let flows = long_flows(3);
    let engine = flows.engine();
    let question = |by: &[&str], limit| Timeline {
        selection: Selection { filter: None, since: Some(T0), until: Some(T0 + 4 * HOUR) },
        every_us: HOUR,
        by: names(by),
        measure: "bytes".parse().unwrap(),
        groups_max: 2,
        limit,
    };
    let plot = grid(&engine, &question(&[], None)).plot(10).unwrap();
    assert_eq!(plot.num_rows(), 4);
    let largest = texts(std::slice::from_ref(&plot)).iter().map(|row| row[4].chars().count()).max();
    assert_eq!(largest, Some(10), "the longest bar has the whole width");
    let bytes: i64 =
        plot.column_by_name("bytes").unwrap().as_primitive::<arrow::datatypes::Int64Type>().values().iter().sum();
    assert_eq!(bytes as u64, flows.rows.iter().map(|r| r.bytes_o + r.bytes_r).sum::<u64>());
    let plot = grid(&engine, &question(&["tap"], Some(2))).plot(10).unwrap();
    let names: Vec<&str> = plot.schema_ref().fields().iter().map(|f| f.name().as_str()).collect();
    assert_eq!((names[0], &names[3..]), ("time", &["(other)", "bytes", "plot"][..]));
    assert_eq!(plot.num_rows(), 2, "the newest two");
    let mut out = Vec::new();
    let mut renderer = Renderer::new(OutputFormat::Table, &plot.schema(), &mut out).unwrap();
    renderer.write(&plot).unwrap();
    renderer.finish().unwrap();
    let text = String::from_utf8(out).unwrap();
    assert!(text.contains("\n2026-01-01T02:00:00Z  "), "{text}");
}
