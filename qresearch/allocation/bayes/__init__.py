"""Bayesian bit allocation: what is not known about losses becomes probabilities of allocations.

Two posteriors. ``forward_backward``: p(b) ∝ exp(−loss(b)/T) over the allocations within a budget, where the losses are
given. ``model``, ``posterior`` and ``decisions``: losses are measured with noise, single layers and whole allocations;
every posterior draw of them is solved exactly. Only this package and ``search.svi`` import numpyro.
"""

# How ``suggest`` names what to measure next; here, so that a config is checked without loading JAX.
METHODS = ("expected_improvement", "thompson")
