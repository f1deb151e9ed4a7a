//! A short run of every target, the same each time: seeds as they are, then broken ones. What libFuzzer does for hours, so
//! that targets and what they assert never rot.

use fuzz::{Mutator, TARGETS, seeds};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `inputs` broken seeds of a target; a finding prints the input.
fn run(name: &str, inputs: u32) {
    let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
    let seeds = seeds::made(name);
    assert!(seeds.len() >= 5, "only {} seeds for {name}", seeds.len());
    for seed in &seeds {
        attack(target.attack, seed);
    }
    let mut mutator = Mutator::new(&seeds, 20_261_120);
    for _ in 0..inputs {
        attack(target.attack, mutator.next_input());
    }
}

/// Findings, made small by hand.
const KEPT: [(&str, &[&[u8]]); 1] = [
    // A long record header, cut behind a length that is too large: in pieces the file was cut short, as a whole corrupt.
    (
        "captures",
        &[
            &[5, 0],
            &[0x34, 0xcd, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 4, 0, 1, 0, 0, 0],
            &[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0],
        ],
    ),
];

#[test]
fn kept_findings() {
    for (name, parts) in KEPT {
        let target = TARGETS.iter().find(|target| target.name == name).expect("a target of that name");
        attack(target.attack, &parts.concat());
    }
}

fn attack(target: fn(&[u8]), input: &[u8]) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| target(input))) {
        eprintln!("the input is {input:?}");
        std::panic::resume_unwind(panic);
    }
}

macro_rules! targets {
    ($($name:ident: $inputs:literal),* $(,)?) => {
        $(#[test]
        fn $name() {
            run(stringify!($name), $inputs);
        })*

        #[test]
        fn every_target_is_run() {
            let mut run = vec![$(stringify!($name)),*];
            let mut all = TARGETS.map(|target| target.name);
            run.sort_unstable();
            all.sort_unstable();
            assert_eq!(run, all);
            let manifest = include_str!("../Cargo.toml");
            for name in all {
                assert!(manifest.contains(&format!("path = \"targets/{name}.rs\"")), "{name} has no binary");
            }
        }
    };
}

targets! {
    decode: 20_000,
    captures: 4_000,
    filter: 4_000,
    tls: 20_000,
    dns: 20_000,
    quic: 3_000,
    quic_sealed: 1_000,
    http: 20_000,
    signatures: 10_000,
    inspector: 3_000,
    flows: 2_000,
}
