"""Trials as jobs of Slurm, through submitit (extra ``slurm``)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from qresearch.engines.base import Deliver, Event, Job, Message, Setting
from qresearch.engines.remote import event_of, run_job
from qresearch.errors import ConfigError, EngineError, did_you_mean

if TYPE_CHECKING:
    from submitit import Executor
    from submitit import Job as SlurmJob

_AT_ONCE = 16  # jobs in the queue, unless engine.workers says otherwise


CLUSTERS = ("slurm", "local", "debug")


def check_slurm(cluster: str = "slurm", **others: object) -> None:
    """ConfigError for a cluster that submitit does not have."""
    if cluster not in CLUSTERS:
        raise ConfigError(f"engine.options.cluster: unknown cluster '{cluster}'{did_you_mean(cluster, CLUSTERS)}")


def slurm(
    setting: Setting,
    deliver: Deliver,
    *,
    cluster: str = "slurm",
    partition: str = "",
    minutes: int = 60,
    cpus: int = 1,
    gpus: int = 0,
    memory_gb: int = 0,
) -> Slurm:
    """As jobs of Slurm, ``engine.workers`` of them at a time (16), each with so many minutes, CPUs, GPUs and so much
    memory. cluster: ``local`` runs them as processes of this machine instead. A job that Slurm ends is sent again.
    """
    # Its set-up of logging would close streams of others that handlers hold.
    os.environ.setdefault("SUBMITIT_LOG_LEVEL", "NOCONFIG")
    try:
        from submitit import AutoExecutor
    except ImportError as error:
        raise ConfigError("engine 'slurm' needs submitit: pip install 'qresearch[slurm]'") from error
    try:
        executor = AutoExecutor(folder=setting.folder / "slurm", cluster=cluster)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise EngineError(f"engine 'slurm': {_first_line(error)}") from error
    wanted: dict[str, Any] = {"timeout_min": minutes, "cpus_per_task": cpus, "name": "qresearch"}
    wanted |= {"gpus_per_node": gpus} if gpus else {}
    wanted |= {"mem_gb": memory_gb} if memory_gb else {}
    wanted |= {"slurm_partition": partition} if partition and cluster == "slurm" else {}
    executor.update_parameters(**wanted)
    return Slurm(executor, setting, deliver)


class Slurm:
    """An engine whose jobs are jobs of Slurm. What one says is known when it has ended."""

    pieces = 1

    def __init__(self, executor: Executor, setting: Setting, deliver: Deliver) -> None:
        self.slots = setting.workers or _AT_ONCE
        self._executor, self._setting, self._deliver = executor, setting, deliver
        self._jobs: dict[int, SlurmJob[Any]] = {}
        self._refused: list[Event] = []

    def submit(self, job: Job) -> None:
        setting = self._setting
        arguments = (job.number, job.text, tuple(setting.command), str(setting.folder), setting.timeout)
        try:
            self._jobs[job.number] = self._executor.submit(_job, *arguments)
        except (RuntimeError, OSError) as error:  # sbatch was refused: a limit, or a controller that is busy
            self._refused.append(Event(job.number, "lost", {"reason": f"engine 'slurm': {_first_line(error)}"}))

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not (ended := [number for number, job in self._jobs.items() if job.done()]) and not self._refused:
            if time.monotonic() >= until:
                return
            time.sleep(min(0.2, seconds))
        while self._refused:
            self._deliver(self._refused.pop())
        for number in ended:
            for event in self._events(number, self._jobs.pop(number)):
                self._deliver(event)

    def _events(self, number: int, job: SlurmJob[Any]) -> list[Event]:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        try:
            said, ending = job.result()
        except (FailedJobError, UncompletedJobError) as error:
            return [Event(number, "lost", {"reason": f"Slurm job {job.job_id}: {_first_line(error)}"})]
        return [*(Event(number, "told", message) for message in said), event_of(number, ending)]

    def close(self) -> None:
        for job in self._jobs.values():
            job.cancel(check=False)
        self._jobs.clear()


def _job(
    number: int, text: str, command: tuple[str, ...], folder: str, timeout: float | None
) -> tuple[list[Message], tuple[str, Message]]:
    said: list[Message] = []
    ending = run_job(number, text, command, folder, timeout, said.append)
    return [message for message in said if "phase" not in message], ending


def _first_line(error: Exception) -> str:
    return (str(error) or repr(error)).splitlines()[0]
