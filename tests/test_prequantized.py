"""Kernels quantized before, and first layers run once: the same numbers as the model itself gives."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph.zoo import ZOO
from quantized_models import QUICK
from small_sweep import compilations
from trained import uniform

from qresearch.calibration import calibrate, select
from qresearch.evaluation import make_batches
from qresearch.population import evaluate_population
from qresearch.prefixes import make_tree
from qresearch.prequantized import forward_of, prequantize
from qresearch.qmodel import quantize_model

MENU = (2.0, 4.0, 8.0)
# One of each way in which a kernel can come to its contraction.
WAYS = (
    "einsums",
    "derived",
    "fused_qkv",
    "autoencoder",
    "nested_jit",
    "scan_nested",
    "looped",
    "convolutions",
    "linen_tied",
    "linen_bf16",
    "nnx_scan",
)


def drawn(layers, count, seed=0):
    """Allocations of the menu's widths, of pruned and of float operands."""
    return np.random.default_rng(seed).choice([0.0, *MENU, 32.0], (count, layers, 2)).astype(np.float32)


@pytest.mark.parametrize("name", WAYS)
def test_a_model_with_prequantized_kernels_is_the_model(name):
    fn, params, x = ZOO[name]
    model = quantize_model(fn, params, x, (dataclasses.replace(QUICK, shared="each"),))
    menu = calibrate(model, params, x, [2, 4, 8])
    table = prequantize(model, params, menu)
    assert set(table.kernels) == {layer.name for layer in model.layers if not layer.contraction.product}
    forward, apply = jax.jit(forward_of(model)), jax.jit(lambda bits: model.apply(params, select(menu, bits), x, bits))
    for bits in drawn(len(model.layers), 3):
        found, wanted = forward((params, table), bits, x), apply(bits)
        for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
            # Another program may round a tie otherwise, which moves a code by one step.
            assert np.mean(~np.isclose(one, other, rtol=1e-4, atol=1e-5)) < 0.02


@pytest.fixture(scope="module")
def digits(trained_digits):
    """(allocations, ...) -> Scores of menu widths, and what else a test needs."""
    t = trained_digits
    batches = make_batches(t.data.validation, 100, 150)

    def scores(bits, qparams=t.qparams, **other):
        return evaluate_population(
            t.quantized, t.variables, qparams, bits, batches, t.task, t.data.prepare, chunk=1, **other
        )

    return t, batches, scores


def test_a_table_made_before_serves_many_calls(digits):
    t, _, scores = digits
    bits = drawn(3, 6)
    table = prequantize(t.quantized, t.variables, t.qparams)
    first = scores(bits, table)
    with compilations() as compiled:
        again = scores(bits)
    assert "jit(step)" not in compiled
    np.testing.assert_array_equal(first.loss, again.loss)


def test_widths_that_no_table_holds_are_quantized_in_the_program(digits):
    t, _, scores = digits
    learned = uniform(4.0, 8.0) - 0.25
    table = prequantize(t.quantized, t.variables, t.qparams)
    assert table.serves(drawn(3, 4))
    assert not table.serves(learned[None])
    x, targets = jnp.asarray(t.data.prepare(t.data.validation.inputs[:150])), t.data.validation.targets[:150]
    outputs = t.quantized.apply(t.variables, select(t.qparams, jnp.asarray(learned)), x, jnp.asarray(learned))
    wanted = float(jnp.mean(t.task.loss(outputs, targets)))
    np.testing.assert_allclose(scores(learned[None], table).loss.mean(), wanted, rtol=2e-3)


def test_shared_prefixes_change_no_result_and_keep_the_order(digits):
    _, _, scores = digits
    base = drawn(3, 4, seed=1)
    late = np.repeat(base, 5, axis=0)
    late[:, 2] = drawn(1, 20, seed=2)[:, 0]  # differ in the last layer only
    late = late[np.random.default_rng(3).permutation(20)]
    done = []
    shared = scores(late, share_prefixes=True, on_done=done.append)
    alone = scores(late)
    assert np.mean(np.abs(shared.loss - alone.loss) > 1e-4) < 0.01
    np.testing.assert_allclose(shared.loss.mean(axis=1), alone.loss.mean(axis=1), rtol=1e-3)
    assert done == sorted(done)
    assert done[-1] == 20


def test_what_is_saved_is_counted_in_multiply_accumulates(digits):
    t, batches, _ = digits

    def saved(bits):
        return make_tree(t.quantized, t.variables, np.asarray(bits), batches, t.data.prepare).saved

    macs = np.array([layer.macs for layer in t.quantized.layers], float)
    one, last, first = uniform(4, 4), uniform(4, 4), uniform(4, 4)
    last[2], first[0] = 8, 8
    assert saved([one]) == 0
    assert saved([one, first]) == 0
    np.testing.assert_allclose(saved([one, last]), macs[:2].sum() / macs.sum() / 2)
    np.testing.assert_allclose(saved([one, one]), macs[:2].sum() / macs.sum() / 2)  # the last part is run again


def test_prefixes_are_run_once(digits):
    # Counted by the programs' calls: a prefix shared by all runs as often as there are batches, not allocations.
    t, batches, scores = digits
    bits = np.repeat(uniform(4, 4)[None], 8, axis=0)
    bits[:, 2, 0] = [2, 4, 8, 2, 4, 8, 0, 32]
    from qresearch import prefixes

    calls = []
    original = prefixes._program

    def counting(model, part, shapes):
        program = original(model, part, shapes)
        return lambda *arguments: (calls.append(part.layers), program(*arguments))[1]

    prefixes._program = counting
    try:
        scores(bits, share_prefixes=True)
    finally:
        prefixes._program = original
    first, last = make_tree(t.quantized, t.variables, bits, batches, t.data.prepare).parts[::2]
    assert calls.count(first.layers) == len(batches.targets)
    assert calls.count(last.layers) == 8 * len(batches.targets)


SHARDED = """
import jax, numpy as np
import jax.numpy as jnp
import qresearch as qr
from qresearch import evaluation
from qresearch.data import DATASETS
from qresearch.models import MODELS
from qresearch.tasks import TASKS

digits, model = DATASETS["digits"](None), MODELS["mlp"](10)
x = digits.prepare(jnp.asarray(digits.train.inputs[:64]))
params = model.init(jax.random.key(0), x)
quantized = qr.quantize_model(model.apply, params, x)
menu, batches = qr.calibrate(quantized, params, x), qr.make_batches(digits.validation, 50, 120)
bits = np.random.default_rng(0).choice([2.0, 4.0, 8.0], (11, len(quantized.layers), 2)).astype(np.float32)
found = []
for devices, chunk in ((4, 1), (4, 2), (1, 1)):
    if devices == 1:
        evaluation.make_mesh = lambda members, examples: None
    done = []
    scores = qr.evaluate_population(
        quantized, params, menu, bits, batches, TASKS["classification"], digits.prepare, chunk, done.append
    )
    found.append(scores.loss)
    print(done)
np.save("LOSSES", np.stack(found))
print(jax.local_device_count())
"""


def test_members_are_spread_over_the_devices(tmp_path):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    environment = {**os.environ, "XLA_FLAGS": flags}
    program = [sys.executable, "-c", SHARDED.replace("LOSSES", str(tmp_path / "losses.npy"))]
    ran = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    # 1 and 2 members on each of four devices; then all on one.
    assert ran.stdout.split("\n")[:4] == ["[4, 8, 11]", "[8, 11]", str(list(range(1, 12))), "4"]
    spread, by_two, alone = np.load(tmp_path / "losses.npy")
    np.testing.assert_array_equal(spread, alone)
    assert np.mean(np.abs(by_two - alone) > 1e-4) < 0.02
