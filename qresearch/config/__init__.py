"""Configuration files: strict YAML, typed and frozen runs, sweeps, and errors that name the line. No jax in here."""

from __future__ import annotations

from qresearch.config.halving import HalvingConfig
from qresearch.config.identity import (
    FREE,
    config_hash,
    distinct_labels,
    file_label,
    identity_of,
    resolved,
    search_name,
    trial_label,
)
from qresearch.config.load import (
    SweepConfig,
    any_run,
    expand,
    from_mapping,
    halving_of,
    load,
    located,
    suggest_ends,
    suggested,
    suggestion_of,
    sweep_identity,
)
from qresearch.config.names import KnownNames, check_names
from qresearch.config.quantize import KeepConfig, QuantizeConfig, RuleConfig, SiteConfig, WeightSiteConfig
from qresearch.config.schema import (
    AllocationConfig,
    CalibrationConfig,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    RunConfig,
    SensitivityConfig,
    TrainConfig,
)
from qresearch.config.suggest import Domain, SuggestConfig

__all__ = [
    "FREE",
    "AllocationConfig",
    "CalibrationConfig",
    "DataConfig",
    "Domain",
    "EvaluateConfig",
    "HalvingConfig",
    "KeepConfig",
    "KnownNames",
    "ModelConfig",
    "QuantizeConfig",
    "RuleConfig",
    "RunConfig",
    "SensitivityConfig",
    "SiteConfig",
    "SuggestConfig",
    "SweepConfig",
    "TrainConfig",
    "WeightSiteConfig",
    "any_run",
    "check_names",
    "config_hash",
    "distinct_labels",
    "expand",
    "file_label",
    "from_mapping",
    "halving_of",
    "identity_of",
    "load",
    "located",
    "resolved",
    "search_name",
    "suggest_ends",
    "suggested",
    "suggestion_of",
    "sweep_identity",
    "trial_label",
]
