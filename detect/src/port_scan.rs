use crate::alert::{Alert, AlertState, Evidence, Severity, round3};
use crate::config::{PortScanConfig, ticks};
use crate::counters::{DetectCounters, add, set};
use crate::sources::{SourceKey, Sources, TargetKey};
use crate::tick::{Opening, OpeningKind, TICK_NS};
use serde_json::{Value, json};
use sketches::{HyperLogLog, mix};
use std::collections::{BTreeMap, BTreeSet};
use wire::{Addr, Nanos};

/// Name of the rule in alerts and keys.
const RULE: &str = "port_scan";
/// Ports, hosts and flow ids shown as examples.
const SAMPLES_MAX: usize = 16;
/// 1 KiB and 3.3 % an alert, for the targets of the whole scan.
const PRECISION: u8 = 10;

/// Finds sources that try many targets within the window and get few answers.
///
/// Counted are distinct targets (host and port), not connections: whoever repeats one successful connection does not
/// hide a scan. A target counts as silent once it has had `answer_grace` to answer. Cost: O(1) an opening, and for a
/// source above the threshold a look at its openings of the last `answer_grace`.
#[derive(Debug)]
pub(crate) struct PortScan {
    config: PortScanConfig,
    grace: u64,
    resolve_after: u64,
    sources: Sources,
    /// Sources to judge at the end of this tick, in the order of their first opening. A slot may have been given to
    /// someone else since; the key tells.
    queue: Vec<(u32, SourceKey)>,
    /// Sources to judge again at the next tick, since their targets may still answer.
    again: Vec<(u32, SourceKey)>,
    active: BTreeMap<SourceKey, Active>,
    evicted_seen: u64,
    untracked_seen: u64,
}

/// An alert that fires.
#[derive(Debug)]
struct Active {
    /// Tick at which the condition last held.
    held: u64,
    /// As it was sent; the end repeats what does not change.
    fired: Alert,
    targets: HyperLogLog,
    targets_peak: u32,
    openings: u64,
    established: u64,
}

/// What the window of one source shows.
struct Findings {
    targets: u32,
    /// Targets that answered or had time to.
    judged: u32,
    answered: u32,
    openings: u64,
    saturated: bool,
}

impl PortScan {
    pub(crate) fn new(config: PortScanConfig) -> PortScan {
        PortScan {
            grace: ticks(config.answer_grace),
            resolve_after: ticks(config.resolve_after),
            sources: Sources::new(&config),
            queue: Vec::new(),
            again: Vec::new(),
            active: BTreeMap::new(),
            evicted_seen: 0,
            untracked_seen: 0,
            config,
        }
    }

    /// The next tick, after `tick`, that must be evaluated even if nothing happens in it.
    pub(crate) fn due(&self, tick: u64) -> Option<u64> {
        if !self.again.is_empty() {
            return Some(tick + 1);
        }
        self.active.values().map(|active| active.held + self.resolve_after).min()
    }

    /// Evaluates one tick. `openings` are sorted.
    pub(crate) fn tick(
        &mut self,
        tick: u64,
        openings: &[Opening],
        taps: &[String],
        counters: &DetectCounters,
        out: &mut Vec<Alert>,
    ) {
        std::mem::swap(&mut self.queue, &mut self.again);
        self.sources.expire(tick);
        for opening in openings {
            self.opening(tick, opening);
        }
        let mut queue = std::mem::take(&mut self.queue);
        for (slot, key) in queue.drain(..) {
            self.judge(tick, slot, key, taps, counters, out);
        }
        self.queue = queue;
        self.resolve(tick, counters, out);
        set(&counters.sources_tracked, self.sources.len() as u64);
        add(&counters.sources_evicted, self.sources.evicted - self.evicted_seen);
        add(&counters.targets_untracked, self.sources.untracked - self.untracked_seen);
        (self.evicted_seen, self.untracked_seen) = (self.sources.evicted, self.sources.untracked);
    }

    fn opening(&mut self, tick: u64, opening: &Opening) {
        let tcp = &opening.tcp;
        let key = SourceKey { tap: tcp.tap, src: tcp.src_ip };
        let target = TargetKey { dst: tcp.dst_ip, port: tcp.dst_port };
        match opening.kind {
            OpeningKind::Syn => {
                let slot = self.sources.syn(tick, key, target, tcp.flow_id);
                if let Some(source) = self.sources.get_mut(slot, key)
                    && !source.queued
                {
                    source.queued = true;
                    self.queue.push((slot, key));
                }
                if let Some(active) = self.active.get_mut(&key) {
                    active.openings += 1;
                    active.targets.insert(target_hash(target));
                }
            }
            OpeningKind::Established => {
                self.sources.answer(key, target);
                if let Some(active) = self.active.get_mut(&key) {
                    active.established += 1;
                }
            }
        }
    }

    /// Fires, prolongs or leaves alone.
    fn judge(
        &mut self,
        tick: u64,
        slot: u32,
        key: SourceKey,
        taps: &[String],
        counters: &DetectCounters,
        out: &mut Vec<Alert>,
    ) {
        match self.sources.get_mut(slot, key) {
            Some(source) if source.queued => source.queued = false,
            _ => return,
        }
        let Some(found) = self.findings(tick, slot, key) else { return };
        let enough = found.judged >= self.config.targets_min;
        let silent = f64::from(found.answered) <= self.config.established_ratio_max * f64::from(found.judged);
        if !enough || !silent {
            if found.judged < found.targets
                && let Some(source) = self.sources.get_mut(slot, key)
            {
                source.queued = true;
                self.again.push((slot, key));
            }
            return;
        }
        if let Some(active) = self.active.get_mut(&key) {
            active.held = tick;
            active.targets_peak = active.targets_peak.max(found.targets);
        } else if self.active.len() >= self.config.active_max {
            add(&counters.alerts_suppressed, 1);
        } else if let Some(active) = self.fire(tick, slot, key, &found, taps) {
            add(&counters.alerts_fired, 1);
            out.push(active.fired.clone());
            self.active.insert(key, active);
        }
    }

    /// What the window shows, if it holds enough targets to look closer.
    fn findings(&mut self, tick: u64, slot: u32, key: SourceKey) -> Option<Findings> {
        self.sources.expire_targets(slot, tick);
        let source = *self.sources.get_mut(slot, key)?;
        if source.targets < self.config.targets_min {
            return None;
        }
        let young = |first: u64| first + self.grace > tick;
        // Most recently tried first, and tried last is not before tried first.
        let waiting = self
            .sources
            .targets(slot)
            .take_while(|target| young(target.last))
            .filter(|target| young(target.first) && !target.answered)
            .count() as u32;
        Some(Findings {
            targets: source.targets,
            judged: source.targets - waiting,
            answered: source.answered,
            openings: source.openings,
            saturated: source.saturated,
        })
    }

    fn fire(&self, tick: u64, slot: u32, key: SourceKey, found: &Findings, taps: &[String]) -> Option<Active> {
        // The precision is a valid constant; were it not, no alert would be better than a crash.
        let sketch = HyperLogLog::new(PRECISION).ok()?;
        let (mut ports, mut hosts) = (BTreeSet::new(), BTreeSet::new());
        let mut first = tick;
        for target in self.sources.targets(slot) {
            ports.insert(target.key.port);
            hosts.insert(target.key.dst);
            first = first.min(target.first);
            sketch.insert(target_hash(target.key));
        }
        let (kind, tried) = shape(&ports, &hosts);
        let flow_ids = self.sources.targets(slot).take(SAMPLES_MAX).map(|t| t.flow_id.to_string()).collect::<Vec<_>>();
        let established_ratio = f64::from(found.answered) / f64::from(found.judged.max(1));
        let evidence = Evidence::from([
            ("kind".into(), json!(kind)),
            ("window_s".into(), json!(self.config.window.as_secs_f64())),
            ("targets".into(), json!(found.targets)),
            ("targets_saturated".into(), json!(found.saturated)),
            ("ports".into(), json!(ports.len())),
            ("hosts".into(), json!(hosts.len())),
            ("openings".into(), json!(found.openings)),
            ("established".into(), json!(found.answered)),
            ("established_ratio".into(), json!(round3(established_ratio))),
            ("sample_ports".into(), json!(ports.iter().take(SAMPLES_MAX).collect::<Vec<_>>())),
            ("sample_hosts".into(), sample_hosts(&hosts)),
            ("flow_ids".into(), json!(flow_ids)),
        ]);
        let tap = taps.get(usize::from(key.tap.0)).cloned().unwrap_or_else(|| format!("tap{}", key.tap.0));
        let summary = format!(
            "{} tried {tried} at {tap} within {} s and {} answered ({kind} port scan)",
            key.src,
            self.config.window.as_secs_f64(),
            match found.answered {
                0 => "none".to_owned(),
                n => format!("{n} of {}", found.judged),
            },
        );
        let fired = Alert {
            seq: 0,
            time: end_of(tick),
            rule: RULE.to_owned(),
            state: AlertState::Firing,
            key: format!("{RULE}/{tap}/{}", key.src),
            severity: Severity::Warning,
            score: score(f64::from(found.targets), self.config.targets_min, established_ratio),
            tap,
            summary,
            src_ip: Some(key.src),
            dst_ip: hosts.first().copied().filter(|_| hosts.len() == 1),
            started: Nanos(first * TICK_NS),
            evidence,
        };
        Some(Active {
            held: tick,
            fired,
            targets: sketch,
            targets_peak: found.targets,
            openings: found.openings,
            established: u64::from(found.answered),
        })
    }

    /// Ends the alerts whose condition has been absent long enough, in order of tap and source.
    fn resolve(&mut self, tick: u64, counters: &DetectCounters, out: &mut Vec<Alert>) {
        let (after, min) = (self.resolve_after, self.config.targets_min);
        for (key, active) in self.active.extract_if(.., |_, active| active.held + after <= tick) {
            let held = Nanos((active.held + 1) * TICK_NS);
            // Estimated, and never below what was seen at once.
            let estimate = (active.targets.estimate().round() as u64).max(u64::from(active.targets_peak));
            let lasted = (held - active.fired.started).as_secs_f64();
            let mut alert = Alert { time: end_of(tick), state: AlertState::Resolved, ..active.fired };
            alert.summary = format!(
                "{} stopped scanning at {} after {lasted:.1} s, about {estimate} targets and {} answers",
                key.src, alert.tap, active.established,
            );
            alert.score = score(estimate as f64, min, active.established as f64 / active.openings.max(1) as f64);
            alert.evidence.extend([
                ("targets_peak".to_owned(), json!(active.targets_peak)),
                ("targets_estimate".to_owned(), json!(estimate)),
                ("openings".to_owned(), json!(active.openings)),
                ("established".to_owned(), json!(active.established)),
                ("lasted_s".to_owned(), json!(round3(lasted))),
            ]);
            add(&counters.alerts_resolved, 1);
            out.push(alert);
        }
    }
}

/// End of a tick: when what happened in it is decided.
fn end_of(tick: u64) -> Nanos {
    Nanos(tick.saturating_add(1).saturating_mul(TICK_NS))
}

/// Half at the threshold with no answers, towards 1 with more targets, down with more answers.
fn score(targets: f64, targets_min: u32, established_ratio: f64) -> f64 {
    let size = 1.0 - f64::from(targets_min) / (2.0 * targets.max(1.0));
    round3(size.clamp(0.0, 1.0) * (1.0 - established_ratio).clamp(0.0, 1.0))
}

/// The kind of scan, and what was tried, in words.
fn shape(ports: &BTreeSet<u16>, hosts: &BTreeSet<Addr>) -> (&'static str, String) {
    let port_text = match (ports.len(), ports.first()) {
        (1, Some(port)) => format!("port {port}"),
        (n, _) => format!("{n} ports"),
    };
    let host_text = match (hosts.len(), hosts.first()) {
        (1, Some(host)) => host.to_string(),
        (n, _) => format!("{n} hosts"),
    };
    let kind = if hosts.len() * 4 <= ports.len() {
        "vertical"
    } else if ports.len() * 4 <= hosts.len() {
        "horizontal"
    } else {
        "block"
    };
    (kind, format!("{port_text} of {host_text}"))
}

fn sample_hosts(hosts: &BTreeSet<Addr>) -> Value {
    json!(hosts.iter().take(SAMPLES_MAX).map(Addr::to_string).collect::<Vec<_>>())
}

/// The same in every process, since the estimate is part of the alert.
fn target_hash(target: TargetKey) -> u64 {
    let bits = u128::from_be_bytes(target.dst.0);
    mix(mix(mix(bits as u64) ^ (bits >> 64) as u64) ^ u64::from(target.port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_shape_of_the_targets() {
        let ports = |n: u16| (1..=n).collect::<BTreeSet<_>>();
        let hosts = |n: u8| (1..=n).map(|i| Addr::v4([10, 0, 0, i])).collect::<BTreeSet<_>>();
        assert_eq!(shape(&ports(100), &hosts(1)), ("vertical", "100 ports of 10.0.0.1".to_owned()));
        assert_eq!(shape(&ports(1), &hosts(100)), ("horizontal", "port 1 of 100 hosts".to_owned()));
        assert_eq!(shape(&ports(10), &hosts(10)), ("block", "10 ports of 10 hosts".to_owned()));
    }

    #[test]
    fn scores_stay_between_nothing_and_one() {
        assert_eq!(score(100.0, 100, 0.0), 0.5);
        assert_eq!(score(1_000.0, 100, 0.0), 0.95);
        assert_eq!(score(1_000.0, 100, 1.0), 0.0);
        assert_eq!(score(0.0, 100, 3.0), 0.0);
    }
}
