//! Programs in the kernel. Needs CAP_BPF and CAP_NET_ADMIN; skipped without, unless REQUIRE_XDP=1.

mod attach;
mod verdicts;

use super::sys::CounterMap;
use super::{BpfError, COUNTER_WORDS};
use std::process::{Command, ExitStatus};

/// Whether programs can be loaded here; says why not.
fn can_load() -> bool {
    match CounterMap::new(1, COUNTER_WORDS) {
        Ok(_) => true,
        Err(e) => {
            assert!(std::env::var_os("REQUIRE_XDP").is_none_or(|v| v != "1"), "REQUIRE_XDP=1, but: {e}");
            println!("SKIPPED: {}", BpfError::of_call("create a map", e));
            false
        }
    }
}

/// Runs one test of this binary again behind `wrapper`, with `role` in the environment.
fn again(wrapper: &[&str], name: &str, role: &str) -> ExitStatus {
    command(wrapper, name, role).status().unwrap()
}

fn command(wrapper: &[&str], name: &str, role: &str) -> Command {
    let mut command = Command::new(wrapper[0]);
    command.args(&wrapper[1..]).arg(std::env::current_exe().unwrap());
    command.args(["--exact", name, "--include-ignored", "--nocapture", "--test-threads=1"]).env(ROLE, role);
    command
}

const ROLE: &str = "TAPHOUSE_TEST_ROLE";

fn role() -> Option<String> {
    std::env::var(ROLE).ok()
}
