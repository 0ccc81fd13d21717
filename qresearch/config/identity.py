"""What a run is, apart from where its results go: the resolved config, its hash and a label for people."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from qresearch.config.schema import RunConfig

# What moves, renames, draws or runs results otherwise, and does not change what they are.
FREE = ("name", "output", "report", "engine", "checkpoints", "trackers")

_LONGEST_LABEL = 100  # characters, with room for what comes before and after it


def resolved(config: RunConfig) -> dict[str, Any]:
    """The config as plain JSON values, under the key names of YAML and with all defaults filled in."""
    return config.model_dump(mode="json", by_alias=True)


def identity_of(config: RunConfig) -> dict[str, Any]:
    """``resolved`` without what is in ``FREE``: the config in a trial's record."""
    return {name: value for name, value in resolved(config).items() if name not in FREE}


def config_hash(config: RunConfig) -> str:
    """The SHA-256 of the resolved config as canonical JSON (sorted keys, no spaces), as 64 hexadecimal digits.

    What is in ``FREE`` is left out: moving, renaming or drawing results, or where they ran, does not change what they
    are.
    """
    text = json.dumps(identity_of(config), sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode("ascii")).hexdigest()


def trial_label(config: RunConfig) -> str:
    """A short name such as ``qat-lsq-exact-3.5bits-seed0``, safe as part of a folder name. It is not unique."""
    steps: list[str] = [config.flow]
    if config.flow != "float":
        steps += [_quantizers(config), *(method.name for method in config.ptq), _allocation(config)]
    return file_label("-".join([*steps, f"seed{config.seed}"]))


def distinct_labels(configs: Collection[RunConfig]) -> dict[str, str]:
    """{key: label} of trials, for people: to labels that several share, the entries in which those differ are added."""
    sharing: dict[str, dict[str, dict[str, Any]]] = {}
    for config in configs:
        sharing.setdefault(trial_label(config), {})[config_hash(config)] = {}
    several = {label for label, members in sharing.items() if len(members) > 1}
    for config in configs if several else ():
        if (label := trial_label(config)) in several:
            sharing[label][config_hash(config)] = dict(_entries(identity_of(config)))
    return {
        key: " ".join([label, *(f"{name}={own.get(name)}" for name in _differing(members.values()))])
        for label, members in sharing.items()
        for key, own in members.items()
    }


def _differing(members: Collection[Mapping[str, Any]]) -> list[str]:
    first, names = next(iter(members)), dict.fromkeys(name for member in members for name in member)
    return [name for name in names if any(member.get(name) != first.get(name) for member in members)]


def _entries(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The entries of nested mappings by dotted name."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _entries(item, f"{name}.{key}" if name else key)
    else:
        yield name, value


def file_label(text: str) -> str:
    """The text where it can be part of a file name on any system. Otherwise its beginning, "_" for every character that
    cannot, and a hash that tells it from others: options are texts of a user's, and lists of methods have any length.
    """
    clean = re.sub(r"[^A-Za-z0-9_.+=,-]|^[^A-Za-z0-9_]|\.$", "_", text)
    if clean == text and 0 < len(text) <= _LONGEST_LABEL:
        return text
    digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{clean[: _LONGEST_LABEL - 9] or '_'}-{digest[:8]}"


def _quantizers(config: RunConfig) -> str:
    # One name where weights and inputs share a quantizer, "lsq+pact" where they do not.
    sites = (config.quantize.weight, config.quantize.input)
    return "+".join(dict.fromkeys(site.quantizer for site in sites))


def _allocation(config: RunConfig) -> str:
    allocation = config.allocation
    if allocation.bits is not None:
        return "w{}a{}".format(*allocation.bits)
    unit = "bits" if allocation.cost == "average_bits" else allocation.cost
    return f"{search_name(config).replace(' ', '-')}-{allocation.budget:g}{unit}"


def search_name(config: RunConfig) -> str:
    """The allocator with what tells two searches of one sweep apart: another sensitivity, options, refinement."""
    allocation, measured = config.allocation, config.sensitivity
    parts = [allocation.allocator, *(f"{name}={value}" for name, value in allocation.options)]
    if measured.method != "loss_increase":
        parts += [measured.method, *(f"{name}={value}" for name, value in measured.options)]
    return " ".join([*parts, *(["refined"] if allocation.refine else [])])
