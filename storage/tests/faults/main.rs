//! Whatever fails, and whenever: rows that were made durable are there exactly once, and every other is counted.
//!
//! Failures print the seed of the history and the number of the operation; `FAULT_SEED=n` runs that history alone.

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod rig;

use disk::{Fault, Keep, Moment, Random, SimDisk, Survives};
use rig::{DIR, Known, Rig, Step};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::Path;
use storage::{Disk, Retention};

const WAYS: [Survives; 3] = [Survives::Nothing, Survives::All, Survives::Some];

/// A segment of 64 rows takes about 20 kB.
fn retention(seed: u64) -> Retention {
    Retention { max_bytes: [None, Some(60_000), Some(150_000)][(seed % 3) as usize], ..Retention::default() }
}

fn seeds(default: Range<u64>) -> Range<u64> {
    match std::env::var("FAULT_SEED").map(|seed| seed.parse()) {
        Ok(Ok(seed)) => seed..seed + 1,
        _ => default,
    }
}

/// Says which run it was when an assertion fails in it.
fn named<T>(name: impl Fn() -> String, run: impl FnOnce() -> T) -> T {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|panic| {
        eprintln!("failed: {}", name());
        resume_unwind(panic)
    })
}

/// Opens what a crash left, and looks at it: as recovered, and if asked to also after the recovered rows went into
/// segments (which takes most of the time).
fn reopen(disk: &SimDisk, known: &Known, encode: bool) {
    let mut rig =
        Rig::open(disk.clone(), known.clone(), Retention::default()).expect("a crash leaves a folder that opens");
    // Bytes of a log that were never synced may look damaged; nothing else may.
    for damaged in disk.list(&Path::new(DIR).join("damaged")).unwrap_or_default() {
        assert!(damaged.extension().is_some_and(|extension| extension == "wal"), "{}", damaged.display());
    }
    if encode {
        let before = rig.all_rows();
        assert!(rig.flush(), "recovered rows go into segments");
        assert_eq!(rig.all_rows(), before, "encoding recovered rows changes nothing");
    }
}

/// Crashes at a moment in each way, and at one moment in `again` of the start after that.
fn crash_at(moment: &Moment, seed: u64, again: u64) {
    for survives in WAYS {
        let mut random = Random::new(seed ^ moment.operation << 8);
        let operation = moment.operation;
        let name = || format!("seed {seed}, crash before operation {operation} ({}), {survives:?}", moment.what);
        let disk = moment.crash(survives, &mut random);
        disk.keep(Keep::OneOf(again), seed ^ operation);
        let encode = random.below(4) == 0;
        named(name, || reopen(&disk, &moment.known, encode));
        for second in disk.take_moments() {
            let way = WAYS[random.below(3) as usize];
            let name = || format!("{}; again before {} ({}), {way:?}", name(), second.operation, second.what);
            named(name, || reopen(&second.crash(way, &mut random), &second.known, true));
        }
    }
}

/// Lives through a history of `steps` calls; the moments that were kept, and the last one.
fn live(seed: u64, steps: usize, keep: Keep) -> Vec<Moment> {
    let disk = SimDisk::new();
    disk.keep(keep, seed);
    let mut random = Random::new(seed);
    let mut rig = Rig::open(disk.clone(), Known::default(), retention(seed)).unwrap();
    for _ in 0..steps {
        rig.step(Step::any(&mut random));
    }
    let mut moments = disk.take_moments();
    moments.push(disk.moment());
    moments
}

#[test]
fn a_crash_at_every_operation_of_a_history() {
    for seed in seeds(1..3) {
        for moment in named(|| format!("seed {seed}"), || live(seed, 40, Keep::All)) {
            crash_at(&moment, seed, 80);
        }
    }
}

#[test]
fn crashes_at_random_operations_of_long_histories() {
    for seed in seeds(10..13) {
        for moment in named(|| format!("seed {seed}"), || live(seed, 250, Keep::OneOf(60))) {
            crash_at(&moment, seed, 20);
        }
    }
}

/// One folder through many lives, each of which ends in a crash.
#[test]
fn a_folder_survives_crash_after_crash() {
    for seed in seeds(20..24) {
        let mut random = Random::new(seed);
        let mut disk = SimDisk::new();
        let mut known = Known::default();
        for life in 0..25 {
            let name = || format!("seed {seed}, life {life}");
            let moment = named(name, || {
                disk.keep(Keep::OneOf(1 + random.below(60)), random.next());
                let mut rig = Rig::open(disk.clone(), known.clone(), retention(seed)).unwrap();
                for _ in 0..1 + random.below(25) {
                    rig.step(Step::any(&mut random));
                }
                disk.take_moments().pop().unwrap_or_else(|| disk.moment())
            });
            disk = moment.crash(WAYS[random.below(3) as usize], &mut random);
            known = moment.known.clone();
        }
        named(|| format!("seed {seed}, at last"), || reopen(&disk, &known, true));
    }
}

/// A history in which operations fail from the `first` on, `count` of them; then the disk is well again.
fn live_with_fault(seed: u64, steps: usize, fault: Fault, failing: Range<u64>, keep: Keep) -> (Vec<Moment>, u64) {
    let disk = SimDisk::new();
    disk.keep(keep, seed ^ failing.start);
    disk.fail(failing.clone(), fault);
    let mut random = Random::new(seed);
    let mut rig = loop {
        // A start on a failing disk says so, and the next one tries again.
        match Rig::open(disk.clone(), Known::default(), retention(seed)) {
            Ok(rig) => break rig,
            Err(error) => assert!(disk.operations() < failing.end + 200, "{error}"),
        }
    };
    for _ in 0..steps {
        rig.step(Step::any(&mut random));
    }
    disk.heal();
    // Whatever was stuck goes on, and new rows are kept; nobody had to do anything.
    assert!(rig.flush(), "{:?}", rig.counts());
    let lost = rig.counts().map(|counts| counts.rows_lost_disk + counts.rows_lost_backlog);
    rig.step(Step::Append(20));
    rig.step(Step::AppendDns(20));
    rig.step(Step::Sync);
    let counts = rig.counts();
    assert_eq!(counts.clone().map(|counts| counts.rows_lost_disk + counts.rows_lost_backlog), lost, "{counts:?}");
    assert_eq!(counts.clone().map(|counts| counts.unsynced_rows), [0; 2], "{counts:?}");
    let mut moments = disk.take_moments();
    moments.push(disk.moment());
    (moments, disk.hits())
}

#[test]
fn faults_at_every_operation_cost_only_what_is_counted() {
    for seed in seeds(30..31) {
        let disk = SimDisk::new();
        let mut random = Random::new(seed);
        let mut rig = Rig::open(disk.clone(), Known::default(), retention(seed)).unwrap();
        for _ in 0..30 {
            rig.step(Step::any(&mut random));
        }
        let operations = disk.operations();
        drop(rig);
        for fault in Fault::ALL {
            let mut hits = 0;
            for first in 0..operations {
                // One operation, or a disk that fails for a while.
                let failing = first..first + [1, 3, 40][(first % 3) as usize];
                let name = || format!("seed {seed}, {fault:?} at operations {failing:?}");
                let run = || live_with_fault(seed, 30, fault, failing.clone(), Keep::OneOf(300));
                let (moments, hit) = named(name, run);
                hits += hit;
                for moment in moments {
                    named(name, || crash_at(&moment, seed, 1_000));
                }
            }
            assert!(hits > 0, "{fault:?} hit nothing");
        }
    }
}
