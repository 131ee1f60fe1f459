"""Do two recordings of one model say the same? The soundness check of the recorder."""

from typing import Any

import numpy as np
import torch
from torch import fx

from ...graph.captured_graph import CapturedGraph
from ...graph.equality import equal
from ...graph.nodes import Call, guard
from .writer import PLAIN


def difference(one: CapturedGraph, other: CapturedGraph) -> str | None:
    """Where two recordings differ before a guard explains why, as one line; `None` if they agree.

    A guard with another outcome explains everything behind it: on such data the graph refuses to run.
    """
    return _Comparison(one, other).run()


class _Comparison:
    def __init__(self, one: CapturedGraph, other: CapturedGraph):
        self.constants, self.outputs = (one.constants, other.constants), (one.outputs, other.outputs)
        # Constants are written to the front when they are first met: their place in the order says nothing.
        self.nodes = tuple([n for n in r.graph.nodes if n.op != "get_attr"] for r in (one, other))
        self.places = tuple({n: i for i, n in enumerate(nodes)} for nodes in self.nodes)

    def run(self) -> str | None:
        for x, y in zip(*self.nodes, strict=False):
            if self._outcomes_differ(x, y):
                return None
            if x.op != y.op or not self._same((x.target, x.args, x.kwargs), (y.target, y.args, y.kwargs)):
                return f"{_spelled(x)} against {_spelled(y)}"
        if len(self.nodes[0]) != len(self.nodes[1]):
            return "one of them is longer"
        if self.outputs[0].spec != self.outputs[1].spec:
            return "the structure of the results"
        if not self._same(self.outputs[0].constants, self.outputs[1].constants):
            return "a constant among the results"
        return None

    def _outcomes_differ(self, x: fx.Node, y: fx.Node) -> bool:
        guards = x.target is guard and y.target is guard
        return guards and self._same(x.args[0], y.args[0]) and not self._same(x.args[1], y.args[1])

    def _same(self, x: Any, y: Any) -> bool:
        if isinstance(x, fx.Node) and isinstance(y, fx.Node):
            return self._same_node(x, y)
        if isinstance(x, Call) and isinstance(y, Call):
            return self._same((x.__name__, x.mode, x.slots), (y.__name__, y.mode, y.slots)) and x.mode == y.mode
        if isinstance(x, list | tuple):
            return type(x) is type(y) and len(x) == len(y) and all(map(self._same, x, y))
        if isinstance(x, dict):
            return isinstance(y, dict) and list(x) == list(y) and all(map(self._same, x.values(), y.values()))
        if isinstance(x, slice):
            return isinstance(y, slice) and self._same((x.start, x.stop, x.step), (y.start, y.stop, y.step))
        if isinstance(x, (torch.Tensor, np.ndarray, *PLAIN)):
            return equal(x, y)
        return type(x) is type(y)  # functions and objects: not looked into

    def _same_node(self, x: fx.Node, y: fx.Node) -> bool:
        if x.op != y.op:
            return False
        if x.op != "get_attr":
            return self.places[0][x] == self.places[1][y]
        held, kept = self.constants[0].get(str(x.target)), self.constants[1].get(str(y.target))
        if held is None or kept is None:
            return x.target == y.target
        return equal(held, kept)


def _spelled(node: fx.Node) -> str:
    what = getattr(node.target, "__name__", str(node.target))
    return f"{what}({', '.join(map(str, node.args[:3]))}{', ...' if len(node.args) > 3 else ''})"
