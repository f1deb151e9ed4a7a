//! `taphouse flows` and `taphouse sql`: questions about the past, to a server or to a data folder.

mod answer;
mod export;
mod flows;
mod print;
mod screen;
mod shape;
mod sink;
mod talkers;

pub(crate) use flows::flows;
pub(crate) use talkers::talkers;

use crate::cli::{AnswerArgs, Output, SqlArgs};
use crate::config::QuerySection;
use crate::failure::{Code, Failure};
use answer::Question;
use anyhow::Context;
use export::Target;
use query::render::OutputFormat;
use query::{GeoFiles, QueryError, QueryLimits, TEXT_BYTES_MAX};
use rpc::RpcError;
use shape::Shape;
use std::fs::File;
use std::io::{self, Read};
use std::path::Path;

/// Why two times select nothing.
const NO_TIME_BETWEEN: &str = "--until lies before --since, and no time between them: change one of them";

/// A format that only some commands have was asked of another.
pub(crate) fn not_here(output: Output) -> Failure {
    let name = name(output);
    let told = if output.is_for_flows() {
        format!("--output {name} prints flows alone: use `taphouse flows --output {name}`, or ndjson here")
    } else {
        format!(
            "--output {name} prints what `taphouse flows` and `taphouse sql` find: use table, json, ndjson or csv here"
        )
    };
    Failure::new(Code::Usage, anyhow::anyhow!(told))
}

pub(crate) fn sql(args: &SqlArgs, output: Output) -> Result<(), Failure> {
    let text = match (&args.query, &args.file) {
        (Some(text), _) if text != "-" => text.clone(),
        (_, Some(path)) if path != Path::new("-") => {
            let file = File::open(path).with_context(|| format!("cannot open {}", super::show(path)))?;
            read_text(file, &super::show(path))?
        }
        _ => read_text(io::stdin().lock(), "standard input")?,
    };
    ask(&args.answer, output, Question::Sql(text), Shape::Rows)
}

/// A statement from a file. No more is read than a query may have.
fn read_text(from: impl Read, name: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    from.take(TEXT_BYTES_MAX as u64 + 1).read_to_end(&mut bytes).with_context(|| format!("cannot read {name}"))?;
    if bytes.len() > TEXT_BYTES_MAX {
        let told = anyhow::anyhow!("{name} has more than {TEXT_BYTES_MAX} bytes, the most a query may have");
        return Err(Failure::new(Code::Usage, told));
    }
    let not_text = |_| Failure::new(Code::Usage, anyhow::anyhow!("{name} is no text: a query is UTF-8"));
    String::from_utf8(bytes).map_err(not_text)
}

fn ask(args: &AnswerArgs, output: Output, question: Question, shape: Shape) -> Result<(), Failure> {
    match &args.export {
        None => print::print(args, output, question, shape),
        Some(path) => {
            if output.is_for_flows() || output.is_columns() {
                let name = name(output);
                let told = anyhow::anyhow!("--export writes what the file's name ends in: leave --output {name} out");
                return Err(Failure::new(Code::Usage, told));
            }
            export::export(&Target::new(path, args)?, args, output, question, shape)
        }
    }
}

/// Limits of a query from the configuration.
pub(crate) fn limits(config: &QuerySection) -> QueryLimits {
    QueryLimits {
        memory_bytes: usize::try_from(config.memory.0).unwrap_or(usize::MAX),
        time_max: Some(config.time_max.0),
        scan_bytes_max: config.scan_max.map(|max| max.0),
        concurrent_max: usize::from(config.concurrent_max),
        threads: match config.threads {
            0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
            n => usize::from(n),
        },
        ..QueryLimits::default()
    }
}

/// Files of functions that look addresses up, from the configuration.
pub(crate) fn geo_files(config: &QuerySection) -> GeoFiles {
    GeoFiles { country: config.geoip.country.clone(), asn: config.geoip.asn.clone() }
}

/// The name of an output on the command line.
fn name(output: Output) -> String {
    clap::ValueEnum::to_possible_value(&output).map_or_else(String::new, |value| value.get_name().to_owned())
}

/// The format of lines; columns have their own.
fn text_format(output: Output) -> OutputFormat {
    match output {
        Output::Table | Output::Arrow | Output::Parquet => OutputFormat::Table,
        Output::Json => OutputFormat::Json,
        Output::Ndjson => OutputFormat::Ndjson,
        Output::Csv => OutputFormat::Csv,
        Output::Ecs => OutputFormat::Ecs,
        Output::Eve => OutputFormat::Eve,
    }
}

/// A mistake in the value of an option, which is named.
fn usage<E: Into<anyhow::Error>>(option: &str) -> impl Fn(E) -> Failure + use<'_, E> {
    move |error| Failure::new(Code::Usage, anyhow::anyhow!("{option}: {}", error.into()))
}

/// A wrong question is the caller's, anything else is ours.
fn local(error: QueryError) -> Failure {
    let code = match error {
        QueryError::Sql(_)
        | QueryError::Filter(_)
        | QueryError::ReadOnly { .. }
        | QueryError::TooLong { .. }
        | QueryError::Computing { .. } => Code::Usage,
        _ => Code::Failed,
    };
    Failure::new(code, error)
}

pub(super) fn remote(error: RpcError) -> Failure {
    let code = match &error {
        RpcError::NoServer { .. } => Code::Unreachable,
        RpcError::Address { .. } => Code::Usage,
        RpcError::Status(status) if status.code() == tonic::Code::InvalidArgument => Code::Usage,
        _ => Code::Failed,
    };
    // The text alone: the status behind it would repeat the server's message.
    Failure::new(code, anyhow::anyhow!("{error}"))
}
