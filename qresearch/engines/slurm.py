"""Trials as jobs of Slurm, through submitit (extra ``slurm``)."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING, Any

from qresearch.engines.base import Deliver, Event, Job, Setting
from qresearch.engines.remote import event_of, run_job
from qresearch.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from submitit import Executor
    from submitit import Job as SlurmJob

_AT_ONCE = 16  # jobs in the queue, unless engine.workers says otherwise


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
        raise EngineError(f"engine 'slurm': {str(error).splitlines()[0]}") from error
    wanted: dict[str, Any] = {"timeout_min": minutes, "cpus_per_task": cpus, "name": "qresearch"}
    wanted |= {"gpus_per_node": gpus} if gpus else {}
    wanted |= {"mem_gb": memory_gb} if memory_gb else {}
    wanted |= {"slurm_partition": partition} if partition and cluster == "slurm" else {}
    executor.update_parameters(**wanted)
    return Slurm(executor, setting, deliver)


class Slurm:
    """An engine whose jobs are jobs of Slurm. What they say meanwhile is in the records that they leave."""

    pieces = 1

    def __init__(self, executor: Executor, setting: Setting, deliver: Deliver) -> None:
        self.slots = setting.workers or _AT_ONCE
        self._executor, self._setting, self._deliver = executor, setting, deliver
        self._jobs: dict[int, SlurmJob[Any]] = {}

    def submit(self, job: Job) -> None:
        setting = self._setting
        arguments = (job.number, job.text, tuple(setting.command), str(setting.folder), setting.timeout)
        try:
            self._jobs[job.number] = self._executor.submit(run_job, *arguments)
        except (RuntimeError, OSError) as error:  # sbatch was refused, or is not there
            raise EngineError(f"engine 'slurm': {str(error).splitlines()[0]}") from error

    def wait(self, seconds: float) -> None:
        from submitit.core.utils import FailedJobError, UncompletedJobError

        until = time.monotonic() + seconds
        while not (ended := [number for number, job in self._jobs.items() if job.done()]):
            if time.monotonic() >= until:
                return
            time.sleep(min(0.2, seconds))
        for number in ended:
            job = self._jobs.pop(number)
            try:
                event = event_of(number, job.result())
            except (FailedJobError, UncompletedJobError) as error:
                event = Event(number, "lost", {"reason": f"Slurm job {job.job_id}: {str(error).splitlines()[0]}"})
            self._deliver(event)

    def close(self) -> None:
        for job in self._jobs.values():
            job.cancel(check=False)
        self._jobs.clear()
