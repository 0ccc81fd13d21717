"""Programs as StableHLO: one artefact for all platforms, reloaded without the Python that made it, bit for bit."""

from __future__ import annotations

import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from trained import uniform

from qresearch.calibration import calibrate, select
from qresearch.errors import DataError
from qresearch.evaluation import compiled_step
from qresearch.export.batch import any_batch
from qresearch.export.formats import integer_forward
from qresearch.export.stablehlo import (
    FIXED,
    PLATFORMS,
    export_model,
    export_program,
    load_program,
    run_model,
    save_program,
)
from qresearch.frozen import freeze
from qresearch.models import MODELS
from qresearch.prequantized import forward_of, prequantize
from qresearch.qmodel import quantize_model
from qresearch.sweep.bench import qat_program
from qresearch.training import Recipe
from qresearch.training_step import State, make_step, make_transform, trainable_of


def reloaded(tmp_path, program):
    save_program(tmp_path / "program.stablehlo", program, {"made for": "a test"})
    return load_program(tmp_path / "program.stablehlo")


def assert_bit_equal(found, expected):
    expected = jax.tree.leaves(expected)
    assert len(found) == len(expected) > 0
    for own, other in zip(found, expected):
        assert np.asarray(own).dtype == np.asarray(other).dtype
        np.testing.assert_array_equal(np.asarray(own), np.asarray(other))


@pytest.fixture(scope="module")
def simulated(trained_digits):
    """model.apply of W4A4 as a function of prepared inputs, and 30 of them."""
    model, bits = trained_digits.quantized, jnp.asarray(uniform(4, 4))
    qparams = select(trained_digits.qparams, bits)
    x = jnp.asarray(trained_digits.data.prepare(trained_digits.data.test.inputs[:30]))
    return jax.jit(lambda x: model.apply(trained_digits.variables, qparams, x, bits)), x


def test_a_quantized_model_of_any_batch_size(simulated, tmp_path):
    function, x = simulated
    program = reloaded(tmp_path, export_model(function, x))
    assert program.facts["batch"] == "any"
    assert tuple(program.exported.platforms) == tuple(program.facts["platforms"]) == PLATFORMS
    assert program.facts["made for"] == "a test"
    assert program.facts["inputs"] == ["[0]: float32[batch,8,8,1]"]
    for size in (1, 7, 30):
        assert_bit_equal([run_model(program, x[:size])], function(x[:size]))


def test_a_function_of_a_fixed_number_of_examples(tmp_path):
    def forward(x):
        return x * jnp.ones(len(x))[:, None]  # len() of an unknown number is no number

    x = np.arange(300, dtype=np.float32).reshape(150, 2)
    program = reloaded(tmp_path, export_model(forward, x))
    assert program.facts["batch"] == FIXED
    assert program.facts["why"].startswith("the function cannot be traced for any number of examples (")
    asked = reloaded(tmp_path, export_model(forward, x, 4))
    assert asked.facts["batch"] == 4
    for size in (1, 4, 150):
        np.testing.assert_array_equal(run_model(program, x[:size]), x[:size])
        np.testing.assert_array_equal(run_model(asked, x[:size]), x[:size])


def test_it_runs_where_qresearch_is_not(simulated, tmp_path):
    function, x = simulated
    save_program(tmp_path / "program.stablehlo", export_program(function, [any_batch(x)]), {})
    np.save(tmp_path / "x.npy", x)
    script = (
        "import sys, jax, numpy as np; from jax import export\n"
        "program = export.deserialize(bytearray(open('program.stablehlo', 'rb').read()))\n"
        "np.save('y.npy', jax.jit(program.call)(np.load('x.npy'))[0])\n"
        "assert 'qresearch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), np.asarray(function(x)))


def test_integers_with_the_arrays_inside(tmp_path):
    """Against the arrays as arguments: what the compiler could compute ahead, here BatchNorm's factors, is not."""
    model, x = MODELS["digits_cnn"](10), jax.random.normal(jax.random.key(2), (20, 8, 8, 1))
    variables = jax.jit(model.init)(jax.random.key(0), x)
    variables["batch_stats"] = jax.tree.map(lambda leaf: jnp.linspace(0.1, 2.7, len(leaf)), variables["batch_stats"])
    quantized, bits = quantize_model(model.apply, variables, x), uniform(4, 8, layers=6)
    frozen = freeze(quantized, variables, select(calibrate(quantized, variables, x, [4, 8]), jnp.asarray(bits)), bits)
    program = reloaded(tmp_path, export_model(functools.partial(integer_forward, frozen), x))
    assert_bit_equal(program(x), frozen.apply(x))
    assert (tmp_path / "program.stablehlo").stat().st_size < 0.5 * 4 * 25370  # the codes are inside as they are packed


def test_the_training_step(trained_digits, tmp_path):
    data, task, model, variables, quantized, table = trained_digits
    recipe, x = Recipe(epochs=2, batch_size=16, augment="crop"), jnp.asarray(data.train.inputs[:64])
    prepared = jnp.asarray(data.prepare(data.train.inputs[:16]))
    twin = quantized.twin(model.apply_train, variables, (prepared, jax.random.key(0)))
    program, transform = qat_program(quantized, twin), make_transform(recipe)
    bits = jnp.asarray(uniform(4, 4))
    qparams = select(table, bits)
    trainable = trainable_of(variables, qparams, program.learnable(qparams))
    state = State(variables, qparams, jax.jit(transform.init)(trainable), jnp.int32(0))
    step = jax.jit(make_step(program, task, data.prepare, recipe, transform, steps=4))
    targets, key = jnp.asarray(data.train.targets[:64]), jax.random.key(1)

    def on_raw_key(state, bits, rate, key, *rest):
        return step(state, (bits, rate, jax.random.wrap_key_data(key)), *rest)

    rest = (bits, jnp.float32(1e-3), jax.random.key_data(key), x, targets, jnp.arange(16))
    loaded = reloaded(tmp_path, export_program(on_raw_key, [state, *rest]))
    assert tuple(loaded.exported.platforms) == PLATFORMS
    expected, leaves = step(state, (bits, jnp.float32(1e-3), key), x, targets, jnp.arange(16)), jax.tree.leaves(state)
    found = loaded(*leaves, *rest)
    assert_bit_equal(found, expected)
    assert int(expected[0].step) == 1
    # And on from there: what it returns is what it takes.
    following = step(expected[0], (bits, jnp.float32(1e-3), key), x, targets, jnp.arange(16, 32))
    assert_bit_equal(loaded(*found[: len(leaves)], *rest[:-1], jnp.arange(16, 32)), following)


def test_the_evaluation_of_a_population(trained_digits, tmp_path):
    data, task, _, variables, quantized, table = trained_digits
    ready = prequantize(quantized, variables, table)
    members = jnp.asarray(np.stack([uniform(2, 2), uniform(4, 4), uniform(8, 8)]))
    inputs, targets = jnp.asarray(data.test.inputs[:50]), jnp.asarray(data.test.targets[:50])
    step = compiled_step(forward_of(quantized), task, data.prepare, many=True)
    arguments = ((variables, ready), members, inputs, targets)
    program = reloaded(tmp_path, export_program(step, arguments))
    assert tuple(program.exported.platforms) == PLATFORMS
    found = program(*jax.tree.leaves(arguments))
    assert_bit_equal(found, step(*arguments))
    assert found[0].shape == (3, 50)


# ---- Damage


@pytest.fixture
def stored(tmp_path):
    """A small program on disk."""
    path = tmp_path / "folder" / "double.stablehlo"
    save_program(path, export_program(lambda x: 2 * x, [any_batch(jnp.zeros((1, 3)))]), {"trial": "abc"})
    return path


def flip(data):
    """Two thirds into the file, where bits can change what is computed and nothing notices."""
    altered = bytearray(data)
    altered[2 * len(data) // 3] ^= 1
    return bytes(altered)


@pytest.mark.parametrize("damage", [flip, lambda data: data[:-1], lambda data: data[:100], lambda data: b""])
@pytest.mark.parametrize(("suffix", "message"), [("", "is not the program that"), (".json", "is damaged")])
def test_an_altered_file_is_refused_by_its_name(stored, damage, suffix, message):
    path = stored.with_name(stored.name + suffix)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=f"{path.name}: {message}"):
        load_program(stored)


@pytest.mark.parametrize("suffix", ["", ".json"])
def test_a_missing_file_is_named(stored, suffix):
    path = stored.with_name(stored.name + suffix)
    path.unlink()
    with pytest.raises(DataError, match=f"cannot read .*{path.name}"):
        load_program(stored)


def test_what_jax_cannot_read_is_one_line(stored, monkeypatch):
    def refuse(data):
        raise ValueError("too old\nsee the release notes")

    monkeypatch.setattr(jax.export, "deserialize", refuse)
    with pytest.raises(
        DataError, match=rf"JAX {jax.__version__} cannot read what JAX {jax.__version__} wrote: too old$"
    ):
        load_program(stored)


def test_exporting_again_replaces_both_files(stored):
    save_program(stored, export_program(lambda x: 3 * x, [any_batch(jnp.zeros((1, 3)))]), {"trial": "def"})
    program = load_program(stored)
    assert program.facts["trial"] == "def"
    np.testing.assert_array_equal(program(jnp.ones((2, 3)))[0], 3)
