"""Run a captured graph several times and note how long each node takes."""

import time
from statistics import median
from typing import Any

import torch
from torch import fx, nn

from ..graph.captured_graph import CapturedGraph, Owner
from ..sandbox.snapshot import fresh_copies, untouched

WARM_UP = 2  # runs that do not count


def node_seconds(captured: CapturedGraph, model: nn.Module, inputs: list[Any], repeats: int = 7) -> None:
    """Write into `node.meta["seconds"]` how long each node takes in a forward run: the median of `repeats` runs.

    Guarantees:
        The model is left as it was, random states included, and each run begins from the same.
    """
    timer = _Timer(Owner(model, captured.constants), graph=captured.graph)
    with untouched(model) as before:
        for _ in range(WARM_UP + repeats):
            timer.run(*fresh_copies(inputs))
            before.rewind()
    for node, seconds in timer.seconds.items():
        node.meta["seconds"] = median(seconds[WARM_UP:])


class _Timer(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph):
        super().__init__(module, graph=graph)
        self.seconds: dict[fx.Node, list[float]] = {}
        self.on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's

    def run_node(self, n: fx.Node) -> Any:
        started = time.perf_counter()
        out = super().run_node(n)
        if self.on_gpu:
            torch.cuda.synchronize()  # what a GPU is sent runs later
        self.seconds.setdefault(n, []).append(time.perf_counter() - started)
        return out
