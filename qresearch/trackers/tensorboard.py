"""TensorBoard: ``tensorboard --logdir <run>/tensorboard``."""

from __future__ import annotations

import datetime
import io
import json
from pathlib import Path

from qresearch.results import Record, safe_name
from qresearch.results.atomic import make_folder, write_bytes
from qresearch.trackers.tracker import Rows, Tracker, fingerprint, scalars, settings


def tensorboard(folder: Path, run: str, /) -> Tracker:
    """One event file per trial: scalars by epoch, test scores, costs; the config as text and as hyperparameters."""
    import tensorboard.summary.writer.record_writer  # noqa: F401 (a package that is missing is said at the start)

    return _TensorBoard(folder)


class _TensorBoard:
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def log(self, record: Record, rows: Rows) -> None:
        own = self.folder / f"{record.key[:8]}-{safe_name(record.label)}"  # a record may come from another's file
        file = own / f"events.out.tfevents.{fingerprint(record)[:16]}"
        if not file.exists():
            make_folder(own)
            write_bytes(file, _encoded(record, rows))  # whole or not at all: a file that is there is complete
            for other in set(own.glob("events.out.tfevents.*")) - {file}:
                other.unlink()

    def close(self) -> None:
        pass  # every file was closed when it was written


def _encoded(record: Record, rows: Rows) -> bytes:
    # Not its EventFileWriter: that writes from a thread, whose failures reach nobody, and names the host in the file.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.plugins.hparams.summary_v2 import hparams_pb
    from tensorboard.plugins.text.summary_v2 import text_pb
    from tensorboard.summary.writer.record_writer import RecordWriter

    when = datetime.datetime.fromisoformat(record.created).timestamp()
    text = "\n".join(f"    {line}" for line in json.dumps(record.config, indent=1).splitlines())  # as Markdown's code
    whole = [hparams_pb(settings(record), trial_id=record.key, start_time_secs=when), text_pb("config", text)]
    numbers = [(step, Summary.Value(tag=name, simple_value=value)) for name, step, value in scalars(record, rows)]
    events = [Event(wall_time=when, file_version="brain.Event:2")]
    events += [Event(wall_time=when, summary=summary) for summary in whole]
    events += [Event(wall_time=when, step=step, summary=Summary(value=[value])) for step, value in numbers]
    stream = io.BytesIO()
    for event in events:
        RecordWriter(stream).write(event.SerializeToString())
    return stream.getvalue()
