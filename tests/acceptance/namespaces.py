"""Network namespaces joined by veth: what the far one receives is what the near one injects, and nothing else."""
import json
import os
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conftest import BINARY

INJECTOR = Path(__file__).with_name("injector.py")


def sh(*command):
    subprocess.run(command, check=True, capture_output=True)


def needs_root():
    if os.geteuid() == 0:
        return
    if os.environ.get("REQUIRE_XDP") == "1":
        pytest.fail("network namespaces need root")
    pytest.skip("network namespaces need root")


def add_pair(near, far, near_device, far_device, queues=1, mtu=9000):
    """A veth pair without addresses, with as many queues each way."""
    count = ["numrxqueues", str(queues), "numtxqueues", str(queues)]
    sh("ip", "-n", near, "link", "add", near_device, *count, "type", "veth", "peer", "name", far_device, *count, "netns", far)
    for namespace, device in ((near, near_device), (far, far_device)):
        sh("ip", "-n", namespace, "link", "set", device, "mtu", str(mtu), "up")


def make(name):
    near, far = f"{name}a", f"{name}b"
    for namespace in (near, far):
        sh("ip", "netns", "add", namespace)
        sh("ip", "netns", "exec", namespace, "sysctl", "-qw",
           "net.ipv6.conf.default.disable_ipv6=1", "net.ipv6.conf.all.disable_ipv6=1")
    sh("ip", "-n", far, "link", "set", "lo", "up")
    return near, far


def remove(*names):
    for namespace in names:
        subprocess.run(["ip", "netns", "del", namespace], capture_output=True)


def packets_of(capture, limit):
    """The first packets of a little-endian microsecond pcap."""
    data = capture.read_bytes()
    at, out = 24, []
    while len(out) < limit and at < len(data):
        length = struct.unpack_from("<I", data, at + 8)[0]
        out.append(data[at + 16 : at + 16 + length])
        at += 16 + length
    return out


def inject(namespace, device, frames, core=None):
    """Sends frames, pinned to a core: past the queueing discipline, a packet takes the queue of its sender's core."""
    subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, INJECTOR, device, *([] if core is None else [str(core)])],
        input=b"".join(struct.pack("<I", len(f)) + f for f in frames),
        check=True,
    )


def status_of(namespace, running):
    inside = ["ip", "netns", "exec", namespace] if namespace else []
    done = subprocess.run(
        [*inside, BINARY, "status", "--server", running.grpc, "--output", "json"],
        capture_output=True, text=True, check=True,
    )
    return json.loads(done.stdout)


def settled(namespace, running, packets):
    """The status once it has counted that many packets."""
    return eventually(namespace, running, lambda s: sum(q["offered"] for q in s["queues"]) >= packets and all(q["balanced"] for q in s["queues"]))


def eventually(namespace, running, holds, seconds=20):
    """The status once that holds, or the last one before patience ended."""
    deadline = time.monotonic() + seconds
    while True:
        status = status_of(namespace, running)
        if holds(status) or time.monotonic() > deadline:
            return status
        time.sleep(0.1)


def causes(status):
    """The ledger, summed over queues, without what never happened."""
    total = {}
    for queue in status["queues"]:
        for cause, count in queue["causes"].items():
            total[cause] = total.get(cause, 0) + count
    return {cause: count for cause, count in total.items() if count}
