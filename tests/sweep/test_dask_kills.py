"""A Dask cluster on loopback, of separate processes, each of which is killed again and again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
from kills import TRIALS, assert_whole, begin, children_of, records_of, take_some

EACH = 5
pytestmark = pytest.mark.slow


class Cluster:
    """A scheduler and two nodes: each a nanny and its worker, in a process group of its own."""

    def __init__(self, folder):
        self.folder, self.nodes = folder, []
        with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as probe:
            self.port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"

    def _start(self, *arguments):
        log = (self.folder / f"{arguments[0]}-{time.monotonic_ns()}.log").open("w")
        command = [sys.executable, "-m", f"distributed.cli.dask_{arguments[0]}", *arguments[1:]]
        with log:
            return subprocess.Popen(
                command, start_new_session=True, stdout=log, stderr=log, cwd=self.folder, env={**os.environ}
            )

    def start_scheduler(self):
        self.scheduler = self._start("scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-dashboard")

    def start_node(self):
        options = ("--nthreads", "1", "--no-dashboard", "--death-timeout", "60")
        self.nodes.append(self._start("worker", self.address, *options))

    def stop(self, process):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()

    def close(self):
        for process in (*self.nodes, self.scheduler):
            self.stop(process)


@pytest.fixture
def cluster(tmp_path):
    made = Cluster(tmp_path)
    made.start_scheduler()
    made.start_node()
    made.start_node()
    yield made
    made.close()


def test_everything_is_killed(unbroken, cluster, tmp_path):
    random, output = np.random.default_rng(2), tmp_path / "out"
    options = f"engine.options={{address: '{cluster.address}'}}"
    kills = dict.fromkeys(("worker", "node", "coordinator", "scheduler"), 0)
    started = time.monotonic()
    process = None
    while min(kills.values()) < EACH:
        if process is None or process.poll() is not None:
            if process is not None:
                text, _ = process.communicate()
                assert "Traceback" not in text, text
            if records_of(output) > 0.7 * TRIALS:
                take_some(output, random)
            process = begin(unbroken, output, "--engine", "dask", "--set", options)
        time.sleep(float(random.uniform(4, 12)))
        what = min(kills, key=lambda name: (kills[name], random.random()))
        before = records_of(output)
        if what == "worker":
            workers = [pid for node in cluster.nodes for pid in children_of(node.pid)]
            if not workers:
                continue
            os.kill(int(random.choice(workers)), signal.SIGKILL)
        elif what == "node":
            cluster.stop(cluster.nodes.pop(int(random.integers(len(cluster.nodes)))))
            cluster.start_node()
        elif what == "coordinator":
            process.kill()
            process.wait()
        else:
            cluster.stop(cluster.scheduler)
            text, _ = process.communicate(timeout=120)
            assert process.returncode in (0, 2), text
            assert process.returncode == 0 or "Dask scheduler" in text.splitlines()[-1], text
            for node in cluster.nodes:
                cluster.stop(node)
            cluster.nodes.clear()
            cluster.start_scheduler()
            cluster.start_node()
            cluster.start_node()
        kills[what] += 1
        assert records_of(output) >= before
    process.kill()
    process.communicate()
    before = records_of(output)
    process = begin(unbroken, output, "--engine", "local")
    text, _ = process.communicate(timeout=900)
    assert process.returncode == 0, text
    assert_whole(output, unbroken)
    print(f"{kills}, {before} records before the last resume, {time.monotonic() - started:.0f} s")
