from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qresearch.errors import DataError
from qresearch.models import MODELS, load_npz

TEMPLATE = {
    "params": {"conv1": {"kernel": jax.ShapeDtypeStruct((3, 3, 1, 2), jnp.float32)}, "bn1": {"scale": jnp.ones(2)}},
    "batch_stats": {"bn1": {"mean": jnp.zeros(2), "var": jnp.ones(2)}},
}


def arrays():
    rng = np.random.default_rng(0)
    shapes = {"conv1/kernel": (3, 3, 1, 2), "bn1/scale": (2,), "bn1/mean": (2,), "bn1/var": (2,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.npz"


def fails(path, *fragments):
    with pytest.raises(DataError) as caught:
        load_npz(path, TEMPLATE)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    for fragment in fragments:
        assert fragment in message


def test_every_array_lands_in_its_collection(path):
    given = arrays()
    np.savez(path, **given)
    loaded = load_npz(path, TEMPLATE)
    assert jax.tree.structure(loaded) == jax.tree.structure(TEMPLATE)
    np.testing.assert_array_equal(loaded["params"]["conv1"]["kernel"], given["conv1/kernel"])
    np.testing.assert_array_equal(loaded["params"]["bn1"]["scale"], given["bn1/scale"])
    np.testing.assert_array_equal(loaded["batch_stats"]["bn1"]["mean"], given["bn1/mean"])
    np.testing.assert_array_equal(loaded["batch_stats"]["bn1"]["var"], given["bn1/var"])


@pytest.mark.parametrize("name", MODELS)
def test_the_variables_of_every_model_survive_a_round_trip(name, path):
    model = MODELS[name](3)
    example = jax.ShapeDtypeStruct((1, *model.example.shape), model.example.dtype)
    template = jax.eval_shape(model.init, jax.random.key(0), example)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), template)
    flat = {
        "/".join(key.key for key in keys[1:]): leaf for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)
    }
    np.savez(path, **flat)
    jax.tree.map(np.testing.assert_array_equal, load_npz(path, template), variables)


@pytest.mark.parametrize("name", arrays())
def test_a_missing_array(path, name):
    given = arrays()
    del given[name]
    np.savez(path, **given)
    fails(path, f"no array '{name}'")


def test_a_misspelt_array_is_suggested(path):
    given = arrays()
    given["bn1/means"] = given.pop("bn1/mean")
    np.savez(path, **given)
    fails(path, "no array 'bn1/mean'", "did you mean 'bn1/means'?")


def test_an_extra_array(path):
    np.savez(path, **arrays(), **{"fc/bias": np.zeros(2, np.float32)})
    fails(path, "'fc/bias'")


@pytest.mark.parametrize(
    ("array", "fragments"),
    [
        (np.zeros(3, np.float32), ["float32[3]", "float32[2]"]),
        (np.zeros((), np.float32), ["float32[]", "float32[2]"]),
        (np.zeros(2), ["float64[2]", "float32[2]"]),
        (np.array([1, np.nan], np.float32), ["NaN"]),
        (np.array([1, np.inf], np.float32), ["NaN or infinity"]),
        (np.array(["a", "b"]), ["float32[2]"]),
        (np.array([{}, None]), ["allow_pickle=False"]),
    ],
)
def test_a_wrong_array(path, array, fragments):
    np.savez(path, **{**arrays(), "bn1/mean": array})
    fails(path, "'bn1/mean'", *fragments)


def test_a_missing_file(path):
    fails(path, "missing")


@pytest.mark.parametrize("content", [b"", b"not an npz at all", b"PK\x03\x04", b"\x93NUMPY", b"\x80\x04N."])
def test_a_file_that_is_no_npz(path, content):
    path.write_bytes(content)
    fails(path)


def test_a_bare_npy_array(path):
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    fails(path, "bare array")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file(path, save, fraction):
    save(path, **arrays())
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * fraction)])
    fails(path, "truncated")


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_any_flipped_byte_of_an_array_is_refused(path, save):
    save(path, **arrays())
    content = bytearray(path.read_bytes())
    position = content.find(b"conv1/kernel.npy") + 60
    content[position] ^= 0xFF
    path.write_bytes(content)
    fails(path, "conv1/kernel")
