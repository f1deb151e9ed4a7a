"""A tap on another host, through a local sshd: the same flows as reading the file there."""
import os
import shutil
import socket
import subprocess
import time

import pytest

from conftest import rows, taphouse
from namespaces import eventually

SSHD = "/usr/sbin/sshd"


@pytest.fixture
def remote_host(tmp_path):
    """sshd on loopback with keys of its own: its port, our key, its known host."""
    if not (os.path.exists(SSHD) and shutil.which("ssh") and shutil.which("tcpdump")):
        if os.environ.get("REQUIRE_XDP") == "1":
            pytest.fail("sshd, ssh and tcpdump are needed")
        pytest.skip("sshd, ssh and tcpdump are needed")
    if os.geteuid() == 0:
        os.makedirs("/run/sshd", exist_ok=True)
    for key in ("host", "client"):
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / key], check=True)
    shutil.copy(tmp_path / "client.pub", tmp_path / "authorized")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = tmp_path / "sshd_config"
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {tmp_path}/host\nAuthorizedKeysFile {tmp_path}/authorized\n"
        "UsePAM no\nStrictModes no\nPasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
    )
    known = tmp_path / "known"
    known.write_text(f"[127.0.0.1]:{port} " + (tmp_path / "host.pub").read_text())
    sshd = subprocess.Popen([SSHD, "-D", "-e", "-f", config], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 10
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
            break
        except OSError:
            assert time.monotonic() < deadline, "sshd does not answer"
            time.sleep(0.05)
    yield {"port": port, "identity": tmp_path / "client", "known_hosts": known}
    sshd.terminate()
    sshd.wait()


def tap(host, capture, **more):
    user = subprocess.run(["id", "-un"], capture_output=True, text=True, check=True).stdout.strip()
    keys = {**host, "host": f"{user}@127.0.0.1", "command": f"tcpdump -r {capture}", "retry_min": "1m", "retry_max": "1m", **more}
    return "taps=[{name: branch, ssh: {" + ", ".join(f"{k}: {v}" for k, v in keys.items()) + "}}]"


def test_a_remote_tap_gives_the_flows_of_the_file(remote_host, server, generated, tmp_path):
    capture = generated[0]
    running = server(["run", "--data-dir", tmp_path / "data", "--set", tap(remote_host, capture)])
    total = generated[1]["packets"] if "packets" in generated[1] else 200_000
    status = eventually(None, running, lambda s: sum(q["offered"] for q in s["queues"]) >= total, seconds=60)
    assert sum(q["offered"] for q in status["queues"]) == total
    (remote,) = status["remotes"]
    assert remote["tap"] == "branch" and status["taps"][0]["source"] == "ssh"
    assert "0 lost" in running.stop()
    taphouse("replay", capture, "--data-dir", tmp_path / "replayed")
    query = (
        "SELECT src_ip, src_port, dst_ip, dst_port, proto, sum(pkts_o) AS po, sum(pkts_r) AS pr, sum(bytes_o) AS bo, "
        "sum(bytes_r) AS br FROM flows GROUP BY 1, 2, 3, 4, 5 ORDER BY 1, 2, 3, 4, 5"
    )
    assert rows(query, tmp_path / "data") == rows(query, tmp_path / "replayed")


def test_a_host_that_nobody_knows_is_refused(remote_host, generated, tmp_path):
    strange = {**remote_host, "known_hosts": tmp_path / "empty"}
    (tmp_path / "empty").touch()
    done = taphouse(
        "run", "--data-dir", tmp_path / "data", "--set", tap(strange, generated[0]),
        "--set", "rpc.grpc_listen=127.0.0.1:0", "--set", "rpc.http_listen=127.0.0.1:0", ok=False,
    )
    assert done.returncode == 1 and "host key" in done.stderr and "ssh-keyscan" in done.stderr, done.stderr
