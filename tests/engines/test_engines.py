"""What every engine promises, with workers that need no JAX."""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import pytest
from fake_worker import run

from qresearch.engines import ENGINES, Job, Setting, check_engine
from qresearch.engines.dask import require_private
from qresearch.engines.local import gpus, variables
from qresearch.errors import ConfigError, DataError

WORKER = (sys.executable, str(Path(__file__).with_name("fake_worker.py")))
OPTIONS = {"slurm": {"cluster": "local"}}
PATIENCE = 60


class Run:
    """An engine and what it delivered."""

    def __init__(self, name, folder, workers=2, timeout=None):
        self.events = []
        setting = Setting(workers, timeout, folder, WORKER, run)
        self.engine = ENGINES[name](setting, self.events.append, **OPTIONS.get(name, {}))

    def submit(self, *jobs):
        for number, job in enumerate(jobs):
            self.engine.submit(Job(number, json.dumps({"name": f"job{number}", **job})))

    def wait_for(self, count, kinds=("done", "lost", "refused")):
        until = time.monotonic() + PATIENCE
        while len(found := [event for event in self.events if event.kind in kinds]) < count:
            assert time.monotonic() < until, self.events
            self.engine.wait(0.2)
        return sorted(found)


@pytest.fixture
def start(tmp_path, request):
    """Starts an engine, which is closed at the end; afterwards none of its processes is there."""
    runs = []

    def begin(name, **values):
        runs.append(Run(name, tmp_path / "workers", **values))
        return runs[-1]

    yield begin
    for one in runs:
        one.engine.close()


def is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state != "Z"


def assert_gone(*pids, seconds=5.0):
    until = time.monotonic() + seconds
    while left := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < until, left
        time.sleep(0.02)


every = pytest.mark.parametrize("name", ENGINES)
apart = pytest.mark.parametrize("name", [name for name in ENGINES if name != "inline"])


@every
def test_every_job_ends_once(start, name, tmp_path):
    one = start(name)
    one.submit(*({"write": str(tmp_path / "log"), "messages": 2, "print": True} for _ in range(5)))
    ended = one.wait_for(5)
    assert [(event.job, event.kind) for event in ended] == [(number, "done") for number in range(5)]
    lines = (tmp_path / "log").read_text().splitlines()
    assert len(lines) == 5
    told = [(event.job, event.content["line"]) for event in one.events if event.kind == "told"]
    if name != "slurm":  # whose jobs say nothing on their way
        assert sorted(told) == [(number, f"job{number} {i}") for number in range(5) for i in range(2)]


@apart
@pytest.mark.parametrize(
    ("ending", "reason"),
    [
        ({"kill": signal.SIGKILL}, "SIGKILL (out of memory?)"),
        ({"exit": 7}, "status 7"),
        ({"raise": True}, "a defect"),
        ({"memory": True}, "RESOURCE_EXHAUSTED: Out of memory"),
    ],
    ids=["killed", "exit", "defect", "memory"],
)
def test_a_lost_worker_costs_its_own_job_only(start, name, ending, reason):
    one = start(name)
    one.submit({}, ending, {}, {})
    ended = one.wait_for(4)
    assert [event.kind for event in ended] == ["done", "lost", "done", "done"]
    assert reason in ended[1].content["reason"]


def test_a_defect_is_told_by_its_exception_and_not_by_what_jax_adds(start):
    one = start("local")
    one.submit({"noted": True})
    (event,) = one.wait_for(1)
    reason = event.content["reason"]
    assert reason.startswith("the worker ended with status 1: TypeError: shapes do not fit: 2 and 3. (see "), reason


@every
def test_what_a_user_can_mend_is_passed_on(start, name):
    one = start(name)
    one.submit({"refuse": True})
    if name == "inline":
        with pytest.raises(DataError, match="the disk is full"):
            one.wait_for(1)
    else:
        (event,) = one.wait_for(1)
        assert (event.kind, event.content["reason"]) == ("refused", "the disk is full")


@apart
def test_a_silent_worker_is_stopped(start, name):
    one = start(name, timeout=1.5)
    one.submit({"sleep": 600})
    (event,) = one.wait_for(1)
    assert event.kind == "lost"
    assert "engine.timeout" in event.content["reason"]


# Slurm's jobs are not ours to end: they are cancelled.
@pytest.mark.parametrize("name", [name for name in ENGINES if name not in ("inline", "slurm")])
def test_closing_leaves_no_process(start, name, tmp_path):
    one = start(name)
    job = {"write": str(tmp_path / "log"), "child": str(tmp_path / "child"), "sleep": 600}
    one.submit(job, job)
    until = time.monotonic() + PATIENCE
    files = (tmp_path / "log", tmp_path / "child")
    while not all(file.exists() and len(file.read_text().splitlines()) == 2 for file in files):
        assert time.monotonic() < until
        one.engine.wait(0.1)
    pids = [int(line.split()[0]) for file in files for line in file.read_text().splitlines()]
    assert all(map(is_running, pids))
    one.engine.close()
    assert_gone(*pids)


def test_workers_are_kept_from_job_to_job(start, tmp_path):
    one = start("local")
    for _ in range(3):
        one.events.clear()
        one.submit(*({"write": str(tmp_path / "log")} for _ in range(4)))
        one.wait_for(4)
    assert len({line.split()[0] for line in (tmp_path / "log").read_text().splitlines()}) <= 2


@pytest.mark.parametrize(
    ("visible", "slots", "expected"),
    [
        ("0,1", 2, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        ("0,1,2,3", 2, [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]),
        ("0,1,2", 2, [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]),
        ("GPU-a", 2, [{"CUDA_VISIBLE_DEVICES": "GPU-a", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.450"}] * 2),
        ("", 2, [{}, {}]),
        ("-1", 1, [{}]),
    ],
)
def test_every_worker_has_its_gpu(monkeypatch, visible, slots, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    assert [variables(slot, slots) for slot in range(slots)] == expected
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert gpus() == ()


def test_a_worker_sees_its_gpu(start, tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    one = start("local", workers=None)
    assert one.engine.slots == 2
    one.submit(*({"write": str(tmp_path / "log"), "sleep": 0.3} for _ in range(2)))
    one.wait_for(2)
    assert {line.split()[1] for line in (tmp_path / "log").read_text().splitlines()} == {"3", "5"}


@pytest.mark.parametrize(
    ("address", "credentials", "fine"),
    [
        ("", ("", "", ""), True),
        ("tcp://127.0.0.1:8786", ("", "", ""), True),
        ("127.0.0.1:8786", ("", "", ""), True),
        ("tcp://localhost:8786", ("", "", ""), True),
        ("tcp://[::1]:8786", ("", "", ""), True),
        ("tls://node7:8786", ("ca.pem", "cert.pem", "key.pem"), True),
        ("tls://node7:8786", ("ca.pem", "", "key.pem"), False),
        ("tcp://node7:8786", ("ca.pem", "cert.pem", "key.pem"), False),
        ("tcp://10.0.0.7:8786", ("", "", ""), False),
        ("tcp://127.0.0.1.evil.org:8786", ("", "", ""), False),
        ("ucx://127.0.0.1:8786", ("", "", ""), False),
        ("node7:8786", ("", "", ""), False),
        ("tcp://[", ("", "", ""), False),
    ],
)
def test_a_scheduler_is_private(address, credentials, fine):
    if fine:
        require_private(address, credentials)
    else:
        with pytest.raises(ConfigError, match="loopback") as error:
            require_private(address, credentials)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("locl", {}, "unknown engine 'locl'; did you mean 'local'"),
        ("dask", {"adress": "x"}, "no option 'adress'; did you mean 'address'"),
        ("slurm", {"minutes": "sixty"}, "takes a whole number"),
        ("local", {"gpus": 2}, "has no option 'gpus'"),
    ],
)
def test_mistakes_in_a_config_are_one_line(name, options, message):
    with pytest.raises(ConfigError, match=message):
        check_engine(name, options)


def test_a_worker_that_cannot_start_is_one_line(tmp_path):
    setting = Setting(1, None, tmp_path / "workers", (str(tmp_path / "nothing"),), run)
    engine = ENGINES["local"](setting, lambda event: None)
    with pytest.raises(DataError, match="cannot start a worker"):
        engine.submit(Job(0, "{}"))
