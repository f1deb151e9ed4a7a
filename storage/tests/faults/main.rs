//! Whatever fails, and whenever: rows that were made durable are there exactly once, and every other is counted.
//!
//! Failures print the seed of the history and the number of the operation; `FAULT_SEED=n` runs that history alone.

#[path = "../common/mod.rs"]
mod common;
mod disk;
mod rig;

use disk::{Fault, Keep, Kind, Moment, Random, SimDisk, Survives};
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
    for seed in seeds(1..2) {
        for moment in named(|| format!("seed {seed}"), || live(seed, 40, Keep::All)) {
            crash_at(&moment, seed, 80);
        }
    }
}

#[test]
fn crashes_at_random_operations_of_long_histories() {
    for seed in seeds(11..13) {
        for moment in named(|| format!("seed {seed}"), || live(seed, 250, Keep::OneOf(80))) {
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

/// A history in which some operations fail; then the disk is well again. The disk as it is at last.
fn live_with_fault(seed: u64, steps: usize, fault: Fault, failing: Range<u64>) -> SimDisk {
    let disk = SimDisk::new();
    disk.fail(failing.clone(), fault);
    let mut random = Random::new(seed);
    let mut rig = loop {
        // A start on a failing disk says so, and the next one tries again.
        match Rig::open(disk.clone(), Known::default(), retention(seed)) {
            Ok(rig) => break rig,
            Err(error) => assert!((disk.operations().len() as u64) < failing.end + 200, "{error}"),
        }
    };
    for _ in 0..steps {
        rig.step(Step::any(&mut random));
    }
    disk.heal();
    // Whatever was stuck goes on, and new rows are kept; nobody had to do anything.
    assert!(rig.flush(), "{:?}", rig.counts());
    let lost = rig.lost();
    rig.step(Step::Append(20));
    rig.step(Step::AppendDns(20));
    rig.step(Step::Sync);
    assert_eq!(rig.lost(), lost, "{:?}", rig.counts());
    assert_eq!(rig.counts().map(|counts| counts.unsynced_rows), [0; 2], "{:?}", rig.counts());
    disk
}

#[test]
fn faults_at_every_operation_cost_only_what_is_counted() {
    const STEPS: usize = 20;
    for seed in seeds(31..32) {
        let operations = live_with_fault(seed, STEPS, Fault::Io, 0..0).operations();
        for fault in Fault::ALL {
            let mut hits = 0;
            let fails = |(_, kind): &(u64, &Kind)| fault.error(**kind).is_some();
            for (first, _) in (0..).zip(&operations).filter(fails) {
                // One operation, a few, or a disk that fails for a while; mostly one.
                let failing = first..first + [1, 40, 1, 3][(first % 4) as usize];
                let name = || format!("seed {seed}, {fault:?} at operations {failing:?}");
                let disk = named(name, || live_with_fault(seed, STEPS, fault, failing.clone()));
                hits += disk.hits();
                let mut random = Random::new(seed ^ first);
                let (moment, survives) = (disk.moment(), WAYS[random.below(3) as usize]);
                let name = || format!("{}, then a crash, {survives:?}", name());
                named(name, || reopen(&moment.crash(survives, &mut random), &moment.known, false));
            }
            assert!(hits > 0, "{fault:?} hit nothing");
        }
    }
}

/// A disk that is always nearly full, and sometimes full: retention makes room, also when not even its own note fits.
#[test]
fn a_small_disk_is_written_for_ever() {
    let free = Retention { min_free_bytes: Some(50_000), ..Retention::default() };
    for seed in seeds(40..42) {
        named(
            || format!("seed {seed}"),
            || {
                let disk = SimDisk::new();
                disk.set_capacity(250_000);
                let mut random = Random::new(seed);
                let mut rig = Rig::open(disk.clone(), Known::default(), free).unwrap();
                for _ in 0..150 {
                    rig.step(Step::any(&mut random));
                }
                let removed = rig.counts().map(|counts| counts.rows_removed);
                assert!(removed.iter().all(|rows| *rows > 0), "{removed:?}");
                let known = rig.known.clone();
                drop(rig);
                disk.set_capacity(disk.used());
                let mut rig = Rig::open(disk.clone(), known, free).expect("a start on a full disk");
                disk.set_capacity(disk.used());
                rig.step(Step::Append(20));
                rig.step(Step::Sync);
                assert_eq!(rig.lost()[0], 20, "not a byte is free");
                rig.step(Step::Tick(61_000));
                assert!(rig.flush(), "{:?}", rig.counts());
                rig.step(Step::Append(20));
                rig.step(Step::Sync);
                assert_eq!(rig.lost()[0], 20, "retention has made room");
            },
        );
    }
}
