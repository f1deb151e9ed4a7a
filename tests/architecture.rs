//! What holds the repository together: dependencies between crates point one way, heavy dependencies stay where they
//! belong, nothing is left unwritten, and the commands and links of the documentation are real.

mod support;

use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use support::taphouse;

/// Who may depend on whom among our own crates; for tests alone, the third column. A crate stands below all that it may
/// depend on, so the table has no cycle. A new arrow is added here and in `docs/architecture.md`, with its reason.
const ARROWS: &[(&str, &[&str], &[&str])] = &[
    ("traffic", &[], &[]),
    ("tuning", &[], &[]),
    ("memory", &[], &[]),
    ("sketches", &["memory"], &[]),
    ("wire", &[], &["traffic"]),
    ("capture", &["wire"], &["traffic"]),
    ("hints", &["memory", "wire"], &["capture", "traffic"]),
    ("flowtable", &["memory", "wire", "hints"], &["capture", "traffic"]),
    ("export", &["wire", "flowtable"], &["hints"]),
    ("talkers", &["wire", "flowtable", "sketches"], &["traffic"]),
    ("detect", &["wire", "flowtable", "sketches"], &["traffic"]),
    ("storage", &["wire", "hints", "flowtable", "talkers"], &["traffic"]),
    ("archive", &["storage"], &["wire", "flowtable", "talkers"]),
    ("query", &["wire", "storage", "archive"], &["hints", "flowtable", "talkers"]),
    ("rpc", &["wire", "flowtable", "talkers", "detect", "storage", "query"], &["hints"]),
    (
        "benches",
        &["wire", "capture", "export", "hints", "flowtable", "sketches", "talkers", "detect", "storage", "traffic"],
        &[],
    ),
    ("history", &["wire", "flowtable", "export", "storage", "query", "benches"], &[]),
    ("sketch_bench", &["wire", "flowtable", "sketches", "talkers", "benches"], &[]),
    ("fuzz", &["wire", "capture", "hints", "flowtable", "traffic"], &[]),
    (
        "taphouse",
        &[
            "wire",
            "capture",
            "hints",
            "flowtable",
            "sketches",
            "talkers",
            "export",
            "detect",
            "storage",
            "archive",
            "query",
            "rpc",
            "traffic",
            "tuning",
        ],
        &[],
    ),
];

/// Crates that touch every packet: no runtime, no serialisation, nothing that waits.
const HOT: [&str; 7] = ["memory", "wire", "capture", "hints", "flowtable", "sketches", "talkers"];
const NOT_HOT: [&str; 10] =
    ["tokio", "tokio-stream", "tonic", "prost", "axum", "futures", "async-trait", "serde", "serde_json", "tracing"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

struct Package {
    /// Dependencies by name; whether only tests use them.
    dependencies: Vec<(String, bool)>,
}

fn workspace() -> BTreeMap<String, Package> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--no-deps", "--offline"])
        .current_dir(root())
        .output()
        .expect("cargo starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout).expect("JSON");
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let packages = metadata["packages"].as_array().expect("packages");
    let package = |p: &Value| {
        let dependencies = p["dependencies"].as_array().expect("dependencies");
        let dependencies = dependencies.iter().map(|d| (text(&d["name"]), d["kind"] == "dev")).collect();
        (text(&p["name"]), Package { dependencies })
    };
    packages.iter().map(package).collect()
}

#[test]
fn dependencies_point_one_way() {
    let packages = workspace();
    let mut wrong = Vec::new();
    for (row, (name, uses, tests_use)) in ARROWS.iter().enumerate() {
        for target in uses.iter().chain(*tests_use) {
            if !ARROWS[..row].iter().any(|(above, ..)| above == target) {
                wrong.push(format!("the table itself turns: {name} -> {target}, which does not stand above it"));
            }
        }
    }
    for (name, package) in &packages {
        let Some((_, uses, tests_use)) = ARROWS.iter().find(|(known, ..)| known == name) else {
            wrong.push(format!("{name} is not in the table of arrows"));
            continue;
        };
        for (target, is_dev) in package.dependencies.iter().filter(|(target, _)| packages.contains_key(target)) {
            let allowed = uses.contains(&target.as_str()) || (*is_dev && tests_use.contains(&target.as_str()));
            if !allowed {
                let kind = if *is_dev { " (in its tests)" } else { "" };
                wrong.push(format!("{name} -> {target}{kind} is not an arrow of the design"));
            }
        }
    }
    let gone = ARROWS.iter().filter(|(name, ..)| !packages.contains_key(*name));
    wrong.extend(gone.map(|(name, ..)| format!("{name} is in the table of arrows, but not in the workspace")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn heavy_dependencies_stay_where_they_belong() {
    let packages = workspace();
    let mut wrong = Vec::new();
    for (name, package) in &packages {
        for (target, is_dev) in &package.dependencies {
            if target.starts_with("datafusion") && name != "query" {
                wrong.push(format!("{name} -> {target}: only `query` compiles DataFusion"));
            }
            let hot = HOT.contains(&name.as_str()) && !is_dev;
            if hot && NOT_HOT.iter().any(|kept_out| target == kept_out || target.starts_with("tonic")) {
                wrong.push(format!("{name} -> {target}: kept out of crates that touch every packet"));
            }
        }
    }
    // Who is built again when `query` changes.
    let mut above = BTreeSet::from(["query"]);
    loop {
        let reached = packages.iter().filter(|(_, p)| p.dependencies.iter().any(|(d, _)| above.contains(d.as_str())));
        let more: Vec<&str> = reached.map(|(name, _)| name.as_str()).filter(|name| !above.contains(name)).collect();
        if more.is_empty() {
            break;
        }
        above.extend(more);
    }
    above.retain(|name| !["query", "rpc", "taphouse", "history"].contains(name));
    wrong.extend(above.iter().map(|name| format!("{name} reaches DataFusion through another crate")));
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every file of the repository whose name ends so, build folders and hidden ones left out.
fn files(ending: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
            if path.is_dir() {
                if !name.starts_with('.') && name != "target" && !path.join("CACHEDIR.TAG").exists() {
                    folders.push(path);
                }
            } else if name.ends_with(ending) {
                found.push(path);
            }
        }
    }
    found.sort();
    found
}

#[test]
fn nothing_is_left_unwritten() {
    let markers = [concat!("todo", "!("), concat!("unimplemented", "!(")];
    let sources = files(".rs");
    assert!(sources.len() > 100, "only {} source files were found", sources.len());
    let mut left = Vec::new();
    for path in sources {
        let text = std::fs::read_to_string(&path).expect("a source file");
        let lines = text.lines().enumerate().filter(|(_, line)| markers.iter().any(|marker| line.contains(marker)));
        left.extend(lines.map(|(at, line)| format!("{}:{}: {}", path.display(), at + 1, line.trim())));
    }
    assert!(left.is_empty(), "{left:#?}");
}

/// The documents whose commands and links people follow.
fn documents() -> Vec<PathBuf> {
    let mut all = files(".md");
    // Changes of the past may name what is gone.
    all.retain(|path| !path.ends_with("CHANGELOG.md"));
    all
}

/// Command lines of the fenced `sh` blocks of a document, continued lines joined.
fn shell_lines(markdown: &str) -> Vec<String> {
    let (mut lines, mut in_block, mut continued) = (Vec::<String>::new(), false, false);
    for line in markdown.lines() {
        let fence = line.trim_start().strip_prefix("```");
        if let Some(info) = fence {
            in_block = !in_block && info.trim() == "sh";
            continued = false;
        } else if in_block {
            let (text, goes_on) = line.strip_suffix('\\').map_or((line, false), |text| (text, true));
            match lines.last_mut().filter(|_| continued) {
                Some(last) => last.push_str(text),
                None => lines.push(text.to_owned()),
            }
            continued = goes_on;
        }
    }
    lines
}

/// The simple commands of a shell line as words: quotes are taken off; comments and redirections are left out.
fn commands(line: &str) -> Vec<Vec<String>> {
    let (mut all, mut words, mut word) = (Vec::new(), Vec::new(), None::<String>);
    let mut quote = None;
    for c in line.chars() {
        match (quote, c) {
            (Some(q), _) if c == q => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, '|' | ';' | '&') => {
                words.extend(word.take());
                all.push(std::mem::take(&mut words));
            }
            (None, _) if c.is_whitespace() => words.extend(word.take()),
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    all.push(words);
    for words in &mut all {
        if let Some(at) = words.iter().position(|w| w.starts_with('>') || w.starts_with("2>")) {
            words.truncate(at);
        }
    }
    all
}

/// What `taphouse` is given by a command, if it is one of ours: also through `sudo`, a path, or `cargo run`.
fn arguments(words: &[String]) -> Option<&[String]> {
    let words = if words.first().is_some_and(|w| w == "sudo") { &words[1..] } else { words };
    let (program, rest) = words.split_first()?;
    if program == "taphouse" || program.ends_with("/taphouse") {
        return Some(rest);
    }
    let other_package = rest.iter().any(|w| w == "-p" || w == "--package");
    if program != "cargo" || rest.first()? != "run" || other_package {
        return None;
    }
    let at = rest.iter().position(|w| w == "--")?;
    Some(&rest[at + 1..])
}

/// Whether the command line would be understood. `--help` at its end is only reached when all before it is.
fn understood(args: &[String]) -> Result<(), String> {
    let output = taphouse().args(args).arg("--help").output().expect("the binary starts");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

#[test]
fn the_commands_of_the_documents_are_understood() {
    let mut wrong = Vec::new();
    let mut in_readme = 0;
    for path in documents() {
        let text = std::fs::read_to_string(&path).expect("a document");
        for line in shell_lines(&text) {
            for words in commands(&line) {
                let Some(args) = arguments(&words) else { continue };
                in_readme += usize::from(path == root().join("README.md"));
                if let Err(reason) = understood(args) {
                    wrong.push(format!("{}: {line}: {reason}", path.display()));
                }
                let settings = args.windows(2).filter(|pair| pair[0] == "--set").map(|pair| &pair[1]);
                for setting in settings {
                    let validate = ["validate", "taphouse.example.yaml", "--set", setting].map(str::to_owned);
                    let output = taphouse().args(validate).current_dir(root()).output().expect("the binary starts");
                    if !output.status.success() {
                        wrong.push(format!("{}: {line}: {}", path.display(), String::from_utf8_lossy(&output.stderr)));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(in_readme >= 8, "only {in_readme} commands were found in README.md");
}

#[test]
fn a_command_that_does_not_exist_is_noticed() {
    let lines = shell_lines(
        "```sh\nsudo ./taphouse flows 'a b' \\\n  --nothing # no such option\n```\n```text\ntaphouse x\n```",
    );
    assert_eq!(lines.len(), 1);
    let found = commands(&lines[0]);
    let args = arguments(&found[0]).expect("a command of ours");
    assert_eq!(args, ["flows", "a b", "--nothing"]);
    assert!(understood(args).is_err());
    let args = |line: &str| commands(line).iter().find_map(|c| arguments(c).map(<[String]>::to_vec));
    assert_eq!(args("cargo run --release -- run"), Some(vec!["run".to_owned()]));
    assert_eq!(args("cat x | taphouse replay - > log"), Some(vec!["replay".to_owned(), "-".to_owned()]));
    assert_eq!(args("cargo run -p traffic -- --out x"), None);
    assert!(understood(&["flowz".to_owned()]).is_err());
}

#[test]
fn links_between_documents_lead_somewhere() {
    let mut broken = Vec::new();
    for path in documents() {
        let text = std::fs::read_to_string(&path).expect("a document");
        let folder = path.parent().expect("a folder");
        for target in text.split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
            let is_relative = !target.is_empty() && !target.contains("://") && !target.contains(char::is_whitespace);
            if is_relative && !folder.join(target).exists() {
                broken.push(format!("{}: {target}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}
