//! The thread that ships finished segments to one place: which are due, one after the other, and again after a failure.

use crate::clickhouse::ClickHouse;
use crate::counters::{ArchiveCounters, millis};
use crate::objects::Objects;
use crate::pace::{Backoff, Pacer};
use crate::state::{Key, Stage, State};
use crate::{ArchiveConfig, ArchiveError};
use serde_json::Value;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use storage::{Claim, Segment, Segments, StoreReader, Table};
use tokio::sync::watch;

/// How often the data folder is looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Segments that arrived are listed together: at the latest after so many,
const LIST_SEGMENTS_MAX: usize = 64;
/// and after so long.
const LIST_INTERVAL: Duration = Duration::from_secs(10);
/// How often the log may say that shipping fails.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(60);

/// Threads that ship, and what they have done. Dropping it ends them: what was on its way is sent again at the next start.
pub struct Archive {
    /// The places, in the order of their numbers, with their names and counters.
    places: Vec<(String, Arc<ArchiveCounters>)>,
    stop: watch::Sender<bool>,
    threads: Vec<JoinHandle<()>>,
}

impl Archive {
    /// Name and counters of each place.
    pub fn places(&self) -> &[(String, Arc<ArchiveCounters>)] {
        &self.places
    }
}

impl Drop for Archive {
    fn drop(&mut self) {
        // Nobody listens any more where a thread has ended by itself.
        let _ = self.stop.send(true);
        for thread in self.threads.drain(..) {
            if thread.join().is_err() {
                tracing::error!("a thread that ships segments panicked; they are shipped after the next start");
            }
        }
    }
}

/// Starts shipping what `reader`, of the store of this process, holds: a thread for each place. The store was opened with
/// what [`left`](crate::left) gives. A place that cannot be reached is tried again; it is no error here.
///
/// # Errors
/// When the configuration cannot work, the state does not read, or there is no thread to be had.
pub fn start(config: &ArchiveConfig, reader: &StoreReader) -> Result<Archive, ArchiveError> {
    config.validate()?;
    let (stop, stopped) = watch::channel(false);
    let mut archive = Archive { places: Vec::new(), stop, threads: Vec::new() };
    let sensor = &config.sensor;
    if let Some(place) = &config.objects {
        let state = State::open(reader.dir(), place.url(), sensor)?;
        let objects = Objects::new(place.clone(), sensor.clone(), state.origin().to_owned());
        let way = Way::Objects(objects);
        archive.ship(place.url().to_owned(), way, 0, state, config, reader, stopped.clone())?;
    }
    if let Some(server) = &config.clickhouse {
        let state = State::open(reader.dir(), &server.name(), sensor)?;
        let clickhouse = ClickHouse::new(server.clone(), state.origin().to_owned())?;
        archive.ship(server.name(), Way::ClickHouse(clickhouse), 1, state, config, reader, stopped)?;
    }
    Ok(archive)
}

impl Archive {
    #[allow(clippy::too_many_arguments, reason = "called twice, a few lines above")]
    fn ship(
        &mut self,
        name: String,
        way: Way,
        place: u8,
        state: State,
        config: &ArchiveConfig,
        reader: &StoreReader,
        stopped: watch::Receiver<bool>,
    ) -> Result<(), ArchiveError> {
        let counters = Arc::new(ArchiveCounters::default());
        let now = Instant::now();
        let mut shipper = Shipper {
            name: name.clone(),
            way,
            place,
            state,
            reader: reader.clone(),
            counters: counters.clone(),
            pacer: Pacer::new(config.bytes_per_second_max, now),
            config: config.clone(),
            due_at: HashMap::new(),
            unreadable: HashSet::new(),
            complained_at: None,
        };
        // Known before anything is asked, so that retention and status have it right from the start.
        shipper.look()?;
        let io = |source| ArchiveError::Io { action: "start a thread for", path: reader.dir().into(), source };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(io)?;
        let thread = Builder::new().name("archive".to_owned());
        self.threads.push(thread.spawn(move || runtime.block_on(shipper.run(stopped))).map_err(io)?);
        self.places.push((name, counters));
        Ok(())
    }
}

/// What takes segments.
enum Way {
    Objects(Objects),
    ClickHouse(ClickHouse),
}

struct Shipper {
    name: String,
    way: Way,
    /// Its number, as segments know it.
    place: u8,
    state: State,
    reader: StoreReader,
    counters: Arc<ArchiveCounters>,
    pacer: Pacer,
    config: ArchiveConfig,
    /// When each segment that is not shipped became or becomes due.
    due_at: HashMap<Key, SystemTime>,
    /// Files that could not be read: left out until the next start.
    unreadable: HashSet<Key>,
    complained_at: Option<Instant>,
}

fn key_of(table: Table, segment: &Segment) -> Key {
    (table.name().to_owned(), segment.file.clone())
}

/// Every segment there is.
fn present(tables: &[(Table, Arc<Segments>)]) -> HashSet<Key> {
    tables.iter().flat_map(|(table, segments)| segments.iter().map(|segment| key_of(*table, segment))).collect()
}

/// A segment that is due.
type Due = (Key, Arc<Segment>);

impl Shipper {
    async fn run(mut self, mut stopped: watch::Receiver<bool>) {
        let mut backoff = Backoff::new(self.config.retry_min, self.config.retry_max);
        loop {
            let round = tokio::select! {
                _ = stopped.changed() => return,
                round = self.round() => round,
            };
            let mut pause = match round {
                Ok(()) => {
                    backoff.succeeded();
                    LOOK_INTERVAL
                }
                Err(error) => {
                    self.failed(&error);
                    backoff.failed()
                }
            };
            // How far behind it is, is known also while nothing goes.
            while !pause.is_zero() {
                let step = pause.min(LOOK_INTERVAL);
                tokio::select! {
                    _ = stopped.changed() => return,
                    () = tokio::time::sleep(step) => {}
                }
                pause -= step;
                if !pause.is_zero()
                    && let Err(error) = self.look()
                {
                    tracing::warn!(%error, "cannot look for segments to ship");
                }
            }
        }
    }

    /// Ships everything that is due.
    async fn round(&mut self) -> Result<(), ArchiveError> {
        let due = self.look()?;
        if due.is_empty() && self.state.unfinished().next().is_none() {
            self.worked();
            return Ok(());
        }
        if let Way::Objects(objects) = &mut self.way {
            objects.begin().await?;
        }
        // What an earlier round sent and did not come to list.
        self.list().await?;
        self.drop_lost().await?;
        let (mut sent, mut listed_at) = (0, Instant::now());
        // By table: of one that ClickHouse refuses, as it does not have it yet, the others know nothing.
        let mut refused: Vec<(String, ArchiveError)> = Vec::new();
        for (key, segment) in due {
            if refused.iter().any(|(table, _)| *table == key.0) {
                continue;
            }
            match self.send(&key, &segment).await {
                Ok(is_sent) => sent += usize::from(is_sent),
                Err(error @ ArchiveError::ClickHouse { .. }) => refused.push((key.0, error)),
                Err(error) => return Err(error),
            }
            if sent >= LIST_SEGMENTS_MAX || listed_at.elapsed() >= LIST_INTERVAL {
                self.list().await?;
                (sent, listed_at) = (0, Instant::now());
            }
        }
        self.list().await?;
        self.look()?;
        if let Some((_, error)) = refused.into_iter().next() {
            return Err(error);
        }
        self.worked();
        Ok(())
    }

    /// Looks at what the data folder holds: which segments are due, oldest first. Sets the gauges.
    fn look(&mut self) -> Result<Vec<Due>, ArchiveError> {
        let tables = self.reader.segments()?;
        let now = SystemTime::now();
        let (mut due, mut oldest) = (Vec::new(), None);
        let (mut due_bytes, mut early_segments, mut early_bytes) = (0, 0, 0);
        let (mut shipped, mut due_at) = (0, HashMap::new());
        for (table, segments) in &tables {
            for segment in segments.iter() {
                // Nearly all of them, so this comes before anything that costs.
                if segment.is_shipped(1 << self.place) {
                    shipped += 1;
                    continue;
                }
                let key = key_of(*table, segment);
                if self.unreadable.contains(&key) {
                    continue;
                }
                if self.state.stage(&key) == Some(&Stage::Shipped) {
                    segment.set_shipped(self.place);
                    shipped += 1;
                    continue;
                }
                let at = self.due_at.get(&key).copied().unwrap_or_else(|| self.due(segment, now));
                due_at.insert(key.clone(), at);
                if at <= now {
                    due_bytes += segment.bytes;
                    oldest = Some(oldest.map_or(at, |oldest: SystemTime| oldest.min(at)));
                    due.push((key, segment.clone()));
                } else {
                    early_segments += 1;
                    early_bytes += segment.bytes;
                }
            }
        }
        self.due_at = due_at;
        due.sort_unstable_by(|(a, one), (b, other)| (one.t_end_max, a).cmp(&(other.t_end_max, b)));
        let counters = &self.counters;
        counters.due_segments.store(due.len() as u64, Relaxed);
        counters.due_bytes.store(due_bytes, Relaxed);
        counters.early_segments.store(early_segments, Relaxed);
        counters.early_bytes.store(early_bytes, Relaxed);
        counters.oldest_due_ms.store(oldest.map_or(0, millis), Relaxed);
        if self.state.shipped_count() > shipped {
            let present = present(&tables);
            let gone = self.state.keys().filter(|key| !present.contains(*key));
            let shipped = |key: &&Key| self.state.stage(key) == Some(&Stage::Shipped);
            let gone = gone.filter(shipped).cloned().collect();
            self.state.gone(gone)?;
        }
        Ok(due)
    }

    /// When a segment is due: at its age, or since it is there where it came late or is full.
    fn due(&self, segment: &Segment, now: SystemTime) -> SystemTime {
        let written = std::fs::metadata(&segment.path).and_then(|meta| meta.modified()).unwrap_or(now);
        if segment.rows >= self.config.rows_full {
            return written;
        }
        let newest = UNIX_EPOCH + Duration::from_micros(u64::try_from(segment.t_end_max).unwrap_or_default());
        written.max(newest + self.config.delay)
    }

    /// Sends one segment; `false` if it is not to be had now.
    async fn send(&mut self, key: &Key, segment: &Segment) -> Result<bool, ArchiveError> {
        if matches!(self.state.stage(key), Some(Stage::Uploaded { .. } | Stage::Shipped)) {
            return Ok(false);
        }
        // Compaction has it: a larger one comes in its place.
        if !segment.claim(Claim::Shipping) {
            return Ok(false);
        }
        let file = match File::open(&segment.path) {
            Ok(file) => file,
            Err(source) => return self.leave_out(key, ArchiveError::Unreadable { path: segment.path.clone(), source }),
        };
        if self.state.stage(key).is_none() {
            let description: Value = serde_json::from_str(&segment.description()).unwrap_or_default();
            self.state.begin(key.clone(), description)?;
        }
        let (table, config) = (&key.0, &self.config);
        let sent = match &mut self.way {
            Way::Objects(objects) => objects.send(table, segment, &file, config, &mut self.pacer).await.map(|sent| {
                self.counters.read_back.fetch_add(u64::from(sent.read_back), Relaxed);
                sent.sha256
            }),
            Way::ClickHouse(server) => {
                server.send(table, segment, &file, &mut self.pacer).await.map(|()| String::new())
            }
        };
        let sha256 = match sent {
            Ok(sha256) => sha256,
            Err(error @ ArchiveError::Unreadable { .. }) => return self.leave_out(key, error),
            Err(error) => return Err(error),
        };
        self.state.uploaded(key.clone(), sha256)?;
        Ok(true)
    }

    /// A segment whose file does not read: the others go on.
    fn leave_out(&mut self, key: &Key, error: ArchiveError) -> Result<bool, ArchiveError> {
        tracing::error!(%error, "it is not shipped; the next start tries again");
        self.counters.unreadable.fetch_add(1, Relaxed);
        self.counters.complain(error.to_string());
        self.unreadable.insert(key.clone());
        Ok(false)
    }

    /// Lists what has arrived, where there is a list, and remembers it as shipped.
    async fn list(&mut self) -> Result<(), ArchiveError> {
        let arrived: Vec<(Key, Value, String)> = self
            .state
            .unfinished()
            .filter_map(|(key, stage)| match stage {
                Stage::Uploaded { segment, sha256 } => Some((key.clone(), segment.clone(), sha256.clone())),
                _ => None,
            })
            .collect();
        if arrived.is_empty() {
            return Ok(());
        }
        if let Way::Objects(objects) = &self.way {
            objects.list(&arrived).await?;
        }
        self.state.shipped(arrived.iter().map(|(key, ..)| key.clone()).collect())?;
        let number = |segment: &Value, name: &str| segment[name].as_u64().unwrap_or_default();
        self.counters.segments.fetch_add(arrived.len() as u64, Relaxed);
        self.counters.rows.fetch_add(arrived.iter().map(|(_, s, _)| number(s, "rows")).sum(), Relaxed);
        self.counters.bytes.fetch_add(arrived.iter().map(|(_, s, _)| number(s, "bytes")).sum(), Relaxed);
        // Tells retention, and the gauges.
        self.look()?;
        Ok(())
    }

    /// Segments that were begun and have left the folder since: what of them may be there is taken back.
    async fn drop_lost(&mut self) -> Result<(), ArchiveError> {
        if self.state.unfinished().next().is_none() {
            return Ok(());
        }
        let present = present(&self.reader.segments()?);
        let lost = self.state.unfinished().filter(|(key, _)| !present.contains(*key));
        let lost: Vec<(Key, Stage)> = lost.map(|(key, stage)| (key.clone(), stage.clone())).collect();
        for (key, stage) in lost {
            if let (Way::Objects(objects), Stage::Begun { segment }) = (&self.way, &stage) {
                objects.take_back(&key.0, segment).await?;
            }
            tracing::error!(table = key.0, file = key.1, "a segment went before it was shipped");
            self.counters.lost.fetch_add(1, Relaxed);
            self.state.gone(vec![key])?;
        }
        Ok(())
    }

    fn worked(&mut self) {
        if self.counters.failing.swap(false, Relaxed) {
            tracing::info!("{}: shipping works again", self.name);
            self.complained_at = None;
        }
    }

    fn failed(&mut self, error: &ArchiveError) {
        self.counters.complain(error.to_string());
        self.counters.failing.store(true, Relaxed);
        self.counters.corrupt.fetch_add(u64::from(matches!(error, ArchiveError::Corrupt { .. })), Relaxed);
        self.counters.failures.fetch_add(1, Relaxed);
        if self.complained_at.is_none_or(|at| at.elapsed() >= COMPLAINT_INTERVAL) {
            self.complained_at = Some(Instant::now());
            tracing::warn!("cannot ship segments, and tries again: {error}");
        }
    }
}
