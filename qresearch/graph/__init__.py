"""Any JAX function as a graph of layers: discovery and interpretation of its jaxpr. The only home of jaxpr
knowledge.
"""

from qresearch.graph.interpreter import Call, Handler
from qresearch.graph.layer import Contraction, Layer, Unassigned
from qresearch.graph.trace import Graph, find_layers, trace

__all__ = ["Call", "Contraction", "Graph", "Handler", "Layer", "Unassigned", "find_layers", "trace"]
