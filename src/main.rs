//! Taphouse, the binary: command line, configuration, and the wiring of the stages into one process.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod config;
mod failure;
mod pipeline;
mod server;
mod time;

use clap::Parser;
use cli::{Cli, Command};
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let output = cli.output.output;
    let result = match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Replay(args) => commands::replay::replay(&args, output),
        Command::Demo(args) => commands::demo::demo(&args),
        Command::Flows(args) => commands::query::flows(&args, output),
        Command::Sql(args) => commands::query::sql(&args, output),
        Command::Alerts(args) => commands::alerts::alerts(&args, output),
        Command::Status(args) => commands::status::status(&args, output),
        Command::Validate(args) => commands::misc::validate(&args, output),
        Command::ExampleConfig => commands::misc::example_config(),
        Command::Completions { shell } => commands::misc::completions(shell),
        Command::Man { dir } => commands::misc::man(&dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) if failure.is_broken_pipe() => ExitCode::SUCCESS,
        Err(failure) => failure.report(output),
    }
}
