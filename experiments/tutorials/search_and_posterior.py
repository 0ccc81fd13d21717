"""Tutorial: search an allocation within budgets, and ask how sure the answer is.

Command: python experiments/tutorials/search_and_posterior.py
Data: scikit-learn's digits. Time: 42 CPU seconds (x86-64).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import qresearch as qr
from qresearch.data import DATASETS
from qresearch.models import MODELS
from qresearch.sweep.floats import float_trainer
from qresearch.tasks import TASKS

BUDGETS = (2.5, 3.0, 4.0)  # average bits of a weight


def trained():
    """(data, model, variables): a CNN in float."""
    data, task = DATASETS["digits"](None), TASKS["classification"]
    model = MODELS["digits_cnn"](data.classes)
    trainer = float_trainer(model, task, qr.Recipe(epochs=8, batch_size=64), data, 100)
    start = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *data.example_shape)))
    (outcome,) = trainer.train([qr.Trial(start, {}, (), 3e-3, 0)])
    return data, model, outcome.best[0]


def main() -> None:
    data, task = DATASETS["digits"](None), TASKS["classification"]
    data, network, variables = trained()
    x = jnp.asarray(data.prepare(data.train.inputs[:256]))
    model = qr.quantize_model(network.apply, variables, x)
    qparams, batches = qr.calibrate(model, variables, x), qr.make_batches(data.validation, 100)

    # The table that allocators see, and the exact answer to it.
    table = qr.sensitivity(model, variables, qparams, batches, task, data.prepare)
    problem = qr.make_problem(model, table)
    budgets = [qr.budget_of(model, "average_bits", bits) for bits in BUDGETS]
    chosen, _ = qr.ALLOCATORS["exact"](0, problem, budgets)
    allocations = np.stack([qr.allocation_bits(table, row) for row in chosen])
    test = qr.make_batches(data.test, 100)
    scores = qr.evaluate_population(model, variables, qparams, allocations, test, task, data.prepare).score.mean(axis=1)
    for budget, allocation, score in zip(BUDGETS, allocations, scores):
        print(f"{budget:g} bits: test {score:.3f}, (weight, input) {allocation.astype(int).tolist()}")

    # The table is measured on 300 images, and losses only nearly add up. What follows from both?
    measured = qr.measure_losses(model, variables, qparams, batches, task, data.prepare, joint=24)
    posterior = qr.fit_posterior(jax.random.key(0), measured)
    decision = qr.decide(0, posterior, problem, budgets)
    print(
        f"share of divergent draws {posterior.diagnostics.divergent:.3f}, worst r-hat {posterior.diagnostics.r_hat:.3f}"
    )
    for row, budget in enumerate(BUDGETS):
        sure, regret = decision.optimal[row], decision.regret[row]
        print(f"{budget:g} bits: P(optimal) {sure:.2f}, expected regret {regret:.4f} of loss")
        for layer, share in zip(model.layers, decision.probabilities[row]):
            best = int(np.argmax(share))
            print(f"  {layer.name:<16} most probable option {table.options[best]} with P = {share[best]:.2f}")


if __name__ == "__main__":
    main()
