//! What is asked, in the words of each engine.

use benches::flows::{ABSENT, FIRST_END, RARE};
use wire::Addr;

/// One question.
pub(crate) struct Question {
    /// Its row in the table.
    pub(crate) name: &'static str,
    /// Taphouse's SQL; `{files}` does not occur.
    pub(crate) taphouse: String,
    /// DuckDB's SQL over the same files.
    pub(crate) duckdb: String,
    /// Arguments of nfdump, where it can answer.
    pub(crate) nfdump: Option<Vec<String>>,
    /// Most milliseconds it may take Taphouse, where that is set.
    pub(crate) goal_ms: Option<f64>,
}

const HOUR_US: i64 = 3_600_000_000;

/// The questions over `hours` of flows.
pub(crate) fn questions(hours: u64) -> Vec<Question> {
    let common = Addr::v4([10, 20, 0, 7]);
    // An hour and a minute in the middle.
    let hour = (FIRST_END.0 / 1_000) as i64 + hours as i64 / 2 * HOUR_US;
    let minute = (hour + HOUR_US / 2, hour + HOUR_US / 2 + 60_000_000);
    let hour = (hour, hour + HOUR_US);
    let one = "count(*) AS flows, sum(bytes_o + bytes_r) AS bytes";
    vec![
        Question {
            name: "one address in one hour",
            taphouse: format!("SELECT {one} FROM flows WHERE {} AND {}", host(common), taphouse_time(hour)),
            duckdb: format!("SELECT {one} FROM flows WHERE {} AND {}", duckdb_host(common), duckdb_time(hour)),
            nfdump: Some(filter(&format!("ip {common}"), Some(hour))),
            goal_ms: Some(30.0),
        },
        Question {
            name: "an address of four flows, anywhere",
            taphouse: format!("SELECT {one} FROM flows WHERE {}", host(RARE)),
            duckdb: format!("SELECT {one} FROM flows WHERE {}", duckdb_host(RARE)),
            nfdump: Some(filter(&format!("ip {RARE}"), None)),
            goal_ms: Some(30.0),
        },
        Question {
            name: "an address of no flow",
            taphouse: format!("SELECT {one} FROM flows WHERE {}", host(ABSENT)),
            duckdb: format!("SELECT {one} FROM flows WHERE {}", duckdb_host(ABSENT)),
            nfdump: Some(filter(&format!("ip {ABSENT}"), None)),
            goal_ms: Some(5.0),
        },
        Question {
            name: "all of one minute",
            taphouse: format!("SELECT {one} FROM flows WHERE {}", taphouse_time(minute)),
            duckdb: format!("SELECT {one} FROM flows WHERE {}", duckdb_time(minute)),
            nfdump: None,
            goal_ms: None,
        },
        Question {
            name: "top 20 sources by bytes",
            taphouse: "SELECT src_ip, sum(bytes_o) AS bytes FROM flows GROUP BY src_ip ORDER BY bytes DESC LIMIT 20"
                .into(),
            duckdb: "SELECT src_ip, sum(bytes_o) AS bytes FROM flows GROUP BY src_ip ORDER BY bytes DESC LIMIT 20"
                .into(),
            nfdump: Some(vec!["-s".into(), "srcip/bytes".into(), "-n".into(), "20".into()]),
            goal_ms: None,
        },
        Question {
            name: "bytes a minute by protocol",
            taphouse: "SELECT date_trunc('minute', t_end) AS minute, proto, sum(bytes_o + bytes_r) AS bytes \
                       FROM flows GROUP BY minute, proto ORDER BY minute, proto"
                .into(),
            duckdb: "SELECT date_trunc('minute', t_end) AS minute, proto, sum(bytes_o + bytes_r) AS bytes \
                     FROM flows GROUP BY minute, proto ORDER BY minute, proto"
                .into(),
            nfdump: None,
            goal_ms: None,
        },
        Question {
            name: "count by port and size",
            taphouse: "SELECT count(*) AS flows FROM flows WHERE dst_port = 443 AND bytes_r > 100000".into(),
            duckdb: "SELECT count(*) AS flows FROM flows WHERE dst_port = 443 AND bytes_r > 100000".into(),
            nfdump: None,
            goal_ms: None,
        },
    ]
}

fn host(address: Addr) -> String {
    format!("(src_ip = '{address}' OR dst_ip = '{address}')")
}

fn duckdb_host(address: Addr) -> String {
    let bytes: String = address.0.iter().map(|byte| format!("\\x{byte:02X}")).collect();
    format!("(src_ip = '{bytes}'::BLOB OR dst_ip = '{bytes}'::BLOB)")
}

fn taphouse_time((from, until): (i64, i64)) -> String {
    format!("t_end >= to_timestamp_micros({from}) AND t_end < to_timestamp_micros({until})")
}

fn duckdb_time((from, until): (i64, i64)) -> String {
    format!("t_end >= make_timestamptz({from}) AND t_end < make_timestamptz({until})")
}

/// nfdump's window is one of whole seconds, over starts and ends; so the files are narrowed, and its count differs.
fn filter(text: &str, hour: Option<(i64, i64)>) -> Vec<String> {
    let mut arguments = Vec::new();
    if let Some((from, until)) = hour {
        arguments.extend(["-t".to_owned(), format!("{}-{}", from / 1_000_000, until / 1_000_000 - 1)]);
    }
    arguments.extend(["-o".to_owned(), "fmt:%byt".to_owned(), text.to_owned()]);
    arguments
}
