"""Kernel-bypass capture over veth: every mode, every packet, and a ledger that adds up whatever happens."""
import json
import os
import re
import signal
import socket
import struct
import subprocess
import time
from pathlib import Path

import pytest

import namespaces
from conftest import BINARY, Server, rows, taphouse
from namespaces import add_pair, causes, eventually, inject, packets_of, settled, sh, status_of

CLIENT, HOST = bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2])


def udp(source, target, sport, dport, payload=b"ping"):
    body = struct.pack(">HHHH", sport, dport, 8 + len(payload), 0) + payload
    header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(body), 1, 0, 64, 17, 0, source, target)
    return b"\x02" * 12 + b"\x08\x00" + header + body


def distinct(count, payload=b"ping"):
    return [udp(CLIENT, HOST, 1024 + i % 50_000, 53 + i // 50_000, payload) for i in range(count)]


def inside(namespace):
    return ["ip", "netns", "exec", namespace]


def start(server, far, tmp_path, *settings, interfaces=("tap1",), folder="data"):
    taps = [argument for interface in interfaces for argument in ("-i", interface)]
    sets = [argument for setting in settings for argument in ("--set", setting)]
    return server(["run", *taps, "--data-dir", tmp_path / folder, *sets], prefix=inside(far))


@pytest.fixture
def queues(link):
    """Makes the pair anew with that many queues."""
    near, far = link

    def make(count, mtu=9000):
        sh("ip", "-n", far, "link", "del", "tap1")
        add_pair(near, far, "tap0", "tap1", queues=count, mtu=mtu)
        return near, far

    return make


# --- Every mode, to the packet ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["copy", "generic", "af_packet", "auto"])
def test_every_mode_counts_exactly(link, server, generated, tmp_path, mode):
    near, far = link
    frames = packets_of(generated[0], 20_000)
    running = start(server, far, tmp_path, f"capture.mode={mode}")
    inject(near, "tap0", frames)
    status = settled(far, running, len(frames))
    assert causes(status) == {"processed": len(frames)}
    (interface,) = status["interfaces"]
    # veth has no zero-copy: the best that works is the driver's copy.
    assert interface["mode"] == {"auto": "copy"}.get(mode, mode)
    assert interface["up"] and interface["mtu"] == 9000
    if mode == "auto":
        assert any("zerocopy" in note for note in interface["notes"]), interface
    if mode != "af_packet":
        assert interface["ports"][0]["xdp_statistics"] == dict.fromkeys(interface["ports"][0]["xdp_statistics"], 0)
        assert len(interface["ports"][0]["xdp_statistics"]) == 6
    assert f"{len(frames)} packets offered, {len(frames)} processed, 0 lost" in running.stop()


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("mode", ["copy", "generic"])
def test_every_queue_is_read(queues, server, tmp_path, mode, count):
    near, far = queues(count)
    running = start(server, far, tmp_path, f"capture.mode={mode}", f"pipeline.workers={count}")
    cores = sorted(os.sched_getaffinity(0))[:count]
    frames = distinct(4000)
    for core in cores:
        inject(near, "tap0", frames, core=core)
    inject(near, "tap0", frames)
    expected = len(frames) * (len(cores) + 1)
    status = settled(far, running, expected)
    assert causes(status) == {"processed": expected}
    assert len(status["queues"]) == count
    assert [port["queue"] for port in status["interfaces"][0]["ports"]] == list(range(count))
    if mode == "copy":
        # In generic mode veth's receiver takes the sender's queue number, less one, for its own.
        assert sum(q["offered"] > 0 for q in status["queues"]) >= min(count, len(cores))
    assert "0 lost" in running.stop()


def test_fewer_workers_than_queues_read_them_all(queues, server, tmp_path):
    near, far = queues(4)
    running = start(server, far, tmp_path, "capture.mode=copy", "pipeline.workers=1")
    frames = distinct(8000)
    inject(near, "tap0", frames)
    status = settled(far, running, len(frames))
    assert causes(status) == {"processed": len(frames)} and len(status["queues"]) == 1
    assert [port["worker"] for port in status["interfaces"][0]["ports"]] == [0, 0, 0, 0]


@pytest.mark.parametrize("settings", [["capture.need_wakeup=false"], ["capture.wait=adaptive"], ["capture.frame=4096"],
                                      ["capture.busy_poll=20us"], ["capture.huge_pages=false"]])
def test_every_setting_counts_exactly(link, server, tmp_path, settings):
    near, far = link
    running = start(server, far, tmp_path, "capture.mode=copy", *settings)
    inject(near, "tap0", distinct(5000))
    assert causes(settled(far, running, 5000)) == {"processed": 5000}
    assert "5000 packets offered, 5000 processed, 0 lost" in running.stop()


@pytest.mark.parametrize("mode", ["copy", "generic"])
def test_jumbo_packets_span_buffers(link, server, tmp_path, mode):
    near, far = link
    running = start(server, far, tmp_path, f"capture.mode={mode}", "capture.frame=2048")
    sizes = [1, 1472, 1700, 2000, 4000, 5900, 8972]
    frames = [udp(CLIENT, HOST, 1000 + i, 53, bytes(size)) for i, size in enumerate(sizes) for _ in range(50)]
    inject(near, "tap0", frames)
    assert causes(settled(far, running, len(frames))) == {"processed": len(frames)}
    running.stop()
    found = rows("SELECT src_port, sum(bytes_o) AS b, sum(pkts_o) AS p FROM flows GROUP BY 1 ORDER BY 1", tmp_path / "data")
    assert found == [{"src_port": 1000 + i, "b": 50 * (28 + size), "p": 50} for i, size in enumerate(sizes)]


# --- A tap of two interfaces -----------------------------------------------------------------------------------------


def symmetric_core(client_port, cores):
    return cores[client_port % len(cores)]


@pytest.mark.parametrize("sharding", ["queue", "symmetric"])
def test_both_directions_meet_on_one_core(link, server, tmp_path, sharding):
    """Two pairs, each with one direction of the same flows, two queues each."""
    near, far = link
    sh("ip", "-n", far, "link", "del", "tap1")
    for device in ("tap0", "tap2"):
        add_pair(near, far, device, device.replace("0", "1").replace("2", "3"), queues=2)
    taps = f"taps=[{{name: core, interfaces: [tap1, tap3], sharding: {sharding}}}]"
    running = server(
        ["run", "--data-dir", tmp_path / "data", "--set", taps, "--set", "capture.mode=copy"], prefix=inside(far)
    )
    cores = sorted(os.sched_getaffinity(0))[:2]
    ports = range(1000, 1500)
    requests = {port: udp(CLIENT, HOST, port, 53) for port in ports}
    answers = {port: udp(HOST, CLIENT, 53, port) for port in ports}

    def send(device, frames, swapped):
        for core in cores:
            # What a card does that hashes symmetrically; swapped, one that does not.
            mine = [f for port, f in frames.items() if (symmetric_core(port, cores) == core) != swapped]
            inject(near, device, mine, core=core)

    send("tap0", requests, False)
    settled(far, running, len(ports))
    send("tap2", answers, sharding == "symmetric" and len(cores) == 2)
    status = settled(far, running, 2 * len(ports))
    assert causes(status) == {"processed": 2 * len(ports)}
    assert len(status["queues"]) == 2 and all(q["offered"] > 0 for q in status["queues"])
    assert "0 lost" in running.stop()
    found = rows("SELECT count(*) AS n, sum(pkts_o) AS o, sum(pkts_r) AS r, min(src_port) AS p FROM flows", tmp_path / "data")
    assert found == [{"n": len(ports), "o": len(ports), "r": len(ports), "p": 1000}]


# --- Loss, cause by cause --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode, cause", [("copy", "fill_ring_empty"), ("generic", "fill_ring_empty"), ("af_packet", "kernel_drop")])
def test_a_worker_too_slow_loses_packets_that_the_ledger_names(link, server, tmp_path, mode, cause):
    near, far = link
    running = start(server, far, tmp_path, f"capture.mode={mode}", "capture.ring=2MiB")
    # The slowest worker there is: one that is stopped.
    os.kill(running.process.pid, signal.SIGSTOP)
    frames = distinct(10_000, payload=bytes(1000))
    inject(near, "tap0", frames)
    os.kill(running.process.pid, signal.SIGCONT)
    status = settled(far, running, len(frames))
    found = causes(status)
    assert sum(found.values()) == len(frames) and set(found) == {"processed", cause}, found
    if mode != "af_packet":
        # 2 MiB of 2 KiB frames.
        assert found["processed"] == 1024
    status = eventually(far, running, lambda s: s["alerts"]["last_seq"] > 0)
    table = subprocess.run([*inside(far), BINARY, "status", "--server", running.grpc], capture_output=True, text=True).stdout
    assert re.search(rf"! tap1/\d: {found[cause]} {cause}: .*capture.ring", table), table
    alerts = subprocess.run(
        [*inside(far), BINARY, "alerts", "--server", running.grpc, "--output", "json"], capture_output=True, text=True
    )
    (alert,) = [a for a in json.loads(alerts.stdout) if a["rule"] == "loss"]
    assert alert["key"] == f"loss/tap1/{cause}" and alert["evidence"]["lost"] == found[cause], alert
    assert f"{found['processed']} processed, {found[cause]} lost" in running.stop()


def test_frames_too_long_for_the_buffer_are_counted(link, server, tmp_path):
    near, far = link
    running = start(server, far, tmp_path, "capture.mode=copy", "capture.multi_buffer=never")
    inject(near, "tap0", distinct(100) + distinct(50, payload=bytes(3000)))
    assert causes(settled(far, running, 150)) == {"processed": 100, "rx_dropped": 50}
    running.stop()


def test_what_the_far_end_of_a_veth_pair_drops_is_counted(link, server, tmp_path):
    """No counter of the socket shows it: the receiver's NAPI does not run, and the sender finds its queue full."""
    near, far = link
    running = start(server, far, tmp_path, "capture.mode=copy")
    settings = "/sys/class/net/tap1"

    def napi(defer, timeout_ns):
        sh(*inside(far), "sh", "-c", f"echo {defer} > {settings}/napi_defer_hard_irqs; echo {timeout_ns} > {settings}/gro_flush_timeout")

    napi(1000, 5_000_000_000)
    inject(near, "tap0", distinct(2000))
    napi(0, 0)
    status = eventually(far, running, lambda s: sum(q["offered"] for q in s["queues"]) == 2000)
    found = causes(status)
    assert sum(found.values()) == 2000 and set(found) == {"processed", "peer_dropped"}, found
    assert f"{found['processed']} processed, {found['peer_dropped']} lost" in running.stop()


# --- Filters ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["copy", "af_packet"])
@pytest.mark.parametrize("expression", ["udp port 53", "not tcp", "tcp[tcpflags] & tcp-syn != 0", "net 10.0.0.0/8 and not port 443"])
def test_filters_keep_what_tcpdump_keeps(link, server, generated, tmp_path, mode, expression):
    near, far = link
    frames = packets_of(generated[0], 5000)
    clipped = tmp_path / "clipped.pcap"
    records = (struct.pack("<IIII", 1_700_000_000, i, len(f), len(f)) + f for i, f in enumerate(frames))
    clipped.write_bytes(generated[0].read_bytes()[:24] + b"".join(records))
    # Each record in the output of tcpdump is a packet it kept.
    kept = len(packets_of_bytes(subprocess.run(["tcpdump", "-r", clipped, "-w", "-", expression], capture_output=True, check=True).stdout))
    running = start(server, far, tmp_path, f"capture.mode={mode}", f'capture.filter="{expression}"')
    inject(near, "tap0", frames)
    status = settled(far, running, len(frames))
    found = causes(status)
    dropped = found.pop("filtered", 0) + found.pop("filtered_early", 0)
    assert dropped == len(frames) - kept and sum(found.values()) == kept
    early = mode == "copy" and "tcpflags" not in expression
    assert status["interfaces"][0]["ports"][0]["filtered_early"] == early
    assert "0 lost" in running.stop()
    summary = json.loads(taphouse("replay", clipped, "--filter", expression, "--data-dir", tmp_path / "r", "--output", "json").stdout)
    assert summary["ledger"]["causes"]["filtered"] == len(frames) - kept


def packets_of_bytes(data):
    at, out = 24, []
    while at < len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        out.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return out


def test_a_wrong_filter_is_shown_with_a_caret(tmp_path):
    done = taphouse("run", "-i", "lo", "--filter", "tcp prt 80", "--data-dir", tmp_path / "x", ok=False)
    assert done.returncode == 2 and "'prt'" in done.stderr
    text, caret = done.stderr.rstrip("\n").splitlines()[-2:]
    assert text.strip() == "tcp prt 80" and caret.index("^") == text.index("prt"), done.stderr


# --- Interfaces that come and go --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["copy", "af_packet"])
def test_a_link_that_goes_down_and_comes_back(link, server, tmp_path, mode):
    near, far = link
    add_pair(near, far, "tap2", "tap3")
    running = start(server, far, tmp_path, f"capture.mode={mode}", interfaces=("tap1", "tap3"))
    inject(near, "tap0", distinct(1000))
    settled(far, running, 1000)
    sh("ip", "-n", far, "link", "set", "tap1", "down")
    eventually(far, running, lambda s: not s["interfaces"][0]["up"])
    inject(near, "tap2", distinct(500))
    settled(far, running, 1500)
    sh("ip", "-n", far, "link", "set", "tap1", "up")
    status = eventually(far, running, lambda s: s["interfaces"][0]["up"])
    assert status["interfaces"][0]["up"]
    wait_for_carrier(near, "tap0")
    inject(near, "tap0", distinct(1000))
    status = settled(far, running, 2500)
    assert causes(status) == {"processed": 2500}
    log = running.stop()
    assert "tap1 went down" in log and "tap1 is up again" in log and "0 lost" in log


def wait_for_carrier(namespace, device):
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        shown = subprocess.run(["ip", "-n", namespace, "-br", "link", "show", device], capture_output=True, text=True).stdout
        if "LOWER_UP" in shown and " UP " in shown:
            return
        time.sleep(0.02)


@pytest.mark.parametrize("mode", ["copy", "af_packet"])
def test_an_interface_that_is_made_anew_is_read_again(link, server, tmp_path, mode):
    near, far = link
    add_pair(near, far, "tap2", "tap3")
    running = start(server, far, tmp_path, f"capture.mode={mode}", interfaces=("tap1", "tap3"))
    inject(near, "tap0", distinct(1000))
    settled(far, running, 1000)
    sh("ip", "-n", far, "link", "del", "tap1")
    status = eventually(far, running, lambda s: s["interfaces"][0]["mode"] == "closed")
    assert status["interfaces"][0]["mode"] == "closed" and status["interfaces"][1]["mode"] == mode
    inject(near, "tap2", distinct(500))
    settled(far, running, 1500)
    add_pair(near, far, "tap0", "tap1")
    status = eventually(far, running, lambda s: s["interfaces"][0]["mode"] == mode and s["interfaces"][0]["up"])
    assert status["interfaces"][0]["reopened"] >= 1, status["interfaces"]
    inject(near, "tap0", distinct(2000))
    status = settled(far, running, 3500)
    assert causes(status) == {"processed": 3500}, status
    log = running.stop()
    assert "tap1 was closed" in log and "tap1 is read again" in log and "0 lost" in log


def test_a_queue_count_that_changes_is_followed(queues, server, tmp_path):
    near, far = queues(4)
    sh(*inside(near), "ethtool", "-L", "tap0", "tx", "2")
    sh(*inside(far), "ethtool", "-L", "tap1", "rx", "2")
    running = start(server, far, tmp_path, "capture.mode=copy", "pipeline.workers=2")
    assert len(status_of(far, running)["interfaces"][0]["ports"]) == 2
    sh(*inside(far), "ethtool", "-L", "tap1", "rx", "4")
    status = eventually(far, running, lambda s: len(s["interfaces"][0]["ports"]) == 4)
    assert [port["worker"] for port in status["interfaces"][0]["ports"]] == [0, 1, 0, 1]
    sh(*inside(near), "ethtool", "-L", "tap0", "tx", "4")
    inject(near, "tap0", distinct(4000))
    assert causes(settled(far, running, 4000)) == {"processed": 4000}
    assert "it has 4 receive queue(s) now, it had 2" in running.stop()


def test_an_mtu_that_changes_is_told(link, server, tmp_path):
    near, far = link
    running = start(server, far, tmp_path, "capture.mode=copy")
    sh("ip", "-n", far, "link", "set", "tap1", "mtu", "1500")
    assert eventually(far, running, lambda s: s["interfaces"][0]["mtu"] == 1500)["interfaces"][0]["mtu"] == 1500
    inject(near, "tap0", distinct(1000))
    assert causes(settled(far, running, 1000)) == {"processed": 1000}
    assert "the MTU changed from 9000 to 1500" in running.stop()


def test_nothing_stays_behind_a_kill(link, server, tmp_path):
    near, far = link
    running = start(server, far, tmp_path, "capture.mode=copy")
    inject(near, "tap0", distinct(1000))
    settled(far, running, 1000)
    assert "xdp" in shown(far, "tap1")
    running.process.kill()
    running.process.wait()
    assert "xdp" not in shown(far, "tap1")
    again = start(server, far, tmp_path, "capture.mode=copy")
    inject(near, "tap0", distinct(1000))
    assert causes(settled(far, again, 1000)) == {"processed": 1000}
    assert "1000 packets offered, 1000 processed, 0 lost" in again.stop()
    assert "xdp" not in shown(far, "tap1")


def shown(namespace, device):
    return subprocess.run(["ip", "-n", namespace, "-d", "link", "show", device], capture_output=True, text=True, check=True).stdout


# --- What cannot be, in one sentence ----------------------------------------------------------------------------------


def refused(far, tmp_path, *settings, interface="tap1"):
    sets = [argument for setting in settings for argument in ("--set", setting)]
    done = subprocess.run(
        [*inside(far), BINARY, "run", "-i", interface, "--data-dir", tmp_path / "none", *sets,
         "--set", "rpc.grpc_listen=127.0.0.1:0", "--set", "rpc.http_listen=127.0.0.1:0"],
        capture_output=True, text=True, timeout=30,
    )
    assert done.returncode != 0
    return done.stderr.rstrip("\n").splitlines()[-1]


def test_an_interface_of_the_host_is_not_taken_away(link, server, tmp_path):
    _, far = link
    sh("ip", "-n", far, "addr", "add", "192.0.2.1/24", "dev", "tap1")
    assert re.search("192.0.2.1.*force", refused(far, tmp_path, "capture.mode=copy"))
    running = start(server, far, tmp_path)
    (interface,) = status_of(far, running)["interfaces"]
    assert interface["mode"] == "af_packet" and any("192.0.2.1" in note for note in interface["notes"])
    running.stop()
    forced = start(server, far, tmp_path, "capture.mode=copy", "capture.force=true", folder="forced")
    assert status_of(far, forced)["interfaces"][0]["mode"] == "copy"
    forced.stop()


def test_a_mode_that_the_driver_lacks_is_refused(link, tmp_path):
    _, far = link
    assert "zero-copy" in refused(far, tmp_path, "capture.mode=zerocopy")


def test_a_program_that_is_there_already_is_not_pushed_aside(link, server, tmp_path):
    _, far = link
    start(server, far, tmp_path, "capture.mode=copy")
    sentence = refused(far, tmp_path, "capture.mode=copy")
    assert "tap1" in sentence and "XDP program" in sentence, sentence


def test_a_driver_without_xdp_is_named(link, tmp_path):
    _, far = link
    sh("ip", "-n", far, "link", "add", "bare0", "type", "bridge")
    sh("ip", "-n", far, "link", "set", "bare0", "up")
    sentence = refused(far, tmp_path, "capture.mode=copy", interface="bare0")
    assert "bare0" in sentence and "generic" in sentence, sentence


def test_too_little_memory_to_lock_is_explained(link, tmp_path):
    _, far = link
    done = subprocess.run(
        [*inside(far), "prlimit", "--memlock=1048576:1048576", "setpriv", "--bounding-set", "-ipc_lock,-sys_resource",
         "--inh-caps", "-ipc_lock,-sys_resource", BINARY, "run", "-i", "tap1", "--data-dir", tmp_path / "none", "--set", "capture.mode=copy",
         "--set", "rpc.grpc_listen=127.0.0.1:0", "--set", "rpc.http_listen=127.0.0.1:0"],
        capture_output=True, text=True, timeout=30,
    )
    assert done.returncode != 0 and re.search("RLIMIT_MEMLOCK is 1048576.*LimitMEMLOCK=", done.stderr), done.stderr
    assert not (tmp_path / "none").exists()


def test_an_mtu_that_does_not_fit_a_buffer_is_told(link, server, tmp_path):
    _, far = link
    running = start(server, far, tmp_path, "capture.mode=copy", "capture.multi_buffer=never")
    assert any("MTU of 9000" in note for note in status_of(far, running)["interfaces"][0]["notes"])
    running.stop()


def test_no_such_interface_lists_what_there_is(link, tmp_path):
    _, far = link
    sentence = refused(far, tmp_path, "capture.mode=copy", interface="nosuch0")
    assert "nosuch0" in sentence and "tap1" in sentence


# --- Privileges -------------------------------------------------------------------------------------------------------


def test_privileges_are_given_up_and_interfaces_still_come_back(link, server, tmp_path):
    near, far = link
    tmp_path.chmod(0o755)
    for parent in tmp_path.parents:
        if parent.stat().st_uid == os.geteuid() and parent != Path("/") and str(parent).startswith("/tmp/"):
            parent.chmod(0o755)
    running = start(server, far, tmp_path, "capture.mode=copy", "security.user=nobody")
    threads = [
        {line.split(":")[0]: line.split(":", 1)[1].split() for line in status.read_text().splitlines() if ":" in line}
        for status in Path(f"/proc/{running.process.pid}/task").glob("*/status")
    ]
    assert len(threads) > 5
    for thread in threads:
        assert set(thread["Uid"]) != {"0"} and thread["NoNewPrivs"] == ["1"], thread["Name"]
    # NET_ADMIN, NET_RAW, IPC_LOCK, BPF, in the one thread that opens interfaces.
    capable = [int(thread["CapEff"][0], 16) for thread in threads if int(thread["CapEff"][0], 16)]
    assert capable == [1 << 12 | 1 << 13 | 1 << 14 | 1 << 39]
    sh("ip", "-n", far, "link", "del", "tap1")
    add_pair(near, far, "tap0", "tap1")
    status = eventually(far, running, lambda s: s["interfaces"][0]["mode"] == "copy" and s["interfaces"][0]["reopened"] > 0)
    assert status["interfaces"][0]["reopened"] >= 1, status
    inject(near, "tap0", distinct(1000))
    assert causes(settled(far, running, 1000)) == {"processed": 1000}
    assert "0 lost" in running.stop()
    assert (tmp_path / "data").stat().st_uid != 0


SENDER = """
import socket, sys
sink = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
sink.bind(("127.0.0.1", 9))
sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
for i in range(500):
    sender.sendto(b"x" * 100, ("127.0.0.1", 9))
    sink.recv(200)
"""


def test_the_fallback_needs_no_root(tmp_path):
    """A packet socket in a user namespace of one's own, with no privilege outside of it."""
    own = ["--set", "rpc.grpc_listen=127.0.0.1:0", "--set", "rpc.http_listen=127.0.0.1:0", "--set", "pipeline.workers=1"]
    process = subprocess.Popen(
        ["unshare", "-rn", "sh", "-c", 'ip link set lo up && exec "$@"', "sh", BINARY, "run", "-i", "lo",
         "--data-dir", tmp_path / "data", *own],
        stderr=subprocess.PIPE, text=True,
    )
    try:
        log = ""
        for line in process.stderr:
            log += line
            if "ready, watching lo" in line:
                break
        assert "ready, watching lo" in log and "reading lo (af_packet" in log, log
        subprocess.run(["nsenter", "-t", str(process.pid), "-U", "-n", "--preserve-credentials", "python3", "-c", SENDER], check=True)
        process.send_signal(signal.SIGTERM)
        assert "500 packets offered, 500 processed, 0 lost" in process.stderr.read()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()


# --- As a service -----------------------------------------------------------------------------------------------------


def test_the_service_manager_is_told(link, tmp_path):
    _, far = link
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    listener.bind(str(tmp_path / "notify"))
    listener.settimeout(20)
    environment = {**os.environ, "NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "400000"}
    process = subprocess.Popen(
        [*inside(far), BINARY, "run", "-i", "tap1", "--data-dir", tmp_path / "data",
         "--set", "rpc.grpc_listen=127.0.0.1:0", "--set", "rpc.http_listen=127.0.0.1:0"],
        env=environment, stderr=subprocess.DEVNULL,
    )
    try:
        assert listener.recv(4096).decode().startswith("EXTEND_TIMEOUT_USEC=")
        assert "READY=1" in listener.recv(4096).decode().splitlines()
        assert "WATCHDOG=1" in listener.recv(4096).decode().splitlines()
        process.send_signal(signal.SIGTERM)
        messages = ""
        while "STOPPING=1" not in messages:
            messages = listener.recv(4096).decode()
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
        listener.close()


# --- Slices -----------------------------------------------------------------------------------------------------------


def command(far, running, *args, ok=True):
    done = subprocess.run(
        [*inside(far), BINARY, *map(str, args), "--server", running.grpc], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode == 0) == ok, done.stderr
    return done


def test_a_slice_begins_before_its_trigger(link, server, tmp_path):
    near, far = link
    running = start(server, far, tmp_path, "capture.mode=copy")
    inject(near, "tap0", distinct(3000))
    settled(far, running, 3000)
    file = tmp_path / "slice.pcapng.zst"
    started = subprocess.Popen(
        [*inside(far), BINARY, "slice", "start", "--filter", "src port 1024 or src port 1025", "--before", "30s",
         "--duration", "2s", "--save", file, "--server", running.grpc, "--output", "json"],
        stdout=subprocess.PIPE, text=True,
    )
    eventually(far, running, lambda s: s["slices"]["recording"] == 1)
    inject(near, "tap0", distinct(2000))
    (made,) = json.loads(started.communicate(timeout=60)[0])
    assert started.returncode == 0
    # Two of the packets before, two of those after.
    assert made["packets"] == 4 and made["state"] == "complete" and made["dropped_queue_full"] == made["overwritten"] == 0
    with open(file, "rb") as compressed:
        plain = subprocess.run(["zstd", "-dc"], stdin=compressed, capture_output=True, check=True).stdout
    read = subprocess.run(["tcpdump", "-nr", "-"], input=plain, capture_output=True, check=True).stdout.decode()
    assert len(read.splitlines()) == 4 and read.count("10.0.0.1.1024 >") == 2
    listed = command(far, running, "slice", "list").stdout
    assert "src port 1024" in listed and "complete" in listed
    summary = json.loads(taphouse("replay", file, "--data-dir", tmp_path / "replayed", "--output", "json").stdout)
    assert summary["ledger"]["causes"]["processed"] == 4
    assert "'prt'" in command(far, running, "slice", "start", "--filter", "prt 1", ok=False).stderr
    command(far, running, "slice", "delete", made["id"])
    assert json.loads(command(far, running, "slice", "list", "--output", "json").stdout) == []
    assert "0 lost" in running.stop()


def test_an_alert_keeps_its_packets(link, server, tmp_path):
    near, far = link
    running = start(server, far, tmp_path, "slices.on_alert={before: 5s, duration: 1s}")

    def syn(port):
        header = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 1, 0, 64, 6, 0, CLIENT, HOST)
        return b"\x02" * 12 + b"\x08\x00" + header + struct.pack(">HHIIBBHHH", 40_000, port, 1, 0, 0x50, 2, 1024, 0, 0)

    inject(near, "tap0", [syn(port) for port in range(1, 1001)])
    eventually(far, running, lambda s: s["alerts"]["last_seq"] > 0)
    found = []
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (found and found[0]["state"] == "complete"):
        found = json.loads(command(far, running, "slice", "list", "--output", "json").stdout)
        time.sleep(0.2)
    (made,) = found
    assert made["state"] == "complete" and made["filter"] == "host 10.0.0.1" and "10.0.0.1" in made["reason"]
    assert made["packets"] == 1000, made
    running.stop()
