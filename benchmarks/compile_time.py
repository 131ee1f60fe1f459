"""How long does `decouple` take as the graph grows, and does it cost more than the capture that it begins with?

Chains of linear layers and residual nets, 100 to 50,000 nodes, 2 to 200 cuts, check=False. The graph is captured once
per round; all that follows (run and annotate, choose the cuts, partition, split, boundaries and heads, code) is timed
on this capture, with named cuts and with balanced ones. Linear means that the microseconds per node stay the same.
Seconds are processor time on one thread, so that other processes do not count; medians over the rounds.
"""

import gc
import time
import warnings
from collections.abc import Callable
from statistics import median
from typing import Any
from unittest.mock import patch

import click
import torch
from torch import Tensor, nn

import dnigraph as dg
from dnigraph.passes.capture.ladder import RUNGS, Rung, capture

from .rows import Row
from .timing import report

WIDTH, BATCH = 8, 2  # small: the time is that of graphs, not of tensors
CASES = ((100, 2), (500, 2), (500, 20), (5000, 20), (5000, 200), (50_000, 200))  # nodes, cuts
ROUNDS, SEED = 3, 0
MANY = 5000  # nodes: a larger case takes minutes, and one round must do


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


def case(make: Callable[[int], nn.Sequential], nodes: int, cuts: int, rounds: int = ROUNDS) -> Row:
    """The seconds of one capture and of all that follows."""
    model, x = make(nodes), torch.randn(BATCH, WIDTH)
    named = [str(len(model) * i // (cuts + 1) - 1) for i in range(1, cuts + 1)]
    seconds: dict[str, list[float]] = {"capture": [], "named": [], "balanced": []}
    recordings: list[Any] = []
    for _ in range(rounds if nodes <= MANY else 1):
        recordings.clear()
        seconds["capture"].append(timed(lambda: recordings.append(capture(model, (x,), {}))))
        with patch.dict(RUNGS, record=Rung("record", lambda *_: recordings[0])):
            seconds["named"].append(timed(lambda: dg.decouple(model, named, (x,), check=False)))
            seconds["balanced"].append(timed(lambda: dg.decouple(model, cuts + 1, (x,), check=False)))
    medians = {how: median(times) for how, times in seconds.items()}
    return {
        "arm": make.__name__,
        "nodes": nodes,
        "cuts": cuts,
        **{f"{how}, s": value for how, value in medians.items()},
        **{f"{how}, us/node": round(1e6 * value / nodes) for how, value in medians.items()},
        "of capture": medians["balanced"] / medians["capture"],
    }


def timed(run: Callable[[], Any]) -> float:
    """The seconds of one run, of this process alone."""
    gc.collect()  # so that this run does not pay for the garbage of the one before
    started = time.process_time()
    run()
    return time.process_time() - started


@click.command()
@click.option("--rounds", default=ROUNDS, help=f"Of each case up to {MANY} nodes.")
@click.option("--most", default=CASES[-1][0], help="Nodes of the largest case.")
def main(rounds: int, most: int) -> None:
    """Run all cases and write the results."""
    warnings.simplefilter("ignore", dg.UnconditionedWarning)
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    case(chain, 20, 2)  # so that no case pays for imports on first use
    cases = [(make, nodes, cuts) for make in (chain, residual) for nodes, cuts in CASES if nodes <= most]
    rows = [case(*one, rounds) for one in cases]
    report("decouple without the check: capture, and the rest of it", "compile_time", rows, SEED)


if __name__ == "__main__":
    main()
