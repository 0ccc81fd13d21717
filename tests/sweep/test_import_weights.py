from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import shared_path
from small_sweep import one_line, settings, stored, sweep, write_small

from qresearch.cli import main
from qresearch.config import expand, from_mapping
from qresearch.models import MODELS
from qresearch.sweep.assemble import known_names, load_weights, setup_of

PUBLISHED = {"resnet20": 0.9173, "resnet32": 0.9263}  # of the 10,000 test images of CIFAR-10


def weights(classes=10):
    """Arrays of digits_cnn by their path, as a weight file names them."""
    variables = jax.eval_shape(MODELS["digits_cnn"](classes).init, jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    rng = np.random.default_rng(0)
    paths = jax.tree_util.tree_leaves_with_path(variables)
    return {
        "/".join(key.key for key in path[1:]): rng.uniform(0.1, 1, leaf.shape).astype(leaf.dtype)
        for path, leaf in paths
    }


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "weights.npz"
    np.savez(path, **weights())
    return path


def run_import(source, out, model="digits_cnn", *more):
    return main(["import-weights", str(source), str(out), "--model", model, *more])


def started_from(path):
    """The variables that a config with these ``model.weights`` starts from."""
    values = {"name": "x", "flow": "float", "model": {"name": "digits_cnn", "weights": str(path)}}
    (config,) = expand(from_mapping(values), known_names())
    return load_weights(config, setup_of(config))


def score_of(config, output, data, model):
    """The float score of a run of a config that starts from ``model.weights``."""
    chosen = (f"data={json.dumps(data)}", f"model={json.dumps(model)}", "flow=float", "sweep=null")
    assert sweep(config, output, *chosen, "calibration.examples=8") == 0
    (record,) = stored(output).values()
    return record["metrics"]["test"]["score"]


def test_a_config_starts_from_the_checkpoint_as_from_the_file(source, tmp_path, capsys):
    out = tmp_path / "new" / "checkpoint"
    assert run_import(source, out) == 0
    expected = f"{out}: digits_cnn, 25,370 parameters; name it in model.weights of a config"
    assert one_line(capsys.readouterr().out) == expected
    started = [started_from(path) for path in (source, out)]
    jax.tree.map(np.testing.assert_array_equal, *started)
    np.testing.assert_array_equal(started[1]["batch_stats"]["bn1"]["mean"], weights()["bn1/mean"])


def test_the_number_of_classes_can_be_given(tmp_path):
    np.savez(tmp_path / "three.npz", **weights(3))
    assert run_import(tmp_path / "three.npz", tmp_path / "out", "digits_cnn", "--classes", "3") == 0


def changed(source, change):
    arrays = weights()
    change(arrays)
    np.savez(source, **arrays)


def misspell(arrays):
    arrays["bn1/means"] = arrays.pop("bn1/mean")


def transpose(arrays):
    arrays["linear2/kernel"] = arrays["linear2/kernel"].T


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda arrays: arrays.pop("conv3/kernel"), "no array 'conv3/kernel' (1 missing)"),
        (misspell, "no array 'bn1/mean' (1 missing); is it this model's?; did you mean 'bn1/means'?"),
        (transpose, "array 'linear2/kernel' is float32[10, 64], expected float32[64, 10]"),
        (lambda arrays: arrays.update(more=np.zeros(1)), "array 'more' (1 extra)"),
    ],
)
def test_arrays_that_are_not_the_models(source, tmp_path, capsys, change, message):
    changed(source, change)
    assert run_import(source, tmp_path / "out") == 2
    error = one_line(capsys.readouterr().err)
    assert error.startswith(f"error: weights: {source}")
    assert message in error
    assert not (tmp_path / "out").exists()


def test_files_that_are_no_weights(source, tmp_path, capsys):
    source.write_bytes(source.read_bytes()[:10_000])
    for path, message in ((source, "truncated or not an npz"), (tmp_path / "gone.npz", "is missing")):
        assert run_import(path, tmp_path / "out") == 2
        assert message in one_line(capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["resnet20"], "has no array 'layer1/0/bn1/bias'"),
        (["resnet21"], "--model: unknown name 'resnet21'; did you mean '"),
        (["digits_cnn", "--classes", "0"], "--classes: expected a whole number > 0, got 0"),
        (["digits_cnn", "--classes", "11"], "expected float32[11]; is the file of this model and this number of class"),
    ],
)
def test_another_model(source, tmp_path, capsys, arguments, message):
    assert run_import(source, tmp_path / "out", *arguments) == 2
    assert message in capsys.readouterr().err.splitlines()[0]
    assert not (tmp_path / "out").exists()


def test_nothing_is_replaced(source, tmp_path, capsys):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "mine").write_text("kept")
    assert run_import(source, tmp_path / "results") == 2
    assert one_line(capsys.readouterr().err).endswith("is there already; give the path of a new folder")
    assert (tmp_path / "results" / "mine").read_text() == "kept"


def test_a_checkpoint_of_another_model_is_refused_by_the_config(source, tmp_path, capsys):
    assert run_import(source, tmp_path / "out") == 0
    model = json.dumps({"name": "mlp", "weights": str(tmp_path / "out")})
    arguments = settings(f"model={model}", f"output={tmp_path / 'results'}", "flow=float", "sweep=null")
    capsys.readouterr()
    assert main(["sweep", str(write_small(tmp_path)), *arguments]) == 2
    assert "not a complete checkpoint of this model" in one_line(capsys.readouterr().err)


@pytest.mark.slow
@pytest.mark.parametrize("name", PUBLISHED)
def test_published_weights_reach_the_published_accuracy_in_a_sweep(name, cifar10_folder, tmp_path):
    assert run_import(shared_path("data", "weights", f"{name}_cifar10.npz"), tmp_path / "out", name) == 0
    data, model = {"name": "cifar10", "folder": str(cifar10_folder)}, {"name": name, "weights": str(tmp_path / "out")}
    assert score_of(write_small(tmp_path), tmp_path / "results", data, model) == pytest.approx(
        PUBLISHED[name], abs=1e-7
    )
