"""How long does `decouple` take as the graph grows, and does it cost more than the capture that it begins with?

Chains of linear layers and residual nets, 100 to 50,000 nodes, 2 to 200 cuts, check=False. The graph is captured once
per round; all that is behind (run and annotate, choose the cuts, partition, split, boundaries and heads, code) is timed
on this capture, with named cuts and with balanced ones. Linear means that the microseconds per node stay the same.
Seconds are of processor time on one thread, medians over the rounds: what else the machine does does not count.
"""

import gc
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.passes.capture.ladder import RUNGS, Rung, capture

from .timing import report

WIDTH, BATCH = 8, 2
CASES = ((100, 2), (500, 2), (500, 20), (5000, 20), (5000, 200), (50_000, 200))  # nodes, cuts
ROUNDS = 3  # of each case up to MANY nodes
MANY = 5000


class Layer(nn.Module):
    """Two nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = torch.relu(self.fc(x))
        return out


class Block(nn.Module):
    """Four nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.down(torch.relu(self.up(x)))
        return out


def chain(nodes: int) -> nn.Sequential:
    """A chain of so many nodes."""
    return nn.Sequential(*(Layer() for _ in range(nodes // 2)))


def residual(nodes: int) -> nn.Sequential:
    """Residual blocks of so many nodes."""
    return nn.Sequential(*(Block() for _ in range(nodes // 4)))


def case(make: Callable[[int], nn.Sequential], nodes: int, cuts: int) -> dict[str, Any]:
    """The seconds of one capture and of all that follows."""
    model, x = make(nodes), torch.randn(BATCH, WIDTH)
    named = [str(len(model) * i // (cuts + 1) - 1) for i in range(1, cuts + 1)]
    seconds: dict[str, list[float]] = {"capture": [], "named": [], "balanced": []}
    recordings: list[Any] = []
    for _ in range(ROUNDS if nodes <= MANY else 1):
        recordings.clear()
        seconds["capture"].append(timed(lambda: recordings.append(capture(model, (x,), {}))))
        with patch.dict(RUNGS, record=Rung("record", lambda *_: recordings[0])):
            seconds["named"].append(timed(lambda: dg.decouple(model, named, (x,), check=False)))
            seconds["balanced"].append(timed(lambda: dg.decouple(model, cuts + 1, (x,), check=False)))
    found = {how: median(s) for how, s in seconds.items()}
    return {
        "arm": make.__name__,
        "nodes": nodes,
        "cuts": cuts,
        **{f"{how}, s": value for how, value in found.items()},
        **{f"{how}, us/node": round(1e6 * value / nodes) for how, value in found.items()},
        "of capture": found["balanced"] / found["capture"],
    }


def timed(run: Callable[[], Any]) -> float:
    """The seconds of one run, of this process alone."""
    gc.collect()  # what the run before left is not this one's
    started = time.process_time()
    run()
    return time.process_time() - started


def main() -> None:
    """Run all cases and write the results."""
    warnings.simplefilter("ignore", dg.UnconditionedWarning)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    case(chain, 20, 2)  # what is imported on first use is no one's
    rows = [case(make, nodes, cuts) for make in (chain, residual) for nodes, cuts in CASES]
    report("decouple without the check: capture, and the rest of it", rows, "compile_time")


if __name__ == "__main__":
    main()
