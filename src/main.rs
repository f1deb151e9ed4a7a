//! Taphouse, the binary: command line, configuration, and the wiring of the stages into one process.

#![forbid(unsafe_code)]

mod cli;
mod commands;
mod config;
mod failure;
mod notify;
mod pipeline;
mod server;
mod slices;
mod status;
mod tables;
mod taps;

use clap::Parser;
use clap::error::ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand;
use cli::{Cli, Command, Output};
use failure::Failure;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        // Help and version go to standard output; without any command the help is the answer too.
        Err(error) if !error.use_stderr() || error.kind() == DisplayHelpOnMissingArgumentOrSubcommand => error.exit(),
        Err(error) => return Failure::usage(&error).report(Output::asked(std::env::args_os())),
    };
    let output = cli.output.output;
    let has_it = match cli.command {
        Command::Flows(_) => true,
        Command::Sql(_) | Command::Talkers(_) => !output.is_for_flows(),
        _ => !output.is_for_flows() && !output.is_columns(),
    };
    if !has_it {
        return commands::query::not_here(output).report(output);
    }
    let result = match cli.command {
        Command::Run(args) => commands::run::run(&args),
        Command::Replay(args) => commands::replay::replay(&args, output),
        Command::Demo(args) => commands::demo::demo(&args),
        Command::Flows(args) => commands::query::flows(&args, output),
        Command::Sql(args) => commands::query::sql(&args, output),
        Command::Talkers(args) => commands::query::talkers(&args, output),
        Command::Alerts(args) => commands::alerts::alerts(&args, output),
        Command::Slice(args) => commands::slice::slice(&args, output),
        Command::Status(args) => commands::status::status(&args, output),
        Command::Retention(args) => commands::retention::retention(&args, output),
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
