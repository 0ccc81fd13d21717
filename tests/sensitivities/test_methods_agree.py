"""What every sensitivity promises, on a trained network. A method enters by its line in SENSITIVITIES."""

from __future__ import annotations

import functools
import inspect
import re

import jax
import numpy as np
import pytest
from scipy.stats import spearmanr
from small_sweep import compilations
from trained import MENU, PINNED

from qresearch.errors import ConfigError, DataError
from qresearch.evaluation import make_batches
from qresearch.sensitivities import SENSITIVITIES, make_problem, sensitivity

OPTIONS = tuple(sorted({*MENU, *PINNED}))
OTHERS = [name for name in SENSITIVITIES if name != "loss_increase"]
every_method = pytest.mark.parametrize("name", SENSITIVITIES)


@pytest.fixture(scope="module")
def measure(trained_digits):
    t = trained_digits

    @functools.cache
    def run(name, examples=128):
        batches = make_batches(t.data.validation, 64, examples)
        args = (t.quantized, t.variables, t.qparams, batches, t.task, t.data.prepare)
        return sensitivity(*args, chunk=1, method=name)

    return run


@every_method
def test_the_docstring_has_a_formula_or_definition_and_says_where_it_differs(name):
    text = inspect.getdoc(SENSITIVITIES[name]) or ""
    assert re.search(r"https?://\S+", text) or "definition" in text


@every_method
def test_the_table_has_what_menus_allow(measure, name):
    table = measure(name)
    allowed = np.array([[option in MENU for option in OPTIONS]] * 2 + [[option in PINNED for option in OPTIONS]])
    assert table.options == OPTIONS
    np.testing.assert_array_equal(np.isfinite(table.loss), allowed)
    np.testing.assert_array_equal(np.isposinf(table.loss), ~allowed)
    # Of one batch, which is all that hawq_v1 takes.
    np.testing.assert_allclose(measure(name, 64).float_loss, measure("loss_increase", 64).float_loss, rtol=1e-5)


@every_method
def test_standard_errors_shrink_with_examples(measure, name):
    if name in ("hawq_v1", "limpq"):  # one batch, one training: their errors are not known, and they say so
        assert np.isnan(measure(name).standard_error).all()
        return
    few, many = measure(name, 128).standard_error, measure(name, 512).standard_error
    assert np.isfinite(many[np.isfinite(measure(name).loss)]).all()
    assert np.nanmedian(many / few) < 0.85


@every_method
def test_fewer_bits_hurt_more(measure, name):
    loss = measure(name, 512).loss[:2]
    assert np.all(loss[:, OPTIONS.index((2, 2))] > loss[:, OPTIONS.index((4, 4))])
    assert np.all(loss[:, OPTIONS.index((4, 4))] > loss[:, OPTIONS.index((8, 8))])


@pytest.mark.parametrize("name", OTHERS)
def test_it_ranks_options_as_the_loss_does(measure, name):
    """Measured: 0.80 (kl, fisher) to 0.95 (hawq_v1) over nine pairs, whose true losses at 8 bits are noise."""
    truth, proxy = measure("loss_increase", 512).loss, measure(name, 512).loss
    finite = np.isfinite(truth)
    assert spearmanr(truth[finite], proxy[finite]).statistic > 0.7


@every_method
def test_it_is_deterministic_and_makes_a_problem(measure, trained_digits, name):
    one, other = measure(name), measure.__wrapped__(name)
    np.testing.assert_array_equal(one.loss, other.loss)
    assert make_problem(trained_digits.quantized, one).loss.shape == (3, len(OPTIONS))


# The programs of each: fisher all in one; hawq_v1 one for errors, and one for kernels and inputs each; hawq_v2 one for
# errors and one for traces; limpq one to train, and the evaluation of the float model.
PROGRAMS = {
    "fisher": ({}, 1),
    "hawq_v1": ({}, 3),
    "hawq_v2": ({}, 2),
    "hawq_v2 hessian": ({"curvature": "hessian"}, 3),
    "limpq": ({}, 2),
}


@pytest.mark.parametrize("case", PROGRAMS)
def test_all_layers_options_and_batches_are_one_program(trained_digits, case):
    t, (options, programs) = trained_digits, PROGRAMS[case]
    for examples in (64, 256):
        batches = make_batches(t.data.validation, 64, examples)
        with compilations() as compiled:
            args = (t.quantized, t.variables, t.qparams, batches, t.task, t.data.prepare)
            sensitivity(*args, chunk=1, method=case.split()[0], **options)
        assert 1 <= compiled.count("jit(step)") <= programs


def test_progress_ends_where_it_should(trained_digits):
    t = trained_digits
    batches = make_batches(t.data.validation, 64, 128)
    for name in SENSITIVITIES:
        done = []
        args = (t.quantized, t.variables, t.qparams, batches, t.task, t.data.prepare)
        sensitivity(*args, chunk=1, method=name, on_done=done.append)
        assert done == sorted(done)
        assert done[-1] in (2 * len(MENU) + len(PINNED), 2 * len(MENU) + len(PINNED) + 1), name


def test_unknown_methods_and_options_are_refused_with_the_nearest_name(trained_digits):
    t = trained_digits
    args = (t.quantized, t.variables, t.qparams, make_batches(t.data.validation, 64, 64), t.task, t.data.prepare)
    with pytest.raises(ConfigError, match=r"unknown sensitivity 'fishr'.*'fisher'"):
        sensitivity(*args, method="fishr")
    with pytest.raises(ConfigError, match=r"sensitivity: method 'hawq_v2' has no option 'probe'.*'probes'"):
        sensitivity(*args, method="hawq_v2", probe=3)
    with pytest.raises(ConfigError, match=r"sensitivity: unknown curvature 'hesian'.*'hessian'"):
        sensitivity(*args, method="hawq_v2", curvature="hesian")


@pytest.mark.parametrize("name", ["loss_increase", "limpq"])
def test_a_float_model_without_a_finite_loss_is_refused(trained_digits, name):
    t = trained_digits
    broken = jax.tree.map(lambda leaf: np.full_like(leaf, np.nan), t.variables)
    args = (t.quantized, broken, t.qparams, make_batches(t.data.validation, 64, 64), t.task, t.data.prepare)
    with pytest.raises(DataError, match="the float model's loss is not finite"):
        sensitivity(*args, chunk=1, method=name)


@every_method
def test_a_model_whose_layers_are_scanned_tied_or_both(name):
    """A tied kernel is one layer with two inputs; iterations of a scan are layers of their own."""
    from sensitivity_cases import scanned, tied

    for case in (scanned, tied):
        table = sensitivity(*case(), chunk=1, method=name)
        assert np.isfinite(table.loss).all()
        assert np.all(table.loss[:, 0] > table.loss[:, -1])
