//! Inspection of made-up hosts, and of the one the tests run on.

use std::fs;
use std::os::unix::fs::symlink;
use tempfile::TempDir;
use tuning::{Capabilities, Host, HugePages, MemlockLimit, Sysfs, TuningError, advice};

struct Tree {
    folder: TempDir,
}

impl Tree {
    fn new() -> Tree {
        Tree { folder: tempfile::tempdir().unwrap() }
    }

    fn file(&self, path: &str, text: &str) -> &Tree {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
        self
    }

    fn link(&self, path: &str, target: &str) -> &Tree {
        let path = self.folder.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
        self
    }

    fn interface(&self, name: &str, index: u32, flags: &str) -> &Tree {
        let base = format!("sys/class/net/{name}");
        self.file(&format!("{base}/ifindex"), &format!("{index}\n"))
            .file(&format!("{base}/flags"), flags)
            .file(&format!("{base}/mtu"), "1500\n")
            .file(&format!("{base}/address"), "02:00:00:00:00:07\n")
            .file(&format!("{base}/queues/rx-0/rps_cpus"), "")
            .file(&format!("{base}/queues/tx-0/xps_cpus"), "")
    }

    fn sysfs(&self) -> Sysfs {
        Sysfs::new(self.folder.path())
    }
}

const ROUTE_HEADER: &str = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";

#[test]
fn an_empty_tree_is_a_host_that_says_nothing() {
    let tree = Tree::new();
    let sysfs = tree.sysfs();
    assert_eq!(sysfs.inspect(), Host::default());
    assert_eq!(sysfs.capabilities(), Capabilities::default());
    assert_eq!(sysfs.interfaces(), []);
    assert_eq!(advice(&sysfs.inspect(), &[]), []);
    let error = sysfs.default_route_interface().unwrap_err();
    assert!(error.to_string().contains("ip link set"), "{error}");
}

#[test]
fn the_default_route_with_the_lowest_metric_wins() {
    let tree = Tree::new();
    tree.file(
        "proc/net/route",
        &format!(
            "{ROUTE_HEADER}\
             wlan0\t00000000\t0102A8C0\t0003\t0\t0\t600\t00000000\t0\t0\t0\n\
             eth1\t00000000\t0102A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0\n\
             down0\t00000000\t0102A8C0\t0002\t0\t0\t1\t00000000\t0\t0\t0\n\
             none0\t00000000\t00000000\t0201\t0\t0\t0\t00000000\t0\t0\t0\n\
             half0\t00000000\t0102A8C0\t0003\t0\t0\t0\t00000080\t0\t0\t0\n\
             eth2\t0002A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n"
        ),
    );
    assert_eq!(tree.sysfs().default_route_interface().unwrap(), "eth1");

    let zero = "0".repeat(32);
    let gateway = "fe800000000000000000000000000001";
    let v6 = |metric: &str, flags: &str, name: &str| {
        format!("{zero} 00 {zero} 00 {gateway} {metric} 00000001 00000000 {flags} {name}\n")
    };
    let table = v6("ffffffff", "00200200", "lo") + &v6("00000064", "00000003", "six0");
    tree.file("proc/net/ipv6_route", &table);
    assert_eq!(tree.sysfs().default_route_interface().unwrap(), "eth1", "of equal metrics, IPv4");
    tree.file("proc/net/ipv6_route", &(table + &v6("0000000a", "00000003", "six1")));
    assert_eq!(tree.sysfs().default_route_interface().unwrap(), "six1");
    tree.file("proc/net/route", "garbage\n\n\t\t\n");
    assert_eq!(tree.sysfs().default_route_interface().unwrap(), "six1");
}

#[test]
fn without_a_default_route_the_error_lists_what_is_up() {
    let tree = Tree::new();
    tree.interface("lo", 1, "0x9\n").interface("tap1", 4, "0x1003\n").interface("tap0", 3, "0x1003\n");
    tree.interface("off0", 2, "0x1002\n").file("proc/net/route", ROUTE_HEADER);
    let error = tree.sysfs().default_route_interface().unwrap_err();
    assert_eq!(error, TuningError::NoDefaultRoute { interfaces_up: vec!["tap0".to_owned(), "tap1".to_owned()] });
    assert!(error.to_string().ends_with("name an interface with -i; up are: tap0, tap1"), "{error}");
}

#[test]
fn interfaces_are_read_field_by_field() {
    let tree = Tree::new();
    tree.interface("nic0", 7, "0x1003\n")
        .file("sys/class/net/nic0/speed", "25000\n")
        .file("sys/class/net/nic0/queues/rx-1/rps_cpus", "")
        .file("sys/class/net/nic0/device/numa_node", "1\n")
        .link("sys/class/net/nic0/device/driver", "../../../bus/pci/drivers/mlx5_core")
        .interface("lo", 1, "0x9\n")
        .file("sys/class/net/lo/address", "00:00:00:00:00:00\n")
        .file("sys/class/net/lo/speed", "-1\n")
        .file("sys/class/net/bonding_masters", "\n");
    let all = tree.sysfs().interfaces();
    assert_eq!(all.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["lo", "nic0"]);
    let json = serde_json::to_value(&all[1]).unwrap();
    let expected = serde_json::json!({
        "name": "nic0", "index": 7, "up": true, "mtu": 1500, "driver": "mlx5_core", "speed_mbps": 25000,
        "rx_queues": 2, "numa_node": 1, "mac": "02:00:00:00:00:07", "is_virtual": false, "is_loopback": false,
    });
    assert_eq!(json, expected);
    let lo = &all[0];
    assert!(lo.is_virtual && lo.is_loopback && lo.up);
    assert_eq!((&lo.mac, lo.speed_mbps, &lo.driver, lo.numa_node), (&None, None, &None, None));
}

fn host() -> Tree {
    let tree = Tree::new();
    tree.file("sys/devices/system/cpu/online", "0-3,6\n")
        .file("sys/devices/system/cpu/isolated", "\n")
        .file("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "powersave\n")
        .file("sys/devices/system/cpu/cpufreq/policy1/scaling_governor", "performance\n")
        .file("sys/devices/system/cpu/cpufreq/policy2/scaling_governor", "powersave\n")
        .file("proc/sys/kernel/osrelease", "6.12.1\n")
        .file("proc/meminfo", "MemTotal:       1024 kB\nMemFree: 3 kB\nMemAvailable:        512 kB\n")
        .file("proc/self/status", "Name:\tx\nCapPrm:\t0000000000000000\nCapEff:\t0000008000003000\n")
        .file(
            "proc/self/limits",
            "Limit                     Soft Limit           Hard Limit           Units\n\
             Max processes             95000                95000                processes\n\
             Max locked memory         8388608              unlimited            bytes\n",
        )
        .file("sys/kernel/mm/transparent_hugepage/enabled", "always [madvise] never\n")
        .file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "0\n")
        .file("sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages", "0\n");
    tree
}

#[test]
fn a_host_is_read_field_by_field() {
    let tree = host();
    let expected = Host {
        capabilities: tree.sysfs().capabilities(),
        cores: Some(5),
        kernel_release: Some("6.12.1".to_owned()),
        memory_total_bytes: Some(1 << 20),
        memory_available_bytes: Some(1 << 19),
        huge_pages_2m: Some(HugePages { total: 0, free: 0 }),
        huge_pages_1g: None,
        memlock_limit: Some(MemlockLimit::Bytes(8 << 20)),
        cpu_governors: vec!["performance".to_owned(), "powersave".to_owned()],
        isolated_cpus: Some(vec![]),
        transparent_huge_pages: Some("madvise".to_owned()),
    };
    assert_eq!(tree.sysfs().inspect(), expected);
    assert_eq!(
        tree.sysfs().capabilities(),
        Capabilities { net_raw: true, net_admin: true, bpf: true, sys_admin: false, ipc_lock: false }
    );
    tree.file("sys/devices/system/cpu/isolated", "2-3\n");
    tree.file("proc/self/limits", "Max locked memory         unlimited            unlimited            bytes\n");
    let again = tree.sysfs().inspect();
    assert_eq!((again.isolated_cpus, again.memlock_limit), (Some(vec![2, 3]), Some(MemlockLimit::Unlimited)));
}

#[test]
fn advice_is_given_where_it_is_needed_only() {
    let tree = host();
    tree.interface("nic0", 2, "0x1003\n").file("sys/class/net/nic0/device/vendor", "");
    let commands = || {
        let sysfs = tree.sysfs();
        advice(&sysfs.inspect(), &sysfs.interfaces()).into_iter().map(|a| a.command).collect::<Vec<_>>()
    };
    let all = [
        "ulimit -l unlimited",
        "ethtool -L nic0 combined 5",
        "sysctl -w vm.nr_hugepages=512",
        "cpupower frequency-set -g performance",
    ];
    assert_eq!(commands(), all);
    tree.file("sys/class/net/nic0/flags", "0x1002\n");
    assert_eq!(commands()[0], "ip link set dev nic0 up");
    tree.file("proc/self/status", "CapEff:\t0000000000004000\n"); // CAP_IPC_LOCK
    assert!(!commands().contains(&"ulimit -l unlimited".to_owned()));

    tree.file("sys/class/net/nic0/flags", "0x1003\n")
        .file("sys/class/net/nic0/queues/rx-1/rps_cpus", "")
        .file("sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "8\n")
        .file("sys/devices/system/cpu/cpufreq/policy0/scaling_governor", "performance\n")
        .file("sys/devices/system/cpu/cpufreq/policy2/scaling_governor", "performance\n")
        .file("proc/self/limits", "Max locked memory         unlimited            unlimited            bytes\n");
    assert_eq!(commands(), [""; 0]);
}

#[test]
fn this_host_can_be_inspected() {
    let host = tuning::inspect();
    assert!(host.cores.is_some_and(|cores| cores >= 1), "{host:?}");
    assert!(host.kernel_release.is_some() && host.memlock_limit.is_some(), "{host:?}");
    assert!(host.memory_total_bytes > host.memory_available_bytes, "{host:?}");
    let interfaces = tuning::interfaces();
    assert!(interfaces.is_sorted_by_key(|interface| interface.index));
    if let Ok(name) = tuning::default_route_interface() {
        assert!(interfaces.iter().any(|interface| interface.name == name), "{name} in {interfaces:?}");
    }
    for advice in advice(&host, &interfaces) {
        assert!(!advice.what.is_empty() && !advice.why.is_empty() && !advice.command.is_empty());
    }
    let _ = tuning::capabilities();
}
