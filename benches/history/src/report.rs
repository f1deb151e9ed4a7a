//! What was measured, as Markdown and as JSON.

use crate::engines::Answer;
use crate::folder::Folder;
use crate::many::Many;
use crate::together::Together;
use benches::harness::Spread;
use serde::Serialize;

/// All that was measured.
#[derive(Default, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: String,
    pub(crate) bytes_per_flow: Option<f64>,
    pub(crate) asked: Vec<Asked>,
    pub(crate) many_ms: Option<Spread>,
    pub(crate) together_p99_ms: Option<f64>,
}

/// A question and what each engine took.
#[derive(Serialize)]
pub(crate) struct Asked {
    pub(crate) name: String,
    pub(crate) goal_ms: Option<f64>,
    pub(crate) taphouse: Option<Took>,
    pub(crate) duckdb: Option<Took>,
    pub(crate) nfdump: Option<Took>,
    /// Files Taphouse opened.
    pub(crate) opened: u64,
}

/// Milliseconds.
#[derive(Serialize)]
pub(crate) struct Took {
    pub(crate) elapsed: Spread,
    pub(crate) cpu: Spread,
}

impl Took {
    pub(crate) fn of(answers: &[Answer]) -> Option<Took> {
        let ms = |time: std::time::Duration| time.as_secs_f64() * 1e3;
        let elapsed = Spread::of(answers.iter().map(|answer| ms(answer.elapsed)))?;
        Some(Took { elapsed, cpu: Spread::of(answers.iter().map(|answer| ms(answer.cpu)))? })
    }
}

pub(crate) fn questions(folder: &Folder, asked: &[Asked]) -> String {
    let mut out = format!(
        "### Questions\n\n{} flows of {} hours in {} segments, {:.1} bytes a flow. Milliseconds, medians (extremes), of \
         the whole answer and of all threads' processor time.\n\n\
         | question | goal | Taphouse | CPU | files | DuckDB | CPU | nfdump | CPU |\n|---|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        folder.content.rows,
        folder.content.hours,
        folder.segments,
        folder.bytes as f64 / folder.content.rows as f64
    );
    let spread = |s: Spread| format!("{:.1} ({:.1}-{:.1})", s.median, s.min, s.max);
    let cells = |took: &Option<Took>| match took {
        None => "- | -".to_owned(),
        Some(took) => format!("{} | {:.1}", spread(took.elapsed), took.cpu.median),
    };
    for asked in asked {
        let goal = asked.goal_ms.map_or_else(|| "-".to_owned(), |goal| goal.to_string());
        let ours = cells(&asked.taphouse);
        let (duckdb, nfdump) = (cells(&asked.duckdb), cells(&asked.nfdump));
        out += &format!("| {} | {goal} | {ours} | {} | {duckdb} | {nfdump} |\n", asked.name, asked.opened);
    }
    out + "\n"
}

pub(crate) fn many(many: &Many) -> String {
    format!(
        "### Very many segments\n\nOne minute out of {} segments: {:.1} ms ({:.1}-{:.1}), {} opened; the goal is 30.\n\n",
        many.segments, many.ms.median, many.ms.min, many.ms.max, many.opened
    )
}

pub(crate) fn together(t: &Together) -> String {
    let slower = (t.beside_ns.median / t.alone_ns.median - 1.0) * 100.0;
    format!(
        "### Writing and asking at once\n\n{:.2} of {:.2} M rows a second written; {} point queries answered meanwhile in \
         {:.1} ms (median), {:.1} ms (99 of 100; the goal is 100).\n\nAppending takes {:.0} ns a row ({:.0}-{:.0}) with nobody \
         asking, {:.0} ({:.0}-{:.0}) while everything is read again and again: {slower:+.1} % (the goal is less than 5).\n\n",
        t.written / 1e6,
        t.wanted as f64 / 1e6,
        t.answers,
        t.median_ms,
        t.p99_ms,
        t.alone_ns.median,
        t.alone_ns.min,
        t.alone_ns.max,
        t.beside_ns.median,
        t.beside_ns.min,
        t.beside_ns.max
    )
}
