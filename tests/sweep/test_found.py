"""What a search found, stored with what QAT goes on from: whole it is read bit for bit, and else there is one line."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small_sweep import ONE, one_line, write_small

from qresearch.config import config_hash, expand, load
from qresearch.qmodel import quantize_model
from qresearch.results.atomic import render_json
from qresearch.results.record import content_hash
from qresearch.rules import Rule, SiteRule
from qresearch.sweep.found import Found, Start, load_found, save_found

BITS = np.asarray([[2, 4], [8, 4]], np.float32)
TAKEN = {"seconds": 1.5, "measured": 0, "epochs": 3, "shares": {"first": {"weight": {"2": 0.1 + 0.2}}}}
KEPT = np.asarray([1 / 3, 1.0])


def network(hidden, outputs=("second",)):
    """(model, variables, x): ``bayesian_bits`` with channel gates on dense layers, the first ``hidden`` wide."""
    widths = {"first": (6, hidden), **dict.fromkeys(outputs, (hidden, 3))}
    keys = jax.random.split(jax.random.key(0), len(widths))
    params = {name: jax.random.normal(key, shape) for key, (name, shape) in zip(keys, widths.items())}
    x = jax.random.normal(jax.random.key(1), (5, 6))

    def fn(variables, x):
        hidden = jax.nn.relu(x @ variables["params"]["first"])
        return sum(hidden @ variables["params"][name] for name in outputs)

    weight, variables = SiteRule("bayesian_bits", options=(("prune_axis", -1),)), {"params": params}
    rules = (Rule("*", weight, SiteRule("bayesian_bits"), ((2, 4), (8, 4))),)
    return quantize_model(fn, variables, x, rules), variables, x


@pytest.fixture(scope="module")
def networks():
    """By name: the searched one, one with a wider layer, and one with more layers."""
    return {"own": network(4), "wider": network(5), "deeper": network(4, ("second", "third"))}


@pytest.fixture(scope="module")
def searched(networks):
    """What a search of the first network could have found; no number of it is round."""
    model, variables, x = networks["own"]
    qparams = jax.tree.map(lambda leaf: leaf + jnp.float32(1e-7), model.init(variables, x, BITS))
    return Found(BITS, TAKEN, Start(jax.tree.map(jnp.sin, variables), qparams, KEPT))


@pytest.fixture
def kept(tmp_path, searched):
    """(folder, config, what was stored there)."""
    (config,) = expand(load(write_small(tmp_path), list(ONE)))
    save_found(tmp_path / "searches", config, searched)
    return tmp_path / "searches", config, searched


def loaded(folder, config, network):
    """(what is found, the lines that were reported)."""
    lines: list[str] = []
    return load_found(folder, config, *network, lines.append), lines


def assert_identical(found, expected):
    """The same structure, dtypes and bits."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected)):
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype
        np.testing.assert_array_equal(ours, theirs)


def test_what_is_stored_is_read_bit_for_bit(kept, networks):
    folder, config, expected = kept
    found, lines = loaded(folder, config, networks["own"])
    assert lines == []
    assert_identical(found, expected)
    other = config.model_copy(update={"seed": config.seed + 1})
    assert loaded(folder, other, networks["own"]) == (None, [])
    save_found(folder, other, expected._replace(start=None))
    assert_identical(loaded(folder, other, networks["own"])[0], expected._replace(start=None))


def test_a_second_search_replaces_the_first(kept, networks):
    folder, config, first = kept
    second = first._replace(bits=BITS[::-1], start=first.start._replace(kept=KEPT[::-1]))
    save_found(folder, config, second)
    assert_identical(loaded(folder, config, networks["own"])[0], second)


def without(entry):
    facts = {"bits": BITS.tolist(), "taken": TAKEN, "kept": KEPT.tolist()}
    return sealed({name: value for name, value in facts.items() if name != entry})


def sealed(facts):
    return render_json({**facts, "sha256": content_hash(facts)})


FACTS = {"torn": without("nothing")[:40], "empty": "", "a list": "[1]", "null": "null", "no bits": without("bits")}
FACTS |= {"no taken": without("taken"), "not text": "\0", "ragged": sealed({"bits": [[2, 4], [8]], "taken": {}})}
FACTS |= {"kept of others": sealed({"bits": BITS.tolist(), "taken": TAKEN, "kept": [*KEPT.tolist(), 1.0]})}
FACTS |= {"altered": without("nothing").replace("1.0", "0.5", 1)}


@pytest.mark.parametrize("facts", FACTS)
def test_a_damaged_file_is_one_line(kept, networks, facts):
    folder, config, _ = kept
    path = folder / f"{config_hash(config)[:16]}.json"
    path.write_text(FACTS[facts])
    found, lines = loaded(folder, config, networks["own"])
    assert found is None
    assert one_line("\n".join(lines)).startswith(str(path))
    assert lines[0].endswith("the search is run again")


@pytest.mark.parametrize("spoil", ["truncated", "altered", "a file deleted", "all deleted"])
def test_a_damaged_checkpoint_is_one_line(kept, networks, spoil):
    folder, config, _ = kept
    checkpoint = folder / config_hash(config)[:16]
    files = sorted((path for path in checkpoint.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    content = files[-1].read_bytes()
    if spoil == "truncated":
        files[-1].write_bytes(content[: len(content) // 2])
    elif spoil == "altered":
        files[-1].write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    else:
        for path in files if spoil == "all deleted" else files[-1:]:
            path.unlink()
    found, lines = loaded(folder, config, networks["own"])
    assert found is None
    line = one_line("\n".join(lines))
    assert str(checkpoint) in line
    assert line.endswith("the search is run again")


@pytest.mark.parametrize("other", ["wider", "deeper"])
def test_what_was_found_for_another_model_is_one_line(kept, networks, other):
    folder, config, _ = kept
    found, lines = loaded(folder, config, networks[other])
    assert found is None
    assert "of another model" in one_line("\n".join(lines)) or "of this model" in lines[0]
