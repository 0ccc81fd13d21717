"""Draws of posteriors in ArviZ's groups, stored beside records."""

from __future__ import annotations

import numpy as np
import pytest

from qresearch.errors import DataError
from qresearch.results.draws import load_draws, save_draws

RANDOM = np.random.default_rng(0)
GROUPS = {
    "posterior": {"gain": RANDOM.normal(size=(2, 5)), "log_sensitivity": RANDOM.normal(size=(2, 5, 3, 4))},
    "sample_stats": {"diverging": RANDOM.random((2, 5)) < 0.5},
    "observed_data": {"joint": RANDOM.normal(size=7)},
    "constant_data": {"unit": np.asarray(0.25)},
}


def test_groups_are_stored_bit_for_bit(tmp_path):
    save_draws(tmp_path / "a.npz", GROUPS)
    found = load_draws(tmp_path / "a.npz")
    assert {group: set(own) for group, own in found.items()} == {group: set(own) for group, own in GROUPS.items()}
    for group, own in GROUPS.items():
        for name, values in own.items():
            assert found[group][name].dtype == values.dtype
            np.testing.assert_array_equal(found[group][name], values)


def test_arviz_takes_them(tmp_path):
    arviz = pytest.importorskip("arviz_base", reason="needs the extra 'arviz'")
    save_draws(tmp_path / "a.npz", GROUPS)
    tree = arviz.from_dict(load_draws(tmp_path / "a.npz"))
    assert dict(tree["posterior"]["log_sensitivity"].sizes)["chain"] == 2
    np.testing.assert_array_equal(tree["sample_stats"]["diverging"].values, GROUPS["sample_stats"]["diverging"])


@pytest.mark.parametrize("damage", ["missing", "empty", "cut", "text", "flat"])
def test_damaged_files_are_named(tmp_path, damage):
    path = tmp_path / "a.npz"
    save_draws(path, GROUPS)
    if damage == "missing":
        path.unlink()
    elif damage == "flat":
        with path.open("wb") as stream:
            np.savez(stream, gain=np.zeros(3))
    else:
        path.write_bytes({"empty": b"", "cut": path.read_bytes()[:-200], "text": b"not an npz"}[damage])
    with pytest.raises(DataError, match=r"a\.npz"):
        load_draws(path)
