"""Do two recordings of one model say the same? The soundness check of the recorder."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    # Constants are written to the front when they are first met: their place in the order says nothing.
    nodes = [n for n in one.graph.nodes if n.op != "get_attr"]
    others = [n for n in other.graph.nodes if n.op != "get_attr"]
    same = _Comparison(one.constants, other.constants, dict(zip(nodes, others, strict=False))).same
    for x, y in zip(nodes, others, strict=False):
        if x.target is guard and y.target is guard and same(x.args[0], y.args[0]) and not same(x.args[1], y.args[1]):
            return None
        if x.op != y.op or not same((x.target, x.args, x.kwargs), (y.target, y.args, y.kwargs)):
            return f"{_spelled(x)} against {_spelled(y)}"
    if len(nodes) != len(others):
        return "one of them is longer"
    if one.outputs.spec != other.outputs.spec:
        return "the structure of the results"
    return None if same(one.outputs.constants, other.outputs.constants) else "a constant among the results"


@dataclass
class _Comparison:
    """Compares arguments of nodes of two graphs. `partners`: the nodes at the same place in the other graph."""

    constants: Mapping[str, torch.Tensor]
    other_constants: Mapping[str, torch.Tensor]
    partners: dict[fx.Node, fx.Node]

    def same(self, x: Any, y: Any) -> bool:
        """Whether two arguments are the same: nodes by their place, constants by their numbers, functions by type."""
        if isinstance(x, fx.Node) and isinstance(y, fx.Node):
            if x.op != "get_attr" or y.op != "get_attr":
                return self.partners.get(x) is y
            constant, other = self.constants.get(str(x.target)), self.other_constants.get(str(y.target))
            return x.target == y.target if constant is None or other is None else equal(constant, other)
        if isinstance(x, Call) and isinstance(y, Call):
            return x.__name__ == y.__name__ and x.mode == y.mode and self.same(x.slots, y.slots)
        if isinstance(x, slice) and isinstance(y, slice):
            return self.same((x.start, x.stop, x.step), (y.start, y.stop, y.step))
        if type(x) is not type(y):
            return False
        if isinstance(x, list | tuple):
            return len(x) == len(y) and all(map(self.same, x, y))
        if isinstance(x, dict):
            return list(x) == list(y) and all(map(self.same, x.values(), y.values()))
        return equal(x, y) if isinstance(x, (torch.Tensor, np.ndarray, *PLAIN)) else True  # objects: not looked into


def _spelled(node: fx.Node) -> str:
    what = getattr(node.target, "__name__", str(node.target))
    return f"{what}({', '.join(map(str, node.args[:3]))}{', ...' if len(node.args) > 3 else ''})"
