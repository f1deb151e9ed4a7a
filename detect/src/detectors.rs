use crate::alert::Alert;
use crate::config::DetectConfig;
use crate::counters::{DetectCounters, add};
use crate::error::DetectError;
use crate::port_scan::PortScan;
use crate::tick::{Opening, TapTraffic, Tick};
use crate::traffic_spike::TrafficSpike;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Buffers of evaluated ticks kept for reuse.
const POOL_MAX: usize = 32;

/// The detector thread's end: merges the ticks of all workers and evaluates each one when every worker has passed it.
///
/// Merging is commutative and openings are sorted before detectors see them, so the alerts are the same bytes whatever
/// the number of workers and the order in which their ticks arrive. Ticks in which nothing happened and nothing was due
/// cost nothing, however many of them the clock jumps over.
#[derive(Debug)]
pub struct Detectors {
    /// By worker: every tick below is complete.
    passed: Vec<u64>,
    /// Ticks below are evaluated.
    next: u64,
    /// The last tick that was evaluated; `< next`.
    last: u64,
    /// Contents of ticks from `next` on.
    pending: BTreeMap<u64, Merged>,
    pool: Vec<Merged>,
    spent: Vec<Tick>,
    lag_max: Option<u64>,
    openings_max: usize,
    port_scan: Option<PortScan>,
    traffic_spike: Option<TrafficSpike>,
    tap_names: Vec<String>,
    /// The settings in force.
    config: DetectConfig,
    counters: Arc<DetectCounters>,
}

/// One tick of all workers.
#[derive(Debug, Default)]
struct Merged {
    openings: Vec<Opening>,
    taps: Vec<TapTraffic>,
}

impl Detectors {
    /// Detectors over the ticks of workers 0 to `workers - 1`; `tap_names` are in the order of `TapId`.
    ///
    /// # Errors
    /// A setting outside its range, or no workers.
    pub fn new(config: DetectConfig, workers: usize, tap_names: Vec<String>) -> Result<Detectors, DetectError> {
        config.validate()?;
        if !(1..=usize::from(u16::MAX) + 1).contains(&workers) {
            return Err(DetectError::config("workers", workers, "1 to 65536"));
        }
        Ok(Detectors {
            passed: vec![0; workers],
            next: 0,
            last: 0,
            pending: BTreeMap::new(),
            pool: Vec::new(),
            spent: Vec::new(),
            lag_max: config.lag_ticks_max,
            openings_max: config.limits.openings_per_tick_max,
            port_scan: config.port_scan.enabled.then(|| PortScan::new(config.port_scan)),
            traffic_spike: config
                .traffic_spike
                .enabled
                .then(|| TrafficSpike::new(config.traffic_spike, tap_names.len())),
            tap_names,
            config,
            counters: Arc::default(),
        })
    }

    /// Takes on other settings. A detector whose settings changed starts afresh: what it knew of windows and baselines
    /// is forgotten, and an alert it had firing is not resolved. `limits` and `lag_ticks_max` stay as they are.
    ///
    /// # Errors
    /// A setting outside its range; everything then stays as it was.
    pub fn set_config(&mut self, config: DetectConfig) -> Result<(), DetectError> {
        config.validate()?;
        if config.port_scan != self.config.port_scan {
            self.port_scan = config.port_scan.enabled.then(|| PortScan::new(config.port_scan));
        }
        if config.traffic_spike != self.config.traffic_spike {
            let taps = self.tap_names.len();
            self.traffic_spike = config.traffic_spike.enabled.then(|| TrafficSpike::new(config.traffic_spike, taps));
        }
        self.config = config;
        Ok(())
    }

    /// What is counted here; read it from any thread.
    pub fn counters(&self) -> Arc<DetectCounters> {
        Arc::clone(&self.counters)
    }

    /// Takes a worker's tick and appends to `out` the alerts of all ticks that are thereby complete, in their order.
    pub fn tick(&mut self, tick: Tick, out: &mut Vec<Alert>) {
        add(&self.counters.rejected, tick.rejected);
        let Some(passed) = self.passed.get_mut(usize::from(tick.worker())) else {
            add(&self.counters.rejected, 1);
            return;
        };
        *passed = (*passed).max(tick.passed());
        self.merge(tick);
        let slowest = self.passed.iter().copied().min().unwrap_or(0);
        let end = match self.lag_max {
            Some(lag) => slowest.max(self.fastest().saturating_sub(lag)),
            None => slowest,
        };
        self.evaluate_below(end, out);
    }

    /// Evaluates what is left, after each worker's last tick. Alerts that still fire are left firing: the end of a
    /// capture resolves nothing.
    pub fn finish(&mut self, out: &mut Vec<Alert>) {
        self.evaluate_below(self.fastest(), out);
    }

    /// A tick whose content was taken, for [`crate::TickFeed::recycle`] of its worker. At most two a worker are kept.
    pub fn spent(&mut self) -> Option<Tick> {
        self.spent.pop()
    }

    fn fastest(&self) -> u64 {
        self.passed.iter().copied().max().unwrap_or(0)
    }

    fn merge(&mut self, mut tick: Tick) {
        add(&self.counters.openings_dropped, tick.openings_dropped);
        if !tick.is_empty() {
            if tick.index() < self.next {
                add(&self.counters.ticks_late, 1);
                add(&self.counters.openings_late, tick.openings.len() as u64);
            } else {
                let merged = self.pending.entry(tick.index()).or_insert_with(|| self.pool.pop().unwrap_or_default());
                merged.add(&mut tick);
            }
        }
        if self.spent.len() < 2 * self.passed.len() {
            self.spent.push(tick);
        }
    }

    /// Evaluates, in order, every tick below `end` in which something happened or is due.
    fn evaluate_below(&mut self, end: u64, out: &mut Vec<Alert>) {
        while let Some(tick) = self.due().filter(|tick| *tick < end) {
            debug_assert!(tick >= self.next);
            let mut merged = self.pending.remove(&tick).unwrap_or_else(|| self.pool.pop().unwrap_or_default());
            self.evaluate(tick, &mut merged, out);
            (self.last, self.next) = (tick, tick + 1);
            if self.pool.len() < POOL_MAX {
                merged.openings.clear();
                merged.taps.clear();
                self.pool.push(merged);
            }
        }
        self.next = self.next.max(end);
    }

    /// The next tick in which something happened or is due.
    fn due(&self) -> Option<u64> {
        let pending = self.pending.first_key_value().map(|(tick, _)| *tick);
        let port_scan = self.port_scan.as_ref().and_then(|detector| detector.due(self.last));
        let traffic_spike = self.traffic_spike.as_ref().and_then(TrafficSpike::due);
        [pending, port_scan, traffic_spike].into_iter().flatten().min()
    }

    fn evaluate(&mut self, tick: u64, merged: &mut Merged, out: &mut Vec<Alert>) {
        let openings = &mut merged.openings;
        openings.sort_unstable();
        let excess = openings.len().saturating_sub(self.openings_max);
        openings.truncate(self.openings_max);
        let counters = &self.counters;
        add(&counters.ticks, 1);
        add(&counters.openings, openings.len() as u64);
        add(&counters.openings_dropped, excess as u64);
        if let Some(detector) = &mut self.port_scan {
            detector.tick(tick, openings, &self.tap_names, counters, out);
        }
        if let Some(detector) = &mut self.traffic_spike {
            detector.tick(tick, &merged.taps, &self.tap_names, counters, out);
        }
    }
}

impl Merged {
    fn add(&mut self, tick: &mut Tick) {
        if self.openings.is_empty() {
            std::mem::swap(&mut self.openings, &mut tick.openings);
        } else {
            self.openings.append(&mut tick.openings);
        }
        if self.taps.len() < tick.taps.len() {
            self.taps.resize(tick.taps.len(), TapTraffic::default());
        }
        for (sum, add) in self.taps.iter_mut().zip(&tick.taps) {
            sum.packets += add.packets;
            sum.bytes += add.bytes;
        }
    }
}
