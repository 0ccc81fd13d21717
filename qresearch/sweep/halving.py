"""Successive halving: trials train side by side up to a rung, and the best of those that compete go on to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from qresearch.config import HalvingConfig, RunConfig, config_hash, resolved
from qresearch.devices import is_first
from qresearch.errors import ConfigError, DataError, did_you_mean
from qresearch.results import RunFolder
from qresearch.results.atomic import make_folder
from qresearch.results.sealed import read_sealed, write_sealed
from qresearch.sweep.plan import group_key


def rungs_of(chosen: HalvingConfig, epochs: int) -> tuple[int, ...]:
    """The epochs after which trials of so many epochs are compared: all before their end."""
    found, rung = [], chosen.epochs
    while rung < epochs:
        found.append(rung)
        rung *= chosen.factor
    return tuple(found)


def halve(
    chosen: HalvingConfig,
    run: RunFolder,
    trials: Sequence[RunConfig],
    train: Callable[[Sequence[RunConfig], int], None],
    stop: Callable[[RunConfig, str], None],
) -> frozenset[RunConfig]:
    """The trials that are worth their end; all but QAT trials always are. Jamieson & Talwalkar, Non-stochastic Best Arm
    Identification and Hyperparameter Optimization, 2016, https://arxiv.org/abs/1502.07943.

    train(trials, epoch) brings trials that have no score there up to it; they keep checkpoints and lose nothing.
    stop(trial, why) is called for each of the others. Where we differ from ASHA (Li et al., A System for Massively
    Parallel Hyperparameter Tuning, 2020, https://arxiv.org/abs/1810.05934): all trials of a rung are waited for, so
    that who goes on does not depend on how fast workers are, and a resumed sweep decides the same.
    """
    alive = {config: None for config in trials if config.flow == "qat"}
    for epoch in sorted({epoch for config in alive for epoch in rungs_of(chosen, config.qat.epochs)}):
        here = [config for config in alive if epoch in rungs_of(chosen, config.qat.epochs)]
        train([config for config in here if score_at(run, config, epoch) is None], epoch)
        for contest in _contests(chosen, here):
            numbers = {config: score_at(run, config, epoch) for config in contest}
            for config in [config for config, number in numbers.items() if number is None]:
                del alive[config]  # it has failed
            scored = [(-number, config_hash(c), c) for c, number in numbers.items() if number is not None]
            ranked = sorted(scored, key=lambda entry: entry[:2])
            kept = -(-len(contest) // chosen.factor)
            for negative, _, config in ranked[kept:]:
                del alive[config]
                least = -ranked[kept - 1][0]
                stop(config, f"{-negative:.4f} after epoch {epoch}; the {kept} that go on have {least:.4f} or more")
    return frozenset(alive) | {config for config in trials if config.flow != "qat"}


def check_halving(chosen: HalvingConfig, config: RunConfig) -> None:
    """ConfigError for a key of ``within`` that runs do not have."""
    for key in chosen.within:
        if _value(resolved(config), key) is _MISSING:
            raise ConfigError(f"sweep.halving.within: runs have no key '{key}'{did_you_mean(key, resolved(config))}")


def save_score(folder: Path, config: RunConfig, epoch: int, score: float) -> None:
    """Stores the validation score, larger for the better, of a trial that stands at the end of an epoch."""
    path = _path(folder, config, epoch)
    if not is_first():
        return
    make_folder(path.parent)
    write_sealed(path, {"key": config_hash(config), "epoch": epoch, "score": score})


def score_at(run: RunFolder, config: RunConfig, epoch: int) -> float | None:
    """The validation score of a trial after an epoch; None where it has not come that far, or a file is damaged."""
    path = _path(run.path, config, epoch)
    if path.is_file():
        try:
            return float(read_sealed(path)["score"])
        except DataError:
            return None  # trained up to there again, from its checkpoint
    record = run.find_record(config_hash(config))
    if record is None:
        return None
    row = record.metrics.get("epochs", {}).get(str(epoch), {}).get("validation_score")
    return row if row is None or record.higher_is_better else -row


def _contests(chosen: HalvingConfig, configs: Sequence[RunConfig]) -> Iterator[list[RunConfig]]:
    found: dict[Any, list[RunConfig]] = {}
    for config in configs:
        values = resolved(config)
        same = (group_key(config), config.qat.epochs, *(repr(_value(values, key)) for key in chosen.within))
        found.setdefault(same, []).append(config)
    yield from found.values()


_MISSING = object()


def _value(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part, _MISSING) if isinstance(values, dict) else _MISSING
    return values


def _path(folder: Path, config: RunConfig, epoch: int) -> Path:
    return folder / "rungs" / f"{config_hash(config)[:16]}-{epoch}.json"
