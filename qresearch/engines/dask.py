"""Trials on a Dask cluster (extra ``distributed``): workers, nodes and the scheduler may be lost on the way."""

from __future__ import annotations

import contextlib
import ipaddress
import logging
import queue
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from qresearch.engines.base import KEPT, Deliver, Event, Job, Message, Setting
from qresearch.engines.remote import end_workers, event_of, run_job
from qresearch.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from distributed import Client, Future


def dask(
    setting: Setting, deliver: Deliver, *, address: str = "", ca_file: str = "", cert: str = "", key: str = ""
) -> Dask:
    """On a Dask cluster: that of the scheduler at ``address``, or one of its own on this machine. Whoever reaches a
    scheduler can run code there: an address that is not loopback must be ``tls://``, with ca_file, cert and key.
    """
    check_dask(address, ca_file, cert, key)
    try:
        from distributed import Client, LocalCluster, Security
    except ImportError as error:
        raise ConfigError("engine 'dask' needs Dask: pip install 'qresearch[distributed]'") from error
    logging.getLogger("distributed").setLevel(logging.CRITICAL)  # what it would say of a loss, the sweep says
    try:
        if address:
            tls = {"tls_ca_file": ca_file, "tls_client_cert": cert, "tls_client_key": key}
            security = Security(require_encryption=True, **tls) if address.startswith("tls://") else None
            return Dask(Client(address, security=security, set_as_default=False, timeout=30), None, setting, deliver)
        workers = setting.workers or 1
        cluster = LocalCluster(
            n_workers=workers, threads_per_worker=1, host="127.0.0.1", dashboard_address="127.0.0.1:0", silence_logs=50
        )
        return Dask(Client(cluster, set_as_default=False), cluster, setting, deliver)
    except (OSError, TimeoutError, ValueError) as error:
        raise EngineError(f"no Dask scheduler at {address or 'loopback'}: {error}") from error


def check_dask(address: str = "", ca_file: str = "", cert: str = "", key: str = "") -> None:
    """ConfigError for options that no cluster can be reached with."""
    require_private(address, (ca_file, cert, key))
    _require_files(ca_file, cert, key)


def require_private(address: str, credentials: tuple[str, str, str]) -> None:
    """ConfigError for an address that is neither loopback nor TLS with credentials of ours."""
    try:
        parts = urlsplit(address if "//" in address else f"tcp://{address}")
        host = parts.hostname or ""
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not address or (loopback and parts.scheme in ("tcp", "tls")):
        return
    if not (address.startswith("tls://") and all(credentials)):
        raise ConfigError(
            f"engine.options.address '{address}': whoever reaches a scheduler can run code there; use tls:// with"
            " ca_file, cert and key, or a loopback address (a tunnel will do)"
        )


def _require_files(*paths: str) -> None:
    for path in paths:
        if path and not Path(path).expanduser().is_file():
            raise ConfigError(f"engine.options: no file '{path}'; ca_file, cert and key are PEM files")


class Dask:
    """An engine whose jobs are tasks of a Dask cluster; each runs in a worker process of ours on the node."""

    pieces = KEPT

    def __init__(self, client: Client, cluster: Any, setting: Setting, deliver: Deliver) -> None:
        self._client, self._cluster, self._setting, self._deliver = client, cluster, setting, deliver
        self._topic = f"qresearch-{uuid.uuid4().hex}"
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._futures: dict[int, Future] = {}
        client.subscribe_topic(self._topic, self._told)

    @property
    def slots(self) -> int:
        """The threads of the cluster as it is now, or what was asked for."""
        with self._connected():
            return self._setting.workers or max(1, sum(self._client.nthreads().values()))

    def submit(self, job: Job) -> None:
        arguments = (tuple(self._setting.command), str(self._setting.folder), self._setting.timeout, self._topic)
        with self._connected():
            future = self._client.submit(_task, job.number, job.text, *arguments, pure=False)
        self._futures[job.number] = future
        future.add_done_callback(lambda future, number=job.number: self._ended(number, future))

    def wait(self, seconds: float) -> None:
        with self._connected():
            if self._client.status != "running" or any(f.status == "cancelled" for f in self._futures.values()):
                raise ConnectionError
        try:
            event = self._events.get(timeout=seconds)
        except queue.Empty:
            return
        while True:
            if event.kind != "told":
                self._futures.pop(event.job, None)
            self._deliver(event)
            if self._events.empty():
                return
            event = self._events.get()

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        """The client would try for a while to find its scheduler again; but the tasks are lost with it."""
        try:
            yield
        except (OSError, TimeoutError) as error:
            raise EngineError(
                "the Dask scheduler was lost; finished trials are kept, and the same command continues"
            ) from error

    def close(self) -> None:
        # Tasks on a cluster of others would go on for nobody; their workers end with the thread that feeds them.
        if self._client.status == "running":
            with contextlib.suppress(OSError, TimeoutError):  # a cluster that is gone has ended its own
                self._client.cancel(list(self._futures.values()), force=True)
                self._client.run(end_workers, self._topic)
        self._futures.clear()
        self._client.close(timeout=2)
        if self._cluster is not None:
            self._cluster.close()

    def _told(self, event: tuple[float, dict[str, Any]]) -> None:
        _, content = event
        self._events.put(Event(content["job"], "told", content["message"]))

    def _ended(self, number: int, future: Future) -> None:
        if future.status == "finished":
            self._events.put(event_of(number, future.result()))
        elif future.status == "error":
            error = future.exception()
            reason = (str(error) or repr(error)).splitlines()[0]
            self._events.put(Event(number, "lost", {"reason": f"Dask: {reason}"}))


def _task(
    number: int, text: str, command: tuple[str, ...], folder: str, timeout: float | None, topic: str
) -> tuple[str, Message]:
    from distributed import get_worker

    node = get_worker()
    key = node.get_current_task()

    def tell(message: Message) -> None:
        node.log_event(topic, {"job": number, "message": dict(message)})

    def given_up() -> bool:
        task = node.state.tasks.get(key)
        return task is None or task.state == "cancelled"

    return run_job(number, text, command, folder, timeout, tell, topic, given_up)
