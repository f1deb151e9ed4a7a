//! Commands about Taphouse itself: validate, example-config, completions, man.

use crate::cli::{Cli, Output, ValidateArgs};
use crate::config::{Config, example};
use crate::failure::{Code, Failure};
use anyhow::Context;
use clap::CommandFactory;
use serde_json::json;
use std::io::Write;
use std::path::Path;

pub(crate) fn validate(args: &ValidateArgs, output: Output) -> Result<(), Failure> {
    Config::load(Some(&args.config), &args.overrides).map_err(|e| Failure::new(Code::Usage, e))?;
    let file = super::show(&args.config);
    let mut out = std::io::stdout().lock();
    match output {
        Output::Table => writeln!(out, "{file} is valid")?,
        Output::Csv => writeln!(out, "file,valid\n\"{}\",true", file.replace('"', "\"\""))?,
        _ => writeln!(out, "{}", json!({ "file": file, "valid": true }))?,
    }
    Ok(())
}

pub(crate) fn example_config() -> Result<(), Failure> {
    std::io::stdout().lock().write_all(example().as_bytes())?;
    Ok(())
}

pub(crate) fn completions(shell: clap_complete::Shell) -> Result<(), Failure> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "taphouse", &mut text);
    std::io::stdout().lock().write_all(&text)?;
    Ok(())
}

pub(crate) fn man(dir: &Path) -> Result<(), Failure> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make the folder {}", super::show(dir)))?;
    clap_mangen::generate_to(Cli::command(), dir)
        .with_context(|| format!("cannot write man pages to {}", super::show(dir)))?;
    Ok(())
}
