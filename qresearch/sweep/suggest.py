"""The suggested trials of a sweep: what to run next, from the validation scores in the run's records."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from qresearch.config import RunConfig, SuggestConfig, SweepConfig, config_hash, suggested, suggestion_of
from qresearch.errors import QResearchError
from qresearch.options import check_options
from qresearch.results import RunFolder
from qresearch.suggesters import SUGGESTERS, Settings, Suggester, propose
from qresearch.sweep.assemble import known_names


def make_suggester(suggest: SuggestConfig) -> Suggester:
    """The suggester that a sweep names. ConfigError for an option that it does not have, or a missing package."""
    make, options = SUGGESTERS[suggest.name], dict(suggest.options)
    check_options("sweep.suggest", f"suggester '{suggest.name}'", make, options)
    return make(suggest.space, suggest.seed, **options)


def run_suggested(
    sweep: SweepConfig,
    run: RunFolder,
    execute: Callable[[Sequence[RunConfig]], None],
    check: Callable[[RunConfig], None],
    report: Callable[[str], None],
) -> tuple[RunConfig, ...]:
    """The trials that the sweep's suggester proposes, batch after batch; none if it names no suggester.

    execute: runs those of a batch that have no result yet and stores their records, from which the suggester is told
    the validation scores; a trial without a finished record has failed. So a run that was stopped goes on where it was.
    check: raises a QResearchError for a trial that cannot be run. Such a proposal is a line to ``report``, and failed.
    """
    suggest = suggestion_of(sweep)
    if suggest is None:
        return ()
    known, found = known_names(), dict[RunConfig, None]()

    def config_of(settings: Settings) -> RunConfig | None:
        try:
            config = suggested(sweep, settings, known)
            check(config)
        except QResearchError as error:
            report(f"not run: {json.dumps(settings)}: {str(error).splitlines()[0]}")
            return None
        return config

    def scores_of(proposals: Sequence[Settings]) -> list[float | None]:
        configs = [config_of(settings) for settings in proposals]
        batch = tuple(dict.fromkeys(config for config in configs if config is not None))
        execute(batch)
        found.update(dict.fromkeys(batch))
        return [None if config is None else _score(run, config) for config in configs]

    propose(make_suggester(suggest), suggest.trials, suggest.batch, scores_of)
    return tuple(found)


def _score(run: RunFolder, config: RunConfig) -> float | None:
    """The validation score of a finished trial, larger for the better one."""
    record = run.find_record(config_hash(config))
    if record is None or record.status != "done":
        return None
    score = float(record.metrics["validation"]["score"])
    return score if record.higher_is_better else -score
