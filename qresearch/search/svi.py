"""Gates as latent variables: the training step of Bayesian Bits is numpyro's ``SVI``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Float
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.svi import SVIState
from numpyro.optim import optax_to_numpyro

from qresearch.augmentation import AUGMENTATIONS
from qresearch.qmodel import QuantizedModel
from qresearch.quantizers.hard_concrete import l0_sample
from qresearch.search.gated_sites import GatedSites
from qresearch.search.gates import Phi
from qresearch.training import Trainer
from qresearch.training_step import AUGMENT_STREAM, State, make_schedule, make_transform, merge


class HardConcrete(dist.Distribution):
    """A vector of gates: l0_sample(φ, u), u ~ U(0, 1), differentiable in φ.

    It scores nothing. A gate is 0 or 1 with positive probability, so there is no density to score, and the complexity
    of the posterior is known in closed form: it is a factor of the model.
    """

    arg_constraints = {"phi": constraints.real_vector}  # noqa: RUF012 (numpyro reads it from the class)
    support = constraints.real_vector
    reparametrized_params = ["phi"]  # noqa: RUF012

    def __init__(self, phi: Float[Array, "gate"], *, validate_args: bool | None = None) -> None:
        self.phi = phi
        super().__init__(event_shape=phi.shape, validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Gates [*sample_shape, gate] in [0, 1]."""
        return l0_sample(self.phi, jax.random.uniform(key, (*sample_shape, *self.phi.shape)))

    def log_prob(self, value: Array, intermediates: Any = None) -> Array:
        """0: see the class."""
        return jnp.zeros(value.shape[:-1])


def svi_trainer(trainer: Trainer, twin: QuantizedModel, sites: GatedSites) -> Trainer:
    """The trainer with ``SVI.update`` as its step: -ELBO = E_q(gates)[loss] + penalty, one draw of the gates per step.

    guide: the gates of every site, HardConcrete(φ). model: the same sites, the mean loss of the batch as a factor
    (hence a tempered likelihood: the sum over the data set, divided by its size), and the penalty of the program, which
    holds the analytic complexity, as another. Parameters are updated by the recipe's optax transform; statistics of
    batches are a mutable site. The loop, the evaluation and what may differ among trials stay the trainer's.
    """
    recipe, program, prepare = trainer.recipe, trainer.program, trainer.data.prepare
    steps = trainer.steps_per_epoch
    schedule, augment, transform = make_schedule(recipe, steps), AUGMENTATIONS[recipe.augment], make_transform(recipe)

    def step(state: State, setting: Any, inputs: Array, targets: Array, indices: Array) -> tuple[State, Array]:
        aim, learning_rate, key = setting
        crops = jax.random.fold_in(jax.random.fold_in(key, AUGMENT_STREAM), state.step)
        x, y = prepare(augment(inputs[indices], crops)), targets[indices]
        gates_key, dropout, stochastic = jax.random.split(jax.random.fold_in(key, state.step), 3)
        batch_state = {name: value for name, value in state.variables.items() if name != "params"}

        def learned_of(parameters: Any) -> Any:
            return merge(state, parameters)[1]

        def guide() -> None:
            phis = sites.phis(learned_of(numpyro.param("trainable")), aim.gain)
            for name, phi in _flat(phis).items():
                numpyro.sample(name, HardConcrete(phi))

        def model() -> None:
            parameters = numpyro.param("trainable")
            learned = learned_of(parameters)
            phis = sites.phis(learned, aim.gain)
            gates = {name: numpyro.sample(name, HardConcrete(phi)) for name, phi in _flat(phis).items()}
            qparams = sites.with_gates(learned, _unflat(phis, gates))
            variables = {**state.variables, "params": parameters[0]}
            outputs, new = twin.apply(variables, qparams, (x, dropout), sites.bits, stochastic)
            numpyro.factor("likelihood", -jnp.mean(trainer.task.loss(outputs, y)))
            progress = state.step / max(recipe.epochs * steps, 1)
            numpyro.factor("complexity", -program.penalty(learned, aim, progress))
            if batch_state:
                numpyro.primitives.mutable("batch_state").update(new)

        rate = learning_rate * schedule(state.step)
        svi = SVI(model, guide, optax_to_numpyro(_scaled(transform, rate)), Trace_ELBO())
        svi.constrain_fn = dict  # what ``SVI.init`` would find: every parameter is unconstrained
        mutable = {"batch_state": batch_state} if batch_state else None
        after, loss = svi.update(SVIState(state.optimizer, mutable, gates_key))
        params, learned = merge(state, svi.get_params(after)["trainable"])
        new = after.mutable_state["batch_state"] if batch_state else {}
        return State({**params, **new}, learned, after.optim_state, state.step + 1), loss

    def start(*trainable: Any) -> Any:
        return optax_to_numpyro(_scaled(transform, 0.0)).init({"trainable": trainable})

    return replace(trainer, step=jax.jit(step), start=start)


def _scaled(transform: optax.GradientTransformation, rate: Any) -> optax.GradientTransformation:
    """The transform times -rate, of a dict of one parameter, which is what the recipe's transform is for."""

    def init(params: Any) -> Any:
        return transform.init(params["trainable"])

    def update(gradients: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        updates, state = transform.update(gradients["trainable"], state, params["trainable"])
        return {"trainable": jax.tree.map(lambda u: (-rate * u).astype(u.dtype), updates)}, state

    return optax.GradientTransformation(init, update)


def _flat(phis: dict[tuple[str, str], Phi]) -> dict[str, Array]:
    """One vector of parameters per site, those of its widths first."""
    return {
        "/".join(site): jnp.concatenate([leaf.ravel() for leaf in jax.tree.leaves(phi)]) for site, phi in phis.items()
    }


def _unflat(phis: dict[tuple[str, str], Phi], gates: dict[str, Array]) -> dict[tuple[str, str], Phi]:
    """The gates of every site in the form of its parameters."""

    def at(phi: Phi, flat: Array) -> Phi:
        count = phi.widths.size
        return Phi(flat[:count], None if phi.channels is None else flat[count:].reshape(phi.channels.shape))

    return {site: at(phi, gates["/".join(site)]) for site, phi in phis.items()}
