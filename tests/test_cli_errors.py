"""What the command line makes of errors and signals."""

from __future__ import annotations

import signal

import pytest
from small_sweep import one_line

import qresearch.cli
import qresearch.commands
from qresearch.cli import main


@pytest.mark.parametrize(
    ("raised", "status", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped: finished trials are kept; the same command continues"),
        (PermissionError(13, "Permission denied", "/x/y"), 2, "error: /x/y: Permission denied"),
        (OSError("no space"), 2, "error: input/output: no space"),
    ],
)
def test_what_a_user_can_mend_is_one_line(monkeypatch, capsys, raised, status, message):
    def fail(options):
        raise raised

    monkeypatch.setattr(qresearch.commands, "runs", fail)
    assert main(["runs"]) == status
    assert one_line(capsys.readouterr().err) == message


def test_a_defect_keeps_its_traceback(monkeypatch):
    def fail(options):
        raise ZeroDivisionError

    monkeypatch.setattr(qresearch.commands, "runs", fail)
    with pytest.raises(ZeroDivisionError):
        main(["runs"])


def test_ctrl_c_has_its_usual_status():
    assert 128 + signal.SIGINT == qresearch.cli.INTERRUPTED
