"""Run a captured graph several times and note how long each node takes."""

import time
from collections.abc import Callable
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
    runner = _Timer(Owner(model, captured.constants), graph=captured.graph)
    with untouched(model) as before:
        for run in range(WARM_UP + repeats):
            if run == WARM_UP:
                runner.seconds.clear()
            runner.run(*fresh_copies(inputs))
            before.rewind()
    for node, seconds in runner.seconds.items():
        node.meta["seconds"] = median(seconds)


class _Timer(fx.Interpreter):
    def __init__(self, module: nn.Module, graph: fx.Graph):
        super().__init__(module, graph=graph)
        self.seconds: dict[fx.Node, list[float]] = {}
        on_gpu = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch's
        self.wait: Callable[[], None] = torch.cuda.synchronize if on_gpu else _nothing  # what a GPU is sent runs later

    def run_node(self, n: fx.Node) -> Any:
        self.wait()
        started = time.perf_counter()
        out = super().run_node(n)
        self.wait()
        self.seconds.setdefault(n, []).append(time.perf_counter() - started)
        return out


def _nothing() -> None:
    pass
