use crate::Sysfs;
use serde::Serialize;

/// Which of the capabilities that captures and tuning need are in effect (linux/capability.h, capabilities(7)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Capabilities {
    /// CAP_NET_RAW: packet sockets, AF_XDP sockets.
    pub net_raw: bool,
    /// CAP_NET_ADMIN: attaching XDP programs, promiscuous mode, changing interfaces.
    pub net_admin: bool,
    /// CAP_BPF: loading programs, creating maps. CAP_SYS_ADMIN includes it.
    pub bpf: bool,
    /// CAP_SYS_ADMIN.
    pub sys_admin: bool,
    /// CAP_IPC_LOCK: locking memory beyond the memlock limit.
    pub ipc_lock: bool,
}

const NET_ADMIN: u32 = 12;
const NET_RAW: u32 = 13;
const IPC_LOCK: u32 = 14;
const SYS_ADMIN: u32 = 21;
const BPF: u32 = 39;

impl Capabilities {
    /// From a set as the kernel prints it: bit n is capability n.
    pub const fn from_bits(bits: u64) -> Capabilities {
        Capabilities {
            net_raw: bits >> NET_RAW & 1 == 1,
            net_admin: bits >> NET_ADMIN & 1 == 1,
            bpf: (bits >> BPF | bits >> SYS_ADMIN) & 1 == 1,
            sys_admin: bits >> SYS_ADMIN & 1 == 1,
            ipc_lock: bits >> IPC_LOCK & 1 == 1,
        }
    }
}

impl Sysfs {
    /// Effective capabilities of this process, from `CapEff` in `/proc/self/status`; none where that cannot be read.
    pub fn capabilities(&self) -> Capabilities {
        let status = self.text("proc/self/status").unwrap_or_default();
        let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
        Capabilities::from_bits(bits.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_bit_is_its_capability() {
        assert_eq!(Capabilities::from_bits(0), Capabilities::default());
        let only = |set: fn(&mut Capabilities)| {
            let mut c = Capabilities::default();
            set(&mut c);
            c
        };
        assert_eq!(Capabilities::from_bits(1 << 13), only(|c| c.net_raw = true));
        assert_eq!(Capabilities::from_bits(1 << 12), only(|c| c.net_admin = true));
        assert_eq!(Capabilities::from_bits(1 << 14), only(|c| c.ipc_lock = true));
        assert_eq!(Capabilities::from_bits(1 << 39), only(|c| c.bpf = true));
        assert_eq!(Capabilities::from_bits(1 << 21), only(|c| (c.sys_admin, c.bpf) = (true, true)));
    }
}
