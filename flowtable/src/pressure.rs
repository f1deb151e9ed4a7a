//! What changes when the table fills up: flows are given less time, those that nobody answered the least.
//!
//! Near its cap the table is in **emergency mode**: a flood of spoofed flows then times out by itself within seconds, and
//! what is evicted at the cap is what nobody answered. The mode ends when a quarter of the table is free again.

use crate::Timeouts;
use wire::{Nanos, proto};

/// In emergency mode idle timeouts are divided by this.
const HASTE: u64 = 4;
/// Idle timeout of a flow that nobody answered, in emergency mode.
const UNANSWERED: Nanos = Nanos::from_secs(2);

/// How long flows are kept, as things are.
#[derive(Clone, Copy)]
pub(crate) struct Patience {
    timeouts: Timeouts,
    /// Of flows that only one side has sent in; never longer than the idle timeout.
    unanswered: Nanos,
    /// No flow that had a packet within this time is over.
    pub(crate) least: Nanos,
    pub(crate) emergency: bool,
}

impl Patience {
    pub(crate) fn normal(timeouts: Timeouts) -> Patience {
        Patience { timeouts, unanswered: Nanos::MAX, least: Nanos::ZERO, emergency: false }.with_least()
    }

    pub(crate) fn emergency(timeouts: Timeouts) -> Patience {
        let hasty = |idle: Nanos| Nanos((idle.0 / HASTE).max(1));
        let timeouts = Timeouts {
            tcp_idle: hasty(timeouts.tcp_idle),
            udp_idle: hasty(timeouts.udp_idle),
            other_idle: hasty(timeouts.other_idle),
            closed: hasty(timeouts.closed),
            ..timeouts
        };
        Patience { timeouts, unanswered: UNANSWERED, least: Nanos::ZERO, emergency: true }.with_least()
    }

    fn with_least(mut self) -> Patience {
        let t = &self.timeouts;
        let all = [t.tcp_idle, t.udp_idle, t.other_idle, t.closed, self.unanswered];
        self.least = all.into_iter().min().unwrap_or(Nanos::ZERO);
        self
    }

    #[inline]
    pub(crate) fn active(&self) -> Nanos {
        self.timeouts.active
    }

    #[inline]
    pub(crate) fn split_on_reuse(&self) -> bool {
        self.timeouts.split_on_reuse
    }

    #[inline]
    pub(crate) fn closed(&self) -> Nanos {
        self.timeouts.closed.min(self.timeouts.tcp_idle)
    }

    #[inline]
    pub(crate) fn idle(&self, protocol: u8, answered: bool) -> Nanos {
        let idle = match protocol {
            proto::TCP => self.timeouts.tcp_idle,
            proto::UDP | proto::UDP_LITE => self.timeouts.udp_idle,
            _ => self.timeouts.other_idle,
        };
        if answered { idle } else { idle.min(self.unanswered) }
    }
}

/// Flows at which emergency mode begins, and below which it ends, in a table of `flows_max`.
pub(crate) fn marks(flows_max: u32) -> (u64, u64) {
    let max = u64::from(flows_max);
    (max - max / 16, max - max / 4)
}
