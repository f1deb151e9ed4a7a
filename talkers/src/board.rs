//! Windows that are over, merged over workers and ready for questions; and those being filled.

use crate::feed::Feed;
use crate::sketch::Sketch;
use crate::slots::{Filling, Slots};
use crate::task::{Task, TaskConfig};
use crate::window::Window;
use crate::{KeySpec, Metric, TaskError};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use wire::{Nanos, TapId};

/// What to do when the collector is behind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WhenBehind {
    /// Wait: a replay has time.
    Wait,
    /// Go on in the same window, and count it: a live worker has none.
    GoOn,
}

/// By how many windows a worker may be behind another one of its tap.
const BEHIND_MAX: u64 = 4;
/// Sketches of each tap and task in windows that are over: pending ones, and two that are answered from.
const COLLECTED_MAX: usize = BEHIND_MAX as usize + 2;
/// How often the window being filled is read again because it ended meanwhile.
const ATTEMPTS: usize = 16;

/// Which window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Which {
    /// The one being filled.
    Running,
    /// The latest one that is over.
    Last,
    /// The one before that.
    Previous,
}

/// All tasks of all taps. Answers from any thread, without making a worker wait.
#[derive(Debug)]
pub struct Board {
    tasks: Vec<Arc<Task>>,
    taps: Vec<String>,
    /// Of each worker its tap, and its slots by task.
    workers: Vec<(usize, Vec<Arc<Slots>>)>,
    /// By tap and task: the last window and the one before.
    published: Mutex<Vec<Published>>,
    /// By task and tap, behind the taps of all of them.
    shared: Vec<Mutex<Shared>>,
    /// Nanoseconds; see [`Board::share_running`].
    shared_for: AtomicU64,
    windows: AtomicU64,
    stragglers: AtomicU64,
}

/// A copy of the window being filled, and when it was made.
type Shared = Option<(Instant, Arc<Window>)>;

/// The windows of one tap and task that are over.
#[derive(Debug, Default)]
struct Published {
    last: Option<Arc<Window>>,
    previous: Option<Arc<Window>>,
    /// No window before this one will come any more.
    past: u64,
}

/// What became of windows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BoardCounts {
    /// Published.
    pub windows: u64,
    /// Went on in the slot of the one before, because it had not been collected yet.
    pub late: u64,
    /// What a worker had of a window that had been published without it; it was counted in the next one.
    pub stragglers: u64,
}

/// Takes what workers hand over. One thread drives it.
#[derive(Debug)]
pub struct Collector {
    board: Arc<Board>,
    /// By tap and task.
    lanes: Vec<Collected>,
    when_behind: WhenBehind,
    abandoned: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct Collected {
    pending: BTreeMap<u64, Sketch>,
    /// Windows before this have been published.
    next: u64,
    /// Empty sketches.
    spares: Vec<Sketch>,
}

/// Makes everything: a feed for each entry of `worker_taps`, which names the worker's tap by number; what collects; and what
/// answers. All memory is allocated here, but for that of answers.
///
/// # Errors
/// As [`check`].
pub fn start(
    tasks: Vec<TaskConfig>,
    taps: &[String],
    worker_taps: &[usize],
    memory_max: usize,
    seed: u64,
    when_behind: WhenBehind,
) -> Result<(Vec<Feed>, Collector, Arc<Board>), TaskError> {
    let tasks = check(tasks, taps.len(), worker_taps.len(), memory_max, seed)?;
    let slots = |_: &usize| tasks.iter().map(|task| Slots::new(task).map(Arc::new)).collect::<Result<Vec<_>, _>>();
    let workers = worker_taps.iter().map(|tap| Ok((*tap, slots(tap)?))).collect::<Result<Vec<_>, TaskError>>()?;
    let abandoned = Arc::new(AtomicBool::new(false));
    let feed = |(_, slots): &(usize, Vec<Arc<Slots>>)| Feed::new(&tasks, slots, when_behind, abandoned.clone());
    let feeds = workers.iter().map(feed).collect();
    let mut lanes = Vec::new();
    for (_, task) in taps.iter().flat_map(|tap| tasks.iter().map(move |task| (tap, task))) {
        let spares = (0..COLLECTED_MAX).map(|_| Sketch::new(task)).collect::<Result<_, _>>()?;
        lanes.push(Collected { spares, ..Collected::default() });
    }
    let published = Mutex::new(lanes.iter().map(|_| Published::default()).collect());
    let shared = (0..tasks.len() * (taps.len() + 1)).map(|_| Mutex::default()).collect();
    let [shared_for, windows, stragglers] = [0; 3].map(AtomicU64::new);
    let taps = taps.to_vec();
    let board = Arc::new(Board { tasks, taps, workers, published, shared, shared_for, windows, stragglers });
    Ok((feeds, Collector { board: board.clone(), lanes, when_behind, abandoned }, board))
}

/// Tasks, each with a name and a hash of its own, that fit into the memory.
///
/// # Errors
/// A task cannot be, two have one name, or all of them take more than `memory_max` bytes.
pub fn check(
    tasks: Vec<TaskConfig>,
    taps: usize,
    workers: usize,
    memory_max: usize,
    seed: u64,
) -> Result<Vec<Arc<Task>>, TaskError> {
    let copies = 2 * workers + copies_of(taps);
    let (mut checked, mut bytes) = (Vec::<Arc<Task>>::new(), 0_usize);
    for (number, config) in tasks.into_iter().enumerate() {
        if checked.iter().any(|task| task.name() == config.name) {
            return Err(TaskError::new("name", &config.name, "there twice; give each task its own").of(&config.name));
        }
        let name = config.name.clone();
        let room = memory_max.saturating_sub(bytes) / copies.max(1);
        let task = Task::new(config, sketches::mix(seed ^ (number as u64 + 1)), room).map_err(|error| match error {
            TaskError::Memory { bytes: more } => {
                let all = bytes.saturating_add(more.saturating_mul(copies));
                let allowed = format!(
                    "up to task '{name}' they take at least {all} bytes with {workers} worker(s) and {taps} tap(s), two windows a worker and \
                     {} of the taps; raise it, or make tasks smaller",
                    copies_of(taps)
                );
                TaskError::new("memory_max", memory_max.to_string(), allowed)
            }
            error => error,
        })?;
        bytes = bytes.saturating_add(task.memory_bytes().saturating_mul(copies));
        checked.push(Arc::new(task));
    }
    Ok(checked)
}

impl Board {
    /// The tasks.
    pub fn tasks(&self) -> &[Arc<Task>] {
        &self.tasks
    }

    /// Names of the taps, by number.
    pub fn taps(&self) -> &[String] {
        &self.taps
    }

    /// Bytes of all sketches.
    pub fn memory_bytes(&self) -> usize {
        let workers = self.workers.iter().flat_map(|(_, slots)| slots).map(|slots| slots.memory_bytes()).sum::<usize>();
        let one: usize = self.tasks.iter().map(|task| task.memory_bytes()).sum();
        workers + one * copies_of(self.taps.len())
    }

    /// What became of windows.
    pub fn counts(&self) -> BoardCounts {
        BoardCounts {
            windows: self.windows.load(Ordering::Relaxed),
            late: self.workers.iter().flat_map(|(_, slots)| slots).map(|slots| slots.late()).sum(),
            stragglers: self.stragglers.load(Ordering::Relaxed),
        }
    }

    /// The task that answers: the one of that name, or the first whose key has all fields of `by`, and that counts `metric`.
    ///
    /// # Errors
    /// There is none; the error says what there is.
    pub fn find(&self, name: Option<&str>, metric: Option<Metric>, by: &KeySpec) -> Result<&Arc<Task>, TaskError> {
        if let Some(name) = name {
            let named = self.tasks.iter().find(|task| task.name() == name);
            return named.ok_or_else(|| self.none(format!("there is no task '{name}'")));
        }
        let answers = |task: &&Arc<Task>| {
            let counts = metric.is_none_or(|metric| metric == task.metric());
            counts && task.answers(by)
        };
        self.tasks.iter().find(answers).ok_or_else(|| {
            let metric = metric.map_or(String::new(), |metric| format!("{} ", metric.name()));
            let by = if by.is_empty() { "as a whole".to_owned() } else { format!("by {by}") };
            self.none(format!("no task counts {metric}{by}"))
        })
    }

    fn none(&self, what: String) -> TaskError {
        let of = |task: &Arc<Task>| match task.key().is_empty() {
            true => format!("{} ({} of {})", task.name(), task.metric().name(), task.elements()),
            false => format!("{} ({} by {})", task.name(), task.metric().name(), task.key()),
        };
        let tasks: Vec<String> = self.tasks.iter().map(of).collect();
        let known = if tasks.is_empty() { "none: sketches.tasks is empty".to_owned() } else { tasks.join(", ") };
        TaskError::Question(format!("{what}; there are {known}; more can be set under sketches.tasks"))
    }

    /// A window of a task, over one tap or all of them; `None` if there is none yet.
    ///
    /// # Errors
    /// There is no such tap; or windows end faster than they can be read.
    pub fn window(&self, task: &Task, tap: Option<&str>, which: Which) -> Result<Option<Arc<Window>>, TaskError> {
        let Some(at) = self.tasks.iter().position(|other| other.name() == task.name()) else { return Ok(None) };
        let taps: Vec<usize> = match tap {
            None => (0..self.taps.len()).collect(),
            Some(name) => match self.taps.iter().position(|tap| tap == name) {
                Some(tap) => vec![tap],
                None => {
                    let known = self.taps.join(", ");
                    return Err(TaskError::Question(format!("there is no tap '{name}'; there are {known}")));
                }
            },
        };
        match which {
            Which::Running => self.shared(at, &taps),
            Which::Last => self.over(at, &taps, 0),
            Which::Previous => self.over(at, &taps, 1),
        }
    }

    /// From now on the window being filled is copied so often at most, however often it is asked for: a copy takes cache lines from
    /// the workers that fill it. Without this it is copied for each question.
    pub fn share_running(&self, every: Duration) {
        self.shared_for.store(u64::try_from(every.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// The window being filled: a copy of it that is young enough, or a new one.
    fn shared(&self, at: usize, taps: &[usize]) -> Result<Option<Arc<Window>>, TaskError> {
        let every = Duration::from_nanos(self.shared_for.load(Ordering::Relaxed));
        if every.is_zero() {
            return self.running(at, taps).map(|window| window.map(Arc::new));
        }
        let place = one_of(taps).map_or(self.taps.len(), |tap| usize::from(tap.0));
        let shared = &self.shared[at * (self.taps.len() + 1) + place];
        // Whoever asks meanwhile waits for the copy that is being made.
        let mut shared = shared.lock().unwrap_or_else(PoisonError::into_inner);
        let is_good = |(made, window): &(Instant, Arc<Window>)| {
            made.elapsed() < every && self.filled_by(at, taps).map(Filling::past).max() == Some(window.number)
        };
        if let Some((_, window)) = shared.as_ref().filter(|shared| is_good(shared)) {
            return Ok(Some(window.clone()));
        }
        // Its memory first.
        *shared = None;
        let window = self.running(at, taps)?.map(Arc::new);
        *shared = window.clone().map(|window| (Instant::now(), window));
        Ok(window)
    }

    fn filled_by(&self, at: usize, taps: &[usize]) -> impl Iterator<Item = Filling> {
        let workers = self.workers.iter().filter(|(tap, _)| taps.contains(tap));
        workers.map(move |(_, slots)| slots[at].filling())
    }

    /// The window being filled.
    fn running(&self, at: usize, taps: &[usize]) -> Result<Option<Window>, TaskError> {
        let task = &self.tasks[at];
        let workers = || self.workers.iter().filter(|(tap, _)| taps.contains(tap)).map(|(_, slots)| &slots[at]);
        for _ in 0..ATTEMPTS {
            let before: Vec<Filling> = self.filled_by(at, taps).collect();
            let numbers = before.iter().filter_map(|filling| match filling {
                Filling::Window(number, _) => Some(*number),
                Filling::Nothing | Filling::Ended => None,
            });
            let Some(number) = numbers.max() else { return Ok(None) };
            let merged = Sketch::new(task)?;
            for (slots, filling) in workers().zip(&before) {
                // Of one that is behind there is nothing in this window yet.
                if let Filling::Window(window, slot) = filling
                    && *window == number
                {
                    merged.merge(slots.sketch(*slot))?;
                }
            }
            if workers().map(|slots| slots.filling_still()).eq(before) {
                return Ok(Some(Window::new(task.clone(), one_of(taps), number, true, merged)));
            }
        }
        Err(TaskError::Busy)
    }

    /// The latest window that is over, or the one before that.
    fn over(&self, at: usize, taps: &[usize], age: usize) -> Result<Option<Arc<Window>>, TaskError> {
        let found: Vec<Arc<Window>> = {
            let published = self.published();
            let all: Vec<&Published> = taps.iter().map(|tap| &published[tap * self.tasks.len() + at]).collect();
            let windows = || all.iter().flat_map(|of_tap| [&of_tap.last, &of_tap.previous]).flatten();
            // Not one that a tap may still bring its part of.
            let past = all.iter().map(|of_tap| of_tap.past).min().unwrap_or(0);
            let mut numbers: Vec<u64> = windows().map(|window| window.number).filter(|number| *number < past).collect();
            numbers.sort_unstable_by(|a, b| b.cmp(a));
            numbers.dedup();
            let Some(number) = numbers.get(age) else { return Ok(None) };
            windows().filter(|window| window.number == *number).cloned().collect()
        };
        let (Some(first), [_, _, ..]) = (found.first(), &found[..]) else { return Ok(found.into_iter().next()) };
        let merged = Sketch::new(&first.task)?;
        for window in &found {
            merged.merge(&window.sketch)?;
        }
        Ok(Some(Arc::new(Window::new(first.task.clone(), None, first.number, false, merged))))
    }

    fn published(&self) -> MutexGuard<'_, Vec<Published>> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sketches of each task beside the workers': those that are over, and a copy of the one being filled, of each tap; and such a copy of
/// all taps together.
fn copies_of(taps: usize) -> usize {
    (COLLECTED_MAX + 1) * taps + usize::from(taps > 1)
}

fn one_of(taps: &[usize]) -> Option<TapId> {
    match taps {
        [tap] => Some(tap_id(*tap)),
        _ => None,
    }
}

fn tap_id(tap: usize) -> TapId {
    TapId(u16::try_from(tap).unwrap_or(u16::MAX))
}

impl Collector {
    /// Takes what has been handed over, and gives the windows that are over by that.
    ///
    /// # Errors
    /// Sketches of one task do not fit each other, which would be a fault of this crate.
    pub fn poll(&mut self) -> Result<Vec<Arc<Window>>, TaskError> {
        let mut over = Vec::new();
        for tap in 0..self.board.taps.len() {
            for task in 0..self.board.tasks.len() {
                self.collect(tap, task, &mut over)?;
            }
        }
        Ok(over)
    }

    /// Whether all workers have ended, and all they had is published.
    pub fn is_over(&self) -> bool {
        let mut slots = self.board.workers.iter().flat_map(|(_, slots)| slots);
        // First the end, then what was handed over before it.
        slots.all(|slots| slots.filling() == Filling::Ended && slots.is_clear())
            && self.lanes.iter().all(|lane| lane.pending.is_empty())
    }

    fn collect(&mut self, tap: usize, task: usize, over: &mut Vec<Arc<Window>>) -> Result<(), TaskError> {
        let board = self.board.clone();
        let lane = &mut self.lanes[tap * board.tasks.len() + task];
        let spec = &board.tasks[task];
        let (mut past, mut handed_over) = (u64::MAX, Vec::new());
        for (_, slots) in board.workers.iter().filter(|(of, _)| *of == tap) {
            let slots = &slots[task];
            // First this, so that what was handed over before is seen.
            past = past.min(slots.filling().past());
            handed_over.extend(slots.handed_over().map(|(slot, window)| (window, slot, slots)));
        }
        handed_over.sort_by_key(|(window, ..)| *window);
        let newest = handed_over.last().map_or(0, |(window, ..)| *window);
        if self.when_behind == WhenBehind::GoOn {
            // Whoever is further behind is not waited for.
            past = past.max(newest.saturating_sub(BEHIND_MAX));
        }
        for (window, slot, slots) in handed_over {
            // It stays with its worker, who waits.
            if window >= past.saturating_add(BEHIND_MAX) && self.when_behind == WhenBehind::Wait {
                continue;
            }
            if window < lane.next {
                board.stragglers.fetch_add(1, Ordering::Relaxed);
            }
            let window = window.max(lane.next);
            if !lane.pending.contains_key(&window) {
                let sketch = match lane.spares.pop() {
                    Some(spare) => spare,
                    None => Sketch::new(spec)?,
                };
                lane.pending.insert(window, sketch);
            }
            let merged = lane.pending.get(&window).map_or(Ok(()), |merged| merged.merge(slots.sketch(slot)));
            slots.give_back(slot);
            merged?;
        }
        while lane.pending.first_key_value().is_some_and(|(window, _)| *window < past) {
            over.extend(lane.publish(&board, tap, task));
        }
        // After them: who sees it finds them.
        let published = &mut board.published()[tap * board.tasks.len() + task];
        published.past = published.past.max(past);
        Ok(())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.abandoned.store(true, Ordering::Relaxed);
    }
}

impl Collected {
    /// Publishes the oldest window that waits.
    fn publish(&mut self, board: &Board, tap: usize, task: usize) -> Option<Arc<Window>> {
        let (number, sketch) = self.pending.pop_first()?;
        self.next = number + 1;
        let window = Arc::new(Window::new(board.tasks[task].clone(), Some(tap_id(tap)), number, false, sketch));
        let oldest = {
            let place = &mut board.published()[tap * board.tasks.len() + task];
            let last = place.last.replace(window.clone());
            std::mem::replace(&mut place.previous, last)
        };
        board.windows.fetch_add(1, Ordering::Relaxed);
        // Somebody may still be answered from it; then a new one is made.
        if let Some(Ok(oldest)) = oldest.map(Arc::try_unwrap) {
            oldest.sketch.reset();
            self.spares.push(oldest.sketch);
        }
        Some(window)
    }
}

/// The times of a window.
pub(crate) fn times(task: &Task, number: u64) -> (Nanos, Nanos) {
    let length = task.config.window.0;
    (Nanos(number.saturating_mul(length)), Nanos((number + 1).saturating_mul(length)))
}
