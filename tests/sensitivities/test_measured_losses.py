"""What the sensitivity posterior is fitted to, against losses evaluated one by one."""

from __future__ import annotations

import numpy as np
import pytest

from qresearch.errors import ConfigError
from qresearch.evaluation import make_batches
from qresearch.population import evaluate_population
from qresearch.sensitivities import Subject
from qresearch.sensitivities.measured_losses import measure_losses


@pytest.fixture(scope="module")
def subject(trained_digits):
    t = trained_digits
    batches = make_batches(t.data.validation, 100, 200)
    return Subject(t.quantized, t.variables, t.qparams, batches, t.task, t.data.prepare)


def test_parts_average_to_the_table_and_joint_losses_are_the_populations(subject):
    found = measure_losses(*subject[:6], joint=5, seed=1, parts=4)
    options = np.asarray(subject.options, np.float32)
    bits = np.concatenate([options[found.allocations], subject.one_at_a_time()])
    losses = evaluate_population(*subject[:3], bits, *subject[3:6]).loss.astype(np.float64)
    np.testing.assert_allclose(found.joint, losses[:5].mean(axis=1), rtol=1e-6)
    increase = losses[5:-1] - losses[-1]
    for (layer, option), row in zip(subject.pairs(), increase):
        expected = row.reshape(4, 50).mean(axis=1)  # 200 examples in 4 parts
        np.testing.assert_allclose(found.single[:, layer, option], expected, atol=1e-6)
    assert found.base == (pytest.approx(losses[-1].mean(), rel=1e-6), 0.0)
    forbidden = np.ones(found.single.shape[1:], bool)
    forbidden[tuple(np.transpose(subject.pairs()))] = False
    assert np.isposinf(found.single[:, forbidden]).all()
    assert not forbidden[np.arange(len(forbidden)), found.allocations].any()


def test_parts_that_show_no_noise_are_refused(subject):
    for parts in (1, 201):
        with pytest.raises(ConfigError, match=f"parts must be from 2 to the number of examples, 200, got {parts}"):
            measure_losses(*subject[:6], joint=2, parts=parts)
