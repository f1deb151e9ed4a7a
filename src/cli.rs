//! The command line.

use clap::{Args, Parser, Subcommand, ValueEnum};
use std::ffi::OsString;
use std::path::PathBuf;

/// What each exit code means; printed by `--help` and in the man pages.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failed; the reason is on standard error
  2  wrong usage: unknown option, bad value, bad config, bad filter or SQL
  3  the input is damaged or no capture: what came before the damage is stored
  4  not permitted: a capability or a file permission is missing
  5  no server answers at the address
  130, 143  ended by SIGINT or SIGTERM: a question by the first, a server or a replay by the second";

/// Capture server for network taps: packets to flows, flows to Parquet, answers in SQL over gRPC.
#[derive(Debug, Parser)]
#[command(name = "taphouse", version, about, after_help = EXIT_CODES, max_term_width = 110)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// How data is printed; errors are JSON too with json, ndjson, ecs and eve.
    #[arg(long, value_enum, global = true, default_value_t = Output::Table)]
    pub(crate) output: Output,
}

/// Output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Output {
    /// Aligned columns for people.
    Table,
    /// One JSON document.
    Json,
    /// One JSON object a line.
    Ndjson,
    /// Comma-separated values with a header (RFC 4180).
    Csv,
    /// `flows` only: one JSON object a line, in the Elastic Common Schema.
    Ecs,
    /// `flows` only: one JSON object a line, as flow events of Suricata's EVE log.
    Eve,
    /// `flows`, `sql` and `talkers` only: an Arrow IPC stream.
    Arrow,
    /// `flows`, `sql` and `talkers` only: a Parquet file.
    Parquet,
}

impl Output {
    pub(crate) fn is_json(self) -> bool {
        matches!(self, Output::Json | Output::Ndjson | Output::Ecs | Output::Eve)
    }

    /// Whether only flows can be printed so.
    pub(crate) fn is_for_flows(self) -> bool {
        matches!(self, Output::Ecs | Output::Eve)
    }

    /// Whether it is binary, for rows of an answer alone.
    pub(crate) fn is_columns(self) -> bool {
        matches!(self, Output::Arrow | Output::Parquet)
    }

    /// What a command line that does not parse asks for: `--output json` or `--output=json`, else a table.
    pub(crate) fn asked(args: impl Iterator<Item = OsString>) -> Output {
        let args: Vec<String> = args.map(|arg| arg.to_string_lossy().into_owned()).collect();
        let joined = args.iter().filter_map(|arg| arg.strip_prefix("--output="));
        let spaced = args.windows(2).filter(|pair| pair[0] == "--output").map(|pair| pair[1].as_str());
        joined.chain(spaced).find_map(|name| Output::from_str(name, false).ok()).unwrap_or(Output::Table)
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Capture live traffic, keep its flows and serve them.
    #[command(after_help = EXIT_CODES)]
    Run(RunArgs),
    /// Send capture files through the same pipeline.
    #[command(after_help = EXIT_CODES)]
    Replay(ReplayArgs),
    /// Run the whole server on generated traffic; needs no privilege.
    #[command(after_help = EXIT_CODES)]
    Demo(DemoArgs),
    /// List flows, newest first.
    #[command(after_help = format!("{FLOWS_HELP}\n\n{EXIT_CODES}"))]
    Flows(FlowsArgs),
    /// Answer a SQL query over the tables `flows`, `dns` and `talkers`.
    #[command(after_help = format!("{SQL_HELP}\n\n{EXIT_CODES}"))]
    Sql(SqlArgs),
    /// Who sends most, who contacts many, how evenly: what the sketches estimate, live or from history.
    #[command(after_help = format!("{TALKERS_HELP}\n\n{EXIT_CODES}"))]
    Talkers(TalkersArgs),
    /// List alerts, or follow them.
    #[command(after_help = EXIT_CODES)]
    Alerts(AlertsArgs),
    /// Keep packets of a running server in a file, from some seconds ago on.
    #[command(after_help = format!("{SLICE_HELP}\n\n{EXIT_CODES}"))]
    Slice(SliceArgs),
    /// What a running server captures, lost, holds.
    #[command(after_help = EXIT_CODES)]
    Status(StatusArgs),
    /// Which segments retention would drop, and why.
    #[command(after_help = format!("{RETENTION_HELP}\n\n{EXIT_CODES}"))]
    Retention(RetentionArgs),
    /// Check a configuration file.
    #[command(after_help = EXIT_CODES)]
    Validate(ValidateArgs),
    /// Print the complete example configuration.
    ExampleConfig,
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write man pages, one for each command, into a folder.
    Man {
        /// The folder; made if it is missing.
        dir: PathBuf,
    },
}

const FLOWS_HELP: &str = "\
Examples:
  taphouse flows \"src_ip = '10.0.0.1' AND dst_port = 443\" --since -15m
  taphouse flows \"net('10.0.0.0/8') AND pkts_r = 0\" --data-dir taphouse-data --output json
  taphouse flows \"host('2001:db8::1') OR port(53)\" --sort bytes,t_end:asc --limit 20
  taphouse flows --since -1h --top 10 --by src_ip,dst_port --metric packets
  taphouse flows \"proto = 'tcp'\" --since -6h --timeline 5m --by app --top 4
  taphouse flows --since -1d --export yesterday.parquet
  taphouse flows --since -5m --limit 0 --output ecs

Either side: host('10.0.0.1'), net('10.0.0.0/8'), port(443). Columns: taphouse sql 'DESCRIBE flows'; bytes and packets
are both directions together, as are retrans, lost, ooo, zwin, goodput and others that end in _o and _r there.

A flow that lasts has a record each active timeout (a minute), under one flow_id. --top and --timeline count it once in
each group; its bytes and packets are those of its records. In a timeline a record counts in the interval in which it
ends, and --until bounds that end; elsewhere --until bounds its start.";

const SQL_HELP: &str = "\
Examples:
  taphouse sql \"SELECT src_ip, sum(bytes_o) AS bytes FROM flows GROUP BY src_ip ORDER BY bytes DESC LIMIT 10\"
  taphouse sql \"SELECT count(*) FROM flows WHERE host('10.0.0.1')\" --data-dir taphouse-data --output csv
  taphouse sql -f report.sql --export report.csv.gz
  taphouse sql - --output parquet < report.sql > report.parquet";

const TALKERS_HELP: &str = "\
Examples:
  taphouse talkers --by src_ip --metric bytes --window 1m
  taphouse talkers --by src_ip,dst_port --running --limit 10 --exact
  taphouse talkers --by originator --metric distinct --window 1m --follow
  taphouse talkers --by src_ip --changes
  taphouse talkers --by src_ip --metric bytes --since -1d --data-dir taphouse-data --output json
  taphouse talkers

Fields of packets: src_ip (who sent it), dst_ip, src_port, dst_port; of flows: originator (who began it), responder,
originator_port, responder_port; of both: proto, vlan. A server answers by any part of a task's key; history by the lists
that its tasks have kept (sketches.tasks). lower and upper are bounds: what a key had is between them.
Without --by: how many, how evenly, how large, of the latest windows.

--exact adds what the flows say: of all that is stored exactly; of one window, the whole of the flows that overlap it.";

const SLICE_HELP: &str = "\
Examples:
  taphouse slice start --filter \"host 10.0.0.1 and port 53\" --before 5s --duration 30s --save dns.pcapng.zst
  taphouse slice list
  taphouse slice get 3 incident.pcapng.zst && zstd -dc incident.pcapng.zst | tcpdump -nr -";

const RETENTION_HELP: &str = "\
Examples:
  taphouse retention --dry-run --data-dir taphouse-data --max-age 7d
  taphouse retention --dry-run --config /etc/taphouse/taphouse.yaml --output json

Nothing is changed, and a server may be running. Sizes and ages are those of storage.retention.";

/// What both kinds of server take.
#[derive(Clone, Debug, Args)]
pub(crate) struct ServerArgs {
    /// Configuration file (YAML); all keys have defaults.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Folder for segments, write-ahead log and alerts.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Send flow records to this IPFIX collector too, over UDP unless ipfix.transport says tcp.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) ipfix: Option<String>,
    /// Override any key of the configuration, for example flowtable.timeouts=off.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// Interface to watch, each its own tap; without any, those of the config, else the default route's.
    #[arg(short, long = "interface", value_name = "IF")]
    pub(crate) interfaces: Vec<String>,
    /// What to capture, in the syntax of pcap-filter(7), such as "tcp port 443 and not host 10.0.0.1".
    #[arg(short, long, value_name = "EXPR")]
    pub(crate) filter: Option<String>,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ReplayArgs {
    /// Captures, pcap or pcapng, plain, .gz or .zst; - is standard input.
    #[arg(required = true, value_name = "FILE")]
    pub(crate) files: Vec<PathBuf>,
    /// Which packets to take, in the syntax of pcap-filter(7), such as "tcp port 443 and not host 10.0.0.1".
    #[arg(short, long, value_name = "EXPR")]
    pub(crate) filter: Option<String>,
    /// Name of the tap the packets were seen at.
    #[arg(long, value_name = "NAME", default_value = "replay", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub(crate) tap: String,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct DemoArgs {
    /// Generated packets per second.
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..=5_000_000))]
    pub(crate) rate: u64,
    #[command(flatten)]
    pub(crate) server: ServerArgs,
}

/// Where an answer comes from.
#[derive(Debug, Args)]
pub(crate) struct FromArgs {
    /// Ask the server at this address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", conflicts_with = "data_dir")]
    pub(crate) server: String,
    /// Read this data folder instead, also while a server writes it; or an archive: s3://BUCKET/PREFIX, all its sensors,
    /// with credentials and endpoint from the AWS_ variables.
    #[arg(long, value_name = "DIR|URL")]
    pub(crate) data_dir: Option<PathBuf>,
}

/// Where an answer comes from, and where it goes.
#[derive(Debug, Args)]
pub(crate) struct AnswerArgs {
    /// Write the answer into this file instead, in the format its name ends in: .parquet, .arrow, .csv, .ndjson or
    /// .json, the last three also with .gz or .zst behind.
    #[arg(long, value_name = "FILE")]
    pub(crate) export: Option<PathBuf>,
    /// Write over the file of --export.
    #[arg(long, requires = "export")]
    pub(crate) force: bool,
    /// How arrow and parquet have addresses and MACs: as text (the default), or as the bytes they are stored as.
    #[arg(long, value_enum)]
    pub(crate) addresses: Option<Addresses>,
    /// Print all of it, also what is longer than the terminal; otherwise $PAGER shows that, or less -SFX.
    #[arg(long)]
    pub(crate) no_pager: bool,
    #[command(flatten)]
    pub(crate) from: FromArgs,
    /// With --data-dir: configuration file (YAML) whose section `query` holds, as a server's does: budgets, and the files of
    /// country() and asn().
    #[arg(long, value_name = "FILE", requires = "data_dir")]
    pub(crate) config: Option<PathBuf>,
    /// With --data-dir: override a key of it, for example query.geoip.country=GeoLite2-Country.mmdb.
    #[arg(long = "set", value_name = "KEY=VALUE", requires = "data_dir")]
    pub(crate) overrides: Vec<String>,
}

/// How addresses are told where there is a choice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(crate) enum Addresses {
    /// As people write them.
    #[default]
    Text,
    /// 16 bytes, IPv4 mapped; 6 bytes of a MAC.
    Binary,
}

#[derive(Debug, Args)]
pub(crate) struct FlowsArgs {
    /// A SQL boolean expression over the columns of `flows`.
    #[arg(value_name = "EXPR")]
    pub(crate) filter: Option<String>,
    /// Flows that end at or after this time: RFC 3339, or back from now such as -15m.
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub(crate) since: Option<String>,
    /// Flows that start before this time.
    #[arg(long, value_name = "T", allow_hyphen_values = true)]
    pub(crate) until: Option<String>,
    /// Most rows to print, of a timeline the newest intervals; 0 for all. A listing has 100 without it, an export all.
    #[arg(long, value_name = "N")]
    pub(crate) limit: Option<u64>,
    /// Columns to print, separated by commas; all of them in all formats but the table by default.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) columns: Vec<String>,
    /// The order: columns, separated by commas, each the largest first, or smallest with :asc. The newest first by
    /// default.
    #[arg(long, value_name = "COLUMN[:asc|desc]", value_delimiter = ',', conflicts_with_all = ["top", "timeline"])]
    pub(crate) sort: Vec<String>,
    /// Instead of flows, the N groups that have the most; with --timeline, how many are told apart there.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000), conflicts_with = "columns")]
    pub(crate) top: Option<u64>,
    /// What makes a group: columns, separated by commas.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) by: Vec<String>,
    /// What groups are compared by, and bars show: bytes (the default), packets, flows, or another count to add up, such
    /// as bytes_o or retrans.
    #[arg(long, value_name = "NAME")]
    pub(crate) metric: Option<String>,
    /// Instead of flows, sums for each interval of this length, such as 1m; with --by for the largest groups, 5 of them
    /// unless --top says otherwise, and all others together.
    #[arg(long, value_name = "INTERVAL", conflicts_with = "columns")]
    pub(crate) timeline: Option<String>,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SqlArgs {
    /// One SELECT statement; - reads it from standard input.
    #[arg(value_name = "QUERY", required_unless_present = "file")]
    pub(crate) query: Option<String>,
    /// Read the statement from this file; - is standard input.
    #[arg(short, long, value_name = "FILE", conflicts_with = "query")]
    pub(crate) file: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct TalkersArgs {
    /// What makes a key: fields, separated by commas.
    #[arg(long, value_name = "A,B", value_delimiter = ',')]
    pub(crate) by: Vec<String>,
    /// What is compared: bytes, packets, flows or distinct. By default what the first task that answers counts; of history bytes,
    /// where a list has them.
    #[arg(long, value_name = "NAME", requires = "by")]
    pub(crate) metric: Option<String>,
    /// A task of the configuration by name; by default the first that answers, and of history the only one, or that of bytes.
    #[arg(long, value_name = "NAME")]
    pub(crate) task: Option<String>,
    /// One window of this length, such as 1m: the latest that is over. Without it, everything that is stored.
    #[arg(long, value_name = "LENGTH", requires = "by")]
    pub(crate) window: Option<String>,
    /// The window that is being filled.
    #[arg(long, conflicts_with = "data_dir", requires = "by")]
    pub(crate) running: bool,
    /// Again and again: the window being filled, and each window when it is over.
    #[arg(long, short, conflicts_with_all = ["data_dir", "export", "running", "since", "until"], requires = "by")]
    pub(crate) follow: bool,
    /// The keys that grew or shrank most since the window before.
    #[arg(long, conflicts_with_all = ["data_dir", "follow", "exact", "since", "until"], requires = "by")]
    pub(crate) changes: bool,
    /// Only windows that end after this time: RFC 3339, or back from now such as -15m.
    #[arg(long, value_name = "T", allow_hyphen_values = true, conflicts_with_all = ["window", "running"])]
    pub(crate) since: Option<String>,
    /// Only windows that start before this time.
    #[arg(long, value_name = "T", allow_hyphen_values = true, conflicts_with_all = ["window", "running"])]
    pub(crate) until: Option<String>,
    /// Only what was seen at this tap.
    #[arg(long, value_name = "NAME")]
    pub(crate) tap: Option<String>,
    /// Most keys to print; 0 for all that are stored, or 10,000 of a server's memory, 1,000
    /// with --exact.
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub(crate) limit: u64,
    /// Add what the flows say.
    #[arg(long, requires = "by")]
    pub(crate) exact: bool,
    #[command(flatten)]
    pub(crate) answer: AnswerArgs,
}

#[derive(Debug, Args)]
pub(crate) struct AlertsArgs {
    /// Wait for new ones.
    #[arg(long, short, conflicts_with = "data_dir")]
    pub(crate) follow: bool,
    /// Only alerts after this number.
    #[arg(long, value_name = "SEQ", default_value_t = 0)]
    pub(crate) after: u64,
    /// Most alerts to print, the newest; 0 for all.
    #[arg(long, default_value_t = 100)]
    pub(crate) limit: u64,
    #[command(flatten)]
    pub(crate) from: FromArgs,
}

#[derive(Debug, Args)]
pub(crate) struct SliceArgs {
    #[command(subcommand)]
    pub(crate) action: SliceAction,
    /// The server's address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051", global = true)]
    pub(crate) server: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum SliceAction {
    /// Start one.
    Start(SliceStartArgs),
    /// End one that is being recorded.
    Stop {
        /// Its number.
        id: u64,
    },
    /// List all of them, the newest first.
    List,
    /// Copy the file of a complete one.
    Get {
        /// Its number.
        id: u64,
        /// The file to write; pcapng, compressed with zstd.
        file: PathBuf,
    },
    /// Remove a complete one.
    Delete {
        /// Its number.
        id: u64,
    },
}

#[derive(Debug, Args)]
pub(crate) struct SliceStartArgs {
    /// Which packets, in the syntax of pcap-filter(7); all of them by default.
    #[arg(short, long, value_name = "EXPR")]
    pub(crate) filter: Option<String>,
    /// How long it goes on.
    #[arg(long, default_value = "10s")]
    pub(crate) duration: String,
    /// How long before now it begins, as far as the server remembers.
    #[arg(long, default_value = "5s")]
    pub(crate) before: String,
    /// Bytes of packets after which it ends.
    #[arg(long, value_name = "SIZE", default_value = "64MiB")]
    pub(crate) max_size: String,
    /// A tap by name; may be given several times, all taps by default.
    #[arg(long = "tap", value_name = "TAP")]
    pub(crate) taps: Vec<String>,
    /// What the file is called: letters, digits, hyphens.
    #[arg(long, default_value = "request")]
    pub(crate) label: String,
    /// Wait until it is complete.
    #[arg(long)]
    pub(crate) wait: bool,
    /// Wait, then copy it into this file.
    #[arg(long, value_name = "FILE")]
    pub(crate) save: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct StatusArgs {
    /// The server's address.
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:50051")]
    pub(crate) server: String,
}

#[derive(Debug, Args)]
pub(crate) struct RetentionArgs {
    /// Show what would go; nothing is changed.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The data folder; that of the configuration by default.
    #[arg(long, value_name = "DIR")]
    pub(crate) data_dir: Option<PathBuf>,
    /// Age of the newest flow in a segment, such as 7d. With any of the three limits here, the configuration's do not count.
    #[arg(long, value_name = "AGE")]
    pub(crate) max_age: Option<String>,
    /// Bytes of all segments together, such as 10GiB.
    #[arg(long, visible_alias = "max-bytes", value_name = "SIZE")]
    pub(crate) max_size: Option<String>,
    /// Free space the disk must keep, such as 50GiB.
    #[arg(long, value_name = "SIZE")]
    pub(crate) min_free: Option<String>,
    /// Configuration file (YAML) with the limits to apply.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Override any key of the configuration, for example storage.retention.max_age=30d.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct ValidateArgs {
    /// The file.
    #[arg(value_name = "CONFIG")]
    pub(crate) config: PathBuf,
    /// Overrides to check with it.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub(crate) overrides: Vec<String>,
}
