"""A worker that speaks as qresearch's does, and does what it is told: ``python fake_worker.py``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

from qresearch.errors import DataError


def run(text, tell):
    """What the worker does with a job; in this process for the inline engine."""
    job = json.loads(text)
    for number in range(job.get("messages", 0)):
        tell({"line": f"{job['name']} {number}"})
    if "write" in job:
        with open(job["write"], "a") as file:
            file.write(f"{os.getpid()} {os.environ.get('CUDA_VISIBLE_DEVICES', '-')}\n")
    if "child" in job:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(job["child"], "a") as file:
            file.write(f"{child.pid}\n")
    if "first" in job and not os.path.exists(job["first"]):  # the first time only
        with open(job["first"], "w"):
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(job.get("sleep", 0))
    if job.get("print"):
        print("a library prints this")
    if job.get("refuse"):
        raise DataError("the disk is full")
    if job.get("memory"):
        raise RuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 bytes.\nBufferAssignment: ...")
    if job.get("noted"):  # as JAX does
        error = TypeError("shapes do not fit: 2 and 3.\nThe error occurred while tracing.\nSee https://docs.jax.dev")
        error.add_note("-" * 20 + "\nFor simplicity, JAX has removed its internal frames from the traceback.")
        raise error
    if job.get("raise"):
        raise ZeroDivisionError("a defect")
    if "exit" in job:
        os._exit(job["exit"])
    if "kill" in job:
        os.kill(os.getpid(), job["kill"])


def main():
    out = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=listen, daemon=True).start()

    def tell(message):
        out.write(json.dumps(message) + "\n")
        out.flush()

    while True:
        if not JOBS:
            time.sleep(0.005)
            continue
        try:
            run(JOBS.pop(0), tell)
        except DataError as error:
            tell({"error": str(error)})
            return
        tell({"end": True})


JOBS: list[str] = []


def listen():
    for line in sys.stdin:
        JOBS.append(line)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
