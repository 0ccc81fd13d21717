"""Frozen models on disk: nothing but their own files is needed, and no damaged one is taken for whole."""

from __future__ import annotations

import functools
import shutil
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from quantized_models import ENTRIES, build, full

from qresearch.cost import COSTS
from qresearch.errors import DataError
from qresearch.export.frozen_file import load_frozen, read_stored, save_frozen
from qresearch.export.stored import sizes, to_stored
from qresearch.frozen import freeze
from qresearch.models import MODELS
from qresearch.qmodel import quantize_model
from qresearch.rules import Rule, SiteRule

LSQ = Rule(weight=SiteRule("lsq", "per_channel", range="minmax"), input=SiteRule("lsq", range="minmax"))
RULES = {
    "learned": (LSQ,),
    "groups": (
        Rule(
            weight=SiteRule(granularity="per_group", group_size=2, symmetric=False, range="minmax"),
            input=SiteRule("dynamic", symmetric=False, range="minmax"),
        ),
    ),
    "codebooks": (Rule(weight=SiteRule("apot", options=(("levels", "power_of_two"),)), input=None),),
}
FORMATS = ("model.safetensors", "model")


@functools.cache
def frozen_model(rules="learned", name="mlp", bits=(3.0, 8.0)):
    own = build(ENTRIES[name], *RULES[rules])
    chosen = full(own.model, *bits)
    qparams = jax.jit(own.model.init)(own.params, own.x, chosen)
    return own, freeze(own.model, own.params, qparams, np.asarray(chosen), requantize="fixed")


def shapes(tree):
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


@pytest.fixture(scope="module", params=FORMATS)
def saved(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("frozen") / request.param
    save_frozen(path, frozen_model()[1], {"seed": 3})
    return path


@pytest.mark.parametrize("rules", RULES)
@pytest.mark.parametrize("format", FORMATS)
def test_a_stored_model_is_the_same_without_its_weights(rules, format, tmp_path):
    own, frozen = frozen_model(rules)
    save_frozen(tmp_path / format, frozen)
    loaded = load_frozen(tmp_path / format, own.model.fn, shapes(own.params), shapes(own.x))
    assert loaded.layers == frozen.layers
    assert loaded.requantize == "fixed"
    assert jax.tree.structure(loaded.arrays) == jax.tree.structure(frozen.arrays)
    jax.tree.map(np.testing.assert_array_equal, loaded.arrays, frozen.arrays)
    np.testing.assert_array_equal(loaded.apply(own.x), frozen.apply(own.x))


def test_facts_come_along_and_saving_again_changes_no_byte(saved, tmp_path):
    assert read_stored(saved).header["facts"] == {"seed": 3}
    if saved.suffix:
        save_frozen(tmp_path / saved.name, frozen_model()[1], {"seed": 3})
        assert (tmp_path / saved.name).read_bytes() == saved.read_bytes()


def files_of(path):
    return [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.is_file())


def copied(saved, tmp_path):
    own = tmp_path / saved.name
    return shutil.copytree(saved, own) if saved.is_dir() else shutil.copy(saved, own)


def refused(path):
    own, _ = frozen_model()
    with pytest.raises(DataError) as caught:
        load_frozen(path, own.model.fn, own.params, own.x)
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message


def test_every_flipped_bit_is_found(saved, tmp_path):
    own, generator = copied(saved, tmp_path), np.random.default_rng(0)
    for file in files_of(own):
        whole = file.read_bytes()
        for place in generator.integers(0, len(whole), 30 if saved.suffix else 2):
            file.write_bytes(
                whole[:place] + bytes([whole[place] ^ (1 << int(generator.integers(8)))]) + whole[place + 1 :]
            )
            refused(own)
        file.write_bytes(whole)
    load_frozen(own, frozen_model()[0].model.fn, *frozen_model()[0][1:3])  # what was restored is taken


def test_every_truncation_is_found(saved, tmp_path):
    own, generator = copied(saved, tmp_path), np.random.default_rng(1)
    for file in files_of(own):
        whole = file.read_bytes()
        for length in (0, len(whole) - 2, *generator.integers(0, len(whole), 10 if saved.suffix else 1)):
            file.write_bytes(whole[:length])
            refused(own)
        file.write_bytes(whole)


def test_a_missing_file_and_another_model_are_named(saved, tmp_path):
    refused(tmp_path / "nothing.safetensors")
    refused(tmp_path / "nothing")
    other = build(ENTRIES["fused_qkv"], LSQ)
    with pytest.raises(DataError, match=f"{saved.name}: its layers are not those of this function"):
        load_frozen(saved, other.model.fn, other.params, other.x)


def test_without_the_extra_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "safetensors.numpy", None)
    monkeypatch.delitem(sys.modules, "safetensors", raising=False)
    with pytest.raises(DataError, match=r"need the extra export: pip install 'qresearch\[export\]'"):
        save_frozen(tmp_path / "model.safetensors", frozen_model()[1])


@pytest.mark.slow
def test_a_four_bit_resnet_takes_what_it_costs(tmp_path):
    """With its header, scales and BatchNorm, at most 0.16 of the float32 model (ResNet-20, W4A8)."""
    model = MODELS["resnet20"](10)
    x = jnp.ones((1, *model.example.shape), model.example.dtype)
    variables = jax.jit(model.init)(jax.random.key(0), x)
    quantized = quantize_model(model.apply, variables, x, [LSQ])
    bits = full(quantized, 4.0, 8.0)
    qparams = jax.jit(quantized.init)(variables, x, bits)
    frozen, path = freeze(quantized, variables, qparams, np.asarray(bits)), tmp_path / "resnet.safetensors"
    save_frozen(path, frozen)
    layers, others = sizes(to_stored(frozen))
    assert layers == pytest.approx(COSTS["size"].of(quantized.counts, np.asarray(bits)) * 1000, rel=0.01)
    in_float = sum(leaf.nbytes for leaf in jax.tree.leaves(variables))
    assert layers + others < path.stat().st_size <= 0.16 * in_float
