"""Measured blocks are found, kept and used; how fast they are, no test asks."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_cases import drawn, stored

from qresearch.kernels import blocks as table
from qresearch.kernels import prepare, tuning
from qresearch.kernels.triton import Blocks

WEIGHTS = prepare(stored(256, 64, scaled=128))
FAST = Blocks(slices=2, tile=64, depth=64, splits=1, warps=4, stages=2)


@pytest.fixture
def other_table(monkeypatch, tmp_path):
    path = tmp_path / "blocks.json"
    path.write_text("{}")
    monkeypatch.setattr(table, "TABLE", path)
    table.measured_blocks.cache_clear()
    yield path
    table.measured_blocks.cache_clear()


def test_the_fastest_that_runs_is_found(monkeypatch):
    def timer(product, x, copies):
        asked = product.keywords["blocks"]
        if asked.stages == 5:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: shared memory")
        return lambda: 1.0 + sum(a != b for a, b in zip(asked, FAST))

    monkeypatch.setattr(tuning, "timer", timer)
    assert tuning.tune(drawn(1, 256), WEIGHTS, rotated=0.0) == (FAST._replace(depth=32), 2.0)  # float32: 32 at most
    assert tuning.tune(drawn(1, 256, "bfloat16"), WEIGHTS, rotated=0.0) == (FAST, 1.0)


def test_blocks_are_timed_by_running_them(monkeypatch):
    monkeypatch.setattr(tuning, "CHOICES", {"splits": (1, 2)})
    found, seconds = tuning.tune(drawn(1, 256), WEIGHTS, repeats=1, rotated=0.0, interpret=True)
    assert found.splits in (1, 2)
    assert seconds > 0


def test_what_was_measured_on_a_device_is_used_there(other_table):
    by_rule = table.chosen_blocks(3, WEIGHTS)
    assert by_rule == table.default_blocks(3, WEIGHTS)
    tuning.save_blocks({table.case_name(4, WEIGHTS): FAST}, other_table)
    tuning.save_blocks({"another": by_rule}, other_table)
    assert table.chosen_blocks(3, WEIGHTS) == FAST  # rows are padded to 4
    assert table.chosen_blocks(1, WEIGHTS) == table.default_blocks(1, WEIGHTS)
    assert table.measured_blocks().keys() == {jax.devices()[0].device_kind}


def test_every_entry_of_the_table_is_of_blocks():
    for cases in table.measured_blocks().values():
        for blocks in cases.values():
            assert all(value & (value - 1) == 0 or name == "stages" for name, value in blocks._asdict().items())


def test_copies_are_equal_and_many_enough():
    copies = tuning.copies_of({"a": jnp.arange(5.0)}, bytes_of_one=20, rotated=50)
    assert len(copies) == 3
    assert len({copy["a"].unsafe_buffer_pointer() for copy in copies}) == 3
    for copy in copies:
        np.testing.assert_array_equal(copy["a"], np.arange(5.0))
