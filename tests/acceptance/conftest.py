"""What the acceptance tests share: the binary, servers on loopback ports of their own, namespaces that are torn down."""
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BINARY = os.environ.get("TAPHOUSE", str(ROOT / "target/debug/taphouse"))
READY = re.compile(r"ready, watching .*; gRPC ([0-9.:]+), metrics http://([0-9.:]+)/metrics")


def taphouse(*args, ok=True, **kwargs):
    """Runs a command to its end."""
    done = subprocess.run([BINARY, *map(str, args)], capture_output=True, text=True, timeout=300, **kwargs)
    if ok:
        assert done.returncode == 0, f"{args}\n{done.stdout}\n{done.stderr}"
    return done


def rows(query, data_dir):
    return json.loads(taphouse("sql", query, "--data-dir", data_dir, "--output", "json").stdout)


class Server:
    """A server process, from its ready line to its orderly end."""

    def __init__(self, args, prefix=()):
        command = [*prefix, BINARY, *map(str, args), "--set", "rpc.grpc_listen=127.0.0.1:0", "--set", "rpc.http_listen=127.0.0.1:0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        self.log = []
        for line in self.process.stderr:
            self.log.append(line)
            if match := READY.search(line):
                self.grpc, self.http = match.groups()
                return
        raise AssertionError(f"the server did not start: {''.join(self.log)}")

    def stop(self):
        """SIGTERM, and all that was still to be said."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        rest = self.process.stderr.read()
        self.process.wait(timeout=60)
        self.log.append(rest)
        return "".join(self.log)


@pytest.fixture
def server():
    started = []

    def start(args, prefix=()):
        started.append(Server(args, prefix))
        return started[-1]

    yield start
    for s in started:
        if s.process.poll() is None:
            s.process.kill()
            s.process.wait()


@pytest.fixture(scope="session")
def testdata():
    folder = os.environ.get("TAPHOUSE_TESTDATA")
    if not folder:
        pytest.skip("TAPHOUSE_TESTDATA is not set; it names the folder of captures with ground truth")
    return Path(folder)


@pytest.fixture(scope="session")
def generated(testdata, tmp_path_factory):
    """A capture of the independent generator and its truth."""
    folder = tmp_path_factory.mktemp("generated")
    capture = folder / "mixed.pcap"
    generator = testdata / "gen_traffic.py"
    subprocess.run([sys.executable, generator, capture, "--packets", "200000", "--seed", "5"], check=True, capture_output=True)
    return capture, json.loads(capture.with_suffix(".json").read_text())


@pytest.fixture(scope="session")
def stored(generated, tmp_path_factory):
    """That capture, replayed."""
    folder = tmp_path_factory.mktemp("stored") / "data"
    summary = json.loads(taphouse("replay", generated[0], "--data-dir", folder, "--output", "json").stdout)
    return folder, summary


@pytest.fixture(scope="session")
def stubs(tmp_path_factory):
    """Python stubs, generated from the proto files as anybody would."""
    out = tmp_path_factory.mktemp("stubs")
    proto = ROOT / "rpc/proto"
    files = sorted(str(p.relative_to(proto)) for p in proto.rglob("*.proto"))
    subprocess.run(
        [sys.executable, "-m", "grpc_tools.protoc", f"-I{proto}", f"--python_out={out}", f"--grpc_python_out={out}", *files],
        check=True,
    )
    sys.path.insert(0, str(out))
    return out


@pytest.fixture
def link():
    """Two namespaces and a veth pair, tap0 to tap1, without addresses: nothing but our packets crosses it."""
    import namespaces

    namespaces.needs_root()
    name = f"th{os.getpid()}"
    try:
        near, far = namespaces.make(name)
        namespaces.add_pair(near, far, "tap0", "tap1")
        yield near, far
    finally:
        namespaces.remove(f"{name}a", f"{name}b")
