"""A run for the tests of the interactive page: two models, three seeds, a float model, curves, a table, a belief."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from results_fixtures import ENVIRONMENT, LAYERS, make_record

from qresearch.results import RunFolder
from qresearch.results.run_folder import create_run
from qresearch.results.sealed import write_sealed
from qresearch.results.tables import float_identity

HOSTILE = "</script><script>document.title='taken'</script><img src=x onerror=alert(1)>"
MIXED = [[8, 8], [4, 4], [2, 4]]
SCORES = {2: 0.5, 4: 0.9, 8: 0.95}
LEVELS = ("5 %", "25 %", "50 %", "75 %", "95 %")
POSTERIOR = {
    "probabilities": {layer: {"W2A4": 0.25, "W4A4": 0.35, "W8A8": 0.4} for layer in LAYERS},
    "measured": 0.22,
    "front": {level: 0.2 + 0.01 * i for i, level in enumerate(LEVELS)},
}


def config_of(flow: str, bits: Any, seed: int, **more: Any) -> dict[str, Any]:
    """As much of a resolved config as the page reads."""
    measured = {"method": "loss_increase", "examples": 100}
    shared = {"task": "classification", "data": {"name": "digits"}, "model": {"name": "cnn", "weights": None}}
    training = {"epochs": 2, "learning_rate": 0.1}
    bench = {**shared, "float": training, "evaluate": {"batch_size": 100}, "quantize": {"menu": 1}}
    return {**bench, "sensitivity": measured, "flow": flow, "bits": bits, "seed": seed, **more}


def with_curve(scores: list[float]) -> dict[str, Any]:
    """The metrics of a training with these validation scores."""
    rows = {str(i + 1): {"train_loss": 1.0 / (i + 1), "validation_score": score} for i, score in enumerate(scores)}
    return {"epochs": rows, "best_epoch": len(scores)}


def metrics(score: float, more: dict[str, Any]) -> dict[str, Any]:
    """Test and validation results; validation is better by 0.01."""
    return {
        "test": {"loss": 1 - score, "score": score},
        "validation": {"loss": 0.9 - score, "score": score + 0.01},
    } | more


def fill(folder: Path) -> RunFolder:
    """The run in a folder: 6 points of 14 trials."""
    run = create_run(folder, "explored", "name: explored # </script>\n", {"a": 1}, ENVIRONMENT)
    for seed in range(3):
        for bits, score in SCORES.items():
            found = metrics(score + 0.01 * seed, with_curve([score - 0.1, score]))
            run.save(make_record(seed=seed, bits=bits, metrics=found, config=config_of("qat", bits, seed)))
        run.save(make_record(flow="float", seed=seed, score=0.96, config=config_of("float", 32, seed)))
    allocation = {**make_record(allocator="exact", budget=4.0).allocation, "bits": MIXED}
    found = metrics(0.93, {"search": {"seconds": 1.0, "posterior": POSTERIOR}})
    config = config_of("ptq", "mixed", 0)
    run.save(
        make_record(flow="ptq", allocator="exact", budget=4.0, allocation=allocation, metrics=found, config=config)
    )
    hostile = config_of("qat", 4, 1, x=1)
    run.save(make_record(model="mlp", quantizer=HOSTILE, label="hostile", seed=1, score=0.7, config=hostile))
    identity = {"float": float_identity(config), "measured": config["sensitivity"]}
    bench = {name: config[name] for name in ("task", "data", "model", "evaluate", "quantize")}
    write_table(run, {**identity, "bench": json.dumps({**bench, "float": {"epochs": 2}})})
    return run


def write_table(run: RunFolder, identity: dict[str, Any]) -> None:
    """A sensitivity table whose entry [layer][option] is 10^-(layer + option)."""
    losses: list[list[float | None]] = [[10.0 ** -(i + j) for j in range(3)] for i in range(3)]
    losses[0][0] = None
    content = {
        "layers": LAYERS,
        "options": [[2, 4], [4, 4], [8, 8]],
        "loss": losses,
        "standard_error": [[0.001] * 3] * 3,
        "float_loss": 0.1,
        "identity": identity,
        "seconds": 1.0,
        "name": "0123456789abcdef-loss_increase",
    }
    (run.path / "sensitivity").mkdir()
    write_sealed(run.path / "sensitivity" / "table.json", content)
