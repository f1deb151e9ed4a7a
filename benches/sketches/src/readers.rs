//! What a reader that asks in a loop costs the one that writes. Without a pause it takes the cache lines of the most frequent items
//! away as often as it can: the worst there is. Questions a person or a poll asks come between.

use crate::contest::{Contestant, Data, HEAVY_BYTES, Outcome, timed};
use flowtable::FlowDelta;
use sketches::{CocoSketch, CountMin, UpdateRule, mix};
use std::hint::black_box;
use std::sync::atomic::{
    AtomicBool, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};
use std::time::Duration;
use talkers::{Board, Kind, WhenBehind, Which};
use wire::{Addr, Direction, FlowKey, Nanos};

const BESIDE: &str = "a writer beside a reader, u64 keys, Zipf: rate while it reads";

pub(crate) fn all() -> Vec<Contestant> {
    let one = |name, run| Contestant { group: BESIDE, name, run };
    vec![
        one("CocoSketch, 100 estimates every millisecond", |data| coco(data, Duration::from_millis(1), hundred)),
        one("CocoSketch, the whole list ten times a second", |data| coco(data, Duration::from_millis(100), list)),
        one("CocoSketch, estimates without a pause", |data| coco(data, Duration::ZERO, hundred)),
        one("CocoSketch, the whole list without a pause", |data| coco(data, Duration::ZERO, list)),
        one("Count-Min, 4 x 32768, estimates without a pause", |data| {
            let sketch = CountMin::new(1 << 15, 4, UpdateRule::Plain).expect("a good shape");
            let ask = |sketch: &CountMin| {
                (1..=100).for_each(|item| {
                    black_box(sketch.estimate(mix(item)));
                });
            };
            let write = |sketch: &CountMin, items: &[u64]| items.iter().for_each(|item| sketch.update(mix(*item), 1));
            beside(data, &sketch, sketch.memory_bytes(), Duration::ZERO, ask, write)
        }),
        one("a task of heavy hitters, the window being filled without a pause, as a server asks", task),
    ]
}

/// What a server does: questions share copies of the window being filled.
fn task(data: &Data) -> Outcome {
    let tasks = talkers::default_tasks().into_iter().filter(|task| task.kind == Kind::HeavyHitters).collect();
    let started = talkers::start(tasks, &["tap".to_owned()], &[0], usize::MAX, 1, WhenBehind::GoOn);
    let (mut feeds, _collector, board) = started.expect("a task that is there by default");
    board.share_running(Duration::from_millis(100));
    let (feed, task, by) = (&mut feeds[0], &board.tasks()[0], "src_ip".parse().expect("a key"));
    let now = Nanos::from_secs(1_700_000_000);
    assert!(feed.must_turn(now, true), "the first window begins");
    feed.turn(now);
    feed.swept();
    let ask = |board: &Board| {
        if let Ok(Some(window)) = board.window(task, None, Which::Running) {
            black_box(window.list(&by, 0, 10).expect("a key it has"));
        }
    };
    let write = |_: &Board, items: &[u64]| {
        for item in items {
            let [.., a, b, c, d] = item.to_be_bytes();
            let key = FlowKey { lo: Addr::v4([a, b, c, d]), lo_port: 1, hi_port: 2, proto: 6, ..FlowKey::default() };
            let flow = FlowDelta { key: &key, originator: Direction::LoToHi, pkts: [1, 0], bytes: [100, 0] };
            feed.delta(&flow, false);
        }
    };
    beside(data, &*board, task.memory_bytes(), Duration::ZERO, ask, write)
}

fn coco(data: &Data, pause: Duration, ask: fn(&CocoSketch<1>)) -> Outcome {
    let sketch = CocoSketch::<1>::new(HEAVY_BYTES, 1).expect("a good size");
    let write = |sketch: &CocoSketch<1>, items: &[u64]| {
        items.iter().for_each(|item| sketch.update(mix(*item), &[*item], 1));
    };
    beside(data, &sketch, sketch.memory_bytes(), pause, ask, write)
}

/// Of those that come most.
fn hundred(sketch: &CocoSketch<1>) {
    (1..=100).for_each(|item| {
        black_box(sketch.estimate(mix(item), &[item]));
    });
}

fn list(sketch: &CocoSketch<1>) {
    black_box(sketch.by(|key| key[0]));
}

/// Turns of a part of the stream, of which each second one has a reader beside it.
fn beside<S: Sync>(
    data: &Data,
    sketch: &S,
    memory_bytes: usize,
    pause: Duration,
    ask: impl Fn(&S) + Sync,
    mut write: impl FnMut(&S, &[u64]),
) -> Outcome {
    let (is_on, is_over, asked) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    // The first turn only warms up.
    let turns = data.items.chunks(data.items.len().div_ceil(21));
    let mut took = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !is_over.load(Acquire) {
                if !is_on.load(Acquire) {
                    std::thread::sleep(Duration::from_micros(100));
                    continue;
                }
                ask(sketch);
                asked.fetch_add(1, Relaxed);
                if !pause.is_zero() {
                    std::thread::sleep(pause);
                }
            }
        });
        for (turn, items) in turns.enumerate() {
            is_on.store(turn % 2 == 1, Release);
            // Until the reader has noticed.
            std::thread::sleep(Duration::from_millis(2));
            took.push((items.len(), timed(|| write(sketch, items)).as_secs_f64()));
        }
        is_over.store(true, Release);
    });
    let pairs = took[1..].chunks_exact(2);
    let mut slower: Vec<f64> = pairs.map(|pair| 100.0 * (pair[0].1 / pair[1].1 - 1.0)).collect();
    slower.sort_unstable_by(f64::total_cmp);
    let (updates, cpu) = took.iter().skip(1).step_by(2).fold((0, 0.0), |sum, (n, cpu)| (sum.0 + n, sum.1 + cpu));
    let errors = format!(
        "{:.1} % slower ({:.1} to {:.1}), {} questions",
        slower[slower.len() / 2],
        slower[0],
        slower[slower.len() - 1],
        asked.load(Relaxed)
    );
    Outcome { updates, cpu: Duration::from_secs_f64(cpu), memory_bytes, errors }
}
