//! Which of a driver's counters mean packets that the hardware lost for want of buffers.
//!
//! Drivers count loss by stage: the port's packet memory overflows because the bus or the host is slow, or a queue has no
//! descriptors. Where both are known to exclude each other they are added up; where that is not known, the one that the
//! driver documents as buffer exhaustion counts and the others are shown. Sources: the drivers' `*_ethtool.c` and
//! `ndo_get_stats64` (Linux 6.18), and `struct rtnl_link_stats64` in linux/if_link.h.

/// Counters of one driver. A `*` in a name stands for a number.
#[derive(Clone, Copy, Debug)]
pub(super) struct Driver {
    name: &'static str,
    /// Counters of `ethtool -S` whose sum is what the hardware lost.
    missed: &'static [&'static str],
    /// The standard counter that is it, where `missed` is empty or the driver is too old to have them.
    standard: Standard,
    /// Counters to show beside.
    related: &'static [&'static str],
}

/// Where else the number is: mostly a counter of `struct rtnl_link_stats64`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standard {
    /// `rx_missed_errors`
    Missed,
    /// Queue statistics where the driver has them, otherwise `rx_missed_errors`.
    QueuesOrMissed,
    /// `rx_fifo_errors`
    Fifo,
    /// `rx_dropped`
    Dropped,
}

/// Which counter told how many packets the hardware lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MissedSource {
    /// The sum of these counters of the driver's (`ethtool -S`); a `*` stands for each queue.
    Driver(&'static [&'static str]),
    /// `rx-hw-drop-overruns` of the interface's queues (family "netdev", Linux 6.9).
    QueueStatistics,
    /// This member of `struct rtnl_link_stats64` (`ip -s -s link`).
    Standard(&'static str),
}

impl std::fmt::Display for MissedSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            MissedSource::Driver(names) => write!(f, "{} (ethtool -S)", names.join(" + ")),
            MissedSource::QueueStatistics => f.write_str("rx-hw-drop-overruns (queue statistics)"),
            MissedSource::Standard(name) => write!(f, "{name} (ip -s -s link)"),
        }
    }
}

const DRIVERS: &[Driver] = &[
    // MPC: packet buffer full. QPRDC: no descriptor in a queue that may drop. RNBC (rx_no_buffer_count) is no loss: the
    // packet waits in the packet buffer.
    Driver {
        name: "ixgbe",
        missed: &["rx_missed_errors", "rx_no_dma_resources"],
        standard: Standard::Missed,
        related: &["rx_no_buffer_count", "alloc_rx_page_failed", "alloc_rx_buff_failed"],
    },
    // MPC and RQDPC, as above.
    Driver {
        name: "igb",
        missed: &["rx_missed_errors", "rx_queue_*_drops"],
        standard: Standard::Missed,
        related: &["rx_no_buffer_count", "rx_queue_*_alloc_failed"],
    },
    Driver {
        name: "igc",
        missed: &["rx_missed_errors", "rx_queue_*_drops"],
        standard: Standard::Missed,
        related: &["rx_no_buffer_count", "rx_queue_*_alloc_failed"],
    },
    Driver {
        name: "e1000e",
        missed: &["rx_missed_errors"],
        standard: Standard::Missed,
        related: &["rx_no_buffer_count", "alloc_rx_buff_failed"],
    },
    // GLPRT_RDPC, named port.rx_dropped before Linux 6.7. The interface's own (GLV_RDPC: rx_missed_errors since 6.7,
    // rx_dropped before) is shown only.
    Driver {
        name: "i40e",
        missed: &["port.rx_discards", "port.rx_dropped"],
        standard: Standard::Missed,
        related: &["rx_missed_errors", "rx_dropped", "rx_alloc_fail", "rx_pg_alloc_fail"],
    },
    // PRTRPB_RDPC, the same as rx_missed_errors. rx_dropped is GLV_RDPC.
    Driver {
        name: "ice",
        missed: &["rx_dropped.nic"],
        standard: Standard::Missed,
        related: &["rx_dropped", "rx_alloc_fail", "rx_pg_alloc_fail"],
    },
    // No receive descriptor posted; and before that, no room at the port. rx_missed_errors has the former only.
    Driver {
        name: "mlx5_core",
        missed: &["rx_out_of_buffer", "rx_discards_phy"],
        standard: Standard::Missed,
        related: &["rx_prio*_discards", "rx_buff_alloc_err", "rx_xsk_buff_alloc_err", "rx_steer_missed_packets"],
    },
    // RdropOvflw. Old drivers report it as rx_over_errors and rx_missed_errors, too.
    Driver { name: "mlx4_en", missed: &[], standard: Standard::Fifo, related: &["rx_dropped", "rx*_dropped"] },
    // Sum over the rings, kept when they are made anew, which the counters of rings are not.
    Driver {
        name: "bnxt_en",
        missed: &[],
        standard: Standard::Missed,
        related: &["[*]: rx_discards", "[*]: rx_buf_errors", "rx_stat_discard", "rx_total_discard_pkts"],
    },
    // The device reports its drops; the driver has no other place for them.
    Driver {
        name: "ena",
        missed: &[],
        standard: Standard::Dropped,
        related: &[
            "rx_drops",
            "rx_overruns",
            "bw_in_allowance_exceeded",
            "pps_allowance_exceeded",
            "queue_*_rx_refil_partial",
            "queue_*_rx_page_alloc_fail",
        ],
    },
    // No descriptor for a packet, and the port's memory overflowing before. rx_dropped has the former.
    Driver {
        name: "sfc",
        missed: &["port_rx_nodesc_drops", "port_rx_overflow"],
        standard: Standard::Missed,
        related: &["rx_nodesc_trunc", "rx_noskb_drops", "rx_nodesc_drops", "port_rx_dp_di_dropped_packets"],
    },
    // Queue statistics have it, where the host tells (VIRTIO_NET_F_DEVICE_STATS).
    Driver {
        name: "virtio_net",
        missed: &[],
        standard: Standard::QueuesOrMissed,
        related: &["rx*_drops", "rx_queue_*_drops", "rx*_xdp_drops", "rx_queue_*_xdp_drops"],
    },
    // No hardware: what does not fit is the sender's loss, see `CounterReader::peer_dropped`.
    Driver {
        name: "veth",
        missed: &[],
        standard: Standard::Missed,
        related: &["rx_queue_*_drops", "rx_queue_*_xdp_drops"],
    },
];

/// For drivers not listed: names that mean loss wherever they were met. Shown, not added up, since nobody knows which
/// include which.
const UNKNOWN: Driver = Driver {
    name: "",
    missed: &[],
    standard: Standard::QueuesOrMissed,
    related: &[
        "rx_missed_errors",
        "rx_missed",
        "rx_no_buffer_count",
        "rx_out_of_buffer",
        "rx_no_dma_resources",
        "rx_discards",
        "rx_discards_phy",
        "rx_nodesc_drops",
        "port_rx_nodesc_drops",
        "port.rx_dropped",
        "port.rx_discards",
        "rx_dropped.nic",
        "rx_dropped",
        "rx_drops",
        "rx_fifo_errors",
        "rx-*.drops",
        "rx-*.rx_drops",
        "rx*_drops",
        "rx_queue_*_drops",
    ],
};

/// How a counter is used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// Part of the sum.
    Missed,
    /// Shown.
    Related,
}

impl Driver {
    pub(super) fn by_name(name: Option<&str>) -> &'static Driver {
        DRIVERS.iter().find(|d| Some(d.name) == name).unwrap_or(&UNKNOWN)
    }

    /// What a counter of `ethtool -S` means; `None` for one that tells of no loss.
    pub(super) fn use_of(&self, counter: &str) -> Option<Use> {
        let any = |patterns: &[&str]| patterns.iter().any(|p| matches(p, counter));
        if any(self.missed) { Some(Use::Missed) } else { any(self.related).then_some(Use::Related) }
    }

    /// Chooses among what there is: the driver's own counters, what its queues say, a standard counter.
    pub(super) fn missed(&self, own: Option<u64>, queues: Option<u64>, standard: Values) -> (u64, MissedSource) {
        if let Some(sum) = own {
            return (sum, MissedSource::Driver(self.missed));
        }
        match (self.standard, queues) {
            (Standard::Fifo, _) => (standard.fifo, MissedSource::Standard("rx_fifo_errors")),
            (Standard::Dropped, _) => (standard.dropped, MissedSource::Standard("rx_dropped")),
            (Standard::QueuesOrMissed, Some(overruns)) => (overruns, MissedSource::QueueStatistics),
            (Standard::Missed | Standard::QueuesOrMissed, _) => {
                (standard.missed, MissedSource::Standard("rx_missed_errors"))
            }
        }
    }
}

/// The standard counters that can mean loss.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Values {
    pub(super) missed: u64,
    pub(super) fifo: u64,
    pub(super) dropped: u64,
}

/// Whether a counter has the name, with one number in place of a `*`.
fn matches(pattern: &str, name: &str) -> bool {
    let Some((before, behind)) = pattern.split_once('*') else { return pattern == name };
    let number = name.strip_prefix(before).and_then(|rest| rest.strip_suffix(behind));
    number.is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_a_number() {
        assert!(matches("rx_queue_*_drops", "rx_queue_12_drops"));
        assert!(matches("[*]: rx_discards", "[3]: rx_discards"));
        assert!(matches("rx-*.drops", "rx-0.drops"));
        for name in
            ["rx_queue__drops", "rx_queue_drops", "rx_queue_1_xdp_drops", "rx_queue_1_drops ", "tx_queue_1_drops"]
        {
            assert!(!matches("rx_queue_*_drops", name), "{name}");
        }
        assert!(!matches("rx*x", "rx"), "prefix and suffix may not overlap");
        assert!(matches("rx_missed_errors", "rx_missed_errors"));
    }

    #[test]
    fn every_driver_prefers_its_own_counter() {
        let standard = Values { missed: 7, fifo: 8, dropped: 9 };
        let source = |driver, own, queues| Driver::by_name(Some(driver)).missed(own, queues, standard);
        let mlx5: &[&str] = &["rx_out_of_buffer", "rx_discards_phy"];
        assert_eq!(source("mlx5_core", Some(3), Some(100)), (3, MissedSource::Driver(mlx5)));
        assert_eq!(source("mlx5_core", None, None), (7, MissedSource::Standard("rx_missed_errors")));
        assert_eq!(source("mlx4_en", None, None), (8, MissedSource::Standard("rx_fifo_errors")));
        assert_eq!(source("ena", None, None), (9, MissedSource::Standard("rx_dropped")));
        assert_eq!(source("virtio_net", None, Some(11)), (11, MissedSource::QueueStatistics));
        assert_eq!(source("veth", None, None), (7, MissedSource::Standard("rx_missed_errors")));
        assert_eq!(source("nobody's", None, Some(5)), (5, MissedSource::QueueStatistics));
    }

    #[test]
    fn no_counter_is_both_added_and_shown() {
        for driver in DRIVERS {
            for name in driver.missed {
                assert!(!driver.related.contains(name), "{}: {name}", driver.name);
                assert_eq!(driver.use_of(&name.replace('*', "0")), Some(Use::Missed), "{}: {name}", driver.name);
            }
            assert_eq!(driver.use_of("tx_packets"), None);
        }
        assert_eq!(Driver::by_name(None).use_of("rx_out_of_buffer"), Some(Use::Related));
    }

    #[test]
    fn a_source_is_named_in_words() {
        let (_, source) = Driver::by_name(Some("mlx5_core")).missed(Some(0), None, Values::default());
        assert_eq!(source.to_string(), "rx_out_of_buffer + rx_discards_phy (ethtool -S)");
    }
}
