//! `taphouse retention`: which segments a server would drop, and why.

use crate::cli::{Output, RetentionArgs};
use crate::config::Config;
use crate::failure::{Code, Failure};
use anyhow::anyhow;
use chrono::{DateTime, SecondsFormat};
use comfy_table::{CellAlignment, Table, presets};
use serde_json::{Value, json};
use std::io::Write;
use std::time::SystemTime;
use storage::{Expiring, Limit, Retention, RetentionPlan, StoreReader};

pub(crate) fn retention(args: &RetentionArgs, output: Output) -> Result<(), Failure> {
    if !args.dry_run {
        let told = anyhow!(
            "segments are dropped by a running server alone, as storage.retention says: use --dry-run to see what would go"
        );
        return Err(Failure::new(Code::Usage, told));
    }
    let config = Config::load(args.config.as_deref(), &args.overrides).map_err(|e| Failure::new(Code::Usage, e))?;
    let limits = limits(&config, args)?;
    let dir = args.data_dir.as_ref().unwrap_or(&config.data_dir);
    // A server knows which segments have left; here the notes it keeps of that tell.
    let archive = config.archive.to_archive(&config.storage).map_err(|e| Failure::new(Code::Usage, e))?;
    let shipped = archive.map(|archive| archive::shipped(dir, &archive)).transpose();
    let shipped = shipped.map_err(|e| Failure::new(Code::Failed, e))?.unwrap_or_default();
    let plan = StoreReader::open(dir)?.retention_plan(&limits, SystemTime::now(), &shipped)?;
    print(&plan, &limits, output)
}

/// Those of the configuration, or of the command line where it names any.
fn limits(config: &Config, args: &RetentionArgs) -> Result<Retention, Failure> {
    if args.max_age.is_none() && args.max_size.is_none() && args.min_free.is_none() {
        return Ok(super::retention(config));
    }
    let wrong = |option: &str, text: &str, example: &str| {
        Failure::new(Code::Usage, anyhow!("{option} is '{text}', expected {example}"))
    };
    let size = |option: &str, text: &Option<String>| {
        let parsed = text.as_deref().map(|text| {
            let size = text.parse::<bytesize::ByteSize>();
            size.map(|size| size.as_u64()).map_err(|_| wrong(option, text, "a size such as 10GiB"))
        });
        parsed.transpose()
    };
    let age = args.max_age.as_deref().map(|text| {
        humantime::parse_duration(text).map_err(|_| wrong("--max-age", text, "a duration such as 7d or 12h"))
    });
    Ok(Retention {
        max_age: age.transpose()?,
        max_bytes: size("--max-size", &args.max_size)?,
        min_free_bytes: size("--min-free", &args.min_free)?,
        shipped_to: config.archive.held_for(),
    })
}

fn print(plan: &RetentionPlan, limits: &Retention, output: Output) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table => write!(out, "{}", text(plan, limits))?,
        Output::Csv => {
            writeln!(out, "table,file,oldest,newest,rows,bytes,limit,fate")?;
            for (one, fate) in all(plan) {
                let v = segment(one);
                let file = one.file.replace('"', "\"\"");
                let [oldest, newest] = ["oldest", "newest"].map(|key| v[key].as_str().unwrap_or_default());
                let Expiring { table, rows, bytes, limit, .. } = one;
                writeln!(out, "{table},\"{file}\",{oldest},{newest},{rows},{bytes},{},{fate}", name(*limit))?;
            }
        }
        Output::Ndjson => {
            for (one, fate) in all(plan) {
                let mut v = segment(one);
                v["fate"] = fate.into();
                writeln!(out, "{v}")?;
            }
        }
        // Others are refused before.
        Output::Json | Output::Ecs | Output::Eve | Output::Arrow | Output::Parquet => {
            let list = |segments: &[Expiring]| segments.iter().map(segment).collect::<Vec<_>>();
            let document = json!({
                "limits": {
                    "max_age_s": limits.max_age.map(|age| age.as_secs_f64()),
                    "max_bytes": limits.max_bytes,
                    "min_free_bytes": limits.min_free_bytes,
                },
                "dropped": list(&plan.dropped),
                "unshipped": list(&plan.unshipped),
                "kept": { "segments": plan.kept_segments, "rows": plan.kept_rows, "bytes": plan.kept_bytes },
                "waiting_bytes": plan.waiting_bytes,
                "free_bytes": plan.free_bytes,
            });
            writeln!(out, "{document:#}")?;
        }
    }
    Ok(())
}

/// What goes, and what stays only because it has not been shipped, each with which of the two it is.
fn all(plan: &RetentionPlan) -> impl Iterator<Item = (&Expiring, &'static str)> {
    let unshipped = plan.unshipped.iter().map(|one| (one, "unshipped"));
    plan.dropped.iter().map(|one| (one, "dropped")).chain(unshipped)
}

fn segment(one: &Expiring) -> Value {
    json!({
        "table": one.table, "file": one.file, "oldest": time(one.oldest_us), "newest": time(one.newest_us),
        "rows": one.rows, "bytes": one.bytes, "limit": name(one.limit),
    })
}

fn text(plan: &RetentionPlan, limits: &Retention) -> String {
    let size = bytesize::ByteSize;
    let mut out = String::new();
    if all(plan).next().is_some() {
        let mut table = Table::new();
        table
            .load_style(presets::UTF8_HORIZONTAL_ONLY)
            .set_header(["table", "oldest", "newest", "rows", "size", "why", "file"]);
        for (one, fate) in all(plan) {
            let stays = if fate == "dropped" { "" } else { ", but stays: not shipped" };
            table.add_row([
                one.table.to_owned(),
                time(one.oldest_us),
                time(one.newest_us),
                one.rows.to_string(),
                size(one.bytes).to_string(),
                why(one.limit, limits) + stays,
                one.file.clone(),
            ]);
        }
        for column in [3, 4] {
            if let Some(column) = table.column_mut(column) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        out.push_str(&format!("{table}\n\n"));
    }
    let sum = |segments: &[Expiring]| {
        let rows: u64 = segments.iter().map(|one| one.rows).sum();
        let bytes: u64 = segments.iter().map(|one| one.bytes).sum();
        format!("{} segments, {rows} rows, {}", segments.len(), size(bytes))
    };
    out.push_str(&format!("would go    {}\n", sum(&plan.dropped)));
    out.push_str(&format!(
        "would stay  {} segments, {} rows, {}\n",
        plan.kept_segments,
        plan.kept_rows,
        size(plan.kept_bytes)
    ));
    if !plan.unshipped.is_empty() {
        out.push_str(&format!("of these    {}, until they are shipped\n", sum(&plan.unshipped)));
    }
    if plan.waiting_bytes > 0 {
        out.push_str(&format!("gone soon   {}, dropped already and held by queries\n", size(plan.waiting_bytes)));
    }
    out.push_str(&format!("free now    {}\n", size(plan.free_bytes)));
    out
}

fn why(limit: Limit, limits: &Retention) -> String {
    let size = |bytes: Option<u64>| bytesize::ByteSize(bytes.unwrap_or_default());
    match limit {
        Limit::MaxAge => format!("older than {}", humantime::format_duration(limits.max_age.unwrap_or_default())),
        Limit::MaxBytes => format!("more than {} in all", size(limits.max_bytes)),
        Limit::MinFree => format!("less than {} free", size(limits.min_free_bytes)),
    }
}

/// As the configuration has it.
fn name(limit: Limit) -> &'static str {
    match limit {
        Limit::MaxAge => "max_age",
        Limit::MaxBytes => "max_size",
        Limit::MinFree => "min_free",
    }
}

fn time(us: i64) -> String {
    DateTime::from_timestamp_micros(us)
        .map_or_else(|| format!("{us} us since 1970"), |time| time.to_rfc3339_opts(SecondsFormat::Secs, true))
}
