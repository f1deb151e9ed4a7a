use crate::alert::{Alert, AlertState, Evidence, Severity, rate_text, round3};
use crate::config::{TrafficSpikeConfig, ticks};
use crate::counters::{DetectCounters, add};
use crate::tick::{TICK_NS, TapTraffic};
use serde_json::json;
use wire::Nanos;

/// Name of the rule in alerts and keys.
const RULE: &str = "traffic_spike";
/// Ticks in a window: one second, so that bytes of a window are bytes per second.
const WINDOW: u64 = 10;
const WINDOW_NS: u64 = WINDOW * TICK_NS;
/// How much less a second above the threshold weighs in the baseline. Not zero: a lasting new level becomes normal.
const SPIKE_WEIGHT: f64 = 0.1;
/// A gap of so many half-lives leaves less than a thousandth of the baseline: it is learned anew.
const FORGET_HALF_LIVES: f64 = 10.0;

/// Finds seconds in which a tap carries much more than its moving baseline: an exponentially weighted mean of bytes per
/// second and of their absolute deviation from it.
#[derive(Debug)]
pub(crate) struct TrafficSpike {
    config: TrafficSpikeConfig,
    /// Weight of the newest second in the long run.
    weight: f64,
    forget_after: u64,
    warm_up: u64,
    resolve_after: u64,
    taps: Vec<Tap>,
}

#[derive(Debug, Default)]
struct Tap {
    /// The window being filled: `(index, sums)`. Closed at its last tick.
    open: Option<(u64, TapTraffic)>,
    /// The last window that carried anything.
    last: Option<u64>,
    baseline: Baseline,
    /// Successive windows above the threshold.
    run: Run,
    active: Option<Active>,
}

/// Bytes per second.
#[derive(Clone, Copy, Debug, Default)]
struct Baseline {
    mean: f64,
    /// Mean absolute deviation.
    deviation: f64,
    /// Windows seen.
    windows: u64,
}

/// Sums over windows above the threshold.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    /// First window; meaningless while `windows` is 0.
    first: u64,
    windows: u64,
    sums: TapTraffic,
    peak: u64,
    /// The baseline before the first window.
    before: Baseline,
}

#[derive(Debug)]
struct Active {
    fired: Alert,
    /// Last tick of the last window above the threshold.
    held: u64,
    sums: Run,
}

impl TrafficSpike {
    pub(crate) fn new(config: TrafficSpikeConfig, taps: usize) -> TrafficSpike {
        let half_life = config.half_life.as_secs_f64();
        TrafficSpike {
            weight: 1.0 - (-1.0 / half_life).exp2(),
            forget_after: (half_life * FORGET_HALF_LIVES).ceil() as u64,
            warm_up: ticks(config.warm_up).div_ceil(WINDOW),
            resolve_after: ticks(config.resolve_after),
            taps: (0..taps).map(|_| Tap::default()).collect(),
            config,
        }
    }

    /// The next tick that must be evaluated even if nothing happens in it.
    pub(crate) fn due(&self) -> Option<u64> {
        let closing = |tap: &Tap| tap.open.map(|(window, _)| window * WINDOW + WINDOW - 1);
        let resolving = |tap: &Tap| tap.active.as_ref().map(|active| active.held + self.resolve_after);
        self.taps.iter().flat_map(|tap| [closing(tap), resolving(tap)]).flatten().min()
    }

    /// Evaluates one tick. `traffic` is by tap, or empty.
    pub(crate) fn tick(
        &mut self,
        tick: u64,
        traffic: &[TapTraffic],
        names: &[String],
        counters: &DetectCounters,
        out: &mut Vec<Alert>,
    ) {
        for (tap, sums) in self.taps.iter_mut().zip(traffic) {
            if *sums != TapTraffic::default() {
                let (window, open) = tap.open.get_or_insert((tick / WINDOW, TapTraffic::default()));
                debug_assert_eq!(*window, tick / WINDOW, "a window is closed at its last tick");
                open.packets += sums.packets;
                open.bytes += sums.bytes;
            }
        }
        for index in 0..self.taps.len() {
            let name = names.get(index).map_or("", String::as_str);
            if let Some((window, sums)) = self.taps[index].open.take_if(|_| tick % WINDOW == WINDOW - 1) {
                self.close(index, window, sums, name, counters, out);
            }
            self.resolve(index, tick, counters, out);
        }
    }

    /// Judges a full window by the baseline before it, then lets the baseline learn from it.
    fn close(
        &mut self,
        index: usize,
        window: u64,
        sums: TapTraffic,
        name: &str,
        counters: &DetectCounters,
        out: &mut Vec<Alert>,
    ) {
        let (weight, forget_after) = (self.weight, self.forget_after);
        let tap = &mut self.taps[index];
        let gap = tap.last.replace(window).map(|last| window - last - 1);
        let Some(gap) = gap.filter(|gap| *gap <= forget_after) else {
            // The first window, or the first after a long silence, most likely began before its first packet.
            (tap.baseline, tap.run) = (Baseline::default(), Run::default());
            return;
        };
        for _ in 0..gap {
            tap.baseline.learn(0.0, weight);
            tap.run = Run::default();
        }
        let rate = sums.bytes as f64;
        let threshold = tap.baseline.threshold(&self.config);
        if rate <= threshold || tap.baseline.windows < self.warm_up {
            tap.run = Run::default();
            tap.baseline.learn(rate, weight);
            return;
        }
        tap.run.add(window, sums, tap.baseline);
        let held = window * WINDOW + WINDOW - 1;
        if let Some(active) = &mut tap.active {
            active.held = held;
            active.sums.add(window, sums, tap.baseline);
        } else if tap.run.windows >= u64::from(self.config.windows_min) {
            let fired = firing(&tap.run, sums, threshold, name);
            out.push(fired.clone());
            add(&counters.alerts_fired, 1);
            tap.active = Some(Active { fired, held, sums: tap.run });
        }
        tap.baseline.learn(threshold, weight * SPIKE_WEIGHT);
    }

    fn resolve(&mut self, index: usize, tick: u64, counters: &DetectCounters, out: &mut Vec<Alert>) {
        let after = self.resolve_after;
        let Some(active) = self.taps[index].active.take_if(|active| active.held + after <= tick) else { return };
        let Active { fired, held, sums: Run { sums, peak, windows, .. } } = active;
        let lasted = (Nanos((held + 1) * TICK_NS) - fired.started).as_secs_f64();
        let mut alert = Alert { time: Nanos((tick + 1) * TICK_NS), state: AlertState::Resolved, ..fired };
        alert.summary = format!(
            "traffic at {} is back to normal after {lasted:.0} s with up to {}",
            alert.tap,
            rate_text(peak as f64)
        );
        alert.evidence.extend([
            ("peak_bytes_per_s".to_owned(), json!(peak)),
            ("spike_windows".to_owned(), json!(windows)),
            ("spike_bytes".to_owned(), json!(sums.bytes)),
            ("spike_packets".to_owned(), json!(sums.packets)),
            ("lasted_s".to_owned(), json!(round3(lasted))),
        ]);
        add(&counters.alerts_resolved, 1);
        out.push(alert);
    }
}

impl Baseline {
    /// The first windows weigh alike, later ones fade.
    fn learn(&mut self, rate: f64, weight: f64) {
        self.windows += 1;
        let weight = weight.max(1.0 / self.windows as f64);
        let error = rate - self.mean;
        self.mean += weight * error;
        if self.windows > 1 {
            self.deviation += weight * (error.abs() - self.deviation);
        }
    }

    fn threshold(&self, config: &TrafficSpikeConfig) -> f64 {
        (self.mean + config.deviations * self.deviation).max(config.factor * self.mean).max(config.rate_min as f64)
    }
}

impl Run {
    fn add(&mut self, window: u64, sums: TapTraffic, baseline: Baseline) {
        if self.windows == 0 {
            (self.first, self.before) = (window, baseline);
        }
        self.windows += 1;
        self.sums.packets += sums.packets;
        self.sums.bytes += sums.bytes;
        self.peak = self.peak.max(sums.bytes);
    }
}

fn firing(run: &Run, sums: TapTraffic, threshold: f64, name: &str) -> Alert {
    let (rate, baseline) = (sums.bytes as f64, &run.before);
    let factor = rate / baseline.mean.max(1.0);
    let evidence = Evidence::from([
        ("bytes_per_s".into(), json!(sums.bytes)),
        ("packets_per_s".into(), json!(sums.packets)),
        ("baseline_bytes_per_s".into(), json!(baseline.mean.round() as u64)),
        ("baseline_deviation_bytes_per_s".into(), json!(baseline.deviation.round() as u64)),
        ("baseline_windows".into(), json!(baseline.windows)),
        ("threshold_bytes_per_s".into(), json!(threshold.round() as u64)),
        ("factor".into(), json!(round3(factor))),
        ("peak_bytes_per_s".into(), json!(run.peak)),
        ("spike_windows".into(), json!(run.windows)),
        ("window_s".into(), json!(WINDOW_NS as f64 / 1e9)),
    ]);
    Alert {
        seq: 0,
        time: Nanos((run.first + run.windows) * WINDOW_NS),
        rule: RULE.to_owned(),
        state: AlertState::Firing,
        key: format!("{RULE}/{name}"),
        severity: Severity::Warning,
        score: round3((1.0 - baseline.mean / rate.max(1.0)).clamp(0.0, 1.0)),
        tap: name.to_owned(),
        summary: format!(
            "{name} carries {}, {factor:.1} times its usual {}, for {} s",
            rate_text(rate),
            rate_text(baseline.mean),
            run.windows
        ),
        src_ip: None,
        dst_ip: None,
        started: Nanos(run.first * WINDOW_NS),
        evidence,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// Feeds one window per rate, all in the window's first tick, and returns what was decided.
    fn run(config: TrafficSpikeConfig, rates: impl IntoIterator<Item = u64>) -> Vec<Alert> {
        let mut spike = TrafficSpike::new(config, 1);
        let (counters, mut out) = (DetectCounters::default(), Vec::new());
        for (window, bytes) in rates.into_iter().enumerate() {
            let first = window as u64 * WINDOW;
            spike.tick(first, &[TapTraffic { packets: bytes / 1_000, bytes }], &["t".into()], &counters, &mut out);
            spike.tick(first + WINDOW - 1, &[], &["t".into()], &counters, &mut out);
        }
        out
    }

    fn steady(n: usize) -> impl Iterator<Item = u64> {
        // About 2 MB/s with some noise.
        (0..n as u64).map(|i| 2_000_000 + sketches::mix(i) % 400_000)
    }

    #[test]
    fn steady_traffic_and_single_bursts_are_quiet() {
        assert_eq!(run(TrafficSpikeConfig::default(), steady(1_000)), []);
        let bursts = steady(1_000).enumerate().map(|(i, r)| if i % 50 > 47 { 9_000_000 } else { r });
        assert_eq!(run(TrafficSpikeConfig::default(), bursts), []);
    }

    #[test]
    fn a_spike_fires_in_its_third_second_and_resolves_after_it() {
        let rates = steady(60).chain([8_000_000; 10]).chain(steady(60));
        let alerts = run(TrafficSpikeConfig::default(), rates);
        assert_eq!(alerts.iter().map(|a| a.state).collect::<Vec<_>>(), [AlertState::Firing, AlertState::Resolved]);
        let [firing, resolved] = &alerts[..] else { unreachable!() };
        assert_eq!((firing.started, firing.time), (Nanos::from_secs(60), Nanos::from_secs(63)));
        assert_eq!((resolved.started, resolved.time), (Nanos::from_secs(60), Nanos::from_secs(100)));
        assert_eq!(resolved.evidence["spike_bytes"], json!(80_000_000));
        assert_eq!(resolved.evidence["lasted_s"], json!(10.0));
        assert!(firing.summary.starts_with("t carries 8.0 MB/s, 3."), "{}", firing.summary);
        assert!(firing.summary.ends_with("times its usual 2.2 MB/s, for 3 s"), "{}", firing.summary);
    }

    #[test]
    fn warm_up_and_the_least_rate_are_kept() {
        let early = steady(9).chain([20_000_000; 1]);
        assert_eq!(run(TrafficSpikeConfig { windows_min: 1, ..TrafficSpikeConfig::default() }, early), []);
        let small = (0..60).map(|_| 1_000).chain([900_000; 20]);
        assert_eq!(run(TrafficSpikeConfig::default(), small), []);
    }

    #[test]
    fn a_lasting_new_level_becomes_normal() {
        let alerts = run(TrafficSpikeConfig::default(), steady(100).chain(steady(3_000).map(|r| 5 * r)));
        assert_eq!(alerts.iter().map(|a| a.state).collect::<Vec<_>>(), [AlertState::Firing, AlertState::Resolved]);
    }

    #[test]
    fn silence_fades_the_baseline_and_long_silence_starts_anew() {
        let config = TrafficSpikeConfig { windows_min: 1, ..TrafficSpikeConfig::default() };
        let after = |gap| run(config, steady(60).chain(std::iter::repeat_n(0, gap)).chain(steady(3))).len();
        assert_eq!(after(10), 0, "ten seconds are a pause");
        assert_eq!(after(300), 1, "after five minutes of silence two megabytes a second are news");
        assert_eq!(after(601), 0, "after ten half-lives nothing is known any more");
    }

    #[test]
    fn a_jump_of_centuries_costs_nothing() {
        let mut spike =
            TrafficSpike::new(TrafficSpikeConfig { half_life: Duration::from_secs(3_600), ..Default::default() }, 1);
        let (counters, mut out) = (DetectCounters::default(), Vec::new());
        for window in (0..1_000).chain([u64::MAX / WINDOW_NS - 1]) {
            let sums = TapTraffic { packets: 1, bytes: 1_000_000 };
            spike.tick(window * WINDOW + WINDOW - 1, &[sums], &["t".into()], &counters, &mut out);
        }
        assert_eq!(out, []);
        assert_eq!(spike.taps[0].baseline.windows, 0);
    }
}
