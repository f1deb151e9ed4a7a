//! Names and sets of capabilities.

use std::fmt;

/// A capability that capturing has to do with (capabilities(7)). The value is its number in `linux/capability.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum Capability {
    /// Change one's own bounding set.
    SetPcap = 8,
    /// Attach XDP programs, create XSK maps, set busy polling.
    NetAdmin = 12,
    /// Open packet and XDP sockets.
    NetRaw = 13,
    /// Register UMEM beyond RLIMIT_MEMLOCK.
    IpcLock = 14,
    /// What BPF needed before Linux 5.8; still does for it.
    SysAdmin = 21,
    /// Raise hard limits, RLIMIT_MEMLOCK for one.
    SysResource = 24,
    /// Load programs and create maps, since Linux 5.8.
    Bpf = 39,
}

impl Capability {
    /// All that have a name here, in order of their numbers.
    pub const ALL: [Capability; 7] = [
        Capability::SetPcap,
        Capability::NetAdmin,
        Capability::NetRaw,
        Capability::IpcLock,
        Capability::SysAdmin,
        Capability::SysResource,
        Capability::Bpf,
    ];

    /// Name as in capabilities(7) and in systemd units, `CAP_NET_RAW`.
    pub const fn name(self) -> &'static str {
        match self {
            Capability::SetPcap => "CAP_SETPCAP",
            Capability::NetAdmin => "CAP_NET_ADMIN",
            Capability::NetRaw => "CAP_NET_RAW",
            Capability::IpcLock => "CAP_IPC_LOCK",
            Capability::SysAdmin => "CAP_SYS_ADMIN",
            Capability::SysResource => "CAP_SYS_RESOURCE",
            Capability::Bpf => "CAP_BPF",
        }
    }

    /// What a capture server does with it.
    pub(super) const fn purpose(self) -> &'static str {
        match self {
            Capability::SetPcap => "empty the bounding set",
            Capability::NetAdmin => "attach XDP programs",
            Capability::NetRaw => "open packet and XDP sockets",
            Capability::IpcLock => "lock memory beyond RLIMIT_MEMLOCK",
            Capability::SysAdmin | Capability::Bpf => "load XDP programs",
            Capability::SysResource => "raise limits",
        }
    }

    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

/// A set of capabilities. Bit n stands for capability n, those without a name here included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(u64);

impl Capabilities {
    /// None.
    pub const EMPTY: Capabilities = Capabilities(0);
    /// What opening an interface takes, by AF_XDP or AF_PACKET: CAP_NET_RAW, CAP_NET_ADMIN and CAP_BPF.
    pub const CAPTURE: Capabilities =
        Capabilities(Capability::NetRaw.bit() | Capability::NetAdmin.bit() | Capability::Bpf.bit());

    /// What the thread that opens interfaces again keeps, of what it had: what opening takes, and CAP_IPC_LOCK, without
    /// which packet memory that was locked at the start may not be locked a second time.
    pub const REOPEN: Capabilities = Capabilities(Capabilities::CAPTURE.0 | Capability::IpcLock.bit());

    /// The set with these bits, as `/proc/PID/status` prints them.
    pub const fn from_bits(bits: u64) -> Capabilities {
        Capabilities(bits)
    }

    /// The bits of the set.
    pub const fn bits(self) -> u64 {
        self.0
    }

    /// Whether there is nothing in it.
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Whether it holds `capability`.
    pub const fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bit() != 0
    }

    /// What both hold.
    pub const fn intersection(self, other: Capabilities) -> Capabilities {
        Capabilities(self.0 & other.0)
    }
}

impl fmt::Display for Capabilities {
    /// "CAP_NET_ADMIN, CAP_NET_RAW, 2 others", or "no capabilities".
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no capabilities");
        }
        let named = Capability::ALL.into_iter().filter(|c| self.contains(*c));
        let rest = Capability::ALL.into_iter().fold(self.0, |bits, c| bits & !c.bit()).count_ones();
        let mut parts: Vec<String> = named.map(|c| c.name().to_owned()).collect();
        match rest {
            0 => {}
            1 => parts.push("1 other".to_owned()),
            n => parts.push(format!("{n} others")),
        }
        f.write_str(&parts.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_names_what_it_holds() {
        assert_eq!(Capabilities::CAPTURE.to_string(), "CAP_NET_ADMIN, CAP_NET_RAW, CAP_BPF");
        assert_eq!(Capabilities::CAPTURE.bits(), 0x80_0000_3000);
        assert_eq!(Capabilities::EMPTY.to_string(), "no capabilities");
        assert_eq!(Capabilities::from_bits(0x2003).to_string(), "CAP_NET_RAW, 2 others");
        assert_eq!(Capabilities::from_bits(1).to_string(), "1 other");
        let raw = Capabilities::from_bits(0x1_2000).intersection(Capabilities::CAPTURE);
        assert!(raw.contains(Capability::NetRaw) && !raw.contains(Capability::Bpf) && raw.bits() == 0x2000);
    }
}
