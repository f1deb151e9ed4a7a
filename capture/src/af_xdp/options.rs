use super::XdpError;

/// Bytes in front of each packet that the kernel keeps for the XDP program and its metadata (XDP_PACKET_HEADROOM,
/// uapi/linux/bpf.h).
pub(super) const XDP_HEADROOM_BYTES: u32 = 256;

/// Shape of an AF_XDP socket, per queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct XdpOptions {
    /// Packet buffers of a queue, a power of two from 64 to 1048576. `frames * frame_bytes` is how much traffic a stall
    /// of the worker may last for. Both rings have as many entries, so that only a shortage of frames can lose a packet.
    pub frames: u32,
    /// Bytes of a frame, 2048 or 4096. A packet of up to `frame_bytes - 256 - headroom_bytes` bytes fits into one.
    pub frame_bytes: u32,
    /// Bytes that stay free in front of each packet, 0 to 256 in steps of 8, besides the 256 that the kernel reserves
    /// (timestamps lie in those).
    pub headroom_bytes: u32,
    /// Whether to ask for huge pages (1 GiB, 2 MiB) before normal ones.
    pub huge_pages: bool,
    /// Whether packets longer than a frame are received, in several frames (XDP_USE_SG, Linux 6.6). Without, they are
    /// lost and counted.
    pub multi_buffer: bool,
    /// Whether the driver may stop looking for free frames and ask to be woken (XDP_USE_NEED_WAKEUP): cheaper where
    /// driver and worker share a core. In copy mode without effect.
    pub need_wakeup: bool,
    /// Whether the worker drives the NIC's queue itself, from its own core.
    pub busy_poll: Option<BusyPoll>,
}

/// Preferred busy polling (SO_PREFER_BUSY_POLL): each wait of the worker runs the driver's receive loop on its own core.
/// Takes effect with `napi_defer_hard_irqs` and `gro_flush_timeout` set on the interface, and needs CAP_NET_ADMIN.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BusyPoll {
    /// How long a call that finds nothing may poll, 1 to 10000 (SO_BUSY_POLL).
    pub microseconds: u32,
    /// Packets that the driver takes in one go, 1 to 65535 (SO_BUSY_POLL_BUDGET).
    pub budget: u16,
}

/// 16 MiB: 4096 frames of a page each, which outlast a stall of 4 ms at 1 Mpps.
impl Default for XdpOptions {
    fn default() -> XdpOptions {
        XdpOptions {
            frames: 4096,
            frame_bytes: 4096,
            headroom_bytes: 0,
            huge_pages: true,
            multi_buffer: true,
            need_wakeup: true,
            busy_poll: None,
        }
    }
}

impl XdpOptions {
    /// # Errors
    /// [`XdpError::Option`] with the first field that is out of range.
    pub(crate) fn check(&self) -> Result<(), XdpError> {
        let refuse = |field, value: u32, expected| Err(XdpError::Option { field, value: u64::from(value), expected });
        if !self.frames.is_power_of_two() || !(64..=1 << 20).contains(&self.frames) {
            return refuse("frames", self.frames, "a power of two from 64 to 1048576");
        }
        // A frame larger than a page is refused by the kernel (EINVAL).
        if ![2048, 4096].contains(&self.frame_bytes) {
            return refuse("frame_bytes", self.frame_bytes, "2048 or 4096");
        }
        if self.headroom_bytes > 256 || !self.headroom_bytes.is_multiple_of(8) {
            return refuse("headroom_bytes", self.headroom_bytes, "a multiple of 8 from 0 to 256");
        }
        if let Some(BusyPoll { microseconds, budget }) = self.busy_poll {
            if !(1..=10_000).contains(&microseconds) {
                return refuse("busy_poll.microseconds", microseconds, "1 to 10000");
            }
            if budget == 0 {
                return refuse("busy_poll.budget", 0, "1 to 65535");
            }
        }
        Ok(())
    }

    /// Longest packet that fits into one frame, in bytes.
    pub fn packet_bytes_max(&self) -> u32 {
        self.frame_bytes.saturating_sub(XDP_HEADROOM_BYTES + self.headroom_bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_in_range_and_a_page_leaves_3840_bytes_for_a_packet() {
        let options = XdpOptions::default();
        options.check().unwrap();
        assert_eq!(options.packet_bytes_max(), 3840);
    }

    #[test]
    fn each_field_out_of_range_is_named_with_its_value_and_what_is_allowed() {
        let good = XdpOptions::default();
        let busy = |microseconds, budget| XdpOptions { busy_poll: Some(BusyPoll { microseconds, budget }), ..good };
        let cases = [
            (XdpOptions { frames: 32, ..good }, "frames is 32, expected a power of two from 64"),
            (XdpOptions { frames: 1000, ..good }, "frames is 1000, expected a power of two"),
            (XdpOptions { frames: 1 << 21, ..good }, "frames is 2097152"),
            (XdpOptions { frame_bytes: 8192, ..good }, "frame_bytes is 8192, expected 2048 or 4096"),
            (XdpOptions { headroom_bytes: 12, ..good }, "headroom_bytes is 12, expected a multiple of 8"),
            (XdpOptions { headroom_bytes: 264, ..good }, "headroom_bytes is 264"),
            (busy(0, 64), "busy_poll.microseconds is 0, expected 1 to 10000"),
            (busy(20, 0), "busy_poll.budget is 0, expected 1 to 65535"),
        ];
        for (options, expected) in cases {
            let message = options.check().unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
        busy(20, 64).check().unwrap();
    }
}
