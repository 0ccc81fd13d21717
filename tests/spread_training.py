"""What trainings and evaluations find on any devices: spread_training.py OUT CASES SIZE [ADDRESS COUNT PROCESS].

OUT-PROCESS.npz: losses of every epoch, the last parameters, the scores of every example. OUT-PROCESS.json: facts of
the meshes. The devices are those of XLA_FLAGS, in each of COUNT processes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import jax
import numpy as np
from resume_cases import CASES, images

from qresearch import devices
from qresearch.evaluation import evaluate, make_batches
from qresearch.keeper import Keeper
from qresearch.training import _compiled, _setting

# Of each size: populations that are trained (9: on 8 devices, one for each and one that is split), and those that are
# evaluated: members, batch size, chunk.
WORK = {
    "small": ((1,), ((1, 16, 1),)),
    "large": ((1, 9), ((1, 16, 1), (1, 12, 1), (3, 16, 2), (11, 16, 1), (11, 16, 2))),
}


def found(folder, cases, work):
    """{name: array}."""
    counts, evaluations = WORK[work]
    rows = {}
    for case in cases:
        trainer, trials = CASES[case]()
        # A low rate: where a weight meets a rounding tie, a last bit becomes a code, and trainings part.
        trials = [trials[i % 3]._replace(seed=i, learning_rate=1e-3) for i in range(9)]
        for count in counts:
            keepers = [Keeper(folder / f"{case} {i} of {count}", 7, 2, print) for i in range(count)]
            outcomes = list(trainer.train(trials[:count], 1, keepers=keepers))
            history = [[list(row.values()) for row in outcome.history] for outcome in outcomes]
            rows[f"{case}, {count}: history"] = np.asarray(history)[..., 1:]
            if case == "float":  # adam makes steps of gradients that are rounding noise
                leaves = [np.ravel(leaf) for outcome in outcomes for leaf in jax.tree.leaves(outcome.last)]
                rows[f"{case}, {count}: last"] = np.concatenate(leaves)
        members = [(*outcome.last, trials[0].bits) for outcome in outcomes[:8]]  # those that are the same everywhere
        own = jax.tree.map(lambda *leaves: np.stack(leaves), *members)
        for count, size, chunk in evaluations:
            part = jax.tree.map(lambda leaf, n=count: np.resize(leaf, (n, *leaf.shape[1:])), own)
            batches = make_batches(images().test, size, 40)
            scores = evaluate(trainer.program.forward, trainer.task, images().prepare, (), part, batches, chunk)
            rows[f"{case}, {count} in {size} by {chunk}: loss"] = scores.loss
            rows[f"{case}, {count} in {size} by {chunk}: score"] = scores.score
    return rows


def facts(case):
    """What the meshes are, and what one device does of a step on a batch of 8."""
    shapes = {}
    for members, examples in ((1, 8), (1, 12), (1, 11), (7, 16), (8, 11), (20, 11)):
        mesh = devices.make_mesh(members, examples)
        shapes[f"{members} {examples}"] = None if mesh is None else list(mesh.devices.shape)
    trainer, trials = CASES[case]()
    mesh, train = devices.make_mesh(1, 8), images().train
    arrays = trainer._initial(trials[0]), _setting(trials[0]), train.inputs, train.targets
    indices = devices.place(np.arange(8, dtype=np.int32), mesh, devices.EXAMPLE)
    program = _compiled(trainer.step, 1, mesh).lower(*devices.place(arrays, mesh), indices).compile()
    sizes = [list(devices.group_sizes(members, chunk)) for members, chunk in ((20, 1), (20, 32), (5, 32), (19, 2))]
    return {
        "devices": [jax.process_count(), jax.device_count(), jax.local_device_count()],
        "meshes": shapes,
        "sizes": sizes,
        "gradients are summed": "all-reduce" in program.as_text(),
        "operations": program.cost_analysis()["flops"],
    }


def main(out, cases, work, *joined):
    if joined:
        devices.join(joined[0], int(joined[1]), int(joined[2]))
    rows = found(Path(out), cases.split(","), work)
    np.savez(f"{out}-{jax.process_index()}.npz", **rows)
    Path(f"{out}-{jax.process_index()}.json").write_text(json.dumps(facts(cases.split(",")[0])))


if __name__ == "__main__":
    main(*sys.argv[1:])
