use crate::{Host, Interface, MemlockLimit};
use serde::Serialize;

/// Something that would make captures better.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Advice {
    /// What is not as it should be, with its value.
    pub what: String,
    /// What it costs.
    pub why: String,
    /// A command that changes it until the next start of the host.
    pub command: String,
}

/// Least memory a capture should be able to lock: room for frames of one interface with a few queues.
const MEMLOCK_BYTES_MIN: u64 = 256 << 20;

/// What to change on this host, most important first; empty if nothing. Silent about what the host does not say.
pub fn advice(host: &Host, interfaces: &[Interface]) -> Vec<Advice> {
    let mut all = Vec::new();
    all.extend(no_interface(interfaces));
    all.extend(memlock(host));
    all.extend(interfaces.iter().filter_map(|interface| single_queue(host, interface)));
    all.extend(huge_pages(host));
    all.extend(governor(host));
    all
}

fn no_interface(interfaces: &[Interface]) -> Option<Advice> {
    if interfaces.iter().any(|interface| interface.up && !interface.is_loopback) {
        return None;
    }
    let name = interfaces.iter().find(|interface| !interface.is_loopback)?.name.as_str();
    Some(Advice {
        what: "no interface but loopback is up".to_owned(),
        why: "there is nothing to capture from".to_owned(),
        command: format!("ip link set dev {name} up"),
    })
}

fn memlock(host: &Host) -> Option<Advice> {
    match host.memlock_limit? {
        MemlockLimit::Bytes(bytes) if bytes < MEMLOCK_BYTES_MIN && !host.capabilities.ipc_lock => Some(Advice {
            what: format!("this process may lock {} KiB of memory only", bytes >> 10),
            why: "frames of AF_XDP sockets are locked memory: registering them fails with ENOBUFS".to_owned(),
            command: "ulimit -l unlimited".to_owned(),
        }),
        _ => None,
    }
}

fn single_queue(host: &Host, interface: &Interface) -> Option<Advice> {
    let cores = host.cores?;
    if !interface.up || interface.is_virtual || interface.rx_queues != 1 || cores < 2 {
        return None;
    }
    Some(Advice {
        what: format!("{} has one receive queue, the host {cores} cores", interface.name),
        why: "a queue feeds one worker: packets of this interface cannot be spread over cores".to_owned(),
        command: format!("ethtool -L {} combined {cores}", interface.name),
    })
}

fn huge_pages(host: &Host) -> Option<Advice> {
    let (small, large) = (host.huge_pages_2m?, host.huge_pages_1g);
    if small.total > 0 || large.is_some_and(|pages| pages.total > 0) {
        return None;
    }
    Some(Advice {
        what: "no huge pages are set aside".to_owned(),
        why: "flow tables and packet buffers span many 4 KiB pages, and each page that is touched anew costs a table walk"
            .to_owned(),
        command: "sysctl -w vm.nr_hugepages=512".to_owned(),
    })
}

fn governor(host: &Host) -> Option<Advice> {
    let slow: Vec<&str> = host.cpu_governors.iter().map(String::as_str).filter(|name| *name != "performance").collect();
    if slow.is_empty() {
        return None;
    }
    Some(Advice {
        what: format!("the CPU frequency governor is {}, not performance", slow.join(" and ")),
        why: "a core that clocks down between bursts is slow when the next one comes, and the ring overflows"
            .to_owned(),
        command: "cpupower frequency-set -g performance".to_owned(),
    })
}
