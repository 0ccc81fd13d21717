from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from qresearch.config import RunConfig, SiteConfig, TrainConfig, expand, from_mapping
from qresearch.errors import DataError
from qresearch.quantizers import QUANTIZERS
from qresearch.rules import SiteRule
from qresearch.sweep.assemble import known_names, load_weights, recipe_of, rules_of, setup_of, shapes_of
from qresearch.training import Recipe

BASE = {"name": "x", "flow": "float", "model": {"name": "mlp"}}


def config_of(**values):
    (config,) = expand(from_mapping({**BASE, **values}), known_names())
    return config


def test_every_name_of_every_registry_is_known():
    known = known_names()
    assert set(known["quantize.weight.quantizer"]) == set(QUANTIZERS)
    assert "own" in known["quantize.input.range"]


def test_no_setting_of_a_training_is_lost():
    # A field of the config that the recipe lacks would be read, hashed and ignored; the others are used elsewhere.
    fields = {field.name for field in dataclasses.fields(Recipe)}
    assert fields | {"learning_rate", "examples"} == set(TrainConfig.model_fields)
    train = TrainConfig(
        epochs=3,
        batch_size=7,
        optimizer="adamw",
        momentum=0.5,
        weight_decay=0.1,
        schedule="constant",
        warmup_epochs=2,
        clip_norm=2.0,
    )
    assert dataclasses.asdict(recipe_of(train)) == train.model_dump(exclude={"learning_rate", "examples"})


def test_no_setting_of_a_site_is_lost():
    assert set(SiteConfig.model_fields) <= {field.name for field in dataclasses.fields(SiteRule)}


def test_a_site_of_the_config_is_a_site_rule():
    site = {"quantizer": "minmax", "granularity": "per_group", "group_size": 4, "signed": True, "symmetric": False}
    (rule,) = rules_of(config_of(quantize={"weight": {**site, "range": "minmax", "mask": "none"}}).quantize)
    assert (rule.pattern, rule.menu) == ("*", RunConfig.model_validate(BASE).quantize.menu)
    expected = SiteRule("minmax", "per_group", 4, True, False, range="minmax", mask="none")
    assert rule.weight == expected


def test_the_methods_own_range_is_none_in_the_rule():
    (rule,) = rules_of(config_of(quantize={"input": {"quantizer": "lsq", "range": "own"}}).quantize)
    assert rule.input.range is None


def test_rules_come_first_and_the_default_is_last():
    quantize = {
        "weight": {"quantizer": "lsq", "range": "minmax"},
        "menu": [[4, 4], [8, 8]],
        "rules": [
            {"pattern": "linear1/*", "weight": "float", "menu": [[8, 8]]},
            {"pattern": "linear2/*", "input": {"quantizer": "lsq"}},
        ],
    }
    first, second, last = rules_of(config_of(quantize=quantize).quantize)
    assert (first.pattern, first.weight, first.menu) == ("linear1/*", None, ((8, 8),))
    assert first.input == last.input
    assert (second.weight, second.menu) == (last.weight, last.menu)
    assert second.input.quantizer == "lsq"
    assert (last.pattern, last.weight.quantizer, last.weight.granularity) == ("*", "lsq", "per_channel")


def test_shapes_cost_no_computation():
    setup = setup_of(config_of())
    variables, x = shapes_of(setup)
    assert x.shape == (1, 8, 8, 1)
    assert variables["params"]["linear1"]["kernel"].shape == (64, 128)


def test_one_copy_of_the_data():
    assert setup_of(config_of()).data is setup_of(config_of(seed=3)).data


@pytest.fixture
def weights(tmp_path):
    """A weight file of the MLP in ``tmp_path/weights``, and its arrays."""
    params = shapes_of(setup_of(config_of()))[0]["params"]
    rng = np.random.default_rng(0)
    arrays = {
        f"{layer}/{name}": rng.normal(size=leaf.shape).astype(np.float32)
        for layer, leaves in params.items()
        for name, leaf in leaves.items()
    }
    (tmp_path / "weights").mkdir()
    np.savez(tmp_path / "weights" / "mlp.npz", **arrays)
    return tmp_path, arrays


@pytest.mark.parametrize("given", ["{}/weights/mlp.npz", "weights/mlp.npz", "mlp.npz"])
@pytest.mark.parametrize("by", ["folder", "variable"])
def test_weights_are_found_by_path_or_in_the_data_folder(weights, monkeypatch, given, by):
    folder, arrays = weights
    data = {"name": "digits"}
    if by == "folder":
        data["folder"] = str(folder)
    else:
        monkeypatch.setenv("QRESEARCH_DATA", str(folder))
    config = config_of(model={"name": "mlp", "weights": given.format(folder)}, data=data)
    loaded = load_weights(config, setup_of(config))
    np.testing.assert_array_equal(loaded["params"]["linear3"]["kernel"], arrays["linear3/kernel"])


def test_missing_weights_say_where_they_were_looked_for(tmp_path, monkeypatch):
    monkeypatch.delenv("QRESEARCH_DATA", raising=False)
    config = config_of(model={"name": "mlp", "weights": "gone.npz"}, data={"name": "digits", "folder": str(tmp_path)})
    places = ", ".join(["gone.npz", f"{tmp_path}/gone.npz", f"{tmp_path}/weights/gone.npz"])
    message = f"model.weights: no file gone.npz (tried {places}); give its path, or set QRESEARCH_DATA"
    with pytest.raises(DataError, match=re.escape(message)):
        load_weights(config, setup_of(config))


def test_weights_of_another_model_are_refused(weights):
    folder, _ = weights
    config = config_of(model={"name": "digits_cnn", "weights": str(folder / "weights" / "mlp.npz")})
    with pytest.raises(DataError, match=r"mlp\.npz has no array"):
        load_weights(config, setup_of(config))
