"""What every post-training method promises. A method enters by its line in PTQ."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ptq_cases import CASES, error, outputs, quantized

from qresearch.errors import ConfigError, GraphError
from qresearch.programs import compiled
from qresearch.ptq import PTQ, make_method, make_methods, optimise
from qresearch.ptq.state import before_rounding

# Of every method, options that make it quick; what they leave out the paper's recipe adds.
QUICK: dict[str, dict[str, Any]] = {
    name: {"iterations": 100, "learning_rate": 0.1} for name in ("adaround", "brecq", "qdrop")
}
ROUNDING = ("adaround", "brecq", "qdrop", "gptq")
KEEP_THE_FUNCTION = ("awq", "hadamard")
# These change the float model before it is calibrated; they and the last have tests of their own.
FLOAT = ("fold_batchnorm", "equalize", "smoothquant")
CORRECTING = [name for name in PTQ if name not in (*FLOAT, "reestimate_batchnorm")]


def method(name: str, **options: Any) -> Any:
    return make_method(name, **(QUICK.get(name, {}) | options))


@functools.cache
def treated(name: str, case: str) -> Any:
    """The case at W3A8 after a method."""
    return method(name)(quantized(case, 3, 8), jax.random.key(0))


@pytest.mark.parametrize("name", PTQ)
def test_the_docstring_has_a_paper_and_says_where_it_differs(name):
    text = inspect.getdoc(PTQ[name]) or ""
    assert re.search(r"https?://\S+", text)
    assert "differ" in text


def treatments(names: Sequence[str], cases: Sequence[str]) -> pytest.MarkDecorator:
    """Every (name, case). What takes longest is for the slow suite: qdrop is brecq but for what it drops, and what
    scans and shared kernels ask of one method that visits layers they ask of all.
    """
    slow = {("awq", "linen"), ("awq", "scanned"), ("awq", "tied"), ("hadamard", "linen"), ("adaround", "tied")}
    slow |= {("adaround", "linen"), ("awq", "nnx")}
    slow |= {("qdrop", "linen"), ("qdrop", "scanned"), ("qdrop", "tied"), ("prune", "scanned"), ("prune", "linen")}
    pairs = [(name, case) for name in names for case in cases]
    marked = [pytest.param(*pair, marks=[pytest.mark.slow] if pair in slow else []) for pair in pairs]
    return pytest.mark.parametrize(("name", "case"), marked)


@treatments(CORRECTING, CASES)
def test_it_runs_on_any_function_and_changes_no_float_parameter(name, case):
    state, found = quantized(case, 3, 8), treated(name, case)
    assert np.isfinite(outputs(found)).all()
    assert jax.tree.structure(found.params) == jax.tree.structure(state.params)
    for new, old in zip(jax.tree.leaves(found.params), jax.tree.leaves(state.params)):
        np.testing.assert_array_equal(new, old)


@treatments([*ROUNDING, "bias_correction"], ["linen", "nnx", "plain"])
def test_the_outputs_are_nearer_to_the_float_ones_than_after_plain_rounding(name, case):
    state = quantized(case, 3, 8)
    assert error(treated(name, case)) < 0.95 * error(state)


@pytest.mark.parametrize("name", KEEP_THE_FUNCTION)
def test_an_outlying_channel_costs_less(name):
    state = quantized("plain", 8, 4)  # one channel of the first input is 30 times the others
    assert error(method(name)(state, jax.random.key(0))) < 0.9 * error(state)


@treatments(ROUNDING, CASES)
def test_what_it_rounds_is_on_the_grid_it_was_calibrated_for(name, case):
    state, found = quantized(case, 3, 8), treated(name, case)
    for row, unit in enumerate(state.model.units):
        kernel, own = (found.qparams[unit.layer.name][key] for key in ("kernel", "weight"))
        np.testing.assert_allclose(unit.weight.apply(own, kernel, state.bits[row, 0]), kernel, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", ["adaround", "brecq"])
def test_a_rounded_weight_is_one_of_its_two_neighbours(name):
    state, found = quantized("linen", 3, 8), treated(name, "linen")
    for row, unit in enumerate(state.model.units):
        kernel, own = (found.qparams[unit.layer.name][key] for key in ("kernel", "weight"))
        weight = state.params["params"]
        for part in unit.layer.name.split("/"):
            weight = weight[part]
        scale = unit.weight.encode(own, weight, state.bits[row, 0]).scale
        nearest = unit.weight.apply(own, weight, state.bits[row, 0])
        # Clipped weights are farther from their own value, but not from the end of the grid.
        assert np.all(np.abs(kernel - np.clip(weight, nearest.min(), nearest.max())) <= 1.01 * scale + 1e-6)


@treatments([*KEEP_THE_FUNCTION, *FLOAT], CASES)
def test_at_32_bits_the_function_is_what_it_was(name, case):
    state, found = quantized(case, 3, 8), treated(name, case)
    wanted = state.model.fn(state.params, state.x)
    np.testing.assert_allclose(outputs(found, jnp.full_like(state.bits, 32.0)), wanted, rtol=1e-4, atol=1e-4)


# Each with one of the others; the product is for the slow suite.
COMPOSED = [
    pytest.param(first, second, marks=[pytest.mark.slow] if (i + j) % 2 else [])
    for i, first in enumerate(KEEP_THE_FUNCTION)
    for j, second in enumerate(ROUNDING)
]


@pytest.mark.parametrize(("first", "second"), COMPOSED)
def test_methods_compose(first, second):
    prepared = treated(first, "plain")
    found = method(second)(prepared, jax.random.key(1))
    assert error(found) < 0.9 * error(prepared)
    for name, own in found.qparams.items():
        for key in ("divisor", "rotation"):
            assert (key in own) == (key in prepared.qparams[name])


@pytest.mark.parametrize("name", CORRECTING)
def test_the_same_key_gives_the_same_result(name):
    one, two = treated(name, "plain"), method(name)(quantized("plain", 3, 8), jax.random.key(0))
    for left, right in zip(jax.tree.leaves(one.qparams), jax.tree.leaves(two.qparams), strict=True):
        np.testing.assert_array_equal(left, right)


@pytest.mark.parametrize("name", [*ROUNDING, "bias_correction"])
def test_examples_that_fill_no_batch_are_left_out(name):
    state = quantized("plain", 3, 8)
    more = state._replace(x=jnp.concatenate([state.x, state.x[:5]]), targets=jnp.pad(state.targets, (0, 5)))
    found = method(name)(more, jax.random.key(0)).qparams
    for new, own in zip(jax.tree.leaves(found), jax.tree.leaves(treated(name, "plain").qparams), strict=True):
        np.testing.assert_array_equal(new, own)


@pytest.mark.parametrize("bits", [0, 32])
@pytest.mark.parametrize("name", ROUNDING)
def test_layers_that_are_pruned_or_in_float_are_left_alone(name, bits):
    state = quantized("plain", 3, 8)
    state = state._replace(bits=state.bits.at[0, 0].set(bits))
    found = method(name)(state, jax.random.key(0))
    assert "kernel" not in found.qparams["first/kernel"]
    assert "kernel" in found.qparams["second/kernel"]


@pytest.mark.parametrize("name", ROUNDING)
def test_a_method_without_an_integer_grid_is_refused_by_name(name):
    state = quantized("plain", 4, 32, "nf4")
    with pytest.raises(GraphError, match=r"first/kernel cannot be learned: quantizer 'nf4'.*use minmax"):
        method(name)(state, jax.random.key(0))


# Alike are the six convolutions of three blocks; the first two blocks (the mean after the third is in its segment).
@pytest.mark.parametrize(("name", "problems", "programs"), [("adaround", 8, 3), ("brecq", 5, 4)])
def test_layers_and_blocks_of_equal_shape_share_one_program(name, problems, programs, monkeypatch):
    found = []

    def recorded(*arguments):
        found.append(compiled(*arguments))
        return found[-1]

    monkeypatch.setattr(optimise, "compiled", recorded)
    make_method(name, iterations=2)(quantized("deep", 3, 8), jax.random.key(0))
    assert len(found) == problems
    assert len({id(program) for program in found}) == programs


def test_an_unknown_method_or_option_is_refused_with_the_nearest_name():
    with pytest.raises(ConfigError, match=r"unknown post-training method 'adarond'.*'adaround'"):
        make_method("adarond")
    with pytest.raises(ConfigError, match=r"method 'adaround' has no option 'iteration'.*'iterations'"):
        make_method("adaround", iteration=3)
    with pytest.raises(ConfigError, match=r"'iterations' of method 'adaround' takes a whole number >= 1, got 0.5"):
        make_method("adaround", iterations=0.5)
    with pytest.raises(ConfigError, match=r"'steps' of method 'awq' takes a whole number >= 1, got 0"):
        make_method("awq", steps=0)
    with pytest.raises(ConfigError, match=r"'act_order' of method 'gptq' takes true or false, got 1"):
        make_method("gptq", act_order=1)


@pytest.mark.parametrize(
    ("name", "option", "value"),
    [
        ("adaround", "learning_rate", -1.0),
        ("adaround", "learning_rate", float("nan")),
        ("adaround", "warmup", 1.0),
        ("gptq", "damping", -1.0),
        ("qdrop", "drop", 3.0),
        ("smoothquant", "alpha", 2.0),
        ("prune", "sparsity", 1.0),
    ],
)
def test_a_number_out_of_range_is_refused(name, option, value):
    with pytest.raises(ConfigError, match=rf"option '{option}' of method '{name}' takes a number (from 0 to|>= 0)"):
        make_method(name, **{option: value})


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (
            ["adaround", "fold_batchnorm"],
            "fold_batchnorm starts from the float model.* before adaround",
        ),
        (["gptq", "bias_correction", "equalize"], "equalize .* before gptq"),
        (["prune", "hadamard"], "hadamard .* before prune"),
        (["fold_batchnorm", "reestimate_batchnorm"], "finds no BatchNorm after fold_batchnorm"),
    ],
)
def test_an_order_that_cannot_be_is_refused_before_anything_runs(names, message):
    with pytest.raises(ConfigError, match=message):
        make_methods([(name, {}) for name in names])


def test_the_order_holds_for_methods_of_ones_own(monkeypatch):
    monkeypatch.setitem(PTQ, "rounds", PTQ["prune"])
    monkeypatch.setitem(PTQ, "folds", before_rounding(lambda fn, params, x: (fn, params)))
    assert len(make_methods([("folds", {}), ("equalize", {}), ("rounds", {})])) == 3
    for name in ("equalize", "folds"):
        with pytest.raises(ConfigError, match=f"{name} starts from the float model.* before rounds"):
            make_methods([("rounds", {}), (name, {})])


def test_every_order_of_two_that_is_accepted_runs():
    for first in ("prune", "bias_correction", "hadamard", "gptq"):
        state = treated(first, "plain")
        for second in ("prune", "bias_correction", "hadamard", "gptq"):
            try:
                _, step = make_methods([(first, {}), (second, {})])
            except ConfigError:
                continue
            assert np.isfinite(outputs(step(state, jax.random.key(0)))).all()


@pytest.mark.parametrize("name", FLOAT)
def test_what_changes_the_float_model_must_come_before_what_rounds(name):
    state = treated("gptq", "linen")
    with pytest.raises(GraphError, match=r"an earlier method has changed the weights of block0/first/kernel already"):
        method(name)(state, jax.random.key(0))


@pytest.mark.parametrize(("sparsity", "second"), [*((0.5, name) for name in ROUNDING), (0.0, "gptq"), (0.25, "gptq")])
def test_pruned_weights_stay_zero(sparsity, second):
    state = quantized("plain", 3, 8)
    pruned = make_method("prune", sparsity=sparsity)(state, jax.random.key(0))
    kernel = pruned.qparams["first/kernel"]["kernel"]
    assert int(jnp.sum(kernel == 0)) == round(sparsity * kernel.size)
    smallest = jnp.sort(jnp.abs(state.params["first"]["kernel"]).ravel())[: round(sparsity * kernel.size)]
    assert jnp.abs(kernel[kernel != 0]).min() >= (smallest[-1] if smallest.size else 0)
    found = method(second)(pruned, jax.random.key(1)).qparams["first/kernel"]["kernel"]
    assert np.all(np.asarray(found)[np.asarray(kernel == 0)] == 0)


def test_channels_are_pruned_whole():
    kernel = make_method("prune", unit="channel")(quantized("plain", 3, 8), jax.random.key(0)).qparams
    columns = np.asarray(kernel["first/kernel"]["kernel"] == 0)
    assert (columns.all(axis=0) | ~columns.any(axis=0)).all()
    assert columns.all(axis=0).sum() == 12


def test_bias_correction_takes_the_mean_error_of_each_channel_away():
    state = quantized("plain", 2, 8)
    found = method("bias_correction")(state, jax.random.key(0))
    wanted = state.model.fn(state.params, state.x)
    before, after = (jnp.abs(jnp.mean(outputs(s) - wanted, axis=0)).max() for s in (state, found))
    assert after < 1e-5 < before


@pytest.mark.parametrize("name", [*ROUNDING, "awq", "prune"])
def test_a_new_kernel_takes_the_shift_of_the_one_before_away(name):
    shifted = treated("bias_correction", "plain")
    found = method(name)(shifted, jax.random.key(0))
    changed = [own for own in found.qparams.values() if "kernel" in own]
    assert changed
    assert not any("shift" in own for own in changed)


@pytest.mark.parametrize("name", ["brecq", "qdrop"])
def test_a_block_is_learned_behind_the_shift_of_a_layer_that_stays(name):
    state = quantized("plain", 3, 32)
    state = state._replace(bits=state.bits.at[0].set(32))
    first = "first/kernel"
    shifted = state._replace(qparams=state.qparams | {first: state.qparams[first] | {"shift": jnp.ones((1, 24))}})
    behind, without = (method(name)(each, jax.random.key(0)).qparams["second/kernel"] for each in (shifted, state))
    one, other = (shifted._replace(qparams=shifted.qparams | {"second/kernel": own}) for own in (behind, without))
    assert error(one) < 0.9 * error(other)
