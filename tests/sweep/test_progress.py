"""What a sweep shows of itself: at a terminal bars, trials per minute and the best front; elsewhere plain lines."""

from __future__ import annotations

import io
import re

import pytest
from results_fixtures import make_record
from rich.console import Console

from qresearch.report import front, points_of
from qresearch.sweep import progress
from qresearch.sweep.progress import Terminal, per_minute


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class Shown:
    """A ``Terminal`` on a made console and clock, and what it has printed."""

    def __init__(self, terminal, height=40):
        self.stream, self.clock = io.StringIO(), Clock()
        size = {"width": 110, "height": height}
        console = Console(file=self.stream, force_terminal=terminal, color_system=None, _environ={}, **size)
        self.display = Terminal(console, self.clock)

    @property
    def text(self):
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.stream.getvalue()).replace("\r", "\n")

    @property
    def last_view(self):
        return self.text[self.text.rindex("trials ") :]


def record_at(bits, score, seed=0):
    return make_record(bits=bits, score=score, seed=seed)


@pytest.fixture
def terminal():
    return Shown(True)


def run(shown, records, seconds=30.0):
    """Trials that finish one after the other, with so many seconds between them."""
    with shown.display.trials(len(records)) as advance:
        for i, record in enumerate(records):
            shown.clock.now += seconds
            shown.display.record(record)
            advance(i + 1)


def test_a_terminal_shows_trials_per_minute_and_the_front(terminal):
    records = [record_at(2, 0.5), record_at(4, 0.9), record_at(8, 0.8)]
    run(terminal, records)
    assert "3/3" in terminal.last_view
    assert "2.0/min" in terminal.last_view
    assert "best front so far" in terminal.last_view
    points = points_of(records)
    for i, point in enumerate(points):
        assert (f"{point.test.mean:.4f}" in terminal.last_view) == (i in front(points))


def test_trials_of_an_earlier_command_are_on_the_front(terminal):
    terminal.display.record(record_at(2, 0.7))
    run(terminal, [record_at(4, 0.9)])
    assert "0.7000" in terminal.last_view
    assert "1/1" in terminal.last_view


def test_a_long_front_is_shown_by_some_of_its_points(terminal):
    run(terminal, [record_at(1 + i / 10, 0.5 + i / 100) for i in range(40)])
    assert "12 of 40 points" in terminal.last_view
    assert terminal.last_view.count("(1 seed)") == 12
    for end in ("0.5000", "0.8900"):
        assert end in terminal.last_view


def test_the_front_takes_little_of_the_time(terminal, monkeypatch):
    made = []

    def slow(records):
        made.append(len(records))
        terminal.clock.now += 0.5
        return points_of(records)

    monkeypatch.setattr(progress, "points_of", slow)
    best = progress.BestFront(terminal.clock)
    for i in range(300):
        best.add(record_at(1 + i / 100, 0.5))
        terminal.clock.now += 0.1
        best.update()
    # 300 records in 30 s: half a second each time, after a pause of twenty times that.
    assert 2 <= len(made) <= 4
    best.update(at_last=True)
    assert made[-1] == 300
    best.update(at_last=True)
    assert made.count(300) == 1


def test_phases_come_and_go_above_the_front(terminal):
    with terminal.display.trials(1):
        terminal.display.hear(1, {"phase": "QAT", "total": 8, "done": 0})
        terminal.display.hear(1, {"phase": "QAT", "total": 8, "done": 3})
        terminal.display.line("warning: [a] worker")
        (task,) = [task for task in terminal.display._bars.tasks if "QAT" in task.description]
        assert task.completed == 3
        terminal.display.hear(1, {"over": True})
        assert len(terminal.display._bars.tasks) == 1
    assert "warning: [a] worker" in terminal.text


def test_where_output_is_no_terminal_a_line_a_minute_says_how_far_it_is():
    shown = Shown(False)
    run(shown, [record_at(2 + i, 0.5 + i / 10) for i in range(4)])
    first, second = shown.text.splitlines()
    assert first == "2 of 4 trials, 2.0/min; front so far: 2.00 bits 0.5000, 3.00 bits 0.6000"
    assert second.startswith("4 of 4 trials, 2.0/min; front so far: 2.00 bits 0.5000, ")
    quick = Shown(False)
    run(quick, [record_at(2, 0.5)], seconds=5)
    assert quick.text == ""
    quick.display.hear(1, {"phase": "QAT", "total": 8, "done": 8, "seconds": 2.0})
    assert quick.text == "QAT: 8 in 2.0 s (4.0/s)\n"


def test_no_rate_before_a_trial_is_done():
    assert per_minute(0, 10.0) == per_minute(1, 0.0) == ""
    assert per_minute(3, 90.0) == "2.0/min"
