/// What the kernel and this program counted about one socket since it was bound.
///
/// Which of them rise, and by how much, for one lost packet, as measured on Linux 6.18 (veth, copy mode; `xsk.c`,
/// `xsk_buff_pool.c` say the same):
///
/// | the packet was lost because | `rx_dropped` | `rx_ring_full` | `rx_fill_ring_empty` | others |
/// |---|---|---|---|---|
/// | the fill ring was empty | +1 | | +1 | |
/// | the rx ring was full | | +1 | | |
/// | it was longer than a frame, without multi-buffer | +1 | | | |
/// | it takes n frames, the fill ring has 1 to n-1 (multi-buffer) | +1 | | | |
/// | it takes n frames, the fill ring has none (multi-buffer) | +1 | | +1 | |
///
/// So an empty fill ring raises two counters for one packet. An invalid address in the fill ring raises **none** of the
/// six: the kernel counts it where no option shows it, skips the entry and takes the next. `rx_invalid_descs` is about
/// the rx ring, which the kernel itself writes, and stays 0.
///
/// In zero-copy mode the driver takes frames ahead of packets, so `rx_fill_ring_empty` counts its attempts, not packets:
/// what that loses is in the NIC's own counters (`ethtool -S`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Statistics {
    /// Packets for which there was no frame, or which were longer than one.
    pub(crate) rx_dropped: u64,
    /// Descriptors of the rx ring that the kernel found invalid: always 0.
    pub(crate) rx_invalid_descs: u64,
    /// Of the transmit ring, which is not used: always 0.
    pub(crate) tx_invalid_descs: u64,
    /// Packets for which the rx ring had no entry.
    pub(crate) rx_ring_full: u64,
    /// How often the kernel found the fill ring empty.
    pub(crate) rx_fill_ring_empty: u64,
    /// Of the transmit ring, which is not used: always 0.
    pub(crate) tx_ring_empty: u64,
    /// Packets whose descriptors pointed outside the socket's frames, or at a frame that was not the kernel's to fill:
    /// this program's own count.
    pub(crate) invalid_descriptors: u64,
}

/// Lost packets by cause: each of them is counted once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Lost {
    /// There was no free frame: the worker was too slow for the number of frames.
    pub(crate) fill_ring_empty: u64,
    /// There was no room in the rx ring: the worker was too slow.
    pub(crate) rx_ring_full: u64,
    /// Longer than a frame, or longer than all free frames together.
    pub(crate) rx_dropped: u64,
    /// Refused by this program.
    pub(crate) invalid_descriptors: u64,
}

impl Statistics {
    /// Lost packets by cause, each once. `before` is what the previous call about this socket returned, or the default.
    ///
    /// `rx_dropped` includes the packets that found the fill ring empty, and the kernel reads the two counters at
    /// different moments. So a packet may show up as `fill_ring_empty` one call later than the others; but no cause
    /// ever goes down, the sum is that of the kernel, and at rest each cause is exact.
    pub(crate) fn lost_packets(&self, zero_copy: bool, before: &Lost) -> Lost {
        let fill_ring_empty = match zero_copy {
            true => 0,
            // The kernel counts the empty ring before the dropped packet, and reads them in the other order: there may
            // be more of the first than belong to the second, never fewer.
            false => self.rx_fill_ring_empty.min(self.rx_dropped.saturating_sub(before.rx_dropped)),
        };
        Lost {
            fill_ring_empty,
            rx_ring_full: self.rx_ring_full,
            rx_dropped: self.rx_dropped - fill_ring_empty,
            invalid_descriptors: self.invalid_descriptors,
        }
    }
}

impl Lost {
    /// All of them.
    #[cfg(test)]
    pub(crate) fn total(&self) -> u64 {
        self.fill_ring_empty + self.rx_ring_full + self.rx_dropped + self.invalid_descriptors
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kernel(rx_dropped: u64, rx_fill_ring_empty: u64, rx_ring_full: u64) -> Statistics {
        Statistics { rx_dropped, rx_fill_ring_empty, rx_ring_full, ..Statistics::default() }
    }

    #[test]
    fn a_packet_that_found_the_fill_ring_empty_counts_once() {
        let lost = kernel(10, 6, 3).lost_packets(false, &Lost::default());
        assert_eq!(lost, Lost { fill_ring_empty: 6, rx_dropped: 4, rx_ring_full: 3, invalid_descriptors: 0 });
        assert_eq!(lost.total(), 13);
    }

    #[test]
    fn with_zero_copy_an_empty_fill_ring_is_no_packet() {
        let lost = kernel(2, 600, 3).lost_packets(true, &Lost::default());
        assert_eq!(lost, Lost { fill_ring_empty: 0, rx_dropped: 2, rx_ring_full: 3, invalid_descriptors: 0 });
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            cases: if cfg!(miri) { 8 } else { 256 },
            failure_persistence: None,
            ..ProptestConfig::default()
        })]
        /// The kernel's two increments and two reads, interleaved at will.
        #[test]
        fn no_cause_ever_goes_down_and_at_rest_each_is_exact(
            steps in prop::collection::vec((0_u64..4, 0_u64..4, 0_u64..4), 0..50)
        ) {
            let (mut empty, mut long, mut last) = (0, 0, Lost::default());
            for (more_empty, more_long, between) in steps {
                empty += more_empty;
                long += more_long;
                // `between` packets find the ring empty after `rx_dropped` was read and before the other is.
                let lost = kernel(empty + long, empty + between, 0).lost_packets(false, &last);
                empty += between;
                prop_assert!(lost.fill_ring_empty >= last.fill_ring_empty && lost.rx_dropped >= last.rx_dropped);
                prop_assert_eq!(lost.total(), empty + long - between);
                last = lost;
            }
            let lost = kernel(empty + long, empty, 0).lost_packets(false, &last);
            prop_assert_eq!((lost.fill_ring_empty, lost.rx_dropped), (empty, long));
        }
    }
}
