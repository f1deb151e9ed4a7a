use crate::DetectError;
use crate::tick::TICK;
use std::time::Duration;

/// Settings of all detectors. All durations are packet time.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DetectConfig {
    /// One source that tries many targets.
    pub port_scan: PortScanConfig,
    /// A tap that carries much more than it used to.
    pub traffic_spike: TrafficSpikeConfig,
    /// Bounds of what workers hand over; give the same to each [`crate::TickFeed`].
    pub limits: FeedLimits,
    /// How many ticks the slowest worker may stay behind the fastest before it is left out, in 1..=36,000; what it then
    /// brings is counted as late. `None`: wait forever, for a replay, whose feeder waits as well.
    pub lag_ticks_max: Option<u64>,
}

/// Settings of the port-scan detector.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct PortScanConfig {
    /// Whether it runs.
    pub enabled: bool,
    /// Length of the sliding window; 1 s to 1 h in steps of 100 ms.
    pub window: Duration,
    /// Distinct targets (address and port) of one source in the window, from which it counts as a scan; 2 to
    /// `targets_per_source_max`.
    pub targets_min: u32,
    /// Largest share of those targets that may have answered; 0 to 1. An ordinary client is mostly answered.
    pub established_ratio_max: f64,
    /// How long a target has to answer before it counts as silent; 0 to 10 s. Without it, a client that opens a hundred
    /// connections within one round trip would look like a scanner.
    pub answer_grace: Duration,
    /// How long the condition must be absent before the alert is resolved; 100 ms to 24 h.
    pub resolve_after: Duration,
    /// Sources tracked at once; beyond it the one with the fewest targets, among those the stalest, is forgotten.
    pub sources_max: usize,
    /// Targets remembered of one source; beyond it they are only estimated.
    pub targets_per_source_max: usize,
    /// Targets remembered of all sources together, about 100 bytes each.
    pub targets_total_max: usize,
    /// Alerts of this rule that may fire at once; beyond it they are counted instead.
    pub active_max: usize,
}

/// Settings of the traffic-spike detector. It fires when the rate of `windows_min` successive seconds each exceeds
/// all of `mean + deviations * deviation`, `factor * mean` and `rate_min`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TrafficSpikeConfig {
    /// Whether it runs.
    pub enabled: bool,
    /// After this time a second weighs half in the baseline; 1 s to 1 h.
    pub half_life: Duration,
    /// Traffic to be seen before the first alert; 1 s to 1 h.
    pub warm_up: Duration,
    /// Mean absolute deviations above the mean; 0 to 1,000. One is about 0.8 standard deviations of normal noise.
    pub deviations: f64,
    /// Multiple of the mean; 1 to 1,000,000.
    pub factor: f64,
    /// Bytes per second below which nothing is a spike.
    pub rate_min: u64,
    /// Successive seconds above the threshold; 1 to 3,600. Single seconds of a bulk transfer are ordinary.
    pub windows_min: u32,
    /// How long the condition must be absent before the alert is resolved; 100 ms to 24 h.
    pub resolve_after: Duration,
}

/// Bounds of one tick of one worker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FeedLimits {
    /// TCP openings kept of each 100 ms, by each worker and after merging; the excess is counted. 1 to 16,777,216.
    pub openings_per_tick_max: usize,
}

impl Default for DetectConfig {
    /// Live settings: a worker may lag by 2 s.
    fn default() -> DetectConfig {
        DetectConfig {
            port_scan: PortScanConfig::default(),
            traffic_spike: TrafficSpikeConfig::default(),
            limits: FeedLimits::default(),
            lag_ticks_max: Some(20),
        }
    }
}

impl Default for PortScanConfig {
    fn default() -> PortScanConfig {
        PortScanConfig {
            enabled: true,
            window: Duration::from_secs(10),
            targets_min: 100,
            established_ratio_max: 0.2,
            answer_grace: Duration::from_millis(200),
            resolve_after: Duration::from_secs(30),
            sources_max: 65_536,
            targets_per_source_max: 1_024,
            targets_total_max: 524_288,
            active_max: 4_096,
        }
    }
}

impl Default for TrafficSpikeConfig {
    /// Found on generated office traffic with a tripled rate for ten seconds, five seeds: all five fire, nothing else does.
    fn default() -> TrafficSpikeConfig {
        TrafficSpikeConfig {
            enabled: true,
            half_life: Duration::from_secs(60),
            warm_up: Duration::from_secs(10),
            deviations: 4.0,
            factor: 2.0,
            rate_min: 1_000_000,
            windows_min: 3,
            resolve_after: Duration::from_secs(30),
        }
    }
}

impl Default for FeedLimits {
    fn default() -> FeedLimits {
        FeedLimits { openings_per_tick_max: 65_536 }
    }
}

const SECOND: Duration = Duration::from_secs(1);
const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);

impl DetectConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting outside its range.
    pub fn validate(&self) -> Result<(), DetectError> {
        self.port_scan.validate()?;
        self.traffic_spike.validate()?;
        let openings = self.limits.openings_per_tick_max;
        check((1..=1 << 24).contains(&openings), "limits.openings_per_tick_max", openings, "1 to 16777216")?;
        let lag = self.lag_ticks_max.unwrap_or(1);
        check((1..=36_000).contains(&lag), "lag_ticks_max", lag, "1 to 36000, or none to wait")
    }
}

impl PortScanConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting outside its range.
    pub fn validate(&self) -> Result<(), DetectError> {
        let ticks = self.window.as_nanos().is_multiple_of(TICK.as_nanos());
        check(
            ticks && (SECOND..=HOUR).contains(&self.window),
            "port_scan.window",
            format!("{:?}", self.window),
            "1s to 1h in steps of 100ms",
        )?;
        check(
            self.targets_min >= 2 && self.targets_min as usize <= self.targets_per_source_max,
            "port_scan.targets_min",
            self.targets_min,
            "2 to targets_per_source_max",
        )?;
        let ratio = self.established_ratio_max;
        check((0.0..=1.0).contains(&ratio), "port_scan.established_ratio_max", ratio, "0 to 1")?;
        let grace = self.answer_grace;
        check(grace <= 10 * SECOND, "port_scan.answer_grace", format!("{grace:?}"), "0s to 10s")?;
        resolve_after("port_scan.resolve_after", self.resolve_after)?;
        let slots = |n: usize| (1..=1 << 28).contains(&n);
        check(slots(self.sources_max), "port_scan.sources_max", self.sources_max, "1 to 268435456")?;
        let per_source = self.targets_per_source_max;
        check(
            slots(per_source) && per_source <= self.targets_total_max,
            "port_scan.targets_per_source_max",
            per_source,
            "1 to targets_total_max",
        )?;
        let total = self.targets_total_max;
        check(slots(total), "port_scan.targets_total_max", total, "1 to 268435456")?;
        check((1..=1 << 20).contains(&self.active_max), "port_scan.active_max", self.active_max, "1 to 1048576")
    }
}

impl TrafficSpikeConfig {
    /// Checks every value.
    ///
    /// # Errors
    /// The first setting outside its range.
    pub fn validate(&self) -> Result<(), DetectError> {
        for (field, value) in [("traffic_spike.half_life", self.half_life), ("traffic_spike.warm_up", self.warm_up)] {
            check((SECOND..=HOUR).contains(&value), field, format!("{value:?}"), "1s to 1h")?;
        }
        let k = self.deviations;
        check((0.0..=1_000.0).contains(&k), "traffic_spike.deviations", k, "0 to 1000")?;
        let factor = self.factor;
        check((1.0..=1e6).contains(&factor), "traffic_spike.factor", factor, "1 to 1000000")?;
        let windows = self.windows_min;
        check((1..=3_600).contains(&windows), "traffic_spike.windows_min", windows, "1 to 3600")?;
        resolve_after("traffic_spike.resolve_after", self.resolve_after)
    }
}

fn resolve_after(field: &'static str, value: Duration) -> Result<(), DetectError> {
    check((TICK..=DAY).contains(&value), field, format!("{value:?}"), "100ms to 24h")
}

fn check(ok: bool, field: &'static str, value: impl ToString, allowed: &'static str) -> Result<(), DetectError> {
    if ok { Ok(()) } else { Err(DetectError::config(field, value, allowed)) }
}

/// Whole ticks, rounded up.
pub(crate) fn ticks(duration: Duration) -> u64 {
    duration.as_nanos().div_ceil(TICK.as_nanos()) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_valid() {
        DetectConfig::default().validate().unwrap();
    }

    #[test]
    fn each_bad_value_is_named_with_what_is_allowed() {
        type Spoil = fn(&mut DetectConfig);
        let cases: &[(&str, Spoil)] = &[
            ("port_scan.window is 0ns, allowed is 1s to 1h in steps of 100ms", |c| c.port_scan.window = Duration::ZERO),
            ("port_scan.window is 1.05s", |c| c.port_scan.window = Duration::from_millis(1_050)),
            ("port_scan.targets_min is 1,", |c| c.port_scan.targets_min = 1),
            ("port_scan.targets_min is 2000,", |c| c.port_scan.targets_min = 2_000),
            ("port_scan.established_ratio_max is NaN", |c| c.port_scan.established_ratio_max = f64::NAN),
            ("port_scan.answer_grace is 11s", |c| c.port_scan.answer_grace = Duration::from_secs(11)),
            ("port_scan.resolve_after is 0ns", |c| c.port_scan.resolve_after = Duration::ZERO),
            ("port_scan.sources_max is 0", |c| c.port_scan.sources_max = 0),
            ("port_scan.targets_per_source_max is 1024", |c| c.port_scan.targets_total_max = 1_000),
            ("port_scan.active_max is 0", |c| c.port_scan.active_max = 0),
            ("traffic_spike.half_life is 2h", |c| c.traffic_spike.half_life = 2 * HOUR),
            ("traffic_spike.warm_up is 0ns", |c| c.traffic_spike.warm_up = Duration::ZERO),
            ("traffic_spike.deviations is -1", |c| c.traffic_spike.deviations = -1.0),
            ("traffic_spike.factor is inf", |c| c.traffic_spike.factor = f64::INFINITY),
            ("traffic_spike.windows_min is 0", |c| c.traffic_spike.windows_min = 0),
            ("limits.openings_per_tick_max is 0", |c| c.limits.openings_per_tick_max = 0),
            ("lag_ticks_max is 0", |c| c.lag_ticks_max = Some(0)),
        ];
        for (expected, spoil) in cases {
            let mut config = DetectConfig::default();
            spoil(&mut config);
            let error = config.validate().unwrap_err().to_string();
            // Durations of hours print as seconds.
            let expected = expected.replace("2h", "7200s");
            assert!(error.starts_with(&expected), "{error}, expected {expected}");
        }
    }
}
